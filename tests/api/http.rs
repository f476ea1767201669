//! HTTP/JSON, gRPC-Web, the well-known documents and the OAuth token endpoint: the same port, the
//! same answers.

use std::collections::BTreeSet;

use accountd::grpc::pb;
use prost::Message as _;
use reqwest::{Client, Method, RequestBuilder, Response, header::HeaderMap};
use serde_json::{Value, json};

use crate::{
    access::rpcs,
    harness::{Engine, Server, auditor_scopes, on_both_engines, password},
};

on_both_engines! {
    async fn a_life_in_json(engine: Engine) {
        let server = engine.server().await;
        let web = Web::new(&server).await;
        let alice = web.ok(Method::POST, "/v1/users", json!({
            "user": { "username": "Alice", "attributes": { "teams": ["red"], "level": 3 } },
        })).await;
        let name = alice["name"].as_str().expect("a name").to_owned();
        assert_eq!((&alice["state"], &alice["etag"]), (&json!("ACTIVE"), &json!("r1")));
        assert_eq!(web.ok(Method::GET, &format!("/v1/{name}"), Value::Null).await, alice);
        assert_eq!(web.ok(Method::GET, "/v1/users:lookup?identifier=ALICE", Value::Null).await, alice);
        let batch = format!("/v1/users:batchGet?names={name}&names={name}");
        assert_eq!(web.ok(Method::GET, &batch, Value::Null).await["users"], json!([alice, alice]));

        let path = format!("/v1/{name}?updateMask=displayName,givenName");
        let updated = web.ok(Method::PATCH, &path, json!({ "displayName": "Al", "etag": "r1" })).await;
        assert_eq!((&updated["displayName"], &updated["username"]), (&json!("Al"), &json!("Alice")));
        let suspended = web.ok(Method::POST, &format!("/v1/{name}:suspend"), json!({ "reason": "x" })).await;
        assert_eq!(suspended["state"], "SUSPENDED");
        web.ok(Method::POST, &format!("/v1/{name}:resume"), json!({})).await;
        let deleted = web.ok(Method::DELETE, &format!("/v1/{name}?etag=r4"), Value::Null).await;
        assert_eq!(deleted["state"], "DELETED");
        let listed = web.ok(Method::GET, "/v1/users?filter=state%20%3D%20DELETED&pageSize=1", Value::Null).await;
        assert_eq!(listed["users"][0]["name"], name.as_str());
    }

    async fn every_unary_rpc_answers_under_every_one_of_its_paths(engine: Engine) {
        let server = engine.server().await;
        let web = Web::new(&server).await;
        for rpc in rpcs() {
            // As JSON on the gRPC path: whatever is wrong is not that there is no such thing.
            let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
            let (code, answer) = web.call(Method::POST, &path, json!({})).await;
            let reason = reason_of(&answer);
            assert!(reason != "UNKNOWN_RPC" && reason != "MALFORMED_REQUEST", "{path}: {code} {answer}");
            assert!(code != 500, "{path}: {answer}");
        }
        let openapi = web.ok(Method::GET, "/openapi.json", Value::Null).await;
        let mut seen = BTreeSet::new();
        for (path, item) in openapi["paths"].as_object().expect("paths") {
            let path = path.split('/').map(|segment| {
                let (segment, verb) = segment.split_once(':').map_or((segment, String::new()), |(s, v)| (s, format!(":{v}")));
                let segment = if segment.starts_with('{') { "018f0000-0000-7000-8000-000000000000" } else { segment };
                format!("{segment}{verb}")
            });
            let path = path.collect::<Vec<_>>().join("/");
            for (verb, operation) in item.as_object().expect("operations") {
                let method: Method = verb.to_uppercase().parse().expect("a method");
                let body = if operation.get("requestBody").is_some() { json!({}) } else { Value::Null };
                let (code, answer) = web.call(method, &path, body).await;
                let reason = reason_of(&answer);
                assert!(reason != "UNKNOWN_RPC" && reason != "MALFORMED_REQUEST", "{verb} {path}: {code} {answer}");
                let id = operation["operationId"].as_str().expect("an id");
                assert!(seen.insert(id.to_owned()), "{id} is there twice");
            }
        }
        let first = seen.iter().filter(|id| id.matches('_').count() == 1);
        assert_eq!(first.count(), rpcs().len(), "the document has every RPC");
    }

    async fn errors_are_statuses_with_the_right_http_code(engine: Engine) {
        let server = engine.server().await;
        let web = Web::new(&server).await;
        let nobody = "018f0000-0000-7000-8000-000000000000";
        web.ok(Method::POST, "/v1/users", json!({ "user": { "username": "alice" } })).await;
        for (method, path, body, code, status, reason) in [
            (Method::GET, format!("/v1/users/{nobody}"), Value::Null, 404, "NOT_FOUND", "NOT_FOUND"),
            (Method::GET, "/v1/users/x".to_owned(), Value::Null, 400, "INVALID_ARGUMENT", "INVALID_FIELD"),
            (Method::POST, "/v1/users".to_owned(), json!({ "user": { "username": "alice" } }), 409, "ALREADY_EXISTS", "ALREADY_EXISTS"),
            (Method::POST, "/v1/users".to_owned(), json!({ "user": { "username": 1 } }), 400, "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (Method::POST, "/v1/users".to_owned(), json!({ "usr": {} }), 400, "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (Method::POST, "/v1/users".to_owned(), json!([]), 400, "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (Method::GET, "/v1/users?page=1".to_owned(), Value::Null, 400, "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (Method::GET, "/v1/users?pageSize=x".to_owned(), Value::Null, 400, "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (Method::GET, "/v1/users?pageSize=1&pageSize=2".to_owned(), Value::Null, 400, "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (Method::GET, "/v1/users?showDeleted=maybe".to_owned(), Value::Null, 400, "INVALID_ARGUMENT", "MALFORMED_REQUEST"),
            (Method::GET, format!("/v1/users/{nobody}:suspend"), Value::Null, 405, "UNIMPLEMENTED", "UNKNOWN_RPC"),
            (Method::PUT, format!("/v1/users/{nobody}"), json!({}), 405, "UNIMPLEMENTED", "UNKNOWN_RPC"),
            (Method::GET, "/v1/nothing".to_owned(), Value::Null, 404, "UNIMPLEMENTED", "UNKNOWN_RPC"),
            (Method::GET, "/".to_owned(), Value::Null, 404, "UNIMPLEMENTED", "UNKNOWN_RPC"),
            (Method::POST, "/v1/sessions".to_owned(), json!({ "identifier": "x", "password": "y" }), 401, "UNAUTHENTICATED", "INVALID_CREDENTIALS"),
        ] {
            let (found, answer) = web.call(method, &path, body).await;
            let error = &answer["error"];
            let expected = (code, json!(code), json!(status), reason.to_owned());
            assert_eq!((found, error["code"].clone(), error["status"].clone(), reason_of(&answer)), expected, "{path}: {answer}");
        }
        let anonymous = Client::new();
        let response = anonymous.get(server.url("/v1/users")).send().await.expect("an answer");
        assert_eq!(header(&response, "www-authenticate"), r#"Bearer realm="accountd""#);
        let response = anonymous.get(server.url("/v1/users")).bearer_auth("x").send().await.expect("an answer");
        assert!(header(&response, "www-authenticate").contains("invalid_token"));
        assert_eq!(header(&response, "cache-control"), "no-store");
        let response = web.request(Method::PUT, &format!("/v1/users/{nobody}")).send().await.expect("an answer");
        assert_eq!(header(&response, "allow"), "DELETE, GET, PATCH");
    }

    async fn bodies_that_are_no_requests_are_refused_as_such(engine: Engine) {
        let server = engine.server().await;
        let web = Web::new(&server).await;
        let huge = format!(r#"{{"user":{{"displayName":"{}"}}}}"#, "x".repeat(300_000));
        let deep = format!(r#"{{"user":{{"attributes":{}1{}}}}}"#, r#"{"a":"#.repeat(200), "}".repeat(200));
        for (body, code, reason) in [
            (b"{".to_vec(), 400, "MALFORMED_REQUEST"),
            (b"{\"user\":{\"username\":\"\xff\"}}".to_vec(), 400, "MALFORMED_REQUEST"),
            (b"null".to_vec(), 400, "MALFORMED_REQUEST"),
            (b"{} {}".to_vec(), 400, "MALFORMED_REQUEST"),
            (deep.into_bytes(), 400, "MALFORMED_REQUEST"),
            (huge.into_bytes(), 413, "MESSAGE_TOO_LARGE"),
        ] {
            let request = web.request(Method::POST, "/v1/users").header("content-type", "application/json");
            let response = request.body(body).send().await.expect("an answer");
            assert_eq!(response.status().as_u16(), code);
            assert_eq!(reason_of(&response.json().await.expect("JSON")), reason);
        }
        let response = web.request(Method::GET, "/v1/users").body("{}").send().await.expect("an answer");
        assert_eq!(response.status().as_u16(), 400, "a GET has no body");
    }

    async fn a_web_page_elsewhere_cannot_send_json_unasked(engine: Engine) {
        let server = engine.server().await;
        let web = Web::new(&server).await;
        let send = async |kind: Option<&str>| {
            let mut request = web.request(Method::POST, "/v1/users").body(r#"{"user":{}}"#);
            if let Some(kind) = kind {
                request = request.header("content-type", kind);
            }
            request.send().await.expect("an answer").status().as_u16()
        };
        // These three a browser sends to other origins without a preflight.
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
            assert_eq!(send(Some(kind)).await, 400, "{kind}");
        }
        assert_eq!(send(None).await, 400);
        assert_eq!(send(Some("Application/JSON; charset=utf-8")).await, 200);
    }

    async fn the_key_set_is_cached_and_asked_for_again(engine: Engine) {
        let server = engine.server().await;
        let client = Client::new();
        let get = async |etag: &str| {
            let request = client.get(server.url("/.well-known/jwks.json")).header("if-none-match", etag);
            request.send().await.expect("an answer")
        };
        let first = get("\"x\"").await;
        assert_eq!(first.status().as_u16(), 200);
        assert_eq!(header(&first, "cache-control"), "public, max-age=300");
        assert_eq!(header(&first, "content-type"), "application/jwk-set+json");
        let etag = header(&first, "etag");
        for known in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}")] {
            let again = get(&known).await;
            assert_eq!((again.status().as_u16(), header(&again, "etag")), (304, etag.clone()), "{known}");
        }
        let operator = server.operator().await;
        operator.keys().prepare_signing_key(pb::PrepareSigningKeyRequest::default()).await.expect("prepared");
        let changed = get(&etag).await;
        assert_eq!(changed.status().as_u16(), 200);
        assert_ne!(header(&changed, "etag"), etag);
    }

    async fn the_metadata_name_what_is_there(engine: Engine) {
        let server = engine.server_with(|config| config.public_url = None).await;
        let issuer = server.url("");
        for path in ["/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"] {
            let document: Value = reqwest::get(server.url(path)).await.expect("an answer").json().await.expect("JSON");
            assert_eq!(document["issuer"], issuer.as_str());
            let jwks = document["jwks_uri"].as_str().expect("a URL");
            let keys: Value = reqwest::get(jwks).await.expect("an answer").json().await.expect("JSON");
            assert_eq!(keys["keys"].as_array().map(Vec::len), Some(1));
            assert_eq!(document["token_endpoint"], format!("{issuer}/oauth2/token"));
        }
    }

    async fn stock_clients_get_a_token_by_client_credentials(engine: Engine) {
        let server = engine.server().await;
        let (account, secret) = server.create_system_account(&["roles/auditor"]).await;
        let client = Client::new();
        let post = async |form: &[(&str, &str)], basic: Option<(&str, &str)>| {
            let mut request = client.post(server.url("/oauth2/token")).form(form);
            if let Some((id, secret)) = basic {
                request = request.basic_auth(id, Some(secret));
            }
            let response = request.send().await.expect("an answer");
            let (code, headers) = (response.status().as_u16(), response.headers().clone());
            (code, headers, response.json::<Value>().await.expect("JSON"))
        };
        let grant = ("grant_type", "client_credentials");
        let id = ("client_id", &*account.uid);
        let key = ("client_secret", &*secret);
        let basic = Some((&*account.uid, &*secret));
        for answer in [post(&[grant], basic).await, post(&[grant, id, key], None).await, post(&[grant, id], basic).await] {
            let (code, headers, token) = answer;
            assert_eq!((code, &token["token_type"], &token["expires_in"]), (200, &json!("Bearer"), &json!(300)));
            assert_eq!(headers["cache-control"], "no-store");
            assert_eq!(token["scope"].as_str().expect("text").split(' ').count(), auditor_scopes());
            let actor = server.with_token(token["access_token"].as_str().expect("text")).await;
            actor.users().list_users(pb::ListUsersRequest::default()).await.expect("a good token");
        }
        let (_, _, some) = post(&[grant, ("scope", "users.read keys.write")], basic).await;
        assert_eq!(some["scope"], "users.read");

        let wrong = Some((&*account.uid, "adcs_x_y"));
        for (form, basic, code, error) in [
            (vec![grant], wrong, 401, "invalid_client"),
            (vec![grant, id], None, 401, "invalid_client"),
            (vec![grant], None, 401, "invalid_client"),
            (vec![grant, key], basic, 400, "invalid_request"),
            (vec![grant, ("client_id", "other")], basic, 400, "invalid_request"),
            (vec![], basic, 400, "invalid_request"),
            (vec![("grant_type", "")], basic, 400, "invalid_request"),
            (vec![grant, grant], basic, 400, "invalid_request"),
            (vec![("grant_type", "password"), ("username", "alice"), ("password", "x")], basic, 400, "unsupported_grant_type"),
            (vec![("grant_type", "authorization_code")], basic, 400, "unsupported_grant_type"),
            (vec![grant, ("scope", "keys.write")], basic, 400, "invalid_scope"),
            (vec![grant, ("scope", "a\"b")], basic, 400, "invalid_scope"),
            (vec![grant, ("audience", "billing")], basic, 400, "invalid_target"),
            (vec![grant, ("resource", "billing")], basic, 400, "invalid_target"),
            (vec![grant, ("resource", "a"), ("audience", "a")], basic, 400, "invalid_request"),
        ] {
            let (found, headers, answer) = post(&form, basic).await;
            assert_eq!((found, &answer["error"]), (code, &json!(error)), "{form:?}: {answer}");
            assert_eq!(headers.contains_key("www-authenticate"), code == 401, "{form:?}");
        }
        let json = client.post(server.url("/oauth2/token")).json(&json!({})).send().await.expect("an answer");
        assert_eq!(json.status().as_u16(), 400);
    }

    async fn browsers_of_other_origins_are_let_in_by_name_only(engine: Engine) {
        let origin = "https://app.example";
        let server = engine.server_with(|config| config.cors.allowed_origins = vec![origin.to_owned()]).await;
        let client = Client::new();
        let preflight = async |origin: &str| {
            let request = client
                .request(Method::OPTIONS, server.url("/v1/sessions"))
                .header("origin", origin)
                .header("access-control-request-method", "POST")
                .header("access-control-request-headers", "content-type");
            let response = request.send().await.expect("an answer");
            header(&response, "access-control-allow-origin")
        };
        assert_eq!(preflight(origin).await, origin);
        assert_eq!(preflight("https://evil.example").await, "");
        let response = client.get(server.url("/v1/jwks")).header("origin", origin).send().await.expect("an answer");
        assert_eq!(header(&response, "access-control-allow-origin"), origin);

        let closed = engine.server().await;
        let response = client.get(closed.url("/v1/jwks")).header("origin", origin).send().await.expect("an answer");
        assert_eq!(header(&response, "access-control-allow-origin"), "");
    }

    async fn browsers_speak_grpc_web(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let call = async |path: &str, message: Vec<u8>, kind: &str| {
            let mut frame = vec![0];
            frame.extend(u32::try_from(message.len()).expect("small").to_be_bytes());
            frame.extend(message);
            let request = Client::new()
                .post(server.url(path))
                .header("content-type", kind)
                .header("x-grpc-web", "1")
                .bearer_auth(alice.actor.token())
                .body(frame);
            let response = request.send().await.expect("an answer");
            let headers = response.headers().clone();
            (headers, response.bytes().await.expect("a body"))
        };
        let request = pb::GetUserRequest { name: "users/me".to_owned() }.encode_to_vec();
        let (_, body) = call("/accountd.v1.UserService/GetUser", request, "application/grpc-web+proto").await;
        let length = u32::from_be_bytes(body[1..5].try_into().expect("four bytes")) as usize;
        let user = pb::User::decode(&body[5..5 + length]).expect("a user");
        assert_eq!(user.username, "alice");
        assert_eq!(body[5 + length], 0x80, "trailers follow");
        assert!(body[5 + length..].windows(13).any(|text| text == b"grpc-status:0"));
        let (headers, body) = call("/accountd.v1.UserService/ListUsers", Vec::new(), "application/grpc-web").await;
        let refused = status_of(&headers, &body);
        assert_eq!(refused, "7");
        let (headers, body) = call("/accountd.v1.UserService/Nothing", Vec::new(), "application/grpc-web").await;
        assert_eq!(status_of(&headers, &body), "12");
    }

    async fn a_person_signs_in_from_a_browser(engine: Engine) {
        let server = engine.server().await;
        server.user("alice").await;
        let client = Client::new();
        let sign_in = json!({ "identifier": "alice", "password": password("alice") });
        let response = client.post(server.url("/v1/sessions")).json(&sign_in).send().await.expect("an answer");
        assert_eq!(header(&response, "cache-control"), "no-store");
        let signed_in: Value = response.json().await.expect("JSON");
        let token = signed_in["tokens"]["accessToken"].as_str().expect("a token");
        let me = client.get(server.url("/v1/users/me")).bearer_auth(token).send().await.expect("an answer");
        let me: Value = me.json().await.expect("JSON");
        assert_eq!(me["username"], "alice");
        let refresh = json!({ "refreshToken": signed_in["tokens"]["refreshToken"] });
        let refreshed = client.post(server.url("/v1/sessions:refresh")).json(&refresh).send().await.expect("an answer");
        assert_eq!(refreshed.status().as_u16(), 200);
    }
}

/// An operator with a browser.
struct Web {
    client: Client,
    url: String,
    token: String,
}

impl Web {
    async fn new(server: &Server) -> Self {
        let token = server.operator().await.token().to_owned();
        Self {
            client: Client::new(),
            url: server.url(""),
            token,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = self.request(method, path);
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.expect("an answer");
        let code = response.status().as_u16();
        (code, response.json().await.expect("JSON"))
    }

    async fn ok(&self, method: Method, path: &str, body: Value) -> Value {
        let (code, answer) = self.call(method, path, body).await;
        assert_eq!(code, 200, "{answer}");
        answer
    }
}

fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name);
    value.map_or(String::new(), |value| {
        value.to_str().expect("text").to_owned()
    })
}

/// The reason of an error in JSON; empty if it is none.
fn reason_of(answer: &Value) -> String {
    let details = answer["error"]["details"].as_array();
    let reason = details
        .into_iter()
        .flatten()
        .find_map(|detail| detail["reason"].as_str());
    reason.unwrap_or_default().to_owned()
}

/// The gRPC status of a gRPC-Web answer, from its head or from its trailers.
fn status_of(headers: &HeaderMap, body: &[u8]) -> String {
    if let Some(status) = headers.get("grpc-status") {
        return status.to_str().expect("text").to_owned();
    }
    let text = String::from_utf8_lossy(body);
    let (_, rest) = text.split_once("grpc-status:").expect("a status");
    rest.chars().take_while(char::is_ascii_digit).collect()
}

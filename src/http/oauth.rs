//! `/oauth2/token`: the OAuth 2.0 client credentials grant (RFC 6749 section 4.4) for stock clients.
//!
//! The same as IssueToken under other names. There is no password grant and there will be none
//! (RFC 9700 section 2.4).

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::Web;
use crate::{
    domain::{error::Reason, time::Timestamp},
    grpc::{body::Limit, status::JsonError},
};

/// Most bytes of a form.
const MAX_FORM: usize = 64 * 1024;

/// An error of RFC 6749 section 5.2.
struct OAuthError {
    code: StatusCode,
    error: &'static str,
    description: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl OAuthError {
    fn new(code: StatusCode, error: &'static str, description: impl Into<String>) -> Self {
        Self {
            code,
            error,
            description: description.into(),
            headers: Vec::new(),
        }
    }

    fn invalid_request(description: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", description)
    }
}

pub(super) async fn token(State(web): State<Arc<Web>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = match issue(&web, &parts, body).await {
        Ok(answer) => (StatusCode::OK, answer.to_string()).into_response(),
        Err(error) => {
            let body = json!({ "error": error.error, "error_description": error.description });
            let mut response = (error.code, body.to_string()).into_response();
            response.headers_mut().extend(error.headers);
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn issue(web: &Web, parts: &http::request::Parts, body: Body) -> Result<Value, OAuthError> {
    let limit = Limit {
        bytes: MAX_FORM,
        time: web.app.config.request_timeout(),
    };
    let received = web.gateway.receive(body, limit).await.map_err(refused)?;
    let form = Form::read(&parts.headers, &received.bytes)?;
    match form.get("grant_type")? {
        Some("client_credentials") => {}
        Some(_) => {
            let text = "only client_credentials is supported";
            return Err(OAuthError::new(
                StatusCode::BAD_REQUEST,
                "unsupported_grant_type",
                text,
            ));
        }
        None => return Err(OAuthError::invalid_request("grant_type is missing")),
    }
    let mut request = client(&parts.headers, &form)?;
    let requested = form.get("scope")?.unwrap_or_default();
    let scopes: Vec<&str> = requested
        .split(' ')
        .filter(|scope| !scope.is_empty())
        .collect();
    let audience = match (form.get("audience")?, form.get("resource")?) {
        (Some(_), Some(_)) => {
            return Err(OAuthError::invalid_request(
                "audience and resource exclude each other",
            ));
        }
        (audience, resource) => audience.or(resource).unwrap_or_default(),
    };
    request["audience"] = json!(audience);
    request["scopes"] = json!(scopes);
    // A header for client authentication is not a bearer token to the RPC.
    let mut inner = parts.clone();
    inner.headers.remove(header::AUTHORIZATION);
    let path = "/accountd.v1.TokenService/IssueToken";
    let tokens = web
        .gateway
        .call_named(path, request, &inner)
        .await
        .map_err(refused)?;

    let granted: Vec<&str> = tokens["scopes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if !scopes.is_empty() && granted.is_empty() {
        let text = "none of the scopes may be had by this client for this audience";
        return Err(OAuthError::new(
            StatusCode::BAD_REQUEST,
            "invalid_scope",
            text,
        ));
    }
    let end = tokens["accessExpireTime"]
        .as_str()
        .and_then(Timestamp::parse);
    let expires_in = end.map_or(0, |end| end.after(web.app.clock.now()).as_secs());
    Ok(json!({
        "access_token": tokens["accessToken"],
        "token_type": "Bearer",
        "expires_in": expires_in,
        "scope": granted.join(" "),
    }))
}

/// What a client says that it is a JWT which it sends (RFC 7523 section 2.2).
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How the client authenticates, as fields of IssueToken: with id and secret, from the Basic header or
/// from the form, with an assertion, or with its id and the certificate of the connection, and in one of
/// these ways only (RFC 6749 section 2.3).
fn client(headers: &HeaderMap, form: &Form) -> Result<Value, OAuthError> {
    let in_form = (form.get("client_id")?, form.get("client_secret")?);
    let assertion = match (
        form.get("client_assertion_type")?,
        form.get("client_assertion")?,
    ) {
        (None, None) => None,
        (Some(JWT_BEARER), Some(assertion)) => Some(assertion),
        _ => {
            let text = "client_assertion goes with the client_assertion_type of RFC 7523";
            return Err(OAuthError::invalid_request(text));
        }
    };
    let twice = || OAuthError::invalid_request("two ways of client authentication at once");
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return match (in_form, assertion) {
            ((_, Some(_)), Some(_)) => Err(twice()),
            ((id, None), Some(assertion)) => {
                Ok(json!({ "clientId": id.unwrap_or_default(), "clientAssertion": assertion }))
            }
            ((Some(id), Some(secret)), None) => {
                Ok(json!({ "clientId": id, "clientSecret": secret }))
            }
            // With the certificate of the connection (RFC 8705 section 2).
            ((Some(id), None), None) => Ok(json!({ "clientId": id })),
            _ => Err(invalid_client("the client has to authenticate")),
        };
    };
    if in_form.1.is_some() || assertion.is_some() {
        return Err(twice());
    }
    let basic = || -> Option<(String, String)> {
        let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
        let decoded = data_encoding::BASE64
            .decode(encoded.trim().as_bytes())
            .ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (id, secret) = decoded.split_once(':')?;
        // Both are form-encoded before they are put together.
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text)
                .decode_utf8()
                .ok()
                .map(String::from)
        };
        scheme
            .eq_ignore_ascii_case("basic")
            .then_some((decode(id)?, decode(secret)?))
    };
    let (id, secret) = basic()
        .filter(|(_, secret)| !secret.is_empty())
        .ok_or_else(|| invalid_client("the header cannot be read, or has no secret"))?;
    if in_form.0.is_some_and(|other| other != id) {
        return Err(OAuthError::invalid_request("two different clients at once"));
    }
    Ok(json!({ "clientId": id, "clientSecret": secret }))
}

fn invalid_client(description: &str) -> OAuthError {
    let mut error = OAuthError::new(StatusCode::UNAUTHORIZED, "invalid_client", description);
    let challenge = HeaderValue::from_static(r#"Basic realm="accountd""#);
    error.headers.push((header::WWW_AUTHENTICATE, challenge));
    error
}

/// What IssueToken refused, in the words of OAuth.
fn refused(error: JsonError) -> OAuthError {
    let message = error.body["error"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let details = error.body["error"]["details"].as_array();
    let mut violations = details
        .into_iter()
        .flatten()
        .filter_map(|detail| detail["fieldViolations"][0]["field"].as_str());
    let field = violations.next().unwrap_or_default().to_owned();
    match error.reason.as_str() {
        reason if reason == Reason::InvalidCredentials.name() => {
            invalid_client("the client is not known, or what it has shown is wrong")
        }
        reason if reason == Reason::InvalidField.name() && field.starts_with("scopes") => {
            OAuthError::new(StatusCode::BAD_REQUEST, "invalid_scope", message)
        }
        // RFC 8707 section 2.
        reason if reason == Reason::InvalidField.name() && field == "audience" => {
            OAuthError::new(StatusCode::BAD_REQUEST, "invalid_target", message)
        }
        _ => {
            let name = match error.code {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    "temporarily_unavailable"
                }
                code if code.is_server_error() => "server_error",
                _ => "invalid_request",
            };
            let mut shown = OAuthError::new(error.code, name, message);
            shown.headers.extend(error.headers);
            shown
        }
    }
}

/// A form whose fields are there once (RFC 6749 section 3.2).
struct Form(Vec<(String, String)>);

impl Form {
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, OAuthError> {
        if !super::is_of_type(headers, "application/x-www-form-urlencoded") {
            let text = "the body has to be application/x-www-form-urlencoded";
            return Err(OAuthError::invalid_request(text));
        }
        let fields = form_urlencoded::parse(body).into_owned().collect();
        Ok(Self(fields))
    }

    fn get(&self, name: &str) -> Result<Option<&str>, OAuthError> {
        let mut values = self.0.iter().filter(|(field, _)| field == name);
        let value = values.next().map(|(_, value)| value.as_str());
        if values.next().is_some() {
            return Err(OAuthError::invalid_request(&format!(
                "{name} is there twice"
            )));
        }
        // RFC 6749 section 3.2: without a value it counts as omitted.
        Ok(value.filter(|value| !value.is_empty()))
    }
}

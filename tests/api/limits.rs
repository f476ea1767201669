//! What one client may take, and how the server ends: every limit has an edge.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use accountd::{domain::error::Reason, grpc::pb};
use rustls_pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    codegen::tokio_stream::once,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};

use crate::{
    harness::{Actor, Engine, Refusal as _, assert_refused, connect, on_both_engines},
    process::Installation,
};

on_both_engines! {
    async fn connections_have_a_limit_in_all_and_for_each_address(engine: Engine) {
        let server = engine.server_with(|config| config.limits.max_connections_per_address = 12).await;
        let mut held = Vec::new();
        for _ in 0..30 {
            let mut stream = TcpStream::connect(server.address()).await.expect("accepted");
            if is_open(&mut stream).await {
                held.push(stream);
            }
        }
        assert!((5..=12).contains(&held.len()), "{} connections", held.len());
        let refused = server.running.app.metrics.encode().expect("metrics");
        assert!(!refused.contains("accountd_connections_refused_total 0"), "counted");
        drop(held);
        // Their places are free again, as soon as the server has noticed.
        let mut stream = TcpStream::connect(server.address()).await.expect("accepted");
        while !is_open(&mut stream).await {
            stream = TcpStream::connect(server.address()).await.expect("accepted");
        }
    }

    async fn who_says_nothing_is_let_go(engine: Engine) {
        let server = engine.server_with(|config| config.limits.first_request_timeout_s = 1).await;
        let openings: [&[u8]; 4] = [
            b"",
            b"PRI * HTTP/2.0\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            b"GET /v1/jwks HTTP/1.1\r\nhost: x\r\nx-slow: ",
        ];
        for opening in openings {
            let mut stream = TcpStream::connect(server.address()).await.expect("accepted");
            stream.write_all(opening).await.expect("sent");
            let mut rest = Vec::new();
            let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
            assert!(ended.is_ok(), "{opening:?} is held open");
        }
    }

    async fn a_request_that_never_ends_is_let_go(engine: Engine) {
        let server = engine.server_with(|config| config.limits.request_timeout_s = 1).await;
        for (path, kind) in [
            ("/v1/sessions", "application/json"),
            ("/oauth2/token", "application/x-www-form-urlencoded"),
        ] {
            let mut stream = TcpStream::connect(server.address()).await.expect("accepted");
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: 9\r\n\r\n{{");
            stream.write_all(head.as_bytes()).await.expect("sent");
            let answer = tokio::time::timeout(Duration::from_secs(10), first_line(&mut stream)).await;
            assert_eq!(answer.expect("in time"), "HTTP/1.1 504 Gateway Timeout", "{path}");
        }
        let mut client = tonic::client::Grpc::new(server.anonymous().await.channel);
        client.ready().await.expect("ready");
        let codec = tonic_prost::ProstCodec::<pb::CreateSessionRequest, pb::SignInResponse>::default();
        let endless = tonic::codegen::tokio_stream::pending();
        let path = "/accountd.v1.SessionService/CreateSession".parse().expect("a path");
        let call = client.client_streaming(tonic::Request::new(endless), path, codec);
        let outcome = tokio::time::timeout(Duration::from_secs(10), call).await.expect("in time");
        assert_refused(outcome, Reason::Deadline);
    }

    async fn a_request_that_is_not_there_yet_takes_nobody_s_place(engine: Engine) {
        let server = engine.server_with(|config| config.limits.max_calls = 1).await;
        let mut unfinished = JoinSet::new();
        for path in ["/accountd.v1.SessionService/CreateSession", "/accountd.v1.UserService/GetUser", "/grpc.health.v1.Health/Check"] {
            let mut client = tonic::client::Grpc::new(server.anonymous().await.channel);
            unfinished.spawn(async move {
                client.ready().await.expect("ready");
                let codec = tonic_prost::ProstCodec::<pb::CreateSessionRequest, pb::SignInResponse>::default();
                let endless = tonic::codegen::tokio_stream::pending();
                let path = path.parse().expect("a path");
                client.client_streaming(tonic::Request::new(endless), path, codec).await
            });
        }
        let anonymous = server.anonymous().await;
        for _ in 0..20 {
            anonymous.keys().get_jwks(pb::GetJwksRequest {}).await.expect("served");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        unfinished.abort_all();
    }

    async fn a_connection_has_an_age_that_no_stream_outlives(engine: Engine) {
        let server = engine.server_with(|config| {
            config.limits.max_connection_age_s = 1;
            config.limits.drain_timeout_s = 1;
        });
        let server = server.await;
        let mut health = HealthClient::new(server.anonymous().await.channel);
        let mut watch = health.watch(HealthCheckRequest { service: String::new() }).await.expect("a stream").into_inner();
        let end = async { while let Ok(Some(_)) = watch.message().await {} };
        tokio::time::timeout(Duration::from_secs(10), end).await.expect("is cut");
    }

    async fn headers_have_a_limit(engine: Engine) {
        let server = engine.server().await;
        let client = reqwest::Client::new();
        let get = async |length: usize| {
            let request = client.get(server.url("/v1/jwks")).header("x-long", "x".repeat(length));
            request.send().await.expect("an answer").status().as_u16()
        };
        assert_eq!(get(8_000).await, 200);
        assert_eq!(get(40_000).await, 431);
        let actor = Actor::new(connect(server.address()).await, Some(&"x".repeat(40_000)));
        let outcome = actor.keys().get_jwks(pb::GetJwksRequest {}).await;
        assert!(outcome.is_err(), "refused by HTTP/2 itself");
        server.anonymous().await.keys().get_jwks(pb::GetJwksRequest {}).await.expect("alive");
    }

    async fn a_deadline_is_kept_and_says_what_it_is(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let client = reqwest::Client::new();
        let get = async |timeout: &str| {
            let request = client
                .get(server.url("/v1/users"))
                .bearer_auth(operator.token())
                .header("grpc-timeout", timeout);
            request.send().await.expect("an answer")
        };
        assert_eq!(get("10S").await.status().as_u16(), 200);
        let late = get("1n").await;
        assert_eq!(late.status().as_u16(), 504);
        assert!(late.text().await.expect("text").contains("DEADLINE"));
    }

    async fn calls_have_a_limit_in_all(engine: Engine) {
        let server = engine.server_with(|config| config.limits.max_calls = 1).await;
        let anonymous = server.anonymous().await;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let actor = anonymous.clone();
            calls.spawn(async move { actor.sign_in("nobody", "seven quiet otters").await.outcome() });
        }
        let outcomes = calls.join_all().await;
        assert!(outcomes.iter().any(|outcome| outcome == "RESOURCE_EXHAUSTED OVERLOADED"), "{outcomes:?}");
        assert!(outcomes.iter().any(|outcome| outcome == "UNAUTHENTICATED INVALID_CREDENTIALS"), "{outcomes:?}");
    }

    async fn administration_is_served_on_the_private_listener_only(engine: Engine) {
        let server = engine.server_with(|config| {
            config.private_listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        });
        let server = server.await;
        let private = server.running.private_address.expect("a second listener");
        let token = server.operator().await.token().to_owned();
        let (outside, inside) = (
            Actor::new(connect(server.running.address).await, Some(&token)),
            Actor::new(connect(private).await, Some(&token)),
        );
        let list = pb::ListUsersRequest::default();
        assert_eq!(outside.users().list_users(list.clone()).await.outcome(), "UNIMPLEMENTED UNKNOWN_RPC");
        inside.users().list_users(list).await.expect("inside");
        let issue = pb::GetJwksRequest {};
        outside.keys().get_jwks(issue).await.expect("for everybody");
        inside.keys().get_jwks(issue).await.expect("also inside");
        let json = reqwest::Client::new().get(server.url("/v1/users")).bearer_auth(&token).send().await;
        assert_eq!(json.expect("an answer").status().as_u16(), 404);
    }

    async fn the_same_port_speaks_tls_to_grpc_and_to_browsers(engine: Engine) {
        let tls = TestTls::new();
        let server = engine.server_with(|_| {}).await;
        let mut config = server.config.clone();
        config.data_dir = server.folder.path().join("tls");
        config.database_url = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(accountd::config::DatabaseUrl(crate::postgres::database().await)),
        };
        config.tls.certificate_file = Some(tls.certificate.clone());
        config.tls.key_file = Some(tls.key.clone());
        let environment = server.env.environment();
        let secure = accountd::server::Server::start(config, &environment).await.expect("starts");
        let ca = Certificate::from_pem(fs::read(&tls.certificate).expect("the certificate"));
        let client = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{}", secure.address)).expect("an address");
        let channel = endpoint.tls_config(client).expect("TLS").connect().await.expect("connected");
        let anonymous = Actor::new(channel, None);
        anonymous.keys().get_jwks(pb::GetJwksRequest {}).await.expect("over TLS");
        assert_eq!(tls.http1_get(secure.address, "/v1/jwks").await, "HTTP/1.1 200 OK");
        let plain = reqwest::get(format!("http://{}/v1/jwks", secure.address)).await;
        assert!(plain.is_err(), "no plaintext on a TLS port");
        // A peer that starts a handshake and says no more holds up nobody.
        let silent = TcpStream::connect(secure.address).await.expect("accepted");
        anonymous.keys().get_jwks(pb::GetJwksRequest {}).await.expect("others go on");
        drop(silent);
        secure.stop().await;
    }

    async fn health_and_metrics_need_no_token(engine: Engine) {
        let server = engine.server().await;
        let anonymous = server.anonymous().await;
        let mut health = HealthClient::new(anonymous.channel.clone());
        let check = health.check(HealthCheckRequest { service: String::new() }).await;
        assert_eq!(check.expect("an answer").into_inner().status, 1, "SERVING");
        let users = HealthCheckRequest { service: "accountd.v1.UserService".to_owned() };
        assert_eq!(health.check(users).await.expect("an answer").into_inner().status, 1, "SERVING");
        let unknown = HealthCheckRequest { service: "x".to_owned() };
        assert_eq!(health.check(unknown).await.expect_err("unknown").code(), tonic::Code::NotFound);
        let get = async |path: &str| {
            let url = format!("http://{}{path}", server.running.ops_address);
            let response = reqwest::get(url).await.expect("an answer");
            (response.status().as_u16(), response.text().await.expect("text"))
        };
        assert_eq!(get("/healthz").await.0, 200);
        assert_eq!(get("/readyz").await.0, 200);
        let (code, metrics) = get("/metrics").await;
        assert_eq!(code, 200);
        for name in ["accountd_rpcs_total", "accountd_rpc_seconds_bucket", "accountd_hashes_total", "accountd_hash_waiting", "accountd_statements_total", "accountd_connections"] {
            assert!(metrics.contains(name), "{name}");
        }
        assert!(metrics.ends_with("# EOF\n"));
        // The metrics are not on the port of clients.
        let response = reqwest::get(server.url("/metrics")).await.expect("an answer");
        assert_eq!(response.status().as_u16(), 404);
    }

    async fn clients_need_no_files(engine: Engine) {
        let server = engine.server().await;
        let channel = server.anonymous().await.channel;
        for symbol in [
            "accountd.v1.UserService",
            "accountd.v1.Reason",
            "google.rpc.ErrorInfo",
            "grpc.health.v1.Health",
        ] {
            let question = v1::server_reflection_request::MessageRequest::FileContainingSymbol(symbol.to_owned());
            let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
            let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
            let mut answers = client.server_reflection_info(once(request)).await.expect("a stream").into_inner();
            let answer = answers.message().await.expect("a message").and_then(|answer| answer.message_response);
            let is_found = matches!(answer, Some(v1::server_reflection_response::MessageResponse::FileDescriptorResponse(_)));
            assert!(is_found, "{symbol}: {answer:?}");

            let question = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(symbol.to_owned());
            let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(question) };
            let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel.clone());
            let mut answers = client.server_reflection_info(once(request)).await.expect("a stream").into_inner();
            let answer = answers.message().await.expect("a message").and_then(|answer| answer.message_response);
            let is_found = matches!(answer, Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_)));
            assert!(is_found, "{symbol}: {answer:?}");
        }
    }

    async fn a_stopping_server_finishes_what_it_has_and_then_goes(engine: Engine) {
        let installation = Installation::new(engine).await;
        let process = installation.serve(&[("ACCOUNTD_LIMITS__DRAIN_TIMEOUT_S", "3")]);
        let operator = installation.bootstrap(&process).await;
        // A stream that its peer never ends.
        let mut health = HealthClient::new(connect(process.address).await);
        let mut watch = health.watch(HealthCheckRequest { service: String::new() }).await.expect("a stream").into_inner();
        let first = watch.message().await.expect("a message").expect("a status");
        assert_eq!(first.status, 1, "SERVING");
        // And calls in the middle of their work.
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..20 {
            let actor = operator.clone();
            let user = pb::User { display_name: number.to_string(), ..Default::default() };
            calls.spawn(async move { actor.create_user(user).await });
        }
        let created = calls.join_next().await.expect("one").expect("no panic");
        created.expect("the first is done");
        process.terminate();
        let next = watch.message().await.expect("a message").expect("a status");
        assert_eq!(next.status, 2, "NOT_SERVING");
        while let Some(created) = calls.join_next().await {
            // Finished, or never begun: GOAWAY tells the client which.
            let _ = created.expect("no panic");
        }
        let status = process.ends_within(Duration::from_secs(30));
        assert_eq!(status.code(), Some(0));
    }

    async fn a_server_stops_at_once_when_nobody_is_there(engine: Engine) {
        let installation = Installation::new(engine).await;
        let process = installation.serve(&[]);
        process.terminate();
        assert_eq!(process.ends_within(Duration::from_secs(10)).code(), Some(0));
    }
}

/// Whether the server keeps a new connection: one it refuses is closed at once.
async fn is_open(stream: &mut TcpStream) -> bool {
    stream
        .write_all(b"GET /v1/jwks HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .is_ok()
        && stream.read_u8().await.is_ok()
}

async fn first_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.expect("more"));
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

/// A certificate for localhost that is its own authority.
struct TestTls {
    _folder: TempDir,
    certificate: PathBuf,
    key: PathBuf,
}

impl TestTls {
    fn new() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let (certificate, key) = (
            folder.path().join("cert.pem"),
            folder.path().join("key.pem"),
        );
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        fs::write(&certificate, made.cert.pem()).expect("written");
        fs::write(&key, made.signing_key.serialize_pem()).expect("written");
        Self {
            _folder: folder,
            certificate,
            key,
        }
    }

    /// The first line of the answer to a GET over HTTP/1.1 and TLS.
    async fn http1_get(&self, address: SocketAddr, path: &str) -> String {
        let mut roots = rustls::RootCertStore::empty();
        let certificate = rustls_pki_types::CertificateDer::from_pem_file(&self.certificate);
        roots
            .add(certificate.expect("the certificate"))
            .expect("a root");
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let stream = TcpStream::connect(address).await.expect("accepted");
        let name = rustls_pki_types::ServerName::try_from("localhost").expect("a name");
        let mut stream = connector.connect(name, stream).await.expect("a handshake");
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        // A peer may end without saying so.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        answer.lines().next().unwrap_or_default().to_owned()
    }
}

//! Programs whose keys are published by themselves, at a URL (JWK Sets, RFC 7517).

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use accountd::{config::Config, domain::error::Reason, grpc::pb};
use jsonwebtoken::{Algorithm, Header};
use pb::{
    credential::{Detail, PublicKey, public_key::Source},
    system_account::Kind,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    assertions::{Program, issue},
    authority::Authority,
    harness::{Actor, Engine, Server, assert_refused, fields_of, on_both_engines},
};

on_both_engines! {
    async fn a_program_publishes_its_keys_itself(engine: Engine) {
        let (publisher, server) = publisher_and_server(engine).await;
        let anonymous = server.anonymous().await;
        let first = Program::new(&server, Algorithm::ES256, Kind::Privileged).await;
        let second = Program::new(&server, Algorithm::EdDSA, Kind::Service).await;
        let account = &first.account;
        // What it signs with from now on is not what was given to us.
        let program = Publishing::new(&server, account, &publisher.url("/keys")).await;
        let encrypts = json!({ "kty": "RSA", "use": "enc", "n": "AQAB", "e": "AQAB" });
        publisher.publish(&json!({ "keys": [encrypts, jwk(&second, "2026-11")] }));
        let tokens = program.issue(&anonymous, &second, "2026-11").await.expect("a token");
        assert_eq!(publisher.asked(), ["GET /keys HTTP/1.1"]);
        let introspected = server.operator().await.introspect(&tokens.access_token).await.expect("active");
        assert_eq!(introspected.credential, program.credential);
        program.issue(&anonymous, &second, "2026-11").await.expect("a token");
        assert_eq!(publisher.asked().len(), 1, "what was fetched is kept");

        // It changes keys without telling anybody: a name that is new is looked for, but not all the time.
        let third = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        publisher.publish(&json!({ "keys": [jwk(&third, "2026-12")] }));
        assert_refused(program.issue(&anonymous, &third, "2026-12").await, Reason::InvalidCredentials);
        assert_eq!(publisher.asked().len(), 1);
        server.advance_s(10);
        program.issue(&anonymous, &third, "2026-12").await.expect("a token");
        // The old one is gone with the set it was in.
        assert_refused(program.issue(&anonymous, &second, "2026-11").await, Reason::InvalidCredentials);
        assert_eq!(publisher.asked().len(), 2);
        // Without a name, too.
        server.advance_s(300);
        program.issue(&anonymous, &third, "").await.expect("a token");
        assert_eq!(publisher.asked().len(), 3);
        // What was given to us goes on working, and needs no look elsewhere.
        let mut header = first.header();
        header.kid = Some(first.kid());
        let assertion = first.sign_with(&header, &first.claims(&server, "own"));
        issue(&anonymous, "", &assertion).await.expect("a token");
        assert_eq!(publisher.asked().len(), 3);
    }

    async fn keys_that_cannot_be_fetched_are_believed_for_an_hour(engine: Engine) {
        let (publisher, server) = publisher_and_server(engine).await;
        let anonymous = server.anonymous().await;
        let signer = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let program = Publishing::new(&server, &signer.account, &publisher.url("/keys")).await;
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        program.issue(&anonymous, &signer, "a").await.expect("a token");
        publisher.answer("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
        server.advance_s(3_599);
        program.issue(&anonymous, &signer, "a").await.expect("a token");
        assert_eq!(publisher.asked().len(), 2);
        server.advance_s(1);
        assert_refused(program.issue(&anonymous, &signer, "a").await, Reason::InvalidCredentials);
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        server.advance_s(10);
        program.issue(&anonymous, &signer, "a").await.expect("a token");
    }

    async fn a_stranger_causes_one_fetch_in_ten_seconds(engine: Engine) {
        let (publisher, server) = publisher_and_server(engine).await;
        let anonymous = server.anonymous().await;
        let signer = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let stranger = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let program = Publishing::new(&server, &signer.account, &publisher.url("/keys")).await;
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        // All at once: one fetches, the others wait for what it brings.
        let mut all = Vec::new();
        for number in 0..16 {
            let assertion = program.sign(&signer, "a", &format!("at once {number}"));
            let anonymous = anonymous.clone();
            all.push(tokio::spawn(async move { issue(&anonymous, "", &assertion).await }));
        }
        for one in all {
            one.await.expect("no panic").expect("a token");
        }
        assert_eq!(publisher.asked().len(), 1);
        server.advance_s(10);
        for number in 0..20 {
            let refused = program.issue(&anonymous, &stranger, &format!("unknown {number}")).await;
            assert_refused(refused, Reason::InvalidCredentials);
        }
        assert_eq!(publisher.asked().len(), 2);
        // Who claims to be somebody else has no say about where we look.
        let nobody = program.sign(&stranger, "a", "x");
        assert_refused(issue(&anonymous, &stranger.id(), &nobody).await, Reason::InvalidCredentials);
        assert_eq!(publisher.asked().len(), 2);
    }

    async fn what_is_not_public_is_not_fetched(engine: Engine) {
        let (publisher, server) = publisher_and_server(engine).await;
        let authority = publisher.authority.pem();
        // As shipped: nothing of this machine or its networks is allowed.
        let strict = engine.server_with(|config| believe(config, &authority)).await;
        let port = publisher.address.port();
        let signer = Program::new(&strict, Algorithm::ES256, Kind::Service).await;
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        let anonymous = strict.anonymous().await;
        let operator = strict.operator().await;
        // What is written as an address is known at once.
        for host in [
            "127.0.0.1", "127.1", "0x7f000001", "2130706433", "017700000001", "[::1]",
            "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "%31%32%37.1", "１２７.1", "10.0.0.1", "169.254.169.254",
        ] {
            let url = format!("https://{host}:{port}/keys");
            let refused = add(&operator, &signer.account.name, Some(Source::JwksUri(url))).await;
            assert_eq!(fields_of(refused), ["credential.public_key.jwks_uri"], "{host}");
        }
        for host in ["localhost", "LOCALHOST."] {
            let url = format!("https://{host}:{port}/keys");
            let account = strict.create_system_account(&[]).await.0;
            let program = Publishing::new(&strict, &account, &url).await;
            assert_refused(program.issue(&anonymous, &signer, "a").await, Reason::InvalidCredentials);
        }
        assert_eq!(publisher.connections.load(Relaxed), 0, "not even a connection");

        // The same URL where it is allowed, to see that it would have worked.
        let account = server.create_system_account(&[]).await.0;
        let allowed = Publishing::new(&server, &account, &publisher.url("/keys")).await;
        allowed.issue(&server.anonymous().await, &signer, "a").await.expect("a token");
        assert_eq!(publisher.connections.load(Relaxed), 1);
    }

    async fn the_operator_says_where_keys_may_come_from(engine: Engine) {
        let publisher = Publisher::new(&Arc::new(Authority::new("publishers"))).await;
        let named = engine.server_with(|config| {
            publisher.is_trusted(config);
            config.outbound.hosts = vec!["keys.Example".to_owned(), "localhost".to_owned()];
        }).await;
        let operator = named.operator().await;
        let account = named.create_system_account(&[]).await.0;
        for (host, is_allowed) in [
            ("keys.example", true),
            ("billing.keys.example.", true),
            ("monkeys.example", false),
            ("keys.example.evil", false),
            ("1.1.1.1", false),
        ] {
            let uri = Source::JwksUri(format!("https://{host}/keys"));
            let added = add(&operator, &account.name, Some(uri)).await;
            assert_eq!(added.is_ok(), is_allowed, "{host}");
        }
        // What is denied is denied although it is allowed.
        let denied = engine.server_with(|config| {
            publisher.is_trusted(config);
            config.outbound.denied_networks = vec!["127.0.0.0/8".to_owned(), "::1".to_owned()];
        }).await;
        let signer = Program::new(&denied, Algorithm::ES256, Kind::Service).await;
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        let program = Publishing::new(&denied, &signer.account, &publisher.url("/keys")).await;
        let refused = program.issue(&denied.anonymous().await, &signer, "a").await;
        assert_refused(refused, Reason::InvalidCredentials);
        assert_eq!(publisher.connections.load(Relaxed), 0);
    }

    async fn whoever_has_sent_too_much_waits_for_nothing(engine: Engine) {
        let publisher = Publisher::new(&Arc::new(Authority::new("publishers"))).await;
        let server = engine.server_with(|config| {
            publisher.is_trusted(config);
            config.throttle.network_free = 3;
        }).await;
        let anonymous = server.anonymous().await;
        let signer = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let program = Publishing::new(&server, &signer.account, &publisher.url("/keys")).await;
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        for _ in 0..4 {
            let _ = issue(&anonymous, "", "garbage").await;
        }
        let gate = publisher.gate.lock().await;
        assert_refused(program.issue(&anonymous, &signer, "a").await, Reason::Throttled);
        drop(gate);
        // Once the keys are there, nobody who signs rightly is held up by what strangers have sent.
        let granted = async {
            while program.issue(&anonymous, &signer, "a").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), granted).await.expect("a token");
        assert_eq!(publisher.asked().len(), 1);
    }

    async fn an_account_has_a_few_urls_at_most(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        let uri = |number: u8| Some(Source::JwksUri(format!("https://billing.example/{number}")));
        for number in 0..5 {
            add(&operator, &account.name, uri(number)).await.expect("one more");
        }
        assert_refused(add(&operator, &account.name, uri(5)).await, Reason::LimitReached);
        let created = server.events("credential.created").await;
        assert!(created.iter().any(|event| event.details.get("jwks_uri").is_some_and(|uri| uri == "billing.example/4")));
    }

    async fn few_wait_for_who_does_not_answer_and_nobody_else_does(engine: Engine) {
        let (publisher, server) = publisher_and_server(engine).await;
        let anonymous = server.anonymous().await;
        let signer = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let url = publisher.url("/keys");
        let program = Publishing::new(&server, &signer.account, &url).await;
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        program.issue(&anonymous, &signer, "a").await.expect("a token");
        // It falls silent, and somebody is waiting for it on account of a key that nobody has.
        let gate = publisher.gate.lock().await;
        server.advance_s(10);
        let assertion = program.sign(&signer, "unknown", "waits");
        let waiting = {
            let anonymous = anonymous.clone();
            tokio::spawn(async move { issue(&anonymous, "", &assertion).await })
        };
        while publisher.connections.load(Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        // The program itself goes on with what is known.
        program.issue(&anonymous, &signer, "a").await.expect("a token");
        assert!(!waiting.is_finished());
        // Of a crowd that names unknown keys some wait; the others are told to come again.
        let mut crowd = tokio::task::JoinSet::new();
        for number in 0..50 {
            let (anonymous, assertion) = (anonymous.clone(), program.sign(&signer, "unknown", &number.to_string()));
            crowd.spawn(async move { issue(&anonymous, "", &assertion).await });
        }
        for _ in 0..19 {
            let refused = crowd.join_next().await.expect("one of them").expect("no panic");
            assert_refused(refused, Reason::Overloaded);
        }
        // Other accounts are not in that queue.
        let other = server.create_system_account(&[]).await.0;
        let second = Publisher::new(&publisher.authority).await;
        second.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        let elsewhere = Publishing::new(&server, &other, &second.url("/keys")).await;
        elsewhere.issue(&anonymous, &signer, "a").await.expect("a token");
        drop(gate);
        assert_refused(waiting.await.expect("no panic"), Reason::InvalidCredentials);
        while let Some(refused) = crowd.join_next().await {
            assert_refused(refused.expect("no panic"), Reason::InvalidCredentials);
        }
    }

    async fn who_is_suspended_while_keys_are_fetched_gets_nothing(engine: Engine) {
        let (publisher, server) = publisher_and_server(engine).await;
        let anonymous = server.anonymous().await;
        let signer = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let account = server.create_system_account(&[]).await.0;
        let program = Publishing::new(&server, &account, &publisher.url("/keys")).await;
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        let gate = publisher.gate.lock().await;
        let assertion = program.sign(&signer, "a", "1");
        let waiting = {
            let anonymous = anonymous.clone();
            tokio::spawn(async move { issue(&anonymous, "", &assertion).await })
        };
        while publisher.connections.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let suspend = pb::SuspendSystemAccountRequest { name: account.name.clone(), ..Default::default() };
        server.operator().await.system_accounts().suspend_system_account(suspend).await.expect("suspended");
        drop(gate);
        assert_refused(waiting.await.expect("no panic"), Reason::InvalidCredentials);
        assert_eq!(publisher.asked().len(), 1, "the keys came");
    }

    async fn a_named_key_is_looked_for_where_it_is_not_known_only(engine: Engine) {
        let (publisher, server) = publisher_and_server(engine).await;
        let anonymous = server.anonymous().await;
        let signer = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        // The one that was named first never answers.
        let dead = Publisher::new(&publisher.authority).await;
        let _gate = dead.gate.lock().await;
        Publishing::new(&server, &signer.account, &dead.url("/keys")).await;
        let program = Publishing::new(&server, &signer.account, &publisher.url("/keys")).await;
        publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        let first = program.issue(&anonymous, &signer, "a");
        // Whoever has found the key waits for nobody else.
        tokio::time::timeout(Duration::from_secs(40), first).await.expect("at once").expect("a token");
        let asked = dead.asked().len();
        for _ in 0..3 {
            server.advance_s(20);
            program.issue(&anonymous, &signer, "a").await.expect("a token");
        }
        assert_eq!((publisher.asked().len(), dead.asked().len()), (1, asked));
    }

    async fn an_answer_that_is_not_a_key_set_brings_nothing(engine: Engine) {
        let publisher = Publisher::new(&Arc::new(Authority::new("publishers"))).await;
        let server = engine.server_with(|config| {
            publisher.is_trusted(config);
            config.outbound.timeout_s = 1;
        }).await;
        let anonymous = server.anonymous().await;
        let signer = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let keys = json!({ "keys": [jwk(&signer, "a")] }).to_string();
        let ok = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let elsewhere = Publisher::new(&publisher.authority).await;
        elsewhere.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        let redirect = format!(
            "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: {}\r\n\r\n{keys}",
            elsewhere.url("/keys"), keys.len()
        );
        let padded = json!({ "keys": [jwk(&signer, "a")], "x": "x".repeat(64 * 1024) }).to_string();
        let chunked = format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{padded}\r\n0\r\n\r\n", padded.len()
        );
        let private = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "d": "AQAB", "kid": "a" }] }).to_string();
        for (what, answer) in [
            ("an error with keys", format!("HTTP/1.1 404 Not Found\r\ncontent-length: {}\r\n\r\n{keys}", keys.len())),
            ("keys elsewhere", redirect),
            ("too much", ok(&padded)),
            ("too much, of unknown length", chunked),
            ("cut short", format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{keys}", keys.len() + 1)),
            ("no JSON", ok("keys")),
            ("no set", ok("{}")),
            ("an empty set", ok(r#"{"keys": []}"#)),
            ("a private key", ok(&private)),
            ("no HTTP", "keys".to_owned()),
            ("nothing", String::new()),
        ] {
            let account = server.create_system_account(&[]).await.0;
            let program = Publishing::new(&server, &account, &publisher.url("/keys")).await;
            publisher.answer(&answer);
            let asked = publisher.asked().len();
            server.advance_s(10);
            let refused = program.issue(&anonymous, &signer, "a").await.expect_err(what);
            assert_eq!(crate::harness::reason_of(&refused), "INVALID_CREDENTIALS", "{what}");
            assert_eq!(publisher.asked().len(), asked + 1, "{what}");
            publisher.publish(&json!({ "keys": [jwk(&signer, "a")] }));
            server.advance_s(10);
            program.issue(&anonymous, &signer, "a").await.expect(what);
            server.advance_s(3_600);
        }
        assert_eq!(elsewhere.connections.load(Relaxed), 0);
        // Nobody answers, for longer than anybody waits.
        publisher.say_nothing();
        let account = server.create_system_account(&[]).await.0;
        let program = Publishing::new(&server, &account, &publisher.url("/keys")).await;
        assert_refused(program.issue(&anonymous, &signer, "a").await, Reason::InvalidCredentials);
        // A server whose authority nobody believes.
        let stranger = Publisher::new(&Arc::new(Authority::new("somebody"))).await;
        stranger.publish(&json!({ "keys": [jwk(&signer, "a")] }));
        let account = server.create_system_account(&[]).await.0;
        let program = Publishing::new(&server, &account, &stranger.url("/keys")).await;
        assert_refused(program.issue(&anonymous, &signer, "a").await, Reason::InvalidCredentials);
        assert!(stranger.asked().is_empty());
    }

    async fn whom_we_believe_besides_is_an_authority(engine: Engine) {
        let server = engine.server().await;
        let clock = Arc::clone(&server.env.clock) as Arc<dyn accountd::env::Clock>;
        let file = server.folder.path().join("believed.pem");
        let authority = Authority::new("publishers");
        for (what, text, is_good) in [
            ("an authority", authority.pem(), true),
            ("a server", authority.issue(&["localhost"], |_| {}).certificate, false),
            ("nobody", String::new(), false),
        ] {
            std::fs::write(&file, text).expect("written");
            assert_eq!(accountd::tls::outgoing(Some(&file), &clock).is_ok(), is_good, "{what}");
        }
    }

    async fn what_cannot_be_a_key_sets_url_is_refused(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        for bad in [
            "", "keys", "http://billing.example/keys", "ftp://billing.example/keys",
            "https://", "https://user:secret@billing.example/keys", "https://billing.example/#keys",
        ] {
            let refused = add(&operator, &account.name, Some(Source::JwksUri(bad.to_owned()))).await;
            assert_eq!(fields_of(refused), ["credential.public_key.jwks_uri"], "{bad}");
        }
        let refused = add(&operator, &account.name, None).await;
        assert_eq!(fields_of(refused), ["credential.public_key"]);
    }
}

/// A program that publishes its keys, as accountd knows it.
struct Publishing<'a> {
    server: &'a Server,
    uid: String,
    credential: String,
    signed: AtomicUsize,
}

impl<'a> Publishing<'a> {
    async fn new(server: &'a Server, account: &pb::SystemAccount, url: &str) -> Self {
        let operator = server.operator().await;
        let source = Source::JwksUri(url.to_owned());
        let made = add(&operator, &account.name, Some(source)).await;
        let made = made.expect("a credential").credential.expect("set");
        Self {
            server,
            uid: account.uid.clone(),
            credential: made.name,
            signed: AtomicUsize::new(0),
        }
    }

    /// Signed for this account with the key of `signer` under some name.
    fn sign(&self, signer: &Program, kid: &str, jti: &str) -> String {
        let mut header: Header = signer.header();
        header.kid = (!kid.is_empty()).then(|| kid.to_owned());
        let mut claims = signer.claims(self.server, jti);
        claims["iss"] = json!(self.uid);
        claims["sub"] = json!(self.uid);
        signer.sign_with(&header, &claims)
    }

    async fn issue(
        &self,
        by: &Actor,
        signer: &Program,
        kid: &str,
    ) -> Result<pb::TokenSet, tonic::Status> {
        let number = self.signed.fetch_add(1, Relaxed);
        let assertion = self.sign(signer, kid, &format!("{kid} {number}"));
        issue(by, "", &assertion).await
    }
}

pub async fn add(
    by: &Actor,
    parent: &str,
    source: Option<Source>,
) -> Result<pb::CreateCredentialResponse, tonic::Status> {
    let key = PublicKey {
        source,
        ..Default::default()
    };
    by.create_credential(parent, Detail::PublicKey(key)).await
}

/// The public half of a program's key, under a name.
pub fn jwk(program: &Program, kid: &str) -> Value {
    let mut jwk: Value = serde_json::from_str(&program.public()).expect("JSON");
    jwk["kid"] = json!(kid);
    jwk
}

/// A server that may look at this machine, and somebody who publishes there.
async fn publisher_and_server(engine: Engine) -> (Publisher, Server) {
    let publisher = Publisher::new(&Arc::new(Authority::new("publishers"))).await;
    let server = engine
        .server_with(|config| publisher.is_trusted(config))
        .await;
    (publisher, server)
}

fn believe(config: &mut Config, authority: &str) {
    std::fs::create_dir_all(&config.data_dir).expect("a folder");
    let file = config.data_dir.join("outbound.pem");
    std::fs::write(&file, authority).expect("written");
    config.outbound.ca_file = Some(file);
    // Longer than a busy machine takes for anything here.
    config.outbound.timeout_s = 60;
    config.throttle.network_free = 1_000;
}

/// Somebody's web server, which answers each request with the same.
pub struct Publisher {
    authority: Arc<Authority>,
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<Option<String>>>,
    /// Held by a test, it keeps every answer back.
    gate: Arc<tokio::sync::Mutex<()>>,
    task: JoinHandle<()>,
}

impl Publisher {
    pub async fn new(authority: &Arc<Authority>) -> Self {
        let pair = authority.server();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(pair.chain(), pair.private())
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let answer: Arc<Mutex<Option<String>>> = Arc::default();
        let gate: Arc<tokio::sync::Mutex<()>> = Arc::default();
        let task = {
            let (connections, asked, answer) = (
                Arc::clone(&connections),
                Arc::clone(&asked),
                Arc::clone(&answer),
            );
            let gate = Arc::clone(&gate);
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.expect("accepted");
                    connections.fetch_add(1, Relaxed);
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        continue;
                    };
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => request.push(byte),
                            Err(_) => break,
                        }
                    }
                    let request = String::from_utf8(request).expect("text");
                    let line = request.lines().next().unwrap_or_default().to_owned();
                    asked.lock().expect("not poisoned").push(line);
                    drop(gate.lock().await);
                    let answer = answer.lock().expect("not poisoned").clone();
                    match answer {
                        Some(answer) => {
                            // Whoever has heard enough may have gone.
                            let _ = stream.write_all(answer.as_bytes()).await;
                            let _ = stream.shutdown().await;
                        }
                        None => {
                            let _ = stream.read_u8().await;
                        }
                    }
                }
            })
        };
        Self {
            authority: Arc::clone(authority),
            address,
            connections,
            asked,
            answer,
            gate,
            task,
        }
    }

    /// Has a server believe this one, and look at this machine.
    pub fn is_trusted(&self, config: &mut Config) {
        believe(config, &self.authority.pem());
        config.outbound.allowed_networks = vec!["127.0.0.1".to_owned(), "::1".to_owned()];
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    pub fn publish(&self, set: &Value) {
        let body = set.to_string();
        let length = body.len();
        self.answer(&format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
    }

    fn answer(&self, answer: &str) {
        *self.answer.lock().expect("not poisoned") = Some(answer.to_owned());
    }

    fn say_nothing(&self) {
        *self.answer.lock().expect("not poisoned") = None;
    }

    /// The first line of each request.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").clone()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

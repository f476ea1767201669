//! Programs that authenticate with a TLS client certificate (RFC 8705), and certificates that change
//! while the server runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use accountd::{domain::error::Reason, grpc::pb};
use pb::{
    credential::{Certificate, Detail},
    system_account::Kind,
};
use rcgen::{DnType, ExtendedKeyUsagePurpose};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::Status;

use crate::{
    authority::{Authority, Pair, client_config, connect, replace, speak_tls},
    harness::{Actor, Engine, Server, assert_refused, fields_of, on_both_engines, reason_of},
};

const SAN: &str = "spiffe://example/billing";

on_both_engines! {
    async fn a_program_is_known_by_its_certificate(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Privileged, SAN, "").await;
        let pair = world.clients.client(&["other.example", SAN]);
        let peer = world.peer(Some(&pair)).await.expect("connected");
        let tokens = issue(&peer, &program.uid).await.expect("a token");
        let thumbprint = thumbprint(&pair);
        assert_eq!(claims(&tokens)["cnf"]["x5t#S256"], Value::from(thumbprint.as_str()));

        // The token is good where the certificate is, for RPCs and as JSON.
        let own = Actor::new(peer.channel.clone(), Some(&tokens.access_token));
        let me = own.system_accounts().get_system_account(get("systemAccounts/me")).await;
        assert_eq!(me.expect("it is good").into_inner().uid, program.uid);
        let client = world.http(Some(&pair));
        let me = client.get(world.url("/v1/systemAccounts/me")).bearer_auth(&tokens.access_token);
        assert_eq!(me.send().await.expect("an answer").status(), 200);
        let operator = world.server.operator().await;
        let introspected = operator.introspect(&tokens.access_token).await.expect("active");
        assert_eq!(introspected.cnf.map(|cnf| cnf.x5t_s256), Some(thumbprint.clone()));
        let introspected = client.post(world.url("/v1/tokens:introspect")).bearer_auth(operator.token());
        let introspected = introspected.json(&serde_json::json!({ "token": tokens.access_token }));
        let introspected: Value = introspected.send().await.expect("an answer").json().await.expect("JSON");
        assert_eq!(introspected["cnf"]["x5t#S256"], Value::from(thumbprint.as_str()));
        let list = pb::ListCredentialsRequest {
            parent: program.name.clone(),
            filter: "kind = \"certificate\"".to_owned(),
            ..Default::default()
        };
        let list = operator.credentials().list_credentials(list).await.expect("a list").into_inner();
        assert!(list.credentials[0].last_used_time.is_some());

        // Stock clients ask with nothing but their id (RFC 8705 section 2).
        let form = [("grant_type", "client_credentials"), ("client_id", &program.uid)];
        let answer = client.post(world.url("/oauth2/token")).form(&form).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(payload(answer["access_token"].as_str().expect("a token"))["cnf"]["x5t#S256"], Value::from(thumbprint.as_str()));
        let answer = world.http(None).post(world.url("/oauth2/token")).form(&form).send().await.expect("an answer");
        assert_eq!(answer.status(), 401);
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(answer["error"], "invalid_client");

        // Its authority renews it, and accountd need not be told; a name in capitals is the same.
        let renewed = world.clients.client(&[SAN]);
        issue(&world.peer(Some(&renewed)).await.expect("connected"), &program.uid).await.expect("a token");
        let dns = world.program(Kind::Service, "Billing.Internal", "").await;
        let pair = world.clients.client(&["BILLING.internal"]);
        issue(&world.peer(Some(&pair)).await.expect("connected"), &dns.name).await.expect("a token");
    }

    async fn a_certificate_with_anything_wrong_about_it_gets_nothing(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Service, SAN, "").await;
        let other = world.program(Kind::Service, "spiffe://example/other", "").await;
        let clients = &world.clients;
        let usage = |usage: ExtendedKeyUsagePurpose| {
            clients.issue(&[SAN], |params| params.extended_key_usages = vec![usage])
        };
        let ended = clients.issue(&[SAN], |params| params.not_after = rcgen::date_time_ymd(2026, 11, 21));
        let early = clients.issue(&[SAN], |params| params.not_before = rcgen::date_time_ymd(2026, 11, 22));
        let itself = Authority::named(&[SAN]);
        for (what, pair) in [
            ("of another authority", Authority::new("clients").client(&[SAN])),
            ("over", ended),
            ("not yet", early),
            ("an authority that we do not know, itself", itself.itself()),
            ("our authority itself", clients.itself()),
            ("for servers", usage(ExtendedKeyUsagePurpose::ServerAuth)),
        ] {
            let peer = world.peer(Some(&pair)).await;
            let refused = match &peer {
                Ok(peer) => issue(peer, &program.uid).await.err(),
                Err(error) => Some(Status::from_error(error.to_string().into())),
            };
            let status = refused.unwrap_or_else(|| panic!("{what}: accepted"));
            assert!(reason_of(&status).starts_with("no reason"), "{what}: the handshake should fail, not {status:?}");
        }
        let by_subject = clients.issue(&[], |params| {
            params.distinguished_name.push(DnType::CommonName, SAN);
        });
        for (what, pair, id) in [
            ("no certificate", None, &program.uid),
            ("another name", Some(clients.client(&["spiffe://example/billing2"])), &program.uid),
            ("a part of the name", Some(clients.client(&["spiffe://example/billin"])), &program.uid),
            ("the name in capitals", Some(clients.client(&["spiffe://example/BILLING"])), &program.uid),
            ("the name as that of a host", Some(clients.client(&["example", "billing"])), &program.uid),
            ("the name as a subject", Some(by_subject), &program.uid),
            ("without a name", Some(clients.client(&[])), &program.uid),
            ("somebody else's name", Some(clients.client(&[SAN])), &other.uid),
            ("nobody's name", Some(clients.client(&[SAN])), &uuid::Uuid::nil().to_string()),
            ("no uid", Some(clients.client(&[SAN])), &"me".to_owned()),
        ] {
            let peer = world.peer(pair.as_ref()).await.expect("connected");
            let status = issue(&peer, id).await.expect_err(what);
            assert_eq!(reason_of(&status), "INVALID_CREDENTIALS", "{what}");
            assert_eq!(status.message(), "identifier or secret is wrong", "{what}");
        }
        assert_eq!(world.server.events("token.refused").await.len(), 10);
        let right = world.peer(Some(&clients.client(&[SAN]))).await.expect("connected");
        issue(&right, &program.uid).await.expect("a token");
        // A certificate is no excuse for a wrong secret.
        assert_refused(right.issue(&program.uid, "adcs_wrong").await, Reason::InvalidCredentials);
    }

    async fn one_certificate_can_be_all_that_will_do(engine: Engine) {
        let world = World::new(engine).await;
        let pair = world.clients.client(&[SAN]);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &pair.der());
        let hex = data_encoding::HEXLOWER.encode(digest.as_ref());
        let program = world.program(Kind::BreakGlass, SAN, &hex.to_uppercase()).await;
        let list = pb::ListCredentialsRequest { parent: program.name.clone(), ..Default::default() };
        let operator = world.server.operator().await;
        let shown = operator.credentials().list_credentials(list).await.expect("a list").into_inner();
        let pinned = Certificate { san: SAN.to_owned(), sha256: hex.clone() };
        assert_eq!(shown.credentials[0].detail, Some(Detail::Certificate(pinned)));
        // Sealed, it gets nothing either way.
        let peer = world.peer(Some(&pair)).await.expect("connected");
        assert_refused(issue(&peer, &program.uid).await, Reason::InvalidCredentials);
        let service = world.program(Kind::Service, SAN, &hex).await;
        issue(&peer, &service.uid).await.expect("a token");
        let renewed = world.peer(Some(&world.clients.client(&[SAN]))).await.expect("connected");
        assert_refused(issue(&renewed, &service.uid).await, Reason::InvalidCredentials);
    }

    async fn a_bound_token_is_good_with_its_certificate_only(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Service, SAN, "").await;
        let pair = world.clients.client(&[SAN]);
        let peer = world.peer(Some(&pair)).await.expect("connected");
        let tokens = issue(&peer, &program.uid).await.expect("a token");
        let other = world.clients.client(&[SAN]);
        for (what, pair) in [("none", None), ("another of the same program", Some(&other))] {
            let peer = world.peer(pair).await.expect("connected");
            let thief = Actor::new(peer.channel, Some(&tokens.access_token));
            let refused = thief.system_accounts().get_system_account(get("systemAccounts/me")).await;
            assert_eq!(reason_of(&refused.expect_err(what)), "TOKEN_INVALID", "{what}");
            let client = world.http(pair);
            let answer = client.get(world.url("/v1/systemAccounts/me")).bearer_auth(&tokens.access_token);
            assert_eq!(answer.send().await.expect("an answer").status(), 401, "{what}");
        }
        // What was obtained with a secret is bound to nothing, whatever the connection shows.
        let secret = world.server.operator().await.create_secret(&program.name).await.expect("a secret");
        let unbound = peer.issue(&program.uid, &secret.secret).await.expect("a token");
        assert_eq!(claims(&unbound).get("cnf"), None);
        let anywhere = world.server.with_token(&unbound.access_token).await;
        anywhere.system_accounts().get_system_account(get("systemAccounts/me")).await.expect("it is good");
    }

    async fn trust_ends_while_a_connection_lives(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Service, SAN, "").await;
        let short = world.clients.issue(&[SAN], |params| {
            params.not_after = rcgen::date_time_ymd(2026, 11, 22);
        });
        let peer = world.peer(Some(&short)).await.expect("connected");
        // The clock stands at noon, and the certificate ends at midnight.
        world.server.advance_s(12 * 3600 - 60);
        let tokens = issue(&peer, &program.uid).await.expect("a token");
        let end = tokens.access_expire_time.expect("set").seconds;
        assert_eq!(end - world.server.now().seconds(), 60, "no token outlives its certificate");
        world.server.advance_s(61);
        assert_refused(issue(&peer, &program.uid).await, Reason::InvalidCredentials);

        // An authority that is not believed any more.
        let lasting = world.clients.client(&[SAN]);
        let peer = world.peer(Some(&lasting)).await.expect("connected");
        issue(&peer, &program.uid).await.expect("a token");
        let successor = Authority::new("successor");
        replace(&world.server.config.tls, &world.pair, Some(&successor));
        assert_eq!(world.reload(), Ok(true));
        assert_refused(issue(&peer, &program.uid).await, Reason::InvalidCredentials);
        let peer = world.peer(Some(&successor.client(&[SAN]))).await.expect("connected");
        issue(&peer, &program.uid).await.expect("a token");
        // Its own end is that of any credential.
        let operator = world.server.operator().await;
        let suspend = pb::SuspendSystemAccountRequest { name: program.name.clone(), ..Default::default() };
        operator.system_accounts().suspend_system_account(suspend).await.expect("suspended");
        assert_refused(issue(&peer, &program.uid).await, Reason::InvalidCredentials);
    }

    async fn an_authority_may_sign_through_another(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Service, SAN, "").await;
        let below = world.clients.below("below");
        let ending = world.clients.below_until("ending", (2026, 11, 22));
        let short = ending.client(&[SAN]);
        let short = Pair { certificate: short.certificate.clone() + &ending.pem(), ..short };
        let peer = world.peer(Some(&short)).await.expect("connected");
        world.server.advance_s(12 * 3600 - 60);
        let tokens = issue(&peer, &program.uid).await.expect("a token");
        let end = tokens.access_expire_time.expect("set").seconds;
        assert_eq!(end - world.server.now().seconds(), 60, "no token outlives any of the chain");
        let leaf = below.client(&[SAN]);
        let whole = Pair { certificate: leaf.certificate.clone() + &below.pem(), ..leaf.clone() };
        let peer = world.peer(Some(&whole)).await.expect("connected");
        issue(&peer, &program.uid).await.expect("a token");
        for (what, pair) in [
            ("without what leads to the authority", leaf),
            ("through an authority of somebody else", {
                let other = Authority::new("clients").below("below");
                let leaf = other.client(&[SAN]);
                Pair { certificate: leaf.certificate.clone() + &other.pem(), ..leaf }
            }),
            ("through a program", {
                let program = world.clients.client(&["spiffe://example/other"]);
                let leaf = Authority::new("other").client(&[SAN]);
                Pair { certificate: leaf.certificate.clone() + &program.certificate, ..leaf }
            }),
        ] {
            let refused = match world.peer(Some(&pair)).await {
                Ok(peer) => issue(&peer, &program.uid).await.is_err(),
                Err(_) => true,
            };
            assert!(refused, "{what}");
        }
        let failed = metric(&world, "accountd_handshakes_failed_total").await;
        assert!(failed >= 3, "{failed}");
    }

    async fn who_may_vouch_for_programs_is_an_authority_in_time(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Service, SAN, "").await;
        let tls = &world.server.config.tls;
        let file = tls.client_ca_file.as_ref().expect("set");
        // A program's own certificate in the list would be the authority for everybody.
        let leaf = world.clients.client(&[SAN]);
        std::fs::write(file, world.clients.pem() + &leaf.certificate).expect("written");
        let refused = world.reload().expect_err("no authority");
        assert!(refused.contains("client_ca_file"), "{refused}");
        std::fs::write(file, "").expect("written");
        assert!(world.reload().is_err(), "nobody at all");

        // One that ends at midnight, beside one that does not.
        let short = Authority::ending("short", (2026, 11, 22));
        std::fs::write(file, world.clients.pem() + &short.pem()).expect("written");
        assert_eq!(world.reload(), Ok(true));
        let by_short = world.peer(Some(&short.client(&[SAN]))).await.expect("connected");
        let by_long = world.peer(Some(&leaf)).await.expect("connected");
        issue(&by_short, &program.uid).await.expect("a token");
        world.server.advance_s(12 * 3600);
        assert_refused(issue(&by_short, &program.uid).await, Reason::InvalidCredentials);
        issue(&by_long, &program.uid).await.expect("a token");
        assert_eq!(world.reload(), Ok(false));
        // When there is nobody else the server goes on, and takes nobody's certificate.
        std::fs::write(file, short.pem()).expect("written");
        assert_eq!(world.reload(), Ok(true));
        assert_refused(issue(&by_long, &program.uid).await, Reason::InvalidCredentials);
        let operator = world.server.operator().await;
        let refused = add(&operator, &program.name, SAN, "").await;
        assert_refused(refused, Reason::CredentialKindNotAllowed);
    }

    async fn a_revoked_certificate_gets_nothing(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Service, SAN, "").await;
        let numbered = |number: u64| {
            world.clients.issue(&[SAN], |params| params.serial_number = Some(number.into()))
        };
        let first = world.peer(Some(&numbered(1))).await.expect("connected");
        let second = world.peer(Some(&numbered(2))).await.expect("connected");
        issue(&first, &program.uid).await.expect("a token");
        // The same server with lists, which is how it would be started.
        let list = world.server.folder.path().join("lists.pem");
        let revoke = |serials: &[u64]| {
            std::fs::write(&list, world.clients.revokes(serials, (2026, 11, 22))).expect("written");
        };
        revoke(&[7]);
        let mut tls = world.server.config.tls.clone();
        tls.client_crl_file = Some(list.clone());
        let clock = Arc::clone(&world.server.env.clock) as Arc<dyn accountd::env::Clock>;
        let with_lists = accountd::tls::Tls::open(&tls, &clock).expect("opened").expect("TLS");
        let certificate = |number| {
            with_lists.shown(&numbered(number).chain()).expect("read")
        };
        let vouches = |number| with_lists.vouches_for(&certificate(number), world.server.now());
        assert!(vouches(1) && vouches(2));
        revoke(&[7, 1]);
        assert_eq!(with_lists.reload(), Ok(true));
        assert!(!vouches(1) && vouches(2));
        // A list that is over says nothing, and no list at all is none that is good.
        world.server.advance_s(12 * 3600);
        assert!(!vouches(2));
        std::fs::write(&list, Authority::new("other").revokes(&[], (2027, 1, 1))).expect("written");
        assert_eq!(with_lists.reload(), Ok(true));
        assert!(!vouches(2));
        let two = world.clients.revokes(&[], (2027, 1, 1)) + &world.clients.revokes(&[2], (2027, 1, 1));
        for (what, text) in [("no list", ""), ("two of one authority", &two), ("no list either", &world.clients.pem())] {
            std::fs::write(&list, text).expect("written");
            let refused = with_lists.reload().expect_err(what);
            assert!(refused.contains("client_crl_file"), "{what}: {refused}");
        }
        // Where there are no lists nothing has changed.
        issue(&second, &program.uid).await.expect("a token");
    }

    async fn the_certificate_of_a_proxy_is_not_its_clients(engine: Engine) {
        let proxied = |config: &mut accountd::config::Config| {
            config.trusted_proxies = vec!["127.0.0.1".to_owned()];
        };
        let world = World::with(engine, proxied).await;
        let gateway = world.program(Kind::Service, SAN, "").await;
        let pair = world.clients.client(&[SAN]);
        let through = world.peer(Some(&pair)).await.expect("connected");
        assert_refused(issue(&through, &gateway.uid).await, Reason::InvalidCredentials);
        let form = [("grant_type", "client_credentials"), ("client_id", &gateway.uid)];
        for forwarded in [None, Some("203.0.113.7")] {
            let mut request = world.http(Some(&pair)).post(world.url("/oauth2/token")).form(&form);
            if let Some(forwarded) = forwarded {
                request = request.header("x-forwarded-for", forwarded);
            }
            assert_eq!(request.send().await.expect("an answer").status(), 401);
        }
    }

    async fn what_nobody_has_used_lets_no_operator_in(engine: Engine) {
        let world = World::new(engine).await;
        // Until then there is the built-in account as well.
        world.server.advance_s(25 * 3600);
        let operator = world.server.operator().await;
        let name = world.server.operator_name();
        let list = pb::ListCredentialsRequest { parent: name.clone(), ..Default::default() };
        let listed = operator.credentials().list_credentials(list).await.expect("a list").into_inner();
        let secret = listed.credentials[0].name.clone();
        let delete = || {
            let request = pb::DeleteCredentialRequest { name: secret.clone(), ..Default::default() };
            let mut credentials = operator.credentials();
            async move { credentials.delete_credential(request).await }
        };
        // It may name a certificate that nobody has. No secret makes one for itself.
        assert_refused(add(&operator, &name, SAN, "").await, Reason::CredentialKindNotAllowed);
        let (other, other_secret) = world.server.create_system_account(&["roles/operator"]).await;
        let other_actor = world.server.client(&other.uid, &other_secret).await;
        add(&other_actor, &name, SAN, "").await.expect("a certificate");
        let gone = pb::DeleteSystemAccountRequest { name: other.name, ..Default::default() };
        operator.system_accounts().delete_system_account(gone).await.expect("deleted");
        assert_refused(delete().await, Reason::LastCredential);
        let peer = world.peer(Some(&world.clients.client(&[SAN]))).await.expect("connected");
        issue(&peer, &name).await.expect("a token");
        delete().await.expect("there is another way in");
    }

    async fn what_a_certificate_makes_ends_with_it(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Service, SAN, "").await;
        let short = world.clients.issue(&[SAN], |params| {
            params.not_after = rcgen::date_time_ymd(2026, 11, 22);
        });
        let peer = world.peer(Some(&short)).await.expect("connected");
        let tokens = issue(&peer, &program.uid).await.expect("a token");
        let own = Actor::new(peer.channel.clone(), Some(&tokens.access_token));
        let midnight = world.server.now().seconds() + 12 * 3600;
        let made = [
            own.create_secret("systemAccounts/me").await.expect("a secret"),
            add(&own, "systemAccounts/me", "spiffe://example/other", "").await.expect("a certificate"),
        ];
        for made in made {
            let end = made.credential.expect("set").expire_time.expect("it has one");
            assert_eq!(end.seconds, midnight);
        }
        // What it changes of itself goes on as it was, unless it is the end that changes.
        let list = pb::ListCredentialsRequest { parent: program.name.clone(), ..Default::default() };
        let operator = world.server.operator().await;
        let listed = operator.credentials().list_credentials(list).await.expect("a list").into_inner();
        let itself = listed.credentials.into_iter().find(|made| made.expire_time.is_none()).expect("lasting");
        world.server.grant(&program.name, "scopes/accountd:credentials.update").await;
        let tokens = issue(&peer, &program.uid).await.expect("a token");
        let own = Actor::new(peer.channel.clone(), Some(&tokens.access_token));
        for (path, is_capped) in [("allowed_cidrs", false), ("expire_time", true)] {
            let far = prost_types::Timestamp { seconds: midnight + 24 * 3600, nanos: 0 };
            let changed = pb::Credential {
                name: itself.name.clone(),
                allowed_cidrs: vec!["127.0.0.0/8".to_owned()],
                expire_time: Some(far),
                ..Default::default()
            };
            let update = pb::UpdateCredentialRequest {
                credential: Some(changed),
                update_mask: Some(prost_types::FieldMask { paths: vec![path.to_owned()] }),
                ..Default::default()
            };
            let updated = own.credentials().update_credential(update).await.expect("updated").into_inner();
            assert_eq!(updated.expire_time.map(|end| end.seconds), is_capped.then_some(midnight), "{path}");
        }
        let created = world.server.events("credential.created").await;
        let sans: Vec<&String> = created.iter().filter_map(|event| event.details.get("san")).collect();
        assert!(sans.contains(&&"spiffe://example/other".to_owned()), "{sans:?}");
    }

    async fn nobody_resumes_where_certificates_are_asked_for(engine: Engine) {
        let world = World::new(engine).await;
        let pair = world.clients.client(&[SAN]);
        let config = client_config(&world.pair, Some(&pair));
        for _ in 0..3 {
            let kind = world.dial().handshake(&config).await;
            assert_eq!(kind, rustls::HandshakeKind::Full);
        }
        // Whoever shows nothing can be let in without all of it, where nobody has to.
        let plain = engine.server_with(|config| speak_tls(config, &world.pair, None)).await;
        let dial = Dial { address: plain.running.address, server: world.pair.clone() };
        let config = client_config(&world.pair, None);
        dial.handshake(&config).await;
        assert_eq!(dial.handshake(&config).await, rustls::HandshakeKind::Resumed);
    }

    async fn files_that_change_are_used_without_being_told(engine: Engine) {
        let world = World::with(engine, |config| config.tls.reload_interval_s = 1).await;
        let next = world.servers.server();
        replace(&world.server.config.tls, &next, None);
        let seen = async {
            while world.dial().shown().await != next.der() {}
        };
        tokio::time::timeout(Duration::from_secs(30), seen).await.expect("within a second or two");
        let end = metric(&world, "accountd_tls_certificate_expire_time_seconds").await;
        assert!(end > world.server.now().seconds());
    }

    async fn the_metadata_say_whether_certificates_are_taken(engine: Engine) {
        let world = World::new(engine).await;
        let plain = engine.server().await;
        let path = "/.well-known/oauth-authorization-server";
        for (url, client, takes) in [
            (world.url(path), world.http(None), true),
            (plain.url(path), reqwest::Client::new(), false),
        ] {
            let document: Value = client.get(url).send().await.expect("an answer").json().await.expect("JSON");
            let methods = document["token_endpoint_auth_methods_supported"].as_array().expect("a list");
            assert_eq!(methods.contains(&Value::from("tls_client_auth")), takes);
            assert_eq!(document["tls_client_certificate_bound_access_tokens"], takes);
        }
    }

    async fn certificates_change_under_load_and_nothing_is_dropped(engine: Engine) {
        let world = World::new(engine).await;
        let program = world.program(Kind::Service, SAN, "").await;
        let pair = world.clients.client(&[SAN]);
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut load = Vec::new();
        for is_new_each_time in [false, false, true] {
            let (world, stop, done) = (world.dial(), Arc::clone(&stop), Arc::clone(&done));
            let (pair, uid) = (pair.clone(), program.uid.clone());
            load.push(tokio::spawn(async move {
                let mut peer = world.peer(Some(&pair)).await.expect("connected");
                while !stop.load(Relaxed) {
                    if is_new_each_time {
                        peer = world.peer(Some(&pair)).await.expect("connected");
                    }
                    issue(&peer, &uid).await.expect("a token");
                    done.fetch_add(1, Relaxed);
                }
            }));
        }
        let mut shown = world.pair.clone();
        for round in 0..20 {
            let before = done.load(Relaxed);
            let next = world.servers.server();
            // Half of it is there, and the key of another certificate.
            let half = Pair { key: shown.key.clone(), ..next.clone() };
            replace(&world.server.config.tls, &half, None);
            let refused = world.reload();
            assert!(refused.as_ref().is_err_and(|error| error.contains("certificate_file")), "{refused:?}");
            assert_eq!(world.reload(), Ok(false), "said once");
            assert_eq!(world.dial().shown().await, shown.der(), "round {round}");
            replace(&world.server.config.tls, &next, None);
            assert_eq!(world.reload(), Ok(true));
            assert_eq!(world.dial().shown().await, next.der(), "round {round}");
            assert_eq!(world.reload(), Ok(false));
            shown = next;
            while done.load(Relaxed) < before + 3 {
                tokio::task::yield_now().await;
                assert!(load.iter().all(|task| !task.is_finished()), "a call was dropped");
            }
        }
        stop.store(true, Relaxed);
        for task in load {
            task.await.expect("nothing was dropped");
        }
        // Files that are gone for a moment change nothing.
        let file = world.server.config.tls.key_file.clone().expect("set");
        std::fs::remove_file(&file).expect("removed");
        assert!(world.reload().is_err());
        assert_eq!(world.dial().shown().await, shown.der());
    }

    async fn what_cannot_be_a_certificates_name_is_refused(engine: Engine) {
        let world = World::new(engine).await;
        let operator = world.server.operator().await;
        let (account, _) = world.server.create_system_account(&[]).await;
        for bad in ["", "*.example", "a b", "spiffe:", "bill\u{0}ing"] {
            let refused = add(&operator, &account.name, bad, "").await;
            assert_eq!(fields_of(refused), ["credential.certificate.san"], "{bad}");
        }
        let refused = add(&operator, &account.name, SAN, "abc").await;
        assert_eq!(fields_of(refused), ["credential.certificate.sha256"]);
        let user = world.server.user("alice").await;
        assert_refused(add(&operator, &user.name, SAN, "").await, Reason::CredentialKindNotAllowed);
        let made = add(&operator, &account.name, SAN, "").await.expect("made").credential.expect("set");
        let rotate = pb::RotateCredentialRequest { name: made.name, ..Default::default() };
        assert_refused(operator.credentials().rotate_credential(rotate).await, Reason::CredentialKindNotAllowed);
        for _ in 1..20 {
            add(&operator, &account.name, SAN, "").await.expect("one more");
        }
        assert_refused(add(&operator, &account.name, SAN, "").await, Reason::LimitReached);

        // Where nobody is asked for a certificate nobody can have one.
        let plain = engine.server().await;
        let (account, _) = plain.create_system_account(&[]).await;
        let refused = add(&plain.operator().await, &account.name, SAN, "").await;
        assert_refused(refused, Reason::CredentialKindNotAllowed);
        let anonymous = plain.anonymous().await;
        assert_refused(issue(&anonymous, &account.uid).await, Reason::InvalidCredentials);
    }
}

/// A server with TLS that takes certificates.
struct World {
    server: Server,
    /// Who signs for the server, and for its clients.
    servers: Authority,
    clients: Authority,
    /// What it shows at first.
    pair: Pair,
}

/// How to reach it.
struct Dial {
    address: std::net::SocketAddr,
    server: Pair,
}

impl World {
    async fn new(engine: Engine) -> Self {
        Self::with(engine, |_| {}).await
    }

    async fn with(engine: Engine, change: impl FnOnce(&mut accountd::config::Config)) -> Self {
        let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
        let pair = servers.server();
        let server = engine.server_with(|config| {
            speak_tls(config, &pair, Some(&clients));
            // The tests do it themselves.
            config.tls.reload_interval_s = 3_600;
            change(config);
        });
        let server = server.await;
        Self {
            server,
            servers,
            clients,
            pair,
        }
    }

    /// A program that is known by a name.
    async fn program(&self, kind: Kind, san: &str, sha256: &str) -> pb::SystemAccount {
        let operator = self.server.operator().await;
        let account = pb::SystemAccount {
            display_name: "known by a certificate".to_owned(),
            owner: self.server.owner().to_owned(),
            kind: kind.into(),
            ..Default::default()
        };
        let request = pb::CreateSystemAccountRequest {
            system_account: Some(account),
            ..Default::default()
        };
        let made = operator
            .system_accounts()
            .create_system_account(request)
            .await;
        let account = made.expect("an account").into_inner();
        add(&operator, &account.name, san, sha256)
            .await
            .expect("a certificate");
        account
    }

    fn dial(&self) -> Dial {
        Dial {
            address: self.server.running.address,
            server: self.pair.clone(),
        }
    }

    /// Somebody with a connection of their own, who shows a certificate or none.
    async fn peer(&self, pair: Option<&Pair>) -> Result<Actor, tonic::transport::Error> {
        self.dial().peer(pair).await
    }

    fn url(&self, path: &str) -> String {
        format!(
            "https://localhost:{}{path}",
            self.server.running.address.port()
        )
    }

    fn http(&self, pair: Option<&Pair>) -> reqwest::Client {
        let tls = client_config(&self.pair, pair);
        let client = reqwest::Client::builder().tls_backend_preconfigured((*tls).clone());
        let address = self.server.running.address;
        client
            .resolve("localhost", address)
            .no_proxy()
            .build()
            .expect("a client")
    }

    /// As the server does by itself every few seconds.
    fn reload(&self) -> Result<bool, String> {
        let tls = self.server.running.app.tls.as_ref();
        tls.expect("TLS").reload()
    }
}

impl Dial {
    async fn peer(&self, pair: Option<&Pair>) -> Result<Actor, tonic::transport::Error> {
        let channel = connect(self.address, &self.server, pair).await?;
        Ok(Actor::new(channel, None))
    }

    /// How a new connection came about.
    async fn handshake(&self, config: &Arc<rustls::ClientConfig>) -> rustls::HandshakeKind {
        let stream = TcpStream::connect(self.address).await.expect("accepted");
        let name = rustls_pki_types::ServerName::try_from("localhost").expect("a name");
        let connector = TlsConnector::from(Arc::clone(config));
        let mut stream = connector.connect(name, stream).await.expect("a handshake");
        let kind = stream.get_ref().1.handshake_kind().expect("it is over");
        let get = b"GET /v1/jwks HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(get).await.expect("sent");
        // What resumes comes after the handshake.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        kind
    }

    /// What the server shows to a new connection.
    async fn shown(&self) -> rustls_pki_types::CertificateDer<'static> {
        let stream = TcpStream::connect(self.address).await.expect("accepted");
        let name = rustls_pki_types::ServerName::try_from("localhost").expect("a name");
        let connector = TlsConnector::from(client_config(&self.server, None));
        let stream = connector.connect(name, stream).await.expect("a handshake");
        let (_, session) = stream.get_ref();
        session.peer_certificates().expect("a certificate")[0]
            .clone()
            .into_owned()
    }
}

pub async fn add(
    by: &Actor,
    parent: &str,
    san: &str,
    sha256: &str,
) -> Result<pb::CreateCredentialResponse, Status> {
    let certificate = Certificate {
        san: san.to_owned(),
        sha256: sha256.to_owned(),
    };
    by.create_credential(parent, Detail::Certificate(certificate))
        .await
}

/// With nothing but the name of who asks.
pub async fn issue(by: &Actor, client_id: &str) -> Result<pb::TokenSet, Status> {
    let request = pb::IssueTokenRequest {
        client_id: client_id.to_owned(),
        ..Default::default()
    };
    Ok(by.tokens().issue_token(request).await?.into_inner())
}

/// The value of a metric.
async fn metric(world: &World, name: &str) -> i64 {
    let url = format!("http://{}/metrics", world.server.running.ops_address);
    let answer = reqwest::get(url).await.expect("an answer");
    let text = answer.text().await.expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.expect("it is there").trim().parse().expect("a number")
}

fn get(name: &str) -> pb::GetSystemAccountRequest {
    pb::GetSystemAccountRequest {
        name: name.to_owned(),
    }
}

fn claims(tokens: &pb::TokenSet) -> Value {
    payload(&tokens.access_token)
}

fn payload(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("a JWT");
    let payload = data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes());
    serde_json::from_slice(&payload.expect("base64url")).expect("JSON")
}

fn thumbprint(pair: &Pair) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &pair.der());
    data_encoding::BASE64URL_NOPAD.encode(digest.as_ref())
}

//! Second factors of people, the challenges that ask for them, and what a session is worth by them.

use accountd::{
    domain::{
        access,
        error::Reason,
        token::{AccountClaims, Claims},
    },
    grpc::pb,
    jobs,
};
use data_encoding::BASE64URL_NOPAD;
use pb::{
    ChallengeMethod,
    answer_challenge_request::Answer,
    confirm_credential_request::Proof,
    create_challenge_request::Delivery,
    credential::{Detail, Passkey, RecoveryCodes, State, Totp, totp::Algorithm},
    enrolment::Factor,
    sign_in_response,
};
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::{
    authenticator::{AAGUID, App, Maker, SecurityKey},
    harness::{
        Actor, Engine, Refusal as _, Server, SignedIn, assert_refused, fields_of, on_both_engines,
        password, reason_of,
    },
};

on_both_engines! {
    async fn whoever_has_a_generator_signs_in_with_two_factors(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let made = create(&alice.actor, totp(0, 0)).await.expect("made");
        let (credential, app) = (made.credential.expect("set"), scan(made.enrolment));
        assert_eq!(credential.state(), State::Pending);
        assert_eq!(acr(&server.sign_in("alice").await.tokens).0, "aal1", "nothing is asked for yet");

        let wrong = confirm(&alice.actor, &credential.name, "000000").await;
        assert_refused(wrong, Reason::InvalidCode);
        let code = app.code(server.now().seconds());
        let confirmed = confirm(&alice.actor, &credential.name, &code).await.expect("right");
        assert_eq!(confirmed.state(), State::Active);
        assert_eq!(confirmed.expire_time, None);
        let refused = confirm(&alice.actor, &credential.name, &code).await;
        assert_refused(refused, Reason::InsufficientUserAuthentication);
        let anonymous = server.anonymous().await;
        let refreshed = anonymous.refresh(&alice.tokens.refresh_token).await.expect("live");
        assert_eq!(acr(&refreshed).0, "aal1", "whoever else has its refresh token has shown nothing");

        let asked = challenge(password_only(&server, "alice").await);
        assert_eq!(asked.methods, [i32::from(ChallengeMethod::Totp)]);
        let again = answer(&anonymous, &asked, Answer::TotpCode(code)).await;
        assert_refused(again, Reason::InvalidCode);
        server.advance_s(30);
        let next = app.code(server.now().seconds());
        let response = answer(&anonymous, &asked, Answer::TotpCode(next.clone())).await.expect("right");
        assert!(!response.device_token.is_empty());
        let signed_in = SignedIn::new(&anonymous, response);
        assert_eq!(acr(&signed_in.tokens), ("aal2".to_owned(), "pwd otp mfa".to_owned()));
        let over = answer(&anonymous, &asked, Answer::TotpCode(next)).await;
        assert_refused(over, Reason::ChallengeEnded);
        let session = session(&signed_in.actor, &signed_in.tokens.session).await;
        assert_eq!((&*session.acr, session.amr.join(" ")), ("aal2", "pwd otp mfa".to_owned()));
        let twice = confirm(&signed_in.actor, &credential.name, "000000").await;
        assert_refused(twice, Reason::WrongState);

        server.advance_s(86_401);
        let refreshed = anonymous.refresh(&signed_in.tokens.refresh_token).await.expect("refreshed");
        assert_eq!(acr(&refreshed).0, "aal1", "two factors count for a day");
    }

    async fn a_generator_is_what_was_asked_for(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let made = create(&alice.actor, totp(Algorithm::Sha256.into(), 8)).await.expect("made");
        let credential = made.credential.clone().expect("set");
        let Some(Factor::Totp(enrolled)) = made.enrolment.clone().and_then(|it| it.factor) else {
            panic!("no generator");
        };
        assert!(enrolled.uri.starts_with("otpauth://totp/accountd:alice?"), "{}", enrolled.uri);
        assert_eq!(enrolled.secret.len(), 52, "256 bits");
        let app = scan(made.enrolment);
        assert_eq!(app.code(0).len(), 8);
        let code = app.code(server.now().seconds() - 30);
        confirm(&alice.actor, &credential.name, &code).await.expect("half a minute late");
        let expected = Totp { algorithm: Algorithm::Sha256.into(), digits: 8 };
        assert_eq!(get(&alice.actor, &credential.name).await.detail, Some(Detail::Totp(expected)));

        let bad = totp(9, 7);
        let fields = ["credential.totp.digits", "credential.totp.algorithm"];
        let alice = enter(&server, "alice", &app, 30).await;
        assert_eq!(fields_of(create(&alice.actor, bad).await), fields);
        let request = pb::CreateCredentialRequest {
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..creation(totp(0, 0))
        };
        let mut credentials = alice.actor.credentials();
        let first = credentials.create_credential(request.clone()).await.expect("made").into_inner();
        let retry = credentials.create_credential(request).await.expect("made").into_inner();
        assert_eq!(retry.credential, first.credential);
        assert_eq!(retry.enrolment, None, "shown once");
        for _ in 0..3 {
            create(&alice.actor, totp(0, 0)).await.expect("made");
        }
        assert_refused(create(&alice.actor, totp(0, 0)).await, Reason::LimitReached);
    }

    async fn a_confirmation_can_be_retried_and_tried_out(engine: Engine) {
        let server = engine.server_with(|config| config.sign_in.require_frontend = true).await;
        let anonymous = server.anonymous().await;
        assert_refused(passkey_challenge(&anonymous, "").await, Reason::TokenMissing);
        let frontend = server.frontend().await;
        let request = pb::CreateChallengeRequest {
            method: ChallengeMethod::Passkey.into(),
            request_id: "018f0000-0000-7000-8000-000000000003".to_owned(),
            ..Default::default()
        };
        let dry = pb::CreateChallengeRequest { validate_only: true, request_id: String::new(), ..request.clone() };
        let dry = frontend.sessions().create_challenge(dry).await.expect("valid").into_inner();
        assert_eq!((&*dry.name, dry.methods.len()), ("", 1));
        let first = frontend.sessions().create_challenge(request.clone()).await.expect("opened").into_inner();
        let retry = frontend.sessions().create_challenge(request).await.expect("a retry").into_inner();
        assert!(first.name.starts_with("challenges/adch_") && retry.name.is_empty());
        assert_eq!(retry.expire_time, first.expire_time);

        server.user("alice").await;
        let alice = frontend.sign_in("alice", &password("alice")).await.expect("right");
        let alice = SignedIn::new(&frontend, alice);
        let made = create(&alice.actor, totp(0, 0)).await.expect("made");
        let credential = made.credential.clone().expect("set");
        let app = scan(made.enrolment);
        let code = app.code(server.now().seconds());
        let request = pb::ConfirmCredentialRequest {
            name: credential.name.clone(),
            proof: Some(Proof::TotpCode(code)),
            request_id: "018f0000-0000-7000-8000-000000000004".to_owned(),
            ..Default::default()
        };
        let mut credentials = alice.actor.credentials();
        let dry = pb::ConfirmCredentialRequest { validate_only: true, request_id: String::new(), ..request.clone() };
        credentials.confirm_credential(dry).await.expect("right");
        assert_eq!(get(&alice.actor, &credential.name).await.state(), State::Pending);
        let stale = pb::ConfirmCredentialRequest { etag: "x".to_owned(), request_id: String::new(), ..request.clone() };
        assert_refused(credentials.confirm_credential(stale).await, Reason::EtagMismatch);
        let none = pb::ConfirmCredentialRequest { proof: None, request_id: String::new(), ..request.clone() };
        assert_eq!(fields_of(credentials.confirm_credential(none).await), ["totp_code"]);
        let first = credentials.confirm_credential(request.clone()).await.expect("right").into_inner();
        assert_eq!(first.state(), State::Active);
        // From now on it takes both, also to hear the first answer again.
        let retry = credentials.confirm_credential(request.clone()).await;
        assert_refused(retry, Reason::InsufficientUserAuthentication);
        server.advance_s(30);
        let half = frontend.sign_in("alice", &password("alice")).await.expect("right");
        let code = Answer::TotpCode(app.code(server.now().seconds()));
        let raised = answer(&frontend, &challenge(half), code).await.expect("right");
        let raised = SignedIn::new(&frontend, raised);
        let retry = raised.actor.credentials().confirm_credential(request).await;
        assert_eq!(retry.expect("a retry").into_inner(), first);
    }

    async fn nobody_makes_factors_for_somebody_else(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let operator = server.operator().await;
        for detail in [totp(0, 0), Detail::Passkey(Passkey::default()), Detail::RecoveryCodes(RecoveryCodes::default())] {
            let request = pb::CreateCredentialRequest { parent: alice.name().to_owned(), ..creation(detail.clone()) };
            let refused = operator.credentials().create_credential(request).await;
            assert_refused(refused, Reason::ScopeMissing);
            let request = pb::CreateCredentialRequest { parent: server.operator_name(), ..creation(detail) };
            let refused = operator.credentials().create_credential(request).await;
            assert_refused(refused, Reason::CredentialKindNotAllowed);
        }
        let made = create(&alice.actor, totp(0, 0)).await.expect("made").credential.expect("set");
        assert_refused(confirm(&operator, &made.name, "000000").await, Reason::ScopeMissing);
    }

    async fn an_enrolment_that_nobody_confirms_comes_to_nothing(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let made = create(&alice.actor, totp(0, 0)).await.expect("made");
        let (name, app) = (made.credential.expect("set").name, scan(made.enrolment));
        server.advance_s(600);
        let alice = server.sign_in("alice").await;
        let late = confirm(&alice.actor, &name, &app.code(server.now().seconds())).await;
        assert_refused(late, Reason::WrongState);
        server.advance_s(1);
        jobs::sweep(&server.running.app).await.expect("swept");
        let alice = server.sign_in("alice").await;
        let request = pb::GetCredentialRequest { name };
        assert_refused(alice.actor.credentials().get_credential(request).await, Reason::NotFound);
    }

    async fn recovery_codes_stand_in_once_each(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let codes = Detail::RecoveryCodes(RecoveryCodes::default());
        assert_refused(create(&alice.actor, codes.clone()).await, Reason::WrongState);
        let (app, generator) = enrol(&server, &alice).await;
        let alice = enter(&server, "alice", &app, 30).await;
        let made = create(&alice.actor, codes.clone()).await.expect("made");
        let name = made.credential.expect("set").name;
        let Some(Factor::RecoveryCodes(made)) = made.enrolment.and_then(|it| it.factor) else {
            panic!("no codes");
        };
        assert_eq!(made.codes.len(), 10);
        let anonymous = server.anonymous().await;
        let mut left = 10;
        for code in &made.codes[..8] {
            let asked = challenge(password_only(&server, "alice").await);
            assert!(asked.methods.contains(&ChallengeMethod::RecoveryCode.into()));
            let typed = Answer::RecoveryCode(code.to_uppercase().replace('-', " "));
            let response = answer(&anonymous, &asked, typed.clone()).await.expect("right");
            let tokens = SignedIn::new(&anonymous, response).tokens;
            assert_eq!(acr(&tokens), ("aal2".to_owned(), "pwd otp mfa".to_owned()));
            left -= 1;
            let expected = Some(Detail::RecoveryCodes(RecoveryCodes { remaining: left }));
            assert_eq!(get(&alice.actor, &name).await.detail, expected);
            let asked = challenge(password_only(&server, "alice").await);
            assert_refused(answer(&anonymous, &asked, typed).await, Reason::InvalidCode);
        }
        let low = server.events("credential.recovery_codes_low").await;
        let mut remaining: Vec<&str> = low.iter().map(|event| &*event.details["remaining"]).collect();
        remaining.sort_unstable();
        assert_eq!(remaining, ["2", "3"]);

        let renewed = create(&alice.actor, codes).await.expect("renewed").credential.expect("set");
        let asked = challenge(password_only(&server, "alice").await);
        let old = answer(&anonymous, &asked, Answer::RecoveryCode(made.codes[9].clone())).await;
        assert_refused(old, Reason::InvalidCode);
        let request = pb::GetCredentialRequest { name };
        assert_refused(alice.actor.credentials().get_credential(request).await, Reason::NotFound);
        delete(&alice.actor, &generator).await.expect("deleted");
        let request = pb::GetCredentialRequest { name: renewed.name };
        let gone = alice.actor.credentials().get_credential(request).await;
        assert_refused(gone, Reason::NotFound);
        assert_eq!(acr(&server.sign_in("alice").await.tokens).0, "aal1", "the password is enough again");
    }

    async fn of_64_who_come_with_one_code_one_gets_in(engine: Engine) {
        let server = engine.server_with(|config| {
            config.throttle.account_free = 1_000;
            config.throttle.network_free = 1_000;
        }).await;
        let alice = server.signed_in("alice").await;
        let (app, _) = enrol(&server, &alice).await;
        server.advance_s(30);
        let anonymous = server.anonymous().await;
        let mut many = Vec::new();
        for _ in 0..16 {
            many.push(challenge(password_only(&server, "alice").await));
        }
        let code = app.code(server.now().seconds());
        // Four at a time with each of sixteen challenges.
        let answers = (0..64).map(|number| {
            let (anonymous, asked, code) = (anonymous.clone(), many[number % 16].clone(), code.clone());
            tokio::spawn(async move { answer(&anonymous, &asked, Answer::TotpCode(code)).await })
        });
        let answers: Vec<_> = answers.collect();
        let mut outcomes = Vec::new();
        for answer in answers {
            outcomes.push(answer.await.expect("no panic").map(drop).outcome());
        }
        let won = outcomes.iter().filter(|outcome| *outcome == "OK").count();
        assert_eq!(won, 1, "{outcomes:?}");
        for outcome in outcomes.iter().filter(|outcome| *outcome != "OK") {
            let known = ["UNAUTHENTICATED INVALID_CODE", "UNAUTHENTICATED CHALLENGE_ENDED"];
            assert!(known.contains(&&**outcome), "{outcome}");
        }
        let rest = create_recovery_codes(&server, &app).await;
        let asked = challenge(password_only(&server, "alice").await);
        let answers = (0..64).map(|_| {
            let (anonymous, asked, code) = (anonymous.clone(), asked.clone(), rest[0].clone());
            tokio::spawn(async move { answer(&anonymous, &asked, Answer::RecoveryCode(code)).await })
        });
        let answers: Vec<_> = answers.collect();
        let mut won = 0;
        for answer in answers {
            won += usize::from(answer.await.expect("no panic").is_ok());
        }
        assert_eq!(won, 1, "one challenge, one code");
    }

    async fn a_challenge_has_five_answers_and_little_time(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.account_free = 100).await;
        let alice = server.signed_in("alice").await;
        let (app, _) = enrol(&server, &alice).await;
        server.advance_s(30);
        let anonymous = server.anonymous().await;
        let asked = challenge(password_only(&server, "alice").await);
        for _ in 0..5 {
            let wrong = answer(&anonymous, &asked, Answer::TotpCode("000000".to_owned())).await;
            assert_refused(wrong, Reason::InvalidCode);
        }
        let code = || Answer::TotpCode(app.code(server.now().seconds()));
        assert_refused(answer(&anonymous, &asked, code()).await, Reason::ChallengeEnded);

        let asked = challenge(password_only(&server, "alice").await);
        let wrong = answer(&anonymous, &asked, Answer::RecoveryCode("x".to_owned())).await;
        assert_eq!(fields_of(wrong), ["recovery_code"], "not asked for, and no attempt");
        let seconds = asked.expire_time.expect("set").seconds - server.now().seconds();
        assert_eq!(seconds, 300);
        server.advance_s(300);
        assert_refused(answer(&anonymous, &asked, code()).await, Reason::ChallengeEnded);
        for name in ["", "challenges/", "challenges/adch_x_y", "users/me"] {
            let none = pb::Challenge { name: name.to_owned(), ..asked.clone() };
            assert_refused(answer(&anonymous, &none, code()).await, Reason::ChallengeEnded);
        }
        let mut request = answer_request(&asked, code());
        request.answer = None;
        assert_eq!(fields_of(anonymous.sessions().answer_challenge(request).await), ["answer"]);
        jobs::sweep(&server.running.app).await.expect("swept");
    }

    async fn wrong_second_factors_make_only_those_wait_who_know_the_password(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let (app, _) = enrol(&server, &alice).await;
        let known = enter(&server, "alice", &app, 30).await;
        let anonymous = server.anonymous().await;
        // 200 guesses, one each half minute, from somebody who knows the password.
        let (mut looked_at, mut asked) = (0, challenge(password_only(&server, "alice").await));
        for guess in 0..200 {
            let wrong = format!("{:06}", 123_000 + guess);
            match answer(&anonymous, &asked, Answer::TotpCode(wrong)).await.reason().as_str() {
                "INVALID_CODE" => looked_at += 1,
                "CHALLENGE_ENDED" => asked = challenge(password_only(&server, "alice").await),
                "THROTTLED" => {}
                other => panic!("{other}"),
            }
            server.advance_s(30);
        }
        assert!(looked_at <= 20, "{looked_at} guesses were looked at");
        let code = || Answer::TotpCode(app.code(server.now().seconds()));
        let asked = challenge(password_only(&server, "alice").await);
        assert_refused(answer(&anonymous, &asked, code()).await, Reason::Throttled);
        // The owner is at a device of hers.
        let request = pb::CreateSessionRequest {
            device: Some(pb::Device { token: known.device_token, ..Default::default() }),
            ..sign_in_request("alice")
        };
        let asked = anonymous.sessions().create_session(request).await.expect("right").into_inner();
        answer(&anonymous, &challenge(asked), code()).await.expect("the owner gets in");
        let refused = server.events("challenge.refused").await;
        let hers = refused.iter().filter(|event| event.account == alice.name());
        assert_eq!(hers.count(), looked_at);
    }

    async fn a_right_password_forgives_no_wrong_second_factor(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        // Somebody who knows the password was here before there was a second factor.
        let stolen = server.sign_in("alice").await.device_token;
        enrol(&server, &alice).await;
        let anonymous = server.anonymous().await;
        let (mut looked_at, mut throttled) = (0, 0);
        for guess in 0..60 {
            let request = pb::CreateSessionRequest {
                device: Some(pb::Device { token: stolen.clone(), ..Default::default() }),
                ..sign_in_request("alice")
            };
            let half = anonymous.sessions().create_session(request).await.expect("right").into_inner();
            let wrong = Answer::TotpCode(format!("{:06}", 123_000 + guess));
            match answer(&anonymous, &challenge(half), wrong).await.reason().as_str() {
                "INVALID_CODE" => looked_at += 1,
                "THROTTLED" => throttled += 1,
                other => panic!("{other}"),
            }
        }
        // Five on the device and five as a stranger.
        assert_eq!((looked_at, throttled), (10, 50));
    }

    async fn who_has_the_old_refresh_token_is_not_raised_along(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let old = server.sign_in("alice").await;
        let (app, _) = enrol(&server, &alice).await;
        server.advance_s(30);
        let asked = step_up(&old.actor).await.expect("asked");
        let code = Answer::TotpCode(app.code(server.now().seconds()));
        answer(&old.actor, &asked, code).await.expect("raised");
        // At once, when a refresh would still be answered again.
        let copied = server.anonymous().await.refresh(&old.tokens.refresh_token).await;
        assert_refused(copied, Reason::InvalidRefreshToken);
        assert_eq!(server.events("session.refresh_token_reused").await.len(), 1);
    }

    async fn every_rpc_that_gives_power_demands_both_factors(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        server.grant(alice.name(), "roles/operator").await;
        let alice = server.sign_in("alice").await;
        enrol(&server, &alice).await;
        let (mut refused, mut expected) = (Vec::new(), Vec::new());
        for rpc in crate::access::rpcs() {
            let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
            let policy = access::policy(&path).expect("every RPC has one");
            if policy.demand.is_some() {
                expected.push(path.clone());
            }
            let mut message = prost_reflect::DynamicMessage::new(rpc.input());
            if rpc.input().get_field_by_name("validate_only").is_some() {
                message.set_field_by_name("validate_only", prost_reflect::Value::Bool(true));
            }
            if let Some(path) = crate::access::paths(&rpc).first().filter(|path| !path.is_empty()) {
                let own = alice.name().trim_start_matches("users/");
                let name = path.replacen('*', own, 1).replace('*', own);
                crate::access::set(&mut message, &crate::access::bound_field(&rpc), &name);
            }
            let outcome = crate::access::call(&alice.actor, &rpc, &message).await.outcome();
            if outcome.ends_with("INSUFFICIENT_USER_AUTHENTICATION") {
                refused.push(path);
            }
        }
        assert_eq!(refused, expected);
        assert!(expected.len() >= 15, "{expected:?}");
    }

    async fn a_session_is_raised_by_a_second_factor(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let old = server.sign_in("alice").await;
        let (app, generator) = enrol(&server, &alice).await;
        server.advance_s(30);
        // Signed in before there was a second factor: not enough for this any more.
        let refused = delete(&old.actor, &generator).await.expect_err("not enough");
        assert_eq!(reason_of(&refused), "INSUFFICIENT_USER_AUTHENTICATION");
        let info = refused.get_details_error_info().expect("set").metadata;
        assert_eq!((&*info["acr_values"], &*info["max_age"]), ("aal2", "600"));

        let asked = step_up(&old.actor).await.expect("asked");
        assert_eq!(asked.methods, [i32::from(ChallengeMethod::Totp)]);
        let code = || Answer::TotpCode(app.code(server.now().seconds()));
        let anonymous = server.anonymous().await;
        for stranger in [&anonymous, &alice.actor, &server.operator().await] {
            let refused = answer(stranger, &asked, code()).await;
            assert_refused(refused, Reason::ChallengeEnded);
        }
        let response = answer(&old.actor, &asked, code()).await.expect("raised");
        assert!(response.device_token.is_empty());
        let raised = SignedIn::new(&anonymous, response);
        assert_eq!(raised.tokens.session, old.tokens.session);
        assert_eq!(acr(&raised.tokens), ("aal2".to_owned(), "pwd otp mfa".to_owned()));
        assert_eq!(server.events("session.stepped_up").await.len(), 1);
        let made = create(&raised.actor, totp(0, 0)).await.expect("enough");

        server.advance_s(601);
        let refreshed = anonymous.refresh(&raised.tokens.refresh_token).await.expect("live");
        let stale = server.with_token(&refreshed.access_token).await;
        let refused = delete(&stale, &made.credential.expect("set").name).await;
        assert_refused(refused, Reason::InsufficientUserAuthentication);
        // The token before was used up, like by a refresh.
        let twice = anonymous.refresh(&old.tokens.refresh_token).await;
        assert_refused(twice, Reason::InvalidRefreshToken);
        assert_refused(get_user(&stale).await, Reason::TokenRevoked);
    }

    async fn who_has_one_factor_is_asked_for_a_fresh_one_only(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        assert_refused(step_up(&alice.actor).await, Reason::WrongState);
        server.advance_s(200);
        create(&alice.actor, totp(0, 0)).await.expect("fresh enough");
        server.advance_s(401);
        let refreshed = server.anonymous().await.refresh(&alice.tokens.refresh_token).await;
        let alice = server.with_token(&refreshed.expect("live").access_token).await;
        let refused = create(&alice, totp(0, 0)).await.expect_err("too old");
        let info = refused.get_details_error_info().expect("set");
        assert_eq!((&*info.reason, &*info.metadata["acr_values"]), ("INSUFFICIENT_USER_AUTHENTICATION", "aal1"));
        let response = reqwest::Client::new()
            .post(server.url("/v1/users/me/credentials"))
            .bearer_auth(alice.token())
            .json(&serde_json::json!({ "credential": { "totp": {} } }))
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), 401);
        let header = response.headers()["www-authenticate"].to_str().expect("text");
        assert_eq!(header, r#"Bearer realm="accountd", error="insufficient_user_authentication", acr_values="aal1", max_age="600""#);
    }

    async fn a_half_sign_in_ends_with_what_it_rests_on(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let (app, generator) = enrol(&server, &alice).await;
        let alice = enter(&server, "alice", &app, 30).await;
        let anonymous = server.anonymous().await;
        let operator = server.operator().await;
        server.advance_s(30);
        let code = || Answer::TotpCode(app.code(server.now().seconds()));

        let asked = challenge(password_only(&server, "alice").await);
        operator.suspend_user(alice.name()).await.expect("suspended");
        assert_refused(answer(&anonymous, &asked, code()).await, Reason::ChallengeEnded);
        let request = pb::ResumeUserRequest { name: alice.name().to_owned(), ..Default::default() };
        operator.users().resume_user(request).await.expect("resumed");

        let asked = challenge(password_only(&server, "alice").await);
        let reset = crate::credentials::reset_code(&operator, alice.name()).await.expect("a code");
        crate::credentials::redeem(&anonymous, &reset, &password("alice")).await.expect("reset");
        assert_refused(answer(&anonymous, &asked, code()).await, Reason::ChallengeEnded);

        let asked = challenge(password_only(&server, "alice").await);
        let request = pb::DeleteCredentialRequest { name: generator, ..Default::default() };
        operator.credentials().delete_credential(request).await.expect("an operator may");
        assert_refused(answer(&anonymous, &asked, code()).await, Reason::ChallengeEnded);
    }

    async fn a_right_answer_that_is_sent_again_finds_its_session(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let (app, _) = enrol(&server, &alice).await;
        server.advance_s(30);
        let anonymous = server.anonymous().await;
        let request = pb::CreateSessionRequest { audience: "shop".to_owned(), ..sign_in_request("alice") };
        let asked = anonymous.sessions().create_session(request).await.expect("right").into_inner();
        let asked = challenge(asked);
        let code = Answer::TotpCode(app.code(server.now().seconds()));
        let dry = pb::AnswerChallengeRequest { validate_only: true, ..answer_request(&asked, code.clone()) };
        let dry = anonymous.sessions().answer_challenge(dry).await.expect("right").into_inner();
        let Some(sign_in_response::Result::Tokens(dry)) = dry.result else {
            panic!("no tokens");
        };
        assert!(dry.access_token.is_empty() && dry.refresh_token.is_empty());
        let request = pb::AnswerChallengeRequest {
            request_id: "018f0000-0000-7000-8000-000000000002".to_owned(),
            ..answer_request(&asked, code)
        };
        let mut sessions = anonymous.sessions();
        let first = sessions.answer_challenge(request.clone()).await.expect("right").into_inner();
        let first = SignedIn::new(&anonymous, first);
        let retry = sessions.answer_challenge(request.clone()).await.expect("a retry").into_inner();
        let retry = SignedIn::new(&anonymous, retry);
        assert_eq!(retry.tokens.session, first.tokens.session);
        assert_eq!(retry.tokens.refresh_token, first.tokens.refresh_token);
        assert_eq!((audience(&first.tokens), audience(&retry.tokens)), ("shop".to_owned(), "shop".to_owned()));
        anonymous.refresh(&first.tokens.refresh_token).await.expect("live");
        assert_refused(sessions.answer_challenge(request).await, Reason::WrongState);
    }

    async fn a_code_in_a_message_signs_in_for_a_trusted_frontend(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let plain = server.frontend().await;
        let mail = || code_request("alice", ChallengeMethod::EmailCode);
        assert_refused(plain.sessions().create_challenge(mail()).await, Reason::ScopeMissing);
        assert_refused(server.anonymous().await.sessions().create_challenge(mail()).await, Reason::TokenMissing);
        let trusted = server.system_account(&["roles/login-frontend", "scopes/accountd:contacts.return_code"]).await;
        let send = pb::CreateChallengeRequest { delivery: Delivery::Send.into(), ..mail() };
        assert_refused(trusted.sessions().create_challenge(send).await, Reason::DeliveryUnavailable);

        let known = trusted.sessions().create_challenge(mail()).await.expect("opened").into_inner();
        let nobody = code_request("nobody", ChallengeMethod::EmailCode);
        let unknown = trusted.sessions().create_challenge(nobody).await.expect("opened").into_inner();
        let shape = |asked: &pb::Challenge| (asked.name.len(), asked.code.len(), asked.methods.clone(), asked.expire_time);
        assert_eq!(shape(&known), shape(&unknown));
        let refused = answer(&trusted, &unknown, Answer::Code(unknown.code.clone())).await;
        assert_refused(refused, Reason::InvalidCode);
        let anonymous = server.anonymous().await;
        let stolen = answer(&anonymous, &known, Answer::Code(known.code.clone())).await;
        assert_refused(stolen, Reason::ChallengeEnded);
        let typed = format!("{} {}", &known.code[..4], &known.code[4..]);
        let response = answer(&trusted, &known, Answer::Code(typed)).await.expect("right");
        let tokens = SignedIn::new(&anonymous, response).tokens;
        assert_eq!(acr(&tokens), ("aal1".to_owned(), "otp".to_owned()));
        assert_eq!(session(&alice.actor, &tokens.session).await.credential, "");
        assert_eq!(server.events("challenge.code_returned").await.len(), 2);

        // Never more power than the frontend has, and never a second factor.
        server.user("boss").await;
        let boss = server.sign_in("boss").await;
        server.grant(boss.name(), "roles/operator").await;
        let request = code_request("boss", ChallengeMethod::SmsCode);
        assert_refused(trusted.sessions().create_challenge(request).await, Reason::TargetOutranksCaller);
        let (app, _) = enrol(&server, &alice).await;
        server.advance_s(30);
        let known = trusted.sessions().create_challenge(mail()).await.expect("opened").into_inner();
        let half = answer(&trusted, &known, Answer::Code(known.code.clone())).await.expect("right");
        let code = Answer::TotpCode(app.code(server.now().seconds()));
        let response = answer(&trusted, &challenge(half), code).await.expect("right");
        let tokens = SignedIn::new(&anonymous, response).tokens;
        assert_eq!(acr(&tokens), ("aal1".to_owned(), "otp".to_owned()), "two codes are no two factors");
    }

    async fn a_network_opens_so_many_challenges(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_challenges = 3).await;
        let anonymous = server.anonymous().await;
        for _ in 0..3 {
            passkey_challenge(&anonymous, "").await.expect("opened");
        }
        assert_refused(passkey_challenge(&anonymous, "").await, Reason::Throttled);
        let wrong = pb::CreateChallengeRequest { method: ChallengeMethod::Totp.into(), ..Default::default() };
        assert_eq!(fields_of(anonymous.sessions().create_challenge(wrong).await), ["method"]);
        server.advance_s(300);
        passkey_challenge(&anonymous, "").await.expect("the others are over");
    }

    async fn a_person_has_so_many_open_challenges(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.account_free = 100).await;
        let alice = server.signed_in("alice").await;
        let (app, _) = enrol(&server, &alice).await;
        server.advance_s(30);
        let trusted = server.system_account(&["roles/login-frontend", "scopes/accountd:contacts.return_code"]).await;
        let mail = || code_request("alice", ChallengeMethod::EmailCode);
        for _ in 0..20 {
            trusted.sessions().create_challenge(mail()).await.expect("opened");
        }
        assert_refused(trusted.sessions().create_challenge(mail()).await, Reason::Throttled);
        // Who has shown the password is not kept out by that, and the newest of theirs stay.
        let first = challenge(password_only(&server, "alice").await);
        let mut last = first.clone();
        for _ in 0..21 {
            server.advance_s(1);
            last = challenge(password_only(&server, "alice").await);
        }
        let anonymous = server.anonymous().await;
        let code = || Answer::TotpCode(app.code(server.now().seconds()));
        assert_refused(answer(&anonymous, &first, code()).await, Reason::ChallengeEnded);
        answer(&anonymous, &last, code()).await.expect("right");
    }

    async fn who_signs_in_with_a_token_answers_with_it(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let (app, _) = enrol(&server, &alice).await;
        server.advance_s(30);
        let half = alice.actor.sign_in("alice", &password("alice")).await.expect("right");
        let code = || Answer::TotpCode(app.code(server.now().seconds()));
        let half = challenge(half);
        let anonymous = server.anonymous().await;
        assert_refused(answer(&anonymous, &half, code()).await, Reason::ChallengeEnded);
        answer(&alice.actor, &half, code()).await.expect("right");
    }

    async fn a_passkey_signs_in_by_itself(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let mut key = SecurityKey::new(1);
        let name = enrol_passkey(&alice.actor, &mut key).await.expect("enrolled").name;
        let expected = Passkey {
            aaguid: uuid::Uuid::from_bytes(AAGUID).to_string(),
            backed_up: false,
            credential_id: BASE64URL_NOPAD.encode(&[1; 32]),
        };
        assert_eq!(get(&alice.actor, &name).await.detail, Some(Detail::Passkey(expected)));

        let anonymous = server.anonymous().await;
        let asked = passkey_challenge(&anonymous, "").await.expect("opened");
        let options: serde_json::Value = serde_json::from_str(&asked.passkey_options_json).expect("JSON");
        assert_eq!(options["rpId"], "id.example");
        assert_eq!(options["userVerification"], "required");
        assert!(options["allowCredentials"].as_array().is_none_or(Vec::is_empty), "{options}");
        let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
        let response = answer(&anonymous, &asked, signed.clone()).await.expect("right");
        let signed_in = SignedIn::new(&anonymous, response);
        assert_eq!(signed_in.name(), alice.name());
        assert_eq!(acr(&signed_in.tokens), ("aal2".to_owned(), "pop user mfa".to_owned()));
        assert_eq!(session(&signed_in.actor, &signed_in.tokens.session).await.credential, name);
        assert_refused(answer(&anonymous, &asked, signed.clone()).await, Reason::ChallengeEnded);
        let asked = passkey_challenge(&anonymous, "").await.expect("opened");
        assert_refused(answer(&anonymous, &asked, signed).await, Reason::InvalidCode);

        // After a password it is the second step, and a certain person can be asked for.
        let asked = challenge(password_only(&server, "alice").await);
        assert_eq!(asked.methods, [i32::from(ChallengeMethod::Passkey)]);
        assert!(asked.passkey_options_json.contains(&BASE64URL_NOPAD.encode(&[1; 32])));
        let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
        let response = answer(&anonymous, &asked, signed).await.expect("right");
        assert_eq!(acr(&SignedIn::new(&anonymous, response).tokens).1, "pwd pop user mfa");
        server.user("bob").await;
        for (identifier, outcome) in [("alice", "OK"), ("bob", "UNAUTHENTICATED INVALID_CODE"), ("nobody", "UNAUTHENTICATED INVALID_CODE")] {
            let asked = passkey_challenge(&anonymous, identifier).await.expect("opened");
            let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
            assert_eq!(answer(&anonymous, &asked, signed).await.map(drop).outcome(), outcome, "{identifier}");
        }
        delete(&signed_in.actor, &name).await.expect("deleted");
        assert_refused(get_user(&signed_in.actor).await, Reason::TokenRevoked);
        let asked = passkey_challenge(&anonymous, "").await.expect("opened");
        let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
        assert_refused(answer(&anonymous, &asked, signed).await, Reason::InvalidCode);
    }

    async fn of_16_who_come_with_one_assertion_one_gets_in(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let mut key = SecurityKey::new(1);
        key.counts = false;
        enrol_passkey(&alice.actor, &mut key).await.expect("enrolled");
        let anonymous = server.anonymous().await;
        for _ in 0..5 {
            let asked = passkey_challenge(&anonymous, "").await.expect("opened");
            let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
            let answers = (0..16).map(|_| {
                let (anonymous, asked, signed) = (anonymous.clone(), asked.clone(), signed.clone());
                tokio::spawn(async move { answer(&anonymous, &asked, signed).await })
            });
            let answers: Vec<_> = answers.collect();
            let mut won = 0;
            for answer in answers {
                won += usize::from(answer.await.expect("no panic").is_ok());
            }
            assert_eq!(won, 1);
        }
    }

    async fn an_assertion_that_is_not_quite_right_is_refused(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let mut key = SecurityKey::new(1);
        let (origin, domain) = (key.origin.clone(), key.domain.clone());
        let (own, ours) = (&*origin, &*domain);
        let wrong = [
            ("another page", "https://evil.example", ours, true),
            ("a page below", "https://x.id.example", ours, true),
            ("another domain", own, "example", true),
            ("nobody verified", own, ours, false),
        ];
        let change = |key: &mut SecurityKey, origin: &str, domain: &str, verifies| {
            (key.origin, key.domain, key.verifies) = (origin.to_owned(), domain.to_owned(), verifies);
        };
        for (what, origin, domain, verifies) in wrong {
            let mut bad = SecurityKey::new(1);
            change(&mut bad, origin, domain, verifies);
            let refused = enrol_passkey(&alice.actor, &mut bad).await;
            assert_eq!(refused.reason(), "INVALID_CODE", "{what}");
        }
        enrol_passkey(&alice.actor, &mut key).await.expect("enrolled");
        let anonymous = server.anonymous().await;
        for (what, origin, domain, verifies) in wrong {
            let asked = passkey_challenge(&anonymous, "").await.expect("opened");
            change(&mut key, origin, domain, verifies);
            let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
            let refused = answer(&anonymous, &asked, signed).await;
            assert_eq!(refused.reason(), "INVALID_CODE", "{what}");
            change(&mut key, own, ours, true);
        }
        let asked = passkey_challenge(&anonymous, "").await.expect("opened");
        for nonsense in ["", "{}", "null", "[]", &"[".repeat(60_000), &"x".repeat(70_000)] {
            let refused = answer(&anonymous, &asked, Answer::PasskeyResponseJson(nonsense.to_owned())).await;
            let reason = refused.reason();
            assert!(["INVALID_CODE", "CHALLENGE_ENDED"].contains(&&*reason), "{reason}");
        }
        // A counter that goes back is a sign of a copy.
        let asked = passkey_challenge(&anonymous, "").await.expect("opened");
        let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
        answer(&anonymous, &asked, signed).await.expect("right");
        key.counter -= 1;
        let asked = passkey_challenge(&anonymous, "").await.expect("opened");
        let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
        assert_refused(answer(&anonymous, &asked, signed).await, Reason::InvalidCode);
        // Somebody else's credential id is taken.
        let bob = server.signed_in("bob").await;
        let taken = enrol_passkey(&bob.actor, &mut SecurityKey::new(1)).await;
        assert_refused(taken, Reason::AlreadyExists);
    }

    async fn pages_of_several_origins_ask_for_passkeys(engine: Engine) {
        let server = engine.server_with(|config| {
            config.passkeys.domain = Some("example".to_owned());
            config.passkeys.origins = ["https://login.example", "https://shop.test"].map(str::to_owned).to_vec();
        }).await;
        let alice = server.signed_in("alice").await;
        let mut key = SecurityKey::new(1);
        (key.origin, key.domain) = ("https://shop.test".to_owned(), "example".to_owned());
        enrol_passkey(&alice.actor, &mut key).await.expect("enrolled");
        let anonymous = server.anonymous().await;
        for (origin, outcome) in [
            ("https://login.example", "OK"),
            ("https://shop.test", "OK"),
            ("https://id.example", "UNAUTHENTICATED INVALID_CODE"),
            ("https://shop.test:8443", "UNAUTHENTICATED INVALID_CODE"),
            ("http://shop.test", "UNAUTHENTICATED INVALID_CODE"),
        ] {
            key.origin = origin.to_owned();
            let asked = passkey_challenge(&anonymous, "").await.expect("opened");
            let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
            assert_eq!(answer(&anonymous, &asked, signed).await.map(drop).outcome(), outcome, "{origin}");
        }
        let related = reqwest::get(server.url("/.well-known/webauthn")).await.expect("an answer");
        assert_eq!(related.headers()["content-type"], "application/json");
        let related: serde_json::Value = related.json().await.expect("JSON");
        assert_eq!(related, serde_json::json!({ "origins": ["https://login.example", "https://shop.test"] }));
    }

    async fn only_authenticators_of_known_makers_where_that_is_required(engine: Engine) {
        for (models, accepts) in [(vec![], true), (vec![uuid::Uuid::from_bytes(AAGUID)], true), (vec![uuid::Uuid::from_u128(1)], false)] {
            let (maker, folder) = (Maker::new("A"), tempfile::TempDir::new().expect("a folder"));
            let roots = folder.path().join("roots.pem");
            std::fs::write(&roots, format!("{}{}", Maker::new("B").root, maker.root)).expect("written");
            let server = engine.server_with(|config| {
                "required".clone_into(&mut config.passkeys.attestation);
                config.passkeys.attestation_roots_file = Some(roots);
                config.passkeys.attestation_models = models.iter().map(ToString::to_string).collect();
            }).await;
            let alice = server.signed_in("alice").await;
            let plain = enrol_passkey(&alice.actor, &mut SecurityKey::new(1)).await;
            assert_refused(plain, Reason::InvalidCode);
            let mut foreign = SecurityKey::new(2);
            foreign.maker = Some(Maker::new("A"));
            assert_refused(enrol_passkey(&alice.actor, &mut foreign).await, Reason::InvalidCode);
            let mut key = SecurityKey::new(3);
            key.maker = Some(maker);
            let enrolled = enrol_passkey(&alice.actor, &mut key).await;
            assert_eq!(enrolled.is_ok(), accepts, "{models:?}: {enrolled:?}");
            if accepts {
                let anonymous = server.anonymous().await;
                let asked = passkey_challenge(&anonymous, "").await.expect("opened");
                let signed = Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json));
                answer(&anonymous, &asked, signed).await.expect("right");
            }
        }
    }

    async fn where_there_is_no_domain_there_are_no_passkeys(engine: Engine) {
        let server = engine.server_with(|config| config.public_url = Some("http://127.0.0.1:8080".to_owned())).await;
        let alice = server.signed_in("alice").await;
        let refused = create(&alice.actor, Detail::Passkey(Passkey::default())).await;
        assert_refused(refused, Reason::CredentialKindNotAllowed);
        let anonymous = server.anonymous().await;
        assert_refused(passkey_challenge(&anonymous, "").await, Reason::CredentialKindNotAllowed);
        let none = reqwest::get(server.url("/.well-known/webauthn")).await.expect("an answer");
        assert_eq!(none.status(), 404);
    }
}

fn totp(algorithm: i32, digits: i32) -> Detail {
    Detail::Totp(Totp { algorithm, digits })
}

fn creation(detail: Detail) -> pb::CreateCredentialRequest {
    let credential = pb::Credential {
        detail: Some(detail),
        ..Default::default()
    };
    pb::CreateCredentialRequest {
        parent: "users/me".to_owned(),
        credential: Some(credential),
        ..Default::default()
    }
}

pub async fn create(by: &Actor, detail: Detail) -> Result<pb::CreateCredentialResponse, Status> {
    let created = by.credentials().create_credential(creation(detail)).await?;
    Ok(created.into_inner())
}

async fn confirm(by: &Actor, name: &str, code: &str) -> Result<pb::Credential, Status> {
    let request = pb::ConfirmCredentialRequest {
        name: name.to_owned(),
        proof: Some(Proof::TotpCode(code.to_owned())),
        ..Default::default()
    };
    Ok(by
        .credentials()
        .confirm_credential(request)
        .await?
        .into_inner())
}

async fn delete(by: &Actor, name: &str) -> Result<(), Status> {
    let request = pb::DeleteCredentialRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    by.credentials().delete_credential(request).await.map(drop)
}

async fn get(by: &Actor, name: &str) -> pb::Credential {
    let request = pb::GetCredentialRequest {
        name: name.to_owned(),
    };
    let found = by.credentials().get_credential(request).await;
    found.expect("there").into_inner()
}

async fn get_user(by: &Actor) -> Result<pb::User, Status> {
    by.get_user("users/me").await
}

async fn session(by: &Actor, name: &str) -> pb::Session {
    let request = pb::GetSessionRequest {
        name: name.to_owned(),
    };
    let found = by.sessions().get_session(request).await;
    found.expect("there").into_inner()
}

fn scan(enrolment: Option<pb::Enrolment>) -> App {
    match enrolment.and_then(|enrolment| enrolment.factor) {
        Some(Factor::Totp(totp)) => App::scan(&totp.uri),
        _ => panic!("no generator"),
    }
}

/// A generator that is in use, and its name.
pub async fn enrol(server: &Server, person: &SignedIn) -> (App, String) {
    let made = create(&person.actor, totp(0, 0)).await.expect("made");
    let (name, app) = (made.credential.expect("set").name, scan(made.enrolment));
    let code = app.code(server.now().seconds());
    confirm(&person.actor, &name, &code)
        .await
        .expect("confirmed");
    (app, name)
}

pub async fn enrol_passkey(by: &Actor, key: &mut SecurityKey) -> Result<pb::Credential, Status> {
    let made = create(by, Detail::Passkey(Passkey::default())).await?;
    let Some(Factor::Passkey(asked)) = made.enrolment.and_then(|enrolment| enrolment.factor) else {
        panic!("no question");
    };
    let request = pb::ConfirmCredentialRequest {
        name: made.credential.expect("set").name,
        proof: Some(Proof::PasskeyResponseJson(key.enrol(&asked.options_json))),
        ..Default::default()
    };
    Ok(by
        .credentials()
        .confirm_credential(request)
        .await?
        .into_inner())
}

fn sign_in_request(username: &str) -> pb::CreateSessionRequest {
    pb::CreateSessionRequest {
        identifier: username.to_owned(),
        password: password(username),
        ..Default::default()
    }
}

/// The answer to a right password.
async fn password_only(server: &Server, username: &str) -> pb::SignInResponse {
    let anonymous = server.anonymous().await;
    let response = anonymous.sign_in(username, &password(username)).await;
    response.expect("right")
}

pub fn challenge(response: pb::SignInResponse) -> pb::Challenge {
    match response.result {
        Some(sign_in_response::Result::Challenge(challenge)) => challenge,
        _ => panic!("no challenge"),
    }
}

fn answer_request(asked: &pb::Challenge, answer: Answer) -> pb::AnswerChallengeRequest {
    pb::AnswerChallengeRequest {
        name: asked.name.clone(),
        answer: Some(answer),
        ..Default::default()
    }
}

pub async fn answer(
    by: &Actor,
    asked: &pb::Challenge,
    answer: Answer,
) -> Result<pb::SignInResponse, Status> {
    let request = answer_request(asked, answer);
    Ok(by.sessions().answer_challenge(request).await?.into_inner())
}

/// Signs in with password and generator, so many seconds later.
pub async fn enter(server: &Server, username: &str, app: &App, later_s: i64) -> SignedIn {
    server.advance_s(later_s);
    let anonymous = server.anonymous().await;
    let asked = challenge(password_only(server, username).await);
    let code = Answer::TotpCode(app.code(server.now().seconds()));
    let response = answer(&anonymous, &asked, code).await.expect("right");
    SignedIn::new(&anonymous, response)
}

async fn create_recovery_codes(server: &Server, app: &App) -> Vec<String> {
    let alice = enter(server, "alice", app, 30).await;
    let codes = Detail::RecoveryCodes(RecoveryCodes::default());
    let made = create(&alice.actor, codes).await.expect("made");
    match made.enrolment.and_then(|enrolment| enrolment.factor) {
        Some(Factor::RecoveryCodes(made)) => made.codes,
        _ => panic!("no codes"),
    }
}

async fn step_up(by: &Actor) -> Result<pb::Challenge, Status> {
    let request = pb::CreateChallengeRequest::default();
    Ok(by.sessions().create_challenge(request).await?.into_inner())
}

pub async fn passkey_challenge(by: &Actor, identifier: &str) -> Result<pb::Challenge, Status> {
    let request = pb::CreateChallengeRequest {
        identifier: identifier.to_owned(),
        method: ChallengeMethod::Passkey.into(),
        ..Default::default()
    };
    Ok(by.sessions().create_challenge(request).await?.into_inner())
}

pub fn code_request(identifier: &str, method: ChallengeMethod) -> pb::CreateChallengeRequest {
    pb::CreateChallengeRequest {
        identifier: identifier.to_owned(),
        method: method.into(),
        delivery: Delivery::Return.into(),
        ..Default::default()
    }
}

fn audience(tokens: &pb::TokenSet) -> String {
    claims(tokens).aud
}

/// The `acr` and `amr` of an access token.
fn acr(tokens: &pb::TokenSet) -> (String, String) {
    match claims(tokens).account {
        AccountClaims::User { acr, amr, .. } => (acr.name().to_owned(), amr.join(" ")),
        AccountClaims::SystemAccount { .. } => panic!("not a person"),
    }
}

fn claims(tokens: &pb::TokenSet) -> Claims {
    let payload = tokens.access_token.split('.').nth(1).expect("a JWT");
    let payload = BASE64URL_NOPAD.decode(payload.as_bytes());
    serde_json::from_slice(&payload.expect("base64url")).expect("claims")
}

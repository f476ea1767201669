//! SessionService.

use accountd::{domain::error::Reason, grpc::pb, jobs};
use pb::{CreateSessionRequest, Device, sign_in_response::Result as Outcome};
use prost::Message as _;
use tonic::Status;

use crate::harness::{
    Actor, Engine, SignedIn, assert_refused, auditor_scopes, fields_of, on_both_engines, password,
};

on_both_engines! {
    async fn a_sign_in_yields_tokens_that_are_worth_something(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        assert_eq!((&*alice.tokens.token_type, alice.tokens.scopes.len()), ("Bearer", 0));
        let me = alice.actor.get_user("users/me").await.expect("her own");
        assert_eq!(me.last_sign_in_time.map(|time| time.seconds), Some(server.now().seconds()));
        let resource_server = server.system_account(&["roles/resource-server"]).await;
        let seen = resource_server.introspect(&alice.tokens.access_token).await.expect("an answer");
        assert!(seen.active);
        assert_eq!((&*seen.account, &*seen.session), (alice.name(), &*alice.tokens.session));
        assert_eq!((&*seen.acr, seen.amr), ("aal1", vec!["pwd".to_owned()]));
        assert_eq!((&*seen.iss, &*seen.aud, &*seen.client_id), ("https://id.example", "accountd", "accountd"));
        let life_s = seen.expire_time.expect("set").seconds - server.now().seconds();
        assert_eq!(life_s, 300);
    }

    async fn all_that_can_be_wrong_has_one_answer(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        server.user("alice").await;
        let suspended = server.user("suspended").await;
        operator.suspend_user(&suspended.name).await.expect("suspended");
        let deleted = server.user("deleted").await;
        let request = pb::DeleteUserRequest { name: deleted.name, ..Default::default() };
        operator.users().delete_user(request).await.expect("deleted");
        let nameless = pb::User { username: "nopassword".to_owned(), ..Default::default() };
        operator.create_user(nameless).await.expect("created");

        let anonymous = server.anonymous().await;
        let mut answers = Vec::new();
        for (identifier, password) in [
            ("alice", "not her password at all".to_owned()),
            ("nobody", password("nobody")),
            ("suspended", password("suspended")),
            ("deleted", password("deleted")),
            ("nopassword", password("nopassword")),
            ("not an identifier", password("x")),
            ("\u{0}", password("x")),
        ] {
            let status = anonymous.sign_in(identifier, &password).await.expect_err(identifier);
            let details = status.details().to_vec();
            answers.push((status.code(), status.message().to_owned(), details));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        let refusals = server.events("session.refused").await;
        assert_eq!(refusals.len(), answers.len());
        assert!(refusals.iter().all(|event| event.refusal == "INVALID_CREDENTIALS"));
        assert_eq!(refusals.iter().filter(|event| event.account.is_empty()).count(), 3);
    }

    async fn refreshing_rotates_and_reuse_ends_the_session(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let anonymous = server.anonymous().await;
        let stolen = alice.tokens.refresh_token.clone();
        let first = anonymous.refresh(&stolen).await.expect("the live one");
        assert_ne!(first.refresh_token, stolen);
        assert_ne!(first.access_token, alice.tokens.access_token);
        server.advance_s(60);
        let second = anonymous.refresh(&first.refresh_token).await.expect("the live one");
        assert_refused(anonymous.refresh(&stolen).await, Reason::InvalidRefreshToken);
        assert_refused(anonymous.refresh(&second.refresh_token).await, Reason::InvalidRefreshToken);
        assert_refused(alice.actor.get_user("users/me").await, Reason::TokenRevoked);
        let event = &server.events("session.refresh_token_reused").await[0];
        assert_eq!((&*event.target, &*event.account), (&*alice.tokens.session, alice.name()));
        assert_eq!(server.events("session.refreshed").await.len(), 2);
    }

    async fn a_lost_answer_is_given_again_while_nobody_has_used_it(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let anonymous = server.anonymous().await;
        let old = &alice.tokens.refresh_token;
        let first = anonymous.refresh(old).await.expect("the live one");
        server.advance_s(9);
        let again = anonymous.refresh(old).await.expect("a retry");
        assert_eq!(again.refresh_token, first.refresh_token, "the same successor");
        let next = anonymous.refresh(&first.refresh_token).await.expect("which works");
        // Its successor is used now: this is no retry any more.
        assert_refused(anonymous.refresh(old).await, Reason::InvalidRefreshToken);
        assert_refused(anonymous.refresh(&next.refresh_token).await, Reason::InvalidRefreshToken);
    }

    async fn a_late_retry_is_reuse(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let anonymous = server.anonymous().await;
        let first = anonymous.refresh(&alice.tokens.refresh_token).await.expect("the live one");
        server.advance_s(10);
        let late = anonymous.refresh(&alice.tokens.refresh_token).await;
        assert_refused(late, Reason::InvalidRefreshToken);
        assert_refused(anonymous.refresh(&first.refresh_token).await, Reason::InvalidRefreshToken);
    }

    async fn strict_rotation_knows_no_retry(engine: Engine) {
        let server = engine.server_with(|config| config.sessions.refresh_replay_s = 0).await;
        let alice = server.signed_in("alice").await;
        let anonymous = server.anonymous().await;
        anonymous.refresh(&alice.tokens.refresh_token).await.expect("the live one");
        let again = anonymous.refresh(&alice.tokens.refresh_token).await;
        assert_refused(again, Reason::InvalidRefreshToken);
    }

    async fn a_forged_refresh_token_ends_nothing(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let bob = server.signed_in("bob").await;
        let anonymous = server.anonymous().await;
        let flipped = flip_last_but_checksum(&alice.tokens.refresh_token);
        for forged in [&*flipped, "adrt_aaaa_bbbb", "x", &alice.tokens.access_token] {
            assert_refused(anonymous.refresh(forged).await, Reason::InvalidRefreshToken);
        }
        assert_eq!(fields_of(anonymous.refresh("").await), ["refresh_token"]);
        anonymous.refresh(&alice.tokens.refresh_token).await.expect("untouched");
        anonymous.refresh(&bob.tokens.refresh_token).await.expect("untouched");
    }

    async fn a_session_ends_unused_and_in_the_end_anyway(engine: Engine) {
        let day_s = 24 * 3600;
        let server = engine.server().await;
        let mut alice = server.signed_in("alice").await;
        let bob = server.signed_in("bob").await;
        let anonymous = server.anonymous().await;
        server.advance_s(13 * day_s);
        alice.tokens = anonymous.refresh(&alice.tokens.refresh_token).await.expect("used");
        server.advance_s(day_s);
        let idle = anonymous.refresh(&bob.tokens.refresh_token).await;
        assert_refused(idle, Reason::InvalidRefreshToken);
        server.advance_s(12 * day_s);
        alice.tokens = anonymous.refresh(&alice.tokens.refresh_token).await.expect("used");
        let end = alice.tokens.refresh_expire_time.expect("set").seconds;
        assert_eq!(end - server.now().seconds(), 4 * day_s, "not beyond 30 days");
        server.advance_s(4 * day_s);
        let over = anonymous.refresh(&alice.tokens.refresh_token).await;
        assert_refused(over, Reason::InvalidRefreshToken);
    }

    async fn people_see_and_end_their_sessions(engine: Engine) {
        let server = engine.server().await;
        let laptop = server.signed_in("alice").await;
        server.advance_s(1);
        let anonymous = server.anonymous().await;
        let device = Device {
            display_name: "phone".to_owned(),
            user_agent: "Browser/1".to_owned(),
            ..Default::default()
        };
        let phone = with_device(&anonymous, "alice", device).await.expect("signed in");
        let sessions = list(&laptop.actor, "users/me", false).await;
        let shown: Vec<_> = sessions
            .iter()
            .map(|session| (session.name.clone(), session.current, session.device.clone().unwrap_or_default()))
            .collect();
        assert_eq!(shown[0].0, phone.tokens.session, "newest first");
        assert_eq!((shown[0].1, shown[1].1), (false, true));
        assert_eq!((&*shown[0].2.display_name, &*shown[0].2.user_agent, &*shown[0].2.ip_address), ("phone", "Browser/1", "127.0.0.1"));

        let revoke = pb::RevokeSessionRequest { name: phone.tokens.session.clone(), ..Default::default() };
        let ended = laptop.actor.sessions().revoke_session(revoke.clone()).await.expect("ended").into_inner();
        assert_eq!((ended.state(), &*ended.revoke_reason), (pb::session::State::Ended, "signed_out"));
        laptop.actor.sessions().revoke_session(revoke).await.expect("once more is no error");
        assert_eq!(server.events("session.revoked").await.len(), 1);
        assert_refused(phone.actor.get_user("users/me").await, Reason::TokenRevoked);
        assert_eq!(list(&laptop.actor, "users/me", false).await.len(), 1);
        assert_eq!(list(&laptop.actor, "users/me", true).await.len(), 2);
        server.advance_s(61 * 24 * 3600);
        jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        assert_eq!(list(&operator, laptop.name(), true).await.len(), 0, "forgotten after 30 days");
    }

    async fn sessions_end_together_or_by_credential_or_all_but_one(engine: Engine) {
        let server = engine.server().await;
        let mut alice = vec![server.signed_in("alice").await];
        for _ in 0..3 {
            alice.push(server.sign_in("alice").await);
        }
        let revoke = async |actor: &Actor, request: pb::RevokeSessionsRequest| {
            actor.sessions().revoke_sessions(request).await.map(|response| response.into_inner().count)
        };
        let all = pb::RevokeSessionsRequest { user: "users/me".to_owned(), ..Default::default() };
        let but_this = pb::RevokeSessionsRequest { except_current: true, ..all.clone() };
        assert_eq!(revoke(&alice[0].actor, but_this).await.expect("ended"), 3);
        alice[0].actor.get_user("users/me").await.expect("spared");
        assert_refused(alice[1].actor.get_user("users/me").await, Reason::TokenRevoked);

        let credential = list(&alice[0].actor, "users/me", false).await[0].credential.clone();
        let other = pb::RevokeSessionsRequest {
            credential: format!("{}/credentials/018f0000-0000-7000-8000-000000000000", alice[0].name()),
            ..all.clone()
        };
        assert_eq!(revoke(&alice[0].actor, other).await.expect("none"), 0);
        let by_credential = pb::RevokeSessionsRequest { credential, ..all };
        assert_eq!(revoke(&alice[0].actor, by_credential).await.expect("ended"), 1);
        let bob = server.signed_in("bob").await;
        let foreign = pb::RevokeSessionsRequest {
            user: "users/me".to_owned(),
            credential: format!("{}/credentials/018f0000-0000-7000-8000-000000000000", alice[0].name()),
            ..Default::default()
        };
        assert_eq!(fields_of(revoke(&bob.actor, foreign).await), ["credential"]);
    }

    async fn a_frontend_speaks_for_people_where_it_has_to(engine: Engine) {
        let server = engine.server_with(|config| config.sign_in.require_frontend = true).await;
        server.user("alice").await;
        let anonymous = server.anonymous().await;
        let refused = anonymous.sign_in("alice", &password("alice")).await;
        assert_refused(refused, Reason::TokenMissing);
        let auditor = server.system_account(&["roles/auditor"]).await;
        let refused = auditor.sign_in("alice", &password("alice")).await;
        assert_refused(refused, Reason::ScopeMissing);
        let (account, secret) = server.create_system_account(&["roles/login-frontend"]).await;
        let frontend = server.client(&account.uid, &secret).await;
        let device = Device { ip_address: "203.0.113.9".to_owned(), ..Default::default() };
        let alice = with_device(&frontend, "alice", device).await.expect("through the frontend");
        let session = &list(&alice.actor, "users/me", false).await[0];
        assert_eq!(session.client, account.name);
        assert_eq!(session.device.as_ref().map(|device| &*device.ip_address), Some("203.0.113.9"));
        let resource_server = server.system_account(&["roles/resource-server"]).await;
        let seen = resource_server.introspect(&alice.tokens.access_token).await.expect("an answer");
        assert_eq!(seen.client_id, account.uid);
        let bad = Device { ip_address: "home".to_owned(), ..Default::default() };
        assert_eq!(fields_of(with_device(&frontend, "alice", bad).await), ["device.ip_address"]);
    }

    async fn nobody_but_a_frontend_chooses_an_address(engine: Engine) {
        let server = engine.server().await;
        server.user("alice").await;
        let device = Device { ip_address: "203.0.113.9".to_owned(), ..Default::default() };
        let alice = with_device(&server.anonymous().await, "alice", device).await.expect("signed in");
        let session = &list(&alice.actor, "users/me", false).await[0];
        assert_eq!(session.device.as_ref().map(|device| &*device.ip_address), Some("127.0.0.1"));
    }

    async fn scopes_are_those_granted_and_the_rest_is_named(engine: Engine) {
        let server = engine.server().await;
        let alice = server.user("alice").await;
        server.grant(&alice.name, "roles/auditor").await;
        let anonymous = server.anonymous().await;
        let sign_in = async |audience: &str, scopes: &[&str]| {
            let request = CreateSessionRequest {
                audience: audience.to_owned(),
                scopes: scopes.iter().map(ToString::to_string).collect(),
                ..request("alice")
            };
            let response = anonymous.sessions().create_session(request).await?.into_inner();
            Ok::<_, Status>(SignedIn::new(&anonymous, response))
        };
        let all = sign_in("", &[]).await.expect("signed in");
        assert_eq!(all.tokens.scopes.len(), auditor_scopes());
        let some = sign_in("accountd", &["users.read", "keys.write"]).await.expect("signed in");
        assert_eq!(some.tokens.scopes, ["users.read"]);
        assert_eq!(some.tokens.refused_scopes, ["keys.write"]);
        some.actor.users().list_users(pb::ListUsersRequest::default()).await.expect("has the scope");
        let events = some.actor.events().list_events(pb::ListEventsRequest::default()).await;
        assert_refused(events, Reason::ScopeMissing);
        // A token for somebody else is nothing here.
        let elsewhere = sign_in("https://shop.example", &[]).await.expect("signed in");
        assert_eq!(elsewhere.tokens.scopes.len(), 0);
        assert_refused(elsewhere.actor.get_user("users/me").await, Reason::TokenInvalid);
        let refresh = pb::RefreshSessionRequest {
            refresh_token: elsewhere.tokens.refresh_token,
            scopes: vec!["events.read".to_owned()],
            ..Default::default()
        };
        let tokens = anonymous.sessions().refresh_session(refresh).await.expect("refreshed").into_inner();
        assert_eq!(tokens.scopes, ["events.read"], "another audience, other scopes");
        assert_eq!(fields_of(sign_in("two words", &["a\"b"]).await.map(drop)), ["audience", "scopes"]);
    }

    async fn a_retried_sign_in_finds_its_session(engine: Engine) {
        let server = engine.server().await;
        server.user("alice").await;
        let anonymous = server.anonymous().await;
        let request = CreateSessionRequest {
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..request("alice")
        };
        let sign_in = async || {
            let response = anonymous.sessions().create_session(request.clone()).await?.into_inner();
            Ok::<_, Status>(SignedIn::new(&anonymous, response))
        };
        let first = sign_in().await.expect("signed in");
        let again = sign_in().await.expect("a retry");
        assert_eq!(first.tokens.session, again.tokens.session);
        assert_eq!(first.tokens.refresh_token, again.tokens.refresh_token, "one live leaf");
        again.actor.get_user("users/me").await.expect("a good token");
        assert_eq!(list(&first.actor, "users/me", true).await.len(), 1);
        anonymous.refresh(&first.tokens.refresh_token).await.expect("rotated");
        assert_refused(sign_in().await.map(drop), Reason::WrongState);
        let other = CreateSessionRequest { password: "a guess at the password".to_owned(), ..request.clone() };
        assert_refused(anonymous.sessions().create_session(other).await, Reason::InvalidCredentials);
        let revoke = pb::RevokeSessionRequest { name: first.tokens.session.clone(), ..Default::default() };
        first.actor.sessions().revoke_session(revoke).await.expect("ended");
        assert_refused(sign_in().await.map(drop), Reason::WrongState);
    }

    async fn lists_show_what_their_filters_say(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        server.sign_in("alice").await;
        let own = list(&alice.actor, "users/me", false).await;
        let filtered = async |filter: String| {
            let request = pb::ListSessionsRequest { parent: "users/me".to_owned(), filter, ..Default::default() };
            alice.actor.sessions().list_sessions(request).await.map(|response| response.into_inner().sessions.len())
        };
        assert_eq!(filtered(format!("credential = \"{}\"", own[0].credential)).await.expect("a list"), 2);
        let other = format!("credential = \"{}/credentials/018f0000-0000-7000-8000-000000000001\"", alice.name());
        assert_eq!(filtered(other).await.expect("a list"), 0);
        let bob = server.signed_in("bob").await;
        let of_bob = &list(&bob.actor, "users/me", false).await[0].credential;
        for bad in [format!("credential = \"{of_bob}\""), "credential = x".to_owned(), "state = ACTIVE".to_owned()] {
            assert_refused(filtered(bad).await, Reason::InvalidFilter);
        }
    }

    async fn of_too_many_sessions_the_oldest_ends(engine: Engine) {
        let server = engine.server_with(|config| config.sessions.max_per_user = 2).await;
        server.user("alice").await;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(server.sign_in("alice").await);
            server.advance_s(1);
        }
        assert_refused(sessions[0].actor.get_user("users/me").await, Reason::TokenRevoked);
        assert_eq!(list(&sessions[1].actor, "users/me", false).await.len(), 2);
        let ended = list(&sessions[2].actor, "users/me", true).await.remove(2);
        assert_eq!(ended.revoke_reason, "displaced");
        assert_eq!(server.events("session.displaced").await.len(), 1);
    }

    async fn validating_a_sign_in_signs_nobody_in(engine: Engine) {
        let server = engine.server().await;
        let alice = server.user("alice").await;
        let anonymous = server.anonymous().await;
        let request = CreateSessionRequest { validate_only: true, ..request("alice") };
        let response = anonymous.sessions().create_session(request.clone()).await.expect("right").into_inner();
        let Some(Outcome::Tokens(tokens)) = response.result else { panic!("no outcome") };
        assert_eq!((&*tokens.access_token, &*tokens.refresh_token, &*response.device_token), ("", "", ""));
        assert_eq!(list(&server.operator().await, &alice.name, true).await.len(), 0);
        let wrong = CreateSessionRequest { password: "a guess at the password".to_owned(), ..request };
        assert_refused(anonymous.sessions().create_session(wrong).await, Reason::InvalidCredentials);
    }

    async fn a_sign_in_brings_an_old_hash_up_to_date(engine: Engine) {
        let server = engine.server_with(|config| config.hashing.memory_kib = 8192).await;
        server.user("alice").await;
        let mut server = server;
        server.config.hashing.memory_kib = 19_456;
        let server = server.restart().await;
        let hashes = || server.running.app.hasher.stats().hashes.load(std::sync::atomic::Ordering::Relaxed);
        server.sign_in("alice").await;
        assert_eq!(hashes(), 2, "verified, and hashed anew");
        server.sign_in("alice").await;
        assert_eq!(hashes(), 3, "verified");
    }
}

fn request(username: &str) -> CreateSessionRequest {
    CreateSessionRequest {
        identifier: username.to_owned(),
        password: password(username),
        ..Default::default()
    }
}

async fn with_device(actor: &Actor, username: &str, device: Device) -> Result<SignedIn, Status> {
    let request = CreateSessionRequest {
        device: Some(device),
        ..request(username)
    };
    let response = actor.sessions().create_session(request).await?.into_inner();
    assert!(response.encoded_len() > 0);
    Ok(SignedIn::new(actor, response))
}

async fn list(actor: &Actor, parent: &str, show_ended: bool) -> Vec<pb::Session> {
    let request = pb::ListSessionsRequest {
        parent: parent.to_owned(),
        show_ended,
        ..Default::default()
    };
    actor
        .sessions()
        .list_sessions(request)
        .await
        .expect("a list")
        .into_inner()
        .sessions
}

/// A token whose form is right and whose content is not.
fn flip_last_but_checksum(token: &str) -> String {
    use accountd::domain::secret::{Kind, Secret};
    let mut body = Secret::parse(Kind::RefreshToken, token)
        .expect("ours")
        .body()
        .to_vec();
    *body.last_mut().expect("not empty") ^= 1;
    Secret::new(Kind::RefreshToken, &body).text()
}

impl std::fmt::Debug for SignedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.tokens.session)
    }
}

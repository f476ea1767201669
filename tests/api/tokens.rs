//! TokenService, and which tokens the door believes.

use accountd::{domain::error::Reason, grpc::pb};

use crate::{
    forgeries::{Forger, claims},
    harness::{
        Actor, Engine, Refusal as _, assert_refused, auditor_scopes, fields_of, on_both_engines,
    },
};

on_both_engines! {
    async fn a_system_account_gets_what_is_granted_below_its_ceilings(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&["roles/auditor", "scopes/accountd:keys.write"]).await;
        let anonymous = server.anonymous().await;
        let issue = async |scopes: &[&str]| {
            let request = pb::IssueTokenRequest {
                client_id: account.name.clone(),
                client_secret: secret.clone(),
                scopes: scopes.iter().map(ToString::to_string).collect(),
                ..Default::default()
            };
            anonymous.tokens().issue_token(request).await.map(tonic::Response::into_inner)
        };
        assert_eq!(issue(&[]).await.expect("a token").scopes.len(), auditor_scopes() + 1);
        let some = issue(&["keys.write", "users.update"]).await.expect("a token");
        assert_eq!((some.scopes, some.refused_scopes), (vec!["keys.write".to_owned()], vec!["users.update".to_owned()]));
        assert_eq!((&*some.refresh_token, &*some.session), ("", ""));

        let ceiling = pb::SystemAccount {
            name: account.name.clone(),
            scope_ceiling: vec!["users.read".to_owned(), "events.read".to_owned()],
            ..Default::default()
        };
        let request = pb::UpdateSystemAccountRequest { system_account: Some(ceiling), ..Default::default() };
        operator.system_accounts().update_system_account(request).await.expect("updated");
        assert_eq!(issue(&[]).await.expect("a token").scopes, ["events.read", "users.read"]);
        assert_eq!(issue(&["keys.write"]).await.expect("a token").refused_scopes, ["keys.write"]);
        assert_eq!(fields_of(issue(&["a b"]).await), ["scopes"]);
    }

    async fn a_system_account_asks_for_its_own_audiences_only(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&["roles/auditor"]).await;
        let anonymous = server.anonymous().await;
        let issue = async |audience: &str| {
            let request = pb::IssueTokenRequest {
                client_id: account.uid.clone(),
                client_secret: secret.clone(),
                audience: audience.to_owned(),
                ..Default::default()
            };
            anonymous.tokens().issue_token(request).await.map(tonic::Response::into_inner)
        };
        assert_eq!(fields_of(issue("billing").await), ["audience"]);
        let wider = pb::SystemAccount {
            name: account.name.clone(),
            audiences: vec!["billing".to_owned()],
            ..Default::default()
        };
        let request = pb::UpdateSystemAccountRequest { system_account: Some(wider), ..Default::default() };
        operator.system_accounts().update_system_account(request).await.expect("updated");
        let billing = issue("billing").await.expect("a token");
        assert_eq!(claims(&billing.access_token)["aud"], "billing");
        assert_eq!(billing.scopes.len(), 0, "scopes of accountd are for accountd");
        assert_eq!(fields_of(issue("").await), ["audience"], "accountd is not on the list any more");
    }

    async fn everything_wrong_with_a_client_has_one_answer(engine: Engine) {
        let server = engine.server().await;
        let (account, secret) = server.create_system_account(&[]).await;
        let (other, _) = server.create_system_account(&[]).await;
        let anonymous = server.anonymous().await;
        let nobody = "018f0000-0000-7000-8000-000000000000";
        let wrong = accountd::domain::secret::Secret::new(accountd::domain::secret::Kind::ClientSecret, &[1; 32]).text();
        let mut answers = Vec::new();
        for (id, secret) in [
            (&*account.uid, &*wrong),
            (&*other.uid, &*secret),
            (nobody, &*secret),
            ("", ""),
            ("robot", &*secret),
            (&*account.uid, ""),
            (&*account.uid, "adcs_"),
            (&*account.uid.to_uppercase(), &*secret),
        ] {
            let status = anonymous.issue(id, secret).await.expect_err(id);
            answers.push((status.code(), status.message().to_owned(), status.details().to_vec()));
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }

    async fn a_token_is_active_while_everything_behind_it_stands(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let resource_server = server.system_account(&["roles/resource-server"]).await;
        let alice = server.signed_in("alice").await;
        let introspect = async |token: &str| resource_server.introspect(token).await.expect("an answer");
        let seen = introspect(&alice.tokens.access_token).await;
        assert_eq!((seen.active, &*seen.token_type), (true, "access_token"));
        let seen = introspect(&alice.tokens.refresh_token).await;
        assert_eq!((seen.active, &*seen.token_type, &*seen.session), (true, "refresh_token", &*alice.tokens.session));

        let inactive = pb::IntrospectTokenResponse::default();
        for nothing in ["x", "a.b.c", "adrt_x_y", "adcs_x_y", "\u{0}"] {
            assert_eq!(introspect(nothing).await, inactive, "{nothing:?}");
        }
        let tokens = server.anonymous().await.refresh(&alice.tokens.refresh_token).await.expect("rotated");
        assert_eq!(introspect(&alice.tokens.refresh_token).await, inactive, "used");
        assert!(introspect(&tokens.refresh_token).await.active);
        operator.suspend_user(alice.name()).await.expect("suspended");
        assert_eq!(introspect(&tokens.access_token).await, inactive);
        assert_eq!(introspect(&tokens.refresh_token).await, inactive);
        let huge = resource_server.introspect(&"x".repeat(9000)).await;
        assert_eq!(fields_of(huge), ["token"]);
        assert_eq!(fields_of(resource_server.introspect("").await), ["token"]);
    }

    async fn a_token_that_was_believed_once_is_not_believed_for_that(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        alice.actor.get_user("users/me").await.expect("good");
        server.advance_s(3600);
        assert_refused(alice.actor.get_user("users/me").await, Reason::TokenExpired);

        let (alice, operator) = (server.sign_in("alice").await, server.operator().await);
        alice.actor.get_user("users/me").await.expect("good");
        let keys = operator.keys().list_signing_keys(pb::ListSigningKeysRequest::default()).await;
        let key = keys.expect("a list").into_inner().signing_keys.remove(0).name;
        let request = pb::RevokeSigningKeyRequest { name: key, reason: "lost".to_owned(), ..Default::default() };
        operator.keys().revoke_signing_key(request).await.expect("revoked");
        assert_refused(alice.actor.get_user("users/me").await, Reason::TokenRevoked);
    }

    async fn worthless_tokens_have_one_answer_however_many(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 3).await;
        let resource_server = server.system_account(&["roles/resource-server"]).await;
        let forged = accountd::domain::secret::Secret::new(accountd::domain::secret::Kind::RefreshToken, &[1; 68]).text();
        for _ in 0..10 {
            let seen = resource_server.introspect(&forged).await.expect("an answer");
            assert_eq!(seen, pb::IntrospectTokenResponse::default());
            let request = pb::RevokeTokenRequest { token: forged.clone(), ..Default::default() };
            resource_server.tokens().revoke_token(request).await.expect("worth nothing already");
        }
        assert_eq!(server.events("token.revoked").await.len(), 0);
        assert_eq!(server.events("session.refresh_refused").await.len(), 0, "asking is no attempt");
        // Nor has anybody to wait for it.
        server.user("alice").await;
        server.sign_in("alice").await;
    }

    async fn whoever_holds_a_token_may_revoke_it(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let bob = server.signed_in("bob").await;
        let other = server.sign_in("alice").await;
        let revoke = async |actor: &Actor, token: &str| {
            let request = pb::RevokeTokenRequest { token: token.to_owned(), ..Default::default() };
            actor.tokens().revoke_token(request).await
        };
        revoke(&bob.actor, &alice.tokens.access_token).await.expect("revoked");
        assert_refused(alice.actor.get_user("users/me").await, Reason::TokenRevoked);
        other.actor.get_user("users/me").await.expect("another token");
        let fresh = server.anonymous().await.refresh(&alice.tokens.refresh_token).await.expect("the session goes on");
        // With the refresh token goes everything of the session.
        revoke(&bob.actor, &fresh.refresh_token).await.expect("revoked");
        let fresh = server.with_token(&fresh.access_token).await;
        assert_refused(fresh.get_user("users/me").await, Reason::TokenRevoked);
        for worthless in ["x", "a.b.c", &*alice.tokens.access_token, &*alice.tokens.refresh_token] {
            revoke(&bob.actor, worthless).await.expect("worth nothing already");
        }
        assert_eq!(server.events("token.revoked").await.len(), 2);
        let nothing = revoke(&bob.actor, "").await;
        assert_eq!(fields_of(nothing), ["token"]);
    }

    async fn the_door_believes_only_tokens_of_ours(engine: Engine) {
        let server = engine.server().await;
        let good = server.operator().await.token().to_owned();
        let list = async |token: &str| {
            let actor = server.with_token(token).await;
            actor.users().list_users(pb::ListUsersRequest::default()).await.outcome()
        };
        assert_eq!(list(&good).await, "OK");
        let bad = "UNAUTHENTICATED TOKEN_INVALID";
        let forger = Forger::new(&server.url(""), &good).await;
        for (what, token) in forger.forgeries() {
            assert_eq!(list(&token).await, bad, "{what}");
        }
    }

    async fn no_single_changed_bit_goes_unnoticed(engine: Engine) {
        let server = engine.server().await;
        let good = server.operator().await.token().to_owned();
        let app = &server.running.app;
        let verify = |token: &str| app.keyring.load().verify(token, None, &app.issuer, server.now());
        assert!(verify(&good).is_ok());
        for place in 0..good.len() {
            for bit in 0..8 {
                let mut changed = good.clone().into_bytes();
                changed[place] ^= 1 << bit;
                if let Ok(changed) = String::from_utf8(changed) {
                    assert!(verify(&changed).is_err(), "bit {bit} of byte {place}");
                }
            }
        }
    }

    async fn a_bearer_header_has_one_form(engine: Engine) {
        let server = engine.server().await;
        let good = server.operator().await.token().to_owned();
        let client = reqwest::Client::new();
        let get = async |headers: &[&str]| {
            let mut request = client.get(server.url("/v1/users"));
            for header in headers {
                request = request.header("authorization", *header);
            }
            request.send().await.expect("an answer").status().as_u16()
        };
        assert_eq!(get(&[&format!("Bearer {good}")]).await, 200);
        assert_eq!(get(&[&format!("bearer {good}")]).await, 200);
        for bad in [format!("Basic {good}"), good.clone(), format!("Bearer{good}"), format!("Bearer {good} x"), "Bearer ".to_owned()] {
            assert_eq!(get(&[&bad]).await, 401, "{bad}");
        }
        let twice = format!("Bearer {good}");
        assert_eq!(get(&[&twice, &twice]).await, 401);
        assert_eq!(get(&[]).await, 401);
    }
}

//! What has to be shown to borrow power, to have it, and to agree that somebody else does.

use accountd::{domain::error::Reason, grpc::pb};
use jsonwebtoken::Algorithm;
use pb::{scope_refusal::Reason as Why, system_account::Kind};

use crate::{
    assertions::Program,
    elevations::{
        approve, ask, at, deny, entitle, entitlement, may_see_keys, refreshed, stage, wish,
    },
    explain, factors,
    harness::{Engine, assert_refused, grant_request, on_both_engines},
    roles,
    scopes::{self, refusals},
    system_accounts::limit,
};

fn strict(principal: &str) -> pb::Entitlement {
    pb::Entitlement {
        step_up_required: true,
        ..entitlement(principal, &[])
    }
}

on_both_engines! {
    async fn a_fresh_and_strong_proof_can_be_asked_for(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, _) = stage(&server).await;
        let strict = |name: &str| pb::Entitlement { step_up_required: true, ..entitlement(name, &[]) };
        let rule = entitle(&operator, strict(ann.name())).await.expect("entitled");
        // Who has no second factor, too: what is asked for is not what they have.
        assert_refused(ask(&ann.actor, wish(&rule)).await, Reason::InsufficientUserAuthentication);
        let (app, _) = factors::enrol(&server, &ann).await;
        let ann = factors::enter(&server, "ann", &app, 30).await;
        ask(&ann.actor, wish(&rule)).await.expect("two factors, just now");
        server.advance_s(3_600 + 1);
        let late = factors::enter(&server, "ann", &app, 0).await;
        server.advance_s(server.running.app.config.tokens.sensitive_max_age_s + 1);
        let anonymous = server.anonymous().await;
        let tokens = anonymous.refresh(&late.tokens.refresh_token).await.expect("refreshed");
        let late = server.with_token(&tokens.access_token).await;
        assert_refused(ask(&late, wish(&rule)).await, Reason::InsufficientUserAuthentication);
        let (robot, secret) = server.create_system_account(&[]).await;
        let operator = server.operator().await;
        let rule = entitle(&operator, strict(&robot.name)).await.expect("entitled");
        let robot = server.client(&robot.uid, &secret).await;
        assert_refused(ask(&robot, wish(&rule)).await, Reason::CredentialKindNotAllowed);
    }

    async fn what_needs_a_step_up_is_in_no_token_got_with_less(engine: Engine) {
        let server = engine.server().await;
        let (operator, mut weak, bob) = stage(&server).await;
        let (app, factor) = factors::enrol(&server, &weak).await;
        let mut strong = factors::enter(&server, "ann", &app, 30).await;
        scopes::create(&operator, scopes::scope("scopes/shop:pack")).await.expect("made");
        roles::create(&operator, roles::role("roles/packer", &["scopes/shop:pack"])).await.expect("made");
        operator.grants().create_grant(grant_request(weak.name(), "scopes/accountd:grants.write")).await.expect("granted");
        let rule = entitle(&operator, strict(weak.name())).await.expect("entitled");
        ask(&strong.actor, wish(&rule)).await.expect("in effect");
        let packing = pb::Entitlement { role: "roles/packer".to_owned(), ..strict(weak.name()) };
        ask(&strong.actor, wish(&entitle(&operator, packing).await.expect("entitled"))).await.expect("in effect");

        server.advance_s(1);
        refreshed(&server, &mut weak).await;
        refreshed(&server, &mut strong).await;
        assert!(may_see_keys(&strong.actor).await && !may_see_keys(&weak.actor).await);
        assert_eq!(refusals(&weak.tokens), [("keys.read", Why::NeedsSecondFactor)]);
        for (session, why) in [(&weak, Why::NeedsSecondFactor), (&strong, Why::Unspecified)] {
            let told = explain::check(&operator, weak.name(), "", &["keys.read"], &session.tokens.session).await;
            assert_eq!(told.expect("checked"), [("keys.read".to_owned(), why)]);
        }
        let pack = || {
            let mut request = grant_request(bob.name(), "scopes/shop:pack");
            request.grant.as_mut().expect("set").expire_time = Some(at(&server, 60));
            request
        };
        strong.actor.grants().create_grant(pack()).await.expect("granted");
        // It was shown once, which is enough for as long as the session counts as strong.
        server.advance_s(server.running.app.config.tokens.sensitive_max_age_s + 1);
        refreshed(&server, &mut strong).await;
        assert!(may_see_keys(&strong.actor).await);
        // Nor is it handed on with less, by whoever has no second factor any more.
        let delete = pb::DeleteCredentialRequest { name: factor, ..Default::default() };
        let strong = factors::enter(&server, "ann", &app, 30).await;
        strong.actor.credentials().delete_credential(delete).await.expect("deleted");
        let weak = server.sign_in("ann").await;
        assert!(!may_see_keys(&weak.actor).await);
        assert_refused(weak.actor.grants().create_grant(pack()).await, Reason::ScopeNotHeld);
        // What is held without it does not need it.
        let operator = server.operator().await;
        for scope in ["scopes/accountd:keys.read", "scopes/shop:pack"] {
            operator.grants().create_grant(grant_request(weak.name(), scope)).await.expect("granted");
        }
        let weak = server.sign_in("ann").await;
        assert!(may_see_keys(&weak.actor).await);
        weak.actor.grants().create_grant(pack()).await.expect("granted");
    }

    async fn a_program_is_elevated_by_its_own_key_alone(engine: Engine) {
        let server = engine.server().await;
        let (operator, _, _) = stage(&server).await;
        let program = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let secret = operator.create_secret(&program.account.name).await.expect("a secret").secret;
        let rule = entitle(&operator, strict(&program.account.name)).await.expect("entitled");
        let elevation = ask(&program.actor(&server).await, wish(&rule)).await.expect("in effect");
        let grant = pb::GetGrantRequest { name: elevation.grant };
        assert!(operator.grants().get_grant(grant).await.expect("there").into_inner().step_up_required);
        assert!(may_see_keys(&program.actor(&server).await).await);
        assert!(!may_see_keys(&server.client(&program.id(), &secret).await).await);
    }

    async fn a_program_agrees_by_its_own_key_and_to_what_it_could_have(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, _) = stage(&server).await;
        let program = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let name = &program.account.name;
        let secret = operator.create_secret(name).await.expect("a secret").secret;
        let rule = entitle(&operator, entitlement(ann.name(), &[name])).await.expect("entitled");
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        let by_secret = server.client(&program.id(), &secret).await;
        assert_refused(approve(&by_secret, &asked).await, Reason::CredentialKindNotAllowed);
        limit(&operator, name, &["users.read"], &[]).await.expect("limited");
        assert_refused(approve(&program.actor(&server).await, &asked).await, Reason::NotApprover);
        limit(&operator, name, &["users.read", "keys.read"], &[]).await.expect("limited");
        approve(&program.actor(&server).await, &asked).await.expect("approved");
        // To refuse takes less.
        let other = entitle(&operator, entitlement(ann.name(), &[name])).await.expect("entitled");
        let asked = ask(&ann.actor, wish(&other)).await.expect("asked");
        deny(&by_secret, &asked).await.expect("denied");
    }
}

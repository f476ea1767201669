//! What has to be shown to borrow power, to have it, and to agree that somebody else does.

use accountd::{domain::error::Reason, grpc::pb};
use jsonwebtoken::Algorithm;
use pb::{scope_refusal::Reason as Why, system_account::Kind};

use crate::{
    assertions::{self, Program},
    elevations::{
        KEYS, approve, ask, at, deny, end, entitle, entitlement, may_see_keys, refreshed, stage,
        wish,
    },
    explain, factors,
    harness::{Actor, Engine, assert_refused, grant_request, on_both_engines},
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
        let (operator, mut weak, _) = stage(&server).await;
        let (app, _) = factors::enrol(&server, &weak).await;
        let mut strong = factors::enter(&server, "ann", &app, 30).await;
        let rule = entitle(&operator, strict(weak.name())).await.expect("entitled");
        ask(&strong.actor, wish(&rule)).await.expect("in effect");

        server.advance_s(1);
        refreshed(&server, &mut weak).await;
        refreshed(&server, &mut strong).await;
        assert!(may_see_keys(&strong.actor).await && !may_see_keys(&weak.actor).await);
        assert_eq!(refusals(&weak.tokens), [("keys.read", Why::NeedsSecondFactor)]);
        for (session, why) in [(&weak, Why::NeedsSecondFactor), (&strong, Why::Unspecified)] {
            let told = explain::check(&operator, weak.name(), "", &["keys.read"], &session.tokens.session).await;
            assert_eq!(told.expect("checked"), [("keys.read".to_owned(), why)]);
        }
        let explained = pb::ExplainAccessRequest {
            principal: weak.name().to_owned(),
            scope: KEYS.to_owned(),
            ..Default::default()
        };
        let explained = operator.grants().explain_access(explained).await.expect("explained").into_inner();
        assert!(explained.paths[0].step_up_required);
        // It was shown once, which is enough for as long as the session counts as strong.
        server.advance_s(server.running.app.config.tokens.sensitive_max_age_s + 1);
        refreshed(&server, &mut strong).await;
        assert!(may_see_keys(&strong.actor).await);
        // What is held without it does not need it, nor ends with it.
        let operator = server.operator().await;
        operator.grants().create_grant(grant_request(weak.name(), KEYS)).await.expect("granted");
        refreshed(&server, &mut weak).await;
        assert!(may_see_keys(&weak.actor).await);
    }

    async fn what_needs_a_step_up_is_not_handed_on(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        scopes::create(&operator, scopes::scope("scopes/shop:pack")).await.expect("made");
        roles::create(&operator, roles::role("roles/packer", &["scopes/shop:pack"])).await.expect("made");
        for scope in ["grants.write", "elevations.write"] {
            server.grant(ann.name(), &format!("scopes/accountd:{scope}")).await;
        }
        let of_bob = server.grant(bob.name(), "scopes/shop:pack").await;
        let (app, factor) = factors::enrol(&server, &ann).await;
        let packing = |step_up_required| pb::Entitlement {
            role: "roles/packer".to_owned(),
            step_up_required,
            ..entitlement(ann.name(), &[])
        };
        let borrow = async |by: &Actor, step_up_required| {
            let rule = entitle(&operator, packing(step_up_required)).await.expect("entitled");
            ask(by, wish(&rule)).await.expect("in effect")
        };
        let give = async |by: &Actor, to: &str| {
            let mut request = grant_request(to, "roles/packer");
            request.grant.as_mut().expect("set").expire_time = Some(at(&server, 60));
            by.grants().create_grant(request).await
        };
        let ann = factors::enter(&server, "ann", &app, 30).await;
        borrow(&ann.actor, true).await;
        for to in [ann.name(), bob.name()] {
            assert_refused(give(&ann.actor, to).await, Reason::ScopeNotHeld);
        }
        let own = pb::Entitlement { expire_time: Some(at(&server, 60)), ..packing(false) };
        assert_refused(entitle(&ann.actor, own).await, Reason::ScopeNotHeld);
        let plain = borrow(&ann.actor, false).await;
        give(&ann.actor, bob.name()).await.expect("what needs none is");
        end(&ann.actor, &plain).await.expect("given back");
        // To take back it counts, for whoever has stepped up.
        let ann = factors::enter(&server, "ann", &app, 30).await;
        let take = async |by: &Actor, grant: &pb::Grant| {
            let request = pb::DeleteGrantRequest { name: grant.name.clone(), ..Default::default() };
            by.grants().delete_grant(request).await
        };
        take(&ann.actor, &of_bob).await.expect("taken back");
        let of_bob = server.grant(bob.name(), "scopes/shop:pack").await;
        let delete = pb::DeleteCredentialRequest { name: factor, ..Default::default() };
        ann.actor.credentials().delete_credential(delete).await.expect("deleted");
        let ann = server.sign_in("ann").await;
        assert_refused(take(&ann.actor, &of_bob).await, Reason::ScopeNotHeld);
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
        // Nor does a secret make itself a key, whatever it may do.
        server.grant(name, KEYS).await;
        let by_secret = server.client(&program.id(), &secret).await;
        let jwk = Program::new(&server, Algorithm::ES256, Kind::Service).await.public();
        let made = assertions::add_key(&by_secret, name, &jwk).await;
        assert_refused(made, Reason::CredentialKindNotAllowed);
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

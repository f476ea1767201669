//! ElevationService: power that is borrowed, with a reason, and never from oneself.

use accountd::{domain::error::Reason, grpc::pb, jobs};
use jsonwebtoken::Algorithm;
use pb::{elevation::State, system_account::Kind};
use prost_types::{Duration, FieldMask, Timestamp};
use tonic::Status;

use crate::{
    assertions::Program,
    credentials::{redeem, reset_code},
    groups,
    harness::{
        Actor, Engine, Server, SignedIn, assert_refused, fields_of, grant_request, on_both_engines,
    },
    roles,
    scopes::{self, sign_in},
};

pub const KEYS: &str = "scopes/accountd:keys.read";
const KEEPER: &str = "roles/key-keeper";

/// Who may ask for the role of those who look after keys, for an hour at most, and who has to agree.
pub fn entitlement(principal: &str, approvers: &[&str]) -> pb::Entitlement {
    pb::Entitlement {
        principal: principal.to_owned(),
        role: KEEPER.to_owned(),
        max_duration: Some(Duration {
            seconds: 3_600,
            nanos: 0,
        }),
        approvers: approvers.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

pub async fn entitle(by: &Actor, entitlement: pb::Entitlement) -> Result<pb::Entitlement, Status> {
    let request = pb::CreateEntitlementRequest {
        entitlement: Some(entitlement),
        ..Default::default()
    };
    Ok(by
        .elevations()
        .create_entitlement(request)
        .await?
        .into_inner())
}

pub async fn update(
    by: &Actor,
    entitlement: pb::Entitlement,
    paths: &[&str],
) -> Result<pb::Entitlement, Status> {
    let request = pb::UpdateEntitlementRequest {
        entitlement: Some(entitlement),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    };
    Ok(by
        .elevations()
        .update_entitlement(request)
        .await?
        .into_inner())
}

pub async fn delete(by: &Actor, name: &str) -> Result<(), Status> {
    let request = pb::DeleteEntitlementRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    by.elevations()
        .delete_entitlement(request)
        .await
        .map(|_| ())
}

pub fn wish(entitlement: &pb::Entitlement) -> pb::RequestElevationRequest {
    pb::RequestElevationRequest {
        entitlement: entitlement.name.clone(),
        justification: "the keys have to be looked at".to_owned(),
        ..Default::default()
    }
}

pub async fn ask(by: &Actor, wish: pb::RequestElevationRequest) -> Result<pb::Elevation, Status> {
    Ok(by.elevations().request_elevation(wish).await?.into_inner())
}

pub async fn approve(by: &Actor, elevation: &pb::Elevation) -> Result<pb::Elevation, Status> {
    let request = pb::ApproveElevationRequest {
        name: elevation.name.clone(),
        reason: "go ahead".to_owned(),
        ..Default::default()
    };
    Ok(by
        .elevations()
        .approve_elevation(request)
        .await?
        .into_inner())
}

pub async fn deny(by: &Actor, elevation: &pb::Elevation) -> Result<pb::Elevation, Status> {
    let request = pb::DenyElevationRequest {
        name: elevation.name.clone(),
        reason: "not now".to_owned(),
        ..Default::default()
    };
    Ok(by.elevations().deny_elevation(request).await?.into_inner())
}

pub async fn end(by: &Actor, elevation: &pb::Elevation) -> Result<pb::Elevation, Status> {
    let request = pb::EndElevationRequest {
        name: elevation.name.clone(),
        ..Default::default()
    };
    Ok(by.elevations().end_elevation(request).await?.into_inner())
}

async fn get(by: &Actor, name: &str) -> Result<pb::Elevation, Status> {
    let request = pb::GetElevationRequest {
        name: name.to_owned(),
    };
    Ok(by.elevations().get_elevation(request).await?.into_inner())
}

/// The elevations that a list has, in pages of one.
async fn list(by: &Actor, filter: &str) -> Vec<String> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListElevationsRequest {
            page_size: 1,
            page_token,
            filter: filter.to_owned(),
        };
        let page = by.elevations().list_elevations(request).await;
        let page = page.expect(filter).into_inner();
        all.extend(page.elevations.into_iter().map(|it| it.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// The entitlements that a list has, in pages of one.
async fn list_entitlements(by: &Actor, filter: &str) -> Vec<String> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListEntitlementsRequest {
            page_size: 1,
            page_token,
            filter: filter.to_owned(),
        };
        let page = by.elevations().list_entitlements(request).await;
        let page = page.expect(filter).into_inner();
        all.extend(page.entitlements.into_iter().map(|it| it.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// An operator, Ann who may ask, and Bob who may agree.
pub async fn stage(server: &Server) -> (Actor, SignedIn, SignedIn) {
    let operator = server.operator().await;
    let made = roles::create(&operator, roles::role(KEEPER, &[KEYS])).await;
    made.expect("a role");
    (
        operator,
        server.signed_in("ann").await,
        server.signed_in("bob").await,
    )
}

pub async fn may_see_keys(person: &Actor) -> bool {
    let request = pb::ListSigningKeysRequest::default();
    person.keys().list_signing_keys(request).await.is_ok()
}

/// A person's next access token.
pub async fn refreshed(server: &Server, person: &mut SignedIn) {
    let anonymous = server.anonymous().await;
    person.tokens = anonymous
        .refresh(&person.tokens.refresh_token)
        .await
        .expect("refreshed");
    person.actor = server.with_token(&person.tokens.access_token).await;
}

pub fn at(server: &Server, seconds: i64) -> Timestamp {
    Timestamp {
        seconds: server.now().seconds() + seconds,
        nanos: 0,
    }
}

on_both_engines! {
    async fn power_is_borrowed_for_as_long_as_was_asked(engine: Engine) {
        let server = engine.server().await;
        let (operator, mut ann, bob) = stage(&server).await;
        let rule = entitle(&operator, entitlement(ann.name(), &[bob.name()])).await.expect("entitled");
        assert_eq!(rule.created_by, server.operator_name());
        let asked = ask(&ann.actor, pb::RequestElevationRequest {
            duration: Some(Duration { seconds: 600, nanos: 0 }),
            ticket: "OPS-7".to_owned(),
            ..wish(&rule)
        }).await.expect("asked");
        assert_eq!((asked.state(), &*asked.role, &*asked.requester, &*asked.ticket), (State::Pending, KEEPER, ann.name(), "OPS-7"));
        refreshed(&server, &mut ann).await;
        assert!(!may_see_keys(&ann.actor).await && asked.grant.is_empty());
        let begun = approve(&bob.actor, &asked).await.expect("approved");
        assert_eq!((begun.state(), &*begun.decided_by, &*begun.decide_reason), (State::Active, bob.name(), "go ahead"));
        assert_eq!(begun.expire_time, Some(at(&server, 600)));
        refreshed(&server, &mut ann).await;
        assert!(may_see_keys(&ann.actor).await);
        assert_eq!(ann.tokens.access_expire_time, Some(at(&server, 300)));
        let request = pb::GetGrantRequest { name: begun.grant.clone() };
        let grant = operator.grants().get_grant(request).await.expect("a grant").into_inner();
        assert_eq!((&*grant.principal, &grant.elevation, &*grant.granted_by), (ann.name(), &begun.name, bob.name()));
        server.advance_s(400);
        refreshed(&server, &mut ann).await;
        assert_eq!(ann.tokens.access_expire_time, Some(at(&server, 200)), "no token outlives it");
        server.advance_s(200);
        let ended = get(&server.operator().await, &begun.name).await.expect("read");
        assert_eq!((ended.state(), ended.end_time), (State::Ended, begun.expire_time));
        refreshed(&server, &mut ann).await;
        assert!(!may_see_keys(&ann.actor).await);
        jobs::sweep(&server.running.app).await.expect("swept");
        jobs::sweep(&server.running.app).await.expect("swept again");
        for (kind, count) in [("elevation.requested", 1), ("elevation.approved", 1), ("elevation.ended", 1)] {
            let events = server.events(kind).await;
            assert_eq!(events.len(), count, "{kind}");
            assert_eq!((&*events[0].account, &*events[0].details["ticket"]), (ann.name(), "OPS-7"), "{kind}");
        }
        let again = ask(&ann.actor, wish(&rule)).await.expect("asked again");
        assert_eq!(again.duration, rule.max_duration);
    }

    async fn what_is_given_back_is_gone_from_tokens_at_once(engine: Engine) {
        let server = engine.server().await;
        let (operator, mut ann, bob) = stage(&server).await;
        let (robot, secret) = server.create_system_account(&[]).await;
        for (name, by_end) in [(ann.name().to_owned(), 0), (robot.name.clone(), 1)] {
            let rule = entitle(&operator, entitlement(&name, &[bob.name()])).await.expect("entitled");
            let requester = if by_end == 0 { ann.actor.clone() } else { server.client(&robot.uid, &secret).await };
            let asked = ask(&requester, wish(&rule)).await.expect("asked");
            let begun = approve(&bob.actor, &asked).await.expect("approved");
            server.advance_s(1);
            let elevated = if by_end == 0 {
                refreshed(&server, &mut ann).await;
                ann.actor.clone()
            } else {
                server.client(&robot.uid, &secret).await
            };
            assert!(may_see_keys(&elevated).await);
            let downstream = sign_in(&server, "ann", "shop", &[]).await.expect("signed in").access_token;
            // Somebody else who could have given it ends the second.
            let by = if by_end == 0 { &elevated } else { &operator };
            let ended = end(by, &begun).await.expect("ended");
            assert_eq!((ended.state(), ended.end_time), (State::Ended, Some(at(&server, 0))));
            let request = pb::ListSigningKeysRequest::default();
            assert_refused(elevated.keys().list_signing_keys(request).await, Reason::TokenRevoked);
            let introspected = operator.introspect(&downstream).await.expect("introspected");
            assert_eq!(introspected.active, by_end == 1, "those of the requester, for whoever asks");
            assert_refused(end(&operator, &begun).await, Reason::WrongState);
            // Those who go on get tokens that are good at once.
            let after = if by_end == 0 {
                refreshed(&server, &mut ann).await;
                ann.actor.clone()
            } else {
                server.client(&robot.uid, &secret).await
            };
            assert!(!may_see_keys(&after).await);
            list(&after, "").await;
            let explained = pb::ExplainAccessRequest { principal: name, scope: KEYS.to_owned(), ..Default::default() };
            let explained = operator.grants().explain_access(explained).await.expect("explained").into_inner();
            assert_eq!(explained.paths[0].state(), pb::access_path::State::GrantEnded);
        }
    }

    async fn nobody_agrees_with_themselves(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let approvers = groups::create(&operator, "Approvers").await;
        let (own, own_secret) = owned_by(&server, ann.name()).await;
        let other = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        transfer(&server, &other.account.name, bob.name()).await;
        for member in [ann.name(), &own, &other.account.name] {
            groups::add(&operator, &approvers, member).await.expect("added");
        }
        let rule = entitle(&operator, entitlement(ann.name(), &[&approvers, ann.name()])).await.expect("entitled");
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        let own_actor = server.client(own.trim_start_matches("systemAccounts/"), &own_secret).await;
        for by in [&ann.actor, &own_actor] {
            assert_refused(approve(by, &asked).await, Reason::NotApprover);
            assert_refused(deny(by, &asked).await, Reason::NotApprover);
        }
        assert_refused(approve(&operator, &asked).await, Reason::NotApprover);
        assert_refused(approve(&bob.actor, &asked).await, Reason::NotFound);
        let other = other.actor(&server).await;
        approve(&other, &asked).await.expect("somebody else's program");

        // Nor does whoever answers for a program agree to what it asks for.
        let rule = entitle(&operator, entitlement(&own, &[ann.name(), bob.name()])).await.expect("entitled");
        let asked = ask(&own_actor, wish(&rule)).await.expect("asked");
        assert_refused(approve(&ann.actor, &asked).await, Reason::NotApprover);
        approve(&bob.actor, &asked).await.expect("somebody else");
    }

    async fn nobody_gets_an_accomplice_among_those_who_agree(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let approvers = groups::create(&operator, "Approvers").await;
        let inner = groups::create(&operator, "Deputies").await;
        groups::add(&operator, &approvers, &inner).await.expect("added");
        let rule = entitle(&operator, entitlement(ann.name(), &[&approvers])).await.expect("entitled");
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        let scopes = ["groups.write", "elevations.write", "credentials.reset", "users.update"].map(|it| format!("scopes/accountd:{it}"));
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        let weak = server.system_account(&scopes).await;
        let accomplice = server.user("carol").await.name;
        for group in [&approvers, &inner] {
            assert_refused(groups::add(&weak, group, &accomplice).await, Reason::ScopeNotHeld);
        }
        let more = pb::Entitlement { approvers: vec![accomplice.clone()], ..rule.clone() };
        assert_refused(update(&weak, more, &["approvers"]).await, Reason::ScopeNotHeld);
        assert_refused(update(&weak, pb::Entitlement { approvers: vec![], ..rule.clone() }, &["approvers"]).await, Reason::ScopeNotHeld);
        assert_refused(entitle(&weak, entitlement(&accomplice, &[])).await, Reason::ScopeNotHeld);
        assert_refused(delete(&weak, &rule.name).await, Reason::ScopeNotHeld);
        // Nor gets into the account of somebody who may agree, or ask.
        groups::add(&operator, &inner, bob.name()).await.expect("added");
        for person in [ann.name(), bob.name()] {
            assert_refused(reset_code(&weak, person).await, Reason::TargetOutranksCaller);
        }
        assert_refused(end(&weak, &asked).await, Reason::ScopeNotHeld);
        approve(&bob.actor, &asked).await.expect("by the inner group");
        assert_refused(groups::delete(&operator, &approvers).await, Reason::InUse);
        assert_refused(roles::delete(&operator, KEEPER).await, Reason::InUse);
    }

    async fn nobody_gets_downstream_power_by_the_account_of_one_who_may_agree(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let pay = pb::Scope { grantable_by: vec!["roles/operator".to_owned()], ..scopes::scope("scopes/bank:pay") };
        scopes::create(&operator, pay).await.expect("made");
        let made = roles::create(&operator, roles::role("roles/payer", &["scopes/bank:pay"])).await;
        made.expect("made");
        let weak = server.system_account(&["scopes/accountd:credentials.reset"]).await;
        for person in [ann.name(), bob.name()] {
            reset_code(&weak, person).await.expect("somebody without power");
        }
        let payer = pb::Entitlement { role: "roles/payer".to_owned(), ..entitlement(ann.name(), &[bob.name()]) };
        entitle(&operator, payer).await.expect("entitled");
        for person in [ann.name(), bob.name()] {
            assert_refused(reset_code(&weak, person).await, Reason::TargetOutranksCaller);
            reset_code(&operator, person).await.expect("may grant it");
        }
    }

    async fn codes_made_before_somebody_could_ask_or_agree_are_void(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let frontend = server.frontend().await;
        let carol = server.user("carol").await.name;
        let codes = [
            reset_code(&frontend, ann.name()).await.expect("a code"),
            reset_code(&frontend, bob.name()).await.expect("a code"),
        ];
        let rule = entitle(&operator, entitlement(ann.name(), &[bob.name()])).await.expect("entitled");
        let of_carol = reset_code(&frontend, &carol).await.expect("a code");
        let more = pb::Entitlement { approvers: vec![bob.name().to_owned(), carol.clone()], ..rule.clone() };
        update(&operator, more, &["approvers"]).await.expect("updated");
        for code in codes.iter().chain([&of_carol]) {
            assert_refused(redeem(&frontend, code, "four calm walruses").await, Reason::InvalidCode);
        }
        for person in [ann.name(), bob.name(), &carol] {
            assert_refused(reset_code(&frontend, person).await, Reason::TargetOutranksCaller);
        }
        // A role that comes to more voids them, too.
        let dave = server.user("dave").await.name;
        roles::create(&operator, roles::role("roles/helper", &[])).await.expect("made");
        let helper = pb::Entitlement { role: "roles/helper".to_owned(), ..entitlement(&dave, &[]) };
        entitle(&operator, helper).await.expect("entitled");
        let code = reset_code(&frontend, &dave).await.expect("to nothing");
        roles::update(&operator, roles::role("roles/helper", &[KEYS]), &["scopes"]).await.expect("changed");
        assert_refused(redeem(&frontend, &code, "four calm walruses").await, Reason::InvalidCode);
    }

    async fn an_answer_comes_in_time_once_and_to_somebody_who_may_still_ask(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let crew = groups::create(&operator, "Crew").await;
        groups::add(&operator, &crew, ann.name()).await.expect("added");
        let rule = pb::Entitlement { expire_time: Some(at(&server, 200_000)), ..entitlement(&crew, &[bob.name()]) };
        let rule = entitle(&operator, rule).await.expect("entitled");
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        assert_refused(ask(&ann.actor, wish(&rule)).await, Reason::WrongState);
        approve(&bob.actor, &asked).await.expect("approved");
        assert_refused(approve(&bob.actor, &asked).await, Reason::WrongState);
        assert_refused(deny(&bob.actor, &asked).await, Reason::WrongState);
        assert_refused(ask(&ann.actor, wish(&rule)).await, Reason::WrongState);
        end(&operator, &asked).await.expect("ended");

        let mut ann = server.sign_in("ann").await;
        let denied = ask(&ann.actor, wish(&rule)).await.expect("asked");
        let said = deny(&bob.actor, &denied).await.expect("denied");
        assert_eq!((said.state(), &*said.decided_by, said.end_time), (State::Denied, bob.name(), Some(at(&server, 0))));
        assert_refused(approve(&bob.actor, &denied).await, Reason::WrongState);

        // Taken back, of somebody suspended, who has left, of a rule that is narrower.
        let taken = ask(&ann.actor, wish(&rule)).await.expect("asked");
        end(&ann.actor, &taken).await.expect("taken back");
        assert_refused(approve(&bob.actor, &taken).await, Reason::WrongState);
        ann = server.sign_in("ann").await;
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        operator.suspend_user(ann.name()).await.expect("suspended");
        assert_refused(approve(&bob.actor, &asked).await, Reason::WrongState);
        let request = pb::ResumeUserRequest { name: ann.name().to_owned(), ..Default::default() };
        operator.users().resume_user(request).await.expect("resumed");
        groups::remove(&operator, &crew, ann.name()).await.expect("removed");
        assert_refused(approve(&bob.actor, &asked).await, Reason::WrongState);
        groups::add(&operator, &crew, ann.name()).await.expect("added");
        let narrow = pb::Entitlement { max_duration: Some(Duration { seconds: 60, nanos: 0 }), etag: String::new(), ..rule.clone() };
        let rule = update(&operator, narrow, &["max_duration"]).await.expect("narrower");
        assert_refused(approve(&bob.actor, &asked).await, Reason::WrongState);
        end(&operator, &asked).await.expect("taken back");

        // Too late.
        let ann = server.sign_in("ann").await;
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        server.advance_s(server.running.app.config.elevation.request_s);
        let bob = server.sign_in("bob").await;
        assert_refused(approve(&bob.actor, &asked).await, Reason::WrongState);
        let operator = server.operator().await;
        assert_eq!(get(&operator, &asked.name).await.expect("read").state(), State::Lapsed);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_eq!(server.events("elevation.lapsed").await.len(), 1);
        let ann = server.sign_in("ann").await;
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        server.advance_s(200_000 - server.running.app.config.elevation.request_s - 10);
        assert_refused(approve(&server.sign_in("bob").await.actor, &asked).await, Reason::WrongState);
        let ann = server.sign_in("ann").await;
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        let begun = approve(&server.sign_in("bob").await.actor, &asked).await.expect("approved");
        assert_eq!(begun.expire_time, Some(at(&server, 10)), "no longer than the entitlement");
        server.advance_s(10);
        let ann = server.sign_in("ann").await;
        assert_refused(ask(&ann.actor, wish(&rule)).await, Reason::WrongState);
    }

    async fn nobody_agrees_to_what_a_suspended_program_has_asked_for(engine: Engine) {
        let server = engine.server().await;
        let (operator, _, bob) = stage(&server).await;
        let (robot, secret) = server.create_system_account(&[]).await;
        let rule = entitle(&operator, entitlement(&robot.name, &[bob.name()])).await.expect("entitled");
        let asked = ask(&server.client(&robot.uid, &secret).await, wish(&rule)).await.expect("asked");
        let suspend = pb::SuspendSystemAccountRequest { name: robot.name.clone(), reason: "seen elsewhere".to_owned(), ..Default::default() };
        operator.system_accounts().suspend_system_account(suspend).await.expect("suspended");
        assert_refused(approve(&bob.actor, &asked).await, Reason::WrongState);
        let resume = pb::ResumeSystemAccountRequest { name: robot.name, ..Default::default() };
        operator.system_accounts().resume_system_account(resume).await.expect("resumed");
        approve(&bob.actor, &asked).await.expect("approved");
    }

    async fn an_expired_or_removed_entitlement_gives_nothing(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let ending = pb::Entitlement { expire_time: Some(at(&server, 100)), ..entitlement(ann.name(), &[bob.name()]) };
        let ending = entitle(&operator, ending).await.expect("entitled");
        let gone = entitle(&operator, entitlement(ann.name(), &[bob.name()])).await.expect("entitled");
        let first = ask(&ann.actor, wish(&ending)).await.expect("asked");
        let second = ask(&ann.actor, wish(&gone)).await.expect("asked");
        server.advance_s(100);
        assert_refused(approve(&bob.actor, &first).await, Reason::WrongState);
        delete(&operator, &gone.name).await.expect("removed");
        assert_refused(approve(&bob.actor, &second).await, Reason::NotFound);
        assert_eq!(get(&ann.actor, &second.name).await.expect("read").state(), State::Pending);
        // One that begins anew counts as new.
        let frontend = server.frontend().await;
        let code = reset_code(&frontend, bob.name()).await.expect("may not agree to anything now");
        let again = pb::Entitlement { expire_time: Some(at(&server, 100)), ..ending };
        update(&operator, again, &["expire_time"]).await.expect("again");
        assert_refused(redeem(&frontend, &code, "four calm walruses").await, Reason::InvalidCode);
    }

    async fn two_who_agree_at_once_grant_it_once(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let carol = server.signed_in("carol").await;
        let rule = entitle(&operator, entitlement(ann.name(), &[bob.name(), carol.name()])).await.expect("entitled");
        let name = ann.name().to_owned();
        for _ in 0..5 {
            let ann = server.sign_in("ann").await;
            let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
            let (one, other) = tokio::join!(approve(&bob.actor, &asked), approve(&carol.actor, &asked));
            assert_eq!(u8::from(one.is_ok()) + u8::from(other.is_ok()), 1, "{one:?} {other:?}");
            let filter = format!("principal = \"{name}\" AND role = \"{KEEPER}\"");
            let request = pb::ListGrantsRequest { filter, ..Default::default() };
            let grants = operator.grants().list_grants(request).await.expect("a list").into_inner().grants;
            assert_eq!(grants.iter().filter(|grant| grant.expire_time != Some(at(&server, 0))).count(), 1);
            end(&bob.actor, &asked).await.expect("ended");
        }
    }

    async fn terms_are_kept(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let strict = pb::Entitlement { ticket_required: true, ..entitlement(ann.name(), &[bob.name()]) };
        let strict = entitle(&operator, strict).await.expect("entitled");
        let long = Some(Duration { seconds: 3_601, nanos: 0 });
        let refused = ask(&ann.actor, pb::RequestElevationRequest { duration: long, ..wish(&strict) }).await;
        assert_eq!(fields_of(refused), ["duration", "ticket"]);
        let wrong = pb::RequestElevationRequest {
            entitlement: "x".to_owned(),
            duration: Some(Duration { seconds: 59, nanos: 0 }),
            justification: " ".to_owned(),
            ticket: "x".repeat(201),
            ..Default::default()
        };
        assert_eq!(fields_of(ask(&ann.actor, wrong).await), ["entitlement", "duration", "justification", "ticket"]);
        assert_refused(ask(&bob.actor, wish(&strict)).await, Reason::NotFound);
        let bad = pb::Entitlement {
            principal: "ann".to_owned(),
            role: "keeper".to_owned(),
            max_duration: None,
            approvers: vec!["bob".to_owned()],
            expire_time: Some(at(&server, 0)),
            ..Default::default()
        };
        let fields = ["principal", "role", "max_duration", "approvers", "expire_time"].map(|it| format!("entitlement.{it}"));
        assert_eq!(fields_of(entitle(&operator, bad).await), fields);
        for seconds in [59, 7 * 86_400 + 1] {
            let bad = pb::Entitlement { max_duration: Some(Duration { seconds, nanos: 0 }), ..entitlement(ann.name(), &[]) };
            assert_eq!(fields_of(entitle(&operator, bad).await), ["entitlement.max_duration"]);
        }
        let nobody = "users/018f0000-0000-7000-8000-000000000000";
        assert_refused(entitle(&operator, entitlement(nobody, &[])).await, Reason::NotFound);
        assert_refused(entitle(&operator, entitlement(ann.name(), &[nobody])).await, Reason::NotFound);
        let unknown = pb::Entitlement { role: "roles/emperor".to_owned(), ..entitlement(ann.name(), &[]) };
        assert_refused(entitle(&operator, unknown).await, Reason::NotFound);
    }

    async fn where_nobody_has_to_agree_it_is_in_effect_at_once(engine: Engine) {
        let server = engine.server().await;
        let (operator, mut ann, _) = stage(&server).await;
        let rule = entitle(&operator, entitlement(ann.name(), &[])).await.expect("entitled");
        let begun = ask(&ann.actor, wish(&rule)).await.expect("asked");
        assert_eq!((begun.state(), begun.expire_time), (State::Active, Some(at(&server, 3_600))));
        refreshed(&server, &mut ann).await;
        assert!(may_see_keys(&ann.actor).await);
        assert_eq!(server.events("elevation.started").await.len(), 1);
        assert_eq!(server.events("elevation.requested").await.len(), 1);
        // What came about by an elevation is ended as one, and lasts no longer.
        let request = pb::GetGrantRequest { name: begun.grant };
        let grant = operator.grants().get_grant(request).await.expect("a grant").into_inner();
        let longer = pb::UpdateGrantRequest { grant: Some(pb::Grant { expire_time: Some(at(&server, 9_000)), ..grant.clone() }), ..Default::default() };
        assert_refused(operator.grants().update_grant(longer).await, Reason::WrongState);
        let request = pb::DeleteGrantRequest { name: grant.name, ..Default::default() };
        assert_refused(operator.grants().delete_grant(request.clone()).await, Reason::WrongState);
        server.advance_s(3_600);
        let operator = server.operator().await;
        operator.grants().delete_grant(request).await.expect("once it is over");
    }

    async fn everybody_sees_what_concerns_them(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let carol = server.signed_in("carol").await;
        let auditor = server.system_account(&["roles/auditor"]).await;
        let approvers = groups::create(&operator, "Approvers").await;
        groups::add(&operator, &approvers, bob.name()).await.expect("added");
        let of_ann = entitle(&operator, entitlement(ann.name(), &[&approvers])).await.expect("entitled");
        server.advance_s(1);
        let of_carol = entitle(&operator, entitlement(carol.name(), &[ann.name()])).await.expect("entitled");
        let first = ask(&ann.actor, wish(&of_ann)).await.expect("asked").name;
        server.advance_s(1);
        let second = ask(&carol.actor, wish(&of_carol)).await.expect("asked").name;
        for (by, elevations, entitlements) in [
            (&auditor, vec![&first, &second], vec![&of_ann.name, &of_carol.name]),
            (&ann.actor, vec![&first, &second], vec![&of_ann.name]),
            (&bob.actor, vec![&first], vec![]),
            (&carol.actor, vec![&second], vec![&of_carol.name]),
        ] {
            assert_eq!(list(by, "").await.iter().collect::<Vec<_>>(), elevations);
            assert_eq!(list_entitlements(by, "").await.iter().collect::<Vec<_>>(), entitlements);
            for name in [&first, &second] {
                assert_eq!(get(by, name).await.is_ok(), elevations.contains(&name));
            }
        }
        let get = async |by: &Actor, name: &str| {
            let request = pb::GetEntitlementRequest { name: name.to_owned() };
            by.elevations().get_entitlement(request).await
        };
        get(&bob.actor, &of_ann.name).await.expect("may agree");
        assert_refused(get(&bob.actor, &of_carol.name).await, Reason::NotFound);
        assert_eq!(list(&auditor, "state = PENDING").await.len(), 2);
        assert_eq!(list(&bob.actor, "state = ACTIVE").await.len(), 0);
        assert_eq!(list(&auditor, &format!("requester = \"{}\"", ann.name())).await, std::slice::from_ref(&first));
        assert_eq!(list(&auditor, &format!("entitlement = \"{}\"", of_carol.name)).await, std::slice::from_ref(&second));
        assert!(list(&bob.actor, &format!("requester = \"{}\"", carol.name())).await.is_empty());
        assert_eq!(list_entitlements(&auditor, &format!("principal = \"{}\"", carol.name())).await, std::slice::from_ref(&of_carol.name));
        assert_eq!(list_entitlements(&auditor, &format!("role = \"{KEEPER}\"")).await.len(), 2);
        server.advance_s(server.running.app.config.elevation.request_s);
        let auditor = server.system_account(&["roles/auditor"]).await;
        assert_eq!((list(&auditor, "state = PENDING").await.len(), list(&auditor, "state = LAPSED").await.len()), (0, 2));
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_eq!(list(&auditor, "state = LAPSED").await.len(), 2);
        server.advance_s(server.running.app.config.retention.ended_grants_s + 1);
        jobs::sweep(&server.running.app).await.expect("swept");
        let auditor = server.system_account(&["roles/auditor"]).await;
        assert!(list(&auditor, "").await.is_empty(), "forgotten");
    }

    async fn nobody_sees_or_answers_before_their_time(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let approvers = groups::create(&operator, "Approvers").await;
        let start = server.now().seconds() + 100;
        groups::add_for(&operator, &approvers, bob.name(), (Some(start), None)).await.expect("from then on");
        let rule = entitle(&operator, entitlement(ann.name(), &[&approvers])).await.expect("entitled");
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        assert!(list(&bob.actor, "").await.is_empty());
        assert_refused(get(&bob.actor, &asked.name).await, Reason::NotFound);
        assert_refused(approve(&bob.actor, &asked).await, Reason::NotFound);
        server.advance_s(100);
        assert_eq!(list(&bob.actor, "").await, std::slice::from_ref(&asked.name));
        approve(&bob.actor, &asked).await.expect("now");
    }

    async fn an_elevation_ends_with_the_membership_it_was_asked_for_by(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, _) = stage(&server).await;
        let crew = groups::create(&operator, "Crew").await;
        let end = server.now().seconds() + 100;
        groups::add_for(&operator, &crew, ann.name(), (None, Some(end))).await.expect("for a while");
        let rule = entitle(&operator, entitlement(&crew, &[])).await.expect("entitled");
        let begun = ask(&ann.actor, wish(&rule)).await.expect("asked");
        assert_eq!(begun.expire_time, Some(at(&server, 100)));
    }

    async fn a_retry_asks_once_and_a_stale_answer_counts_for_nothing(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let rule = entitle(&operator, entitlement(ann.name(), &[bob.name()])).await.expect("entitled");
        let wish = pb::RequestElevationRequest {
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..wish(&rule)
        };
        let dry = pb::RequestElevationRequest { request_id: String::new(), validate_only: true, ..wish.clone() };
        ask(&ann.actor, dry).await.expect("could be");
        let asked = ask(&ann.actor, wish.clone()).await.expect("asked");
        assert_eq!(ask(&ann.actor, wish).await.expect("a retry"), asked);
        assert_eq!(list(&ann.actor, "").await.len(), 1);
        let stale = pb::ApproveElevationRequest { name: asked.name.clone(), etag: "r9".to_owned(), ..Default::default() };
        assert_refused(bob.actor.elevations().approve_elevation(stale).await, Reason::EtagMismatch);
        let stale = pb::DenyElevationRequest { name: asked.name.clone(), etag: "r9".to_owned(), ..Default::default() };
        assert_refused(bob.actor.elevations().deny_elevation(stale).await, Reason::EtagMismatch);
        let stale = pb::EndElevationRequest { name: asked.name, etag: "r9".to_owned(), ..Default::default() };
        assert_refused(ann.actor.elevations().end_elevation(stale).await, Reason::EtagMismatch);
        let stale = pb::DeleteEntitlementRequest { name: rule.name.clone(), etag: "r9".to_owned(), ..Default::default() };
        assert_refused(operator.elevations().delete_entitlement(stale).await, Reason::EtagMismatch);
        let stale = pb::Entitlement { etag: "r9".to_owned(), description: "x".to_owned(), ..rule };
        assert_refused(update(&operator, stale, &["description"]).await, Reason::EtagMismatch);
    }

    async fn an_entitlement_never_comes_to_need_nobody(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let rule = entitle(&operator, entitlement(ann.name(), &[bob.name()])).await.expect("entitled");
        let request = pb::DeleteUserRequest { name: bob.name().to_owned(), ..Default::default() };
        operator.users().delete_user(request).await.expect("deleted");
        server.advance_s(server.running.app.config.retention.deleted_accounts_s + 1);
        jobs::sweep(&server.running.app).await.expect("swept");
        let ann = server.sign_in("ann").await;
        let asked = ask(&ann.actor, wish(&rule)).await.expect("asked");
        assert_eq!(asked.state(), State::Pending);
    }

    async fn nobody_entitles_who_is_greater_or_gone(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = stage(&server).await;
        let chief = server.signed_in("chief").await;
        server.grant(chief.name(), "roles/operator").await;
        let clerk = server.system_account(&["scopes/accountd:elevations.write", KEEPER]).await;
        entitle(&clerk, entitlement(ann.name(), &[bob.name()])).await.expect("nobody greater");
        // Who has a role for a while shortens what was given by who has it for good.
        let (brief, secret) = server.create_system_account(&["scopes/accountd:elevations.write"]).await;
        let mut lent = grant_request(&brief.name, KEEPER);
        lent.grant.as_mut().expect("set").expire_time = Some(at(&server, 60));
        operator.grants().create_grant(lent).await.expect("granted");
        let brief = server.client(&brief.uid, &secret).await;
        let for_good = entitle(&operator, entitlement(ann.name(), &[bob.name()])).await.expect("entitled");
        let until = |seconds| pb::Entitlement { expire_time: Some(at(&server, seconds)), ..for_good.clone() };
        let mut shorter = update(&brief, until(90), &["expire_time"]).await.expect("less than before");
        shorter.expire_time = Some(at(&server, 91));
        assert_eq!(fields_of(update(&brief, shorter, &["expire_time"]).await), ["entitlement.expire_time"]);
        for outcome in [
            entitle(&clerk, entitlement(chief.name(), &[bob.name()])).await,
            entitle(&clerk, entitlement(ann.name(), &[chief.name()])).await,
        ] {
            assert_refused(outcome, Reason::TargetOutranksCaller);
        }
        let rule = entitle(&operator, entitlement(ann.name(), &[bob.name()])).await.expect("entitled");
        let of_chief = entitle(&operator, entitlement(chief.name(), &[])).await.expect("entitled");
        for name in [ann.name(), chief.name()] {
            let request = pb::DeleteUserRequest { name: name.to_owned(), ..Default::default() };
            operator.users().delete_user(request).await.expect("deleted");
        }
        for outcome in [
            entitle(&operator, entitlement(ann.name(), &[])).await,
            entitle(&operator, entitlement(bob.name(), &[ann.name()])).await,
        ] {
            assert_refused(outcome, Reason::WrongState);
        }
        // Once they are gone for good, nobody is entitled in their name.
        server.advance_s(server.running.app.config.retention.deleted_accounts_s + 1);
        jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        for rule in [&rule, &of_chief] {
            let request = pb::GetEntitlementRequest { name: rule.name.clone() };
            assert_refused(operator.elevations().get_entitlement(request).await, Reason::NotFound);
        }
        assert_eq!(list_entitlements(&operator, "").await, Vec::<String>::new());
    }

    async fn whoever_asks_may_hold_nothing_before(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, _) = stage(&server).await;
        let granted = operator.grants().create_grant(grant_request(ann.name(), KEEPER)).await;
        granted.expect("granted");
        // Who holds the role for good may ask all the same.
        let rule = entitle(&operator, entitlement(ann.name(), &[])).await.expect("entitled");
        let begun = ask(&ann.actor, wish(&rule)).await.expect("asked");
        end(&ann.actor, &begun).await.expect("ended");
        let ann = server.sign_in("ann").await;
        assert!(may_see_keys(&ann.actor).await, "for good");
    }
}

/// A program of somebody's, by its name, and its secret.
async fn owned_by(server: &Server, owner: &str) -> (String, String) {
    let (robot, secret) = server.create_system_account(&[]).await;
    transfer(server, &robot.name, owner).await;
    (robot.name, secret)
}

pub async fn transfer(server: &Server, program: &str, owner: &str) {
    let request = pb::TransferSystemAccountRequest {
        name: program.to_owned(),
        owner: owner.to_owned(),
        ..Default::default()
    };
    let operator = server.operator().await;
    let moved = operator
        .system_accounts()
        .transfer_system_account(request)
        .await;
    moved.expect("transferred");
}

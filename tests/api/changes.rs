//! Four eyes: what one operator asks for is done once another agrees, as asked, once.

use std::fs;

use accountd::{
    config,
    domain::{error::Reason, name::ChangeId},
    grpc::{call::Call, pb},
    jobs, store,
};
use jsonwebtoken::Algorithm;
use pb::{change::State, contact, system_account::Kind as SystemAccountKind};
use prost_types::{FieldMask, Timestamp, value::Kind};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    assertions::Program,
    authenticator::App,
    contacts, credentials, elevations, factors, groups,
    harness::{
        Actor, Engine, Refusal as _, Server, SignedIn, assert_refused, fields_of, grant_request,
        on_both_engines, password, reason_of,
    },
    keys, roles, system_accounts,
};

/// A server with these RPCs marked, and what is marked by default.
pub async fn server(engine: Engine, rpcs: &[&str]) -> Server {
    let marked = rpcs.iter().map(|&name| name.to_owned());
    engine
        .server_with(|config| {
            config.four_eyes = config::FourEyes::default();
            config.four_eyes.rpcs.extend(marked);
            config.messages.email = Some("log".to_owned());
        })
        .await
}

/// The account of whoever has the machine.
async fn bootstrap(server: &Server) -> Actor {
    let text = fs::read_to_string(server.config.data_dir.join("bootstrap.json")).expect("a file");
    let file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let text = |name: &str| file[name].as_str().expect(name).to_owned();
    server
        .client(&text("client_id"), &text("client_secret"))
        .await
}

/// Somebody new, whatever is marked.
async fn user(server: &Server, username: &str) -> pb::User {
    let request = pb::CreateUserRequest {
        user: Some(pb::User {
            username: username.to_owned(),
            ..Default::default()
        }),
        password: password(username),
        ..Default::default()
    };
    let created = bootstrap(server).await.users().create_user(request).await;
    created.expect("alone").into_inner()
}

/// A person with these permissions, signed in.
async fn person(server: &Server, username: &str, permissions: &[&str]) -> SignedIn {
    let bootstrap = bootstrap(server).await;
    let user = user(server, username).await;
    for permission in permissions {
        let request = grant_request(&user.name, permission);
        bootstrap
            .grants()
            .create_grant(request)
            .await
            .expect("alone");
    }
    server.sign_in(username).await
}

/// The same, with a second factor; signing in takes half a minute.
async fn approver(server: &Server, username: &str, permissions: &[&str]) -> (SignedIn, App) {
    let person = person(server, username, permissions).await;
    let (app, _) = factors::enrol(server, &person).await;
    (factors::enter(server, username, &app, 30).await, app)
}

/// A program of somebody's that is an operator.
async fn robot_operator(bootstrap: &Actor, owner: &str) -> pb::SystemAccount {
    let account = pb::SystemAccount {
        display_name: "a robot".to_owned(),
        owner: owner.to_owned(),
        kind: SystemAccountKind::Service.into(),
        ..Default::default()
    };
    let request = pb::CreateSystemAccountRequest {
        system_account: Some(account),
        ..Default::default()
    };
    let robot = bootstrap
        .system_accounts()
        .create_system_account(request)
        .await;
    let robot = robot.expect("made").into_inner();
    let granted = grant(bootstrap, &robot.name, "roles/operator").await;
    granted.expect("alone");
    robot
}

pub async fn operator(server: &Server, username: &str) -> SignedIn {
    approver(server, username, &["roles/operator"]).await.0
}

/// The name of the change that a call has become.
#[track_caller]
pub fn pending<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    let status = result.expect_err("has to wait");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert_eq!(reason_of(&status), "APPROVAL_PENDING", "{status:?}");
    let details = status.get_details_precondition_failure().expect("a name");
    details.violations[0].subject.clone()
}

pub async fn approve(by: &Actor, change: &str) -> Result<pb::Change, Status> {
    let request = pb::ApproveChangeRequest {
        name: change.to_owned(),
        reason: "looked at".to_owned(),
        ..Default::default()
    };
    Ok(by.changes().approve_change(request).await?.into_inner())
}

pub async fn deny(by: &Actor, change: &str) -> Result<pb::Change, Status> {
    let request = pb::DenyChangeRequest {
        name: change.to_owned(),
        reason: "not so".to_owned(),
        ..Default::default()
    };
    Ok(by.changes().deny_change(request).await?.into_inner())
}

async fn get(by: &Actor, change: &str) -> Result<pb::Change, Status> {
    let request = pb::GetChangeRequest {
        name: change.to_owned(),
    };
    Ok(by.changes().get_change(request).await?.into_inner())
}

/// The changes that a list has, in pages of one.
async fn list(by: &Actor, filter: &str) -> Vec<String> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListChangesRequest {
            page_size: 1,
            page_token,
            filter: filter.to_owned(),
        };
        let page = by.changes().list_changes(request).await;
        let page = page.expect(filter).into_inner();
        all.extend(page.changes.into_iter().map(|it| it.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            // Made in one moment they are in any order.
            all.sort();
            return all;
        }
    }
}

fn field(change: &pb::Change, name: &str) -> String {
    let fields = &change.request.as_ref().expect("a request").fields;
    match fields.get(name).and_then(|value| value.kind.clone()) {
        Some(Kind::StringValue(text)) => text,
        other => format!("{other:?}"),
    }
}

async fn grant(by: &Actor, principal: &str, permission: &str) -> Result<pb::Grant, Status> {
    let request = grant_request(principal, permission);
    Ok(by.grants().create_grant(request).await?.into_inner())
}

pub async fn revoke(by: &Actor, key: &pb::SigningKey) -> Result<pb::SigningKey, Status> {
    let request = pb::RevokeSigningKeyRequest {
        name: key.name.clone(),
        reason: "left on a train".to_owned(),
        ..Default::default()
    };
    Ok(by.keys().revoke_signing_key(request).await?.into_inner())
}

async fn state_of(by: &Actor, key: &pb::SigningKey) -> pb::signing_key::State {
    let keys = keys::list(by).await;
    let key = keys.iter().find(|it| it.name == key.name);
    key.expect("listed").state()
}

on_both_engines! {
    async fn what_is_marked_is_done_once_another_operator_agrees_and_once(engine: Engine) {
        use pb::signing_key::State as Key;
        let server = server(engine, &[]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let key = keys::prepare(&ann.actor, "").await.expect("not marked");
        let name = pending(revoke(&ann.actor, &key).await);
        assert_eq!(state_of(&ann.actor, &key).await, Key::Prepared, "nothing has been done");
        assert_eq!(server.events("signing_key.revoked").await.len(), 0);
        assert_eq!(pending(revoke(&ann.actor, &key).await), name, "the same call is the same change");

        let change = get(&bob.actor, &name).await.expect("seen");
        assert_eq!(change.rpc, "accountd.v1.KeyService/RevokeSigningKey");
        let asked = (field(&change, "name"), field(&change, "reason"));
        assert_eq!(asked, (key.name.clone(), "left on a train".to_owned()));
        assert_eq!((change.state(), &*change.proposed_by), (State::Pending, ann.name()));
        assert_eq!((change.approvals_required, change.approved_by.len()), (1, 0));
        assert_eq!((&change.proof, &*change.ip_address), (&ann.tokens.session, "127.0.0.1"));
        let lapses = change.expire_time.expect("it lapses").seconds;
        assert_eq!(lapses, server.now().seconds() + 86_400);

        assert_refused(approve(&ann.actor, &name).await, Reason::NotApprover);
        let done = approve(&bob.actor, &name).await.expect("approved");
        assert_eq!((done.state(), &done.approved_by), (State::Approved, &vec![bob.name().to_owned()]));
        assert_eq!(done, get(&ann.actor, &name).await.expect("her own"));
        assert_eq!((done.expire_time, &*done.decide_reason), (None, "looked at"));
        assert_eq!(state_of(&ann.actor, &key).await, Key::Revoked);
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
        assert_refused(deny(&bob.actor, &name).await, Reason::WrongState);

        // The deed is hers, the consent his.
        let of = |events: &[pb::Event]| events.iter().map(|it| it.actor.clone()).collect::<Vec<_>>();
        assert_eq!(of(&server.events("signing_key.revoked").await), [ann.name()]);
        assert_eq!(of(&server.events("change.proposed").await), [ann.name()]);
        let approved = server.events("change.approved").await;
        assert_eq!((of(&approved), &approved[0].target), (vec![bob.name().to_owned()], &name));
        assert_eq!(approved[0].details["rpc"], "accountd.v1.KeyService/RevokeSigningKey");
    }

    async fn nobody_is_made_an_operator_by_one_person_by_whatever_way(engine: Engine) {
        let server = server(engine, &[]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let eve = server.user("eve").await;
        for permission in ["roles/operator", "scopes/accountd:keys.write", "scopes/accountd:changes.approve"] {
            let name = pending(grant(&ann.actor, &eve.name, permission).await);
            deny(&ann.actor, &name).await.expect("taken back");
        }
        for permission in ["roles/user-manager", "scopes/accountd:events.read"] {
            grant(&ann.actor, &eve.name, permission).await.expect("less than an operator");
        }

        // A made role that comes to the same, before and after somebody has it.
        let made = roles::create(&ann.actor, roles::role("roles/other", &["scopes/accountd:keys.write"])).await;
        approve(&bob.actor, &pending(made)).await.expect("nobody has it");
        pending(grant(&ann.actor, &eve.name, "roles/other").await);
        let role = roles::create(&ann.actor, roles::role("roles/grows", &[])).await.expect("made");
        grant(&ann.actor, &eve.name, "roles/grows").await.expect("of nothing");
        let grown = pb::Role {
            scopes: vec!["scopes/accountd:keys.write".to_owned()],
            etag: String::new(),
            ..role
        };
        pending(roles::update(&ann.actor, grown, &["scopes"]).await);

        // A group: once it has the role, nobody is added by one person.
        let crew = groups::create(&ann.actor, "crew").await;
        groups::add(&ann.actor, &crew, &eve.name).await.expect("of nothing");
        let name = pending(grant(&ann.actor, &crew, "roles/operator").await);
        groups::remove(&ann.actor, &crew, &eve.name).await.expect("taken out");
        approve(&bob.actor, &name).await.expect("of nobody");
        pending(groups::add(&ann.actor, &crew, &eve.name).await);
        let outer = groups::create(&ann.actor, "outer").await;
        groups::add(&ann.actor, &outer, &eve.name).await.expect("of nothing");
        pending(groups::add(&ann.actor, &crew, &outer).await);

        // What may be asked for, by whom it may be agreed to.
        let entitlement = pb::Entitlement {
            role: "roles/operator".to_owned(),
            ..elevations::entitlement(&eve.name, &[bob.name()])
        };
        let name = pending(elevations::entitle(&ann.actor, entitlement).await);
        approve(&bob.actor, &name).await.expect("approved");
        let made = list_entitlements(&ann.actor).await.remove(0);
        let wider = pb::Entitlement {
            approvers: Vec::new(),
            ..made
        };
        pending(elevations::update(&ann.actor, wider, &["approvers"]).await);

        // For longer than before; less takes nobody else.
        let change = pending(grant(&ann.actor, &eve.name, "roles/operator").await);
        approve(&bob.actor, &change).await.expect("approved");
        let given = grants_of(&ann.actor, &eve.name, "roles/operator").await.remove(0);
        let until = |seconds: i64| Some(Timestamp {
            seconds: server.now().seconds() + seconds,
            nanos: 0,
        });
        end(&ann.actor, &given, until(60)).await.expect("shorter");
        pending(end(&ann.actor, &given, until(61)).await);
        pending(end(&ann.actor, &given, None).await);
        let request = pb::DeleteGrantRequest {
            name: given.name.clone(),
            ..Default::default()
        };
        ann.actor.grants().delete_grant(request).await.expect("taken back");
        let held = grants_of(&ann.actor, &eve.name, "roles/operator").await;
        assert_eq!(held, []);
    }

    async fn what_gives_no_more_than_before_waits_for_nobody(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = person(&server, "ann", &["roles/operator"]).await;
        let bootstrap = bootstrap(&server).await;
        let (bob, eve) = (user(&server, "bob").await.name, user(&server, "eve").await.name);
        let crew = groups::create(&bootstrap, "crew").await;
        grant(&bootstrap, &crew, "roles/operator").await.expect("alone");
        let now = server.now().seconds();
        let at = |seconds: i64| Some(now + seconds);
        groups::add_for(&bootstrap, &crew, &eve, (None, at(600))).await.expect("alone");
        for (start, end) in [(None, at(600)), (None, at(300)), (at(100), at(300))] {
            groups::add_for(&ann.actor, &crew, &eve, (start, end)).await.expect("less");
        }
        for (start, end) in [(None, at(300)), (at(99), at(300)), (at(100), at(301)), (at(100), None)] {
            pending(groups::add_for(&ann.actor, &crew, &eve, (start, end)).await);
        }

        let made = pb::Entitlement {
            role: "roles/operator".to_owned(),
            ..elevations::entitlement(&eve, &[&bob, &crew])
        };
        let made = elevations::entitle(&bootstrap, made).await.expect("alone");
        let change = |path: &str, entitlement: pb::Entitlement| {
            let (ann, path) = (ann.actor.clone(), path.to_owned());
            let entitlement = pb::Entitlement {
                name: made.name.clone(),
                ..entitlement
            };
            async move { elevations::update(&ann, entitlement, &[&path]).await }
        };
        let lasting = |seconds: i64| pb::Entitlement {
            max_duration: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        };
        let agreed = |approvers: &[&str]| pb::Entitlement {
            approvers: approvers.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let ending = |seconds: i64| pb::Entitlement {
            expire_time: Some(Timestamp {
                seconds: now + seconds,
                nanos: 0,
            }),
            ..Default::default()
        };
        let proven = |is: bool| pb::Entitlement {
            ticket_required: is,
            step_up_required: is,
            ..Default::default()
        };
        for (path, less, more) in [
            ("max_duration", lasting(600), lasting(601)),
            ("approvers", agreed(&[&bob]), agreed(&[&bob, ann.name()])),
            ("approvers", agreed(&[&bob]), agreed(&[])),
            ("approvers", agreed(&[&bob]), agreed(&[&eve])),
            ("expire_time", ending(600), ending(601)),
            ("expire_time", ending(600), pb::Entitlement::default()),
            ("ticket_required", proven(true), proven(false)),
            ("step_up_required", proven(true), proven(false)),
        ] {
            change(path, less).await.expect(path);
            pending(change(path, more).await);
        }
        // Where nobody had to agree, who may is given something.
        let open = pb::Entitlement {
            role: "roles/operator".to_owned(),
            ..elevations::entitlement(&bob, &[])
        };
        let open = elevations::entitle(&bootstrap, open).await.expect("alone");
        let named = pb::Entitlement {
            approvers: vec![eve.clone()],
            ..open
        };
        pending(elevations::update(&ann.actor, named, &["approvers"]).await);
    }

    async fn what_a_program_asks_for_takes_two_people_none_of_them_its_owner(engine: Engine) {
        let server = server(engine, &[]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let carol = operator(&server, "carol").await;
        let bootstrap = bootstrap(&server).await;
        let robot = robot_operator(&bootstrap, ann.name()).await;
        let secret = bootstrap.create_secret(&robot.name).await.expect("a secret").secret;
        let (robot_name, robot) = (robot.name, server.client(&robot.uid, &secret).await);

        let eve = server.user("eve").await;
        let name = pending(grant(&robot, &eve.name, "roles/operator").await);
        assert_eq!(get(&robot, &name).await.expect("its own").approvals_required, 2);
        assert_refused(approve(&ann.actor, &name).await, Reason::NotApprover);
        assert_refused(approve(&robot, &name).await, Reason::NotApprover);
        let other = server.operator().await;
        assert_refused(approve(&other, &name).await, Reason::NotApprover);
        let first = approve(&bob.actor, &name).await.expect("the first");
        assert_eq!((first.state(), &first.approved_by), (State::Pending, &vec![bob.name().to_owned()]));
        assert_eq!(grants_of(&ann.actor, &eve.name, "roles/operator").await, []);
        assert_refused(approve(&bob.actor, &name).await, Reason::NotApprover);
        let done = approve(&carol.actor, &name).await.expect("the second");
        assert_eq!(done.approved_by, [bob.name(), carol.name()]);
        assert_eq!(grants_of(&ann.actor, &eve.name, "roles/operator").await.len(), 1);
        assert_eq!(server.events("change.approved").await.len(), 2);

        // What limits a program is not lifted by one person either.
        let limit = async |by: &Actor, ceiling: &[&str]| system_accounts::limit(by, &robot_name, ceiling, &[]).await;
        limit(&ann.actor, &["users.read", "system_accounts.read"]).await.expect("less than before");
        limit(&ann.actor, &["users.read", "system_accounts.read", "events.read"]).await.expect("not an operator's");
        pending(limit(&ann.actor, &["users.read", "system_accounts.read", "keys.write"]).await);
        pending(limit(&ann.actor, &[]).await);
    }

    async fn nobody_agrees_to_what_they_could_not_do_themselves(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = operator(&server, "ann").await;
        let (dave, _) = approver(&server, "dave", &["scopes/accountd:changes.approve"]).await;
        let scopes = ["changes.approve", "grants.write"].map(|it| format!("scopes/accountd:{it}"));
        let (frank, _) = approver(&server, "frank", &scopes.each_ref().map(String::as_str)).await;
        let weak = person(&server, "walt", &["roles/operator"]).await;
        let key = keys::prepare(&ann.actor, "").await.expect("not marked");
        let name = pending(revoke(&ann.actor, &key).await);
        assert_refused(approve(&dave.actor, &name).await, Reason::ScopeMissing);
        // Whoever has a password only has shown too little, second factor or not.
        assert_refused(approve(&weak.actor, &name).await, Reason::InsufficientUserAuthentication);
        let name = pending(grant(&ann.actor, dave.name(), "roles/operator").await);
        assert_refused(approve(&dave.actor, &name).await, Reason::ScopeMissing);
        assert_refused(approve(&frank.actor, &name).await, Reason::ScopeNotHeld);
        let nobody = person(&server, "gus", &["roles/user-manager"]).await;
        assert_refused(approve(&nobody.actor, &name).await, Reason::ScopeMissing);
        assert_eq!(get(&ann.actor, &name).await.expect("hers").state(), State::Pending);
        assert_eq!(grants_of(&ann.actor, dave.name(), "roles/operator").await, []);
    }

    async fn nobody_agrees_long_after_they_have_shown_two_factors(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = operator(&server, "ann").await;
        let (bob, app) = approver(&server, "bob", &["roles/operator"]).await;
        let key = keys::prepare(&ann.actor, "").await.expect("not marked");
        let name = pending(revoke(&ann.actor, &key).await);
        let later = async |bob: &SignedIn| {
            let tokens = server.anonymous().await.refresh(&bob.tokens.refresh_token).await;
            server.with_token(&tokens.expect("a token").access_token).await
        };
        server.advance_s(901);
        let tired = later(&bob).await;
        assert_refused(approve(&tired, &name).await, Reason::InsufficientUserAuthentication);
        let bob = factors::enter(&server, "bob", &app, 30).await;
        server.advance_s(899);
        approve(&later(&bob).await, &name).await.expect("in time");
        assert_eq!(state_of(&later(&ann).await, &key).await, pb::signing_key::State::Revoked);
    }

    async fn a_change_stands_and_falls_with_whoever_asked_for_it(engine: Engine) {
        let server = server(engine, &[]).await;
        let bob = operator(&server, "bob").await;
        let bootstrap = bootstrap(&server).await;
        let eve = server.user("eve").await;
        for way in ["scopes", "suspended", "signed out", "deleted"] {
            let username = format!("ann-{}", way.replace(' ', "-"));
            let ann = person(&server, &username, &["roles/operator"]).await;
            let name = pending(grant(&ann.actor, &eve.name, "roles/operator").await);
            match way {
                "scopes" => take(&bootstrap, ann.name(), "roles/operator").await,
                "suspended" => drop(bootstrap.suspend_user(ann.name()).await.expect(way)),
                "deleted" => {
                    let request = pb::DeleteUserRequest {
                        name: ann.name().to_owned(),
                        ..Default::default()
                    };
                    bootstrap.users().delete_user(request).await.expect(way);
                }
                _ => {
                    let request = pb::RevokeSessionRequest {
                        name: ann.tokens.session.clone(),
                        ..Default::default()
                    };
                    ann.actor.sessions().revoke_session(request).await.expect(way);
                }
            }
            assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
            assert_eq!(get(&bob.actor, &name).await.expect(way).state(), State::Pending, "{way}");
        }
        assert_eq!(grants_of(&bob.actor, &eve.name, "roles/operator").await, []);

        // Where nothing is given, nobody asks again what was granted but whoever carries it out.
        let scopes = ["keys.write", "changes.approve"].map(|it| format!("scopes/accountd:{it}"));
        let ann = person(&server, "ann-keys", &scopes.each_ref().map(String::as_str)).await;
        let key = keys::prepare(&ann.actor, "").await.expect("not marked");
        let name = pending(revoke(&ann.actor, &key).await);
        take(&bootstrap, ann.name(), &scopes[0]).await;
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
        assert_eq!(state_of(&bob.actor, &key).await, pb::signing_key::State::Prepared);

        // What it was about has gone.
        let ann = operator(&server, "ann").await;
        let name = pending(grant(&ann.actor, &eve.name, "roles/operator").await);
        let request = pb::DeleteUserRequest {
            name: eve.name.clone(),
            ..Default::default()
        };
        bootstrap.users().delete_user(request).await.expect("deleted");
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
    }

    async fn what_nobody_answers_lapses(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = person(&server, "ann", &["roles/operator"]).await;
        let (_, app) = approver(&server, "bob", &["roles/operator"]).await;
        let eve = server.user("eve").await;
        let name = pending(grant(&ann.actor, &eve.name, "roles/operator").await);
        server.advance_s(86_400 - 30);
        let bob = factors::enter(&server, "bob", &app, 30).await;
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
        assert_refused(deny(&bob.actor, &name).await, Reason::WrongState);
        assert_eq!(get(&bob.actor, &name).await.expect("seen").state(), State::Lapsed);
        assert_eq!(list(&bob.actor, "state = LAPSED").await, std::slice::from_ref(&name));
        jobs::sweep(&server.running.app).await.expect("swept");
        let lapsed = get(&bob.actor, &name).await.expect("seen");
        assert_eq!(lapsed.state(), State::Lapsed);
        assert_eq!(lapsed.end_time.expect("ended").seconds, server.now().seconds());
        let events = server.events("change.lapsed").await;
        assert_eq!((events.len(), &*events[0].actor), (1, "accountd"));
        let ann = server.sign_in("ann").await;
        assert_ne!(pending(grant(&ann.actor, &eve.name, "roles/operator").await), name);
        // Remembered for a while.
        server.advance_s(2_592_001);
        jobs::sweep(&server.running.app).await.expect("swept");
        let bob = factors::enter(&server, "bob", &app, 0).await;
        assert_refused(get(&bob.actor, &name).await, Reason::NotFound);
    }

    async fn who_asked_may_take_it_back_and_an_operator_may_refuse(engine: Engine) {
        let server = server(engine, &[]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let eve = server.signed_in("eve").await;
        let first = pending(grant(&ann.actor, eve.name(), "roles/operator").await);
        let taken_back = deny(&ann.actor, &first).await.expect("taken back");
        assert_eq!((taken_back.state(), &*taken_back.denied_by), (State::Denied, ann.name()));
        assert_refused(approve(&bob.actor, &first).await, Reason::WrongState);
        let second = pending(grant(&ann.actor, eve.name(), "roles/operator").await);
        assert_ne!(first, second);

        // Nobody else knows of it.
        for outcome in [get(&eve.actor, &second).await, deny(&eve.actor, &second).await] {
            assert_refused(outcome, Reason::NotFound);
        }
        assert_refused(approve(&eve.actor, &second).await, Reason::ScopeMissing);
        assert_eq!(list(&eve.actor, "").await, Vec::<String>::new());
        let of_ann = format!("proposed_by = \"{}\"", ann.name());
        assert_eq!(list(&eve.actor, &of_ann).await, Vec::<String>::new());
        let auditor = person(&server, "olga", &["roles/auditor"]).await;
        let mut both = [first.clone(), second.clone()];
        both.sort();
        assert_eq!(list(&auditor.actor, "").await, both);
        assert_refused(deny(&auditor.actor, &second).await, Reason::NotFound);

        assert_eq!(list(&bob.actor, &of_ann).await, both);
        let of_bob = format!("proposed_by = \"{}\"", bob.name());
        assert_eq!(list(&bob.actor, &of_bob).await, Vec::<String>::new());
        assert_eq!(list(&bob.actor, "state = PENDING").await, std::slice::from_ref(&second));
        assert_eq!(list(&bob.actor, &format!("{of_ann} AND state = DENIED")).await, [first]);
        let denied = deny(&bob.actor, &second).await.expect("refused");
        assert_eq!((&*denied.denied_by, &*denied.decide_reason), (bob.name(), "not so"));
        assert_eq!(server.events("change.denied").await.len(), 2);
        // Who asks for those of others does not get their own instead.
        let walt = ["scopes/accountd:grants.write", "scopes/accountd:keys.write"];
        let walt = person(&server, "walt", &walt).await;
        let own = pending(grant(&walt.actor, eve.name(), "scopes/accountd:keys.write").await);
        assert_eq!(list(&walt.actor, "").await, std::slice::from_ref(&own));
        assert_eq!(list(&walt.actor, &of_ann).await, Vec::<String>::new());

        let stale = pb::DenyChangeRequest {
            name: pending(grant(&ann.actor, eve.name(), "roles/operator").await),
            etag: "7".to_owned(),
            ..Default::default()
        };
        let outcome = bob.actor.changes().deny_change(stale.clone()).await;
        assert_refused(outcome, Reason::EtagMismatch);
        let stale = pb::ApproveChangeRequest {
            name: stale.name,
            etag: stale.etag,
            ..Default::default()
        };
        assert_refused(bob.actor.changes().approve_change(stale).await, Reason::EtagMismatch);
        for name in ["changes/7", "grants/7", ""] {
            assert_eq!(fields_of(approve(&bob.actor, name).await), ["name"]);
        }
    }

    async fn a_retry_finds_the_change_and_then_what_came_of_it(engine: Engine) {
        let server = server(engine, &[]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let eve = server.user("eve").await;
        let id = "0190f0c0-0000-7000-8000-000000000001";
        let mut request = grant_request(&eve.name, "roles/operator");
        request.request_id = id.to_owned();
        let call = async || ann.actor.grants().create_grant(request.clone()).await;
        let name = pending(call().await);
        assert_eq!(pending(call().await), name);
        let approval = pb::ApproveChangeRequest {
            name: name.clone(),
            request_id: id.to_owned(),
            ..Default::default()
        };
        let dry = pb::ApproveChangeRequest {
            validate_only: true,
            request_id: String::new(),
            ..approval.clone()
        };
        let would = bob.actor.changes().approve_change(dry).await.expect("it would").into_inner();
        assert_eq!(would.state(), State::Approved);
        assert_eq!(get(&bob.actor, &name).await.expect("seen").state(), State::Pending);
        let first = bob.actor.changes().approve_change(approval.clone()).await;
        let first = first.expect("approved").into_inner();
        let again = bob.actor.changes().approve_change(approval).await;
        assert_eq!(again.expect("a retry").into_inner(), first);
        let given = call().await.expect("what came of it").into_inner();
        assert_eq!(grants_of(&ann.actor, &eve.name, "roles/operator").await, [given]);
        assert_eq!(server.events("grant.created").await.iter().filter(|it| it.actor == ann.name()).count(), 1);
    }

    async fn a_first_consent_and_a_refusal_are_good_once_and_can_be_tried(engine: Engine) {
        let server = server(engine, &["CreateGrant"]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let walt = person(&server, "walt", &["scopes/accountd:grants.write", "scopes/accountd:events.read"]).await;
        let eve = user(&server, "eve").await;
        let name = pending(grant(&walt.actor, &eve.name, "scopes/accountd:events.read").await);
        let id = "0190f0c0-0000-7000-8000-000000000001";
        let approval = pb::ApproveChangeRequest {
            name: name.clone(),
            request_id: id.to_owned(),
            ..Default::default()
        };
        let dry = pb::ApproveChangeRequest {
            validate_only: true,
            request_id: String::new(),
            ..approval.clone()
        };
        let would = ann.actor.changes().approve_change(dry).await.expect("it would").into_inner();
        assert_eq!(would.approved_by, [ann.name()]);
        assert_eq!(get(&bob.actor, &name).await.expect("seen").approved_by, Vec::<String>::new());
        let first = ann.actor.changes().approve_change(approval.clone()).await.expect("the first").into_inner();
        let again = ann.actor.changes().approve_change(approval.clone()).await.expect("a retry").into_inner();
        assert_eq!((&again, again.state()), (&first, State::Pending));
        let other = pb::ApproveChangeRequest {
            reason: "something else".to_owned(),
            ..approval
        };
        assert_refused(ann.actor.changes().approve_change(other).await, Reason::RequestIdReused);

        let refusal = pb::DenyChangeRequest {
            name: name.clone(),
            request_id: id.to_owned(),
            ..Default::default()
        };
        let dry = pb::DenyChangeRequest {
            validate_only: true,
            request_id: String::new(),
            ..refusal.clone()
        };
        let would = bob.actor.changes().deny_change(dry).await.expect("it would").into_inner();
        assert_eq!(would.state(), State::Denied);
        assert_eq!(get(&bob.actor, &name).await.expect("seen"), first);
        let denied = bob.actor.changes().deny_change(refusal.clone()).await.expect("refused").into_inner();
        let again = bob.actor.changes().deny_change(refusal).await.expect("a retry").into_inner();
        assert_eq!((&again, again.state()), (&denied, State::Denied));
        assert_eq!(server.events("change.approved").await.len(), 1);
        assert_eq!(server.events("change.denied").await.len(), 1);
    }

    async fn a_list_of_changes_says_what_it_cannot_be_asked_for(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = person(&server, "ann", &["roles/operator"]).await;
        let eve = user(&server, "eve").await;
        for permission in ["roles/operator", "scopes/accountd:keys.write"] {
            pending(grant(&ann.actor, &eve.name, permission).await);
        }
        let ask = async |filter: &str, page_token: &str| {
            let request = pb::ListChangesRequest {
                page_size: 1,
                page_token: page_token.to_owned(),
                filter: filter.to_owned(),
            };
            ann.actor.changes().list_changes(request).await
        };
        for filter in ["state = OVER", "state > PENDING", "rpc = \"x\"", "proposed_by = \"groups/7\"", "state ="] {
            assert_refused(ask(filter, "").await, Reason::InvalidFilter);
        }
        let page = ask("state = PENDING", "").await.expect("a page").into_inner();
        let token = page.next_page_token;
        ask("state = PENDING", &token).await.expect("the next");
        assert_refused(ask("", &token).await, Reason::InvalidPageToken);
        assert_refused(ask("state = PENDING", "7").await, Reason::InvalidPageToken);
    }

    async fn a_dry_run_says_what_would_come_of_it_and_a_refusal_comes_at_once(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = operator(&server, "ann").await;
        let eve = server.user("eve").await;
        let mut request = grant_request(&eve.name, "roles/operator");
        request.validate_only = true;
        ann.actor.grants().create_grant(request).await.expect("as if approved");
        let nobody = "users/0190f0c0-0000-7000-8000-000000000001";
        assert_refused(grant(&ann.actor, nobody, "roles/operator").await, Reason::NotFound);
        assert_eq!(list(&ann.actor, "").await, Vec::<String>::new());
        assert_eq!(server.events("change.proposed").await.len(), 0);
    }

    async fn what_people_do_to_their_own_account_waits_for_nobody(engine: Engine) {
        let server = server(engine, &["UpdateUser", "DeleteUser"]).await;
        let (ann, eve) = (operator(&server, "ann").await, server.signed_in("eve").await);
        let update = |name: &str| pb::UpdateUserRequest {
            user: Some(pb::User {
                name: name.to_owned(),
                display_name: "Eve".to_owned(),
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec!["display_name".to_owned()],
            }),
            ..Default::default()
        };
        eve.actor.users().update_user(update("users/me")).await.expect("her own");
        pending(ann.actor.users().update_user(update(eve.name())).await);
        let delete = pb::DeleteUserRequest {
            name: eve.name().to_owned(),
            ..Default::default()
        };
        pending(ann.actor.users().delete_user(delete).await);
    }

    async fn secrets_of_a_request_are_neither_shown_nor_stored_in_the_clear(engine: Engine) {
        let server = server(engine, &["ImportPassword"]).await;
        let mut apps = Vec::new();
        for username in ["ann", "bob"] {
            apps.push(approver(&server, username, &["roles/operator"]).await.1);
        }
        let ann = factors::enter(&server, "ann", &apps[0], 30).await;
        let user = pb::User {
            username: "eve".to_owned(),
            ..Default::default()
        };
        let eve = ann.actor.create_user(user).await.expect("a user");
        let hash = credentials::BCRYPT;
        let request = pb::ImportPasswordRequest {
            name: eve.name.clone(),
            password_hash: hash.to_owned(),
            ..Default::default()
        };
        let app = &server.running.app;
        let stored = async |name: &str| {
            let id = ChangeId::parse(name).expect("a name");
            let call = Call::system(app, "");
            let mut db = call.db().read().await.expect("a connection");
            let change = store::changes::find(&mut db, id).await.expect("read").expect("there");
            let opened = app.keys.changes.open(id.0.as_bytes(), &change.request);
            assert_eq!(change.fingerprint.is_empty(), change.end_time.is_some(), "what it could be guessed by");
            (change.request, opened.expect("opens"))
        };
        let has = |bytes: &[u8], part: &str| bytes.windows(part.len()).any(|it| it == part.as_bytes());
        for end in ["denied", "lapsed", "approved"] {
            let (ann, bob) = (factors::enter(&server, "ann", &apps[0], 30).await, factors::enter(&server, "bob", &apps[1], 30).await);
            let name = pending(ann.actor.credentials().import_password(request.clone()).await);
            let change = get(&bob.actor, &name).await.expect("seen");
            assert_eq!(field(&change, "name"), eve.name);
            assert!(!format!("{change:?}").contains(hash), "{change:?}");
            let (sealed, opened) = stored(&name).await;
            assert!(!has(&sealed, hash) && !has(&sealed, &eve.name), "stored in the clear");
            assert!(has(&opened, hash) && has(&opened, &eve.name), "to be carried out");
            match end {
                "denied" => drop(deny(&bob.actor, &name).await.expect(end)),
                "approved" => drop(approve(&bob.actor, &name).await.expect(end)),
                _ => {
                    server.advance_s(86_400);
                    jobs::sweep(app).await.expect(end);
                }
            }
            // Nobody needs it any more.
            let (_, opened) = stored(&name).await;
            assert!(!has(&opened, hash) && has(&opened, &eve.name), "kept: {end}");
            let bob = factors::enter(&server, "bob", &apps[1], 30).await;
            assert_eq!(get(&bob.actor, &name).await.expect(end).request, change.request);
        }
        assert_eq!(server.events("credential.password_imported").await.len(), 1);
    }

    async fn nobody_gets_into_the_account_of_another_operator_alone(engine: Engine) {
        let server = server(engine, &[]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let eve = server.user("eve").await;
        let reset = |name: &str| {
            let (actor, name) = (ann.actor.clone(), name.to_owned());
            async move { credentials::reset_code(&actor, &name).await }
        };
        reset(&eve.name).await.expect("no operator");
        assert_refused(reset(bob.name()).await, Reason::TargetOutranksCaller);
        let known = pb::Contact {
            verification: Some(contact::Verification {
                state: contact::verification::State::Verified.into(),
                ..Default::default()
            }),
            ..contacts::email("bob@example.com", &[contact::Purpose::Login])
        };
        bootstrap(&server).await.create_contact(bob.name(), known).await.expect("alone");
        let fresh = contacts::email("bob@example.net", &[]);
        let fresh = bootstrap(&server).await.create_contact(bob.name(), fresh).await.expect("alone");
        assert_refused(ann.actor.contact_code(&fresh.name).await, Reason::TargetOutranksCaller);
        let sent = pb::SendContactCodeRequest {
            name: fresh.name,
            delivery: pb::send_contact_code_request::Delivery::Send.into(),
            ..Default::default()
        };
        // It goes to nobody but him.
        ann.actor.contacts().send_contact_code(sent).await.expect("sent");
        let asked = factors::code_request("bob@example.com", pb::ChallengeMethod::EmailCode);
        let program = server.operator().await;
        let challenge = program.sessions().create_challenge(asked).await;
        assert_refused(challenge, Reason::TargetOutranksCaller);
        let request = pb::ListCredentialsRequest {
            parent: bob.name().to_owned(),
            ..Default::default()
        };
        let listed = ann.actor.credentials().list_credentials(request).await.expect("listed");
        for credential in listed.into_inner().credentials {
            let request = pb::DeleteCredentialRequest {
                name: credential.name,
                ..Default::default()
            };
            pending(ann.actor.credentials().delete_credential(request).await);
        }
        let contact = contacts::email("ann@example.com", &[]);
        let request = pb::CreateContactRequest {
            parent: bob.name().to_owned(),
            contact: Some(contact),
            ..Default::default()
        };
        pending(ann.actor.contacts().create_contact(request.clone()).await);
        bob.actor.contacts().create_contact(request).await.expect("his own");

        // What takes away may be done at once; what gives back may not.
        let request = pb::RevokeSessionsRequest {
            user: bob.name().to_owned(),
            ..Default::default()
        };
        ann.actor.sessions().revoke_sessions(request).await.expect("alone");
        ann.actor.suspend_user(bob.name()).await.expect("alone");
        let request = pb::ResumeUserRequest {
            name: bob.name().to_owned(),
            ..Default::default()
        };
        pending(ann.actor.users().resume_user(request).await);
        let request = pb::DeleteUserRequest {
            name: bob.name().to_owned(),
            ..Default::default()
        };
        ann.actor.users().delete_user(request).await.expect("alone");
        let request = pb::UndeleteUserRequest {
            name: bob.name().to_owned(),
            ..Default::default()
        };
        pending(ann.actor.users().undelete_user(request).await);
        let over = pb::UpdateUserRequest {
            user: Some(pb::User {
                name: ann.name().to_owned(),
                expire_time: Some(Timestamp {
                    seconds: server.now().seconds() + 60,
                    nanos: 0,
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        ann.actor.users().update_user(over).await.expect("for less long");
    }

    async fn nobody_who_may_agree_comes_back_or_stays_longer_by_one_person(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = operator(&server, "ann").await;
        let eve = person(&server, "eve", &["roles/operator"]).await;
        let bootstrap = bootstrap(&server).await;
        let robot = robot_operator(&bootstrap, ann.name()).await.name;
        let until = |seconds: i64| Timestamp {
            seconds: server.now().seconds() + seconds,
            nanos: 0,
        };
        let mask = || Some(FieldMask {
            paths: vec!["expire_time".to_owned()],
        });
        let let_user = async |expire_time: Option<Timestamp>| {
            let request = pb::UpdateUserRequest {
                user: Some(pb::User {
                    name: eve.name().to_owned(),
                    expire_time,
                    ..Default::default()
                }),
                update_mask: mask(),
                ..Default::default()
            };
            ann.actor.users().update_user(request).await.map(drop)
        };
        let let_program = async |expire_time: Option<Timestamp>| {
            let request = pb::UpdateSystemAccountRequest {
                system_account: Some(pb::SystemAccount {
                    name: robot.clone(),
                    expire_time,
                    ..Default::default()
                }),
                update_mask: mask(),
                ..Default::default()
            };
            ann.actor.system_accounts().update_system_account(request).await.map(drop)
        };
        let_user(Some(until(60))).await.expect("for less long");
        let_program(Some(until(60))).await.expect("for less long");
        for longer in [Some(until(61)), None] {
            pending(let_user(longer).await);
            pending(let_program(longer).await);
        }

        let suspend = pb::SuspendSystemAccountRequest {
            name: robot.clone(),
            ..Default::default()
        };
        ann.actor.system_accounts().suspend_system_account(suspend).await.expect("alone");
        let resume = pb::ResumeSystemAccountRequest {
            name: robot.clone(),
            ..Default::default()
        };
        pending(ann.actor.system_accounts().resume_system_account(resume).await);
        // Nor by a suspension that is over soon.
        let sooner = pb::SuspendSystemAccountRequest {
            name: robot.clone(),
            until_time: Some(until(1)),
            ..Default::default()
        };
        pending(ann.actor.system_accounts().suspend_system_account(sooner).await);
        let suspend = async |until_time: Option<Timestamp>| {
            let request = pb::SuspendUserRequest {
                name: eve.name().to_owned(),
                until_time,
                ..Default::default()
            };
            ann.actor.users().suspend_user(request).await
        };
        suspend(Some(until(100))).await.expect("alone");
        pending(suspend(Some(until(99))).await);
        suspend(Some(until(101))).await.expect("for longer");
        suspend(None).await.expect("for good");
        pending(suspend(Some(until(1_000))).await);
        let delete = pb::DeleteSystemAccountRequest {
            name: robot.clone(),
            ..Default::default()
        };
        ann.actor.system_accounts().delete_system_account(delete).await.expect("alone");
        let undelete = pb::UndeleteSystemAccountRequest {
            name: robot.clone(),
            ..Default::default()
        };
        pending(ann.actor.system_accounts().undelete_system_account(undelete).await);
    }

    async fn nobody_has_the_account_of_the_machine_s_owner_but_they(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = operator(&server, "ann").await;
        let text = fs::read_to_string(server.config.data_dir.join("bootstrap.json")).expect("a file");
        let file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let name = format!("systemAccounts/{}", file["client_id"].as_str().expect("an id"));
        let own = bootstrap(&server).await;
        assert_refused(ann.actor.create_secret(&name).await, Reason::BuiltIn);
        assert_refused(own.create_secret("systemAccounts/me").await, Reason::BuiltIn);
        let request = pb::ListCredentialsRequest {
            parent: name,
            ..Default::default()
        };
        let listed = ann.actor.credentials().list_credentials(request).await.expect("listed");
        let request = pb::RotateCredentialRequest {
            name: listed.into_inner().credentials[0].name.clone(),
            ..Default::default()
        };
        let rotated = ann.actor.credentials().rotate_credential(request).await;
        assert_refused(rotated, Reason::BuiltIn);
    }

    async fn who_could_not_agree_counts_for_nobody(engine: Engine) {
        let server = server(engine, &["DeleteUser", "CreateGrant"]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let carol = operator(&server, "carol").await;
        let manager = person(&server, "mona", &["roles/user-manager"]).await;
        let eve = user(&server, "eve").await;
        let delete = |by: &Actor| {
            let request = pb::DeleteUserRequest {
                name: eve.name.clone(),
                ..Default::default()
            };
            let by = by.clone();
            async move { by.users().delete_user(request).await }
        };
        // Ann could have made Mona, or have her password.
        let name = pending(delete(&manager.actor).await);
        assert_eq!(approve(&ann.actor, &name).await.expect("the first").state(), State::Pending);
        // The word of who may not any more is nobody's.
        bootstrap(&server).await.suspend_user(ann.name()).await.expect("suspended");
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
        deny(&bob.actor, &name).await.expect("to be asked for anew");
        let scopes = ["changes.approve", "users.delete"].map(|it| format!("scopes/accountd:{it}"));
        let (dora, _) = approver(&server, "dora", &scopes.each_ref().map(String::as_str)).await;
        let (manager, bob) = (server.sign_in("mona").await, bob);
        let name = pending(delete(&manager.actor).await);
        approve(&dora.actor, &name).await.expect("the first");
        take(&bootstrap(&server).await, dora.name(), &scopes[0]).await;
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
        deny(&bob.actor, &name).await.expect("to be asked for anew");
        let name = pending(delete(&manager.actor).await);
        approve(&bob.actor, &name).await.expect("the first");
        let done = approve(&carol.actor, &name).await.expect("the second");
        assert_eq!(done.approved_by, [bob.name(), carol.name()]);

        // Whoever is `me` in a request is who asked.
        let request = grant_request("users/me", "scopes/accountd:events.read");
        let name = pending(bob.actor.grants().create_grant(request).await);
        let scopes = ["changes.approve", "grants.write", "events.read"].map(|it| format!("scopes/accountd:{it}"));
        let (frank, _) = approver(&server, "frank", &scopes.each_ref().map(String::as_str)).await;
        // He could for himself.
        assert_refused(approve(&frank.actor, &name).await, Reason::TargetOutranksCaller);
        approve(&carol.actor, &name).await.expect("approved");
        let of = async |name: &str| grants_of(&bob.actor, name, "scopes/accountd:events.read").await.len();
        assert_eq!((of(bob.name()).await, of(carol.name()).await), (1, 0));
    }

    async fn whoever_agreed_first_could_still_do_it_when_it_is_done(engine: Engine) {
        let server = server(engine, &["DeleteUser"]).await;
        let scopes = ["changes.approve", "users.delete", "users.read"].map(|it| format!("scopes/accountd:{it}"));
        let scopes = scopes.each_ref().map(String::as_str);
        let (ann, _) = approver(&server, "ann", &scopes).await;
        let bob = operator(&server, "bob").await;
        let manager = person(&server, "mona", &["roles/user-manager"]).await;
        let agreed = async |who: &str| {
            let request = pb::DeleteUserRequest {
                name: user(&server, who).await.name,
                ..Default::default()
            };
            let name = pending(manager.actor.users().delete_user(request).await);
            assert_eq!(approve(&ann.actor, &name).await.expect("the first").state(), State::Pending);
            name
        };
        // The scopes of the call count as much as that to agree.
        let name = agreed("eve").await;
        take(&bootstrap(&server).await, ann.name(), scopes[1]).await;
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
        assert_eq!(get(&bob.actor, &name).await.expect("there").state(), State::Pending);
        let again = grant_request(ann.name(), scopes[1]);
        bootstrap(&server).await.grants().create_grant(again).await.expect("alone");
        approve(&bob.actor, &name).await.expect("could again");

        // And so does the session they agreed in.
        let name = agreed("frank").await;
        let request = pb::RevokeSessionRequest { name: ann.tokens.session.clone(), ..Default::default() };
        ann.actor.sessions().revoke_session(request).await.expect("signed out");
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
        deny(&bob.actor, &name).await.expect("to be asked for anew");
    }

    async fn what_was_asked_for_with_a_secret_is_not_done_by_what_needs_a_key(engine: Engine) {
        let server = server(engine, &["SuspendUser"]).await;
        let (ann, bob) = (operator(&server, "ann").await, operator(&server, "bob").await);
        let eve = user(&server, "eve").await;
        let bootstrap = bootstrap(&server).await;
        let program = Program::new(&server, Algorithm::ES256, SystemAccountKind::Service).await;
        let (id, name) = (program.id(), &program.account.name);
        let suspend = "scopes/accountd:users.suspend";
        grant(&bootstrap, name, suspend).await.expect("alone");
        let secret = bootstrap.create_secret(name).await.expect("a secret").secret;
        let request = pb::SuspendUserRequest {
            name: eve.name,
            ..Default::default()
        };
        let by_secret = server.client(&id, &secret).await;
        let change = pending(by_secret.users().suspend_user(request).await);
        approve(&ann.actor, &change).await.expect("the first");
        // The scope is there still, but not for who comes with a secret.
        take(&bootstrap, name, suspend).await;
        roles::create(&bootstrap, roles::role("roles/suspender", &[suspend])).await.expect("made");
        let rule = pb::Entitlement {
            role: "roles/suspender".to_owned(),
            step_up_required: true,
            ..elevations::entitlement(name, &[])
        };
        let rule = elevations::entitle(&bootstrap, rule).await.expect("entitled");
        elevations::ask(&program.actor(&server).await, elevations::wish(&rule)).await.expect("in effect");
        assert_refused(approve(&bob.actor, &change).await, Reason::WrongState);
    }

    async fn a_change_lapses_with_the_session_it_was_asked_for_in(engine: Engine) {
        let server = engine.server_with(|config| {
            config.four_eyes = config::FourEyes::default();
            config.sessions.idle_lifetime_s = 600;
        });
        let server = server.await;
        let (ann, bob) = (operator(&server, "ann").await, approver(&server, "bob", &["roles/operator"]).await);
        let eve = user(&server, "eve").await;
        let name = pending(grant(&ann.actor, &eve.name, "roles/operator").await);
        server.advance_s(601);
        let bob = factors::enter(&server, "bob", &bob.1, 0).await;
        assert_refused(approve(&bob.actor, &name).await, Reason::WrongState);
    }

    async fn what_cannot_be_shown_does_not_wait(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = person(&server, "ann", &["roles/operator"]).await;
        let eve = server.user("eve").await;
        // JSON has no such time, though nobody reads the field.
        let mut request = grant_request(&eve.name, "roles/operator");
        if let Some(grant) = &mut request.grant {
            grant.create_time = Some(Timestamp {
                seconds: i64::MAX,
                nanos: 0,
            });
        }
        assert_refused(ann.actor.grants().create_grant(request).await, Reason::InvalidField);
        let mut request = grant_request(&eve.name, "roles/operator");
        if let Some(grant) = &mut request.grant {
            grant.etag = "x".repeat(33_000);
        }
        assert_refused(ann.actor.grants().create_grant(request).await, Reason::LimitReached);
        assert_eq!(list(&ann.actor, "").await, Vec::<String>::new());
    }

    async fn of_two_who_agree_at_once_one_carries_it_out(engine: Engine) {
        let server = server(engine, &["CreateUser"]).await;
        let ann = operator(&server, "ann").await;
        let mut others = Vec::new();
        for username in ["bob", "carol", "dora", "emma"] {
            others.push(operator(&server, username).await);
        }
        let eve = user(&server, "eve").await;
        let mut all = 0;
        for round in 1..=4 {
            // Of the second kind nothing is unique, and the transaction is not serializable.
            let name = if round <= 2 {
                pending(grant(&ann.actor, &eve.name, "roles/operator").await)
            } else {
                pending(ann.actor.create_user(pb::User::default()).await)
            };
            let mut calls = JoinSet::new();
            for other in &others {
                let (actor, name) = (other.actor.clone(), name.clone());
                calls.spawn(async move { approve(&actor, &name).await });
            }
            if round % 2 == 0 {
                let (actor, denied) = (ann.actor.clone(), name.clone());
                calls.spawn(async move { deny(&actor, &denied).await });
            }
            let outcomes = calls.join_all().await;
            let (done, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
            assert_eq!(done.len(), 1, "{refused:?}");
            for outcome in refused {
                let reason = outcome.reason();
                let expected = ["WRONG_STATE", "TRANSACTION_CONFLICT", "ETAG_MISMATCH"];
                assert!(expected.contains(&&*reason), "{reason}");
            }
            let is_approved = done[0].as_ref().is_ok_and(|it| it.state() == State::Approved);
            let kept = get(&ann.actor, &name).await.expect("kept").state() == State::Approved;
            assert_eq!(is_approved, kept);
            all += usize::from(is_approved);
            let events = [server.events("grant.created").await, server.events("user.created").await];
            let by_ann = events.iter().flatten().filter(|it| it.actor == ann.name());
            assert_eq!(by_ann.count(), all);
        }
        assert!(all >= 2, "which nobody took back");
    }

    async fn nobody_piles_up_changes(engine: Engine) {
        let server = server(engine, &[]).await;
        let ann = operator(&server, "ann").await;
        let eve = server.user("eve").await;
        let ask = async |number: usize| {
            let mut request = grant_request(&eve.name, "roles/operator");
            if let Some(grant) = &mut request.grant {
                grant.reason = format!("number {number}");
            }
            ann.actor.grants().create_grant(request).await
        };
        for number in 0..100 {
            pending(ask(number).await);
        }
        assert_refused(ask(100).await, Reason::LimitReached);
        pending(ask(99).await);
        assert_eq!(list(&ann.actor, "").await.len(), 100);
    }
}

async fn grants_of(by: &Actor, principal: &str, permission: &str) -> Vec<pb::Grant> {
    let kind = if permission.starts_with("roles/") {
        "role"
    } else {
        "scope"
    };
    let request = pb::ListGrantsRequest {
        filter: format!("principal = \"{principal}\" AND {kind} = \"{permission}\""),
        ..Default::default()
    };
    let grants = by.grants().list_grants(request).await.expect("listed");
    grants.into_inner().grants
}

/// Takes back what somebody was granted.
async fn take(by: &Actor, principal: &str, permission: &str) {
    let granted = grants_of(by, principal, permission).await.remove(0);
    let request = pb::DeleteGrantRequest {
        name: granted.name,
        ..Default::default()
    };
    by.grants().delete_grant(request).await.expect("taken back");
}

async fn list_entitlements(by: &Actor) -> Vec<pb::Entitlement> {
    let request = pb::ListEntitlementsRequest::default();
    let listed = by.elevations().list_entitlements(request).await;
    listed.expect("listed").into_inner().entitlements
}

async fn end(
    by: &Actor,
    grant: &pb::Grant,
    expire_time: Option<Timestamp>,
) -> Result<pb::Grant, Status> {
    let request = pb::UpdateGrantRequest {
        grant: Some(pb::Grant {
            name: grant.name.clone(),
            expire_time,
            ..Default::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["expire_time".to_owned()],
        }),
        ..Default::default()
    };
    Ok(by.grants().update_grant(request).await?.into_inner())
}

//! GrantService: nobody hands out, or takes back, what they do not hold.

use accountd::{domain::error::Reason, grpc::pb};
use pb::grant::Permission;
use tonic::Status;

use crate::{
    credentials::{redeem, reset_code},
    groups,
    harness::{Actor, Engine, assert_refused, fields_of, grant_request, on_both_engines},
    scopes::{self, scope},
};

on_both_engines! {
    async fn a_grant_reaches_its_principal_with_the_next_token(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.signed_in("alice").await;
        let list = async |actor: &Actor| actor.users().list_users(pb::ListUsersRequest::default()).await;
        assert_refused(list(&alice.actor).await, Reason::ScopeMissing);
        let grant = create(&operator, grant_request(alice.name(), "scopes/accountd:users.read")).await.expect("granted");
        assert_eq!((&*grant.principal, &grant.granted_by), (alice.name(), &server.operator_name()));
        assert_refused(list(&alice.actor).await, Reason::ScopeMissing);
        let anonymous = server.anonymous().await;
        let tokens = anonymous.refresh(&alice.tokens.refresh_token).await.expect("refreshed");
        list(&server.with_token(&tokens.access_token).await).await.expect("holds the scope");
        delete(&operator, &grant).await.expect("taken back");
        let tokens = anonymous.refresh(&tokens.refresh_token).await.expect("refreshed");
        assert_eq!(tokens.scopes.len(), 0);
        let event = &server.events("grant.deleted").await[0];
        assert_eq!((&*event.account, &*event.details["permission"]), (alice.name(), "scopes/accountd:users.read"));
    }

    async fn a_grant_holds_within_its_window(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&[]).await;
        let at = |seconds: i64| Some(prost_types::Timestamp { seconds: server.now().seconds() + seconds, nanos: 0 });
        let mut request = grant_request(&account.name, "scopes/accountd:users.read");
        let grant = request.grant.as_mut().expect("set");
        (grant.start_time, grant.expire_time) = (at(60), at(120));
        create(&operator, request.clone()).await.expect("granted");
        let anonymous = server.anonymous().await;
        let scopes = async || anonymous.issue(&account.uid, &secret).await.expect("a token");
        assert_eq!(scopes().await.scopes.len(), 0);
        let end = request.grant.as_ref().expect("set").expire_time.expect("set").seconds;
        server.advance_s(60);
        let tokens = scopes().await;
        assert_eq!((tokens.scopes.len(), tokens.access_expire_time.expect("set").seconds), (1, end));
        server.advance_s(60);
        assert_eq!(scopes().await.scopes.len(), 0);

        let operator = server.operator().await;
        for (start, end) in [(Some(30), Some(30)), (None, Some(0)), (Some(60), Some(30))] {
            let grant = request.grant.as_mut().expect("set");
            (grant.start_time, grant.expire_time) = (start.and_then(at), end.and_then(at));
            assert_eq!(fields_of(create(&operator, request.clone()).await), ["grant.expire_time"]);
        }
    }

    async fn nobody_grants_what_they_do_not_hold(engine: Engine) {
        let server = engine.server().await;
        let alice = server.user("alice").await;
        let granter = ["scopes/accountd:grants.write", "scopes/accountd:users.read"];
        let (account, secret) = server.create_system_account(&granter).await;
        let granter = server.client(&account.uid, &secret).await;
        create(&granter, grant_request(&alice.name, "scopes/accountd:users.read")).await.expect("its own");
        for more in ["scopes/accountd:users.update", "roles/auditor", "roles/operator"] {
            let refused = create(&granter, grant_request(&alice.name, more)).await;
            assert_refused(refused, Reason::ScopeNotHeld);
            // Nor to itself.
            let refused = create(&granter, grant_request(&account.name, more)).await;
            assert_refused(refused, Reason::ScopeNotHeld);
        }
        // A token that asked for less holds less.
        let request = pb::IssueTokenRequest {
            client_id: account.uid.clone(),
            client_secret: secret,
            scopes: vec!["grants.write".to_owned()],
            ..Default::default()
        };
        let tokens = server.anonymous().await.tokens().issue_token(request).await.expect("a token").into_inner();
        let narrow = server.with_token(&tokens.access_token).await;
        let refused = create(&narrow, grant_request(&alice.name, "scopes/accountd:users.read")).await;
        assert_refused(refused, Reason::ScopeNotHeld);
    }

    async fn nobody_takes_back_what_they_could_not_have_given(engine: Engine) {
        let server = engine.server().await;
        let alice = server.user("alice").await;
        let of_operator = server.grant(&alice.name, "roles/auditor").await;
        let granter = server.system_account(&["scopes/accountd:grants.write"]).await;
        assert_refused(delete(&granter, &of_operator).await, Reason::ScopeNotHeld);
        // Power over the principal is needed, whatever the grant.
        let granter = ["scopes/accountd:grants.write", "scopes/accountd:users.read"];
        let granter = server.system_account(&granter).await;
        let refused = create(&granter, grant_request(&alice.name, "scopes/accountd:users.read")).await;
        assert_refused(refused, Reason::TargetOutranksCaller);
    }

    async fn what_is_granted_exists(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        for unknown in ["roles/emperor", "scopes/accountd:everything", "scopes/billing:pay", "scopes/x", "users.read"] {
            assert_refused(create(&operator, grant_request(&alice.name, unknown)).await, Reason::NotFound);
        }
        let nobody = "users/018f0000-0000-7000-8000-000000000000";
        assert_refused(create(&operator, grant_request(nobody, "roles/auditor")).await, Reason::NotFound);
        let empty = pb::CreateGrantRequest::default();
        assert_eq!(fields_of(create(&operator, empty).await), ["grant.principal", "grant.role"]);
        let mixed = pb::CreateGrantRequest {
            grant: Some(pb::Grant {
                principal: alice.name.clone(),
                permission: Some(Permission::Role("scopes/accountd:users.read".to_owned())),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_refused(create(&operator, mixed).await, Reason::NotFound);
        let request = pb::DeleteUserRequest { name: alice.name.clone(), ..Default::default() };
        operator.users().delete_user(request).await.expect("deleted");
        assert_refused(create(&operator, grant_request(&alice.name, "roles/auditor")).await, Reason::WrongState);
    }

    async fn lists_show_what_their_filters_say(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        let bob = server.user("bob").await;
        for (who, what) in [(&alice, "roles/auditor"), (&alice, "scopes/accountd:users.read"), (&bob, "roles/auditor")] {
            server.advance_s(1);
            server.grant(&who.name, what).await;
        }
        let list = async |filter: &str| -> Vec<(String, String)> {
            let mut seen = Vec::new();
            let mut request = pb::ListGrantsRequest { page_size: 1, filter: filter.to_owned(), ..Default::default() };
            loop {
                let page = operator.grants().list_grants(request.clone()).await.expect("a page").into_inner();
                seen.extend(page.grants.into_iter().map(|grant| {
                    let permission = match grant.permission {
                        Some(Permission::Role(name) | Permission::Scope(name)) => name,
                        None => String::new(),
                    };
                    (grant.principal, permission)
                }));
                if page.next_page_token.is_empty() {
                    return seen;
                }
                request.page_token = page.next_page_token;
            }
        };
        let pair = |who: &pb::User, what: &str| (who.name.clone(), what.to_owned());
        assert_eq!(
            list(&format!("principal = \"{}\"", alice.name)).await,
            [pair(&alice, "roles/auditor"), pair(&alice, "scopes/accountd:users.read")]
        );
        assert_eq!(list("role = \"roles/auditor\"").await, [pair(&alice, "roles/auditor"), pair(&bob, "roles/auditor")]);
        assert_eq!(list("scope = \"scopes/accountd:users.read\"").await, [pair(&alice, "scopes/accountd:users.read")]);
        let both = format!("principal = \"{}\" AND role = \"roles/auditor\"", bob.name);
        assert_eq!(list(&both).await, [pair(&bob, "roles/auditor")]);
        let crew = groups::create(&operator, "Crew").await;
        server.grant(&crew, "scopes/accountd:keys.read").await;
        groups::add(&operator, &crew, &bob.name).await.expect("added");
        assert_eq!(list(&format!("principal = \"{crew}\"")).await, [(crew.clone(), "scopes/accountd:keys.read".to_owned())]);
        assert_eq!(list(&format!("principal = \"{}\"", bob.name)).await.len(), 1, "its own");
        assert!(list("role = \"roles/emperor\"").await.is_empty(), "nobody has it");
        for bad in ["role = \"roles/Emperor\"", "role = \"scopes/accountd:users.read\"", "principal = alice", "reason = x"] {
            let request = pb::ListGrantsRequest { filter: bad.to_owned(), ..Default::default() };
            assert_refused(operator.grants().list_grants(request).await, Reason::InvalidFilter);
        }
    }

    async fn a_grant_is_made_longer_and_shorter(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&[]).await;
        let grant = server.grant(&account.name, "scopes/accountd:users.read").await;
        let at = |seconds: i64| Some(prost_types::Timestamp { seconds: server.now().seconds() + seconds, nanos: 0 });
        let with = |grant: &pb::Grant, end: Option<prost_types::Timestamp>| pb::Grant { expire_time: end, ..grant.clone() };
        let shorter = update(&operator, with(&grant, at(60)), &["expire_time"]).await.expect("shorter");
        assert_eq!((shorter.expire_time, &shorter.granted_by), (at(60), &grant.granted_by));
        assert_refused(update(&operator, with(&grant, at(90)), &["expire_time"]).await, Reason::EtagMismatch);
        let anonymous = server.anonymous().await;
        let tokens = anonymous.issue(&account.uid, &secret).await.expect("a token");
        assert_eq!(tokens.access_expire_time, at(60));
        let reason = pb::Grant { reason: "an audit".to_owned(), ..shorter.clone() };
        let explained = update(&operator, reason, &[]).await.expect("explained");
        assert_eq!((&*explained.reason, explained.expire_time), ("an audit", shorter.expire_time));
        assert_eq!(fields_of(update(&operator, with(&explained, at(0)), &["expire_time"]).await), ["grant.expire_time"]);
        let refused = update(&operator, explained.clone(), &["principal"]).await;
        assert_eq!(fields_of(refused), ["update_mask"]);
        let lasting = update(&operator, with(&explained, None), &["expire_time"]).await.expect("without end");
        assert_eq!(lasting.expire_time, None);
        let missing = pb::Grant { name: "grants/018f0000-0000-7000-8000-000000000000".to_owned(), ..Default::default() };
        assert_refused(update(&operator, missing, &["reason"]).await, Reason::NotFound);
        let mut later = grant_request(&account.name, "scopes/accountd:keys.read");
        later.grant.as_mut().expect("set").start_time = at(600);
        let later = create(&operator, later).await.expect("granted");
        assert_eq!(fields_of(update(&operator, with(&later, at(600)), &["expire_time"]).await), ["grant.expire_time"]);
        assert_eq!(server.events("grant.updated").await.len(), 3);
    }

    async fn nobody_makes_a_grant_longer_than_they_could_have_given(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        let at = |seconds: i64| Some(prost_types::Timestamp { seconds: server.now().seconds() + seconds, nanos: 0 });
        let lend = async |principal: &str, scope: &str| {
            let mut request = grant_request(principal, scope);
            request.grant.as_mut().expect("set").expire_time = at(60);
            create(&operator, request).await.expect("lent")
        };
        let (account, secret) = server.create_system_account(&["scopes/accountd:grants.write"]).await;
        let own = lend(&account.name, "scopes/accountd:users.read").await;
        let of_alice = lend(&alice.name, "scopes/accountd:users.read").await;
        scopes::create(&operator, scope("scopes/shop:pack")).await.expect("made");
        let of_other = lend(&alice.name, "scopes/shop:pack").await;
        let other = lend(&server.user("bob").await.name, "scopes/accountd:keys.read").await;
        let borrower = server.client(&account.uid, &secret).await;
        for grant in [&own, &of_alice] {
            for end in [None, at(90)] {
                let longer = pb::Grant { expire_time: end, ..grant.clone() };
                assert_eq!(fields_of(update(&borrower, longer, &["expire_time"]).await), ["grant.expire_time"]);
            }
        }
        let shorter = pb::Grant { expire_time: at(30), ..of_alice };
        update(&borrower, shorter, &["expire_time"]).await.expect("as long as it is held");
        for grant in [other, of_other] {
            let shorter = pb::Grant { expire_time: at(30), ..grant };
            assert_refused(update(&borrower, shorter, &["expire_time"]).await, Reason::ScopeNotHeld);
        }
        let (greater, _) = server.create_system_account(&["roles/operator"]).await;
        let of_greater = lend(&greater.name, "scopes/accountd:users.read").await;
        let shorter = pb::Grant { expire_time: at(30), ..of_greater };
        assert_refused(update(&borrower, shorter, &["expire_time"]).await, Reason::TargetOutranksCaller);
    }

    async fn a_grant_that_begins_anew_voids_codes_made_without_it(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let frontend = server.frontend().await;
        let alice = server.user("alice").await;
        let mut request = grant_request(&alice.name, "scopes/accountd:keys.write");
        let end = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        request.grant.as_mut().expect("set").expire_time = Some(end);
        let grant = create(&operator, request).await.expect("granted");
        server.advance_s(60);
        let operator = server.operator().await;
        let code = reset_code(&frontend, &alice.name).await.expect("made for somebody without power");
        update(&operator, pb::Grant { expire_time: None, ..grant }, &["expire_time"]).await.expect("anew");
        assert_refused(redeem(&frontend, &code, "four calm walruses").await, Reason::InvalidCode);
    }

    async fn what_is_over_begins_anew_for_nobody_who_is_deleted(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        let mut request = grant_request(&alice.name, "scopes/accountd:users.read");
        let end = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        request.grant.as_mut().expect("set").expire_time = Some(end);
        let grant = create(&operator, request).await.expect("granted");
        let request = pb::DeleteUserRequest { name: alice.name, ..Default::default() };
        operator.users().delete_user(request).await.expect("deleted");
        server.advance_s(60);
        let operator = server.operator().await;
        let anew = update(&operator, pb::Grant { expire_time: None, ..grant }, &["expire_time"]).await;
        assert_refused(anew, Reason::WrongState);
    }

    async fn a_grant_is_taken_back_once(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        let grant = server.grant(&alice.name, "roles/auditor").await;
        let request = pb::DeleteGrantRequest {
            name: grant.name.clone(),
            etag: "r2".to_owned(),
            ..Default::default()
        };
        assert_refused(operator.grants().delete_grant(request).await, Reason::EtagMismatch);
        delete(&operator, &grant).await.expect("taken back");
        assert_refused(delete(&operator, &grant).await, Reason::NotFound);
        let request = pb::GetGrantRequest { name: grant.name };
        assert_refused(operator.grants().get_grant(request).await, Reason::NotFound);
    }
}

async fn create(actor: &Actor, request: pb::CreateGrantRequest) -> Result<pb::Grant, Status> {
    Ok(actor.grants().create_grant(request).await?.into_inner())
}

async fn update(actor: &Actor, grant: pb::Grant, paths: &[&str]) -> Result<pb::Grant, Status> {
    let request = pb::UpdateGrantRequest {
        grant: Some(grant),
        update_mask: Some(prost_types::FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    };
    Ok(actor.grants().update_grant(request).await?.into_inner())
}

async fn delete(actor: &Actor, grant: &pb::Grant) -> Result<(), Status> {
    let request = pb::DeleteGrantRequest {
        name: grant.name.clone(),
        etag: grant.etag.clone(),
        ..Default::default()
    };
    actor.grants().delete_grant(request).await?;
    Ok(())
}

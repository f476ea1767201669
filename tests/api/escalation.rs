//! Ways around the rules that somebody with a little power, or with a stolen token, might try.

use std::sync::atomic::Ordering::Relaxed;

use accountd::{domain::error::Reason, grpc::pb, jobs};
use pb::credential::{ClientSecret, Detail};
use prost_types::FieldMask;
use tokio::task::JoinSet;

use crate::{
    contacts,
    credentials::{self, redeem, reset_code},
    elevations,
    harness::{
        Actor, Engine, Refusal as _, Server, assert_refused, fields_of, grant_request,
        on_both_engines, password,
    },
    scopes,
};

on_both_engines! {
    async fn a_stolen_token_sets_no_password(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let hashes = server.running.app.hasher.stats().hashes.load(Relaxed);
        let credential = pb::Credential {
            detail: Some(pb::credential::Detail::Password(pb::credential::Password {
                value: "the thief's own password".to_owned(),
                ..Default::default()
            })),
            ..Default::default()
        };
        let create = pb::CreateCredentialRequest {
            parent: "users/me".to_owned(),
            credential: Some(credential),
            ..Default::default()
        };
        let refused = alice.actor.credentials().create_credential(create.clone()).await;
        assert_refused(refused, Reason::AlreadyExists);
        assert_eq!(server.running.app.hasher.stats().hashes.load(Relaxed), hashes, "and costs nothing");

        // Not even in the moment in which the old one goes.
        let list = pb::ListCredentialsRequest { parent: "users/me".to_owned(), ..Default::default() };
        let listed = alice.actor.credentials().list_credentials(list).await.expect("a list").into_inner();
        let delete = pb::DeleteCredentialRequest { name: listed.credentials[0].name.clone(), ..Default::default() };
        let mut calls = JoinSet::new();
        for _ in 0..16 {
            let (actor, create) = (alice.actor.clone(), create.clone());
            calls.spawn(async move { actor.credentials().create_credential(create).await.outcome() });
        }
        alice.actor.credentials().delete_credential(delete).await.expect("deleted");
        let outcomes = calls.join_all().await;
        assert!(outcomes.iter().all(|outcome| outcome != "OK"), "{outcomes:?}");
        let thief = server.anonymous().await.sign_in("alice", "the thief's own password").await;
        assert_refused(thief, Reason::InvalidCredentials);
    }

    async fn one_id_names_one_account_of_either_kind(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let user = server.user("alice").await;
        let (robot, _) = server.create_system_account(&[]).await;
        let create_user = async |id: &str| {
            let request = pb::CreateUserRequest { user: Some(pb::User::default()), user_id: id.to_owned(), ..Default::default() };
            operator.users().create_user(request).await
        };
        let create_robot = async |id: &str| {
            let account = pb::SystemAccount { name: String::new(), ..robot.clone() };
            let request = pb::CreateSystemAccountRequest {
                system_account: Some(account),
                system_account_id: id.to_owned(),
                ..Default::default()
            };
            operator.system_accounts().create_system_account(request).await
        };
        assert_refused(create_user(&robot.uid).await, Reason::AlreadyExists);
        assert_refused(create_robot(&user.uid).await, Reason::AlreadyExists);
        for nobody in [uuid::Uuid::nil(), uuid::Uuid::max()] {
            assert_eq!(fields_of(create_user(&nobody.to_string()).await), ["user_id"]);
            assert_eq!(fields_of(create_robot(&nobody.to_string()).await), ["system_account_id"]);
        }
    }

    async fn who_has_to_wait_takes_nobody_s_place(engine: Engine) {
        let server = engine.server_with(|config| config.hashing.lanes = 1).await;
        server.user("alice").await;
        let anonymous = server.anonymous().await;
        for _ in 0..5 {
            assert_refused(anonymous.sign_in("alice", "a guess at the password").await, Reason::InvalidCredentials);
        }
        let stats = server.running.app.hasher.stats();
        let (hashes, refused) = (stats.hashes.load(Relaxed), stats.refused.load(Relaxed));
        let mut guesses = JoinSet::new();
        for _ in 0..100 {
            let actor = anonymous.clone();
            guesses.spawn(async move { actor.sign_in("alice", "a guess at the password").await.outcome() });
        }
        let outcomes = guesses.join_all().await;
        assert!(outcomes.iter().all(|outcome| outcome == "RESOURCE_EXHAUSTED THROTTLED"), "{outcomes:?}");
        assert_eq!(stats.hashes.load(Relaxed), hashes);
        assert_eq!(stats.refused.load(Relaxed), refused, "nobody found the queue full");
    }

    async fn bodies_take_no_more_memory_than_there_is_for_them(engine: Engine) {
        let server = engine.server_with(|config| config.limits.max_received_bytes = 8_000).await;
        let operator = server.operator().await;
        let create = async |length: usize| {
            let user = pb::User { display_name: "x".repeat(length), ..Default::default() };
            operator.create_user(user).await.outcome()
        };
        assert_eq!(create(100).await, "OK");
        assert_eq!(create(9_000).await, "RESOURCE_EXHAUSTED OVERLOADED");
        let json = reqwest::Client::new()
            .post(server.url("/v1/users"))
            .bearer_auth(operator.token())
            .json(&serde_json::json!({ "user": { "displayName": "x".repeat(9_000) } }));
        assert_eq!(json.send().await.expect("an answer").status().as_u16(), 429);
        assert_eq!(create(100).await, "OK");
    }

    async fn a_narrow_token_of_a_person_does_not_make_itself_whole(engine: Engine) {
        let server = engine.server().await;
        let alice = server.user("alice").await;
        server.grant(&alice.name, "roles/operator").await;
        let request = pb::CreateSessionRequest {
            identifier: "alice".to_owned(),
            password: password("alice"),
            scopes: vec!["credentials.reset".to_owned()],
            ..Default::default()
        };
        let anonymous = server.anonymous().await;
        let answer = anonymous.sessions().create_session(request).await.expect("signed in").into_inner();
        let narrow = crate::harness::SignedIn::new(&anonymous, answer).actor;
        assert_refused(reset_code(&narrow, &alice.name).await, Reason::TargetOutranksCaller);
    }

    async fn a_token_does_not_bring_back_what_was_taken_from_its_account(engine: Engine) {
        let server = engine.server().await;
        let (account, secret) = server.create_system_account(&["roles/operator"]).await;
        let demoted = server.client(&account.uid, &secret).await;
        let filter = format!("principal = \"{}\"", account.name);
        let list = pb::ListGrantsRequest { filter, ..Default::default() };
        let grants = demoted.grants().list_grants(list).await.expect("a list").into_inner().grants;
        let name = grants[0].name.clone();
        server.operator().await.grants().delete_grant(pb::DeleteGrantRequest { name, ..Default::default() }).await.expect("taken");
        let again = demoted.grants().create_grant(grant_request(&account.name, "roles/operator")).await;
        assert_refused(again, Reason::ScopeNotHeld);
    }

    async fn what_is_held_for_a_while_is_granted_for_no_longer(engine: Engine) {
        let server = engine.server().await;
        let (account, secret) = server.create_system_account(&[]).await;
        let end = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        let mut request = grant_request(&account.name, "roles/operator");
        request.grant.as_mut().expect("set").expire_time = Some(end);
        server.operator().await.grants().create_grant(request.clone()).await.expect("for a minute");
        let elevated = server.client(&account.uid, &secret).await;
        let forever = elevated.grants().create_grant(grant_request(&account.name, "roles/operator")).await;
        assert_eq!(fields_of(forever), ["grant.expire_time"]);
        elevated.grants().create_grant(request).await.expect("as long as it is held");
    }

    async fn what_is_borrowed_leaves_nothing_behind(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        for name in ["scopes/bank:pay", "scopes/bank:audit"] {
            scopes::create(&operator, scopes::scope(name)).await.expect(name);
        }
        let (account, secret) = server.create_system_account(&[]).await;
        let end = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        let mut request = grant_request(&account.name, "roles/operator");
        request.grant.as_mut().expect("set").expire_time = Some(end);
        operator.grants().create_grant(request).await.expect("for a minute");
        let borrower = server.client(&account.uid, &secret).await;
        // Neither a scope that whoever maintains the catalogue may grant, nor the right to grant one for good.
        let forever = borrower.grants().create_grant(grant_request(&account.name, "scopes/bank:pay")).await;
        assert_eq!(fields_of(forever), ["grant.expire_time"]);
        let mut brief = grant_request(&account.name, "scopes/bank:pay");
        brief.grant.as_mut().expect("set").expire_time = Some(end);
        borrower.grants().create_grant(brief).await.expect("as long as it is held");
        let own = pb::Scope { grantable_by: vec![account.name.clone()], ..scopes::scope("scopes/bank:audit") };
        assert_eq!(fields_of(scopes::update(&borrower, own.clone(), &["grantable_by"]).await), ["scope.grantable_by"]);
        let new = pb::Scope { name: "scopes/bank:new".to_owned(), ..own };
        assert_eq!(fields_of(scopes::create(&borrower, new).await), ["scope.grantable_by"]);
        // Nor that a scope need not be earned any more.
        let secret = pb::Scope { sensitive: true, ..scopes::scope("scopes/bank:audit") };
        scopes::update(&borrower, secret.clone(), &["sensitive"]).await.expect("more is asked for");
        let open = pb::Scope { sensitive: false, ..secret };
        assert_eq!(fields_of(scopes::update(&borrower, open.clone(), &["sensitive"]).await), ["scope.grantable_by"]);
        scopes::update(&operator, open, &["sensitive"]).await.expect("by who maintains it for good");
    }

    async fn nobody_makes_a_lasting_way_into_what_they_hold_for_a_while(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&[]).await;
        let at = |seconds: i64| prost_types::Timestamp { seconds: server.now().seconds() + seconds, nanos: 0 };
        let mut request = grant_request(&account.name, "roles/operator");
        request.grant.as_mut().expect("set").expire_time = Some(at(60));
        let lent = operator.grants().create_grant(request).await.expect("for a minute").into_inner();
        let borrower = server.client(&account.uid, &secret).await;
        let (robot, _) = server.create_system_account(&["scopes/accountd:keys.write"]).await;
        let (lesser, _) = server.create_system_account(&[]).await;
        let manager = server.user("mona").await;
        server.grant(&manager.name, "roles/user-manager").await;
        let make = |parent: &str, expire_time: Option<prost_types::Timestamp>| {
            let request = pb::CreateCredentialRequest {
                parent: parent.to_owned(),
                credential: Some(pb::Credential {
                    detail: Some(Detail::ClientSecret(ClientSecret::default())),
                    expire_time,
                    ..Default::default()
                }),
                ..Default::default()
            };
            let borrower = borrower.clone();
            async move { borrower.credentials().create_credential(request).await }
        };
        make(&lesser.name, None).await.expect("that may do nothing here");
        for end in [None, Some(at(61))] {
            assert_refused(make(&robot.name, end).await, Reason::TargetOutranksCaller);
        }
        let brief = make(&robot.name, Some(at(60))).await.expect("for as long").into_inner();
        let brief = brief.credential.expect("set");
        let longer = pb::UpdateCredentialRequest {
            credential: Some(pb::Credential { expire_time: Some(at(61)), ..brief }),
            update_mask: Some(FieldMask { paths: vec!["expire_time".to_owned()] }),
            ..Default::default()
        };
        let outcome = borrower.credentials().update_credential(longer.clone()).await;
        assert_refused(outcome, Reason::TargetOutranksCaller);
        let lasting = operator.create_secret(&robot.name).await.expect("by who holds it for good");
        let rotate = pb::RotateCredentialRequest {
            name: lasting.credential.expect("set").name,
            ..Default::default()
        };
        let outcome = borrower.credentials().rotate_credential(rotate).await;
        assert_refused(outcome, Reason::TargetOutranksCaller);
        // Into people's accounts every way lasts.
        assert_refused(credentials::reset_code(&borrower, &manager.name).await, Reason::TargetOutranksCaller);
        let import = pb::ImportPasswordRequest {
            name: manager.name.clone(),
            password_hash: credentials::BCRYPT.to_owned(),
            ..Default::default()
        };
        let outcome = borrower.credentials().import_password(import).await;
        assert_refused(outcome, Reason::TargetOutranksCaller);
        let known = contacts::email("mona@example.com", &[]);
        assert_refused(borrower.create_contact(&manager.name, known).await, Reason::TargetOutranksCaller);
        credentials::reset_code(&borrower, &server.user("eve").await.name).await.expect("who may do nothing here");

        // Of what somebody may only ask for it is enough to be able to ask, too; but that is not to hold it.
        let bob = server.user("bob").await.name;
        let entitle = async |principal: &str| {
            let rule = elevations::entitlement(principal, &[]);
            let rule = pb::Entitlement { role: "roles/operator".to_owned(), ..rule };
            elevations::entitle(&operator, rule).await.expect("entitled")
        };
        entitle(&bob).await;
        assert_refused(credentials::reset_code(&borrower, &bob).await, Reason::TargetOutranksCaller);
        let own = entitle(&account.name).await;
        credentials::reset_code(&borrower, &bob).await.expect("could ask for as much");
        assert_refused(make(&robot.name, None).await, Reason::TargetOutranksCaller);
        elevations::delete(&operator, &own.name).await.expect("not any more");
        assert_refused(credentials::reset_code(&borrower, &bob).await, Reason::TargetOutranksCaller);
        // What was taken away is had no more, whatever a token says.
        operator.credentials().update_credential(longer).await.expect("by who holds it for good");
        let request = pb::DeleteGrantRequest { name: lent.name, ..Default::default() };
        operator.grants().delete_grant(request).await.expect("taken back");
        assert_refused(make(&robot.name, Some(at(1))).await, Reason::TargetOutranksCaller);
    }

    async fn nobody_is_born_as_somebody_who_is_gone(engine: Engine) {
        let server = engine.server().await;
        let (operator, ann, bob) = elevations::stage(&server).await;
        elevations::entitle(&operator, elevations::entitlement(ann.name(), &[bob.name()])).await.expect("entitled");
        let granter = server.user("granter").await;
        let pay = pb::Scope { grantable_by: vec![granter.name.clone()], ..scopes::scope("scopes/bank:pay") };
        scopes::create(&operator, pay).await.expect("made");
        for name in [bob.name(), &granter.name] {
            let request = pb::DeleteUserRequest { name: name.to_owned(), ..Default::default() };
            operator.users().delete_user(request).await.expect("deleted");
        }
        server.advance_s(server.running.app.config.retention.deleted_accounts_s + 1);
        jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        for name in [bob.name(), &granter.name] {
            assert_refused(operator.get_user(name).await, Reason::NotFound);
            let id = name.trim_start_matches("users/").to_owned();
            let request = pb::CreateUserRequest { user: Some(pb::User::default()), user_id: id, ..Default::default() };
            assert_refused(operator.users().create_user(request).await, Reason::AlreadyExists);
        }
    }

    async fn a_reset_code_does_not_outlive_what_it_was_made_for(engine: Engine) {
        let server = engine.server().await;
        let frontend = server.frontend().await;
        let anonymous = server.anonymous().await;
        let operator = server.operator().await;
        let promoted = server.user("promoted").await;
        let code = reset_code(&frontend, &promoted.name).await.expect("a code");
        server.grant(&promoted.name, "roles/operator").await;
        assert_refused(redeem(&anonymous, &code, "an otter in the attic").await, Reason::InvalidCode);
        let suspended = server.user("suspended").await;
        let code = reset_code(&frontend, &suspended.name).await.expect("a code");
        operator.suspend_user(&suspended.name).await.expect("suspended");
        let resume = pb::ResumeUserRequest { name: suspended.name, ..Default::default() };
        operator.users().resume_user(resume).await.expect("resumed");
        assert_refused(redeem(&anonymous, &code, "an otter in the attic").await, Reason::InvalidCode);
    }

    async fn looking_after_people_is_not_looking_after_machines(engine: Engine) {
        let server = engine.server().await;
        let manager = server.system_account(&["roles/user-manager", "scopes/accountd:credentials.create"]).await;
        let operator = server.operator().await;
        let (robot, _) = server.create_system_account(&[]).await;
        assert_refused(manager.create_secret(&robot.name).await, Reason::ScopeMissing);
        let credential = operator.create_secret(&robot.name).await.expect("made").credential.expect("set");
        let edit = pb::Credential { name: credential.name.clone(), label: "mine".to_owned(), ..Default::default() };
        let update = pb::UpdateCredentialRequest { credential: Some(edit), ..Default::default() };
        assert_refused(manager.credentials().update_credential(update).await, Reason::ScopeMissing);
        let delete = pb::DeleteCredentialRequest { name: credential.name, ..Default::default() };
        assert_refused(manager.credentials().delete_credential(delete).await, Reason::ScopeMissing);
    }

    async fn an_account_does_not_lift_its_own_limits(engine: Engine) {
        let server = engine.server().await;
        let (account, secret) = server.create_system_account(&["scopes/accountd:system_accounts.update"]).await;
        let itself = server.client(&account.uid, &secret).await;
        let update = async |mask: &[&str]| {
            let edit = pb::SystemAccount { name: account.name.clone(), description: "new".to_owned(), ..Default::default() };
            let paths = mask.iter().map(ToString::to_string).collect();
            let request = pb::UpdateSystemAccountRequest {
                system_account: Some(edit),
                update_mask: Some(prost_types::FieldMask { paths }),
                ..Default::default()
            };
            itself.system_accounts().update_system_account(request).await
        };
        let limits = ["scope_ceiling", "audiences", "allowed_cidrs", "expire_time"];
        let refused: Vec<String> = limits.iter().map(|limit| format!("system_account.{limit}")).collect();
        assert_eq!(fields_of(update(&limits).await), refused);
        update(&["description"]).await.expect("no limit");
    }

    async fn deleting_is_no_way_to_lift_a_suspension(engine: Engine) {
        let server = engine.server().await;
        let cleaner = server.system_account(&["scopes/accountd:users.delete"]).await;
        let user = server.user("alice").await;
        let delete = async |actor: &Actor| {
            let request = pb::DeleteUserRequest { name: user.name.clone(), ..Default::default() };
            actor.users().delete_user(request).await
        };
        server.operator().await.suspend_user(&user.name).await.expect("suspended");
        assert_refused(delete(&cleaner).await, Reason::ScopeMissing);
        delete(&server.operator().await).await.expect("may lift it, too");
    }

    async fn a_retry_shows_a_lesser_token_nothing_more(engine: Engine) {
        let server = engine.server().await;
        let user = server.user("alice").await;
        let both = ["scopes/accountd:users.read", "scopes/accountd:users.update"];
        let (account, secret) = server.create_system_account(&both).await;
        let whole = server.client(&account.uid, &secret).await;
        let narrow = narrowed(&server, &account, &secret, "users.update").await;
        let request = pb::UpdateUserRequest {
            user: Some(pb::User { name: user.name, display_name: "Ann".to_owned(), ..Default::default() }),
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..Default::default()
        };
        whole.users().update_user(request.clone()).await.expect("updated");
        whole.users().update_user(request.clone()).await.expect("a retry");
        assert_refused(narrow.users().update_user(request).await, Reason::RequestIdReused);
    }
}

/// A token of a system account with one scope.
async fn narrowed(
    server: &Server,
    account: &pb::SystemAccount,
    secret: &str,
    scope: &str,
) -> Actor {
    let request = pb::IssueTokenRequest {
        client_id: account.uid.clone(),
        client_secret: secret.to_owned(),
        scopes: vec![scope.to_owned()],
        ..Default::default()
    };
    let tokens = server.anonymous().await.tokens().issue_token(request).await;
    server
        .with_token(&tokens.expect("a token").into_inner().access_token)
        .await
}

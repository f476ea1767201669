//! CredentialService.

use accountd::{domain::error::Reason, grpc::pb, jobs};
use pb::{
    create_password_reset_request::{Account, Delivery},
    credential::{ApiKey, ClientSecret, Detail, Password, State},
    system_account::Kind,
};
use prost_types::FieldMask;
use tonic::Status;

use crate::{
    groups,
    harness::{Actor, Engine, SignedIn, assert_refused, fields_of, on_both_engines, password},
};

/// Of `drei süße Möwen`.
pub const BCRYPT: &str = "$2b$05$TQeYq4oCY2RlEIm4MEmHwuZ7lA7gTmWPwLLCOx4SR0vfNmDU89XBy";

on_both_engines! {
    async fn a_client_secret_is_shown_once_and_works(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        let request = pb::CreateCredentialRequest {
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..new_secret(&account.name, pb::Credential { label: "ci".to_owned(), ..Default::default() })
        };
        let created = create(&operator, request.clone()).await.expect("created");
        let credential = created.credential.expect("set");
        assert!(created.secret.starts_with("adcs_"), "{}", created.secret);
        assert!(credential.name.starts_with(&account.name));
        let last_four = credential.hint.rsplit('…').next().expect("a hint");
        assert!(created.secret.contains(last_four));
        server.anonymous().await.issue(&account.uid, &created.secret).await.expect("it works");

        let again = create(&operator, request).await.expect("a retry");
        assert_eq!((again.credential, &*again.secret), (Some(credential.clone()), ""));
        let read = get(&operator, &credential.name).await.expect("there");
        assert_eq!((&*read.label, read.detail), ("ci", Some(Detail::ClientSecret(ClientSecret {}))));
        let validated = pb::CreateCredentialRequest { validate_only: true, ..new_secret(&account.name, pb::Credential::default()) };
        assert_eq!(create(&operator, validated).await.expect("valid").secret, "");
    }

    async fn an_api_key_says_by_itself_whose_it_is(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&["roles/auditor"]).await;
        let made = create(&operator, new_key(&account.name)).await.expect("created");
        let (key, credential) = (made.secret, made.credential.expect("set"));
        assert!(key.starts_with("adak_"), "{key}");
        assert!(credential.hint.starts_with("adak_"), "{}", credential.hint);
        assert_eq!(credential.detail, Some(Detail::ApiKey(ApiKey {})));

        let anonymous = server.anonymous().await;
        let tokens = anonymous.issue_by_key(&key).await.expect("it works");
        let actor = server.with_token(&tokens.access_token).await;
        actor.events().list_events(pb::ListEventsRequest::default()).await.expect("its role");
        assert!(get(&operator, &credential.name).await.expect("there").last_used_time.is_some());

        // Each is good for what it is.
        assert_refused(anonymous.issue(&account.uid, &key).await, Reason::InvalidCredentials);
        assert_refused(anonymous.issue_by_key(&secret).await, Reason::InvalidCredentials);
        assert_refused(anonymous.issue_by_key("adak_").await, Reason::InvalidCredentials);
        let both = pb::IssueTokenRequest { client_id: account.uid.clone(), api_key: key.clone(), ..Default::default() };
        assert_eq!(fields_of(anonymous.tokens().issue_token(both).await), ["api_key"]);

        delete(&operator, &credential.name).await.expect("deleted");
        assert_refused(anonymous.issue_by_key(&key).await, Reason::InvalidCredentials);
        let refused = actor.events().list_events(pb::ListEventsRequest::default()).await;
        assert_refused(refused, Reason::TokenRevoked);
    }

    async fn a_machine_rotates_its_secret_and_is_never_refused(engine: Engine) {
        let server = engine.server().await;
        let (account, old) = server.create_system_account(&["roles/auditor"]).await;
        let machine = server.client(&account.uid, &old).await;
        let name = list(&machine, "systemAccounts/me").await[0].name.clone();
        let made = rotate(&machine, &name, 3600).await.expect("its own");
        let (new, successor) = (made.secret, made.credential.expect("set"));
        let retiring = get(&machine, &name).await.expect("there");
        assert_eq!((retiring.state(), &retiring.replaced_by), (State::Retiring, &successor.name));
        assert_eq!(retiring.retire_time.map(|time| time.seconds), Some(server.now().seconds() + 3600));
        assert_eq!(successor.state(), State::Active);

        // Another instance of the machine is slow to take up the new one.
        let anonymous = server.anonymous().await;
        for _ in 0..3 {
            server.advance_s(3000);
            jobs::sweep(&server.running.app).await.expect("swept");
            anonymous.issue(&account.uid, &old).await.expect("still good");
            anonymous.issue(&account.uid, &new).await.expect("good");
        }
        let late = server.events("credential.used_late").await;
        assert_eq!(late.len(), 2, "the first use was in time");
        assert!(late.iter().all(|event| event.target == name));
        let slow = server.client(&account.uid, &old).await;
        server.advance_s(3600 + 360);
        assert_refused(anonymous.issue(&account.uid, &old).await, Reason::InvalidCredentials);
        jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        let revoked = get(&operator, &name).await.expect("remembered");
        assert_eq!((revoked.state(), revoked.revoke_time.is_some()), (State::Revoked, true));
        assert_eq!(server.events("credential.retired").await[0].target, name);
        assert_refused(anonymous.issue(&account.uid, &old).await, Reason::InvalidCredentials);
        assert_eq!(server.events("token.refused").await[0].target, name, "no stranger");
        let refused = slow.events().list_events(pb::ListEventsRequest::default()).await;
        assert_refused(refused, Reason::TokenExpired);
        anonymous.issue(&account.uid, &new).await.expect("good");

        server.advance_s(91 * 24 * 3600);
        jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        assert_refused(get(&operator, &name).await, Reason::NotFound);
        assert_eq!(list(&operator, &account.name).await.len(), 1);
    }

    async fn a_rotation_without_overlap_ends_the_old_secret_and_its_tokens(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&["roles/auditor"]).await;
        let made = create(&operator, new_key(&account.name)).await.expect("created");
        let (key, name) = (made.secret, made.credential.expect("set").name);
        let anonymous = server.anonymous().await;
        let tokens = anonymous.issue_by_key(&key).await.expect("good");
        let actor = server.with_token(&tokens.access_token).await;
        let tried = pb::RotateCredentialRequest { validate_only: true, ..rotation(&name, 0) };
        let tried = operator.credentials().rotate_credential(tried).await.expect("valid").into_inner();
        assert_eq!(tried.secret, "");
        anonymous.issue_by_key(&key).await.expect("nothing has happened");
        let request_id = "018f0000-0000-7000-8000-000000000009".to_owned();
        let request = pb::RotateCredentialRequest { request_id, ..rotation(&name, 0) };
        let made = operator.credentials().rotate_credential(request.clone()).await.expect("rotated").into_inner();
        assert!(made.secret.starts_with("adak_"), "of the same kind");
        let again = operator.credentials().rotate_credential(request).await.expect("a retry").into_inner();
        assert_eq!((again.credential, &*again.secret), (made.credential.clone(), ""));
        assert_refused(anonymous.issue_by_key(&key).await, Reason::InvalidCredentials);
        let refused = actor.events().list_events(pb::ListEventsRequest::default()).await;
        assert_refused(refused, Reason::TokenRevoked);
        anonymous.issue_by_key(&made.secret).await.expect("good");
        assert_refused(rotate(&operator, &name, 60).await, Reason::WrongState);
        let label = pb::Credential { name: name.clone(), label: "late".to_owned(), ..Default::default() };
        assert_refused(update(&operator, label, &["label"]).await, Reason::WrongState);
    }

    async fn who_may_make_secrets_alone_ends_none_at_once(engine: Engine) {
        let server = engine.server().await;
        let (account, _) = server.create_system_account(&[]).await;
        let name = list(&server.operator().await, &account.name).await[0].name.clone();
        let scopes = ["scopes/accountd:credentials.create", "scopes/accountd:system_accounts.update"];
        let maker = server.system_account(&scopes).await;
        assert_refused(rotate(&maker, &name, 0).await, Reason::ScopeMissing);
        rotate(&maker, &name, 60).await.expect("in good order");
    }

    async fn revoked_secrets_are_remembered_as_many_as_may_be(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        let mut name = list(&operator, &account.name).await[0].name.clone();
        let first = name.clone();
        for _ in 0..45 {
            server.advance_s(1);
            name = rotate(&operator, &name, 0).await.expect("rotated").credential.expect("set").name;
        }
        let left = list(&operator, &account.name).await;
        assert_eq!(left.len(), 41, "and the one that is active");
        assert!(left.iter().all(|credential| credential.name != first));
        assert_eq!(left.last().map(|credential| (&credential.name, credential.state())), Some((&name, State::Active)));
    }

    async fn what_is_being_replaced_makes_nothing_new(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, old) = server.create_system_account(&[]).await;
        let name = list(&operator, &account.name).await[0].name.clone();
        let holder = server.client(&account.uid, &old).await;
        let made = rotate(&operator, &name, 3600).await.expect("rotated");
        let successor = made.credential.expect("set").name;
        assert_refused(create(&holder, new_key(&account.name)).await, Reason::WrongState);
        assert_refused(rotate(&holder, &successor, 3600).await, Reason::WrongState);
        assert_refused(rotate(&operator, &name, 3600).await, Reason::WrongState);
        assert_refused(delete(&holder, &successor).await, Reason::WrongState);
        let label = pb::Credential { name: successor, label: "mine".to_owned(), ..Default::default() };
        assert_refused(update(&holder, label, &["label"]).await, Reason::WrongState);
        assert_eq!(list(&operator, &account.name).await.len(), 2);
        delete(&holder, &name).await.expect("it may give itself up");
    }

    async fn a_rotation_keeps_the_limits_and_the_length_of_life(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        let end = |seconds| prost_types::Timestamp { seconds: server.now().seconds() + seconds, nanos: 0 };
        let limited = pb::Credential {
            label: "ci".to_owned(),
            expire_time: Some(end(1000)),
            scope_ceiling: vec!["events.read".to_owned()],
            allowed_cidrs: vec!["127.0.0.0/8".to_owned()],
            ..Default::default()
        };
        let made = create(&operator, new_secret(&account.name, limited)).await.expect("created");
        let (secret, name) = (made.secret, made.credential.expect("set").name);
        server.advance_s(100);
        let own = server.client(&account.uid, &secret).await;
        let by_operator = rotate(&operator, &name, 900).await.expect("rotated").credential.expect("set");
        assert_eq!(by_operator.expire_time, Some(end(1000)), "a life of the same length");
        assert_eq!((&*by_operator.label, &*by_operator.scope_ceiling), ("ci", &["events.read".to_owned()][..]));
        assert_eq!(by_operator.allowed_cidrs, ["127.0.0.0/8"]);
        drop(own);
        let made = create(&operator, new_secret(&account.name, pb::Credential { expire_time: Some(end(50)), ..Default::default() })).await.expect("created");
        let short = made.credential.expect("set");
        server.advance_s(10);
        let own = server.client(&account.uid, &made.secret).await;
        let by_itself = rotate(&own, &short.name, 900).await.expect("rotated").credential.expect("set");
        assert_eq!(by_itself.expire_time, short.expire_time, "nobody makes themselves live longer");
    }

    async fn only_secrets_of_programs_are_rotated_and_only_as_they_are(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.signed_in("alice").await;
        let password = list(&alice.actor, "users/me").await[0].name.clone();
        assert_refused(rotate(&alice.actor, &password, 60).await, Reason::CredentialKindNotAllowed);
        let (account, _) = server.create_system_account(&[]).await;
        let name = list(&operator, &account.name).await[0].name.clone();
        for overlap in [-1, 91 * 24 * 3600] {
            assert_eq!(fields_of(rotate(&operator, &name, overlap).await), ["overlap"]);
        }
        let stale = pb::RotateCredentialRequest { etag: "r7".to_owned(), ..rotation(&name, 60) };
        assert_refused(operator.credentials().rotate_credential(stale).await, Reason::EtagMismatch);
        for _ in 1..20 {
            operator.create_secret(&account.name).await.expect("below the limit");
        }
        assert_refused(rotate(&operator, &name, 60).await, Reason::LimitReached);
        rotate(&operator, &name, 0).await.expect("the old one makes room");
    }

    async fn the_owner_hears_of_a_secret_that_expires(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        let day = 24 * 3600;
        let expire_time = Some(prost_types::Timestamp { seconds: server.now().seconds() + 40 * day, nanos: 0 });
        let limited = pb::Credential { expire_time, ..Default::default() };
        let made = create(&operator, new_secret(&account.name, limited)).await.expect("created");
        let made = made.credential.expect("set");
        for days in [9, 2, 22, 1, 5] {
            server.advance_s(days * day);
            jobs::sweep(&server.running.app).await.expect("swept");
            jobs::sweep(&server.running.app).await.expect("swept once more");
        }
        let events = server.events("credential.expiring").await;
        let about_it: Vec<_> = events.iter().filter(|event| event.target == made.name).collect();
        let days: Vec<&str> = about_it.iter().rev().map(|event| &*event.details["days"]).collect();
        assert_eq!(days, ["30", "7", "1"]);
        assert!(about_it.iter().all(|event| event.details["owner"] == server.owner()));
        let operator = server.operator().await;
        let read = get(&operator, &made.name).await.expect("there");
        assert_eq!(read.etag, made.etag, "being told changes nothing");
    }

    async fn the_last_credential_that_lets_an_operator_in_stays(engine: Engine) {
        let server = engine.server().await;
        // Until then there is the built-in account as well.
        server.advance_s(25 * 3600);
        let operator = server.operator().await;
        let own = list(&operator, &server.operator_name()).await[0].name.clone();
        assert_refused(delete(&operator, &own).await, Reason::LastCredential);
        let (other, _) = server.create_system_account(&["roles/operator"]).await;
        let suspend = pb::SuspendSystemAccountRequest { name: other.name.clone(), reason: "x".to_owned(), ..Default::default() };
        operator.system_accounts().suspend_system_account(suspend).await.expect("suspended");
        assert_refused(delete(&operator, &own).await, Reason::LastCredential);
        let resume = pb::ResumeSystemAccountRequest { name: other.name.clone(), ..Default::default() };
        operator.system_accounts().resume_system_account(resume).await.expect("resumed");
        let name = list(&operator, &other.name).await[0].name.clone();
        let expire_time = Some(prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 });
        let ending = pb::Credential { name, expire_time, ..Default::default() };
        update(&operator, ending, &["expire_time"]).await.expect("updated");
        server.advance_s(60);
        assert_refused(delete(&operator, &own).await, Reason::LastCredential);
        operator.create_secret(&other.name).await.expect("another way in");
        delete(&operator, &own).await.expect("not the last");
        assert_refused(get(&operator, &own).await, Reason::TokenRevoked);
    }

    async fn an_operator_by_a_group_is_an_operator(engine: Engine) {
        let server = engine.server().await;
        server.advance_s(25 * 3600);
        let operator = server.operator().await;
        let own = list(&operator, &server.operator_name()).await[0].name.clone();
        let crew = groups::create(&operator, "Crew").await;
        let inner = groups::create(&operator, "On call").await;
        groups::add(&operator, &crew, &inner).await.expect("added");
        server.grant(&crew, "roles/operator").await;
        let (other, secret) = server.create_system_account(&[]).await;
        assert_refused(delete(&operator, &own).await, Reason::LastCredential);
        groups::add(&operator, &inner, &other.name).await.expect("added");
        delete(&operator, &own).await.expect("not the last");
        let other = server.client(&other.uid, &secret).await;
        let last = list(&other, "systemAccounts/me").await[0].name.clone();
        assert_refused(delete(&other, &last).await, Reason::LastCredential);
    }

    async fn use_is_noted_to_the_hour(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&[]).await;
        let name = list(&operator, &account.name).await[0].name.clone();
        let last_used = async || get(&operator, &name).await.expect("there").last_used_time.map(|time| time.seconds);
        assert_eq!(last_used().await, None);
        let anonymous = server.anonymous().await;
        anonymous.issue(&account.uid, &secret).await.expect("a token");
        let first = server.now().seconds();
        assert_eq!(last_used().await, Some(first));
        server.advance_s(200);
        anonymous.issue(&account.uid, &secret).await.expect("a token");
        assert_eq!(last_used().await, Some(first));
        server.advance_s(3400);
        let operator = server.operator().await;
        anonymous.issue(&account.uid, &secret).await.expect("a token");
        let read = get(&operator, &name).await.expect("there");
        assert_eq!(read.last_used_time.map(|time| time.seconds), Some(first + 3600));
    }

    async fn deleting_a_credential_ends_what_it_began(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&["roles/auditor"]).await;
        let actor = server.client(&account.uid, &secret).await;
        let name = list(&actor, "systemAccounts/me").await[0].name.clone();
        delete(&operator, &name).await.expect("deleted");
        let refused = actor.events().list_events(pb::ListEventsRequest::default()).await;
        assert_refused(refused, Reason::TokenRevoked);
        let refused = server.anonymous().await.issue(&account.uid, &secret).await;
        assert_refused(refused, Reason::InvalidCredentials);
        assert_refused(delete(&operator, &name).await, Reason::NotFound);

        let alice = server.signed_in("alice").await;
        let name = list(&alice.actor, "users/me").await[0].name.clone();
        delete(&alice.actor, &name).await.expect("her own");
        assert_refused(alice.actor.get_user("users/me").await, Reason::TokenRevoked);
        let refused = server.anonymous().await.sign_in("alice", &password("alice")).await;
        assert_refused(refused, Reason::InvalidCredentials);
    }

    async fn a_secret_ends_at_its_expiry_and_works_from_its_networks_only(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        let expire_time = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        let limited = pb::Credential { expire_time: Some(expire_time), ..Default::default() };
        let limited = create(&operator, new_secret(&account.name, limited)).await.expect("created");
        let elsewhere = pb::Credential { allowed_cidrs: vec!["203.0.113.0/24".to_owned()], ..Default::default() };
        let elsewhere = create(&operator, new_secret(&account.name, elsewhere)).await.expect("created");
        let anonymous = server.anonymous().await;
        let tokens = anonymous.issue(&account.uid, &limited.secret).await.expect("live");
        assert_eq!(tokens.access_expire_time.expect("set").seconds, expire_time.seconds);
        let actor = server.with_token(&tokens.access_token).await;
        let refused = anonymous.issue(&account.uid, &elsewhere.secret).await;
        assert_refused(refused, Reason::InvalidCredentials);
        // Moved here, it works here.
        let here = pb::Credential {
            name: elsewhere.credential.expect("set").name,
            allowed_cidrs: vec!["127.0.0.0/8".to_owned()],
            ..Default::default()
        };
        update(&operator, here, &["allowed_cidrs"]).await.expect("updated");
        anonymous.issue(&account.uid, &elsewhere.secret).await.expect("from here");
        server.advance_s(60);
        assert_refused(anonymous.issue(&account.uid, &limited.secret).await, Reason::InvalidCredentials);
        let refused = actor.system_accounts().get_system_account(pb::GetSystemAccountRequest { name: account.name }).await;
        assert_refused(refused, Reason::TokenExpired);
    }

    async fn people_move_here_with_the_password_they_have(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let user = pb::User { username: "ann".to_owned(), ..Default::default() };
        let request = pb::CreateUserRequest { user: Some(user), password_hash: BCRYPT.to_owned(), ..Default::default() };
        let name = operator.users().create_user(request.clone()).await.expect("created").into_inner().name;
        let anonymous = server.anonymous().await;
        assert_refused(anonymous.sign_in("ann", "drei Möwen").await, Reason::InvalidCredentials);
        let stored = list(&operator, &name).await;
        let ssha = "{SSHA}JCPMFJTXASlj0D70cqyHkiZUWTjA2HtP".to_owned();
        let again = pb::ImportPasswordRequest { name: name.clone(), password_hash: ssha, ..Default::default() };
        let stale = pb::ImportPasswordRequest { etag: "x".to_owned(), ..again.clone() };
        assert_refused(operator.credentials().import_password(stale).await, Reason::EtagMismatch);
        let replaced = operator.credentials().import_password(again.clone()).await.expect("not used yet");
        assert_eq!(replaced.into_inner().name, stored[0].name);
        let old = anonymous.sign_in("ann", "drei süße Möwen").await.expect("that of the other system");
        let old = SignedIn::new(&anonymous, old);
        anonymous.sign_in("ann", "drei süße Möwen").await.expect("by a hash of ours");
        // Theirs now: nobody puts another in its place.
        assert_refused(operator.credentials().import_password(again.clone()).await, Reason::AlreadyExists);
        old.actor.get_user("users/me").await.expect("still signed in");

        let newcomer = operator.create_user(pb::User { username: "bo".to_owned(), ..Default::default() }).await.expect("created");
        let import = pb::ImportPasswordRequest { name: newcomer.name, ..again };
        for bad in ["", "drei süße Möwen", "$2b$15$TQeYq4oCY2RlEIm4MEmHwuZ7lA7gTmWPwLLCOx4SR0vfNmDU89XBy"] {
            let request = pb::ImportPasswordRequest { password_hash: bad.to_owned(), ..import.clone() };
            assert_eq!(fields_of(operator.credentials().import_password(request).await), ["password_hash"]);
        }
        let request_id = "018f0000-0000-7000-8000-000000000006".to_owned();
        let dry = pb::ImportPasswordRequest { validate_only: true, ..import.clone() };
        operator.credentials().import_password(dry).await.expect("valid");
        assert_eq!(list(&operator, &import.name).await, []);
        let import = pb::ImportPasswordRequest { request_id, ..import };
        let first = operator.credentials().import_password(import.clone()).await.expect("imported");
        let retry = operator.credentials().import_password(import).await.expect("a retry");
        assert_eq!(retry.into_inner(), first.into_inner());
        anonymous.sign_in("bo", "drei süße Möwen").await.expect("that of the other system");

        let manager = server.system_account(&["roles/user-manager"]).await;
        assert_refused(manager.users().create_user(request.clone()).await, Reason::ScopeMissing);
        let both = pb::CreateUserRequest { password: password("ann"), ..request };
        assert_eq!(fields_of(operator.users().create_user(both).await), ["password_hash"]);
        // An importer has no power over who is more powerful.
        let importer = server.system_account(&["scopes/accountd:users.import"]).await;
        let boss = operator.create_user(pb::User::default()).await.expect("created").name;
        server.grant(&boss, "roles/operator").await;
        let request = pb::ImportPasswordRequest { name: boss, password_hash: BCRYPT.to_owned(), ..Default::default() };
        assert_refused(importer.credentials().import_password(request).await, Reason::TargetOutranksCaller);
    }

    async fn lists_show_what_their_filters_say(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let filtered = async |filter: &str, page_token: &str| {
            let request = pb::ListCredentialsRequest {
                parent: "users/me".to_owned(),
                filter: filter.to_owned(),
                page_token: page_token.to_owned(),
                ..Default::default()
            };
            alice.actor.credentials().list_credentials(request).await.map(tonic::Response::into_inner)
        };
        for (filter, count) in [("", 1), ("kind = \"password\"", 1), ("kind = client_secret", 0)] {
            assert_eq!(filtered(filter, "").await.expect("a list").credentials.len(), count, "{filter}");
        }
        for bad in ["kind = fingerprint", "kind > password", "label = x", "kind = password AND kind = password"] {
            assert_refused(filtered(bad, "").await, Reason::InvalidFilter);
        }
        let (account, _) = server.create_system_account(&[]).await;
        let operator = server.operator().await;
        operator.create_secret(&account.name).await.expect("a second secret");
        let request = pb::ListCredentialsRequest { parent: account.name, page_size: 1, ..Default::default() };
        let page = operator.credentials().list_credentials(request.clone()).await.expect("a page").into_inner();
        let other = pb::ListCredentialsRequest {
            page_token: page.next_page_token,
            filter: "kind = client_secret".to_owned(),
            ..request
        };
        assert_refused(operator.credentials().list_credentials(other).await, Reason::InvalidPageToken);
    }

    async fn there_are_as_many_secrets_as_there_may_be(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        for _ in 1..20 {
            operator.create_secret(&account.name).await.expect("below the limit");
        }
        assert_refused(operator.create_secret(&account.name).await, Reason::LimitReached);
        create(&operator, new_key(&account.name)).await.expect("each kind has its own");
        assert_eq!(list(&operator, &account.name).await.len(), 21);
    }

    async fn each_kind_of_account_holds_its_own_kinds_of_credential(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        assert_refused(operator.create_secret(&alice.name).await, Reason::CredentialKindNotAllowed);
        assert_refused(create(&operator, new_key(&alice.name)).await, Reason::CredentialKindNotAllowed);
        let (robot, _) = server.create_system_account(&[]).await;
        let refused = create(&operator, new_password(&robot.name, "any password will do")).await;
        assert_refused(refused, Reason::CredentialKindNotAllowed);
        for kind in [Kind::Privileged, Kind::BreakGlass] {
            let account = pb::SystemAccount {
                display_name: "vault".to_owned(),
                owner: server.owner().to_owned(),
                kind: kind.into(),
                ..Default::default()
            };
            let request = pb::CreateSystemAccountRequest { system_account: Some(account), ..Default::default() };
            let account = operator.system_accounts().create_system_account(request).await.expect("created").into_inner();
            assert_refused(operator.create_secret(&account.name).await, Reason::CredentialKindNotAllowed);
            assert_refused(create(&operator, new_key(&account.name)).await, Reason::CredentialKindNotAllowed);
        }
        let nothing = pb::CreateCredentialRequest { parent: robot.name, ..Default::default() };
        assert_eq!(fields_of(create(&operator, nothing).await), ["credential"]);
    }

    async fn a_system_account_makes_no_credential_freer_than_its_own(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, free) = server.create_system_account(&["roles/auditor"]).await;
        let narrow = pb::Credential { scope_ceiling: vec!["users.read".to_owned()], ..Default::default() };
        let narrow = create(&operator, new_secret(&account.name, narrow)).await.expect("created");
        let narrow = server.client(&account.uid, &narrow.secret).await;
        assert_refused(narrow.create_secret("systemAccounts/me").await, Reason::TargetOutranksCaller);

        let expire_time = prost_types::Timestamp { seconds: server.now().seconds() + 600, nanos: 0 };
        let short = pb::Credential { expire_time: Some(expire_time), ..Default::default() };
        let short = create(&operator, new_secret(&account.name, short)).await.expect("created");
        let short = server.client(&account.uid, &short.secret).await;
        let made = short.create_secret("systemAccounts/me").await.expect("for itself");
        assert_eq!(made.credential.expect("set").expire_time, Some(expire_time));
        let free = server.client(&account.uid, &free).await;
        let made = free.create_secret("systemAccounts/me").await.expect("for itself");
        assert_eq!(made.credential.expect("set").expire_time, None);
    }

    async fn no_secret_frees_itself(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&["scopes/accountd:credentials.update"]).await;
        let expire_time = prost_types::Timestamp { seconds: server.now().seconds() + 600, nanos: 0 };
        let limited = pb::Credential {
            expire_time: Some(expire_time),
            allowed_cidrs: vec!["127.0.0.0/8".to_owned()],
            ..Default::default()
        };
        let made = create(&operator, new_secret(&account.name, limited)).await.expect("created");
        let own = made.credential.expect("set");
        let itself = server.client(&account.uid, &made.secret).await;
        let freed = update(&itself, only_name(&own), &["expire_time", "allowed_cidrs"]).await.expect("no wider");
        assert_eq!((freed.expire_time, freed.allowed_cidrs), (own.expire_time, own.allowed_cidrs.clone()));
        let anywhere = pb::Credential { allowed_cidrs: vec!["0.0.0.0/0".to_owned()], ..only_name(&own) };
        assert_eq!(fields_of(update(&itself, anywhere, &[]).await), ["credential.allowed_cidrs"]);
        let freed = update(&operator, only_name(&own), &["expire_time"]).await.expect("by somebody else");
        assert_eq!(freed.expire_time, None);
    }

    async fn a_label_is_ones_own_and_limits_are_not(engine: Engine) {
        let server = engine.server().await;
        let (account, secret) = server.create_system_account(&[]).await;
        let actor = server.client(&account.uid, &secret).await;
        let own = list(&actor, "systemAccounts/me").await.remove(0);
        let relabelled = pb::Credential { label: "main".to_owned(), etag: own.etag.clone(), ..only_name(&own) };
        let updated = update(&actor, relabelled.clone(), &["label"]).await.expect("updated");
        assert_eq!(updated.label, "main");
        assert_refused(update(&actor, relabelled, &["label"]).await, Reason::EtagMismatch);
        for field in ["expire_time", "scope_ceiling", "allowed_cidrs", "*"] {
            assert_refused(update(&actor, only_name(&own), &[field]).await, Reason::ScopeMissing);
        }
        let alice = server.signed_in("alice").await;
        let password = list(&alice.actor, "users/me").await.remove(0);
        let limited = pb::Credential { scope_ceiling: vec!["a".to_owned()], ..only_name(&password) };
        let refused = update(&server.operator().await, limited, &[]).await;
        assert_eq!(fields_of(refused), ["credential"]);
    }

    async fn only_the_person_sets_a_first_password(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.signed_in("alice").await;
        let refused = create(&operator, new_password(alice.name(), "an operator's choice")).await;
        assert_refused(refused, Reason::ScopeMissing);
        let second = create(&alice.actor, new_password("users/me", "a second password")).await;
        assert_refused(second, Reason::AlreadyExists);
        let name = list(&alice.actor, "users/me").await[0].name.clone();
        // Somebody without a password and with a session: the session is of another credential.
        delete(&operator, &name).await.expect("deleted");
        let code = reset_code(&operator, alice.name()).await.expect("a code");
        redeem(&server.anonymous().await, &code, "a wholly new phrase").await.expect("set");
        server.anonymous().await.sign_in("alice", "a wholly new phrase").await.expect("signed in");
    }

    async fn changing_the_password_needs_the_old_one_and_ends_other_sessions(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let phone = server.sign_in("alice").await;
        let change = async |old: &str, new: &str, keep_sessions| {
            let request = pb::ChangePasswordRequest {
                name: "users/me".to_owned(),
                old_password: old.to_owned(),
                new_password: new.to_owned(),
                keep_sessions,
                ..Default::default()
            };
            alice.actor.credentials().change_password(request).await.map(tonic::Response::into_inner)
        };
        let old = password("alice");
        let new = "an otter in the attic";
        assert_refused(change("not my password", new, false).await, Reason::InvalidCredentials);
        assert_refused(change(&old, "too short", false).await, Reason::PasswordRefused);
        assert_eq!(change(&old, new, false).await.expect("changed").ended_sessions, 1);
        alice.actor.get_user("users/me").await.expect("this session goes on");
        assert_refused(phone.actor.get_user("users/me").await, Reason::TokenRevoked);
        let anonymous = server.anonymous().await;
        assert_refused(anonymous.refresh(&phone.tokens.refresh_token).await, Reason::InvalidRefreshToken);
        assert_refused(anonymous.sign_in("alice", &old).await, Reason::InvalidCredentials);
        let tablet = anonymous.sign_in("alice", new).await.expect("the new one");
        let tablet = SignedIn::new(&anonymous, tablet);
        assert_eq!(change(new, "another otter, another attic", true).await.expect("changed").ended_sessions, 0);
        tablet.actor.get_user("users/me").await.expect("kept");
        assert_eq!(server.events("credential.password_changed").await.len(), 2);
        assert_eq!(server.events("credential.password_change_refused").await.len(), 1);
    }

    async fn a_reset_code_works_once_and_ends_all_sessions(engine: Engine) {
        let server = engine.server().await;
        let frontend = server.frontend().await;
        let alice = server.signed_in("alice").await;
        let second = reset_code(&frontend, alice.name()).await.expect("a code");
        let first = reset_code(&frontend, alice.name()).await.expect("another in its place");
        let anonymous = server.anonymous().await;
        assert_refused(redeem(&anonymous, &second, "an otter in the attic").await, Reason::InvalidCode);
        assert_refused(redeem(&anonymous, &first, "too short").await, Reason::PasswordRefused);
        let ended = redeem(&anonymous, &first, "an otter in the attic").await.expect("still good");
        assert_eq!(ended.ended_sessions, 1);
        assert_refused(alice.actor.get_user("users/me").await, Reason::TokenRevoked);
        for used in [&first, &second, "adpr_x_y", ""] {
            let refused = redeem(&anonymous, used, "a ferret in the cellar").await;
            assert_refused(refused, Reason::InvalidCode);
        }
        assert_refused(anonymous.sign_in("alice", &password("alice")).await, Reason::InvalidCredentials);
        anonymous.sign_in("alice", "an otter in the attic").await.expect("the new one");
        assert_eq!(server.events("credential.password_reset").await.len(), 1);
    }

    async fn a_retried_reset_gets_its_first_answer(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let code = reset_code(&server.frontend().await, alice.name()).await.expect("a code");
        let request = pb::ResetPasswordRequest {
            code,
            new_password: "an otter in the attic".to_owned(),
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..Default::default()
        };
        let anonymous = server.anonymous().await;
        for _ in 0..2 {
            let answer = anonymous.credentials().reset_password(request.clone()).await;
            assert_eq!(answer.expect("reset").into_inner().ended_sessions, 1);
        }
        let other = pb::ResetPasswordRequest { new_password: "a ferret in the cellar".to_owned(), ..request };
        assert_refused(anonymous.credentials().reset_password(other).await, Reason::RequestIdReused);
    }

    async fn a_reset_code_ends_at_its_time_and_with_its_user(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        let anonymous = server.anonymous().await;
        let code = reset_code(&operator, &alice.name).await.expect("a code");
        server.advance_s(1800);
        assert_refused(redeem(&anonymous, &code, "an otter in the attic").await, Reason::InvalidCode);
        let operator = server.operator().await;
        let code = reset_code(&operator, &alice.name).await.expect("a code");
        operator.suspend_user(&alice.name).await.expect("suspended");
        assert_refused(redeem(&anonymous, &code, "an otter in the attic").await, Reason::InvalidCode);
        assert_refused(reset_code(&operator, &alice.name).await, Reason::WrongState);
    }

    async fn a_reset_is_handed_to_the_trusted_and_sent_to_nobody_yet(engine: Engine) {
        let server = engine.server().await;
        let alice = server.user("alice").await;
        let request = |delivery: Delivery, account| pb::CreatePasswordResetRequest {
            account: Some(account),
            delivery: delivery.into(),
            ..Default::default()
        };
        let send = async |actor: &Actor, request| actor.credentials().create_password_reset(request).await;
        let anonymous = server.anonymous().await;
        for who in ["alice", "nobody"] {
            let by_name = request(Delivery::Send, Account::Identifier(who.to_owned()));
            assert_refused(send(&anonymous, by_name).await, Reason::DeliveryUnavailable);
        }
        let returned = || request(Delivery::Return, Account::Identifier("ALICE".to_owned()));
        assert_refused(send(&anonymous, returned()).await, Reason::TokenMissing);
        let auditor = server.system_account(&["roles/auditor"]).await;
        assert_refused(send(&auditor, returned()).await, Reason::ScopeMissing);
        let frontend = server.frontend().await;
        send(&frontend, returned()).await.expect("trusted");
        let nobody = request(Delivery::Return, Account::Identifier("nobody".to_owned()));
        assert_refused(send(&frontend, nobody).await, Reason::NotFound);
        // A frontend cannot become an operator through somebody's password.
        server.grant(&alice.name, "roles/operator").await;
        assert_refused(send(&frontend, returned()).await, Reason::TargetOutranksCaller);
    }

    async fn passwords_everybody_tries_first_are_refused(engine: Engine) {
        let server = engine.server().await;
        let frontend = server.frontend().await;
        let register = async |password: &str| {
            let user = pb::User {
                username: "wilhelmina".to_owned(),
                display_name: "Wilhelmina Vandenberg".to_owned(),
                ..Default::default()
            };
            let request = pb::CreateUserRequest {
                user: Some(user),
                password: password.to_owned(),
                validate_only: true,
                ..Default::default()
            };
            frontend.users().create_user(request).await
        };
        let long = "x ".repeat(520);
        for bad in ["fourteen chars", "passwordpassword", "1qaz2wsx3edc4rfv", "wilhelmina vandenberg 1", &long] {
            let refused = register(bad).await;
            let status = refused.expect_err(bad);
            assert!(["PASSWORD_REFUSED", "INVALID_FIELD"].contains(&&*crate::harness::reason_of(&status)), "{bad}");
            assert_eq!(fields_of::<()>(Err(status)), ["password"], "{bad}");
        }
        register("fifteen chars ok").await.expect("long enough");
        register("пароль из пяти слов").await.expect("any script");
    }
}

fn new_secret(parent: &str, credential: pb::Credential) -> pb::CreateCredentialRequest {
    let detail = Some(Detail::ClientSecret(ClientSecret {}));
    pb::CreateCredentialRequest {
        parent: parent.to_owned(),
        credential: Some(pb::Credential {
            detail,
            ..credential
        }),
        ..Default::default()
    }
}

pub fn new_key(parent: &str) -> pb::CreateCredentialRequest {
    let detail = Some(Detail::ApiKey(ApiKey {}));
    let credential = Some(pb::Credential {
        detail,
        ..Default::default()
    });
    pb::CreateCredentialRequest {
        parent: parent.to_owned(),
        credential,
        ..Default::default()
    }
}

fn rotation(name: &str, overlap_s: i64) -> pb::RotateCredentialRequest {
    let overlap = Some(prost_types::Duration {
        seconds: overlap_s,
        nanos: 0,
    });
    pb::RotateCredentialRequest {
        name: name.to_owned(),
        overlap,
        ..Default::default()
    }
}

async fn rotate(
    actor: &Actor,
    name: &str,
    overlap_s: i64,
) -> Result<pb::RotateCredentialResponse, Status> {
    let rotated = actor
        .credentials()
        .rotate_credential(rotation(name, overlap_s))
        .await?;
    Ok(rotated.into_inner())
}

fn new_password(parent: &str, value: &str) -> pb::CreateCredentialRequest {
    let password = Password {
        value: value.to_owned(),
        change_time: None,
    };
    let credential = pb::Credential {
        detail: Some(Detail::Password(password)),
        ..Default::default()
    };
    pb::CreateCredentialRequest {
        parent: parent.to_owned(),
        credential: Some(credential),
        ..Default::default()
    }
}

fn only_name(credential: &pb::Credential) -> pb::Credential {
    pb::Credential {
        name: credential.name.clone(),
        ..Default::default()
    }
}

async fn create(
    actor: &Actor,
    request: pb::CreateCredentialRequest,
) -> Result<pb::CreateCredentialResponse, Status> {
    Ok(actor
        .credentials()
        .create_credential(request)
        .await?
        .into_inner())
}

async fn get(actor: &Actor, name: &str) -> Result<pb::Credential, Status> {
    let request = pb::GetCredentialRequest {
        name: name.to_owned(),
    };
    Ok(actor
        .credentials()
        .get_credential(request)
        .await?
        .into_inner())
}

async fn list(actor: &Actor, parent: &str) -> Vec<pb::Credential> {
    let request = pb::ListCredentialsRequest {
        parent: parent.to_owned(),
        ..Default::default()
    };
    actor
        .credentials()
        .list_credentials(request)
        .await
        .expect("a list")
        .into_inner()
        .credentials
}

async fn update(
    actor: &Actor,
    credential: pb::Credential,
    mask: &[&str],
) -> Result<pb::Credential, Status> {
    let paths: Vec<String> = mask.iter().map(ToString::to_string).collect();
    let request = pb::UpdateCredentialRequest {
        credential: Some(credential),
        update_mask: (!paths.is_empty()).then_some(FieldMask { paths }),
        ..Default::default()
    };
    Ok(actor
        .credentials()
        .update_credential(request)
        .await?
        .into_inner())
}

async fn delete(actor: &Actor, name: &str) -> Result<(), Status> {
    let request = pb::DeleteCredentialRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    actor.credentials().delete_credential(request).await?;
    Ok(())
}

/// A code for setting a new password, handed to `actor`.
pub async fn reset_code(actor: &Actor, user: &str) -> Result<String, Status> {
    let request = pb::CreatePasswordResetRequest {
        account: Some(Account::Name(user.to_owned())),
        delivery: Delivery::Return.into(),
        ..Default::default()
    };
    Ok(actor
        .credentials()
        .create_password_reset(request)
        .await?
        .into_inner()
        .code)
}

pub async fn redeem(
    actor: &Actor,
    code: &str,
    new_password: &str,
) -> Result<pb::ResetPasswordResponse, Status> {
    let request = pb::ResetPasswordRequest {
        code: code.to_owned(),
        new_password: new_password.to_owned(),
        ..Default::default()
    };
    Ok(actor
        .credentials()
        .reset_password(request)
        .await?
        .into_inner())
}

//! UserService.

use std::collections::BTreeSet;

use accountd::{domain::error::Reason, grpc::pb, jobs};
use pb::{
    lookup_user_request::{ExternalId, Key},
    user::State,
};
use prost_types::FieldMask;
use tonic::Status;

use crate::{
    contacts,
    harness::{Actor, Engine, SignedIn, assert_refused, fields_of, on_both_engines, password},
    other::Other,
};

on_both_engines! {
    async fn a_user_is_found_by_everything_that_names_it(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let external_ids = [("crm".to_owned(), "42".to_owned())].into();
        let alice = pb::User { external_ids, ..named("Alice") };
        let created = operator.create_user(alice).await.expect("created");
        assert_eq!(created.name, format!("users/{}", created.uid));
        assert_eq!(operator.get_user(&created.name).await.expect("by name"), created);

        for spelling in ["Alice", "alice", "ＡＬＩＣＥ"] {
            let found = lookup(&operator, Key::Identifier(spelling.to_owned())).await;
            assert_eq!(found.expect(spelling), created);
        }
        let pair = |id: &str| {
            Key::ExternalId(ExternalId { source: "crm".to_owned(), id: id.to_owned() })
        };
        assert_eq!(lookup(&operator, pair("42")).await.expect("by external id"), created);
        for nobody in [pair("43"), Key::Identifier("bob".to_owned()), Key::Identifier("\0".to_owned())] {
            assert_refused(lookup(&operator, nobody).await, Reason::NotFound);
        }
    }

    async fn all_that_is_wrong_is_said_at_once(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let user = pb::User {
            display_name: "x".repeat(201),
            language_code: "not a tag".to_owned(),
            time_zone: "Europe/Atlantis".to_owned(),
            external_ids: [("CRM".to_owned(), "42".to_owned())].into(),
            expire_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            ..named("a b")
        };
        let expected = [
            "user.username",
            "user.display_name",
            "user.language_code",
            "user.time_zone",
            "user.external_ids",
            "user.expire_time",
        ];
        assert_eq!(fields_of(operator.create_user(user).await), expected);
    }

    async fn one_name_belongs_to_one_user_however_it_is_written(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let external_ids = || [("crm".to_owned(), "42".to_owned())].into();
        let alice = pb::User { external_ids: external_ids(), ..named("alice") };
        let alice = operator.create_user(alice).await.expect("created");
        for taken in [named("Alice"), named("ａｌｉｃｅ"), pb::User { external_ids: external_ids(), ..named("") }] {
            assert_refused(operator.create_user(taken).await, Reason::AlreadyExists);
        }
        let with_id = pb::CreateUserRequest { user_id: alice.uid.clone(), ..Default::default() };
        assert_refused(operator.users().create_user(with_id).await, Reason::AlreadyExists);

        // A deleted user keeps its name, until it is removed for good.
        delete(&operator, &alice.name).await.expect("deleted");
        assert_refused(operator.create_user(named("alice")).await, Reason::AlreadyExists);
        let bob = operator.create_user(named("bob")).await.expect("created");
        let renamed = pb::User { username: "ALICE".to_owned(), ..bob };
        assert_refused(update(&operator, renamed, &[]).await, Reason::AlreadyExists);
        server.advance_s(30 * 24 * 3600);
        jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        assert_refused(operator.get_user(&alice.name).await, Reason::NotFound);
        assert_refused(operator.create_user(named("alice")).await, Reason::AlreadyExists);
        let release = pb::ReleaseIdentifierRequest { identifier: "Alice".to_owned(), ..Default::default() };
        operator.users().release_identifier(release.clone()).await.expect("released");
        assert_refused(operator.users().release_identifier(release.clone()).await, Reason::NotFound);
        operator.create_user(named("alice")).await.expect("free again");
        assert_refused(operator.users().release_identifier(release).await, Reason::NotFound);
        assert_eq!(server.events("user.purged").await[0].account, alice.name);
    }

    async fn people_of_an_earlier_build_are_found_and_cannot_be_confused_either(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let person = |username: &str| pb::User {
            username: username.to_owned(),
            display_name: "Ann Müller".to_owned(),
            ..Default::default()
        };
        let ann = operator.create_user(person("mall")).await.expect("created").name;
        // Before there were names to search by, and looks that are taken with a username.
        Other::new(&server).await.run("DELETE FROM user_names; DELETE FROM meta WHERE name = 'found_by_all_2'; \
            DELETE FROM login_identifiers WHERE kind = 'username_look'").await;
        let found = async || {
            let filter = "display_name = \"ann*\"".to_owned();
            let request = pb::ListUsersRequest { filter, ..Default::default() };
            let users = operator.users().list_users(request).await.expect("listed").into_inner().users;
            users.into_iter().map(|user| user.name).collect::<Vec<_>>()
        };
        assert!(found().await.is_empty());
        let twin = operator.create_user(person("ma1l")).await.expect("not known yet").name;
        for _ in 0..2 {
            jobs::sweep(&server.running.app).await.expect("swept");
            let mut found = found().await;
            found.sort();
            let mut both = [ann.clone(), twin.clone()];
            both.sort();
            assert_eq!(found, both);
            assert_refused(operator.create_user(person("rnal1")).await, Reason::AlreadyExists);
        }
        // The first of two who look alike has it, and both are still who they were.
        for (username, name) in [("mall", &ann), ("ma1l", &twin)] {
            let key = Some(pb::lookup_user_request::Key::Identifier(username.to_owned()));
            let request = pb::LookupUserRequest { key };
            let found = operator.users().lookup_user(request).await.expect(username).into_inner();
            assert_eq!(&found.name, name);
        }
    }

    async fn people_are_found_by_name_address_and_number(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let person = |display: &str, given: &str, family: &str| pb::User {
            display_name: display.to_owned(),
            given_name: given.to_owned(),
            family_name: family.to_owned(),
            ..Default::default()
        };
        let mut names = Vec::new();
        for (display, given, family) in [("Ann Müller", "Ann", "Müller"), ("ANN  MÜLLER", "Anna", ""), ("Bob Müllhaupt", "Bob", "Müllhaupt"), ("Zoë", "", "")] {
            names.push(operator.create_user(person(display, given, family)).await.expect("created").name);
        }
        for (user, address) in [(0, "Ann@Example.org"), (1, "other@example.org"), (2, "ann@example.org")] {
            let contact = contacts::email(address, &[]);
            operator.create_contact(&names[user], contact).await.expect("created");
        }
        operator.create_contact(&names[3], contacts::phone("+41446681800", &[])).await.expect("created");
        let found = async |filter: &str, size: i32| {
            let (mut found, mut page_token) = (Vec::new(), String::new());
            loop {
                let request = pb::ListUsersRequest { filter: filter.to_owned(), page_size: size, page_token, ..Default::default() };
                let page = operator.users().list_users(request).await.expect(filter).into_inner();
                found.extend(page.users.iter().map(|user| names.iter().position(|name| *name == user.name).expect("known")));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    found.sort_unstable();
                    return found;
                }
            }
        };
        for size in [1, 50] {
            assert_eq!(found("display_name = \"ann müller\"", size).await, [0, 1]);
            assert_eq!(found("display_name = \"ann*\"", size).await, [0, 1]);
            assert_eq!(found("display_name = \"ann  m*\"", size).await, [0, 1]);
            assert_eq!(found("display_name = \"ann *\"", size).await, [0, 1]);
            assert_eq!(found("family_name = \"MU\u{308}LL*\"", size).await, [0, 2]);
            assert_eq!(found("given_name = \"ann\"", size).await, [0]);
            assert_eq!(found("display_name = \"*\" AND state = ACTIVE", size).await, [0, 1, 2, 3]);
            assert_eq!(found("email = \"ANN@example.org\"", size).await, [0, 2]);
            assert_eq!(found("phone = \"+41 44 668 18 00\"", size).await, [3]);
            assert!(found("email = \"nobody@example.org\"", size).await.is_empty());
        }
        for bad in ["email = \"ann\"", "phone = \"044\"", "display_name = \"a\" AND email = \"a@b.org\"", "display_name > \"a\""] {
            let request = pb::ListUsersRequest { filter: bad.to_owned(), ..Default::default() };
            assert_refused(operator.users().list_users(request).await, Reason::InvalidFilter);
        }
        let renamed = pb::User { name: names[3].clone(), display_name: "Ann Zoë".to_owned(), ..Default::default() };
        update(&operator, renamed, &["display_name"]).await.expect("updated");
        assert_eq!(found("display_name = \"ann*\"", 50).await, [0, 1, 3]);
        assert!(found("display_name = \"zoë\"", 50).await.is_empty());
    }

    async fn an_update_changes_what_its_mask_names_and_nothing_else(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let before = pb::User { given_name: "Ann".to_owned(), ..named("ann") };
        let before = operator.create_user(before).await.expect("created");
        server.advance_s(1);

        let sent = pb::User {
            name: before.name.clone(),
            display_name: "Ann M.".to_owned(),
            family_name: "ignored".to_owned(),
            ..Default::default()
        };
        let after = update(&operator, sent, &["display_name", "given_name"]).await.expect("updated");
        assert_eq!((&*after.display_name, &*after.given_name, &*after.family_name), ("Ann M.", "", ""));
        assert_eq!(after.username, "ann");
        assert_ne!(after.etag, before.etag);
        assert_ne!(after.update_time, before.update_time);
        assert_eq!(after.create_time, before.create_time);
        let event = &server.events("user.updated").await[0];
        assert_eq!(event.changed_fields, ["display_name", "given_name"]);

        // Without a mask: what is set. With `*`: everything.
        let sent = pb::User { family_name: "Müller".to_owned(), ..only_name(&after) };
        let after = update(&operator, sent, &[]).await.expect("updated");
        assert_eq!((&*after.display_name, &*after.family_name), ("Ann M.", "Müller"));
        let after = update(&operator, only_name(&after), &["*"]).await.expect("updated");
        assert_eq!((&*after.username, &*after.family_name), ("", ""));
        let gone = lookup(&operator, Key::Identifier("ann".to_owned())).await;
        assert_refused(gone, Reason::NotFound);

        // Nothing to change is no change.
        let same = update(&operator, only_name(&after), &[]).await.expect("nothing to do");
        assert_eq!(same.etag, after.etag);
        for bad in ["state", "users.username", "attributes.team", ""] {
            let refused = update(&operator, only_name(&after), &[bad]).await;
            assert_eq!(fields_of(refused), ["update_mask"], "{bad}");
        }
    }

    async fn no_update_is_lost_to_another(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let read = operator.create_user(named("ann")).await.expect("created");
        let first = pb::User { display_name: "first".to_owned(), ..only_name(&read) };
        let first = update(&operator, pb::User { etag: read.etag.clone(), ..first }, &[]).await;
        let first = first.expect("the etag is fresh");
        let second = pb::User { display_name: "second".to_owned(), ..only_name(&read) };
        let stale = pb::User { etag: read.etag, ..second.clone() };
        assert_refused(update(&operator, stale, &[]).await, Reason::EtagMismatch);
        let fresh = pb::User { etag: first.etag.clone(), ..second };
        update(&operator, fresh, &[]).await.expect("the etag is fresh");

        let request = pb::SuspendUserRequest {
            name: first.name,
            etag: first.etag,
            ..Default::default()
        };
        assert_refused(operator.users().suspend_user(request).await, Reason::EtagMismatch);
    }

    async fn people_change_their_own_profile_and_no_more(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let secret = |text: &str| Some(attributes("note", text));
        let admin = pb::User {
            name: alice.name().to_owned(),
            admin_attributes: secret("on the list"),
            ..Default::default()
        };
        update(&server.operator().await, admin, &[]).await.expect("an operator may");

        let me = pb::User {
            name: "users/me".to_owned(),
            display_name: "Alice".to_owned(),
            attributes: secret("hello"),
            ..Default::default()
        };
        let me = update(&alice.actor, me, &[]).await.expect("her own");
        assert_eq!((&*me.display_name, &me.attributes), ("Alice", &secret("hello")));
        assert_eq!(me.admin_attributes, None, "hidden from herself");
        let seen = server.operator().await.get_user(alice.name()).await.expect("an operator");
        assert_eq!(seen.admin_attributes, secret("on the list"));

        for field in ["username", "external_ids", "admin_attributes", "expire_time", "*"] {
            let refused = update(&alice.actor, only_name(&me), &[field]).await;
            assert_refused(refused, Reason::ScopeMissing);
        }
    }

    async fn a_suspended_user_is_out_at_once_and_comes_back_without_sessions(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.signed_in("alice").await;
        let request = pb::SuspendUserRequest {
            name: alice.name().to_owned(),
            reason: "fraud".to_owned(),
            ..Default::default()
        };
        let suspended = operator.users().suspend_user(request).await.expect("suspended").into_inner();
        assert_eq!((suspended.state(), &*suspended.state_reason), (State::Suspended, "fraud"));
        assert_is_out(&server.anonymous().await, &alice).await;

        let request = pb::ResumeUserRequest { name: suspended.name, ..Default::default() };
        let resumed = operator.users().resume_user(request.clone()).await.expect("resumed").into_inner();
        assert_eq!((resumed.state(), &*resumed.state_reason), (State::Active, ""));
        assert_refused(operator.users().resume_user(request).await, Reason::WrongState);
        let anonymous = server.anonymous().await;
        assert_refused(alice.actor.get_user("users/me").await, Reason::TokenRevoked);
        assert_refused(anonymous.refresh(&alice.tokens.refresh_token).await, Reason::InvalidRefreshToken);
        anonymous.sign_in("alice", &password("alice")).await.expect("may sign in again");
    }

    async fn a_suspension_ends_by_itself_at_its_time(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        let until = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        let request = pb::SuspendUserRequest {
            name: alice.name.clone(),
            until_time: Some(until),
            ..Default::default()
        };
        operator.users().suspend_user(request).await.expect("suspended");
        let anonymous = server.anonymous().await;
        server.advance_s(59);
        let early = anonymous.sign_in("alice", &password("alice")).await;
        assert_refused(early, Reason::InvalidCredentials);
        server.advance_s(1);
        anonymous.sign_in("alice", &password("alice")).await.expect("its time is over");
        let seen = operator.get_user(&alice.name).await.expect("there");
        assert_eq!(seen.state(), State::Active);
        assert_eq!(server.events("user.resumed").await.len(), 0);
        jobs::sweep(&server.running.app).await.expect("swept");
        let event = &server.events("user.resumed").await[0];
        assert_eq!((&*event.actor, &event.account), ("accountd", &alice.name));

        let past = pb::SuspendUserRequest {
            name: alice.name,
            until_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            ..Default::default()
        };
        assert_eq!(fields_of(operator.users().suspend_user(past).await), ["until_time"]);
    }

    async fn a_deleted_user_is_out_and_can_be_brought_back(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.signed_in("alice").await;
        let deleted = delete(&operator, alice.name()).await.expect("deleted");
        assert_eq!(deleted.state(), State::Deleted);
        let purge_s = deleted.purge_time.expect("a time").seconds - server.now().seconds();
        assert_eq!(purge_s, 30 * 24 * 3600);
        assert_is_out(&server.anonymous().await, &alice).await;
        assert_refused(delete(&operator, alice.name()).await, Reason::WrongState);
        let edit = pb::User { display_name: "x".to_owned(), ..only_name(&deleted) };
        assert_refused(update(&operator, edit, &[]).await, Reason::WrongState);

        let request = pb::UndeleteUserRequest { name: deleted.name, ..Default::default() };
        let back = operator.users().undelete_user(request).await.expect("undeleted").into_inner();
        assert_eq!((back.state(), back.delete_time, back.purge_time), (State::Active, None, None));
        server.anonymous().await.sign_in("alice", &password("alice")).await.expect("as before");
    }

    async fn who_owns_system_accounts_is_not_purged(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (owner, heir) = (server.user("holder").await, server.user("heir").await);
        let robot = pb::SystemAccount {
            display_name: "robot".to_owned(),
            owner: owner.name.clone(),
            kind: pb::system_account::Kind::Service.into(),
            ..Default::default()
        };
        let request = pb::CreateSystemAccountRequest { system_account: Some(robot), ..Default::default() };
        let robot = operator.system_accounts().create_system_account(request).await.expect("created").into_inner();
        delete(&operator, &owner.name).await.expect("deleted");
        server.advance_s(31 * 24 * 3600);
        let operator = server.operator().await;
        jobs::sweep(&server.running.app).await.expect("swept");
        operator.get_user(&owner.name).await.expect("still answers for the robot");
        let request = pb::TransferSystemAccountRequest { name: robot.name, owner: heir.name, ..Default::default() };
        operator.system_accounts().transfer_system_account(request).await.expect("transferred");
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_refused(operator.get_user(&owner.name).await, Reason::NotFound);
    }

    async fn an_account_ends_at_its_expiry_without_any_job(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let expire_time = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        let edit = pb::User {
            name: alice.name().to_owned(),
            expire_time: Some(expire_time),
            ..Default::default()
        };
        update(&server.operator().await, edit, &[]).await.expect("set");
        let tokens = server.anonymous().await.refresh(&alice.tokens.refresh_token).await.expect("live");
        let end = tokens.access_expire_time.expect("a time").seconds;
        assert_eq!(end, expire_time.seconds, "no token outlives the account");
        server.advance_s(60);
        assert_is_out(&server.anonymous().await, &alice).await;
    }

    async fn a_batch_is_answered_in_order_or_not_at_all(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let mut names = Vec::new();
        for number in 0..45 {
            names.push(operator.create_user(named(&format!("u{number}"))).await.expect("created").name);
        }
        names.reverse();
        let batch = async |names: Vec<String>| {
            let request = pb::BatchGetUsersRequest { names };
            operator.users().batch_get_users(request).await.map(tonic::Response::into_inner)
        };
        let users = batch(names.clone()).await.expect("all there").users;
        assert_eq!(users.iter().map(|user| &user.name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
        let nobody = "users/018f0000-0000-7000-8000-000000000000".to_owned();
        let mut some_missing = names.clone();
        some_missing.push(nobody);
        assert_refused(batch(some_missing).await, Reason::NotFound);
        assert_eq!(fields_of(batch(vec![]).await), ["names"]);
        assert_eq!(fields_of(batch(vec![names[0].clone(); 101]).await), ["names"]);
        assert_eq!(fields_of(batch(vec!["users/x".to_owned()]).await), ["names"]);
    }

    async fn pages_show_every_user_once_in_every_order(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let mut all: BTreeSet<String> = [server.owner().to_owned()].into();
        for number in 0..23 {
            // Some at the same instant, so that the order has to be total.
            if number % 3 == 0 {
                server.advance_s(1);
            }
            let user = operator.create_user(named(&format!("User{number:02}"))).await;
            all.insert(user.expect("created").name);
        }
        for order_by in ["", "create_time", "create_time desc"] {
            let seen = pages(&operator, "", order_by, 5).await;
            assert_eq!(seen.len(), all.len(), "{order_by}: each once");
            assert_eq!(seen.iter().map(|user| user.name.clone()).collect::<BTreeSet<_>>(), all);
            let times: Vec<_> = seen.iter().map(|user| user.create_time.expect("set").seconds).collect();
            let sorted = times.is_sorted_by(|a, b| if order_by.ends_with("desc") { a >= b } else { a <= b });
            assert!(sorted, "{order_by}: {times:?}");
        }
        let seen = pages(&operator, "", "username", 5).await;
        let names: Vec<&str> = seen.iter().map(|user| &*user.username).collect();
        let expected: Vec<String> = (0..23).map(|number| format!("User{number:02}")).collect();
        assert_eq!(names, expected);
    }

    async fn filters_show_what_they_say(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        for name in ["Anna", "annegret", "Bob", "ann"] {
            server.advance_s(10);
            operator.create_user(named(name)).await.expect("created");
        }
        let bob = lookup(&operator, Key::Identifier("bob".to_owned())).await.expect("there");
        operator.suspend_user(&bob.name).await.expect("suspended");
        let anna = lookup(&operator, Key::Identifier("anna".to_owned())).await.expect("there");
        delete(&operator, &anna.name).await.expect("deleted");

        let names = async |filter: &str| -> Vec<String> {
            let users = pages(&operator, filter, "", 2).await;
            users.into_iter().map(|user| user.username).filter(|name| !name.is_empty()).collect()
        };
        assert_eq!(names("").await, ["annegret", "Bob", "ann"]);
        assert_eq!(names("state = SUSPENDED").await, ["Bob"]);
        assert_eq!(names("state = DELETED").await, ["Anna"]);
        assert_eq!(names(r#"username = "Ann*""#).await, ["ann", "annegret"]);
        assert_eq!(names(r#"username = "ann""#).await, ["ann"]);
        assert_eq!(names(r#"username = "an*" AND state = DELETED"#).await, ["Anna"]);
        let bob_time = accountd::domain::time::Timestamp::from_seconds(bob.create_time.expect("set").seconds);
        assert_eq!(names(&format!("create_time > {bob_time}")).await, ["ann"]);
        assert_eq!(names(&format!("create_time >= {bob_time}")).await, ["Bob", "ann"]);
        assert_eq!(names(&format!("create_time < {bob_time}")).await, ["annegret"]);
        let request = pb::ListUsersRequest { show_deleted: true, ..Default::default() };
        let everybody = operator.users().list_users(request).await.expect("a list").into_inner();
        assert_eq!(everybody.users.len(), 5);

        for bad in ["nickname = x", "state = ALIVE", "username > a", "create_time = now", "state = ACTIVE OR state = DELETED"] {
            let request = pb::ListUsersRequest { filter: bad.to_owned(), ..Default::default() };
            assert_refused(operator.users().list_users(request).await, Reason::InvalidFilter);
        }
        let request = pb::ListUsersRequest { order_by: "state".to_owned(), ..Default::default() };
        assert_refused(operator.users().list_users(request).await, Reason::InvalidFilter);
        let request = pb::ListUsersRequest { page_size: -1, ..Default::default() };
        assert_eq!(fields_of(operator.users().list_users(request).await), ["page_size"]);
    }

    async fn a_page_token_works_for_its_caller_and_its_query_only(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        for number in 0..3 {
            operator.create_user(named(&format!("u{number}"))).await.expect("created");
        }
        let first = pb::ListUsersRequest { page_size: 2, ..Default::default() };
        let page = operator.users().list_users(first.clone()).await.expect("a page").into_inner();
        let next = pb::ListUsersRequest { page_token: page.next_page_token.clone(), ..first };
        operator.users().list_users(next.clone()).await.expect("the next page");

        let auditor = server.system_account(&["roles/auditor"]).await;
        assert_refused(auditor.users().list_users(next.clone()).await, Reason::InvalidPageToken);
        let changes: [fn(&mut pb::ListUsersRequest); 4] = [
            |request| request.filter.push_str("state = ACTIVE"),
            |request| request.order_by.push_str("username"),
            |request| request.show_deleted = true,
            |request| request.page_token.push('A'),
        ];
        for change in changes {
            let mut other = next.clone();
            change(&mut other);
            assert_refused(operator.users().list_users(other).await, Reason::InvalidPageToken);
        }
        let keys = pb::ListSigningKeysRequest { page_token: page.next_page_token, ..Default::default() };
        assert_refused(operator.keys().list_signing_keys(keys).await, Reason::InvalidPageToken);
    }

    async fn a_retry_gets_the_first_answer_and_changes_nothing(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let request = pb::CreateUserRequest {
            user: Some(named("alice")),
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..Default::default()
        };
        let create = async |actor: &Actor, request: &pb::CreateUserRequest| {
            actor.users().create_user(request.clone()).await.map(tonic::Response::into_inner)
        };
        let first = create(&operator, &request).await.expect("created");
        let again = create(&operator, &request).await.expect("the same");
        assert_eq!(first, again);
        assert_eq!(server.events("user.created").await.iter().filter(|event| event.account == first.name).count(), 1);

        let other = pb::CreateUserRequest { user: Some(named("bob")), ..request.clone() };
        assert_refused(create(&operator, &other).await, Reason::RequestIdReused);
        // Somebody else's request of the same id is another request.
        let manager = server.system_account(&["roles/user-manager"]).await;
        assert_refused(create(&manager, &request).await, Reason::AlreadyExists);
        let bad = pb::CreateUserRequest { request_id: "1".to_owned(), ..request.clone() };
        assert_eq!(fields_of(create(&operator, &bad).await), ["request_id"]);

        // A refusal is not remembered: the same request may succeed later.
        let carol = |name: &str| pb::CreateUserRequest {
            user: Some(named(name)),
            request_id: "018f0000-0000-7000-8000-000000000002".to_owned(),
            ..Default::default()
        };
        assert_refused(create(&operator, &carol("alice")).await, Reason::AlreadyExists);
        create(&operator, &carol("carol")).await.expect("nothing was recorded");
        // After its time it is forgotten.
        server.advance_s(24 * 3600 + 1);
        jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        assert_refused(create(&operator, &request).await, Reason::AlreadyExists);
    }

    async fn validating_checks_everything_and_changes_nothing(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let request = |name: &str| pb::CreateUserRequest {
            user: Some(named(name)),
            validate_only: true,
            ..Default::default()
        };
        let would_be = operator.users().create_user(request("alice")).await.expect("valid").into_inner();
        assert_eq!(would_be.username, "alice");
        assert_refused(operator.get_user(&would_be.name).await, Reason::NotFound);
        operator.create_user(named("alice")).await.expect("still free");
        assert_refused(operator.users().create_user(request("Alice")).await, Reason::AlreadyExists);
        assert_eq!(server.events("user.created").await.len(), 2, "the owner and alice");
    }

    async fn a_frontend_registers_people_and_sets_nothing_beyond(engine: Engine) {
        let server = engine.server().await;
        let frontend = server.frontend().await;
        let create = async |actor: &Actor, user: pb::User, password: &str, user_id: &str| {
            let request = pb::CreateUserRequest {
                user: Some(user),
                password: password.to_owned(),
                user_id: user_id.to_owned(),
                ..Default::default()
            };
            actor.users().create_user(request).await.map(tonic::Response::into_inner)
        };
        let good = password("alice");
        create(&frontend, named("alice"), &good, "").await.expect("registered");
        let id = "018f0000-0000-7000-8000-000000000001";
        assert_refused(create(&frontend, named("bob"), &good, id).await, Reason::ScopeMissing);
        let external_ids = [("crm".to_owned(), "42".to_owned())].into();
        let with_ids = pb::User { external_ids, ..named("bob") };
        assert_refused(create(&frontend, with_ids, &good, "").await, Reason::ScopeMissing);
        // Nobody chooses a password for somebody else.
        let manager = server.system_account(&["roles/user-manager"]).await;
        assert_refused(create(&manager, named("bob"), &good, "").await, Reason::ScopeMissing);
        create(&manager, named("bob"), "", id).await.expect("without a password");
        let weak = create(&frontend, named("carol"), "short", "").await;
        assert_refused(weak, Reason::PasswordRefused);
    }

    async fn nobody_changes_an_account_more_powerful_than_their_own(engine: Engine) {
        let server = engine.server().await;
        let manager = server.system_account(&["roles/user-manager"]).await;
        let boss = server.user("boss").await;
        server.grant(&boss.name, "scopes/accountd:keys.write").await;
        let edit = pb::User { username: "puppet".to_owned(), ..only_name(&boss) };
        assert_refused(update(&manager, edit, &[]).await, Reason::TargetOutranksCaller);
        assert_refused(manager.suspend_user(&boss.name).await, Reason::TargetOutranksCaller);
        assert_refused(delete(&manager, &boss.name).await, Reason::TargetOutranksCaller);
        // Power that is only to come counts as well.
        let heir = server.user("heir").await;
        let mut grant = crate::harness::grant_request(&heir.name, "roles/operator");
        let start_time = prost_types::Timestamp { seconds: server.now().seconds() + 3600, nanos: 0 };
        grant.grant.as_mut().expect("set").start_time = Some(start_time);
        server.operator().await.grants().create_grant(grant).await.expect("granted");
        assert_refused(manager.suspend_user(&heir.name).await, Reason::TargetOutranksCaller);
        manager.suspend_user(&server.user("peer").await.name).await.expect("no power at all");
    }
}

fn named(username: &str) -> pb::User {
    pb::User {
        username: username.to_owned(),
        ..Default::default()
    }
}

fn only_name(user: &pb::User) -> pb::User {
    pb::User {
        name: user.name.clone(),
        ..Default::default()
    }
}

fn attributes(name: &str, value: &str) -> prost_types::Struct {
    let kind = prost_types::value::Kind::StringValue(value.to_owned());
    prost_types::Struct {
        fields: [(name.to_owned(), prost_types::Value { kind: Some(kind) })].into(),
    }
}

async fn lookup(actor: &Actor, key: Key) -> Result<pb::User, Status> {
    let request = pb::LookupUserRequest { key: Some(key) };
    Ok(actor.users().lookup_user(request).await?.into_inner())
}

async fn update(actor: &Actor, user: pb::User, mask: &[&str]) -> Result<pb::User, Status> {
    let paths: Vec<String> = mask.iter().map(ToString::to_string).collect();
    let update_mask = (!paths.is_empty()).then_some(FieldMask { paths });
    let request = pb::UpdateUserRequest {
        user: Some(user),
        update_mask,
        ..Default::default()
    };
    Ok(actor.users().update_user(request).await?.into_inner())
}

async fn delete(actor: &Actor, name: &str) -> Result<pb::User, Status> {
    let request = pb::DeleteUserRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    Ok(actor.users().delete_user(request).await?.into_inner())
}

/// Everybody a filter shows, page by page.
async fn pages(actor: &Actor, filter: &str, order_by: &str, page_size: i32) -> Vec<pb::User> {
    let mut request = pb::ListUsersRequest {
        page_size,
        filter: filter.to_owned(),
        order_by: order_by.to_owned(),
        ..Default::default()
    };
    let mut users = Vec::new();
    loop {
        let page = actor
            .users()
            .list_users(request.clone())
            .await
            .expect("a page")
            .into_inner();
        assert!(page.users.len() <= usize::try_from(page_size).expect("positive"));
        users.extend(page.users);
        if page.next_page_token.is_empty() {
            return users;
        }
        request.page_token = page.next_page_token;
    }
}

/// Neither the old token nor any way to a new one works.
async fn assert_is_out(anonymous: &Actor, person: &SignedIn) {
    let read = person.actor.get_user("users/me").await;
    let reason = crate::harness::Refusal::reason(read);
    assert!(
        ["TOKEN_REVOKED", "TOKEN_EXPIRED"].contains(&&*reason),
        "{reason}"
    );
    let refreshed = anonymous.refresh(&person.tokens.refresh_token).await;
    assert_refused(refreshed, Reason::InvalidRefreshToken);
    let signed_in = anonymous.sign_in("alice", &password("alice")).await;
    assert_refused(signed_in, Reason::InvalidCredentials);
}

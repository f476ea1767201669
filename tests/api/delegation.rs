//! Scopes for a group only: whoever looks after some people sees and changes these, and there is nobody else.

use std::time::Duration;

use accountd::{domain::error::Reason, grpc::pb};
use pb::access_path::State;
use prost_types::{FieldMask, Timestamp};
use tonic::Status;

use crate::{
    contacts, groups,
    harness::{
        Actor, Engine, Refusal as _, Server, SignedIn, assert_refused, fields_of, grant_request,
        on_both_engines,
    },
    other::Other,
    roles, scopes, system_accounts,
};

/// Grants something for a resource only.
pub async fn grant_for(
    by: &Actor,
    principal: &str,
    permission: &str,
    resource: &str,
) -> Result<pb::Grant, Status> {
    let mut request = grant_request(principal, permission);
    if let Some(grant) = &mut request.grant {
        resource.clone_into(&mut grant.resource);
    }
    Ok(by.grants().create_grant(request).await?.into_inner())
}

async fn list(by: &Actor, request: pb::ListUsersRequest) -> Result<Vec<String>, Status> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListUsersRequest {
            page_size: 1,
            page_token,
            ..request.clone()
        };
        let page = by.users().list_users(request).await?.into_inner();
        // An empty page would tell that there was something to be left out.
        assert!(page.users.len() == 1 || all.is_empty() && page.next_page_token.is_empty());
        all.extend(page.users.into_iter().map(|it| it.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// What a list of users has, sorted.
async fn listed(by: &Actor, filter: &str) -> Vec<String> {
    let request = pb::ListUsersRequest {
        filter: filter.to_owned(),
        ..Default::default()
    };
    sorted(list(by, request).await.expect(filter))
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

async fn rename(by: &Actor, name: &str) -> Result<pb::User, Status> {
    let request = pb::UpdateUserRequest {
        user: Some(pb::User {
            name: name.to_owned(),
            display_name: "Renamed".to_owned(),
            ..Default::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["display_name".to_owned()],
        }),
        ..Default::default()
    };
    Ok(by.users().update_user(request).await?.into_inner())
}

async fn lookup(by: &Actor, identifier: &str) -> Result<pb::User, Status> {
    let request = pb::LookupUserRequest {
        key: Some(pb::lookup_user_request::Key::Identifier(
            identifier.to_owned(),
        )),
    };
    Ok(by.users().lookup_user(request).await?.into_inner())
}

async fn batch(by: &Actor, names: &[&str]) -> Result<pb::BatchGetUsersResponse, Status> {
    let request = pb::BatchGetUsersRequest {
        names: names.iter().map(ToString::to_string).collect(),
    };
    Ok(by.users().batch_get_users(request).await?.into_inner())
}

/// A crew with Eve, and Dan in a crew within; Zoe is in another; Mona looks after the first.
struct Stage {
    operator: Actor,
    crew: String,
    inner: String,
    other: String,
    eve: String,
    dan: String,
    zoe: String,
    mona: SignedIn,
}

impl Stage {
    async fn set(server: &Server) -> Self {
        let operator = server.operator().await;
        let crew = groups::create(&operator, "crew").await;
        let inner = groups::create(&operator, "inner").await;
        let other = groups::create(&operator, "other").await;
        let mut people = Vec::new();
        for (username, group) in [("eve", &crew), ("dan", &inner), ("zoe", &other)] {
            let name = server.user(username).await.name;
            groups::add(&operator, group, &name).await.expect("added");
            people.push(name);
        }
        groups::add(&operator, &crew, &inner).await.expect("added");
        let mona = server.user("mona").await.name;
        grant_for(&operator, &mona, "roles/user-manager", &crew)
            .await
            .expect("granted");
        let [eve, dan, zoe] = people.try_into().expect("three");
        Self {
            operator,
            crew,
            inner,
            other,
            eve,
            dan,
            zoe,
            mona: server.sign_in("mona").await,
        }
    }
}

/// A user that there is not.
const NOBODY: &str = "users/0190f0c0-0000-7000-8000-000000000001";

on_both_engines! {
    async fn whoever_is_out_of_reach_meanwhile_is_not_changed(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        // The call has come in, and waits for its transaction, when Eve leaves.
        let mut other = Other::new(&server).await;
        other.hold("leases").await;
        let before = server.spent().1;
        let (mona, eve) = (stage.mona.actor.clone(), stage.eve.clone());
        let renamed = tokio::spawn(async move { rename(&mona, &eve).await });
        while server.spent().1 == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        other.run("DELETE FROM group_members; COMMIT").await;
        assert_refused(renamed.await.expect("no panic"), Reason::ScopeMissing);
        let eve = stage.operator.get_user(&stage.eve).await.expect("there");
        assert_eq!(eve.display_name, "");
    }

    async fn whoever_looks_after_a_group_sees_and_changes_who_is_in_it_and_nobody_else(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let mona = &stage.mona.actor;
        let limit = format!("@{}", stage.crew);
        assert!(stage.mona.tokens.scopes.iter().all(|scope| scope.ends_with(&limit)), "{:?}", stage.mona.tokens);
        for name in [&stage.eve, &stage.dan] {
            assert_eq!(rename(mona, name).await.expect("in reach").display_name, "Renamed");
            let seen = mona.get_user(name).await.expect("in reach");
            assert_eq!(seen.display_name, "Renamed");
            mona.suspend_user(name).await.expect("in reach");
            let request = pb::ResumeUserRequest {
                name: name.clone(),
                ..Default::default()
            };
            mona.users().resume_user(request).await.expect("in reach");
            let contact = contacts::email("somebody@example.com", &[]);
            mona.create_contact(name, contact).await.expect("in reach");
            let request = pb::ListCredentialsRequest {
                parent: name.clone(),
                ..Default::default()
            };
            mona.credentials().list_credentials(request).await.expect("in reach");
            let request = pb::RevokeSessionsRequest {
                user: name.clone(),
                ..Default::default()
            };
            mona.sessions().revoke_sessions(request).await.expect("in reach");
        }
        assert_eq!(listed(mona, "").await, sorted(vec![stage.eve.clone(), stage.dan.clone()]));
        lookup(mona, "eve").await.expect("in reach");
        assert_eq!(batch(mona, &[&stage.dan, &stage.eve]).await.expect("in reach").users.len(), 2);

        // Somebody else is not there.
        let programs = pb::ListSystemAccountsRequest::default();
        assert_refused(mona.system_accounts().list_system_accounts(programs).await, Reason::ScopeMissing);
        for name in [&*stage.zoe, NOBODY, server.owner()] {
            for outcome in [
                mona.get_user(name).await.outcome(),
                rename(mona, name).await.outcome(),
                mona.suspend_user(name).await.outcome(),
                mona.create_contact(name, contacts::email("x@example.com", &[])).await.outcome(),
            ] {
                assert_eq!(outcome, "PERMISSION_DENIED SCOPE_MISSING", "{name}");
            }
        }
        let message = |outcome: Result<pb::User, Status>| outcome.expect_err("not there").message().to_owned();
        assert_eq!(message(lookup(mona, "zoe").await), message(lookup(mona, "nobody").await));
        for names in [[&*stage.zoe, NOBODY], [NOBODY, &*stage.zoe], [&*stage.eve, &*stage.zoe]] {
            let first = names.iter().find(|name| **name != stage.eve).expect("one");
            let status = batch(mona, &names).await.expect_err("not there");
            assert!(status.message().contains(*first), "{names:?}: {status:?}");
        }
        // What is about nobody is not for them.
        assert_refused(mona.create_user(pb::User::default()).await, Reason::ScopeMissing);
        let request = pb::ListEventsRequest::default();
        assert_refused(mona.events().list_events(request).await, Reason::ScopeMissing);
    }

    async fn lists_and_their_pages_have_nothing_else_in_them(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let operator = &stage.operator;
        let mut inside = vec![stage.eve.clone(), stage.dan.clone()];
        for number in 0..12 {
            server.advance_s(1);
            let user = pb::User {
                username: format!("crowd-{number}"),
                display_name: "Robin Crowd".to_owned(),
                ..Default::default()
            };
            let name = operator.create_user(user).await.expect("made").name;
            operator.create_contact(&name, contacts::email("all@example.com", &[])).await.expect("made");
            if number % 4 == 1 {
                let group = if number < 6 { &stage.crew } else { &stage.inner };
                groups::add(operator, group, &name).await.expect("added");
                inside.push(name);
            }
        }
        let crowd = sorted(inside[2..].to_vec());
        let mona = server.sign_in("mona").await;
        let mona = &mona.actor;
        assert_eq!(listed(mona, "").await, sorted(inside.clone()));
        for filter in [
            "username = \"crowd-*\"",
            "display_name = \"robin*\"",
            "email = \"all@example.com\"",
            "state = ACTIVE AND username = \"crowd-*\"",
        ] {
            assert_eq!(listed(mona, filter).await, crowd, "{filter}");
        }
        assert_eq!(listed(mona, "state = SUSPENDED").await, Vec::<String>::new());
        // Of those who are deleted only who is in reach, and only if asked for.
        for name in [&inside[2], &stage.zoe] {
            let request = pb::DeleteUserRequest {
                name: name.clone(),
                ..Default::default()
            };
            operator.users().delete_user(request).await.expect("deleted");
        }
        let all = pb::ListUsersRequest {
            show_deleted: true,
            ..Default::default()
        };
        assert_eq!(sorted(list(mona, all).await.expect("listed")), sorted(inside.clone()));
        assert_eq!(listed(mona, "state = DELETED").await, std::slice::from_ref(&inside[2]));
        assert_eq!(listed(mona, "").await.len(), inside.len() - 1);
        for name in [&inside[2], &stage.zoe] {
            let request = pb::UndeleteUserRequest {
                name: name.clone(),
                ..Default::default()
            };
            operator.users().undelete_user(request).await.expect("back");
        }
        let made = mona.get_user(&inside[3]).await.expect("in reach").create_time.expect("a time");
        let made = accountd::domain::time::Timestamp::from_seconds(made.seconds);
        assert_eq!(listed(mona, &format!("create_time > \"{made}\"")).await, sorted(inside[4..].to_vec()));
        let newest_first = pb::ListUsersRequest {
            order_by: "create_time desc".to_owned(),
            ..Default::default()
        };
        let newest_first = list(mona, newest_first).await.expect("listed");
        assert_eq!(newest_first[..3].iter().rev().collect::<Vec<_>>(), inside[2..].iter().collect::<Vec<_>>());

        // A page token is good for one caller, and for what that may see.
        let page = pb::ListUsersRequest {
            page_size: 1,
            ..Default::default()
        };
        let first = mona.users().list_users(page.clone()).await.expect("a page").into_inner();
        let next = pb::ListUsersRequest {
            page_token: first.next_page_token,
            ..page.clone()
        };
        let foreign = operator.users().list_users(next.clone()).await;
        assert_refused(foreign, Reason::InvalidPageToken);
        let foreign = operator.users().list_users(page).await.expect("a page").into_inner();
        let foreign = pb::ListUsersRequest {
            page_token: foreign.next_page_token,
            ..next.clone()
        };
        assert_refused(mona.users().list_users(foreign).await, Reason::InvalidPageToken);
        grant_for(operator, stage.mona.name(), "scopes/accountd:users.read", &stage.other).await.expect("granted");
        let wider = server.sign_in("mona").await;
        assert_refused(wider.actor.users().list_users(next).await, Reason::InvalidPageToken);
        inside.push(stage.zoe.clone());
        assert_eq!(listed(&wider.actor, "").await, sorted(inside));
    }

    async fn groups_and_programs_are_listed_as_far_as_they_are_in_reach(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let operator = &stage.operator;
        for permission in ["scopes/accountd:groups.read", "scopes/accountd:system_accounts.read"] {
            grant_for(operator, stage.mona.name(), permission, &stage.crew).await.expect("granted");
        }
        let (inside, _) = server.create_system_account(&[]).await;
        let (outside, _) = server.create_system_account(&[]).await;
        groups::add(operator, &stage.inner, &inside.name).await.expect("added");
        let mona = server.sign_in("mona").await;
        let mona = &mona.actor;
        let request = pb::ListSystemAccountsRequest::default();
        let programs = mona.system_accounts().list_system_accounts(request).await;
        let programs = programs.expect("listed").into_inner().system_accounts;
        let programs: Vec<String> = programs.into_iter().map(|it| it.name).collect();
        assert_eq!(programs, std::slice::from_ref(&inside.name));
        let get = |name: &str| {
            let request = pb::GetSystemAccountRequest {
                name: name.to_owned(),
            };
            let mona = mona.clone();
            async move { mona.system_accounts().get_system_account(request).await }
        };
        get(&inside.name).await.expect("in reach");
        assert_refused(get(&outside.name).await, Reason::ScopeMissing);

        let groups_of = async |filter: String| {
            let request = pb::ListGroupsRequest {
                filter,
                ..Default::default()
            };
            let listed = mona.groups().list_groups(request).await.expect("listed");
            sorted(listed.into_inner().groups.into_iter().map(|it| it.name).collect())
        };
        assert_eq!(groups_of(String::new()).await, sorted(vec![stage.crew.clone(), stage.inner.clone()]));
        assert_eq!(groups_of(format!("member = \"{}\"", stage.dan)).await, std::slice::from_ref(&stage.inner));
        assert_eq!(groups_of(format!("member = \"{}\"", stage.zoe)).await, Vec::<String>::new());
        let members = |name: &str| {
            let request = pb::ListGroupMembersRequest {
                parent: name.to_owned(),
                ..Default::default()
            };
            let mona = mona.clone();
            async move { mona.groups().list_group_members(request).await }
        };
        // A page token is good for one caller here as well, and for what that may see.
        let page = async |by: &Actor, page_token: &str| {
            let request = pb::ListGroupsRequest {
                page_size: 1,
                page_token: page_token.to_owned(),
                ..Default::default()
            };
            Ok::<_, Status>(by.groups().list_groups(request).await?.into_inner().next_page_token)
        };
        let programs = async |by: &Actor, page_token: &str| {
            let request = pb::ListSystemAccountsRequest {
                page_size: 1,
                page_token: page_token.to_owned(),
                ..Default::default()
            };
            let page = by.system_accounts().list_system_accounts(request).await?;
            Ok::<_, Status>(page.into_inner().next_page_token)
        };
        groups::add(operator, &stage.crew, &server.create_system_account(&[]).await.0.name).await.expect("added");
        let (of_groups, of_programs) = (page(mona, "").await.expect("a page"), programs(mona, "").await.expect("a page"));
        for (by, foreign) in [(operator, mona), (mona, operator)] {
            let foreign_groups = page(foreign, "").await.expect("a page");
            assert_refused(page(by, &foreign_groups).await, Reason::InvalidPageToken);
            let foreign_programs = programs(foreign, "").await.expect("a page");
            assert_refused(programs(by, &foreign_programs).await, Reason::InvalidPageToken);
        }
        page(mona, &of_groups).await.expect("hers");
        programs(mona, &of_programs).await.expect("hers");
        for permission in ["scopes/accountd:groups.read", "scopes/accountd:system_accounts.read"] {
            grant_for(operator, stage.mona.name(), permission, &stage.other).await.expect("granted");
        }
        let wider = server.sign_in("mona").await;
        assert_refused(page(&wider.actor, &of_groups).await, Reason::InvalidPageToken);
        assert_refused(programs(&wider.actor, &of_programs).await, Reason::InvalidPageToken);

        // Nor is there anything of those who are out of reach.
        for (name, expected) in [(&stage.eve, "OK"), (&stage.zoe, "PERMISSION_DENIED SCOPE_MISSING")] {
            let parent = name.clone();
            let contacts = pb::ListContactsRequest { parent: parent.clone(), ..Default::default() };
            let sessions = pb::ListSessionsRequest { parent: parent.clone(), ..Default::default() };
            let credentials = pb::ListCredentialsRequest { parent: parent.clone(), ..Default::default() };
            let outcomes = [
                mona.contacts().list_contacts(contacts).await.outcome(),
                mona.sessions().list_sessions(sessions).await.outcome(),
                mona.credentials().list_credentials(credentials).await.outcome(),
            ];
            assert_eq!(outcomes, [expected; 3].map(str::to_owned), "{name}");
        }
        members(&stage.inner).await.expect("in reach");
        assert_refused(members(&stage.other).await, Reason::ScopeMissing);
        assert_refused(members("groups/0190f0c0-0000-7000-8000-000000000001").await, Reason::ScopeMissing);
    }

    async fn it_lasts_as_long_as_the_membership(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let operator = &stage.operator;
        let at = |seconds: i64| {
            Some(Timestamp {
                seconds: server.now().seconds() + seconds,
                nanos: 0,
            })
        };
        let add = |start_time, expire_time| pb::AddGroupMemberRequest {
            group: stage.crew.clone(),
            member: stage.zoe.clone(),
            start_time,
            expire_time,
            ..Default::default()
        };
        operator.groups().add_group_member(add(at(10), at(20))).await.expect("added");
        grant_for(operator, stage.mona.name(), "scopes/accountd:groups.read", &stage.crew).await.expect("granted");
        let mona = server.sign_in("mona").await;
        let mona = &mona.actor;
        let seen = async || {
            let seen = mona.get_user(&stage.zoe).await.is_ok();
            let is_zoe = format!("member = \"{}\"", stage.zoe);
            for filter in ["", &is_zoe] {
                let request = pb::ListGroupMembersRequest {
                    parent: stage.crew.clone(),
                    filter: filter.to_owned(),
                    ..Default::default()
                };
                let members = mona.groups().list_group_members(request.clone()).await.expect("hers").into_inner().members;
                assert_eq!(members.iter().any(|it| it.member == stage.zoe), seen, "{filter}");
                let all = operator.groups().list_group_members(request).await.expect("listed").into_inner().members;
                assert!(all.iter().any(|it| it.member == stage.zoe), "who sees all sees what is over");
            }
            let request = pb::ListGroupsRequest {
                filter: is_zoe,
                ..Default::default()
            };
            let groups = mona.groups().list_groups(request).await.expect("listed").into_inner().groups;
            assert_eq!(groups.iter().any(|it| it.name == stage.crew), seen);
            assert_eq!(lookup(mona, "zoe").await.is_ok(), seen);
            assert_eq!(batch(mona, &[&stage.eve, &stage.zoe]).await.is_ok(), seen);
            seen
        };
        assert!(!seen().await);
        server.advance_s(10);
        assert!(seen().await);
        assert_eq!(listed(mona, "").await.len(), 3);
        server.advance_s(10);
        assert!(!seen().await);
        assert_eq!(listed(mona, "").await.len(), 2);
        // So it does for who is in a group in it.
        lookup(mona, "dan").await.expect("in reach");
        let ending = pb::AddGroupMemberRequest {
            member: stage.inner.clone(),
            ..add(None, at(10))
        };
        operator.groups().add_group_member(ending).await.expect("for less long");
        server.advance_s(10);
        assert_refused(mona.get_user(&stage.dan).await, Reason::ScopeMissing);
        assert_refused(lookup(mona, "dan").await, Reason::NotFound);
        assert_refused(batch(mona, &[&stage.dan]).await, Reason::NotFound);
        assert_eq!(listed(mona, "").await, std::slice::from_ref(&stage.eve));
    }

    async fn nobody_looks_after_who_holds_more(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let (mona, operator) = (&stage.mona.actor, &stage.operator);
        server.grant(&stage.eve, "scopes/accountd:keys.read").await;
        mona.get_user(&stage.eve).await.expect("seeing is free");
        assert_refused(rename(mona, &stage.eve).await, Reason::TargetOutranksCaller);
        // Who looks after the same people is no more; who looks after others is.
        grant_for(operator, &stage.dan, "scopes/accountd:users.update", &stage.crew).await.expect("granted");
        rename(mona, &stage.dan).await.expect("no more than she has");
        grant_for(operator, &stage.dan, "scopes/accountd:users.update", &stage.other).await.expect("granted");
        assert_refused(rename(mona, &stage.dan).await, Reason::TargetOutranksCaller);
        // Having a role for a group is not having it.
        grant_for(operator, stage.mona.name(), "roles/operator", &stage.crew).await.expect("granted");
        let mona = server.sign_in("mona").await;
        assert_refused(rename(&mona.actor, &stage.eve).await, Reason::TargetOutranksCaller);
        assert_refused(mona.actor.keys().list_signing_keys(pb::ListSigningKeysRequest::default()).await, Reason::ScopeMissing);
        assert!(!mona.tokens.scopes.iter().any(|scope| scope.starts_with("keys.")), "{:?}", mona.tokens.scopes);
    }

    async fn nobody_is_put_into_their_hands_but_by_who_could_do_the_same(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let operator = &stage.operator;
        let clerk = server.system_account(&["scopes/accountd:groups.write"]).await;
        assert_refused(groups::add(&clerk, &stage.crew, &stage.zoe).await, Reason::ScopeNotHeld);
        assert_refused(groups::add(&clerk, &stage.inner, &stage.zoe).await, Reason::ScopeNotHeld);
        groups::add(&clerk, &stage.other, &stage.eve).await.expect("nobody looks after these");
        assert_refused(groups::add(&clerk, &stage.crew, &stage.other).await, Reason::ScopeNotHeld);
        // Who is in it already is no more in their hands by another way.
        groups::add(&clerk, &stage.crew, &stage.dan).await.expect("is in it");
        let request = pb::DeleteGroupRequest {
            name: stage.crew.clone(),
            ..Default::default()
        };
        assert_refused(operator.groups().delete_group(request).await, Reason::InUse);

        // Nor do they take anybody.
        grant_for(operator, stage.mona.name(), "scopes/accountd:groups.write", &stage.crew).await.expect("granted");
        let mona = server.sign_in("mona").await;
        let mona = &mona.actor;
        for name in [&*stage.zoe, NOBODY] {
            assert_refused(groups::add(mona, &stage.crew, name).await, Reason::NotFound);
        }
        groups::add(mona, &stage.inner, &stage.eve).await.expect("one of theirs");
        groups::remove(mona, &stage.crew, &stage.eve).await.expect("one of theirs");
        groups::add(mona, &stage.crew, &stage.eve).await.expect("still one of theirs");
        groups::remove(mona, &stage.inner, &stage.dan).await.expect("one of theirs");
        groups::remove(mona, &stage.crew, &stage.dan).await.expect("one of theirs");
        assert_refused(groups::add(mona, &stage.crew, &stage.dan).await, Reason::NotFound);
        assert_refused(groups::add(mona, &stage.other, &stage.eve).await, Reason::ScopeMissing);
        groups::add(operator, &stage.crew, &stage.dan).await.expect("by who may");
    }

    async fn nobody_grants_for_more_than_they_have(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let operator = &stage.operator;
        server.grant(stage.mona.name(), "scopes/accountd:grants.write").await;
        let mona = server.sign_in("mona").await;
        let mona = &mona.actor;
        let bob = server.user("bob").await.name;
        let read = "scopes/accountd:users.read";
        let given = grant_for(mona, &bob, read, &stage.crew).await.expect("as much as she has");
        assert_eq!(given.resource, stage.crew);
        for resource in ["", &stage.other, &stage.inner] {
            assert_refused(grant_for(mona, &bob, read, resource).await, Reason::ScopeNotHeld);
        }
        for permission in ["scopes/accountd:groups.read", "roles/operator"] {
            assert_refused(grant_for(mona, &bob, permission, &stage.crew).await, Reason::ScopeNotHeld);
        }
        grant_for(mona, &bob, "roles/user-manager", &stage.crew).await.expect("as much as she has");

        let keys = "scopes/accountd:keys.read";
        for (permission, resource) in [(keys, &*stage.crew), (read, "warehouses/7"), (read, "groups/x y"), (read, "/")] {
            let outcome = grant_for(operator, &bob, permission, resource).await;
            assert_eq!(fields_of(outcome), ["grant.resource"], "{permission} {resource}");
        }
        let gone = "groups/0190f0c0-0000-7000-8000-000000000001";
        assert_refused(grant_for(operator, &bob, read, gone).await, Reason::NotFound);
        let events = server.events("grant.created").await;
        let event = events.iter().find(|it| it.target == given.name).expect("written down");
        assert_eq!(event.details["resource"], stage.crew);
    }

    async fn a_token_says_what_its_scopes_are_for(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        scopes::create(&operator, scopes::scope("scopes/shop:pack")).await.expect("made");
        let (robot, secret) = server.create_system_account(&[]).await;
        let request = pb::UpdateSystemAccountRequest {
            system_account: Some(pb::SystemAccount {
                name: robot.name.clone(),
                audiences: vec!["shop".to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        };
        operator.system_accounts().update_system_account(request).await.expect("may ask");
        let pack = "scopes/shop:pack";
        let grant = grant_for(&operator, &robot.name, pack, "halls/7").await.expect("granted");
        let ask = async |wanted: &[&str]| {
            let request = pb::IssueTokenRequest {
                client_id: robot.uid.clone(),
                client_secret: secret.clone(),
                audience: "shop".to_owned(),
                scopes: wanted.iter().map(ToString::to_string).collect(),
                ..Default::default()
            };
            let tokens = server.anonymous().await.tokens().issue_token(request).await;
            let tokens = tokens.expect("a token").into_inner();
            (tokens.scopes, tokens.refused_scopes)
        };
        let none: Vec<String> = Vec::new();
        let for_hall = vec!["pack@halls/7".to_owned()];
        assert_eq!(ask(&[]).await, (for_hall.clone(), none.clone()));
        assert_eq!(ask(&["pack"]).await, (for_hall.clone(), none.clone()));
        let shelf = vec!["pack@halls/7/shelf/3".to_owned()];
        assert_eq!(ask(&["pack@halls/7/shelf/3"]).await, (shelf, none.clone()));
        for other in ["pack@halls/70", "pack@halls", "pack@halls/8"] {
            assert_eq!(ask(&[other]).await, (none.clone(), vec![other.to_owned()]));
        }

        // What is asked beforehand is what is given.
        let check = pb::CheckAccessRequest {
            principal: robot.name.clone(),
            audience: "shop".to_owned(),
            scopes: ["pack", "pack@halls/7", "pack@halls/8"].map(str::to_owned).into(),
            ..Default::default()
        };
        let decisions = operator.grants().check_access(check).await.expect("decided").into_inner().decisions;
        let allowed: Vec<bool> = decisions.iter().map(|it| it.allowed).collect();
        assert_eq!(allowed, [false, true, false]);
        let explain = async |resource: &str| {
            let request = pb::ExplainAccessRequest {
                principal: robot.name.clone(),
                scope: pack.to_owned(),
                resource: resource.to_owned(),
                ..Default::default()
            };
            let explained = operator.grants().explain_access(request).await.expect("explained").into_inner();
            let path = explained.paths[0].clone();
            assert_eq!((&path.grant, &*path.resource), (&grant.name, "halls/7"));
            (explained.decision.expect("decided").allowed, path.state())
        };
        assert_eq!(explain("").await, (false, State::OtherResource));
        assert_eq!(explain("halls/8").await, (false, State::OtherResource));
        assert_eq!(explain("halls/7").await, (true, State::InEffect));
        assert_eq!(explain("halls/7/shelf").await, (true, State::InEffect));
        let effective = pb::ListEffectiveScopesRequest {
            parent: robot.name.clone(),
            ..Default::default()
        };
        let effective = operator.grants().list_effective_scopes(effective).await.expect("listed");
        let effective = effective.into_inner().effective_scopes;
        assert_eq!((&*effective[0].scope, &*effective[0].resource), (pack, "halls/7"));

        // A ceiling is for a resource, too, and what is held for everything says so once.
        let limit = async |ceiling: &[&str]| {
            let limited = system_accounts::limit(&operator, &robot.name, ceiling, &["shop"]).await;
            limited.expect("limited");
        };
        limit(&["pack@halls/8"]).await;
        assert_eq!(ask(&["pack"]).await, (none.clone(), for_hall.clone()));
        limit(&["pack@halls"]).await;
        assert_eq!(ask(&["pack"]).await, (for_hall.clone(), none.clone()));
        limit(&["pack"]).await;
        server.grant(&robot.name, pack).await;
        assert_eq!(ask(&[]).await, (vec!["pack".to_owned()], none.clone()));
        assert_eq!(ask(&["pack@halls/9"]).await, (vec!["pack@halls/9".to_owned()], none));
        // What is sensitive is so for each resource.
        let refund = pb::Scope { sensitive: true, ..scopes::scope("scopes/shop:refund") };
        scopes::create(&operator, refund).await.expect("made");
        grant_for(&operator, &robot.name, "scopes/shop:refund", "halls/7").await.expect("granted");
        limit(&[]).await;
        assert_eq!(ask(&["refund"]).await, (Vec::new(), vec!["refund@halls/7".to_owned()]));
        // No scope of the catalogue looks like one that is limited.
        let made = scopes::create(&operator, scopes::scope("scopes/shop:pack%40halls")).await;
        assert_eq!(fields_of(made), ["scope.name"]);
    }

    async fn no_ceiling_is_raised_for_some_resources_by_who_could_not_grant_that(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        scopes::create(&operator, scopes::scope("scopes/shop:pack")).await.expect("made");
        let (robot, _) = server.create_system_account(&[]).await;
        let limit = |by: &Actor, ceiling: &[&str]| {
            let request = pb::UpdateSystemAccountRequest {
                system_account: Some(pb::SystemAccount {
                    name: robot.name.clone(),
                    scope_ceiling: ceiling.iter().map(ToString::to_string).collect(),
                    audiences: vec!["shop".to_owned()],
                    ..Default::default()
                }),
                ..Default::default()
            };
            let by = by.clone();
            async move { by.system_accounts().update_system_account(request).await }
        };
        limit(&operator, &["users.read"]).await.expect("limited");
        server.grant(&robot.name, "scopes/shop:pack").await;
        let clerk = server.system_account(&["scopes/accountd:system_accounts.update"]).await;
        for ceiling in [["users.read", "pack"], ["users.read", "pack@halls/7"]] {
            assert_refused(limit(&clerk, &ceiling).await, Reason::ScopeNotHeld);
        }
        limit(&operator, &["pack@halls/7"]).await.expect("limited");
        assert_refused(limit(&clerk, &["pack@halls/8"]).await, Reason::ScopeNotHeld);
        limit(&clerk, &["pack@halls/7/shelf"]).await.expect("less than before");
    }

    async fn whoever_looks_after_some_says_nothing_to_everybody(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let (mona, operator) = (&stage.mona.actor, &stage.operator);
        let update = |by: &Actor, user: pb::User| {
            let request = pb::UpdateUserRequest {
                user: Some(pb::User {
                    name: stage.eve.clone(),
                    ..user
                }),
                ..Default::default()
            };
            let by = by.clone();
            async move { by.users().update_user(request).await }
        };
        let known = pb::User {
            external_ids: [("hr".to_owned(), "7".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(fields_of(update(mona, known.clone()).await), ["user.external_ids"]);
        let reserved = pb::User {
            username: "admin".to_owned(),
            ..Default::default()
        };
        assert_eq!(fields_of(update(mona, reserved).await), ["user.username"]);
        update(operator, known).await.expect("for everybody");
        // What frontends do for strangers is for nobody's group.
        let register = "scopes/accountd:users.register";
        let given = grant_for(operator, stage.mona.name(), register, &stage.crew).await;
        assert_eq!(fields_of(given), ["grant.resource"]);
        // Nor is a name above all groups one of them.
        let made = roles::create(operator, roles::role("roles/both", &["scopes/accountd:users.read"])).await;
        made.expect("made");
        let given = grant_for(operator, stage.mona.name(), "roles/both", "groups").await;
        assert_eq!(fields_of(given), ["grant.resource"]);
    }

    async fn nobody_gets_hold_of_a_program_that_may_do_more_elsewhere(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let operator = &stage.operator;
        scopes::create(operator, scopes::scope("scopes/shop:pack")).await.expect("made");
        for permission in ["scopes/accountd:credentials.create", "scopes/accountd:system_accounts.update"] {
            grant_for(operator, stage.mona.name(), permission, &stage.crew).await.expect("granted");
        }
        let (plain, _) = server.create_system_account(&[]).await;
        let (packer, _) = server.create_system_account(&["scopes/shop:pack"]).await;
        for robot in [&plain, &packer] {
            groups::add(operator, &stage.crew, &robot.name).await.expect("added");
        }
        let mona = server.sign_in("mona").await;
        mona.actor.create_secret(&plain.name).await.expect("may do no more");
        assert_refused(mona.actor.create_secret(&packer.name).await, Reason::TargetOutranksCaller);
    }

    async fn nobody_searches_in_more_than_sixteen_groups_at_once(engine: Engine) {
        let server = engine.server_with(|config| config.tokens.max_bytes = 8_192).await;
        let stage = Stage::set(&server).await;
        let (clerk, secret) = server.create_system_account(&[]).await;
        let groups = ["users", "groups", "system_accounts"].map(|it| format!("scopes/accountd:{it}.read"));
        let made = roles::create(&stage.operator, roles::role("roles/reader", &groups.each_ref().map(String::as_str)));
        made.await.expect("made");
        let look = async || {
            let clerk = server.client(&clerk.uid, &secret).await;
            let key = pb::lookup_user_request::Key::Identifier("eve".to_owned());
            [
                clerk.users().list_users(pb::ListUsersRequest::default()).await.outcome(),
                clerk.users().lookup_user(pb::LookupUserRequest { key: Some(key) }).await.outcome(),
                batch(&clerk, &[&stage.eve]).await.outcome(),
                clerk.groups().list_groups(pb::ListGroupsRequest::default()).await.outcome(),
                clerk.system_accounts().list_system_accounts(pb::ListSystemAccountsRequest::default()).await.outcome(),
            ]
        };
        grant_for(&stage.operator, &clerk.name, "roles/reader", &stage.crew).await.expect("granted");
        for number in 1..16 {
            let group = groups::create(&stage.operator, &format!("group {number}")).await;
            grant_for(&stage.operator, &clerk.name, "roles/reader", &group).await.expect("granted");
        }
        assert_eq!(look().await, ["OK"; 5].map(str::to_owned));
        grant_for(&stage.operator, &clerk.name, "roles/reader", &stage.other).await.expect("granted");
        assert_eq!(look().await, ["FAILED_PRECONDITION LIMIT_REACHED"; 5].map(str::to_owned));
        // One by one there is no such limit.
        let clerk = server.client(&clerk.uid, &secret).await;
        clerk.get_user(&stage.eve).await.expect("in reach");
    }

    async fn grants_are_found_by_what_they_are_for(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let operator = &stage.operator;
        let read = "scopes/accountd:users.read";
        let for_other = grant_for(operator, stage.mona.name(), read, &stage.other).await.expect("granted");
        let for_all = server.grant(stage.mona.name(), read).await;
        let found = async |filter: String| {
            let (mut all, mut page_token) = (Vec::new(), String::new());
            loop {
                let request = pb::ListGrantsRequest {
                    page_size: 1,
                    page_token,
                    filter: filter.clone(),
                };
                let page = operator.grants().list_grants(request).await.expect("listed").into_inner();
                all.extend(page.grants.into_iter().map(|it| it.name));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return all;
                }
            }
        };
        let resource = |group: &str| format!("resource = \"{group}\"");
        let principal = format!("principal = \"{}\"", stage.mona.name());
        assert_eq!(found(resource(&stage.other)).await, std::slice::from_ref(&for_other.name));
        assert_eq!(found(resource(&stage.crew)).await.len(), 1);
        assert_eq!(found(resource(&stage.inner)).await, Vec::<String>::new());
        assert_eq!(found(format!("{principal} AND {}", resource(&stage.other))).await, std::slice::from_ref(&for_other.name));
        for (filter, count) in [
            (format!("scope = \"{read}\" AND {}", resource(&stage.other)), 1),
            (format!("role = \"roles/user-manager\" AND {}", resource(&stage.other)), 0),
            (format!("role = \"roles/user-manager\" AND {}", resource(&stage.crew)), 1),
        ] {
            assert_eq!(found(filter.clone()).await.len(), count, "{filter}");
        }
        let of_mona = found(principal).await;
        assert!(of_mona.contains(&for_other.name) && of_mona.contains(&for_all.name), "{of_mona:?}");
        for filter in ["resource = \"\"", "resource = \"a b\"", "resource > \"x\""] {
            let request = pb::ListGrantsRequest {
                filter: filter.to_owned(),
                ..Default::default()
            };
            assert_refused(operator.grants().list_grants(request).await, Reason::InvalidFilter);
        }
    }

    async fn a_session_is_not_lost_to_a_token_that_is_too_long(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let anonymous = server.anonymous().await;
        for number in 0..20 {
            let group = groups::create(&stage.operator, &format!("group {number}")).await;
            grant_for(&stage.operator, stage.mona.name(), "roles/user-manager", &group).await.expect("granted");
        }
        let refused = anonymous.refresh(&stage.mona.tokens.refresh_token).await;
        assert_refused(refused, Reason::TokenTooLarge);
        let request = pb::RefreshSessionRequest {
            refresh_token: stage.mona.tokens.refresh_token.clone(),
            scopes: vec![format!("users.read@{}", stage.crew)],
            ..Default::default()
        };
        anonymous.sessions().refresh_session(request).await.expect("for fewer scopes");
    }

    async fn a_narrower_token_reaches_less_far(engine: Engine) {
        let server = engine.server().await;
        let stage = Stage::set(&server).await;
        let (robot, secret) = server.create_system_account(&[]).await;
        for group in [&stage.crew, &stage.other] {
            grant_for(&stage.operator, &robot.name, "scopes/accountd:users.read", group).await.expect("granted");
        }
        let with = async |wanted: Vec<String>| {
            let request = pb::IssueTokenRequest {
                client_id: robot.uid.clone(),
                client_secret: secret.clone(),
                scopes: wanted,
                ..Default::default()
            };
            let tokens = server.anonymous().await.tokens().issue_token(request).await;
            server.with_token(&tokens.expect("a token").into_inner().access_token).await
        };
        let all = with(Vec::new()).await;
        assert_eq!(listed(&all, "").await.len(), 3);
        let one = with(vec![format!("users.read@{}", stage.other)]).await;
        assert_eq!(listed(&one, "").await, std::slice::from_ref(&stage.zoe));
        assert_refused(one.get_user(&stage.eve).await, Reason::ScopeMissing);
        one.get_user(&stage.zoe).await.expect("in reach");
    }
}

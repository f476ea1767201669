//! GroupService: who is in which group, and that what a group holds reaches all in it.

use accountd::{domain::error::Reason, grpc::pb, jobs};
use prost_types::{FieldMask, Timestamp};
use tonic::Status;

use crate::{
    credentials::{redeem, reset_code},
    elevations,
    harness::{Actor, Engine, Server, assert_refused, fields_of, grant_request, on_both_engines},
    roles,
    scopes::{self, scope, sign_in},
};

pub async fn create(by: &Actor, display_name: &str) -> String {
    let request = pb::CreateGroupRequest {
        group: Some(pb::Group {
            display_name: display_name.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let made = by.groups().create_group(request).await.expect(display_name);
    made.into_inner().name
}

pub async fn update(by: &Actor, group: pb::Group, paths: &[&str]) -> Result<pb::Group, Status> {
    let request = pb::UpdateGroupRequest {
        group: Some(group),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    };
    Ok(by.groups().update_group(request).await?.into_inner())
}

pub async fn delete(by: &Actor, name: &str) -> Result<(), Status> {
    let request = pb::DeleteGroupRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    by.groups().delete_group(request).await.map(|_| ())
}

pub async fn add(by: &Actor, group: &str, member: &str) -> Result<pb::GroupMember, Status> {
    add_for(by, group, member, (None, None)).await
}

/// Adds a member from a time on, until another.
pub async fn add_for(
    by: &Actor,
    group: &str,
    member: &str,
    (start, end): (Option<i64>, Option<i64>),
) -> Result<pb::GroupMember, Status> {
    let time = |seconds| Timestamp { seconds, nanos: 0 };
    let request = pb::AddGroupMemberRequest {
        group: group.to_owned(),
        member: member.to_owned(),
        start_time: start.map(time),
        expire_time: end.map(time),
        ..Default::default()
    };
    Ok(by.groups().add_group_member(request).await?.into_inner())
}

pub async fn remove(by: &Actor, group: &str, member: &str) -> Result<(), Status> {
    let request = pb::RemoveGroupMemberRequest {
        group: group.to_owned(),
        member: member.to_owned(),
        ..Default::default()
    };
    by.groups().remove_group_member(request).await.map(|_| ())
}

/// The names of all groups that a list has, in pages of two.
async fn list(by: &Actor, filter: &str) -> Vec<String> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListGroupsRequest {
            page_size: 2,
            page_token,
            filter: filter.to_owned(),
        };
        let page = by.groups().list_groups(request).await;
        let page = page.expect(filter).into_inner();
        all.extend(page.groups.into_iter().map(|group| group.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// The members of a group, in pages of two.
async fn members(by: &Actor, group: &str, filter: &str) -> Vec<String> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListGroupMembersRequest {
            parent: group.to_owned(),
            page_size: 2,
            page_token,
            filter: filter.to_owned(),
        };
        let page = by.groups().list_group_members(request).await;
        let page = page.expect(filter).into_inner();
        all.extend(page.members.into_iter().map(|member| member.member));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// Groups in one another, the outermost first.
async fn nest(by: &Actor, depth: usize) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for number in 0..depth {
        let group = create(by, &format!("group {number}")).await;
        if let Some(outer) = groups.last() {
            add(by, outer, &group).await.expect("added");
        }
        groups.push(group);
    }
    groups
}

/// What Ann's next token for the shop has.
async fn of_shop(server: &Server) -> Vec<String> {
    let tokens = sign_in(server, "ann", "shop", &[]).await;
    tokens.expect("signed in").scopes
}

on_both_engines! {
    async fn groups_are_kept_and_read(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;
        let bob = server.user("bob").await.name;
        let (robot, _) = server.create_system_account(&[]).await;
        let crew = create(&operator, "Crew").await;
        server.advance_s(1);
        let second = create(&operator, "Others").await;
        server.advance_s(1);
        let others = [second, create(&operator, "Third").await];
        for member in [&ann, &bob, &robot.name, &others[0]] {
            let added = add(&operator, &crew, member).await.expect(member);
            assert_eq!((&added.member, &added.added_by), (member, &server.operator_name()));
        }
        add(&operator, &others[1], &ann).await.expect("added");
        let mut all = vec![ann.clone(), bob.clone(), robot.name, others[0].clone()];
        let mut found = members(&operator, &crew, "").await;
        all.sort();
        found.sort();
        assert_eq!(found, all);
        assert_eq!(members(&operator, &crew, &format!("member = \"{bob}\"")).await, std::slice::from_ref(&bob));
        assert!(members(&operator, &others[1], &format!("member = \"{bob}\"")).await.is_empty());
        assert_eq!(list(&operator, "").await, [crew.clone(), others[0].clone(), others[1].clone()]);
        assert_eq!(list(&operator, &format!("member = \"{ann}\"")).await, [crew.clone(), others[1].clone()]);
        assert_eq!(list(&operator, &format!("member = \"{}\"", others[0])).await, std::slice::from_ref(&crew));

        let get = async |name: &str| {
            let request = pb::GetGroupRequest { name: name.to_owned() };
            operator.groups().get_group(request).await.map(tonic::Response::into_inner)
        };
        let read = get(&crew).await.expect("read");
        assert_eq!((&*read.display_name, &*read.description), ("Crew", ""));
        let edit = pb::Group { description: "All aboard.".to_owned(), display_name: "not in the mask".to_owned(), ..read.clone() };
        let edited = update(&operator, edit, &["description"]).await.expect("changed");
        assert_eq!((&*edited.display_name, &*edited.description), ("Crew", "All aboard."));
        assert_refused(update(&operator, read, &["display_name"]).await, Reason::EtagMismatch);

        remove(&operator, &crew, &bob).await.expect("removed");
        assert_refused(remove(&operator, &crew, &bob).await, Reason::NotFound);
        delete(&operator, &crew).await.expect("deleted");
        assert_refused(get(&crew).await, Reason::NotFound);
        assert_refused(add(&operator, &crew, &bob).await, Reason::NotFound);
        assert_eq!(list(&operator, &format!("member = \"{ann}\"")).await, others[1..]);
        delete(&operator, &others[0]).await.expect("deleted");
    }

    async fn what_is_wrong_with_a_group_or_a_member_is_named(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;
        let crew = create(&operator, "Crew").await;
        let long = pb::Group { name: crew.clone(), display_name: "x".repeat(201), ..Default::default() };
        assert_eq!(fields_of(update(&operator, long, &["display_name"]).await), ["group.display_name"]);
        for (group, member, wrong) in [("crew", &*ann, "group"), (&crew, "ann", "member"), (&crew, "roles/operator", "member"), (&ann, &crew, "group")] {
            assert_eq!(fields_of(add(&operator, group, member).await), [wrong]);
            assert_eq!(fields_of(remove(&operator, group, member).await), [wrong]);
        }
        let now = server.now().seconds();
        for window in [(None, Some(now - 1)), (Some(now + 20), Some(now + 20))] {
            assert_eq!(fields_of(add_for(&operator, &crew, &ann, window).await), ["expire_time"]);
        }
        let nobody = "users/018f0000-0000-7000-8000-000000000000";
        assert_refused(add(&operator, &crew, nobody).await, Reason::NotFound);
        assert_refused(add(&operator, &crew, &nobody.replace("users", "groups")).await, Reason::NotFound);
        let request = pb::DeleteUserRequest { name: ann.clone(), ..Default::default() };
        operator.users().delete_user(request).await.expect("deleted");
        assert_refused(add(&operator, &crew, &ann).await, Reason::WrongState);
    }

    async fn what_a_group_holds_reaches_all_below_it_until_they_leave(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;
        scopes::create(&operator, scope("scopes/shop:pack")).await.expect("made");
        let nested = nest(&operator, 10).await;
        operator.grants().create_grant(grant_request(&nested[0], "scopes/shop:pack")).await.expect("granted");
        assert!(of_shop(&server).await.is_empty());
        add(&operator, &nested[9], &ann).await.expect("added");
        assert_eq!(of_shop(&server).await, ["pack"]);
        // Nor does anybody get in deeper.
        let deeper = create(&operator, "deeper").await;
        assert_refused(add(&operator, &nested[9], &deeper).await, Reason::LimitReached);
        assert_refused(add(&operator, &deeper, &nested[0]).await, Reason::LimitReached);
        remove(&operator, &nested[4], &nested[5]).await.expect("removed");
        assert!(of_shop(&server).await.is_empty());
        add(&operator, &nested[0], &nested[9]).await.expect("another way");
        assert_eq!(of_shop(&server).await, ["pack"]);
        assert_refused(delete(&operator, &nested[0]).await, Reason::InUse);
        delete(&operator, &nested[9]).await.expect("deleted");
        assert!(of_shop(&server).await.is_empty());
    }

    async fn no_group_is_in_itself(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let nested = nest(&operator, 3).await;
        for (outer, inner) in [(0, 0), (1, 0), (2, 0), (2, 1)] {
            assert_refused(add(&operator, &nested[outer], &nested[inner]).await, Reason::GroupCycle);
        }
        add(&operator, &nested[0], &nested[2]).await.expect("no circle");
    }

    async fn a_membership_that_was_over_closes_no_circle_either(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (a, b) = (create(&operator, "a").await, create(&operator, "b").await);
        let end = server.now().seconds() + 10;
        add_for(&operator, &b, &a, (None, Some(end))).await.expect("for a while");
        server.advance_s(10);
        add(&operator, &a, &b).await.expect("the other way round");
        assert_refused(add(&operator, &b, &a).await, Reason::GroupCycle);
        let nested = nest(&operator, 9).await;
        let end = server.now().seconds() + 10;
        let deep = create(&operator, "deep").await;
        add_for(&operator, &nested[8], &deep, (None, Some(end))).await.expect("the tenth");
        server.advance_s(10);
        let deeper = create(&operator, "deeper").await;
        add(&operator, &deep, &deeper).await.expect("on its own");
        assert_refused(add(&operator, &nested[8], &deep).await, Reason::LimitReached);
    }

    async fn nobody_becomes_one_who_may_grant_by_a_group(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (outer, inner) = (create(&operator, "Tellers").await, create(&operator, "Trainees").await);
        add(&operator, &outer, &inner).await.expect("added");
        roles::create(&operator, roles::role("roles/teller", &[])).await.expect("made");
        let pay = pb::Scope { grantable_by: vec![outer.clone(), "roles/teller".to_owned()], ..scope("scopes/bank:pay") };
        scopes::create(&operator, pay).await.expect("made");
        let power = ["groups.write", "grants.write", "elevations.write"].map(|it| format!("scopes/accountd:{it}"));
        let power: Vec<&str> = power.iter().map(String::as_str).collect();
        let (weak, secret) = server.create_system_account(&power).await;
        let actor = server.client(&weak.uid, &secret).await;
        for group in [&outer, &inner] {
            assert_refused(add(&actor, group, &weak.name).await, Reason::ScopeNotHeld);
        }
        let mine = create(&actor, "Mine").await;
        assert_refused(add(&actor, &inner, &mine).await, Reason::ScopeNotHeld);
        let teller = actor.grants().create_grant(grant_request(&weak.name, "roles/teller")).await;
        assert_refused(teller, Reason::ScopeNotHeld);
        let entitlement = pb::Entitlement { role: "roles/teller".to_owned(), ..elevations::entitlement(&weak.name, &[]) };
        assert_refused(elevations::entitle(&actor, entitlement).await, Reason::ScopeNotHeld);
        // Who says who may grant it may make somebody one.
        add(&operator, &inner, &weak.name).await.expect("added");
        let give = async |end| {
            let mut request = grant_request(&weak.name, "scopes/bank:pay");
            request.grant.as_mut().expect("set").expire_time = end;
            actor.grants().create_grant(request).await
        };
        give(None).await.expect("by the group");
        let end = server.now().seconds() + 60;
        add_for(&operator, &inner, &weak.name, (None, Some(end))).await.expect("for a while");
        assert_eq!(fields_of(give(None).await), ["grant.expire_time"], "no longer than that");
        give(Some(Timestamp { seconds: end, nanos: 0 })).await.expect("as long");
        add(&actor, &outer, &mine).await.expect_err("for good");
    }

    async fn a_retry_adds_nobody_twice(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;
        let crew = create(&operator, "Crew").await;
        let request = pb::AddGroupMemberRequest {
            group: crew.clone(),
            member: ann.clone(),
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..Default::default()
        };
        let dry = pb::AddGroupMemberRequest { validate_only: true, request_id: String::new(), ..request.clone() };
        operator.groups().add_group_member(dry).await.expect("could be");
        assert!(members(&operator, &crew, "").await.is_empty());
        let first = operator.groups().add_group_member(request.clone()).await.expect("added").into_inner();
        server.advance_s(1);
        let again = operator.groups().add_group_member(request.clone()).await.expect("a retry").into_inner();
        assert_eq!(first, again);
        assert_eq!(server.events("group.member_added").await.len(), 1);
        let other = pb::AddGroupMemberRequest { member: crew, ..request };
        assert_refused(operator.groups().add_group_member(other).await, Reason::RequestIdReused);
    }

    async fn two_who_would_close_a_circle_together_do_not(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        for _ in 0..5 {
            let (a, b) = (create(&operator, "a").await, create(&operator, "b").await);
            let (into_a, into_b) = tokio::join!(add(&operator, &a, &b), add(&operator, &b, &a));
            assert_eq!(u8::from(into_a.is_ok()) + u8::from(into_b.is_ok()), 1, "{into_a:?} {into_b:?}");
        }
    }

    async fn a_membership_counts_while_it_lasts(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;
        scopes::create(&operator, scope("scopes/shop:pack")).await.expect("made");
        let crew = create(&operator, "Crew").await;
        operator.grants().create_grant(grant_request(&crew, "scopes/shop:pack")).await.expect("granted");
        let now = server.now().seconds();
        add_for(&operator, &crew, &ann, (Some(now + 50), Some(now + 150))).await.expect("added");
        assert!(of_shop(&server).await.is_empty());
        server.advance_s(50);
        let tokens = sign_in(&server, "ann", "shop", &[]).await.expect("signed in");
        assert_eq!(tokens.scopes, ["pack"]);
        let end = tokens.access_expire_time.map(|time| time.seconds);
        assert_eq!(end, Some(now + 150), "the token ends with the membership");
        server.advance_s(100);
        assert!(of_shop(&server).await.is_empty());
        // Once over it may begin anew, and the old one is forgotten in time.
        add_for(&operator, &crew, &ann, (None, Some(now + 200))).await.expect("again");
        let operator = server.operator().await;
        assert_eq!(of_shop(&server).await, ["pack"]);
        add(&operator, &crew, &ann).await.expect("without an end");
        server.advance_s(100);
        assert_eq!(of_shop(&server).await, ["pack"]);
        let bob = server.user("bob").await.name;
        let operator = server.operator().await;
        add_for(&operator, &crew, &bob, (None, Some(server.now().seconds() + 60))).await.expect("added");
        server.advance_s(60 + server.running.app.config.retention.ended_grants_s + 1);
        let operator = server.operator().await;
        assert_eq!(members(&operator, &crew, "").await.len(), 2);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_eq!(members(&operator, &crew, "").await, [ann]);
    }

    async fn nobody_gives_by_a_group_what_they_may_not_grant(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;
        let (weak, secret) = server.create_system_account(&["scopes/accountd:groups.write", "scopes/accountd:users.read"]).await;
        let actor = server.client(&weak.uid, &secret).await;
        let strong = create(&operator, "Strong").await;
        operator.grants().create_grant(grant_request(&strong, "scopes/accountd:grants.write")).await.expect("granted");
        let mine = create(&actor, "Mine").await;
        add(&actor, &mine, &ann).await.expect("gives nothing");
        // Themselves, somebody else, a group of theirs; into it, or into one that is in it.
        for member in [&weak.name, &ann, &mine] {
            assert_refused(add(&actor, &strong, member).await, Reason::ScopeNotHeld);
        }
        add(&operator, &strong, &mine).await.expect("added");
        assert_refused(add(&actor, &mine, &weak.name).await, Reason::ScopeNotHeld);
        // Nor do they take it away.
        assert_refused(remove(&actor, &mine, &ann).await, Reason::ScopeNotHeld);
        assert_refused(remove(&actor, &strong, &mine).await, Reason::ScopeNotHeld);
        assert_refused(delete(&actor, &mine).await, Reason::ScopeNotHeld);
        remove(&operator, &strong, &mine).await.expect("removed");
        remove(&actor, &mine, &ann).await.expect("takes nothing away");
        // What is to be granted only later counts as well.
        let mut later = grant_request(&mine, "scopes/accountd:grants.write");
        let start = Timestamp { seconds: server.now().seconds() + 3_600, nanos: 0 };
        later.grant.as_mut().expect("set").start_time = Some(start);
        operator.grants().create_grant(later).await.expect("granted");
        assert_refused(add(&actor, &mine, &ann).await, Reason::ScopeNotHeld);
        // What is held may be given, for as long as it is held.
        let readers = create(&actor, "Readers").await;
        operator.grants().create_grant(grant_request(&readers, "scopes/accountd:users.read")).await.expect("granted");
        add(&actor, &readers, &ann).await.expect("holds it");
        let (brief, secret) = server.create_system_account(&["scopes/accountd:groups.write"]).await;
        let end = server.now().seconds() + 60;
        let mut lent = grant_request(&brief.name, "scopes/accountd:users.read");
        lent.grant.as_mut().expect("set").expire_time = Some(Timestamp { seconds: end, nanos: 0 });
        operator.grants().create_grant(lent).await.expect("granted");
        let brief = server.client(&brief.uid, &secret).await;
        let bob = server.user("bob").await.name;
        assert_eq!(fields_of(add(&brief, &readers, &bob).await), ["expire_time"]);
        add_for(&brief, &readers, &bob, (None, Some(end))).await.expect("for as long");
        // What somebody has already may be given them for less long, be it for longer than one has it oneself.
        add_for(&brief, &readers, &ann, (None, Some(end + 60))).await.expect("it was for good");
        assert_eq!(fields_of(add_for(&brief, &readers, &ann, (None, Some(end + 61))).await), ["expire_time"]);
        // Nobody puts somebody greater anywhere.
        let boss = server.user("boss").await.name;
        server.grant(&boss, "roles/operator").await;
        assert_refused(add(&actor, &readers, &boss).await, Reason::TargetOutranksCaller);
    }

    async fn power_that_comes_by_a_group_is_power(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let frontend = server.frontend().await;
        let ann = server.user("ann").await.name;
        let outer = create(&operator, "Operators").await;
        let inner = create(&operator, "On call").await;
        add(&operator, &outer, &inner).await.expect("added");
        let code = reset_code(&frontend, &ann).await.expect("made for somebody without power");
        operator.grants().create_grant(grant_request(&outer, "scopes/accountd:keys.write")).await.expect("granted");
        add(&operator, &inner, &ann).await.expect("added");
        assert_refused(redeem(&frontend, &code, "four calm walruses").await, Reason::InvalidCode);
        assert_refused(reset_code(&frontend, &ann).await, Reason::TargetOutranksCaller);
        remove(&operator, &inner, &ann).await.expect("removed");
        let code = reset_code(&frontend, &ann).await.expect("without power again");
        // The group they are in gets more, itself or by going into another.
        add(&operator, &inner, &ann).await.expect("added");
        assert_refused(redeem(&frontend, &code, "four calm walruses").await, Reason::InvalidCode);
        let bob = server.user("bob").await.name;
        let crew = create(&operator, "Crew").await;
        add(&operator, &crew, &bob).await.expect("added");
        let code = reset_code(&frontend, &bob).await.expect("made");
        add(&operator, &inner, &crew).await.expect("added");
        assert_refused(redeem(&frontend, &code, "four calm walruses").await, Reason::InvalidCode);
        remove(&operator, &inner, &crew).await.expect("removed");
        let code = reset_code(&frontend, &bob).await.expect("made");
        operator.grants().create_grant(grant_request(&crew, "scopes/accountd:keys.write")).await.expect("granted");
        assert_refused(redeem(&frontend, &code, "four calm walruses").await, Reason::InvalidCode);
    }

    async fn whoever_goes_leaves_their_groups(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;
        let crew = create(&operator, "Crew").await;
        add(&operator, &crew, &ann).await.expect("added");
        let request = pb::DeleteUserRequest { name: ann.clone(), ..Default::default() };
        operator.users().delete_user(request).await.expect("deleted");
        assert_eq!(members(&operator, &crew, "").await, [ann]);
        server.advance_s(server.running.app.config.retention.deleted_accounts_s + 1);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert!(members(&server.operator().await, &crew, "").await.is_empty());
    }
}

//! GroupService.

use std::{collections::BTreeSet, sync::Arc};

use tonic::{Request, Response};

use super::{
    Reply,
    call::{Call, mutate},
    convert, pb, principals,
    reach::View,
    scopes,
};
use crate::{
    app::App,
    domain::{
        error::{Error, Fields, Reason, Result},
        filter,
        group::{
            Edit, Group, MAX_DEPTH, MAX_DESCRIPTION, MAX_DISPLAY_NAME, MAX_GROUPS, MAX_MEMBERSHIPS,
            Membership, WRITABLE,
        },
        name::{GroupId, PrincipalId},
        page, text,
        time::Timestamp,
        token::OWN_AUDIENCE,
    },
    store::{
        db::{Read, Write},
        entitlements, events, grants,
        groups::{self, Cursor},
        scopes as catalogue, within,
    },
};

pub(super) struct Groups {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::group_service_server::GroupService for Groups {
    async fn create_group(&self, request: Request<pb::CreateGroupRequest>) -> Reply<pb::Group> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.group.unwrap_or_default();
        let mut fields = Fields::new();
        let edits = edits(&mut fields, &WRITABLE, &input);
        fields.finish()?;
        let mut group = Group::new(GroupId(call.new_uuid()), call.now);
        for edit in edits {
            group.edit(edit);
        }
        let group = mutate!(call, |tx| {
            if groups::count(tx).await? >= MAX_GROUPS {
                let text = format!("has {MAX_GROUPS} groups, which is the limit");
                return Err(Error::precondition(Reason::LimitReached, "groups", text));
            }
            groups::insert(tx, &group).await?;
            let event = call.event().about(group.id, None);
            events::append(tx, &event).await?;
            shown(&group)
        })?;
        Ok(Response::new(group))
    }

    async fn get_group(&self, request: Request<pb::GetGroupRequest>) -> Reply<pb::Group> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = id("name", &request.name)?;
        let group = find(&mut call.db().read().await?, id).await?;
        Ok(Response::new(shown(&group)))
    }

    async fn list_groups(
        &self,
        request: Request<pb::ListGroupsRequest>,
    ) -> Reply<pb::ListGroupsResponse> {
        let (call, request, view) = Call::enter_to_find(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let member = filter::only(
            &request.filter,
            "member",
            principals::NAME,
            PrincipalId::parse,
        )?;
        let context = call.page_context(&[&request.filter, &view.text()]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let after = after.map(|Cursor(id)| id).unwrap_or_default();
        let mut db = call.db().read().await?;
        let rows = match &view {
            View::Everything => groups::list(&mut db, member, after, limit + 1).await,
            View::Groups(seen) => {
                within::groups(&mut db, seen, call.now, member, after, limit + 1).await
            }
        };
        let rows = rows.map_err(Error::from)?;
        let cursor = |group: &Group| Cursor(group.id.0);
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, cursor)?;
        let groups = rows.iter().map(shown).collect();
        Ok(Response::new(pb::ListGroupsResponse {
            groups,
            next_page_token,
        }))
    }

    async fn update_group(&self, request: Request<pb::UpdateGroupRequest>) -> Reply<pb::Group> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.group.unwrap_or_default();
        let id = id("group.name", &input.name)?;
        let paths = convert::masked(request.update_mask.as_ref(), &WRITABLE, |path| {
            is_set(path, &input)
        })?;
        let mut fields = Fields::new();
        let edits = edits(&mut fields, &paths, &input);
        fields.finish()?;
        let group = mutate!(call, |tx| {
            let mut group = find(tx, id).await?;
            convert::require_etag(&input.etag, group.revision, id)?;
            let before = group.clone();
            for edit in edits.clone() {
                group.edit(edit);
            }
            if group != before {
                group.touch(call.now);
                groups::update(tx, &group).await?;
                let event = call.event().about(id, None).changed(paths.iter().copied());
                events::append(tx, &event).await?;
            }
            shown(&group)
        })?;
        Ok(Response::new(group))
    }

    async fn delete_group(&self, request: Request<pb::DeleteGroupRequest>) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = id("name", &request.name)?;
        mutate!(call, |tx| {
            let group = find(tx, id).await?;
            convert::require_etag(&request.etag, group.revision, id)?;
            let is_granter = catalogue::granters(tx).await?.contains(&id.to_string());
            let is_named = entitlements::is_named(tx, id.into()).await?;
            let is_resource = grants::is_resource(tx, &id.to_string(), call.now).await?;
            let has_grants = grants::count_of(tx, id.into(), call.now).await? > 0;
            if is_granter || is_named || is_resource || has_grants {
                let text = "has grants or an entitlement, may grant a scope or agree to one, or is what a \
                    grant is for";
                return Err(Error::precondition(Reason::InUse, id.to_string(), text));
            }
            require_to_change(tx, &call, id, Some(call.now)).await?;
            groups::delete(tx, id).await?;
            events::append(tx, &call.event().about(id, None)).await?;
        })?;
        Ok(Response::new(()))
    }

    async fn add_group_member(
        &self,
        request: Request<pb::AddGroupMemberRequest>,
    ) -> Reply<pb::GroupMember> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let mut fields = Fields::new();
        let group = fields.take("group", parse_id(&request.group));
        let member = fields.take("member", principals::parse(&request.member));
        let window = (request.start_time.as_ref(), request.expire_time.as_ref());
        let window = convert::window(&mut fields, "", window, call.now);
        fields.finish()?;
        let (Some(group), Some(member)) = (group, member) else {
            return Err(Error::internal("checked above").into());
        };
        let mut membership = Membership {
            group,
            member,
            window,
            added_by: call.by(),
            create_time: call.now,
        };
        let added = mutate!(call, |tx| {
            find(tx, group).await?;
            call.require_to_see(tx, member).await?;
            let known = groups::find_member(tx, group, member).await?;
            let within = |known: &Membership| window.is_within(known.window, call.now);
            let mut until = window.end;
            if known.as_ref().is_some_and(within) {
                // It gives no more than before, and may have been given by somebody who may for longer.
                until = Some(call.now);
            } else {
                let power = grants::power(tx, group.into(), Some(OWN_AUDIENCE), call.now).await?;
                call.gives(power.scopes());
            }
            require_to_change(tx, &call, group, until).await?;
            require_to_expose(tx, &call, group, member, until).await?;
            principals::require_present(tx, &call, member).await?;
            call.require_power_over(tx, member).await?;
            require_order(tx, &call, group, member).await?;
            match &known {
                Some(known) => membership.create_time = known.create_time,
                None => require_room(tx, member).await?,
            }
            principals::void_begun(tx, member).await?;
            groups::put_member(tx, &membership).await?;
            append_event(tx, &call, &membership).await?;
            shown_member(&membership)
        })?;
        Ok(Response::new(added))
    }

    async fn remove_group_member(
        &self,
        request: Request<pb::RemoveGroupMemberRequest>,
    ) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let mut fields = Fields::new();
        let group = fields.take("group", parse_id(&request.group));
        let member = fields.take("member", principals::parse(&request.member));
        fields.finish()?;
        let (Some(group), Some(member)) = (group, member) else {
            return Err(Error::internal("checked above").into());
        };
        mutate!(call, |tx| {
            find(tx, group).await?;
            let missing = || Error::not_found(member.to_string());
            let known = groups::find_member(tx, group, member).await?;
            let known = known.ok_or_else(missing)?;
            require_to_change(tx, &call, group, Some(call.now)).await?;
            call.require_power_over(tx, member).await?;
            groups::remove_member(tx, group, member).await?;
            append_event(tx, &call, &known).await?;
        })?;
        Ok(Response::new(()))
    }

    async fn list_group_members(
        &self,
        request: Request<pb::ListGroupMembersRequest>,
    ) -> Reply<pb::ListGroupMembersResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let group = id("parent", &request.parent)?;
        let limit = page::size(request.page_size)?;
        let member = filter::only(
            &request.filter,
            "member",
            principals::NAME,
            PrincipalId::parse,
        )?;
        let context = call.page_context(&[&request.parent, &request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let after = after.map(|Cursor(id)| id).unwrap_or_default();
        let mut db = call.db().read().await?;
        find(&mut db, group).await?;
        // Who looks after some only is told of those.
        let at = call.limit.as_ref().map(|_| call.now);
        let rows = match member {
            None => groups::list_members(&mut db, group, at, after, limit + 1).await,
            Some(member) => {
                let found = groups::find_member(&mut db, group, member).await;
                let is_there = |it: &Membership| at.is_none_or(|at| it.window.contains(at));
                found.map(|found| found.into_iter().filter(is_there).collect())
            }
        };
        let rows = rows.map_err(Error::from)?;
        let cursor = |membership: &Membership| Cursor(membership.member.uuid());
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, cursor)?;
        let members = rows.iter().map(shown_member).collect();
        Ok(Response::new(pb::ListGroupMembersResponse {
            members,
            next_page_token,
        }))
    }
}

async fn find(db: &mut Read, id: GroupId) -> Result<Group> {
    let missing = || Error::not_found(id.to_string());
    groups::find(db, id).await?.ok_or_else(missing)
}

/// Who is put into a group gets what it holds, and who is taken out loses it: refuses unless the caller may
/// grant all of that for so long.
async fn require_to_change(
    db: &mut Read,
    call: &Call,
    group: GroupId,
    until: Option<Timestamp>,
) -> Result<()> {
    let power = grants::power(db, group.into(), None, call.now).await?;
    let found = scopes::find_all(db, power.scopes()).await?;
    let field = "expire_time";
    call.require_to_grant(db, &found, until, field).await?;
    let names = grants::names(db, group.into(), call.now).await?;
    call.require_to_appoint(db, &names, until, field).await
}

/// Who is put into a group is in the hands of those who look after the people in it: refuses unless the caller may
/// let them, for so long, or they may already.
async fn require_to_expose(
    db: &mut Read,
    call: &Call,
    group: GroupId,
    member: PrincipalId,
    until: Option<Timestamp>,
) -> Result<()> {
    let above = groups::memberships(db, group.into(), call.now).await?;
    let above = above.iter().map(|membership| membership.group);
    let is = groups::principals(db, member, call.now).await?;
    let all: BTreeSet<GroupId> = above.chain([group]).collect();
    for id in all {
        let known_end = is.get(&PrincipalId::Group(id)).copied();
        if known_end >= Some(until.unwrap_or(Timestamp::MAX)) {
            continue;
        }
        let exposing = grants::list_exposing(db, &id.to_string(), call.now).await?;
        let found = scopes::find_all(db, &exposing).await?;
        call.require_to_grant(db, &found, until, "expire_time")
            .await?;
    }
    Ok(())
}

async fn require_room(db: &mut Read, member: PrincipalId) -> Result<()> {
    if groups::count_of(db, member).await? >= MAX_MEMBERSHIPS {
        let text = format!("is in {MAX_MEMBERSHIPS} groups, which is the limit");
        return Err(Error::precondition(
            Reason::LimitReached,
            member.to_string(),
            text,
        ));
    }
    Ok(())
}

/// Refuses what would go round in a circle, or too deep; also for a membership that was over, since others may have
/// begun meanwhile.
async fn require_order(
    db: &mut Read,
    call: &Call,
    group: GroupId,
    member: PrincipalId,
) -> Result<()> {
    let PrincipalId::Group(inner) = member else {
        return Ok(());
    };
    let above = groups::memberships(db, group.into(), call.now).await?;
    if inner == group || above.iter().any(|membership| membership.group == inner) {
        let text = format!("has {group} in it, or is it");
        return Err(Error::precondition(
            Reason::GroupCycle,
            inner.to_string(),
            text,
        ));
    }
    let outwards = groups::depth_above(db, group, call.now, MAX_DEPTH).await?;
    let inwards = groups::depth_below(db, inner, call.now, MAX_DEPTH).await?;
    if outwards + inwards > MAX_DEPTH {
        let text = format!("would make more than {MAX_DEPTH} groups in one another");
        return Err(Error::precondition(
            Reason::LimitReached,
            inner.to_string(),
            text,
        ));
    }
    Ok(())
}

async fn append_event(tx: &mut Write, call: &Call, membership: &Membership) -> Result<()> {
    let account = membership.member.account();
    let event = call.event().about(membership.group, account);
    let mut event = event.detail("member", membership.member);
    if let Some(end) = membership.window.end {
        event = event.detail("expire_time", end);
    }
    events::append(tx, &event).await?;
    Ok(())
}

fn parse_id(name: &str) -> Result<GroupId, String> {
    GroupId::parse(name).ok_or_else(|| "must be groups/{uid}".to_owned())
}

fn id(field: &str, name: &str) -> Result<GroupId> {
    parse_id(name).map_err(|text| Error::field(field, text))
}

fn is_set(path: &str, group: &pb::Group) -> bool {
    match path {
        "display_name" => !group.display_name.is_empty(),
        "description" => !group.description.is_empty(),
        _ => false,
    }
}

/// The named fields of a message as edits; what is wrong with them goes to `fields`.
fn edits(fields: &mut Fields, paths: &[&str], input: &pb::Group) -> Vec<Edit> {
    let edit = |path: &str| -> Result<Edit, String> {
        Ok(match path {
            "display_name" => Edit::DisplayName(text::line(&input.display_name, MAX_DISPLAY_NAME)?),
            _ => Edit::Description(text::lines(&input.description, MAX_DESCRIPTION)?),
        })
    };
    let taken = paths
        .iter()
        .filter_map(|path| fields.take(&format!("group.{path}"), edit(path)));
    taken.collect()
}

fn shown(group: &Group) -> pb::Group {
    pb::Group {
        name: group.id.to_string(),
        etag: convert::etag(group.revision),
        display_name: group.display_name.clone(),
        description: group.description.clone(),
        create_time: Some(convert::timestamp(group.create_time)),
        update_time: Some(convert::timestamp(group.update_time)),
    }
}

fn shown_member(membership: &Membership) -> pb::GroupMember {
    pb::GroupMember {
        member: membership.member.to_string(),
        start_time: convert::some_timestamp(membership.window.start),
        expire_time: convert::some_timestamp(membership.window.end),
        added_by: membership.added_by.clone(),
        create_time: Some(convert::timestamp(membership.create_time)),
    }
}

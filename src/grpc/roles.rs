//! RoleService.

use std::{collections::BTreeSet, sync::Arc};

use tonic::{Request, Response};

use super::{
    Reply,
    call::{Call, mutate},
    convert, pb, scopes,
};
use crate::{
    app::App,
    domain::{
        error::{Error, Fields, Reason, Result},
        filter, page,
        role::{
            self, Edit, MAX_DESCRIPTION, MAX_DISPLAY_NAME, MAX_ROLES, MAX_SCOPES, Role, WRITABLE,
        },
        scope::{Scope, ScopeName},
        text,
        time::Timestamp,
    },
    store::{
        db::{Read, Write},
        events,
        roles::{self, Cursor},
        scopes as catalogue,
    },
};

pub(super) struct Roles {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::role_service_server::RoleService for Roles {
    async fn create_role(&self, request: Request<pb::CreateRoleRequest>) -> Reply<pb::Role> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.role.unwrap_or_default();
        let mut fields = Fields::new();
        let id = fields.take("role.name", parse_name(&input.name).map(str::to_owned));
        let given: Vec<&str> = WRITABLE
            .into_iter()
            .filter(|it| is_set(it, &input))
            .collect();
        let edits = edits(&mut fields, &given, &input);
        fields.finish()?;
        let id = id.ok_or_else(|| Error::internal("checked above"))?;
        let mut role = Role::new(id, call.now);
        if role::built_in(&role.id).is_some() {
            return Err(Error::AlreadyExists { name: role.name() }.into());
        }
        for edit in edits {
            role.edit(edit);
        }
        let role = mutate!(call, |tx| {
            // Whoever is to be given the role by its name is not to find more in it.
            call.gives(&role.scopes);
            if roles::count(tx).await? >= MAX_ROLES {
                let text = format!("has {MAX_ROLES} roles, which is the limit");
                return Err(Error::precondition(Reason::LimitReached, "roles", text));
            }
            require_to_change(tx, &call, role.scopes.iter()).await?;
            roles::insert(tx, &role).await?;
            append_event(tx, &call, &role, &given).await?;
            shown(&role)
        })?;
        Ok(Response::new(role))
    }

    async fn get_role(&self, request: Request<pb::GetRoleRequest>) -> Reply<pb::Role> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = id(&request.name)?;
        let role = find(&mut call.db().read().await?, id).await?;
        Ok(Response::new(shown(&role)))
    }

    async fn list_roles(
        &self,
        request: Request<pb::ListRolesRequest>,
    ) -> Reply<pb::ListRolesResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let expected = "scopes/{audience}:{scope}";
        let with = filter::only(&request.filter, "scope", expected, ScopeName::parse)?;
        let context = call.page_context(&[&request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let after = after.map(|Cursor(id)| id).unwrap_or_default();
        // Those that are there by themselves come first.
        let seen = role::BUILT_IN.iter().position(|id| **id == *after);
        let rest = match (after.as_str(), seen) {
            ("", _) => &role::BUILT_IN[..],
            (_, Some(place)) => &role::BUILT_IN[place + 1..],
            _ => &[],
        };
        let mut rows: Vec<Role> = rest.iter().filter_map(|id| Role::built_in(id)).collect();
        rows.retain(|role| with.as_ref().is_none_or(|name| role.scopes.contains(name)));
        let room = limit + 1 - i64::try_from(rows.len()).unwrap_or(i64::MAX).min(limit + 1);
        if room > 0 {
            let after = if seen.is_some() { "" } else { &after };
            let mut db = call.db().read().await?;
            let made = roles::list(&mut db, with.as_ref(), after, room).await;
            rows.extend(made.map_err(Error::from)?);
        }
        let cursor = |role: &Role| Cursor(role.id.clone());
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, cursor)?;
        let roles = rows.iter().map(shown).collect();
        Ok(Response::new(pb::ListRolesResponse {
            roles,
            next_page_token,
        }))
    }

    async fn update_role(&self, request: Request<pb::UpdateRoleRequest>) -> Reply<pb::Role> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.role.unwrap_or_default();
        let id = parse_name(&input.name).map_err(|text| Error::field("role.name", text))?;
        let paths = convert::masked(request.update_mask.as_ref(), &WRITABLE, |path| {
            is_set(path, &input)
        })?;
        let mut fields = Fields::new();
        let edits = edits(&mut fields, &paths, &input);
        fields.finish()?;
        require_made(id)?;
        let role = mutate!(call, |tx| {
            let mut role = find_current(tx, id, &input.etag).await?;
            let before = role.clone();
            for edit in edits.clone() {
                role.edit(edit);
            }
            if role != before {
                let changed = role.scopes.symmetric_difference(&before.scopes);
                require_to_change(tx, &call, changed).await?;
                call.gives(role.scopes.difference(&before.scopes));
                if !role.scopes.is_subset(&before.scopes) {
                    roles::void_begun(tx, id).await?;
                }
                role.touch(call.now);
                roles::update(tx, &role).await?;
                append_event(tx, &call, &role, &paths).await?;
            }
            shown(&role)
        })?;
        Ok(Response::new(role))
    }

    async fn delete_role(&self, request: Request<pb::DeleteRoleRequest>) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = id(&request.name)?;
        require_made(id)?;
        mutate!(call, |tx| {
            let role = find_current(tx, id, &request.etag).await?;
            let is_granter = catalogue::granters(tx).await?.contains(&role.name());
            if is_granter || roles::is_used(tx, id, call.now).await? {
                let text = "is granted to somebody or may be asked for, or may grant a scope";
                return Err(Error::precondition(Reason::InUse, role.name(), text));
            }
            roles::delete(tx, id).await?;
            append_event(tx, &call, &role, &[]).await?;
        })?;
        Ok(Response::new(()))
    }
}

/// A role that there is: one that is there by itself, or of the catalogue.
pub(super) async fn find(db: &mut Read, id: &str) -> Result<Role> {
    let found = match Role::built_in(id) {
        Some(role) => Some(role),
        None => roles::find(db, id).await?,
    };
    found.ok_or_else(|| Error::not_found(format!("roles/{id}")))
}

/// Refuses unless the caller may give a role, or take it back, for that long: all it comes to, and what the catalogue
/// lets its holders grant.
pub(super) async fn require_to_grant(
    db: &mut Read,
    call: &Call,
    id: &str,
    until: Option<Timestamp>,
    field: &str,
) -> Result<()> {
    let role = find(db, id).await?;
    let own = role.scopes.iter().filter(|name| name.is_own());
    let mut found: Vec<Scope> = own.map(|name| Scope::built_in(&name.scope)).collect();
    found.extend(catalogue::of_role(db, id).await?);
    call.require_to_grant(db, &found, until, field).await?;
    let names = BTreeSet::from([role.name()]);
    call.require_to_appoint(db, &names, until, field).await
}

async fn find_current(db: &mut Read, id: &str, etag: &str) -> Result<Role> {
    let role = find(db, id).await?;
    convert::require_etag(etag, role.revision, role.name())?;
    Ok(role)
}

/// Refuses to touch what is there by itself.
fn require_made(id: &str) -> Result<()> {
    match Role::built_in(id) {
        None => Ok(()),
        Some(role) => {
            let text = "is of accountd itself";
            Err(Error::precondition(Reason::BuiltIn, role.name(), text))
        }
    }
}

/// Refuses unless the caller may grant each of these, without end, to whoever holds the role.
async fn require_to_change(
    db: &mut Read,
    call: &Call,
    names: impl Iterator<Item = &ScopeName> + Send,
) -> Result<()> {
    let found = scopes::find_all(db, names).await?;
    call.require_to_grant(db, &found, None, "role.scopes").await
}

async fn append_event(tx: &mut Write, call: &Call, role: &Role, paths: &[&str]) -> Result<()> {
    let event = call.event().about(role.name(), None);
    events::append(tx, &event.changed(paths.iter().copied())).await?;
    Ok(())
}

fn parse_name(name: &str) -> Result<&str, String> {
    let expected = "must be roles/{role}: 1 to 63 of `a-z`, `0-9` and `-`, beginning with a letter";
    role::parse_name(name).ok_or_else(|| expected.to_owned())
}

fn id(name: &str) -> Result<&str> {
    parse_name(name).map_err(|text| Error::field("name", text))
}

fn is_set(path: &str, role: &pb::Role) -> bool {
    match path {
        "display_name" => !role.display_name.is_empty(),
        "description" => !role.description.is_empty(),
        "scopes" => !role.scopes.is_empty(),
        _ => false,
    }
}

/// The named fields of a message as edits; what is wrong with them goes to `fields`.
fn edits(fields: &mut Fields, paths: &[&str], input: &pb::Role) -> Vec<Edit> {
    let scope = |name: &str| {
        ScopeName::parse(name).ok_or_else(|| "must be of scopes/{audience}:{scope}".to_owned())
    };
    let edit = |path: &str| -> Result<Edit, String> {
        Ok(match path {
            "display_name" => Edit::DisplayName(text::line(&input.display_name, MAX_DISPLAY_NAME)?),
            "description" => Edit::Description(text::lines(&input.description, MAX_DESCRIPTION)?),
            _ => Edit::Scopes(BTreeSet::from_iter(convert::list(
                &input.scopes,
                MAX_SCOPES,
                scope,
            )?)),
        })
    };
    let taken = paths
        .iter()
        .filter_map(|path| fields.take(&format!("role.{path}"), edit(path)));
    taken.collect()
}

fn shown(role: &Role) -> pb::Role {
    let is_built_in = role::built_in(&role.id).is_some();
    let time = |time| (!is_built_in).then(|| convert::timestamp(time));
    pb::Role {
        name: role.name(),
        etag: convert::etag(role.revision),
        display_name: role.display_name.clone(),
        description: role.description.clone(),
        scopes: role.scopes.iter().map(ToString::to_string).collect(),
        built_in: is_built_in,
        create_time: time(role.create_time),
        update_time: time(role.update_time),
    }
}

//! GrantService.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use tonic::{Request, Response};

use super::{
    Reply, access,
    call::{Call, mutate},
    convert, pb, principals, roles, scopes,
};
use crate::{
    app::App,
    domain::{
        account,
        error::{Error, Fields, Reason, Result},
        filter,
        grant::{self, Edit, Grant, MAX_GRANTS, Permission, WRITABLE},
        name::{GrantId, GroupId, PrincipalId},
        page,
        scope::{self, ScopeName},
        time::Timestamp,
    },
    store::{
        db::{Read, Write},
        events,
        grants::{self, Cursor, Query},
    },
};

pub(super) struct Grants {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::grant_service_server::GrantService for Grants {
    async fn create_grant(&self, request: Request<pb::CreateGrantRequest>) -> Reply<pb::Grant> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.grant.unwrap_or_default();
        let mut fields = Fields::new();
        let principal = fields.take(
            "grant.principal",
            principals::parse_own(&call, &input.principal),
        );
        let reason = fields.take("grant.reason", convert::reason(&input.reason));
        let resource = fields.take("grant.resource", resource(&input.resource));
        let (start, end) = (input.start_time.as_ref(), input.expire_time.as_ref());
        let window = convert::window(&mut fields, "grant.", (start, end), call.now);
        if input.permission.is_none() {
            fields.refuse("grant.role", "or `scope` is required");
        }
        fields.finish()?;
        let (Some(principal), Some(reason), Some(resource)) = (principal, reason, resource) else {
            return Err(Error::internal("checked above").into());
        };
        let permission = permission(input.permission.as_ref())?;
        let grant = Grant {
            id: GrantId(call.new_uuid()),
            revision: 1,
            principal,
            permission,
            resource,
            reason,
            granted_by: call.by(),
            create_time: call.now,
            window,
            elevation: None,
            needs_step_up: false,
        };
        let grant = mutate!(call, |tx| {
            require_resource(tx, &grant).await?;
            require_to_grant(tx, &call, &grant, grant.window.end).await?;
            gives(tx, &call, &grant).await?;
            principals::require_present(tx, &call, principal).await?;
            call.require_power_over(tx, principal).await?;
            insert(tx, &call, &grant).await?;
            append_event(tx, &call, &grant, &[]).await?;
            shown(&grant)
        })?;
        Ok(Response::new(grant))
    }

    async fn get_grant(&self, request: Request<pb::GetGrantRequest>) -> Reply<pb::Grant> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = grant_id(&request.name)?;
        let grant = find(&mut call.db().read().await?, id).await?;
        Ok(Response::new(shown(&grant)))
    }

    async fn list_grants(
        &self,
        request: Request<pb::ListGrantsRequest>,
    ) -> Reply<pb::ListGrantsResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let query = query(&request.filter)?;
        let context = call.page_context(&[&request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let mut db = call.db().read().await?;
        let rows = grants::list(&mut db, &query, after.as_ref(), limit + 1)
            .await
            .map_err(Error::from)?;
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, Cursor::after)?;
        let grants = rows.iter().map(shown).collect();
        Ok(Response::new(pb::ListGrantsResponse {
            grants,
            next_page_token,
        }))
    }

    async fn update_grant(&self, request: Request<pb::UpdateGrantRequest>) -> Reply<pb::Grant> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.grant.unwrap_or_default();
        let id = parse_id(&input.name).map_err(|text| Error::field("grant.name", text))?;
        let paths = convert::masked(request.update_mask.as_ref(), &WRITABLE, |path| {
            is_set(path, &input)
        })?;
        let mut fields = Fields::new();
        let edits = edits(&mut fields, &paths, &input, call.now);
        fields.finish()?;
        let grant = mutate!(call, |tx| {
            let mut grant = find(tx, id).await?;
            convert::require_etag(&input.etag, grant.revision, grant.id)?;
            let before = grant.clone();
            for edit in edits.clone() {
                grant.edit(edit);
            }
            if grant != before {
                if grant.window.is_empty() {
                    return Err(Error::field("grant.expire_time", convert::EMPTY_WINDOW));
                }
                require_not_lent(&grant, call.now)?;
                let was_over = before.window.is_over(call.now);
                let until = if grant.window.is_within(before.window, call.now) {
                    // It gives no more than before, and may have been given by somebody who may for longer.
                    Some(call.now)
                } else {
                    gives(tx, &call, &grant).await?;
                    grant.window.end
                };
                require_to_grant(tx, &call, &grant, until).await?;
                call.require_power_over(tx, grant.principal).await?;
                if was_over {
                    // One that was over gives what was not there.
                    principals::require_present(tx, &call, grant.principal).await?;
                    begin(tx, &call, grant.principal).await?;
                }
                grant.touch();
                grants::update(tx, &grant).await?;
                append_event(tx, &call, &grant, &paths).await?;
            }
            shown(&grant)
        })?;
        Ok(Response::new(grant))
    }

    async fn delete_grant(&self, request: Request<pb::DeleteGrantRequest>) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = grant_id(&request.name)?;
        mutate!(call, |tx| {
            let grant = find(tx, id).await?;
            convert::require_etag(&request.etag, grant.revision, grant.id)?;
            require_not_lent(&grant, call.now)?;
            require_to_grant(tx, &call, &grant, Some(call.now)).await?;
            call.require_power_over(tx, grant.principal).await?;
            grants::delete(tx, id).await?;
            append_event(tx, &call, &grant, &[]).await?;
        })?;
        Ok(Response::new(()))
    }

    async fn check_access(
        &self,
        request: Request<pb::CheckAccessRequest>,
    ) -> Reply<pb::CheckAccessResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(access::check(&call, &request).await?))
    }

    async fn explain_access(
        &self,
        request: Request<pb::ExplainAccessRequest>,
    ) -> Reply<pb::ExplainAccessResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(access::explain(&call, &request).await?))
    }

    async fn list_effective_scopes(
        &self,
        request: Request<pb::ListEffectiveScopesRequest>,
    ) -> Reply<pb::ListEffectiveScopesResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(access::list(&call, &request).await?))
    }
}

async fn find(db: &mut Read, id: GrantId) -> Result<Grant> {
    let missing = || Error::not_found(id.to_string());
    grants::find(db, id).await?.ok_or_else(missing)
}

/// Gives somebody more: within the limit, and with what was begun for them when it was less void.
pub(super) async fn insert(tx: &mut Write, call: &Call, grant: &Grant) -> Result<()> {
    begin(tx, call, grant.principal).await?;
    grants::insert(tx, grant).await?;
    Ok(())
}

/// What comes before somebody has one grant more.
async fn begin(tx: &mut Write, call: &Call, principal: PrincipalId) -> Result<()> {
    if grants::count_of(tx, principal, call.now).await? >= MAX_GRANTS {
        let text = format!("has {MAX_GRANTS} grants, which is the limit");
        let name = principal.to_string();
        return Err(Error::precondition(Reason::LimitReached, name, text));
    }
    principals::void_begun(tx, principal).await
}

/// What somebody was elevated by has an end of its own, and tokens that end with it.
fn require_not_lent(grant: &Grant, now: Timestamp) -> Result<()> {
    match grant.elevation {
        Some(id) if !grant.window.is_over(now) => {
            let text = format!("is of {id}, which can be ended");
            Err(Error::precondition(
                Reason::WrongState,
                grant.id.to_string(),
                text,
            ))
        }
        _ => Ok(()),
    }
}

async fn append_event(tx: &mut Write, call: &Call, grant: &Grant, paths: &[&str]) -> Result<()> {
    let event = call.event().about(grant.id, grant.principal.account());
    let event = event.detail("principal", grant.principal);
    let mut event = event.detail("permission", grant.permission.name());
    if !grant.resource.is_empty() {
        event = event.detail("resource", &grant.resource);
    }
    events::append(tx, &event.changed(paths.iter().copied())).await?;
    Ok(())
}

/// Refuses unless there is such a role or scope, and the caller may grant all it comes to.
async fn require_to_grant(
    db: &mut Read,
    call: &Call,
    grant: &Grant,
    until: Option<Timestamp>,
) -> Result<()> {
    let field = "grant.expire_time";
    match &grant.permission {
        Permission::Role(id) if grant.resource.is_empty() => {
            roles::require_to_grant(db, call, id, until, field).await
        }
        _ => {
            let names = scopes_of(db, grant).await?;
            let found = scopes::find_all(db, &names).await?;
            call.require_to_grant(db, &found, until, field).await
        }
    }
}

/// What a grant comes to: each scope as it is limited by it.
async fn scopes_of(db: &mut Read, grant: &Grant) -> Result<Vec<ScopeName>> {
    let all = match &grant.permission {
        Permission::Role(id) => roles::find(db, id).await?.scopes,
        Permission::Scope(name) => {
            // There has to be such a scope.
            scopes::find(db, name).await?;
            BTreeSet::from([name.clone()])
        }
    };
    let limited = all
        .iter()
        .filter_map(|name| grant::limited(name, &grant.resource));
    Ok(limited.map(Cow::into_owned).collect())
}

/// What is limited has to come to something; of our own for a group that is there.
async fn require_resource(db: &mut Read, grant: &Grant) -> Result<()> {
    if grant.resource.is_empty() {
        return Ok(());
    }
    let scopes = scopes_of(db, grant).await?;
    if scopes.is_empty() {
        let text = "cannot be set: none of these scopes is about an account or a group";
        return Err(Error::field("grant.resource", text));
    }
    if scopes.iter().any(ScopeName::is_own) {
        let group = GroupId::parse(&grant.resource);
        let group = group.ok_or_else(|| {
            Error::field("grant.resource", "must be groups/{uid} for our own scopes")
        })?;
        principals::require_known(db, group.into()).await?;
    }
    Ok(())
}

/// Says what somebody gets by a grant.
async fn gives(db: &mut Read, call: &Call, grant: &Grant) -> Result<()> {
    call.gives(&scopes_of(db, grant).await?);
    Ok(())
}

fn resource(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(String::new()),
        text => scope::parse_resource(text),
    }
}

fn permission(sent: Option<&pb::grant::Permission>) -> Result<Permission> {
    use pb::grant::Permission as Sent;
    let (name, collection) = match sent {
        Some(Sent::Role(name)) => (name.as_str(), "roles/"),
        Some(Sent::Scope(name)) => (name.as_str(), "scopes/"),
        None => ("", ""),
    };
    let permission = Permission::parse(name).filter(|_| name.starts_with(collection));
    permission.ok_or_else(|| Error::not_found(name))
}

fn parse_id(name: &str) -> Result<GrantId, String> {
    GrantId::parse(name).ok_or_else(|| "must be grants/{id}".to_owned())
}

fn grant_id(name: &str) -> Result<GrantId> {
    parse_id(name).map_err(|text| Error::field("name", text))
}

fn is_set(path: &str, grant: &pb::Grant) -> bool {
    match path {
        "reason" => !grant.reason.is_empty(),
        "expire_time" => grant.expire_time.is_some(),
        _ => false,
    }
}

/// The named fields of a message as edits; what is wrong with them goes to `fields`.
fn edits(fields: &mut Fields, paths: &[&str], input: &pb::Grant, now: Timestamp) -> Vec<Edit> {
    let edit = |path: &str| -> Result<Edit, String> {
        Ok(match path {
            "reason" => Edit::Reason(convert::reason(&input.reason)?),
            _ => {
                let time = convert::parse_time(input.expire_time.as_ref())?;
                Edit::ExpireTime(account::future(time, now)?)
            }
        })
    };
    let taken = paths
        .iter()
        .filter_map(|path| fields.take(&format!("grant.{path}"), edit(path)));
    taken.collect()
}

fn shown(grant: &Grant) -> pb::Grant {
    let name = grant.permission.name();
    pb::Grant {
        name: grant.id.to_string(),
        etag: convert::etag(grant.revision),
        principal: grant.principal.to_string(),
        permission: Some(match &grant.permission {
            Permission::Role(_) => pb::grant::Permission::Role(name),
            Permission::Scope(_) => pb::grant::Permission::Scope(name),
        }),
        resource: grant.resource.clone(),
        reason: grant.reason.clone(),
        granted_by: grant.granted_by.clone(),
        create_time: Some(convert::timestamp(grant.create_time)),
        start_time: convert::some_timestamp(grant.window.start),
        expire_time: convert::some_timestamp(grant.window.end),
        elevation: grant.elevation.map(|id| id.to_string()).unwrap_or_default(),
        step_up_required: grant.needs_step_up,
    }
}

/// Which grants a list is about.
fn query(filter: &str) -> Result<Query> {
    let offered = &[
        ("principal", filter::EQUAL),
        ("role", filter::EQUAL),
        ("scope", filter::EQUAL),
        ("resource", filter::EQUAL),
    ];
    let mut query = Query::default();
    for term in filter::parse(filter, offered)? {
        let permission = Permission::parse(&term.value);
        match (term.field, permission) {
            ("principal", _) => {
                let principal = PrincipalId::parse(&term.value);
                query.principal = Some(filter::value(&term, principal, principals::NAME)?);
            }
            ("resource", _) => {
                let resource = scope::parse_resource(&term.value).ok();
                query.resource = Some(filter::value(&term, resource, "a resource")?);
            }
            ("role", Some(Permission::Role(role))) => query.role = Some(role),
            ("scope", Some(Permission::Scope(scope))) => query.scope = Some(scope),
            (field, _) => {
                return Err(filter::refuse(format!(
                    "expects the name of an existing {field}"
                )));
            }
        }
    }
    Ok(query)
}

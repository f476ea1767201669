//! ScopeService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    Reply,
    call::{Call, mutate},
    convert, pb, roles,
};
use crate::{
    app::App,
    domain::{
        error::{Error, Fields, Reason, Result},
        filter,
        name::PrincipalId,
        page, role,
        scope::{
            self, Edit, MAX_DESCRIPTION, MAX_GRANTABLE_BY, MAX_SCOPES, Scope, ScopeName, WRITABLE,
        },
        text,
        token::{self, OWN_AUDIENCE},
    },
    store::{
        db::{Read, Write},
        events,
        scopes::{self, Cursor},
    },
};

pub(super) struct Scopes {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::scope_service_server::ScopeService for Scopes {
    async fn create_scope(&self, request: Request<pb::CreateScopeRequest>) -> Reply<pb::Scope> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.scope.unwrap_or_default();
        let mut fields = Fields::new();
        let name = fields.take("scope.name", parse_name(&input.name));
        let given: Vec<&str> = WRITABLE
            .into_iter()
            .filter(|it| is_set(it, &input))
            .collect();
        let edits = edits(&mut fields, &given, &input);
        fields.finish()?;
        let name = name.ok_or_else(|| Error::internal("checked above"))?;
        require_made(&name)?;
        let mut scope = Scope::new(name, call.now);
        for edit in edits {
            scope.edit(edit);
        }
        let scope = mutate!(call, |tx| {
            if scopes::count(tx).await? >= MAX_SCOPES {
                let text = format!("has {MAX_SCOPES} scopes, which is the limit");
                return Err(Error::precondition(Reason::LimitReached, "scopes", text));
            }
            if !scope.grantable_by.is_empty() {
                require_granters(tx, &call, &scope).await?;
            }
            scopes::insert(tx, &scope).await?;
            append_event(tx, &call, &scope, &given).await?;
            shown(&scope)
        })?;
        Ok(Response::new(scope))
    }

    async fn get_scope(&self, request: Request<pb::GetScopeRequest>) -> Reply<pb::Scope> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let name = name(&request.name)?;
        let scope = find(&mut call.db().read().await?, &name).await?;
        Ok(Response::new(shown(&scope)))
    }

    async fn list_scopes(
        &self,
        request: Request<pb::ListScopesRequest>,
    ) -> Reply<pb::ListScopesResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let expected = "1 to 255 visible ASCII characters";
        let audience = filter::only(&request.filter, "audience", expected, |text| {
            token::audience(text).ok().filter(|_| !text.is_empty())
        })?;
        let context = call.page_context(&[&request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let after = after.map(|Cursor(name)| name);
        // Those that are there by themselves come first.
        let mut rows = built_in_after(after.as_ref());
        rows.retain(|scope| {
            audience
                .as_ref()
                .is_none_or(|it| *it == scope.name.audience)
        });
        let room = limit + 1 - i64::try_from(rows.len()).unwrap_or(i64::MAX).min(limit + 1);
        if room > 0 {
            let after = after.filter(|name| !name.is_own());
            let mut db = call.db().read().await?;
            let made = scopes::list(&mut db, audience.as_deref(), after.as_ref(), room);
            rows.extend(made.await.map_err(Error::from)?);
        }
        rows.truncate(usize::try_from(limit + 1).unwrap_or(usize::MAX));
        let cursor = |scope: &Scope| Cursor(scope.name.clone());
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, cursor)?;
        let scopes = rows.iter().map(shown).collect();
        Ok(Response::new(pb::ListScopesResponse {
            scopes,
            next_page_token,
        }))
    }

    async fn update_scope(&self, request: Request<pb::UpdateScopeRequest>) -> Reply<pb::Scope> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.scope.unwrap_or_default();
        let name = parse_name(&input.name).map_err(|text| Error::field("scope.name", text))?;
        let paths = convert::masked(request.update_mask.as_ref(), &WRITABLE, |path| {
            is_set(path, &input)
        })?;
        let mut fields = Fields::new();
        let edits = edits(&mut fields, &paths, &input);
        fields.finish()?;
        require_made(&name)?;
        let scope = mutate!(call, |tx| {
            let mut scope = find_current(tx, &name, &input.etag).await?;
            let before = scope.clone();
            for edit in edits.clone() {
                scope.edit(edit);
            }
            if scope != before {
                if scope.grantable_by != before.grantable_by
                    || before.is_sensitive && !scope.is_sensitive
                {
                    require_granters(tx, &call, &scope).await?;
                }
                scope.touch(call.now);
                scopes::update(tx, &scope).await?;
                append_event(tx, &call, &scope, &paths).await?;
            }
            shown(&scope)
        })?;
        Ok(Response::new(scope))
    }

    async fn delete_scope(&self, request: Request<pb::DeleteScopeRequest>) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let name = name(&request.name)?;
        require_made(&name)?;
        mutate!(call, |tx| {
            let scope = find_current(tx, &name, &request.etag).await?;
            if scopes::is_used(tx, &name, call.now).await? {
                let text = "is in a role, or somebody is granted it";
                return Err(Error::precondition(Reason::InUse, name.to_string(), text));
            }
            scopes::delete(tx, &name).await?;
            append_event(tx, &call, &scope, &[]).await?;
        })?;
        Ok(Response::new(()))
    }
}

/// A scope that there is, limited or not: one that is there by itself, or of the catalogue.
pub(super) async fn find(db: &mut Read, name: &ScopeName) -> Result<Scope> {
    let unlimited = name.unlimited();
    let found = if name.is_own() {
        let known = scope::built_in().contains(&&*unlimited.scope);
        known.then(|| Scope::built_in(&unlimited.scope))
    } else {
        scopes::find(db, &unlimited).await?
    };
    let found = found.ok_or_else(|| Error::not_found(name.to_string()))?;
    Ok(Scope {
        name: name.clone(),
        ..found
    })
}

/// The same for several.
pub(super) async fn find_all(
    db: &mut Read,
    names: impl IntoIterator<Item = &ScopeName, IntoIter: Send>,
) -> Result<Vec<Scope>> {
    let mut found = Vec::new();
    for name in names {
        found.push(find(db, name).await?);
    }
    Ok(found)
}

async fn find_current(db: &mut Read, name: &ScopeName, etag: &str) -> Result<Scope> {
    let scope = find(db, name).await?;
    convert::require_etag(etag, scope.revision, name)?;
    Ok(scope)
}

/// Refuses to touch what is there by itself.
fn require_made(name: &ScopeName) -> Result<()> {
    if name.is_own() {
        let text = "is of accountd itself";
        return Err(Error::precondition(Reason::BuiltIn, name.to_string(), text));
    }
    Ok(())
}

/// The roles that are to grant it have to be there; accounts may come and go. Since it is for good, so has to be what
/// lets the caller say so.
async fn require_granters(db: &mut Read, call: &Call, scope: &Scope) -> Result<()> {
    let maintains = [Scope::built_in("access.write")];
    let field = "scope.grantable_by";
    call.require_to_grant(db, &maintains, None, field).await?;
    for name in &scope.grantable_by {
        if let Some(id) = role::parse_name(name) {
            roles::find(db, id).await?;
        }
    }
    Ok(())
}

async fn append_event(tx: &mut Write, call: &Call, scope: &Scope, paths: &[&str]) -> Result<()> {
    let event = call.event().about(scope.name.to_string(), None);
    events::append(tx, &event.changed(paths.iter().copied())).await?;
    Ok(())
}

/// The built-in scopes that a page which begins after a name begins with.
fn built_in_after(after: Option<&ScopeName>) -> Vec<Scope> {
    let after = match after {
        None => "",
        Some(name) if name.audience == OWN_AUDIENCE => &name.scope,
        Some(_) => return Vec::new(),
    };
    let rest = scope::built_in().iter().filter(|scope| **scope > after);
    rest.map(|scope| Scope::built_in(scope)).collect()
}

fn parse_name(name: &str) -> Result<ScopeName, String> {
    ScopeName::parse(name).ok_or_else(|| "must be scopes/{audience}:{scope}".to_owned())
}

fn name(name: &str) -> Result<ScopeName> {
    parse_name(name).map_err(|text| Error::field("name", text))
}

fn is_set(path: &str, scope: &pb::Scope) -> bool {
    match path {
        "description" => !scope.description.is_empty(),
        "sensitive" => scope.sensitive,
        "grantable_by" => !scope.grantable_by.is_empty(),
        _ => false,
    }
}

/// The named fields of a message as edits; what is wrong with them goes to `fields`.
fn edits(fields: &mut Fields, paths: &[&str], input: &pb::Scope) -> Vec<Edit> {
    let granter = |name: &str| {
        let is_name = role::parse_name(name).is_some() || PrincipalId::parse(name).is_some();
        let expected =
            "must be of roles/{role}, groups/{uid}, users/{uid} and systemAccounts/{uid}";
        is_name
            .then(|| name.to_owned())
            .ok_or_else(|| expected.to_owned())
    };
    let edit = |path: &str| -> Result<Edit, String> {
        Ok(match path {
            "description" => Edit::Description(text::lines(&input.description, MAX_DESCRIPTION)?),
            "sensitive" => Edit::Sensitive(input.sensitive),
            _ => Edit::GrantableBy(convert::list(
                &input.grantable_by,
                MAX_GRANTABLE_BY,
                granter,
            )?),
        })
    };
    let taken = paths
        .iter()
        .filter_map(|path| fields.take(&format!("scope.{path}"), edit(path)));
    taken.collect()
}

fn shown(scope: &Scope) -> pb::Scope {
    let is_built_in = scope.name.is_own();
    let time = |time| (!is_built_in).then(|| convert::timestamp(time));
    pb::Scope {
        name: scope.name.to_string(),
        etag: convert::etag(scope.revision),
        audience: scope.name.audience.clone(),
        scope: scope.name.scope.clone(),
        description: scope.description.clone(),
        sensitive: scope.is_sensitive,
        grantable_by: scope.grantable_by.clone(),
        built_in: is_built_in,
        create_time: time(scope.create_time),
        update_time: time(scope.update_time),
    }
}

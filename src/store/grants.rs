//! Who may hold which scopes, and when.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    entitlements,
    error::{Error, Result},
    groups::{self, ways},
    roles,
    sql::{Row, principal_kind, sql},
};
use crate::domain::{
    grant::{Grant, Holdings, Permission, Power, limited},
    group::Membership,
    name::{GrantId, PrincipalId},
    role,
    scope::ScopeName,
    time::Timestamp,
    token::OWN_AUDIENCE,
};

macro_rules! columns {
    () => {
        "g.id, g.revision, g.principal_id, g.principal_kind, g.role, g.scope, g.audience, g.reason, \
         g.granted_by, g.create_time, g.start_time, g.expire_time, g.elevation_id, g.resource, g.needs_step_up"
    };
}

/// The one place that says how a row becomes a grant.
fn grant(row: &Row) -> Result<Grant> {
    let permission = match (row.get("role")?, row.get("scope")?) {
        (Some(role), None) => Permission::Role(role),
        (None, Some(scope)) => Permission::Scope(ScopeName {
            audience: row.get("audience")?,
            scope,
        }),
        _ => return Err(Error::broken("a grant is of a role or of a scope")),
    };
    Ok(Grant {
        id: row.get("id")?,
        revision: row.get("revision")?,
        principal: row.get_principal("principal_kind", "principal_id")?,
        permission,
        resource: row.get("resource")?,
        reason: row.get("reason")?,
        granted_by: row.get("granted_by")?,
        create_time: row.get("create_time")?,
        window: row.get_window()?,
        elevation: row.get("elevation_id")?,
        needs_step_up: row.get("needs_step_up")?,
    })
}

pub async fn find(db: &mut Read, id: GrantId) -> Result<Option<Grant>> {
    let sql = sql!("SELECT ", columns!(), " FROM grants g WHERE g.id = $1").bind(id);
    db.optional(sql, grant).await
}

/// What is granted to a principal and to the groups it is in, with what the roles among it come to: of one
/// audience, or of all.
pub async fn holdings(
    db: &mut Read,
    principal: PrincipalId,
    audience: Option<&str>,
    now: Timestamp,
) -> Result<Holdings> {
    match audience {
        None => {
            let rows = list_all(db, principal, now).await?;
            Ok(joined(principal, rows).0)
        }
        Some(audience) => Ok(holdings_of(db, principal, audience, now).await?.0),
    }
}

/// The same of one audience, and of all its scopes those that have to be earned.
pub async fn holdings_of(
    db: &mut Read,
    principal: PrincipalId,
    audience: &str,
    now: Timestamp,
) -> Result<(Holdings, BTreeSet<String>)> {
    let rows = list_of_audience(db, principal, audience, now).await?;
    Ok(joined(principal, rows))
}

fn joined(principal: PrincipalId, rows: Vec<Found>) -> (Holdings, BTreeSet<String>) {
    let (mut grants, mut of_roles) = (BTreeMap::new(), BTreeMap::new());
    let (mut memberships, mut sensitive) = (Vec::new(), BTreeSet::new());
    for found in rows {
        let (grant, role_scope) = match found {
            Found::Membership(membership) => {
                memberships.push(membership);
                continue;
            }
            Found::Sensitive(scope) => {
                sensitive.insert(scope);
                continue;
            }
            Found::Grant(grant, role_scope) => (grant, role_scope),
        };
        if let Permission::Role(role) = &grant.permission {
            let scopes = of_roles.entry(role.clone()).or_insert_with(|| {
                let built_in = role::built_in(role).map(Cow::Borrowed);
                built_in.unwrap_or_else(|| Cow::Owned(BTreeSet::new()))
            });
            if let Some(scope) = role_scope {
                scopes.to_mut().insert(scope);
            }
        }
        grants.insert(grant.id, grant);
    }
    let holdings = Holdings {
        principal,
        memberships,
        grants: grants.into_values().collect(),
        of_roles,
    };
    (holdings, sensitive)
}

/// What whoever has power over a principal has, too. Of one audience, or of all.
pub async fn power(
    db: &mut Read,
    principal: PrincipalId,
    audience: Option<&str>,
    now: Timestamp,
) -> Result<Power> {
    let holdings = holdings(db, principal, audience, now).await?;
    let mut on_request = BTreeSet::new();
    let roles: BTreeSet<String> = entitlements::roles_of(db, principal, now)
        .await?
        .into_iter()
        .collect();
    for role in roles {
        match role::built_in(&role) {
            Some(scopes) => on_request.extend(scopes.iter().cloned()),
            None => on_request.extend(
                roles::find(db, &role)
                    .await?
                    .into_iter()
                    .flat_map(|role| role.scopes),
            ),
        }
    }
    let is_wanted = |scope: &ScopeName| audience.is_none_or(|it| scope.audience == it);
    on_request.retain(is_wanted);
    Ok(Power {
        granted: holdings
            .prospective(now)
            .into_iter()
            .map(Cow::into_owned)
            .filter(is_wanted)
            .collect(),
        on_request,
    })
}

/// Every name that a principal goes by, is going to, or may ask for: its own, of the groups it is in, and of roles.
pub async fn names(
    db: &mut Read,
    principal: PrincipalId,
    now: Timestamp,
) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::from([principal.to_string()]);
    let groups = groups::memberships(db, principal, now).await?;
    names.extend(groups.iter().map(|membership| membership.group.to_string()));
    let granted = holdings(db, principal, None, now).await?.grants;
    let granted = granted.iter().filter(|grant| grant.resource.is_empty());
    let granted = granted.map(|grant| &grant.permission);
    let roles = granted.filter(|it| matches!(it, Permission::Role(_)));
    names.extend(roles.map(Permission::name));
    let asked_for = entitlements::roles_of(db, principal, now).await?;
    names.extend(
        asked_for
            .into_iter()
            .map(|role| Permission::Role(role).name()),
    );
    Ok(names)
}

/// A row of what somebody holds: a membership on the way to it, a grant with one of the scopes of its role, or, for
/// whoever holds it, a scope that has to be earned.
enum Found {
    Membership(Membership),
    Grant(Grant, Option<ScopeName>),
    Sensitive(String),
}

fn found(row: &Row) -> Result<Found> {
    if row.get::<Option<Uuid>>("group_id")?.is_some() {
        return groups::membership(row).map(Found::Membership);
    }
    if row.get::<Option<Uuid>>("id")?.is_none() {
        return row.get("scope").map(Found::Sensitive);
    }
    Ok(Found::Grant(grant(row)?, role_scope(row)?))
}

/// A scope of the role of a grant, if that is a made one.
fn role_scope(row: &Row) -> Result<Option<ScopeName>> {
    Ok(match (row.get("role_audience")?, row.get("role_scope")?) {
        (Some(audience), Some(scope)) => Some(ScopeName { audience, scope }),
        _ => None,
    })
}

macro_rules! with_scope_of_role {
    () => {
        ", r.audience AS role_audience, r.scope AS role_scope, NULL AS group_id, NULL AS member_id, \
          NULL AS member_kind, NULL AS added_by"
    };
}

/// Memberships among grants: what only grants have is of no kind that PostgreSQL could not guess.
macro_rules! memberships_beside {
    () => {
        " UNION ALL
          SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, ways.create_time, ways.start_time,
            ways.expire_time, NULL, NULL, NULL, NULL, NULL, ways.group_id, ways.member_id, ways.member_kind,
            ways.added_by
          FROM ways
          UNION ALL "
    };
}

/// Scopes among grants: those of the audience `$4` that have to be earned.
macro_rules! sensitive_beside {
    () => {
        "SELECT NULL, NULL, NULL, NULL, NULL, s.scope, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            NULL, NULL, NULL, NULL, NULL
          FROM scopes s WHERE s.audience = $4 AND s.sensitive
          UNION ALL "
    };
}

/// The grants to a principal and to the groups it is or is going to be in, but for those that are over, one row for
/// each scope of its role; and the memberships on the way. One statement, since a second one would go from group
/// to group again.
async fn list_all(db: &mut Read, principal: PrincipalId, now: Timestamp) -> Result<Vec<Found>> {
    let sql = sql!(
        ways!(),
        "SELECT ",
        columns!(),
        with_scope_of_role!(),
        " FROM grants g LEFT JOIN role_scopes r ON r.role = g.role
          WHERE g.principal_id = $1 AND g.principal_kind = $2
            AND (g.expire_time > $3 OR g.expire_time IS NULL)",
        memberships_beside!(),
        "SELECT ",
        columns!(),
        with_scope_of_role!(),
        " FROM above CROSS JOIN grants g LEFT JOIN role_scopes r ON r.role = g.role
          WHERE g.principal_id = above.id AND g.principal_kind = 'group'
            AND (g.expire_time > $3 OR g.expire_time IS NULL)"
    )
    .bind(principal)
    .bind(principal_kind(principal))
    .bind(now);
    db.all(sql, found).await
}

/// The same with the grants that may come to scopes of an audience, these scopes, and which of the audience have to be
/// earned.
async fn list_of_audience(
    db: &mut Read,
    principal: PrincipalId,
    audience: &str,
    now: Timestamp,
) -> Result<Vec<Found>> {
    let sql = sql!(
        ways!(),
        "SELECT ",
        columns!(),
        with_scope_of_role!(),
        " FROM grants g LEFT JOIN role_scopes r ON r.role = g.role AND r.audience = $4
          WHERE g.principal_id = $1 AND g.principal_kind = $2
            AND (g.expire_time > $3 OR g.expire_time IS NULL) AND g.audience IN ($4, '')",
        memberships_beside!(),
        sensitive_beside!(),
        "SELECT ",
        columns!(),
        with_scope_of_role!(),
        " FROM above CROSS JOIN grants g
          LEFT JOIN role_scopes r ON r.role = g.role AND r.audience = $4
          WHERE g.principal_id = above.id AND g.principal_kind = 'group'
            AND (g.expire_time > $3 OR g.expire_time IS NULL) AND g.audience IN ($4, '')"
    )
    .bind(principal)
    .bind(principal_kind(principal))
    .bind(now)
    .bind(audience);
    db.all(sql, found).await
}

/// What somebody may do, or is going to, with those in a group and because they are in it; of our own.
pub async fn list_exposing(
    db: &mut Read,
    resource: &str,
    now: Timestamp,
) -> Result<BTreeSet<ScopeName>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        ", r.audience AS role_audience, r.scope AS role_scope
         FROM grants g LEFT JOIN role_scopes r ON r.role = g.role AND r.audience = $3
         WHERE g.resource = $1 AND (g.expire_time > $2 OR g.expire_time IS NULL) AND g.resource <> ''"
    )
    .bind(resource)
    .bind(now)
    .bind(OWN_AUDIENCE);
    let rows = db
        .all(sql, |row| Ok((grant(row)?, role_scope(row)?)))
        .await?;
    let mut scopes = BTreeSet::new();
    for (grant, role_scope) in rows {
        match grant.permission {
            Permission::Scope(scope) => drop(scopes.insert(scope)),
            Permission::Role(role) => match role::built_in(&role) {
                Some(of_role) => scopes.extend(of_role.iter().cloned()),
                None => scopes.extend(role_scope),
            },
        }
    }
    scopes.retain(|scope| limited(scope, resource).is_some() && scope.is_own());
    Ok(scopes)
}

/// Whether a grant that is not over is for this resource.
pub async fn is_resource(db: &mut Read, resource: &str, now: Timestamp) -> Result<bool> {
    let sql = sql!(
        "SELECT EXISTS (SELECT 1 FROM grants WHERE resource = $1 AND resource <> ''
            AND (expire_time > $2 OR expire_time IS NULL)) AS is_resource"
    );
    db.one(sql.bind(resource).bind(now), |row| row.get("is_resource"))
        .await
}

/// How many grants a principal itself has that are not over.
pub async fn count_of(db: &mut Read, principal: PrincipalId, now: Timestamp) -> Result<i64> {
    let sql = sql!(
        "SELECT COUNT(*) AS n FROM grants
         WHERE principal_id = $1 AND principal_kind = $2
            AND (expire_time > $3 OR expire_time IS NULL)"
    )
    .bind(principal)
    .bind(principal_kind(principal))
    .bind(now);
    db.one(sql, |row| row.get("n")).await
}

/// Which grants to list, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub principal: Option<PrincipalId>,
    pub role: Option<String>,
    pub scope: Option<ScopeName>,
    pub resource: Option<String>,
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(Uuid);

impl Cursor {
    pub const fn after(grant: &Grant) -> Self {
        Self(grant.id.0)
    }
}

pub async fn list(
    db: &mut Read,
    query: &Query,
    after: Option<&Cursor>,
    limit: i64,
) -> Result<Vec<Grant>> {
    let after = after.map_or(Uuid::nil(), |cursor| cursor.0);
    let scope = query.scope.as_ref();
    let (audience, scope) = (
        scope.map(|name| name.audience.as_str()),
        scope.map(|name| name.scope.as_str()),
    );
    let resource = query.resource.as_deref();
    let sql = match (query.principal, resource, &query.role, scope) {
        (Some(principal), resource, role, scope) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants g
              WHERE g.principal_id = $1 AND g.principal_kind = $2 AND (g.role = $3 OR $3 IS NULL)
                AND (g.scope = $4 AND g.audience = $5 OR $4 IS NULL)
                AND (g.resource = $6 OR $6 IS NULL) AND g.id > $7
              ORDER BY g.id LIMIT $8"
        )
        .bind(principal)
        .bind(principal_kind(principal))
        .bind(role.as_deref())
        .bind(scope)
        .bind(audience)
        .bind(resource),
        (None, Some(resource), role, scope) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants g
              WHERE g.resource = $1 AND g.resource <> '' AND (g.role = $2 OR $2 IS NULL)
                AND (g.scope = $3 AND g.audience = $4 OR $3 IS NULL) AND g.id > $5
              ORDER BY g.id LIMIT $6"
        )
        .bind(resource)
        .bind(role.as_deref())
        .bind(scope)
        .bind(audience),
        // No grant is of both.
        (None, None, Some(role), scope) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants g WHERE g.role = $1 AND (g.scope = $2 OR $2 IS NULL) AND g.id > $3
              ORDER BY g.id LIMIT $4"
        )
        .bind(role.as_str())
        .bind(scope),
        (None, None, None, Some(scope)) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants g WHERE g.scope = $1 AND g.audience = $2 AND g.id > $3
              ORDER BY g.id LIMIT $4"
        )
        .bind(scope)
        .bind(audience),
        (None, None, None, None) => {
            sql!(
                "SELECT ",
                columns!(),
                " FROM grants g WHERE g.id > $1 ORDER BY g.id LIMIT $2"
            )
        }
    };
    db.page(sql.bind(after).bind(limit), grant).await
}

pub async fn insert(db: &mut Write, grant: &Grant) -> Result<()> {
    let (role, scope, audience) = match &grant.permission {
        Permission::Role(role) if role::built_in(role).is_some() => {
            (Some(role.as_str()), None, OWN_AUDIENCE)
        }
        Permission::Role(role) => (Some(role.as_str()), None, ""),
        Permission::Scope(name) => (None, Some(name.scope.as_str()), name.audience.as_str()),
    };
    let sql = sql!(
        "INSERT INTO grants (id, revision, principal_id, principal_kind, role, scope, audience, reason,
            granted_by, create_time, start_time, expire_time, elevation_id, resource, needs_step_up)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
    )
    .bind(grant.id)
    .bind(grant.revision)
    .bind(grant.principal)
    .bind(principal_kind(grant.principal))
    .bind(role)
    .bind(scope)
    .bind(audience)
    .bind(grant.reason.as_str())
    .bind(grant.granted_by.as_str())
    .bind(grant.create_time)
    .bind(grant.window.start)
    .bind(grant.window.end)
    .bind(grant.elevation)
    .bind(grant.resource.as_str())
    .bind(grant.needs_step_up);
    db.execute(sql).await.map(drop)
}

pub async fn update(db: &mut Write, grant: &Grant) -> Result<()> {
    let sql = sql!("UPDATE grants SET revision = $2, reason = $3, expire_time = $4 WHERE id = $1")
        .bind(grant.id)
        .bind(grant.revision)
        .bind(grant.reason.as_str())
        .bind(grant.window.end);
    db.execute(sql).await.map(drop)
}

pub async fn delete(db: &mut Write, id: GrantId) -> Result<bool> {
    Ok(db
        .execute(sql!("DELETE FROM grants WHERE id = $1").bind(id))
        .await?
        == 1)
}

pub async fn delete_all(db: &mut Write, principal: PrincipalId) -> Result<()> {
    let sql = sql!("DELETE FROM grants WHERE principal_id = $1 AND principal_kind = $2")
        .bind(principal)
        .bind(principal_kind(principal));
    db.execute(sql).await.map(drop)
}

/// Forgets grants that expired before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM grants WHERE id IN (
            SELECT id FROM grants WHERE expire_time < $1 ORDER BY expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

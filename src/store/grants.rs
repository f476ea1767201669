//! Who may hold which scopes, and when.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::{Error, Result},
    groups::{self, above},
    roles,
    sql::{Row, principal_kind, sql},
};
use crate::domain::{
    grant::{Grant, Holdings, Permission},
    name::{GrantId, PrincipalId},
    role,
    scope::ScopeName,
    time::Timestamp,
    token::OWN_AUDIENCE,
};

macro_rules! columns {
    () => {
        "g.id, g.revision, g.principal_id, g.principal_kind, g.role, g.scope, g.audience, g.reason, \
         g.granted_by, g.create_time, g.start_time, g.expire_time"
    };
}

/// The one place that says how a row becomes a grant.
fn grant(row: &Row) -> Result<Grant> {
    let permission = match (row.get("role")?, row.get("scope")?) {
        (Some(role), None) => Permission::Role(role),
        (None, Some(scope)) => Permission::Scope(ScopeName {
            audience: row
                .get::<Option<String>>("audience")?
                .unwrap_or_else(|| OWN_AUDIENCE.to_owned()),
            scope,
        }),
        _ => return Err(Error::broken("a grant is of a role or of a scope")),
    };
    Ok(Grant {
        id: row.get("id")?,
        revision: row.get("revision")?,
        principal: row.get_principal("principal_kind", "principal_id")?,
        permission,
        reason: row.get("reason")?,
        granted_by: row.get("granted_by")?,
        create_time: row.get("create_time")?,
        start_time: row.get("start_time")?,
        expire_time: row.get("expire_time")?,
    })
}

pub async fn find(db: &mut Read, id: GrantId) -> Result<Option<Grant>> {
    let sql = sql!("SELECT ", columns!(), " FROM grants g WHERE g.id = $1").bind(id);
    db.optional(sql, grant).await
}

/// What is granted to a principal and to the groups it is in, with what the roles among it come to.
pub async fn holdings(db: &mut Read, principal: PrincipalId, now: Timestamp) -> Result<Holdings> {
    let grants = list_reaching(db, principal, now).await?;
    let is_by_group = grants.iter().any(|grant| grant.principal != principal);
    let memberships = if is_by_group {
        groups::memberships(db, principal, now).await?
    } else {
        Vec::new()
    };
    let granted = grants.iter().filter_map(|grant| match &grant.permission {
        Permission::Role(role) => Some(role.as_str()),
        Permission::Scope(_) => None,
    });
    let mut of_roles = BTreeMap::new();
    let mut is_made = false;
    for role in granted {
        match role::built_in(role) {
            Some(scopes) => {
                of_roles.insert(role.to_owned(), Cow::Borrowed(scopes));
            }
            None => is_made = true,
        }
    }
    if is_made {
        let made = roles::of_principal(db, principal, now).await?;
        of_roles.extend(
            made.into_iter()
                .map(|(role, scopes)| (role, Cow::Owned(scopes))),
        );
    }
    Ok(Holdings {
        principal,
        memberships,
        grants,
        of_roles,
    })
}

/// The grants to a principal and to the groups it is or is going to be in, but for those that are over.
async fn list_reaching(
    db: &mut Read,
    principal: PrincipalId,
    now: Timestamp,
) -> Result<Vec<Grant>> {
    let sql = sql!(
        above!(),
        "SELECT ",
        columns!(),
        " FROM grants g WHERE g.principal_id = $1 AND g.principal_kind = $2
            AND (g.expire_time > $3 OR g.expire_time IS NULL)
          UNION ALL
          SELECT ",
        columns!(),
        " FROM above CROSS JOIN grants g
          WHERE g.principal_id = above.id AND g.principal_kind = 'group'
            AND (g.expire_time > $3 OR g.expire_time IS NULL)"
    )
    .bind(principal)
    .bind(principal_kind(principal))
    .bind(now);
    db.all(sql, grant).await
}

/// How many grants a principal itself has, over or not.
pub async fn count_of(db: &mut Read, principal: PrincipalId) -> Result<i64> {
    let sql =
        sql!("SELECT COUNT(*) AS n FROM grants WHERE principal_id = $1 AND principal_kind = $2")
            .bind(principal)
            .bind(principal_kind(principal));
    db.one(sql, |row| row.get("n")).await
}

/// Which grants to list, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub principal: Option<PrincipalId>,
    pub role: Option<String>,
    pub scope: Option<ScopeName>,
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
    let sql = match (query.principal, &query.role, scope) {
        (Some(principal), role, scope) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants g
              WHERE g.principal_id = $1 AND g.principal_kind = $2 AND (g.role = $3 OR $3 IS NULL)
                AND (g.scope = $4 AND COALESCE(g.audience, $5) = $6 OR $4 IS NULL) AND g.id > $7
              ORDER BY g.id LIMIT $8"
        )
        .bind(principal)
        .bind(principal_kind(principal))
        .bind(role.as_deref())
        .bind(scope)
        .bind(OWN_AUDIENCE)
        .bind(audience),
        // No grant is of both.
        (None, Some(role), scope) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants g WHERE g.role = $1 AND (g.scope = $2 OR $2 IS NULL) AND g.id > $3
              ORDER BY g.id LIMIT $4"
        )
        .bind(role.as_str())
        .bind(scope),
        (None, None, Some(scope)) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants g WHERE g.scope = $1 AND COALESCE(g.audience, $2) = $3 AND g.id > $4
              ORDER BY g.id LIMIT $5"
        )
        .bind(scope)
        .bind(OWN_AUDIENCE)
        .bind(audience),
        (None, None, None) => {
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
    let (role, scope) = match &grant.permission {
        Permission::Role(role) => (Some(role.as_str()), None),
        Permission::Scope(scope) => (None, Some(scope)),
    };
    let sql = sql!(
        "INSERT INTO grants (id, revision, principal_id, principal_kind, role, scope, audience, reason,
            granted_by, create_time, start_time, expire_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
    )
    .bind(grant.id)
    .bind(grant.revision)
    .bind(grant.principal)
    .bind(principal_kind(grant.principal))
    .bind(role)
    .bind(scope.map(|name| name.scope.as_str()))
    .bind(scope.map(|name| name.audience.as_str()))
    .bind(grant.reason.as_str())
    .bind(grant.granted_by.as_str())
    .bind(grant.create_time)
    .bind(grant.start_time)
    .bind(grant.expire_time);
    db.execute(sql).await.map(drop)
}

pub async fn update(db: &mut Write, grant: &Grant) -> Result<()> {
    let sql = sql!("UPDATE grants SET revision = $2, reason = $3, expire_time = $4 WHERE id = $1")
        .bind(grant.id)
        .bind(grant.revision)
        .bind(grant.reason.as_str())
        .bind(grant.expire_time);
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

//! Who may hold which scopes, and when.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::{Error, Result},
    roles,
    sql::{Row, account_kind, sql},
};
use crate::domain::{
    grant::{Grant, Holdings, MAX_GRANTS, Permission},
    name::{AccountId, GrantId},
    role,
    scope::ScopeName,
    time::Timestamp,
    token::OWN_AUDIENCE,
};

macro_rules! columns {
    () => {
        "id, principal_id, principal_kind, role, scope, audience, reason, granted_by, \
         create_time, start_time, expire_time"
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
        principal: row.get_account("principal_kind", "principal_id")?,
        permission,
        reason: row.get("reason")?,
        granted_by: row.get("granted_by")?,
        create_time: row.get("create_time")?,
        start_time: row.get("start_time")?,
        expire_time: row.get("expire_time")?,
    })
}

pub async fn find(db: &mut Read, id: GrantId) -> Result<Option<Grant>> {
    let sql = sql!("SELECT ", columns!(), " FROM grants WHERE id = $1").bind(id);
    db.optional(sql, grant).await
}

/// What is granted to a principal, with what its roles come to.
pub async fn holdings(db: &mut Read, principal: AccountId) -> Result<Holdings> {
    let grants = list_all(db, principal).await?;
    let is_made = |grant: &Grant| match &grant.permission {
        Permission::Role(role) => role::built_in(role).is_none(),
        Permission::Scope(_) => false,
    };
    let roles = if grants.iter().any(is_made) {
        roles::of_principal(db, principal).await?
    } else {
        BTreeMap::new()
    };
    Ok(Holdings { grants, roles })
}

/// All grants of a principal, of which there are at most [`MAX_GRANTS`].
pub async fn list_all(db: &mut Read, principal: AccountId) -> Result<Vec<Grant>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM grants WHERE principal_id = $1 AND principal_kind = $2 ORDER BY id LIMIT $3"
    );
    let limit = i64::try_from(MAX_GRANTS).unwrap_or(i64::MAX);
    db.all(
        sql.bind(principal)
            .bind(account_kind(principal))
            .bind(limit),
        grant,
    )
    .await
}

/// Which grants to list, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub principal: Option<AccountId>,
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
            " FROM grants
              WHERE principal_id = $1 AND principal_kind = $2 AND (role = $3 OR $3 IS NULL)
                AND (scope = $4 AND COALESCE(audience, $5) = $6 OR $4 IS NULL) AND id > $7
              ORDER BY id LIMIT $8"
        )
        .bind(principal)
        .bind(account_kind(principal))
        .bind(role.as_deref())
        .bind(scope)
        .bind(OWN_AUDIENCE)
        .bind(audience),
        // No grant is of both.
        (None, Some(role), scope) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants WHERE role = $1 AND (scope = $2 OR $2 IS NULL) AND id > $3
              ORDER BY id LIMIT $4"
        )
        .bind(role.as_str())
        .bind(scope),
        (None, None, Some(scope)) => sql!(
            "SELECT ",
            columns!(),
            " FROM grants WHERE scope = $1 AND COALESCE(audience, $2) = $3 AND id > $4
              ORDER BY id LIMIT $5"
        )
        .bind(scope)
        .bind(OWN_AUDIENCE)
        .bind(audience),
        (None, None, None) => {
            sql!(
                "SELECT ",
                columns!(),
                " FROM grants WHERE id > $1 ORDER BY id LIMIT $2"
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
        "INSERT INTO grants (id, principal_id, principal_kind, role, scope, audience, reason,
            granted_by, create_time, start_time, expire_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
    )
    .bind(grant.id)
    .bind(grant.principal)
    .bind(account_kind(grant.principal))
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

pub async fn delete(db: &mut Write, id: GrantId) -> Result<bool> {
    Ok(db
        .execute(sql!("DELETE FROM grants WHERE id = $1").bind(id))
        .await?
        == 1)
}

pub async fn delete_all(db: &mut Write, principal: AccountId) -> Result<()> {
    let sql = sql!("DELETE FROM grants WHERE principal_id = $1 AND principal_kind = $2")
        .bind(principal)
        .bind(account_kind(principal));
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

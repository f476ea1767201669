//! Named sets of scopes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    db::{Read, Write},
    error::{OnDuplicate as _, Result},
    groups::{and_below, people_below},
    sql::{Row, sql},
};
use crate::domain::{
    error::{self, Error},
    role::Role,
    scope::ScopeName,
    time::Timestamp,
};

/// The one place that says how a row becomes a role, whose scopes are rows of their own.
fn role(row: &Row) -> Result<Role> {
    Ok(Role {
        id: row.get("id")?,
        revision: row.get("revision")?,
        display_name: row.get("display_name")?,
        description: row.get("description")?,
        scopes: BTreeSet::new(),
        create_time: row.get("create_time")?,
        update_time: row.get("update_time")?,
    })
}

fn role_scope(row: &Row) -> Result<(String, ScopeName)> {
    let name = ScopeName {
        audience: row.get("audience")?,
        scope: row.get("scope")?,
    };
    Ok((row.get("role")?, name))
}

fn by_role(rows: Vec<(String, ScopeName)>) -> BTreeMap<String, BTreeSet<ScopeName>> {
    let mut roles: BTreeMap<String, BTreeSet<ScopeName>> = BTreeMap::new();
    for (role, scope) in rows {
        roles.entry(role).or_default().insert(scope);
    }
    roles
}

pub async fn find(db: &mut Read, id: &str) -> Result<Option<Role>> {
    let sql = sql!(
        "SELECT id, revision, display_name, description, create_time, update_time
         FROM roles WHERE id = $1"
    );
    let Some(mut found) = db.optional(sql.bind(id), role).await? else {
        return Ok(None);
    };
    let sql = sql!("SELECT role, audience, scope FROM role_scopes WHERE role = $1");
    let scopes = db.all(sql.bind(id), role_scope).await?;
    found.scopes = scopes.into_iter().map(|(_, scope)| scope).collect();
    Ok(Some(found))
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(pub String);

/// Roles by name, or those that have a scope.
pub async fn list(
    db: &mut Read,
    with: Option<&ScopeName>,
    after: &str,
    limit: i64,
) -> Result<Vec<Role>> {
    let sql = sql!(
        "SELECT id, revision, display_name, description, create_time, update_time
         FROM roles WHERE id > $1
            AND (EXISTS (
                SELECT 1 FROM role_scopes r
                WHERE r.role = roles.id AND r.audience = $2 AND r.scope = $3) OR $2 IS NULL)
         ORDER BY id LIMIT $4"
    )
    .bind(after)
    .bind(with.map(|name| name.audience.as_str()))
    .bind(with.map(|name| name.scope.as_str()))
    .bind(limit);
    let mut found = db.page(sql, role).await?;
    let Some(last) = found.last() else {
        return Ok(found);
    };
    let sql = sql!("SELECT role, audience, scope FROM role_scopes WHERE role > $1 AND role <= $2");
    let scopes = db.all(sql.bind(after).bind(last.id.as_str()), role_scope);
    let mut scopes = by_role(scopes.await?);
    for role in &mut found {
        role.scopes = scopes.remove(&role.id).unwrap_or_default();
    }
    Ok(found)
}

pub async fn count(db: &mut Read) -> Result<i64> {
    // A condition that all meet, so that they are counted by the key.
    let sql = sql!("SELECT COUNT(*) AS n FROM roles WHERE id > $1").bind("");
    db.one(sql, |row| row.get("n")).await
}

pub async fn insert(db: &mut Write, role: &Role) -> error::Result<()> {
    let sql = sql!(
        "INSERT INTO roles (id, revision, display_name, description, create_time, update_time)
         VALUES ($1, $2, $3, $4, $5, $6)"
    )
    .bind(role.id.as_str())
    .bind(role.revision)
    .bind(role.display_name.as_str())
    .bind(role.description.as_str())
    .bind(role.create_time)
    .bind(role.update_time);
    let exists = || Error::AlreadyExists { name: role.name() };
    db.execute(sql).await.on_duplicate("roles_id_key", exists)?;
    Ok(insert_scopes(db, role).await?)
}

pub async fn update(db: &mut Write, role: &Role) -> Result<()> {
    let sql = sql!(
        "UPDATE roles SET revision = $2, display_name = $3, description = $4, update_time = $5
         WHERE id = $1"
    )
    .bind(role.id.as_str())
    .bind(role.revision)
    .bind(role.display_name.as_str())
    .bind(role.description.as_str())
    .bind(role.update_time);
    db.execute(sql).await?;
    let sql = sql!("DELETE FROM role_scopes WHERE role = $1").bind(role.id.as_str());
    db.execute(sql).await?;
    insert_scopes(db, role).await
}

async fn insert_scopes(db: &mut Write, role: &Role) -> Result<()> {
    let row = |scope: &ScopeName| {
        sql!("INSERT INTO role_scopes (role, audience, scope) VALUES ($1, $2, $3)")
            .bind(role.id.as_str())
            .bind(scope.audience.as_str())
            .bind(scope.scope.as_str())
    };
    db.insert_all(role.scopes.iter().map(row).collect()).await
}

/// Whether somebody is granted it, and that is not over, or may ask for it.
pub async fn is_used(db: &mut Read, id: &str, now: Timestamp) -> Result<bool> {
    let sql = sql!(
        "SELECT EXISTS (
                SELECT 1 FROM grants WHERE role = $1 AND (expire_time > $2 OR expire_time IS NULL))
            OR EXISTS (SELECT 1 FROM entitlements WHERE role = $1) AS used"
    );
    db.one(sql.bind(id).bind(now), |row| row.get("used")).await
}

pub async fn delete(db: &mut Write, id: &str) -> Result<()> {
    let sql = sql!("DELETE FROM roles WHERE id = $1").bind(id);
    db.execute(sql).await.map(drop)
}

/// Whoever has to do with a role, itself.
macro_rules! of_role {
    () => {
        "WITH RECURSIVE below (id) AS (
            SELECT principal_id FROM grants WHERE role = $1
            UNION SELECT principal_id FROM entitlements WHERE role = $1
            UNION SELECT p.principal_id FROM entitlements e
            JOIN entitlement_approvers p ON p.entitlement_id = e.id WHERE e.role = $1"
    };
}

/// Voids the codes of people who hold a role, may ask for it or agree to it, themselves or by a group: made for
/// lesser accounts they do not open greater ones.
pub async fn void_begun(db: &mut Write, id: &str) -> Result<()> {
    let resets = sql!(
        of_role!(),
        and_below!(),
        "DELETE FROM password_resets WHERE user_id IN (
            SELECT id FROM below UNION ALL ",
        people_below!(),
        ")"
    );
    db.execute(resets.bind(id)).await?;
    let challenges = sql!(
        of_role!(),
        and_below!(),
        "DELETE FROM challenges WHERE user_id IN (
            SELECT id FROM below UNION ALL ",
        people_below!(),
        ")"
    );
    db.execute(challenges.bind(id)).await.map(drop)
}

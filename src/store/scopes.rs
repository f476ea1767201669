//! The catalogue of what downstream systems permit.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    db::{Read, Write},
    error::{OnDuplicate as _, Result},
    sql::{Row, sql},
};
use crate::domain::{
    error::{self, Error},
    scope::{Scope, ScopeName},
    time::Timestamp,
};

macro_rules! columns {
    () => {
        "s.audience, s.scope, s.revision, s.description, s.sensitive, s.grantable_by, \
         s.create_time, s.update_time"
    };
}

/// The one place that says how a row becomes a scope.
fn scope(row: &Row) -> Result<Scope> {
    Ok(Scope {
        name: ScopeName {
            audience: row.get("audience")?,
            scope: row.get("scope")?,
        },
        revision: row.get("revision")?,
        description: row.get("description")?,
        is_sensitive: row.get("sensitive")?,
        grantable_by: row.get_json("grantable_by")?,
        create_time: row.get("create_time")?,
        update_time: row.get("update_time")?,
    })
}

pub async fn find(db: &mut Read, name: &ScopeName) -> Result<Option<Scope>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM scopes s WHERE s.audience = $1 AND s.scope = $2"
    );
    let sql = sql.bind(name.audience.as_str()).bind(name.scope.as_str());
    db.optional(sql, scope).await
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(pub ScopeName);

/// Scopes by audience and name.
pub async fn list(
    db: &mut Read,
    audience: Option<&str>,
    after: Option<&ScopeName>,
    limit: i64,
) -> Result<Vec<Scope>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM scopes s
          WHERE (s.audience, s.scope) > ($1, $2) AND (s.audience = $3 OR $3 IS NULL)
          ORDER BY s.audience, s.scope LIMIT $4"
    )
    .bind(after.map_or("", |name| &name.audience))
    .bind(after.map_or("", |name| &name.scope))
    .bind(audience)
    .bind(limit);
    db.page(sql, scope).await
}

/// Those that are in a role.
pub async fn of_role(db: &mut Read, role: &str) -> Result<Vec<Scope>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM role_scopes r JOIN scopes s ON s.audience = r.audience AND s.scope = r.scope
          WHERE r.role = $1"
    );
    db.all(sql.bind(role), scope).await
}

pub async fn count(db: &mut Read) -> Result<i64> {
    // A condition that all meet, so that they are counted by the key.
    let sql = sql!("SELECT COUNT(*) AS n FROM scopes WHERE audience > $1").bind("");
    db.one(sql, |row| row.get("n")).await
}

pub async fn insert(db: &mut Write, scope: &Scope) -> error::Result<()> {
    let sql = sql!(
        "INSERT INTO scopes (audience, scope, revision, description, sensitive, grantable_by,
            create_time, update_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
    )
    .bind(scope.name.audience.as_str())
    .bind(scope.name.scope.as_str())
    .bind(scope.revision)
    .bind(scope.description.as_str())
    .bind(scope.is_sensitive)
    .bind_json(&scope.grantable_by)
    .bind(scope.create_time)
    .bind(scope.update_time);
    let exists = || Error::AlreadyExists {
        name: scope.name.to_string(),
    };
    db.execute(sql)
        .await
        .on_duplicate("scopes_audience_scope_key", exists)
        .map(drop)
}

pub async fn update(db: &mut Write, scope: &Scope) -> Result<()> {
    let sql = sql!(
        "UPDATE scopes SET revision = $3, description = $4, sensitive = $5, grantable_by = $6,
            update_time = $7
         WHERE audience = $1 AND scope = $2"
    )
    .bind(scope.name.audience.as_str())
    .bind(scope.name.scope.as_str())
    .bind(scope.revision)
    .bind(scope.description.as_str())
    .bind(scope.is_sensitive)
    .bind_json(&scope.grantable_by)
    .bind(scope.update_time);
    db.execute(sql).await.map(drop)
}

/// Whether a role has it, or somebody is granted it and that is not over.
pub async fn is_used(db: &mut Read, name: &ScopeName, now: Timestamp) -> Result<bool> {
    let sql = sql!(
        "SELECT EXISTS (SELECT 1 FROM role_scopes WHERE audience = $1 AND scope = $2)
            OR EXISTS (
                SELECT 1 FROM grants WHERE scope = $2 AND audience = $1
                    AND (expire_time > $3 OR expire_time IS NULL)) AS used"
    );
    let sql = sql
        .bind(name.audience.as_str())
        .bind(name.scope.as_str())
        .bind(now);
    db.one(sql, |row| row.get("used")).await
}

/// The scopes that somebody who goes by one of these names may grant without holding them.
pub async fn granted_by(db: &mut Read, names: &BTreeSet<String>) -> Result<Vec<Scope>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM scopes s WHERE s.audience > $1 AND s.grantable_by <> '[]'"
    );
    let mut found = db.all(sql.bind(""), scope).await?;
    found.retain(|scope| scope.grantable_by.iter().any(|name| names.contains(name)));
    Ok(found)
}

/// The names of all who may grant a scope without holding it.
pub async fn granters(db: &mut Read) -> Result<BTreeSet<String>> {
    let sql = sql!("SELECT grantable_by FROM scopes WHERE audience > $1 AND grantable_by <> '[]'");
    let found: Vec<Vec<String>> = db
        .all(sql.bind(""), |row| row.get_json("grantable_by"))
        .await?;
    Ok(found.into_iter().flatten().collect())
}

pub async fn delete(db: &mut Write, name: &ScopeName) -> Result<()> {
    let sql = sql!("DELETE FROM scopes WHERE audience = $1 AND scope = $2");
    let sql = sql.bind(name.audience.as_str()).bind(name.scope.as_str());
    db.execute(sql).await.map(drop)
}

//! Who may ask for which role, and who has to agree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::Result,
    groups::above,
    sql::{Row, principal_kind, sql},
};
use crate::domain::{
    elevation::Entitlement,
    name::{EntitlementId, PrincipalId},
    time::Timestamp,
};

macro_rules! columns {
    () => {
        "e.id, e.revision, e.principal_id, e.principal_kind, e.role, e.max_duration_s, e.needs_ticket, \
         e.needs_step_up, e.description, e.created_by, e.create_time, e.update_time, e.expire_time"
    };
}

/// The one place that says how a row becomes an entitlement, whose approvers are rows of their own.
fn entitlement(row: &Row) -> Result<Entitlement> {
    Ok(Entitlement {
        id: row.get("id")?,
        revision: row.get("revision")?,
        principal: row.get_principal("principal_kind", "principal_id")?,
        role: row.get("role")?,
        max_duration_s: row.get("max_duration_s")?,
        approvers: Vec::new(),
        needs_ticket: row.get("needs_ticket")?,
        needs_step_up: row.get("needs_step_up")?,
        description: row.get("description")?,
        created_by: row.get("created_by")?,
        create_time: row.get("create_time")?,
        update_time: row.get("update_time")?,
        expire_time: row.get("expire_time")?,
    })
}

fn approver(row: &Row) -> Result<(EntitlementId, PrincipalId)> {
    Ok((
        row.get("entitlement_id")?,
        row.get_principal("principal_kind", "principal_id")?,
    ))
}

pub async fn find(db: &mut Read, id: EntitlementId) -> Result<Option<Entitlement>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM entitlements e WHERE e.id = $1"
    );
    let Some(mut found) = db.optional(sql.bind(id), entitlement).await? else {
        return Ok(None);
    };
    let sql = sql!(
        "SELECT entitlement_id, principal_id, principal_kind FROM entitlement_approvers
         WHERE entitlement_id = $1"
    );
    let approvers = db.all(sql.bind(id), approver).await?;
    found.approvers = approvers.into_iter().map(|(_, id)| id).collect();
    found.approvers.sort();
    Ok(Some(found))
}

/// Which entitlements to list, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub principal: Option<PrincipalId>,
    pub role: Option<String>,
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(pub Uuid);

pub async fn list(
    db: &mut Read,
    query: &Query,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Entitlement>> {
    let sql = match (query.principal, &query.role) {
        (Some(principal), role) => sql!(
            "SELECT ",
            columns!(),
            " FROM entitlements e
              WHERE e.principal_id = $1 AND e.principal_kind = $2 AND (e.role = $3 OR $3 IS NULL)
                AND e.id > $4
              ORDER BY e.id LIMIT $5"
        )
        .bind(principal)
        .bind(principal_kind(principal))
        .bind(role.as_deref()),
        (None, Some(role)) => sql!(
            "SELECT ",
            columns!(),
            " FROM entitlements e WHERE e.role = $1 AND e.id > $2 ORDER BY e.id LIMIT $3"
        )
        .bind(role.as_str()),
        (None, None) => sql!(
            "SELECT ",
            columns!(),
            " FROM entitlements e WHERE e.id > $1 ORDER BY e.id LIMIT $2"
        ),
    };
    let found = db.page(sql.bind(after).bind(limit), entitlement).await?;
    with_approvers(db, found).await
}

/// Those by which a principal may ask, itself or by a group it is or is going to be in, in no order; but for
/// those that are over.
pub async fn of_principal(
    db: &mut Read,
    principal: PrincipalId,
    now: Timestamp,
) -> Result<Vec<Entitlement>> {
    let sql = sql!(
        above!(),
        "SELECT ",
        columns!(),
        " FROM entitlements e WHERE e.principal_id = $1 AND e.principal_kind = $2
            AND (e.expire_time > $3 OR e.expire_time IS NULL)
          UNION ALL
          SELECT ",
        columns!(),
        " FROM above CROSS JOIN entitlements e
          WHERE e.principal_id = above.id AND e.principal_kind = 'group'
            AND (e.expire_time > $3 OR e.expire_time IS NULL)"
    )
    .bind(principal)
    .bind(principal_kind(principal))
    .bind(now);
    let found = db.all(sql, entitlement).await?;
    with_approvers(db, found).await
}

async fn with_approvers(db: &mut Read, mut found: Vec<Entitlement>) -> Result<Vec<Entitlement>> {
    let ids = || found.iter().map(|it| it.id);
    let (Some(first), Some(last)) = (ids().min(), ids().max()) else {
        return Ok(found);
    };
    let sql = sql!(
        "SELECT entitlement_id, principal_id, principal_kind FROM entitlement_approvers
         WHERE entitlement_id >= $1 AND entitlement_id <= $2"
    );
    let approvers = db.all(sql.bind(first).bind(last), approver).await?;
    let mut of: BTreeMap<EntitlementId, Vec<PrincipalId>> = BTreeMap::new();
    for (entitlement, approver) in approvers {
        of.entry(entitlement).or_default().push(approver);
    }
    for entitlement in &mut found {
        entitlement.approvers = of.remove(&entitlement.id).unwrap_or_default();
        entitlement.approvers.sort();
    }
    Ok(found)
}

/// The roles that a principal may ask for, or agree to, itself or by a group it is or is going to be in; perhaps
/// several times.
pub async fn roles_of(
    db: &mut Read,
    principal: PrincipalId,
    now: Timestamp,
) -> Result<Vec<String>> {
    let sql = sql!(
        above!(),
        "SELECT e.role FROM entitlements e WHERE e.principal_id = $1 AND e.principal_kind = $2
            AND (e.expire_time > $3 OR e.expire_time IS NULL)
         UNION ALL
         SELECT e.role FROM above CROSS JOIN entitlements e
         WHERE e.principal_id = above.id AND e.principal_kind = 'group'
            AND (e.expire_time > $3 OR e.expire_time IS NULL)
         UNION ALL
         SELECT e.role FROM entitlement_approvers p JOIN entitlements e ON e.id = p.entitlement_id
         WHERE p.principal_id = $1 AND p.principal_kind = $2
            AND (e.expire_time > $3 OR e.expire_time IS NULL)
         UNION ALL
         SELECT e.role FROM above CROSS JOIN entitlement_approvers p
         JOIN entitlements e ON e.id = p.entitlement_id
         WHERE p.principal_id = above.id AND p.principal_kind = 'group'
            AND (e.expire_time > $3 OR e.expire_time IS NULL)"
    )
    .bind(principal)
    .bind(principal_kind(principal))
    .bind(now);
    db.all(sql, |row| row.get("role")).await
}

/// Whether an entitlement is for a principal, or names it among those who have to agree.
pub async fn is_named(db: &mut Read, principal: PrincipalId) -> Result<bool> {
    let sql = sql!(
        "SELECT EXISTS (SELECT 1 FROM entitlements WHERE principal_id = $1 AND principal_kind = $2)
            OR EXISTS (
                SELECT 1 FROM entitlement_approvers WHERE principal_id = $1 AND principal_kind = $2)
            AS named"
    );
    let sql = sql.bind(principal).bind(principal_kind(principal));
    db.one(sql, |row| row.get("named")).await
}

pub async fn count(db: &mut Read) -> Result<i64> {
    // A condition that all meet, so that they are counted by the key.
    let sql = sql!("SELECT COUNT(*) AS n FROM entitlements WHERE id > $1").bind(Uuid::nil());
    db.one(sql, |row| row.get("n")).await
}

pub async fn insert(db: &mut Write, entitlement: &Entitlement) -> Result<()> {
    let sql = sql!(
        "INSERT INTO entitlements (id, revision, principal_id, principal_kind, role, max_duration_s,
            needs_ticket, needs_step_up, description, created_by, create_time, update_time,
            expire_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
    )
    .bind(entitlement.id)
    .bind(entitlement.revision)
    .bind(entitlement.principal)
    .bind(principal_kind(entitlement.principal))
    .bind(entitlement.role.as_str())
    .bind(entitlement.max_duration_s)
    .bind(entitlement.needs_ticket)
    .bind(entitlement.needs_step_up)
    .bind(entitlement.description.as_str())
    .bind(entitlement.created_by.as_str())
    .bind(entitlement.create_time)
    .bind(entitlement.update_time)
    .bind(entitlement.expire_time);
    db.execute(sql).await?;
    insert_approvers(db, entitlement).await
}

pub async fn update(db: &mut Write, entitlement: &Entitlement) -> Result<()> {
    let sql = sql!(
        "UPDATE entitlements SET revision = $2, max_duration_s = $3, needs_ticket = $4,
            needs_step_up = $5, description = $6, update_time = $7, expire_time = $8
         WHERE id = $1"
    )
    .bind(entitlement.id)
    .bind(entitlement.revision)
    .bind(entitlement.max_duration_s)
    .bind(entitlement.needs_ticket)
    .bind(entitlement.needs_step_up)
    .bind(entitlement.description.as_str())
    .bind(entitlement.update_time)
    .bind(entitlement.expire_time);
    db.execute(sql).await?;
    let sql = sql!("DELETE FROM entitlement_approvers WHERE entitlement_id = $1");
    db.execute(sql.bind(entitlement.id)).await?;
    insert_approvers(db, entitlement).await
}

async fn insert_approvers(db: &mut Write, entitlement: &Entitlement) -> Result<()> {
    let row = |approver: &PrincipalId| {
        sql!(
            "INSERT INTO entitlement_approvers (entitlement_id, principal_id, principal_kind)
             VALUES ($1, $2, $3)"
        )
        .bind(entitlement.id)
        .bind(*approver)
        .bind(principal_kind(*approver))
    };
    db.insert_all(entitlement.approvers.iter().map(row).collect())
        .await
}

pub async fn delete(db: &mut Write, id: EntitlementId) -> Result<()> {
    let sql = sql!("DELETE FROM entitlements WHERE id = $1").bind(id);
    db.execute(sql).await.map(drop)
}

/// Removes what is for a principal. It stays among those who may agree, lest nobody had to any more.
pub async fn delete_all(db: &mut Write, principal: PrincipalId) -> Result<()> {
    let sql = sql!("DELETE FROM entitlements WHERE principal_id = $1 AND principal_kind = $2")
        .bind(principal)
        .bind(principal_kind(principal));
    db.execute(sql).await.map(drop)
}

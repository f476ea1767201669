//! Requests for roles, and what came of them.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::Result,
    groups::above_now,
    sql::{Row, account_kind, sql},
};
use crate::domain::{
    elevation::{Elevation, State},
    name::{AccountId, ElevationId, EntitlementId},
    time::Timestamp,
};

macro_rules! columns {
    () => {
        "v.id, v.revision, v.entitlement_id, v.requester_id, v.requester_kind, v.role, v.state, \
         v.justification, v.ticket, v.duration_s, v.create_time, v.next_time, v.decided_by, \
         v.decide_reason, v.decide_time, v.grant_id, v.end_time"
    };
}

/// In the state `$2` at the time `$1`, or in any.
macro_rules! in_state {
    () => {
        "(CASE WHEN v.next_time > $1 OR v.next_time IS NULL THEN v.state
            WHEN v.state = 'PENDING' THEN 'LAPSED' ELSE 'ENDED' END = $2 OR $2 IS NULL)"
    };
}

/// The one place that says how a row becomes an elevation.
fn elevation(row: &Row) -> Result<Elevation> {
    Ok(Elevation {
        id: row.get("id")?,
        revision: row.get("revision")?,
        entitlement: row.get("entitlement_id")?,
        requester: row.get_account("requester_kind", "requester_id")?,
        role: row.get("role")?,
        stored: row.get_parsed("state", State::parse)?,
        justification: row.get("justification")?,
        ticket: row.get("ticket")?,
        duration_s: row.get("duration_s")?,
        create_time: row.get("create_time")?,
        next_time: row.get("next_time")?,
        decided_by: row.get("decided_by")?,
        decide_reason: row.get("decide_reason")?,
        decide_time: row.get("decide_time")?,
        grant: row.get("grant_id")?,
        end_time: row.get("end_time")?,
    })
}

pub async fn find(db: &mut Read, id: ElevationId) -> Result<Option<Elevation>> {
    let sql = sql!("SELECT ", columns!(), " FROM elevations v WHERE v.id = $1").bind(id);
    db.optional(sql, elevation).await
}

/// What somebody has asked for by an entitlement and that is not over.
pub async fn find_open(
    db: &mut Read,
    requester: AccountId,
    entitlement: EntitlementId,
    now: Timestamp,
) -> Result<Option<Elevation>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM elevations v
          WHERE v.requester_id = $1 AND v.requester_kind = $2 AND v.entitlement_id = $3
            AND v.next_time > $4
          LIMIT 1"
    )
    .bind(requester)
    .bind(account_kind(requester))
    .bind(entitlement)
    .bind(now);
    db.optional(sql, elevation).await
}

/// Which elevations to list, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub requester: Option<AccountId>,
    pub entitlement: Option<EntitlementId>,
    pub state: Option<State>,
    /// Only those that it has asked for or may answer.
    pub seen_by: Option<AccountId>,
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(pub Uuid);

pub async fn list(
    db: &mut Read,
    query: &Query,
    after: Uuid,
    limit: i64,
    now: Timestamp,
) -> Result<Vec<Elevation>> {
    let state = query.state.map(State::name);
    let requester = query.requester.map(account_kind);
    let sql = match query {
        Query {
            seen_by: Some(account),
            ..
        } => sql!(
            above_now!(),
            "SELECT ",
            columns!(),
            " FROM elevations v
              WHERE (v.requester_id = $1 AND v.requester_kind = $2 OR EXISTS (
                    SELECT 1 FROM entitlement_approvers p
                    WHERE p.entitlement_id = v.entitlement_id
                        AND (p.principal_id = $1 AND p.principal_kind = $2
                            OR p.principal_kind = 'group'
                                AND p.principal_id IN (SELECT id FROM above))))
                AND (v.requester_id = $4 AND v.requester_kind = $5 OR $4 IS NULL)
                AND (v.entitlement_id = $6 OR $6 IS NULL)
                AND (CASE WHEN v.next_time > $3 OR v.next_time IS NULL THEN v.state
                    WHEN v.state = 'PENDING' THEN 'LAPSED' ELSE 'ENDED' END = $7 OR $7 IS NULL)
                AND v.id > $8
              ORDER BY v.id LIMIT $9"
        )
        .bind(*account)
        .bind(account_kind(*account))
        .bind(now)
        .bind(query.requester.map(AccountId::uuid))
        .bind(requester)
        .bind(query.entitlement)
        .bind(state),
        Query {
            requester: Some(account),
            ..
        } => sql!(
            "SELECT ",
            columns!(),
            " FROM elevations v
              WHERE ",
            in_state!(),
            " AND v.requester_id = $3 AND v.requester_kind = $4
                AND (v.entitlement_id = $5 OR $5 IS NULL) AND v.id > $6
              ORDER BY v.id LIMIT $7"
        )
        .bind(now)
        .bind(state)
        .bind(*account)
        .bind(requester)
        .bind(query.entitlement),
        Query {
            entitlement: Some(entitlement),
            ..
        } => sql!(
            "SELECT ",
            columns!(),
            " FROM elevations v WHERE ",
            in_state!(),
            " AND v.entitlement_id = $3 AND v.id > $4 ORDER BY v.id LIMIT $5"
        )
        .bind(now)
        .bind(state)
        .bind(*entitlement),
        _ => sql!(
            "SELECT ",
            columns!(),
            " FROM elevations v WHERE ",
            in_state!(),
            " AND v.id > $3 ORDER BY v.id LIMIT $4"
        )
        .bind(now)
        .bind(state),
    };
    db.page(sql.bind(after).bind(limit), elevation).await
}

/// What has come to its end and has not been written down.
pub async fn due(db: &mut Read, now: Timestamp, limit: i64) -> Result<Vec<ElevationId>> {
    let sql = sql!("SELECT id FROM elevations WHERE next_time <= $1 ORDER BY next_time LIMIT $2");
    db.page(sql.bind(now).bind(limit), |row| row.get("id"))
        .await
}

pub async fn insert(db: &mut Write, elevation: &Elevation) -> Result<()> {
    let sql = sql!(
        "INSERT INTO elevations (id, revision, entitlement_id, requester_id, requester_kind, role, state,
            justification, ticket, duration_s, create_time, next_time, decided_by, decide_reason,
            decide_time, grant_id, end_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
    )
    .bind(elevation.id)
    .bind(elevation.revision)
    .bind(elevation.entitlement)
    .bind(elevation.requester)
    .bind(account_kind(elevation.requester))
    .bind(elevation.role.as_str())
    .bind(elevation.stored.name())
    .bind(elevation.justification.as_str())
    .bind(elevation.ticket.as_str())
    .bind(elevation.duration_s)
    .bind(elevation.create_time)
    .bind(elevation.next_time)
    .bind(elevation.decided_by.as_str())
    .bind(elevation.decide_reason.as_str())
    .bind(elevation.decide_time)
    .bind(elevation.grant)
    .bind(elevation.end_time);
    db.execute(sql).await.map(drop)
}

pub async fn update(db: &mut Write, elevation: &Elevation) -> Result<()> {
    let sql = sql!(
        "UPDATE elevations SET revision = $2, state = $3, next_time = $4, decided_by = $5,
            decide_reason = $6, decide_time = $7, grant_id = $8, end_time = $9
         WHERE id = $1"
    )
    .bind(elevation.id)
    .bind(elevation.revision)
    .bind(elevation.stored.name())
    .bind(elevation.next_time)
    .bind(elevation.decided_by.as_str())
    .bind(elevation.decide_reason.as_str())
    .bind(elevation.decide_time)
    .bind(elevation.grant)
    .bind(elevation.end_time);
    db.execute(sql).await.map(drop)
}

/// Removes all that somebody has asked for.
pub async fn delete_all(db: &mut Write, requester: AccountId) -> Result<()> {
    let sql = sql!("DELETE FROM elevations WHERE requester_id = $1 AND requester_kind = $2")
        .bind(requester)
        .bind(account_kind(requester));
    db.execute(sql).await.map(drop)
}

/// Forgets what was over before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM elevations WHERE id IN (
            SELECT id FROM elevations WHERE end_time < $1 ORDER BY end_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

//! Calls that wait for a second person, or did.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::Result,
    sql::{Row, account_kind, sql},
};
use crate::domain::{
    change::{Change, State},
    error::{self, Error},
    name::{AccountId, ChangeId},
    time::Timestamp,
};

macro_rules! columns {
    () => {
        "c.id, c.revision, c.rpc, c.request, c.fingerprint, c.claims, c.address, c.state, c.create_time, \
         c.next_time, c.first_approver, c.first_claims, c.decided_by, c.decide_reason, c.end_time"
    };
}

/// In the state `$2` at the time `$1`, or in any.
macro_rules! in_state {
    () => {
        "(CASE WHEN c.next_time <= $1 THEN 'LAPSED' ELSE c.state END = $2 OR $2 IS NULL)"
    };
}

/// The one place that says how a row becomes a change.
fn change(row: &Row) -> Result<Change> {
    Ok(Change {
        id: row.get("id")?,
        revision: row.get("revision")?,
        rpc: row.get("rpc")?,
        request: row.get("request")?,
        fingerprint: row.get("fingerprint")?,
        claims: row.get_json("claims")?,
        address: row.get("address")?,
        stored: row.get_parsed("state", State::parse)?,
        create_time: row.get("create_time")?,
        next_time: row.get("next_time")?,
        first_approver: row.get("first_approver")?,
        first_claims: row.get_some_json("first_claims")?,
        decided_by: row.get("decided_by")?,
        decide_reason: row.get("decide_reason")?,
        end_time: row.get("end_time")?,
    })
}

pub async fn find(db: &mut Read, id: ChangeId) -> Result<Option<Change>> {
    let sql = sql!("SELECT ", columns!(), " FROM changes c WHERE c.id = $1").bind(id);
    db.optional(sql, change).await
}

/// What an account has asked for and still waits.
pub async fn list_open(
    db: &mut Read,
    proposer: AccountId,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Change>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM changes c
          WHERE c.proposer_id = $1 AND c.proposer_kind = $2 AND c.next_time > $3
          ORDER BY c.id LIMIT $4"
    )
    .bind(proposer)
    .bind(account_kind(proposer))
    .bind(now)
    .bind(limit);
    db.page(sql, change).await
}

/// Which changes to list, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub proposer: Option<AccountId>,
    pub state: Option<State>,
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
) -> Result<Vec<Change>> {
    let of_proposer = sql!(
        "SELECT ",
        columns!(),
        " FROM changes c
          WHERE ",
        in_state!(),
        " AND c.id > $3 AND c.proposer_id = $5 AND c.proposer_kind = $6
          ORDER BY c.id LIMIT $4"
    );
    let all = sql!(
        "SELECT ",
        columns!(),
        " FROM changes c WHERE ",
        in_state!(),
        " AND c.id > $3 ORDER BY c.id LIMIT $4"
    );
    let sql = match query.proposer {
        Some(_) => of_proposer,
        None => all,
    };
    let sql = sql.bind(now).bind(query.state.map(State::name));
    let sql = sql.bind(after).bind(limit);
    let sql = match query.proposer {
        Some(proposer) => sql.bind(proposer).bind(account_kind(proposer)),
        None => sql,
    };
    db.page(sql, change).await
}

/// What has lapsed and has not been written down.
pub async fn due(db: &mut Read, now: Timestamp, limit: i64) -> Result<Vec<ChangeId>> {
    let sql = sql!("SELECT id FROM changes WHERE next_time <= $1 ORDER BY next_time LIMIT $2");
    db.page(sql.bind(now).bind(limit), |row| row.get("id"))
        .await
}

pub async fn insert(db: &mut Write, change: &Change) -> Result<()> {
    let sql = sql!(
        "INSERT INTO changes (id, revision, rpc, request, fingerprint, claims, proposer_id, proposer_kind,
            address, state, create_time, next_time, first_approver, first_claims, decided_by, decide_reason,
            end_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
    )
    .bind(change.id)
    .bind(change.revision)
    .bind(change.rpc.as_str())
    .bind(change.request.clone())
    .bind(change.fingerprint.clone())
    .bind_json(&change.claims)
    .bind(change.proposer())
    .bind(account_kind(change.proposer()))
    .bind(change.address)
    .bind(change.stored.name())
    .bind(change.create_time)
    .bind(change.next_time)
    .bind(change.first_approver.as_str())
    .bind_some_json(change.first_claims.as_ref())
    .bind(change.decided_by.as_str())
    .bind(change.decide_reason.as_str())
    .bind(change.end_time);
    db.execute(sql).await.map(drop)
}

/// Stores a changed change, whose revision is one above the stored one.
pub async fn update(db: &mut Write, change: &Change) -> error::Result<()> {
    let sql = sql!(
        "UPDATE changes SET revision = $2, request = $3, fingerprint = $4, state = $5, next_time = $6,
            first_approver = $7, first_claims = $8, decided_by = $9, decide_reason = $10, end_time = $11
         WHERE id = $1 AND revision = $2 - 1"
    )
    .bind(change.id)
    .bind(change.revision)
    .bind(change.request.clone())
    .bind(change.fingerprint.clone())
    .bind(change.stored.name())
    .bind(change.next_time)
    .bind(change.first_approver.as_str())
    .bind_some_json(change.first_claims.as_ref())
    .bind(change.decided_by.as_str())
    .bind(change.decide_reason.as_str())
    .bind(change.end_time);
    if db.execute(sql).await? == 1 {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

/// Removes what somebody has asked for and nobody has answered.
pub async fn delete_open(db: &mut Write, proposer: AccountId) -> Result<()> {
    let sql =
        sql!("DELETE FROM changes WHERE proposer_id = $1 AND proposer_kind = $2 AND next_time > 0")
            .bind(proposer)
            .bind(account_kind(proposer));
    db.execute(sql).await.map(drop)
}

/// Forgets what was over before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM changes WHERE id IN (
            SELECT id FROM changes WHERE end_time < $1 ORDER BY end_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

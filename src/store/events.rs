//! The one log. An event is written in the transaction that makes the change it tells of.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::{Error, Result},
    sql::{Row, account, account_kind, sql},
};
use crate::domain::{
    error::Reason,
    event::{Actor, Event},
    name::{AccountId, EventId, first_uuid},
    time::Timestamp,
};

macro_rules! columns {
    () => {
        "id, time, kind, rpc, actor_kind, actor_id, actor_proof, target, account_kind, account_id, \
         refusal, changed_fields, details, request_id, address"
    };
}

/// The one place that says how a row becomes an event.
fn event(row: &Row) -> Result<Event> {
    let actor_id: Option<Uuid> = row.get("actor_id")?;
    let account_id: Option<Uuid> = row.get("account_id")?;
    let refusal: Option<String> = row.get("refusal")?;
    Ok(Event {
        id: row.get("id")?,
        time: row.get("time")?,
        kind: row.get("kind")?,
        rpc: row.get("rpc")?,
        actor: match actor_id {
            Some(id) => {
                row.get_parsed("actor_kind", |kind| account(kind, id).map(Actor::Account))?
            }
            None => row.get_parsed("actor_kind", |kind| match kind {
                "accountd" => Some(Actor::Accountd),
                "anonymous" => Some(Actor::Anonymous),
                _ => None,
            })?,
        },
        actor_proof: row.get("actor_proof")?,
        target: row.get("target")?,
        account: match account_id {
            Some(id) => Some(row.get_parsed("account_kind", |kind| account(kind, id))?),
            None => None,
        },
        refusal: match refusal {
            Some(name) => Some(
                Reason::parse(&name).ok_or_else(|| Error::broken(format!("refusal: `{name}`")))?,
            ),
            None => None,
        },
        changed_fields: row.get_json("changed_fields")?,
        details: row.get_json("details")?,
        request_id: row.get("request_id")?,
        address: row.get("address")?,
    })
}

pub async fn append(db: &mut Write, event: &Event) -> Result<()> {
    let (actor_kind, actor_id) = match event.actor {
        Actor::Account(id) => (account_kind(id), Some(id.uuid())),
        Actor::Anonymous => ("anonymous", None),
        Actor::Accountd => ("accountd", None),
    };
    let sql = sql!(
        "INSERT INTO events (id, time, kind, rpc, actor_kind, actor_id, actor_proof, target,
            account_kind, account_id, refusal, changed_fields, details, request_id, address)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
    )
    .bind(event.id)
    .bind(event.time)
    .bind(event.kind.as_str())
    .bind(event.rpc.as_str())
    .bind(actor_kind)
    .bind(actor_id)
    .bind(event.actor_proof.as_str())
    .bind(event.target.as_str())
    .bind(event.account.map(account_kind))
    .bind(event.account.map(AccountId::uuid))
    .bind(event.refusal.map(Reason::name))
    .bind_json(&event.changed_fields)
    .bind_json(&event.details)
    .bind(event.request_id)
    .bind(event.address);
    db.execute(sql).await.map(drop)
}

/// Which events to list, newest first.
#[derive(Clone, Debug)]
pub struct Query {
    pub kind: Option<String>,
    pub actor: Option<AccountId>,
    pub account: Option<AccountId>,
    /// First and last time.
    pub time: (Timestamp, Timestamp),
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(Uuid);

impl Cursor {
    pub const fn after(event: &Event) -> Self {
        Self(event.id.0)
    }
}

pub async fn list(
    db: &mut Read,
    query: &Query,
    after: Option<&Cursor>,
    limit: i64,
) -> Result<Vec<Event>> {
    let (first, last) = query.time;
    let kind = query.kind.as_deref();
    let actor = query.actor.map(AccountId::uuid);
    // The ids say the time to the millisecond, the column to the microsecond.
    let below = after.map_or_else(|| first_uuid(last.plus_s(1)), |cursor| cursor.0);
    let sql = match (query.account, actor, kind) {
        (Some(account), _, _) => sql!(
            "SELECT ",
            columns!(),
            " FROM events
              WHERE account_id = $1 AND (actor_id = $2 OR $2 IS NULL) AND (kind = $3 OR $3 IS NULL)
                AND id < $4 AND id >= $5 AND time >= $6 AND time <= $7
              ORDER BY id DESC LIMIT $8"
        )
        .bind(account)
        .bind(actor)
        .bind(kind),
        (None, Some(actor), _) => sql!(
            "SELECT ",
            columns!(),
            " FROM events
              WHERE actor_id = $1 AND (kind = $2 OR $2 IS NULL)
                AND id < $3 AND id >= $4 AND time >= $5 AND time <= $6
              ORDER BY id DESC LIMIT $7"
        )
        .bind(actor)
        .bind(kind),
        (None, None, Some(kind)) => sql!(
            "SELECT ",
            columns!(),
            " FROM events
              WHERE kind = $1 AND id < $2 AND id >= $3 AND time >= $4 AND time <= $5
              ORDER BY id DESC LIMIT $6"
        )
        .bind(kind),
        (None, None, None) => sql!(
            "SELECT ",
            columns!(),
            " FROM events
              WHERE id < $1 AND id >= $2 AND time >= $3 AND time <= $4
              ORDER BY id DESC LIMIT $5"
        ),
    };
    let sql = sql
        .bind(below)
        .bind(first_uuid(first))
        .bind(first)
        .bind(last)
        .bind(limit);
    db.page(sql, event).await
}

/// Forgets events from before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id < $1 ORDER BY id LIMIT $2)"
    );
    db.sweep(sql.bind(EventId(first_uuid(before))).bind(limit))
        .await
}

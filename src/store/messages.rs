//! Messages to people that wait to be sent, and what became of them.
//!
//! Whoever sends one first moves its next time ahead: if that process dies, the message comes up again.
//! The number of attempts tells the last to have taken it from those before.

use super::{
    db::{Read, Write},
    error::Result,
    sql::{account_kind, sql},
};
use crate::domain::{
    message::Kind,
    name::{AccountId, MessageId},
    time::Timestamp,
};

/// A message that is to be written.
#[derive(Debug)]
pub struct New<'a> {
    pub id: MessageId,
    pub kind: Kind,
    /// Whom it is about, where that is known.
    pub account: Option<AccountId>,
    /// Encrypted.
    pub body: &'a [u8],
    pub create_time: Timestamp,
    pub expire_time: Timestamp,
}

/// A message that was taken to be sent.
#[derive(Debug)]
pub struct Taken {
    pub id: MessageId,
    pub kind: Kind,
    pub body: Vec<u8>,
    /// This one included.
    pub attempts: i64,
    pub expire_time: Timestamp,
}

/// How a message has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Sent,
    /// Nobody could be sent this.
    Dead,
    /// There is nobody to send it to.
    Void,
    /// Its address has had too many.
    Dropped,
}

impl End {
    const fn name(self) -> &'static str {
        match self {
            Self::Sent => "SENT",
            Self::Dead => "DEAD",
            Self::Void => "VOID",
            Self::Dropped => "DROPPED",
        }
    }
}

pub async fn insert(db: &mut Write, message: &New<'_>) -> Result<()> {
    let sql = sql!(
        "INSERT INTO messages (id, state, kind, account_kind, account_id, body, attempts,
            next_time, create_time, expire_time)
         VALUES ($1, 'QUEUED', $2, $3, $4, $5, 0, $6, $6, $7)"
    )
    .bind(message.id)
    .bind(message.kind.name())
    .bind(message.account.map(account_kind))
    .bind(message.account.map(AccountId::uuid))
    .bind(message.body)
    .bind(message.create_time)
    .bind(message.expire_time);
    db.execute(sql).await.map(drop)
}

/// Takes up to `limit` messages whose time has come, until `until`: nobody else gets them before.
pub async fn take(
    db: &mut Write,
    now: Timestamp,
    until: Timestamp,
    limit: i64,
) -> Result<Vec<Taken>> {
    let sql = sql!(
        "UPDATE messages SET next_time = $2, attempts = attempts + 1
         WHERE state = 'QUEUED' AND next_time <= $1 AND id IN (
            SELECT id FROM messages WHERE state = 'QUEUED' AND next_time <= $1
            ORDER BY next_time LIMIT $3)
         RETURNING id, kind, body, attempts, expire_time"
    );
    db.all(sql.bind(now).bind(until).bind(limit), |row| {
        Ok(Taken {
            id: row.get("id")?,
            kind: row.get_parsed("kind", Kind::parse)?,
            body: row.get("body")?,
            attempts: row.get("attempts")?,
            expire_time: row.get("expire_time")?,
        })
    })
    .await
}

/// Replaces what a message says with what was found out about its recipient; whether it is still ours.
pub async fn resolve(
    db: &mut Write,
    taken: &Taken,
    account: AccountId,
    body: &[u8],
) -> Result<bool> {
    let sql = sql!(
        "UPDATE messages SET body = $3, account_kind = $4, account_id = $5
         WHERE id = $1 AND attempts = $2 AND state = 'QUEUED'"
    )
    .bind(taken.id)
    .bind(taken.attempts)
    .bind(body)
    .bind(account_kind(account))
    .bind(account);
    Ok(db.execute(sql).await? == 1)
}

/// Ends a message that was taken, with the error of the last try where there is no other. What it says is
/// kept only where it may be sent again.
pub async fn end(
    db: &mut Write,
    taken: &Taken,
    end: End,
    error: Option<&str>,
    now: Timestamp,
) -> Result<()> {
    let sql = sql!(
        "UPDATE messages SET state = $3, error = COALESCE($4, error), finish_time = $5,
            body = CASE WHEN $3 = 'DEAD' THEN body ELSE NULL END
         WHERE id = $1 AND attempts = $2 AND state = 'QUEUED'"
    )
    .bind(taken.id)
    .bind(taken.attempts)
    .bind(end.name())
    .bind(error)
    .bind(now);
    db.execute(sql).await.map(drop)
}

/// Puts a message back that could not be sent.
pub async fn retry(db: &mut Write, taken: &Taken, next_time: Timestamp, error: &str) -> Result<()> {
    let sql = sql!(
        "UPDATE messages SET next_time = $3, error = $4
         WHERE id = $1 AND attempts = $2 AND state = 'QUEUED'"
    );
    let sql = sql.bind(taken.id).bind(taken.attempts);
    db.execute(sql.bind(next_time).bind(error)).await.map(drop)
}

/// How many wait: those that somebody has asked for, or notices as well.
pub async fn count_queued(db: &mut Read, with_notices: bool) -> Result<i64> {
    let [first, second] = Kind::NOTICES.map(Kind::name);
    let sql = sql!(
        "SELECT COUNT(*) AS n FROM messages
         WHERE state = 'QUEUED' AND next_time > $1 AND ($2 OR kind NOT IN ($3, $4))"
    )
    // A time, so that the index of what waits serves it.
    .bind(Timestamp::EPOCH)
    .bind(with_notices)
    .bind(first)
    .bind(second);
    db.one(sql, |row| row.get("n")).await
}

/// A message that could not be sent, for operators.
#[derive(Debug)]
pub struct Dead {
    pub id: MessageId,
    pub kind: Kind,
    pub attempts: i64,
    pub create_time: Timestamp,
    pub error: String,
}

/// Messages that could not be sent, the last to have failed first.
pub async fn list_dead(db: &mut Read, limit: i64) -> Result<Vec<Dead>> {
    let sql = sql!(
        "SELECT id, kind, attempts, create_time, error FROM messages
         WHERE finish_time IS NOT NULL AND state = 'DEAD' ORDER BY finish_time DESC LIMIT $1"
    );
    db.page(sql.bind(limit), |row| {
        Ok(Dead {
            id: row.get("id")?,
            kind: row.get_parsed("kind", Kind::parse)?,
            attempts: row.get("attempts")?,
            create_time: row.get("create_time")?,
            error: row.get::<Option<String>>("error")?.unwrap_or_default(),
        })
    })
    .await
}

/// Has messages sent again that could not be: all of them, or one; those that are of no use any more stay
/// as they are. How many. They have been counted for their addresses.
pub async fn redrive(db: &mut Write, id: Option<MessageId>, now: Timestamp) -> Result<u64> {
    let sql = sql!(
        "UPDATE messages SET state = 'QUEUED', attempts = 1, next_time = $2, finish_time = NULL
         WHERE finish_time IS NOT NULL AND state = 'DEAD' AND expire_time > $2
            AND (id = $1 OR $1 IS NULL)"
    );
    db.execute(sql.bind(id).bind(now)).await
}

/// Removes the messages of an account that is gone.
pub(super) async fn delete_all(db: &mut Write, account: AccountId) -> Result<()> {
    let sql = sql!("DELETE FROM messages WHERE account_id = $1");
    db.execute(sql.bind(account)).await.map(drop)
}

/// Forgets messages that ended before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM messages WHERE id IN (
            SELECT id FROM messages WHERE finish_time < $1 ORDER BY finish_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

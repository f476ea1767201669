//! What contacts were before somebody changed them, for their owner to take that back.

use super::{
    db::{Read, Write},
    error::Result,
    sql::{Row, account_kind, sql},
};
use crate::domain::{
    contact::Snapshot,
    name::{AccountId, ContactId},
    secret::Digest,
    time::Timestamp,
};

/// A change that can be taken back.
#[derive(Clone, Debug)]
pub struct Change {
    pub account: AccountId,
    pub contact: ContactId,
    /// `None` where there was none.
    pub before: Option<Snapshot>,
    pub create_time: Timestamp,
    pub expire_time: Timestamp,
}

pub async fn insert(db: &mut Write, digest: &Digest, change: &Change) -> Result<()> {
    let sql = sql!(
        "INSERT INTO contact_changes (digest, account_id, contact_id, account_kind, before,
            create_time, expire_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7)"
    )
    .bind(&digest[..])
    .bind(change.account)
    .bind(change.contact)
    .bind(account_kind(change.account))
    .bind_some_json(change.before.as_ref())
    .bind(change.create_time)
    .bind(change.expire_time);
    db.execute(sql).await.map(drop)
}

/// The change that a token takes back, if it is still good.
pub async fn find(db: &mut Read, digest: &Digest, now: Timestamp) -> Result<Option<Change>> {
    let sql = sql!(
        "SELECT account_id, contact_id, account_kind, before, create_time, expire_time
         FROM contact_changes WHERE digest = $1 AND expire_time > $2"
    );
    db.optional(sql.bind(&digest[..]).bind(now), change).await
}

/// The one place that says how a row becomes a change.
fn change(row: &Row) -> Result<Change> {
    Ok(Change {
        account: row.get_account("account_kind", "account_id")?,
        contact: row.get("contact_id")?,
        before: row.get_some_json("before")?,
        create_time: row.get("create_time")?,
        expire_time: row.get("expire_time")?,
    })
}

/// All changes of an account that can be taken back.
pub async fn list(db: &mut Read, account: AccountId, now: Timestamp) -> Result<Vec<Change>> {
    let sql = sql!(
        "SELECT account_id, contact_id, account_kind, before, create_time, expire_time
         FROM contact_changes WHERE account_id = $1 AND account_kind = $2 AND expire_time > $3"
    );
    let sql = sql.bind(account).bind(account_kind(account)).bind(now);
    db.all(sql, change).await
}

/// Uses a token up: of all who come with it, one succeeds.
pub async fn redeem(db: &mut Write, digest: &Digest) -> Result<bool> {
    let sql = sql!("DELETE FROM contact_changes WHERE digest = $1");
    Ok(db.execute(sql.bind(&digest[..])).await? == 1)
}

/// A change whose token was used up, and all of its account that came after it, the last first; nobody
/// else takes them back.
pub async fn redeem_later(db: &mut Write, first: &Change) -> Result<Vec<Change>> {
    let sql = sql!(
        "DELETE FROM contact_changes
         WHERE account_id = $1 AND account_kind = $2 AND create_time > $3
         RETURNING account_id, contact_id, account_kind, before, create_time, expire_time"
    )
    .bind(first.account)
    .bind(account_kind(first.account))
    .bind(first.create_time);
    let mut later = db.all(sql, change).await?;
    later.sort_by_key(|change| std::cmp::Reverse(change.create_time));
    later.push(first.clone());
    Ok(later)
}

pub(super) async fn delete_all(db: &mut Write, account: AccountId) -> Result<()> {
    let sql = sql!("DELETE FROM contact_changes WHERE account_id = $1");
    db.execute(sql.bind(account)).await.map(drop)
}

/// Forgets changes that nobody can take back any more since `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM contact_changes WHERE digest IN (
            SELECT digest FROM contact_changes WHERE expire_time < $1 ORDER BY expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

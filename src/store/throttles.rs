//! Counters of failed attempts.

use super::{
    db::{Read, Write},
    error::{Error, Result},
    sql::{Row, sql},
};
use crate::domain::{throttle::Counter, time::Timestamp};

/// The counter of a key, locked until the transaction ends: whoever else wants it waits.
pub async fn lock(db: &mut Write, key: &[u8]) -> Result<Counter> {
    let sql = sql!(
        "INSERT INTO throttles (key, failures, last_time, next_time, forget_time)
         VALUES ($1, 0, 0, 0, 0)
         ON CONFLICT (key) DO UPDATE SET failures = throttles.failures
         RETURNING failures, last_time, next_time"
    );
    db.one(sql.bind(key), counter).await
}

/// The counter of a key as it is, for a first look.
pub async fn find(db: &mut Read, key: &[u8]) -> Result<Counter> {
    let sql = sql!("SELECT failures, last_time, next_time FROM throttles WHERE key = $1");
    let found = db.optional(sql.bind(key), counter).await?;
    Ok(found.unwrap_or(Counter::NONE))
}

fn counter(row: &Row) -> Result<Counter> {
    let failures: i64 = row.get("failures")?;
    Ok(Counter {
        failures: u32::try_from(failures).map_err(Error::broken)?,
        last_time: row.get("last_time")?,
        next_time: row.get("next_time")?,
    })
}

/// Sets a counter, which says nothing any more from `forget_time` on.
pub async fn update(
    db: &mut Write,
    key: &[u8],
    counter: Counter,
    forget_time: Timestamp,
) -> Result<()> {
    let sql = sql!(
        "UPDATE throttles SET failures = $2, last_time = $3, next_time = $4, forget_time = $5
         WHERE key = $1"
    )
    .bind(key)
    .bind(i64::from(counter.failures))
    .bind(counter.last_time)
    .bind(counter.next_time)
    .bind(forget_time);
    db.execute(sql).await.map(drop)
}

/// Forgets counters that say nothing any more since `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM throttles WHERE key IN (
            SELECT key FROM throttles WHERE forget_time < $1 ORDER BY forget_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

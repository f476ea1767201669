//! Work that one process does at a time.
//!
//! A lease is a row, taken by a conditional update and kept until its time is over, so it works on
//! every database; the epoch tells holders apart.

use uuid::Uuid;

use super::{db::Write, error::Result, sql::sql};
use crate::domain::time::Timestamp;

/// Takes the lease `name` until `until`, or keeps it if it is ours; the epoch if it is ours now.
pub async fn take(
    db: &mut Write,
    name: &str,
    holder: Uuid,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<i64>> {
    let holder = holder.to_string();
    let sql = sql!(
        "INSERT INTO leases (name, holder, epoch, expire_time) VALUES ($1, $2, 1, $3)
         ON CONFLICT (name) DO UPDATE SET
            epoch = CASE WHEN leases.holder = excluded.holder THEN leases.epoch
                ELSE leases.epoch + 1 END,
            holder = excluded.holder, expire_time = excluded.expire_time
         WHERE leases.holder = excluded.holder OR leases.expire_time <= $4
         RETURNING epoch"
    );
    db.optional(sql.bind(name).bind(holder).bind(until).bind(now), |row| {
        row.get("epoch")
    })
    .await
}

/// Lets the next one have it at once.
pub async fn release(db: &mut Write, name: &str, holder: Uuid) -> Result<()> {
    let sql = sql!("UPDATE leases SET expire_time = 0 WHERE name = $1 AND holder = $2");
    db.execute(sql.bind(name).bind(holder.to_string()))
        .await
        .map(drop)
}

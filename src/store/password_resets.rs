//! One-time codes with which people set a new password.

use super::{
    db::{Read, Write},
    error::Result,
    sql::sql,
};
use crate::domain::{name::UserId, secret::Digest, time::Timestamp};

pub async fn insert(
    db: &mut Write,
    digest: &Digest,
    user: UserId,
    now: Timestamp,
    expire_time: Timestamp,
) -> Result<()> {
    let sql = sql!(
        "INSERT INTO password_resets (digest, user_id, create_time, expire_time)
         VALUES ($1, $2, $3, $4)"
    )
    .bind(&digest[..])
    .bind(user)
    .bind(now)
    .bind(expire_time);
    db.execute(sql).await.map(drop)
}

/// Whose password a code that is still good sets.
pub async fn find(db: &mut Read, digest: &Digest, now: Timestamp) -> Result<Option<UserId>> {
    let sql = sql!("SELECT user_id FROM password_resets WHERE digest = $1 AND expire_time > $2");
    db.optional(sql.bind(&digest[..]).bind(now), |row| row.get("user_id"))
        .await
}

/// Uses a code up: of all who try, one succeeds.
pub async fn redeem(db: &mut Write, digest: &Digest, now: Timestamp) -> Result<Option<UserId>> {
    let sql = sql!(
        "DELETE FROM password_resets WHERE digest = $1 AND expire_time > $2 RETURNING user_id"
    );
    db.optional(sql.bind(&digest[..]).bind(now), |row| row.get("user_id"))
        .await
}

/// Voids all codes of a user.
pub async fn delete_all(db: &mut Write, user: UserId) -> Result<()> {
    let sql = sql!("DELETE FROM password_resets WHERE user_id = $1").bind(user);
    db.execute(sql).await.map(drop)
}

/// Forgets codes whose time was over before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM password_resets WHERE digest IN (
            SELECT digest FROM password_resets WHERE expire_time < $1 ORDER BY expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

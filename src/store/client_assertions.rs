//! Signed assertions of programs that were used.

use super::{db::Write, error::Result, sql::sql};
use crate::domain::{client_assertion::Assertion, name::SystemAccountId, time::Timestamp};

/// Uses an assertion up: of all who come with it, one succeeds.
pub async fn spend(
    db: &mut Write,
    account: SystemAccountId,
    assertion: &Assertion,
) -> Result<bool> {
    let sql = sql!(
        "INSERT INTO used_assertions (account_id, digest, forget_time) VALUES ($1, $2, $3)
         ON CONFLICT (account_id, digest) DO NOTHING"
    )
    .bind(account)
    .bind(&assertion.digest[..])
    .bind(assertion.forget_time);
    Ok(db.execute(sql).await? == 1)
}

/// Forgets those whose time was over before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM used_assertions WHERE (account_id, digest) IN (
            SELECT account_id, digest FROM used_assertions WHERE forget_time < $1
            ORDER BY forget_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

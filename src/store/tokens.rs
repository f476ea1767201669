//! Whether what stands behind an access token still stands.

use super::{
    credentials::retirement,
    db::{Read, Write},
    error::Result,
    sql::{Row, sql},
};
use crate::domain::{
    time::Timestamp,
    token::{AccountClaims, Claims, Standing},
};

/// The facts about a token's account and session or credential; `None` when one of them is gone.
pub async fn standing(db: &mut Read, claims: &Claims) -> Result<Option<Standing>> {
    match claims.account {
        AccountClaims::User { sid, .. } => {
            let sql = sql!(
                "SELECT u.state, u.state_reason, u.state_until_time, u.expire_time, u.delete_time,
                    u.purge_time, s.tokens_not_before, s.end_time IS NOT NULL AS ended,
                    EXISTS (SELECT 1 FROM revoked_tokens r WHERE r.jti = $3) AS revoked
                 FROM users u JOIN sessions s ON s.user_id = u.id
                 WHERE u.id = $1 AND s.id = $2"
            );
            let standing = |row: &Row| {
                Ok(Standing {
                    account: row.get_lifecycle()?,
                    revoked: row.get("revoked")? || row.get("ended")?,
                    proof_expire_time: None,
                    not_before: row.get("tokens_not_before")?,
                })
            };
            db.optional(sql.bind(claims.sub).bind(sid).bind(claims.jti), standing)
                .await
        }
        AccountClaims::SystemAccount { credential_id } => {
            let sql = sql!(
                "SELECT a.state, a.state_reason, a.state_until_time, a.expire_time, a.delete_time,
                    a.purge_time, a.tokens_not_before, a.kind = 'BREAK_GLASS' AS has_seal,
                    a.unsealed_until_time, c.expire_time AS credential_expire_time,
                    c.last_used_time AS credential_last_used_time, c.replaced_by, c.overlap_s,
                    c.retire_time,
                    EXISTS (SELECT 1 FROM revoked_tokens r WHERE r.jti = $3) AS revoked
                 FROM system_accounts a JOIN credentials c ON c.account_id = a.id
                 WHERE a.id = $1 AND c.id = $2 AND c.state <> 'REVOKED'"
            );
            let standing = |row: &Row| {
                let retired = match retirement(row)? {
                    Some(it) => Some(it.end_time(row.get("credential_last_used_time")?)),
                    None => None,
                };
                let expires = row.get("credential_expire_time")?;
                let opened = row.get::<Option<_>>("unsealed_until_time")?;
                // What is sealed was over long ago.
                let closes = if row.get("has_seal")? {
                    opened.or(Some(Timestamp::EPOCH))
                } else {
                    None
                };
                Ok(Standing {
                    account: row.get_lifecycle()?,
                    revoked: row.get("revoked")?,
                    proof_expire_time: [expires, retired, closes].into_iter().flatten().min(),
                    not_before: row.get("tokens_not_before")?,
                })
            };
            db.optional(
                sql.bind(claims.sub).bind(credential_id).bind(claims.jti),
                standing,
            )
            .await
        }
    }
}

/// Makes one access token worthless for the rest of its life.
pub async fn revoke(db: &mut Write, claims: &Claims) -> Result<()> {
    let sql = sql!(
        "INSERT INTO revoked_tokens (jti, expire_time) VALUES ($1, $2) ON CONFLICT (jti) DO NOTHING"
    );
    db.execute(
        sql.bind(claims.jti)
            .bind(Timestamp::from_seconds(claims.exp)),
    )
    .await
    .map(drop)
}

/// Forgets revocations of tokens that expired before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM revoked_tokens WHERE jti IN (
            SELECT jti FROM revoked_tokens WHERE expire_time < $1 ORDER BY expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

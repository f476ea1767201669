//! The keys that sign access tokens.

use serde::{Deserialize, Serialize};

use super::{
    db::{Read, Write},
    error::{Error as StoreError, OnDuplicate as _, Result},
    sql::{Row, sql},
};
use crate::domain::{
    error::{self, Error},
    signing_key::{Algorithm, SigningKey, State},
    time::Timestamp,
};

macro_rules! columns {
    () => {
        "kid, revision, algorithm, state, public_jwk, private_sealed, create_time, activate_time, \
         retire_time, revoke_time"
    };
}

/// The one place that says how a row becomes a signing key.
fn signing_key(row: &Row) -> Result<SigningKey> {
    let algorithm: String = row.get("algorithm")?;
    Ok(SigningKey {
        kid: row.get("kid")?,
        revision: row.get("revision")?,
        algorithm: Algorithm::parse(&algorithm).map_err(StoreError::broken)?,
        state: row.get_parsed("state", State::parse)?,
        public_jwk: row.get("public_jwk")?,
        private_sealed: row.get("private_sealed")?,
        create_time: row.get("create_time")?,
        activate_time: row.get("activate_time")?,
        retire_time: row.get("retire_time")?,
        revoke_time: row.get("revoke_time")?,
    })
}

pub async fn find(db: &mut Read, kid: &str) -> Result<Option<SigningKey>> {
    let sql = sql!("SELECT ", columns!(), " FROM signing_keys WHERE kid = $1").bind(kid);
    db.optional(sql, signing_key).await
}

pub async fn find_active(db: &mut Read) -> Result<Option<SigningKey>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM signing_keys WHERE state = 'ACTIVE'"
    );
    db.optional(sql, signing_key).await
}

/// Every key that may still matter to a token, newest first: all but those retired or revoked
/// before `since`.
pub async fn list_current(db: &mut Read, since: Timestamp) -> Result<Vec<SigningKey>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM signing_keys
          WHERE COALESCE(revoke_time, retire_time, $1) >= $1
          ORDER BY create_time DESC, kid DESC"
    );
    db.all(sql.bind(since), signing_key).await
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor {
    time: i64,
    kid: String,
}

impl Cursor {
    pub fn after(key: &SigningKey) -> Self {
        Self {
            time: key.create_time.micros(),
            kid: key.kid.clone(),
        }
    }
}

/// Newest first.
pub async fn list(
    db: &mut Read,
    state: Option<State>,
    after: Option<&Cursor>,
    limit: i64,
) -> Result<Vec<SigningKey>> {
    let (time, kid) = after.map_or((i64::MAX, ""), |cursor| (cursor.time, &cursor.kid));
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM signing_keys
          WHERE (create_time, kid) < ($1, $2) AND (state = $3 OR $3 IS NULL)
          ORDER BY create_time DESC, kid DESC LIMIT $4"
    );
    let sql = sql.bind(time).bind(kid).bind(state.map(State::name));
    db.page(sql.bind(limit), signing_key).await
}

/// There is one active key: of two that are made active at once, one has to give way.
pub async fn insert(db: &mut Write, key: &SigningKey) -> error::Result<()> {
    let sql = sql!(
        "INSERT INTO signing_keys (kid, revision, algorithm, state, public_jwk, private_sealed,
            create_time, activate_time, retire_time, revoke_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
    )
    .bind(key.kid.as_str())
    .bind(key.revision)
    .bind(key.algorithm.name())
    .bind(key.state.name())
    .bind(key.public_jwk.as_str())
    .bind(key.private_sealed.as_slice())
    .bind(key.create_time)
    .bind(key.activate_time)
    .bind(key.retire_time)
    .bind(key.revoke_time);
    db.execute(sql)
        .await
        .on_duplicate("signing_keys_state_key", || Error::Conflict)
        .map(drop)
}

/// Stores a changed key, whose revision is one above the stored one.
pub async fn update(db: &mut Write, key: &SigningKey) -> error::Result<()> {
    let sql = sql!(
        "UPDATE signing_keys SET revision = $2, state = $3, activate_time = $4, retire_time = $5,
            revoke_time = $6
         WHERE kid = $1 AND revision = $2 - 1"
    )
    .bind(key.kid.as_str())
    .bind(key.revision)
    .bind(key.state.name())
    .bind(key.activate_time)
    .bind(key.retire_time)
    .bind(key.revoke_time);
    let changed = db
        .execute(sql)
        .await
        .on_duplicate("signing_keys_state_key", || Error::Conflict)?;
    if changed == 1 {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

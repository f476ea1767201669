//! What answers to a challenge are checked with, and used up by.
//!
//! Invariant: whatever counts once is taken by one conditional statement, so that of all who come with
//! it at the same time one succeeds.

use super::{
    db::{Read, Write},
    error::{OnDuplicate as _, Result},
    sql::{Row, sql},
};
use crate::domain::{
    credential::{Credential, Kind, Parameters},
    error::{self, Error},
    name::{CredentialId, UserId},
    passkey::Passkey,
    secret::Digest,
    time::Timestamp,
};

/// An active factor of a person other than the password.
#[derive(Clone)]
pub struct Factor {
    pub id: CredentialId,
    pub kind: Kind,
    pub parameters: Option<Parameters>,
    /// A secret, encrypted, or a public key. Empty for recovery codes.
    pub material: Vec<u8>,
    /// Of a TOTP generator: the last step whose code was accepted.
    pub used_step: Option<i64>,
}

/// The passkeys among factors. One that cannot be read is said to be in the log, and is none.
pub fn passkeys(factors: &[Factor]) -> Vec<(&Factor, Passkey)> {
    let read = |factor: &'_ Factor| match serde_json::from_slice::<Passkey>(&factor.material) {
        Ok(passkey) => Some(passkey),
        Err(error) => {
            tracing::error!(%error, id = ?factor.id, "a stored passkey cannot be used");
            None
        }
    };
    factors
        .iter()
        .filter(|factor| factor.kind == Kind::Passkey)
        .filter_map(|factor| Some((factor, read(factor)?)))
        .collect()
}

fn factor(row: &Row) -> Result<Factor> {
    Ok(Factor {
        id: row.get("id")?,
        kind: row.get_parsed("kind", Kind::parse)?,
        parameters: row.get_some_json("parameters")?,
        material: row.get::<Option<Vec<u8>>>("material")?.unwrap_or_default(),
        used_step: row.get("used_step")?,
    })
}

/// All that a user has and has confirmed.
pub async fn list(db: &mut Read, user: UserId) -> Result<Vec<Factor>> {
    let sql = sql!(
        "SELECT id, kind, parameters, material, used_step FROM credentials
         WHERE account_id = $1 AND account_kind = 'user' AND state = 'ACTIVE'
            AND kind IN ('totp', 'passkey', 'recovery_codes')
         ORDER BY id"
    );
    db.all(sql.bind(user), factor).await
}

/// One of a user, confirmed or not.
pub async fn find(db: &mut Read, user: UserId, id: CredentialId) -> Result<Option<Factor>> {
    let sql = sql!(
        "SELECT id, kind, parameters, material, used_step FROM credentials
         WHERE account_id = $1 AND id = $2 AND account_kind = 'user'"
    );
    db.optional(sql.bind(user).bind(id), factor).await
}

/// Takes a step of a TOTP generator that is in use.
pub async fn use_step(
    db: &mut Write,
    user: UserId,
    id: CredentialId,
    step: i64,
    now: Timestamp,
) -> Result<bool> {
    let sql = sql!(
        "UPDATE credentials SET used_step = $3, last_used_time = $4
         WHERE account_id = $1 AND id = $2 AND kind = 'totp' AND state = 'ACTIVE'
            AND (used_step IS NULL OR used_step < $3)"
    )
    .bind(user)
    .bind(id)
    .bind(step)
    .bind(now);
    Ok(db.execute(sql).await? == 1)
}

/// Notes what an assertion has changed about a passkey, if nothing else has meanwhile.
pub async fn use_passkey(
    db: &mut Write,
    user: UserId,
    old: &Factor,
    material: &[u8],
    parameters: &Parameters,
    now: Timestamp,
) -> Result<bool> {
    let sql = sql!(
        "UPDATE credentials SET material = $4, parameters = $5, last_used_time = $6
         WHERE account_id = $1 AND id = $2 AND material = $3 AND state = 'ACTIVE'"
    )
    .bind(user)
    .bind(old.id)
    .bind(&old.material[..])
    .bind(material)
    .bind_json(parameters)
    .bind(now);
    Ok(db.execute(sql).await? == 1)
}

/// Which set a recovery code is of.
pub async fn find_recovery_code(
    db: &mut Read,
    user: UserId,
    digest: &Digest,
) -> Result<Option<CredentialId>> {
    let sql =
        sql!("SELECT credential_id FROM recovery_codes WHERE account_id = $1 AND digest = $2");
    db.optional(sql.bind(user).bind(&digest[..]), |row| {
        row.get("credential_id")
    })
    .await
}

/// Uses a recovery code up; how many are left then.
pub async fn use_recovery_code(
    db: &mut Write,
    user: UserId,
    digest: &Digest,
    now: Timestamp,
) -> Result<Option<i64>> {
    let sql = sql!(
        "DELETE FROM recovery_codes WHERE account_id = $1 AND digest = $2 RETURNING credential_id"
    );
    let taken: Option<CredentialId> = db
        .optional(sql.bind(user).bind(&digest[..]), |row| {
            row.get("credential_id")
        })
        .await?;
    let Some(id) = taken else {
        return Ok(None);
    };
    let sql = sql!(
        "UPDATE credentials SET codes_left = codes_left - 1, last_used_time = $3
         WHERE account_id = $1 AND id = $2 RETURNING codes_left"
    );
    db.optional(sql.bind(user).bind(id).bind(now), |row| {
        row.get("codes_left")
    })
    .await
}

/// Puts a set of recovery codes in the place of the one before.
pub async fn replace_recovery_codes(
    db: &mut Write,
    user: UserId,
    set: CredentialId,
    digests: &[Digest],
) -> Result<()> {
    delete_recovery_codes(db, user).await?;
    let row = |digest: &Digest| {
        sql!("INSERT INTO recovery_codes (account_id, digest, credential_id) VALUES ($1, $2, $3)")
            .bind(user)
            .bind(&digest[..])
            .bind(set)
    };
    db.insert_all(digests.iter().map(row).collect()).await
}

/// Removes the codes and the sets they are of.
pub async fn delete_recovery_codes(db: &mut Write, user: UserId) -> Result<()> {
    db.execute(sql!("DELETE FROM recovery_codes WHERE account_id = $1").bind(user))
        .await?;
    let sql = sql!("DELETE FROM credentials WHERE account_id = $1 AND kind = 'recovery_codes'");
    db.execute(sql.bind(user)).await.map(drop)
}

/// What the confirmation of an enrolment adds to a credential.
pub struct Confirmed<'a> {
    pub material: &'a [u8],
    pub used_step: Option<i64>,
    pub passkey_id: Option<&'a [u8]>,
}

/// Makes an enrolment a factor; `credential` is what it has become.
pub async fn confirm(
    db: &mut Write,
    credential: &Credential,
    confirmed: &Confirmed<'_>,
    now: Timestamp,
) -> error::Result<()> {
    let sql = sql!(
        "UPDATE credentials SET state = 'ACTIVE', expire_time = NULL, revision = $3,
            parameters = $4, material = $5, used_step = $6, passkey_id = $7, last_used_time = $8
         WHERE account_id = $1 AND id = $2 AND revision = $3 - 1 AND state = 'PENDING'"
    )
    .bind(credential.account)
    .bind(credential.id)
    .bind(credential.revision)
    .bind_some_json(credential.parameters.as_ref())
    .bind(confirmed.material)
    .bind(confirmed.used_step)
    .bind(confirmed.passkey_id.map(<[u8]>::to_vec))
    .bind(now);
    let exists = || Error::AlreadyExists {
        name: "this passkey".to_owned(),
    };
    let changed = db
        .execute(sql)
        .await
        .on_duplicate("credentials_passkey_id_key", exists)?;
    if changed == 1 {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

//! What proves who an account is.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::{OnDuplicate as _, Result},
    sql::{Row, Sql, account_kind, sql},
};
use crate::domain::{
    credential::{Credential, Kind, Retirement, State},
    error::{self, Error},
    name::{AccountId, CredentialId, UserId},
    password::PasswordHash,
    role,
    secret::Digest,
    time::Timestamp,
};

macro_rules! columns {
    () => {
        "c.account_id, c.id AS credential_id, c.account_kind, c.kind AS credential_kind, \
         c.revision AS credential_revision, c.label, c.hint, \
         c.scope_ceiling AS credential_scope_ceiling, \
         c.allowed_cidrs AS credential_allowed_cidrs, \
         c.create_time AS credential_create_time, c.change_time, \
         c.expire_time AS credential_expire_time, \
         c.last_used_time AS credential_last_used_time, c.state AS credential_state, \
         c.parameters, c.codes_left, c.replaced_by, c.overlap_s, c.retire_time, c.revoke_time, c.expiry_notice_d"
    };
}
pub(super) use columns as credential_columns;

/// The one place that says how a row becomes a credential. The names are such that it can stand in
/// one row with its account.
pub(super) fn credential(row: &Row) -> Result<Credential> {
    Ok(Credential {
        id: row.get("credential_id")?,
        account: row.get_account("account_kind", "account_id")?,
        kind: row.get_parsed("credential_kind", Kind::parse)?,
        revision: row.get("credential_revision")?,
        label: row.get("label")?,
        parameters: row.get_some_json("parameters")?,
        codes_left: row.get("codes_left")?,
        hint: row.get("hint")?,
        scope_ceiling: row.get_json("credential_scope_ceiling")?,
        allowed_cidrs: row.get_json("credential_allowed_cidrs")?,
        create_time: row.get("credential_create_time")?,
        change_time: row.get("change_time")?,
        expire_time: row.get("credential_expire_time")?,
        last_used_time: row.get("credential_last_used_time")?,
        state: row.get_parsed("credential_state", State::parse)?,
        retirement: retirement(row)?,
        revoke_time: row.get("revoke_time")?,
        expiry_notice_d: row.get("expiry_notice_d")?,
    })
}

/// What the columns say about how a replaced credential comes to its end.
pub(super) fn retirement(row: &Row) -> Result<Option<Retirement>> {
    let Some(replaced_by) = row.get("replaced_by")? else {
        return Ok(None);
    };
    Ok(Some(Retirement {
        replaced_by,
        overlap_s: row.get("overlap_s")?,
        retire_time: row.get("retire_time")?,
    }))
}

/// What is kept of a secret.
#[derive(Clone, Copy, Debug)]
pub enum Kept<'a> {
    Password(&'a PasswordHash),
    Digest(&'a Digest),
    /// What answers of a factor are checked with; recovery codes have rows of their own.
    Material(&'a [u8]),
}

pub async fn find(
    db: &mut Read,
    account: AccountId,
    id: CredentialId,
) -> Result<Option<Credential>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM credentials c WHERE c.account_id = $1 AND c.id = $2 AND c.account_kind = $3"
    );
    db.optional(
        sql.bind(account).bind(id).bind(account_kind(account)),
        credential,
    )
    .await
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(Uuid);

impl Cursor {
    pub const fn after(credential: &Credential) -> Self {
        Self(credential.id.0)
    }
}

/// Oldest first.
pub async fn list(
    db: &mut Read,
    account: AccountId,
    kind: Option<Kind>,
    after: Option<&Cursor>,
    limit: i64,
) -> Result<Vec<Credential>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM credentials c
          WHERE c.account_id = $1 AND c.id > $2 AND c.account_kind = $3
            AND (c.kind = $4 OR $4 IS NULL)
          ORDER BY c.id LIMIT $5"
    )
    .bind(account)
    .bind(after.map_or(Uuid::nil(), |cursor| cursor.0))
    .bind(account_kind(account))
    .bind(kind.map(Kind::name))
    .bind(limit);
    db.page(sql, credential).await
}

/// How many there are that are not revoked.
pub async fn count(db: &mut Read, account: AccountId, kind: Kind) -> Result<i64> {
    let sql = sql!(
        "SELECT COUNT(*) AS n FROM credentials
         WHERE account_id = $1 AND kind = $2 AND state <> 'REVOKED'"
    );
    db.one(sql.bind(account).bind(kind.name()), |row| row.get("n"))
        .await
}

pub async fn insert(db: &mut Write, credential: &Credential, kept: Kept<'_>) -> error::Result<()> {
    let exists = || Error::AlreadyExists {
        name: format!("password of {}", credential.account),
    };
    db.execute(row(credential, &kept))
        .await
        .on_duplicate("credentials_account_id_key", exists)
        .map(drop)
}

/// Inserts a credential for each of many new accounts.
pub async fn insert_all(db: &mut Write, credentials: &[(Credential, Kept<'_>)]) -> Result<()> {
    let rows = credentials
        .iter()
        .map(|(credential, kept)| row(credential, kept));
    db.insert_all(rows.collect()).await
}

fn row(credential: &Credential, kept: &Kept<'_>) -> Sql {
    let (hash, digest, material) = match *kept {
        Kept::Password(hash) => (Some(hash.as_str()), None, None),
        Kept::Digest(digest) => (None, Some(digest.to_vec()), None),
        Kept::Material(material) => (None, None, Some(material.to_vec())),
    };
    sql!(
        "INSERT INTO credentials (account_id, id, account_kind, kind, revision, label, hint,
            password_hash, secret_digest, scope_ceiling, allowed_cidrs, create_time, change_time,
            expire_time, last_used_time, state, parameters, material, codes_left)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19)"
    )
    .bind(credential.account)
    .bind(credential.id)
    .bind(account_kind(credential.account))
    .bind(credential.kind.name())
    .bind(credential.revision)
    .bind(credential.label.as_str())
    .bind(credential.hint.as_str())
    .bind(hash)
    .bind(digest)
    .bind_json(&credential.scope_ceiling)
    .bind_json(&credential.allowed_cidrs)
    .bind(credential.create_time)
    .bind(credential.change_time)
    .bind(credential.expire_time)
    .bind(credential.last_used_time)
    .bind(credential.state.name())
    .bind_some_json(credential.parameters.as_ref())
    .bind(material)
    .bind(credential.codes_left)
}

/// Stores what may change about a credential that is not its secret.
pub async fn update(db: &mut Write, credential: &Credential) -> error::Result<()> {
    let sql = sql!(
        "UPDATE credentials SET revision = $3, label = $4, scope_ceiling = $5, allowed_cidrs = $6,
            expire_time = $7, state = $8, replaced_by = $9, overlap_s = $10, retire_time = $11,
            revoke_time = $12, expiry_notice_d = $13
         WHERE account_id = $1 AND id = $2 AND revision = $3 - 1"
    )
    .bind(credential.account)
    .bind(credential.id)
    .bind(credential.revision)
    .bind(credential.label.as_str())
    .bind_json(&credential.scope_ceiling)
    .bind_json(&credential.allowed_cidrs)
    .bind(credential.expire_time)
    .bind(credential.state.name())
    .bind(
        credential
            .retirement
            .map(|retirement| retirement.replaced_by),
    )
    .bind(credential.retirement.map(|retirement| retirement.overlap_s))
    .bind(
        credential
            .retirement
            .map(|retirement| retirement.retire_time),
    )
    .bind(credential.revoke_time)
    .bind(credential.expiry_notice_d);
    if db.execute(sql).await? == 1 {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

/// Puts a new hash in the place of `old`, which another change may have taken away meanwhile.
pub async fn replace_password(
    db: &mut Write,
    user: UserId,
    old: &PasswordHash,
    new: &PasswordHash,
    change_time: Option<Timestamp>,
) -> Result<bool> {
    let sql = sql!(
        "UPDATE credentials SET password_hash = $3, revision = revision + 1,
            change_time = COALESCE($4, change_time)
         WHERE account_id = $1 AND kind = 'password' AND password_hash = $2"
    )
    .bind(user)
    .bind(old.as_str())
    .bind(new.as_str())
    .bind(change_time);
    Ok(db.execute(sql).await? == 1)
}

/// Notes that the password was right, if what it was compared with is still the stored hash. Locks
/// the credential: a change of password waits, and then finds the session that this leads to.
pub async fn proved(
    db: &mut Write,
    user: UserId,
    id: CredentialId,
    hash: &PasswordHash,
    now: Timestamp,
) -> Result<bool> {
    let sql = sql!(
        "UPDATE credentials SET last_used_time = $4
         WHERE account_id = $1 AND id = $2 AND password_hash = $3"
    )
    .bind(user)
    .bind(id)
    .bind(hash.as_str())
    .bind(now);
    Ok(db.execute(sql).await? == 1)
}

/// Whether a password alone does not let this user in.
pub async fn has_second_factor(db: &mut Read, user: UserId) -> Result<bool> {
    let sql = sql!(
        "SELECT EXISTS (
            SELECT 1 FROM credentials
            WHERE account_id = $1 AND kind IN ('totp', 'passkey') AND state = 'ACTIVE') AS has"
    );
    db.one(sql.bind(user), |row| row.get("has")).await
}

/// Notes that the credential proved its account, unless somebody has noted another use meanwhile.
pub async fn used(db: &mut Write, credential: &Credential, now: Timestamp) -> Result<bool> {
    let sql = sql!(
        "UPDATE credentials SET last_used_time = $3
         WHERE account_id = $1 AND id = $2 AND state <> 'REVOKED'
            AND COALESCE(last_used_time, 0) = $4"
    )
    .bind(credential.account)
    .bind(credential.id)
    .bind(now)
    .bind(credential.last_used_time.unwrap_or(Timestamp::EPOCH));
    Ok(db.execute(sql).await? == 1)
}

/// Whether there is another credential that lets an operator in; a key or a certificate that nobody has
/// used yet may lead nowhere.
pub async fn is_another_of_operators(
    db: &mut Read,
    account: AccountId,
    id: CredentialId,
    takes_certificates: bool,
    now: Timestamp,
) -> Result<bool> {
    let sql = sql!(
        "WITH RECURSIVE operators (id, kind) AS (
            SELECT g.principal_id, g.principal_kind FROM grants g
            WHERE g.role = $1 AND g.resource = '' AND (g.start_time IS NULL OR g.start_time <= $2)
                AND (g.expire_time IS NULL OR g.expire_time > $2)
            UNION
            SELECT m.member_id, m.member_kind FROM operators CROSS JOIN group_members m
            WHERE m.group_id = operators.id AND operators.kind = 'group'
                AND (m.start_time IS NULL OR m.start_time <= $2)
                AND (m.expire_time IS NULL OR m.expire_time > $2))
         SELECT c.id FROM operators
         CROSS JOIN credentials c
         LEFT JOIN users u ON u.id = c.account_id
         LEFT JOIN system_accounts a ON a.id = c.account_id
         WHERE c.account_id = operators.id AND c.account_kind = operators.kind
            AND c.kind NOT IN ('totp', 'recovery_codes')
            AND (c.kind NOT IN ('public_key', 'certificate') OR c.last_used_time IS NOT NULL)
            AND (c.kind <> 'certificate' OR $5)
            AND c.state = 'ACTIVE' AND (c.expire_time IS NULL OR c.expire_time > $2)
            AND NOT (c.account_id = $3 AND c.id = $4)
            AND COALESCE(u.state, a.state) = 'ACTIVE' AND COALESCE(a.kind, '') <> 'BREAK_GLASS'
            AND COALESCE(u.expire_time, a.expire_time, $2 + 1) > $2
         LIMIT 1"
    );
    let sql = sql.bind(role::OPERATOR).bind(now).bind(account).bind(id);
    let sql = sql.bind(takes_certificates);
    let other = db.optional(sql, |row| row.get::<CredentialId>("id"));
    Ok(other.await?.is_some())
}

/// Where a credential is.
fn place(row: &Row) -> Result<(AccountId, CredentialId)> {
    Ok((
        row.get_account("account_kind", "account_id")?,
        row.get("id")?,
    ))
}

/// Replaced credentials that have been left unused for as long as they had to be.
pub async fn due_to_retire(
    db: &mut Read,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<(AccountId, CredentialId)>> {
    let sql = sql!(
        "SELECT account_id, account_kind, id FROM credentials
         WHERE state = 'RETIRING' AND retire_time <= $1
            AND (last_used_time IS NULL OR overlap_s <= ($1 - last_used_time) / 1000000)
         ORDER BY retire_time LIMIT $2"
    );
    db.page(sql.bind(now).bind(limit), place).await
}

/// Credentials that expire before `by`, one of `within_d` days before which was not announced.
pub async fn due_for_notice(
    db: &mut Read,
    now: Timestamp,
    by: Timestamp,
    within_d: i64,
    limit: i64,
) -> Result<Vec<(AccountId, CredentialId)>> {
    let sql = sql!(
        "SELECT account_id, account_kind, id FROM credentials
         WHERE expire_time > $1 AND expire_time <= $2 AND state = 'ACTIVE'
            AND (expiry_notice_d IS NULL OR expiry_notice_d > $3)
         ORDER BY expire_time LIMIT $4"
    )
    .bind(now)
    .bind(by)
    .bind(within_d)
    .bind(limit);
    db.page(sql, place).await
}

/// Notes which announcement of its expiry was the last.
pub async fn announced(
    db: &mut Write,
    account: AccountId,
    id: CredentialId,
    days: i64,
) -> Result<()> {
    let sql = sql!("UPDATE credentials SET expiry_notice_d = $3 WHERE account_id = $1 AND id = $2");
    db.execute(sql.bind(account).bind(id).bind(days))
        .await
        .map(drop)
}

/// Forgets the revoked credentials of an account but for the `keep` newest of them.
pub async fn forget_all_but(db: &mut Write, account: AccountId, keep: i64) -> Result<()> {
    let sql = sql!(
        "DELETE FROM credentials
         WHERE account_id = $1 AND state = 'REVOKED' AND id NOT IN (
            SELECT id FROM credentials WHERE account_id = $1 AND state = 'REVOKED'
            ORDER BY id DESC LIMIT $2)"
    );
    db.execute(sql.bind(account).bind(keep)).await.map(drop)
}

/// Forgets credentials that were revoked before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM credentials WHERE (account_id, id) IN (
            SELECT account_id, id FROM credentials WHERE revoke_time < $1
            ORDER BY revoke_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

/// Forgets enrolments that nobody confirmed in time.
pub async fn forget_pending(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM credentials WHERE (account_id, id) IN (
            SELECT account_id, id FROM credentials
            WHERE expire_time < $1 AND state = 'PENDING' ORDER BY expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

pub async fn delete(db: &mut Write, account: AccountId, id: CredentialId) -> Result<bool> {
    let sql = sql!("DELETE FROM credentials WHERE account_id = $1 AND id = $2");
    Ok(db.execute(sql.bind(account).bind(id)).await? == 1)
}

pub async fn delete_all(db: &mut Write, account: AccountId) -> Result<()> {
    let sql = sql!("DELETE FROM credentials WHERE account_id = $1 AND account_kind = $2")
        .bind(account)
        .bind(account_kind(account));
    db.execute(sql).await.map(drop)
}

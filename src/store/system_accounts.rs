//! Programs.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    credentials::{credential, credential_columns},
    db::{Read, Write},
    error::{OnDuplicate as _, Result},
    sql::{Row, Sql, sql},
};
use crate::domain::{
    account::State,
    credential::{self, Credential},
    error::{self, Error},
    name::{SystemAccountId, UserId},
    seal::Seal,
    secret::Digest,
    system_account::{Kind, Limits, SystemAccount},
    time::Timestamp,
};

macro_rules! system_account_columns {
    () => {
        "a.id, a.revision, a.state, a.state_reason, a.state_until_time, a.expire_time, \
         a.delete_time, a.purge_time, a.kind, a.owner_id, a.display_name, a.description, \
         a.scope_ceiling, a.audiences, a.allowed_cidrs, a.tokens_not_before, a.create_time, \
         a.update_time, a.last_used_time, a.unseal_request, a.unsealed_until_time"
    };
}
pub(super) use system_account_columns;

/// The one place that says how a row becomes a system account.
pub(super) fn system_account(row: &Row) -> Result<SystemAccount> {
    Ok(SystemAccount {
        id: row.get("id")?,
        revision: row.get("revision")?,
        lifecycle: row.get_lifecycle()?,
        kind: row.get_parsed("kind", Kind::parse)?,
        owner: row.get("owner_id")?,
        display_name: row.get("display_name")?,
        description: row.get("description")?,
        limits: Limits {
            scope_ceiling: row.get_json("scope_ceiling")?,
            audiences: row.get_json("audiences")?,
            allowed_cidrs: row.get_json("allowed_cidrs")?,
        },
        seal: Seal {
            request: row.get_some_json("unseal_request")?,
            unsealed_until_time: row.get("unsealed_until_time")?,
        },
        tokens_not_before: row.get("tokens_not_before")?,
        create_time: row.get("create_time")?,
        update_time: row.get("update_time")?,
        last_used_time: row.get("last_used_time")?,
    })
}

pub async fn find(db: &mut Read, id: SystemAccountId) -> Result<Option<SystemAccount>> {
    let sql = sql!(
        "SELECT ",
        system_account_columns!(),
        " FROM system_accounts a WHERE a.id = $1"
    )
    .bind(id);
    db.optional(sql, system_account).await
}

/// The secret of this kind with this digest, and the account it belongs to, in one statement.
pub async fn find_by_secret(
    db: &mut Read,
    kind: credential::Kind,
    digest: &Digest,
) -> Result<Option<(SystemAccount, Credential)>> {
    let sql = sql!(
        "SELECT ",
        system_account_columns!(),
        ", ",
        credential_columns!(),
        " FROM credentials c JOIN system_accounts a ON a.id = c.account_id
          WHERE c.secret_digest = $1 AND c.kind = $2"
    );
    let both = |row: &Row| Ok((system_account(row)?, credential(row)?));
    db.optional(sql.bind(&digest[..]).bind(kind.name()), both)
        .await
}

/// An account with its credentials of a kind that are not revoked: one row each, none without any.
pub async fn list_with_credentials(
    db: &mut Read,
    id: SystemAccountId,
    kind: credential::Kind,
) -> Result<Vec<(SystemAccount, Credential)>> {
    let sql = sql!(
        "SELECT ",
        system_account_columns!(),
        ", ",
        credential_columns!(),
        " FROM credentials c JOIN system_accounts a ON a.id = c.account_id
          WHERE c.account_id = $1 AND c.kind = $2 AND c.state <> 'REVOKED'
          ORDER BY c.id"
    );
    let both = |row: &Row| Ok((system_account(row)?, credential(row)?));
    db.all(sql.bind(id).bind(kind.name()), both).await
}

/// An account that accountd made for itself.
pub async fn find_built_in(db: &mut Read, display_name: &str) -> Result<Option<SystemAccount>> {
    let sql = sql!(
        "SELECT ",
        system_account_columns!(),
        " FROM system_accounts a WHERE a.owner_id IS NULL AND a.display_name = $1
          ORDER BY a.create_time, a.id LIMIT 1"
    );
    db.optional(sql.bind(display_name), system_account).await
}

/// Which system accounts to list, oldest first.
#[derive(Clone, Debug)]
pub struct Query {
    pub state: Option<State>,
    pub show_deleted: bool,
    pub kind: Option<Kind>,
    pub owner: Option<UserId>,
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor {
    time: i64,
    id: Uuid,
}

impl Cursor {
    pub const fn after(account: &SystemAccount) -> Self {
        Self {
            time: account.create_time.micros(),
            id: account.id.0,
        }
    }
}

/// Where a page starts.
pub(super) fn begin(after: Option<&Cursor>) -> (i64, Uuid) {
    after.map_or((-1, Uuid::nil()), |cursor| (cursor.time, cursor.id))
}

pub async fn list(
    db: &mut Read,
    query: &Query,
    after: Option<&Cursor>,
    limit: i64,
) -> Result<Vec<SystemAccount>> {
    let (time, id) = begin(after);
    let sql = match query.owner {
        None => sql!(
            "SELECT ",
            system_account_columns!(),
            " FROM system_accounts a
              WHERE (a.create_time, a.id) > ($1, $2)
                AND (a.state = $3 OR $3 IS NULL) AND ($4 OR a.state <> 'DELETED')
                AND (a.kind = $5 OR $5 IS NULL)
              ORDER BY a.create_time, a.id LIMIT $6"
        ),
        Some(owner) => sql!(
            "SELECT ",
            system_account_columns!(),
            " FROM system_accounts a
              WHERE a.owner_id = $1 AND (a.create_time, a.id) > ($2, $3)
                AND (a.state = $4 OR $4 IS NULL) AND ($5 OR a.state <> 'DELETED')
                AND (a.kind = $6 OR $6 IS NULL)
              ORDER BY a.create_time, a.id LIMIT $7"
        )
        .bind(owner),
    };
    let state = query.state.map(State::name);
    let sql = sql
        .bind(time)
        .bind(id)
        .bind(state)
        .bind(query.show_deleted || state.is_some())
        .bind(query.kind.map(Kind::name))
        .bind(limit);
    db.page(sql, system_account).await
}

pub async fn insert(db: &mut Write, account: &SystemAccount) -> error::Result<()> {
    let (state, limits) = (&account.lifecycle, &account.limits);
    let sql = sql!(
        "INSERT INTO system_accounts (id, revision, state, state_reason, state_until_time,
            expire_time, delete_time, purge_time, kind, owner_id, display_name, description,
            scope_ceiling, audiences, allowed_cidrs, tokens_not_before, create_time, update_time,
            last_used_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19)"
    )
    .bind(account.id)
    .bind(account.revision)
    .bind(state.state.name())
    .bind(state.reason.as_str())
    .bind(state.until_time)
    .bind(state.expire_time)
    .bind(state.delete_time)
    .bind(state.purge_time)
    .bind(account.kind.name())
    .bind(account.owner)
    .bind(account.display_name.as_str())
    .bind(account.description.as_str())
    .bind_json(&limits.scope_ceiling)
    .bind_json(&limits.audiences)
    .bind_json(&limits.allowed_cidrs)
    .bind(account.tokens_not_before)
    .bind(account.create_time)
    .bind(account.update_time)
    .bind(account.last_used_time);
    let exists = || Error::AlreadyExists {
        name: account.id.to_string(),
    };
    // One id names one account of either kind: it is the `sub` of tokens.
    let other = sql!("SELECT EXISTS (SELECT 1 FROM users WHERE id = $1) AS taken");
    if db
        .one(other.bind(account.id), |row| row.get("taken"))
        .await?
    {
        return Err(exists());
    }
    db.execute(sql)
        .await
        .on_duplicate("system_accounts_id_key", exists)
        .map(drop)
}

/// Stores a changed account, whose revision is one above the stored one.
pub async fn update(db: &mut Write, account: &SystemAccount) -> error::Result<()> {
    let (state, limits) = (&account.lifecycle, &account.limits);
    let sql = sql!(
        "UPDATE system_accounts SET revision = $2, state = $3, state_reason = $4,
            state_until_time = $5, expire_time = $6, delete_time = $7, purge_time = $8,
            owner_id = $9, display_name = $10, description = $11, scope_ceiling = $12,
            audiences = $13, allowed_cidrs = $14, tokens_not_before = $15, update_time = $16,
            unseal_request = $17, unsealed_until_time = $18
         WHERE id = $1 AND revision = $2 - 1"
    )
    .bind(account.id)
    .bind(account.revision)
    .bind(state.state.name())
    .bind(state.reason.as_str())
    .bind(state.until_time)
    .bind(state.expire_time)
    .bind(state.delete_time)
    .bind(state.purge_time)
    .bind(account.owner)
    .bind(account.display_name.as_str())
    .bind(account.description.as_str())
    .bind_json(&limits.scope_ceiling)
    .bind_json(&limits.audiences)
    .bind_json(&limits.allowed_cidrs)
    .bind(account.tokens_not_before)
    .bind(account.update_time)
    .bind_some_json(account.seal.request.as_ref())
    .bind(account.seal.unsealed_until_time);
    if db.execute(sql).await? == 1 {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

/// Notes that the account got a token.
pub async fn used(db: &mut Write, id: SystemAccountId, now: Timestamp) -> Result<()> {
    let sql = sql!("UPDATE system_accounts SET last_used_time = $2 WHERE id = $1")
        .bind(id)
        .bind(now);
    db.execute(sql).await.map(drop)
}

pub async fn due_for_purge(
    db: &mut Read,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<SystemAccountId>> {
    let sql =
        sql!("SELECT id FROM system_accounts WHERE purge_time <= $1 ORDER BY purge_time LIMIT $2");
    ids(db, sql.bind(now).bind(limit)).await
}

/// Accounts whose suspension is over.
pub async fn due_for_resume(
    db: &mut Read,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<SystemAccountId>> {
    let sql = sql!(
        "SELECT id FROM system_accounts WHERE state = 'SUSPENDED' AND state_until_time <= $1 LIMIT $2"
    );
    ids(db, sql.bind(now).bind(limit)).await
}

/// Accounts whose seal has closed by itself.
pub async fn due_to_reseal(
    db: &mut Read,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<SystemAccountId>> {
    let sql = sql!(
        "SELECT id FROM system_accounts WHERE unsealed_until_time <= $1
         ORDER BY unsealed_until_time LIMIT $2"
    );
    ids(db, sql.bind(now).bind(limit)).await
}

/// Active accounts whose owner was deleted before `before`, or had expired by then.
pub async fn due_to_suspend(
    db: &mut Read,
    before: Timestamp,
    limit: i64,
) -> Result<Vec<SystemAccountId>> {
    let deleted = sql!(
        "SELECT id FROM system_accounts
         WHERE owner_id IN (SELECT id FROM users WHERE delete_time <= $1) AND state = 'ACTIVE' LIMIT $2"
    );
    let expired = sql!(
        "SELECT id FROM system_accounts
         WHERE owner_id IN (SELECT id FROM users WHERE expire_time <= $1) AND state = 'ACTIVE' LIMIT $2"
    );
    let mut due = ids(db, deleted.bind(before).bind(limit)).await?;
    due.extend(ids(db, expired.bind(before).bind(limit)).await?);
    Ok(due)
}

async fn ids(db: &mut Read, sql: Sql) -> Result<Vec<SystemAccountId>> {
    db.page(sql, |row| row.get("id")).await
}

/// Removes an account and everything that belongs to it but events. Still deleted and still due, or
/// nothing happens.
pub async fn purge(db: &mut Write, id: SystemAccountId, now: Timestamp) -> Result<bool> {
    let sql = sql!("DELETE FROM system_accounts WHERE id = $1 AND purge_time <= $2");
    if db.execute(sql.bind(id).bind(now)).await? == 0 {
        return Ok(false);
    }
    super::credentials::delete_all(db, id.into()).await?;
    super::contacts::delete_all(db, id.into()).await?;
    super::messages::delete_all(db, id.into()).await?;
    super::grants::delete_all(db, id.into()).await?;
    super::groups::leave_all(db, id.into()).await?;
    super::entitlements::delete_all(db, id.into()).await?;
    super::elevations::delete_all(db, id.into()).await?;
    super::changes::delete_open(db, id.into()).await?;
    Ok(true)
}

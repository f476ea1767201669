//! Codes and links that prove contacts; of each contact the last ones.

use super::{
    db::{Read, Write},
    error::Result,
    sql::sql,
};
use crate::domain::{
    challenge::MAX_ANSWERS,
    name::{AccountId, ContactId},
    time::Timestamp,
};

/// What is kept of a code, and of the link beside it.
#[derive(Clone, Debug)]
pub struct Code {
    pub digest: Vec<u8>,
    pub expire_time: Timestamp,
    pub link: Option<Vec<u8>>,
    pub link_expire_time: Timestamp,
    /// Whether the code was given to a caller, who was to bring it.
    pub is_returned: bool,
}

/// Puts a code in the place of the one before.
pub async fn replace(
    db: &mut Write,
    account: AccountId,
    contact: ContactId,
    code: &Code,
) -> Result<()> {
    let sql = sql!(
        "INSERT INTO contact_codes (account_id, contact_id, code_digest, link_digest, returned,
            answers, expire_time, link_expire_time)
         VALUES ($1, $2, $3, $4, $5, 0, $6, $7)
         ON CONFLICT (account_id, contact_id) DO UPDATE SET
            code_digest = excluded.code_digest, link_digest = excluded.link_digest,
            returned = excluded.returned, answers = 0, expire_time = excluded.expire_time,
            link_expire_time = excluded.link_expire_time"
    )
    .bind(account)
    .bind(contact)
    .bind(code.digest.as_slice())
    .bind(code.link.clone())
    .bind(code.is_returned)
    .bind(code.expire_time)
    .bind(code.link_expire_time);
    db.execute(sql).await.map(drop)
}

/// The code of a contact, whether or not it is still good.
pub async fn find(db: &mut Read, account: AccountId, contact: ContactId) -> Result<Option<Code>> {
    let sql = sql!(
        "SELECT code_digest, link_digest, returned, expire_time, link_expire_time
         FROM contact_codes WHERE account_id = $1 AND contact_id = $2"
    );
    db.optional(sql.bind(account).bind(contact), |row| {
        Ok(Code {
            digest: row.get("code_digest")?,
            link: row.get("link_digest")?,
            is_returned: row.get("returned")?,
            expire_time: row.get("expire_time")?,
            link_expire_time: row.get("link_expire_time")?,
        })
    })
    .await
}

/// Counts one more answer, before it is looked at; whether there was one left.
pub async fn count_answer(
    db: &mut Write,
    account: AccountId,
    contact: ContactId,
    now: Timestamp,
) -> Result<bool> {
    let sql = sql!(
        "UPDATE contact_codes SET answers = answers + 1
         WHERE account_id = $1 AND contact_id = $2 AND expire_time > $3 AND answers < $4"
    );
    let sql = sql.bind(account).bind(contact).bind(now).bind(MAX_ANSWERS);
    Ok(db.execute(sql).await? == 1)
}

/// Uses a code up, with its link: of all who come with either, one succeeds.
pub async fn redeem(
    db: &mut Write,
    account: AccountId,
    contact: ContactId,
    code: &Code,
) -> Result<bool> {
    let sql = sql!(
        "DELETE FROM contact_codes WHERE account_id = $1 AND contact_id = $2 AND code_digest = $3"
    );
    let sql = sql.bind(account).bind(contact).bind(code.digest.as_slice());
    Ok(db.execute(sql).await? == 1)
}

/// Voids the code of a contact.
pub async fn delete(db: &mut Write, account: AccountId, contact: ContactId) -> Result<()> {
    let sql = sql!("DELETE FROM contact_codes WHERE account_id = $1 AND contact_id = $2");
    db.execute(sql.bind(account).bind(contact)).await.map(drop)
}

pub(super) async fn delete_all(db: &mut Write, account: AccountId) -> Result<()> {
    let sql = sql!("DELETE FROM contact_codes WHERE account_id = $1");
    db.execute(sql.bind(account)).await.map(drop)
}

/// Forgets codes whose time, and that of their links, was over before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM contact_codes WHERE (account_id, contact_id) IN (
            SELECT account_id, contact_id FROM contact_codes WHERE link_expire_time < $1
            ORDER BY link_expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

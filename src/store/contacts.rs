//! Where accounts can be reached.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::{Error as StoreError, OnDuplicate as _, Result},
    sql::{Row, account_kind, sql},
};
use crate::domain::{
    contact::{Contact, Kind, MAX_CONTACTS, Method, Proof, Value},
    error::{self, Error},
    name::{AccountId, ContactId, UserId},
};

macro_rules! columns {
    () => {
        "c.account_id, c.id, c.account_kind, c.kind, c.revision, c.value, c.label, c.is_primary, \
         c.purposes, c.proof_method, c.proof_time, c.proof_by, c.pending_value, c.create_time, \
         c.update_time"
    };
}

/// The one place that says how a row becomes a contact.
fn contact(row: &Row) -> Result<Contact> {
    let kind = row.get_parsed("kind", Kind::parse)?;
    let value = |text: String| {
        Value::from_stored(kind, text).ok_or_else(|| StoreError::broken("a contact's value"))
    };
    let text: String = row.get("value")?;
    let pending: Option<String> = row.get("pending_value")?;
    let method: Option<String> = row.get("proof_method")?;
    let proof = match method {
        None => None,
        Some(_) => Some(Proof {
            method: row.get_parsed("proof_method", Method::parse)?,
            time: row.get("proof_time")?,
            by: row.get("proof_by")?,
        }),
    };
    Ok(Contact {
        id: row.get("id")?,
        account: row.get_account("account_kind", "account_id")?,
        revision: row.get("revision")?,
        value: value(text)?,
        label: row.get("label")?,
        is_primary: row.get("is_primary")?,
        purposes: row.get_json("purposes")?,
        proof,
        pending: pending.map(value).transpose()?,
        create_time: row.get("create_time")?,
        update_time: row.get("update_time")?,
    })
}

pub async fn find(db: &mut Read, account: AccountId, id: ContactId) -> Result<Option<Contact>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM contacts c WHERE c.account_id = $1 AND c.id = $2 AND c.account_kind = $3"
    );
    db.optional(
        sql.bind(account).bind(id).bind(account_kind(account)),
        contact,
    )
    .await
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(Uuid);

impl Cursor {
    pub const fn after(contact: &Contact) -> Self {
        Self(contact.id.0)
    }
}

/// Oldest first.
pub async fn list(
    db: &mut Read,
    account: AccountId,
    kind: Option<Kind>,
    after: Option<&Cursor>,
    limit: i64,
) -> Result<Vec<Contact>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM contacts c
          WHERE c.account_id = $1 AND c.id > $2 AND c.account_kind = $3
            AND (c.kind = $4 OR $4 IS NULL)
          ORDER BY c.id LIMIT $5"
    )
    .bind(account)
    .bind(after.map_or(Uuid::nil(), |cursor| cursor.0))
    .bind(account_kind(account))
    .bind(kind.map(Kind::name))
    .bind(limit);
    db.page(sql, contact).await
}

/// All contacts of an account, oldest first: taking changes back may leave more than one may add.
pub async fn list_all(db: &mut Read, account: AccountId) -> Result<Vec<Contact>> {
    list(db, account, None, None, 2 * MAX_CONTACTS).await
}

pub async fn count(db: &mut Read, account: AccountId) -> Result<i64> {
    let sql = sql!("SELECT COUNT(*) AS n FROM contacts WHERE account_id = $1");
    db.one(sql.bind(account), |row| row.get("n")).await
}

pub async fn insert(db: &mut Write, contact: &Contact) -> error::Result<()> {
    let proof = contact.proof.as_ref();
    let sql = sql!(
        "INSERT INTO contacts (account_id, id, account_kind, kind, revision, value, value_key,
            label, is_primary, purposes, proof_method, proof_time, proof_by, pending_value,
            create_time, update_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
    )
    .bind(contact.account)
    .bind(contact.id)
    .bind(account_kind(contact.account))
    .bind(contact.kind().name())
    .bind(contact.revision)
    .bind(contact.value.text())
    .bind(contact.value.identifier().map(|it| it.key))
    .bind(contact.label.as_str())
    .bind(contact.is_primary)
    .bind_json(&contact.purposes)
    .bind(proof.map(|proof| proof.method.name()))
    .bind(proof.map(|proof| proof.time))
    .bind(proof.map(|proof| proof.by.as_str()))
    .bind(contact.pending.as_ref().map(Value::text))
    .bind(contact.create_time)
    .bind(contact.update_time);
    stored(contact, db.execute(sql).await).map(drop)
}

/// What the unique keys have to say about a contact.
fn stored(contact: &Contact, outcome: Result<u64>) -> error::Result<u64> {
    let taken = || Error::AlreadyExists {
        name: format!("{} of {}", contact.kind().name(), contact.account),
    };
    match outcome {
        // Another one has come first meanwhile.
        Err(StoreError::Duplicate(key)) if key == "contacts_account_id_kind_key" => {
            Err(Error::Conflict)
        }
        outcome => outcome.on_duplicate("contacts_account_id_kind_value_key_key", taken),
    }
}

/// Stores a changed contact, whose revision is one above the stored one.
pub async fn update(db: &mut Write, contact: &Contact) -> error::Result<()> {
    let proof = contact.proof.as_ref();
    let sql = sql!(
        "UPDATE contacts SET revision = $3, value = $4, value_key = $5, label = $6,
            is_primary = $7, purposes = $8, proof_method = $9, proof_time = $10, proof_by = $11,
            pending_value = $12, update_time = $13
         WHERE account_id = $1 AND id = $2 AND revision = $3 - 1"
    )
    .bind(contact.account)
    .bind(contact.id)
    .bind(contact.revision)
    .bind(contact.value.text())
    .bind(contact.value.identifier().map(|it| it.key))
    .bind(contact.label.as_str())
    .bind(contact.is_primary)
    .bind_json(&contact.purposes)
    .bind(proof.map(|proof| proof.method.name()))
    .bind(proof.map(|proof| proof.time))
    .bind(proof.map(|proof| proof.by.as_str()))
    .bind(contact.pending.as_ref().map(Value::text))
    .bind(contact.update_time);
    if stored(contact, db.execute(sql).await)? == 1 {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

pub async fn delete(db: &mut Write, account: AccountId, id: ContactId) -> Result<()> {
    let sql = sql!("DELETE FROM contacts WHERE account_id = $1 AND id = $2");
    db.execute(sql.bind(account).bind(id)).await.map(drop)
}

/// Writes down with a person which contacts come first.
pub async fn note_primaries(db: &mut Write, user: UserId) -> Result<()> {
    let sql = sql!(
        "UPDATE users SET
            primary_email = (SELECT c.value FROM contacts c
                WHERE c.account_id = $1 AND c.kind = 'email' AND c.is_primary),
            primary_phone = (SELECT c.value FROM contacts c
                WHERE c.account_id = $1 AND c.kind = 'phone' AND c.is_primary)
         WHERE id = $1"
    );
    db.execute(sql.bind(user)).await.map(drop)
}

/// Removes all contacts of an account that is gone.
pub async fn delete_all(db: &mut Write, account: AccountId) -> Result<()> {
    super::contact_codes::delete_all(db, account).await?;
    super::contact_changes::delete_all(db, account).await?;
    let sql = sql!("DELETE FROM contacts WHERE account_id = $1");
    db.execute(sql.bind(account)).await.map(drop)
}

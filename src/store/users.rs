//! People, and the identifiers by which they are found.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::{Error as StoreError, OnDuplicate as _, Result},
    identifiers,
    sql::{Row, Sql, sql},
    user_names,
};
use crate::domain::{
    account::{Lifecycle, State},
    contact,
    error::{self, Error},
    identifier::{Identifier, Kind},
    name::{CredentialId, UserId},
    password::PasswordHash,
    time::Timestamp,
    user::{NameKind, Profile, User},
    username::Username,
};

macro_rules! user_columns {
    () => {
        "u.username, u.username_key, u.id, u.revision, u.state, u.state_reason, \
         u.state_until_time, u.expire_time, u.delete_time, u.purge_time, u.display_name, \
         u.given_name, u.family_name, u.language_code, u.time_zone, u.external_ids, u.attributes, \
         u.admin_attributes, u.create_time, u.update_time, u.last_sign_in_time, u.primary_email, \
         u.primary_phone"
    };
}
pub(super) use user_columns;

/// The one place that says how a row becomes a user.
pub(super) fn user(row: &Row) -> Result<User> {
    let username: Option<String> = row.get("username")?;
    let key: Option<String> = row.get("username_key")?;
    Ok(User {
        id: row.get("id")?,
        revision: row.get("revision")?,
        lifecycle: row.get_lifecycle()?,
        profile: Profile {
            username: username
                .zip(key)
                .map(|(text, key)| Username::from_stored(text, key)),
            display_name: row.get("display_name")?,
            given_name: row.get("given_name")?,
            family_name: row.get("family_name")?,
            language_code: row.get("language_code")?,
            time_zone: row.get("time_zone")?,
            external_ids: row.get_json("external_ids")?,
            attributes: row.get("attributes")?,
            admin_attributes: row.get("admin_attributes")?,
        },
        create_time: row.get("create_time")?,
        update_time: row.get("update_time")?,
        last_sign_in_time: row.get("last_sign_in_time")?,
        primary_email: row.get("primary_email")?,
        primary_phone: row.get("primary_phone")?,
    })
}

pub async fn find(db: &mut Read, id: UserId) -> Result<Option<User>> {
    let sql = sql!("SELECT ", user_columns!(), " FROM users u WHERE u.id = $1").bind(id);
    db.optional(sql, user).await
}

/// The user, or NOT_FOUND.
pub async fn get(db: &mut Read, id: UserId) -> error::Result<User> {
    find(db, id)
        .await?
        .ok_or_else(|| Error::not_found(id.to_string()))
}

/// How many users one statement finds.
pub const FIND_ALL: usize = 20;

/// Those of up to [`FIND_ALL`] users that exist, in no order.
pub async fn find_all(db: &mut Read, ids: &[UserId]) -> Result<Vec<User>> {
    let sql = sql!(
        "SELECT ",
        user_columns!(),
        " FROM users u WHERE u.id IN ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
         $15, $16, $17, $18, $19, $20)"
    );
    db.all(bind_all(sql, ids), user).await
}

/// Binds up to [`FIND_ALL`] ids, and one of them again in the places that are left.
pub(super) fn bind_all(sql: Sql, ids: &[UserId]) -> Sql {
    let padding = ids.last().copied().unwrap_or(UserId(Uuid::nil()));
    let ids = ids.iter().copied().chain(std::iter::repeat(padding));
    ids.take(FIND_ALL).fold(sql, Sql::bind)
}

pub async fn find_by_identifier(db: &mut Read, identifier: &Identifier) -> Result<Option<User>> {
    let sql = sql!(
        "SELECT ",
        user_columns!(),
        " FROM login_identifiers i JOIN users u ON u.id = i.user_id
          WHERE i.kind = $1 AND i.value_key = $2"
    );
    let sql = sql
        .bind(identifier.kind.name())
        .bind(identifier.key.as_str());
    db.optional(sql, user).await
}

/// What checking a password needs to know.
#[derive(Clone, Debug)]
pub struct PasswordOwner {
    pub id: UserId,
    pub lifecycle: Lifecycle,
    /// The password, if the user has one.
    pub password: Option<(CredentialId, PasswordHash)>,
    /// Whether the password alone does not let the user in.
    pub has_second_factor: bool,
}

macro_rules! owner_columns {
    () => {
        "u.id, u.state, u.state_until_time, u.expire_time, c.id AS credential_id, c.password_hash, \
         EXISTS (SELECT 1 FROM credentials f WHERE f.account_id = u.id AND f.kind IN ('totp', 'passkey') \
            AND f.state = 'ACTIVE') AS has_second_factor"
    };
}

/// The statements that find an owner always yield one row, empty for nobody, so that finding nobody
/// takes no less time.
fn password_owner(row: &Row) -> Result<Option<PasswordOwner>> {
    let id: Option<UserId> = row.get("id")?;
    let state: Option<String> = row.get("state")?;
    let until_time = row.get("state_until_time")?;
    let expire_time = row.get("expire_time")?;
    let credential: Option<CredentialId> = row.get("credential_id")?;
    let hash: Option<String> = row.get("password_hash")?;
    let Some((id, state)) = id.zip(state) else {
        return Ok(None);
    };
    Ok(Some(PasswordOwner {
        id,
        lifecycle: Lifecycle {
            state: State::parse(&state).ok_or_else(|| StoreError::broken(state))?,
            until_time,
            expire_time,
            ..Lifecycle::default()
        },
        password: credential.zip(hash.map(PasswordHash::from_stored)),
        has_second_factor: row.get("has_second_factor")?,
    }))
}

/// By what was typed; of what cannot be anybody's, as much is asked as of all else.
pub async fn find_for_sign_in(
    db: &mut Read,
    identifier: Option<&Identifier>,
) -> Result<Option<PasswordOwner>> {
    let sql = sql!(
        "SELECT ",
        owner_columns!(),
        " FROM (SELECT 1) AS always
         LEFT JOIN login_identifiers i ON i.kind = $1 AND i.value_key = $2
         LEFT JOIN users u ON u.id = i.user_id
         LEFT JOIN credentials c ON c.account_id = u.id AND c.kind = 'password'"
    );
    let kind = identifier.map_or(Kind::Username, |identifier| identifier.kind);
    let key = identifier.map_or("", |identifier| &identifier.key);
    db.one(sql.bind(kind.name()).bind(key), password_owner)
        .await
}

pub async fn find_with_password(db: &mut Read, id: UserId) -> Result<Option<PasswordOwner>> {
    let sql = sql!(
        "SELECT ",
        owner_columns!(),
        " FROM (SELECT 1) AS always
         LEFT JOIN users u ON u.id = $1
         LEFT JOIN credentials c ON c.account_id = u.id AND c.kind = 'password'"
    );
    db.one(sql.bind(id), password_owner).await
}

/// Which users to list.
#[derive(Clone, Debug)]
pub struct Query {
    pub order: Order,
    pub state: Option<State>,
    /// Whether deleted users are listed although no state is asked for.
    pub show_deleted: bool,
    /// First and last `create_time`.
    pub created: (Timestamp, Timestamp),
    /// First and last key of what the order is by: a username, a name.
    pub keys: (String, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    CreateTime,
    CreateTimeDescending,
    Username,
    Name(NameKind),
    /// Those who have one address or number, proven or not: the first key.
    Contact(contact::Kind),
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor {
    time: i64,
    key: String,
    id: Uuid,
}

impl Cursor {
    pub fn after(user: &User, order: Order) -> Self {
        let username = user.profile.username.as_ref();
        Self {
            time: user.create_time.micros(),
            key: match order {
                Order::Name(kind) => user.profile.name_key(kind),
                Order::Username => username.map_or("", Username::key).to_owned(),
                Order::Contact(_) | Order::CreateTime | Order::CreateTimeDescending => {
                    String::new()
                }
            },
            id: user.id.0,
        }
    }
}

pub async fn list(
    db: &mut Read,
    query: &Query,
    after: Option<&Cursor>,
    limit: i64,
) -> Result<Vec<User>> {
    let (first, last) = query.created;
    let state = query.state.map(State::name);
    let sql = match (query.order, state) {
        (Order::Username, _) => {
            // One bound below, so that both engines begin where the page begins. The sums
            // keep PostgreSQL from reading all users by their times, which it would rather do when it plans
            // for any values.
            let (username, id) = begin(query, after);
            sql!(
                "SELECT ",
                user_columns!(),
                " FROM users u
                  WHERE (u.username_key, u.id) > ($1, $2) AND u.username_key <= $3
                    AND u.create_time + 0 >= $4 AND u.create_time + 0 <= $5
                    AND (u.state = $6 OR $6 IS NULL) AND ($7 OR u.state <> 'DELETED')
                  ORDER BY u.username_key, u.id LIMIT $8"
            )
            .bind(username)
            .bind(id)
            .bind(query.keys.1.as_str())
            .bind(query.created.0)
            .bind(last)
            .bind(state)
            .bind(query.show_deleted || state.is_some())
        }
        (Order::Name(kind), _) => by_name(query, kind, after),
        (Order::Contact(kind), _) => by_contact(query, kind, after),
        (Order::CreateTime, None) => {
            let (time, id) = ascending(after, first);
            sql!(
                "SELECT ",
                user_columns!(),
                " FROM users u
                  WHERE (u.create_time, u.id) > ($1, $2) AND u.create_time <= $3
                    AND ($4 OR u.state <> 'DELETED')
                  ORDER BY u.create_time, u.id LIMIT $5"
            )
            .bind(time)
            .bind(id)
            .bind(last)
            .bind(query.show_deleted)
        }
        (Order::CreateTime, Some(state)) => {
            let (time, id) = ascending(after, first);
            sql!(
                "SELECT ",
                user_columns!(),
                " FROM users u
                  WHERE u.state = $1 AND (u.create_time, u.id) > ($2, $3) AND u.create_time <= $4
                  ORDER BY u.create_time, u.id LIMIT $5"
            )
            .bind(state)
            .bind(time)
            .bind(id)
            .bind(last)
        }
        (Order::CreateTimeDescending, None) => {
            let (time, id) = descending(after, last);
            sql!(
                "SELECT ",
                user_columns!(),
                " FROM users u
                  WHERE (u.create_time, u.id) < ($1, $2) AND u.create_time >= $3
                    AND ($4 OR u.state <> 'DELETED')
                  ORDER BY u.create_time DESC, u.id DESC LIMIT $5"
            )
            .bind(time)
            .bind(id)
            .bind(first)
            .bind(query.show_deleted)
        }
        (Order::CreateTimeDescending, Some(state)) => {
            let (time, id) = descending(after, last);
            sql!(
                "SELECT ",
                user_columns!(),
                " FROM users u
                  WHERE u.state = $1 AND (u.create_time, u.id) < ($2, $3) AND u.create_time >= $4
                  ORDER BY u.create_time DESC, u.id DESC LIMIT $5"
            )
            .bind(state)
            .bind(time)
            .bind(id)
            .bind(first)
        }
    };
    db.page(sql.bind(limit), user).await
}

fn by_name(query: &Query, kind: NameKind, after: Option<&Cursor>) -> Sql {
    let (key, id) = begin(query, after);
    let state = query.state.map(State::name);
    sql!(
        "SELECT ",
        user_columns!(),
        " FROM user_names n JOIN users u ON u.id = n.user_id
          WHERE n.kind = $1 AND (n.name_key, n.user_id) > ($2, $3) AND n.name_key <= $4
            AND u.create_time + 0 >= $5 AND u.create_time + 0 <= $6
            AND (u.state = $7 OR $7 IS NULL) AND ($8 OR u.state <> 'DELETED')
          ORDER BY n.name_key, n.user_id LIMIT $9"
    )
    .bind(kind.name())
    .bind(key)
    .bind(id)
    .bind(query.keys.1.as_str())
    .bind(query.created.0)
    .bind(query.created.1)
    .bind(state)
    .bind(query.show_deleted || state.is_some())
}

fn by_contact(query: &Query, kind: contact::Kind, after: Option<&Cursor>) -> Sql {
    let state = query.state.map(State::name);
    sql!(
        "SELECT ",
        user_columns!(),
        " FROM contacts c JOIN users u ON u.id = c.account_id
          WHERE c.kind = $1 AND c.value_key = $2 AND c.account_id > $3
            AND u.create_time + 0 >= $4 AND u.create_time + 0 <= $5
            AND (u.state = $6 OR $6 IS NULL) AND ($7 OR u.state <> 'DELETED')
          ORDER BY c.account_id LIMIT $8"
    )
    .bind(kind.name())
    .bind(query.keys.0.as_str())
    .bind(last_id(after))
    .bind(query.created.0)
    .bind(query.created.1)
    .bind(state)
    .bind(query.show_deleted || state.is_some())
}

/// Where a page of keys starts. No id is nil.
pub(super) fn begin<'a>(query: &'a Query, after: Option<&'a Cursor>) -> (&'a str, Uuid) {
    let first = (query.keys.0.as_str(), Uuid::nil());
    let after = after.map(|cursor| (cursor.key.as_str(), cursor.id));
    after.map_or(first, |after| after.max(first))
}

/// Where a page by ids starts.
pub(super) fn last_id(after: Option<&Cursor>) -> Uuid {
    after.map_or(Uuid::nil(), |cursor| cursor.id)
}

/// Where an ascending page starts: after the last row, or just before the first time.
pub(super) fn ascending(after: Option<&Cursor>, first: Timestamp) -> (i64, Uuid) {
    after.map_or((first.micros() - 1, Uuid::max()), |cursor| {
        (cursor.time, cursor.id)
    })
}

pub(super) fn descending(after: Option<&Cursor>, last: Timestamp) -> (i64, Uuid) {
    after.map_or((last.micros() + 1, Uuid::nil()), |cursor| {
        (cursor.time, cursor.id)
    })
}

/// Refuses an id that a system account has: one id names one account of either kind, since it is the
/// `sub` of tokens. New ids of ours are nobody's.
pub async fn require_free(db: &mut Read, id: UserId) -> error::Result<()> {
    let other = sql!("SELECT EXISTS (SELECT 1 FROM system_accounts WHERE id = $1) AS taken");
    if db.one(other.bind(id), |row| row.get("taken")).await? {
        return Err(exists(id));
    }
    Ok(())
}

fn exists(id: UserId) -> Error {
    Error::AlreadyExists {
        name: id.to_string(),
    }
}

/// Inserts the user and its identifiers.
pub async fn insert(db: &mut Write, user: &User) -> error::Result<()> {
    db.execute(row(user))
        .await
        .on_duplicate("users_id_key", || exists(user.id))?;
    for identifier in user.profile.identifiers() {
        identifiers::claim(db, user.id, &identifier, user.create_time).await?;
    }
    Ok(user_names::insert(db, user).await?)
}

/// Inserts many users and their identifiers, which are nobody's yet; their ids are new ones of ours.
pub async fn insert_all(db: &mut Write, users: &[User]) -> Result<()> {
    db.insert_all(users.iter().map(row).collect()).await?;
    let rows = users.iter().flat_map(|user| {
        let identifiers = user.profile.identifiers().into_iter();
        identifiers.map(|identifier| identifiers::row(user.id, &identifier))
    });
    db.insert_all(rows.collect()).await?;
    db.insert_all(users.iter().flat_map(user_names::rows).collect())
        .await
}

/// Users from before there were looks of usernames and names to search by, from an id on.
pub async fn list_from(db: &mut Read, after: UserId, limit: i64) -> Result<Vec<User>> {
    let sql = sql!(
        "SELECT ",
        user_columns!(),
        " FROM users u WHERE u.id > $1 ORDER BY u.id LIMIT $2"
    );
    db.page(sql.bind(after).bind(limit), user).await
}

fn row(user: &User) -> Sql {
    let (state, profile) = (&user.lifecycle, &user.profile);
    sql!(
        "INSERT INTO users (id, revision, state, state_reason, state_until_time, expire_time,
            delete_time, purge_time, username, username_key, display_name, given_name, family_name,
            language_code, time_zone, external_ids, attributes, admin_attributes, create_time,
            update_time, last_sign_in_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19, $20, $21)"
    )
    .bind(user.id)
    .bind(user.revision)
    .bind(state.state.name())
    .bind(state.reason.as_str())
    .bind(state.until_time)
    .bind(state.expire_time)
    .bind(state.delete_time)
    .bind(state.purge_time)
    .bind(profile.username.as_ref().map(Username::as_str))
    .bind(profile.username.as_ref().map(Username::key))
    .bind(profile.display_name.as_str())
    .bind(profile.given_name.as_str())
    .bind(profile.family_name.as_str())
    .bind(profile.language_code.as_str())
    .bind(profile.time_zone.as_str())
    .bind_json(&profile.external_ids)
    .bind(profile.attributes.as_str())
    .bind(profile.admin_attributes.as_str())
    .bind(user.create_time)
    .bind(user.update_time)
    .bind(user.last_sign_in_time)
}

/// Stores a changed user, whose revision is one above the stored one.
pub async fn update(db: &mut Write, user: &User) -> error::Result<()> {
    let (state, profile) = (&user.lifecycle, &user.profile);
    let sql = sql!(
        "UPDATE users SET revision = $2, state = $3, state_reason = $4, state_until_time = $5,
            expire_time = $6, delete_time = $7, purge_time = $8, username = $9, username_key = $10,
            display_name = $11, given_name = $12, family_name = $13, language_code = $14,
            time_zone = $15, external_ids = $16, attributes = $17, admin_attributes = $18,
            update_time = $19
         WHERE id = $1 AND revision = $2 - 1"
    )
    .bind(user.id)
    .bind(user.revision)
    .bind(state.state.name())
    .bind(state.reason.as_str())
    .bind(state.until_time)
    .bind(state.expire_time)
    .bind(state.delete_time)
    .bind(state.purge_time)
    .bind(profile.username.as_ref().map(Username::as_str))
    .bind(profile.username.as_ref().map(Username::key))
    .bind(profile.display_name.as_str())
    .bind(profile.given_name.as_str())
    .bind(profile.family_name.as_str())
    .bind(profile.language_code.as_str())
    .bind(profile.time_zone.as_str())
    .bind_json(&profile.external_ids)
    .bind(profile.attributes.as_str())
    .bind(profile.admin_attributes.as_str())
    .bind(user.update_time);
    if db.execute(sql).await? == 1 {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

/// Notes a sign-in, if the user may still act. Locks the user: a suspension waits, and then finds
/// the session that this leads to.
pub async fn signed_in(db: &mut Write, id: UserId, now: Timestamp) -> Result<bool> {
    let sql = sql!(
        "UPDATE users SET last_sign_in_time = $2
         WHERE id = $1 AND (expire_time IS NULL OR expire_time > $2)
            AND (state = 'ACTIVE' OR (state = 'SUSPENDED' AND state_until_time <= $2))"
    );
    Ok(db.execute(sql.bind(id).bind(now)).await? == 1)
}

/// Voids what was begun for a user and not finished: codes for a new password, and challenges.
pub async fn void_begun(db: &mut Write, id: UserId) -> Result<()> {
    super::password_resets::delete_all(db, id).await?;
    super::challenges::delete_all(db, id).await
}

/// Users whose time to be removed has come. Who still owns system accounts has to wait, so that
/// somebody answers for those.
pub async fn due_for_purge(db: &mut Read, now: Timestamp, limit: i64) -> Result<Vec<UserId>> {
    let sql = sql!(
        "SELECT id FROM users
         WHERE purge_time <= $1
            AND NOT EXISTS (SELECT 1 FROM system_accounts a WHERE a.owner_id = users.id)
         ORDER BY purge_time LIMIT $2"
    );
    db.page(sql.bind(now).bind(limit), |row| row.get("id"))
        .await
}

pub async fn has_any(db: &mut Read) -> Result<bool> {
    let sql = sql!("SELECT id FROM users WHERE id > $1 LIMIT 1").bind(Uuid::nil());
    let first = db.optional(sql, |row| row.get::<UserId>("id")).await?;
    Ok(first.is_some())
}

/// Users whose suspension is over.
pub async fn due_for_resume(db: &mut Read, now: Timestamp, limit: i64) -> Result<Vec<UserId>> {
    let sql =
        sql!("SELECT id FROM users WHERE state = 'SUSPENDED' AND state_until_time <= $1 LIMIT $2");
    db.page(sql.bind(now).bind(limit), |row| row.get("id"))
        .await
}

/// Removes a user and everything that belongs to it but events; what it was found by is nobody's until
/// `until`. Still deleted and still due, or nothing happens.
pub async fn purge(db: &mut Write, id: UserId, now: Timestamp, until: Timestamp) -> Result<bool> {
    let sql = sql!(
        "SELECT id FROM users
         WHERE id = $1 AND purge_time <= $2
            AND NOT EXISTS (SELECT 1 FROM system_accounts a WHERE a.owner_id = users.id)"
    );
    let due = db.optional(sql.bind(id).bind(now), |row| row.get::<UserId>("id"));
    if due.await?.is_none() {
        return Ok(false);
    }
    identifiers::give_up_all(db, id, until).await?;
    db.execute(sql!("DELETE FROM users WHERE id = $1").bind(id))
        .await?;
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

//! Sign-ins of people.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::{Error, Result},
    sql::{Row, sql},
};
use crate::domain::{
    account::Lifecycle,
    assurance::{Assurance, Shown},
    error,
    name::{CredentialId, SessionId, UserId},
    session::{Device, EndReason, Family, Session},
    time::Timestamp,
};

macro_rules! columns {
    () => {
        "s.user_id, s.id, s.revision, s.device_name, s.user_agent, s.address, s.client_id, \
         s.credential_id, s.acr, s.amr, s.auth_time, s.create_time, s.last_used_time, \
         s.idle_expire_time, s.expire_time AS session_expire_time, s.end_time, s.end_reason, \
         s.tokens_not_before, s.seed, s.generation, s.rotate_time"
    };
}

/// Stands for none: the column was made when every sign-in began with one.
const NO_CREDENTIAL: CredentialId = CredentialId(Uuid::nil());

/// The one place that says how a row becomes a session.
fn session(row: &Row) -> Result<Session> {
    let ended: Option<Timestamp> = row.get("end_time")?;
    let ended = match ended {
        None => None,
        Some(time) => Some((time, row.get_parsed("end_reason", EndReason::parse)?)),
    };
    let seed: Vec<u8> = row.get("seed")?;
    let generation: i64 = row.get("generation")?;
    Ok(Session {
        id: row.get("id")?,
        user: row.get("user_id")?,
        revision: row.get("revision")?,
        device: Device {
            display_name: row.get("device_name")?,
            user_agent: row.get("user_agent")?,
            address: row.get("address")?,
        },
        client: row.get("client_id")?,
        credential: Some(row.get("credential_id")?).filter(|id| *id != NO_CREDENTIAL),
        shown: Shown {
            acr: row.get_parsed("acr", Assurance::parse)?,
            amr: row.get_json("amr")?,
        },
        auth_time: row.get("auth_time")?,
        create_time: row.get("create_time")?,
        last_used_time: row.get("last_used_time")?,
        idle_expire_time: row.get("idle_expire_time")?,
        expire_time: row.get("session_expire_time")?,
        ended,
        tokens_not_before: row.get("tokens_not_before")?,
        family: Family {
            seed: seed
                .try_into()
                .map_err(|_| Error::broken("seed: not 32 bytes"))?,
            generation: u32::try_from(generation).map_err(Error::broken)?,
            rotate_time: row.get("rotate_time")?,
        },
    })
}

pub async fn find(db: &mut Read, user: UserId, id: SessionId) -> Result<Option<Session>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        " FROM sessions s WHERE s.user_id = $1 AND s.id = $2"
    );
    db.optional(sql.bind(user).bind(id), session).await
}

/// A session together with the state of its user, in one statement.
pub async fn find_with_user(
    db: &mut Read,
    user: UserId,
    id: SessionId,
) -> Result<Option<(Session, Lifecycle)>> {
    let sql = sql!(
        "SELECT ",
        columns!(),
        ", u.state, u.state_reason, u.state_until_time, u.expire_time, u.delete_time, u.purge_time
          FROM sessions s JOIN users u ON u.id = s.user_id
          WHERE s.user_id = $1 AND s.id = $2"
    );
    let both = |row: &Row| Ok((session(row)?, row.get_lifecycle()?));
    db.optional(sql.bind(user).bind(id), both).await
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(Uuid);

impl Cursor {
    pub const fn after(session: &Session) -> Self {
        Self(session.id.0)
    }
}

/// Which of a user's sessions to list.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    pub user: UserId,
    /// Only those that began with this credential.
    pub credential: Option<CredentialId>,
    /// Whether those that are over are listed, too.
    pub show_ended: bool,
}

/// Newest first.
pub async fn list(
    db: &mut Read,
    query: &Query,
    now: Timestamp,
    after: Option<&Cursor>,
    limit: i64,
) -> Result<Vec<Session>> {
    let sql = if query.show_ended {
        sql!(
            "SELECT ",
            columns!(),
            " FROM sessions s
              WHERE s.user_id = $1 AND s.id < $2 AND (s.credential_id = $3 OR $3 IS NULL)
              ORDER BY s.id DESC LIMIT $4"
        )
    } else {
        sql!(
            "SELECT ",
            columns!(),
            " FROM sessions s
              WHERE s.user_id = $1 AND s.id < $2 AND (s.credential_id = $3 OR $3 IS NULL)
                AND s.end_time IS NULL AND s.idle_expire_time > $5 AND s.expire_time > $5
              ORDER BY s.id DESC LIMIT $4"
        )
    };
    let sql = sql
        .bind(query.user)
        .bind(after.map_or(Uuid::max(), |cursor| cursor.0))
        .bind(query.credential)
        .bind(limit);
    let sql = if query.show_ended { sql } else { sql.bind(now) };
    db.page(sql, session).await
}

pub async fn insert(db: &mut Write, session: &Session) -> Result<()> {
    let sql = sql!(
        "INSERT INTO sessions (user_id, id, revision, device_name, user_agent, address, client_id,
            credential_id, acr, amr, auth_time, create_time, last_used_time, idle_expire_time,
            expire_time, seed, generation, rotate_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
    )
    .bind(session.user)
    .bind(session.id)
    .bind(session.revision)
    .bind(session.device.display_name.as_str())
    .bind(session.device.user_agent.as_str())
    .bind(session.device.address)
    .bind(session.client)
    .bind(session.credential.unwrap_or(NO_CREDENTIAL))
    .bind(session.shown.acr.name())
    .bind_json(&session.shown.amr)
    .bind(session.auth_time)
    .bind(session.create_time)
    .bind(session.last_used_time)
    .bind(session.idle_expire_time)
    .bind(session.expire_time)
    .bind(&session.family.seed[..])
    .bind(i64::from(session.family.generation))
    .bind(session.family.rotate_time);
    db.execute(sql).await.map(drop)
}

/// Puts the next generation in the place of the live one: of all who try this with the same
/// session, one succeeds.
pub async fn rotate(db: &mut Write, session: &Session) -> Result<bool> {
    let sql = sql!(
        "UPDATE sessions SET generation = $3, rotate_time = $4, last_used_time = $4,
            idle_expire_time = $5
         WHERE user_id = $1 AND id = $2 AND generation = $3 - 1 AND end_time IS NULL"
    )
    .bind(session.user)
    .bind(session.id)
    .bind(i64::from(session.family.generation))
    .bind(session.family.rotate_time)
    .bind(session.idle_expire_time);
    Ok(db.execute(sql).await? == 1)
}

/// Stores what the person has shown since, and the refresh token that is live then, unless the session
/// has changed, been refreshed or ended meanwhile.
pub async fn step_up(db: &mut Write, session: &Session, from: u32) -> Result<bool> {
    let sql = sql!(
        "UPDATE sessions SET acr = $3, amr = $4, auth_time = $5, revision = $6, generation = $7,
            rotate_time = $5, last_used_time = $5, idle_expire_time = $8
         WHERE user_id = $1 AND id = $2 AND revision = $6 - 1 AND generation = $9
            AND end_time IS NULL"
    )
    .bind(session.user)
    .bind(session.id)
    .bind(session.shown.acr.name())
    .bind_json(&session.shown.amr)
    .bind(session.auth_time)
    .bind(session.revision)
    .bind(i64::from(session.family.generation))
    .bind(session.idle_expire_time)
    .bind(i64::from(from));
    Ok(db.execute(sql).await? == 1)
}

/// Ends one session unless it has ended.
pub async fn end(
    db: &mut Write,
    user: UserId,
    id: SessionId,
    now: Timestamp,
    reason: EndReason,
) -> Result<bool> {
    let sql = sql!(
        "UPDATE sessions SET end_time = $3, end_reason = $4, revision = revision + 1
         WHERE user_id = $1 AND id = $2 AND end_time IS NULL"
    )
    .bind(user)
    .bind(id)
    .bind(now)
    .bind(reason.name());
    Ok(db.execute(sql).await? == 1)
}

/// Up to `limit` live sessions of a user, newest first.
pub async fn newest(
    db: &mut Read,
    user: UserId,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<SessionId>> {
    let sql = sql!(
        "SELECT id FROM sessions
         WHERE user_id = $1 AND end_time IS NULL AND idle_expire_time > $2 AND expire_time > $2
         ORDER BY id DESC LIMIT $3"
    );
    let sql = sql.bind(user).bind(now).bind(limit);
    db.all(sql, |row| row.get("id")).await
}

/// Which of a user's sessions to end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Which {
    /// Only those that began with this credential.
    pub credential: Option<CredentialId>,
    /// All but this one.
    pub except: Option<SessionId>,
    /// Only this one and those older than it.
    pub up_to: Option<SessionId>,
}

/// Ends the live sessions of a user; how many.
pub async fn end_all(
    db: &mut Write,
    user: UserId,
    which: Which,
    now: Timestamp,
    reason: EndReason,
) -> error::Result<i32> {
    let sql = sql!(
        "UPDATE sessions SET end_time = $2, end_reason = $3, revision = revision + 1
         WHERE user_id = $1 AND end_time IS NULL AND idle_expire_time > $2 AND expire_time > $2
            AND (credential_id = $4 OR $4 IS NULL) AND (id <> $5 OR $5 IS NULL)
            AND (id <= $6 OR $6 IS NULL)"
    )
    .bind(user)
    .bind(now)
    .bind(reason.name())
    .bind(which.credential)
    .bind(which.except)
    .bind(which.up_to);
    let ended = db.execute(sql).await?;
    Ok(i32::try_from(ended).unwrap_or(i32::MAX))
}

/// Removes up to `limit` sessions of a user who is due to be removed.
pub async fn purge(db: &mut Write, user: UserId, now: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM sessions WHERE (user_id, id) IN (
            SELECT s.user_id, s.id FROM sessions s JOIN users u ON u.id = s.user_id
            WHERE s.user_id = $1 AND u.purge_time <= $2 LIMIT $3)"
    );
    db.sweep(sql.bind(user).bind(now).bind(limit)).await
}

/// Makes the access tokens of somebody's sessions worthless; the sessions go on.
pub async fn void_tokens(db: &mut Write, user: UserId, now: Timestamp) -> Result<()> {
    let sql =
        sql!("UPDATE sessions SET tokens_not_before = $2 WHERE user_id = $1 AND end_time IS NULL");
    db.execute(sql.bind(user).bind(now)).await.map(drop)
}

/// Forgets sessions that were over before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM sessions WHERE (user_id, id) IN (
            SELECT user_id, id FROM sessions WHERE expire_time < $1 ORDER BY expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

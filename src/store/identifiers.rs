//! What people are found by: usernames, proven e-mail addresses and phone numbers, ids in other systems.
//!
//! One row each, so an identifier is one person's by construction. One that was given up keeps its row
//! without a user until its time is over, and goes back to nobody but the former owner before.

use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::Result,
    sql::{Sql, sql},
};
use crate::domain::{
    error::{self, Error},
    identifier::{Identifier, Kind},
    name::UserId,
    time::Timestamp,
};

/// The row of an identifier that is nobody's yet.
pub(super) fn row(user: UserId, identifier: &Identifier) -> Sql {
    sql!("INSERT INTO login_identifiers (kind, value_key, user_id) VALUES ($1, $2, $3)")
        .bind(identifier.kind.name())
        .bind(identifier.key.as_str())
        .bind(user)
}

/// Makes an identifier this user's, or refuses: of all who want it at once, one gets it.
pub async fn claim(
    db: &mut Write,
    user: UserId,
    identifier: &Identifier,
    now: Timestamp,
) -> error::Result<()> {
    let sql = sql!(
        "INSERT INTO login_identifiers (kind, value_key, user_id) VALUES ($1, $2, $3)
         ON CONFLICT (kind, value_key) DO UPDATE
            SET user_id = excluded.user_id, former_user_id = NULL, release_time = NULL
         WHERE login_identifiers.user_id = excluded.user_id
            OR (login_identifiers.user_id IS NULL
                AND (login_identifiers.former_user_id = excluded.user_id
                    OR login_identifiers.release_time IS NULL
                    OR login_identifiers.release_time <= $4))"
    );
    let sql = sql
        .bind(identifier.kind.name())
        .bind(identifier.key.as_str())
        .bind(user)
        .bind(now);
    if db.execute(sql).await? == 1 {
        return Ok(());
    }
    let name = match identifier.kind {
        Kind::UsernameLook => "a username that looks alike".to_owned(),
        kind => format!("{} {}", kind.name(), identifier.key),
    };
    Err(Error::AlreadyExists { name })
}

/// Takes an identifier from its user, and from everybody else until `until`.
pub async fn give_up(
    db: &mut Write,
    user: UserId,
    identifier: &Identifier,
    until: Timestamp,
) -> Result<()> {
    let sql = sql!(
        "UPDATE login_identifiers SET user_id = NULL, former_user_id = $3, release_time = $4
         WHERE kind = $1 AND value_key = $2 AND user_id = $3"
    );
    let sql = sql
        .bind(identifier.kind.name())
        .bind(identifier.key.as_str())
        .bind(user)
        .bind(until);
    db.execute(sql).await.map(drop)
}

/// The same for all that a user has; ids in other systems, which are for operators to give, are free at
/// once.
pub async fn give_up_all(db: &mut Write, user: UserId, until: Timestamp) -> Result<()> {
    let external =
        sql!("DELETE FROM login_identifiers WHERE user_id = $1 AND kind = 'external_id'");
    db.execute(external.bind(user)).await?;
    let sql = sql!(
        "UPDATE login_identifiers SET user_id = NULL, former_user_id = $1, release_time = $2
         WHERE user_id = $1"
    );
    db.execute(sql.bind(user).bind(until)).await.map(drop)
}

/// Makes the username and the ids in other systems these.
pub async fn replace(
    db: &mut Write,
    user: UserId,
    wanted: &[Identifier],
    now: Timestamp,
    until: Timestamp,
) -> error::Result<()> {
    let sql = sql!(
        "SELECT kind, value_key FROM login_identifiers
         WHERE user_id = $1 AND kind IN ('username', 'username_look', 'external_id')"
    );
    let kinds = [Kind::Username, Kind::UsernameLook, Kind::ExternalId];
    let before = db
        .all(sql.bind(user), |row| {
            let parse = |name: &str| kinds.into_iter().find(|kind| kind.name() == name);
            let kind = row.get_parsed("kind", parse)?;
            Ok(Identifier::new(kind, row.get("value_key")?))
        })
        .await?;
    for old in before.iter().filter(|old| !wanted.contains(old)) {
        if old.kind == Kind::ExternalId {
            let sql = sql!(
                "DELETE FROM login_identifiers WHERE kind = $1 AND value_key = $2 AND user_id = $3"
            );
            let sql = sql.bind(old.kind.name()).bind(old.key.as_str()).bind(user);
            db.execute(sql).await?;
        } else {
            give_up(db, user, old, until).await?;
        }
    }
    for new in wanted.iter().filter(|new| !before.contains(new)) {
        claim(db, user, new, now).await?;
    }
    Ok(())
}

/// How many there are that the user can type to sign in.
pub async fn count_typed(db: &mut Read, user: UserId) -> Result<i64> {
    let sql = sql!(
        "SELECT COUNT(*) AS n FROM login_identifiers
         WHERE user_id = $1 AND kind IN ('username', 'email', 'phone')"
    );
    db.one(sql.bind(user), |row| row.get("n")).await
}

/// Frees an identifier that was given up; whose it was, if there was one.
pub async fn release(db: &mut Write, identifier: &Identifier) -> Result<Option<UserId>> {
    let sql = sql!(
        "DELETE FROM login_identifiers WHERE kind = $1 AND value_key = $2 AND user_id IS NULL
         RETURNING former_user_id"
    );
    let sql = sql
        .bind(identifier.kind.name())
        .bind(identifier.key.as_str());
    let former = db.optional(sql, |row| row.get::<Option<UserId>>("former_user_id"));
    // One that an earlier build has left behind was nobody's that is known.
    Ok(former.await?.map(|id| id.unwrap_or(UserId(Uuid::nil()))))
}

/// Frees what usernames that somebody gave up looked like.
pub async fn release_looks(db: &mut Write, former: UserId) -> Result<()> {
    let sql = sql!(
        "DELETE FROM login_identifiers
         WHERE former_user_id = $1 AND user_id IS NULL AND kind = 'username_look'"
    );
    db.execute(sql.bind(former)).await.map(drop)
}

/// Forgets identifiers that have been free since before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM login_identifiers WHERE (kind, value_key) IN (
            SELECT kind, value_key FROM login_identifiers WHERE release_time < $1
            ORDER BY release_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

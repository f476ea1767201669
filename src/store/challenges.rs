//! Open questions to people.

use ipnet::IpNet;

use super::{
    db::{Read, Write},
    error::Result,
    sql::{Row, sql},
};
use crate::domain::{
    challenge::{Challenge, MAX_ANSWERS},
    name::UserId,
    secret::Digest,
    time::Timestamp,
};

fn challenge(row: &Row) -> Result<Challenge> {
    let network: Option<String> = row.get("network")?;
    Ok(Challenge {
        opener: row.get("opener_id")?,
        user: row.get("user_id")?,
        network: network.and_then(|text| text.parse().ok()),
        question: row.get_json("question")?,
        create_time: row.get("create_time")?,
        expire_time: row.get("expire_time")?,
    })
}

pub async fn insert(db: &mut Write, digest: &Digest, challenge: &Challenge) -> Result<()> {
    let sql = sql!(
        "INSERT INTO challenges (digest, opener_id, user_id, network, question, answers,
            create_time, expire_time)
         VALUES ($1, $2, $3, $4, $5, 0, $6, $7)"
    )
    .bind(&digest[..])
    .bind(challenge.opener)
    .bind(challenge.user)
    .bind(challenge.network.map(|network| network.to_string()))
    .bind_json(&challenge.question)
    .bind(challenge.create_time)
    .bind(challenge.expire_time);
    db.execute(sql).await.map(drop)
}

/// The challenge, if it can still be answered.
pub async fn find(db: &mut Read, digest: &Digest, now: Timestamp) -> Result<Option<Challenge>> {
    let sql = sql!(
        "SELECT opener_id, user_id, network, question, create_time, expire_time FROM challenges
         WHERE digest = $1 AND expire_time > $2 AND answers < $3"
    )
    .bind(&digest[..])
    .bind(now)
    .bind(MAX_ANSWERS);
    db.optional(sql, challenge).await
}

/// Counts one more answer, before it is looked at; whether there was one left.
pub async fn count_answer(db: &mut Write, digest: &Digest, now: Timestamp) -> Result<bool> {
    let sql = sql!(
        "UPDATE challenges SET answers = answers + 1
         WHERE digest = $1 AND expire_time > $2 AND answers < $3"
    )
    .bind(&digest[..])
    .bind(now)
    .bind(MAX_ANSWERS);
    Ok(db.execute(sql).await? == 1)
}

/// Uses a challenge up: of all who answer it rightly, one succeeds.
pub async fn redeem(db: &mut Write, digest: &Digest, now: Timestamp) -> Result<bool> {
    let sql = sql!("DELETE FROM challenges WHERE digest = $1 AND expire_time > $2");
    Ok(db.execute(sql.bind(&digest[..]).bind(now)).await? == 1)
}

/// How many were opened from a network and are not over.
pub async fn count_open(db: &mut Read, network: IpNet, now: Timestamp) -> Result<i64> {
    let sql = sql!("SELECT COUNT(*) AS n FROM challenges WHERE network = $1 AND expire_time > $2");
    db.one(sql.bind(network.to_string()).bind(now), |row| row.get("n"))
        .await
}

/// Forgets the challenges of a user but for this one and the `keep` newest of the others.
pub async fn make_room(db: &mut Write, user: UserId, this: &Digest, keep: i64) -> Result<()> {
    let sql = sql!(
        "DELETE FROM challenges WHERE user_id = $1 AND digest <> $2 AND digest NOT IN (
            SELECT digest FROM challenges WHERE user_id = $1
            ORDER BY create_time DESC, digest DESC LIMIT $3)"
    );
    let sql = sql.bind(user).bind(&this[..]).bind(keep);
    db.execute(sql).await.map(drop)
}

/// Voids all challenges of a user, with the steps that have led to them.
pub async fn delete_all(db: &mut Write, user: UserId) -> Result<()> {
    let sql = sql!("DELETE FROM challenges WHERE user_id = $1").bind(user);
    db.execute(sql).await.map(drop)
}

/// Forgets challenges whose time was over before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM challenges WHERE digest IN (
            SELECT digest FROM challenges WHERE expire_time < $1 ORDER BY expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

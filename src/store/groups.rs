//! Groups, and who is in them.
//!
//! Invariant: what goes from group to group reads memberships by an index only, one step at a time; a group
//! that is met twice is looked at once, so a circle ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::Result,
    sql::{Row, principal_kind, sql},
};
use crate::domain::{
    group::{self, Group, Membership},
    name::{GroupId, PrincipalId},
    time::Timestamp,
};

macro_rules! group_columns {
    () => {
        "g.id, g.revision, g.display_name, g.description, g.create_time, g.update_time"
    };
}
pub(super) use group_columns;

macro_rules! member_columns {
    () => {
        "m.member_id, m.member_kind, m.group_id, m.start_time, m.expire_time, m.added_by, m.create_time"
    };
}

/// `above (id)`: the groups that the principal `$1` of kind `$2` is or is going to be in after `$3`, directly
/// or by way of others.
macro_rules! above {
    () => {
        "WITH RECURSIVE above (id) AS (
            SELECT m.group_id FROM group_members m
            WHERE m.member_id = $1 AND m.member_kind = $2
                AND (m.expire_time > $3 OR m.expire_time IS NULL)
            UNION
            SELECT m.group_id FROM above CROSS JOIN group_members m
            WHERE m.member_id = above.id AND m.member_kind = 'group'
                AND (m.expire_time > $3 OR m.expire_time IS NULL)) "
    };
}
pub(super) use above;

/// `ways`: the memberships of the principal `$1` of kind `$2`, of the groups it is in, and so on, that are not over
/// at `$3`; and `above (id)`, the groups they are of.
macro_rules! ways {
    () => {
        "WITH RECURSIVE ways (member_id, member_kind, group_id, start_time, expire_time, added_by, create_time)
         AS (
            SELECT m.member_id, m.member_kind, m.group_id, m.start_time, m.expire_time, m.added_by,
                m.create_time
            FROM group_members m
            WHERE m.member_id = $1 AND m.member_kind = $2
                AND (m.expire_time > $3 OR m.expire_time IS NULL)
            UNION
            SELECT m.member_id, m.member_kind, m.group_id, m.start_time, m.expire_time, m.added_by,
                m.create_time
            FROM ways CROSS JOIN group_members m
            WHERE m.member_id = ways.group_id AND m.member_kind = 'group'
                AND (m.expire_time > $3 OR m.expire_time IS NULL)),
         above (id) AS (SELECT DISTINCT group_id FROM ways) "
    };
}
pub(super) use ways;

/// The same, but only those that it is in at `$3`.
macro_rules! above_now {
    () => {
        "WITH RECURSIVE above (id) AS (
            SELECT m.group_id FROM group_members m
            WHERE m.member_id = $1 AND m.member_kind = $2
                AND (m.start_time <= $3 OR m.start_time IS NULL)
                AND (m.expire_time > $3 OR m.expire_time IS NULL)
            UNION
            SELECT m.group_id FROM above CROSS JOIN group_members m
            WHERE m.member_id = above.id AND m.member_kind = 'group'
                AND (m.start_time <= $3 OR m.start_time IS NULL)
                AND (m.expire_time > $3 OR m.expire_time IS NULL)) "
    };
}
pub(super) use above_now;

/// The rest of `WITH RECURSIVE below (id) AS (` and what finds the first: all groups that are in those.
macro_rules! and_below {
    () => {
        " UNION
         SELECT m.member_id FROM below CROSS JOIN group_members m
         WHERE m.group_id = below.id AND m.member_kind = 'group') "
    };
}
pub(super) use and_below;

/// The people that are in one of `below`.
macro_rules! people_below {
    () => {
        "SELECT m.member_id FROM below CROSS JOIN group_members m
         WHERE m.group_id = below.id AND m.member_kind = 'user'"
    };
}
pub(super) use people_below;

/// The one place that says how a row becomes a group.
pub(super) fn group(row: &Row) -> Result<Group> {
    Ok(Group {
        id: row.get("id")?,
        revision: row.get("revision")?,
        display_name: row.get("display_name")?,
        description: row.get("description")?,
        create_time: row.get("create_time")?,
        update_time: row.get("update_time")?,
    })
}

pub(super) fn membership(row: &Row) -> Result<Membership> {
    Ok(Membership {
        group: row.get("group_id")?,
        member: row.get_principal("member_kind", "member_id")?,
        window: row.get_window()?,
        added_by: row.get("added_by")?,
        create_time: row.get("create_time")?,
    })
}

pub async fn find(db: &mut Read, id: GroupId) -> Result<Option<Group>> {
    let sql = sql!(
        "SELECT ",
        group_columns!(),
        " FROM groups g WHERE g.id = $1"
    )
    .bind(id);
    db.optional(sql, group).await
}

/// Where a page ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cursor(pub Uuid);

/// Groups, oldest first: all, or those that a principal is in directly.
pub async fn list(
    db: &mut Read,
    member: Option<PrincipalId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Group>> {
    let sql = match member {
        None => sql!(
            "SELECT ",
            group_columns!(),
            " FROM groups g WHERE g.id > $1 ORDER BY g.id LIMIT $2"
        ),
        Some(member) => sql!(
            "SELECT ",
            group_columns!(),
            " FROM group_members m JOIN groups g ON g.id = m.group_id
              WHERE m.member_id = $1 AND m.member_kind = $2 AND m.group_id > $3
              ORDER BY m.group_id LIMIT $4"
        )
        .bind(member)
        .bind(principal_kind(member)),
    };
    db.page(sql.bind(after).bind(limit), group).await
}

pub async fn count(db: &mut Read) -> Result<i64> {
    // A condition that all meet, so that they are counted by the key.
    let sql = sql!("SELECT COUNT(*) AS n FROM groups WHERE id > $1").bind(Uuid::nil());
    db.one(sql, |row| row.get("n")).await
}

pub async fn insert(db: &mut Write, group: &Group) -> Result<()> {
    let sql = sql!(
        "INSERT INTO groups (id, revision, display_name, description, create_time, update_time)
         VALUES ($1, $2, $3, $4, $5, $6)"
    )
    .bind(group.id)
    .bind(group.revision)
    .bind(group.display_name.as_str())
    .bind(group.description.as_str())
    .bind(group.create_time)
    .bind(group.update_time);
    db.execute(sql).await.map(drop)
}

pub async fn update(db: &mut Write, group: &Group) -> Result<()> {
    let sql = sql!(
        "UPDATE groups SET revision = $2, display_name = $3, description = $4, update_time = $5
         WHERE id = $1"
    )
    .bind(group.id)
    .bind(group.revision)
    .bind(group.display_name.as_str())
    .bind(group.description.as_str())
    .bind(group.update_time);
    db.execute(sql).await.map(drop)
}

/// Removes a group, who is in it, it from the groups it is in, and what grants of it are over.
pub async fn delete(db: &mut Write, id: GroupId) -> Result<()> {
    leave_all(db, id.into()).await?;
    super::grants::delete_all(db, id.into()).await?;
    let sql = sql!("DELETE FROM groups WHERE id = $1").bind(id);
    db.execute(sql).await.map(drop)
}

pub async fn find_member(
    db: &mut Read,
    id: GroupId,
    member: PrincipalId,
) -> Result<Option<Membership>> {
    let sql = sql!(
        "SELECT ",
        member_columns!(),
        " FROM group_members m
          WHERE m.member_id = $1 AND m.member_kind = $2 AND m.group_id = $3"
    )
    .bind(member)
    .bind(principal_kind(member))
    .bind(id);
    db.optional(sql, membership).await
}

/// Who is in a group directly, at a time or at any.
pub async fn list_members(
    db: &mut Read,
    id: GroupId,
    at: Option<Timestamp>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Membership>> {
    let sql = sql!(
        "SELECT ",
        member_columns!(),
        " FROM group_members m WHERE m.group_id = $1 AND m.member_id > $2
            AND (m.start_time <= $3 OR m.start_time IS NULL OR $3 IS NULL)
            AND (m.expire_time > $3 OR m.expire_time IS NULL OR $3 IS NULL)
          ORDER BY m.member_id LIMIT $4"
    )
    .bind(id)
    .bind(after)
    .bind(at)
    .bind(limit);
    db.page(sql, membership).await
}

/// Puts somebody into a group, or gives a membership that there is another time.
pub async fn put_member(db: &mut Write, membership: &Membership) -> Result<()> {
    let sql = sql!(
        "INSERT INTO group_members (member_id, member_kind, group_id, start_time, expire_time, added_by,
            create_time)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (member_id, member_kind, group_id) DO UPDATE
            SET start_time = excluded.start_time, expire_time = excluded.expire_time,
                added_by = excluded.added_by"
    )
    .bind(membership.member)
    .bind(principal_kind(membership.member))
    .bind(membership.group)
    .bind(membership.window.start)
    .bind(membership.window.end)
    .bind(membership.added_by.as_str())
    .bind(membership.create_time);
    db.execute(sql).await.map(drop)
}

pub async fn remove_member(db: &mut Write, id: GroupId, member: PrincipalId) -> Result<bool> {
    let sql = sql!(
        "DELETE FROM group_members WHERE member_id = $1 AND member_kind = $2 AND group_id = $3"
    )
    .bind(member)
    .bind(principal_kind(member))
    .bind(id);
    Ok(db.execute(sql).await? == 1)
}

/// Takes a principal out of all groups.
pub async fn leave_all(db: &mut Write, member: PrincipalId) -> Result<()> {
    let sql = sql!("DELETE FROM group_members WHERE member_id = $1 AND member_kind = $2")
        .bind(member)
        .bind(principal_kind(member));
    db.execute(sql).await.map(drop)
}

/// In how many groups a principal is directly.
pub async fn count_of(db: &mut Read, member: PrincipalId) -> Result<i64> {
    let sql =
        sql!("SELECT COUNT(*) AS n FROM group_members WHERE member_id = $1 AND member_kind = $2")
            .bind(member)
            .bind(principal_kind(member));
    db.one(sql, |row| row.get("n")).await
}

/// The memberships of a principal, of the groups it is in, and so on, but for those that are over.
pub async fn memberships(
    db: &mut Read,
    principal: PrincipalId,
    now: Timestamp,
) -> Result<Vec<Membership>> {
    let sql = sql!(
        ways!(),
        "SELECT member_id, member_kind, group_id, start_time, expire_time, added_by, create_time FROM ways"
    )
    .bind(principal)
    .bind(principal_kind(principal))
    .bind(now);
    db.all(sql, membership).await
}

/// What an account or a group is now, and until when: itself, and of the groups it is in.
pub async fn principals(
    db: &mut Read,
    principal: impl Into<PrincipalId>,
    now: Timestamp,
) -> Result<BTreeMap<PrincipalId, Timestamp>> {
    let principal = principal.into();
    let memberships = memberships(db, principal, now).await?;
    let in_effect = memberships.iter().filter(|it| it.window.contains(now));
    let ways = group::ways(principal, in_effect).into_iter();
    Ok(ways
        .map(|(principal, way)| (principal, way.end_time))
        .collect())
}

/// How many groups there are in one another from this one outwards, itself among them, but for what is over;
/// counted no further than to `limit + 1`.
pub async fn depth_above(db: &mut Read, id: GroupId, now: Timestamp, limit: i64) -> Result<i64> {
    let sql = sql!(
        "WITH RECURSIVE chain (id, depth) AS (
            SELECT g.id, 1 FROM groups g WHERE g.id = $1
            UNION
            SELECT m.group_id, chain.depth + 1 FROM chain CROSS JOIN group_members m
            WHERE m.member_id = chain.id AND m.member_kind = 'group' AND chain.depth <= $2
                AND (m.expire_time > $3 OR m.expire_time IS NULL))
         SELECT CAST(COALESCE(MAX(depth), 0) AS BIGINT) AS depth FROM chain"
    );
    db.one(sql.bind(id).bind(limit).bind(now), |row| row.get("depth"))
        .await
}

/// The same inwards.
pub async fn depth_below(db: &mut Read, id: GroupId, now: Timestamp, limit: i64) -> Result<i64> {
    let sql = sql!(
        "WITH RECURSIVE chain (id, depth) AS (
            SELECT g.id, 1 FROM groups g WHERE g.id = $1
            UNION
            SELECT m.member_id, chain.depth + 1 FROM chain CROSS JOIN group_members m
            WHERE m.group_id = chain.id AND m.member_kind = 'group' AND chain.depth <= $2
                AND (m.expire_time > $3 OR m.expire_time IS NULL))
         SELECT CAST(COALESCE(MAX(depth), 0) AS BIGINT) AS depth FROM chain"
    );
    db.one(sql.bind(id).bind(limit).bind(now), |row| row.get("depth"))
        .await
}

/// Voids the codes of all people in a group, directly or by way of others: made for lesser accounts they do
/// not open greater ones.
pub async fn void_begun(db: &mut Write, id: GroupId) -> Result<()> {
    let resets = sql!(
        "WITH RECURSIVE below (id) AS (SELECT id FROM groups WHERE id = $1",
        and_below!(),
        "DELETE FROM password_resets WHERE user_id IN (",
        people_below!(),
        ")"
    );
    db.execute(resets.bind(id)).await?;
    let challenges = sql!(
        "WITH RECURSIVE below (id) AS (SELECT id FROM groups WHERE id = $1",
        and_below!(),
        "DELETE FROM challenges WHERE user_id IN (",
        people_below!(),
        ")"
    );
    db.execute(challenges.bind(id)).await.map(drop)
}

/// Forgets memberships that were over before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM group_members WHERE (member_id, member_kind, group_id) IN (
            SELECT member_id, member_kind, group_id FROM group_members WHERE expire_time < $1
            ORDER BY expire_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

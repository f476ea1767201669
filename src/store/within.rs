//! Lists for those who may see some groups only: what is in these, directly or by way of other groups, now.
//!
//! Invariant: a list goes from the groups to what is in them; what is elsewhere is not read, so it can be told neither
//! from a page nor from where a page ends.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    db::Read,
    error::Result,
    groups::{group, group_columns},
    sql::{Sql, principal_kind, sql},
    system_accounts::{self, system_account, system_account_columns},
    users::{self, Order, user, user_columns},
};
use crate::domain::{
    account::State,
    group::{Group, MAX_REACH},
    name::{GroupId, PrincipalId, UserId},
    system_account::{Kind, SystemAccount},
    time::Timestamp,
    user::User,
};

/// `below (id)`: the groups `$2` to `$17` and those that are in them at `$1`; and `members (id, kind)`, who is in those.
macro_rules! within {
    () => {
        "WITH RECURSIVE below (id) AS (
            SELECT id FROM groups
            WHERE id IN ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
            UNION
            SELECT m.member_id FROM below CROSS JOIN group_members m
            WHERE m.group_id = below.id AND m.member_kind = 'group'
                AND (m.start_time <= $1 OR m.start_time IS NULL)
                AND (m.expire_time > $1 OR m.expire_time IS NULL)),
         members (id, kind) AS (
            SELECT DISTINCT m.member_id, m.member_kind FROM below CROSS JOIN group_members m
            WHERE m.group_id = below.id
                AND (m.start_time <= $1 OR m.start_time IS NULL)
                AND (m.expire_time > $1 OR m.expire_time IS NULL)) "
    };
}

/// Whatever else users are asked for by; `$18` to `$21`.
macro_rules! as_asked {
    () => {
        " AND u.create_time >= $18 AND u.create_time <= $19
          AND (u.state = $20 OR $20 IS NULL) AND ($21 OR u.state <> 'DELETED') "
    };
}

fn bind_groups(sql: Sql, groups: &[GroupId], now: Timestamp) -> Sql {
    let ids = groups.iter().map(|id| Some(id.0));
    let ids = ids.chain(std::iter::repeat(None)).take(MAX_REACH);
    ids.fold(sql.bind(now), |sql, id: Option<Uuid>| sql.bind(id))
}

pub async fn users(
    db: &mut Read,
    groups: &[GroupId],
    now: Timestamp,
    query: &users::Query,
    after: Option<&users::Cursor>,
    limit: i64,
) -> Result<Vec<User>> {
    let sql = match query.order {
        Order::CreateTime => sql!(
            within!(),
            "SELECT ",
            user_columns!(),
            " FROM members CROSS JOIN users u
              WHERE members.kind = 'user' AND u.id = members.id",
            as_asked!(),
            " AND (u.create_time, u.id) > ($22, $23) ORDER BY u.create_time, u.id LIMIT $24"
        ),
        Order::CreateTimeDescending => sql!(
            within!(),
            "SELECT ",
            user_columns!(),
            " FROM members CROSS JOIN users u
              WHERE members.kind = 'user' AND u.id = members.id",
            as_asked!(),
            " AND (u.create_time, u.id) < ($22, $23) ORDER BY u.create_time DESC, u.id DESC LIMIT $24"
        ),
        Order::Username => sql!(
            within!(),
            "SELECT ",
            user_columns!(),
            " FROM members CROSS JOIN users u
              WHERE members.kind = 'user' AND u.id = members.id",
            as_asked!(),
            " AND (u.username_key, u.id) > ($22, $23) AND u.username_key <= $24
              ORDER BY u.username_key, u.id LIMIT $25"
        ),
        Order::Name(_) => sql!(
            within!(),
            "SELECT ",
            user_columns!(),
            " FROM members CROSS JOIN user_names n CROSS JOIN users u
              WHERE members.kind = 'user' AND n.user_id = members.id AND n.kind = $25 AND u.id = members.id",
            as_asked!(),
            " AND (n.name_key, n.user_id) > ($22, $23) AND n.name_key <= $24
              ORDER BY n.name_key, n.user_id LIMIT $26"
        ),
        Order::Contact(_) => sql!(
            within!(),
            "SELECT DISTINCT ",
            user_columns!(),
            " FROM members CROSS JOIN contacts c CROSS JOIN users u
              WHERE members.kind = 'user' AND c.account_id = members.id AND c.kind = $24 AND c.value_key = $22
                AND u.id = members.id",
            as_asked!(),
            " AND u.id > $23 ORDER BY u.id LIMIT $25"
        ),
    };
    let state = query.state.map(State::name);
    let sql = bind_groups(sql, groups, now)
        .bind(query.created.0)
        .bind(query.created.1)
        .bind(state)
        .bind(query.show_deleted || state.is_some());
    let sql = match query.order {
        Order::CreateTime => {
            let (time, id) = users::ascending(after, query.created.0);
            sql.bind(time).bind(id)
        }
        Order::CreateTimeDescending => {
            let (time, id) = users::descending(after, query.created.1);
            sql.bind(time).bind(id)
        }
        Order::Username | Order::Name(_) => {
            let (key, id) = users::begin(query, after);
            sql.bind(key).bind(id).bind(query.keys.1.as_str())
        }
        Order::Contact(_) => sql.bind(query.keys.0.as_str()).bind(users::last_id(after)),
    };
    let sql = match query.order {
        Order::Name(kind) => sql.bind(kind.name()),
        Order::Contact(kind) => sql.bind(kind.name()),
        _ => sql,
    };
    db.page(sql.bind(limit), user).await
}

/// Those of up to [`users::FIND_ALL`] users that are in these groups. Goes from the users to their groups, which are
/// fewer than those in the groups.
pub async fn among(
    db: &mut Read,
    groups: &[GroupId],
    now: Timestamp,
    users: &[UserId],
) -> Result<BTreeSet<UserId>> {
    let sql = sql!(
        "WITH RECURSIVE ways (user_id, group_id) AS (
            SELECT m.member_id, m.group_id FROM group_members m
            WHERE m.member_kind = 'user'
                AND m.member_id IN ($18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32,
                    $33, $34, $35, $36, $37)
                AND (m.start_time <= $1 OR m.start_time IS NULL)
                AND (m.expire_time > $1 OR m.expire_time IS NULL)
            UNION
            SELECT ways.user_id, m.group_id FROM ways CROSS JOIN group_members m
            WHERE m.member_id = ways.group_id AND m.member_kind = 'group'
                AND (m.start_time <= $1 OR m.start_time IS NULL)
                AND (m.expire_time > $1 OR m.expire_time IS NULL))
         SELECT user_id FROM ways
         WHERE group_id IN ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)"
    );
    let sql = users::bind_all(bind_groups(sql, groups, now), users);
    let found = db.all(sql, |row| row.get("user_id")).await?;
    Ok(found.into_iter().collect())
}

pub async fn system_accounts(
    db: &mut Read,
    groups: &[GroupId],
    now: Timestamp,
    query: &system_accounts::Query,
    after: Option<&system_accounts::Cursor>,
    limit: i64,
) -> Result<Vec<SystemAccount>> {
    let (time, id) = system_accounts::begin(after);
    let state = query.state.map(State::name);
    let sql = sql!(
        within!(),
        "SELECT ",
        system_account_columns!(),
        " FROM members CROSS JOIN system_accounts a
          WHERE members.kind = 'system_account' AND a.id = members.id AND (a.create_time, a.id) > ($18, $19)
            AND (a.state = $20 OR $20 IS NULL) AND ($21 OR a.state <> 'DELETED')
            AND (a.kind = $22 OR $22 IS NULL) AND (a.owner_id = $23 OR $23 IS NULL)
          ORDER BY a.create_time, a.id LIMIT $24"
    );
    let sql = bind_groups(sql, groups, now)
        .bind(time)
        .bind(id)
        .bind(state)
        .bind(query.show_deleted || state.is_some())
        .bind(query.kind.map(Kind::name))
        .bind(query.owner)
        .bind(limit);
    db.page(sql, system_account).await
}

/// The groups themselves and those in them: all, or those that somebody is in directly.
pub async fn groups(
    db: &mut Read,
    groups: &[GroupId],
    now: Timestamp,
    member: Option<PrincipalId>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Group>> {
    let sql = sql!(
        within!(),
        "SELECT ",
        group_columns!(),
        " FROM below CROSS JOIN groups g
          WHERE g.id = below.id AND g.id > $18
            AND (EXISTS (
                SELECT 1 FROM group_members m
                WHERE m.group_id = g.id AND m.member_id = $19 AND m.member_kind = $20
                    AND (m.start_time <= $1 OR m.start_time IS NULL)
                    AND (m.expire_time > $1 OR m.expire_time IS NULL))
                OR $19 IS NULL)
          ORDER BY g.id LIMIT $21"
    );
    let sql = bind_groups(sql, groups, now)
        .bind(after)
        .bind(member.map(PrincipalId::uuid))
        .bind(member.map(principal_kind))
        .bind(limit);
    db.page(sql, group).await
}

//! Lists for those who may see some groups only: what is in these, directly or by way of other groups, now.
//!
//! Invariant: each statement goes from the groups to what is in them; what is elsewhere is not read, so it can be told
//! neither from a page nor from where a page ends.

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
    name::{GroupId, PrincipalId},
    system_account::{Kind, SystemAccount},
    time::Timestamp,
    user::User,
};

/// `below (id)`: the groups `$2` to `$17` and those that are in them at `$1`.
macro_rules! below {
    () => {
        "WITH RECURSIVE below (id) AS (
            SELECT id FROM groups
            WHERE id IN ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
            UNION
            SELECT m.member_id FROM below CROSS JOIN group_members m
            WHERE m.group_id = below.id AND m.member_kind = 'group'
                AND (m.start_time <= $1 OR m.start_time IS NULL)
                AND (m.expire_time > $1 OR m.expire_time IS NULL)) "
    };
}

/// And `people (id)`, who is in those.
macro_rules! people {
    () => {
        ", people (id) AS (
            SELECT DISTINCT m.member_id FROM below CROSS JOIN group_members m
            WHERE m.group_id = below.id AND m.member_kind = 'user'
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
            below!(),
            people!(),
            "SELECT ",
            user_columns!(),
            " FROM people CROSS JOIN users u
              WHERE u.id = people.id",
            as_asked!(),
            " AND (u.create_time, u.id) > ($22, $23) ORDER BY u.create_time, u.id LIMIT $24"
        ),
        Order::CreateTimeDescending => sql!(
            below!(),
            people!(),
            "SELECT ",
            user_columns!(),
            " FROM people CROSS JOIN users u
              WHERE u.id = people.id",
            as_asked!(),
            " AND (u.create_time, u.id) < ($22, $23) ORDER BY u.create_time DESC, u.id DESC LIMIT $24"
        ),
        Order::Username => sql!(
            below!(),
            people!(),
            "SELECT ",
            user_columns!(),
            " FROM people CROSS JOIN users u
              WHERE u.id = people.id",
            as_asked!(),
            " AND (u.username_key, u.id) > ($22, $23) AND u.username_key <= $24
              ORDER BY u.username_key, u.id LIMIT $25"
        ),
        Order::Name(_) => sql!(
            below!(),
            people!(),
            "SELECT ",
            user_columns!(),
            " FROM people CROSS JOIN user_names n CROSS JOIN users u
              WHERE n.user_id = people.id AND n.kind = $25 AND u.id = people.id",
            as_asked!(),
            " AND (n.name_key, n.user_id) > ($22, $23) AND n.name_key <= $24
              ORDER BY n.name_key, n.user_id LIMIT $26"
        ),
        Order::Contact(_) => sql!(
            below!(),
            people!(),
            "SELECT DISTINCT ",
            user_columns!(),
            " FROM people CROSS JOIN contacts c CROSS JOIN users u
              WHERE c.account_id = people.id AND c.kind = $24 AND c.value_key = $22 AND u.id = people.id",
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
        below!(),
        ", programs (id) AS (
            SELECT DISTINCT m.member_id FROM below CROSS JOIN group_members m
            WHERE m.group_id = below.id AND m.member_kind = 'system_account'
                AND (m.start_time <= $1 OR m.start_time IS NULL)
                AND (m.expire_time > $1 OR m.expire_time IS NULL))
         SELECT ",
        system_account_columns!(),
        " FROM programs CROSS JOIN system_accounts a
          WHERE a.id = programs.id AND (a.create_time, a.id) > ($18, $19)
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
        below!(),
        "SELECT ",
        group_columns!(),
        " FROM below CROSS JOIN groups g
          WHERE g.id = below.id AND g.id > $18
            AND (EXISTS (
                SELECT 1 FROM group_members m
                WHERE m.group_id = g.id AND m.member_id = $19 AND m.member_kind = $20)
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

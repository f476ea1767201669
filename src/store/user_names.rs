//! Names of people, folded, to search by.

use super::{
    db::Write,
    error::Result,
    sql::{Sql, sql},
};
use crate::domain::{
    name::UserId,
    user::{NameKind, User},
};

/// The rows of the names that somebody has.
pub(super) fn rows(user: &User) -> Vec<Sql> {
    let keys = NameKind::ALL.map(|kind| (kind, user.profile.name_key(kind)));
    let row = |(kind, key): (NameKind, String)| {
        sql!("INSERT INTO user_names (kind, name_key, user_id) VALUES ($1, $2, $3)")
            .bind(kind.name())
            .bind(key)
            .bind(user.id)
    };
    let named = keys.into_iter().filter(|(_, key)| !key.is_empty());
    named.map(row).collect()
}

pub async fn insert(db: &mut Write, user: &User) -> Result<()> {
    for row in rows(user) {
        db.execute(row).await?;
    }
    Ok(())
}

/// Makes the names those of the profile.
pub async fn replace(db: &mut Write, user: &User) -> Result<()> {
    delete(db, user.id).await?;
    insert(db, user).await
}

async fn delete(db: &mut Write, user: UserId) -> Result<()> {
    let sql = sql!("DELETE FROM user_names WHERE user_id = $1").bind(user);
    db.execute(sql).await.map(drop)
}

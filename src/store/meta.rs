//! Facts about this database.

use super::{
    db::{Read, Write},
    error::Result,
    sql::sql,
};

/// Says which master key the database belongs to.
pub const MASTER_KEY_CHECK: &str = "master_key_check";

/// Says that everybody has what people are found by in this build.
pub const FOUND_BY_ALL: &str = "found_by_all_2";

pub async fn find(db: &mut Read, name: &str) -> Result<Option<String>> {
    let sql = sql!("SELECT value FROM meta WHERE name = $1").bind(name);
    db.optional(sql, |row| row.get("value")).await
}

/// Sets a fact that was unknown.
pub async fn insert(db: &mut Write, name: &str, value: &str) -> Result<()> {
    let sql = sql!("INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING");
    db.execute(sql.bind(name).bind(value)).await.map(drop)
}

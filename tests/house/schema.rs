//! The schemas of the two engines are one: tables, columns, nullability, keys and indexes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use accountd::store::earlier::{EARLIER, Earlier};
use sha2::{Digest as _, Sha256};
use sqlx::{Executor as _, PgConnection, Row as _};

use crate::{
    databases::{databases, open},
    golden::assert_golden,
};

/// What both engines are asked for, in words that both can say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Schema {
    /// `table.column` to its kind and whether it may be NULL.
    columns: BTreeMap<String, (Kind, bool)>,
    /// Names of indexes, to table, columns and uniqueness.
    indexes: BTreeMap<String, (String, String, bool)>,
    /// `table(columns)` of primary keys.
    keys: BTreeSet<String>,
    /// `table(column) -> table ON DELETE …`.
    references: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Kind {
    Text,
    /// Bytes or an id: one type on SQLite.
    Bytes,
    /// A number, or yes or no: one type on SQLite.
    Number,
}

#[tokio::test]
async fn both_engines_have_the_same_schema() {
    let mut databases = databases().await;
    let sqlite = read_sqlite(&databases.sqlite);
    assert!(sqlite.columns.len() > 100, "{sqlite:#?}");
    assert!(sqlite.keys.len() > 10 && sqlite.indexes.len() > 20 && sqlite.references.len() > 2);
    let Some(postgres) = &mut databases.postgres else {
        return;
    };
    let postgres = read_postgres(postgres).await;
    assert_eq!(sqlite.columns, postgres.columns);
    assert_eq!(sqlite.indexes, postgres.indexes);
    assert_eq!(sqlite.keys, postgres.keys);
    assert_eq!(sqlite.references, postgres.references);
}

#[tokio::test]
async fn a_schema_that_came_about_in_another_way_is_refused() {
    let mut databases = databases().await;
    for target in &databases.targets {
        open(target).await.expect("opens again");
    }
    let change = "UPDATE _sqlx_migrations SET checksum = substr(checksum, 2) WHERE version = 1";
    databases.sqlite.execute(change, []).expect("changes");
    if let Some(postgres) = &mut databases.postgres {
        postgres.execute(change).await.expect("changes");
    }
    for target in &databases.targets {
        let refused = open(target).await.expect_err("another schema");
        assert!(refused.contains("migration 1"), "{refused}");
    }
}

#[tokio::test]
async fn a_database_of_an_earlier_form_goes_on_as_what_it_would_be_now() {
    let mut databases = databases().await;
    let before = "ALTER TABLE credentials RENAME COLUMN overlap_s TO overlap_us;
        DROP INDEX challenges_user_id;
        CREATE INDEX challenges_user_id ON challenges (user_id) WHERE user_id IS NOT NULL;";
    let replaced = |id: &str| {
        format!(
            "INSERT INTO credentials (account_id, id, account_kind, kind, revision, label, hint, scope_ceiling,
                allowed_cidrs, create_time, change_time, overlap_us)
             VALUES ({id}, {id}, 'system_account', 'api_key', 1, '', '', '[]', '[]', 0, 0, 7000000)"
        )
    };
    let checksums = |engine: usize| -> String {
        let form = |it: &Earlier| (it.version, it.checksums[engine]);
        let forms = EARLIER.iter().map(form).map(|(version, sum)| {
            let sum = if engine == 0 {
                format!("X'{sum}'")
            } else {
                format!("decode('{sum}', 'hex')")
            };
            format!("UPDATE _sqlx_migrations SET checksum = {sum} WHERE version = {version};")
        });
        forms.collect()
    };
    let old = |engine, id| format!("{before} {}; {}", replaced(id), checksums(engine));
    databases
        .sqlite
        .execute_batch(&old(0, "X'01'"))
        .expect("as it was");
    if let Some(postgres) = &mut databases.postgres {
        let id = "'00000000-0000-0000-0000-000000000001'";
        postgres
            .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(old(1, id))))
            .await
            .expect("as it was");
    }
    for target in &databases.targets {
        open(target).await.expect("opens");
        open(target).await.expect("opens again");
    }
    let overlap_s = "SELECT overlap_s FROM credentials WHERE overlap_s IS NOT NULL";
    let found: i64 = databases
        .sqlite
        .query_row(overlap_s, [], |row| row.get(0))
        .expect("kept");
    assert_eq!(found, 7);
    let sqlite = read_sqlite(&databases.sqlite);
    assert_eq!(
        sqlite.indexes["challenges_user_id"].1,
        "user_id,create_time,digest"
    );
    let Some(postgres) = &mut databases.postgres else {
        return;
    };
    let found = postgres.fetch_one(overlap_s).await.expect("kept");
    assert_eq!(found.get::<i64, _>(0), 7);
    let postgres = read_postgres(postgres).await;
    assert_eq!(sqlite.columns, postgres.columns);
    assert_eq!(sqlite.indexes, postgres.indexes);
}

/// A database that exists refuses to start on a migration that is another one now, even by a comment: this
/// list may only grow.
#[test]
fn migrations_stay_as_they_were() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files = Vec::new();
    for engine in ["postgres", "sqlite"] {
        for entry in fs::read_dir(root.join(engine)).expect("migrations") {
            files.push(entry.expect("a file").path());
        }
    }
    files.sort();
    let mut sums = String::new();
    for file in files {
        let digest = Sha256::digest(fs::read(&file).expect("readable"));
        let name = file.strip_prefix(&root).expect("below").display();
        for byte in digest {
            write!(sums, "{byte:02x}").expect("written");
        }
        writeln!(sums, "  {name}").expect("written");
    }
    assert_golden("house/golden/migrations.txt", &sums);
}

/// PostgreSQL reports a duplicate by the name of the key, SQLite by its columns; `store::error`
/// makes the former from the latter, so the names have to follow from the columns.
#[tokio::test]
async fn names_of_keys_follow_from_their_columns() {
    let mut databases = databases().await;
    let Some(postgres) = &mut databases.postgres else {
        return;
    };
    let sql = "SELECT i.relname AS name, t.relname AS table_name,
            (SELECT string_agg(a.attname, '_' ORDER BY k.place)
             FROM unnest(x.indkey) WITH ORDINALITY AS k (number, place)
             JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number) AS columns
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
         JOIN pg_namespace n ON n.oid = t.relnamespace
         WHERE n.nspname = 'public' AND x.indisunique AND t.relname <> '_sqlx_migrations'";
    let rows = postgres.fetch_all(sql).await.expect("keys");
    assert!(rows.len() > 10);
    for row in rows {
        let text = |column: &str| row.get::<String, _>(column);
        assert_eq!(
            text("name"),
            format!("{}_{}_key", text("table_name"), text("columns"))
        );
    }
}

fn read_sqlite(sqlite: &rusqlite::Connection) -> Schema {
    let mut schema = Schema::default();
    let tables =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> '_sqlx_migrations'
         AND name NOT LIKE 'sqlite_%'";
    for table in ask(sqlite, tables, |row| row.get::<_, String>("name")) {
        let columns = ask(sqlite, &format!("PRAGMA table_info({table})"), |row| {
            let (name, kind): (String, String) = (row.get("name")?, row.get("type")?);
            Ok((
                name,
                kind,
                row.get::<_, i64>("pk")?,
                row.get::<_, bool>("notnull")?,
            ))
        });
        let mut key = Vec::new();
        for (name, kind, place, is_not_null) in columns {
            let kind = match &*kind {
                "TEXT" => Kind::Text,
                "BLOB" => Kind::Bytes,
                "INTEGER" => Kind::Number,
                other => panic!("{table}.{name} is {other}"),
            };
            if place > 0 {
                key.push((place, name.clone()));
            }
            schema
                .columns
                .insert(format!("{table}.{name}"), (kind, !is_not_null));
        }
        key.sort();
        let key: Vec<String> = key.into_iter().map(|(_, name)| name).collect();
        schema.keys.insert(format!("{table}({})", key.join(",")));
        let indexes = ask(sqlite, &format!("PRAGMA index_list({table})"), |row| {
            let (name, origin): (String, String) = (row.get("name")?, row.get("origin")?);
            Ok((name, origin, row.get::<_, bool>("unique")?))
        });
        for (name, origin, unique) in indexes {
            if origin != "c" {
                continue;
            }
            let columns = ask(sqlite, &format!("PRAGMA index_info({name})"), |row| {
                row.get::<_, String>("name")
            });
            schema
                .indexes
                .insert(name, (table.clone(), columns.join(","), unique));
        }
        let references = ask(
            sqlite,
            &format!("PRAGMA foreign_key_list({table})"),
            |row| {
                let (from, to): (String, String) = (row.get("from")?, row.get("table")?);
                let end: String = row.get("on_delete")?;
                Ok(format!("{table}({from}) -> {to} ON DELETE {end}"))
            },
        );
        schema.references.extend(references);
    }
    schema
}

fn ask<T>(
    sqlite: &rusqlite::Connection,
    sql: &str,
    map: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Vec<T> {
    let mut statement = sqlite.prepare(sql).expect("a statement");
    let rows = statement.query_map([], map).expect("an answer");
    rows.map(|row| row.expect("a row")).collect()
}

async fn read_postgres(postgres: &mut PgConnection) -> Schema {
    let mut schema = Schema::default();
    let columns = "SELECT table_name::text, column_name::text, data_type::text, is_nullable::text
         FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'";
    for row in postgres.fetch_all(columns).await.expect("columns") {
        let text = |column: &str| row.get::<String, _>(column);
        let name = format!("{}.{}", text("table_name"), text("column_name"));
        let kind = match &*text("data_type") {
            "text" => Kind::Text,
            "bytea" | "uuid" => Kind::Bytes,
            "bigint" | "boolean" => Kind::Number,
            other => panic!("{name} is {other}"),
        };
        schema
            .columns
            .insert(name, (kind, text("is_nullable") == "YES"));
    }
    let indexes = "SELECT i.relname::text AS name, t.relname::text AS table_name,
            x.indisunique AS is_unique, x.indisprimary AS is_key,
            (SELECT string_agg(a.attname, ',' ORDER BY k.place)
             FROM unnest(x.indkey) WITH ORDINALITY AS k (number, place)
             JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number) AS columns
         FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
         JOIN pg_namespace n ON n.oid = t.relnamespace
         WHERE n.nspname = 'public' AND t.relname <> '_sqlx_migrations'";
    for row in postgres.fetch_all(indexes).await.expect("indexes") {
        let text = |column: &str| row.get::<String, _>(column);
        let (table, columns) = (text("table_name"), text("columns"));
        if row.get("is_key") {
            schema.keys.insert(format!("{table}({columns})"));
        } else {
            schema
                .indexes
                .insert(text("name"), (table, columns, row.get("is_unique")));
        }
    }
    let references = "SELECT t.relname::text AS table_name, a.attname::text AS column_name,
            r.relname::text AS other,
            CASE c.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' WHEN 'a' THEN 'NO ACTION' ELSE 'other' END AS end
         FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid JOIN pg_class r ON r.oid = c.confrelid
         JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = c.conkey[1]
         WHERE c.contype = 'f'";
    for row in postgres.fetch_all(references).await.expect("references") {
        let text = |column: &str| row.get::<String, _>(column);
        let (table, column, other, end) = (
            text("table_name"),
            text("column_name"),
            text("other"),
            text("end"),
        );
        schema
            .references
            .insert(format!("{table}({column}) -> {other} ON DELETE {end}"));
    }
    schema
}

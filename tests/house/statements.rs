//! Every text in `sql!(…)`: it works on both engines, and it finds its rows by an index.

use std::collections::{BTreeSet, HashMap};

use proc_macro2::TokenTree;
use sqlx::{AssertSqlSafe, Executor as _, SqlSafeStr as _};

use crate::{
    databases::{databases, open},
    golden::assert_golden,
    source::{File, each_level, files, inside, is_punct, macro_calls, place},
};

/// Tables that SQLite may read as a whole, and why that is no harm.
const SHORT: [(&str, &str); 1] = [("signing_keys", "holds a few keys for each year")];

/// What is below the statements, and speaks to each engine in its own words.
const SEAM: [&str; 6] = [
    "store/db.rs",
    "store/lane.rs",
    "store/open.rs",
    "store/postgres.rs",
    "store/sql.rs",
    "store/sqlite.rs",
];

struct Statement {
    place: String,
    text: String,
}

fn statements() -> Vec<Statement> {
    let files = files();
    let mut statements = Vec::new();
    for file in files.iter().filter(|file| !SEAM.contains(&&*file.path)) {
        for call in macro_calls(&file.tokens, "sql") {
            statements.push(Statement {
                place: place(&file.path, &TokenTree::Group(call.clone())),
                text: join(&inside(&call), file, &files),
            });
        }
    }
    statements
}

/// What `concat!` makes of literals and of macros without arguments that stand for literals.
fn join(parts: &[TokenTree], file: &File, files: &[File]) -> String {
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        match part {
            TokenTree::Literal(_) => text += &literal(part),
            TokenTree::Ident(name) if is_punct(&parts[i + 1], '!') => {
                let here = shared_columns(file).remove(&name.to_string());
                let anywhere = || {
                    files
                        .iter()
                        .find_map(|file| shared_columns(file).remove(&name.to_string()))
                };
                text += &here.or_else(anywhere).expect("a macro of columns");
            }
            TokenTree::Punct(_) | TokenTree::Group(_) => {}
            TokenTree::Ident(_) => panic!("{}: not a literal", place(&file.path, part)),
        }
    }
    text
}

/// `macro_rules! name { () => { "…" } }`, by name and by alias.
fn shared_columns(file: &File) -> HashMap<String, String> {
    let mut found = HashMap::new();
    for window in file.tokens.windows(4) {
        if let [
            TokenTree::Ident(keyword),
            _,
            TokenTree::Ident(name),
            TokenTree::Group(rules),
        ] = window
            && keyword == "macro_rules"
            && let Some(TokenTree::Group(body)) = inside(rules).get(3)
            && let [text @ TokenTree::Literal(_)] = &*inside(body)
        {
            found.insert(name.to_string(), literal(text));
        }
    }
    // `use columns as credential_columns;`
    for window in file.tokens.windows(3) {
        if let [
            TokenTree::Ident(name),
            TokenTree::Ident(keyword),
            TokenTree::Ident(alias),
        ] = window
            && keyword == "as"
            && let Some(text) = found.get(&name.to_string())
        {
            found.insert(alias.to_string(), text.clone());
        }
    }
    found
}

fn literal(token: &TokenTree) -> String {
    let parsed: syn::LitStr = syn::parse_str(&token.to_string()).expect("a string");
    parsed.value()
}

#[tokio::test]
async fn every_statement_works_on_both_engines_and_finds_its_rows_by_an_index() {
    let mut databases = databases().await;
    let statements = statements();
    assert!(
        statements.len() > 80,
        "only {} statements found",
        statements.len()
    );
    let mut wrong = Vec::new();
    for Statement { place, text } in &statements {
        if text.replace("COUNT(*)", "").contains('*') {
            wrong.push(format!("{place}: names no columns"));
        }
        match plan(&databases.sqlite, text) {
            Ok(plan) => {
                for step in plan.iter().filter(|step| is_slow(step, text)) {
                    wrong.push(format!("{place}: {step}: {text}"));
                }
            }
            Err(error) => wrong.push(format!("{place}: SQLite: {error}: {text}")),
        }
        if let Some(postgres) = &mut databases.postgres
            && let Err(error) = postgres
                .prepare(AssertSqlSafe(text.clone()).into_sql_str())
                .await
        {
            wrong.push(format!("{place}: PostgreSQL: {error}: {text}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What statements bring themselves and may sort, by which clause: no index has it in order.
const SORTED: [(&str, &[&str], &str); 2] = [
    (
        "above (id) AS (SELECT DISTINCT",
        &["DISTINCT"],
        "the groups that one account is in",
    ),
    (
        "members (id, kind) AS (",
        &["DISTINCT", "ORDER BY"],
        "who is in some groups, for whoever looks after them",
    ),
];

/// How SQLite finds the rows of each statement, for review.
#[tokio::test]
async fn how_rows_are_found_is_known() {
    let databases = databases().await;
    let mut plans = BTreeSet::new();
    for Statement { place, text } in statements() {
        let file = place.split(':').next().unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        let steps = plan(&databases.sqlite, &text).expect("works");
        if !steps.is_empty() {
            plans.insert(format!(
                "{file}: {}\n    {}\n",
                words.join(" "),
                steps.join("\n    ")
            ));
        }
    }
    let plans: Vec<String> = plans.into_iter().collect();
    assert_golden("house/golden/plans.txt", &plans.join("\n"));
}

fn plan(sqlite: &rusqlite::Connection, text: &str) -> rusqlite::Result<Vec<String>> {
    let mut explain = sqlite.prepare(&format!("EXPLAIN QUERY PLAN {text}"))?;
    let mut rows = explain.raw_query();
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        steps.push(row.get("detail")?);
    }
    Ok(steps)
}

/// Whether a step reads a whole table or index, or sorts what an index could have had in order.
/// Rows that the statement itself brings are no table.
fn is_slow(step: &str, text: &str) -> bool {
    if let Some(clause) = step.strip_prefix("USE TEMP B-TREE FOR ") {
        let may_sort = |(brought, clauses, _): &(&str, &[&str], _)| {
            text.contains(brought) && clauses.contains(&clause)
        };
        return !SORTED.iter().any(may_sort);
    }
    step.strip_prefix("SCAN ").is_some_and(|rest| {
        let table = rest.split(' ').next().unwrap_or_default();
        let is_brought = text.contains(&format!("WITH RECURSIVE {table} ("))
            || text.contains(&format!("{table} (id) AS ("))
            || text.contains(&format!("{table} (id, kind) AS ("));
        !is_brought
            && !["CONSTANT", "always"].contains(&table)
            && !SHORT.iter().any(|(short, _)| *short == table)
    })
}

#[tokio::test]
async fn the_check_sees_scans_and_errors() {
    let databases = databases().await;
    let scan = plan(
        &databases.sqlite,
        "SELECT id FROM users WHERE display_name = $1",
    );
    assert!(scan.expect("works").iter().any(|step| is_slow(step, "")));
    let seek = plan(
        &databases.sqlite,
        "SELECT display_name FROM users WHERE id = $1",
    );
    assert!(!seek.expect("works").iter().any(|step| is_slow(step, "")));
    assert!(plan(&databases.sqlite, "SELECT nothing FROM users").is_err());
}

#[tokio::test]
async fn statistics_that_somebody_has_gathered_are_forgotten_at_the_next_start() {
    let databases = databases().await;
    let fill =
        "INSERT INTO groups (id, revision, display_name, description, create_time, update_time)
        VALUES (X'01', 1, '', '', 0, 0)";
    databases.sqlite.execute(fill, []).expect("filled");
    databases.sqlite.execute("ANALYZE", []).expect("analysed");
    let count = || -> i64 {
        let count = "SELECT COUNT(*) FROM sqlite_stat1";
        let count = databases.sqlite.query_row(count, [], |row| row.get(0));
        count.expect("a number")
    };
    assert!(count() > 0);
    open(&databases.targets[0]).await.expect("opens again");
    assert_eq!(count(), 0);
}

#[test]
fn sql_is_written_in_statements_only() {
    let mut wrong = Vec::new();
    for file in files() {
        let is_seam = SEAM.contains(&&*file.path);
        each_level(&file.tokens, &mut |level| {
            for (i, token) in level.iter().enumerate() {
                let is_text =
                    matches!(token, TokenTree::Literal(_)) && token.to_string().starts_with('"');
                let words = ["\"SELECT ", "\"INSERT ", "\"UPDATE ", "\"DELETE FROM"];
                let is_sql =
                    is_text && words.iter().any(|word| token.to_string().starts_with(word));
                let is_argument = i == 0 || is_punct(&level[i - 1], ',');
                if is_sql && !is_seam && !(file.path.starts_with("store/") && is_argument) {
                    wrong.push(place(&file.path, token));
                }
            }
        });
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

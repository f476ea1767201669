//! What the drivers report, sorted into what it means for us. Driver text stays in the log.

use std::fmt::Display;

use sqlx::error::ErrorKind;

use crate::domain;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
pub enum Error {
    /// A unique key, by the name both engines share: `table_column_column_key`.
    Duplicate(String),
    /// Another transaction was in the way; trying again may succeed.
    Conflict,
    /// The database cannot be reached or has no time for us.
    Unavailable(String),
    /// The data or the code is not what it should be.
    Broken(String),
}

impl Error {
    pub fn broken(cause: impl Display) -> Self {
        Self::Broken(cause.to_string())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause) => {
                let code = cause.code().unwrap_or_default();
                match (cause.kind(), code.as_ref()) {
                    (ErrorKind::UniqueViolation, _) => Self::Duplicate(key(cause.as_ref())),
                    // Serialization failure and deadlock; SQLite busy and its variants.
                    (_, "40001" | "40P01" | "5" | "261" | "517" | "773") => Self::Conflict,
                    // Timeouts, shutdown and connection exceptions of PostgreSQL; SQLite disk full
                    // and I/O errors.
                    (_, code) if is_unavailable(code) => Self::Unavailable(error.to_string()),
                    _ => Self::broken(error),
                }
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable(error.to_string()),
            _ => Self::broken(error),
        }
    }
}

fn is_unavailable(code: &str) -> bool {
    let postgres = ["08", "53", "55P03", "57014", "57P", "25P03"];
    let sqlite = ["13", "10"];
    let sqlite_io = code.parse::<u32>().is_ok_and(|code| code & 0xff == 10);
    (code.len() == 5 && postgres.iter().any(|class| code.starts_with(class)))
        || (code.len() < 5 && (sqlite.contains(&code) || sqlite_io))
}

/// The name of a violated key. SQLite gives `UNIQUE constraint failed: t.a, t.b`, and the name of
/// the index only for an index on expressions.
fn key(cause: &dyn sqlx::error::DatabaseError) -> String {
    if let Some(name) = cause.constraint() {
        return name.to_owned();
    }
    let message = cause.message();
    let columns = message
        .rsplit_once("failed: ")
        .map_or(message, |(_, columns)| columns);
    let mut names = columns
        .split(", ")
        .filter_map(|column| column.split_once('.'));
    let Some((table, first)) = names.next() else {
        return message.to_owned();
    };
    let rest = names.map(|(_, column)| column);
    let parts: Vec<&str> = [table, first].into_iter().chain(rest).collect();
    format!("{}_key", parts.join("_"))
}

impl From<Error> for domain::error::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Conflict => Self::Conflict,
            Error::Unavailable(cause) => Self::Unavailable(cause),
            Error::Duplicate(key) => Self::Internal(format!("unexpected duplicate of {key}")),
            Error::Broken(cause) => Self::Internal(cause),
        }
    }
}

/// Gives a duplicate its meaning, at the one place that knows it.
pub trait OnDuplicate<T> {
    fn on_duplicate(
        self,
        key: &str,
        meaning: impl FnOnce() -> domain::error::Error,
    ) -> domain::error::Result<T>;
}

impl<T> OnDuplicate<T> for Result<T> {
    fn on_duplicate(
        self,
        key: &str,
        meaning: impl FnOnce() -> domain::error::Error,
    ) -> domain::error::Result<T> {
        self.map_err(|error| match error {
            Error::Duplicate(found) if found == key => meaning(),
            other => other.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_engines_are_told_apart() {
        for code in [
            "08006", "53300", "57P01", "57014", "55P03", "10", "13", "522", "1034",
        ] {
            assert!(is_unavailable(code), "{code}");
        }
        for code in ["23505", "42601", "22021", "1", "19", "2067", ""] {
            assert!(!is_unavailable(code), "{code}");
        }
    }
}

//! What the drivers report, sorted into what it means for us. Driver text stays in the log.

use std::fmt::Display;

use rusqlite::{ErrorCode, ffi};
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

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Duplicate(key) => write!(f, "a duplicate of {key}"),
            Self::Conflict => f.write_str("another transaction is in the way"),
            Self::Unavailable(cause) | Self::Broken(cause) => f.write_str(cause),
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause) => {
                let code = cause.code().unwrap_or_default();
                match (cause.kind(), code.as_ref()) {
                    (ErrorKind::UniqueViolation, _) => {
                        Self::Duplicate(cause.constraint().unwrap_or_default().to_owned())
                    }
                    // Serialization failure and deadlock.
                    (_, "40001" | "40P01") => Self::Conflict,
                    (_, code) if is_unavailable(code) => Self::Unavailable(error.to_string()),
                    _ => Self::broken(error),
                }
            }
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
                Self::Unavailable(error.to_string())
            }
            _ => Self::broken(error),
        }
    }
}

/// What a server of PostgreSQL says that takes no changes: it stands by for another one.
pub const READ_ONLY: &str = "25006";

/// Timeouts, shutdown and connection exceptions of PostgreSQL.
fn is_unavailable(code: &str) -> bool {
    let classes = ["08", "53", "55P03", "57014", "57P", "25P03", READ_ONLY];
    classes.iter().any(|class| code.starts_with(class))
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(cause, message) = &error else {
            return Self::broken(error);
        };
        let unique = [
            ffi::SQLITE_CONSTRAINT_UNIQUE,
            ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
        ];
        match (cause.code, message) {
            (ErrorCode::ConstraintViolation, Some(message))
                if unique.contains(&cause.extended_code) =>
            {
                Self::Duplicate(key(message))
            }
            (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => Self::Conflict,
            // Out of time, or out of disk.
            (
                ErrorCode::OperationInterrupted
                | ErrorCode::SystemIoFailure
                | ErrorCode::DiskFull
                | ErrorCode::CannotOpen,
                _,
            ) => Self::Unavailable(error.to_string()),
            _ => Self::broken(error),
        }
    }
}

/// The name of a violated key of SQLite, which says `UNIQUE constraint failed: t.a, t.b`.
fn key(message: &str) -> String {
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
    fn codes_are_told_apart() {
        for code in ["08006", "53300", "57P01", "57014", "55P03", READ_ONLY] {
            assert!(is_unavailable(code), "{code}");
        }
        for code in ["23505", "42601", "22021", ""] {
            assert!(!is_unavailable(code), "{code}");
        }
    }

    #[test]
    fn both_engines_name_a_key_alike() {
        assert_eq!(key("UNIQUE constraint failed: t.a, t.b"), "t_a_b_key");
        assert_eq!(key("UNIQUE constraint failed: users.id"), "users_id_key");
    }

    #[test]
    fn a_full_disk_is_no_conflict() {
        let error = |code| Error::from(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        for code in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_INTERRUPT,
        ] {
            assert!(matches!(error(code), Error::Unavailable(_)), "{code}");
        }
        for code in [
            ffi::SQLITE_BUSY,
            ffi::SQLITE_BUSY_SNAPSHOT,
            ffi::SQLITE_LOCKED,
        ] {
            assert!(matches!(error(code), Error::Conflict), "{code}");
        }
        for code in [
            ffi::SQLITE_ERROR,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_CONSTRAINT_CHECK,
        ] {
            assert!(matches!(error(code), Error::Broken(_)), "{code}");
        }
    }
}

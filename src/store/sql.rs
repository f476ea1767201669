//! One SQL text, two drivers: statements with their values, and rows read by column name.
//!
//! The portable subset, which `tests/house` checks by preparing every statement on both engines:
//! `$1` placeholders, explicit columns, `RETURNING`, `ON CONFLICT … DO UPDATE`, row values, `EXISTS`,
//! `LIMIT $n`, an optional condition as `(x = $n OR $n IS NULL)`; no `now()`, no `LIKE`, no arrays,
//! no `OFFSET`, no engine's own functions.
//! Invariant: the text of a statement is a literal, so nothing a caller sends can become part of it.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
};

use rusqlite::{
    Statement, ToSql,
    types::{ToSqlOutput, ValueRef},
};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Arguments as _, Column as _, Row as _,
    postgres::{PgArguments, PgColumn, PgRow},
};
use uuid::Uuid;

use super::error::{Error, Result};
use crate::domain::{
    account::{Lifecycle, State},
    name::{
        AccountId, ChangeId, ContactId, CredentialId, ElevationId, EntitlementId, EventId, GrantId,
        GroupId, MessageId, PrincipalId, SessionId, SystemAccountId, UserId,
    },
    time::{Timestamp, Window},
};

/// A statement: its text, and its values in the order `$1, $2, …`.
pub struct Sql {
    pub(super) text: &'static str,
    expected: usize,
    values: Vec<Value>,
}

/// `sql!("SELECT … WHERE id = $1")`: takes literals only, joins them, and counts the placeholders at
/// compile time. A list of columns that several statements share is a macro: `sql!("SELECT ",
/// columns!(), " FROM …")`.
macro_rules! sql {
    ($($part:expr),+) => {{
        const TEXT: &str = concat!($($part),+);
        const EXPECTED: usize = $crate::store::sql::placeholders(TEXT);
        $crate::store::sql::Sql::new(TEXT, EXPECTED)
    }};
}
pub(super) use sql;

/// What columns hold. `None` is a NULL of that type.
#[derive(Clone, Debug)]
pub enum Value {
    Bool(Option<bool>),
    Int(Option<i64>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Id(Option<Uuid>),
}

impl Sql {
    pub const fn new(text: &'static str, expected: usize) -> Self {
        Self {
            text,
            expected,
            values: Vec::new(),
        }
    }

    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// A list or map, kept as JSON text.
    pub fn bind_json(self, value: &impl Serialize) -> Self {
        // Lists and maps of text cannot fail to serialise.
        self.bind(serde_json::to_string(value).unwrap_or_default())
    }

    /// JSON, or NULL.
    pub fn bind_some_json(self, value: Option<&impl Serialize>) -> Self {
        self.bind(value.map(|value| serde_json::to_string(value).unwrap_or_default()))
    }

    /// One statement for the rows of many, which are all the same INSERT of one row.
    pub(super) fn of_rows(rows: Vec<Self>) -> Result<(String, PgArguments)> {
        let (Some(first), count) = (rows.first(), rows.len()) else {
            return Err(Error::broken("no rows"));
        };
        let (text, width) = (first.text, first.expected);
        let group = text.rsplit_once("VALUES").map(|(_, group)| group);
        let group = group.ok_or_else(|| Error::broken(format!("no VALUES: {text}")))?;
        let mut repeated = text.to_owned();
        for row in 1..count {
            repeated.push(',');
            repeated.push_str(&renumbered(group, row * width));
        }
        let mut values = Vec::with_capacity(count * width);
        for row in rows {
            if row.text != text {
                return Err(Error::broken(format!("not the same INSERT: {}", row.text)));
            }
            row.check()?;
            values.extend(row.values);
        }
        Ok((repeated, arguments(values)?))
    }

    /// Gives a statement of SQLite its values. There `$1` is a name like any other, and names are
    /// numbered as they come.
    pub(super) fn bind_to(&self, statement: &mut Statement<'_>) -> Result<()> {
        self.check()?;
        for place in 1..=statement.parameter_count() {
            let name = statement.parameter_name(place);
            let number = name.and_then(|name| name.strip_prefix('$')?.parse::<usize>().ok());
            let value = number.and_then(|number| self.values.get(number.checked_sub(1)?));
            let value =
                value.ok_or_else(|| Error::broken(format!("a placeholder: {}", self.text)))?;
            statement.raw_bind_parameter(place, value)?;
        }
        Ok(())
    }

    pub(super) fn for_postgres(self) -> Result<PgArguments> {
        self.check()?;
        arguments(self.values)
    }

    /// SQLite takes a value that was forgotten for NULL; here it is an error on both engines.
    fn check(&self) -> Result<()> {
        if self.values.len() == self.expected {
            return Ok(());
        }
        let (bound, expected) = (self.values.len(), self.expected);
        Err(Error::broken(format!(
            "{bound} values for {expected} placeholders: {}",
            self.text
        )))
    }
}

fn arguments(values: Vec<Value>) -> Result<PgArguments> {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Bool(value) => arguments.add(value),
            Value::Int(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
            Value::Id(value) => arguments.add(value),
        }
        .map_err(Error::broken)?;
    }
    Ok(arguments)
}

/// The same text with each `$n` higher by `by`.
fn renumbered(text: &str, by: usize) -> String {
    let mut parts = text.split('$');
    let mut renumbered = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        let number = part[..end].parse::<usize>().unwrap_or_default();
        renumbered.push('$');
        renumbered.push_str(&(number + by).to_string());
        renumbered.push_str(&part[end..]);
    }
    renumbered
}

/// The highest `$n` of a statement.
///
/// Panics, at compile time, on a bare `$` and on `?`.
pub const fn placeholders(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut highest, mut i) = (0, 0);
    while i < bytes.len() {
        assert!(bytes[i] != b'?', "placeholders are written $1, $2, …");
        if bytes[i] == b'$' {
            let mut number = 0;
            i += 1;
            while i < bytes.len() && bytes[i].is_ascii_digit() {
                number = number * 10 + (bytes[i] - b'0') as usize;
                i += 1;
            }
            assert!(number > 0, "a placeholder needs its number");
            if number > highest {
                highest = number;
            }
        } else {
            i += 1;
        }
    }
    highest
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let value = match self {
            Self::Bool(value) => value.map(|value| ValueRef::Integer(value.into())),
            Self::Int(value) => value.map(ValueRef::Integer),
            Self::Text(value) => value.as_ref().map(|text| ValueRef::Text(text.as_bytes())),
            Self::Bytes(value) => value.as_deref().map(ValueRef::Blob),
            Self::Id(value) => value.as_ref().map(|id| ValueRef::Blob(id.as_bytes())),
        };
        Ok(ToSqlOutput::Borrowed(value.unwrap_or(ValueRef::Null)))
    }
}

/// One row of a result.
pub struct Row<'a> {
    source: Source<'a>,
    columns: &'a Columns,
    /// How many columns were asked for.
    asked: Cell<usize>,
}

enum Source<'a> {
    Sqlite(&'a rusqlite::Row<'a>),
    Postgres(&'a PgRow),
}

/// The columns of a result in the order in which they were asked for, and where each was found: the
/// next row is asked for the same ones in the same order.
#[derive(Default)]
pub struct Columns(RefCell<Vec<(&'static str, usize)>>);

impl<'a> Row<'a> {
    pub(super) const fn of_sqlite(row: &'a rusqlite::Row<'a>, columns: &'a Columns) -> Self {
        Self {
            source: Source::Sqlite(row),
            columns,
            asked: Cell::new(0),
        }
    }

    pub(super) const fn of_postgres(row: &'a PgRow, columns: &'a Columns) -> Self {
        Self {
            source: Source::Postgres(row),
            columns,
            asked: Cell::new(0),
        }
    }

    /// Where a column is.
    fn place(&self, column: &'static str) -> Result<usize> {
        let asked = self.asked.get();
        self.asked.set(asked + 1);
        let mut columns = self.columns.0.borrow_mut();
        match columns.get(asked) {
            // The same literal, so there is nothing to compare.
            Some((known, place)) if std::ptr::eq(*known, column) => return Ok(*place),
            _ => columns.truncate(asked),
        }
        let likely = columns.last().map_or(0, |(_, place)| place + 1);
        let place = self.source.find(column, likely);
        let place = place.ok_or_else(|| Error::broken(format!("no column {column}")))?;
        columns.push((column, place));
        Ok(place)
    }
}

impl Source<'_> {
    fn find(&self, column: &str, likely: usize) -> Option<usize> {
        match self {
            Self::Sqlite(row) => {
                let statement = row.as_ref();
                let is_there = statement.column_name(likely).ok() == Some(column);
                if is_there {
                    return Some(likely);
                }
                statement.column_index(column).ok()
            }
            Self::Postgres(row) => row.try_column(column).ok().map(PgColumn::ordinal),
        }
    }
}

impl Row<'_> {
    /// The value of a column, or an error that names the column. A NULL is an error unless the type
    /// is an `Option`.
    pub fn get<T: Column>(&self, column: &'static str) -> Result<T> {
        T::read(self, column)
    }

    /// A list or map kept as JSON text.
    pub fn get_json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T> {
        let text: String = self.get(column)?;
        serde_json::from_str(&text).map_err(|error| Error::broken(format!("{column}: {error}")))
    }

    pub fn get_some_json<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>> {
        match self.get::<Option<String>>(column)? {
            Some(_) => self.get_json(column).map(Some),
            None => Ok(None),
        }
    }

    /// Text that stands for something: `parse` says for what.
    pub fn get_parsed<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T> {
        let text: String = self.get(column)?;
        parse(&text).ok_or_else(|| Error::broken(format!("{column}: unexpected `{text}`")))
    }

    /// The state columns, which users and system accounts have alike.
    pub fn get_lifecycle(&self) -> Result<Lifecycle> {
        Ok(Lifecycle {
            state: self.get_parsed("state", State::parse)?,
            reason: self.get("state_reason")?,
            until_time: self.get("state_until_time")?,
            expire_time: self.get("expire_time")?,
            delete_time: self.get("delete_time")?,
            purge_time: self.get("purge_time")?,
        })
    }

    /// An account: its kind in one column, its id in another.
    pub fn get_account(&self, kind: &'static str, id: &'static str) -> Result<AccountId> {
        let id: Uuid = self.get(id)?;
        self.get_parsed(kind, |kind| account(kind, id))
    }

    /// The same for whoever can hold a grant.
    pub fn get_principal(&self, kind: &'static str, id: &'static str) -> Result<PrincipalId> {
        let id: Uuid = self.get(id)?;
        self.get_parsed(kind, |kind| match kind {
            "group" => Some(GroupId(id).into()),
            _ => account(kind, id).map(PrincipalId::Account),
        })
    }

    /// From `start_time` to `expire_time`.
    pub fn get_window(&self) -> Result<Window> {
        Ok(Window {
            start: self.get("start_time")?,
            end: self.get("expire_time")?,
        })
    }
}

/// What a column can be read as.
pub trait Column: Sized {
    fn read(row: &Row<'_>, column: &'static str) -> Result<Self>;
}

/// The kind of an account, as the `…_kind` columns hold it.
pub const fn account_kind(id: AccountId) -> &'static str {
    match id {
        AccountId::User(_) => "user",
        AccountId::System(_) => "system_account",
    }
}

/// The same for whoever can hold a grant.
pub const fn principal_kind(id: PrincipalId) -> &'static str {
    match id {
        PrincipalId::Account(id) => account_kind(id),
        PrincipalId::Group(_) => "group",
    }
}

pub fn account(kind: &str, id: Uuid) -> Option<AccountId> {
    match kind {
        "user" => Some(AccountId::User(UserId(id))),
        "system_account" => Some(AccountId::System(SystemAccountId(id))),
        _ => None,
    }
}

/// The types that both drivers know.
macro_rules! native {
    ($($type:ty => $variant:ident,)*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self { Self::$variant(Some(value)) }
        }
        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self { Self::$variant(value) }
        }
        impl Column for Option<$type> {
            fn read(row: &Row<'_>, column: &'static str) -> Result<Self> {
                let broken = |error: &dyn std::fmt::Display| {
                    Error::broken(format!("{column}: {error}"))
                };
                let place = row.place(column)?;
                match row.source {
                    Source::Sqlite(row) => row.get(place).map_err(|error| broken(&error)),
                    Source::Postgres(row) => row.try_get(place).map_err(|error| broken(&error)),
                }
            }
        }
        impl Column for $type {
            fn read(row: &Row<'_>, column: &'static str) -> Result<Self> {
                Option::<Self>::read(row, column)?
                    .ok_or_else(|| Error::broken(format!("{column}: unexpected NULL")))
            }
        }
    )*};
}

native! {
    bool => Bool,
    i64 => Int,
    String => Text,
    Vec<u8> => Bytes,
    Uuid => Id,
}

/// Types of ours that a native one carries: how to get there and back.
macro_rules! column {
    ($($type:ty: $native:ty, $to:expr, $from:expr;)*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self { <$native>::into($to(value)) }
        }
        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self { Option::<$native>::into(value.map($to)) }
        }
        impl Column for $type {
            fn read(row: &Row<'_>, column: &'static str) -> Result<Self> {
                <$native>::read(row, column).map($from)
            }
        }
        impl Column for Option<$type> {
            fn read(row: &Row<'_>, column: &'static str) -> Result<Self> {
                Ok(Option::<$native>::read(row, column)?.map($from))
            }
        }
    )*};
}

column! {
    Timestamp: i64, Timestamp::micros, Timestamp::from_micros;
    UserId: Uuid, |id: UserId| id.0, UserId;
    SystemAccountId: Uuid, |id: SystemAccountId| id.0, SystemAccountId;
    CredentialId: Uuid, |id: CredentialId| id.0, CredentialId;
    SessionId: Uuid, |id: SessionId| id.0, SessionId;
    GrantId: Uuid, |id: GrantId| id.0, GrantId;
    GroupId: Uuid, |id: GroupId| id.0, GroupId;
    EntitlementId: Uuid, |id: EntitlementId| id.0, EntitlementId;
    ElevationId: Uuid, |id: ElevationId| id.0, ElevationId;
    ChangeId: Uuid, |id: ChangeId| id.0, ChangeId;
    EventId: Uuid, |id: EventId| id.0, EventId;
    ContactId: Uuid, |id: ContactId| id.0, ContactId;
    MessageId: Uuid, |id: MessageId| id.0, MessageId;
}

impl From<AccountId> for Value {
    fn from(id: AccountId) -> Self {
        id.uuid().into()
    }
}

impl From<PrincipalId> for Value {
    fn from(id: PrincipalId) -> Self {
        id.uuid().into()
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<Option<&str>> for Value {
    fn from(text: Option<&str>) -> Self {
        text.map(str::to_owned).into()
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl From<Option<IpAddr>> for Value {
    fn from(address: Option<IpAddr>) -> Self {
        address.map(|address| address.to_string()).into()
    }
}

impl Column for Option<IpAddr> {
    fn read(row: &Row<'_>, column: &'static str) -> Result<Self> {
        let text: Option<String> = row.get(column)?;
        let parse = |text: String| {
            text.parse()
                .map_err(|_| Error::broken(format!("{column}: {text}")))
        };
        text.map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_placeholder_counts() {
        assert_eq!(placeholders("SELECT 1"), 0);
        assert_eq!(placeholders("SELECT $2, $1, $2"), 2);
        assert_eq!(placeholders("VALUES ($1, $12)"), 12);
    }

    #[test]
    fn rows_become_one_statement() {
        let row = |a, b| sql!("INSERT INTO t (a, b) VALUES ($1, $2)").bind(a).bind(b);
        let (text, _) = Sql::of_rows(vec![row(1, 2), row(3, 4), row(5, 6)]).expect("rows");
        assert_eq!(
            text,
            "INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4), ($5, $6)"
        );
        assert!(Sql::of_rows(vec![sql!("INSERT INTO t (a) VALUES ($1)")]).is_err());
        let other = sql!("INSERT INTO u (a, b) VALUES ($1, $2)").bind(1).bind(2);
        assert!(Sql::of_rows(vec![row(1, 2), other]).is_err());
    }

    #[test]
    fn a_forgotten_value_is_an_error() {
        assert!(sql!("SELECT $1, $2").bind(1).for_postgres().is_err());
        assert!(
            sql!("SELECT $1, $2")
                .bind(1)
                .bind(2)
                .bind(3)
                .for_postgres()
                .is_err()
        );
        assert!(sql!("SELECT $1, $2").bind(1).bind(2).for_postgres().is_ok());
    }
}

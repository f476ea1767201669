//! A connection to an SQLite file, and the pool of those that only read.
//!
//! Statements run on the thread that asks: most take some microseconds, a fraction of what it takes
//! to wake another thread. What may take longer runs on threads that are there for waiting: a COMMIT,
//! which waits for the disk, a page of a list, which may pass many rows to find a few, and removing
//! many rows at once.
//! Invariant: no statement runs longer than a transaction may take, nor do those of one together.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rusqlite::{CachedStatement, ErrorCode, OpenFlags, config::DbConfig};

use super::{
    error::{Error, Result},
    pool::{Place, Pool},
    sql::{Columns, Row, Sql},
};

/// A database file, and how to open it.
#[derive(Clone, Debug)]
pub struct File {
    pub path: PathBuf,
    /// How long a statement may take.
    pub statement_timeout: Duration,
}

/// How long to wait for a lock that somebody holds who is not us: short, since the thread waits.
const BUSY_TIMEOUT: Duration = Duration::from_millis(100);
/// More than there are statements.
const CACHED_STATEMENTS: usize = 256;
/// Steps of SQLite's machine between two looks at the clock: some hundred microseconds.
const STEPS: i32 = 10_000;

impl File {
    /// A connection that writes. It creates the file. Its cache of 32 MiB holds the pages that a large
    /// transaction changes; with less they are written again and again. Its log, which grows with the
    /// largest transaction, is cut back to 64 MiB.
    pub fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        self.connect(
            flags,
            // The log is synced at every commit: what was answered survives a power cut.
            "PRAGMA journal_mode = wal; PRAGMA synchronous = full; PRAGMA foreign_keys = on;
             PRAGMA cache_size = -32768; PRAGMA journal_size_limit = 67108864;",
        )
    }

    fn open_to_read(&self) -> rusqlite::Result<Connection> {
        self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY, "PRAGMA query_only = on;")
    }

    fn connect(&self, flags: OpenFlags, pragmas: &str) -> rusqlite::Result<Connection> {
        // One thread at a time has the connection, so it needs no lock of its own.
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = rusqlite::Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        connection.execute_batch(pragmas)?;
        // Without it a statement is planned anew whenever the values it is given change.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.execute_batch("PRAGMA trusted_schema = off;")?;
        let since = Instant::now();
        let end_ms = Arc::new(AtomicU64::new(u64::MAX));
        let limit_ms = Arc::clone(&end_ms);
        let is_over = move || millis(since.elapsed()) > limit_ms.load(Relaxed);
        connection.progress_handler(STEPS, Some(is_over))?;
        Ok(Connection {
            inner: connection,
            since,
            end_ms,
            statement_timeout: self.statement_timeout,
            lent_until: None,
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A connection.
pub struct Connection {
    inner: rusqlite::Connection,
    since: Instant,
    /// When the statement that runs is interrupted, from `since`.
    end_ms: Arc<AtomicU64>,
    statement_timeout: Duration,
    /// The end of the transaction that it is lent to.
    lent_until: Option<Instant>,
}

impl Connection {
    /// The first row, if there is one.
    pub fn first<T>(
        &mut self,
        sql: &Sql,
        map: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut statement = self.prepare(sql)?;
        let (mut rows, columns) = (statement.raw_query(), Columns::default());
        rows.next()?
            .map(|row| map(&Row::of_sqlite(row, &columns)))
            .transpose()
    }

    pub fn all<T>(&mut self, sql: &Sql, map: impl Fn(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
        let mut statement = self.prepare(sql)?;
        let (mut rows, columns) = (statement.raw_query(), Columns::default());
        let mut mapped = Vec::new();
        while let Some(row) = rows.next()? {
            mapped.push(map(&Row::of_sqlite(row, &columns))?);
        }
        Ok(mapped)
    }

    /// How many rows it changed.
    pub fn execute(&mut self, sql: &Sql) -> Result<u64> {
        let changed = self.prepare(sql)?.raw_execute()?;
        Ok(u64::try_from(changed).unwrap_or(u64::MAX))
    }

    /// A statement without values.
    pub fn run(&mut self, text: &'static str) -> rusqlite::Result<()> {
        self.begin();
        self.inner.prepare_cached(text)?.raw_execute().map(drop)
    }

    /// Several statements without values.
    pub fn run_all(&mut self, text: &str) -> rusqlite::Result<()> {
        self.begin();
        self.inner.execute_batch(text)
    }

    /// From here on all statements together have the time of one, until [`Connection::take_back`].
    pub fn lend(&mut self) {
        self.lent_until = Instant::now().checked_add(self.statement_timeout);
    }

    pub const fn take_back(&mut self) {
        self.lent_until = None;
    }

    /// Begins to write, unless somebody does who is not us: false, at once.
    pub fn begin_to_write(&mut self) -> rusqlite::Result<bool> {
        self.inner.busy_timeout(Duration::ZERO)?;
        let begun = self.run("BEGIN IMMEDIATE");
        self.inner.busy_timeout(BUSY_TIMEOUT)?;
        match begun {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(false),
            begun => begun.map(|()| true),
        }
    }

    /// Does something that may take long on a thread that is there for waiting.
    pub async fn elsewhere<T: Send + 'static>(
        mut self,
        work: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> Result<(Self, T)> {
        elsewhere(move || {
            let outcome = work(&mut self);
            (self, outcome)
        })
        .await
    }

    fn prepare(&mut self, sql: &Sql) -> Result<CachedStatement<'_>> {
        // A statement that is short is over before anybody looks at the clock.
        if self.lent_until.is_some_and(|end| Instant::now() >= end) {
            return Err(Error::Unavailable("a transaction took too long".to_owned()));
        }
        self.begin();
        let mut statement = self.inner.prepare_cached(sql.text)?;
        sql.bind_to(&mut statement)?;
        Ok(statement)
    }

    /// From here on the statement has its time.
    fn begin(&self) {
        let end = self.since.elapsed().saturating_add(self.statement_timeout);
        let lent = self.lent_until.map(|end| end.duration_since(self.since));
        let end = lent.map_or(end, |lent| lent.min(end));
        self.end_ms.store(millis(end), Relaxed);
    }
}

/// Connections that only read.
pub struct Readers {
    file: File,
    pool: Arc<Pool<Connection>>,
}

impl Readers {
    pub fn new(file: File, max: u32, acquire_timeout: Duration) -> Self {
        Self {
            file,
            pool: Pool::new(max, acquire_timeout),
        }
    }

    pub async fn acquire(&self) -> Result<Reader> {
        let mut place = self.pool.acquire().await?;
        if place.get().is_none() {
            place.fill(self.file.open_to_read()?);
        }
        Ok(Reader(place))
    }

    pub fn close(&self) {
        drop(self.pool.close());
    }
}

/// A reading connection in use.
pub struct Reader(Place<Connection>);

impl Reader {
    pub fn connection(&mut self) -> Result<&mut Connection> {
        self.0.get().ok_or_else(lost)
    }

    /// All rows, found on a thread that may wait.
    pub async fn page<T: Send + 'static>(
        &mut self,
        sql: Sql,
        map: fn(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let connection = self.0.take().ok_or_else(lost)?;
        let found = connection.elsewhere(move |connection| connection.all(&sql, map));
        let (connection, rows) = found.await?;
        self.0.put(connection);
        rows
    }
}

/// Does something that may take long on a thread that is there for waiting.
pub async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    #[expect(clippy::disallowed_methods, reason = "it waits more than it computes")]
    let done = tokio::task::spawn_blocking(move || span.in_scope(work));
    done.await.map_err(Error::broken)
}

/// Whoever had the connection did not bring it back.
pub fn lost() -> Error {
    Error::broken("the connection is lost")
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;
    use crate::store::sql::sql;

    fn file(timeout: Duration) -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("test.sqlite");
        let file = File {
            path,
            statement_timeout: timeout,
        };
        (folder, file)
    }

    #[test]
    fn placeholders_stand_for_their_number_not_for_their_place() {
        let (_folder, file) = file(Duration::from_secs(5));
        let mut connection = file.open().expect("opens");
        let sql = sql!("SELECT $2 AS b, $1 AS a, $2 AS c").bind(1).bind("two");
        let row = connection.first(&sql, |row| {
            Ok((
                row.get::<i64>("a")?,
                row.get::<String>("b")?,
                row.get::<String>("c")?,
            ))
        });
        assert_eq!(
            row.expect("works"),
            Some((1, "two".to_owned(), "two".to_owned()))
        );
    }

    #[test]
    fn a_statement_is_planned_once_whatever_values_it_is_given() {
        let (_folder, file) = file(Duration::from_secs(5));
        let mut connection = file.open().expect("opens");
        let text = "SELECT name FROM sqlite_schema WHERE rowid > $1 ORDER BY rowid LIMIT $2";
        for value in 1..5 {
            let sql = Sql::new(text, 2).bind(value).bind(value);
            connection.all(&sql, |_| Ok(())).expect("works");
        }
        let statement = connection
            .inner
            .prepare_cached(text)
            .expect("from the cache");
        assert_eq!(statement.get_status(StatementStatus::Run), 4);
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }

    #[test]
    fn columns_are_found_by_name_whatever_order_they_are_asked_for_in() {
        let (_folder, file) = file(Duration::from_secs(5));
        let mut connection = file.open().expect("opens");
        let sql = sql!("SELECT 1 AS a, 2 AS b, 3 AS c UNION ALL SELECT 4, 5, 6");
        let rows = connection.all(&sql, |row| {
            let a: i64 = row.get("a")?;
            // Each row asks in an order of its own.
            let rest: [i64; 2] = match a {
                1 => [row.get("c")?, row.get("b")?],
                _ => [row.get("b")?, row.get("c")?],
            };
            Ok((a, rest))
        });
        assert_eq!(rows.expect("works"), [(1, [3, 2]), (4, [5, 6])]);
        let missing = connection.first(&sql, |row| row.get::<i64>("d"));
        assert!(matches!(missing, Err(Error::Broken(_))), "{missing:?}");
    }

    #[test]
    fn a_statement_that_takes_too_long_is_interrupted() {
        let (_folder, file) = file(Duration::from_millis(50));
        let mut connection = file.open().expect("opens");
        let endless = sql!(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
             SELECT COUNT(*) AS n FROM n"
        );
        let outcome = connection.first(&endless, |row| row.get::<i64>("n"));
        assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
        let next = connection.first(&sql!("SELECT 1 AS n"), |row| row.get::<i64>("n"));
        assert_eq!(next.expect("has its own time"), Some(1));
    }

    #[test]
    fn all_statements_of_a_loan_have_the_time_of_one() {
        let (_folder, file) = file(Duration::from_millis(50));
        let mut connection = file.open().expect("opens");
        let one = |connection: &mut Connection| {
            connection.first(&sql!("SELECT 1 AS n"), |row| row.get::<i64>("n"))
        };
        connection.lend();
        assert_eq!(one(&mut connection).expect("in time"), Some(1));
        std::thread::sleep(Duration::from_millis(60));
        let late = one(&mut connection);
        assert!(matches!(late, Err(Error::Unavailable(_))), "{late:?}");
        connection.take_back();
        assert_eq!(one(&mut connection).expect("has its own time"), Some(1));
    }

    #[tokio::test]
    async fn readers_cannot_write_and_are_as_many_as_there_may_be() {
        let (_folder, file) = file(Duration::from_secs(5));
        let mut writer = file.open().expect("opens");
        writer
            .run_all("CREATE TABLE t (a INTEGER) STRICT")
            .expect("a table");
        let readers = Readers::new(file, 1, Duration::from_millis(10));
        let mut reader = readers.acquire().await.expect("the first");
        let write = reader
            .connection()
            .expect("there")
            .execute(&sql!("INSERT INTO t VALUES (1)"));
        assert!(write.is_err());
        assert!(matches!(
            readers.acquire().await,
            Err(Error::Unavailable(_))
        ));
        drop(reader);
        let mut reader = readers.acquire().await.expect("free again");
        let rows = reader
            .page(sql!("SELECT a FROM t"), |row| row.get::<i64>("a"))
            .await;
        assert_eq!(rows.expect("works"), Vec::<i64>::new());
        readers.close();
        drop(reader);
        assert!(readers.acquire().await.is_err());
    }
}

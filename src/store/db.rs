//! The handles through which everything reads and writes.
//!
//! `Read` cannot write: SQLite's readers are opened read-only, PostgreSQL's with read-only
//! transactions. `Write` is one transaction and can read. Store functions take `&mut Read` or
//! `&mut Write`, so their signatures say what they do, and they compose in one transaction.
//! Invariant: a transaction that was not committed leaves nothing, whatever happened to its task.

use std::{
    future::Future,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tracing::Instrument as _;

use super::{
    error::{Error, Result},
    lane::{Lane, Loan},
    postgres::{Connections, Session, Transaction},
    sql::{Columns, Row, Sql},
    sqlite::{self, Reader, Readers},
};
use crate::{domain, env::Random};

/// An open database.
pub struct Db {
    pub(super) engine: Engine,
    pub(super) transaction_timeout: Duration,
    pub(super) random: Arc<dyn Random>,
    pub(super) stats: Arc<Stats>,
}

pub(super) enum Engine {
    Sqlite {
        readers: Readers,
        writer: Lane,
    },
    Postgres {
        readers: Connections,
        writers: Connections,
    },
}

/// How a transaction is kept apart from others. On SQLite they run one after another anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// As if transactions ran one after another; conflicts are retried.
    Serializable,
    /// Where each statement says by itself what must hold: hot rows that the first one locks or changes
    /// on a condition, and new rows with unique keys. Waits instead of conflicting.
    ReadCommitted,
}

/// What the store has done since it was opened.
#[derive(Debug, Default)]
pub struct Stats {
    pub statements: AtomicU64,
    pub transactions: AtomicU64,
    /// Transactions begun again after a conflict.
    pub retries: AtomicU64,
    /// COMMITs on SQLite, and the transactions in them.
    pub batches: AtomicU64,
    pub batched: AtomicU64,
}

impl Stats {
    pub(super) fn batch(&self, size: usize) {
        self.batches.fetch_add(1, Relaxed);
        self.batched.fetch_add(size as u64, Relaxed);
    }
}

/// A connection to read from; each statement sees everything committed before it.
pub struct Read {
    link: Link,
    stats: Arc<Stats>,
    /// After a failed statement a transaction is lost: `PostgreSQL` refuses the rest by itself,
    /// SQLite may have rolled back and would go on outside of it.
    failed: bool,
}

enum Link {
    Sqlite(Reader),
    SqliteWriter(Loan),
    Postgres(Session),
    PostgresWriter(Transaction),
}

enum Connection<'a> {
    Sqlite(&'a mut sqlite::Connection),
    Postgres(&'a mut Session),
}

/// One transaction; made by `transact!` only.
pub struct Write(Read);

impl Deref for Write {
    type Target = Read;
    fn deref(&self) -> &Read {
        &self.0
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut Read {
        &mut self.0
    }
}

impl Db {
    pub async fn read(&self) -> domain::error::Result<Read> {
        let link = match &self.engine {
            Engine::Sqlite { readers, .. } => Link::Sqlite(readers.acquire().await?),
            Engine::Postgres { readers, .. } => Link::Postgres(aside(readers.acquire()).await?),
        };
        Ok(Read {
            link,
            stats: Arc::clone(&self.stats),
            failed: false,
        })
    }

    pub const fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Ends the pools' connections in good order; the writer on SQLite ends with the last handle.
    pub async fn close(&self) {
        match &self.engine {
            Engine::Sqlite { readers, .. } => readers.close(),
            Engine::Postgres { readers, writers } => {
                readers.close().await;
                writers.close().await;
            }
        }
    }

    async fn begin(&self, isolation: Isolation, attempt: u32) -> domain::error::Result<Write> {
        self.stats.transactions.fetch_add(1, Relaxed);
        let link = match &self.engine {
            Engine::Sqlite { writer, .. } => Link::SqliteWriter(writer.borrow().await?),
            Engine::Postgres { writers, .. } => {
                Link::PostgresWriter(aside(Transaction::begin(writers, isolation, attempt)).await?)
            }
        };
        Ok(Write(Read {
            link,
            stats: Arc::clone(&self.stats),
            failed: false,
        }))
    }
}

/// Puts a future of sqlx on the heap: they have many kilobytes, which would be in every future that
/// awaits one, and be copied wherever that is moved.
fn aside<F: Future>(future: F) -> Pin<Box<F>> {
    Box::pin(future)
}

impl Read {
    /// The first row, if there is one.
    pub async fn optional<T>(
        &mut self,
        sql: Sql,
        map: impl FnOnce(&Row<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.ask(sql.text, async |link| match link.connection()? {
            Connection::Sqlite(connection) => connection.first(&sql, map),
            Connection::Postgres(session) => {
                let (rows, columns) = (aside(session.rows(sql)).await?, Columns::default());
                let row = rows.first().map(|row| Row::of_postgres(row, &columns));
                row.map(|row| map(&row)).transpose()
            }
        })
        .await
    }

    /// The row that a statement without condition always has.
    pub async fn one<T>(&mut self, sql: Sql, map: impl FnOnce(&Row<'_>) -> Result<T>) -> Result<T> {
        let text = sql.text;
        let row = self.optional(sql, map).await?;
        row.ok_or_else(|| Error::broken(format!("no row: {text}")))
    }

    /// All rows, of which there are few.
    pub async fn all<T>(
        &mut self,
        sql: Sql,
        map: impl Fn(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.ask(sql.text, async |link| link.all(sql, map).await)
            .await
    }

    /// A page of a list: on SQLite found on a thread that may wait, since it can take long.
    pub async fn page<T: Send + 'static>(
        &mut self,
        sql: Sql,
        map: fn(&Row<'_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        self.ask(sql.text, async |link| match link {
            Link::Sqlite(reader) => reader.page(sql, map).await,
            other => other.all(sql, map).await,
        })
        .await
    }

    /// Counts and traces a statement, and remembers if it failed.
    async fn ask<T>(
        &mut self,
        text: &'static str,
        question: impl AsyncFnOnce(&mut Link) -> Result<T>,
    ) -> Result<T> {
        if self.failed {
            return Err(Error::broken("a statement after a failed one"));
        }
        self.stats.statements.fetch_add(1, Relaxed);
        let span = tracing::trace_span!("sql", text);
        let answer = question(&mut self.link).instrument(span).await;
        self.failed = answer.is_err();
        answer
    }
}

impl Link {
    fn connection(&mut self) -> Result<Connection<'_>> {
        Ok(match self {
            Self::Sqlite(reader) => Connection::Sqlite(reader.connection()?),
            Self::SqliteWriter(loan) => Connection::Sqlite(loan.connection()?),
            Self::Postgres(session) => Connection::Postgres(session),
            Self::PostgresWriter(transaction) => Connection::Postgres(transaction.session()),
        })
    }

    async fn all<T>(&mut self, sql: Sql, map: impl Fn(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
        match self.connection()? {
            Connection::Sqlite(connection) => connection.all(&sql, map),
            Connection::Postgres(session) => {
                let (rows, columns) = (aside(session.rows(sql)).await?, Columns::default());
                let rows = rows.iter().map(|row| Row::of_postgres(row, &columns));
                rows.map(|row| map(&row)).collect()
            }
        }
    }
}

impl Write {
    /// How many rows it changed.
    pub async fn execute(&mut self, sql: Sql) -> Result<u64> {
        self.ask(sql.text, async |link| match link.connection()? {
            Connection::Sqlite(connection) => connection.execute(&sql),
            Connection::Postgres(session) => aside(session.execute(sql)).await,
        })
        .await
    }

    /// How many rows a statement changed that may change many.
    pub async fn sweep(&mut self, sql: Sql) -> Result<u64> {
        self.ask(sql.text, async |link| match link {
            Link::SqliteWriter(loan) => loan.sweep(sql).await,
            Link::PostgresWriter(transaction) => aside(transaction.session().execute(sql)).await,
            Link::Sqlite(_) | Link::Postgres(_) => Err(Error::broken("a reader cannot write")),
        })
        .await
    }

    /// Runs the same INSERT of one row for each of many rows.
    pub async fn insert_all(&mut self, rows: Vec<Sql>) -> Result<()> {
        let mut rows = rows.into_iter().peekable();
        while let Some(text) = rows.peek().map(|row| row.text) {
            let group: Vec<Sql> = rows.by_ref().take(MAX_ROWS).collect();
            self.ask(text, async |link| match link.connection()? {
                Connection::Sqlite(connection) => group
                    .iter()
                    .try_for_each(|row| connection.execute(row).map(drop)),
                Connection::Postgres(session) => aside(session.insert_all(group)).await,
            })
            .await?;
        }
        Ok(())
    }

    /// Ends the transaction; whether what it did is durable (or, unless `keep`, gone).
    async fn finish(self, keep: bool) -> Result<bool> {
        let is_whole = !self.0.failed;
        let finished = match self.0.link {
            Link::SqliteWriter(loan) => loan.finish(keep && is_whole).await?,
            Link::PostgresWriter(transaction) => {
                aside(transaction.finish(keep && is_whole)).await?;
                true
            }
            Link::Sqlite(_) | Link::Postgres(_) => {
                return Err(Error::broken("a reader cannot commit"));
            }
        };
        if keep && !is_whole {
            return Err(Error::broken("a statement failed and nobody minded"));
        }
        Ok(finished)
    }
}

/// Most rows in one statement: PostgreSQL takes 65,535 values.
const MAX_ROWS: usize = 1000;

/// The attempts of one `transact!`.
pub struct Attempts<'a> {
    db: &'a Db,
    isolation: Isolation,
    dry: bool,
    made: u32,
}

/// How often a transaction is tried, and the longest pause before the next attempt.
const MAX_ATTEMPTS: u32 = 8;
const MAX_PAUSE_MS: u32 = 100;

impl<'a> Attempts<'a> {
    /// `dry`: everything is done and rolled back in the end.
    pub const fn new(db: &'a Db, isolation: Isolation, dry: bool) -> Self {
        Self {
            db,
            isolation,
            dry,
            made: 0,
        }
    }

    pub async fn begin(&mut self) -> domain::error::Result<Write> {
        loop {
            self.made += 1;
            match self.db.begin(self.isolation, self.made).await {
                Err(domain::error::Error::Conflict) if self.made < MAX_ATTEMPTS => {
                    self.again().await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Runs a body within its time: the writer must not be held up by one that waits.
    pub async fn run<T>(
        &self,
        body: impl Future<Output = domain::error::Result<T>>,
    ) -> domain::error::Result<T> {
        let timeout =
            || domain::error::Error::Unavailable("a transaction took too long".to_owned());
        tokio::time::timeout(self.db.transaction_timeout, body)
            .await
            .unwrap_or_else(|_| Err(timeout()))
    }

    /// The outcome once it is durable; `None` to try again.
    pub async fn finish<T>(
        &self,
        write: Write,
        outcome: domain::error::Result<T>,
    ) -> Option<domain::error::Result<T>> {
        let outcome = match write.finish(outcome.is_ok() && !self.dry).await {
            Ok(true) => outcome,
            Ok(false) => Err(domain::error::Error::Conflict),
            // A refusal stands, whether or not its rollback could be confirmed.
            Err(error) => outcome.and_then(|_| Err(error.into())),
        };
        match outcome {
            Err(domain::error::Error::Conflict) if self.made < MAX_ATTEMPTS => {
                self.again().await;
                None
            }
            outcome => Some(outcome),
        }
    }

    /// Counts a retry, after a random pause that grows with the attempts, so that rivals do not meet
    /// again.
    async fn again(&self) {
        self.db.stats.retries.fetch_add(1, Relaxed);
        let limit_ms = (1 << self.made).min(MAX_PAUSE_MS);
        let mut random = [0; 4];
        self.db.random.fill(&mut random);
        let pause_us = u64::from(u32::from_le_bytes(random) % (limit_ms * 1000));
        tokio::time::sleep(Duration::from_micros(pause_us)).await;
    }
}

/// Runs the block in one transaction; on a conflict rolls back and runs it again, so it must do
/// nothing but SQL and pure work, and contain no other `transact!`. Yields its value once that is
/// durable.
///
/// A macro, because a closure that borrows its surroundings, is retried and stays `Send` cannot yet
/// be written.
macro_rules! transact {
    ($db:expr, |$tx:ident| $body:block) => {
        $crate::store::db::transact!(
            $crate::store::db::Attempts::new(
                $db,
                $crate::store::db::Isolation::Serializable,
                false
            ),
            attempts | $tx | $body
        )
    };
    ($attempts:expr, attempts |$tx:ident| $body:block) => {{
        let mut attempts = $attempts;
        loop {
            let mut write = match attempts.begin().await {
                Ok(write) => write,
                Err(error) => break Err(error),
            };
            let body = async {
                let $tx = &mut write;
                Ok::<_, $crate::domain::error::Error>($body)
            };
            let outcome = attempts.run(body).await;
            if let Some(done) = attempts.finish(write, outcome).await {
                break done;
            }
        }
    }};
}
pub(crate) use transact;

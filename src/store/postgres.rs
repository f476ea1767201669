//! Reading and writing on `PostgreSQL`: connections, and transactions on them.
//!
//! Transactions run side by side, and one that keeps conflicting on its own. SERIALIZABLE watches index
//! pages rather than rows, so transactions of strangers conflict whenever they overlap on a page, and
//! the slower the disk commits, the more of them overlap. After a few attempts a transaction therefore
//! has the database to itself, whichever process it is in: everybody holds a lock on one table while
//! they run, and the one that wants to be alone holds it exclusively.
//! Invariant: a statement or a transaction that did not reach its end takes its connection with it.

use std::{sync::Arc, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgDatabaseError, PgRow, PgSeverity},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    db::Isolation,
    error::{Error, READ_ONLY, Result},
    pool::{Place, Pool},
    sql::Sql,
};

/// How many attempts a transaction makes beside others.
const SIDE_BY_SIDE: u32 = 3;

/// How to begin. The lock comes before the first statement, so that the one who is alone sees what all
/// the others have committed; `leases` is the table that is there before the migrations.
const BESIDE_OTHERS: &str =
    "BEGIN ISOLATION LEVEL SERIALIZABLE; LOCK TABLE leases IN ROW SHARE MODE";
const ALONE: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE; LOCK TABLE leases IN EXCLUSIVE MODE";
/// Waits for a row where the others conflict, so it is in nobody's way.
const READ_COMMITTED: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// How long an idle connection is taken to be good: a question to the server costs as much as most
/// statements.
const UNTESTED: Duration = Duration::from_secs(1);

/// Connections with the same options. Their own pool, since that of sqlx asks the server after each
/// use whether the connection is still good, which doubles the cost of a read.
pub struct Connections {
    options: Box<PgConnectOptions>,
    pool: Arc<Pool<PgConnection>>,
    answer_timeout: Duration,
}

/// How long an answer may be on its way once the server has given up a statement that took too long.
const GRACE: Duration = Duration::from_secs(1);

impl Connections {
    /// `statement_timeout`: when the server gives up a statement, as the options tell it.
    pub fn new(
        options: PgConnectOptions,
        max: u32,
        acquire_timeout: Duration,
        statement_timeout: Duration,
    ) -> Self {
        Self {
            options: Box::new(options),
            pool: Pool::new(max, acquire_timeout),
            answer_timeout: statement_timeout + GRACE,
        }
    }

    /// A connection that can be used.
    pub async fn acquire(&self) -> Result<Session> {
        let patience = self.pool.acquire_timeout();
        let end = Instant::now() + patience;
        let mut place = self.pool.acquire().await?;
        if place.idle_time >= UNTESTED
            && let Some(mut connection) = place.take()
            // Half of the time, so that the other half is left for a new one.
            && let Ok(Ok(())) = timeout(patience / 2, connection.ping()).await
        {
            place.put(connection);
        }
        if place.get().is_none() {
            let connection = PgConnection::connect_with(&self.options);
            let connection = timeout_at(end, connection).await;
            place.fill(connection.map_err(|_| silent())??);
        }
        Ok(Session {
            place,
            answer_timeout: self.answer_timeout,
        })
    }

    pub async fn close(&self) {
        for connection in self.pool.close() {
            // The server notices in any case.
            let _ = connection.close().await;
        }
    }
}

/// A connection in use.
pub struct Session {
    place: Place<PgConnection>,
    answer_timeout: Duration,
}

impl Session {
    pub async fn rows(&mut self, sql: Sql) -> Result<Vec<PgRow>> {
        let query = sqlx::query_with(sql.text, sql.for_postgres()?);
        self.ask(async |connection| query.fetch_all(connection).await)
            .await
    }

    /// How many rows it changed.
    pub async fn execute(&mut self, sql: Sql) -> Result<u64> {
        let query = sqlx::query_with(sql.text, sql.for_postgres()?);
        let done = self.ask(async |connection| query.execute(connection).await);
        Ok(done.await?.rows_affected())
    }

    /// The same INSERT of one row for many rows, as one statement.
    pub async fn insert_all(&mut self, rows: Vec<Sql>) -> Result<()> {
        let (text, arguments) = Sql::of_rows(rows)?;
        let query = sqlx::query_with(AssertSqlSafe(text), arguments);
        let done = self.ask(async |connection| query.execute(connection).await);
        done.await.map(drop)
    }

    /// Statements without values.
    async fn run(&mut self, text: &'static str) -> Result<()> {
        let done = self.ask(async |connection| sqlx::raw_sql(text).execute(connection).await);
        done.await.map(drop)
    }

    /// Asks the server something. The connection is out of its place until there is an answer, and
    /// stays out if what came was none, or the last one.
    async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T> {
        let mut connection = self.place.take().ok_or_else(lost)?;
        // A host that vanishes closes no connection, and nobody else would notice.
        let answer = timeout(self.answer_timeout, question(&mut connection)).await;
        let answer = answer.map_err(|_| silent())?;
        let goes_on = match &answer {
            Ok(_) => true,
            Err(sqlx::Error::Database(cause)) => {
                let cause = cause.try_downcast_ref::<PgDatabaseError>();
                // A server that has become a standby stays one; the next connection may find its successor.
                cause.is_some_and(|cause| {
                    cause.severity() == PgSeverity::Error && cause.code() != READ_ONLY
                })
            }
            Err(_) => false,
        };
        if goes_on {
            self.place.put(connection);
        }
        Ok(answer?)
    }
}

fn silent() -> Error {
    Error::Unavailable("the database does not answer".to_owned())
}

fn lost() -> Error {
    Error::Unavailable("the connection is lost".to_owned())
}

/// One transaction.
pub struct Transaction {
    session: Session,
    is_open: bool,
}

impl Transaction {
    /// Begins the `attempt`th attempt of a transaction; 1 is the first.
    pub async fn begin(
        connections: &Connections,
        isolation: Isolation,
        attempt: u32,
    ) -> Result<Self> {
        // From here on: where BEGIN succeeds and LOCK TABLE does not, there is a transaction to be rid of.
        let mut transaction = Self {
            session: connections.acquire().await?,
            is_open: true,
        };
        let begin = match isolation {
            Isolation::Serializable if attempt > SIDE_BY_SIDE => ALONE,
            Isolation::Serializable => BESIDE_OTHERS,
            Isolation::ReadCommitted => READ_COMMITTED,
        };
        transaction.session.run(begin).await?;
        Ok(transaction)
    }

    pub const fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    pub async fn finish(mut self, keep: bool) -> Result<()> {
        let end = if keep { "COMMIT" } else { "ROLLBACK" };
        let ended = self.session.run(end).await;
        // A COMMIT that is refused has ended the transaction too.
        self.is_open = !matches!(ended, Ok(()) | Err(Error::Conflict));
        ended
    }
}

impl Drop for Transaction {
    /// By a panic or a timeout: nothing of it remains, and it must not meet the next.
    fn drop(&mut self) {
        if self.is_open {
            drop(self.session.place.take());
        }
    }
}

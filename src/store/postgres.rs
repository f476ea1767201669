//! Writing on `PostgreSQL`: transactions side by side, and one that keeps conflicting on its own.
//!
//! SERIALIZABLE watches index pages rather than rows, so transactions of strangers conflict whenever
//! they overlap on a page, and the slower the disk commits, the more of them overlap. After a few
//! attempts a transaction therefore has the database to itself, whichever process it is in: everybody
//! holds a lock on one table while they run, and the one that wants to be alone holds it exclusively.
//! Invariant: a transaction that did not reach its end takes its connection with it.

use sqlx::{PgConnection, PgPool, Postgres, pool::PoolConnection};

use super::{
    db::Isolation,
    error::{Error, Result},
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

/// One transaction.
pub struct Transaction(Option<PoolConnection<Postgres>>);

impl Transaction {
    /// Begins the `attempt`th attempt of a transaction; 1 is the first.
    pub async fn begin(pool: &PgPool, isolation: Isolation, attempt: u32) -> Result<Self> {
        let mut transaction = Self(Some(pool.acquire().await?));
        let begin = match isolation {
            Isolation::Serializable if attempt > SIDE_BY_SIDE => ALONE,
            Isolation::Serializable => BESIDE_OTHERS,
            Isolation::ReadCommitted => READ_COMMITTED,
        };
        sqlx::raw_sql(begin)
            .execute(transaction.connection()?)
            .await?;
        Ok(transaction)
    }

    pub fn connection(&mut self) -> Result<&mut PgConnection> {
        let connection = self.0.as_deref_mut();
        connection.ok_or_else(|| Error::broken("the transaction has ended"))
    }

    pub async fn finish(mut self, keep: bool) -> Result<()> {
        let end = if keep { "COMMIT" } else { "ROLLBACK" };
        sqlx::raw_sql(end).execute(self.connection()?).await?;
        // Back to the pool, in a known state.
        drop(self.0.take());
        Ok(())
    }
}

impl Drop for Transaction {
    /// By a panic or a timeout: what state the connection is in nobody knows.
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

//! Writing on SQLite: one connection, lent to one transaction after another, one fsync for many.
//!
//! A task owns the connection. Whoever wants to write waits in its queue, gets the connection on
//! loan with a savepoint open in it, and gives it back by finishing or by being dropped. When nobody
//! waits any more, or the batch is full, one COMMIT makes all of them durable, and only then is any
//! of them answered, also those that refused: a refusal may rest on what the same batch wrote.
//! Invariant: at most one writer, and no answer before the COMMIT that covers it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::{
    db::Stats,
    error::{Error, Result},
    sql::Sql,
    sqlite::{self, Connection, File, lost},
};

/// Most transactions in one COMMIT, and the longest a batch may gather.
const MAX_BATCH: usize = 128;
const MAX_GATHER: Duration = Duration::from_millis(20);
/// Between two looks whether another program has done writing.
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// Most callers waiting for the connection.
const MAX_WAITING: usize = 4096;

/// The queue for the writing connection.
#[derive(Clone)]
pub struct Lane {
    queue: mpsc::Sender<Caller>,
    acquire_timeout: Duration,
}

/// Somebody who waits for the connection.
type Caller = oneshot::Sender<Result<Loan>>;

/// What became of a batch, for each who was in it.
#[derive(Clone)]
enum Fate {
    Committed,
    /// It failed for everybody, perhaps because of somebody else.
    TryAgain,
    /// It failed, and nobody else was in it.
    Failed(String),
}

/// The writing connection in one borrower's hands.
pub struct Loan {
    connection: Option<Connection>,
    back: Option<oneshot::Sender<Return>>,
}

/// The connection on its way back.
struct Return {
    connection: Connection,
    /// Whether what was done is to stay.
    keep: bool,
    /// Who waits for the COMMIT; nobody if the borrower vanished.
    answer: Option<oneshot::Sender<Fate>>,
}

impl Lane {
    /// `acquire_timeout`: how long to wait for the connection.
    pub fn open(file: File, acquire_timeout: Duration, stats: Arc<Stats>) -> Self {
        let (queue, callers) = mpsc::channel(MAX_WAITING);
        tokio::spawn(lend(file, callers, stats));
        Self {
            queue,
            acquire_timeout,
        }
    }

    pub async fn borrow(&self) -> Result<Loan> {
        let late = |_| Error::Unavailable("the writer is not free".to_owned());
        let turn = tokio::time::timeout(self.acquire_timeout, self.turn());
        turn.await.map_err(late)?
    }

    async fn turn(&self) -> Result<Loan> {
        let (caller, loan) = oneshot::channel();
        if self.queue.send(caller).await.is_err() {
            return Err(Error::Unavailable("the writer has stopped".to_owned()));
        }
        // A caller is dropped only when the batch it was to join has failed.
        loan.await.map_err(|_| Error::Conflict)?
    }
}

impl Loan {
    pub fn connection(&mut self) -> Result<&mut Connection> {
        self.connection.as_mut().ok_or_else(lost)
    }

    /// How many rows a statement changed that may change many, on a thread that may wait.
    pub async fn sweep(&mut self, sql: Sql) -> Result<u64> {
        let connection = self.connection.take().ok_or_else(lost)?;
        let swept = connection.elsewhere(move |connection| connection.execute(&sql));
        let (connection, changed) = swept.await?;
        self.connection = Some(connection);
        changed
    }

    /// Gives the connection back and waits for the COMMIT of the batch; false if that failed,
    /// nothing of the batch remains, and trying again may succeed.
    pub async fn finish(mut self, keep: bool) -> Result<bool> {
        let (answer, fate) = oneshot::channel();
        self.give_back(keep, Some(answer));
        match fate.await {
            Ok(Fate::Committed) => Ok(true),
            Ok(Fate::TryAgain) => Ok(false),
            Ok(Fate::Failed(cause)) => Err(Error::Unavailable(cause)),
            Err(_) => Err(Error::Unavailable("the writer has stopped".to_owned())),
        }
    }

    fn give_back(&mut self, keep: bool, answer: Option<oneshot::Sender<Fate>>) {
        if let (Some(connection), Some(back)) = (self.connection.take(), self.back.take()) {
            // If the lender is gone there is nobody left to give it to.
            let _ = back.send(Return {
                connection,
                keep,
                answer,
            });
        }
    }
}

impl Drop for Loan {
    /// A body that panicked or ran out of time: what it did is rolled back.
    fn drop(&mut self) {
        self.give_back(false, None);
    }
}

/// The lender: runs batch after batch until nobody can ask any more.
async fn lend(file: File, mut callers: mpsc::Receiver<Caller>, stats: Arc<Stats>) {
    let mut kept = None;
    // The callers of a failed batch come back; one at a time, a bad one fails nobody else.
    let mut singly = 0_usize;
    while let Some(first) = callers.recv().await {
        if first.is_closed() {
            continue;
        }
        let connection = match begin(&file, &mut kept, &first).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::error!(%error, "cannot begin to write");
                // One that has gone meanwhile needs no answer.
                let _ = first.send(Err(error));
                continue;
            }
        };
        let limit = if singly > 0 { 1 } else { MAX_BATCH };
        let mut answers = Vec::new();
        let outcome = batch(connection, first, &mut callers, limit, &mut answers).await;
        stats.batch(answers.len());
        let fate = match outcome {
            Ok(connection) => {
                kept = Some(connection);
                singly = singly.saturating_sub(1);
                Fate::Committed
            }
            // The connection is closed, which rolls the whole batch back.
            Err(error) => {
                tracing::error!(%error, "a batch of transactions failed");
                singly = singly.max(answers.len());
                if answers.len() > 1 {
                    Fate::TryAgain
                } else {
                    Fate::Failed(error.to_string())
                }
            }
        };
        for answer in answers.into_iter().flatten() {
            // A borrower that has gone meanwhile needs no answer.
            let _ = answer.send(fate.clone());
        }
    }
}

/// A connection that has begun to write. While another program writes, it is waited for as long as
/// the caller waits, and without keeping a thread.
async fn begin(file: &File, kept: &mut Option<Connection>, caller: &Caller) -> Result<Connection> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => {
            let file = file.clone();
            sqlite::elsewhere(move || file.open()).await??
        }
    };
    while !connection.begin_to_write()? {
        if caller.is_closed() {
            *kept = Some(connection);
            return Err(Error::Unavailable("another program writes".to_owned()));
        }
        tokio::time::sleep(BUSY_PAUSE).await;
    }
    Ok(connection)
}

/// Lends the connection, in a transaction, to `first` and to whoever waits by then, and commits for
/// all of them.
async fn batch(
    mut connection: Connection,
    first: Caller,
    callers: &mut mpsc::Receiver<Caller>,
    limit: usize,
    answers: &mut Vec<Option<oneshot::Sender<Fate>>>,
) -> Result<Connection> {
    let since = Instant::now();
    let mut next = Some(first);
    while let Some(caller) = next {
        connection.run("SAVEPOINT body")?;
        connection.lend();
        let (back, returned) = oneshot::channel();
        let loan = Loan {
            connection: Some(connection),
            back: Some(back),
        };
        let returned = match caller.send(Ok(loan)) {
            Ok(()) => returned.await.map_err(|_| lost())?,
            // It gave up while waiting.
            Err(unread) => Return {
                connection: unread
                    .ok()
                    .and_then(|mut loan| loan.connection.take())
                    .ok_or_else(lost)?,
                keep: false,
                answer: None,
            },
        };
        connection = returned.connection;
        connection.take_back();
        answers.push(returned.answer);
        if !returned.keep {
            connection.run("ROLLBACK TO body")?;
        }
        connection.run("RELEASE body")?;
        let may_grow = answers.len() < limit && since.elapsed() < MAX_GATHER;
        next = if may_grow {
            callers.try_recv().ok()
        } else {
            None
        };
    }
    let committed = connection.elsewhere(|connection| connection.run("COMMIT"));
    let (connection, outcome) = committed.await?;
    outcome?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::sql;

    fn lane(folder: &tempfile::TempDir, time: Duration) -> Lane {
        let file = File {
            path: folder.path().join("test.sqlite"),
            statement_timeout: time,
        };
        Lane::open(file, time, Arc::default())
    }

    #[tokio::test]
    async fn nobody_waits_for_the_writer_for_ever() {
        let folder = tempfile::tempdir().expect("a folder");
        let lane = lane(&folder, Duration::from_millis(50));
        let loan = lane.borrow().await.expect("free");
        let refused = lane.borrow().await.err().expect("taken");
        assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
        assert!(loan.finish(true).await.expect("commits"));
        lane.borrow().await.expect("free again");
    }

    #[tokio::test]
    async fn another_program_that_writes_is_waited_for_without_keeping_a_thread() {
        let folder = tempfile::tempdir().expect("a folder");
        let lane = lane(&folder, Duration::from_millis(100));
        let loan = lane.borrow().await.expect("free");
        assert!(loan.finish(true).await.expect("commits"));
        let other = rusqlite::Connection::open(folder.path().join("test.sqlite"));
        let other = other.expect("the file");
        other.execute_batch("BEGIN IMMEDIATE").expect("its turn");
        let waiting = tokio::spawn({
            let lane = lane.clone();
            async move { lane.borrow().await }
        });
        let mut turns = 0;
        while !waiting.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            turns += 1;
        }
        assert!(turns > 10, "this thread had {turns} turns");
        let refused = waiting.await.expect("no panic").err().expect("taken");
        assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
        other.execute_batch("ROLLBACK").expect("done");
        lane.borrow().await.expect("free again");
    }

    #[tokio::test]
    async fn a_loan_ends_in_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let lane = lane(&folder, Duration::from_millis(50));
        let mut loan = lane.borrow().await.expect("free");
        std::thread::sleep(Duration::from_millis(60));
        let create = sql!("CREATE TABLE t (a INTEGER) STRICT");
        let refused = loan.connection().expect("lent").execute(&create);
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        loan.finish(false).await.expect("rolled back");
        let mut loan = lane.borrow().await.expect("free again");
        loan.sweep(create).await.expect("has its own time");
        assert!(loan.finish(true).await.expect("commits"));
    }
}

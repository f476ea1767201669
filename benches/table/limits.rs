//! What the machine could do if there were nothing but the one thing that has to be done: a hash, a
//! signature, a call without content, a statement, a transaction.

use std::{
    hint::black_box,
    process::Stdio,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use accountd::{
    calibrate, config,
    listener::{self, Shared},
    telemetry::{Connections, precise, processor_time},
};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde::Serialize;
use sqlx::{Connection as _, PgConnection};
use tokio::{process::Command, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::server::{Server, free_address};

/// Something that cannot be left out.
#[derive(Clone, Copy)]
pub enum Floor {
    /// A gRPC call that does nothing, served by tonic with nothing around it.
    Echo,
    /// An ES256 signature.
    Sign,
    /// A row found by its key, by the bare driver.
    Read,
    /// A row inserted and committed, by the bare driver: on SQLite one after another, on PostgreSQL by
    /// sixteen at once.
    Transaction,
}

/// Processor time of this program, in microseconds each.
#[derive(Serialize)]
pub struct Limits {
    echo: f64,
    sign: f64,
    read: f64,
    transaction: f64,
    /// How many of them in a second.
    transactions_per_s: f64,
}

impl Limits {
    pub async fn measure(server: &Server, time: Duration) -> Self {
        let part = time / 4;
        let (read, transaction, transactions_per_s) = match &server.database_url {
            None => sqlite(server, part),
            Some(url) => postgres(url, part).await,
        };
        Self {
            echo: bare_call(server, part).await,
            sign: sign(part),
            read,
            transaction,
            transactions_per_s,
        }
    }

    pub const fn of(&self, floor: Floor) -> f64 {
        match floor {
            Floor::Echo => self.echo,
            Floor::Sign => self.sign,
            Floor::Read => self.read,
            Floor::Transaction => self.transaction,
        }
    }

    pub fn text(&self) -> String {
        let Self {
            echo,
            sign,
            read,
            transaction,
            transactions_per_s,
        } = self;
        format!(
            "bare gRPC call {echo:.1} µs, signature {sign:.1} µs, bare statement {read:.1} µs, bare transaction \
             {transaction:.1} µs ({transactions_per_s:.0}/s)"
        )
    }
}

/// Hashes per second at the shipped cost, on all cores that are the server's.
pub fn argon2(time: Duration) -> f64 {
    let lanes = thread::available_parallelism().map_or(1, usize::from);
    let point = calibrate::measure(config::Config::default().cost(), lanes, time);
    point.expect("hashes").per_second
}

/// Repeats something for a while: processor time of each.
fn each_us(time: Duration, mut work: impl FnMut()) -> f64 {
    let (begin, before, mut count) = (Instant::now(), processor_time(), 0);
    while begin.elapsed() < time {
        work();
        count += 1;
    }
    processor_time().saturating_sub(before).as_secs_f64() * 1e6 / precise(count)
}

fn sign(time: Duration) -> f64 {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let message = [7; 600];
    each_us(time, || {
        black_box(key.sign(&random, &message).expect("signs"));
    })
}

/// A statement and a transaction on a file of its own beside the server's: in place, one at a time.
fn sqlite(server: &Server, time: Duration) -> (f64, f64, f64) {
    let file = server.folder.path().join("bare.sqlite");
    let connection = rusqlite::Connection::open(file).expect("opens");
    connection
        .execute_batch(
            "PRAGMA journal_mode = wal; PRAGMA synchronous = full;
             CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT NOT NULL) STRICT;
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
             INSERT INTO t SELECT i, 'some text of usual length' FROM n;",
        )
        .expect("a table");
    let mut number = 0_i64;
    let read = each_us(time, || {
        number = number * 7919 % 100_003 + 1;
        let mut statement = connection
            .prepare_cached("SELECT id, a FROM t WHERE id = ?1")
            .expect("SQL");
        let mut rows = statement.query([number]).expect("rows");
        black_box(
            rows.next()
                .expect("an answer")
                .map(|row| row.get::<_, String>("a")),
        );
    });
    let begin = Instant::now();
    let mut count = 0;
    let transaction = each_us(time, || {
        let mut insert = connection
            .prepare_cached("INSERT INTO t (a) VALUES ('some text')")
            .expect("SQL");
        insert.execute([]).expect("inserts");
        count += 1;
    });
    (
        read,
        transaction,
        precise(count) / begin.elapsed().as_secs_f64(),
    )
}

/// The same on PostgreSQL, by sixteen at once.
async fn postgres(url: &str, time: Duration) -> (f64, f64, f64) {
    let mut connection = PgConnection::connect(url).await.expect("a connection");
    let make = "CREATE TABLE bare (id BIGINT PRIMARY KEY, a TEXT NOT NULL);
         INSERT INTO bare SELECT i, 'some text of usual length' FROM generate_series(1, 100000) AS i;
         CREATE SEQUENCE bare_ids START 1000000";
    sqlx::raw_sql(make)
        .execute(&mut connection)
        .await
        .expect("a table");
    let (read, _) = sixteen(url, time, Work::Read).await;
    let (transaction, rate) = sixteen(url, time, Work::Transaction).await;
    (read, transaction, rate)
}

#[derive(Clone, Copy)]
enum Work {
    Read,
    Transaction,
}

impl Work {
    async fn once(self, connection: &mut PgConnection, number: i64) -> sqlx::Result<()> {
        match self {
            Self::Read => {
                let row = sqlx::query("SELECT id, a FROM bare WHERE id = $1");
                let row = row
                    .bind(number * 7919 % 100_003)
                    .fetch_optional(connection)
                    .await?;
                black_box(row);
            }
            Self::Transaction => {
                sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
                let insert = "INSERT INTO bare (id, a) VALUES (nextval('bare_ids'), $1)";
                sqlx::query(insert)
                    .bind("some text")
                    .execute(&mut *connection)
                    .await?;
                sqlx::raw_sql("COMMIT").execute(connection).await?;
            }
        }
        Ok(())
    }
}

/// Processor time of each, and how many in a second.
async fn sixteen(url: &str, time: Duration, work: Work) -> (f64, f64) {
    let (mut callers, begin, before) = (JoinSet::new(), Instant::now(), processor_time());
    for caller in 0..16 {
        let mut connection = PgConnection::connect(url).await.expect("a connection");
        callers.spawn(async move {
            let mut count = 0;
            while begin.elapsed() < time {
                work.once(&mut connection, caller + 16 * count)
                    .await
                    .expect("works");
                count += 1;
            }
            count
        });
    }
    let count: i64 = callers.join_all().await.into_iter().sum();
    let count = precise(u64::try_from(count).unwrap_or_default());
    (
        processor_time().saturating_sub(before).as_secs_f64() * 1e6 / count,
        count / begin.elapsed().as_secs_f64(),
    )
}

/// What a call costs tonic with nothing around it: a process of its own, called like the server.
async fn bare_call(server: &Server, time: Duration) -> f64 {
    let (address, ops) = (free_address(), free_address());
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program);
    child
        .args(["echo", &address, &ops])
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let _child = child.spawn().expect("runs");
    while reqwest::get(format!("http://{ops}/metrics")).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (url, ops) = (format!("http://{address}"), format!("http://{ops}"));
    let arguments = ["health", "--url", &url, "--ops-url", &ops];
    let row = server.bench_with(&arguments, time.as_secs().max(1)).await;
    row["server_us"].as_f64().expect("a figure")
}

/// Serves the health service with tonic alone, and its own processor time.
pub async fn echo() {
    let arguments: Vec<String> = std::env::args().collect();
    let metrics = || async {
        let used = processor_time().as_secs_f64();
        format!("process_cpu_seconds_total {used}\nprocess_resident_memory_bytes 0\n")
    };
    let router = axum::Router::new().route("/metrics", axum::routing::get(metrics));
    let ops = listener::bind(arguments[3].parse().expect("an address"))
        .await
        .expect("binds");
    let shared = Shared::new(&config::Limits::default(), None, Connections::default());
    tokio::spawn(listener::serve(
        ops,
        router,
        true,
        Arc::clone(&shared),
        CancellationToken::new(),
    ));
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let server = tonic::transport::Server::builder().add_service(service);
    server
        .serve(arguments[2].parse().expect("an address"))
        .await
        .expect("serves");
}

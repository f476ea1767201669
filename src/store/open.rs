//! Opening a database: which engine it is, whether it will do, and bringing its schema up to date.
//!
//! Migrations run under a lease of ours, with the migrator's own locking off, since not every
//! database that speaks PostgreSQL's protocol has advisory locks.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    Connection as _, PgConnection, SqliteConnection,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    db::{Db, Engine, Stats, transact},
    leases,
    sqlite::Lane,
};
use crate::env::{Clock, Random};

/// Where the data is, and how much of the database to use.
#[derive(Clone, Debug)]
pub struct Settings {
    pub target: Target,
    /// Connections for reading, and on PostgreSQL as many again for writing.
    pub max_connections: u32,
    /// How long to wait for a connection.
    pub acquire_timeout: Duration,
    /// How long a transaction may take.
    pub transaction_timeout: Duration,
}

#[derive(Clone)]
pub enum Target {
    Sqlite(PathBuf),
    /// A URL, perhaps with a password in it.
    Postgres(String),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "Sqlite({})", path.display()),
            Self::Postgres(_) => f.write_str("Postgres(withheld)"),
        }
    }
}

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// The oldest PostgreSQL that is supported.
const MIN_POSTGRES: u32 = 13;
const MIGRATIONS: &str = "migrations";
const LEASE_S: i64 = 60;

/// Opens the database, with its schema up to date. An error is a sentence for the operator.
pub async fn open(
    settings: &Settings,
    clock: &dyn Clock,
    random: &Arc<dyn Random>,
) -> Result<Db, String> {
    let stats = Arc::new(Stats::default());
    let db = |engine| Db {
        engine,
        transaction_timeout: settings.transaction_timeout,
        random: Arc::clone(random),
        stats: Arc::clone(&stats),
    };
    match &settings.target {
        Target::Sqlite(path) => {
            let options = sqlite_options(path);
            let cannot = |error| format!("cannot open {}: {error}", path.display());
            prepare_sqlite(&options).await.map_err(cannot)?;
            let writer = Lane::open(options.clone(), Arc::clone(&stats));
            let readers = SqlitePoolOptions::new()
                .max_connections(settings.max_connections)
                .acquire_timeout(settings.acquire_timeout)
                // A local file does not go away; asking each time costs more than most statements.
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_lazy_with(options.read_only(true).pragma("query_only", "on"));
            Ok(db(Engine::Sqlite { readers, writer }))
        }
        Target::Postgres(url) => {
            let options = postgres_options(url, settings)?;
            prepare_postgres(&options).await?;
            let pool = || {
                PgPoolOptions::new()
                    .max_connections(settings.max_connections)
                    .acquire_timeout(settings.acquire_timeout)
            };
            let read_only = options
                .clone()
                .options([("default_transaction_read_only", "on")]);
            let db = db(Engine::Postgres {
                readers: pool().connect_lazy_with(read_only),
                writers: pool().connect_lazy_with(options.clone()),
            });
            // Building an index may take longer than any call should.
            let unhurried = options.options([("statement_timeout", "0")]);
            migrate_postgres(&db, &unhurried, clock, random).await?;
            Ok(db)
        }
    }
}

fn sqlite_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // The log is synced at every commit: what was answered survives a power cut.
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        .statement_cache_capacity(256)
        .pragma("trusted_schema", "off")
}

fn postgres_options(url: &str, settings: &Settings) -> Result<PgConnectOptions, String> {
    let options: PgConnectOptions = url
        .parse()
        .map_err(|error| format!("database_url is not a PostgreSQL URL: {error}"))?;
    let timeout_ms = settings.transaction_timeout.as_millis();
    Ok(options
        .application_name("accountd")
        .statement_cache_capacity(256)
        .options([
            // The planner scans a short table as a whole, and then SERIALIZABLE makes strangers conflict.
            ("enable_seqscan", "off".to_owned()),
            ("synchronous_commit", "on".to_owned()),
            ("statement_timeout", timeout_ms.to_string()),
            (
                "idle_in_transaction_session_timeout",
                timeout_ms.to_string(),
            ),
        ]))
}

/// Creates the file, brings its schema up to date, and asserts what durability rests on.
async fn prepare_sqlite(options: &SqliteConnectOptions) -> Result<(), String> {
    let prepare = async {
        let mut connection = SqliteConnection::connect_with(options).await?;
        let mode: String = scalar("PRAGMA journal_mode")
            .fetch_one(&mut connection)
            .await?;
        let sync: i64 = scalar("PRAGMA synchronous")
            .fetch_one(&mut connection)
            .await?;
        // One process has the folder to itself, so nothing else can be migrating.
        migrator(&SQLITE).run(&mut connection).await?;
        connection.close().await?;
        Ok::<_, sqlx::Error>((mode, sync))
    };
    match prepare.await.map_err(|error| error.to_string())? {
        (mode, 2) if mode == "wal" => Ok(()),
        (mode, sync) => Err(format!(
            "journal_mode is {mode} and synchronous {sync}, not wal and 2"
        )),
    }
}

/// Asks what is at the other end before anything is sent that only PostgreSQL understands.
async fn prepare_postgres(options: &PgConnectOptions) -> Result<(), String> {
    let cannot = |error: sqlx::Error| format!("cannot connect to the database: {error}");
    let mut connection = PgConnection::connect_with(options).await.map_err(cannot)?;
    let version: String = scalar("SELECT version()")
        .fetch_one(&mut connection)
        .await
        .map_err(cannot)?;
    check_version(&version)?;
    let fsync: String = scalar("SHOW fsync")
        .fetch_one(&mut connection)
        .await
        .map_err(cannot)?;
    if fsync != "on" {
        tracing::warn!("the server runs with fsync off: a power cut can lose what was answered");
    }
    connection.close().await.map_err(cannot)
}

/// Refuses what has not been tried: `version()` of a relative of PostgreSQL says so.
fn check_version(version: &str) -> Result<(), String> {
    let major = version
        .strip_prefix("PostgreSQL ")
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|major| major.parse::<u32>().ok());
    let relatives = ["CockroachDB", "-YB-", "Redshift", "Greenplum"];
    let shown = version.split(" on ").next().unwrap_or(version);
    match major {
        Some(major)
            if major >= MIN_POSTGRES && !relatives.iter().any(|name| version.contains(name)) =>
        {
            Ok(())
        }
        _ => Err(format!(
            "the database is `{shown}`; accountd works with SQLite and with PostgreSQL {MIN_POSTGRES} \
             or later"
        )),
    }
}

/// Brings the schema up to date, one process at a time.
async fn migrate_postgres(
    db: &Db,
    options: &PgConnectOptions,
    clock: &dyn Clock,
    random: &Arc<dyn Random>,
) -> Result<(), String> {
    let text = |error: sqlx::Error| format!("cannot migrate the database: {error}");
    let mut connection = PgConnection::connect_with(options).await.map_err(text)?;
    if !is_behind(&mut connection).await {
        return connection.close().await.map_err(text);
    }
    create_leases(&mut connection).await.map_err(text)?;
    let holder = random.uuid(clock.now());
    let held = async {
        for _ in 0..LEASE_S * 10 {
            let now = clock.now();
            let epoch = transact!(db, |tx| {
                leases::take(tx, MIGRATIONS, holder, now, now.plus_s(LEASE_S)).await?
            });
            match epoch {
                Ok(None) => tokio::time::sleep(Duration::from_millis(200)).await,
                Ok(Some(_)) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("another process has been migrating for too long".to_owned())
    };
    held.await?;
    let renewed = async {
        loop {
            tokio::time::sleep(Duration::from_secs(LEASE_S.unsigned_abs() / 3)).await;
            let now = clock.now();
            // A failure is made good by the next one, long before the lease is over.
            let _ = transact!(db, |tx| {
                leases::take(tx, MIGRATIONS, holder, now, now.plus_s(LEASE_S)).await?
            });
        }
    };
    let migrator = migrator(&POSTGRES);
    let migrated = tokio::select! {
        migrated = migrator.run(&mut connection) => migrated,
        () = renewed => Ok(()),
    };
    let released = transact!(db, |tx| { leases::release(tx, MIGRATIONS, holder).await? });
    migrated.map_err(|error| format!("cannot migrate the database: {error}"))?;
    released.map_err(|error| error.to_string())?;
    connection.close().await.map_err(text)
}

/// Whether a migration of ours has not been applied.
async fn is_behind(connection: &mut PgConnection) -> bool {
    let newest = POSTGRES.iter().map(|migration| migration.version).max();
    let applied = scalar("SELECT MAX(version) FROM _sqlx_migrations WHERE success");
    let applied: Option<i64> = applied.fetch_one(connection).await.unwrap_or_default();
    applied < newest
}

/// The one table that has to be there before the migrations.
async fn create_leases(connection: &mut PgConnection) -> sqlx::Result<()> {
    const CREATE: &str = "CREATE TABLE IF NOT EXISTS leases (
        name TEXT NOT NULL CONSTRAINT leases_name_key PRIMARY KEY, holder TEXT NOT NULL,
        epoch BIGINT NOT NULL, expire_time BIGINT NOT NULL)";
    match sqlx::raw_sql(CREATE).execute(&mut *connection).await {
        Ok(_) => Ok(()),
        // Two processes at once: PostgreSQL lets one of them fail. Now it exists.
        Err(_) => sqlx::raw_sql(CREATE).execute(connection).await.map(drop),
    }
}

/// A database that a newer release has migrated still serves this one.
fn migrator(migrator: &Migrator) -> Migrator {
    let mut migrator = Migrator {
        migrations: migrator.migrations.clone(),
        ..Migrator::DEFAULT
    };
    migrator.set_locking(false).set_ignore_missing(true);
    migrator
}

/// A question asked before there is a `Db`.
fn scalar<D, T>(text: &'static str) -> sqlx::query::QueryScalar<'static, D, T, D::Arguments>
where
    D: sqlx::Database,
    (T,): for<'r> sqlx::FromRow<'r, D::Row>,
{
    sqlx::query_scalar(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_tried_is_accepted() {
        for good in [
            "PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc",
            "PostgreSQL 18beta1 on aarch64",
            "PostgreSQL 13.0",
        ] {
            assert_eq!(check_version(good), Ok(()), "{good}");
        }
        for bad in [
            "PostgreSQL 12.4 on x86_64",
            "CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu, built 2024/05/15)",
            "PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu",
            "PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC, Redshift 1.0.77467",
            "MariaDB 11",
            "",
        ] {
            let error = check_version(bad).expect_err(bad);
            assert!(error.contains("PostgreSQL 13"), "{error}");
        }
    }
}

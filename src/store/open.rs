//! Opening a database: which engine it is, whether it will do, and bringing its schema up to date.
//!
//! Migrations run under a lease of ours, with the migrator's own locking off, since not every
//! database that speaks PostgreSQL's protocol has advisory locks.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use sqlx::{Connection as _, PgConnection, migrate::Migrator, postgres::PgConnectOptions};

use super::{
    db::{Db, Engine, Stats, transact},
    earlier,
    error::Error,
    lane::Lane,
    leases,
    postgres::Connections,
    sql::sql,
    sqlite::{self, File, Readers},
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
            let file = File {
                path: path.clone(),
                statement_timeout: settings.transaction_timeout,
            };
            let cannot = |error| format!("cannot open {}: {error}", path.display());
            prepare_sqlite(&file).map_err(cannot)?;
            Ok(db(Engine::Sqlite {
                writer: Lane::open(file.clone(), settings.acquire_timeout, Arc::clone(&stats)),
                readers: Readers::new(file, settings.max_connections, settings.acquire_timeout),
            }))
        }
        Target::Postgres(url) => {
            let options = postgres_options(url, settings)?;
            // Building an index may take longer than any call should.
            let unhurried = options.clone().options([("statement_timeout", "0")]);
            let connection = prepare_postgres(&unhurried).await?;
            let read_only = options
                .clone()
                .options([("default_transaction_read_only", "on")]);
            let connections = |options| {
                Connections::new(
                    options,
                    settings.max_connections,
                    settings.acquire_timeout,
                    settings.transaction_timeout,
                )
            };
            let db = db(Engine::Postgres {
                readers: connections(read_only),
                writers: connections(options),
            });
            migrate_postgres(&db, connection, clock, random).await?;
            Ok(db)
        }
    }
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
            // Compiling takes a tenth of a second, and a plan that cannot do without a scan counts as dear
            // enough for it; ours run for a millisecond.
            ("jit", "off".to_owned()),
            // A statement finds its rows by an index, one after another, whatever its values are: planning what
            // goes from group to group takes as long as running it, and before there are statistics the planner
            // may take a whole index for less.
            ("plan_cache_mode", "force_generic_plan".to_owned()),
            ("enable_hashjoin", "off".to_owned()),
            ("enable_mergejoin", "off".to_owned()),
            ("synchronous_commit", "on".to_owned()),
            ("statement_timeout", timeout_ms.to_string()),
            (
                "idle_in_transaction_session_timeout",
                timeout_ms.to_string(),
            ),
        ]))
}

/// Creates the file, asserts what durability rests on, and brings the schema up to date.
fn prepare_sqlite(file: &File) -> Result<(), String> {
    // Building an index may take longer than any call should.
    let unhurried = File {
        statement_timeout: Duration::from_hours(24),
        ..file.clone()
    };
    let mut connection = unhurried.open().map_err(|error| error.to_string())?;
    let text = |error: Error| error.to_string();
    let mode = sql!("SELECT journal_mode AS mode FROM pragma_journal_mode");
    let mode = connection.first(&mode, |row| row.get::<String>("mode"));
    let sync = sql!("SELECT synchronous AS sync FROM pragma_synchronous");
    let sync = connection.first(&sync, |row| row.get::<i64>("sync"));
    match (mode.map_err(text)?.as_deref(), sync.map_err(text)?) {
        (Some("wal"), Some(2)) => {
            forget_statistics(&mut connection)?;
            migrate_sqlite(&mut connection)
        }
        (mode, sync) => Err(format!(
            "journal_mode is {mode:?} and synchronous {sync:?}, not wal and 2"
        )),
    }
}

/// Forgets what somebody's `ANALYZE` has left, so that the plans are those that are tested: with it SQLite reads whole
/// tables into filters before it goes from group to group, for each call.
fn forget_statistics(connection: &mut sqlite::Connection) -> Result<(), String> {
    let text = |error: Error| error.to_string();
    let kept =
        sql!("SELECT name FROM sqlite_schema WHERE type = 'table' AND name = 'sqlite_stat1'");
    let kept = connection.first(&kept, |row| row.get::<String>("name"));
    if kept.map_err(text)?.is_some() {
        let forgotten = connection.run_all("DELETE FROM sqlite_stat1; ANALYZE sqlite_schema");
        forgotten.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Applies what has not been applied, each migration whole or not at all. One process has the folder
/// to itself, so nothing else can be migrating.
fn migrate_sqlite(connection: &mut sqlite::Connection) -> Result<(), String> {
    const CREATE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
        version BIGINT PRIMARY KEY, description TEXT NOT NULL,
        installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL,
        checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)";
    connection
        .run_all(CREATE)
        .map_err(|error| error.to_string())?;
    let text = |error: Error| error.to_string();
    let applied = sql!("SELECT version, checksum FROM _sqlx_migrations");
    let applied = connection.all(&applied, |row| {
        Ok((row.get::<i64>("version")?, row.get::<Vec<u8>>("checksum")?))
    });
    let applied: HashMap<i64, Vec<u8>> = applied.map_err(text)?.into_iter().collect();
    for migration in SQLITE.iter() {
        let (version, checksum) = (migration.version, &*migration.checksum);
        let applied = applied.get(&version);
        let earlier = applied.and_then(|found| earlier::script(version, found));
        match applied {
            Some(found) if found == checksum => continue,
            Some(_) if earlier.is_none() => {
                return Err(format!(
                    "migration {version} is not the one that was applied"
                ));
            }
            _ => {}
        }
        let record = sql!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ($1, $2, TRUE, $3, 0)
             ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum"
        );
        let record = record
            .bind(version)
            .bind(&*migration.description)
            .bind(checksum);
        let cannot = |error: String| format!("migration {version}: {error}");
        let script = earlier.unwrap_or_else(|| migration.sql.as_str());
        let script = format!("BEGIN IMMEDIATE; {script}");
        connection
            .run_all(&script)
            .map_err(|error| cannot(error.to_string()))?;
        connection
            .execute(&record)
            .map_err(|error| cannot(text(error)))?;
        connection
            .run_all("COMMIT")
            .map_err(|error| cannot(error.to_string()))?;
    }
    Ok(())
}

/// Asks what is at the other end before anything is sent that only PostgreSQL understands.
async fn prepare_postgres(options: &PgConnectOptions) -> Result<PgConnection, String> {
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
    Ok(connection)
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
    mut connection: PgConnection,
    clock: &dyn Clock,
    random: &Arc<dyn Random>,
) -> Result<(), String> {
    let text = |error: sqlx::Error| format!("cannot migrate the database: {error}");
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
    let run = async {
        settle(&mut connection).await?;
        migrator.run(&mut connection).await
    };
    let migrated = tokio::select! {
        migrated = run => migrated,
        () = renewed => Ok(()),
    };
    let released = transact!(db, |tx| { leases::release(tx, MIGRATIONS, holder).await? });
    migrated.map_err(|error| format!("cannot migrate the database: {error}"))?;
    released.map_err(|error| error.to_string())?;
    connection.close().await.map_err(text)
}

/// Brings what was applied in an earlier form to what it is now, each whole or not at all.
async fn settle(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let applied = applied(connection).await;
    for migration in POSTGRES.iter() {
        let found = applied.get(&migration.version);
        let script = found.and_then(|found| earlier::script(migration.version, found));
        if let Some(script) = script {
            let mut transaction = connection.begin().await?;
            sqlx::raw_sql(script).execute(&mut *transaction).await?;
            let _: i64 = scalar(
                "UPDATE _sqlx_migrations SET checksum = $2 WHERE version = $1 RETURNING version",
            )
            .bind(migration.version)
            .bind(&*migration.checksum)
            .fetch_one(&mut *transaction)
            .await?;
            transaction.commit().await?;
        }
    }
    Ok(())
}

/// What was applied; nothing where there is no database of ours yet.
async fn applied(connection: &mut PgConnection) -> HashMap<i64, Vec<u8>> {
    let applied = sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations WHERE success");
    let applied: Vec<(i64, Vec<u8>)> = applied.fetch_all(connection).await.unwrap_or_default();
    applied.into_iter().collect()
}

/// Whether a migration of ours has not been applied as it is.
async fn is_behind(connection: &mut PgConnection) -> bool {
    let applied = applied(connection).await;
    POSTGRES
        .iter()
        .any(|ours| applied.get(&ours.version).map(Vec::as_slice) != Some(&*ours.checksum))
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

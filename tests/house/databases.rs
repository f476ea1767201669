//! A new database of each engine, as the server itself opens it.

use std::{sync::Arc, time::Duration};

use accountd::{
    env::{Random, SystemClock, SystemRandom},
    store::open::{self, Settings, Target},
};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use crate::postgres;

pub struct Databases {
    /// How they were opened.
    pub targets: Vec<Target>,
    pub sqlite: rusqlite::Connection,
    /// None where PostgreSQL is not installed.
    pub postgres: Option<PgConnection>,
    _folder: TempDir,
}

pub async fn databases() -> Databases {
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("accountd.sqlite");
    let mut targets = vec![Target::Sqlite(file.clone())];
    open(&targets[0]).await.expect("opens");
    let sqlite = rusqlite::Connection::open(&file).expect("a connection");
    let postgres = if postgres::is_available().await {
        let url = postgres::database().await;
        targets.push(Target::Postgres(url.clone()));
        open(&targets[1]).await.expect("opens");
        Some(PgConnection::connect(&url).await.expect("a connection"))
    } else {
        None
    };
    Databases {
        targets,
        sqlite,
        postgres,
        _folder: folder,
    }
}

pub async fn open(target: &Target) -> Result<(), String> {
    let settings = Settings {
        target: target.clone(),
        max_connections: 1,
        acquire_timeout: Duration::from_secs(5),
        transaction_timeout: Duration::from_secs(5),
    };
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    let db = open::open(&settings, &SystemClock, &random).await?;
    db.close().await;
    Ok(())
}

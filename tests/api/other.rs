//! Another hand on the database of a server: for what this build would not do, and for what is to happen
//! between two of its steps.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::harness::Server;

pub enum Other {
    Sqlite(rusqlite::Connection),
    Postgres(PgConnection),
}

impl Other {
    pub async fn new(server: &Server) -> Self {
        match &server.config.database_url {
            Some(url) => {
                let connection = PgConnection::connect(&url.0).await;
                Self::Postgres(connection.expect("a connection"))
            }
            None => {
                let connection = rusqlite::Connection::open(server.config.sqlite_file());
                Self::Sqlite(connection.expect("a connection"))
            }
        }
    }

    /// Runs statements.
    pub async fn run(&mut self, sql: &str) {
        match self {
            Self::Sqlite(connection) => connection.execute_batch(sql).expect("done"),
            Self::Postgres(connection) => {
                let sql = AssertSqlSafe(sql.to_owned());
                sqlx::raw_sql(sql).execute(connection).await.expect("done");
            }
        }
    }

    /// Holds up whoever wants to write, on PostgreSQL to this table or read it, until a COMMIT.
    pub async fn hold(&mut self, table: &str) {
        let sql = match self {
            Self::Sqlite(_) => "BEGIN IMMEDIATE".to_owned(),
            Self::Postgres(_) => format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
        };
        self.run(&sql).await;
    }
}

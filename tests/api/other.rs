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

    /// An expression for an id that nothing has.
    pub const fn random_uuid(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "randomblob(16)",
            Self::Postgres(_) => "gen_random_uuid()",
        }
    }

    /// The columns of a table.
    pub async fn columns(&mut self, table: &str) -> Vec<String> {
        match self {
            Self::Sqlite(connection) => {
                let sql = "SELECT name FROM pragma_table_info($1)";
                let mut columns = connection.prepare(sql).expect("known");
                let columns = columns
                    .query_map([table], |row| row.get(0))
                    .expect("listed");
                columns.collect::<Result<_, _>>().expect("names")
            }
            Self::Postgres(connection) => {
                let sql = "SELECT column_name::text FROM information_schema.columns WHERE table_name = $1";
                let columns = sqlx::query_scalar(sql).bind(table).fetch_all(connection);
                columns.await.expect("listed")
            }
        }
    }

    /// How many rows a table has.
    pub async fn count(&mut self, table: &str) -> i64 {
        let sql = format!("SELECT COUNT(*) FROM {table}");
        match self {
            Self::Sqlite(connection) => connection
                .query_row(&sql, [], |row| row.get(0))
                .expect("a number"),
            Self::Postgres(connection) => sqlx::query_scalar(AssertSqlSafe(sql))
                .fetch_one(connection)
                .await
                .expect("a number"),
        }
    }

    /// Does something to the database whenever a row comes into a table, if there is such a row elsewhere.
    pub async fn whenever(&mut self, table: &str, there_is: &str, action: &str) {
        let sql = match self {
            Self::Sqlite(_) => format!(
                "CREATE TRIGGER meanwhile AFTER INSERT ON {table}
                 WHEN EXISTS (SELECT 1 FROM {there_is}) BEGIN {action}; END"
            ),
            Self::Postgres(_) => format!(
                "CREATE FUNCTION meanwhile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF EXISTS (SELECT 1 FROM {there_is}) THEN {action}; END IF;
                     RETURN NULL;
                 END $$;
                 CREATE TRIGGER meanwhile AFTER INSERT ON {table}
                     FOR EACH ROW EXECUTE FUNCTION meanwhile()"
            ),
        };
        self.run(&sql).await;
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

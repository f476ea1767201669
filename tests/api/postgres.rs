//! A PostgreSQL for the tests: the one named by ACCOUNTD_TEST_POSTGRES_URL, or one of our own in a
//! temporary folder, which ends with this process.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use sqlx::{Connection as _, PgConnection};
use tokio::sync::OnceCell;

/// Whether there is one; says once if there is none.
pub async fn is_available() -> bool {
    cluster().await.is_some()
}

/// The URL of a new, empty database.
pub async fn database() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let cluster = cluster().await.expect("asked before");
    let name = format!(
        "accountd_test_{}_{}",
        std::process::id(),
        COUNT.fetch_add(1, Relaxed)
    );
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    let mut connection = cluster.connect().await.expect("a connection");
    sqlx::raw_sql(create)
        .execute(&mut connection)
        .await
        .expect("a new database");
    let (server, _) = cluster.url.rsplit_once('/').expect("a database in the URL");
    format!("{server}/{name}")
}

struct Cluster {
    /// Of a database that is always there.
    url: String,
    /// Its input ends with this process, and then it ends too.
    _watcher: Option<Child>,
}

impl Cluster {
    async fn connect(&self) -> sqlx::Result<PgConnection> {
        PgConnection::connect(&self.url).await
    }
}

async fn cluster() -> Option<&'static Cluster> {
    static CLUSTER: OnceCell<Option<Cluster>> = OnceCell::const_new();
    CLUSTER.get_or_init(find).await.as_ref()
}

#[expect(
    clippy::disallowed_macros,
    reason = "the one line that says what was not tested"
)]
async fn find() -> Option<Cluster> {
    if let Some(url) = std::env::var_os("ACCOUNTD_TEST_POSTGRES_URL") {
        let url = url.into_string().expect("a URL");
        return Some(Cluster {
            url,
            _watcher: None,
        });
    }
    match bin() {
        Some(bin) => Some(start(&bin).await),
        None => {
            let required = std::env::var_os("ACCOUNTD_TEST_REQUIRE_POSTGRES").is_some();
            assert!(!required, "PostgreSQL is required and not installed");
            eprintln!("PostgreSQL is not installed: everything ran on SQLite only");
            None
        }
    }
}

/// Where `initdb` and `postgres` are: on the path, or where Debian puts them.
fn bin() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    folders
        .into_iter()
        .find(|folder| folder.join("initdb").is_file())
}

/// The user that owns nothing: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

async fn start(bin: &Path) -> Cluster {
    let folder = tempfile::Builder::new()
        .prefix("accountd-test-pg-")
        .tempdir();
    let folder = folder.expect("a temporary folder").keep();
    let as_nobody = rustix::process::geteuid().is_root();
    if as_nobody {
        chown(&folder, Some(NOBODY), Some(NOBODY)).expect("to give it away");
    }
    let command = |program: &Path| {
        let mut command = Command::new(program);
        command.current_dir(&folder);
        if as_nobody {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    let data = folder.join("data");
    let made = command(&bin.join("initdb"))
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C.UTF-8",
            "-D",
        ])
        .arg(&data)
        .output()
        .expect("initdb runs");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );

    let port = free_port();
    // Waits for the end of its input, which is the end of this process, however it comes.
    let script = r#"
        "$1/postgres" -D "$2/data" -k "$2" -c listen_addresses=127.0.0.1 -p "$3" \
            -c max_connections=300 -c logging_collector=off >"$2/log" 2>&1 </dev/null &
        server=$!
        cat >/dev/null
        kill -INT "$server"
        wait "$server"
        rm -rf "$2"
    "#;
    let watcher = command(Path::new("/bin/sh"))
        .args(["-c", script, "sh"])
        .arg(bin)
        .arg(&folder)
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let cluster = Cluster {
        url,
        _watcher: Some(watcher),
    };
    let give_up = Instant::now() + Duration::from_secs(30);
    while let Err(error) = cluster.connect().await {
        assert!(
            Instant::now() < give_up,
            "PostgreSQL does not start: {error}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}

//! A server to measure: a process of its own, in a folder of its own, on ports that are free.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use crate::{
    cores::{self, Cores},
    postgres,
};

#[derive(Clone, Copy)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

pub struct Server {
    pub engine: Engine,
    pub users: u64,
    pub fill_per_s: f64,
    pub start_ms: f64,
    pub idle_mib: f64,
    pub folder: TempDir,
    pub database_url: Option<String>,
    /// The first process of PostgreSQL.
    database_pid: Option<u32>,
    url: String,
    ops_url: String,
    client_cores: String,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which is noticed elsewhere.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const MIB: f64 = 1024.0 * 1024.0;

pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").to_string()
}

impl Server {
    pub async fn start(engine: Engine, users: u64, cores: &Cores) -> Self {
        let folder = TempDir::new().expect("a folder");
        let database_url = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(postgres::database().await),
        };
        let database_pid = match &database_url {
            Some(url) => {
                let pid = first_process(url).await;
                cores::pin(pid, &cores.others);
                Some(pid)
            }
            None => None,
        };
        let filled = program(&folder, database_url.as_deref(), &cores.all)
            .args(["admin", "fill", "--users", &users.to_string()])
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&filled.stdout).into_owned();
        let fill_per_s = said
            .split_whitespace()
            .nth_back(2)
            .and_then(|rate| rate.parse().ok());
        let (address, ops) = (free_address(), free_address());
        let begin = Instant::now();
        let child = program(&folder, database_url.as_deref(), &cores.server)
            .args(["serve", "--listen", &address, "--ops-listen", &ops])
            // One address makes all calls here.
            .env("ACCOUNTD_THROTTLE__NETWORK_FREE", "1000000000")
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).expect("a log"))
            .spawn()
            .expect("runs");
        let ops_url = format!("http://{ops}");
        while reqwest::get(format!("{ops_url}/readyz")).await.is_err() {
            assert!(begin.elapsed() < Duration::from_secs(30), "does not serve");
            std::thread::sleep(Duration::from_millis(1));
        }
        let start_ms = begin.elapsed().as_secs_f64() * 1e3;
        let mut server = Self {
            engine,
            users,
            fill_per_s: fill_per_s.unwrap_or_default(),
            start_ms,
            idle_mib: 0.0,
            folder,
            database_url,
            database_pid,
            url: format!("http://{address}"),
            ops_url,
            client_cores: cores.others.clone(),
            child,
        };
        server.idle_mib = server.metric("process_resident_memory_bytes").await / MIB;
        server
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.ops_url))
            .await
            .expect("answers");
        let text = text.text().await.expect("text");
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.expect(name)
    }

    /// The row that `accountd bench` finds.
    pub async fn bench(&self, arguments: &[&str], seconds: u64) -> Value {
        let own = ["--url", &self.url, "--ops-url", &self.ops_url];
        let mut arguments: Vec<&str> = arguments.iter().copied().chain(own).collect();
        let pid = self.database_pid.map(|pid| pid.to_string());
        if let Some(pid) = &pid {
            arguments.extend(["--database-pid", pid]);
        }
        self.bench_with(&arguments, seconds).await
    }

    /// The row that it finds at whatever server the arguments name.
    #[expect(clippy::disallowed_macros, reason = "shows how far it is")]
    pub async fn bench_with(&self, arguments: &[&str], seconds: u64) -> Value {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).expect("a file");
        let mut command = program(&self.folder, None, &self.client_cores);
        command.args(["bench", "--seconds", &seconds.to_string(), "--json"]);
        command.arg(file.path()).args(arguments);
        let output = tokio::process::Command::from(command)
            .output()
            .await
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stdout);
        for line in said.lines().skip(1) {
            eprintln!("{line}");
        }
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut report: Value = serde_json::from_reader(file.as_file_mut()).expect("JSON");
        report["rows"][0].take()
    }

    /// Ten times as many sign-ins as can be served, with cheap calls going on beside them: the middle
    /// one of three times.
    pub async fn overload(&self, seconds: u64) -> Overload {
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(self.overload_once(seconds).await);
        }
        all.sort_by(|a, b| a.goodput().total_cmp(&b.goodput()));
        all.swap_remove(1)
    }

    async fn overload_once(&self, seconds: u64) -> Overload {
        let cheap = ["issue-token", "--rate", "500"];
        let alone = self.bench(&cheap, seconds).await;
        // The cheap calls go on beside the measuring of the capacity too, since they have their part of
        // the processor.
        let (busy, _) = tokio::join!(
            self.bench(&["sign-in"], seconds),
            self.bench(&cheap, seconds * 2 + 3),
        );
        let capacity = busy["capacity_per_s"].as_f64().expect("sign-ins");
        let (ten, half) = ((capacity * 10.0).to_string(), (capacity / 2.0).to_string());
        let (beside, (flood, after)) = tokio::join!(
            async {
                // To make those who sign in takes a second.
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.bench(&cheap, seconds).await
            },
            async {
                let flood = self.bench(&["sign-in", "--rate", &ten], seconds).await;
                let after = self.bench(&["sign-in", "--rate", &half], seconds).await;
                (flood, after)
            },
        );
        Overload {
            capacity,
            alone,
            beside,
            flood,
            after,
        }
    }
}

pub struct Overload {
    capacity: f64,
    alone: Value,
    beside: Value,
    flood: Value,
    after: Value,
}

impl Overload {
    /// The part of the capacity that is served, until the last of those that waited has its answer.
    fn goodput(&self) -> f64 {
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        let served = number(&self.flood["outcomes"]["OK"]["count"]);
        served / number(&self.flood["open_s"]) / self.capacity
    }

    pub fn json(&self) -> Value {
        json!({
            "goodput_of_capacity": self.goodput(), "cheap_alone": self.alone["outcomes"],
            "cheap_beside": self.beside["outcomes"], "flood": self.flood["outcomes"],
            "right_after": self.after["outcomes"],
        })
    }

    pub fn text(&self) -> String {
        let time = |row: &Value, outcome: &str, name: &str| {
            row["outcomes"][outcome][name].as_f64().unwrap_or(f64::NAN)
        };
        let failed = self.after["outcomes"].as_object().map_or(0, |outcomes| {
            outcomes.keys().filter(|outcome| *outcome != "OK").count()
        });
        format!(
            "Ten times as many sign-ins as can be served: {:.2} of the capacity is still served; {} refused, \
             p50 {:.1} ms, p99 {:.1} ms. IssueToken at 500/s: p50 {:.1} ms and p99 {:.1} ms alone, {:.1} ms \
             and {:.1} ms beside the flood. From a second after it, sign-ins at half the capacity: p99 {:.0} ms, \
             {} other outcomes.\n",
            self.goodput(),
            time(&self.flood, "OVERLOADED", "count"),
            time(&self.flood, "OVERLOADED", "p50"),
            time(&self.flood, "OVERLOADED", "p99"),
            time(&self.alone, "OK", "p50"),
            time(&self.alone, "OK", "p99"),
            time(&self.beside, "OK", "p50"),
            time(&self.beside, "OK", "p99"),
            time(&self.after, "OK", "p99"),
            failed,
        )
    }
}

/// The program in a folder and on these cores, with nothing but the settings of this one.
fn program(folder: &TempDir, database_url: Option<&str>, cores: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores, env!("CARGO_BIN_EXE_accountd")]);
    command.current_dir(folder.path());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ACCOUNTD_") {
            command.env_remove(name);
        }
    }
    if let Some(url) = database_url {
        command.env("ACCOUNTD_DATABASE_URL", url);
    }
    command
}

/// The parent of the process that serves a connection.
async fn first_process(url: &str) -> u32 {
    let mut connection = PgConnection::connect(url).await.expect("a connection");
    let pid = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()");
    let pid = pid.fetch_one(&mut connection).await.expect("a process");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("Linux");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    fields
        .split(' ')
        .nth(1)
        .and_then(|parent| parent.parse().ok())
        .expect("a parent")
}

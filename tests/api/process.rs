//! The program itself, as a process that can be watched, signalled and killed.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    harness::{Actor, Engine, connect},
    postgres,
};

/// A folder for one installation, and the database it uses.
pub struct Installation {
    pub folder: TempDir,
    pub database_url: Option<String>,
}

impl Installation {
    pub async fn new(engine: Engine) -> Self {
        let database_url = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(postgres::database().await),
        };
        Self {
            folder: TempDir::new().expect("a temporary folder"),
            database_url,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("accountd-data")
    }

    /// The program in this folder, with nothing but these settings. ACCOUNTD_TEST_BINARY names
    /// another build of it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let other = std::env::var_os("ACCOUNTD_TEST_BINARY");
        let program = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_accountd").into());
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ACCOUNTD_") {
                command.env_remove(name);
            }
        }
        if let Some(url) = &self.database_url {
            command.env("ACCOUNTD_DATABASE_URL", url);
        }
        command
    }

    /// What the program prints, and how it ends.
    pub fn run(&self, arguments: &[&str]) -> (ExitStatus, String, String) {
        let output = self.command(arguments).output().expect("the program runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status, text(output.stdout), text(output.stderr))
    }

    /// A server on ports that are free, once it is serving.
    pub fn serve(&self, variables: &[(&str, &str)]) -> Process {
        let log = self.folder.path().join("log");
        let errors = File::create(&log).expect("a log");
        let mut child = self
            .command(&[
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--ops-listen",
                "127.0.0.1:0",
            ])
            .envs(variables.iter().copied())
            .env("ACCOUNTD_LOG__FORMAT", "json")
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .expect("the program runs");
        let give_up = Instant::now() + Duration::from_mins(1);
        loop {
            if let Some(fields) = serving(&log) {
                let address = |name: &str| {
                    let text = fields[name].as_str().expect(name);
                    text.parse().expect("an address")
                };
                return Process {
                    child,
                    address: address("address"),
                    ops_address: address("ops"),
                };
            }
            let ended = child.try_wait().expect("a child");
            let text = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "ended at once: {}", text());
            assert!(Instant::now() < give_up, "does not serve: {}", text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The first operator.
    pub async fn bootstrap(&self, process: &Process) -> Actor {
        let text = fs::read_to_string(self.data().join("bootstrap.json")).expect("the file");
        let file: Value = serde_json::from_str(&text).expect("JSON");
        let text = |name: &str| file[name].as_str().expect(name).to_owned();
        let anonymous = Actor::new(connect(process.address).await, None);
        let tokens = anonymous
            .issue(&text("client_id"), &text("client_secret"))
            .await;
        Actor::new(
            anonymous.channel,
            Some(&tokens.expect("a token").access_token),
        )
    }
}

/// What the line says that a server writes when it is serving.
fn serving(log: &Path) -> Option<Value> {
    let lines = BufReader::new(File::open(log).ok()?)
        .lines()
        .map_while(Result::ok);
    let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let line = lines.find(|line| line["fields"]["message"] == "serving")?;
    Some(line["fields"].clone())
}

/// A running server; killed when it is dropped.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    pub ops_address: SocketAddr,
}

impl Process {
    /// The value of one line of the metrics, 0 when it is not there yet.
    pub async fn metric(&self, line: &str) -> f64 {
        let url = format!("http://{}/metrics", self.ops_address);
        let text = reqwest::get(url).await.expect("an answer").text().await;
        let text = text.expect("text");
        let value = text.lines().find_map(|found| found.strip_prefix(line));
        value.map_or(0.0, |value| value.trim().parse().expect("a number"))
    }

    /// At once, in the middle of whatever it does.
    pub fn kill(mut self) {
        self.child.kill().expect("to kill it");
        self.child.wait().expect("its end");
    }

    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).expect("to signal it");
    }

    /// How it ended, and that it did within `limit`.
    pub fn ends_within(mut self, limit: Duration) -> ExitStatus {
        let give_up = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < give_up, "still running after {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory in bytes: now, and the most there was.
    pub fn memory(&self) -> (u64, u64) {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("Linux");
        let line = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .expect(name);
            let kib: u64 = line
                .trim()
                .trim_end_matches(" kB")
                .parse()
                .expect("a number");
            kib * 1024
        };
        (line("VmRSS:"), line("VmHWM:"))
    }

    fn pid(&self) -> Pid {
        let id = i32::try_from(self.child.id()).expect("a process id");
        Pid::from_raw(id).expect("not zero")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

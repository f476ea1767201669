//! Which cores are the server's alone, and which are for those who call it and for PostgreSQL.
//!
//! A client that shares the server's cores is part of every latency, and a flood of calls leaves the
//! server no time to refuse them in.

use std::process::Command;

/// Lists of cores, as `taskset` takes them.
pub struct Cores {
    pub server: String,
    pub others: String,
    pub all: String,
}

impl Cores {
    /// Half of them for the server; where there is one only, everybody shares it.
    pub fn share() -> Self {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let list = |first: usize, end: usize| match end - first {
            1 => format!("{first}"),
            _ => format!("{first}-{}", end - 1),
        };
        let half = all / 2;
        let (server, others) = match half {
            0 => (list(0, 1), list(0, 1)),
            _ => (list(0, half), list(half, all)),
        };
        Self {
            server,
            others,
            all: list(0, all),
        }
    }
}

/// Keeps a process, and those that it will start, on these cores.
pub fn pin(pid: u32, cores: &str) {
    let pinned = Command::new("taskset")
        .args(["-a", "-p", "-c", cores, &pid.to_string()])
        .output()
        .expect("taskset, of util-linux");
    assert!(
        pinned.status.success(),
        "{}",
        String::from_utf8_lossy(&pinned.stderr)
    );
}

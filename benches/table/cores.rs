//! Which cores are the server's alone, and which are for those who call it and for PostgreSQL.
//!
//! A client that shares the server's cores is part of every latency, and a flood of calls leaves the
//! server no time to refuse them in.

use std::{fs, process::Command};

/// Numbers of cores, as `taskset` takes them.
pub struct Cores {
    pub server: String,
    pub others: String,
    pub all: String,
}

impl Cores {
    /// Half of those we have for the server; where there is one only, everybody shares it.
    pub fn share() -> Self {
        let status = fs::read_to_string("/proc/self/status").expect("Linux");
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let all: Vec<u32> = list.map(numbers).expect("a list of cores");
        let (server, others) = match all.len() {
            1 => (&all[..], &all[..]),
            more => all.split_at(more / 2),
        };
        Self {
            server: text(server),
            others: text(others),
            all: text(&all),
        }
    }
}

/// The numbers in a list such as `0-3,8`.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<u32>().expect("a number");
        number(low)..=number(high)
    };
    list.trim().split(',').flat_map(range).collect()
}

fn text(cores: &[u32]) -> String {
    let cores: Vec<String> = cores.iter().map(u32::to_string).collect();
    cores.join(",")
}

/// Keeps a process, those that it has started, and those that it will start, on these cores.
pub fn pin(pid: u32, cores: &str) {
    for pid in children(pid).into_iter().chain([pid]) {
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
}

fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("Linux").flatten();
    let child = |stat: String| {
        let (head, fields) = stat.rsplit_once(") ")?;
        let is_child = fields.split(' ').nth(1)? == parent.to_string();
        let pid = head.split(' ').next()?.parse().ok()?;
        is_child.then_some(pid)
    };
    processes
        .filter_map(|process| child(fs::read_to_string(process.path().join("stat")).ok()?))
        .collect()
}

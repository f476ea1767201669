//! The whole table in one run: what a server does on each engine, beside what the machine could do at
//! all. Writes `docs/performance/`, in a folder for each number of users.
//!
//! `cargo bench --bench table`. ACCOUNTD_BENCH_USERS (100000) and ACCOUNTD_BENCH_SECONDS (5, of each
//! part) make it longer or shorter.

#![expect(
    clippy::disallowed_methods,
    reason = "takes its settings from the environment"
)]

mod cores;
mod limits;
mod plot;
#[path = "../../tests/api/postgres.rs"]
mod postgres;
mod server;

use std::{fs, path::Path, time::Duration};

use accountd::telemetry::precise;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    cores::Cores,
    limits::{Floor, Limits},
    server::{Engine, Server},
};

/// An operation, what is expected of a core, and what no implementation could do without.
struct Target {
    operation: &'static str,
    per_core: f64,
    p99_ms: f64,
    floor: &'static [Floor],
}

const TARGETS: [Target; 11] = [
    Target {
        operation: "sign-in",
        per_core: 0.0,
        p99_ms: 0.0,
        floor: &[],
    },
    Target {
        operation: "issue-token",
        per_core: 10_000.0,
        p99_ms: 5.0,
        floor: &[Floor::Echo, Floor::Sign, Floor::Read],
    },
    Target {
        operation: "refresh-session",
        per_core: 3_000.0,
        p99_ms: 0.0,
        floor: &[Floor::Echo, Floor::Sign, Floor::Read, Floor::Transaction],
    },
    Target {
        operation: "introspect-token",
        per_core: 10_000.0,
        p99_ms: 2.0,
        floor: &[Floor::Echo, Floor::Read],
    },
    Target {
        operation: "get-user",
        per_core: 8_000.0,
        p99_ms: 0.0,
        floor: &[Floor::Echo, Floor::Read],
    },
    Target {
        operation: "create-user",
        per_core: 2_000.0,
        p99_ms: 0.0,
        floor: &[Floor::Echo, Floor::Transaction],
    },
    Target {
        operation: "lookup-user",
        per_core: 0.0,
        p99_ms: 10.0,
        floor: &[Floor::Echo, Floor::Read],
    },
    Target {
        operation: "list-users",
        per_core: 0.0,
        p99_ms: 10.0,
        floor: &[],
    },
    Target {
        operation: "search-users",
        per_core: 0.0,
        p99_ms: 15.0,
        floor: &[],
    },
    Target {
        operation: "jwks",
        per_core: 50_000.0,
        p99_ms: 0.0,
        floor: &[Floor::Echo],
    },
    Target {
        operation: "health",
        per_core: 50_000.0,
        p99_ms: 0.0,
        floor: &[Floor::Echo],
    },
];

fn main() {
    let is_echo = std::env::args().nth(1).as_deref() == Some("echo");
    let cores = Cores::share();
    if !is_echo {
        // What is measured in this process is measured where the server will be.
        cores::pin(std::process::id(), &cores.server);
    }
    let runtime = Runtime::new().expect("a runtime");
    if is_echo {
        runtime.block_on(limits::echo());
    } else {
        runtime.block_on(measure(&cores));
    }
}

async fn measure(cores: &Cores) {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(otherwise)
    };
    let users = number("ACCOUNTD_BENCH_USERS", 100_000);
    let seconds = number("ACCOUNTD_BENCH_SECONDS", 5);
    let mut engines = vec![Engine::Sqlite];
    if postgres::is_available().await {
        engines.push(Engine::Postgres);
    }
    let mut report = vec![machine(cores)];
    let mut figures = Vec::new();
    for engine in engines {
        let server = Server::start(engine, users, cores).await;
        let limits = Limits::measure(&server, Duration::from_secs(seconds)).await;
        let (sign_in, argon2) = sign_in(&server, seconds).await;
        let mut rows = vec![sign_in];
        for target in TARGETS.iter().skip(1) {
            let repeat = ["--repeat", "3"];
            rows.push(
                server
                    .bench(&[&[target.operation], &repeat[..]].concat(), seconds)
                    .await,
            );
        }
        let overload = server.overload(seconds).await;
        report.push(table(&server, &limits, argon2, &rows));
        report.push(overload.text());
        figures.push(json!({
            "engine": engine.name(), "users": users, "rows": rows, "argon2_per_s": argon2,
            "limits_us": limits, "start_ms": server.start_ms, "idle_mib": server.idle_mib,
            "fill_per_s": server.fill_per_s, "overload": overload.json(),
        }));
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/performance/{users}"));
    fs::create_dir_all(&folder).expect("a folder");
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("written");
    let text = report.join("\n");
    print!("{text}");
    write("table.md", &text);
    write(
        "figures.json",
        &(serde_json::to_string_pretty(&figures).expect("JSON") + "\n"),
    );
    write("per-core.svg", &plot::per_core(&figures));
    write("latency.svg", &plot::latency(&figures));
}

/// Sign-ins, and the hashes per second around them: the middle one of three pairs, since the machine is
/// not the same from minute to minute.
async fn sign_in(server: &Server, seconds: u64) -> (Value, f64) {
    let time = Duration::from_secs(seconds).div_f64(2.0);
    let mut pairs = Vec::new();
    for _ in 0..3 {
        let before = limits::argon2(time);
        let row = server.bench(&["sign-in"], seconds).await;
        pairs.push((row, f64::midpoint(before, limits::argon2(time))));
    }
    pairs.sort_by(|a, b| of_argon2(&a.0, a.1).total_cmp(&of_argon2(&b.0, b.1)));
    pairs.swap_remove(1)
}

fn of_argon2(sign_in: &Value, argon2: f64) -> f64 {
    sign_in["capacity_per_s"].as_f64().unwrap_or_default() / argon2
}

/// What it ran on.
fn machine(cores: &Cores) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let memory = read("/proc/meminfo");
    let memory = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<f64>().ok());
    let binary = fs::metadata(env!("CARGO_BIN_EXE_accountd")).map_or(0, |file| file.len());
    format!(
        "{}, {:.0} GiB; Linux {}; binary {:.1} MiB (target 25). The server is on core {}, the client and PostgreSQL \
         are on core {}.\n",
        cpu.map_or("an unknown processor", |(_, name)| name.trim()),
        memory.unwrap_or_default() / 1024.0 / 1024.0,
        read("/proc/sys/kernel/osrelease").trim(),
        precise(binary) / 1024.0 / 1024.0,
        cores.server,
        cores.others,
    )
}

fn table(server: &Server, limits: &Limits, argon2: f64, rows: &[Value]) -> String {
    let mut lines = vec![
        format!("## {}\n", server.engine.name()),
        format!(
            "{} users, filled at {:.0} per second (target 10000). Start to serving {:.0} ms (target 200), idle \
             {:.1} MiB (target 30).\n",
            server.users, server.fill_per_s, server.start_ms, server.idle_mib
        ),
        format!("At the limit: argon2 {argon2:.1} hashes/s on its cores; {}.\n", limits.text()),
        "| operation | µs of a core | database, µs | per core and second | target | of the target | \
         floor, µs | of the floor | at once, per s | at 70 %: p50 ms | p99 | target | p99.9 |"
            .to_owned(),
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|".to_owned(),
    ];
    for (target, row) in TARGETS.iter().zip(rows) {
        let number = |name: &str| row[name].as_f64().unwrap_or_default();
        let time = |name: &str| row["outcomes"]["OK"][name].as_f64().unwrap_or(f64::NAN);
        let floor: f64 = target.floor.iter().map(|floor| limits.of(*floor)).sum();
        let capacity = number("capacity_per_s");
        let (asked, reached) = match target.operation {
            "sign-in" => (
                "0.93 × argon2".to_owned(),
                format!("{:.2} × argon2", of_argon2(row, argon2)),
            ),
            _ if target.per_core > 0.0 => (
                format!("{:.0}", target.per_core),
                format!("{:.2}", number("per_core_per_s") / target.per_core),
            ),
            _ => (String::new(), String::new()),
        };
        let (floor, of_floor) = if floor > 0.0 {
            (
                format!("{floor:.0}"),
                format!("{:.2}", floor / number("server_us")),
            )
        } else {
            (String::new(), String::new())
        };
        lines.push(format!(
            "| {} | {:.0} | {} | {:.0} | {asked} | {reached} | {floor} | {of_floor} | {capacity:.0} | {:.2} | {:.2} | {} | {:.2} |",
            target.operation,
            number("server_us"),
            row["database_us"].as_f64().map_or_else(String::new, |time| format!("{time:.0}")),
            number("per_core_per_s"),
            time("p50"),
            time("p99"),
            if target.p99_ms > 0.0 { format!("{:.0}", target.p99_ms) } else { String::new() },
            time("p999"),
        ));
    }
    lines.join("\n") + "\n"
}

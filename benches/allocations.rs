//! How often the server allocates for one call: `cargo bench --bench allocations`.
//!
//! The server runs in this process, whose allocator counts; who calls it is another process.

use std::{process::Stdio, sync::Arc, time::Duration};

use accountd::{
    config::Config,
    env::{SystemClock, SystemRandom},
    server::Server,
    setup::Environment,
    telemetry::precise,
};
use tempfile::TempDir;
use tokio::process::Command;

#[global_allocator]
static ALLOCATIONS: dhat::Alloc = dhat::Alloc;

/// An operation of `accountd bench`, and the RPC that it is.
const HOT: [(&str, &str); 4] = [
    ("issue-token", "TokenService/IssueToken"),
    ("refresh-session", "SessionService/RefreshSession"),
    ("introspect-token", "TokenService/IntrospectToken"),
    ("get-user", "UserService/GetUser"),
];

/// What has been counted so far.
struct Count {
    calls: f64,
    blocks: f64,
    bytes: f64,
}

#[tokio::main]
#[expect(clippy::disallowed_macros, reason = "a program that prints")]
async fn main() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let folder = TempDir::new().expect("a folder");
    let any = "127.0.0.1:0".parse().expect("an address");
    let config = Config {
        data_dir: folder.path().join("data"),
        listen: any,
        ops_listen: any,
        ..Config::default()
    };
    let environment = Environment {
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
    };
    let server = Server::start(config, &environment).await.expect("starts");
    println!("{:<18}{:>12}{:>12}", "operation", "allocations", "bytes");
    for (operation, rpc) in HOT {
        let mut caller = Command::new(env!("CARGO_BIN_EXE_accountd"));
        caller.args(["bench", operation, "--rate", "100", "--seconds", "10"]);
        caller.args(["--url", &format!("http://{}", server.address)]);
        caller.args(["--ops-url", &format!("http://{}", server.ops_address)]);
        caller
            .arg("--credentials")
            .arg(folder.path().join("data/bootstrap.json"));
        let mut caller = caller
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("runs");
        // When some have been answered, what they needed beforehand has been made.
        let begin = count(&server, rpc).calls;
        while count(&server, rpc).calls < begin + 300.0 {
            assert!(
                caller.try_wait().expect("a child").is_none(),
                "{operation} ended early"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = count(&server, rpc);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = count(&server, rpc);
        let calls = after.calls - before.calls;
        let (blocks, bytes) = (after.blocks - before.blocks, after.bytes - before.bytes);
        println!(
            "{operation:<18}{:>12.1}{:>12.0}",
            blocks / calls,
            bytes / calls
        );
        caller.wait().await.expect("ends");
    }
    server.stop().await;
}

fn count(server: &Server, rpc: &str) -> Count {
    let metrics = server.app.metrics.encode().expect("metrics");
    let line = format!("accountd_rpcs_total{{rpc=\"accountd.v1.{rpc}\",code=\"OK\"}}");
    let calls = metrics
        .lines()
        .find_map(|found| found.strip_prefix(&line)?.trim().parse().ok());
    let heap = dhat::HeapStats::get();
    Count {
        calls: calls.unwrap_or(0.0),
        blocks: precise(heap.total_blocks),
        bytes: precise(heap.total_bytes),
    }
}

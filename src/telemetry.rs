//! What the server says about its work: log lines and metrics.

use std::{
    fmt, fs,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{config, hasher, store, tls::Tls};

/// Starts logging to standard error. To be called once, by the program.
pub fn start_logging(log: &config::Log) -> Result<(), String> {
    let level = format!("{QUIET},{}", log.level);
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log.level: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if log.format == "json" {
        registry.with(lines.json()).init();
    } else {
        registry.with(lines).init();
    }
    Ok(())
}

/// The WebAuthn libraries report every wrong answer as an error, with what was sent; ours is an event.
const QUIET: &str = "webauthn_rs=off,webauthn_rs_core=off,webauthn_attestation_ca=off";

/// The metrics of one server.
pub struct Metrics {
    registry: Registry,
    rpcs: Family<RpcLabels, Counter>,
    rpc_seconds: Family<PathLabel, Histogram, fn() -> Histogram>,
    pub calls: Gauge<i64, AtomicI64>,
    pub connections: Connections,
    passwords: Family<OutcomeLabel, Counter>,
    pub throttled: Counter,
    /// Key sets of programs that could not be fetched.
    pub key_sets_failed: Counter,
    messages: Family<MessageLabels, Counter>,
    /// Messages that wait, as last counted.
    pub messages_queued: Gauge<i64, AtomicI64>,
}

/// What a listener counts.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    pub open: Gauge<i64, AtomicI64>,
    /// Above a limit.
    pub refused: Counter,
    /// Those that did not read what they asked for.
    pub cut: Counter,
    /// TLS handshakes that came to nothing.
    pub handshakes_failed: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    rpc: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabel {
    rpc: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Seconds: from a cached answer to a sign-in that waited for a lane.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Metrics {
    pub fn new(
        hasher: &hasher::Hasher,
        store: &Arc<store::db::Stats>,
        tls: Option<&Arc<Tls>>,
    ) -> Self {
        let mut root = Registry::default();
        // Under the names that dashboards know.
        root.register_collector(Box::new(Process));
        let registry = root.sub_registry_with_prefix("accountd");
        let metrics = Self {
            rpcs: Family::default(),
            rpc_seconds: Family::new_with_constructor(histogram),
            calls: Gauge::default(),
            connections: Connections::default(),
            passwords: Family::default(),
            throttled: Counter::default(),
            key_sets_failed: Counter::default(),
            messages: Family::default(),
            messages_queued: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("rpcs", "Finished calls", metrics.rpcs.clone());
        let help = "Time from a whole request to its answer";
        registry.register("rpc_seconds", help, metrics.rpc_seconds.clone());
        registry.register("calls", "Calls in progress", metrics.calls.clone());
        let Connections {
            open,
            refused,
            cut,
            handshakes_failed,
        } = metrics.connections.clone();
        registry.register("connections", "Open connections", open);
        registry.register("connections_refused", "Connections above a limit", refused);
        let help = "Connections closed because their answers were not read";
        registry.register("connections_cut", help, cut);
        let help = "TLS handshakes that came to nothing";
        registry.register("handshakes_failed", help, handshakes_failed);
        let help = "Key sets of programs that could not be fetched";
        registry.register("key_sets_failed", help, metrics.key_sets_failed.clone());
        let help = "Messages to people, by what became of each try";
        registry.register("messages", help, metrics.messages.clone());
        let help = "Messages to people that wait to be sent";
        registry.register("messages_queued", help, metrics.messages_queued.clone());
        registry.register("passwords", "Passwords checked", metrics.passwords.clone());
        registry.register(
            "throttled",
            "Attempts not looked at",
            metrics.throttled.clone(),
        );
        registry.register_collector(Box::new(Collected {
            hasher: Arc::clone(hasher.stats()),
            lanes: hasher.lanes(),
            store: Arc::clone(store),
            tls: tls.cloned(),
        }));
        Self {
            registry: root,
            ..metrics
        }
    }

    pub fn rpc(&self, rpc: &'static str, code: &'static str, time: Duration) {
        self.rpcs.get_or_create(&RpcLabels { rpc, code }).inc();
        self.rpc_seconds
            .get_or_create(&PathLabel { rpc })
            .observe(time.as_secs_f64());
    }

    /// `outcome`: `sent`, `later`, `dead`, `dropped` because of many, or `void` for nobody.
    pub fn message(&self, kind: &'static str, outcome: &'static str) {
        self.messages
            .get_or_create(&MessageLabels { kind, outcome })
            .inc();
    }

    /// `outcome`: `granted` or `refused`.
    pub fn password(&self, outcome: &'static str) {
        self.passwords
            .get_or_create(&OutcomeLabel { outcome })
            .inc();
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "nothing counts so far")]
pub const fn precise(count: u64) -> f64 {
    count as f64
}

/// Processor time that this process has used.
pub fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What the kernel counts for this process.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let used = ConstCounter::new(processor_time().as_secs_f64());
        let help = "Processor time used, in seconds";
        let name = "process_cpu_seconds";
        used.encode(encoder.encode_descriptor(name, help, None, used.metric_type())?)?;
        let mut gauge = |name, help, value: Option<u64>| match value {
            None => Ok(()),
            Some(value) => {
                let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
            }
        };
        let help = "Resident memory, in bytes";
        gauge("process_resident_memory_bytes", help, resident_bytes())?;
        gauge(
            "process_open_fds",
            "Open files and connections",
            open_files(),
        )?;
        let help = "Most open files and connections";
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        gauge("process_max_fds", help, limit.current)
    }
}

/// Linux says; elsewhere nothing is known.
fn resident_bytes() -> Option<u64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}

fn open_files() -> Option<u64> {
    u64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

/// What others count or know by themselves.
struct Collected {
    hasher: Arc<hasher::Stats>,
    lanes: usize,
    store: Arc<store::db::Stats>,
    tls: Option<Arc<Tls>>,
}

impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collected")
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut counter = |name, help, value: &AtomicU64| {
            let metric = ConstCounter::new(value.load(Relaxed));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter("hashes", "Password hashes computed", &self.hasher.hashes)?;
        counter(
            "hash_refused",
            "Calls turned away by the hash lanes",
            &self.hasher.refused,
        )?;
        counter("statements", "SQL statements", &self.store.statements)?;
        counter("transactions", "Transactions", &self.store.transactions)?;
        counter(
            "transaction_retries",
            "Transactions run again",
            &self.store.retries,
        )?;
        counter(
            "commits",
            "COMMITs of the SQLite writer",
            &self.store.batches,
        )?;
        counter("committed", "Transactions in those", &self.store.batched)?;
        let busy_s = precise(self.hasher.busy_us.load(Relaxed)) / 1e6;
        let busy = ConstCounter::new(busy_s);
        let help = "Time spent hashing, in seconds";
        busy.encode(encoder.encode_descriptor(
            "hash_busy_seconds",
            help,
            None,
            busy.metric_type(),
        )?)?;
        let mut gauge = |name, help, value: i64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        gauge("hash_lanes", "Hashes computed at once", number(self.lanes))?;
        gauge(
            "hash_waiting",
            "Calls waiting for or in a lane",
            number(self.hasher.waiting.load(Relaxed)),
        )?;
        if let Some(tls) = &self.tls {
            let help = "When the certificate of the listeners ends, in seconds since 1970";
            let end = tls.expire_time().seconds();
            gauge("tls_certificate_expire_time_seconds", help, end)?;
        }
        Ok(())
    }
}

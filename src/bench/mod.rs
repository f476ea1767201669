//! `accountd bench`: how much a running server does, and how long its answers take.
//!
//! For each operation, first as many calls as keep the server busy: its capacity, and what a call
//! costs its processors, which does not depend on where this program runs. Then calls arrive at a
//! fixed rate whether or not earlier ones were answered (an open loop), and each is timed from when
//! it was due, so that a stall counts for everybody whom it held up.

mod load;
mod meter;
mod operations;
mod report;
mod subject;

use std::{path::PathBuf, time::Duration};

use clap::Args;

use self::{
    load::Load,
    meter::Meter,
    operations::Operation,
    report::{Part, Report, Row},
    subject::Subject,
};

/// What to measure, and where. Measure a server whose data can be thrown away: the accounts that are
/// made stay. More than 50 sign-ins at once from one address are throttled unless the server's
/// `throttle.network_free` says more.
#[derive(Args)]
pub struct Options {
    /// What to measure; everything when nothing is named.
    #[arg(value_enum)]
    operations: Vec<Operation>,
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Where the server has its metrics: they say what a call costs it.
    #[arg(long, default_value = "http://127.0.0.1:9090")]
    ops_url: String,
    /// `client_id` and `client_secret`, in JSON, of an operator.
    #[arg(
        long,
        default_value = "accountd-data/bootstrap.json",
        value_name = "FILE"
    )]
    credentials: PathBuf,
    /// Certificates to trust instead of the common ones, when the server is behind https.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Connections, which the calls take in turn.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Calls in progress while the capacity is found.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    in_flight: u16,
    /// Seconds of each of the two parts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// Calls per second that arrive; the capacity is not looked for then.
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// The part of the capacity that arrives in the second part; more than 1 is an overload.
    #[arg(long, default_value_t = 0.7, value_parser = positive)]
    load: f64,
    /// Measure both parts so many times, and show the middle one of each: a machine that is shared
    /// stands still now and then.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=99))]
    repeat: u8,
    /// The first process of a PostgreSQL on this machine, to account for its processors too.
    #[arg(long, value_name = "PID")]
    database_pid: Option<u32>,
    /// Write the figures here, in JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Calls before anything is counted, so that caches and connections are as they usually are.
const WARM_UP: Duration = Duration::from_secs(1);

/// Measures, and says what was found; an error is a sentence for the operator.
pub async fn run(options: Options, say: impl Fn(&str)) -> Result<(), String> {
    let subject = Subject::connect(&options).await?;
    let meter = Meter::new(&options.ops_url, options.database_pid)?;
    let operations = match options.operations.as_slice() {
        [] => Operation::ALL,
        named => named,
    };
    let mut report = Report::default();
    say(&Report::head());
    let mut outcome = Ok(());
    for operation in operations {
        match measure(*operation, &subject, &meter, &options).await {
            Ok(row) => {
                say(&row.line());
                report.rows.push(row);
            }
            Err(error) => {
                // What was found before is not lost.
                outcome = Err(error);
                break;
            }
        }
    }
    if let Some(file) = &options.json {
        let text = report.json();
        std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    outcome
}

async fn measure(
    operation: Operation,
    subject: &Subject,
    meter: &Meter,
    options: &Options,
) -> Result<Row, String> {
    let time = Duration::from_secs(options.seconds);
    let most = operation.most_in_flight(meter).await?;
    let in_flight = most.min(options.in_flight.into());
    let (mut busy, mut open) = (Vec::new(), Vec::new());
    for _ in 0..options.repeat {
        // Each time anew, since the longest time takes nearly as long as tokens live.
        let load = Load::new(subject.prepare(operation).await?);
        let mut rate = options.rate.unwrap_or_default();
        if options.rate.is_none() {
            load.saturate(in_flight, WARM_UP).await;
            let before = meter.read().await?;
            let calls = load.saturate(in_flight, time).await;
            let used = meter.read().await?.since(&before);
            rate = calls.per_second() * options.load;
            busy.push(Part { calls, used });
        }
        // Where nothing was answered, the row says why.
        if rate > 0.0 {
            let before = meter.read().await?;
            let calls = load.arrive(rate, time).await;
            let used = meter.read().await?.since(&before);
            open.push(Part { calls, used });
        }
    }
    busy.sort_by(|a, b| a.server_us().total_cmp(&b.server_us()));
    open.sort_by_key(|part| part.calls.p99_us());
    let (busy, open) = (busy.get(busy.len() / 2), open.get(open.len() / 2));
    Ok(Row::new(operation, busy, open))
}

/// A number that there can be so much of.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok();
    number
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "has to be a number above 0".to_owned())
}

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
    report::{Report, Row},
    subject::Subject,
};

/// What to measure, and where. Measure a server whose data can be thrown away: accounts are made, and
/// most of them stay.
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
    #[arg(long)]
    rate: Option<f64>,
    /// The part of the capacity that arrives in the second part.
    #[arg(long, default_value_t = 0.7)]
    load: f64,
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
    let time = Duration::from_secs(options.seconds);
    let mut report = Report::default();
    say(&Report::head());
    for operation in operations {
        let load = Load::new(subject.prepare(*operation).await?);
        let in_flight = operation.most_in_flight().min(options.in_flight.into());
        let row = match options.rate {
            None => {
                load.saturate(in_flight, WARM_UP).await;
                let before = meter.read().await?;
                let busy = load.saturate(in_flight, time).await;
                let used = meter.read().await?.since(&before);
                let rate = busy.per_second() * options.load;
                let open = load.arrive(rate, time).await?;
                Row::new(*operation, Some(&busy), &used, rate, &open)
            }
            Some(rate) => {
                let before = meter.read().await?;
                let open = load.arrive(rate, time).await?;
                let used = meter.read().await?.since(&before);
                Row::new(*operation, None, &used, rate, &open)
            }
        };
        say(&row.line());
        report.rows.push(row);
    }
    if let Some(file) = &options.json {
        let text = report.json();
        std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

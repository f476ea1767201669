//! Figures as a table for people and as JSON for programs.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    load::{Measured, OK},
    meter::Used,
    operations::Operation,
};
use crate::telemetry::precise;

const MIB: f64 = 1024.0 * 1024.0;

#[derive(Default, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
}

/// One operation.
#[derive(Serialize)]
pub struct Row {
    operation: &'static str,
    /// Successful calls per second with the server busy; none if that was not measured.
    capacity_per_s: Option<f64>,
    /// Processor time of the server for each successful call, in microseconds: of the first part, or of
    /// the second if that was all.
    server_us: f64,
    /// The same of its database, where it was asked for.
    database_us: Option<f64>,
    /// Calls per second and core of the server: what `server_us` comes to.
    per_core_per_s: f64,
    resident_mib: f64,
    /// Calls that arrived per second in the second part.
    rate_per_s: f64,
    /// How long the second part took, until the last answer.
    open_s: f64,
    /// Calls of the first part that failed, by reason.
    failed: BTreeMap<String, u64>,
    /// Calls of the second part that were not made, because too many had no answer.
    unsent: u64,
    /// By outcome, how long the calls of the second part took.
    outcomes: BTreeMap<String, Times>,
}

/// In milliseconds, from when a call was due to its answer.
#[derive(Serialize)]
struct Times {
    count: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Times {
    fn new(times: &Histogram<u64>) -> Self {
        let ms = |quantile| precise(times.value_at_quantile(quantile)) / 1e3;
        Self {
            count: times.len(),
            p50: ms(0.5),
            p90: ms(0.9),
            p99: ms(0.99),
            p999: ms(0.999),
            max: precise(times.max()) / 1e3,
        }
    }
}

/// Calls, and what was used while they were made.
pub struct Part {
    pub calls: Measured,
    pub used: Used,
}

impl Part {
    /// Processor time of the server for each successful call, in microseconds.
    pub fn server_us(&self) -> f64 {
        self.each_us(self.used.server_s)
    }

    fn database_us(&self) -> Option<f64> {
        self.used.database_s.map(|time| self.each_us(time))
    }

    fn each_us(&self, time_s: f64) -> f64 {
        time_s * 1e6 / precise(self.calls.count(OK)).max(1.0)
    }
}

impl Row {
    /// The two parts, of which either may have been left out.
    pub fn new(operation: Operation, busy: Option<&Part>, open: Option<&Part>) -> Self {
        let accounted = busy.or(open);
        let server_us = accounted.map_or(f64::INFINITY, Part::server_us);
        let failed = busy.into_iter().flat_map(|busy| busy.calls.outcomes.iter());
        let failed = failed.filter(|(outcome, _)| *outcome != OK);
        Self {
            operation: operation.name(),
            capacity_per_s: busy.map(|busy| busy.calls.per_second()),
            server_us,
            database_us: accounted.and_then(Part::database_us),
            per_core_per_s: 1e6 / server_us,
            resident_mib: accounted.map_or(0.0, |part| part.used.resident_bytes / MIB),
            rate_per_s: open.map_or(0.0, |open| open.calls.rate),
            open_s: open.map_or(0.0, |open| open.calls.time.as_secs_f64()),
            failed: failed
                .map(|(outcome, times)| (outcome.to_owned(), times.len()))
                .collect(),
            unsent: open.map_or(0, |open| open.calls.unsent),
            outcomes: open
                .into_iter()
                .flat_map(|open| open.calls.outcomes.iter())
                .map(|(outcome, times)| (outcome.to_owned(), Times::new(times)))
                .collect(),
        }
    }

    /// The row as a line of the table, with a line more for each way to fail.
    pub fn line(&self) -> String {
        let database = self
            .database_us
            .map_or_else(|| "-".to_owned(), |time| format!("{time:.0}"));
        let capacity = self
            .capacity_per_s
            .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.0}"));
        let figures = format!(
            "{:<17}{:>10}{:>9.0}{:>7}{:>10.0}{:>9.0}",
            self.operation,
            capacity,
            self.server_us,
            database,
            self.per_core_per_s,
            self.rate_per_s
        );
        let times = self.outcomes.get(OK).map(Times::columns);
        let mut lines = vec![figures + times.as_deref().unwrap_or("  none succeeded")];
        let failed = self.failed.iter();
        lines.extend(failed.map(|(reason, count)| format!("  busy: {count} × {reason}")));
        for (reason, times) in self.outcomes.iter().filter(|(outcome, _)| *outcome != OK) {
            let label = format!("  {} × {reason}", times.count);
            lines.push(format!("{label:<62}{}", times.columns()));
        }
        if self.unsent > 0 {
            lines.push(format!("  {} not sent", self.unsent));
        }
        lines.join("\n") + "\n"
    }
}

impl Times {
    fn columns(&self) -> String {
        let Self {
            p50,
            p90,
            p99,
            p999,
            max,
            ..
        } = self;
        format!("{p50:>9.2}{p90:>9.2}{p99:>9.2}{p999:>9.2}{max:>9.2}")
    }
}

impl Report {
    pub fn head() -> String {
        format!(
            "{:<17}{:>10}{:>9}{:>7}{:>10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}\n",
            "operation",
            "capacity/s",
            "cpu µs",
            "db µs",
            "per core",
            "rate/s",
            "p50 ms",
            "p90",
            "p99",
            "p99.9",
            "max"
        )
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

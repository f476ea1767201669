//! Calls, as many as are wanted, and what became of them.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{runtime::Handle, sync::oneshot, task::JoinSet};
use tokio_util::task::TaskTracker;

use crate::telemetry::precise;

/// What the outcome of a call that succeeded is called.
pub const OK: &str = "OK";

/// Makes the call with this number and says how it ended: [`OK`], or a reason.
pub type Call = Arc<dyn Fn(u64) -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// One kind of call, numbered through, so that no number is used twice.
#[derive(Clone)]
pub struct Load {
    call: Call,
    next: Arc<AtomicU64>,
}

/// Calls that arrive together: a timer is not finer than this.
const TICK: Duration = Duration::from_micros(250);
/// Most calls without an answer; more are counted and not made, so that memory is bounded.
const MAX_IN_FLIGHT: usize = 20_000;

impl Load {
    pub fn new(call: Call) -> Self {
        Self {
            call,
            next: Arc::default(),
        }
    }

    async fn call(&self) -> String {
        (self.call)(self.next.fetch_add(1, Relaxed)).await
    }

    /// A closed loop: always this many calls in progress.
    pub async fn saturate(&self, in_flight: usize, time: Duration) -> Measured {
        let begin = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..in_flight {
            let load = self.clone();
            callers.spawn(async move {
                let mut outcomes = Outcomes::default();
                while begin.elapsed() < time {
                    let since = Instant::now();
                    let outcome = load.call().await;
                    outcomes.record(outcome, since.elapsed());
                }
                outcomes
            });
        }
        let mut outcomes = Outcomes::default();
        while let Some(Ok(more)) = callers.join_next().await {
            outcomes.add(more);
        }
        Measured {
            outcomes,
            rate: 0.0,
            unsent: 0,
            time: begin.elapsed(),
        }
    }

    /// An open loop: `rate` calls per second arrive, each timed from when it was due.
    pub async fn arrive(&self, rate: f64, time: Duration) -> Measured {
        let begin = Instant::now();
        let (load, tasks, runtime) = (self.clone(), TaskTracker::new(), Handle::current());
        let arrivals = Arc::new(Arrivals::default());
        let (spawned, counted) = (tasks.clone(), Arc::clone(&arrivals));
        // A thread of its own: its sleep is finer than the timer of the runtime, and nothing that is
        // called can hold it up.
        let (done, all_sent) = oneshot::channel();
        thread::spawn(move || {
            // Lets the waiting task go on when it is dropped, whatever happens here.
            let _done: oneshot::Sender<()> = done;
            for number in 0_u32.. {
                let due = Duration::from_secs_f64(f64::from(number) / rate);
                if due >= time {
                    return;
                }
                let due = begin + round_up(due);
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if counted.in_flight.load(Relaxed) >= MAX_IN_FLIGHT {
                    counted.unsent.fetch_add(1, Relaxed);
                    continue;
                }
                counted.in_flight.fetch_add(1, Relaxed);
                let (load, counted) = (load.clone(), Arc::clone(&counted));
                spawned.spawn_on(
                    async move {
                        let outcome = load.call().await;
                        counted.answered(outcome, due.elapsed());
                    },
                    &runtime,
                );
            }
        });
        // There is nothing to receive but the end.
        let _ = all_sent.await;
        tasks.close();
        tasks.wait().await;
        Measured {
            outcomes: std::mem::take(&mut *arrivals.lock()),
            rate,
            unsent: arrivals.unsent.load(Relaxed),
            time: begin.elapsed(),
        }
    }
}

/// The next moment at which calls are sent.
fn round_up(due: Duration) -> Duration {
    let ticks = due.as_nanos().div_ceil(TICK.as_nanos());
    TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
}

#[derive(Default)]
struct Arrivals {
    outcomes: Mutex<Outcomes>,
    in_flight: AtomicUsize,
    unsent: AtomicU64,
}

impl Arrivals {
    fn answered(&self, outcome: String, time: Duration) {
        self.lock().record(outcome, time);
        self.in_flight.fetch_sub(1, Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outcomes> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For each outcome, how long it took, in microseconds.
#[derive(Default)]
pub struct Outcomes(BTreeMap<String, Histogram<u64>>);

impl Outcomes {
    fn record(&mut self, outcome: String, time: Duration) {
        let times = self.0.entry(outcome).or_insert_with(histogram);
        times.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    fn add(&mut self, others: Self) {
        for (outcome, times) in others.0 {
            let all = self.0.entry(outcome).or_insert_with(histogram);
            // Both have the same bounds.
            all.add(times).unwrap_or_default();
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Histogram<u64>)> {
        self.0
            .iter()
            .map(|(outcome, times)| (outcome.as_str(), times))
    }
}

/// From a microsecond to two minutes, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("sound bounds")
}

/// What one part of a measurement found.
pub struct Measured {
    pub outcomes: Outcomes,
    /// Calls that arrived per second; 0 in a closed loop.
    pub rate: f64,
    pub unsent: u64,
    pub time: Duration,
}

impl Measured {
    /// The calls that ended like this.
    pub fn count(&self, outcome: &str) -> u64 {
        self.outcomes.0.get(outcome).map_or(0, Histogram::len)
    }

    /// How long 99 of 100 successful calls took at most; for ever if there were none.
    pub fn p99_us(&self) -> u64 {
        let times = self.outcomes.0.get(OK);
        times.map_or(u64::MAX, |times| times.value_at_quantile(0.99))
    }

    pub fn per_second(&self) -> f64 {
        precise(self.count(OK)) / self.time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(outcome: &'static str) -> Load {
        Load::new(Arc::new(move |_| {
            Box::pin(async move { outcome.to_owned() })
        }))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn as_many_calls_arrive_as_were_asked_for() {
        let measured = instant(OK).arrive(500.0, Duration::from_secs(1)).await;
        assert_eq!(measured.count(OK), 500);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stall_counts_for_everybody_whom_it_held_up() {
        let lane = Arc::new(tokio::sync::Mutex::new(()));
        let load = Load::new(Arc::new(move |number| {
            let lane = Arc::clone(&lane);
            Box::pin(async move {
                let _turn = lane.lock().await;
                if number == 0 {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                OK.to_owned()
            })
        }));
        let measured = load.arrive(100.0, Duration::from_secs(1)).await;
        let (_, times) = measured.outcomes.iter().next().expect("outcomes");
        // Half of them were due before the stall was over, and waited for its end.
        assert!(
            times.value_at_quantile(0.75) > 150_000,
            "{}",
            times.value_at_quantile(0.75)
        );
        assert_eq!(times.len(), 100);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn failures_are_no_capacity() {
        let measured = instant("OVERLOADED")
            .saturate(2, Duration::from_millis(50))
            .await;
        assert!(measured.count("OVERLOADED") > 0);
        assert!(measured.per_second() < f64::EPSILON);
    }
}

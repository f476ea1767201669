//! `accountd calibrate`: what a password hash costs on this machine with all lanes at work, and the
//! dearest parameters that are still quick enough.
//!
//! OWASP's Password Storage Cheat Sheet gives the least (19 MiB and two passes, or 46 MiB and one);
//! RFC 9106 section 4 says to spend memory first. Measured with all lanes busy, since lanes share the
//! memory bus and a lane on its own is quicker than it will ever be under load.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    domain::password::{self, Cost, Memory, Password},
    env::{Random, SystemRandom},
};

/// What a sign-in may take.
#[derive(Args)]
pub struct Options {
    /// Milliseconds that one hash may take with all lanes at work.
    #[arg(long, default_value_t = 50.0)]
    max_ms: f64,
    /// Lanes to calibrate for; one per core when not given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    lanes: Option<u16>,
    /// Milliseconds to spend on each measurement.
    #[arg(long, default_value_t = 1000)]
    measure_ms: u64,
}

/// Sizes of memory to try, in MiB.
const SIZES_MIB: [u32; 8] = [19, 32, 46, 64, 96, 128, 192, 256];
const MIB: u32 = 1024;

/// One point of the curve.
#[derive(Clone, Copy)]
pub struct Point {
    cost: Cost,
    lanes: usize,
    pub per_second: f64,
    ms: f64,
}

/// Measures, and says what it finds as it goes; an error is a sentence for the operator.
pub fn run(options: &Options, say: impl Fn(&str)) -> Result<(), String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let lanes = options.lanes.map_or(cores, usize::from);
    let time = Duration::from_millis(options.measure_ms.max(1));
    say(&format!(
        "memory MiB  passes  lanes  hashes/s  ms each    ({cores} cores)\n"
    ));
    let mut best: Option<Point> = None;
    let room_kib = room_kib();
    for size in SIZES_MIB {
        if !fits(size * MIB, lanes, room_kib) {
            say(&format!(
                "{size} MiB for each lane would be more than half of the memory that is free\n"
            ));
            break;
        }
        let quickest = measure(cost(size, least_iterations(size)), lanes, time)?;
        say(&quickest.line());
        if quickest.ms > options.max_ms {
            break;
        }
        // Passes all cost the same, so the most there is time for is known from the first.
        let passes = quickest.ms / f64::from(quickest.cost.iterations);
        let affordable = (1..=Cost::CEILING.iterations)
            .take_while(|count| f64::from(*count) * passes <= options.max_ms)
            .last();
        best = Some(quickest);
        if let Some(most) = affordable.filter(|most| *most > quickest.cost.iterations) {
            let dearest = measure(cost(size, most), lanes, time)?;
            say(&dearest.line());
            if dearest.ms <= options.max_ms {
                best = Some(dearest);
            }
        }
    }
    let Some(best) = best else {
        return Err(format!(
            "no parameters that are strong enough take less than {} ms, or fit into the memory",
            options.max_ms
        ));
    };
    say("\nThe same with more and fewer lanes:\n");
    let powers = (0..).map(|power| 1 << power);
    let mut others: Vec<usize> = powers.take_while(|count| *count < lanes * 2).collect();
    others.extend([lanes, lanes * 2]);
    others.sort_unstable();
    others.dedup();
    others.retain(|lanes| fits(best.cost.memory_kib, *lanes, room_kib));
    for lanes in others {
        say(&measure(best.cost, lanes, time)?.line());
    }
    let Cost {
        memory_kib,
        iterations,
        parallelism,
    } = best.cost;
    say(&format!(
        "\nFor accountd.toml: {:.0} sign-ins per second, {} MiB for {lanes} lanes\n\n\
         [hashing]\nlanes = {lanes}\nmemory_kib = {memory_kib}\niterations = {iterations}\n\
         parallelism = {parallelism}\n",
        best.per_second,
        u64::from(memory_kib / MIB) * u64::try_from(lanes).unwrap_or(u64::MAX),
    ));
    Ok(())
}

const fn cost(memory_mib: u32, iterations: u32) -> Cost {
    Cost {
        memory_kib: memory_mib * MIB,
        iterations,
        parallelism: 1,
    }
}

/// What OWASP asks for at least.
const fn least_iterations(memory_mib: u32) -> u32 {
    if memory_mib < 46 { 2 } else { 1 }
}

/// Half of the memory that is free, for the machine and for the container; all there could be where
/// nobody can tell.
fn room_kib() -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = memory.lines().find_map(|line| {
        let free = line.strip_prefix("MemAvailable:")?;
        free.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    let bytes = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let of_container = bytes("memory.max").zip(bytes("memory.current"));
    let of_container = of_container.map(|(max, used)| max.saturating_sub(used) / 1024);
    let free = [free, of_container].into_iter().flatten().min();
    free.map_or(u64::MAX, |free| free / 2)
}

fn fits(memory_kib: u32, lanes: usize, room_kib: u64) -> bool {
    u64::from(memory_kib).saturating_mul(lanes as u64) <= room_kib
}

/// As many lanes as asked for, all at work for a while.
pub fn measure(cost: Cost, lanes: usize, time: Duration) -> Result<Point, String> {
    let begin = Instant::now();
    let counts = thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes)
            .map(|_| scope.spawn(move || lane(cost, begin, time)))
            .collect();
        let counts = lanes.into_iter().map(|lane| {
            lane.join()
                .unwrap_or_else(|_| Err("a lane has failed".to_owned()))
        });
        counts.collect::<Result<Vec<u32>, String>>()
    })?;
    let (count, seconds) = (
        f64::from(counts.iter().sum::<u32>()),
        begin.elapsed().as_secs_f64(),
    );
    let busy = f64::from(u32::try_from(lanes).unwrap_or(u32::MAX));
    Ok(Point {
        cost,
        lanes,
        per_second: count / seconds,
        ms: seconds * 1e3 * busy / count,
    })
}

/// Hashes one after another, at least one; how many.
fn lane(cost: Cost, begin: Instant, time: Duration) -> Result<u32, String> {
    let mut memory = Memory::for_cost(cost)?;
    let random: &dyn Random = &SystemRandom;
    let mut count = 0;
    while count == 0 || begin.elapsed() < time {
        let password = Password::new("a password of usual length".to_owned());
        password::hash(&password, random.bytes(), cost, &[0; 32], &mut memory)?;
        count += 1;
    }
    Ok(count)
}

impl Point {
    fn line(&self) -> String {
        let Self {
            cost,
            lanes,
            per_second,
            ms,
        } = self;
        let (memory, passes) = (cost.memory_kib / MIB, cost.iterations);
        format!("{memory:>10}{passes:>8}{lanes:>7}{per_second:>10.1}{ms:>9.1}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recommended_can_be_configured_and_is_strong_enough() {
        for size in SIZES_MIB {
            let least = cost(size, least_iterations(size));
            assert!(least.memory_kib <= Cost::CEILING.memory_kib);
            assert!(least.memory_kib * least.iterations >= 2 * 19 * MIB);
        }
    }

    #[test]
    fn every_lane_hashes_and_the_time_of_each_is_counted() {
        let cheap = cost(1, 1);
        let point = measure(cheap, 2, Duration::from_millis(1)).expect("measures");
        assert!(point.per_second > 0.0 && point.ms > 0.0);
    }
}

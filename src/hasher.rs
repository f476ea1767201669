//! The bounded pool that hashes passwords.
//!
//! Argon2 is what this service costs, so it is scheduled: a fixed number of lanes, each a thread
//! with memory of its own that is reused for every hash, and a queue that knows how long it is. Who
//! would have to wait too long is turned away at once, before anything else is spent on them.
//! Invariant: memory is lanes × cost whatever arrives, but for as long as a lane computes a stored hash
//! that is dearer, and a client that goes away frees no lane.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::{
    domain::{
        error::{Error, Reason, Result},
        foreign_hash::ForeignHash,
        name::AccountId,
        password::{self, Cost, Memory, Password, PasswordHash},
        tally::Tally,
    },
    env::Random,
};

pub struct Hasher {
    shared: Arc<Shared>,
    random: Arc<dyn Random>,
    cost: Cost,
    max_wait: Duration,
    /// What a password is compared with when there is none, so that it costs the same.
    nobody: PasswordHash,
}

/// What the pool has done since it started.
#[derive(Debug, Default)]
pub struct Stats {
    /// Hashes computed, and how long they took in all.
    pub hashes: AtomicU64,
    pub busy_us: AtomicU64,
    /// Calls turned away.
    pub refused: AtomicU64,
    /// Calls admitted and not finished.
    pub waiting: AtomicUsize,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    pepper: Zeroizing<[u8; 32]>,
    stats: Arc<Stats>,
    lanes: usize,
    /// Microseconds that one hash takes, as it was lately.
    typical_us: AtomicU64,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Places taken, of accounts that are known.
    by_account: Tally<AccountId>,
    /// Candidates of each network.
    candidates: Tally<IpNet>,
    closed: bool,
}

struct Job {
    work: Work,
    answer: oneshot::Sender<Result<Answer>>,
    /// Held until the hash is done, whether or not anybody still waits for it.
    ticket: Ticket,
}

enum Work {
    Hash {
        password: Password,
        salt: [u8; 16],
        cost: Cost,
    },
    Verify {
        password: Password,
        stored: PasswordHash,
        /// What decides instead, at the cost of both.
        foreign: Option<Box<ForeignHash>>,
    },
}

/// What a password is compared with.
pub enum Stored {
    Nothing,
    Own(PasswordHash),
    /// Of another system.
    Foreign(Box<ForeignHash>),
}

enum Answer {
    Hashed(PasswordHash),
    Verified(bool, Password),
}

/// Somebody who will want a place, unless a look at who it is says otherwise.
pub struct Candidate {
    shared: Arc<Shared>,
    network: Option<IpNet>,
    /// What a hash took when there was room.
    typical: Duration,
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if let Some(network) = self.network {
            self.shared.lock().candidates.give_back(&network, 1);
        }
    }
}

/// A place in the queue.
pub struct Ticket {
    shared: Arc<Shared>,
    /// Whose it is, where that is known.
    account: Option<AccountId>,
}

impl Ticket {
    /// The same place, of an account that is known by now: OVERLOADED if it has too many.
    pub fn of(mut self, account: AccountId) -> Result<Self> {
        let mut queue = self.shared.lock();
        if queue.by_account.of(&account) >= MAX_PER_ACCOUNT {
            return Err(self
                .shared
                .refuse(self.shared.wait(MAX_PER_ACCOUNT, self.shared.typical())));
        }
        queue.by_account.take(account, 1);
        drop(queue);
        self.account = Some(account);
        Ok(self)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.stats.waiting.fetch_sub(1, Relaxed);
        if let Some(account) = self.account {
            self.shared.lock().by_account.give_back(&account, 1);
        }
    }
}

/// Most places of one account, so that nobody fills the queue alone.
const MAX_PER_ACCOUNT: usize = 8;

impl Hasher {
    /// Starts the lanes; `lanes` 0 means one per core. Computes one hash to know what it takes.
    pub fn start(
        cost: Cost,
        lanes: usize,
        max_wait: Duration,
        pepper: Zeroizing<[u8; 32]>,
        random: Arc<dyn Random>,
    ) -> std::result::Result<Self, String> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let lanes = if lanes == 0 { cores } else { lanes };
        let unguessable = data_encoding::BASE64.encode(&random.bytes::<32>());
        let begin = Instant::now();
        let nobody = password::hash(
            &Password::new(unguessable),
            random.bytes(),
            cost,
            &*pepper,
            &mut Memory::for_cost(cost)?,
        )?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            ready: Condvar::new(),
            pepper,
            stats: Arc::default(),
            lanes,
            typical_us: AtomicU64::new(micros(begin.elapsed())),
        });
        for lane in 0..lanes {
            let memory = Memory::for_cost(cost)?;
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("hash lane {lane}"))
                .spawn(move || shared.work(memory))
                .map_err(|error| format!("cannot start a hash lane: {error}"))?;
        }
        Ok(Self {
            shared,
            random,
            cost,
            max_wait,
            nobody,
        })
    }

    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    pub fn lanes(&self) -> usize {
        self.shared.lanes
    }

    pub const fn cost(&self) -> Cost {
        self.cost
    }

    /// Refuses who could not be admitted now, before anything else is spent on them. Candidates of
    /// the same network are ahead of each other, so a burst does not get further than its places; those
    /// of other networks are not, so that nobody's candidates keep others out.
    pub fn consider(&self, deadline: Instant, network: Option<IpNet>) -> Result<Candidate> {
        let mut queue = self.shared.lock();
        let ahead = network.map_or(0, |network| queue.candidates.of(&network));
        let ahead = ahead + self.shared.stats.waiting.load(Relaxed);
        let typical = self.shared.typical();
        self.require_patience(ahead, typical, deadline)?;
        if let Some(network) = network {
            queue.candidates.take(network, 1);
        }
        drop(queue);
        Ok(Candidate {
            shared: Arc::clone(&self.shared),
            network,
            typical,
        })
    }

    /// A place in the queue, unless the wait would outlast the patience of the server or the
    /// caller's `deadline`: then OVERLOADED, at once, with the time after which to try again.
    pub fn admit(&self, deadline: Instant) -> Result<Ticket> {
        let (ticket, ahead) = self.place();
        self.require_patience(ahead, self.shared.typical(), deadline)?;
        Ok(ticket)
    }

    /// The same for a candidate, who is refused only if others have come in between: that a hash takes
    /// longer by now sends nobody away who has been looked up.
    pub fn admit_candidate(&self, candidate: Candidate, deadline: Instant) -> Result<Ticket> {
        let (ticket, ahead) = self.place();
        let typical = candidate.typical.min(self.shared.typical());
        self.require_patience(ahead, typical, deadline)?;
        drop(candidate);
        Ok(ticket)
    }

    /// A place, and how many are ahead of it.
    fn place(&self) -> (Ticket, usize) {
        let ahead = self.shared.stats.waiting.fetch_add(1, Relaxed);
        let ticket = Ticket {
            shared: Arc::clone(&self.shared),
            account: None,
        };
        (ticket, ahead)
    }

    fn require_patience(&self, ahead: usize, typical: Duration, deadline: Instant) -> Result<()> {
        let patience = deadline
            .saturating_duration_since(Instant::now())
            .min(self.max_wait);
        match self.shared.wait(ahead, typical) {
            wait if wait <= patience => Ok(()),
            wait => Err(self.shared.refuse(wait)),
        }
    }

    /// Whether the password is the stored one, and the password back. Without a stored one it is
    /// not, at the same cost; and a hash of another system costs what it costs on top of that, so that
    /// a cheap one cannot be told from none.
    pub async fn verify(
        &self,
        ticket: Ticket,
        password: Password,
        stored: Stored,
    ) -> Result<(bool, Password)> {
        let exists = !matches!(stored, Stored::Nothing);
        let nobody = || self.nobody.clone();
        let (stored, foreign) = match stored {
            Stored::Nothing => (nobody(), None),
            Stored::Own(stored) => (stored, None),
            Stored::Foreign(foreign) => (nobody(), Some(foreign)),
        };
        let work = Work::Verify {
            password,
            stored,
            foreign,
        };
        match self.run(ticket, work).await? {
            Answer::Verified(matches, password) => Ok((matches && exists, password)),
            Answer::Hashed(_) => Err(Error::internal("asked to verify, hashed")),
        }
    }

    pub async fn hash(&self, ticket: Ticket, password: Password) -> Result<PasswordHash> {
        let work = Work::Hash {
            password,
            salt: self.random.bytes(),
            cost: self.cost,
        };
        match self.run(ticket, work).await? {
            Answer::Hashed(hash) => Ok(hash),
            Answer::Verified(..) => Err(Error::internal("asked to hash, verified")),
        }
    }

    async fn run(&self, ticket: Ticket, work: Work) -> Result<Answer> {
        let (answer, result) = oneshot::channel();
        self.shared.lock().jobs.push_back(Job {
            work,
            answer,
            ticket,
        });
        self.shared.ready.notify_one();
        result
            .await
            .map_err(|_| Error::internal("the hash lanes have stopped"))?
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.ready.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock; the queue is sound in any case.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a hash takes lately.
    fn typical(&self) -> Duration {
        Duration::from_micros(self.typical_us.load(Relaxed))
    }

    /// How long `ahead` calls take before a lane is free: whole rounds of all lanes.
    fn wait(&self, ahead: usize, typical: Duration) -> Duration {
        let rounds = ahead / self.lanes;
        typical.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX))
    }

    fn refuse(&self, retry_after: Duration) -> Error {
        self.stats.refused.fetch_add(1, Relaxed);
        Error::Exhausted {
            reason: Reason::Overloaded,
            retry_after: retry_after.max(self.typical()),
        }
    }

    /// A lane: one job after another until the pool is closed.
    fn work(&self, mut memory: Memory) {
        // Hashing yields to everything else, so that cheap calls stay quick while all lanes work.
        let _ = rustix::process::nice(10);
        loop {
            let mut queue = self.lock();
            let job = loop {
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                if queue.closed {
                    return;
                }
                queue = self
                    .ready
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let begin = Instant::now();
            let result = self.compute(job.work, &mut memory);
            memory.settle();
            self.measured(begin.elapsed());
            // The place is free before the answer is out, so that a caller who asks again gets it.
            drop(job.ticket);
            let _ = job.answer.send(result);
        }
    }

    fn compute(&self, work: Work, memory: &mut Memory) -> Result<Answer> {
        match work {
            Work::Hash {
                password,
                salt,
                cost,
            } => password::hash(&password, salt, cost, &*self.pepper, memory)
                .map(Answer::Hashed)
                .map_err(Error::Internal),
            Work::Verify {
                password,
                stored,
                foreign,
            } => {
                let matches = password::verify(&password, &stored, &*self.pepper, memory);
                let matches = matches.unwrap_or_else(|cause| {
                    tracing::error!(cause, "a stored password hash cannot be used");
                    false
                });
                let matches = foreign.map_or(matches, |foreign| foreign.verify(&password, memory));
                Ok(Answer::Verified(matches, password))
            }
        }
    }

    fn measured(&self, time: Duration) {
        let time_us = micros(time);
        self.stats.hashes.fetch_add(1, Relaxed);
        self.stats.busy_us.fetch_add(time_us, Relaxed);
        let before = self.typical_us.load(Relaxed);
        self.typical_us.store((before * 7 + time_us) / 8, Relaxed);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::name::UserId, env::SystemRandom};

    const CHEAP: Cost = Cost {
        memory_kib: 1024,
        iterations: 1,
        parallelism: 1,
    };

    fn hasher(lanes: usize, max_wait: Duration) -> Hasher {
        let pepper = Zeroizing::new([1; 32]);
        Hasher::start(CHEAP, lanes, max_wait, pepper, Arc::new(SystemRandom)).expect("starts")
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    #[tokio::test]
    async fn nobody_fills_the_queue_alone() {
        let hasher = hasher(1, Duration::from_hours(1));
        let of = |id| {
            let account = AccountId::User(UserId(uuid::Uuid::from_u128(id)));
            hasher.admit(soon()).expect("a place").of(account)
        };
        let taken: Vec<Ticket> = (0..MAX_PER_ACCOUNT)
            .map(|_| of(1).expect("a place"))
            .collect();
        assert!(of(1).is_err());
        assert!(of(2).is_ok());
        drop(taken);
        assert!(of(1).is_ok());
        assert!(hasher.shared.lock().by_account.is_empty());
    }

    #[tokio::test]
    async fn candidates_of_one_network_keep_out_nobody_else() {
        let hasher = hasher(1, Duration::from_secs(5));
        hasher.shared.typical_us.store(1_000_000, Relaxed);
        let network = |last| Some(IpNet::from(std::net::IpAddr::from([192, 0, 2, last])));
        let candidates: Vec<Candidate> = (0..6)
            .map(|_| hasher.consider(soon(), network(1)).expect("room"))
            .collect();
        assert!(hasher.consider(soon(), network(1)).is_err());
        assert!(hasher.consider(soon(), network(2)).is_ok());
        assert!(hasher.admit(soon()).is_ok(), "and take no place");
        hasher.shared.typical_us.store(2_000_000, Relaxed);
        let mut places: Vec<Ticket> = Vec::new();
        for candidate in candidates {
            places.push(
                hasher
                    .admit_candidate(candidate, soon())
                    .expect("as promised"),
            );
        }
        hasher.shared.typical_us.store(1_000_000, Relaxed);
        drop(places);
        assert!(hasher.consider(soon(), network(1)).is_ok());
        assert!(hasher.shared.lock().candidates.is_empty());
        let _places: Vec<Ticket> = (0..6)
            .map(|_| hasher.admit(soon()).expect("room"))
            .collect();
        assert!(
            hasher.consider(soon(), network(2)).is_err(),
            "no place left"
        );
    }

    #[tokio::test]
    async fn a_hash_verifies_its_own_password_and_nothing_verifies_without_one() {
        let hasher = hasher(2, Duration::from_secs(5));
        let admit = || hasher.admit(soon()).expect("idle");
        let hash = hasher
            .hash(admit(), password("right"))
            .await
            .expect("hashes");
        let verify = async |text, stored: Option<&PasswordHash>| {
            let stored = stored.map_or(Stored::Nothing, |hash| Stored::Own(hash.clone()));
            hasher
                .verify(admit(), password(text), stored)
                .await
                .expect("verifies")
                .0
        };
        assert!(verify("right", Some(&hash)).await);
        assert!(!verify("wrong", Some(&hash)).await);
        assert!(!verify("right", None).await);
        assert_eq!(hasher.stats().waiting.load(Relaxed), 0);
        assert_eq!(hasher.stats().hashes.load(Relaxed), 4);
    }

    #[tokio::test]
    async fn who_would_wait_too_long_is_turned_away_with_a_time() {
        let hasher = hasher(1, Duration::from_secs(5));
        hasher.shared.typical_us.store(1_000_000, Relaxed);
        let places: Vec<Ticket> = (0..6)
            .map(|_| hasher.admit(soon()).expect("5 s at most"))
            .collect();
        let refusal = hasher.admit(soon()).err().expect("6 s");
        assert!(matches!(
            refusal,
            Error::Exhausted { reason: Reason::Overloaded, retry_after } if retry_after == Duration::from_secs(6)
        ));
        drop(places);
        assert!(hasher.admit(soon()).is_ok());
        assert_eq!(hasher.stats().refused.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn a_deadline_counts_like_the_patience_of_the_server() {
        let hasher = hasher(1, Duration::from_secs(5));
        hasher.shared.typical_us.store(1_000_000, Relaxed);
        let _first = hasher.admit(soon()).expect("idle");
        assert!(
            hasher
                .admit(Instant::now() + Duration::from_millis(500))
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_frees_no_lane() {
        let hasher = hasher(1, Duration::from_secs(5));
        let job = hasher.hash(hasher.admit(soon()).expect("idle"), password("x"));
        // Asked once, which queues it, and then dropped.
        let mut job = Box::pin(job);
        let _ = std::future::poll_fn(|cx| std::task::Poll::Ready(job.as_mut().poll(cx))).await;
        drop(job);
        while hasher.stats().waiting.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            hasher.stats().hashes.load(Relaxed),
            1,
            "it was computed all the same"
        );
    }
}

//! The time of a refused sign-in does not tell why it was refused, and that of asking for a message not
//! whether anybody gets it.
//!
//! Calls of all kinds are interleaved at random, and for each kind the probability is estimated
//! that one of them takes longer than the first (the area under the ROC curve): 0.5 when
//! time tells nothing, 1 or 0 when it tells everything. The hash of sign-ins is the shipped one: a cheaper one
//! would measure how much slower an unoptimised build reads a row than none.

use std::time::{Duration, Instant};

use accountd::grpc::pb::{
    self, ChallengeMethod,
    contact::Purpose::{Login, Recovery},
};

use crate::{
    contacts,
    harness::{Actor, Engine, assert_refused, on_both_engines, password},
    messages,
};

/// How far from 0.5 the area may lie.
const TOLERANCE: f64 = 0.02;
/// Samples of each kind: looked at after so many at a time, and at most.
const ROUND: usize = 250;
const MAX_SAMPLES: usize = 4_000;

on_both_engines! {
    async fn time_does_not_tell_who_exists(engine: Engine) {
        let server = engine.server_with(|config| {
            config.throttle.account_free = u32::MAX;
            config.throttle.network_free = u32::MAX;
        });
        let server = server.await;
        let operator = server.operator().await;
        server.user("wrong").await;
        let suspended = server.user("suspended").await;
        operator.suspend_user(&suspended.name).await.expect("suspended");
        let nameless = pb::User { username: "nopassword".to_owned(), ..Default::default() };
        operator.create_user(nameless).await.expect("created");
        let anonymous = server.anonymous().await;
        let kinds = ["wrong", "nobody", "suspended", "nopassword"];
        compare(kinds, async |kind| refused(&anonymous, kind).await).await;
    }

    async fn time_does_not_tell_who_can_be_written_to(engine: Engine) {
        let server = engine.server_with(|config| {
            config.messages.email = Some("log".to_owned());
            config.messages.address_free = u32::MAX;
            config.messages.max_per_minute = u32::MAX;
            config.throttle.network_free = u32::MAX;
            config.throttle.network_challenges = i64::MAX;
        });
        let server = server.await;
        let ann = server.signed_in("ann").await;
        contacts::verified(&server, &ann, contacts::email("person-1@example.org", &[Login, Recovery])).await;
        let unproven = contacts::email("person-3@example.org", &[Login, Recovery]);
        ann.actor.create_contact("users/me", unproven).await.expect("created");
        let gone = server.signed_in("gone").await;
        contacts::verified(&server, &gone, contacts::email("person-4@example.org", &[Login, Recovery])).await;
        server.operator().await.suspend_user(gone.name()).await.expect("suspended");
        let anonymous = server.anonymous().await;
        // As long as each other: the longer takes longer to read.
        let kinds = ["person-1@example.org", "person-2@example.org", "person-3@example.org", "person-4@example.org"];
        compare(kinds, async |kind| {
            let begin = Instant::now();
            messages::ask_reset(&anonymous, kind).await.expect("asked");
            begin.elapsed()
        }).await;
        compare(kinds, async |kind| {
            let begin = Instant::now();
            messages::ask_code(&anonymous, kind, ChallengeMethod::EmailCode).await.expect("asked");
            begin.elapsed()
        }).await;
    }
}

/// Refuses kinds of calls that their times tell from those of the first.
async fn compare(kinds: [&'static str; 4], sample: impl AsyncFn(&'static str) -> Duration) {
    let mut times = [const { Vec::new() }; 4];
    let mut order = Order(1);
    loop {
        for _ in 0..ROUND {
            for kind in order.shuffled() {
                times[kind].push(sample(kinds[kind]).await);
            }
        }
        let samples = times[0].len();
        // Chance alone makes the area stray by about this much.
        let chance = 1.0 / (6.0 * number(samples)).sqrt();
        let areas: Vec<f64> = times[1..]
            .iter()
            .map(|times_of_kind| auc(times_of_kind, &times[0]))
            .collect();
        let farthest = areas
            .iter()
            .map(|area| (area - 0.5).abs())
            .fold(0.0, f64::max);
        if farthest + chance <= TOLERANCE {
            break;
        }
        let medians: Vec<Duration> = times.iter().map(|times| median(times)).collect();
        let is_hopeless = farthest > TOLERANCE + 5.0 * chance;
        assert!(
            farthest <= TOLERANCE || !(is_hopeless || samples >= MAX_SAMPLES),
            "time tells one of {kinds:?}: {areas:.3?} after {samples} samples each, \
             medians {medians:?}"
        );
        if samples >= MAX_SAMPLES {
            break;
        }
    }
}

/// How long a sign-in takes that is refused: the right password of a suspended user, the wrong one of
/// everybody else.
async fn refused(actor: &Actor, username: &str) -> Duration {
    let typed = if username == "suspended" {
        password(username)
    } else {
        "seven quiet otters".to_owned()
    };
    let begin = Instant::now();
    let refused = actor.sign_in(username, &typed).await;
    let time = begin.elapsed();
    assert_refused(refused, accountd::domain::error::Reason::InvalidCredentials);
    time
}

/// The probability that one of `a` is longer than one of `b`.
fn auc(a: &[Duration], b: &[Duration]) -> f64 {
    let mut all: Vec<(Duration, bool)> = Vec::new();
    all.extend(a.iter().map(|time| (*time, true)));
    all.extend(b.iter().map(|time| (*time, false)));
    all.sort();
    let (mut below, mut wins) = (0, 0);
    for (_, is_a) in all {
        if is_a { wins += below } else { below += 1 }
    }
    number(wins) / number(a.len() * b.len())
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("counts are small"))
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

/// A small generator for the order of samples (xorshift64).
struct Order(u64);

impl Order {
    fn shuffled(&mut self) -> [usize; 4] {
        let mut order = [0, 1, 2, 3];
        for place in (1..order.len()).rev() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let other = usize::try_from(self.0 % (place as u64 + 1)).expect("small");
            order.swap(place, other);
        }
        order
    }
}

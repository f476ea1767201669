//! More sign-ins than can be served: memory stays, refusals are quick and say when to come back, and
//! everything else goes on.

use std::time::{Duration, Instant};

use accountd::grpc::pb;
use tokio::task::JoinSet;
use tonic_types::StatusExt as _;

use crate::{
    harness::{Actor, Engine, SignedIn, connect, on_both_engines, password, reason_of},
    process::Installation,
};

const MIB: u64 = 1024 * 1024;

/// Statements of a sign-in with a wrong password, of an introspection, and most of accountd's own
/// work meanwhile.
const PER_SIGN_IN: usize = 8;
const PER_INTROSPECTION: usize = 2;
const OWN: usize = 8;

on_both_engines! {
    async fn a_thousand_sign_ins_at_once_cost_bounded_memory_and_nobody_else(engine: Engine) {
        let installation = Installation::new(engine).await;
        let process = installation.serve(&[("ACCOUNTD_THROTTLE__NETWORK_FREE", "1000000"), ("ACCOUNTD_THROTTLE__ACCOUNT_FREE", "1000000")]);
        let operator = installation.bootstrap(&process).await;
        let username = "alice";
        let user = operator.create_user(pb::User { username: username.to_owned(), ..Default::default() });
        let user = user.await.expect("created");
        let code = crate::credentials::reset_code(&operator, &user.name).await.expect("a code");
        crate::credentials::redeem(&operator, &code, &password(username)).await.expect("set");
        let alice = operator.sign_in(username, &password(username)).await.expect("signed in");
        let token = SignedIn::new(&operator, alice).tokens.access_token;
        let (base, _) = process.memory();

        let mut channels = Vec::new();
        for _ in 0..20 {
            channels.push(connect(process.address).await);
        }
        let before = process.metric("accountd_statements_total").await;
        let mut sign_ins = JoinSet::new();
        for number in 0..1_000 {
            let actor = Actor::new(channels[number % channels.len()].clone(), None);
            sign_ins.spawn(async move {
                let begin = Instant::now();
                // A stranger to the service costs it as much as anybody else.
                let outcome = actor.sign_in(&format!("nobody{number}"), &password("nobody")).await;
                (outcome.expect_err("nobody's password"), begin.elapsed())
            });
        }
        let mut waits = Vec::new();
        while !sign_ins.is_empty() && waits.len() < 100 {
            let begin = Instant::now();
            assert!(operator.introspect(&token).await.expect("an answer").active);
            waits.push(begin.elapsed());
        }
        let (mut served, mut refused) = (Vec::new(), Vec::new());
        while let Some(done) = sign_ins.join_next().await {
            let (status, time) = done.expect("no panic");
            if reason_of(&status) == "INVALID_CREDENTIALS" {
                served.push(time);
                continue;
            }
            assert_eq!(reason_of(&status), "OVERLOADED", "{status:?}");
            let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
            assert!(delay.is_some_and(|delay| delay > Duration::ZERO), "says when");
            refused.push(time);
        }
        // As ratios within this run: what is refused or cheap does not wait for what is hashed.
        assert!(!served.is_empty() && refused.len() > 500, "{} served, {} refused", served.len(), refused.len());
        let statements = process.metric("accountd_statements_total").await - before;
        let looked_at = number(served.len() * PER_SIGN_IN + waits.len() * PER_INTROSPECTION + OWN);
        assert!(statements <= looked_at, "{statements} statements, {looked_at} without those who were refused");
        if std::env::var_os("ACCOUNTD_TEST_BINARY").is_some() {
            // Of the build that is shipped also in absolute terms, by its own clock: this client with its
            // thousand calls shares the processors with it.
            let within_100_ms = async |rpc: &str| {
                process.metric(&format!("accountd_rpc_seconds_bucket{{le=\"0.1\",rpc=\"accountd.v1.{rpc}\"}}")).await
            };
            let (turned_away, asked) = (number(refused.len()), number(waits.len()));
            let quick = within_100_ms("SessionService/CreateSession").await;
            assert!(quick >= 0.99 * turned_away, "{quick} answers within 100 ms, {turned_away} refusals");
            let quick = within_100_ms("TokenService/IntrospectToken").await;
            assert!(quick >= 0.99 * asked, "{quick} introspections of {asked} within 100 ms");
        }
        let (served, turned_away, cheap) = (median(served), median(refused), median(waits));
        assert!(turned_away < served, "refused after {turned_away:?}, served after {served:?}");
        assert!(cheap < served / 4, "introspected after {cheap:?}, served after {served:?}");
        let lanes = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let (_, peak) = process.memory();
        let bound = base + lanes * 19 * MIB + 64 * MIB;
        assert!(peak <= bound, "{} MiB, at most {} MiB", peak / MIB, bound / MIB);
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("few"))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

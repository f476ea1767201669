//! What was acknowledged survives `kill -9`, and nothing is half done.

use std::sync::Arc;

use accountd::{domain::error::Reason, grpc::pb};
use tokio::sync::Mutex;
use tonic::Status;

use crate::{
    credentials::{redeem, reset_code},
    harness::{Actor, Engine, assert_refused, on_both_engines, reason_of},
    process::Installation,
};

/// How often the server is killed, and how many write at the same time.
const ROUNDS: usize = 20;
const WRITERS: usize = 16;

on_both_engines! {
    async fn acknowledged_writes_survive_a_kill_in_the_middle(engine: Engine) {
        let installation = Installation::new(engine).await;
        let mut seen = Ledger::default();
        for round in 0..ROUNDS {
            let process = installation.serve(&SETTINGS);
            let operator = installation.bootstrap(&process).await;
            seen.check(&operator, Since::LastCheck).await;

            let ledger = Arc::new(Mutex::new(std::mem::take(&mut seen)));
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let (operator, ledger) = (operator.clone(), Arc::clone(&ledger));
                    tokio::spawn(write(operator, ledger, format!("r{round}w{writer}")))
                })
                .collect();
            // Killed when so many answers are in; by then the next ones are on their way.
            let enough = ledger.lock().await.writes + 30 + round * 7 % 40;
            while ledger.lock().await.writes < enough {
                tokio::task::yield_now().await;
            }
            process.kill();
            for writer in writers {
                writer.await.expect("no writer panics");
            }
            seen = Arc::into_inner(ledger).expect("all have ended").into_inner();
        }
        let process = installation.serve(&SETTINGS);
        let operator = installation.bootstrap(&process).await;
        seen.check(&operator, Since::Ever).await;
        assert!(seen.writes >= ROUNDS * 30, "{} writes", seen.writes);
        assert!(seen.unknown > 0, "some were on their way when it was killed");
    }
}

/// A cheap hash and a large queue: it is the writes that are to be interrupted.
const SETTINGS: [(&str, &str); 4] = [
    ("ACCOUNTD_HASHING__MEMORY_KIB", "64"),
    ("ACCOUNTD_HASHING__ITERATIONS", "1"),
    ("ACCOUNTD_HASHING__MAX_WAIT_MS", "60000"),
    ("ACCOUNTD_THROTTLE__NETWORK_FREE", "1000000"),
];

/// What the writers were told.
#[derive(Default)]
struct Ledger {
    /// Users whose creation was acknowledged, with the password that was acknowledged last, and
    /// whether another one was on its way when the server was killed.
    users: Vec<(String, String, Option<String>, bool)>,
    /// Sessions whose end was acknowledged: refresh and access token.
    ended: Vec<(String, String)>,
    writes: usize,
    /// Writes of which nobody knows the outcome.
    unknown: usize,
    /// How many users and ended sessions have been looked at.
    checked: (usize, usize),
}

/// What to look at: all of it takes too long after every round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Since {
    LastCheck,
    Ever,
}

impl Ledger {
    /// Everything acknowledged is there; whatever is there is whole.
    async fn check(&mut self, operator: &Actor, since: Since) {
        let (users, ended) = match since {
            Since::LastCheck => self.checked,
            Since::Ever => (0, 0),
        };
        for (name, username, acknowledged, in_doubt) in &self.users[users..] {
            operator.get_user(name).await.expect("an acknowledged user");
            if let Some(password) = acknowledged {
                let signed_in = operator.sign_in(username, password).await;
                assert!(signed_in.is_ok() || *in_doubt, "{username}: {signed_in:?}");
            }
        }
        for (refresh_token, access_token) in &self.ended[ended..] {
            let refreshed = operator.refresh(refresh_token).await;
            assert_refused(refreshed, Reason::InvalidRefreshToken);
            let seen = operator.introspect(access_token).await.expect("an answer");
            assert!(!seen.active, "revoked and active");
        }
        self.checked = (self.users.len(), self.ended.len());
        // Every user has its event, and every event its user: neither without the other. PostgreSQL may
        // still be finishing what it was told before the kill, so the log is read before and after.
        let before = operator.all_created().await;
        let users = operator.all_users().await;
        let after = operator.all_created().await;
        for event in &before {
            assert!(users.contains(event), "{event} without its user");
        }
        for user in &users {
            assert!(after.contains(user), "{user} without its event");
        }
    }
}

/// Creates a user, sets its password twice, signs in and out, again and again until the server dies.
async fn write(operator: Actor, ledger: Arc<Mutex<Ledger>>, prefix: String) {
    let mut number = 0;
    loop {
        number += 1;
        let username = format!("{prefix}n{number}");
        match life(&operator, &ledger, &username).await {
            Ok(()) => {}
            Err(status) => {
                // The connection has gone; anything else would be a finding.
                let reason = reason_of(&status);
                assert!(reason.starts_with("no reason"), "{username}: {reason}");
                ledger.lock().await.unknown += 1;
                return;
            }
        }
    }
}

async fn life(operator: &Actor, ledger: &Mutex<Ledger>, username: &str) -> Result<(), Status> {
    let user = pb::User {
        username: username.to_owned(),
        ..Default::default()
    };
    let user = operator.create_user(user).await?;
    let at = {
        let mut ledger = ledger.lock().await;
        ledger.writes += 1;
        ledger
            .users
            .push((user.name.clone(), username.to_owned(), None, false));
        ledger.users.len() - 1
    };
    for password in ["the first password of them", "the second password of them"] {
        let code = reset_code(operator, &user.name).await?;
        ledger.lock().await.users[at].3 = true;
        redeem(operator, &code, password).await?;
        let mut ledger = ledger.lock().await;
        ledger.writes += 1;
        (ledger.users[at].2, ledger.users[at].3) = (Some(password.to_owned()), false);
    }
    let signed_in = operator
        .sign_in(username, "the second password of them")
        .await?;
    let Some(pb::sign_in_response::Result::Tokens(tokens)) = signed_in.result else {
        panic!("a sign-in without tokens");
    };
    let request = pb::RevokeSessionRequest {
        name: tokens.session,
        ..Default::default()
    };
    operator.sessions().revoke_session(request).await?;
    let mut ledger = ledger.lock().await;
    ledger.writes += 1;
    ledger
        .ended
        .push((tokens.refresh_token, tokens.access_token));
    Ok(())
}

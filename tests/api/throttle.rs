//! Guessing: how often anybody may try, and that it costs the owner nothing.

use std::time::Duration;

use accountd::{domain::error::Reason, grpc::pb, jobs};
use pb::{CreateSessionRequest, Device};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    factors,
    harness::{
        Actor, Engine, Server, SignedIn, assert_refused, on_both_engines, password, reason_of,
    },
    other::Other,
};

on_both_engines! {
    async fn after_a_few_failures_each_attempt_has_to_wait_longer(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 1000).await;
        server.user("alice").await;
        let anonymous = server.anonymous().await;
        for _ in 0..5 {
            assert_refused(guess(&anonymous, "alice").await, Reason::InvalidCredentials);
        }
        let mut waits = Vec::new();
        for _ in 0..12 {
            let wait = assert_throttled(guess(&anonymous, "alice").await);
            // Also the right password is not looked at before the time has come.
            assert_throttled(anonymous.sign_in("alice", &password("alice")).await);
            waits.push(wait.as_secs());
            server.advance_s(i64::try_from(wait.as_secs()).expect("small"));
            assert_refused(guess(&anonymous, "alice").await, Reason::InvalidCredentials);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        server.advance_s(900);
        anonymous.sign_in("alice", &password("alice")).await.expect("never locked for good");
        // A success starts anew.
        for _ in 0..5 {
            assert_refused(guess(&anonymous, "alice").await, Reason::InvalidCredentials);
        }
        assert_throttled(guess(&anonymous, "alice").await);
    }

    async fn who_does_not_exist_is_counted_like_who_does(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 1000).await;
        server.user("alice").await;
        let anonymous = server.anonymous().await;
        let mut answers = Vec::new();
        for identifier in ["alice", "nobody"] {
            let mut outcomes = Vec::new();
            for _ in 0..7 {
                let status = guess(&anonymous, identifier).await.expect_err("wrong");
                outcomes.push((status.code(), status.message().to_owned(), status.details().to_vec()));
            }
            answers.push(outcomes);
        }
        assert_eq!(answers[0], answers[1]);
        // However it is written.
        assert_throttled(guess(&anonymous, "NOBODY").await);
        assert_throttled(guess(&anonymous, "Ａlice").await);
    }

    async fn two_hundred_guesses_in_a_row_look_at_few(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 1000).await;
        server.user("alice").await;
        let anonymous = server.anonymous().await;
        let hashes = || server.running.app.hasher.stats().hashes.load(std::sync::atomic::Ordering::Relaxed);
        let before = hashes();
        let guesses = (0..200).map(|_| {
            let anonymous = anonymous.clone();
            tokio::spawn(async move { guess(&anonymous, "alice").await.is_err() })
        });
        for guess in guesses.collect::<Vec<_>>() {
            assert!(guess.await.expect("an answer"));
        }
        assert_eq!(hashes() - before, 5, "charged before it is looked at, so also in parallel");
    }

    async fn one_network_has_its_own_limit_over_all_accounts(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 10).await;
        server.user("alice").await;
        let frontend = server.frontend().await;
        let guess_from = async |address: &str, number: i32| {
            sign_in(&frontend, &format!("nobody{number}"), "a guess at the password", address, "").await
        };
        for number in 0..10 {
            assert_refused(guess_from("2001:db8:1:2::1", number).await, Reason::InvalidCredentials);
        }
        assert_throttled(guess_from("2001:db8:1:2:3::4", 11).await);
        let alice = sign_in(&frontend, "alice", &password("alice"), "2001:db8:1:2::5", "").await;
        assert_throttled(alice);
        assert_refused(guess_from("2001:db8:1:3::1", 12).await, Reason::InvalidCredentials);
        assert_refused(guess_from("192.0.2.1", 13).await, Reason::InvalidCredentials);
        // Right passwords are refunded, so they use up nothing.
        for _ in 0..15 {
            sign_in(&frontend, "alice", &password("alice"), "192.0.2.2", "").await.expect("right");
        }
        server.advance_s(3600);
        let frontend = server.frontend().await;
        sign_in(&frontend, "alice", &password("alice"), "2001:db8:1:2::5", "").await.expect("forgotten");
    }

    async fn the_owner_gets_in_on_a_known_device_during_the_attack(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 10).await;
        let alice = server.signed_in("alice").await;
        let bob = server.signed_in("bob").await;
        let anonymous = server.anonymous().await;
        attack(&server, "alice").await;
        assert_throttled(anonymous.sign_in("alice", &password("alice")).await);
        let with = async |device: &str| sign_in(&anonymous, "alice", &password("alice"), "", device).await;
        let again = with(&alice.device_token).await.expect("her own device");
        with(&again.device_token).await.expect("and the next time");
        assert_throttled(with(&bob.device_token).await);
        assert_throttled(with("addt_aaaa_bbbb").await);
        server.advance_s(180 * 24 * 3600);
        attack(&server, "alice").await;
        assert_throttled(with(&again.device_token).await);
    }

    async fn a_stolen_device_token_is_worth_a_few_guesses(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 1000).await;
        let alice = server.signed_in("alice").await;
        let anonymous = server.anonymous().await;
        let wrong = async || {
            sign_in(&anonymous, "alice", "a guess at the password", "", &alice.device_token).await
        };
        // Its own credit and then that of the account.
        for _ in 0..10 {
            assert_refused(wrong().await, Reason::InvalidCredentials);
        }
        assert_throttled(wrong().await);
    }

    async fn a_device_is_forgotten_with_the_password_it_knew(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let new = "an otter in the attic";
        let request = pb::ChangePasswordRequest {
            name: "users/me".to_owned(),
            old_password: password("alice"),
            new_password: new.to_owned(),
            ..Default::default()
        };
        alice.actor.credentials().change_password(request).await.expect("changed");
        attack(&server, "alice").await;
        let anonymous = server.anonymous().await;
        assert_throttled(sign_in(&anonymous, "alice", new, "", &alice.device_token).await);
    }

    async fn changing_a_password_counts_as_signing_in(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let change = async || {
            let request = pb::ChangePasswordRequest {
                name: "users/me".to_owned(),
                old_password: "a guess at the password".to_owned(),
                new_password: "an otter in the attic".to_owned(),
                ..Default::default()
            };
            alice.actor.credentials().change_password(request).await
        };
        // Five for the session, then five for the account.
        for _ in 0..10 {
            assert_refused(change().await, Reason::InvalidCredentials);
        }
        assert_throttled(change().await);
        assert_throttled(guess(&server.anonymous().await, "alice").await);
    }

    async fn the_owner_changes_the_password_during_the_attack(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        attack(&server, "alice").await;
        let request = pb::ChangePasswordRequest {
            name: "users/me".to_owned(),
            old_password: password("alice"),
            new_password: "an otter in the attic".to_owned(),
            ..Default::default()
        };
        alice.actor.credentials().change_password(request).await.expect("not held up");
    }

    async fn a_counter_goes_when_it_says_nothing_any_more(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_challenges = 3).await;
        let anonymous = server.anonymous().await;
        let mut other = Other::new(&server).await;
        let before = other.count("throttles").await;
        for number in 0..8 {
            let asked = factors::passkey_challenge(&anonymous, &format!("nobody{number}")).await;
            assert_eq!(asked.is_ok(), number < 3, "{asked:?}");
        }
        assert_eq!(other.count("throttles").await, before + 3, "who is turned away leaves none");
        let _ = guess(&anonymous, "nobody").await;
        let guesses = other.count("throttles").await - before - 3;
        assert!(guesses > 0);
        // Ten minutes, and what clocks may differ by; guesses are remembered for longer.
        server.advance_s(600 + 24 * 3_600 + 1);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_eq!(other.count("throttles").await, before + guesses);
        server.advance_s(31 * 24 * 3_600);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_eq!(other.count("throttles").await, 0);
    }

    async fn a_dry_run_is_counted_too(engine: Engine) {
        let server = engine.server().await;
        server.user("alice").await;
        let anonymous = server.anonymous().await;
        let validate = async |password: String| {
            let request = CreateSessionRequest {
                identifier: "alice".to_owned(),
                password,
                validate_only: true,
                ..Default::default()
            };
            anonymous.sessions().create_session(request).await
        };
        for _ in 0..10 {
            validate(password("alice")).await.expect("refunded");
        }
        for _ in 0..5 {
            let wrong = validate("a guess at the password".to_owned()).await;
            assert_refused(wrong, Reason::InvalidCredentials);
        }
        assert_throttled(validate("a guess at the password".to_owned()).await);
    }

    async fn wrong_secrets_of_machines_are_counted_and_right_ones_not_held_up(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 10).await;
        let (account, secret) = server.create_system_account(&[]).await;
        let anonymous = server.anonymous().await;
        let wrong = format!("{}x", &secret[..secret.len() - 1]);
        for _ in 0..10 {
            assert_refused(anonymous.issue(&account.uid, &wrong).await, Reason::InvalidCredentials);
        }
        assert_throttled(anonymous.issue(&account.uid, &wrong).await);
        assert_throttled(anonymous.refresh("adrt_aaaa_bbbb").await);
        let events = server.events("token.refused").await.len();
        assert_throttled(anonymous.issue(&account.uid, &wrong).await);
        assert_eq!(server.events("token.refused").await.len(), events, "and cost no more");
        anonymous.issue(&account.uid, &secret).await.expect("right");
    }
}

async fn guess(actor: &Actor, identifier: &str) -> Result<pb::SignInResponse, Status> {
    actor.sign_in(identifier, "a guess at the password").await
}

/// As many guesses as it takes to be turned away.
async fn attack(server: &Server, identifier: &str) {
    let anonymous = server.anonymous().await;
    for _ in 0..100 {
        let refused = guess(&anonymous, identifier).await.expect_err("wrong");
        if reason_of(&refused) == "THROTTLED" {
            return;
        }
    }
    panic!("a hundred guesses in a row");
}

async fn sign_in(
    actor: &Actor,
    identifier: &str,
    password: &str,
    ip_address: &str,
    device_token: &str,
) -> Result<SignedIn, Status> {
    let device = Device {
        ip_address: ip_address.to_owned(),
        token: device_token.to_owned(),
        ..Default::default()
    };
    let request = CreateSessionRequest {
        identifier: identifier.to_owned(),
        password: password.to_owned(),
        device: Some(device),
        ..Default::default()
    };
    let response = actor.sessions().create_session(request).await?.into_inner();
    Ok(SignedIn::new(actor, response))
}

/// Turned away; how long to wait.
#[track_caller]
fn assert_throttled<T: std::fmt::Debug>(result: Result<T, Status>) -> Duration {
    let status = result.expect_err("throttled");
    assert_eq!(
        (status.code(), &*reason_of(&status)),
        (Code::ResourceExhausted, "THROTTLED")
    );
    let info = status.get_details_retry_info().expect("a RetryInfo");
    info.retry_delay.expect("a delay")
}

//! Many at once: one wins, nobody is left half-way.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use accountd::{domain::error::Reason, grpc::pb};
use sqlx::{Connection as _, PgConnection};
use tokio::{sync::Barrier, task::JoinSet};
use tonic::Status;

use crate::{
    credentials::{redeem, reset_code},
    harness::{Actor, Engine, Refusal as _, Server, assert_refused, connect, on_both_engines},
    other::Other,
};

const AT_ONCE: usize = 64;

on_both_engines! {
    async fn parallel_refreshes_of_one_token_never_leave_two_live_leaves(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let callers = callers(&server).await;
        let mut token = alice.tokens.refresh_token.clone();
        for round in 0..200 {
            let answers = at_once(&callers, |actor| {
                let token = token.clone();
                async move { actor.refresh(&token).await.expect("refreshed").refresh_token }
            });
            let leaves: BTreeSet<String> = answers.await.into_iter().collect();
            assert_eq!(leaves.len(), 1, "round {round}");
            token = leaves.into_iter().next().expect("one");
        }
        server.anonymous().await.refresh(&token).await.expect("and it is live");
        assert_eq!(server.events("session.refresh_token_reused").await.len(), 0);
    }

    async fn parallel_reuse_ends_the_session_for_all(engine: Engine) {
        let server = engine.server_with(|config| config.sessions.refresh_replay_s = 0).await;
        let callers = callers(&server).await;
        let alice = server.signed_in("alice").await;
        let answers = at_once(&callers, |actor| {
            let token = alice.tokens.refresh_token.clone();
            async move { actor.refresh(&token).await.ok().map(|tokens| tokens.refresh_token) }
        });
        let winners: Vec<String> = answers.await.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1, "strictly one");
        let outcome = server.anonymous().await.refresh(&winners[0]).await.outcome();
        assert_eq!(outcome, "UNAUTHENTICATED INVALID_REFRESH_TOKEN", "the others have ended it");
        assert_eq!(server.events("session.refresh_token_reused").await.len(), 1);
    }

    async fn of_all_who_want_a_name_one_gets_it(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let callers = vec![operator.clone(); AT_ONCE];
        for round in 0..5 {
            let spellings = [format!("name{round}"), format!("NAME{round}"), format!("Ｎａｍｅ{round}")];
            let number = AtomicUsize::new(0);
            let answers = at_once(&callers, |actor| {
                let username = spellings[number.fetch_add(1, Relaxed) % 3].clone();
                async move { actor.create_user(pb::User { username, ..Default::default() }).await.outcome() }
            });
            let answers = answers.await;
            assert_eq!(answers.iter().filter(|answer| *answer == "OK").count(), 1, "{answers:?}");
            assert!(answers.iter().all(|answer| answer == "OK" || answer == "ALREADY_EXISTS ALREADY_EXISTS"), "{answers:?}");
        }
    }

    async fn a_reset_code_works_once_however_many_try(engine: Engine) {
        let server = engine.server_with(|config| {
            config.hashing.memory_kib = 64;
            config.throttle.network_free = 100_000;
        });
        let server = server.await;
        let alice = server.user("alice").await;
        let callers = callers(&server).await;
        for _ in 0..5 {
            let code = reset_code(&server.operator().await, &alice.name).await.expect("a code");
            let answers = at_once(&callers, |actor| {
                let code = code.clone();
                async move { redeem(&actor, &code, "an otter in the attic").await.outcome() }
            });
            let answers = answers.await;
            assert_eq!(answers.iter().filter(|answer| *answer == "OK").count(), 1, "{answers:?}");
            // So many hashes of one account at once are too many.
            let refusals = ["UNAUTHENTICATED INVALID_CODE", "RESOURCE_EXHAUSTED OVERLOADED"];
            assert!(answers.iter().all(|answer| answer == "OK" || refusals.contains(&&**answer)), "{answers:?}");
        }
    }

    async fn a_request_sent_many_times_happens_once(engine: Engine) {
        let server = engine.server_with(|config| {
            if let Some(url) = &mut config.database_url {
                url.0 += SLOW_COMMITS;
            }
        });
        let server = server.await;
        let operator = server.operator().await;
        let request = pb::CreateUserRequest {
            user: Some(pb::User { username: "alice".to_owned(), ..Default::default() }),
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..Default::default()
        };
        let callers = vec![operator; AT_ONCE];
        let answers = at_once(&callers, |actor| {
            let request = request.clone();
            async move { actor.users().create_user(request).await.expect("created").into_inner().name }
        });
        let names: BTreeSet<String> = answers.await.into_iter().collect();
        assert_eq!(names.len(), 1);
    }

    async fn a_retry_of_one_who_is_suspended_meanwhile_gets_no_answer(engine: Engine) {
        let server = engine.server().await;
        let (caller, operator) = (server.system_account(&["roles/operator"]).await, server.operator().await);
        let user = operator.create_user(pb::User::default()).await.expect("created");
        let request = pb::UpdateUserRequest {
            user: Some(pb::User { name: user.name, display_name: "Alice".to_owned(), ..Default::default() }),
            request_id: "018f0000-0000-7000-8000-000000000002".to_owned(),
            ..Default::default()
        };
        caller.users().update_user(request.clone()).await.expect("the first");
        // The retry has come in, and waits for its transaction, when its caller is suspended.
        let mut other = Other::new(&server).await;
        other.hold("leases").await;
        let (before, mut users) = (server.spent().1, caller.users());
        let retry = tokio::spawn(async move { users.update_user(request).await });
        while server.spent().1 == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        other.run("UPDATE system_accounts SET state = 'SUSPENDED'; COMMIT").await;
        let outcome = retry.await.expect("no panic");
        assert_refused(outcome, Reason::TokenRevoked);
    }

    async fn of_all_who_update_one_state_each_gets_through_once(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let user = operator.create_user(pb::User::default()).await.expect("created");
        let callers = vec![operator.clone(); 16];
        let answers = at_once(&callers, |actor| {
            let user = pb::User {
                name: user.name.clone(),
                display_name: "mine".to_owned(),
                etag: user.etag.clone(),
                ..Default::default()
            };
            let request = pb::UpdateUserRequest { user: Some(user), ..Default::default() };
            async move { actor.users().update_user(request).await.outcome() }
        });
        let answers = answers.await;
        assert_eq!(answers.iter().filter(|answer| *answer == "OK").count(), 1, "{answers:?}");
        assert!(answers.iter().all(|answer| answer == "OK" || answer == "ABORTED ETAG_MISMATCH"), "{answers:?}");
    }

    async fn strangers_get_through_however_slow_the_disk_is(engine: Engine) {
        let server = engine.server_with(|config| {
            config.database.max_connections = 32;
            if let Some(url) = &mut config.database_url {
                url.0 += SLOW_COMMITS;
            }
        });
        let server = server.await;
        let operator = server.operator().await;
        let mut callers = vec![operator.clone(); AT_ONCE / 2];
        // One half of them at another process.
        let second = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(server.second_instance().await),
        };
        if let Some(second) = &second {
            let there = Actor::new(connect(second.address).await, Some(operator.token()));
            callers[AT_ONCE / 4..].fill(there);
        }
        let answers = at_once(&callers, |operator| async move {
            let user = operator.create_user(pb::User::default()).await?;
            for _ in 0..4 {
                reset_code(&operator, &user.name).await?;
            }
            Ok::<_, Status>(())
        });
        for answer in answers.await {
            assert_eq!(answer.outcome(), "OK");
        }
    }

    async fn a_transaction_that_cannot_begin_spoils_no_other(engine: Engine) {
        let server = engine.server_with(|config| {
            config.database.max_connections = 1;
            config.database.transaction_timeout_s = 1;
        });
        let server = server.await;
        let operator = server.operator().await;
        let user = operator.create_user(pb::User::default()).await.expect("created");
        // Somebody else has what every transaction needs first.
        let mut other = Other::new(&server).await;
        other.hold("leases").await;
        assert!(reset_code(&operator, &user.name).await.is_err());
        drop(other);
        for _ in 0..3 {
            reset_code(&operator, &user.name).await.expect("as if nothing had been");
        }
    }

    async fn nobody_is_signed_in_by_a_password_that_is_gone(engine: Engine) {
        let server = engine.server_with(|config| {
            config.hashing.memory_kib = 64;
            config.throttle.network_free = 100_000;
            config.throttle.account_free = 100_000;
        });
        let server = server.await;
        let alice = server.user("alice").await;
        let operator = server.operator().await;
        let old = crate::harness::password("alice");
        for round in 0..10 {
            let new = format!("an otter in attic {round}");
            let current = if round == 0 { old.clone() } else { format!("an otter in attic {}", round - 1) };
            let code = reset_code(&operator, &alice.name).await.expect("a code");
            let mut sign_ins = JoinSet::new();
            // As many as one account may have at once, with the reset.
            for _ in 0..7 {
                let (actor, password) = (server.anonymous().await, current.clone());
                sign_ins.spawn(async move { actor.sign_in("alice", &password).await.ok() });
            }
            redeem(&operator, &code, &new).await.expect("reset");
            while let Some(signed_in) = sign_ins.join_next().await {
                let Some(response) = signed_in.expect("no panic") else { continue };
                let anonymous = server.anonymous().await;
                let person = crate::harness::SignedIn::new(&anonymous, response);
                let outcome = person.actor.get_user("users/me").await.outcome();
                assert_eq!(outcome, "UNAUTHENTICATED TOKEN_REVOKED", "round {round}");
            }
        }
    }

    async fn nobody_is_signed_in_while_suspended(engine: Engine) {
        let server = engine.server_with(|config| {
            config.hashing.memory_kib = 64;
            config.throttle.network_free = 100_000;
            config.throttle.account_free = 100_000;
        });
        let server = server.await;
        let alice = server.user("alice").await;
        let operator = server.operator().await;
        for round in 0..10 {
            let mut sign_ins = JoinSet::new();
            for _ in 0..16 {
                let actor = server.anonymous().await;
                sign_ins.spawn(async move {
                    actor.sign_in("alice", &crate::harness::password("alice")).await.ok()
                });
            }
            operator.suspend_user(&alice.name).await.expect("suspended");
            while sign_ins.join_next().await.is_some() {}
            let request = pb::ListSessionsRequest { parent: alice.name.clone(), ..Default::default() };
            let live = operator.sessions().list_sessions(request).await.expect("a list").into_inner();
            assert_eq!(live.sessions.len(), 0, "round {round}");
            let request = pb::ResumeUserRequest { name: alice.name.clone(), ..Default::default() };
            operator.users().resume_user(request).await.expect("resumed");
        }
    }

    async fn clients_that_hang_up_leave_nothing_behind(engine: Engine) {
        let server = engine.server_with(|config| config.database.max_connections = 4).await;
        let operator = server.operator().await;
        let mut calls = JoinSet::new();
        for number in 0_u64..5_000 {
            let actor = operator.clone();
            // Spread over the first 20 ms of a call.
            let patience = Duration::from_micros(number * 7919 % 20_000);
            calls.spawn(async move {
                let user = pb::User { display_name: number.to_string(), ..Default::default() };
                let _ = tokio::time::timeout(patience, actor.create_user(user)).await;
            });
            if calls.len() >= 64 {
                calls.join_next().await;
            }
        }
        while calls.join_next().await.is_some() {}
        // What was left running finishes by itself.
        let idle = async {
            while server.running.app.metrics.calls.get() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), idle).await.expect("nothing hangs");
        if let Some(url) = &server.config.database_url {
            assert_eq!(idle_in_transaction(&url.0).await, 0);
        }
        for _ in 0..1_000 {
            operator.create_user(pb::User::default()).await.expect("as if nothing had been");
        }
        assert_eq!(orphans(&operator).await, 0, "no user without its event");
    }
}

/// Options of PostgreSQL under which every commit takes as long as a slow disk, so that transactions
/// overlap that would otherwise seldom meet.
const SLOW_COMMITS: &str = "?options=-c%20commit_delay%3D50000%20-c%20commit_siblings%3D0";

/// Connections of their own.
async fn callers(server: &Server) -> Vec<Actor> {
    let mut callers = Vec::new();
    for _ in 0..AT_ONCE {
        callers.push(server.anonymous().await);
    }
    callers
}

/// Lets all callers go at the same moment.
async fn at_once<T, F>(callers: &[Actor], call: impl Fn(Actor) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let barrier = Arc::new(Barrier::new(callers.len()));
    let mut tasks = JoinSet::new();
    for actor in callers {
        let (call, barrier) = (call(actor.clone()), Arc::clone(&barrier));
        tasks.spawn(async move {
            barrier.wait().await;
            call.await
        });
    }
    tasks.join_all().await
}

/// Connections to a PostgreSQL database that were left in the middle of a transaction.
async fn idle_in_transaction(url: &str) -> i64 {
    let sql = "SELECT COUNT(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    let mut connection = PgConnection::connect(url).await.expect("a connection");
    let query = sqlx::query_scalar(sql).fetch_one(&mut connection);
    query.await.expect("a number")
}

/// Users without the event of their creation, and the other way round.
async fn orphans(operator: &Actor) -> usize {
    let users = BTreeSet::from_iter(operator.all_users().await);
    let created = BTreeSet::from_iter(operator.all_created().await);
    users.symmetric_difference(&created).count()
}

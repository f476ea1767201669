//! What accountd does by itself: reads keys that other processes made and files that have changed,
//! watches its own health, sweeps away what is over, and announces what will be soon.
//!
//! Invariant: nothing is decided here. An expired account or a suspension that is over needs no job
//! to take effect; the sweeper only tidies up behind the rules.

use std::{fmt::Debug, sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    app::App,
    domain::{
        account::State,
        change, credential, elevation,
        error::{Error, Result},
        name::{AccountId, SystemAccountId, UserId},
        signing_key,
        time::Timestamp,
    },
    grpc::call::Call,
    signing,
    store::{
        challenges, changes, client_assertions, contact_changes, contact_codes, credentials,
        db::{Read, Write},
        elevations, events, grants, groups, identifiers, leases, messages, meta, password_resets,
        requests, sessions, system_accounts, throttles, tokens, transact, user_names, users,
    },
    tls::Tls,
};

const KEYS_INTERVAL: Duration = Duration::from_secs(signing_key::REREAD_S.unsigned_abs());
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// The sweeper's lease, and how long it lasts.
const SWEEPER: &str = "sweeper";
const LEASE_S: i64 = 300;
/// A process whose clock is slow must still find what one whose clock is fast might forget, and so
/// must one whose clock was wrong for a while.
const CLOCKS_APART_S: i64 = 24 * 3600;
/// Rows in one transaction of the sweeper, and transactions of one kind in one sweep.
const BATCH: i64 = 500;
const MAX_BATCHES: usize = 200;

/// Starts everything; it ends at `stop`. `on_health` hears whether the server can work.
pub fn start(
    app: &Arc<App>,
    stop: &CancellationToken,
    on_health: impl Fn(bool) + Send + Sync + 'static,
) {
    let keys = Arc::clone(app);
    every(KEYS_INTERVAL, stop, move || {
        let app = Arc::clone(&keys);
        async move {
            let call = Call::system(&app, "");
            if let Err(error) = signing::refresh(&app, call.db()).await {
                tracing::warn!(%error, "cannot read the signing keys");
            }
        }
    });
    let health = Arc::clone(app);
    let on_health = Arc::new(on_health);
    every(HEALTH_INTERVAL, stop, move || {
        let (app, on_health) = (Arc::clone(&health), Arc::clone(&on_health));
        async move { on_health(is_healthy(&app).await) }
    });
    if let Some(tls) = app.tls.clone() {
        let interval = Duration::from_secs(app.config.tls.reload_interval_s);
        every(interval, stop, move || {
            let tls = Arc::clone(&tls);
            async move { reload(tls).await }
        });
    }
    let sweeper = Arc::clone(app);
    every(SWEEP_INTERVAL, stop, move || {
        let app = Arc::clone(&sweeper);
        async move {
            if let Err(error) = sweep(&app).await {
                tracing::warn!(%error, "cannot sweep");
            }
        }
    });
}

fn every<F, W>(interval: Duration, stop: &CancellationToken, work: F)
where
    F: Fn() -> W + Send + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    let stop = stop.clone();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once, when everything is fresh.
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    // A panic is reported by the runtime, and must not end what comes after it.
                    let _ = tokio::spawn(work()).await;
                }
                () = stop.cancelled() => return,
            }
        }
    });
}

/// Uses certificates that have changed.
#[expect(
    clippy::disallowed_methods,
    reason = "a slow disk must hold up no calls, and there is one such thread at most"
)]
async fn reload(tls: Arc<Tls>) {
    match tokio::task::spawn_blocking(move || tls.reload()).await {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => tracing::info!("the files of TLS have changed and are in use"),
        Ok(Err(error)) => tracing::warn!(error, "the files of TLS cannot be used as they are now"),
        Err(panic) => tracing::error!(%panic, "cannot look at the files of TLS"),
    }
}

/// Whether the database answers.
pub async fn is_healthy(app: &Arc<App>) -> bool {
    let call = Call::system(app, "");
    let ask = async {
        let mut db = call.db().read().await?;
        Ok::<_, Error>(meta::find(&mut db, meta::MASTER_KEY_CHECK).await?.is_some())
    };
    matches!(
        tokio::time::timeout(HEALTH_INTERVAL, ask).await,
        Ok(Ok(true))
    )
}

/// Forgets what nobody needs any more, unless another process is at it.
pub async fn sweep(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "");
    let now = call.now;
    let lease = transact!(call.db(), |tx| {
        leases::take(tx, SWEEPER, app.instance, now, now.plus_s(LEASE_S)).await?
    })?;
    if lease.is_none() {
        return Ok(());
    }
    let retention = &app.config.retention;
    let ago = |seconds: i64| now.plus_s(-seconds);
    let old = [
        (Table::Throttles, ago(CLOCKS_APART_S)),
        (Table::Requests, ago(retention.requests_s)),
        (Table::RevokedTokens, ago(CLOCKS_APART_S)),
        (Table::PasswordResets, now),
        (Table::Challenges, now),
        (Table::Assertions, ago(CLOCKS_APART_S)),
        (Table::Enrolments, now),
        (Table::ContactCodes, now),
        (Table::ContactChanges, now),
        (Table::Identifiers, now),
        (Table::Messages, ago(retention.messages_s)),
        (Table::Sessions, ago(retention.ended_sessions_s)),
        (Table::Credentials, ago(retention.revoked_credentials_s)),
        (Table::Grants, ago(retention.ended_grants_s)),
        (Table::Memberships, ago(retention.ended_grants_s)),
        (Table::Elevations, ago(retention.ended_grants_s)),
        (Table::Changes, ago(retention.ended_grants_s)),
        (Table::Events, ago(retention.events_s)),
    ];
    for (table, before) in old {
        noted(table, forget(&call, table, before).await);
    }
    noted("what people are found by", complete_users(app).await);
    noted("suspensions", end_suspensions(app).await);
    noted("seals", reseal(app).await);
    noted("elevations", settle_elevations(app).await);
    noted("changes", settle_changes(app).await);
    noted("accounts without an owner", suspend_ownerless(app).await);
    noted("replaced credentials", retire_credentials(app).await);
    noted("expiring credentials", announce_expiry(app).await);
    noted("deleted accounts", purge(app).await);
    Ok(())
}

/// One thing that cannot be swept away keeps nothing else.
fn noted(what: impl Debug, outcome: Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(?what, %error, "cannot sweep");
    }
}

/// What is forgotten by age.
#[derive(Clone, Copy, Debug)]
enum Table {
    Throttles,
    Requests,
    RevokedTokens,
    PasswordResets,
    Challenges,
    /// Assertions of programs that were used.
    Assertions,
    /// Credentials that were never confirmed.
    Enrolments,
    /// Codes that prove contacts.
    ContactCodes,
    /// How contacts were before they were changed.
    ContactChanges,
    /// Identifiers that somebody gave up.
    Identifiers,
    /// Messages that were sent, or never will be.
    Messages,
    Sessions,
    Credentials,
    Grants,
    /// Of groups.
    Memberships,
    Elevations,
    /// Calls that waited for a second person.
    Changes,
    Events,
}

async fn forget(call: &Call, table: Table, before: Timestamp) -> Result<()> {
    for _ in 0..MAX_BATCHES {
        let forgotten = transact!(call.db(), |tx| { forget_batch(tx, table, before).await? })?;
        if forgotten < BATCH.unsigned_abs() {
            break;
        }
    }
    Ok(())
}

async fn forget_batch(tx: &mut Write, table: Table, before: Timestamp) -> Result<u64> {
    Ok(match table {
        Table::Throttles => throttles::forget(tx, before, BATCH).await?,
        Table::Requests => requests::forget(tx, before, BATCH).await?,
        Table::RevokedTokens => tokens::forget(tx, before, BATCH).await?,
        Table::PasswordResets => password_resets::forget(tx, before, BATCH).await?,
        Table::Challenges => challenges::forget(tx, before, BATCH).await?,
        Table::Assertions => client_assertions::forget(tx, before, BATCH).await?,
        Table::Enrolments => credentials::forget_pending(tx, before, BATCH).await?,
        Table::ContactCodes => contact_codes::forget(tx, before, BATCH).await?,
        Table::ContactChanges => contact_changes::forget(tx, before, BATCH).await?,
        Table::Identifiers => identifiers::forget(tx, before, BATCH).await?,
        Table::Messages => messages::forget(tx, before, BATCH).await?,
        Table::Sessions => sessions::forget(tx, before, BATCH).await?,
        Table::Credentials => credentials::forget(tx, before, BATCH).await?,
        Table::Grants => grants::forget(tx, before, BATCH).await?,
        Table::Memberships => groups::forget(tx, before, BATCH).await?,
        Table::Elevations => elevations::forget(tx, before, BATCH).await?,
        Table::Changes => changes::forget(tx, before, BATCH).await?,
        Table::Events => events::forget(tx, before, BATCH).await?,
    })
}

/// Gives people of earlier builds names to be found by, and takes what their usernames look like; once. Of
/// two that look alike already the first has it.
async fn complete_users(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "");
    let done = meta::find(&mut call.db().read().await?, meta::FOUND_BY_ALL).await?;
    if done.is_some() {
        return Ok(());
    }
    let mut after = UserId(Uuid::nil());
    loop {
        let users = users::list_from(&mut call.db().read().await?, after, BATCH).await?;
        let Some(last) = users.last() else { break };
        after = last.id;
        transact!(call.db(), |tx| {
            for user in &users {
                complete_user(tx, user.id, call.now).await?;
            }
        })?;
    }
    transact!(call.db(), |tx| {
        meta::insert(tx, meta::FOUND_BY_ALL, "yes").await?;
    })
}

async fn complete_user(tx: &mut Write, id: UserId, now: Timestamp) -> Result<()> {
    let Some(user) = users::find(tx, id).await? else {
        return Ok(());
    };
    user_names::replace(tx, &user).await?;
    for identifier in user.profile.identifiers() {
        match identifiers::claim(tx, id, &identifier, now).await {
            Ok(()) | Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes down that suspensions whose time is over have ended, which they have done by themselves.
async fn end_suspensions(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "user.resumed");
    let due: Vec<UserId> =
        users::due_for_resume(&mut call.db().read().await?, call.now, BATCH).await?;
    for id in due {
        transact!(call.db(), |tx| {
            if let Some(mut user) = users::find(tx, id).await?
                && user.lifecycle.suspension_is_over(call.now)
            {
                user.lifecycle.resume();
                user.touch(call.now);
                users::update(tx, &user).await?;
                events::append(tx, &call.event().about_account(id)).await?;
            }
        })?;
    }
    let call = Call::system(app, "system_account.resumed");
    let due: Vec<SystemAccountId> =
        system_accounts::due_for_resume(&mut call.db().read().await?, call.now, BATCH).await?;
    for id in due {
        transact!(call.db(), |tx| {
            if let Some(mut account) = system_accounts::find(tx, id).await?
                && account.lifecycle.suspension_is_over(call.now)
            {
                account.lifecycle.resume();
                account.touch(call.now);
                system_accounts::update(tx, &account).await?;
                events::append(tx, &call.event().about_account(id)).await?;
            }
        })?;
    }
    Ok(())
}

/// Writes down that requests have lapsed and elevations have ended, which they have done by themselves.
async fn settle_elevations(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "");
    let due = elevations::due(&mut call.db().read().await?, call.now, BATCH).await?;
    for id in due {
        transact!(call.db(), |tx| {
            if let Some(mut elevation) = elevations::find(tx, id).await?
                && let Some(state) = elevation.settle(call.now)
            {
                let kind = match state {
                    elevation::State::Lapsed => "elevation.lapsed",
                    _ => "elevation.ended",
                };
                elevation.touch();
                elevations::update(tx, &elevation).await?;
                events::append(tx, &elevation.tell(call.event_of(kind))).await?;
            }
        })?;
    }
    Ok(())
}

/// Writes down that changes have lapsed, which they have done by themselves.
async fn settle_changes(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "change.lapsed");
    let due = changes::due(&mut call.db().read().await?, call.now, BATCH).await?;
    for id in due {
        let settled = transact!(call.db(), |tx| {
            if let Some(mut change) = changes::find(tx, id).await?
                && let Some(end) = change.next_time.filter(|end| *end <= call.now)
            {
                let reason = change.decide_reason.clone();
                call.end_change(&mut change, change::State::Lapsed, reason, end)?;
                changes::update(tx, &change).await?;
                events::append(tx, &change.tell(call.event())).await?;
            }
        });
        noted(id, settled);
    }
    Ok(())
}

/// Writes down that seals have closed, which they have done by themselves.
async fn reseal(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "system_account.sealed");
    let due = system_accounts::due_to_reseal(&mut call.db().read().await?, call.now, BATCH).await?;
    for id in due {
        let resealed = transact!(call.db(), |tx| {
            if let Some(mut account) = system_accounts::find(tx, id).await?
                && account.seal.reseal(call.now)
            {
                account.touch(call.now);
                system_accounts::update(tx, &account).await?;
                events::append(tx, &call.event().about_account(id)).await?;
            }
        });
        noted(id, resealed);
    }
    Ok(())
}

/// Suspends programs for which nobody answers any more.
async fn suspend_ownerless(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "system_account.suspended");
    let before = call.now.plus_s(-app.config.retention.ownerless_accounts_s);
    let mut db = call.db().read().await?;
    let due = system_accounts::due_to_suspend(&mut db, before, BATCH).await?;
    drop(db);
    for id in due {
        let suspended = transact!(call.db(), |tx| {
            if let Some(mut account) = system_accounts::find(tx, id).await?
                && account.lifecycle.state_at(call.now) == State::Active
                && let Some(owner) = account.owner
                && is_gone(tx, owner, before).await?
            {
                account.lifecycle.suspend(NO_OWNER.to_owned(), None);
                account.revoke_tokens(call.now);
                account.touch(call.now);
                system_accounts::update(tx, &account).await?;
                let event = call.event().about_account(id).detail("owner", owner);
                events::append(tx, &event).await?;
            }
        });
        noted(id, suspended);
    }
    Ok(())
}

/// The reason of a suspension by accountd itself.
const NO_OWNER: &str = "nobody answers for it any more";

/// Whether a person was deleted before `before`, or had expired by then.
async fn is_gone(db: &mut Read, owner: UserId, before: Timestamp) -> Result<bool> {
    let user = users::find(db, owner).await?;
    Ok(user.is_none_or(|user| user.lifecycle.is_over(before)))
}

/// Revokes secrets that were replaced and that nobody uses any more.
async fn retire_credentials(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "credential.retired");
    let due = credentials::due_to_retire(&mut call.db().read().await?, call.now, BATCH).await?;
    for (account, id) in due {
        let retired = transact!(call.db(), |tx| {
            // Used meanwhile, it stays.
            if let Some(mut credential) = credentials::find(tx, account, id).await?
                && credential.retire(call.now)
            {
                credentials::update(tx, &credential).await?;
                let event = call.event().about(credential.name(), Some(account));
                events::append(tx, &event).await?;
            }
        });
        noted(id, retired);
    }
    Ok(())
}

/// Tells whoever answers for a credential that it expires soon.
async fn announce_expiry(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "credential.expiring");
    for days in credential::EXPIRY_NOTICES_D {
        let by = call.now.plus_s(days * credential::DAY_S);
        let mut db = call.db().read().await?;
        let due = credentials::due_for_notice(&mut db, call.now, by, days, BATCH).await?;
        drop(db);
        for (account, id) in due {
            let announced = transact!(call.db(), |tx| {
                if let Some(mut credential) = credentials::find(tx, account, id).await?
                    && let Some(days) = credential.notify_of_expiry(call.now)
                {
                    credentials::announced(tx, account, id, days).await?;
                    let event = call.event().about(credential.name(), Some(account));
                    let event = event.detail("days", days);
                    let event = match owner(tx, account).await? {
                        Some(owner) => event.detail("owner", owner),
                        None => event,
                    };
                    events::append(tx, &event).await?;
                }
            });
            noted(id, announced);
        }
    }
    Ok(())
}

/// The person who answers for an account that is not a person.
async fn owner(db: &mut Read, account: AccountId) -> Result<Option<UserId>> {
    Ok(match account {
        AccountId::User(_) => None,
        AccountId::System(id) => system_accounts::find(db, id)
            .await?
            .and_then(|account| account.owner),
    })
}

/// Removes deleted accounts whose time has come.
async fn purge(app: &Arc<App>) -> Result<()> {
    let call = Call::system(app, "user.purged");
    let due = users::due_for_purge(&mut call.db().read().await?, call.now, BATCH).await?;
    for id in due {
        noted(id, purge_user(&call, id).await);
    }
    let call = Call::system(app, "system_account.purged");
    let due = system_accounts::due_for_purge(&mut call.db().read().await?, call.now, BATCH).await?;
    for id in due {
        let purged = transact!(call.db(), |tx| {
            if system_accounts::purge(tx, id, call.now).await? {
                events::append(tx, &call.event().about_account(id)).await?;
            }
        });
        noted(id, purged);
    }
    Ok(())
}

/// The sessions first, of which there may be very many.
async fn purge_user(call: &Call, id: UserId) -> Result<()> {
    for _ in 0..MAX_BATCHES {
        let gone = transact!(call.db(), |tx| {
            sessions::purge(tx, id, call.now, BATCH).await?
        })?;
        if gone < BATCH.unsigned_abs() {
            return transact!(call.db(), |tx| {
                let retention = &call.app().config.retention;
                let until = call.now.plus_s(retention.identifiers_s);
                if users::purge(tx, id, call.now, until).await? {
                    events::append(tx, &call.event().about_account(id)).await?;
                }
            });
        }
    }
    // The rest is for the next sweep.
    Ok(())
}

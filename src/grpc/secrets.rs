//! Every secret that somebody presents is checked here, and nowhere else.
//!
//! Whatever the secret: attempts are charged, a wrong one is written to the log, and everything that
//! can be wrong has one answer. Passwords are charged before they are looked at and refunded when
//! right. Secrets with 256 bits of their own cannot be guessed: they are charged when wrong, which
//! bounds what wrong ones may cost, and right ones are never held up by strangers.

use std::{net::IpAddr, time::Duration};

use super::call::Call;
use crate::{
    domain::{
        account::Lifecycle,
        credential::{self, Credential},
        error::{Error, Fields, Reason, Result},
        event::Event,
        identifier,
        name::{AccountId, CredentialId, SessionId, UserId},
        network,
        password::{Password, PasswordHash},
        secret::{Digest, Kind, Secret},
        session::{RefreshToken, Session},
        system_account::SystemAccount,
        throttle::{Counter, KnownDevice, Rule, Subject},
        time::Timestamp,
        token,
        user::User,
    },
    store::{
        db::{Attempts, Isolation, Read, Write},
        events, password_resets, sessions, system_accounts, throttles, transact,
        users::{self, PasswordOwner},
    },
};

/// A password somebody typed, and where.
pub(super) struct Attempt<'a> {
    pub(super) whose: Whose<'a>,
    pub(super) password: Password,
    pub(super) from: From<'a>,
    /// The person's address. None when a frontend does not say: its own is everybody's, so then
    /// attempts are counted by account alone.
    pub(super) address: Option<IpAddr>,
    /// The type of the event if it is wrong.
    pub(super) refusal_event: &'a str,
}

/// Where an attempt comes from, which can show that it is not a stranger's.
#[derive(Clone, Copy)]
pub(super) enum From<'a> {
    /// The device token of an earlier sign-in; may be empty, and may be anybody's.
    Device(&'a str),
    /// A session of the person.
    Session(SessionId),
}

/// Whose password it should be.
#[derive(Clone, Copy)]
pub(super) enum Whose<'a> {
    Identifier(&'a str),
    User(UserId),
}

/// A person who has just proved who they are.
pub(super) struct Proven {
    pub(super) user: UserId,
    /// The state the account was in.
    pub(super) lifecycle: Lifecycle,
    pub(super) credential: CredentialId,
    /// The hash the password was compared with: the proof is good while that is the stored one.
    pub(super) hash: PasswordHash,
    /// A new hash to store, where the old one was made at another cost.
    pub(super) rehash: Option<PasswordHash>,
    /// The device, if this person has used it before.
    pub(super) device: Option<KnownDevice>,
}

/// Checks a password. Unknown, wrong, without password, suspended: one answer, at one cost, the same
/// statements run.
pub(super) async fn password(call: &Call, attempt: Attempt<'_>) -> Result<Proven> {
    let (app, now) = (call.app(), call.now);
    // Before the first query: when many come at once, most cost nothing.
    let network = call.address.map(network::source);
    let candidate = app.hasher.consider(call.deadline, network)?;
    let mut db = call.db().read().await?;
    let owner = find_owner(&mut db, attempt.whose).await?;
    let account = owner.as_ref().map(|owner| AccountId::User(owner.id));
    let stored = owner.as_ref().and_then(|owner| owner.password.as_ref());
    let stored = stored.map(|(_, hash)| hash);
    let device = account
        .zip(stored)
        .and_then(|(account, hash)| match attempt.from {
            From::Device(token) => {
                KnownDevice::parse(token, account, hash, &app.keys.device_tokens, now)
            }
            From::Session(session) => Some(KnownDevice {
                id: session.0,
                account,
                expire_time: Timestamp::MAX,
            }),
        });
    let ways = ways_to_charge(call, &attempt, account, device);
    // Who has to wait takes no place in the queue, and who cannot be served in time writes nothing.
    require_patience(&mut db, call, &ways).await?;
    drop(db);
    let ticket = app.hasher.admit_candidate(candidate, call.deadline)?;
    let ticket = match account {
        Some(account) => ticket.of(account)?,
        None => ticket,
    };
    let charged = charge_attempt(call, ways).await?;
    let (matches, password) = app.hasher.verify(ticket, attempt.password, stored).await?;

    let proven = owner.filter(|owner| matches && owner.lifecycle.may_act(now));
    let Some(PasswordOwner {
        id: user,
        lifecycle,
        password: Some((credential, hash)),
    }) = proven
    else {
        app.metrics.password("refused");
        let event = Event {
            refusal: Some(Reason::InvalidCredentials),
            ..attempted(call, attempt.refusal_event, account)
        };
        transact!(call.db(), |tx| { events::append(tx, &event).await? })?;
        return Err(Error::invalid_credentials());
    };
    app.metrics.password("granted");
    refund(call, &charged).await?;
    let rehash = match hash
        .is_outdated(app.hasher.cost())
        .then(|| app.hasher.admit(call.deadline))
    {
        Some(Ok(ticket)) => Some(app.hasher.hash(ticket, password).await?),
        // Up to date, or a server so busy that it leaves this for the next time.
        None | Some(Err(_)) => None,
    };
    Ok(Proven {
        user,
        lifecycle,
        credential,
        hash,
        rehash,
        device,
    })
}

/// One query, whether or not there is anybody to be found.
async fn find_owner(db: &mut Read, whose: Whose<'_>) -> Result<Option<PasswordOwner>> {
    Ok(match whose {
        Whose::Identifier(typed) => {
            let key = identifier::key(typed).unwrap_or_default();
            users::find_for_sign_in(db, &key).await?
        }
        Whose::User(id) => users::find_with_password(db, id).await?,
    })
}

/// What a program shows for itself.
#[derive(Clone, Copy)]
pub(super) enum Presented<'a> {
    ClientSecret { client_id: &'a str, secret: &'a str },
    ApiKey(&'a str),
}

/// The account of a program and its secret, if that is good here and now.
pub(super) async fn of_program(
    call: &Call,
    presented: Presented<'_>,
) -> Result<(SystemAccount, Credential)> {
    let (id, kind, secret) = match presented {
        Presented::ClientSecret { client_id, secret } => {
            let id = token::client_id(client_id);
            // Whose secret it is has to be said as well.
            let secret = id.and_then(|_| Secret::parse(Kind::ClientSecret, secret));
            (id, credential::Kind::ClientSecret, secret)
        }
        Presented::ApiKey(key) => {
            let secret = Secret::parse(Kind::ApiKey, key);
            (None, credential::Kind::ApiKey, secret)
        }
    };
    let found = match secret {
        None => None,
        Some(secret) => {
            let mut db = call.db().read().await?;
            system_accounts::find_by_secret(&mut db, kind, &secret.digest()).await?
        }
    };
    let is_good = |account: &SystemAccount, credential: &Credential| {
        id.is_none_or(|id| account.id == id)
            && account.lifecycle.may_act(call.now)
            && credential.is_live(call.now)
            && network::allows(&account.limits.allowed_cidrs, call.address)
            && network::allows(&credential.allowed_cidrs, call.address)
    };
    match found {
        Some((account, credential)) if is_good(&account, &credential) => Ok((account, credential)),
        found => {
            let event = attempted(call, "token.refused", id.map(AccountId::System));
            // Whoever uses one that has come to its end is no stranger.
            let event = match found {
                Some((account, credential)) => {
                    event.about(credential.name(), Some(account.id.into()))
                }
                None => event,
            };
            Err(refuse(call, event, Reason::InvalidCredentials).await?)
        }
    }
}

/// The session that a refresh token belongs to, and the state of its user. Whether it is the live
/// token is for the caller to judge; that the session had it once is certain.
pub(super) async fn refresh_token(
    call: &Call,
    text: &str,
) -> Result<(RefreshToken, Session, Lifecycle)> {
    match look_up_refresh_token(call, text).await? {
        Some(found) => Ok(found),
        None => {
            let event = attempted(call, "session.refresh_refused", None);
            Err(refuse(call, event, Reason::InvalidRefreshToken).await?)
        }
    }
}

/// The same for somebody who asks about a token, or gives it up, and gets nothing for it: a wrong
/// one is no attempt.
pub(super) async fn look_up_refresh_token(
    call: &Call,
    text: &str,
) -> Result<Option<(RefreshToken, Session, Lifecycle)>> {
    let Some(token) = RefreshToken::parse(text) else {
        return Ok(None);
    };
    let mut db = call.db().read().await?;
    let found = sessions::find_with_user(&mut db, token.user, token.session).await?;
    let key = &call.app().keys.refresh_tokens;
    let genuine = found.filter(|(session, _)| token.is_genuine(key, &session.family.seed));
    Ok(genuine.map(|(session, user)| (token, session, user)))
}

/// Whose password a one-time code sets, without using it up.
pub(super) async fn reset_code(call: &Call, text: &str) -> Result<(Digest, PasswordOwner)> {
    if let Some(code) = Secret::parse(Kind::PasswordReset, text) {
        let mut db = call.db().read().await?;
        let digest = code.digest();
        if let Some(id) = password_resets::find(&mut db, &digest, call.now).await? {
            let owner = users::find_with_password(&mut db, id).await?;
            if let Some(owner) = owner.filter(|owner| owner.lifecycle.may_act(call.now)) {
                return Ok((digest, owner));
            }
        }
    }
    let event = attempted(call, "credential.password_reset_refused", None);
    Err(refuse(call, event, Reason::InvalidCode).await?)
}

/// A new password that will do for this user, ready to be hashed.
pub(super) fn new_password(
    call: &Call,
    fields: &mut Fields,
    field: &str,
    typed: String,
    user: &User,
    has_second_factor: bool,
) -> Option<Password> {
    let rules = &call.app().config.passwords;
    let min_length = if has_second_factor {
        rules.min_length_with_second_factor
    } else {
        rules.min_length
    };
    let password = fields.take(field, Password::parse(typed))?;
    match password.check(min_length, &user.profile.own_words()) {
        Ok(()) => Some(password),
        Err(text) => {
            fields.refuse_as(Reason::PasswordRefused, field, text);
            None
        }
    }
}

/// The credential that a user's new password is.
pub(super) fn password_credential(call: &Call, user: UserId) -> Credential {
    let id = CredentialId(call.new_uuid());
    Credential::new(id, user.into(), credential::Kind::Password, call.now)
}

/// What one attempt is counted for, by which rule.
type Charge = (Subject, Rule);

/// What an attempt may be charged to, first choice first: a known device if it is one, so that nobody
/// else's failures matter to it; otherwise, or when the device has used up its credit, the account
/// and the network.
fn ways_to_charge(
    call: &Call,
    attempt: &Attempt<'_>,
    account: Option<AccountId>,
    device: Option<KnownDevice>,
) -> Vec<Vec<Charge>> {
    let rule = call.app().config.account_throttle();
    let subject = match (account, attempt.whose) {
        (Some(account), _) => Subject::Account(account),
        (None, Whose::Identifier(typed)) => {
            Subject::Unknown(identifier::key(typed).unwrap_or_else(|| typed.to_owned()))
        }
        (None, Whose::User(id)) => Subject::Account(id.into()),
    };
    let mut stranger = vec![(subject, rule)];
    stranger.extend(network_charge(call, attempt.address));
    let device = device.map(|device| vec![(Subject::Device(device.id), rule)]);
    device.into_iter().chain([stranger]).collect()
}

/// A first look, which decides nothing: refuses an attempt that would have to wait whichever way it
/// is charged, for the shortest of these waits.
async fn require_patience(db: &mut Read, call: &Call, ways: &[Vec<Charge>]) -> Result<()> {
    let mut shortest = Duration::MAX;
    for way in ways {
        let mut wait = None;
        for (key, _, rule) in keyed(call, way) {
            let counter = throttles::find(db, &key).await?;
            wait = wait.max(rule.charge(counter, call.now).err());
        }
        match wait {
            None => return Ok(()),
            Some(wait) => shortest = shortest.min(wait),
        }
    }
    Err(counted(call, throttled(shortest)))
}

/// Charges the first way that has credit left, or none of them; what was charged.
async fn charge_attempt(call: &Call, ways: Vec<Vec<Charge>>) -> Result<Vec<Charge>> {
    let mut refusal = Error::internal("no way to charge an attempt");
    for way in ways {
        let outcome = transact!(
            attempts(call),
            attempts | tx | { charge_in(tx, call, &way).await? }
        );
        match outcome {
            Ok(()) => return Ok(way),
            Err(error @ Error::Exhausted { .. }) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(counted(call, refusal))
}

const fn throttled(retry_after: Duration) -> Error {
    Error::Exhausted {
        reason: Reason::Throttled,
        retry_after,
    }
}

/// A refusal that is an answer, not only one way that was not open.
fn counted(call: &Call, refusal: Error) -> Error {
    call.app().metrics.throttled.inc();
    refusal
}

fn network_charge(call: &Call, address: Option<IpAddr>) -> Option<Charge> {
    let rule = call.app().config.network_throttle();
    address.map(|address| (Subject::Network(network::source(address)), rule))
}

/// Counts one attempt for each subject, or for none of them if one has to wait.
async fn charge_in(tx: &mut Write, call: &Call, charges: &[Charge]) -> Result<()> {
    for (key, _, rule) in keyed(call, charges) {
        let counter = throttles::lock(tx, &key).await?;
        let counter = rule.charge(counter, call.now).map_err(throttled)?;
        throttles::update(tx, &key, counter).await?;
    }
    Ok(())
}

/// After a right secret: the network gets back this one charge, account and device start anew.
async fn refund(call: &Call, charges: &[Charge]) -> Result<()> {
    transact!(
        attempts(call),
        attempts | tx | {
            for (key, subject, rule) in keyed(call, charges) {
                let counter = match subject {
                    Subject::Network(_) => rule.refund(throttles::lock(tx, &key).await?),
                    _ => Counter::NONE,
                };
                throttles::update(tx, &key, counter).await?;
            }
        }
    )
}

/// The counters in one order, so that two attempts never wait for each other in a circle.
fn keyed<'a>(call: &Call, charges: &'a [Charge]) -> Vec<(Vec<u8>, &'a Subject, &'a Rule)> {
    let key = &call.app().keys.throttle_keys;
    let mut keyed: Vec<_> = charges
        .iter()
        .map(|(subject, rule)| (subject.key(key), subject, rule))
        .collect();
    keyed.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    keyed
}

/// Counters are hot rows, locked by the first statement about each; and they count even when the
/// rest of the call only wants to know.
fn attempts(call: &Call) -> Attempts<'_> {
    Attempts::new(call.db(), Isolation::ReadCommitted, false)
}

/// For a secret that cannot be guessed and is wrong: counts it for the network, writes it down, and
/// gives the error to answer with. A network that has sent too many costs nothing more.
async fn refuse(call: &Call, event: Event, reason: Reason) -> Result<Error> {
    let charges: Vec<Charge> = network_charge(call, call.address).into_iter().collect();
    let event = Event {
        refusal: Some(reason),
        ..event
    };
    let mut db = call.db().read().await?;
    match require_patience(&mut db, call, std::slice::from_ref(&charges)).await {
        Err(throttled @ Error::Exhausted { .. }) => return Ok(throttled),
        looked => looked?,
    }
    drop(db);
    let outcome = transact!(
        attempts(call),
        attempts | tx | {
            charge_in(tx, call, &charges).await?;
            events::append(tx, &event).await?;
        }
    );
    match outcome {
        Ok(()) => Ok(Error::Unauthenticated(reason)),
        Err(throttled @ Error::Exhausted { .. }) => Ok(counted(call, throttled)),
        Err(error) => Err(error),
    }
}

/// The event of an attempt; what became of it is for the caller to say.
fn attempted(call: &Call, kind: &str, account: Option<AccountId>) -> Event {
    let event = call.event_of(kind);
    match account {
        Some(account) => event.about_account(account),
        None => event,
    }
}

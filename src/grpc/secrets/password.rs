//! Passwords.

use std::net::IpAddr;

use uuid::Uuid;

use super::charge::{self, Payer, Tries, attempted};
use crate::{
    domain::{
        account::Lifecycle,
        credential::{self, Credential},
        error::{Error, Fields, Reason, Result},
        event::Event,
        foreign_hash::ForeignHash,
        identifier::{self, Identifier},
        name::{AccountId, CredentialId, SessionId, UserId},
        network,
        password::{Password, PasswordHash},
        throttle::{KnownDevice, Subject},
        user::User,
    },
    grpc::call::Call,
    hasher::Stored,
    store::{
        db::Read,
        events, transact,
        users::{self, PasswordOwner},
    },
};

/// A password somebody typed, and where.
pub(in crate::grpc) struct Attempt<'a> {
    pub(in crate::grpc) whose: Whose<'a>,
    pub(in crate::grpc) password: Password,
    pub(in crate::grpc) from: Origin<'a>,
    /// The person's address. None when a frontend does not say: its own is everybody's, so then
    /// attempts are counted by account alone.
    pub(in crate::grpc) address: Option<IpAddr>,
    /// The type of the event if it is wrong.
    pub(in crate::grpc) refusal_event: &'a str,
}

/// Where an attempt comes from, which can show that it is not a stranger's.
#[derive(Clone, Copy)]
pub(in crate::grpc) enum Origin<'a> {
    /// The device token of an earlier sign-in; may be empty, and may be anybody's.
    Device(&'a str),
    /// A session of the person.
    Session(SessionId),
}

/// Whose password it should be.
#[derive(Clone, Copy)]
pub(in crate::grpc) enum Whose<'a> {
    Identifier(&'a str),
    User(UserId),
}

/// A person who has just proved who they are.
pub(in crate::grpc) struct Proven {
    pub(in crate::grpc) user: UserId,
    /// The state the account was in.
    pub(in crate::grpc) lifecycle: Lifecycle,
    pub(in crate::grpc) credential: CredentialId,
    /// The hash the password was compared with: the proof is good while that is the stored one.
    pub(in crate::grpc) hash: PasswordHash,
    /// A new hash to store, where the old one was made at another cost.
    pub(in crate::grpc) rehash: Option<PasswordHash>,
    /// The device, if this person has used it before.
    pub(in crate::grpc) device: Option<Uuid>,
    /// Whether that is only the first of two steps.
    pub(in crate::grpc) has_second_factor: bool,
}

/// Checks a password. Unknown, wrong, without password, suspended: one answer, at one cost, the same
/// statements run.
pub(in crate::grpc) async fn password(call: &Call, attempt: Attempt<'_>) -> Result<Proven> {
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
            Origin::Device(token) => known_device(call, account, hash, token),
            Origin::Session(session) => Some(session.0),
        });
    let payer = Payer {
        subject: subject(&attempt, account),
        rule: app.config.account_throttle(),
        device: device.map(Subject::Device),
        address: attempt.address,
    };
    let ways = payer.ways(call);
    // Who has to wait takes no place in the queue, and who cannot be served in time writes nothing.
    charge::require_patience(&mut db, call, &ways).await?;
    drop(db);
    let ticket = app.hasher.admit_candidate(candidate, call.deadline)?;
    let ticket = match account {
        Some(account) => ticket.of(account)?,
        None => ticket,
    };
    let charged = charge::attempt(call, ways, Tries::Unlimited).await?;
    let stored = stored_hash(call, account, stored);
    let (matches, password) = app.hasher.verify(ticket, attempt.password, stored).await?;

    let proven = owner.filter(|owner| matches && owner.lifecycle.may_act(now));
    let Some(PasswordOwner {
        id: user,
        lifecycle,
        password: Some((credential, hash)),
        has_second_factor,
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
    charge::refund(call, &charged).await?;
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
        has_second_factor,
    })
}

/// The device that a token shows to be one of the account's.
pub(in crate::grpc) fn known_device(
    call: &Call,
    account: AccountId,
    password: &PasswordHash,
    token: &str,
) -> Option<Uuid> {
    let key = &call.app().keys.device_tokens;
    KnownDevice::parse(token, account, password, key, call.now).map(|device| device.id)
}

/// What the password is to be compared with; a hash of another system is decrypted for that.
fn stored_hash(call: &Call, account: Option<AccountId>, hash: Option<&PasswordHash>) -> Stored {
    let Some((account, hash)) = account.zip(hash) else {
        return Stored::Nothing;
    };
    let Some(sealed) = hash.as_sealed() else {
        return Stored::Own(hash.clone());
    };
    let key = &call.app().keys.foreign_hashes;
    let text = key.open(account.uuid().as_bytes(), &sealed);
    let hash = text
        .as_deref()
        .and_then(|text| ForeignHash::parse(std::str::from_utf8(text).ok()?).ok());
    match hash {
        Some(hash) => Stored::Foreign(Box::new(hash)),
        None => {
            tracing::error!(%account, "a stored hash of another system cannot be used");
            Stored::Nothing
        }
    }
}

/// A hash of another system, as it is stored.
pub(in crate::grpc) fn seal_hash(call: &Call, user: UserId, text: &str) -> PasswordHash {
    let app = call.app();
    let key = &app.keys.foreign_hashes;
    PasswordHash::sealed(&key.seal(app.random.bytes(), user.0.as_bytes(), text.as_bytes()))
}

/// What the attempt is counted for, unless the device is known: the account, or what was typed.
fn subject(attempt: &Attempt<'_>, account: Option<AccountId>) -> Subject {
    match (account, attempt.whose) {
        (Some(account), _) => Subject::Account(account),
        (None, Whose::Identifier(typed)) => Subject::Unknown(identifier::canonical(typed)),
        (None, Whose::User(id)) => Subject::Account(id.into()),
    }
}

/// One query, whether or not there is anybody to be found.
async fn find_owner(db: &mut Read, whose: Whose<'_>) -> Result<Option<PasswordOwner>> {
    Ok(match whose {
        Whose::Identifier(typed) => {
            users::find_for_sign_in(db, Identifier::typed(typed).as_ref()).await?
        }
        Whose::User(id) => users::find_with_password(db, id).await?,
    })
}

/// A new password that will do for this user, ready to be hashed.
pub(in crate::grpc) fn new_password(
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
    match password.check(min_length, &user.own_words()) {
        Ok(()) => Some(password),
        Err(text) => {
            fields.refuse_as(Reason::PasswordRefused, field, text);
            None
        }
    }
}

/// The credential that a user's new password is.
pub(in crate::grpc) fn password_credential(call: &Call, user: UserId) -> Credential {
    let id = CredentialId(call.new_uuid());
    Credential::new(id, user.into(), credential::Kind::Password, call.now)
}

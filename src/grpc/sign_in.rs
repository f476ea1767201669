//! What every way of signing in comes to: a session and its tokens, or the question for a second
//! factor.

use std::net::IpAddr;

use uuid::Uuid;

use super::{
    call::{Answer, Call},
    convert,
    mint::{self, Bearer, Entitled, Limits, Wish},
    pb,
    secrets::{Answered, Proven},
};
use crate::{
    domain::{
        account::Lifecycle,
        assurance::Shown,
        error::{Error, Fields, Reason, Result},
        name::{AccountId, CredentialId, SessionId, UserId},
        password::PasswordHash,
        session::{Device, EndReason, Family, MAX_DEVICE_NAME, MAX_USER_AGENT, Session},
        text,
        throttle::KnownDevice,
    },
    store::{
        credentials,
        db::{Isolation, Read, Write},
        events,
        sessions::{self, Which},
        transact, users,
    },
};

/// Somebody who has shown all that they have to.
pub(super) struct Entry<'a> {
    pub(super) user: UserId,
    /// The state the account was in.
    pub(super) lifecycle: &'a Lifecycle,
    pub(super) shown: Shown,
    /// What the sign-in began with, if it was a credential.
    pub(super) credential: Option<CredentialId>,
    pub(super) device: Device,
    /// The device, if the person has used it before.
    pub(super) known_device: Option<Uuid>,
    /// The password, which a token of the device is good for as long as.
    pub(super) password: Option<&'a PasswordHash>,
    pub(super) proof: Proof<'a>,
}

/// What it rests on, which has to be there still when the session begins.
pub(super) enum Proof<'a> {
    Password(&'a Proven),
    Answer(&'a Answered),
}

impl Proof<'_> {
    /// Locks what it rests on, so that a suspension, a new password or another who comes with the same
    /// answer is wholly before or wholly after, and in the latter case ends this session.
    pub(super) async fn hold(&self, tx: &mut Write, call: &Call) -> Result<()> {
        match self {
            Self::Answer(answered) => answered.redeem(tx, call).await,
            Self::Password(proven) => {
                let Proven {
                    user,
                    credential,
                    hash,
                    rehash,
                    ..
                } = proven;
                if !credentials::proved(tx, *user, *credential, hash, call.now).await? {
                    return Err(Error::invalid_credentials());
                }
                if let Some(rehash) = rehash {
                    credentials::replace_password(tx, *user, hash, rehash, None).await?;
                }
                Ok(())
            }
        }
    }
}

/// Begins a session.
pub(super) async fn complete(
    call: &Call,
    entry: Entry<'_>,
    wish: &Wish,
) -> Result<pb::SignInResponse> {
    let session = new_session(call, &entry);
    require_fit(call, &session, entry.lifecycle, wish).await?;
    let session = transact!(
        call.attempts(Isolation::ReadCommitted),
        attempts | tx | { begin(tx, call, &entry, wish, session.clone()).await? }
    )?;
    let tokens = tokens(call, &session, entry.lifecycle, wish).await?;
    let known = entry.known_device.unwrap_or_else(|| call.new_uuid());
    let device = KnownDevice {
        id: known,
        account: entry.user.into(),
        expire_time: call.now.plus_s(call.app().config.sign_in.device_lifetime_s),
    };
    let device_token = entry.password.map(|password| {
        let token = device.token(password, &call.app().keys.device_tokens);
        token.text()
    });
    Ok(response(call, tokens, device_token.unwrap_or_default()))
}

/// The answer with a session's tokens.
pub(super) fn response(
    call: &Call,
    tokens: pb::TokenSet,
    device_token: String,
) -> pb::SignInResponse {
    let response = pb::SignInResponse {
        result: Some(pb::sign_in_response::Result::Tokens(tokens)),
        device_token,
    };
    if call.validate_only {
        dry(response)
    } else {
        response
    }
}

/// What the caller says about the device, and where the person is.
pub(super) fn device(call: &Call, fields: &mut Fields, sent: &pb::Device) -> Device {
    let is_frontend = call.caller.holds("sessions.create");
    let user_agent = if sent.user_agent.is_empty() && !is_frontend {
        call.user_agent
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_USER_AGENT)
            .collect()
    } else {
        fields
            .take(
                "device.user_agent",
                text::line(&sent.user_agent, MAX_USER_AGENT),
            )
            .unwrap_or_default()
    };
    let address = match (is_frontend, sent.ip_address.as_str()) {
        (false, _) => call.address,
        (true, "") => None,
        (true, text) => {
            let parsed = text
                .parse::<IpAddr>()
                .map_err(|_| "must be an IP address".to_owned());
            fields.take("device.ip_address", parsed)
        }
    };
    let name = text::line(&sent.display_name, MAX_DEVICE_NAME);
    let display_name = fields.take("device.display_name", name).unwrap_or_default();
    Device {
        display_name,
        user_agent,
        address,
    }
}

/// The session that an entry leads to; its client is a frontend that signs people in, if one calls.
fn new_session(call: &Call, entry: &Entry<'_>) -> Session {
    let lifetimes = call.app().config.session_lifetimes();
    let client = call
        .caller
        .account()
        .filter(|_| call.caller.holds("sessions.create"));
    let mut session = Session {
        id: SessionId(call.new_uuid()),
        user: entry.user,
        revision: 1,
        device: entry.device.clone(),
        client: match client {
            Some(AccountId::System(id)) => Some(id),
            _ => None,
        },
        credential: entry.credential,
        shown: entry.shown.clone(),
        auth_time: call.now,
        create_time: call.now,
        last_used_time: call.now,
        idle_expire_time: call.now,
        expire_time: call.now.plus_s(lifetimes.session_s),
        ended: None,
        tokens_not_before: None,
        family: Family {
            seed: call.app().random.bytes(),
            generation: 0,
            rotate_time: call.now,
        },
    };
    session.touch(call.now, lifetimes);
    session
}

/// Stores the session, unless the proof has become worthless meanwhile.
async fn begin(
    tx: &mut Write,
    call: &Call,
    entry: &Entry<'_>,
    wish: &Wish,
    session: Session,
) -> Result<Session> {
    call.require_standing(tx).await?;
    if let Some(first) = call.replay::<First>(tx).await? {
        return first.session(tx, call).await;
    }
    let user = entry.user;
    entry.proof.hold(tx, call).await?;
    if !users::signed_in(tx, user, call.now).await? {
        return Err(Error::invalid_credentials());
    }
    make_room(tx, call, user).await?;
    sessions::insert(tx, &session).await?;
    let event = call.event().about(session.name(), Some(user.into()));
    let event = event.detail("amr", session.shown.amr.join(" "));
    events::append(tx, &event).await?;
    call.record(tx, &First::of(&session, wish)).await?;
    Ok(session)
}

/// What retries need to know of a sign-in or a step-up: which session, which of its refresh tokens was
/// the live one, and whom the access token was for. The tokens themselves are made again.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct First {
    #[prost(string, tag = "2")]
    session: String,
    #[prost(uint32, tag = "3")]
    generation: u32,
    #[prost(string, tag = "4")]
    audience: String,
    #[prost(string, repeated, tag = "5")]
    scopes: Vec<String>,
}

impl Answer for First {
    fn withhold_secrets(&mut self) {}
}

impl First {
    pub(super) fn of(session: &Session, wish: &Wish) -> Self {
        Self {
            session: session.name(),
            generation: session.family.generation,
            audience: wish.audience.clone(),
            scopes: wish.scopes.clone(),
        }
    }

    pub(super) fn wish(&self) -> Wish {
        Wish {
            audience: self.audience.clone(),
            scopes: self.scopes.clone(),
        }
    }

    /// The session, as long as it is as it was then.
    pub(super) async fn session(&self, db: &mut Read, call: &Call) -> Result<Session> {
        let missing = || Error::not_found(self.session.clone());
        let (AccountId::User(user), id) = call.child("request_id", &self.session, "sessions")?
        else {
            return Err(missing());
        };
        let session = sessions::find(db, user, SessionId(id)).await?;
        let session = session.ok_or_else(missing)?;
        let text = if !session.is_live(call.now) {
            "has ended"
        } else if session.family.generation != self.generation {
            // Whoever did that has the first answer, and two holders of one token would end the session.
            "has been refreshed since"
        } else {
            return Ok(session);
        };
        let name = session.name();
        Err(Error::precondition(Reason::WrongState, name, text))
    }
}

/// Ends the oldest sessions where there are as many as there may be, so that there is room for one.
async fn make_room(tx: &mut Write, call: &Call, user: UserId) -> Result<()> {
    let max = call.app().config.sessions.max_per_user;
    let newest = sessions::newest(tx, user, call.now, max).await?;
    let is_full = i64::try_from(newest.len()).is_ok_and(|count| count >= max);
    if let Some(oldest) = newest.last().filter(|_| is_full) {
        let which = Which {
            up_to: Some(*oldest),
            ..Which::default()
        };
        let reason = EndReason::Displaced;
        let count = sessions::end_all(tx, user, which, call.now, reason).await?;
        let event = call.event_of("session.displaced").about_account(user);
        events::append(tx, &event.detail("count", count)).await?;
    }
    Ok(())
}

/// The pair of tokens that a live session is worth now.
pub(super) async fn tokens(
    call: &Call,
    session: &Session,
    user: &Lifecycle,
    wish: &Wish,
) -> Result<pb::TokenSet> {
    let entitled = mint::entitled(call, session.user.into(), &wish.audience).await?;
    tokens_of(call, session, user, wish, &entitled)
}

/// The same, of what is granted.
pub(super) fn tokens_of(
    call: &Call,
    session: &Session,
    user: &Lifecycle,
    wish: &Wish,
    entitled: &Entitled,
) -> Result<pb::TokenSet> {
    let bearer = Bearer {
        account: session.user.into(),
        claims: mint::claims_of(call, session),
        client_id: session
            .client
            .map_or_else(|| OWN_CLIENT.to_owned(), |id| id.0.to_string()),
        bound_to: None,
        limits: Limits::of_session(call, session, user),
        not_before: session.tokens_not_before,
    };
    let tokens = mint::token(call, wish, entitled, bearer)?;
    Ok(pb::TokenSet {
        refresh_token: session
            .refresh_token(&call.app().keys.refresh_tokens)
            .text(),
        refresh_expire_time: Some(convert::timestamp(session.end_time())),
        session: session.name(),
        ..tokens
    })
}

/// Refuses tokens that would be too long before anything has been done for them.
pub(super) async fn require_fit(
    call: &Call,
    session: &Session,
    user: &Lifecycle,
    wish: &Wish,
) -> Result<()> {
    let entitled = mint::entitled(call, session.user.into(), &wish.audience).await?;
    require_fit_of(call, session, user, wish, &entitled)
}

/// The same, of what is granted.
pub(super) fn require_fit_of(
    call: &Call,
    session: &Session,
    user: &Lifecycle,
    wish: &Wish,
    entitled: &Entitled,
) -> Result<()> {
    // Few have so many scopes that a token would have to be made to know.
    if entitled.are_few(call) {
        return Ok(());
    }
    tokens_of(call, session, user, wish, entitled).map(drop)
}

/// The `client_id` of people who sign in without a frontend of their own.
const OWN_CLIENT: &str = "accountd";

/// What a sign-in would have given, without what signs anybody in.
fn dry(mut response: pb::SignInResponse) -> pb::SignInResponse {
    response.device_token.clear();
    if let Some(pb::sign_in_response::Result::Tokens(tokens)) = &mut response.result {
        tokens.access_token.clear();
        tokens.refresh_token.clear();
        tokens.session.clear();
    }
    response
}

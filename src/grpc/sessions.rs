//! SessionService.

use std::{net::IpAddr, sync::Arc};

use tonic::{Request, Response};

use super::{
    Reply,
    call::{Call, mutate},
    convert,
    mint::{self, Bearer, Wish},
    pb,
    secrets::{self, Attempt, Proven, Whose},
};
use crate::{
    app::App,
    domain::{
        account::Lifecycle,
        error::{Error, Fields, Reason, Result},
        filter,
        name::{AccountId, CredentialId, SessionId, UserId},
        page,
        password::Password,
        session::{Device, EndReason, Family, Judgement, MAX_DEVICE_NAME, MAX_USER_AGENT, Session},
        text,
        throttle::KnownDevice,
        token::{AAL1, AMR_PASSWORD, AccountClaims},
    },
    store::{
        credentials,
        db::{Attempts, Isolation, Read, Write},
        events,
        sessions::{self, Cursor, Query, Which},
        transact, users,
    },
};

pub(super) struct Sessions {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::session_service_server::SessionService for Sessions {
    async fn create_session(
        &self,
        request: Request<pb::CreateSessionRequest>,
    ) -> Reply<pb::SignInResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        if call.app().config.sign_in.require_frontend {
            call.require("sessions.create")?;
        }
        let sent = request.device.unwrap_or_default();
        let mut fields = Fields::new();
        let password = fields.take("password", Password::parse(request.password));
        if request.identifier.is_empty() {
            fields.refuse("identifier", "is required");
        }
        let device = device(&call, &mut fields, &sent);
        fields.finish()?;
        let wish = Wish::parse(&request.audience, &request.scopes)?;
        let password = password.ok_or_else(|| Error::internal("checked above"))?;

        let attempt = Attempt {
            whose: Whose::Identifier(&request.identifier),
            password,
            from: secrets::From::Device(&sent.token),
            address: device.address,
            refusal_event: "session.refused",
        };
        let proven = secrets::password(&call, attempt).await?;
        let session = new_session(&call, &proven, device);
        let session = transact!(
            call.attempts(Isolation::ReadCommitted),
            attempts | tx | { sign_in(tx, &call, &proven, session.clone()).await? }
        )?;

        let tokens = tokens(&call, &session, &proven.lifecycle, &wish).await?;
        let known = proven
            .device
            .map_or_else(|| call.new_uuid(), |device| device.id);
        let device = KnownDevice {
            id: known,
            account: proven.user.into(),
            expire_time: call.now.plus_s(call.app().config.sign_in.device_lifetime_s),
        };
        let mut response = pb::SignInResponse {
            result: Some(pb::sign_in_response::Result::Tokens(tokens)),
            device_token: device
                .token(
                    proven.rehash.as_ref().unwrap_or(&proven.hash),
                    &call.app().keys.device_tokens,
                )
                .text(),
        };
        if call.validate_only {
            response = dry(response);
        }
        Ok(Response::new(response))
    }

    async fn refresh_session(
        &self,
        request: Request<pb::RefreshSessionRequest>,
    ) -> Reply<pb::TokenSet> {
        let (call, request) = Call::enter(&self.app, request).await?;
        if request.refresh_token.is_empty() {
            return Err(Error::field("refresh_token", "is required").into());
        }
        let wish = Wish::parse(&request.audience, &request.scopes)?;
        let lifetimes = call.app().config.session_lifetimes();
        // Somebody else may rotate between reading and writing; then this token is to be judged anew.
        for _ in 0..MAX_RACES {
            let (token, session, user) =
                secrets::refresh_token(&call, &request.refresh_token).await?;
            if !user.may_act(call.now) {
                break;
            }
            let session = match session.judge(token.generation, call.now, lifetimes.replay_s) {
                Judgement::Refuse => break,
                Judgement::Reused => {
                    end_reused(&call, &session).await?;
                    break;
                }
                Judgement::Replay => Some(session),
                Judgement::Rotate => rotate(&call, session).await?,
            };
            if let Some(session) = session {
                return Ok(Response::new(tokens(&call, &session, &user, &wish).await?));
            }
        }
        Err(Error::Unauthenticated(Reason::InvalidRefreshToken).into())
    }

    async fn get_session(&self, request: Request<pb::GetSessionRequest>) -> Reply<pb::Session> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let (user, id) = session_name(&call, "name", &request.name)?;
        let session = find(&mut call.db().read().await?, user, id).await?;
        Ok(Response::new(shown(&session, &call)))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Reply<pb::ListSessionsResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let user = call.user("parent", &request.parent)?;
        let limit = page::size(request.page_size)?;
        let expected = "users/{uid}/credentials/{id} of the user";
        let credential = filter::only(&request.filter, "credential", expected, |name| {
            credential_of(&call, user, name).ok()
        })?;
        let query = Query {
            user,
            credential,
            show_ended: request.show_ended,
        };
        let (parent, ended) = (user.to_string(), request.show_ended.to_string());
        let context = call.page_context(&[&parent, &ended, &request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let mut db = call.db().read().await?;
        let rows = sessions::list(&mut db, &query, call.now, after.as_ref(), limit + 1)
            .await
            .map_err(Error::from)?;
        if rows.is_empty() {
            users::get(&mut db, user).await?;
        }
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, Cursor::after)?;
        let sessions = rows.iter().map(|session| shown(session, &call)).collect();
        Ok(Response::new(pb::ListSessionsResponse {
            sessions,
            next_page_token,
        }))
    }

    async fn revoke_session(
        &self,
        request: Request<pb::RevokeSessionRequest>,
    ) -> Reply<pb::Session> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let (user, id) = session_name(&call, "name", &request.name)?;
        let is_own = call.caller.account() == Some(user.into());
        let reason = if is_own {
            EndReason::SignedOut
        } else {
            EndReason::Revoked
        };
        let session = mutate!(call, |tx| {
            let session = find(tx, user, id).await?;
            call.require_power_over(tx, user.into()).await?;
            convert::require_etag(&request.etag, session.revision, session.name())?;
            if sessions::end(tx, user, id, call.now, reason).await? {
                let event = call.event().about(session.name(), Some(user.into()));
                events::append(tx, &event.detail("reason", reason.name())).await?;
            }
            shown(&find(tx, user, id).await?, &call)
        })?;
        Ok(Response::new(session))
    }

    async fn revoke_sessions(
        &self,
        request: Request<pb::RevokeSessionsRequest>,
    ) -> Reply<pb::RevokeSessionsResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let user = call.user("user", &request.user)?;
        let credential = match request.credential.as_str() {
            "" => None,
            name => Some(credential_of(&call, user, name)?),
        };
        let except = call.caller.session().filter(|_| request.except_current);
        let which = Which {
            credential,
            except,
            up_to: None,
        };
        let response = mutate!(call, |tx| {
            users::get(tx, user).await?;
            call.require_power_over(tx, user.into()).await?;
            let count = sessions::end_all(tx, user, which, call.now, EndReason::Revoked).await?;
            let event = call.event().about_account(user).detail("count", count);
            events::append(tx, &event).await?;
            pb::RevokeSessionsResponse { count }
        })?;
        Ok(Response::new(response))
    }
}

/// The credential of a user that a name stands for.
fn credential_of(call: &Call, user: UserId, name: &str) -> Result<CredentialId> {
    match call.child("credential", name, "credentials")? {
        (owner, id) if owner == user.into() => Ok(CredentialId(id)),
        _ => Err(Error::field("credential", "must be one of the user")),
    }
}

/// How often a refresh looks again when others rotate at the same time; each time one of them won.
const MAX_RACES: usize = 16;

/// What the caller says about the device, and where the person is.
fn device(call: &Call, fields: &mut Fields, sent: &pb::Device) -> Device {
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

fn new_session(call: &Call, proven: &Proven, device: Device) -> Session {
    let lifetimes = call.app().config.session_lifetimes();
    let client = call
        .caller
        .account()
        .filter(|_| call.caller.holds("sessions.create"));
    let mut session = Session {
        id: SessionId(call.new_uuid()),
        user: proven.user,
        revision: 1,
        device,
        client: match client {
            Some(AccountId::System(id)) => Some(id),
            _ => None,
        },
        credential: proven.credential,
        acr: AAL1.to_owned(),
        amr: vec![AMR_PASSWORD.to_owned()],
        auth_time: call.now,
        create_time: call.now,
        last_used_time: call.now,
        idle_expire_time: call.now,
        expire_time: call.now.plus_s(lifetimes.session_s),
        ended: None,
        family: Family {
            seed: call.app().random.bytes(),
            generation: 0,
            rotate_time: call.now,
        },
    };
    session.touch(call.now, lifetimes);
    session
}

/// Stores the session, unless the proof has become worthless meanwhile: the two first statements
/// lock what the proof rests on, so that a suspension or a new password comes wholly before or
/// wholly after, and in the latter case ends this session.
async fn sign_in(
    tx: &mut Write,
    call: &Call,
    proven: &Proven,
    session: Session,
) -> Result<Session> {
    call.require_standing(tx).await?;
    if let Some(first) = call.replay::<pb::SignInResponse>(tx).await? {
        return first_session(tx, call, proven.user, &first).await;
    }
    let Proven {
        user,
        credential,
        hash,
        ..
    } = proven;
    let holds = credentials::proved(tx, *user, *credential, hash, call.now).await?
        && users::signed_in(tx, *user, call.now).await?;
    if !holds {
        return Err(Error::invalid_credentials());
    }
    if let Some(rehash) = &proven.rehash {
        credentials::replace_password(tx, *user, hash, rehash, None).await?;
    }
    make_room(tx, call, *user).await?;
    sessions::insert(tx, &session).await?;
    let event = call.event().about(session.name(), Some((*user).into()));
    events::append(tx, &event).await?;
    let tokens = pb::TokenSet {
        session: session.name(),
        ..pb::TokenSet::default()
    };
    let result = Some(pb::sign_in_response::Result::Tokens(tokens));
    call.record(
        tx,
        &pb::SignInResponse {
            result,
            device_token: String::new(),
        },
    )
    .await?;
    Ok(session)
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

/// The session that the first call with this request id made.
async fn first_session(
    tx: &mut Write,
    call: &Call,
    user: UserId,
    first: &pb::SignInResponse,
) -> Result<Session> {
    let Some(pb::sign_in_response::Result::Tokens(tokens)) = &first.result else {
        return Err(Error::internal("a sign-in without a session"));
    };
    let (_, id) = call.child("request_id", &tokens.session, "sessions")?;
    let session = find(tx, user, SessionId(id)).await?;
    let text = if !session.is_live(call.now) {
        "has ended"
    } else if session.family.generation > 0 {
        // Whoever did that has the first answer, and two holders of one token would end the session.
        "has been refreshed since"
    } else {
        return Ok(session);
    };
    let name = session.name();
    Err(Error::precondition(Reason::WrongState, name, text))
}

/// The next generation in the place of the live one; `None` if somebody else was faster.
async fn rotate(call: &Call, mut session: Session) -> Result<Option<Session>> {
    session.family.generation += 1;
    session.family.rotate_time = call.now;
    session.touch(call.now, call.app().config.session_lifetimes());
    let event = call
        .event()
        .about(session.name(), Some(session.user.into()));
    let attempts = Attempts::new(call.db(), Isolation::ReadCommitted, false);
    let rotated = transact!(
        attempts,
        attempts | tx | {
            let rotated = sessions::rotate(tx, &session).await?;
            if rotated {
                events::append(tx, &event).await?;
            }
            rotated
        }
    )?;
    Ok(rotated.then_some(session))
}

/// A token came a second time: somebody else may hold it, so the whole family ends.
async fn end_reused(call: &Call, session: &Session) -> Result<()> {
    let event = call.event_of("session.refresh_token_reused");
    let event = event.about(session.name(), Some(session.user.into()));
    transact!(call.db(), |tx| {
        let reason = EndReason::RefreshTokenReused;
        if sessions::end(tx, session.user, session.id, call.now, reason).await? {
            events::append(tx, &event).await?;
        }
    })
}

/// The pair of tokens that a live session is worth now.
async fn tokens(
    call: &Call,
    session: &Session,
    user: &Lifecycle,
    wish: &Wish,
) -> Result<pb::TokenSet> {
    let account = AccountId::User(session.user);
    let held = mint::held(call, account, &wish.audience).await?;
    let bearer = Bearer {
        account,
        claims: AccountClaims::User {
            sid: session.id.0,
            auth_time: session.auth_time.seconds(),
            acr: session.acr.clone(),
            amr: session.amr.clone(),
        },
        client_id: session
            .client
            .map_or_else(|| OWN_CLIENT.to_owned(), |id| id.0.to_string()),
        ceilings: &[],
        ends: vec![Some(session.end_time()), user.expire_time],
        not_before: None,
    };
    let tokens = mint::token(call, wish, &held, bearer)?;
    Ok(pb::TokenSet {
        refresh_token: session
            .refresh_token(&call.app().keys.refresh_tokens)
            .text(),
        refresh_expire_time: Some(convert::timestamp(session.end_time())),
        session: session.name(),
        ..tokens
    })
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

async fn find(db: &mut Read, user: UserId, id: SessionId) -> Result<Session> {
    let missing = || Error::not_found(AccountId::User(user).child("sessions", id.0));
    sessions::find(db, user, id).await?.ok_or_else(missing)
}

fn session_name(call: &Call, field: &str, name: &str) -> Result<(UserId, SessionId)> {
    match call.child(field, name, "sessions")? {
        (AccountId::User(user), id) => Ok((user, SessionId(id))),
        (AccountId::System(_), _) => Err(Error::field(field, "must be users/{uid}/sessions/{id}")),
    }
}

fn shown(session: &Session, call: &Call) -> pb::Session {
    use pb::session::State;
    let account = AccountId::User(session.user);
    let state = if session.is_live(call.now) {
        State::Active
    } else {
        State::Ended
    };
    pb::Session {
        name: session.name(),
        etag: convert::etag(session.revision),
        state: state.into(),
        device: Some(pb::Device {
            display_name: session.device.display_name.clone(),
            user_agent: session.device.user_agent.clone(),
            ip_address: session
                .device
                .address
                .map(|ip| ip.to_string())
                .unwrap_or_default(),
            token: String::new(),
        }),
        client: session.client.map(|id| id.to_string()).unwrap_or_default(),
        credential: account.child("credentials", session.credential.0),
        acr: session.acr.clone(),
        amr: session.amr.clone(),
        auth_time: Some(convert::timestamp(session.auth_time)),
        create_time: Some(convert::timestamp(session.create_time)),
        last_used_time: Some(convert::timestamp(session.last_used_time)),
        idle_expire_time: Some(convert::timestamp(session.idle_expire_time)),
        expire_time: Some(convert::timestamp(session.expire_time)),
        revoke_time: session.ended.map(|(time, _)| convert::timestamp(time)),
        revoke_reason: session
            .ended
            .map_or("", |(_, reason)| reason.name())
            .to_owned(),
        current: call.caller.session() == Some(session.id),
    }
}

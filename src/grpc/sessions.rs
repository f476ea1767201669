//! SessionService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    Reply, answers,
    call::{Call, mutate},
    challenges, convert,
    mint::{self, Wish},
    pb,
    secrets::{self, Attempt, Whose},
    sign_in::{self, Entry, Proof},
};
use crate::{
    app::App,
    domain::{
        assurance::Factor,
        challenge::{Next, SignIn},
        error::{Error, Fields, Reason, Result},
        filter,
        name::{AccountId, CredentialId, SessionId, UserId},
        page,
        password::Password,
        session::{EndReason, Judgement, Session},
    },
    store::{
        db::{Attempts, Isolation, Read},
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
        let device = sign_in::device(&call, &mut fields, &sent);
        fields.finish()?;
        let wish = Wish::parse(&request.audience, &request.scopes)?;
        let password = password.ok_or_else(|| Error::internal("checked above"))?;

        let attempt = Attempt {
            whose: Whose::Identifier(&request.identifier),
            password,
            from: secrets::Origin::Device(&sent.token),
            address: device.address,
            refusal_event: "session.refused",
        };
        let proven = secrets::password(&call, attempt).await?;
        let begun = SignIn {
            identifier: request.identifier,
            first: None,
            device: device.clone(),
            known_device: proven.device,
        };
        let response = match begun.next(
            Factor::Password,
            Some(proven.credential),
            proven.has_second_factor,
        ) {
            Next::Ask => {
                let (first, proof) = (Factor::Password, Proof::Password(&proven));
                let credential = Some(proven.credential);
                challenges::ask(
                    &call,
                    proven.user,
                    begun.after(first, credential),
                    wish,
                    proof,
                )
                .await?
            }
            Next::Done { shown, credential } => {
                let entry = Entry {
                    user: proven.user,
                    lifecycle: &proven.lifecycle,
                    shown,
                    credential,
                    device,
                    known_device: proven.device,
                    password: Some(proven.rehash.as_ref().unwrap_or(&proven.hash)),
                    proof: Proof::Password(&proven),
                };
                sign_in::complete(&call, entry, &wish).await?
            }
        };
        Ok(Response::new(response))
    }

    async fn create_challenge(
        &self,
        request: Request<pb::CreateChallengeRequest>,
    ) -> Reply<pb::Challenge> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(challenges::create(&call, request).await?))
    }

    async fn answer_challenge(
        &self,
        request: Request<pb::AnswerChallengeRequest>,
    ) -> Reply<pb::SignInResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(answers::answer(&call, request).await?))
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
            let entitled = mint::entitled(&call, session.user.into(), &wish.audience).await?;
            let session = match session.judge(token.generation, call.now, lifetimes.replay_s) {
                Judgement::Refuse => break,
                Judgement::Reused => {
                    end_reused(&call, &session).await?;
                    break;
                }
                Judgement::Replay => Some(session),
                Judgement::Rotate => {
                    sign_in::require_fit_of(&call, &session, &user, &wish, &entitled)?;
                    rotate(&call, session).await?
                }
            };
            if let Some(session) = session {
                let tokens = sign_in::tokens_of(&call, &session, &user, &wish, &entitled)?;
                return Ok(Response::new(tokens));
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
            call.require_power_over(tx, user).await?;
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
            call.require_power_over(tx, user).await?;
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

/// The next generation in the place of the live one; `None` if somebody else was faster.
async fn rotate(call: &Call, mut session: Session) -> Result<Option<Session>> {
    session.next_generation(call.now, call.app().config.session_lifetimes());
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
        credential: session
            .credential
            .map_or_else(String::new, |id| account.child("credentials", id.0)),
        acr: session
            .acr(call.now, call.app().config.session_lifetimes())
            .name()
            .to_owned(),
        amr: session.shown.amr.clone(),
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

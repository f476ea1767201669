//! Answers to challenges: what SessionService does when one is right.

use super::{
    call::Call,
    challenges,
    mint::Wish,
    pb::{self, answer_challenge_request::Answer},
    secrets::{self, Answered},
    sign_in::{self, Entry, First, Proof},
};
use crate::{
    domain::{
        challenge::{Next, Purpose},
        error::{Error, Reason, Result},
        name::SessionId,
    },
    store::{db::Isolation, events, sessions, transact, users},
};

/// Completes a sign-in, asks for its next step, or raises a session.
pub(super) async fn answer(
    call: &Call,
    request: pb::AnswerChallengeRequest,
) -> Result<pb::SignInResponse> {
    let Some(answer) = &request.answer else {
        return Err(Error::field("answer", "is required"));
    };
    if let Some(first) = call.first_answer().await? {
        return again(call, &first).await;
    }
    match answer_first(call, &request.name, answer).await {
        Ok(response) => Ok(response),
        // Perhaps because the first attempt of this request has meanwhile succeeded.
        Err(refusal) => again(call, &call.first_answer_or(refusal).await?).await,
    }
}

async fn answer_first(call: &Call, name: &str, answer: &Answer) -> Result<pb::SignInResponse> {
    let answered = secrets::answer(call, name, answer).await?;
    let question = &answered.challenge.question;
    let wish = Wish {
        audience: question.audience.clone(),
        scopes: question.scopes.clone(),
    };
    let (user, factor) = (answered.owner.id, answered.factor);
    match &question.purpose {
        Purpose::StepUp(session) => step_up(call, &answered, *session, &wish).await,
        Purpose::SignIn(begun) => {
            match begun.next(
                factor,
                answered.credential,
                answered.owner.has_second_factor,
            ) {
                Next::Ask => {
                    let begun = begun.clone().after(factor, answered.credential);
                    challenges::ask(call, user, begun, wish, Proof::Answer(&answered)).await
                }
                Next::Done { shown, credential } => {
                    let password = answered.owner.password.as_ref();
                    let entry = Entry {
                        user,
                        lifecycle: &answered.owner.lifecycle,
                        shown,
                        credential,
                        device: begun.device.clone(),
                        known_device: begun.known_device,
                        password: password.map(|(_, hash)| hash),
                        proof: Proof::Answer(&answered),
                    };
                    sign_in::complete(call, entry, &wish).await
                }
            }
        }
    }
}

/// The tokens of the session that the first call of this request made or raised.
async fn again(call: &Call, first: &First) -> Result<pb::SignInResponse> {
    let mut db = call.db().read().await?;
    let session = first.session(&mut db, call).await?;
    let owner = users::find_with_password(&mut db, session.user).await?;
    drop(db);
    let owner = owner.filter(|owner| owner.lifecycle.may_act(call.now));
    let owner = owner.ok_or_else(Error::invalid_credentials)?;
    let tokens = sign_in::tokens(call, &session, &owner.lifecycle, &first.wish()).await?;
    Ok(sign_in::response(call, tokens, String::new()))
}

/// Raises the assurance of a session and gives it a new pair of tokens: whoever has the old refresh
/// token has not shown what was shown now (ASVS 7.2.4).
async fn step_up(
    call: &Call,
    answered: &Answered,
    id: SessionId,
    wish: &Wish,
) -> Result<pb::SignInResponse> {
    let user = answered.owner.id;
    let lifetimes = call.app().config.session_lifetimes();
    let ended = || Error::Unauthenticated(Reason::ChallengeEnded);
    let found = sessions::find(&mut call.db().read().await?, user, id).await?;
    let mut raised = found.ok_or_else(ended)?;
    raised.step_up(answered.factor, call.now, lifetimes);
    sign_in::require_fit(call, &raised, &answered.owner.lifecycle, wish).await?;
    let session = transact!(
        call.attempts(Isolation::ReadCommitted),
        attempts | tx | {
            call.require_standing(tx).await?;
            answered.redeem(tx, call).await?;
            let found = sessions::find(tx, user, id).await?;
            let found = found.filter(|session| session.is_live(call.now));
            let mut session = found.ok_or_else(ended)?;
            let from = session.family.generation;
            session.step_up(answered.factor, call.now, lifetimes);
            if !sessions::step_up(tx, &session, from).await? {
                return Err(Error::Conflict);
            }
            let event = call.event_of("session.stepped_up");
            let event = event.about(session.name(), Some(user.into()));
            let event = event.detail("amr", session.shown.amr.join(" "));
            events::append(tx, &event).await?;
            call.record(tx, &First::of(&session, wish)).await?;
            session
        }
    )?;
    let tokens = sign_in::tokens(call, &session, &answered.owner.lifecycle, wish).await?;
    Ok(sign_in::response(call, tokens, String::new()))
}

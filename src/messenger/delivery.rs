//! One message on its way: who gets it, whether it may go now, and what becomes of it.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Failure, seal};
use crate::{
    app::App,
    domain::{
        error::{Error, Result},
        message::{self, Channel, Kind, Message, Recipient, To, Who},
        name::UserId,
        throttle::Subject,
    },
    grpc::call::Call,
    store::{
        contacts,
        db::{Attempts, Isolation, Write},
        events,
        messages::{self, End, Taken},
        password_resets, throttles, transact, users,
    },
};

/// Counters are hot rows, and what is written of a message is of that message alone.
pub(super) fn attempts(call: &Call) -> Attempts<'_> {
    Attempts::new(call.db(), Isolation::ReadCommitted, false)
}

/// What becomes of a message that was taken.
enum Outcome {
    Ended(End, Option<String>),
    /// To be looked at again in so many seconds.
    Later(i64, String),
}

/// Sends a message that was taken, and notes what has become of it; whether there was one to send.
pub(super) async fn send(app: &Arc<App>, taken: Taken) -> Result<bool> {
    let call = Call::system(app, "");
    let outcome = match deliver(&call, &taken).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Later(
            message::delay_s(taken.attempts, taken.id.0),
            error.to_string(),
        ),
    };
    let outcome = match outcome {
        Outcome::Later(_, text) if taken.attempts >= app.config.messages.max_attempts => {
            Outcome::Ended(End::Dead, Some(text))
        }
        outcome => outcome,
    };
    // What was done has taken its time.
    let now = app.clock.now();
    app.metrics.message(taken.kind.name(), outcome.name());
    transact!(
        attempts(&call),
        attempts | tx | {
            match &outcome {
                Outcome::Ended(end, error) => {
                    messages::end(tx, &taken, *end, error.as_deref(), now).await?;
                    if *end == End::Dead {
                        let event = call
                            .event_of("message.dead")
                            .about(format!("messages/{}", taken.id.0), None);
                        events::append(tx, &event.detail("kind", taken.kind.name())).await?;
                    }
                }
                Outcome::Later(delay_s, error) => {
                    messages::retry(tx, &taken, now.plus_s(*delay_s), error).await?;
                }
            }
        }
    )?;
    if let Outcome::Ended(End::Dead, Some(error)) = &outcome {
        tracing::warn!(message = %taken.id.0, kind = taken.kind.name(), error, "a message could not be sent");
    }
    let is_none = matches!(outcome, Outcome::Ended(End::Void | End::Dropped, _));
    Ok(!is_none)
}

impl Outcome {
    const fn name(&self) -> &'static str {
        match self {
            Self::Ended(End::Sent, _) => "sent",
            Self::Ended(End::Dead, _) => "dead",
            Self::Ended(End::Void, _) => "void",
            Self::Ended(End::Dropped, _) => "dropped",
            Self::Later(..) => "later",
        }
    }
}

async fn deliver(call: &Call, taken: &Taken) -> Result<Outcome> {
    let app = call.app();
    let ended = |end, text: &str| Ok(Outcome::Ended(end, Some(text.to_owned())));
    if call.now >= taken.expire_time {
        return ended(End::Dead, "was not sent before it was of no use any more");
    }
    let body = app.keys.messages.open(taken.id.0.as_bytes(), &taken.body);
    let message = body.and_then(|body| serde_json::from_slice::<Message>(&body).ok());
    let Some(message) = message else {
        return ended(End::Dead, "cannot be decrypted");
    };
    let Some(Found {
        message,
        recipient,
        user,
    }) = resolve(call, message).await?
    else {
        return Ok(Outcome::Ended(End::Void, None));
    };
    if let Some(wait) = over_cap(call, taken, &recipient).await? {
        return if taken.kind.is_notice() {
            Ok(Outcome::Later(wait, "many to one address".to_owned()))
        } else {
            ended(End::Dropped, "many to one address")
        };
    }
    if let Some(user) = user
        && !keep(call, taken, user, &message).await?
    {
        // Somebody else has it by now.
        return Ok(Outcome::Later(0, "taken by another".to_owned()));
    }
    let Some(sender) = app.messenger.sender(recipient.channel) else {
        return ended(End::Dead, "there is no way of sending it any more");
    };
    let rendered = match app.messenger.templates.render(&message, recipient.channel) {
        Ok(rendered) => rendered,
        Err(error) => return Ok(Outcome::Ended(End::Dead, Some(error))),
    };
    let id = taken.id.0.to_string();
    let patience = Duration::from_secs(app.config.messages.lease_s.unsigned_abs()) * 9 / 10;
    let handed = timeout(
        patience,
        sender.send(&id, message.kind, &recipient, &rendered),
    )
    .await;
    let handed = handed.unwrap_or_else(|_| Err(Failure::for_now("took too long")));
    Ok(match handed {
        Ok(()) => Outcome::Ended(End::Sent, None),
        Err(Failure {
            text,
            is_for_good: true,
        }) => Outcome::Ended(End::Dead, Some(text)),
        Err(Failure { text, .. }) => {
            let delay_s = message::delay_s(taken.attempts, taken.id.0);
            tracing::info!(message = %taken.id.0, delay_s, error = text, "a message has to wait");
            Outcome::Later(delay_s, text)
        }
    })
}

/// A message and who gets it.
struct Found {
    message: Message,
    recipient: Recipient,
    /// Who was found just now.
    user: Option<UserId>,
}

/// Finds out who gets a message, if that is for now to say; `None` for nobody.
async fn resolve(call: &Call, message: Message) -> Result<Option<Found>> {
    let (who, channel, purpose) = match &message.to {
        To::Address(recipient) => {
            return Ok(Some(Found {
                recipient: recipient.clone(),
                message,
                user: None,
            }));
        }
        To::Whoever {
            who,
            channel,
            purpose,
        } => (who.clone(), *channel, *purpose),
    };
    let mut db = call.db().read().await?;
    let (identifier, user) = match who {
        Who::Identifier(None) => return Ok(None),
        Who::Identifier(Some(identifier)) => {
            let user = users::find_by_identifier(&mut db, &identifier).await?;
            (Some(identifier), user)
        }
        Who::User(id) => (None, users::find(&mut db, UserId(id)).await?),
    };
    let Some(user) = user.filter(|user| user.lifecycle.may_act(call.now)) else {
        return Ok(None);
    };
    let account = user.id.into();
    let contacts = contacts::list_all(&mut db, account).await?;
    drop(db);
    let may = |by: Channel| {
        channel.is_none_or(|wanted| wanted == by) && call.app().messenger.can_send(Some(by))
    };
    let chosen = message::choose(&contacts, identifier.as_ref(), purpose, may);
    let Some(recipient) = chosen.and_then(Recipient::of) else {
        return Ok(None);
    };
    let message = Message {
        to: To::Address(recipient.clone()),
        language: user.profile.language_code.clone(),
        name: message::greeting(&user.profile.display_name),
        ..message
    };
    Ok(Some(Found {
        message,
        recipient,
        user: Some(user.id),
    }))
}

/// Keeps what was found out, so that another try is the same message; whether it is still ours.
async fn keep(call: &Call, taken: &Taken, user: UserId, message: &Message) -> Result<bool> {
    let body = seal(call.app(), taken.id, message)?;
    transact!(
        attempts(call),
        attempts | tx | {
            let is_ours = messages::resolve(tx, taken, user.into(), &body).await?;
            if is_ours && message.kind == Kind::PasswordReset {
                allow_reset(tx, call, user, taken, message).await?;
            }
            is_ours
        }
    )
}

/// Makes the code in a message one that sets a new password.
async fn allow_reset(
    tx: &mut Write,
    call: &Call,
    user: UserId,
    taken: &Taken,
    message: &Message,
) -> Result<()> {
    let digest = message
        .unlocks
        .ok_or_else(|| Error::internal("a reset without a code"))?;
    // Beside those before, of which strangers must not rob the owner; one that is used ends all.
    password_resets::insert(tx, &digest, user, call.now, taken.expire_time).await?;
    let event = call.event_of("credential.password_reset_sent");
    events::append(tx, &event.about_account(user)).await?;
    Ok(())
}

/// How long a message has to wait, in seconds, because its address has had so many; counted once.
async fn over_cap(call: &Call, taken: &Taken, to: &Recipient) -> Result<Option<i64>> {
    if taken.attempts > 1 {
        return Ok(None);
    }
    let app = call.app();
    let subject = if taken.kind.is_notice() {
        Subject::Notices(to.key())
    } else {
        Subject::Messages(taken.kind, to.key())
    };
    let key = subject.key(&app.keys.throttle_keys);
    let rule = app.config.message_throttle();
    transact!(
        attempts(call),
        attempts | tx | {
            let counter = throttles::lock(tx, &key).await?;
            match rule.charge(counter, call.now) {
                Ok(counter) => {
                    throttles::update(tx, &key, counter).await?;
                    None
                }
                Err(wait) => Some(i64::try_from(wait.as_secs() + 1).unwrap_or(i64::MAX)),
            }
        }
    )
}

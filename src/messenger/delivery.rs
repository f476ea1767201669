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
        throttle::{self, Rule, Subject},
        user::User,
    },
    grpc::call::Call,
    store::{
        contacts,
        db::{Attempts, Isolation, Read, Write},
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
    /// The same, because its address has had many; nothing was sent.
    Held(i64),
}

/// What is said of a message whose address has had many.
const MANY: &str = "many to one address";

/// Sends a message that was taken, and notes what has become of it; whether it went out, or tried to.
pub(super) async fn send(app: &Arc<App>, taken: Taken) -> Result<bool> {
    let call = Call::system(app, "");
    let outcome = match deliver(&call, &taken).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Later(
            message::delay_s(taken.attempts, taken.id.0),
            error.to_string(),
        ),
    };
    // What was done has taken its time.
    let now = app.clock.now();
    let is_over = |delay_s: i64| now.plus_s(delay_s) >= taken.expire_time;
    let outcome = match outcome {
        Outcome::Later(delay_s, text) if is_over(delay_s) => Outcome::Ended(End::Dead, Some(text)),
        Outcome::Held(delay_s) if is_over(delay_s) => {
            Outcome::Ended(End::Dead, Some(MANY.to_owned()))
        }
        outcome => outcome,
    };
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
                Outcome::Held(delay_s) => {
                    messages::retry(tx, &taken, now.plus_s(*delay_s), MANY).await?;
                }
            }
        }
    )?;
    if let Outcome::Ended(End::Dead, error) = &outcome {
        tracing::warn!(message = %taken.id.0, kind = taken.kind.name(), error, "a message could not be sent");
    }
    let is_none = matches!(
        outcome,
        Outcome::Ended(End::Void | End::Dropped, _) | Outcome::Held(_)
    );
    Ok(!is_none)
}

impl Outcome {
    const fn name(&self) -> &'static str {
        match self {
            Self::Ended(End::Sent, _) => "sent",
            Self::Ended(End::Dead, _) => "dead",
            Self::Ended(End::Void, _) => "void",
            Self::Ended(End::Dropped, _) => "dropped",
            Self::Later(..) | Self::Held(_) => "later",
        }
    }
}

async fn deliver(call: &Call, taken: &Taken) -> Result<Outcome> {
    let app = call.app();
    let ended = |end, text: &str| Ok(Outcome::Ended(end, Some(text.to_owned())));
    if call.now >= taken.expire_time {
        // What kept it until now is known, if it was tried.
        let text = "was not sent before it was of no use any more".to_owned();
        let text = (taken.attempts == 1).then_some(text);
        return Ok(Outcome::Ended(End::Dead, text));
    }
    let body = app.keys.messages.open(taken.id.0.as_bytes(), &taken.body);
    let message = body.and_then(|body| serde_json::from_slice::<Message>(&body).ok());
    let Some(message) = message else {
        return ended(End::Dead, "cannot be decrypted");
    };
    let asked = message.to.clone();
    let (message, recipient, user) = match &asked {
        To::Address(recipient) => (message, recipient.clone(), None),
        To::Whoever { .. } => match whoever(call, &mut call.db().read().await?, &asked).await? {
            None => return Ok(Outcome::Ended(End::Void, None)),
            Some((user, recipient)) => {
                let message = Message {
                    to: To::Address(recipient.clone()),
                    language: user.profile.language_code.clone(),
                    name: message::greeting(&user.profile.display_name),
                    ..message
                };
                (message, recipient, Some(user.id))
            }
        },
    };
    if let Some(wait) = over_cap(call, taken, &message, &recipient).await? {
        return if taken.kind.is_notice() {
            Ok(Outcome::Held(wait))
        } else {
            ended(End::Dropped, MANY)
        };
    }
    if let Some(user) = user
        && !keep(call, taken, (&asked, user, &recipient), &message).await?
    {
        let text = "taken by another, or for somebody else by now";
        return Ok(Outcome::Later(0, text.to_owned()));
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
            if taken.kind.is_notice() {
                // It has not come there.
                refund(call, &counters(call, &message, &recipient)).await?;
            }
            let delay_s = message::delay_s(taken.attempts, taken.id.0);
            tracing::info!(message = %taken.id.0, delay_s, error = text, "a message has to wait");
            Outcome::Later(delay_s, text)
        }
    })
}

/// Who gets a message that is for whoever is found, and where; `None` for nobody.
async fn whoever(call: &Call, db: &mut Read, to: &To) -> Result<Option<(User, Recipient)>> {
    let To::Whoever {
        who,
        channel,
        purpose,
    } = to
    else {
        return Ok(None);
    };
    let (identifier, user) = match who {
        Who::Identifier(None) => return Ok(None),
        Who::Identifier(Some(identifier)) => {
            let user = users::find_by_identifier(db, identifier).await?;
            (Some(identifier), user)
        }
        Who::User(id) => (None, users::find(db, UserId(*id)).await?),
    };
    let Some(user) = user.filter(|user| user.lifecycle.may_act(call.now)) else {
        return Ok(None);
    };
    let contacts = contacts::list_all(db, user.id.into()).await?;
    let may = |by: Channel| {
        channel.is_none_or(|wanted| wanted == by) && call.app().messenger.can_send(Some(by))
    };
    let chosen = message::choose(&contacts, identifier, *purpose, may);
    Ok(chosen
        .and_then(Recipient::of)
        .map(|recipient| (user, recipient)))
}

/// Keeps what was found out, so that another try is the same message; whether it is still ours, and for whom
/// it was.
async fn keep(
    call: &Call,
    taken: &Taken,
    (asked, user, recipient): (&To, UserId, &Recipient),
    message: &Message,
) -> Result<bool> {
    let body = seal(call.app(), taken.id, message)?;
    // What lets somebody in must not come about beside a change that has just shut them out.
    let attempts = Attempts::new(call.db(), Isolation::Serializable, false);
    transact!(
        attempts,
        attempts | tx | {
            let found = whoever(call, tx, asked).await?;
            let is_same = found.is_some_and(|(found, at)| found.id == user && at == *recipient);
            let is_ours = is_same && messages::resolve(tx, taken, user.into(), &body).await?;
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

/// How long a message has to wait, in seconds, because its address has had so many. Codes are counted once;
/// notices whenever they are tried, since those that have waited would come all together.
async fn over_cap(
    call: &Call,
    taken: &Taken,
    message: &Message,
    to: &Recipient,
) -> Result<Option<i64>> {
    if taken.attempts > 1 && !taken.kind.is_notice() {
        return Ok(None);
    }
    let counters = counters(call, message, to);
    transact!(
        attempts(call),
        attempts | tx | {
            let (mut paid, mut wait) = (Vec::new(), None);
            for (key, rule) in &counters {
                match rule.charge(throttles::lock(tx, key).await?, call.now) {
                    Ok(counter) => paid.push((key, counter, rule.forget_time(counter))),
                    Err(longer) => wait = wait.max(Some(longer)),
                }
            }
            if wait.is_none() {
                for (key, counter, forget_time) in paid {
                    throttles::update(tx, key, counter, forget_time).await?;
                }
            }
            wait.map(|wait| i64::try_from(wait.as_secs() + 1).unwrap_or(i64::MAX))
        }
    )
}

/// By what a message is counted at its address, in one order.
fn counters(call: &Call, message: &Message, to: &Recipient) -> Vec<(Vec<u8>, Rule)> {
    let app = call.app();
    let rule = app.config.message_throttle();
    let charges = throttle::of_message(rule, message.kind, message.asker, to);
    let key = |(subject, rule): (Subject, Rule)| (subject.key(&app.keys.throttle_keys), rule);
    let mut counters: Vec<(Vec<u8>, Rule)> = charges.into_iter().map(key).collect();
    counters.sort_by(|(a, _), (b, _)| a.cmp(b));
    counters
}

async fn refund(call: &Call, counters: &[(Vec<u8>, Rule)]) -> Result<()> {
    transact!(
        attempts(call),
        attempts | tx | {
            for (key, rule) in counters {
                let counter = rule.refund(throttles::lock(tx, key).await?);
                throttles::update(tx, key, counter, rule.forget_time(counter)).await?;
            }
        }
    )
}

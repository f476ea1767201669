//! Brings messages to people: takes them from the store, where calls have left them, and hands them to a
//! mail server, a gateway or the log.
//!
//! Invariant: no call waits for any of this. A message is sent at least once, under one id however often,
//! or ends as DEAD with a reason, for operators to see and to send again.

pub mod smtp;
pub mod templates;
pub mod webhook;

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use self::{
    smtp::Mailer,
    templates::{Rendered, Templates},
    webhook::Webhook,
};
use crate::{
    app::App,
    config::Config,
    domain::{
        contact::MAX_CONTACTS,
        error::{Error, Result},
        message::{self, Channel, Kind, Message, Recipient, To, Who},
        name::{MessageId, UserId},
        throttle::Subject,
    },
    env::Clock,
    grpc::call::Call,
    store::{
        contacts,
        db::{Attempts, Isolation, Write},
        events,
        messages::{self, Dead, End, Taken},
        password_resets, throttles, transact, users,
    },
};

/// How often it is looked for messages that nobody has said anything about: those of other processes, and
/// those whose time has come.
const INTERVAL: Duration = Duration::from_secs(1);

/// Most messages in a list for operators.
const MAX_LISTED: i64 = 1_000;

/// What sending needs.
pub struct Messenger {
    email: Option<Sender>,
    sms: Option<Sender>,
    templates: Templates,
    /// Told that there is a new message.
    wake: Notify,
    /// Whether so many wait that nobody may ask for more.
    is_full: AtomicBool,
}

#[derive(Clone)]
enum Sender {
    Smtp(Arc<Mailer>),
    Webhook(Arc<Webhook>),
    Log,
}

/// Why a message was not taken.
#[derive(Debug)]
pub struct Failure {
    text: String,
    is_for_good: bool,
}

impl Failure {
    /// Another try may do.
    pub fn for_now(text: impl Display) -> Self {
        Self {
            text: text.to_string(),
            is_for_good: false,
        }
    }

    /// No other try will do.
    pub fn for_good(text: impl Display) -> Self {
        Self {
            text: text.to_string(),
            is_for_good: true,
        }
    }
}

impl Messenger {
    /// An error is a sentence for the operator.
    pub fn new(config: &Config, clock: &Arc<dyn Clock>) -> Result<Self, String> {
        let settings = &config.messages;
        let uses = |way: &str| {
            let ways = [&settings.email, &settings.sms];
            ways.iter().any(|used| used.as_deref() == Some(way))
        };
        let mailer = uses("smtp")
            .then(|| Mailer::new(&config.smtp))
            .transpose()?;
        let webhook = uses("webhook")
            .then(|| Webhook::new(&config.webhook, clock))
            .transpose()?;
        let (mailer, webhook) = (mailer.map(Arc::new), webhook.map(Arc::new));
        let sender = |way: &Option<String>| match way.as_deref()? {
            "smtp" => mailer.clone().map(Sender::Smtp),
            "webhook" => webhook.clone().map(Sender::Webhook),
            _ => Some(Sender::Log),
        };
        Ok(Self {
            email: sender(&settings.email),
            sms: sender(&settings.sms),
            templates: Templates::new(
                settings.templates_dir.as_deref(),
                &settings.default_language,
                &config.sign_in.service_name,
            )?,
            wake: Notify::new(),
            is_full: AtomicBool::new(false),
        })
    }

    /// Whether messages can be sent by a channel; by any, when `None`.
    pub fn can_send(&self, channel: Option<Channel>) -> bool {
        match channel {
            Some(channel) => self.sender(channel).is_some(),
            None => self.email.is_some() || self.sms.is_some(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.is_full.load(Relaxed)
    }

    /// Tells that there is a new message.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    const fn sender(&self, channel: Channel) -> Option<&Sender> {
        match channel {
            Channel::Email => self.email.as_ref(),
            Channel::Sms => self.sms.as_ref(),
        }
    }
}

/// Sends what there is to be sent, until `stop`.
pub fn start(app: &Arc<App>, stop: &CancellationToken) {
    if !app.messenger.can_send(None) {
        return;
    }
    let (app, stop) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(app.config.messages.max_at_once));
        let mut pace = Pace::new(app.config.messages.max_per_minute);
        loop {
            tokio::select! {
                () = app.messenger.wake.notified() => {}
                () = sleep(INTERVAL) => note_backlog(&app).await,
                () = stop.cancelled() => return,
            }
            // A panic is reported by the runtime, and must not end what comes after it.
            while !stop.is_cancelled() && send_some(&app, &places, &mut pace).await {}
        }
    });
}

/// How many messages wait.
pub async fn waiting(app: &Arc<App>) -> Result<i64> {
    let call = Call::system(app, "");
    Ok(messages::count_queued(&mut call.db().read().await?).await?)
}

/// Notes whether so many messages wait that nobody may ask for more.
async fn note_backlog(app: &Arc<App>) {
    if let Ok(count) = waiting(app).await {
        app.metrics.messages_queued.set(count);
        let is_full = count >= app.config.messages.max_queued;
        app.messenger.is_full.store(is_full, Relaxed);
    }
}

/// Takes as many messages as may be sent now and sends each in a task of its own; whether there may be more.
async fn send_some(app: &Arc<App>, places: &Arc<Semaphore>, pace: &mut Pace) -> bool {
    let free = places.available_permits().min(pace.allowed());
    if free == 0 {
        if places.available_permits() > 0 {
            sleep(Duration::from_millis(100)).await;
            return true;
        }
        // Somebody who comes to an end wakes us.
        return false;
    }
    let call = Call::system(app, "");
    let until = call.now.plus_s(app.config.messages.lease_s);
    let limit = i64::try_from(free).unwrap_or(i64::MAX);
    let taken = transact!(
        attempts(&call),
        attempts | tx | { messages::take(tx, call.now, until, limit).await? }
    );
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            tracing::warn!(%error, "cannot look for messages");
            return false;
        }
    };
    let count = taken.len();
    pace.used(count);
    for message in taken {
        let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
            break;
        };
        let app = Arc::clone(app);
        tokio::spawn(async move {
            if let Err(error) = send(&app, message).await {
                tracing::warn!(%error, "cannot note what became of a message");
            }
            drop(permit);
            app.messenger.wake();
        });
    }
    count == free
}

/// How many messages may begin: so many in a minute, spread over it.
struct Pace {
    per_minute: u32,
    allowed: f64,
    last: Instant,
}

impl Pace {
    fn new(per_minute: u32) -> Self {
        Self {
            per_minute,
            allowed: Self::burst(per_minute),
            last: Instant::now(),
        }
    }

    /// Of a minute's messages, as many as a second has, may begin at once; one at least.
    fn burst(per_minute: u32) -> f64 {
        (f64::from(per_minute) / 60.0).max(1.0)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and what one second has"
    )]
    fn allowed(&mut self) -> usize {
        let passed = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        let more = passed * f64::from(self.per_minute) / 60.0;
        self.allowed = (self.allowed + more).min(Self::burst(self.per_minute));
        self.allowed as usize
    }

    fn used(&mut self, count: usize) {
        self.allowed -= f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

/// Counters are hot rows, and what is written of a message is of that message alone.
fn attempts(call: &Call) -> Attempts<'_> {
    Attempts::new(call.db(), Isolation::ReadCommitted, false)
}

/// What becomes of a message that was taken.
enum Outcome {
    Ended(End, Option<String>),
    /// To be looked at again in so many seconds.
    Later(i64, String),
}

async fn send(app: &Arc<App>, taken: Taken) -> Result<()> {
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
    Ok(())
}

impl Outcome {
    const fn name(&self) -> &'static str {
        match self {
            Self::Ended(End::Sent, _) => "sent",
            Self::Ended(End::Dead, _) => "dead",
            Self::Ended(End::Void, _) => "void",
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
    let Some((message, recipient)) = resolve(call, taken, message).await? else {
        return Ok(Outcome::Ended(End::Void, None));
    };
    if let Some(wait) = over_cap(call, taken, &recipient).await? {
        return if taken.kind.is_notice() {
            Ok(Outcome::Later(wait, "many to one address".to_owned()))
        } else {
            ended(End::Void, "many to one address")
        };
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

impl Sender {
    async fn send(
        &self,
        id: &str,
        kind: Kind,
        to: &Recipient,
        message: &Rendered,
    ) -> Result<(), Failure> {
        match (self, message) {
            (Self::Webhook(webhook), _) => webhook.send(id, kind, to, message).await,
            (
                Self::Smtp(mailer),
                Rendered::Mail {
                    subject,
                    text,
                    html,
                },
            ) => mailer.send(id, &to.address, subject, text, html).await,
            (Self::Smtp(_), Rendered::Sms(_)) => {
                Err(Failure::for_good("a mail server takes no text messages"))
            }
            (Self::Log, message) => {
                let (subject, text) = match message {
                    Rendered::Mail { subject, text, .. } => (subject.as_str(), text),
                    Rendered::Sms(text) => ("", text),
                };
                tracing::info!(id, to = to.address, subject, text, "a message");
                Ok(())
            }
        }
    }
}

/// Finds out who gets a message, if that is for now to say; `None` for nobody. What was found out stays, so
/// that another try is the same message.
async fn resolve(
    call: &Call,
    taken: &Taken,
    message: Message,
) -> Result<Option<(Message, Recipient)>> {
    let (who, channel, purpose) = match &message.to {
        To::Address(recipient) => {
            let recipient = recipient.clone();
            return Ok(Some((message, recipient)));
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
    let contacts = contacts::list(&mut db, account, None, None, MAX_CONTACTS).await?;
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
    let body = seal(call.app(), taken.id, &message)?;
    let is_ours = transact!(
        attempts(call),
        attempts | tx | {
            let is_ours = messages::resolve(tx, taken, account, &body).await?;
            if is_ours && message.kind == Kind::PasswordReset {
                allow_reset(tx, call, user.id, taken, &message).await?;
            }
            is_ours
        }
    )?;
    Ok(is_ours.then_some((message, recipient)))
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
    // One at a time: a lost code is good for nobody once there is another.
    password_resets::delete_all(tx, user).await?;
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
        Subject::Notices(to.address.clone())
    } else {
        Subject::Messages(to.address.clone())
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

/// Has messages sent again that could not be: all of them that are still of use, or one. How many.
pub async fn redrive(app: &Arc<App>, id: Option<MessageId>) -> Result<u64> {
    let call = Call::system(app, "message.redriven");
    let count = transact!(call.db(), |tx| {
        let count = messages::redrive(tx, id, call.now).await?;
        if count > 0 {
            events::append(tx, &call.event().detail("count", count)).await?;
        }
        count
    })?;
    app.messenger.wake();
    Ok(count)
}

/// Messages that could not be sent, the last to have failed first.
pub async fn dead(app: &Arc<App>) -> Result<Vec<Dead>> {
    let call = Call::system(app, "");
    Ok(messages::list_dead(&mut call.db().read().await?, MAX_LISTED).await?)
}

/// A message as it is stored.
pub fn seal(app: &App, id: MessageId, message: &Message) -> Result<Vec<u8>> {
    let text = Zeroizing::new(serde_json::to_vec(message).map_err(Error::internal)?);
    let context = id.0.as_bytes();
    Ok(app.keys.messages.seal(app.random.bytes(), context, &text))
}

//! Brings messages to people: takes them from the store, where calls have left them, and hands them to a
//! mail server, a gateway or the log.
//!
//! Invariant: no call waits for any of this. A message is sent at least once, under one id however often,
//! or ends as DEAD with a reason, for operators to see and to send again; unless there is nobody to send it
//! to, or it is a code too many for its address.

pub mod dead;
mod delivery;
pub mod smtp;
pub mod templates;
pub mod webhook;

use std::{
    fmt::Display,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore},
    time::sleep,
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
        error::{Error, Result},
        message::{Channel, Kind, Message, Recipient},
        name::MessageId,
        pace::Pace,
    },
    env::Clock,
    grpc::call::Call,
    store::{messages, transact},
};

/// How often it is looked for messages that nobody has said anything about: those of other processes, and
/// those whose time has come.
const INTERVAL: Duration = Duration::from_secs(1);

/// What sending needs.
pub struct Messenger {
    email: Option<Sender>,
    sms: Option<Sender>,
    templates: Templates,
    /// Told that there is a new message.
    wake: Notify,
    /// Whether so many wait that nobody may ask for more.
    is_full: AtomicBool,
    /// For those that are being sent.
    places: Arc<Semaphore>,
    max_at_once: u32,
    pace: Mutex<(Pace, Instant)>,
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
            places: Arc::new(Semaphore::new(settings.max_at_once)),
            max_at_once: u32::try_from(settings.max_at_once).unwrap_or(u32::MAX),
            pace: Mutex::new((Pace::new(settings.max_per_minute), Instant::now())),
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

    /// Waits until nothing is being sent.
    pub async fn idle(&self) {
        // Nobody closes it.
        let _ = self.places.acquire_many(self.max_at_once).await;
    }

    fn with_pace<T>(&self, use_it: impl FnOnce(&mut Pace) -> T) -> T {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let (pace, last) = &mut *pace;
        pace.pass(last.elapsed());
        *last = Instant::now();
        use_it(pace)
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
    let (counted, stopped) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        while !stopped.is_cancelled() {
            note_backlog(&counted).await;
            sleep(INTERVAL).await;
        }
    });
    let (app, stop) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        let places = Arc::clone(&app.messenger.places);
        loop {
            tokio::select! {
                () = app.messenger.wake.notified() => {}
                () = sleep(INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            while !stop.is_cancelled() && send_some(&app, &places).await {}
        }
    });
}

/// How many messages wait: those that somebody has asked for, or notices as well.
pub async fn waiting(app: &Arc<App>, with_notices: bool) -> Result<i64> {
    let call = Call::system(app, "");
    let mut db = call.db().read().await?;
    Ok(messages::count_queued(&mut db, with_notices).await?)
}

/// Notes whether so many messages wait that nobody may ask for more.
async fn note_backlog(app: &Arc<App>) {
    if let Ok(count) = waiting(app, true).await {
        app.metrics.messages_queued.set(count);
    }
    if let Ok(count) = waiting(app, false).await {
        let is_full = count >= app.config.messages.max_queued;
        app.messenger.is_full.store(is_full, Relaxed);
    }
}

/// Takes as many messages as may be sent now and sends each in a task of its own; whether there may be more.
async fn send_some(app: &Arc<App>, places: &Arc<Semaphore>) -> bool {
    let free = places
        .available_permits()
        .min(app.messenger.with_pace(|pace| pace.allowed()));
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
        delivery::attempts(&call),
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
    app.messenger.with_pace(|pace| pace.take(count));
    for message in taken {
        let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
            break;
        };
        let (app, places) = (Arc::clone(app), Arc::clone(places));
        tokio::spawn(async move {
            match delivery::send(&app, message).await {
                Ok(true) => {}
                // Strangers who ask for what is nobody's, or for too much, hold nobody else up.
                Ok(false) => app.messenger.with_pace(Pace::give_back),
                Err(error) => tracing::warn!(%error, "cannot note what became of a message"),
            }
            let was_full = places.available_permits() == 0;
            drop(permit);
            if was_full {
                app.messenger.wake();
            }
        });
    }
    count == free
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

/// A message as it is stored.
pub fn seal(app: &App, id: MessageId, message: &Message) -> Result<Vec<u8>> {
    let text = Zeroizing::new(serde_json::to_vec(message).map_err(Error::internal)?);
    let context = id.0.as_bytes();
    Ok(app.keys.messages.seal(app.random.bytes(), context, &text))
}

//! What attempts cost, and who pays.

use std::{net::IpAddr, time::Duration};

use uuid::Uuid;

use crate::{
    domain::{
        challenge,
        error::{Error, Reason, Result},
        event::Event,
        message::{self, Recipient},
        name::{AccountId, ContactId},
        network,
        secret::Digest,
        throttle::{self, Counter, Rule, Subject},
    },
    grpc::call::Call,
    store::{
        challenges, contact_codes,
        db::{Attempts, Isolation, Read, Write},
        events, throttles, transact,
    },
};

/// What one attempt is counted for, by which rule.
pub(super) type Charge = (Subject, Rule);

/// Who answers for an attempt.
pub(super) struct Payer {
    pub(super) subject: Subject,
    /// How failures of the subject, and of the device, are counted.
    pub(super) rule: Rule,
    /// A device or a session that shows that it is not a stranger's.
    pub(super) device: Option<Subject>,
    /// Where it comes from, as far as that may be counted.
    pub(super) address: Option<IpAddr>,
}

impl Payer {
    /// What an attempt may be charged to, first choice first: a known device if it is one, so that
    /// nobody else's failures matter to it; otherwise, or when the device has used up its credit, the
    /// subject and the network.
    pub(super) fn ways(self, call: &Call) -> Vec<Vec<Charge>> {
        let rule = self.rule;
        let device = self.device.map(|device| vec![(device, rule)]);
        let mut stranger = vec![(self.subject, rule)];
        stranger.extend(network_charge(call, self.address));
        device.into_iter().chain([stranger]).collect()
    }
}

/// A first look, which decides nothing: refuses an attempt that would have to wait whichever way it
/// is charged, for the shortest of these waits.
pub(super) async fn require_patience(
    db: &mut Read,
    call: &Call,
    ways: &[Vec<Charge>],
) -> Result<()> {
    match shortest_wait(db, call, ways).await? {
        None => Ok(()),
        Some(wait) => Err(counted(call, throttled(wait))),
    }
}

/// How long whoever attempts something has to wait at least, if they have to.
async fn shortest_wait(
    db: &mut Read,
    call: &Call,
    ways: &[Vec<Charge>],
) -> Result<Option<Duration>> {
    let mut shortest = Duration::MAX;
    for way in ways {
        let mut wait = None;
        for (key, _, rule) in keyed(call, way) {
            let counter = throttles::find(db, &key).await?;
            wait = wait.max(rule.charge(counter, call.now).err());
        }
        match wait {
            None => return Ok(None),
            Some(wait) => shortest = shortest.min(wait),
        }
    }
    Ok(Some(shortest))
}

/// What an attempt uses up one of, besides credit.
#[derive(Clone, Copy)]
pub(super) enum Tries<'a> {
    Unlimited,
    OfChallenge(&'a Digest),
    OfContact(AccountId, ContactId),
}

impl Tries<'_> {
    /// Takes one, or refuses when there is none left.
    async fn count(self, tx: &mut Write, call: &Call) -> Result<()> {
        let (is_left, reason) = match self {
            Self::Unlimited => return Ok(()),
            Self::OfChallenge(digest) => {
                let is_left = challenges::count_answer(tx, digest, call.now).await?;
                (is_left, Reason::ChallengeEnded)
            }
            Self::OfContact(account, id) => {
                let is_left = contact_codes::count_answer(tx, account, id, call.now).await?;
                (is_left, Reason::InvalidCode)
            }
        };
        if is_left {
            Ok(())
        } else {
            Err(Error::Unauthenticated(reason))
        }
    }
}

/// Charges the first way that has credit left, or none of them; what was charged.
pub(super) async fn attempt(
    call: &Call,
    ways: Vec<Vec<Charge>>,
    tries: Tries<'_>,
) -> Result<Vec<Charge>> {
    let mut refusal = Error::internal("no way to charge an attempt");
    for way in ways {
        let outcome = transact!(
            attempts(call),
            attempts | tx | {
                charge_in(tx, call, &way).await?;
                tries.count(tx, call).await?;
            }
        );
        match outcome {
            Ok(()) => return Ok(way),
            Err(error @ Error::Exhausted { .. }) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(counted(call, refusal))
}

/// Counts one who asks for a message, or for a question to somebody, by what they typed: the same for what
/// is nobody's. A device that the person has used before is not held up by strangers. Messages are counted
/// for the network as well, until one of them has arrived.
pub(in crate::grpc) async fn ask(
    call: &Call,
    asked: Asked,
    device: Option<Uuid>,
    address: Option<IpAddr>,
) -> Result<()> {
    let config = &call.app().config;
    let questions = challenge::asking_rule(config.sign_in.challenge_lifetime_s);
    let device = device.map(|id| id.to_string());
    let payer = match &asked {
        Asked::Message(_) | Asked::Proof(_) => Payer {
            subject: asked.subject(),
            rule: config.message_throttle(),
            device: device.map(Subject::Asking),
            address,
        },
        Asked::Question(_) | Asked::Change(_) => Payer {
            subject: asked.subject(),
            rule: questions,
            device: device.map(Subject::Questions),
            address: None,
        },
    };
    let ways = payer.ways(call);
    require_patience(&mut call.db().read().await?, call, &ways).await?;
    attempt(call, ways, Tries::Unlimited).await.map(drop)
}

/// What is asked for.
pub(in crate::grpc) enum Asked {
    /// A message to whoever is found by what was typed.
    Message(String),
    /// A question to them, of which nobody is told.
    Question(String),
    /// A message that proves a contact of an account, whichever.
    Proof(AccountId),
    /// A change of an account's contacts by its owner, which is told at all of the others.
    Change(AccountId),
}

impl Asked {
    fn subject(&self) -> Subject {
        match self {
            Self::Message(typed) => Subject::Asking(typed.clone()),
            Self::Question(typed) => Subject::Questions(typed.clone()),
            Self::Proof(account) => Subject::AskingFor(*account),
            Self::Change(account) => Subject::Changes(*account),
        }
    }
}

/// Forgets that messages of a kind were asked for, by whom, and that they went to these addresses: one of
/// them has come to the right person.
pub(super) async fn received(
    call: &Call,
    asked: &Asked,
    (kind, by): (message::Kind, Option<Uuid>),
    at: impl IntoIterator<Item = Recipient>,
    address: Option<IpAddr>,
) -> Result<()> {
    let rule = call.app().config.message_throttle();
    let at = at.into_iter();
    let charges: Vec<Charge> = at
        .flat_map(|recipient| throttle::of_message(rule, kind, by, &recipient))
        .chain([(asked.subject(), rule)])
        .chain(network_charge(call, address))
        .collect();
    refund(call, &charges).await
}

/// Whether a network may still cost something before it is known who comes from there.
pub(super) async fn may_cost(call: &Call) -> Result<bool> {
    let charges: Vec<Charge> = network_charge(call, call.address).into_iter().collect();
    let mut db = call.db().read().await?;
    Ok(shortest_wait(&mut db, call, &[charges]).await?.is_none())
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
        throttles::update(tx, &key, counter, rule.forget_time(counter)).await?;
    }
    Ok(())
}

/// After a right secret: the network gets back this one charge, account and device start anew.
pub(super) async fn refund(call: &Call, charges: &[Charge]) -> Result<()> {
    transact!(
        attempts(call),
        attempts | tx | {
            for (key, subject, rule) in keyed(call, charges) {
                let counter = match subject {
                    Subject::Network(_) => rule.refund(throttles::lock(tx, &key).await?),
                    _ => Counter::NONE,
                };
                throttles::update(tx, &key, counter, rule.forget_time(counter)).await?;
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
pub(super) fn attempts(call: &Call) -> Attempts<'_> {
    Attempts::new(call.db(), Isolation::ReadCommitted, false)
}

/// For a secret that cannot be guessed and is wrong: counts it for the network, writes it down, and
/// gives the error to answer with. A network that has sent too many costs nothing more.
pub(super) async fn refuse(
    call: &Call,
    address: Option<IpAddr>,
    event: Event,
    reason: Reason,
) -> Result<Error> {
    let charges: Vec<Charge> = network_charge(call, address).into_iter().collect();
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

/// For a code that was paid for and is wrong: writes it down, and gives the error to answer with.
pub(super) async fn wrong(call: &Call, event: Event) -> Result<Error> {
    let event = Event {
        refusal: Some(Reason::InvalidCode),
        ..event
    };
    transact!(call.db(), |tx| { events::append(tx, &event).await? })?;
    Ok(Error::Unauthenticated(Reason::InvalidCode))
}

/// The event of an attempt; what became of it is for the caller to say.
pub(super) fn attempted(call: &Call, kind: &str, account: Option<AccountId>) -> Event {
    let event = call.event_of(kind);
    match account {
        Some(account) => event.about_account(account),
        None => event,
    }
}

//! How often somebody may try to prove an identity.
//!
//! Every attempt is charged before the secret is looked at and refunded when it was right, so that
//! parallel guesses cannot slip through. A few failures are free, then each further attempt has to
//! wait, twice as long each time, up to a limit: no account is ever locked for good (NIST SP 800-63B-4
//! section 3.2.2, ASVS 6.3.1).
//! Invariant: an account that does not exist is counted like one that does.

use std::time::Duration;

use aws_lc_rs::hmac;
use ipnet::IpNet;
use uuid::Uuid;

use super::{
    identifier::Identifier,
    message,
    name::AccountId,
    password::PasswordHash,
    secret::{self, Kind, Secret},
    time::Timestamp,
};

/// What attempts are counted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An account, whichever of its identifiers was typed.
    Account(AccountId),
    /// An account, by somebody who has shown its first factor.
    SecondFactor(AccountId),
    /// An address or number of an account, by somebody who types codes for it.
    Contact(AccountId, Identifier),
    /// Where messages of a kind with codes go: what strangers can ask for holds up nothing else.
    Messages(message::Kind, String),
    /// The same, asked for by somebody whom strangers must not hold up: a device of the recipient's, or the
    /// account that the address is to belong to.
    MessagesFor(message::Kind, String, Uuid),
    /// Where notices go, which must not be held up by messages that anybody can ask for.
    Notices(String),
    /// Who asks for a message to whoever is found by this.
    Asking(String),
    /// An account that asks for messages which prove its contacts.
    AskingFor(AccountId),
    /// An account whose owner changes its contacts.
    Changes(AccountId),
    /// Who asks questions to whoever is found by this, of which nobody is told.
    Questions(String),
    /// An identifier that belongs to nobody.
    Unknown(String),
    /// Where the attempt comes from.
    Network(IpNet),
    /// A device on which the account's owner has signed in before.
    Device(Uuid),
    /// The same, by somebody who has shown the first factor there: a right password, which forgives the
    /// device, must not forgive guesses at the second.
    SecondFactorDevice(Uuid),
}

impl Subject {
    /// The name of the counter: keyed, since it stands for what people typed.
    pub fn key(&self, key: &hmac::Key) -> Vec<u8> {
        let (kind, value) = match self {
            Self::Account(id) => ("account", id.to_string()),
            Self::SecondFactor(id) => ("second factor", id.to_string()),
            Self::Contact(account, value) => {
                let kind = value.kind.name();
                ("contact", format!("{account}:{kind}:{}", value.key))
            }
            Self::Messages(kind, address) => ("messages", format!("{}:{address}", kind.name())),
            Self::MessagesFor(kind, address, asker) => {
                ("messages for", format!("{}:{asker}:{address}", kind.name()))
            }
            Self::AskingFor(account) => ("asking for", account.to_string()),
            Self::Changes(account) => ("changes", account.to_string()),
            Self::Notices(address) => ("notices", address.clone()),
            Self::Asking(identifier) => ("asking", identifier.clone()),
            Self::Questions(identifier) => ("questions", identifier.clone()),
            Self::Unknown(identifier) => ("unknown", identifier.clone()),
            Self::Network(net) => ("network", net.to_string()),
            Self::Device(id) => ("device", id.to_string()),
            Self::SecondFactorDevice(id) => ("second factor device", id.to_string()),
        };
        hmac::sign(key, format!("{kind}:{value}").as_bytes())
            .as_ref()
            .to_vec()
    }
}

/// How one kind of subject is counted.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Failures that cost no waiting.
    pub free: u32,
    /// The first wait, in seconds.
    pub base_delay_s: i64,
    /// The longest wait, in seconds.
    pub max_delay_s: i64,
    /// After this long without an attempt all is forgotten, in seconds.
    pub forget_after_s: i64,
}

/// What one message is counted for at its address. What strangers ask for holds up no device of the
/// recipient's; and what other accounts do with an address holds up nobody before there are many of them.
pub fn of_message(
    rule: Rule,
    kind: message::Kind,
    asker: Option<Uuid>,
    to: &message::Recipient,
) -> Vec<(Subject, Rule)> {
    let at = to.key();
    let of_many = Rule {
        free: rule.free.saturating_mul(4),
        ..rule
    };
    match asker {
        _ if kind.is_notice() => vec![(Subject::Notices(at), rule)],
        None => vec![(Subject::Messages(kind, at), rule)],
        Some(asker) if kind == message::Kind::ContactCode => vec![
            (Subject::MessagesFor(kind, at.clone(), asker), rule),
            (Subject::Messages(kind, at), of_many),
        ],
        Some(asker) => vec![(Subject::MessagesFor(kind, at, asker), rule)],
    }
}

/// The failures of one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    pub failures: u32,
    /// The last attempt.
    pub last_time: Timestamp,
    /// No attempt is looked at before.
    pub next_time: Timestamp,
}

impl Counter {
    /// Nothing counted yet.
    pub const NONE: Self = Self {
        failures: 0,
        last_time: Timestamp::EPOCH,
        next_time: Timestamp::EPOCH,
    };
}

impl Rule {
    /// When a counter says nothing any more.
    pub fn forget_time(&self, counter: Counter) -> Timestamp {
        let waited = counter.last_time.plus_s(self.forget_after_s);
        waited.max(counter.next_time)
    }

    /// Counts one more attempt, or says how long to wait for the next.
    pub fn charge(&self, counter: Counter, now: Timestamp) -> Result<Counter, Duration> {
        let counter = if counter.last_time.plus_s(self.forget_after_s) <= now {
            Counter::NONE
        } else {
            counter
        };
        // Written by a clock that was wrong, which must keep out nobody until it is right.
        let is_of_the_future = counter.last_time > now.plus_s(self.max_delay_s);
        if now < counter.next_time && !is_of_the_future {
            return Err(counter.next_time.after(now));
        }
        let failures = counter.failures.saturating_add(1);
        Ok(self.counter(failures, now))
    }

    /// Takes back one charge, for an attempt that was right.
    pub fn refund(&self, counter: Counter) -> Counter {
        let refunded = self.counter(counter.failures.saturating_sub(1), counter.last_time);
        Counter {
            next_time: refunded.next_time.min(counter.next_time),
            ..refunded
        }
    }

    /// Without a wait there is no next time, so that of several attempts at once a late one does not
    /// hold up one that began earlier.
    fn counter(&self, failures: u32, last_time: Timestamp) -> Counter {
        let next_time = match self.delay_s(failures) {
            0 => Timestamp::EPOCH,
            delay_s => last_time.plus_s(delay_s),
        };
        Counter {
            failures,
            last_time,
            next_time,
        }
    }

    fn delay_s(&self, failures: u32) -> i64 {
        let Some(doublings) = failures.checked_sub(self.free) else {
            return 0;
        };
        let factor = 1_i64
            .checked_shl(doublings)
            .filter(|factor| *factor > 0)
            .unwrap_or(i64::MAX);
        self.base_delay_s
            .saturating_mul(factor)
            .min(self.max_delay_s)
    }
}

/// Proves that a device was used by an account before, with the password it still has, and nothing
/// else (device cookie).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownDevice {
    pub id: Uuid,
    pub account: AccountId,
    pub expire_time: Timestamp,
}

impl KnownDevice {
    pub fn token(&self, password: &PasswordHash, key: &hmac::Key) -> Secret {
        let head = self.head();
        let mac = hmac::sign(key, &self.signed(&head, password));
        Secret::new(Kind::DeviceToken, &[&head[..], mac.as_ref()].concat())
    }

    /// The device of `account` that a token names; `None` for any other account or password, a token
    /// whose time is over, or one that is not ours.
    pub fn parse(
        text: &str,
        account: AccountId,
        password: &PasswordHash,
        key: &hmac::Key,
        now: Timestamp,
    ) -> Option<Self> {
        let token = Secret::parse(Kind::DeviceToken, text)?;
        let (id, rest) = token.body().split_first_chunk::<16>()?;
        let (expire_time, mac) = rest.split_first_chunk::<8>()?;
        let device = Self {
            id: Uuid::from_bytes(*id),
            account,
            expire_time: Timestamp::from_seconds(i64::from_be_bytes(*expire_time)),
        };
        let expected = hmac::sign(key, &device.signed(&device.head(), password));
        (secret::equal(expected.as_ref(), mac) && now < device.expire_time).then_some(device)
    }

    fn head(&self) -> [u8; 24] {
        let mut head = [0; 24];
        head[..16].copy_from_slice(self.id.as_bytes());
        head[16..].copy_from_slice(&self.expire_time.seconds().to_be_bytes());
        head
    }

    fn signed(&self, head: &[u8; 24], password: &PasswordHash) -> Vec<u8> {
        let account = self.account.to_string();
        [
            &head[..],
            account.as_bytes(),
            &[0],
            password.as_str().as_bytes(),
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{identifier, name::UserId};

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);
    const RULE: Rule = Rule {
        free: 3,
        base_delay_s: 2,
        max_delay_s: 60,
        forget_after_s: 3600,
    };

    #[test]
    fn waiting_grows_to_its_limit_and_never_beyond() {
        let (mut counter, mut now, mut waits) = (Counter::NONE, NOW, Vec::new());
        for _ in 0..40 {
            counter = RULE.charge(counter, now).expect("its time has come");
            let wait = counter.next_time.after(now).as_secs();
            waits.push(wait);
            if wait > 0 {
                assert!(
                    RULE.charge(counter, now.plus_s(i64::try_from(wait).expect("small") - 1))
                        .is_err()
                );
            }
            now = counter.next_time;
        }
        assert_eq!(waits[..9], [0, 0, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits.last(), Some(&60));
    }

    #[test]
    fn quiet_time_forgets_everything() {
        let mut counter = Counter::NONE;
        for _ in 0..4 {
            counter = RULE
                .charge(counter, counter.next_time.max(NOW))
                .expect("waited");
        }
        let later = counter.last_time.plus_s(3600);
        assert_eq!(RULE.charge(counter, later).expect("forgotten").failures, 1);
    }

    #[test]
    fn attempts_that_overlap_do_not_hold_each_other_up() {
        let late = RULE.charge(Counter::NONE, NOW.plus_s(1)).expect("free");
        assert!(RULE.charge(late, NOW).is_ok(), "began earlier, came later");
    }

    #[test]
    fn a_clock_that_was_wrong_keeps_nobody_out() {
        let (mut counter, year) = (Counter::NONE, 365 * 24 * 3600);
        for _ in 0..4 {
            let then = counter.next_time.max(NOW.plus_s(year));
            counter = RULE.charge(counter, then).expect("waited");
        }
        let counter = RULE.charge(counter, NOW).expect("a year early");
        assert_eq!((counter.failures, counter.last_time), (5, NOW));
        assert!(
            RULE.charge(counter, NOW).is_err(),
            "counted by the right clock"
        );
    }

    #[test]
    fn a_refund_undoes_its_own_charge() {
        let mut counter = Counter::NONE;
        for _ in 0..2 {
            counter = RULE.charge(counter, NOW).expect("free");
        }
        let charged = RULE.charge(counter, NOW).expect("free");
        let refunded = RULE.refund(charged);
        assert_eq!(refunded.failures, counter.failures);
        assert!(RULE.charge(refunded, NOW).is_ok());
    }

    #[test]
    fn a_device_is_known_to_its_own_account_until_its_time_is_over() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let (alice, bob) = (
            UserId(Uuid::from_u128(1)).into(),
            UserId(Uuid::from_u128(2)).into(),
        );
        let device = KnownDevice {
            id: Uuid::from_u128(7),
            account: alice,
            expire_time: NOW.plus_s(10),
        };
        let hash = |text: &str| PasswordHash::from_stored(text.to_owned());
        let (old, new) = (hash("old"), hash("new"));
        let text = device.token(&old, &key).text();
        let parse = |account, hash, key, now| KnownDevice::parse(&text, account, hash, key, now);
        assert_eq!(parse(alice, &old, &key, NOW), Some(device));
        assert_eq!(parse(bob, &old, &key, NOW), None);
        assert_eq!(parse(alice, &new, &key, NOW), None);
        assert_eq!(parse(alice, &old, &key, NOW.plus_s(10)), None);
        let other = hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]);
        assert_eq!(parse(alice, &old, &other, NOW), None);
        assert_eq!(KnownDevice::parse("addt_x_y", alice, &old, &key, NOW), None);
    }

    #[test]
    fn counters_of_different_subjects_never_meet() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let id = Uuid::from_u128(1);
        let subjects = [
            Subject::Account(UserId(id).into()),
            Subject::SecondFactor(UserId(id).into()),
            Subject::Unknown(format!("users/{id}")),
            Subject::Messages(message::Kind::ContactCode, id.to_string()),
            Subject::Messages(message::Kind::SignInCode, id.to_string()),
            Subject::MessagesFor(message::Kind::ContactCode, id.to_string(), id),
            Subject::AskingFor(UserId(id).into()),
            Subject::Changes(UserId(id).into()),
            Subject::Notices(id.to_string()),
            Subject::Asking(id.to_string()),
            Subject::Questions(id.to_string()),
            Subject::Contact(
                UserId(id).into(),
                Identifier::new(identifier::Kind::Email, id.to_string()),
            ),
            Subject::Device(id),
            Subject::SecondFactorDevice(id),
        ];
        let mut keys: Vec<_> = subjects.iter().map(|subject| subject.key(&key)).collect();
        keys.dedup();
        assert_eq!(keys.len(), subjects.len());
    }
}

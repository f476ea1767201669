//! Messages to people: what they are about, who gets them, and when they are tried again.
//!
//! Invariant: a message goes to a stored address and to no other, and says of its recipient nothing that
//! anybody else could have written into it, but for a name that cannot be taken for a link.

use std::fmt;

use serde::{Deserialize, Serialize};
use unicode_normalization::char::is_combining_mark;
use uuid::Uuid;

use super::{
    assurance::Factor,
    contact::{self, Contact, Purpose, Value},
    email::Email,
    identifier::Identifier,
    secret::Digest,
};

/// The wait after the first failure, in seconds; each further one doubles it.
const BASE_DELAY_S: i64 = 10;
/// The longest wait, in seconds.
const MAX_DELAY_S: i64 = 3_600;
/// Most characters of a name in a greeting.
const MAX_NAME: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A code and a link that prove a contact.
    ContactCode,
    /// A code and a link to sign in with.
    SignInCode,
    /// A link to set a new password with.
    PasswordReset,
    /// Somebody has set a new password.
    PasswordChanged,
    /// Somebody has changed, added or removed a contact.
    ContactChanged,
}

impl Kind {
    pub const ALL: [Self; 5] = [
        Self::ContactCode,
        Self::SignInCode,
        Self::PasswordReset,
        Self::PasswordChanged,
        Self::ContactChanged,
    ];

    /// As stored, and as the files of templates are called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ContactCode => "contact_code",
            Self::SignInCode => "sign_in_code",
            Self::PasswordReset => "password_reset",
            Self::PasswordChanged => "password_changed",
            Self::ContactChanged => "contact_changed",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Those that tell of what has happened: none of them is ever dropped because there were many.
    pub const NOTICES: [Self; 2] = [Self::PasswordChanged, Self::ContactChanged];

    pub fn is_notice(self) -> bool {
        Self::NOTICES.contains(&self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    Email,
    Sms,
}

impl Channel {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Sms => "sms",
        }
    }

    /// By which a code that is such a factor goes.
    pub const fn of_factor(factor: Factor) -> Self {
        match factor {
            Factor::SmsCode => Self::Sms,
            _ => Self::Email,
        }
    }

    /// By which a kind of contact is reached.
    pub const fn of(kind: contact::Kind) -> Option<Self> {
        match kind {
            contact::Kind::Email => Some(Self::Email),
            contact::Kind::Phone => Some(Self::Sms),
            contact::Kind::PostalAddress => None,
        }
    }
}

/// One message to one person.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub kind: Kind,
    pub to: To,
    /// BCP 47, or empty.
    pub language: String,
    /// For a greeting; empty for somebody who has not proven the address.
    pub name: String,
    pub facts: Facts,
    /// What is stored of the code, if that is to be stored when it is known whose it is.
    pub unlocks: Option<Digest>,
    /// Who asks, if that is somebody whom strangers must not hold up: a device of the recipient's, or the
    /// account that the address is to belong to.
    pub asker: Option<Uuid>,
}

/// What a message says is a secret of its recipient.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, withheld)", self.kind.name())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum To {
    Address(Recipient),
    /// Whoever is found by it, if anybody is: looked up when the message is sent, so that whoever asks for
    /// it learns nothing from the time that takes.
    Whoever {
        who: Who,
        /// Either way, when `None`.
        channel: Option<Channel>,
        purpose: Purpose,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Who {
    /// `None`: what was typed cannot be anybody's.
    Identifier(Option<Identifier>),
    User(Uuid),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    pub channel: Channel,
    /// A mailbox, or a number in E.164.
    pub address: String,
}

/// What a message is about; empty where it does not apply.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub code: String,
    pub link: String,
    /// How long what the message holds is good for, in minutes: the code, where there is one, or the link.
    pub minutes: i64,
    /// What was done to a contact.
    pub change: Option<ContactChange>,
    /// What a contact was before and is to be, masked.
    pub old: String,
    pub new: String,
    /// When it happened, for people to read.
    pub time: String,
}

/// What somebody has done to a contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContactChange {
    Added,
    /// Another value waits to be proven.
    Changed,
    /// The other value was proven.
    Replaced,
    /// It serves other purposes now.
    Purposes,
    Removed,
    /// Such a change was taken back.
    Reverted,
}

impl ContactChange {
    pub const ALL: [Self; 6] = [
        Self::Added,
        Self::Changed,
        Self::Replaced,
        Self::Purposes,
        Self::Removed,
        Self::Reverted,
    ];

    /// As templates know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Replaced => "replaced",
            Self::Purposes => "purposes",
            Self::Removed => "removed",
            Self::Reverted => "reverted",
        }
    }
}

impl Recipient {
    /// By which messages to it are counted, however it is written.
    pub fn key(&self) -> String {
        match self.channel {
            Channel::Email => Email::parse(&self.address)
                .map_or_else(|_| self.address.clone(), |email| email.key().to_owned()),
            Channel::Sms => self.address.clone(),
        }
    }

    /// Where a contact is reached.
    pub fn of(contact: &Contact) -> Option<Self> {
        Self::at(&contact.value)
    }

    /// Where it would be with another value.
    pub fn at(value: &Value) -> Option<Self> {
        let address = match value {
            Value::Email(email) => email.mailbox(),
            Value::Phone(phone) => phone.e164().to_owned(),
            Value::PostalAddress(_) => return None,
        };
        let channel = Channel::of(value.kind())?;
        Some(Self { channel, address })
    }
}

/// Which of somebody's contacts a message goes to: the one that was named, or the first of those that
/// serve the purpose, addresses before numbers.
pub fn choose<'a>(
    contacts: &'a [Contact],
    named: Option<&Identifier>,
    purpose: Purpose,
    may: impl Fn(Channel) -> bool,
) -> Option<&'a Contact> {
    let serves = |contact: &&Contact| {
        let channel = Channel::of(contact.kind());
        contact.serves(purpose) && channel.is_some_and(&may)
    };
    let order = |contact: &&Contact| {
        let is_named = named.is_some() && contact.value.identifier().as_ref() == named;
        (!is_named, contact.kind(), !contact.is_primary, contact.id.0)
    };
    contacts.iter().filter(serves).min_by_key(order)
}

/// A name to greet somebody with, if nobody could take it for a link or an address.
pub fn greeting(display_name: &str) -> String {
    let is_name = |c: char| c.is_alphabetic() || is_combining_mark(c) || " '’-·.".contains(c);
    let is_short = display_name.chars().count() <= MAX_NAME;
    let has_dots = display_name
        .split('.')
        .skip(1)
        .any(|rest| rest.chars().next().is_some_and(|c| c != ' '));
    if is_short && !has_dots && display_name.chars().all(is_name) {
        display_name.trim().to_owned()
    } else {
        String::new()
    }
}

/// An address or number that its owner recognises and nobody else could write to.
pub fn masked(value: &Value) -> String {
    match value {
        Value::Email(email) => {
            let (local, domain) = email.as_str().rsplit_once('@').unwrap_or_default();
            let first: String = local.chars().take(1).collect();
            format!("{first}…@{domain}")
        }
        Value::Phone(phone) => {
            let number = phone.e164();
            let last = number.len().saturating_sub(3);
            format!("{}…{}", &number[..3], &number[last..])
        }
        Value::PostalAddress(address) => address.locality.clone(),
    }
}

/// How long to wait after this many failures, in seconds; not the same for all messages that have failed
/// together.
pub fn delay_s(attempts: i64, id: Uuid) -> i64 {
    let doublings = u32::try_from(attempts.clamp(1, 20) - 1).unwrap_or(0);
    let delay = (BASE_DELAY_S << doublings).min(MAX_DELAY_S);
    let spread = i64::from(id.as_bytes()[15]) * delay / 1024;
    delay + spread
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        contact::{Method, Proof},
        name::{ContactId, UserId},
        phone::Phone,
        time::Timestamp,
    };

    fn contact(number: u128, value: Value, purposes: &[Purpose], is_proven: bool) -> Contact {
        let account = UserId(Uuid::from_u128(1)).into();
        let id = ContactId(Uuid::from_u128(number));
        let mut contact = Contact::new(id, account, value, Timestamp::EPOCH);
        contact.purposes = purposes.to_vec();
        if is_proven {
            contact.prove(Proof {
                method: Method::SentCode,
                time: Timestamp::EPOCH,
                by: String::new(),
            });
        }
        contact
    }

    fn email(text: &str) -> Value {
        Value::Email(Email::parse(text).expect(text))
    }

    fn phone() -> Value {
        Value::Phone(Phone::parse("+41446681800").expect("a number"))
    }

    #[test]
    fn a_message_goes_to_the_contact_that_was_named_or_to_the_first_that_serves() {
        use Purpose::{Login, Recovery};
        let primary = Contact {
            is_primary: true,
            ..contact(4, email("primary@example.org"), &[Recovery], true)
        };
        let contacts = [
            contact(1, phone(), &[Login, Recovery], true),
            contact(2, email("unproven@example.org"), &[Recovery], false),
            contact(3, email("other@example.org"), &[Recovery], true),
            primary,
            contact(5, email("login@example.org"), &[Login], true),
        ];
        let chosen = |typed: &str, purpose, may: &dyn Fn(Channel) -> bool| {
            let named = Identifier::typed(typed).expect(typed);
            choose(&contacts, Some(&named), purpose, may).map(|contact| contact.id.0.as_u128())
        };
        let any = |_| true;
        assert_eq!(chosen("ann", Recovery, &any), Some(4));
        assert_eq!(chosen("other@example.org", Recovery, &any), Some(3));
        assert_eq!(chosen("+41446681800", Recovery, &any), Some(1));
        assert_eq!(chosen("login@example.org", Recovery, &any), Some(4));
        assert_eq!(chosen("unproven@example.org", Recovery, &any), Some(4));
        assert_eq!(
            chosen("ann", Recovery, &|channel| channel == Channel::Sms),
            Some(1)
        );
        assert_eq!(
            chosen("ann", Login, &|channel| channel == Channel::Email),
            Some(5)
        );
        assert_eq!(chosen("ann", Purpose::Notify, &any), None);
        assert_eq!(choose(&[], None, Recovery, any), None);
    }

    #[test]
    fn a_greeting_is_a_name_and_nothing_to_click_on() {
        for name in [
            "Ann Müller",
            "O’Neil",
            "Jean-Luc",
            "J. R. R. Tolkien",
            "李小龍",
            "Ann.",
        ] {
            assert_eq!(greeting(name), name);
        }
        for no_name in [
            "win at http://evil.example",
            "evil.example",
            "www.evil.example",
            "ann@example.org",
            "<b>Ann</b>",
            "Ann\r\nBcc: x",
            "call 0900 123",
            "Ann\u{202e}gro",
            "Ann\u{200b}",
            &"x".repeat(65),
        ] {
            assert_eq!(greeting(no_name), "", "{no_name}");
        }
    }

    #[test]
    fn what_is_masked_is_recognised_by_its_owner_alone() {
        assert_eq!(masked(&email("Ann.Miller@example.org")), "A…@example.org");
        assert_eq!(masked(&phone()), "+41…800");
    }

    #[test]
    fn waiting_grows_to_its_limit() {
        let waits: Vec<i64> = (1..=11).map(|n| delay_s(n, Uuid::nil())).collect();
        assert_eq!(
            waits,
            [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]
        );
        assert!((3600..=4500).contains(&delay_s(i64::MAX, Uuid::max())));
    }
}

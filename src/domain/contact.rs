//! Where an account can be reached: e-mail addresses, phone numbers, postal addresses.
//!
//! Invariant: a contact has power once it is proven, and not before: an unproven address signs nobody in,
//! brings nobody a new password and keeps nobody else from it. A proven one stays as it is until the value
//! that is to replace it has been proven too.

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use super::{
    challenge,
    email::Email,
    error::{Error, Reason, Result},
    identifier::{self, Identifier},
    name::{AccountId, ContactId},
    phone::Phone,
    postal_address::PostalAddress,
    secret::{self, Digest},
    time::Timestamp,
};

/// Most contacts of one account.
pub const MAX_CONTACTS: i64 = 50;
/// Most characters of a label.
pub const MAX_LABEL: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Email,
    Phone,
    PostalAddress,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Email, Self::Phone, Self::PostalAddress];

    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Phone => "phone",
            Self::PostalAddress => "postal_address",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether a message with a code can prove that it is in somebody's hands.
    pub const fn can_be_proven(self) -> bool {
        matches!(self, Self::Email | Self::Phone)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Email(Email),
    Phone(Phone),
    PostalAddress(PostalAddress),
}

impl Value {
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Email(_) => Kind::Email,
            Self::Phone(_) => Kind::Phone,
            Self::PostalAddress(_) => Kind::PostalAddress,
        }
    }

    /// As stored.
    pub fn text(&self) -> String {
        match self {
            Self::Email(email) => email.as_str().to_owned(),
            Self::Phone(phone) => phone.e164().to_owned(),
            // Text and lists of it cannot fail to serialise.
            Self::PostalAddress(address) => serde_json::to_string(address).unwrap_or_default(),
        }
    }

    /// Reads what [`Value::text`] wrote.
    pub fn from_stored(kind: Kind, text: String) -> Option<Self> {
        Some(match kind {
            Kind::Email => Self::Email(Email::from_stored(text)),
            Kind::Phone => Self::Phone(Phone::from_stored(text)),
            Kind::PostalAddress => Self::PostalAddress(serde_json::from_str(&text).ok()?),
        })
    }

    /// By which it is found; a postal address is not looked up.
    pub fn identifier(&self) -> Option<Identifier> {
        match self {
            Self::Email(email) => {
                let key = email.key().to_owned();
                Some(Identifier::new(identifier::Kind::Email, key))
            }
            Self::Phone(phone) => {
                let key = phone.e164().to_owned();
                Some(Identifier::new(identifier::Kind::Phone, key))
            }
            Self::PostalAddress(_) => None,
        }
    }
}

/// What accountd may use a contact for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// To sign in with.
    Login,
    /// To get back in.
    Recovery,
    /// To be told what happens to the account.
    Notify,
    Billing,
}

impl Purpose {
    /// Whether somebody gets into the account by it.
    pub const fn lets_in(self) -> bool {
        matches!(self, Self::Login | Self::Recovery)
    }
}

/// How it was shown that a contact is in the hands of the account's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A code that accountd sent there.
    SentCode,
    /// A link that accountd sent there.
    SentLink,
    /// A code that a caller brought there.
    ReturnedCode,
    /// Somebody who may say so has said so.
    Asserted,
}

impl Method {
    const ALL: [Self; 4] = [
        Self::SentCode,
        Self::SentLink,
        Self::ReturnedCode,
        Self::Asserted,
    ];

    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SentCode => "sent_code",
            Self::SentLink => "sent_link",
            Self::ReturnedCode => "returned_code",
            Self::Asserted => "asserted",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

/// The record that a contact was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    pub method: Method,
    pub time: Timestamp,
    /// The account that presented it, by name.
    pub by: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    pub id: ContactId,
    pub account: AccountId,
    pub revision: i64,
    pub value: Value,
    pub label: String,
    /// The one of its kind that comes first.
    pub is_primary: bool,
    /// Sorted, each once.
    pub purposes: Vec<Purpose>,
    pub proof: Option<Proof>,
    /// What is to replace the value once it is proven.
    pub pending: Option<Value>,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    Value(Box<Value>),
    Label(String),
    Purposes(Vec<Purpose>),
}

/// The fields that an update may name.
pub const WRITABLE: [&str; 5] = ["email", "phone", "postal_address", "label", "purposes"];

impl Contact {
    pub const fn new(id: ContactId, account: AccountId, value: Value, now: Timestamp) -> Self {
        Self {
            id,
            account,
            revision: 1,
            value,
            label: String::new(),
            is_primary: false,
            purposes: Vec::new(),
            proof: None,
            pending: None,
            create_time: now,
            update_time: now,
        }
    }

    /// The resource name.
    pub fn name(&self) -> String {
        self.account.child("contacts", self.id.0)
    }

    pub const fn kind(&self) -> Kind {
        self.value.kind()
    }

    /// Changes a field. A value that was proven stays until the new one is proven as well.
    pub fn edit(&mut self, edit: Edit) -> Result<()> {
        match edit {
            Edit::Label(label) => self.label = label,
            Edit::Purposes(purposes) => self.purposes = purposes,
            Edit::Value(value) if value.kind() != self.kind() => {
                let text = format!(
                    "cannot be changed to another kind than {}",
                    self.kind().name()
                );
                return Err(Error::field("contact", text));
            }
            Edit::Value(value) if *value == self.value => self.pending = None,
            Edit::Value(value) if self.proof.is_some() => self.pending = Some(*value),
            Edit::Value(value) => self.value = *value,
        }
        Ok(())
    }

    /// To be called once with each stored change.
    pub fn touch(&mut self, now: Timestamp) {
        self.revision += 1;
        self.update_time = now;
    }

    /// What a code would prove now, if anything is left to be proven.
    pub fn unproven(&self) -> Option<&Value> {
        let value = match (&self.pending, &self.proof) {
            (Some(pending), _) => pending,
            (None, None) => &self.value,
            (None, Some(_)) => return None,
        };
        value.kind().can_be_proven().then_some(value)
    }

    /// Refuses unless something is left to be proven.
    pub fn require_unproven(&self) -> Result<&Value> {
        self.unproven().ok_or_else(|| {
            let text = if self.kind().can_be_proven() {
                "is verified already"
            } else {
                "is of a kind that no code can verify"
            };
            Error::precondition(Reason::WrongState, self.name(), text)
        })
    }

    /// Makes what was proven the value.
    pub fn prove(&mut self, proof: Proof) {
        if let Some(pending) = self.pending.take() {
            self.value = pending;
        }
        self.proof = Some(proof);
    }

    pub fn proof_time(&self) -> Option<Timestamp> {
        self.proof.as_ref().map(|proof| proof.time)
    }

    /// Whether accountd may use it for this.
    pub fn serves(&self, purpose: Purpose) -> bool {
        self.proof.is_some() && self.purposes.contains(&purpose)
    }

    /// What its owner signs in with, if that is what it is for and it is proven.
    pub fn identifier(&self) -> Option<Identifier> {
        self.serves(Purpose::Login)
            .then(|| self.value.identifier())
            .flatten()
    }

    /// Whether it may come first of its kind: nobody can be reached at an address that is unproven.
    pub const fn may_be_primary(&self) -> bool {
        self.proof.is_some() || !self.kind().can_be_proven()
    }

    /// Refuses purposes that such a contact of such an account cannot serve.
    pub fn check_purposes(
        account: AccountId,
        kind: Kind,
        purposes: &[Purpose],
    ) -> Result<(), String> {
        if !purposes.iter().any(|purpose| purpose.lets_in()) {
            return Ok(());
        }
        if matches!(account, AccountId::System(_)) {
            return Err(
                "must not hold LOGIN or RECOVERY: programs sign in with credentials".to_owned(),
            );
        }
        if !kind.can_be_proven() {
            return Err("must not hold LOGIN or RECOVERY for a postal address".to_owned());
        }
        Ok(())
    }
}

/// Of an account's contacts those that are believed when two of them take back what the other does, and the
/// rest: whatever was there first, and what has been there since before `settled`.
pub fn believed(contacts: Vec<Contact>, settled: Timestamp) -> (Vec<Contact>, Vec<Contact>) {
    let first = contacts.iter().filter_map(Contact::proof_time).min();
    contacts.into_iter().partition(|contact| {
        let time = contact.proof_time();
        time.is_some() && time == first || time.is_some_and(|time| time <= settled)
    })
}

/// All of a contact that its owner may want back after somebody has changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    kind: String,
    value: String,
    label: String,
    is_primary: bool,
    purposes: Vec<Purpose>,
    proof: Option<(String, i64, String)>,
    create_time: i64,
}

impl Snapshot {
    pub fn of(contact: &Contact) -> Self {
        let proof = contact.proof.as_ref().map(|proof| {
            let Proof { method, time, by } = proof;
            (method.name().to_owned(), time.micros(), by.clone())
        });
        Self {
            kind: contact.kind().name().to_owned(),
            value: contact.value.text(),
            label: contact.label.clone(),
            is_primary: contact.is_primary,
            purposes: contact.purposes.clone(),
            proof,
            create_time: contact.create_time.micros(),
        }
    }

    /// The contact as it was, with nothing left to be proven.
    pub fn contact(self, account: AccountId, id: ContactId, now: Timestamp) -> Option<Contact> {
        let value = Value::from_stored(Kind::parse(&self.kind)?, self.value)?;
        let proof = match self.proof {
            None => None,
            Some((method, time, by)) => Some(Proof {
                method: Method::parse(&method)?,
                time: Timestamp::from_micros(time),
                by,
            }),
        };
        Some(Contact {
            label: self.label,
            is_primary: self.is_primary,
            purposes: self.purposes,
            proof,
            create_time: Timestamp::from_micros(self.create_time),
            ..Contact::new(id, account, value, now)
        })
    }
}

/// What is stored of a code: keyed, and of one value of one contact only.
pub fn code_digest(typed: &str, contact: &Contact, value: &Value, key: &hmac::Key) -> Digest {
    let identifier = value.identifier().map(|it| it.key).unwrap_or_default();
    let context = format!("contact code\0{}\0{identifier}", contact.name());
    challenge::code_digest(typed, &secret::sha256(context.as_bytes()), key)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::name::{SystemAccountId, UserId};

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn email(text: &str) -> Value {
        Value::Email(Email::parse(text).expect(text))
    }

    fn contact(value: Value) -> Contact {
        let account = UserId(Uuid::from_u128(1)).into();
        Contact::new(ContactId(Uuid::from_u128(2)), account, value, NOW)
    }

    fn change(value: &Value) -> Edit {
        Edit::Value(Box::new(value.clone()))
    }

    fn proof() -> Proof {
        Proof {
            method: Method::SentCode,
            time: NOW,
            by: String::new(),
        }
    }

    #[test]
    fn what_is_proven_stays_until_its_replacement_is_proven() {
        let (old, new) = (email("old@example.org"), email("new@example.org"));
        let mut contact = contact(email("typo@example.org"));
        contact.edit(change(&old)).expect("the same kind");
        assert_eq!(contact.unproven(), Some(&old), "nothing to keep");
        contact.prove(proof());
        assert_eq!(contact.unproven(), None);
        contact.edit(change(&new)).expect("the same kind");
        assert_eq!((&contact.value, contact.unproven()), (&old, Some(&new)));
        contact.edit(change(&old)).expect("the same kind");
        assert_eq!(contact.pending, None, "thought better of it");
        contact.edit(change(&new)).expect("the same kind");
        contact.prove(proof());
        assert_eq!((&contact.value, &contact.pending), (&new, &None));
        let phone = Value::Phone(Phone::parse("+41446681800").expect("a number"));
        assert!(contact.edit(change(&phone)).is_err());
    }

    #[test]
    fn only_what_is_proven_has_power() {
        let mut contact = contact(email("Ann@example.org"));
        contact.purposes = vec![Purpose::Login, Purpose::Recovery];
        assert_eq!(contact.identifier(), None);
        assert!(!contact.serves(Purpose::Recovery) && !contact.may_be_primary());
        contact.prove(proof());
        assert_eq!(contact.identifier().expect("proven").key, "ann@example.org");
        assert!(contact.serves(Purpose::Recovery) && contact.may_be_primary());
        contact.purposes = vec![Purpose::Notify];
        assert_eq!(contact.identifier(), None);
    }

    #[test]
    fn who_was_there_first_is_believed_and_in_time_all_the_others() {
        let proven = |seconds: i64| {
            let mut contact = contact(email(&format!("ann{seconds}@example.org")));
            contact.prove(Proof {
                time: NOW.plus_s(seconds),
                ..proof()
            });
            contact
        };
        let unproven = contact(email("nobody@example.org"));
        let all = vec![proven(5), unproven, proven(1), proven(9)];
        let times = |settled: i64| {
            let (believed, rest) = believed(all.clone(), NOW.plus_s(settled));
            assert_eq!(believed.len() + rest.len(), all.len());
            let times = believed.iter().filter_map(Contact::proof_time);
            times
                .map(|time| time.seconds() - NOW.seconds())
                .collect::<Vec<_>>()
        };
        assert_eq!(times(0), [1]);
        assert_eq!(times(5), [5, 1]);
        assert_eq!(times(9), [5, 1, 9]);
        assert_eq!(believed(vec![], NOW), (vec![], vec![]));
    }

    #[test]
    fn purposes_fit_the_account_and_the_kind() {
        let user = UserId(Uuid::from_u128(1)).into();
        let program = SystemAccountId(Uuid::from_u128(1)).into();
        let is_good =
            |account, kind, purpose| Contact::check_purposes(account, kind, &[purpose]).is_ok();
        assert!(is_good(user, Kind::Phone, Purpose::Login));
        assert!(!is_good(user, Kind::PostalAddress, Purpose::Recovery));
        assert!(is_good(user, Kind::PostalAddress, Purpose::Billing));
        assert!(!is_good(program, Kind::Email, Purpose::Login));
        assert!(is_good(program, Kind::Email, Purpose::Notify));
    }

    #[test]
    fn a_code_is_of_one_value_of_one_contact() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let one = contact(email("ann@example.org"));
        let other = Contact {
            id: ContactId(Uuid::from_u128(3)),
            ..one.clone()
        };
        let digest =
            |contact: &Contact, value: &Value| code_digest("12345678", contact, value, &key);
        let same = email("ANN@example.org");
        assert_eq!(digest(&one, &one.value), digest(&one, &same));
        assert_ne!(digest(&one, &one.value), digest(&other, &one.value));
        assert_ne!(
            digest(&one, &one.value),
            digest(&one, &email("bob@example.org"))
        );
    }

    #[test]
    fn values_survive_the_store() {
        let address = PostalAddress {
            region_code: "CH".to_owned(),
            ..PostalAddress::default()
        };
        for value in [
            email("Ann@example.org"),
            Value::Phone(Phone::parse("+41446681800").expect("a number")),
            Value::PostalAddress(address),
        ] {
            let mut contact = contact(value.clone());
            contact.prove(proof());
            let again = Snapshot::of(&contact).contact(contact.account, contact.id, NOW);
            assert_eq!(again, Some(contact));
            assert_eq!(Value::from_stored(value.kind(), value.text()), Some(value));
        }
    }
}

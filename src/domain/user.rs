//! A person's account.

use std::collections::BTreeMap;

use super::{
    account::Lifecycle, identifier::Identifier, name::UserId, text, time::Timestamp,
    username::Username,
};

/// Most external ids of one user.
pub const MAX_EXTERNAL_IDS: usize = 16;
/// Most bytes of JSON in `attributes`, and in `admin_attributes`.
pub const MAX_ATTRIBUTES_BYTES: usize = 16 * 1024;
/// Deepest nesting of objects and lists in attributes.
pub const MAX_ATTRIBUTES_DEPTH: usize = 8;
/// Most characters of each of the three names.
pub const MAX_NAME: usize = 200;
/// Most characters of the reason of a suspension or a grant.
pub const MAX_REASON: usize = 1000;

#[derive(Clone, Debug)]
pub struct User {
    pub id: UserId,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub lifecycle: Lifecycle,
    pub profile: Profile,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    pub last_sign_in_time: Option<Timestamp>,
    /// Of the contacts, those that come first: an address as written, a number in E.164.
    pub primary_email: Option<String>,
    pub primary_phone: Option<String>,
}

/// What is known about the person; all of it optional.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    pub username: Option<Username>,
    pub display_name: String,
    pub given_name: String,
    pub family_name: String,
    /// Canonical BCP 47, or empty.
    pub language_code: String,
    /// An IANA name, or empty.
    pub time_zone: String,
    /// Source to id.
    pub external_ids: BTreeMap<String, String>,
    /// A JSON object, or empty.
    pub attributes: String,
    /// A JSON object, or empty.
    pub admin_attributes: String,
}

/// A name that people are searched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    Display,
    Given,
    Family,
}

impl NameKind {
    pub const ALL: [Self; 3] = [Self::Display, Self::Given, Self::Family];

    /// As stored, and as fields and filters call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Display => "display_name",
            Self::Given => "given_name",
            Self::Family => "family_name",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    Username(Option<Username>),
    DisplayName(String),
    GivenName(String),
    FamilyName(String),
    LanguageCode(String),
    TimeZone(String),
    ExternalIds(BTreeMap<String, String>),
    Attributes(String),
    AdminAttributes(String),
    ExpireTime(Option<Timestamp>),
}

/// The fields that an update may name, and whether the user itself may change them.
pub const WRITABLE: [(&str, bool); 10] = [
    ("username", false),
    ("display_name", true),
    ("given_name", true),
    ("family_name", true),
    ("language_code", true),
    ("time_zone", true),
    ("external_ids", false),
    ("attributes", true),
    ("admin_attributes", false),
    ("expire_time", false),
];

impl User {
    pub fn new(id: UserId, now: Timestamp) -> Self {
        Self {
            id,
            revision: 1,
            lifecycle: Lifecycle::default(),
            profile: Profile::default(),
            create_time: now,
            update_time: now,
            last_sign_in_time: None,
            primary_email: None,
            primary_phone: None,
        }
    }

    pub fn edit(&mut self, edit: Edit) {
        let profile = &mut self.profile;
        match edit {
            Edit::Username(username) => profile.username = username,
            Edit::DisplayName(text) => profile.display_name = text,
            Edit::GivenName(text) => profile.given_name = text,
            Edit::FamilyName(text) => profile.family_name = text,
            Edit::LanguageCode(tag) => profile.language_code = tag,
            Edit::TimeZone(name) => profile.time_zone = name,
            Edit::ExternalIds(ids) => profile.external_ids = ids,
            Edit::Attributes(json) => profile.attributes = json,
            Edit::AdminAttributes(json) => profile.admin_attributes = json,
            Edit::ExpireTime(time) => self.lifecycle.expire_time = time,
        }
    }

    /// The words that a password must not be made of.
    pub fn own_words(&self) -> Vec<&str> {
        let profile = &self.profile;
        let username = profile.username.as_ref().map(Username::as_str);
        let names = [
            &profile.display_name,
            &profile.given_name,
            &profile.family_name,
        ];
        let external = profile.external_ids.values();
        let email = self.primary_email.as_deref();
        let mailbox = email.and_then(|email| email.split('@').next());
        let short = username.into_iter().chain(email).chain(mailbox);
        short
            .chain(names.into_iter().chain(external).map(String::as_str))
            .collect()
    }

    /// To be called once with each stored change.
    pub fn touch(&mut self, now: Timestamp) {
        self.revision += 1;
        self.update_time = now;
    }
}

impl Profile {
    /// A name as it is searched for; empty for none.
    pub fn name_key(&self, kind: NameKind) -> String {
        text::name_key(match kind {
            NameKind::Display => &self.display_name,
            NameKind::Given => &self.given_name,
            NameKind::Family => &self.family_name,
        })
    }

    /// What the person is found by, but for contacts.
    pub fn identifiers(&self) -> Vec<Identifier> {
        let username = self.username.iter().flat_map(Username::identifiers);
        let external = self.external_ids.iter();
        let external = external.map(|(source, id)| Identifier::external(source, id));
        username.chain(external).collect()
    }
}

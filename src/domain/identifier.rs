//! What somebody types to say who they are, told apart: a username, an e-mail address, a phone number.
//!
//! Invariant: what can be read as one kind can be read as no other, so one text names one account at
//! most. An address or number is an identifier once its owner has proven it, and not before.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization as _;

use super::{email::Email, phone::Phone, username};

/// Longest identifier that is looked at, in characters; an e-mail address has at most 254.
pub const MAX_IDENTIFIER: usize = 254;

/// Most bytes of what somebody types for one.
pub const MAX_IDENTIFIER_BYTES: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Username,
    /// What a username looks like: taken with it, so that nobody else gets one that could be mistaken
    /// for it, and typed by nobody.
    UsernameLook,
    Email,
    Phone,
    /// An id in another system, with its source.
    ExternalId,
}

impl Kind {
    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Username => "username",
            Self::UsernameLook => "username_look",
            Self::Email => "email",
            Self::Phone => "phone",
            Self::ExternalId => "external_id",
        }
    }
}

/// A kind and the canonical form by which it is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identifier {
    pub kind: Kind,
    pub key: String,
}

impl Identifier {
    pub const fn new(kind: Kind, key: String) -> Self {
        Self { kind, key }
    }

    /// What somebody typed would be found under; `None` if it cannot be anybody's.
    pub fn typed(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.chars().count() > MAX_IDENTIFIER {
            return None;
        }
        // Whatever width it was typed in.
        let plain: String = text.nfkc().collect();
        if plain.contains('@') {
            let email = Email::parse(&plain).ok()?;
            return Some(Self::new(Kind::Email, email.key().to_owned()));
        }
        if plain.starts_with('+') {
            let phone = Phone::parse(&plain).ok()?;
            return Some(Self::new(Kind::Phone, phone.e164().to_owned()));
        }
        username::key(text).map(|key| Self::new(Kind::Username, key))
    }

    /// An id in another system; the source cannot contain the separator.
    pub fn external(source: &str, id: &str) -> Self {
        Self::new(Kind::ExternalId, format!("{source}:{id}"))
    }
}

/// The canonical form of what somebody typed; what is nobody's as it was typed.
pub fn canonical(typed: &str) -> String {
    Identifier::typed(typed).map_or_else(|| typed.to_owned(), |identifier| identifier.key)
}

/// The source of an id in another system, `[a-z0-9._-]{1,64}`.
pub fn external_source(source: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if (1..=64).contains(&source.len()) && source.bytes().all(plain) {
        return Ok(source.to_owned());
    }
    Err("must be 1 to 64 of the characters a-z, 0-9, `.`, `_` and `-`".to_owned())
}

/// An id in another system, compared exactly.
pub fn external_id(id: &str) -> Result<String, String> {
    super::text::required_line(id, 255)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::username::Username;

    #[test]
    fn what_is_typed_says_what_it_is() {
        let typed = |text| Identifier::typed(text).map(|it| (it.kind, it.key));
        let is = |kind, key: &str| Some((kind, key.to_owned()));
        assert_eq!(typed("Alice"), is(Kind::Username, "alice"));
        assert_eq!(typed(" Alice "), is(Kind::Username, "alice"));
        assert_eq!(typed("Ann@Example.org"), is(Kind::Email, "ann@example.org"));
        assert_eq!(typed("+41 44 668 18 00"), is(Kind::Phone, "+41446681800"));
        assert_eq!(typed("ＡＮＮ＠example.org"), typed("ann@example.org"));
        assert_eq!(typed("＋４１446681800"), typed("+41446681800"));
        for nobody in ["", "ann@", "+41", "a b", &"x".repeat(300)] {
            assert_eq!(typed(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn no_username_can_be_read_as_something_else() {
        for text in ["ann@example.org", "+41446681800", "+ann"] {
            assert!(Username::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_canonical_form_is_its_own() {
        let is_stable = |text: &str| {
            let once = canonical(text);
            assert_eq!(canonical(&once), once, "{text}");
        };
        for text in ["Alice", "Ann@Example.org", "+41 44 668 18 00", "no one's"] {
            is_stable(text);
        }
        for c in '\0'..=char::MAX {
            is_stable(&format!("{c}41446681800"));
            is_stable(&format!("ann{c}bücher.example"));
        }
    }
}

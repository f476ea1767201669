//! What a person types to say who they are, and the canonical form in which it is compared.
//!
//! Invariant: the canonical form of a canonical form is itself, so two spellings are equal exactly
//! when their keys are.

use precis_profiles::{UsernameCaseMapped, precis_core::profile::PrecisFastInvocation};
use unicode_security::MixedScript;

/// A name to sign in with (RFC 8265 section 3.3), as written and as compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username {
    text: String,
    key: String,
}

/// Longest identifier that is looked at, in characters; an e-mail address has at most 254.
pub const MAX_IDENTIFIER: usize = 254;

const MAX_USERNAME: usize = 64;

/// Characters with a meaning of their own in e-mail addresses, resource names and filters.
const RESERVED: [char; 4] = ['@', '/', ':', '*'];

impl Username {
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.chars().count() > MAX_USERNAME || text.contains(RESERVED) {
            return Err(format!(
                "must be 1 to {MAX_USERNAME} characters without `@`, `/`, `:` and `*`"
            ));
        }
        let key = key(text)
            .ok_or("must be letters, digits and punctuation as RFC 8265 allows in usernames")?;
        if !key.is_single_script() {
            return Err("must not mix scripts whose letters look alike".to_owned());
        }
        if key.chars().count() > MAX_USERNAME {
            return Err(format!("must be 1 to {MAX_USERNAME} characters"));
        }
        Ok(Self {
            text: text.to_owned(),
            key,
        })
    }

    /// For names read back from the store.
    pub fn from_stored(text: String, key: String) -> Self {
        Self { text, key }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn key(&self) -> &str {
        &self.key
    }
}

/// The key under which what somebody typed would be found; `None` if it cannot be anybody's.
pub fn key(typed: &str) -> Option<String> {
    if typed.chars().count() > MAX_IDENTIFIER {
        return None;
    }
    let key = UsernameCaseMapped::enforce(typed).ok()?.into_owned();
    let stable = UsernameCaseMapped::enforce(key.as_str()).is_ok_and(|again| again == key);
    (stable && !key.is_empty()).then_some(key)
}

/// A prefix of usernames as compared, for searches: folded as far as a part of a name can be.
pub fn prefix_key(typed: &str) -> Option<String> {
    if typed.is_empty() {
        Some(String::new())
    } else {
        key(typed)
    }
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

/// The key of an external id; the source cannot contain the separator.
pub fn external_key(source: &str, id: &str) -> String {
    format!("{source}:{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name_share_a_key() {
        let key = |text| Username::parse(text).expect(text).key().to_owned();
        assert_eq!(key("Alice"), "alice");
        assert_eq!(key("ＡＬＩＣＥ"), "alice");
        assert_eq!(key("JÜRGEN"), key("ju\u{308}rgen"));
        assert_eq!(Username::parse("Alice").expect("plain").as_str(), "Alice");
    }

    #[test]
    fn what_could_be_mistaken_for_something_else_is_refused() {
        let long = "a".repeat(65);
        for bad in [
            "",
            " ",
            "a b",
            "a@b",
            "a/b",
            "a:b",
            "a*",
            "\u{0}",
            "r\u{0430}ypal",
            "☃",
            &long,
        ] {
            assert!(Username::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_its_own_key() {
        let mut checked = 0;
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            if let Some(once) = key(&c.to_string()) {
                assert_eq!(key(&once).as_deref(), Some(once.as_str()), "{c:?}");
                checked += 1;
            }
        }
        assert!(checked > 90_000, "{checked} characters are allowed");
    }
}

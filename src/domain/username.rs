//! Names to sign in with (RFC 8265 section 3.3), and the canonical form in which they are compared.
//!
//! Invariant: the canonical form of a canonical form is itself, so two spellings are equal exactly
//! when their keys are. Of names that look alike one person has one.

use std::{collections::BTreeSet, sync::LazyLock};

use precis_profiles::{UsernameCaseMapped, precis_core::profile::PrecisFastInvocation};
use unicode_security::{MixedScript, skeleton};

use super::{
    identifier::{Identifier, Kind, MAX_IDENTIFIER},
    text,
};

/// A name as written and as compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username {
    text: String,
    key: String,
}

const MAX_USERNAME: usize = 64;

/// Characters with a meaning of their own in e-mail addresses, resource names and filters.
const FORBIDDEN: [char; 4] = ['@', '/', ':', '*'];

/// Names that people take for those of the service itself (RFC 2142 among others).
pub const RESERVED: [&str; 36] = [
    "abuse",
    "accountd",
    "accounts",
    "admin",
    "administrator",
    "anonymous",
    "billing",
    "bootstrap",
    "contact",
    "daemon",
    "everyone",
    "guest",
    "help",
    "hostmaster",
    "info",
    "mailer-daemon",
    "me",
    "moderator",
    "nobody",
    "no-reply",
    "noreply",
    "null",
    "official",
    "operator",
    "owner",
    "postmaster",
    "privacy",
    "root",
    "security",
    "staff",
    "support",
    "sysadmin",
    "system",
    "undefined",
    "webmaster",
    "www",
];

impl Username {
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.chars().count() > MAX_USERNAME || text.contains(FORBIDDEN) || text.starts_with('+')
        {
            return Err(format!(
                "must be 1 to {MAX_USERNAME} characters without `@`, `/`, `:` and `*`, and not begin with `+`"
            ));
        }
        let key = key(text)
            .ok_or("must be letters, digits and punctuation as RFC 8265 allows in usernames")?;
        if key.contains(FORBIDDEN) || key.starts_with('+') {
            return Err("must not contain what stands for `@`, `/`, `:`, `*` or `+`".to_owned());
        }
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

    /// What it is found by, and what it looks like, as it is written and as it is compared, which is taken
    /// with it.
    pub fn identifiers(&self) -> Vec<Identifier> {
        let username = Identifier::new(Kind::Username, self.key.clone());
        let looks = BTreeSet::from([look(&self.text), look(&self.key)]);
        let looks = looks.into_iter();
        let looks = looks.map(|look| Identifier::new(Kind::UsernameLook, look));
        [username].into_iter().chain(looks).collect()
    }

    /// Whether it is, or looks like, one of the names in [`RESERVED`].
    pub fn is_reserved(&self) -> bool {
        static LOOKS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
            let looks = |name: &str| [look(name), look(&name.to_uppercase()), look(&title(name))];
            RESERVED.iter().copied().flat_map(looks).collect()
        });
        LOOKS.contains(&look(&self.text)) || LOOKS.contains(&look(&self.key))
    }
}

/// What letters look like (UTS 39 section 4), whatever their case: to the eye `I` is `l`, which `i` is not, so
/// what stands there is looked at before its case is forgotten, and after.
fn look(text: &str) -> String {
    let plain: String = skeleton(text).collect();
    skeleton(&text::fold(&plain)).collect()
}

/// With a capital at the beginning.
fn title(name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(letters).collect()
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
            "+a",
            "ann＠example.org",
            "＋41446681800",
            "a／b",
            "\u{0}",
            "r\u{0430}ypal",
            "☃",
            &long,
        ] {
            assert!(Username::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_that_look_alike_share_a_look() {
        let look = |text| {
            let identifiers = Username::parse(text).expect(text).identifiers();
            identifiers
                .into_iter()
                .skip(1)
                .map(|it| it.key)
                .collect::<BTreeSet<_>>()
        };
        for (one, other) in [
            ("paypal", "paypa1"),
            ("paypal", "paypaI"),
            ("PayPal", "paypaI"),
            ("Martin", "rnartin"),
            ("google", "G00GLE"),
            ("google", "g00gle"),
        ] {
            assert!(!look(one).is_disjoint(&look(other)), "{one} and {other}");
        }
        for (one, other) in [("alice", "alicia"), ("ali", "all"), ("Mia", "Mla")] {
            assert!(look(one).is_disjoint(&look(other)), "{one} and {other}");
        }
        let is_reserved = |text| Username::parse(text).expect(text).is_reserved();
        for name in [
            "Admin", "adrnin", "ROOT", "ADMlN", "SUPP0RT", "R00t", "r00t", "officiaI",
        ] {
            assert!(is_reserved(name), "{name}");
        }
        assert!(!is_reserved("adam") && !is_reserved("rooted"));
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

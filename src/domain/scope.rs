//! Scopes: what a downstream system lets somebody do, under a name that is that system's own.
//!
//! A scope that is granted for some resources only is a scope of its own, `{scope}@{resource}`: whoever asks for the
//! plain one does not find it, so nobody takes less for more.
//!
//! Invariant: a scope has one resource name, so that names can be compared as text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::LazyLock,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::{
    access::{POLICIES, Reach},
    time::Timestamp,
    token::{self, OWN_AUDIENCE},
};

/// Most scopes in the catalogue.
pub const MAX_SCOPES: i64 = 10_000;
/// Most characters of a description.
pub const MAX_DESCRIPTION: usize = 1000;
/// Most entries of `grantable_by`.
pub const MAX_GRANTABLE_BY: usize = 50;

/// A scope and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ScopeName {
    pub audience: String,
    pub scope: String,
}

/// What an audience is written with in a name; a scope may contain `:` besides.
const IN_AUDIENCE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const IN_SCOPE: &AsciiSet = &IN_AUDIENCE.remove(b':');

impl ScopeName {
    /// A scope of audience `accountd`.
    pub fn own(scope: &str) -> Self {
        Self {
            audience: OWN_AUDIENCE.to_owned(),
            scope: scope.to_owned(),
        }
    }

    /// Reads `scopes/{audience}:{scope}`.
    pub fn parse(name: &str) -> Option<Self> {
        let (audience, scope) = name.strip_prefix("scopes/")?.split_once(':')?;
        let decoded = |text| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
        let parsed = Self {
            audience: token::audience(&decoded(audience)?).ok()?,
            scope: decoded(scope).filter(|scope| is_scope(scope))?,
        };
        // An empty audience would be read as our own.
        (parsed.to_string() == name).then_some(parsed)
    }

    /// Whether accountd acts on it.
    pub fn is_own(&self) -> bool {
        self.audience == OWN_AUDIENCE
    }

    /// The same for one resource and what is below it.
    pub fn limited_to(&self, resource: &str) -> Self {
        Self {
            audience: self.audience.clone(),
            scope: format!("{}@{resource}", self.scope),
        }
    }

    /// The same for everything.
    pub fn unlimited(&self) -> Self {
        Self {
            audience: self.audience.clone(),
            scope: split(&self.scope).0.to_owned(),
        }
    }

    /// What it is for, if it is for some resources only.
    pub fn resource(&self) -> Option<&str> {
        split(&self.scope).1
    }

    /// Whether who has this has the other, too.
    pub fn covers(&self, other: &Self) -> bool {
        self.audience == other.audience && covers(&self.scope, &other.scope)
    }
}

impl fmt::Display for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let audience = utf8_percent_encode(&self.audience, IN_AUDIENCE);
        let scope = utf8_percent_encode(&self.scope, IN_SCOPE);
        write!(f, "scopes/{audience}:{scope}")
    }
}

/// A scope and the resource that it is for, if it is not for all.
pub fn split(scope: &str) -> (&str, Option<&str>) {
    match scope.split_once('@') {
        Some((scope, resource)) => (scope, Some(resource)),
        None => (scope, None),
    }
}

/// Whether who has `wide` has `narrow`, too, both of one audience: the same, for all, or for a resource above.
pub fn covers(wide: &str, narrow: &str) -> bool {
    let ((wide, above), (narrow, below)) = (split(wide), split(narrow));
    wide == narrow
        && match (above, below) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(above), Some(below)) => {
                let rest = below.strip_prefix(above);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
}

/// Whether a list of scopes that limits, if it is not empty, lets one through.
pub fn is_within(scope: &str, ceiling: &[String]) -> bool {
    ceiling.is_empty() || ceiling.iter().any(|above| covers(above, scope))
}

/// Whether one list that limits lets through something that another does not.
pub fn is_wider(ceiling: &[String], than: &[String]) -> bool {
    let is_above = |scope: &String| !is_within(scope, than);
    !than.is_empty() && (ceiling.is_empty() || ceiling.iter().any(is_above))
}

/// A scope as requests may write it (RFC 6749 section 3.3): visible characters without `"` and `\`, 1 to 128 of
/// them, with an `@` and the resource that it is for 1 to 128 more.
pub fn parse(text: &str) -> Result<String, String> {
    let (scope, resource) = split(text);
    let is_good = is_scope(scope) && resource.is_none_or(|it| parse_resource(it).is_ok());
    let expected = || {
        "must be scopes: 1 to 128 visible ASCII characters each, or as many, `@` and a resource"
            .to_owned()
    };
    is_good.then(|| text.to_owned()).ok_or_else(expected)
}

fn is_scope(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_graphic() && !b"\"\\@".contains(&b);
    (1..=128).contains(&text.len()) && text.bytes().all(allowed)
}

/// What a scope may be limited to: names of 1 or more characters with `/` between them, 128 characters in all.
pub fn parse_resource(text: &str) -> Result<String, String> {
    let is_name = |name: &str| !name.is_empty() && is_scope(name);
    if text.len() <= 128 && text.split('/').all(is_name) {
        return Ok(text.to_owned());
    }
    Err("must be like warehouses/7: 1 to 128 visible ASCII characters, none of them `@`".to_owned())
}

/// A scope of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub name: ScopeName,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub description: String,
    /// Has to be earned by how somebody has shown who they are.
    pub is_sensitive: bool,
    /// Names of those who may grant it without holding it; when empty, whoever maintains the catalogue.
    pub grantable_by: Vec<String>,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    Description(String),
    Sensitive(bool),
    GrantableBy(Vec<String>),
}

/// The fields that an update may name.
pub const WRITABLE: [&str; 3] = ["description", "sensitive", "grantable_by"];

impl Scope {
    pub const fn new(name: ScopeName, now: Timestamp) -> Self {
        Self {
            name,
            revision: 1,
            description: String::new(),
            is_sensitive: false,
            grantable_by: Vec::new(),
            create_time: now,
            update_time: now,
        }
    }

    /// One of audience `accountd`, which is there by itself.
    pub fn built_in(scope: &str) -> Self {
        let rpcs = POLICIES.iter().filter(|policy| {
            let named = policy.scopes.iter().chain(policy.field_scopes);
            named.into_iter().any(|named| *named == scope)
        });
        let rpcs: Vec<&str> = rpcs
            .filter_map(|policy| policy.rpc.rsplit_once('.').map(|(_, rpc)| rpc))
            .collect();
        Self {
            description: format!("For {}.", rpcs.join(", ")),
            ..Self::new(ScopeName::own(scope), Timestamp::EPOCH)
        }
    }

    /// Until when somebody may grant it without holding it who goes by these names, each until some time: where none is
    /// given, who maintains the catalogue. Never one of our own, which give power here.
    pub fn grantable_until(
        &self,
        names: &BTreeMap<String, Timestamp>,
        maintains_catalogue: Option<Timestamp>,
    ) -> Option<Timestamp> {
        match self.grantable_by.as_slice() {
            _ if self.name.is_own() => None,
            [] => maintains_catalogue,
            granters => granters
                .iter()
                .filter_map(|name| names.get(name))
                .copied()
                .max(),
        }
    }

    pub fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::Description(text) => self.description = text,
            Edit::Sensitive(is_sensitive) => self.is_sensitive = is_sensitive,
            Edit::GrantableBy(names) => self.grantable_by = names,
        }
    }

    /// To be called once with each stored change.
    pub fn touch(&mut self, now: Timestamp) {
        self.revision += 1;
        self.update_time = now;
    }
}

/// The scopes of audience `accountd` that can be granted for one group: those that some RPC asks for which can tell
/// the account or group it is about.
pub fn limitable() -> &'static BTreeSet<&'static str> {
    static SCOPES: LazyLock<BTreeSet<&'static str>> = LazyLock::new(|| {
        let reaching = POLICIES.iter().filter(|policy| policy.reach != Reach::All);
        // What asks for one of several asks for the one of frontends, too, which is for everybody.
        let alone = reaching.filter_map(|policy| match policy.scopes {
            [scope] => Some(*scope),
            _ => None,
        });
        alone.collect()
    });
    &SCOPES
}

/// Every scope of audience `accountd`, sorted: those that the policies of the RPCs name.
pub fn built_in() -> &'static [&'static str] {
    static SCOPES: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
        let named = POLICIES
            .iter()
            .flat_map(|policy| policy.scopes.iter().chain(policy.field_scopes));
        named
            .copied()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    });
    &SCOPES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ceiling_is_wider_than_another() {
        let list = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        for (ceiling, than, expected) in [
            ("a", "a b", false),
            ("a@x", "a", false),
            ("", "", false),
            ("a", "", false),
            ("", "a", true),
            ("a c", "a b", true),
            ("a", "a@x", true),
        ] {
            let found = is_wider(&list(ceiling), &list(than));
            assert_eq!(found, expected, "{ceiling:?} {than:?}");
        }
    }

    #[test]
    fn a_scope_has_one_name() {
        for (audience, scope, name) in [
            ("accountd", "users.read", "scopes/accountd:users.read"),
            ("shop", "read:orders", "scopes/shop:read:orders"),
            (
                "https://shop.example/v1",
                "orders/read",
                "scopes/https%3A%2F%2Fshop.example%2Fv1:orders%2Fread",
            ),
            ("a~b_c-d", "100%", "scopes/a~b_c-d:100%25"),
        ] {
            let parsed = ScopeName::parse(name).expect(name);
            assert_eq!((&*parsed.audience, &*parsed.scope), (audience, scope));
            assert_eq!(parsed.to_string(), name);
        }
        for bad in [
            "scopes/shop",
            "scopes/:read",
            "scopes/shop:",
            "scopes/shop:a b",
            "scopes/shop:a%20b",
            "scopes/shop:%6frders",
            "scopes/shop:a%2fb",
            "scopes/shop:%ff",
            "scopes/https://shop.example:read",
            "shop:read",
            "scopes/sh\u{f6}p:read",
        ] {
            assert_eq!(ScopeName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_catalogue_says_who_grants_what_they_do_not_hold() {
        let name = ScopeName::parse("scopes/shop:refund").expect("a name");
        let mut scope = Scope::new(name, Timestamp::EPOCH);
        let at = Timestamp::from_seconds;
        let names = [("users/ann", Timestamp::MAX), ("roles/shop-owner", at(9))];
        let ann = BTreeMap::from(names.map(|(name, end)| (name.to_owned(), end)));
        let until =
            |scope: &Scope, maintains: bool| scope.grantable_until(&ann, maintains.then(|| at(5)));
        let may = |scope: &Scope, maintains| until(scope, maintains).is_some();
        assert_eq!(until(&scope, true), Some(at(5)));
        assert!(may(&scope, true) && !may(&scope, false));
        for (names, by_ann) in [
            (["users/ann", "roles/x"], true),
            (["users/bob", "roles/shop-owner"], true),
            (["users/bob", "roles/shop"], false),
        ] {
            scope.edit(Edit::GrantableBy(names.map(str::to_owned).to_vec()));
            assert_eq!(
                (may(&scope, true), may(&scope, false)),
                (by_ann, by_ann),
                "{names:?}"
            );
        }
        assert!(!may(&Scope::built_in("users.read"), true));
        scope.edit(Edit::GrantableBy(vec!["roles/shop-owner".to_owned()]));
        assert_eq!(until(&scope, true), Some(at(9)), "as long as the role");
    }

    #[test]
    fn built_in_scopes_say_what_they_are_for() {
        let scope = Scope::built_in("users.suspend");
        assert!(
            scope.description.contains("UserService/SuspendUser"),
            "{}",
            scope.description
        );
        assert!(scope.name.is_own());
        assert!(built_in().contains(&"users.suspend"));
    }
}

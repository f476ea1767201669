//! Scopes: what a downstream system lets somebody do, under a name that is that system's own.
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
    access::POLICIES,
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
            scope: parse(&decoded(scope)?).ok()?,
        };
        // An empty audience would be read as our own.
        (parsed.to_string() == name).then_some(parsed)
    }

    /// Whether accountd acts on it.
    pub fn is_own(&self) -> bool {
        self.audience == OWN_AUDIENCE
    }
}

impl fmt::Display for ScopeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let audience = utf8_percent_encode(&self.audience, IN_AUDIENCE);
        let scope = utf8_percent_encode(&self.scope, IN_SCOPE);
        write!(f, "scopes/{audience}:{scope}")
    }
}

/// A scope as requests may write it (RFC 6749 section 3.3): 1 to 128 visible characters without
/// `"` and `\`.
pub fn parse(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
    if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("must be scopes: 1 to 128 visible ASCII characters each".to_owned())
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

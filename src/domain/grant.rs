//! Who may hold which scopes, and when.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    name::{AccountId, GrantId},
    role,
    scope::ScopeName,
    time::{self, Timestamp},
};

/// Most grants of one principal.
pub const MAX_GRANTS: usize = 1000;

#[derive(Clone, Debug)]
pub struct Grant {
    pub id: GrantId,
    pub principal: AccountId,
    pub permission: Permission,
    pub reason: String,
    /// The resource name of whoever granted it, or `accountd`.
    pub granted_by: String,
    pub create_time: Timestamp,
    pub start_time: Option<Timestamp>,
    pub expire_time: Option<Timestamp>,
}

/// What is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// A role, without `roles/`.
    Role(String),
    Scope(ScopeName),
}

impl Permission {
    /// The resource name: `roles/operator` or `scopes/accountd:users.read`.
    pub fn name(&self) -> String {
        match self {
            Self::Role(role) => format!("roles/{role}"),
            Self::Scope(scope) => scope.to_string(),
        }
    }

    /// Reads the resource name of a role or scope, whether or not there is one.
    pub fn parse(name: &str) -> Option<Self> {
        match role::parse_name(name) {
            Some(role) => Some(Self::Role(role.to_owned())),
            None => ScopeName::parse(name).map(Self::Scope),
        }
    }
}

impl Grant {
    pub fn name(&self) -> String {
        format!("grants/{}", self.id.0)
    }

    pub fn is_in_effect(&self, now: Timestamp) -> bool {
        time::has_passed(Some(self.start_time.unwrap_or(now)), now)
            && !time::has_passed(self.expire_time, now)
    }
}

/// All that is granted to a principal, with what the roles among it come to.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    pub grants: Vec<Grant>,
    /// The scopes of those roles that are not built in.
    pub roles: BTreeMap<String, BTreeSet<ScopeName>>,
}

/// What a principal holds of one audience now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Sorted.
    pub scopes: Vec<String>,
    /// When the first of the grants behind them ends.
    pub end_time: Option<Timestamp>,
    /// What was granted, and how many bytes its scopes take in a token: the most first.
    pub sources: Vec<(String, usize)>,
}

impl Holdings {
    /// The scopes that a grant is of.
    fn scopes(&self, grant: &Grant) -> Vec<ScopeName> {
        match &grant.permission {
            Permission::Scope(scope) => vec![scope.clone()],
            Permission::Role(role) => match role::built_in(role) {
                Some(scopes) => scopes.iter().map(|scope| ScopeName::own(scope)).collect(),
                None => self
                    .roles
                    .get(role)
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect(),
            },
        }
    }

    fn in_effect(&self, now: Timestamp) -> impl Iterator<Item = &Grant> {
        self.grants
            .iter()
            .filter(move |grant| grant.is_in_effect(now))
    }

    /// The one answer to what a principal's grants come to now.
    pub fn held(&self, audience: &str, now: Timestamp) -> Held {
        let mut held = Held::default();
        for grant in self.in_effect(now) {
            let scopes = self.scopes(grant);
            let scopes = scopes
                .into_iter()
                .filter(|scope| scope.audience == audience);
            let scopes: Vec<String> = scopes.map(|scope| scope.scope).collect();
            if scopes.is_empty() {
                continue;
            }
            let bytes = scopes.iter().map(|scope| scope.len() + 1).sum();
            held.sources.push((grant.permission.name(), bytes));
            held.scopes.extend(scopes);
            let ends = [held.end_time, grant.expire_time];
            held.end_time = ends.into_iter().flatten().min();
        }
        held.scopes.sort();
        held.scopes.dedup();
        held.sources
            .sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        held
    }

    pub fn holds(&self, scope: &ScopeName, now: Timestamp) -> bool {
        self.in_effect(now)
            .any(|grant| self.scopes(grant).contains(scope))
    }

    pub fn has_role(&self, role: &str, now: Timestamp) -> bool {
        let role = Permission::Role(role.to_owned());
        self.in_effect(now).any(|grant| grant.permission == role)
    }

    /// When a scope is no longer held; `None` if it is held without end.
    pub fn end_of(&self, scope: &ScopeName, now: Timestamp) -> Option<Timestamp> {
        let grants = self.in_effect(now);
        let ends = grants
            .filter(|grant| self.scopes(grant).contains(scope))
            .map(|grant| grant.expire_time.unwrap_or(Timestamp::MAX));
        let last = ends.max().unwrap_or(now);
        (last != Timestamp::MAX).then_some(last)
    }

    /// The scopes of audience `accountd` that a principal holds or is going to hold: whoever has power over
    /// it now has that, too.
    pub fn power(&self, now: Timestamp) -> Vec<String> {
        let live = self
            .grants
            .iter()
            .filter(|grant| !time::has_passed(grant.expire_time, now));
        live.flat_map(|grant| self.scopes(grant))
            .filter(ScopeName::is_own)
            .map(|scope| scope.scope)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{name::UserId, token::OWN_AUDIENCE};

    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    fn grant(permission: &str, start: Option<i64>, end: Option<i64>) -> Grant {
        Grant {
            id: GrantId(Uuid::nil()),
            principal: UserId(Uuid::nil()).into(),
            permission: Permission::parse(permission).expect(permission),
            reason: String::new(),
            granted_by: String::new(),
            create_time: NOW,
            start_time: start.map(|s| NOW.plus_s(s)),
            expire_time: end.map(|s| NOW.plus_s(s)),
        }
    }

    fn holdings(grants: impl IntoIterator<Item = Grant>) -> Holdings {
        let name = |name: &str| ScopeName::parse(name).expect(name);
        let packer = [
            "scopes/shop:pack",
            "scopes/shop:ship",
            "scopes/accountd:users.read",
        ];
        Holdings {
            grants: grants.into_iter().collect(),
            roles: BTreeMap::from([("packer".to_owned(), packer.map(name).into())]),
        }
    }

    #[test]
    fn what_is_held_ends_with_the_last_grant_of_it() {
        let holdings = holdings([
            grant("scopes/accountd:users.read", None, Some(5)),
            grant("roles/packer", None, Some(9)),
            grant("scopes/accountd:keys.read", None, None),
            grant("scopes/accountd:keys.read", None, Some(3)),
        ]);
        let end = |name: &str| holdings.end_of(&ScopeName::parse(name).expect(name), NOW);
        assert_eq!(end("scopes/accountd:users.read"), Some(NOW.plus_s(9)));
        assert_eq!(end("scopes/accountd:keys.read"), None);
        assert_eq!(end("scopes/accountd:keys.write"), Some(NOW), "not held");
    }

    #[test]
    fn only_grants_in_effect_count_and_the_first_to_end_is_known() {
        let holdings = holdings([
            grant("scopes/accountd:users.read", None, None),
            grant("roles/resource-server", Some(0), Some(50)),
            grant("scopes/accountd:users.read", Some(-5), Some(90)),
            grant("scopes/accountd:keys.write", Some(1), None),
            grant("scopes/accountd:keys.read", None, Some(0)),
        ]);
        let held = holdings.held(OWN_AUDIENCE, NOW);
        assert_eq!(held.scopes, ["tokens.introspect", "users.read"]);
        assert_eq!(held.end_time, Some(NOW.plus_s(50)));
        assert_eq!(Holdings::default().held(OWN_AUDIENCE, NOW), Held::default());
        assert!(holdings.power(NOW).contains(&"keys.write".to_owned()));
        assert!(!holdings.power(NOW).contains(&"keys.read".to_owned()));
    }

    #[test]
    fn an_audience_gets_its_own_scopes_and_no_others() {
        let holdings = holdings([
            grant("roles/packer", None, Some(60)),
            grant("scopes/shop:refund", None, None),
            grant("scopes/bank:refund", None, Some(5)),
            grant("roles/gone", None, None),
        ]);
        let held = holdings.held("shop", NOW);
        assert_eq!(held.scopes, ["pack", "refund", "ship"]);
        assert_eq!(
            held.end_time,
            Some(NOW.plus_s(60)),
            "of what concerns the shop"
        );
        let sources = [
            ("roles/packer".to_owned(), 10),
            ("scopes/shop:refund".to_owned(), 7),
        ];
        assert_eq!(held.sources, sources);
        assert_eq!(holdings.held(OWN_AUDIENCE, NOW).scopes, ["users.read"]);
        assert_eq!(holdings.power(NOW), ["users.read"]);
        assert!(holdings.has_role("packer", NOW) && !holdings.has_role("packer", NOW.plus_s(60)));
    }

    #[test]
    fn permissions_survive_being_named() {
        for name in [
            "roles/operator",
            "scopes/accountd:users.read",
            "scopes/shop:a:b",
        ] {
            assert_eq!(Permission::parse(name).expect(name).name(), name);
        }
        assert_eq!(Permission::parse("groups/x"), None);
    }
}

//! Who may hold which scopes, and when.

use super::{
    name::{AccountId, GrantId},
    role,
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
    /// A scope of audience `accountd`.
    Scope(String),
}

impl Permission {
    /// The resource name: `roles/operator` or `scopes/accountd:users.read`.
    pub fn name(&self) -> String {
        match self {
            Self::Role(role) => format!("roles/{role}"),
            Self::Scope(scope) => role::scope_name(scope),
        }
    }

    /// Reads a resource name of a role or scope that exists.
    pub fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix("roles/") {
            Some(role) => role::scopes_of(role).map(|_| Self::Role(role.to_owned())),
            None => role::parse_scope_name(name).map(|scope| Self::Scope(scope.to_owned())),
        }
    }

    /// The scopes it comes to.
    pub fn scopes(&self) -> Vec<&str> {
        match self {
            Self::Role(role) => role::scopes_of(role).unwrap_or_default().to_vec(),
            Self::Scope(scope) => vec![scope],
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

/// What a principal holds now: scopes, and when the first of the grants behind them ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Sorted.
    pub scopes: Vec<String>,
    pub end_time: Option<Timestamp>,
}

/// The one answer to what a principal's grants come to now.
pub fn held(grants: &[Grant], now: Timestamp) -> Held {
    let mut held = Held::default();
    for grant in grants.iter().filter(|grant| grant.is_in_effect(now)) {
        held.scopes
            .extend(grant.permission.scopes().into_iter().map(str::to_owned));
        held.end_time = [held.end_time, grant.expire_time]
            .into_iter()
            .flatten()
            .min();
    }
    held.scopes.sort();
    held.scopes.dedup();
    held
}

/// When the first of a permission's scopes is no longer held; `None` if each is held without end.
pub fn end_of(grants: &[Grant], permission: &Permission, now: Timestamp) -> Option<Timestamp> {
    let last_end = |scope: &str| {
        let mut ends = grants
            .iter()
            .filter(|grant| grant.is_in_effect(now) && grant.permission.scopes().contains(&scope))
            .map(|grant| grant.expire_time.unwrap_or(Timestamp::MAX));
        ends.by_ref().max().unwrap_or(now)
    };
    let first = permission.scopes().into_iter().map(last_end).min();
    first.filter(|end| *end != Timestamp::MAX)
}

/// What a principal holds or is going to hold: whoever has power over it now has that, too.
pub fn held_or_to_come(grants: &[Grant], now: Timestamp) -> Vec<String> {
    let live = grants
        .iter()
        .filter(|grant| !time::has_passed(grant.expire_time, now));
    live.flat_map(|grant| grant.permission.scopes())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::name::UserId;

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

    #[test]
    fn what_is_held_ends_with_the_last_grant_of_it() {
        let grants = [
            grant("scopes/accountd:users.read", None, Some(5)),
            grant("scopes/accountd:users.read", None, Some(9)),
            grant("scopes/accountd:keys.read", None, None),
            grant("scopes/accountd:keys.read", None, Some(3)),
        ];
        let end = |permission| {
            let permission = Permission::parse(permission).expect("exists");
            end_of(&grants, &permission, NOW)
        };
        assert_eq!(end("scopes/accountd:users.read"), Some(NOW.plus_s(9)));
        assert_eq!(end("scopes/accountd:keys.read"), None);
        assert_eq!(end("roles/auditor"), Some(NOW), "not all of it is held");
    }

    #[test]
    fn only_grants_in_effect_count_and_the_first_to_end_is_known() {
        let grants = [
            grant("scopes/accountd:users.read", None, None),
            grant("roles/resource-server", Some(0), Some(50)),
            grant("scopes/accountd:users.read", Some(-5), Some(90)),
            grant("scopes/accountd:keys.write", Some(1), None),
            grant("scopes/accountd:keys.read", None, Some(0)),
        ];
        let held = held(&grants, NOW);
        assert_eq!(held.scopes, ["tokens.introspect", "users.read"]);
        assert_eq!(held.end_time, Some(NOW.plus_s(50)));
        assert_eq!(super::held(&[], NOW), Held::default());
        assert!(held_or_to_come(&grants, NOW).contains(&"keys.write".to_owned()));
        assert!(!held_or_to_come(&grants, NOW).contains(&"keys.read".to_owned()));
    }

    #[test]
    fn permissions_survive_being_named() {
        for name in ["roles/operator", "scopes/accountd:users.read"] {
            assert_eq!(Permission::parse(name).expect(name).name(), name);
        }
        assert_eq!(Permission::parse("roles/emperor"), None);
        assert_eq!(Permission::parse("scopes/accountd:everything"), None);
    }
}

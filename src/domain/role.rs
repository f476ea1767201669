//! Scopes and roles that accountd comes with.
//!
//! Scopes of audience `accountd` are what the policies of the RPCs name; a role is a named set of
//! them. But for the question who could get in when nobody else can, nothing in the code asks for a
//! role, so any set of granted scopes is as good as one.

use std::{collections::BTreeSet, sync::LazyLock};

use super::{access::POLICIES, token::OWN_AUDIENCE};

/// Every scope of audience `accountd`, sorted.
pub fn scopes() -> &'static [&'static str] {
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

/// The role of those who can do everything, and so help everybody else.
pub const OPERATOR: &str = "operator";

/// The scopes of the role `roles/{role}`, if it exists.
pub fn scopes_of(role: &str) -> Option<&'static [&'static str]> {
    Some(match role {
        OPERATOR => scopes(),
        "user-manager" => &[
            "contacts.read",
            "contacts.write",
            "credentials.delete",
            "credentials.read",
            "credentials.update",
            "sessions.read",
            "sessions.revoke",
            "users.create",
            "users.delete",
            "users.read",
            "users.suspend",
            "users.update",
        ],
        "login-frontend" => &["credentials.reset", "sessions.create", "users.register"],
        "resource-server" => &["tokens.introspect"],
        "auditor" => &[
            "contacts.read",
            "credentials.read",
            "events.read",
            "grants.read",
            "keys.read",
            "sessions.read",
            "system_accounts.read",
            "users.read",
        ],
        _ => return None,
    })
}

/// The names of all roles.
pub const ROLES: [&str; 5] = [
    OPERATOR,
    "user-manager",
    "login-frontend",
    "resource-server",
    "auditor",
];

/// The scope in a resource name `scopes/accountd:{scope}`, if accountd has it.
pub fn parse_scope_name(name: &str) -> Option<&'static str> {
    let (audience, scope) = name.strip_prefix("scopes/")?.split_once(':')?;
    let known = scopes().iter().find(|known| **known == scope).copied();
    known.filter(|_| audience == OWN_AUDIENCE)
}

/// The resource name of a scope of audience `accountd`.
pub fn scope_name(scope: &str) -> String {
    format!("scopes/{OWN_AUDIENCE}:{scope}")
}

/// A scope as requests may write it (RFC 6749 section 3.3): 1 to 128 visible characters without
/// `"` and `\`.
pub fn parse_scope(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
    if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("must be scopes: 1 to 128 visible ASCII characters each".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_made_of_scopes_that_exist() {
        for role in ROLES {
            for scope in scopes_of(role).expect(role) {
                assert!(scopes().contains(scope), "{role} has {scope}");
            }
        }
        assert!(scopes_of("admin").is_none());
    }

    #[test]
    fn an_auditor_changes_nothing() {
        let writes = |scope: &&str| scope.rsplit('.').next() != Some("read");
        assert!(!scopes_of("auditor").expect("built in").iter().any(writes));
    }

    #[test]
    fn a_scope_name_is_read_only_for_scopes_there_are() {
        assert_eq!(
            parse_scope_name("scopes/accountd:users.read"),
            Some("users.read")
        );
        for bad in [
            "scopes/accountd:users",
            "scopes/billing:users.read",
            "users.read",
            "scopes/",
        ] {
            assert_eq!(parse_scope_name(bad), None, "{bad}");
        }
    }
}

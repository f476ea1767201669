//! Roles: named sets of scopes.
//!
//! But for the question who could get in when nobody else can, nothing in the code asks for a role, so any
//! set of granted scopes is as good as one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use super::{
    scope::{self, ScopeName},
    time::Timestamp,
};

/// Most roles besides the built-in ones.
pub const MAX_ROLES: i64 = 1000;
/// Most scopes of one role.
pub const MAX_SCOPES: usize = 500;
/// Most characters of a display name, and of a description.
pub const MAX_DISPLAY_NAME: usize = 200;
pub const MAX_DESCRIPTION: usize = 1000;

/// The role of those who can do everything, and so help everybody else.
pub const OPERATOR: &str = "operator";

/// The names of the built-in roles.
pub const BUILT_IN: [&str; 5] = [
    OPERATOR,
    "user-manager",
    "login-frontend",
    "resource-server",
    "auditor",
];

/// The scopes that a built-in role has, if there is such a role; all are of audience `accountd`.
pub fn built_in(role: &str) -> Option<&'static BTreeSet<ScopeName>> {
    static ROLES: LazyLock<BTreeMap<&str, BTreeSet<ScopeName>>> = LazyLock::new(|| {
        let own = |scopes: &[&str]| scopes.iter().map(|scope| ScopeName::own(scope)).collect();
        BUILT_IN
            .into_iter()
            .map(|role| (role, own(scopes_of(role))))
            .collect()
    });
    ROLES.get(role)
}

fn scopes_of(built_in: &str) -> &'static [&'static str] {
    match built_in {
        OPERATOR => scope::built_in(),
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
            "access.read",
            "changes.read",
            "contacts.read",
            "credentials.read",
            "elevations.read",
            "events.read",
            "grants.read",
            "groups.read",
            "keys.read",
            "sessions.read",
            "system_accounts.read",
            "users.read",
        ],
        _ => &[],
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Without `roles/`.
    pub id: String,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub display_name: String,
    pub description: String,
    pub scopes: BTreeSet<ScopeName>,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    DisplayName(String),
    Description(String),
    Scopes(BTreeSet<ScopeName>),
}

/// The fields that an update may name.
pub const WRITABLE: [&str; 3] = ["display_name", "description", "scopes"];

impl Role {
    pub const fn new(id: String, now: Timestamp) -> Self {
        Self {
            id,
            revision: 1,
            display_name: String::new(),
            description: String::new(),
            scopes: BTreeSet::new(),
            create_time: now,
            update_time: now,
        }
    }

    /// One that is there by itself.
    pub fn built_in(id: &str) -> Option<Self> {
        let scopes = built_in(id)?;
        Some(Self {
            scopes: scopes.clone(),
            ..Self::new(id.to_owned(), Timestamp::EPOCH)
        })
    }

    /// The resource name.
    pub fn name(&self) -> String {
        format!("roles/{}", self.id)
    }

    pub fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::DisplayName(text) => self.display_name = text,
            Edit::Description(text) => self.description = text,
            Edit::Scopes(scopes) => self.scopes = scopes,
        }
    }

    /// To be called once with each stored change.
    pub fn touch(&mut self, now: Timestamp) {
        self.revision += 1;
        self.update_time = now;
    }
}

/// The role in a resource name `roles/{role}`, whether or not there is one.
pub fn parse_name(name: &str) -> Option<&str> {
    let id = name.strip_prefix("roles/")?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let begins = id.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    (begins && id.len() <= 63 && id.bytes().all(allowed)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_role_is_made_of_scopes_that_exist() {
        for role in BUILT_IN {
            for scope in built_in(role).expect(role) {
                assert!(
                    scope::built_in().contains(&&*scope.scope),
                    "{role} has {scope}"
                );
            }
            assert_eq!(
                parse_name(&Role::built_in(role).expect(role).name()),
                Some(role)
            );
        }
        assert!(built_in("admin").is_none());
    }

    #[test]
    fn an_auditor_changes_nothing() {
        let writes = |scope: &&str| scope.rsplit('.').next() != Some("read");
        assert!(!scopes_of("auditor").iter().any(writes));
    }

    #[test]
    fn a_role_is_named_plainly() {
        for bad in [
            "roles/",
            "roles/Ops",
            "roles/1st",
            "roles/a/b",
            "roles/a:b",
            "ops",
            "roles/a_b",
        ] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
        assert_eq!(parse_name("roles/on-call-2"), Some("on-call-2"));
    }
}

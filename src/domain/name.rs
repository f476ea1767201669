//! Resource names (AIP-122) and the ids inside them.
//!
//! Invariant: every id has exactly one spelling, so that a name can be compared as text.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::time::Timestamp;

/// An id of its own type for each kind of resource, so that they cannot be swapped; with the collection it is
/// in, if that is not below another resource.
macro_rules! ids {
    ($($id:ident $(in $collection:literal)?,)*) => {$(
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $id(pub Uuid);

        $(
            impl $id {
                /// Reads the resource name.
                pub fn parse(name: &str) -> Option<Self> {
                    let id = name.strip_prefix(concat!($collection, "/"));
                    id.and_then(uuid).map(Self)
                }
            }

            /// The resource name.
            impl fmt::Display for $id {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    write!(f, concat!($collection, "/{}"), self.0)
                }
            }
        )?
    )*};
}

ids! {
    UserId in "users",
    SystemAccountId in "systemAccounts",
    CredentialId,
    SessionId,
    GrantId in "grants",
    GroupId in "groups",
    EntitlementId in "entitlements",
    ElevationId in "elevations",
    ChangeId in "changes",
    ContactId,
    EventId in "events",
    MessageId,
}

/// A UUID in its one canonical spelling: lower case, hyphenated.
pub fn uuid(text: &str) -> Option<Uuid> {
    let canonical = text.len() == 36 && !text.bytes().any(|b| b.is_ascii_uppercase());
    canonical.then(|| Uuid::try_parse(text).ok()).flatten()
}

/// A UUID that somebody chose for a new account: of a version that exists, so neither nil, which stands
/// for nobody, nor max.
pub fn chosen_uuid(text: &str) -> Result<Uuid, String> {
    uuid(text)
        .filter(|uuid| (1..=8).contains(&uuid.get_version_num()))
        .ok_or_else(|| "must be a UUID in lower case".to_owned())
}

/// UUID version 7 (RFC 9562 section 5.7): ids made later sort later.
pub fn new_uuid(now: Timestamp, random: [u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(now.millis(), &random).into_uuid()
}

/// The least UUID that could have been made at `time` or later; bounds a search by time.
pub fn first_uuid(time: Timestamp) -> Uuid {
    Uuid::from_u128(u128::from(time.millis()) << 80)
}

/// A user or a system account: whoever can hold credentials and call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccountId {
    User(UserId),
    System(SystemAccountId),
}

impl AccountId {
    pub const fn uuid(self) -> Uuid {
        match self {
            Self::User(UserId(id)) | Self::System(SystemAccountId(id)) => id,
        }
    }

    /// Reads `users/{uuid}` or `systemAccounts/{uuid}`.
    pub fn parse(name: &str) -> Option<Self> {
        let user = UserId::parse(name).map(Self::User);
        user.or_else(|| SystemAccountId::parse(name).map(Self::System))
    }

    /// The name of a resource of this account: `users/{uuid}/sessions/{id}`.
    pub fn child(self, collection: &str, id: Uuid) -> String {
        format!("{self}/{collection}/{id}")
    }
}

/// Whoever can hold a grant: an account, or a group for all in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PrincipalId {
    Account(AccountId),
    Group(GroupId),
}

impl PrincipalId {
    pub const fn uuid(self) -> Uuid {
        match self {
            Self::Account(id) => id.uuid(),
            Self::Group(GroupId(id)) => id,
        }
    }

    pub const fn account(self) -> Option<AccountId> {
        match self {
            Self::Account(id) => Some(id),
            Self::Group(_) => None,
        }
    }

    /// Reads the resource name of an account or a group.
    pub fn parse(name: &str) -> Option<Self> {
        let group = GroupId::parse(name).map(Self::Group);
        group.or_else(|| AccountId::parse(name).map(Self::Account))
    }
}

impl fmt::Display for PrincipalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(id) => id.fmt(f),
            Self::Group(id) => id.fmt(f),
        }
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => id.fmt(f),
            Self::System(id) => id.fmt(f),
        }
    }
}

impl From<AccountId> for PrincipalId {
    fn from(id: AccountId) -> Self {
        Self::Account(id)
    }
}

impl From<UserId> for PrincipalId {
    fn from(id: UserId) -> Self {
        Self::Account(id.into())
    }
}

impl From<SystemAccountId> for PrincipalId {
    fn from(id: SystemAccountId) -> Self {
        Self::Account(id.into())
    }
}

impl From<GroupId> for PrincipalId {
    fn from(id: GroupId) -> Self {
        Self::Group(id)
    }
}

impl From<UserId> for AccountId {
    fn from(id: UserId) -> Self {
        Self::User(id)
    }
}

impl From<SystemAccountId> for AccountId {
    fn from(id: SystemAccountId) -> Self {
        Self::System(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_name_has_one_spelling() {
        let name = "users/018f0000-0000-7000-8000-00000000abcd";
        assert_eq!(AccountId::parse(name).expect("canonical").to_string(), name);
        for other in [
            "users/018F0000-0000-7000-8000-00000000ABCD",
            "users/018f000000007000800000000000abcd",
            "users/{018f0000-0000-7000-8000-00000000abcd}",
            "users/018f0000-0000-7000-8000-00000000abcd/",
            "groups/018f0000-0000-7000-8000-00000000abcd",
            "users/",
            "users",
            "",
        ] {
            assert_eq!(AccountId::parse(other), None, "{other}");
        }
        for name in [name.to_owned(), name.replace("users", "groups")] {
            assert_eq!(
                PrincipalId::parse(&name).expect("a principal").to_string(),
                name
            );
        }
    }

    #[test]
    fn ids_made_later_sort_later() {
        let at = |ms: i64, random: u8| new_uuid(Timestamp::from_micros(ms * 1000), [random; 10]);
        assert!(at(1, 255) < at(2, 0));
        assert_eq!(at(1, 7).get_version_num(), 7);
        let bound = first_uuid(Timestamp::from_micros(2000));
        assert!(at(1, 255) < bound && bound <= at(2, 0));
    }
}

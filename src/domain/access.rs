//! Who may call what: the policies declared in the protos, and the one function that applies them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::LazyLock,
};

use uuid::Uuid;

use super::{
    assurance::{Assurance, Demand},
    error::{Error, Reason, Result},
    name::{AccountId, CredentialId, GroupId, SessionId},
    scope,
    token::{AccountClaims, Claims},
};

/// The policy of one RPC, as `options.proto` declares it.
#[derive(Debug)]
pub struct Policy {
    /// `/accountd.v1.UserService/CreateUser`.
    pub rpc: &'static str,
    pub access: Access,
    /// Any one of them admits.
    pub scopes: &'static [&'static str],
    /// The account that the request is about is admitted without a scope.
    pub allow_self: bool,
    /// What some values of the request need on top, asked for by the handler.
    pub field_scopes: &'static [&'static str],
    /// What a person has to have shown.
    pub demand: Option<Demand>,
    /// Served on the private listener only, when there is one.
    pub private: bool,
    /// What it is about, for callers who hold one of the scopes for some groups only.
    pub reach: Reach,
    /// The type of the event that a success writes; empty for reads.
    pub event: &'static str,
    /// Whether a call can be held up until a second person has agreed: it needs a scope, and answers no secret
    /// that nobody would see.
    pub may_wait: bool,
}

impl Policy {
    /// `CreateUser`; no two services have an RPC of the same name.
    pub fn name(&self) -> &'static str {
        self.rpc.rsplit('/').next().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Public,
    Authenticated,
    /// For holders of one of the scopes, or the account itself.
    Restricted,
}

/// What an RPC is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Whatever there is: whoever holds a scope for some groups only is not admitted.
    All,
    /// The account or group that the path names.
    Target,
    /// Those that it finds, which it has to limit to the groups of the caller.
    Found,
}

/// The policy of every RPC, made by the build from the protos.
pub static POLICIES: &[Policy] = &include!(concat!(env!("OUT_DIR"), "/policies.rs"));

static BY_RPC: LazyLock<HashMap<&'static str, &'static Policy>> =
    LazyLock::new(|| POLICIES.iter().map(|policy| (policy.rpc, policy)).collect());

/// The policy of the RPC with this path.
pub fn policy(rpc: &str) -> Option<&'static Policy> {
    BY_RPC.get(rpc).copied()
}

/// Whoever made this call.
#[derive(Clone, Debug)]
pub enum Caller {
    Anonymous,
    Account(Principal),
}

/// A caller with an access token that is good now.
#[derive(Clone, Debug)]
pub struct Principal {
    pub id: AccountId,
    pub proof: Proof,
    /// What the token permits.
    pub scopes: Vec<String>,
    /// What it permits besides with what this call is about.
    pub here: Vec<String>,
    pub client_id: String,
}

/// What the token was obtained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Session(SessionId),
    Credential(CredentialId),
}

impl Principal {
    pub fn new(claims: Claims) -> Self {
        Self {
            id: claims.account_id(),
            proof: Proof::of(&claims),
            scopes: claims.scopes(),
            here: Vec::new(),
            client_id: claims.client_id,
        }
    }

    /// Whether the caller may do that with what this call is about.
    pub fn holds(&self, scope: &str) -> bool {
        let mut held = self.scopes.iter().chain(&self.here);
        held.any(|held| held == scope)
    }

    /// Whether the caller may do that wherever the scope says.
    pub fn commands(&self, scope: &str) -> bool {
        self.scopes.iter().any(|held| scope::covers(held, scope))
    }

    /// The groups for which alone the caller holds one of these scopes.
    pub fn groups_for(&self, scopes: &[&str]) -> BTreeSet<GroupId> {
        self.groups_where(|scope| scopes.contains(&scope))
    }

    /// The groups for which alone the caller holds anything.
    pub fn groups(&self) -> BTreeSet<GroupId> {
        self.groups_where(|_| true)
    }

    fn groups_where(&self, is_meant: impl Fn(&str) -> bool) -> BTreeSet<GroupId> {
        let meant = self.scopes.iter().filter_map(|held| {
            let (scope, resource) = scope::split(held);
            resource.filter(|_| is_meant(scope))
        });
        meant.filter_map(GroupId::parse).collect()
    }

    /// What the caller holds for one of these groups.
    pub fn held_for(&self, groups: &BTreeSet<GroupId>) -> Vec<String> {
        let is_for =
            |resource: &str| GroupId::parse(resource).is_some_and(|it| groups.contains(&it));
        let held = self.scopes.iter().map(|held| scope::split(held));
        held.filter(|(_, resource)| resource.is_some_and(is_for))
            .map(|(scope, _)| scope.to_owned())
            .collect()
    }

    /// Refuses unless the caller holds `scope`.
    pub fn require(&self, scope: &str) -> Result<()> {
        if self.holds(scope) {
            return Ok(());
        }
        Err(Error::Denied {
            reason: Reason::ScopeMissing,
            scopes: vec![scope.to_owned()],
        })
    }
}

impl Proof {
    pub const fn of(claims: &Claims) -> Self {
        match claims.account {
            AccountClaims::User { sid, .. } => Self::Session(SessionId(sid)),
            AccountClaims::SystemAccount { credential_id } => {
                Self::Credential(CredentialId(credential_id))
            }
        }
    }

    /// The resource name below the account `id`.
    pub fn name(self, id: AccountId) -> String {
        match self {
            Self::Session(session) => id.child("sessions", session.0),
            Self::Credential(credential) => id.child("credentials", credential.0),
        }
    }
}

impl Caller {
    pub const fn principal(&self) -> Option<&Principal> {
        match self {
            Self::Anonymous => None,
            Self::Account(principal) => Some(principal),
        }
    }

    pub fn account(&self) -> Option<AccountId> {
        self.principal().map(|principal| principal.id)
    }

    /// The session of the call's own token, of people.
    pub fn session(&self) -> Option<SessionId> {
        match self.principal()?.proof {
            Proof::Session(id) => Some(id),
            Proof::Credential(_) => None,
        }
    }

    pub fn holds(&self, scope: &str) -> bool {
        self.principal()
            .is_some_and(|principal| principal.holds(scope))
    }

    /// Whether the caller may do that wherever the scope says.
    pub fn commands(&self, scope: &str) -> bool {
        self.principal()
            .is_some_and(|principal| principal.commands(scope))
    }

    /// The caller's uuid, or nil for nobody: separates what callers may not share.
    pub fn uuid(&self) -> Uuid {
        self.account().map_or(Uuid::nil(), AccountId::uuid)
    }

    /// Whether `target`, the name of an account or of something that belongs to one, is the
    /// caller's own.
    pub fn is_self(&self, target: &str) -> bool {
        let Some(id) = self.account() else {
            return false;
        };
        let mut segments = target.split('/');
        let (collection, account) = (segments.next(), segments.next());
        let own = id.to_string();
        let (own_collection, own_id) = own.split_once('/').unwrap_or_default();
        collection == Some(own_collection) && (account == Some(own_id) || account == Some("me"))
    }

    /// Refuses unless the caller holds `scope`.
    pub fn require(&self, scope: &str) -> Result<()> {
        if self.holds(scope) {
            Ok(())
        } else {
            Err(self.refusal(&[scope]))
        }
    }

    fn refusal(&self, scopes: &[&str]) -> Error {
        match self {
            Self::Anonymous => Error::Unauthenticated(Reason::TokenMissing),
            Self::Account(_) => Error::Denied {
                reason: Reason::ScopeMissing,
                scopes: scopes.iter().map(ToString::to_string).collect(),
            },
        }
    }
}

/// The one decision whether a caller may make a call about `target`. It looks at nothing else of the
/// request, so that a stranger learns nothing from a refusal.
pub fn authorise(policy: &Policy, caller: &Caller, target: &str) -> Result<()> {
    let admitted = match policy.access {
        Access::Public => true,
        Access::Authenticated => caller.principal().is_some(),
        Access::Restricted => {
            policy.scopes.iter().any(|scope| caller.holds(scope))
                || (policy.allow_self && caller.is_self(target))
        }
    };
    if admitted {
        Ok(())
    } else {
        Err(caller.refusal(policy.scopes))
    }
}

/// Nobody has power over an account that holds what they do not: refuses with the first such scope.
pub fn require_power_over<'a>(
    caller: &Caller,
    held_by_target: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    match held_by_target
        .into_iter()
        .find(|scope| !caller.commands(scope))
    {
        None => Ok(()),
        Some(scope) => Err(Error::Denied {
            reason: Reason::TargetOutranksCaller,
            // For what else, is nobody's business.
            scopes: vec![scope::split(scope).0.to_owned()],
        }),
    }
}

/// Nobody hands out what they do not hold: refuses with the first such scope.
pub fn require_held<'a>(
    caller: &Caller,
    handed_out: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    match handed_out.into_iter().find(|scope| !caller.commands(scope)) {
        None => Ok(()),
        Some(scope) => Err(Error::Denied {
            reason: Reason::ScopeNotHeld,
            scopes: vec![scope.to_owned()],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::name::{SystemAccountId, UserId};

    const ALICE: UserId = UserId(Uuid::from_u128(1));

    fn caller(id: AccountId, scopes: &[&str]) -> Caller {
        Caller::Account(Principal {
            id,
            proof: Proof::Session(SessionId(Uuid::nil())),
            scopes: scopes.iter().map(ToString::to_string).collect(),
            here: Vec::new(),
            client_id: String::new(),
        })
    }

    fn restricted(scopes: &'static [&'static str], allow_self: bool) -> Policy {
        Policy {
            rpc: "",
            access: Access::Restricted,
            scopes,
            allow_self,
            field_scopes: &[],
            demand: None,
            private: false,
            reach: Reach::All,
            event: "",
            may_wait: false,
        }
    }

    #[test]
    fn every_rpc_has_exactly_one_policy() {
        assert_eq!(BY_RPC.len(), POLICIES.len());
        assert!(policy("/accountd.v1.UserService/GetUser").is_some());
        assert!(policy("/accountd.v1.UserService/getuser").is_none());
    }

    #[test]
    fn any_one_of_the_scopes_admits_and_nothing_like_them() {
        let policy = restricted(&["users.create", "users.register"], false);
        let may = |scopes: &[&str]| authorise(&policy, &caller(ALICE.into(), scopes), "").is_ok();
        assert!(may(&["users.register"]));
        assert!(may(&["x", "users.create"]));
        assert!(!may(&["users"]));
        assert!(!may(&["users.create.all"]));
        assert!(!may(&[]));
    }

    #[test]
    fn self_is_the_account_the_target_names_and_no_other() {
        let alice = caller(ALICE.into(), &[]);
        let name = ALICE.to_string();
        assert!(alice.is_self(&name));
        assert!(alice.is_self(&format!("{name}/sessions/x")));
        assert!(alice.is_self("users/me"));
        assert!(alice.is_self("users/me/sessions/x"));
        assert!(!alice.is_self(&UserId(Uuid::from_u128(2)).to_string()));
        assert!(!alice.is_self(&format!("{name}0")));
        assert!(!alice.is_self(&SystemAccountId(ALICE.0).to_string()));
        assert!(!alice.is_self("systemAccounts/me"));
        assert!(!alice.is_self(""));
        assert!(!Caller::Anonymous.is_self("users/me"));
    }

    #[test]
    fn a_refusal_tells_strangers_from_the_powerless() {
        let policy = restricted(&["users.read"], true);
        let reason = |caller: &Caller| {
            authorise(&policy, caller, "users/x")
                .expect_err("refused")
                .reason()
        };
        assert_eq!(reason(&Caller::Anonymous), Reason::TokenMissing);
        assert_eq!(reason(&caller(ALICE.into(), &[])), Reason::ScopeMissing);
    }

    #[test]
    fn power_is_needed_for_every_scope_of_the_target() {
        let manager = caller(ALICE.into(), &["users.update"]);
        assert!(require_power_over(&manager, []).is_ok());
        assert!(require_power_over(&manager, ["users.update"]).is_ok());
        let operator = ["users.update", "keys.write"];
        let error = require_power_over(&manager, operator).expect_err("outranked");
        assert_eq!(error.reason(), Reason::TargetOutranksCaller);
    }
}

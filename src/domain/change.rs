//! Four eyes: calls that wait for a second person, and what makes a call wait.
//!
//! Invariant: what is carried out is what was asked for, once, with the power that whoever asked for it has by
//! then; nobody agrees with themselves, nor with a program of theirs.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    access::{POLICIES, Proof},
    event::Event,
    name::{AccountId, ChangeId, UserId},
    role,
    scope::ScopeName,
    time::{self, Timestamp},
    token::Claims,
};

/// The scope of those who agree, or refuse.
pub const APPROVE: &str = "changes.approve";
/// Most bytes of a request that waits.
pub const MAX_REQUEST_BYTES: usize = 32 * 1024;
/// Most changes of one account that wait.
pub const MAX_PENDING: i64 = 100;

/// What needs a second person, as an operator has marked it.
#[derive(Clone, Debug, Default)]
pub struct FourEyes {
    /// RPCs by their paths.
    rpcs: BTreeSet<&'static str>,
    /// What nobody is given by one person alone.
    scopes: BTreeSet<&'static ScopeName>,
}

impl FourEyes {
    /// Reads the names of RPCs and of built-in roles. Of a role those scopes count that no lesser role has unmarked.
    pub fn new(rpcs: &[String], roles: &[String]) -> Result<Self, String> {
        let path = |name: &String| {
            let mut all = POLICIES.iter();
            let policy = all.find(|policy| policy.name() == *name);
            let policy = policy.ok_or_else(|| format!("there is no RPC `{name}`"))?;
            let may_wait = policy.may_wait.then_some(policy.rpc);
            may_wait.ok_or_else(|| {
                format!("`{name}` changes nothing, needs no scope, answers a secret or a change")
            })
        };
        let of_role = |name: &str| {
            let scopes = role::parse_name(name).and_then(role::built_in);
            scopes.ok_or_else(|| format!("`{name}` is not a built-in role"))
        };
        let mut scopes = BTreeSet::new();
        for name in roles {
            let marked = of_role(name)?;
            scopes.extend(marked);
            for id in role::BUILT_IN {
                let other = role::built_in(id).filter(|_| !roles.contains(&format!("roles/{id}")));
                for scope in other
                    .filter(|it| it.is_subset(marked))
                    .into_iter()
                    .flatten()
                {
                    scopes.remove(scope);
                }
            }
        }
        let rpcs: BTreeSet<_> = rpcs.iter().map(path).collect::<Result<_, _>>()?;
        if !rpcs.is_empty() {
            // Two people who agree are not one who has made the other.
            let all = role::built_in(role::OPERATOR).into_iter().flatten();
            scopes.extend(all.filter(|scope| scope.scope == APPROVE));
        }
        Ok(Self { rpcs, scopes })
    }

    /// Whether an RPC waits, whatever it is called with.
    pub fn marks(&self, rpc: &str) -> bool {
        self.rpcs.contains(rpc)
    }

    /// Whether giving this scope waits, be it for one group only, and whichever RPC gives it.
    pub fn guards(&self, scope: &ScopeName) -> bool {
        self.scopes.contains(&scope.unlimited())
    }
}

/// What has become of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Somebody has to agree.
    Pending,
    /// Carried out.
    Approved,
    Denied,
    /// Nobody has answered in time.
    Lapsed,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Pending, Self::Approved, Self::Denied, Self::Lapsed];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Approved => "APPROVED",
            Self::Denied => "DENIED",
            Self::Lapsed => "LAPSED",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A call that waits, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub id: ChangeId,
    /// Counts the changes; the etag.
    pub revision: i64,
    /// The path of the RPC.
    pub rpc: String,
    /// The request, encrypted: it may hold a password, until it is over.
    pub request: Vec<u8>,
    /// What the same call of the same caller is recognised by, while it waits.
    pub fingerprint: Vec<u8>,
    /// The token that it came with.
    pub claims: Claims,
    /// Where it came from.
    pub address: Option<IpAddr>,
    /// As it was stored; [`Change::state`] knows what time has made of it.
    pub stored: State,
    pub create_time: Timestamp,
    /// When it lapses, while it waits.
    pub next_time: Option<Timestamp>,
    /// Of two who have to agree, the resource name of the first.
    pub first_approver: String,
    /// The token that the first of two has agreed with.
    pub first_claims: Option<Claims>,
    /// The resource name of whoever carried it out by agreeing, or refused it or took it back.
    pub decided_by: String,
    pub decide_reason: String,
    pub end_time: Option<Timestamp>,
}

impl Change {
    pub const fn proposer(&self) -> AccountId {
        self.claims.account_id()
    }

    /// The session or the credential that it came with.
    pub const fn proof(&self) -> Proof {
        Proof::of(&self.claims)
    }

    pub fn state(&self, now: Timestamp) -> State {
        match self.stored {
            State::Pending if time::has_passed(self.next_time, now) => State::Lapsed,
            state => state,
        }
    }

    /// When it was over, be it by itself.
    pub fn ended(&self, now: Timestamp) -> Option<Timestamp> {
        let by_itself = self.next_time.filter(|time| *time <= now);
        self.end_time.or(by_itself)
    }

    /// How many people have to agree. Whoever could agree is the first of two by asking; of others, and of programs,
    /// the credentials may be in the hands of who agrees.
    pub fn approvals_required(&self) -> i32 {
        let is_person = matches!(self.proposer(), AccountId::User(_));
        if is_person && self.claims.scopes().iter().any(|scope| scope == APPROVE) {
            1
        } else {
            2
        }
    }

    /// What the log says of it, whatever has happened to it.
    pub fn tell(&self, event: Event) -> Event {
        let event = event.about(self.id, Some(self.proposer()));
        event.detail("rpc", self.rpc.trim_start_matches('/'))
    }

    /// Whether one more who agrees is enough.
    pub fn is_last_approval(&self) -> bool {
        self.approvals_required() == 1 || self.first_claims.is_some()
    }

    /// Whether a person is the first of two who agree.
    pub fn has_agreed(&self, person: UserId) -> bool {
        let first = self.first_claims.as_ref().map(Claims::account_id);
        first == Some(AccountId::User(person))
    }

    /// Somebody agrees: of two the first; it waits on.
    pub fn approve_first(&mut self, by: Claims, reason: String) {
        self.first_approver = by.account_id().to_string();
        self.first_claims = Some(by);
        self.decide_reason = reason;
        self.revision += 1;
    }

    /// It was carried out, refused, taken back, or has lapsed.
    pub fn end(&mut self, state: State, by: String, reason: String, now: Timestamp) {
        self.stored = state;
        self.decided_by = by;
        self.decide_reason = reason;
        self.next_time = None;
        self.end_time = Some(now);
        self.revision += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four_eyes(rpcs: &[&str], roles: &[&str]) -> Result<FourEyes, String> {
        let owned = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        FourEyes::new(&owned(rpcs), &owned(roles))
    }

    fn guards(roles: &[&str], scope: &str) -> bool {
        let found = four_eyes(&[], roles).expect("roles");
        found.guards(&ScopeName::own(scope))
    }

    #[test]
    fn rpcs_go_by_their_names() {
        let found = four_eyes(&["RevokeSigningKey"], &[]).expect("an RPC");
        assert!(found.marks("/accountd.v1.KeyService/RevokeSigningKey"));
        assert!(!found.marks("/accountd.v1.KeyService/RetireSigningKey"));
        assert!(!found.guards(&ScopeName::own("keys.write")));
    }

    #[test]
    fn what_cannot_wait_is_refused() {
        for name in [
            "Nothing",
            "KeyService/RevokeSigningKey",
            // Public, a read, with a secret in its answer, and what answers.
            "CreateSession",
            "ListUsers",
            "CreateCredential",
            "ApproveChange",
            "",
        ] {
            assert!(four_eyes(&[name], &[]).is_err(), "{name}");
        }
        for role in ["operator", "roles/made", ""] {
            assert!(four_eyes(&[], &[role]).is_err(), "{role}");
        }
    }

    #[test]
    fn of_a_role_counts_what_lesser_roles_do_not_have() {
        assert!(guards(&["roles/operator"], "keys.write"));
        assert!(guards(&["roles/operator"], "changes.approve"));
        assert!(guards(&["roles/operator"], "groups.write@groups/7"));
        assert!(!guards(&["roles/operator"], "users.read"));
        assert!(!guards(&["roles/operator"], "sessions.create"));
        assert!(guards(
            &["roles/operator", "roles/login-frontend"],
            "sessions.create"
        ));
        assert!(guards(&["roles/auditor"], "events.read"));
        assert!(!guards(&["roles/auditor"], "keys.write"));
        assert!(!guards(&[], "keys.write"));
        let found = four_eyes(&["DeleteUser"], &[]).expect("an RPC");
        assert!(
            found.guards(&ScopeName::own(APPROVE)) && !found.guards(&ScopeName::own("keys.write"))
        );
    }
}

//! Callers who hold a scope for some groups only: what a call of theirs may be about.
//!
//! Invariant: they are told of nothing else, not even that it is there; a target out of reach and one that does not
//! exist get the answer of somebody without any scope.

use std::collections::BTreeSet;

use super::call::Call;
use crate::{
    domain::{
        access::{Caller, Policy},
        error::{Error, Reason, Result},
        group::MAX_REACH,
        name::{GroupId, PrincipalId, UserId},
        time::Timestamp,
    },
    store::{db::Read, groups, users::FIND_ALL, within},
};

/// What a call may find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    Everything,
    /// Who is in one of these, directly or by way of other groups; and these.
    Groups(Vec<GroupId>),
}

impl View {
    /// Those of these users that the call may find; the others are not there.
    pub async fn among(
        &self,
        call: &Call,
        db: &mut Read,
        users: &[UserId],
    ) -> Result<BTreeSet<UserId>> {
        let Self::Groups(groups) = self else {
            return Ok(users.iter().copied().collect());
        };
        let mut seen = BTreeSet::new();
        for users in users.chunks(FIND_ALL) {
            seen.extend(within::among(db, groups, call.now, users).await?);
        }
        Ok(seen)
    }

    /// For page tokens, which are good for one view.
    pub fn text(&self) -> String {
        match self {
            Self::Everything => String::new(),
            Self::Groups(groups) => groups.iter().map(ToString::to_string).collect(),
        }
    }
}

/// By what somebody was admitted to a call about one account or group.
#[derive(Debug)]
pub struct Limit {
    target: PrincipalId,
    groups: BTreeSet<GroupId>,
    scopes: &'static [&'static str],
    /// Those of the target's groups, when it was, that the caller holds anything for.
    within: BTreeSet<GroupId>,
}

impl Limit {
    /// The groups of the target, if it is in one of those.
    async fn find(&self, db: &mut Read, now: Timestamp) -> Result<Option<BTreeSet<GroupId>>> {
        let is = groups::principals(db, self.target, now).await?;
        let is = is.into_keys().filter_map(|it| match it {
            PrincipalId::Group(id) => Some(id),
            PrincipalId::Account(_) => None,
        });
        let is: BTreeSet<GroupId> = is.collect();
        Ok((!is.is_disjoint(&self.groups)).then_some(is))
    }

    /// Refuses once the target has left one of them.
    pub(super) async fn require(&self, db: &mut Read, now: Timestamp) -> Result<()> {
        let is_in = self.find(db, now).await?.unwrap_or_default();
        if self.within.is_subset(&is_in) && !is_in.is_disjoint(&self.groups) {
            return Ok(());
        }
        Err(Error::Denied {
            reason: Reason::ScopeMissing,
            scopes: self.scopes.iter().map(ToString::to_string).collect(),
        })
    }
}

impl Call {
    /// Refuses whom a caller who was admitted for some groups only would name besides, as one who is not there.
    pub(super) async fn require_to_see(&self, db: &mut Read, other: PrincipalId) -> Result<()> {
        let Some(limit) = &self.limit else {
            return Ok(());
        };
        let seen = Limit {
            target: other,
            groups: limit.groups.clone(),
            scopes: limit.scopes,
            within: BTreeSet::new(),
        };
        let missing = || Error::not_found(other.to_string());
        seen.find(db, self.now).await?.map(drop).ok_or_else(missing)
    }

    /// Admits to a call about one account or group who holds a scope for it, on a second look: `refusal` is what
    /// others get.
    pub(super) async fn admit_to(
        &mut self,
        policy: &'static Policy,
        target: &str,
        refusal: Error,
    ) -> Result<()> {
        let groups = self.groups_for(policy);
        let Some(target) = principal_of(target).filter(|_| !groups.is_empty()) else {
            return Err(refusal);
        };
        let mut limit = Limit {
            target,
            groups,
            scopes: policy.scopes,
            within: BTreeSet::new(),
        };
        let found = limit.find(&mut self.db().read().await?, self.now).await?;
        let is_in = found.ok_or(refusal)?;
        if let Caller::Account(principal) = &mut self.caller {
            principal.here = principal.held_for(&is_in);
            limit.within = principal.groups().intersection(&is_in).copied().collect();
        }
        self.limit = Some(limit);
        Ok(())
    }

    /// Admits to a call that finds something who holds a scope for some groups; what it may find then.
    pub(super) fn admit_to_some(&mut self, policy: &Policy, refusal: Error) -> Result<View> {
        let groups = self.groups_for(policy);
        if groups.is_empty() {
            return Err(refusal);
        }
        if groups.len() > MAX_REACH {
            let text = format!(
                "holds {} for more than {MAX_REACH} groups: come with a token of fewer",
                policy.scopes.join(" or ")
            );
            return Err(Error::precondition(Reason::LimitReached, self.by(), text));
        }
        let here = policy.scopes.iter().map(ToString::to_string);
        if let Caller::Account(principal) = &mut self.caller {
            principal.here = here.collect();
        }
        Ok(View::Groups(groups.into_iter().collect()))
    }

    fn groups_for(&self, policy: &Policy) -> BTreeSet<GroupId> {
        let principal = self.caller.principal();
        principal.map_or_else(BTreeSet::new, |it| it.groups_for(policy.scopes))
    }
}

/// The account or group in the name of what a call is about: of `users/{uid}/contacts/{id}` the user.
fn principal_of(target: &str) -> Option<PrincipalId> {
    let second = target.match_indices('/').nth(1);
    let end = second.map_or(target.len(), |(at, _)| at);
    PrincipalId::parse(&target[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_somebody_is_told_by_its_name() {
        let id = "018f0000-0000-7000-8000-00000000abcd";
        for collection in ["users", "systemAccounts", "groups"] {
            let name = format!("{collection}/{id}");
            for below in ["", "/contacts/7", "/sessions/7/x"] {
                let found = principal_of(&format!("{name}{below}"));
                assert_eq!(found.map(|it| it.to_string()), Some(name.clone()));
            }
        }
        for other in ["", "users", "users/me", "grants/7", "users//contacts/7"] {
            assert_eq!(principal_of(other), None, "{other}");
        }
    }
}

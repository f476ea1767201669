//! Who may give what to whom: power over others, and over scopes.
//!
//! Invariant: nobody gives, or takes back, what they do not hold themselves or the catalogue lets them grant, for
//! longer than they have it; nobody changes what is more powerful than their own account.

use std::collections::{BTreeMap, BTreeSet};

use super::{call::Call, roles};
use crate::{
    domain::{
        access::{self, Principal, Proof},
        credential::Credential,
        error::{Error, Reason, Result},
        grant::Power,
        name::{AccountId, PrincipalId},
        scope::{self, Scope, ScopeName},
        system_account::SystemAccount,
        time::Timestamp,
        token::OWN_AUDIENCE,
    },
    store::{credentials, db::Read, entitlements, grants, groups, scopes, system_accounts},
};

impl Call {
    /// Nobody changes an account that holds what they do not. A person's own account is theirs; a
    /// system account's token may be narrower than the account, so it is held to the rule.
    pub async fn require_power_over(
        &self,
        db: &mut Read,
        target: impl Into<PrincipalId>,
    ) -> Result<()> {
        let target = target.into();
        let own = self.caller.account().map(PrincipalId::Account);
        if own == Some(target) && matches!(target, PrincipalId::Account(AccountId::User(_))) {
            return Ok(());
        }
        self.require_full_power_over(db, target).await
    }

    /// The same without an exception for one's own account: for what gives a token more than it has.
    pub async fn require_full_power_over(
        &self,
        db: &mut Read,
        target: impl Into<PrincipalId>,
    ) -> Result<()> {
        let target = target.into();
        let power = grants::power(db, target, Some(OWN_AUDIENCE), self.now).await?;
        access::require_power_over(&self.caller, power.scopes().map(|scope| &*scope.scope))?;
        self.require_power_over_roles(db, target).await
    }

    /// Refuses a caller who would let somebody, be it themselves, into an account until then that has this power, and
    /// has it for a shorter time, or, by a token that is older than what was taken from them, not any more. Of what
    /// the account may only ask for it is enough to be able to ask for it, too.
    pub(super) async fn require_lasting(
        &self,
        db: &mut Read,
        account: AccountId,
        power: &Power,
        until: Option<Timestamp>,
    ) -> Result<()> {
        let Some(own) = self.caller.account().filter(|own| *own != account) else {
            return Ok(());
        };
        if power.scopes().next().is_none() {
            return Ok(());
        }
        let held = self.granter(db, until).await?.held;
        let mut had = held.clone();
        for entitlement in entitlements::of_principal(db, own.into(), self.now).await? {
            let end = entitlement.expire_time.unwrap_or(Timestamp::MAX);
            for scope in roles::find(db, &entitlement.role).await?.scopes {
                let known = had.entry(scope).or_insert(end);
                *known = end.max(*known);
            }
        }
        for name in power.scopes() {
            let is_granted = power.granted.contains(name);
            let had = if is_granted { &held } else { &had };
            let wider = had.iter().filter(|(held, _)| held.covers(name));
            let end = wider.map(|(_, end)| *end).max();
            if end.is_none_or(|end| end < until.unwrap_or(Timestamp::MAX)) {
                return Err(Error::Denied {
                    reason: Reason::TargetOutranksCaller,
                    scopes: vec![name.unlimited().scope],
                });
            }
        }
        Ok(())
    }

    /// The same for a program that gets a credential until then, or keeps one.
    pub(super) async fn require_lasting_credential(
        &self,
        db: &mut Read,
        credential: &Credential,
    ) -> Result<()> {
        let account = credential.account;
        let power = grants::power(db, account.into(), Some(OWN_AUDIENCE), self.now).await?;
        let until = credential.expire_time;
        self.require_lasting(db, account, &power, until).await
    }

    /// Refuses a caller who looks after some only, and would get hold of a program that may do more elsewhere.
    pub(super) async fn require_whole_power_over(
        &self,
        db: &mut Read,
        target: impl Into<PrincipalId>,
    ) -> Result<()> {
        if self.limit.is_none() {
            return Ok(());
        }
        let granter = self.granter(db, Some(self.now)).await?;
        let power = grants::power(db, target.into(), None, self.now).await?;
        for name in power.scopes() {
            let unlimited = scopes::find(db, &name.unlimited()).await?;
            let is_lost = unlimited.is_none() && !name.is_own();
            let scope = unlimited.unwrap_or_else(|| Scope::built_in(&name.unlimited().scope));
            let scope = Scope {
                name: name.clone(),
                ..scope
            };
            if !is_lost && granter.may_grant(&scope).is_none() {
                return Err(Error::Denied {
                    reason: Reason::TargetOutranksCaller,
                    scopes: vec![scope.name.unlimited().to_string()],
                });
            }
        }
        Ok(())
    }

    /// Whoever gets hold of an account that may ask for a role, or agree to one, gets what downstream systems permit by
    /// it, too.
    async fn require_power_over_roles(&self, db: &mut Read, target: PrincipalId) -> Result<()> {
        let roles = entitlements::roles_of(db, target, self.now).await?;
        let mut lent = Vec::new();
        for role in BTreeSet::from_iter(roles) {
            lent.extend(scopes::of_role(db, &role).await?);
        }
        if lent.is_empty() {
            return Ok(());
        }
        let granter = self.granter(db, Some(self.now)).await?;
        for scope in &lent {
            if granter.may_grant(scope).is_none() {
                return Err(Error::Denied {
                    reason: Reason::TargetOutranksCaller,
                    scopes: vec![scope.name.to_string()],
                });
            }
        }
        Ok(())
    }

    /// Refuses unless the caller may hand these scopes out, or take them back, for that long: who holds them,
    /// by the token and still by grants, a token being older than the grants are; and whom the catalogue says.
    /// `field` is what is wrong where they may for a shorter time.
    pub async fn require_to_grant(
        &self,
        db: &mut Read,
        scopes: &[Scope],
        until: Option<Timestamp>,
        field: &str,
    ) -> Result<()> {
        if scopes.is_empty() {
            return Ok(());
        }
        let own = scopes.iter().filter(|scope| scope.name.is_own());
        access::require_held(&self.caller, own.map(|scope| &*scope.name.scope))?;
        let granter = self.granter(db, until).await?;
        for scope in scopes {
            require_end(scope, granter.may_grant(scope), until, field)?;
        }
        Ok(())
    }

    /// The same for making somebody one who goes by names to which the catalogue lets grant scopes: who may grant
    /// them, or say who may.
    pub async fn require_to_appoint(
        &self,
        db: &mut Read,
        names: &BTreeSet<String>,
        until: Option<Timestamp>,
        field: &str,
    ) -> Result<()> {
        let scopes = scopes::granted_by(db, names).await?;
        if scopes.is_empty() {
            return Ok(());
        }
        let granter = self.granter(db, until).await?;
        for scope in &scopes {
            let end = granter.may_grant(scope).max(granter.maintains);
            require_end(scope, end, until, field)?;
        }
        Ok(())
    }

    /// Refuses a program that would raise a ceiling above its own, whatever there is to let through by then.
    pub(super) async fn require_own_ceiling(
        &self,
        db: &mut Read,
        before: &[String],
        ceiling: &[String],
    ) -> Result<()> {
        let Some(confines) = self.confines(db, self.principal()?).await? else {
            return Ok(());
        };
        let new = ceiling.iter().filter(|it| !scope::is_within(it, before));
        let new: Vec<String> = new.cloned().collect();
        // Without any it ends, which raises it above whatever there is.
        let is_raised = scope::is_wider(ceiling, before);
        if is_raised && confines.are_exceeded_by(&new) {
            return Err(Error::Denied {
                reason: Reason::ScopeNotHeld,
                scopes: new,
            });
        }
        Ok(())
    }

    pub(super) fn principal(&self) -> Result<&Principal> {
        let principal = self.caller.principal();
        principal.ok_or(Error::Unauthenticated(Reason::TokenMissing))
    }

    /// What there is to know of a caller who would give until then. What needs a step-up is not handed on, since
    /// whoever gets it would not need one; but it counts for taking back.
    async fn granter(&self, db: &mut Read, until: Option<Timestamp>) -> Result<Granter> {
        let principal = self.principal()?;
        let caller = principal.id;
        let mut holdings = grants::holdings(db, caller.into(), None, self.now).await?;
        let gives = until != Some(self.now);
        if holdings.grants.iter().any(|grant| grant.needs_step_up)
            && (gives || !self.has_own_proof(db).await?)
        {
            holdings.grants.retain(|grant| !grant.needs_step_up);
        }
        let mut names = holdings.roles(self.now);
        for (principal, end) in groups::principals(db, caller, self.now).await? {
            names.insert(principal.to_string(), end);
        }
        let effective = holdings.effective(self.now).into_iter();
        let held: BTreeMap<ScopeName, Timestamp> = effective
            .filter_map(|(name, by)| Some((name.into_owned(), by.first()?.end_time)))
            .collect();
        let maintains = held.get(&ScopeName::own(MAINTAINS_CATALOGUE)).copied();
        Ok(Granter {
            names,
            maintains: maintains.filter(|_| self.caller.holds(MAINTAINS_CATALOGUE)),
            held,
            confines: self.confines(db, principal).await?,
        })
    }

    /// What limits the tokens of somebody who calls, if it is a program.
    pub(super) async fn confines(
        &self,
        db: &mut Read,
        principal: &Principal,
    ) -> Result<Option<Confines>> {
        let Principal {
            id: AccountId::System(id),
            proof: Proof::Credential(credential),
            ..
        } = *principal
        else {
            return Ok(None);
        };
        let account = system_accounts::find(db, id).await?;
        let credential = credentials::find(db, id.into(), credential).await?;
        let revoked = || Error::Unauthenticated(Reason::TokenRevoked);
        let (account, credential) = account.zip(credential).ok_or_else(revoked)?;
        Ok(Some(Confines {
            account,
            credential,
        }))
    }
}

/// What the tokens of a program are limited by: its account, and the credential that it comes with.
pub(super) struct Confines {
    account: SystemAccount,
    credential: Credential,
}

impl Confines {
    pub(super) fn permit(&self, scope: &ScopeName) -> bool {
        self.account.limits.permit(scope) && self.credential.permits(&scope.scope)
    }

    /// Whether the program has come with what nobody else knows.
    pub(super) fn is_by_own_key(&self) -> bool {
        !self.credential.kind.is_shared_secret()
    }

    /// Whether a ceiling lets through what one of these does not.
    fn are_exceeded_by(&self, ceiling: &[String]) -> bool {
        let account = &self.account.limits.scope_ceiling;
        scope::is_wider(ceiling, account)
            || scope::is_wider(ceiling, &self.credential.scope_ceiling)
    }
}

/// Somebody who would give, and until when: under which names, and what they hold.
struct Granter {
    names: BTreeMap<String, Timestamp>,
    held: BTreeMap<ScopeName, Timestamp>,
    /// Says what there is to be granted, and by whom.
    maintains: Option<Timestamp>,
    confines: Option<Confines>,
}

impl Granter {
    /// Until when they may grant a scope, if at all.
    fn may_grant(&self, scope: &Scope) -> Option<Timestamp> {
        let name = &scope.name;
        // What of our own is in their token is known already.
        let could_get = name.is_own() || self.confines.as_ref().is_none_or(|it| it.permit(name));
        let held = if name.resource().is_some() {
            let wider = self.held.iter().filter(|(held, _)| held.covers(name));
            wider.map(|(_, end)| *end).max()
        } else {
            self.held.get(name).copied()
        };
        let held = held.filter(|_| could_get);
        held.max(scope.grantable_until(&self.names, self.maintains))
    }
}

fn require_end(
    scope: &Scope,
    end: Option<Timestamp>,
    until: Option<Timestamp>,
    field: &str,
) -> Result<()> {
    match end {
        None => {
            let name = if scope.name.is_own() {
                scope.name.scope.clone()
            } else {
                scope.name.to_string()
            };
            Err(Error::Denied {
                reason: Reason::ScopeNotHeld,
                scopes: vec![name],
            })
        }
        Some(end) if until.unwrap_or(Timestamp::MAX) > end => {
            let text = format!(
                "is for longer than you may grant {}: until {end}",
                scope.name
            );
            Err(Error::field(field, text))
        }
        Some(_) => Ok(()),
    }
}

/// The scope of those who say what there is to be granted.
const MAINTAINS_CATALOGUE: &str = "access.write";

//! Who may hold which scopes, and when.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    group::{self, Membership, Way},
    name::{ElevationId, GrantId, GroupId, PrincipalId},
    role,
    scope::{self, ScopeName},
    time::{Timestamp, Window},
};

/// Most grants of one principal, but for those that are over.
pub const MAX_GRANTS: i64 = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub id: GrantId,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub principal: PrincipalId,
    pub permission: Permission,
    /// What it is for, and what is below that; empty for everything.
    pub resource: String,
    pub reason: String,
    /// The resource name of whoever granted it, or `accountd`.
    pub granted_by: String,
    pub create_time: Timestamp,
    pub window: Window,
    /// What it came about by, if somebody was elevated.
    pub elevation: Option<ElevationId>,
    /// Whether it counts for those only who have shown two factors, or a key of their own.
    pub needs_step_up: bool,
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
    pub fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::Reason(text) => self.reason = text,
            Edit::ExpireTime(time) => self.window.end = time,
        }
    }

    /// To be called once with each stored change.
    pub const fn touch(&mut self) {
        self.revision += 1;
    }
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    Reason(String),
    ExpireTime(Option<Timestamp>),
}

/// The fields that an update may name.
pub const WRITABLE: [&str; 2] = ["reason", "expire_time"];

/// All that is granted to a principal and to the groups it is in, but for what is over, with what the roles
/// among it come to.
#[derive(Clone, Debug)]
pub struct Holdings {
    pub principal: PrincipalId,
    /// Of the principal, of the groups it is in, and so on; none where nothing is granted to those.
    pub memberships: Vec<Membership>,
    pub grants: Vec<Grant>,
    /// The scopes of the roles that are granted.
    pub of_roles: BTreeMap<String, Cow<'static, BTreeSet<ScopeName>>>,
}

/// What whoever has power over a principal has, too.
#[derive(Clone, Debug)]
pub struct Power {
    /// What it holds, or is going to.
    pub granted: BTreeSet<ScopeName>,
    /// What it may ask for, or let others have.
    pub on_request: BTreeSet<ScopeName>,
}

impl Power {
    pub fn scopes(&self) -> impl Iterator<Item = &ScopeName> {
        self.granted.union(&self.on_request)
    }
}

/// What a principal holds of one audience now: each scope, and by what.
pub type Held = BTreeMap<String, Source>;

/// Of the grants of a scope, the one that lasts longest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// When it ends for the principal; [`Timestamp::MAX`] if never.
    pub end_time: Timestamp,
    /// The same of those grants that need no step-up, if there are any.
    pub plain_end_time: Option<Timestamp>,
    /// The name of the role or scope that was granted.
    pub permission: String,
}

/// A grant that is in effect for a principal.
#[derive(Clone, Debug)]
pub struct Reaching<'a> {
    pub grant: &'a Grant,
    /// How the principal is in the group that it was granted to.
    pub way: Way,
    /// When that or the grant ends; [`Timestamp::MAX`] if never.
    pub end_time: Timestamp,
}

impl Reaching<'_> {
    /// The one that lasts longest first, then the shortest way.
    fn rank(&self) -> (Reverse<Timestamp>, usize, GrantId) {
        (Reverse(self.end_time), self.way.via.len(), self.grant.id)
    }
}

/// Why a grant does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    NotStarted,
    Ended,
    /// The time of a membership on the way has not come or is over.
    NoMembership,
    /// It is in effect for something else only.
    Limited,
}

impl Holdings {
    /// The scopes that a grant is of, each as it is limited by it.
    fn scopes<'a>(&'a self, grant: &'a Grant) -> impl Iterator<Item = Cow<'a, ScopeName>> {
        let (one, many) = match &grant.permission {
            Permission::Scope(scope) => (Some(scope), None),
            Permission::Role(role) => (None, self.of_roles.get(role)),
        };
        let all = one
            .into_iter()
            .chain(many.into_iter().flat_map(|scopes| scopes.iter()));
        all.filter_map(|scope| limited(scope, &grant.resource))
    }

    /// The groups that the principal is in now, and itself.
    fn ways(&self, now: Timestamp) -> BTreeMap<PrincipalId, Way> {
        let in_effect = self.memberships.iter().filter(|it| it.window.contains(now));
        group::ways(self.principal, in_effect)
    }

    /// The grants that are in effect, each with how it comes to the principal.
    pub fn reaching(&self, now: Timestamp) -> Vec<Reaching<'_>> {
        let ways = self.ways(now);
        let reaching = self.grants.iter().filter_map(|grant| {
            let way = ways
                .get(&grant.principal)
                .filter(|_| grant.window.contains(now))?
                .clone();
            let end_time = grant.window.last().min(way.end_time);
            Some(Reaching {
                grant,
                way,
                end_time,
            })
        });
        reaching.collect()
    }

    /// The one answer to what a principal's grants come to now.
    pub fn held(&self, audience: &str, now: Timestamp) -> Held {
        let mut held = Held::new();
        for Reaching {
            grant, end_time, ..
        } in self.reaching(now)
        {
            for scope in self
                .scopes(grant)
                .filter(|scope| scope.audience == audience)
            {
                let plain_end_time = (!grant.needs_step_up).then_some(end_time);
                let source = || Source {
                    end_time,
                    plain_end_time,
                    permission: grant.permission.name(),
                };
                match held.get_mut(&scope.scope) {
                    None => drop(held.insert(scope.into_owned().scope, source())),
                    Some(known) => {
                        let plain_end_time = known.plain_end_time.max(plain_end_time);
                        if known.end_time < end_time {
                            *known = source();
                        }
                        known.plain_end_time = plain_end_time;
                    }
                }
            }
        }
        held
    }

    /// Every scope that is held now, with the grants of it: the one that lasts longest first.
    pub fn effective(&self, now: Timestamp) -> BTreeMap<Cow<'_, ScopeName>, Vec<Reaching<'_>>> {
        let mut effective: BTreeMap<Cow<'_, ScopeName>, Vec<Reaching<'_>>> = BTreeMap::new();
        let mut reaching = self.reaching(now);
        reaching.sort_by_key(Reaching::rank);
        for it in reaching {
            for scope in self.scopes(it.grant) {
                effective.entry(scope).or_default().push(it.clone());
            }
        }
        effective
    }

    /// The grants of a scope that do not count now: what is wrong with each, and the groups on a way to it.
    pub fn idle(&self, scope: &ScopeName, now: Timestamp) -> Vec<(&Grant, Idle, Vec<GroupId>)> {
        let ways = group::ways(self.principal, self.memberships.iter());
        let reaching = self.reaching(now);
        let reaches = |grant: &Grant| reaching.iter().any(|it| it.grant.id == grant.id);
        let is_idle = |grant: &Grant| !reaches(grant) || !self.covers(grant, scope);
        let is_of_scope = |grant: &Grant| {
            let mut scopes = self.scopes(grant);
            scopes.any(|held| held.unlimited() == scope.unlimited())
        };
        let of_scope = self
            .grants
            .iter()
            .filter(|grant| is_of_scope(grant) && is_idle(grant));
        let idle = of_scope.filter_map(|grant| {
            let via = ways.get(&grant.principal)?.via.clone();
            let why = if grant.window.is_over(now) {
                Idle::Ended
            } else if reaches(grant) {
                Idle::Limited
            } else if grant.window.contains(now) {
                Idle::NoMembership
            } else {
                Idle::NotStarted
            };
            Some((grant, why, via))
        });
        idle.collect()
    }

    /// Whether a grant is of a scope, be it a wider one.
    fn covers(&self, grant: &Grant, scope: &ScopeName) -> bool {
        self.scopes(grant).any(|held| held.covers(scope))
    }

    /// The grants of a scope, or a wider one, that are in effect: the one that lasts longest first.
    pub fn reaching_to(&self, scope: &ScopeName, now: Timestamp) -> Vec<Reaching<'_>> {
        let mut reaching = self.reaching(now);
        reaching.retain(|it| self.covers(it.grant, scope));
        reaching.sort_by_key(Reaching::rank);
        reaching
    }

    pub fn holds(&self, scope: &ScopeName, now: Timestamp) -> bool {
        !self.reaching_to(scope, now).is_empty()
    }

    /// The names of the roles that are held now, for everything, and until when.
    pub fn roles(&self, now: Timestamp) -> BTreeMap<String, Timestamp> {
        let mut roles = BTreeMap::new();
        for it in self.reaching(now) {
            if let Permission::Role(_) = it.grant.permission
                && it.grant.resource.is_empty()
            {
                let end = roles
                    .entry(it.grant.permission.name())
                    .or_insert(it.end_time);
                *end = it.end_time.max(*end);
            }
        }
        roles
    }

    pub fn has_role(&self, role: &str, now: Timestamp) -> bool {
        let role = Permission::Role(role.to_owned());
        let reaching = self.reaching(now);
        let mut unlimited = reaching.iter().filter(|it| it.grant.resource.is_empty());
        unlimited.any(|it| it.grant.permission == role)
    }

    /// Every scope that is held or going to be.
    pub fn prospective(&self, now: Timestamp) -> BTreeSet<Cow<'_, ScopeName>> {
        let grants = self.grants.iter();
        let live = grants.filter(|grant| !grant.window.is_over(now));
        live.flat_map(|grant| self.scopes(grant)).collect()
    }
}

/// A scope as it is granted for a resource, if it can be: of our own not all can be told where they apply.
pub fn limited<'a>(scope: &'a ScopeName, resource: &str) -> Option<Cow<'a, ScopeName>> {
    if resource.is_empty() {
        return Some(Cow::Borrowed(scope));
    }
    let is_known =
        || scope::limitable().contains(&*scope.scope) && GroupId::parse(resource).is_some();
    let may_be = !scope.is_own() || is_known();
    may_be.then(|| Cow::Owned(scope.limited_to(resource)))
}

/// By what somebody has a scope, be it a wider one: the grant that lasts longest.
pub fn source<'a>(held: &'a Held, scope: &str) -> Option<&'a Source> {
    sources(held, scope).max_by_key(|source| source.end_time)
}

/// Until when somebody has a scope who has stepped up, or has not.
pub fn end(held: &Held, scope: &str, has_stepped_up: bool) -> Option<Timestamp> {
    let all = sources(held, scope);
    let ends = all.filter_map(|source| {
        let any = has_stepped_up.then_some(source.end_time);
        any.or(source.plain_end_time)
    });
    ends.max()
}

fn sources<'a>(held: &'a Held, scope: &str) -> impl Iterator<Item = &'a Source> {
    let (base, resource) = scope::split(scope);
    let limited = resource.into_iter().flat_map(move |_| {
        let all = held.range(format!("{base}@")..);
        all.take_while(move |(held, _)| scope::split(held).0 == base)
            .filter(move |(held, _)| scope::covers(held, scope))
            .map(|(_, source)| source)
    });
    held.get(base).into_iter().chain(limited)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{
        name::{AccountId, UserId},
        token::OWN_AUDIENCE,
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_000);
    const ANN: PrincipalId = PrincipalId::Account(AccountId::User(UserId(Uuid::nil())));
    const CREW: GroupId = GroupId(Uuid::nil());

    fn grant(permission: &str, start: Option<i64>, end: Option<i64>) -> Grant {
        Grant {
            id: GrantId(Uuid::nil()),
            revision: 1,
            principal: ANN,
            permission: Permission::parse(permission).expect(permission),
            resource: String::new(),
            reason: String::new(),
            granted_by: String::new(),
            create_time: NOW,
            window: Window {
                start: start.map(|s| NOW.plus_s(s)),
                end: end.map(|s| NOW.plus_s(s)),
            },
            elevation: None,
            needs_step_up: false,
        }
    }

    fn listed(held: &Held) -> Vec<&str> {
        held.keys().map(String::as_str).collect()
    }

    fn holdings(grants: impl IntoIterator<Item = Grant>) -> Holdings {
        let name = |name: &str| ScopeName::parse(name).expect(name);
        let packer = [
            "scopes/shop:pack",
            "scopes/shop:ship",
            "scopes/accountd:users.read",
        ];
        let mut roles = role::BUILT_IN
            .map(|role| {
                (
                    role.to_owned(),
                    Cow::Borrowed(role::built_in(role).expect(role)),
                )
            })
            .to_vec();
        roles.push(("packer".to_owned(), Cow::Owned(packer.map(name).into())));
        Holdings {
            principal: ANN,
            memberships: Vec::new(),
            grants: grants.into_iter().collect(),
            of_roles: roles.into_iter().collect(),
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
        let effective = holdings.effective(NOW);
        let end = |name: &str| {
            let grants = effective.get(&Cow::Owned(ScopeName::parse(name).expect(name)))?;
            grants.first().map(|it| it.end_time)
        };
        assert_eq!(end("scopes/accountd:users.read"), Some(NOW.plus_s(9)));
        assert_eq!(end("scopes/accountd:keys.read"), Some(Timestamp::MAX));
        assert_eq!(end("scopes/accountd:keys.write"), None, "not held");
    }

    #[test]
    fn only_grants_in_effect_count_and_the_one_that_lasts_longest_is_known() {
        let holdings = holdings([
            grant("scopes/accountd:users.read", None, None),
            grant("roles/resource-server", Some(0), Some(50)),
            grant("scopes/accountd:users.read", Some(-5), Some(90)),
            grant("scopes/accountd:keys.write", Some(1), None),
            grant("scopes/accountd:keys.read", None, Some(0)),
        ]);
        let held = holdings.held(OWN_AUDIENCE, NOW);
        assert_eq!(listed(&held), ["tokens.introspect", "users.read"]);
        assert_eq!(held["tokens.introspect"].end_time, NOW.plus_s(50));
        assert_eq!(held["users.read"].end_time, Timestamp::MAX);
        assert_eq!(self::holdings([]).held(OWN_AUDIENCE, NOW), Held::default());
        let prospective = holdings.prospective(NOW);
        assert!(prospective.contains(&Cow::Owned(ScopeName::own("keys.write"))));
        assert!(!prospective.contains(&Cow::Owned(ScopeName::own("keys.read"))));
    }

    #[test]
    fn what_needs_a_step_up_is_told_from_what_does_not() {
        let ends = |grants: [Grant; 2]| {
            let held = holdings(grants).held(OWN_AUDIENCE, NOW);
            [true, false].map(|has_stepped_up| end(&held, "users.read", has_stepped_up))
        };
        let plain = || grant("scopes/accountd:users.read", None, Some(5));
        let strict = || Grant {
            needs_step_up: true,
            ..grant("scopes/accountd:users.read", None, Some(9))
        };
        let both = [Some(NOW.plus_s(9)), Some(NOW.plus_s(5))];
        assert_eq!(ends([plain(), strict()]), both);
        assert_eq!(ends([strict(), plain()]), both);
        assert_eq!(ends([strict(), strict()]), [Some(NOW.plus_s(9)), None]);
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
        assert_eq!(listed(&held), ["pack", "refund", "ship"]);
        let by = |scope: &str| (&*held[scope].permission, held[scope].end_time);
        assert_eq!(by("pack"), ("roles/packer", NOW.plus_s(60)));
        assert_eq!(by("refund"), ("scopes/shop:refund", Timestamp::MAX));
        assert_eq!(listed(&holdings.held(OWN_AUDIENCE, NOW)), ["users.read"]);
        assert!(holdings.has_role("packer", NOW) && !holdings.has_role("packer", NOW.plus_s(60)));
    }

    #[test]
    fn what_a_group_holds_reaches_who_is_in_it_and_for_as_long() {
        let mut holdings = holdings([grant("roles/packer", None, Some(60))]);
        holdings.grants[0].principal = CREW.into();
        assert_eq!(holdings.held("shop", NOW), Held::default());
        holdings.memberships.push(Membership {
            group: CREW,
            member: ANN,
            window: Window {
                start: None,
                end: Some(NOW.plus_s(7)),
            },
            added_by: String::new(),
            create_time: NOW,
        });
        let held = holdings.held("shop", NOW);
        assert_eq!((held.len(), held["pack"].end_time), (2, NOW.plus_s(7)));
        let roles = [("roles/packer".to_owned(), NOW.plus_s(7))];
        assert_eq!(holdings.roles(NOW), BTreeMap::from(roles));
        let effective = holdings.effective(NOW);
        let pack = ScopeName::parse("scopes/shop:pack").expect("a name");
        let by = &effective[&Cow::Borrowed(&pack)][0];
        assert_eq!((&by.way.via, by.end_time), (&vec![CREW], NOW.plus_s(7)));
        assert_eq!(holdings.held("shop", NOW.plus_s(7)), Held::default());
        holdings.memberships[0].window.start = Some(NOW.plus_s(1));
        assert_eq!(holdings.held("shop", NOW), Held::default());
        assert_eq!(holdings.prospective(NOW).len(), 3, "is going to have it");
        let why = |now| {
            let idle = holdings.idle(&pack, now).into_iter();
            let idle: Vec<_> = idle.map(|(_, why, via)| (why, via)).collect();
            idle
        };
        assert_eq!(why(NOW), [(Idle::NoMembership, vec![CREW])]);
        assert_eq!(why(NOW.plus_s(1)), []);
        assert_eq!(why(NOW.plus_s(60)), [(Idle::Ended, vec![CREW])]);
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

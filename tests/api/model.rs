//! Ten thousand things that administrators of different power may try, beside a model that is too simple to be
//! wrong: who may do what is what the model says, and nobody ever has what it forbids.
//!
//! The model knows no groups of groups but by going through them, no SQL, no tokens and no indexes.

use std::collections::{BTreeMap, BTreeSet};

use accountd::grpc::pb;
use jsonwebtoken::Algorithm;
use pb::system_account::Kind;
use tonic::{Code, Status};

use crate::{
    assertions::Program,
    elevations::{self, transfer},
    groups,
    harness::{Actor, Engine, Refusal as _, Server, grant_request, on_both_engines},
    roles,
};

const STEPS: usize = 12_500;
const ACCOUNTS: usize = 6;
const GROUPS: usize = 6;
const ROLES: usize = 4;
const FOREVER: i64 = i64::MAX;

/// What there is to be had; the first four let somebody give.
const SCOPES: [&str; 8] = [
    "grants.write",
    "groups.write",
    "access.write",
    "elevations.write",
    "system_accounts.read",
    "keys.read",
    "events.read",
    "contacts.read",
];
/// Which of them can be had for a group only.
const LIMITABLE: [usize; 3] = [1, 4, 7];

/// A scope, and the group that it is for, if it is not for everything; by their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    scope: usize,
    group: Option<usize>,
}

impl Piece {
    fn covers(self, other: Self) -> bool {
        self.scope == other.scope && (self.group.is_none() || self.group == other.group)
    }
}

fn for_all(scope: usize) -> Piece {
    Piece { scope, group: None }
}

/// An account or a group, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Account(usize),
    Group(usize),
}

/// A role or a scope, by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Role(usize),
    Scope(usize),
}

#[derive(Clone, Debug)]
struct Grant {
    name: String,
    to: Who,
    what: What,
    /// The group that it is for.
    group: Option<usize>,
    end: i64,
    /// The elevation that it came about by.
    elevation: Option<usize>,
}

#[derive(Clone, Debug)]
struct Entitlement {
    name: String,
    whose: Who,
    role: usize,
    approvers: Vec<Who>,
    is_removed: bool,
}

#[derive(Clone, Debug)]
struct Elevation {
    name: String,
    entitlement: usize,
    requester: usize,
    /// When it lapses or ends; in the past if it is over.
    until: i64,
    is_active: bool,
}

/// What is the case.
#[derive(Default)]
struct Model {
    now: i64,
    grants: Vec<Grant>,
    /// Group and member, and until when.
    members: BTreeMap<(usize, Who), i64>,
    roles: Vec<BTreeSet<usize>>,
    entitlements: Vec<Entitlement>,
    elevations: Vec<Elevation>,
}

impl Model {
    /// Whom somebody acts as, and until when.
    fn is(&self, who: Who) -> BTreeMap<Who, i64> {
        let mut is = BTreeMap::from([(who, FOREVER)]);
        // As many rounds as there are groups reach all of them by the best way.
        for _ in 0..=GROUPS {
            for ((group, member), end) in &self.members {
                if let (Some(until), true) = (is.get(member).copied(), *end > self.now) {
                    let known = is.entry(Who::Group(*group)).or_insert(0);
                    *known = (*known).max(until.min(*end));
                }
            }
        }
        is
    }

    fn pieces(&self, what: What, group: Option<usize>) -> BTreeSet<Piece> {
        let scopes = match what {
            What::Role(role) => self.roles[role].clone(),
            What::Scope(scope) => BTreeSet::from([scope]),
        };
        let can_be = scopes
            .into_iter()
            .filter(|scope| group.is_none() || LIMITABLE.contains(scope));
        can_be.map(|scope| Piece { scope, group }).collect()
    }

    /// What somebody holds, and until when.
    fn holds(&self, who: Who) -> BTreeMap<Piece, i64> {
        let (is, mut holds) = (self.is(who), BTreeMap::new());
        for grant in self.grants.iter().filter(|grant| grant.end > self.now) {
            if let Some(until) = is.get(&grant.to) {
                for piece in self.pieces(grant.what, grant.group) {
                    let known = holds.entry(piece).or_insert(0);
                    *known = (*known).max(grant.end.min(*until));
                }
            }
        }
        holds
    }

    /// What whoever has somebody in hand could come to.
    fn power(&self, who: Who) -> BTreeSet<Piece> {
        let (is, mut power) = (self.is(who), BTreeSet::new());
        power.extend(self.holds(who).keys());
        for entitlement in self.entitlements.iter().filter(|it| !it.is_removed) {
            let has_part = |who: &Who| is.contains_key(who);
            if has_part(&entitlement.whose) || entitlement.approvers.iter().any(has_part) {
                power.extend(self.pieces(What::Role(entitlement.role), None));
            }
        }
        power
    }

    fn may_give(&self, by: usize, pieces: &BTreeSet<Piece>, until: i64) -> bool {
        let holds = self.holds(Who::Account(by));
        pieces.iter().all(|piece| {
            let mut wider = holds.iter().filter(|(held, _)| held.covers(*piece));
            wider.any(|(_, end)| until <= *end)
        })
    }

    fn outranks(&self, by: usize, whom: Who) -> bool {
        let holds = self.holds(Who::Account(by));
        self.power(whom)
            .iter()
            .all(|piece| holds.keys().any(|held| held.covers(*piece)))
    }

    fn may(&self, by: usize, scope: &str) -> bool {
        let holds = self.holds(Who::Account(by));
        holds.contains_key(&for_all(place_of(scope)))
    }

    /// Whether somebody may do that to this one, be it because of a group only.
    fn may_to(&self, by: usize, scope: &str, whom: Who) -> bool {
        self.may(by, scope) || self.has_in_hand(by, scope, whom)
    }

    /// Whether this one is in a group that somebody may do that in.
    fn has_in_hand(&self, by: usize, scope: &str, whom: Who) -> bool {
        let is = self.is(whom);
        let holds = self.holds(Who::Account(by));
        let mut limited = holds.keys().filter(|held| held.scope == place_of(scope));
        limited.any(|held| {
            held.group
                .is_some_and(|it| is.contains_key(&Who::Group(it)))
        })
    }

    /// Whether somebody may put one into a group as far as those are concerned who have its people in hand.
    fn may_expose(&self, by: usize, group: usize, member: Who, until: i64) -> bool {
        let is = self.is(member);
        self.is(Who::Group(group)).into_keys().all(|above| {
            let Who::Group(above_place) = above else {
                return true;
            };
            let known = is.get(&above).is_some_and(|end| until <= *end);
            let live = self.grants.iter().filter(|it| it.end > self.now);
            let mut exposing = live.filter(|it| it.group == Some(above_place));
            known
                || exposing.all(|grant| {
                    let limited = self.pieces(grant.what, grant.group).into_iter();
                    let pieces = limited.map(|piece| for_all(piece.scope)).collect();
                    self.may_give(by, &pieces, until)
                })
        })
    }

    /// How many groups there are in one another from a group outwards, or inwards.
    fn depth(&self, group: usize, outwards: bool) -> usize {
        let next = self.members.iter().filter_map(|((outer, member), end)| {
            let Who::Group(inner) = member else {
                return None;
            };
            let (here, there) = if outwards {
                (inner, outer)
            } else {
                (outer, inner)
            };
            (*end > self.now && *here == group).then(|| self.depth(*there, outwards))
        });
        1 + next.max().unwrap_or(0)
    }

    fn open(&self, elevation: &Elevation) -> bool {
        elevation.until > self.now
    }
}

fn place_of(scope: &str) -> usize {
    SCOPES.iter().position(|it| *it == scope).expect(scope)
}

/// Numbers that look like chance and are the same in every run (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let limit = u64::try_from(limit).expect("small");
        usize::try_from((mixed ^ (mixed >> 31)) % limit).expect("small")
    }
}

/// The server, and what its names stand for.
struct Stage {
    server: Server,
    model: Model,
    random: Random,
    accounts: Vec<Program>,
    groups: Vec<String>,
}

impl Stage {
    async fn set(engine: Engine, seed: u64) -> Self {
        let server = engine.server().await;
        let operator = server.operator().await;
        let mut stage = Self {
            model: Model {
                now: server.now().seconds(),
                ..Model::default()
            },
            random: Random(seed),
            accounts: Vec::new(),
            groups: Vec::new(),
            server,
        };
        for number in 0..ROLES {
            let made = roles::create(&operator, roles::role(&role_name(number), &[])).await;
            made.expect("a role");
            stage.model.roles.push(BTreeSet::new());
        }
        for number in 0..GROUPS {
            stage
                .groups
                .push(groups::create(&operator, &format!("group {number}")).await);
        }
        for number in 0..ACCOUNTS {
            let owner = operator
                .create_user(pb::User::default())
                .await
                .expect("an owner");
            // Who comes with a secret could agree to nothing.
            let program = Program::new(&stage.server, Algorithm::ES256, Kind::Service).await;
            transfer(&stage.server, &program.account.name, &owner.name).await;
            stage.accounts.push(program);
            // The first has everything, the second everything to give with, the others less and less.
            let scopes: Vec<usize> = match number {
                0 => (0..SCOPES.len()).collect(),
                1 => (0..6).collect(),
                _ => vec![number - 2, 4 + number % 4],
            };
            for scope in scopes {
                let name = &stage.accounts[number].account.name;
                let made = stage.server.grant(name, &scope_name(scope)).await;
                stage.model.grants.push(Grant {
                    name: made.name,
                    to: Who::Account(number),
                    what: What::Scope(scope),
                    group: None,
                    end: FOREVER,
                    elevation: None,
                });
            }
        }
        stage
    }

    fn name(&self, who: Who) -> &str {
        match who {
            Who::Account(number) => &self.accounts[number].account.name,
            Who::Group(number) => &self.groups[number],
        }
    }

    /// As a token has it.
    fn told(&self, piece: Piece) -> String {
        let scope = SCOPES[piece.scope];
        match piece.group {
            None => scope.to_owned(),
            Some(group) => format!("{scope}@{}", self.groups[group]),
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit)
    }

    fn anybody(&mut self) -> Who {
        let number = self.below(ACCOUNTS + GROUPS);
        number
            .checked_sub(ACCOUNTS)
            .map_or(Who::Account(number), Who::Group)
    }

    fn any_end(&mut self) -> i64 {
        match self.below(3) {
            0 => FOREVER,
            1 => self.model.now + 200,
            _ => self.model.now + 2_000,
        }
    }

    /// Somebody with a token that has all they hold; which is what the model says.
    async fn actor(&self, number: usize) -> Actor {
        let tokens = self.accounts[number].tokens(&self.server).await;
        let held = self.model.holds(Who::Account(number));
        let is_part =
            |piece: &&Piece| piece.group.is_some() && held.contains_key(&for_all(piece.scope));
        let told = held.keys().filter(|piece| !is_part(piece));
        let mut expected: Vec<String> = told.map(|piece| self.told(*piece)).collect();
        expected.sort_unstable();
        assert_eq!(tokens.scopes, expected, "account {number}");
        self.server.with_token(&tokens.access_token).await
    }
}

fn role_name(number: usize) -> String {
    format!("roles/made-{number}")
}

fn scope_name(number: usize) -> String {
    format!("scopes/accountd:{}", SCOPES[number])
}

fn time(end: i64) -> Option<prost_types::Timestamp> {
    (end != FOREVER).then_some(prost_types::Timestamp {
        seconds: end,
        nanos: 0,
    })
}

impl Stage {
    /// Tries something, and what became of it; the model says whether it may be.
    async fn step(&mut self) -> (String, bool, Result<(), Status>) {
        let by = self.below(ACCOUNTS);
        let actor = self.actor(by).await;
        match self.below(24) {
            0..5 => self.give(by, &actor).await,
            5..7 => self.take(by, &actor).await,
            7..10 => self.add(by, &actor).await,
            10..12 => self.remove(by, &actor).await,
            12..14 => self.change_role(by, &actor).await,
            14 => self.entitle(by, &actor).await,
            15..17 => self.ask(by, &actor).await,
            17..19 => self.approve(by, &actor).await,
            19 => self.end(by, &actor).await,
            20..22 => self.look(by, &actor).await,
            22 => self.list(by, &actor).await,
            _ => {
                self.server.advance_s(50);
                self.model.now += 50;
                ("time goes by".to_owned(), true, Ok(()))
            }
        }
    }

    async fn give(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        let (to, end) = (self.anybody(), self.any_end());
        let what = if self.below(2) == 0 {
            What::Role(self.below(ROLES))
        } else {
            What::Scope(self.below(SCOPES.len()))
        };
        let group = (self.below(3) == 0).then(|| self.below(GROUPS));
        let pieces = self.model.pieces(what, group);
        let is_full = self
            .model
            .grants
            .iter()
            .filter(|grant| grant.to == to)
            .count()
            >= 1_000;
        let expected = self.model.may(by, "grants.write")
            && (group.is_none() || !pieces.is_empty())
            && self.model.may_give(by, &pieces, end)
            && self.model.outranks(by, to)
            && !is_full;
        let permission = match what {
            What::Role(role) => role_name(role),
            What::Scope(scope) => scope_name(scope),
        };
        let mut request = grant_request(self.name(to), &permission);
        let grant = request.grant.as_mut().expect("set");
        grant.expire_time = time(end);
        grant.resource = group.map_or(String::new(), |group| self.groups[group].clone());
        let outcome = actor.grants().create_grant(request).await;
        let outcome = outcome.map(|made| {
            let name = made.into_inner().name;
            let elevation = None;
            self.model.grants.push(Grant {
                name,
                to,
                what,
                group,
                end,
                elevation,
            });
        });
        (
            format!("{by} gives {to:?} {what:?} for {group:?} until {end}"),
            expected,
            outcome,
        )
    }

    async fn take(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        if self.model.grants.is_empty() {
            return ("nothing to take".to_owned(), true, Ok(()));
        }
        let place = self.below(self.model.grants.len());
        let grant = self.model.grants[place].clone();
        let is_lent = grant.elevation.is_some() && grant.end > self.model.now;
        let expected = self.model.may(by, "grants.write")
            && !is_lent
            && self.model.may_give(
                by,
                &self.model.pieces(grant.what, grant.group),
                self.model.now,
            )
            && self.model.outranks(by, grant.to);
        let request = pb::DeleteGrantRequest {
            name: grant.name.clone(),
            ..Default::default()
        };
        let outcome = actor.grants().delete_grant(request).await.map(|_| {
            self.model.grants.remove(place);
        });
        (format!("{by} takes {grant:?}"), expected, outcome)
    }

    async fn add(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        let (group, member, end) = (self.below(GROUPS), self.anybody(), self.any_end());
        let fits = match member {
            Who::Group(inner) => {
                let circle = self.model.is(Who::Group(group)).contains_key(&member);
                let deep = || self.model.depth(group, true) + self.model.depth(inner, false);
                !circle && deep() <= 10
            }
            Who::Account(_) => true,
        };
        let whole = self.model.may(by, "groups.write");
        // Who leaves somebody what they have, or less, gives nothing.
        let known = self.model.members.get(&(group, member)).copied();
        let is_less = known.is_some_and(|known| known > self.model.now && known >= end);
        let given_until = if is_less { self.model.now } else { end };
        let expected = self.model.may_to(by, "groups.write", Who::Group(group))
            && (whole || self.model.has_in_hand(by, "groups.write", member))
            && self
                .model
                .may_give(by, &self.model.power(Who::Group(group)), given_until)
            && self.model.may_expose(by, group, member, given_until)
            && self.model.outranks(by, member)
            && fits;
        let until = time(end).map(|time| time.seconds);
        let names = (self.groups[group].clone(), self.name(member).to_owned());
        let outcome = groups::add_for(actor, &names.0, &names.1, (None, until)).await;
        let outcome = outcome.map(|_| {
            self.model.members.insert((group, member), end);
        });
        (
            format!("{by} puts {member:?} into {group} until {end}"),
            expected,
            outcome,
        )
    }

    async fn remove(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        let place = self.below(GROUPS * 4);
        let Some((group, member)) = self.model.members.keys().nth(place).copied() else {
            return ("nobody to remove".to_owned(), true, Ok(()));
        };
        let expected = self.model.may_to(by, "groups.write", Who::Group(group))
            && self
                .model
                .may_give(by, &self.model.power(Who::Group(group)), self.model.now)
            && self.model.outranks(by, member);
        let outcome = groups::remove(actor, &self.groups[group], self.name(member)).await;
        let outcome = outcome.map(|()| {
            self.model.members.remove(&(group, member));
        });
        (
            format!("{by} takes {member:?} out of {group}"),
            expected,
            outcome,
        )
    }

    async fn change_role(
        &mut self,
        by: usize,
        actor: &Actor,
    ) -> (String, bool, Result<(), Status>) {
        let (role, scope) = (self.below(ROLES), self.below(SCOPES.len()));
        let mut scopes = self.model.roles[role].clone();
        if !scopes.remove(&scope) {
            scopes.insert(scope);
        }
        let expected = self.model.may(by, "access.write")
            && self
                .model
                .may_give(by, &BTreeSet::from([for_all(scope)]), FOREVER);
        let names: Vec<String> = scopes.iter().map(|scope| scope_name(*scope)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let changed = roles::role(&role_name(role), &names);
        let outcome = roles::update(actor, changed, &["scopes"]).await;
        let outcome = outcome.map(|_| self.model.roles[role] = scopes);
        (
            format!("{by} turns scope {scope} of role {role}"),
            expected,
            outcome,
        )
    }

    async fn entitle(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        let live = self.model.entitlements.iter().filter(|it| !it.is_removed);
        if live.count() > 6 {
            return self.remove_entitlement(by, actor).await;
        }
        let (whose, role) = (self.anybody(), self.below(ROLES));
        let mut approvers: Vec<Who> = (0..self.below(3)).map(|_| self.anybody()).collect();
        approvers.dedup();
        let expected = self.model.may(by, "elevations.write")
            && self
                .model
                .may_give(by, &self.model.pieces(What::Role(role), None), FOREVER)
            && self.model.outranks(by, whose)
            && approvers.iter().all(|it| self.model.outranks(by, *it));
        let entitlement = pb::Entitlement {
            role: role_name(role),
            approvers: approvers
                .iter()
                .map(|it| self.name(*it).to_owned())
                .collect(),
            ..elevations::entitlement(self.name(whose), &[])
        };
        let said = format!("{by} entitles {whose:?} to role {role}, {approvers:?} agreeing");
        let outcome = elevations::entitle(actor, entitlement).await.map(|made| {
            let (name, is_removed) = (made.name, false);
            self.model.entitlements.push(Entitlement {
                name,
                whose,
                role,
                approvers,
                is_removed,
            });
        });
        (said, expected, outcome)
    }

    async fn remove_entitlement(
        &mut self,
        by: usize,
        actor: &Actor,
    ) -> (String, bool, Result<(), Status>) {
        let place = self.below(self.model.entitlements.len());
        let entitlement = self.model.entitlements[place].clone();
        let expected = self.model.may(by, "elevations.write")
            && !entitlement.is_removed
            && self.model.may_give(
                by,
                &self.model.pieces(What::Role(entitlement.role), None),
                self.model.now,
            );
        let outcome = elevations::delete(actor, &entitlement.name).await;
        let outcome = outcome.map(|()| self.model.entitlements[place].is_removed = true);
        (format!("{by} removes {entitlement:?}"), expected, outcome)
    }

    async fn ask(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        if self.model.entitlements.is_empty() {
            return ("nothing to ask by".to_owned(), true, Ok(()));
        }
        let place = self.below(self.model.entitlements.len());
        let entitlement = self.model.entitlements[place].clone();
        let is_open = self
            .model
            .elevations
            .iter()
            .any(|it| it.entitlement == place && it.requester == by && self.model.open(it));
        let expected = !entitlement.is_removed
            && self
                .model
                .is(Who::Account(by))
                .contains_key(&entitlement.whose)
            && !is_open;
        let shown = pb::Entitlement {
            name: entitlement.name.clone(),
            ..Default::default()
        };
        let wish = pb::RequestElevationRequest {
            duration: Some(prost_types::Duration {
                seconds: 300,
                nanos: 0,
            }),
            ..elevations::wish(&shown)
        };
        let outcome = elevations::ask(actor, wish).await.map(|made| {
            let is_active = entitlement.approvers.is_empty();
            let lapse_s = self.server.running.app.config.elevation.request_s;
            let until = if is_active {
                self.lent_until(by, entitlement.whose)
            } else {
                self.model.now + lapse_s
            };
            let (name, requester) = (made.name, by);
            self.model.elevations.push(Elevation {
                name,
                entitlement: place,
                requester,
                until,
                is_active,
            });
            if is_active {
                self.lend(made.grant, self.model.elevations.len() - 1);
            }
        });
        (format!("{by} asks by {entitlement:?}"), expected, outcome)
    }

    /// Looks at what belongs to one account.
    async fn look(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        let at = self.below(ACCOUNTS);
        let expected = by == at || self.model.may_to(by, "contacts.read", Who::Account(at));
        let request = pb::ListContactsRequest {
            parent: self.accounts[at].account.name.clone(),
            ..Default::default()
        };
        let outcome = actor.contacts().list_contacts(request).await.map(drop);
        (format!("{by} looks at {at}"), expected, outcome)
    }

    /// Lists accounts, and sees those only whom the model says.
    async fn list(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        let holds = self.model.holds(Who::Account(by));
        let expected = holds
            .keys()
            .any(|it| SCOPES[it.scope] == "system_accounts.read");
        let request = pb::ListSystemAccountsRequest {
            page_size: 1_000,
            ..Default::default()
        };
        let outcome = actor.system_accounts().list_system_accounts(request).await;
        let outcome = outcome.map(|listed| {
            let found = listed.into_inner().system_accounts;
            let found: BTreeSet<String> = found.into_iter().map(|it| it.name).collect();
            let is_seen = |at: &usize| {
                self.model
                    .may_to(by, "system_accounts.read", Who::Account(*at))
            };
            let seen = (0..ACCOUNTS).filter(is_seen);
            let seen: BTreeSet<String> = seen
                .map(|at| self.accounts[at].account.name.clone())
                .collect();
            if self.model.may(by, "system_accounts.read") {
                assert!(found.is_superset(&seen));
            } else {
                assert_eq!(found, seen);
            }
        });
        (format!("{by} lists accounts"), expected, outcome)
    }

    /// When what somebody is lent now ends, whom it is for by who they are.
    fn lent_until(&self, requester: usize, whose: Who) -> i64 {
        let is = self.model.is(Who::Account(requester));
        is[&whose].min(self.model.now + 300)
    }

    /// Writes down the grant that an elevation has become.
    fn lend(&mut self, name: String, place: usize) {
        let elevation = &self.model.elevations[place];
        let entitlement = &self.model.entitlements[elevation.entitlement];
        self.model.grants.push(Grant {
            name,
            to: Who::Account(elevation.requester),
            what: What::Role(entitlement.role),
            group: None,
            end: elevation.until,
            elevation: Some(place),
        });
    }

    async fn approve(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        let Some(place) = self.some_elevation() else {
            return ("nothing to approve".to_owned(), true, Ok(()));
        };
        let elevation = self.model.elevations[place].clone();
        let entitlement = self.model.entitlements[elevation.entitlement].clone();
        let is = self.model.is(Who::Account(by));
        let expected = !entitlement.is_removed
            && !elevation.is_active
            && self.model.open(&elevation)
            && elevation.requester != by
            && entitlement.approvers.iter().any(|it| is.contains_key(it))
            && self
                .model
                .is(Who::Account(elevation.requester))
                .contains_key(&entitlement.whose);
        let shown = pb::Elevation {
            name: elevation.name.clone(),
            ..Default::default()
        };
        let outcome = elevations::approve(actor, &shown).await.map(|begun| {
            let until = self.lent_until(elevation.requester, entitlement.whose);
            let it = &mut self.model.elevations[place];
            (it.is_active, it.until) = (true, until);
            self.lend(begun.grant, place);
        });
        (
            format!("{by} approves {elevation:?} by {entitlement:?}"),
            expected,
            outcome,
        )
    }

    async fn end(&mut self, by: usize, actor: &Actor) -> (String, bool, Result<(), Status>) {
        let Some(place) = self.some_elevation() else {
            return ("nothing to end".to_owned(), true, Ok(()));
        };
        let elevation = self.model.elevations[place].clone();
        let entitlement = self.model.entitlements[elevation.entitlement].clone();
        let is = self.model.is(Who::Account(by));
        let has_part = elevation.requester == by
            || !entitlement.is_removed
                && entitlement.approvers.iter().any(|it| is.contains_key(it));
        let role = self.model.pieces(What::Role(entitlement.role), None);
        let could_give = self.model.may(by, "elevations.write")
            && self.model.may_give(by, &role, self.model.now);
        let expected = (has_part || could_give) && self.model.open(&elevation);
        let shown = pb::Elevation {
            name: elevation.name.clone(),
            ..Default::default()
        };
        let outcome = elevations::end(actor, &shown).await.map(|_| {
            let now = self.model.now;
            self.model.elevations[place].until = now;
            let lent = self.model.grants.iter_mut();
            lent.filter(|grant| grant.elevation == Some(place))
                .for_each(|grant| grant.end = grant.end.min(now));
        });
        (format!("{by} ends {elevation:?}"), expected, outcome)
    }

    /// One of the latest.
    fn some_elevation(&mut self) -> Option<usize> {
        let count = self.model.elevations.len();
        count.checked_sub(1 + self.below(count.clamp(1, 8)))
    }

    /// An operator, who is not of the model, gives the first ones back what was taken from them.
    async fn restore(&mut self) {
        for number in 0..3 {
            let held = self.model.holds(Who::Account(number));
            for scope in (0..SCOPES.len()).filter(|scope| number == 0 || *scope < 6) {
                if held.get(&for_all(scope)) != Some(&FOREVER) {
                    let name = self.accounts[number].account.name.clone();
                    let made = self.server.grant(&name, &scope_name(scope)).await;
                    self.model.grants.push(Grant {
                        name: made.name,
                        to: Who::Account(number),
                        what: What::Scope(scope),
                        group: None,
                        end: FOREVER,
                        elevation: None,
                    });
                }
            }
        }
    }

    /// What the server says that everybody holds, and until when, is what the model says.
    async fn compare(&self) {
        let operator = self.server.operator().await;
        let accounts = (0..ACCOUNTS).map(Who::Account);
        for who in accounts.chain((0..GROUPS).map(Who::Group)) {
            let request = pb::ListEffectiveScopesRequest {
                parent: self.name(who).to_owned(),
                page_size: 1_000,
                ..Default::default()
            };
            let answer = operator.grants().list_effective_scopes(request).await;
            let answer = answer.expect("a list").into_inner().effective_scopes;
            let found = answer.into_iter().map(|it| {
                let end = it.expire_time.map_or(FOREVER, |time| time.seconds);
                ((it.scope, it.resource), end)
            });
            let found: BTreeMap<(String, String), i64> = found.collect();
            let held = self.model.holds(who).into_iter();
            let expected = held.map(|(piece, end)| {
                let group = piece.group.map(|group| self.groups[group].clone());
                ((scope_name(piece.scope), group.unwrap_or_default()), end)
            });
            let expected: BTreeMap<(String, String), i64> = expected.collect();
            assert_eq!(found, expected, "{who:?}");
        }
    }
}

on_both_engines! {
    async fn nobody_comes_to_more_than_the_model_allows(engine: Engine) {
        let mut stage = Stage::set(engine, 6).await;
        let mut done: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut last = std::collections::VecDeque::new();
        for number in 0..STEPS {
            let (said, expected, outcome) = stage.step().await;
            let kind = said.split(' ').nth(1).unwrap_or_default().to_owned();
            let counts = done.entry(kind).or_default();
            if outcome.is_ok() { counts.0 += 1 } else { counts.1 += 1 }
            let is_done = outcome.is_ok();
            if let Err(status) = &outcome {
                let is_refusal = !matches!(
                    status.code(),
                    Code::Internal | Code::Unknown | Code::Aborted | Code::Unavailable | Code::Unauthenticated
                );
                assert!(is_refusal, "{said}: {status:?}");
            }
            last.push_back(format!("{number}: {said}: {}", outcome.outcome()));
            if last.len() > 12 { last.pop_front(); }
            assert_eq!(is_done, expected, "{last:#?}");
            if number % 50 == 0 {
                stage.restore().await;
            }
            if number % 250 == 0 {
                stage.compare().await;
            }
        }
        stage.compare().await;
        let of = |kind: &str| done.get(kind).map_or(0, |counts| counts.0 + counts.1);
        let administrative = STEPS - ["looks", "lists", "goes"].map(of).iter().sum::<usize>();
        assert!(administrative >= 10_000, "{done:?}");
        for kind in [
            "gives", "takes", "puts", "turns", "entitles", "asks", "approves", "ends", "looks", "lists",
        ] {
            let (accepted, refused) = done[kind];
            assert!(accepted >= 5 && refused >= 5, "{kind}: {done:?}");
        }
    }
}

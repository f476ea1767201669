//! Power that is borrowed: who may ask for which role, who has to agree, and how long it lasts then.
//!
//! Invariant: nobody agrees with themselves, nor by a program of theirs; nothing has to happen for a request to
//! lapse or for an elevation to end.

use super::{
    event::Event,
    name::{AccountId, ElevationId, EntitlementId, GrantId, PrincipalId},
    time::{self, Timestamp},
};

/// Most entitlements.
pub const MAX_ENTITLEMENTS: i64 = 10_000;
/// Most approvers of one entitlement.
pub const MAX_APPROVERS: usize = 20;
/// The longest that anybody is elevated for, in seconds.
pub const MAX_DURATION_S: i64 = 7 * 86_400;
/// Most characters of a ticket.
pub const MAX_TICKET: usize = 200;
/// Most characters of a description.
pub const MAX_DESCRIPTION: usize = 1000;

/// Who may ask for a role, and on what terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    pub id: EntitlementId,
    /// Counts the changes; the etag.
    pub revision: i64,
    /// An account, or a group for all in it.
    pub principal: PrincipalId,
    /// Without `roles/`.
    pub role: String,
    pub max_duration_s: i64,
    /// Sorted; without any, nobody has to agree.
    pub approvers: Vec<PrincipalId>,
    pub needs_ticket: bool,
    pub needs_step_up: bool,
    pub description: String,
    /// The resource name of whoever made it.
    pub created_by: String,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    pub expire_time: Option<Timestamp>,
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    MaxDuration(i64),
    Approvers(Vec<PrincipalId>),
    NeedsTicket(bool),
    NeedsStepUp(bool),
    Description(String),
    ExpireTime(Option<Timestamp>),
}

/// The fields that an update may name.
pub const WRITABLE: [&str; 6] = [
    "max_duration",
    "approvers",
    "ticket_required",
    "step_up_required",
    "description",
    "expire_time",
];

impl Entitlement {
    pub fn is_over(&self, now: Timestamp) -> bool {
        time::has_passed(self.expire_time, now)
    }

    /// Whether it lets nobody have anything that it did not let them have before, on the same terms or harder ones.
    pub fn is_within(&self, before: &Self, now: Timestamp) -> bool {
        let end = |it: &Self| it.expire_time.unwrap_or(Timestamp::MAX);
        // Without any, nobody has to agree; and who may agree may also end what others have.
        let has_no_new_approver = self.approvers.is_empty() == before.approvers.is_empty()
            && self
                .approvers
                .iter()
                .all(|it| before.approvers.contains(it));
        !before.is_over(now)
            && end(self) <= end(before)
            && self.max_duration_s <= before.max_duration_s
            && has_no_new_approver
            && self.needs_ticket >= before.needs_ticket
            && self.needs_step_up >= before.needs_step_up
    }

    pub fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::MaxDuration(seconds) => self.max_duration_s = seconds,
            Edit::Approvers(mut approvers) => {
                approvers.sort();
                self.approvers = approvers;
            }
            Edit::NeedsTicket(needs) => self.needs_ticket = needs,
            Edit::NeedsStepUp(needs) => self.needs_step_up = needs,
            Edit::Description(text) => self.description = text,
            Edit::ExpireTime(time) => self.expire_time = time,
        }
    }

    /// To be called once with each stored change.
    pub fn touch(&mut self, now: Timestamp) {
        self.revision += 1;
        self.update_time = now;
    }
}

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Somebody has to agree.
    Pending,
    Active,
    Denied,
    /// Nobody has answered in time.
    Lapsed,
    /// It was in effect, or it was taken back before.
    Ended,
}

impl State {
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Active,
        Self::Denied,
        Self::Lapsed,
        Self::Ended,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Active => "ACTIVE",
            Self::Denied => "DENIED",
            Self::Lapsed => "LAPSED",
            Self::Ended => "ENDED",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A request for a role, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elevation {
    pub id: ElevationId,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub entitlement: EntitlementId,
    pub requester: AccountId,
    /// Without `roles/`.
    pub role: String,
    /// As it was stored; [`Elevation::state`] knows what time has made of it.
    pub stored: State,
    pub justification: String,
    pub ticket: String,
    pub duration_s: i64,
    pub create_time: Timestamp,
    /// When the stored state ends by itself: the request lapses, or the grant ends.
    pub next_time: Option<Timestamp>,
    /// The resource name of whoever agreed or did not.
    pub decided_by: String,
    pub decide_reason: String,
    pub decide_time: Option<Timestamp>,
    pub grant: Option<GrantId>,
    /// When it was over.
    pub end_time: Option<Timestamp>,
}

impl Elevation {
    pub fn state(&self, now: Timestamp) -> State {
        let is_over = time::has_passed(self.next_time, now);
        match self.stored {
            State::Pending if is_over => State::Lapsed,
            State::Active if is_over => State::Ended,
            state => state,
        }
    }

    /// When it ended, be it by itself.
    pub fn ended(&self, now: Timestamp) -> Option<Timestamp> {
        let by_itself = self.next_time.filter(|time| *time <= now);
        self.end_time.or(by_itself)
    }

    /// What the log says of it, whatever has happened to it.
    pub fn tell(&self, event: Event) -> Event {
        event
            .about(self.id, Some(self.requester))
            .detail("role", format!("roles/{}", self.role))
            .detail("justification", &self.justification)
            .detail("ticket", &self.ticket)
    }

    /// Somebody agrees, or nobody has to: in effect until `end`, by a grant.
    pub fn begin(
        &mut self,
        by: String,
        reason: String,
        grant: GrantId,
        end: Timestamp,
        now: Timestamp,
    ) {
        self.decide(State::Active, by, reason, now);
        self.grant = Some(grant);
        self.next_time = Some(end);
    }

    pub fn deny(&mut self, by: String, reason: String, now: Timestamp) {
        self.decide(State::Denied, by, reason, now);
        self.end(State::Denied, now);
    }

    fn decide(&mut self, state: State, by: String, reason: String, now: Timestamp) {
        self.stored = state;
        self.decided_by = by;
        self.decide_reason = reason;
        self.decide_time = Some(now);
    }

    /// It is over, for this reason.
    pub const fn end(&mut self, state: State, time: Timestamp) {
        self.stored = state;
        self.next_time = None;
        self.end_time = Some(time);
    }

    /// Writes down what has happened by itself, if anything has: what it is now, since when.
    pub fn settle(&mut self, now: Timestamp) -> Option<State> {
        let (state, time) = (self.state(now), self.next_time?);
        (state != self.stored).then(|| {
            self.end(state, time);
            state
        })
    }

    /// To be called once with each stored change.
    pub const fn touch(&mut self) {
        self.revision += 1;
    }
}

/// Whether one of two is the other, or its program, or both are programs of one owner: those who would agree with
/// themselves. Each comes with whoever answers for it.
pub fn is_one_person(
    (one, owner_of_one): (AccountId, Option<AccountId>),
    (other, owner_of_other): (AccountId, Option<AccountId>),
) -> bool {
    owner_of_one.unwrap_or(one) == owner_of_other.unwrap_or(other)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::name::{SystemAccountId, UserId};

    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    const fn user(number: u128) -> AccountId {
        AccountId::User(UserId(Uuid::from_u128(number)))
    }

    const fn program(number: u128) -> AccountId {
        AccountId::System(SystemAccountId(Uuid::from_u128(number)))
    }

    fn pending() -> Elevation {
        Elevation {
            id: ElevationId(Uuid::nil()),
            revision: 1,
            entitlement: EntitlementId(Uuid::nil()),
            requester: user(1),
            role: "operator".to_owned(),
            stored: State::Pending,
            justification: String::new(),
            ticket: String::new(),
            duration_s: 60,
            create_time: NOW,
            next_time: Some(NOW.plus_s(600)),
            decided_by: String::new(),
            decide_reason: String::new(),
            decide_time: None,
            grant: None,
            end_time: None,
        }
    }

    #[test]
    fn a_request_lapses_and_an_elevation_ends_by_itself() {
        let mut asked = pending();
        assert_eq!(asked.state(NOW.plus_s(599)), State::Pending);
        assert_eq!(asked.clone().settle(NOW.plus_s(599)), None);
        let late = NOW.plus_s(700);
        assert_eq!(asked.state(late), State::Lapsed);
        assert_eq!(asked.settle(late), Some(State::Lapsed));
        assert_eq!(
            (asked.stored, asked.end_time),
            (State::Lapsed, Some(NOW.plus_s(600)))
        );
        assert_eq!(asked.settle(late), None, "once");

        let mut active = pending();
        let by = "users/boss".to_owned();
        active.begin(
            by,
            "go".to_owned(),
            GrantId(Uuid::nil()),
            NOW.plus_s(60),
            NOW,
        );
        assert_eq!(
            (active.state(NOW), active.ended(NOW)),
            (State::Active, None)
        );
        let end = NOW.plus_s(60);
        assert_eq!(
            (active.state(end), active.ended(end)),
            (State::Ended, Some(end))
        );
        assert_eq!(active.settle(late), Some(State::Ended));
        assert_eq!(active.ended(late), Some(end));
    }

    #[test]
    fn what_was_decided_stays() {
        let mut denied = pending();
        denied.deny("users/boss".to_owned(), "no".to_owned(), NOW);
        assert_eq!(denied.state(NOW.plus_s(9_999)), State::Denied);
        assert_eq!(
            (denied.settle(NOW.plus_s(9_999)), denied.ended(NOW)),
            (None, Some(NOW))
        );
    }

    #[test]
    fn nobody_is_two_persons_by_a_program_of_theirs() {
        let ann = (user(1), None);
        let bob = (user(2), None);
        let of_ann = (program(3), Some(user(1)));
        let of_ann_too = (program(4), Some(user(1)));
        let of_bob = (program(5), Some(user(2)));
        for (one, other, is_one) in [
            (ann, ann, true),
            (ann, of_ann, true),
            (of_ann, ann, true),
            (of_ann, of_ann_too, true),
            (ann, bob, false),
            (of_ann, of_bob, false),
            (of_bob, ann, false),
            ((program(6), None), (program(7), None), false),
        ] {
            assert_eq!(is_one_person(one, other), is_one, "{one:?} {other:?}");
        }
    }
}

//! What users and system accounts have in common: a state that says whether they may act.
//!
//! Invariant: whether an account may act is decided here, from stored facts and `now`; an expired
//! account or a suspension that is over needs no job to take effect.

use super::{
    error::{Error, Reason, Result},
    time::{self, Timestamp},
};

/// AIP-216.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Active,
    Suspended,
    Deleted,
}

impl State {
    pub const ALL: [Self; 3] = [Self::Active, Self::Suspended, Self::Deleted];

    /// As stored, and as filters and errors write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
            Self::Deleted => "DELETED",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// The state of an account and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    pub state: State,
    pub reason: String,
    /// When a suspension ends by itself.
    pub until_time: Option<Timestamp>,
    /// When the account ends.
    pub expire_time: Option<Timestamp>,
    pub delete_time: Option<Timestamp>,
    pub purge_time: Option<Timestamp>,
}

impl Default for Lifecycle {
    /// Active, without an end.
    fn default() -> Self {
        Self {
            state: State::Active,
            reason: String::new(),
            until_time: None,
            expire_time: None,
            delete_time: None,
            purge_time: None,
        }
    }
}

impl Lifecycle {
    /// The state at `now`: a suspension whose time is over is none.
    pub fn state_at(&self, now: Timestamp) -> State {
        match self.state {
            State::Suspended if time::has_passed(self.until_time, now) => State::Active,
            state => state,
        }
    }

    /// Whether a suspension has ended by itself and is only still written down.
    pub fn suspension_is_over(&self, now: Timestamp) -> bool {
        self.state == State::Suspended && self.state_at(now) == State::Active
    }

    /// Whether somebody who is suspended would come back earlier if it were until then.
    pub fn is_back_earlier(&self, until_time: Option<Timestamp>, now: Timestamp) -> bool {
        let end = |time: Option<Timestamp>| time.unwrap_or(Timestamp::MAX);
        self.state_at(now) == State::Suspended && end(until_time) < end(self.until_time)
    }

    /// Whether the account was deleted, or has come to its end, at `time` or before.
    pub fn is_over(&self, time: Timestamp) -> bool {
        let ends = [self.delete_time, self.expire_time];
        time::has_passed(ends.into_iter().flatten().min(), time)
    }

    /// Whether the account may sign in, get tokens and use them.
    pub fn may_act(&self, now: Timestamp) -> bool {
        self.state_at(now) == State::Active && !time::has_passed(self.expire_time, now)
    }

    pub fn suspend(&mut self, reason: String, until_time: Option<Timestamp>) {
        self.state = State::Suspended;
        self.reason = reason;
        self.until_time = until_time;
    }

    pub fn resume(&mut self) {
        self.state = State::Active;
        self.reason = String::new();
        self.until_time = None;
    }

    pub fn delete(&mut self, now: Timestamp, retention_s: i64) {
        self.resume();
        self.state = State::Deleted;
        self.delete_time = Some(now);
        self.purge_time = Some(now.plus_s(retention_s));
    }

    pub fn undelete(&mut self) {
        self.resume();
        self.delete_time = None;
        self.purge_time = None;
    }

    /// Refuses unless the account `name` is in one of the `wanted` states.
    pub fn require(&self, wanted: &[State], name: impl ToString, now: Timestamp) -> Result<()> {
        let state = self.state_at(now);
        if wanted.contains(&state) {
            return Ok(());
        }
        let text = format!("is {}", state.name());
        Err(Error::precondition(
            Reason::WrongState,
            name.to_string(),
            text,
        ))
    }
}

/// An end that somebody sets has to lie ahead.
pub fn future(time: Option<Timestamp>, now: Timestamp) -> Result<Option<Timestamp>, String> {
    if time::has_passed(time, now) {
        Err("must be in the future".to_owned())
    } else {
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000);

    #[test]
    fn a_suspension_ends_by_itself_at_its_time() {
        let mut account = Lifecycle::default();
        account.suspend("fraud".to_owned(), Some(NOW.plus_s(10)));
        assert!(!account.may_act(NOW));
        assert!(!account.may_act(NOW.plus_s(9)));
        assert!(account.may_act(NOW.plus_s(10)));
        account.suspend("fraud".to_owned(), None);
        assert!(!account.may_act(Timestamp::MAX));
        account.resume();
        assert!(account.may_act(NOW));
    }

    #[test]
    fn an_account_ends_at_its_expiry_whatever_its_state() {
        let account = Lifecycle {
            expire_time: Some(NOW),
            ..Lifecycle::default()
        };
        assert!(account.may_act(NOW.plus_s(-1)));
        assert!(!account.may_act(NOW));
    }

    #[test]
    fn deleting_and_undeleting_leave_no_trace_of_each_other() {
        let mut account = Lifecycle::default();
        account.suspend("fraud".to_owned(), None);
        account.delete(NOW, 60);
        assert_eq!(account.purge_time, Some(NOW.plus_s(60)));
        assert!(!account.may_act(NOW));
        assert!(
            account
                .require(&[State::Active, State::Suspended], "users/1", NOW)
                .is_err()
        );
        account.undelete();
        assert_eq!(account, Lifecycle::default());
    }
}

//! Accounts for emergencies (BREAK_GLASS): sealed until two different people open them.
//!
//! Invariant: nothing has to happen for a seal to close again; from its end on the account gets no
//! token, and those it has are worth nothing.

use serde::{Deserialize, Serialize};

use super::{
    name::UserId,
    time::{self, Timestamp},
};

/// Most characters of a reason.
pub const MAX_REASON: usize = 500;

/// The seal of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// Somebody has asked for it to be opened, and somebody else has to agree.
    pub request: Option<Request>,
    pub unsealed_until_time: Option<Timestamp>,
}

/// That somebody wants an account opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub by: UserId,
    pub reason: String,
    /// In microseconds since 1970.
    pub time_us: i64,
}

/// What asking for an account to be opened has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Somebody else has to agree.
    Requested,
    Unsealed,
}

/// How long requests and openings last, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub request_s: i64,
    pub unsealed_s: i64,
}

impl Seal {
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.unsealed_until_time.is_some_and(|end| now < end)
    }

    /// The request that still waits for somebody else.
    pub fn pending(&self, times: Times, now: Timestamp) -> Option<&Request> {
        self.request.as_ref().filter(|request| {
            let end = Timestamp::from_micros(request.time_us).plus_s(times.request_s);
            !time::has_passed(Some(end), now)
        })
    }

    /// Asks for the seal to be opened, or agrees with who has. An error says why that cannot be.
    pub fn unseal(
        &mut self,
        request: Request,
        times: Times,
        now: Timestamp,
    ) -> Result<Step, String> {
        if self.is_open(now) {
            return Err("is unsealed".to_owned());
        }
        match self.pending(times, now) {
            Some(first) if first.by == request.by => {
                Err("waits for somebody else to agree".to_owned())
            }
            Some(_) => {
                self.request = None;
                self.unsealed_until_time = Some(now.plus_s(times.unsealed_s));
                Ok(Step::Unsealed)
            }
            None => {
                self.request = Some(request);
                self.unsealed_until_time = None;
                Ok(Step::Requested)
            }
        }
    }

    /// Closes it, and drops what waits.
    pub fn close(&mut self) {
        *self = Self::default();
    }

    /// Writes down that it has closed by itself.
    pub fn reseal(&mut self, now: Timestamp) -> bool {
        let is_over = time::has_passed(self.unsealed_until_time, now);
        if is_over {
            self.unsealed_until_time = None;
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);
    const TIMES: Times = Times {
        request_s: 60,
        unsealed_s: 600,
    };

    fn request(person: u128, now: Timestamp) -> Request {
        Request {
            by: UserId(Uuid::from_u128(person)),
            reason: "fire".to_owned(),
            time_us: now.micros(),
        }
    }

    #[test]
    fn it_takes_two_people_within_a_time() {
        let mut seal = Seal::default();
        let mut ask = |person, s: i64| {
            let now = NOW.plus_s(s);
            seal.unseal(request(person, now), TIMES, now)
        };
        assert_eq!(ask(1, 0), Ok(Step::Requested));
        assert!(ask(1, 1).is_err(), "one person twice");
        assert_eq!(ask(2, 60), Ok(Step::Requested), "too late to agree");
        assert!(ask(2, 61).is_err());
        assert_eq!(ask(1, 119), Ok(Step::Unsealed));
        assert!(ask(2, 120).is_err(), "open");
        assert!(seal.is_open(NOW.plus_s(718)) && !seal.is_open(NOW.plus_s(719)));
        assert!(!seal.reseal(NOW.plus_s(718)) && seal.reseal(NOW.plus_s(719)));
        assert_eq!(seal, Seal::default());
        assert_eq!(
            seal.unseal(request(2, NOW), TIMES, NOW),
            Ok(Step::Requested)
        );
        seal.close();
        assert_eq!(seal.pending(TIMES, NOW), None);
    }
}

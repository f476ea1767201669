//! How many of something may begin: so many in a minute, spread over it.

use std::time::Duration;

/// What may begin now. Of a minute's share as much as a second has may begin at once; one at least.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    allowed: f64,
}

impl Pace {
    pub fn new(per_minute: u32) -> Self {
        let per_second = f64::from(per_minute) / 60.0;
        Self {
            per_second,
            allowed: per_second.max(1.0),
        }
    }

    /// Time has gone by.
    pub fn pass(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * self.per_second);
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and what one second has"
    )]
    pub const fn allowed(&self) -> usize {
        self.allowed as usize
    }

    /// So many begin.
    pub fn take(&mut self, count: usize) {
        self.allowed -= f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// One of them came to nothing.
    pub fn give_back(&mut self) {
        self.add(1.0);
    }

    fn add(&mut self, more: f64) {
        self.allowed = (self.allowed + more).min(self.per_second.max(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_its_share_and_no_second_much_more_than_its_own() {
        let mut pace = Pace::new(120);
        let mut begun = 0;
        for _ in 0..600 {
            pace.pass(Duration::from_millis(100));
            assert!(pace.allowed() <= 2);
            begun += pace.allowed();
            pace.take(pace.allowed());
        }
        assert!((119..=122).contains(&begun), "{begun}");
        pace.pass(Duration::from_hours(1));
        assert_eq!(pace.allowed(), 2, "an idle hour is not saved up");
    }

    #[test]
    fn the_slowest_pace_lets_one_begin_and_what_came_to_nothing_does_not_count() {
        let mut pace = Pace::new(1);
        assert_eq!(pace.allowed(), 1);
        pace.take(1);
        pace.pass(Duration::from_secs(59));
        assert_eq!(pace.allowed(), 0);
        pace.give_back();
        assert_eq!(pace.allowed(), 1);
        pace.give_back();
        assert_eq!(pace.allowed(), 1, "nothing is saved up");
    }
}

//! Points in time, as everything here counts them: microseconds since the Unix epoch, UTC.
//!
//! Invariant: nothing here reads a clock; `now` is always an argument.

use std::{fmt, time::Duration};

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

pub const MICROS_PER_S: i64 = 1_000_000;

impl Timestamp {
    pub const EPOCH: Self = Self(0);
    /// 9999-12-30T22:00:00Z: the last second that can be written in every time zone.
    pub const MAX: Self = Self(253_402_207_200 * MICROS_PER_S);

    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    pub const fn micros(self) -> i64 {
        self.0
    }

    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(MICROS_PER_S))
    }

    /// Whole seconds, rounded down: a NumericDate (RFC 7519 section 2).
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(MICROS_PER_S)
    }

    /// Whole milliseconds, rounded down; 0 before the epoch.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.div_euclid(1_000)).unwrap_or(0)
    }

    pub const fn plus_s(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(MICROS_PER_S)))
    }

    /// How long from now until this, zero when it is past.
    pub fn after(self, now: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(now.0)).unwrap_or(0))
    }

    /// To the minute, for people of a time zone to read: `2026-11-21 19:00 CET`; in UTC where that is none.
    pub fn for_people(self, time_zone: &str) -> String {
        let zone = jiff::tz::TimeZone::get(time_zone).unwrap_or(jiff::tz::TimeZone::UTC);
        let time = jiff::Timestamp::from_microsecond(self.0).unwrap_or_default();
        time.to_zoned(zone).strftime("%F %R %Z").to_string()
    }

    /// Reads RFC 3339, for example `2026-11-21T18:00:00Z`.
    pub fn parse(text: &str) -> Option<Self> {
        let time: jiff::Timestamp = text.parse().ok()?;
        let time = Self(time.as_microsecond());
        (Self::EPOCH..=Self::MAX).contains(&time).then_some(time)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{}us", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether something that ends at `end` has ended; without an end it never does.
pub fn has_passed(end: Option<Timestamp>, now: Timestamp) -> bool {
    end.is_some_and(|end| end <= now)
}

/// From when until when something counts: its first instant is in it, its last is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// From the beginning when absent.
    pub start: Option<Timestamp>,
    /// For good when absent.
    pub end: Option<Timestamp>,
}

impl Window {
    /// Whether it never counts, whatever the time.
    pub fn is_empty(self) -> bool {
        self.start.is_some_and(|start| start >= self.last())
    }

    pub fn contains(self, now: Timestamp) -> bool {
        self.start.is_none_or(|start| start <= now) && !self.is_over(now)
    }

    pub fn is_over(self, now: Timestamp) -> bool {
        has_passed(self.end, now)
    }

    /// When it is over; [`Timestamp::MAX`] if never.
    pub fn last(self) -> Timestamp {
        self.end.unwrap_or(Timestamp::MAX)
    }

    /// Whether nothing is in it from now on that is not in the other.
    pub fn is_within(self, other: Self, now: Timestamp) -> bool {
        let start = |it: Self| it.start.unwrap_or(now).max(now);
        start(self) >= start(other) && self.last() <= other.last() && !other.is_over(now)
    }
}

/// A name of the IANA time zone database.
pub fn is_time_zone(name: &str) -> bool {
    jiff::tz::TimeZone::get(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_a_time_to_the_minute() {
        let time = Timestamp::parse("2026-11-21T18:00:59.5Z").expect("a time");
        assert_eq!(time.for_people(""), "2026-11-21 18:00 UTC");
        assert_eq!(time.for_people("Europe/Zurich"), "2026-11-21 19:00 CET");
        assert_eq!(time.for_people("no/where"), "2026-11-21 18:00 UTC");
    }

    #[test]
    fn a_time_survives_being_written_and_read() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2026-11-21T18:00:00.123456Z",
            "9999-12-30T22:00:00Z",
        ] {
            assert_eq!(Timestamp::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn times_outside_the_common_range_are_refused() {
        for text in ["1969-12-31T23:59:59Z", "2026-11-21", "yesterday", ""] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_window_has_its_first_instant_and_not_its_last() {
        let at = Timestamp::from_seconds;
        let window = |start: Option<i64>, end: Option<i64>| Window {
            start: start.map(at),
            end: end.map(at),
        };
        let inside = |start, end, now| window(start, end).contains(at(now));
        assert!(inside(None, None, 5) && inside(Some(5), None, 5) && inside(None, Some(6), 5));
        assert!(!inside(Some(6), None, 5) && !inside(None, Some(5), 5));
        assert!(window(Some(5), Some(5)).is_empty() && !window(Some(5), Some(6)).is_empty());
        assert!(!window(None, Some(0)).is_empty() && !window(Some(5), None).is_empty());

        let within = |narrow: (_, _), wide: (_, _)| {
            window(narrow.0, narrow.1).is_within(window(wide.0, wide.1), at(5))
        };
        assert!(within((Some(7), Some(8)), (Some(7), Some(8))));
        assert!(
            within((None, Some(8)), (Some(4), Some(8))),
            "what has been is no matter"
        );
        assert!(within((Some(8), Some(9)), (None, None)));
        assert!(!within((Some(6), Some(8)), (Some(7), Some(8))));
        assert!(!within((None, Some(9)), (None, Some(8))));
        assert!(!within((None, None), (None, Some(8))));
        assert!(!within((None, Some(5)), (None, Some(5))), "over is over");
    }

    #[test]
    fn an_end_counts_from_its_own_instant() {
        let end = Timestamp::from_seconds(100);
        assert!(!has_passed(Some(end), Timestamp::from_micros(99_999_999)));
        assert!(has_passed(Some(end), end));
        assert!(!has_passed(None, Timestamp::MAX));
    }
}

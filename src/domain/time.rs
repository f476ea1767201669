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
    fn an_end_counts_from_its_own_instant() {
        let end = Timestamp::from_seconds(100);
        assert!(!has_passed(Some(end), Timestamp::from_micros(99_999_999)));
        assert!(has_passed(Some(end), end));
        assert!(!has_passed(None, Timestamp::MAX));
    }
}

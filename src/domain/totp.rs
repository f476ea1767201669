//! Generators of one-time codes (RFC 6238).
//!
//! Invariant: a code is good for one step of time, and the step of an accepted code is remembered, so
//! that neither it nor an older one is accepted again (section 5.2).

use serde::{Deserialize, Serialize};
use totp_rs::{Builder, Totp};
use zeroize::Zeroizing;

use super::time::Timestamp;

/// How long a code is shown, in seconds.
const STEP_S: i64 = 30;
/// How many steps the clock of a generator may be early or late.
const DRIFT: i64 = 1;

/// What a generator makes its codes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    pub algorithm: Algorithm,
    /// 6 or 8.
    pub digits: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Algorithm {
    Sha1,
    Sha256,
}

impl Algorithm {
    /// As long as the digest (RFC 4226 section 4, RFC 6238 section 5.1).
    pub const fn secret_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    const fn of_library(self) -> totp_rs::Algorithm {
        match self {
            Self::Sha1 => totp_rs::Algorithm::SHA1,
            Self::Sha256 => totp_rs::Algorithm::SHA256,
        }
    }
}

/// A generator: its parameters and the secret it shares with the person's device.
pub struct Generator {
    parameters: Parameters,
    secret: Zeroizing<Vec<u8>>,
}

impl Generator {
    pub const fn new(parameters: Parameters, secret: Zeroizing<Vec<u8>>) -> Self {
        Self { parameters, secret }
    }

    pub fn secret(&self) -> &[u8] {
        &self.secret
    }

    /// As people type it: base32 without padding.
    pub fn secret_text(&self) -> String {
        self.builder().build_noncompliant().secret().to_base32()
    }

    /// The link that authenticator apps read from a QR code. A colon separates in it, so there is none
    /// in the names.
    pub fn uri(&self, service: &str, account: &str) -> Option<String> {
        let plain = |text: &str| text.replace(':', " ");
        let totp = self
            .builder()
            .with_issuer(Some(plain(service)))
            .with_account_name(plain(account));
        totp.build().ok()?.to_url().ok()
    }

    /// The step of time that `code` is of, if it is one of those that count now and later than the last
    /// one that was accepted.
    pub fn check(&self, code: &str, now: Timestamp, used_step: Option<i64>) -> Option<i64> {
        let digits: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        let is_code = digits.len() == usize::from(self.parameters.digits)
            && digits.bytes().all(|digit| digit.is_ascii_digit());
        if !is_code {
            return None;
        }
        let totp = self.builder().build_noncompliant();
        let current = now.seconds().div_euclid(STEP_S);
        let is_of = |step: &i64| is_of_step(&totp, &digits, *step);
        (current - DRIFT..=current + DRIFT)
            .filter(|step| used_step.is_none_or(|used| *step > used))
            .find(is_of)
    }

    fn builder(&self) -> Builder {
        Builder::new()
            .with_algorithm(self.parameters.algorithm.of_library())
            .with_digits(self.parameters.digits)
            .with_secret(self.secret.to_vec())
            .with_skew(0)
            .with_step_duration(STEP_S.unsigned_abs())
    }
}

fn is_of_step(totp: &Totp, digits: &str, step: i64) -> bool {
    u64::try_from(step * STEP_S).is_ok_and(|time| totp.check(digits, time).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(algorithm: Algorithm, digits: u8, secret: &[u8]) -> Generator {
        let parameters = Parameters { algorithm, digits };
        Generator::new(parameters, Zeroizing::new(secret.to_vec()))
    }

    /// Appendix B, the rows of the algorithms that we have.
    #[test]
    fn codes_are_those_of_the_rfc() {
        let sha1 = generator(Algorithm::Sha1, 8, b"12345678901234567890");
        let sha256 = generator(Algorithm::Sha256, 8, b"12345678901234567890123456789012");
        for (time, of_sha1, of_sha256) in [
            (59, "94287082", "46119246"),
            (1_111_111_109, "07081804", "68084774"),
            (1_111_111_111, "14050471", "67062674"),
            (1_234_567_890, "89005924", "91819424"),
            (2_000_000_000, "69279037", "90698825"),
            (20_000_000_000, "65353130", "77737706"),
        ] {
            let now = Timestamp::from_seconds(time);
            assert_eq!(sha1.check(of_sha1, now, None), Some(time / 30), "{time}");
            assert_eq!(
                sha256.check(of_sha256, now, None),
                Some(time / 30),
                "{time}"
            );
            assert_eq!(sha1.check(of_sha256, now, None), None, "{time}");
            let six = generator(Algorithm::Sha1, 6, b"12345678901234567890");
            assert_eq!(
                six.check(&of_sha1[2..], now, None),
                Some(time / 30),
                "{time}"
            );
            assert_eq!(
                six.check(of_sha1, now, None),
                None,
                "as many digits as agreed"
            );
        }
    }

    #[test]
    fn a_code_counts_half_a_minute_early_or_late_and_once() {
        let generator = generator(Algorithm::Sha1, 8, b"12345678901234567890");
        let code = "07081804";
        let step = 1_111_111_109 / 30;
        let at = |time, used| generator.check(code, Timestamp::from_seconds(time), used);
        let start = step * 30;
        for (time, counts) in [
            (start - 31, false),
            (start - 30, true),
            (start, true),
            (start + 59, true),
            (start + 60, false),
        ] {
            assert_eq!(at(time, None).is_some(), counts, "{}", time - start);
        }
        assert_eq!(at(start, Some(step - 1)), Some(step));
        assert_eq!(at(start, Some(step)), None, "used");
        assert_eq!(
            at(start, Some(step + 1)),
            None,
            "older than one that was used"
        );
    }

    #[test]
    fn a_code_may_be_typed_with_spaces_and_is_nothing_but_digits() {
        let generator = generator(Algorithm::Sha1, 8, b"12345678901234567890");
        let now = Timestamp::from_seconds(1_111_111_109);
        assert!(generator.check(" 0708 1804 ", now, None).is_some());
        for wrong in [
            "",
            "0708180",
            "070818040",
            "0708180a",
            "０7081804",
            "-7081804",
        ] {
            assert!(generator.check(wrong, now, None).is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_link_is_what_apps_read() {
        let generator = generator(Algorithm::Sha256, 8, &[7; 32]);
        let uri = generator
            .uri("Example: Inc", "alice@example")
            .expect("a link");
        let expected = format!(
            "otpauth://totp/Example%20%20Inc:alice%40example?secret={}&digits=8&algorithm=SHA256&issuer=Example%20%20Inc",
            generator.secret_text()
        );
        assert_eq!(uri, expected);
    }
}

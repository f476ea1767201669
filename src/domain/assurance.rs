//! How surely a person has proved who they are (NIST SP 800-63B), and by what (RFC 8176).

use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// The `acr` of sessions and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// One factor.
    Aal1,
    /// Two different factors.
    Aal2,
}

impl Assurance {
    /// As stored and as shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aal1 => "aal1",
            Self::Aal2 => "aal2",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Aal1, Self::Aal2]
            .into_iter()
            .find(|assurance| assurance.name() == name)
    }
}

/// One way in which a person has shown who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    Password,
    Totp,
    RecoveryCode,
    /// With the person verified by the authenticator: two factors in one.
    Passkey,
    /// Shows that mail arrives, which NIST does not count as something one has (SP 800-63B-4 section
    /// 3.1.3.1), so it never adds to another factor.
    EmailCode,
    /// A way in by itself; nobody is asked for one as a second factor.
    SmsCode,
}

impl Factor {
    const fn amr(self) -> &'static [&'static str] {
        match self {
            Self::Password => &[PASSWORD],
            Self::Totp | Self::RecoveryCode | Self::EmailCode => &["otp"],
            Self::Passkey => &["pop", "user"],
            Self::SmsCode => &["sms"],
        }
    }

    const fn is_something_one_has(self) -> bool {
        matches!(self, Self::Totp | Self::RecoveryCode)
    }
}

/// In `amr`: something the person knows.
const PASSWORD: &str = "pwd";
/// In `amr`: several factors.
const SEVERAL: &str = "mfa";

/// What a person has shown so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub acr: Assurance,
    pub amr: Vec<String>,
}

impl Shown {
    pub fn by(factor: Factor) -> Self {
        let nothing = Self {
            acr: Assurance::Aal1,
            amr: Vec::new(),
        };
        nothing.and(factor)
    }

    /// The same with one more factor.
    pub fn and(mut self, factor: Factor) -> Self {
        let knows = self.amr.iter().any(|amr| amr == PASSWORD);
        if factor == Factor::Passkey || (knows && factor.is_something_one_has()) {
            self.acr = Assurance::Aal2;
        }
        self.add(factor.amr());
        if self.acr == Assurance::Aal2 {
            self.amr.retain(|amr| amr != SEVERAL);
            self.add(&[SEVERAL]);
        }
        self
    }

    fn add(&mut self, amr: &[&str]) {
        for amr in amr {
            if !self.amr.iter().any(|known| known == amr) {
                self.amr.push((*amr).to_owned());
            }
        }
    }
}

/// What an RPC demands of a person (RFC 9470), from its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Asked of whoever has a second factor; anybody else can only be asked for what they have.
    pub assurance: Assurance,
    /// How old the proof may be, in seconds; any age when `None`.
    pub max_age_s: Option<i64>,
}

impl Demand {
    /// Whether a proof of `acr` at `auth_time` is fresh enough and as strong as it can be.
    pub fn is_met(
        &self,
        acr: Assurance,
        auth_time: Timestamp,
        has_second_factor: bool,
        now: Timestamp,
    ) -> bool {
        let is_fresh = self
            .max_age_s
            .is_none_or(|max_age_s| now <= auth_time.plus_s(max_age_s));
        is_fresh && (acr >= self.assurance || !has_second_factor)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Factor::{EmailCode, Passkey, Password, RecoveryCode, SmsCode, Totp},
        *,
    };

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    #[test]
    fn two_factors_are_two_different_ones() {
        let shown = |factors: &[Factor]| {
            let mut factors = factors.iter();
            let first = *factors.next().expect("one factor");
            let shown = factors.fold(Shown::by(first), |shown, factor| shown.and(*factor));
            (shown.acr.name(), shown.amr.join(" "))
        };
        let both = |acr, amr: &str| (acr, amr.to_owned());
        assert_eq!(shown(&[Password]), both("aal1", "pwd"));
        assert_eq!(shown(&[Password, Password]), both("aal1", "pwd"));
        assert_eq!(shown(&[Password, Totp]), both("aal2", "pwd otp mfa"));
        assert_eq!(
            shown(&[Password, RecoveryCode]),
            both("aal2", "pwd otp mfa")
        );
        assert_eq!(shown(&[Password, SmsCode]), both("aal1", "pwd sms"));
        assert_eq!(shown(&[Password, EmailCode]), both("aal1", "pwd otp"));
        assert_eq!(shown(&[EmailCode, Totp]), both("aal1", "otp"));
        assert_eq!(shown(&[SmsCode, Totp]), both("aal1", "sms otp"));
        assert_eq!(shown(&[Passkey]), both("aal2", "pop user mfa"));
        assert_eq!(
            shown(&[Password, Passkey, Totp]),
            both("aal2", "pwd pop user otp mfa")
        );
    }

    #[test]
    fn a_demand_asks_for_what_the_person_has_and_for_a_fresh_proof() {
        let demand = Demand {
            assurance: Assurance::Aal2,
            max_age_s: Some(600),
        };
        let met = |acr, age_s: i64, has| demand.is_met(acr, NOW.plus_s(-age_s), has, NOW);
        assert!(met(Assurance::Aal2, 600, true));
        assert!(!met(Assurance::Aal2, 601, true));
        assert!(!met(Assurance::Aal1, 0, true));
        assert!(met(Assurance::Aal1, 0, false));
        assert!(!met(Assurance::Aal1, 601, false));
        let ageless = Demand {
            max_age_s: None,
            ..demand
        };
        assert!(ageless.is_met(Assurance::Aal2, Timestamp::EPOCH, true, NOW));
    }
}

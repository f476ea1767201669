//! A question to a person that is open until it has been answered: a step of a sign-in, or the proof
//! of a second factor in a session that is running.
//!
//! ```text
//!           password ──┐                       ┌── tokens
//! (nothing) e-mail ────┼─ a second factor? ─ no┘
//!           passkey ─┐ │        └ yes ── challenge ── totp, recovery code, passkey ── tokens
//!                    └─┼─────────────────────────────────────────────────────────────┘
//!           session ───┴── challenge ── totp, recovery code, passkey ── tokens of the session
//! ```
//!
//! Invariant: a challenge is answered rightly at most once, and looked at [`MAX_ANSWERS`] times. One
//! that asks nobody is like any other to whoever answers it.

use aws_lc_rs::hmac;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    assurance::{Factor, Shown},
    name::{CredentialId, SessionId, UserId},
    secret::{self, Digest},
    session::Device,
    throttle::{Rule, Subject},
    time::Timestamp,
};

/// How often a challenge may be answered, rightly or wrongly.
pub const MAX_ANSWERS: i64 = 5;

/// Open questions to one person that strangers may ask without waiting.
const FREE_TO_ASK: u32 = 20;
/// The first wait of who asks more, in seconds.
const ASK_DELAY_S: i64 = 15;

/// How often strangers may ask one person, when nobody is sent anything; `lifetime_s` is how long a
/// question is open.
pub const fn asking_rule(lifetime_s: i64) -> Rule {
    Rule {
        free: FREE_TO_ASK,
        base_delay_s: ASK_DELAY_S,
        max_delay_s: lifetime_s,
        forget_after_s: lifetime_s,
    }
}

/// An open question.
#[derive(Clone, Debug)]
pub struct Challenge {
    /// The caller who opened it, nil for nobody in particular; nobody else answers it.
    pub opener: Uuid,
    /// Whom it asks, if that is known and exists.
    pub user: Option<UserId>,
    /// Where it was opened, if that counts.
    pub network: Option<IpNet>,
    pub question: Question,
    pub create_time: Timestamp,
    pub expire_time: Timestamp,
}

/// What is asked, and what for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Question {
    pub purpose: Purpose,
    /// Any one of them answers it.
    pub methods: Vec<Factor>,
    /// The digest of the code that was sent.
    pub code: Option<Digest>,
    /// What the WebAuthn library has to remember.
    pub ceremony: Option<String>,
    /// Whom the tokens are to be for.
    pub audience: String,
    pub scopes: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Purpose {
    SignIn(SignIn),
    /// To raise the assurance of a session.
    StepUp(SessionId),
}

/// How far a sign-in has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SignIn {
    /// Who it has to be: the canonical identifier, or what was typed where there is none; empty where a
    /// passkey says that.
    pub identifier: String,
    /// What has been shown already.
    pub first: Option<(Factor, Option<CredentialId>)>,
    pub device: Device,
    /// The device, if the person has used it before.
    pub known_device: Option<Uuid>,
}

/// What an answer has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The sign-in is complete.
    Done {
        shown: Shown,
        /// What it began with.
        credential: Option<CredentialId>,
    },
    /// A second factor is needed.
    Ask,
}

impl SignIn {
    /// The same, one step on.
    pub fn after(self, factor: Factor, credential: Option<CredentialId>) -> Self {
        Self {
            first: Some((factor, credential)),
            ..self
        }
    }

    /// What comes after one more factor.
    pub fn next(
        &self,
        factor: Factor,
        credential: Option<CredentialId>,
        has_second_factor: bool,
    ) -> Next {
        match self.first {
            Some((first, began_with)) => Next::Done {
                shown: Shown::by(first).and(factor),
                credential: began_with,
            },
            None if has_second_factor && factor != Factor::Passkey => Next::Ask,
            None => Next::Done {
                shown: Shown::by(factor),
                credential,
            },
        }
    }
}

impl Challenge {
    /// Whether it is for a code or an assertion that lets somebody in by itself, so that strangers get
    /// as far as this.
    pub const fn is_first_step(&self) -> bool {
        matches!(
            self.question.purpose,
            Purpose::SignIn(SignIn { first: None, .. })
        )
    }

    /// What wrong answers are counted for. A second step is counted apart: who is there has shown the
    /// first, so nobody else can make the owner wait.
    pub fn subject(&self) -> Subject {
        match (&self.question.purpose, self.user) {
            (Purpose::SignIn(SignIn { first: None, .. }), Some(user)) => {
                Subject::Account(user.into())
            }
            (Purpose::SignIn(sign_in), None) => Subject::Unknown(sign_in.identifier.clone()),
            (_, user) => Subject::SecondFactor(user.unwrap_or(UserId(Uuid::nil())).into()),
        }
    }

    /// Somewhere the person has been before, whose failures are counted apart.
    pub fn known_device(&self) -> Option<Subject> {
        match &self.question.purpose {
            Purpose::SignIn(SignIn {
                first: None,
                known_device,
                ..
            }) => known_device.map(Subject::Device),
            Purpose::SignIn(sign_in) => sign_in.known_device.map(Subject::SecondFactorDevice),
            Purpose::StepUp(session) => Some(Subject::SecondFactorDevice(session.0)),
        }
    }
}

/// A code that a message brings to a person, made of random bytes: 8 digits (NIST SP 800-63B-4 section
/// 3.1.3.2: at least 6).
pub fn code(random: [u8; 16]) -> String {
    let number = u128::from_be_bytes(random) % 100_000_000;
    format!("{number:08}")
}

/// What is stored of a code: keyed, and of its challenge only.
pub fn code_digest(typed: &str, challenge: &Digest, key: &hmac::Key) -> Digest {
    let digits: String = typed.chars().filter(|c| !c.is_whitespace()).collect();
    let tag = hmac::sign(key, &[&challenge[..], digits.as_bytes()].concat());
    tag.as_ref().try_into().expect("HMAC-SHA256 is 32 bytes")
}

/// Whether a code is the one that was sent.
pub fn is_code(typed: &str, challenge: &Digest, key: &hmac::Key, sent: &Digest) -> bool {
    secret::equal(&code_digest(typed, challenge, key), sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::assurance::Assurance;

    fn sign_in(first: Option<Factor>) -> SignIn {
        SignIn {
            identifier: "alice".to_owned(),
            first: first.map(|factor| (factor, Some(CredentialId(Uuid::from_u128(1))))),
            device: Device::default(),
            known_device: None,
        }
    }

    #[test]
    fn a_sign_in_is_complete_when_nothing_more_can_be_asked() {
        let done = |sign_in: &SignIn, factor, has| match sign_in.next(factor, None, has) {
            Next::Done { shown, .. } => Some(shown.acr),
            Next::Ask => None,
        };
        let fresh = sign_in(None);
        assert_eq!(done(&fresh, Factor::Password, false), Some(Assurance::Aal1));
        assert_eq!(done(&fresh, Factor::Password, true), None);
        assert_eq!(
            done(&fresh, Factor::EmailCode, false),
            Some(Assurance::Aal1)
        );
        assert_eq!(done(&fresh, Factor::EmailCode, true), None);
        assert_eq!(done(&fresh, Factor::Passkey, true), Some(Assurance::Aal2));
        let half = sign_in(Some(Factor::Password));
        assert_eq!(done(&half, Factor::Totp, true), Some(Assurance::Aal2));
        let mailed = sign_in(Some(Factor::EmailCode));
        assert_eq!(done(&mailed, Factor::Totp, true), Some(Assurance::Aal1));
        let Next::Done { credential, .. } = half.next(Factor::Totp, None, true) else {
            panic!("complete");
        };
        assert_eq!(
            credential,
            Some(CredentialId(Uuid::from_u128(1))),
            "what it began with"
        );
    }

    #[test]
    fn strangers_and_those_who_are_half_way_in_are_counted_apart() {
        let user = UserId(Uuid::from_u128(7));
        let challenge = |first, user| Challenge {
            opener: Uuid::nil(),
            user,
            network: None,
            question: Question {
                purpose: Purpose::SignIn(sign_in(first)),
                methods: vec![Factor::Totp],
                code: None,
                ceremony: None,
                audience: String::new(),
                scopes: Vec::new(),
            },
            create_time: Timestamp::EPOCH,
            expire_time: Timestamp::MAX,
        };
        let subject = |first, user| challenge(first, user).subject();
        assert_eq!(subject(None, Some(user)), Subject::Account(user.into()));
        assert_eq!(subject(None, None), Subject::Unknown("alice".to_owned()));
        assert_eq!(
            subject(Some(Factor::Password), Some(user)),
            Subject::SecondFactor(user.into())
        );
    }

    #[test]
    fn a_code_answers_its_own_challenge() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let sent = code([0xff; 16]);
        assert_eq!(sent.len(), 8);
        assert_eq!(code([0; 16]), "00000000");
        let digest = code_digest(&sent, &[1; 32], &key);
        let spaced = format!(" {} {}", &sent[..4], &sent[4..]);
        assert!(is_code(&spaced, &[1; 32], &key, &digest));
        assert!(
            !is_code(&sent, &[2; 32], &key, &digest),
            "of another challenge"
        );
        assert!(!is_code("", &[1; 32], &key, &digest));
    }
}

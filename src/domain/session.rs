//! A sign-in on one device, and the family of refresh tokens that keeps it alive.
//!
//! RFC 9700 section 4.14.2: refresh tokens rotate, and the second use of one ends the session. The
//! tokens of a family are not stored: token `n` is an HMAC of the session's seed and `n`, under a key
//! that is not in the database. So a session is one row however long it lives, every token it ever
//! had is recognised, and a retry can be answered with the very same successor.
//! Invariant: exactly one generation is live, the one the row names.

use std::net::IpAddr;

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use super::{
    assurance::{Assurance, Factor, Shown},
    name::{AccountId, CredentialId, SessionId, SystemAccountId, UserId},
    secret::{Kind, Secret},
    time::Timestamp,
};

/// Most characters of a device's display name and of a user agent.
pub const MAX_DEVICE_NAME: usize = 100;
pub const MAX_USER_AGENT: usize = 500;

#[derive(Clone, Debug)]
pub struct Session {
    pub id: SessionId,
    pub user: UserId,
    /// Counts the changes that are not refreshes; the etag.
    pub revision: i64,
    pub device: Device,
    /// The frontend that signed the person in.
    pub client: Option<SystemAccountId>,
    /// What the sign-in began with; `None` for a code in a message.
    pub credential: Option<CredentialId>,
    /// What the person has shown.
    pub shown: Shown,
    /// When they last did.
    pub auth_time: Timestamp,
    pub create_time: Timestamp,
    pub last_used_time: Timestamp,
    pub idle_expire_time: Timestamp,
    pub expire_time: Timestamp,
    pub ended: Option<(Timestamp, EndReason)>,
    /// Access tokens issued up to then are worthless.
    pub tokens_not_before: Option<Timestamp>,
    pub family: Family,
}

/// Where a person signed in, as far as it is known.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Device {
    pub display_name: String,
    pub user_agent: String,
    pub address: Option<IpAddr>,
}

/// The state of a family of refresh tokens.
#[derive(Clone)]
pub struct Family {
    /// Random; what the tokens are made of, together with a key that is not in the database.
    pub seed: [u8; 32],
    /// The one token that is live.
    pub generation: u32,
    /// When it came to be.
    pub rotate_time: Timestamp,
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Family(generation {})", self.generation)
    }
}

/// Why a session ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    SignedOut,
    Revoked,
    /// Gave way to a newer one: there may be so many.
    Displaced,
    RefreshTokenReused,
    PasswordChanged,
    PasswordReset,
    CredentialDeleted,
    /// Somebody has taken a change of contacts back that was not theirs.
    ContactReverted,
    AccountSuspended,
    AccountDeleted,
}

impl EndReason {
    const ALL: [Self; 10] = [
        Self::SignedOut,
        Self::Revoked,
        Self::Displaced,
        Self::RefreshTokenReused,
        Self::PasswordChanged,
        Self::PasswordReset,
        Self::CredentialDeleted,
        Self::ContactReverted,
        Self::AccountSuspended,
        Self::AccountDeleted,
    ];

    /// As stored and as shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignedOut => "signed_out",
            Self::Revoked => "revoked",
            Self::Displaced => "displaced",
            Self::RefreshTokenReused => "refresh_token_reused",
            Self::PasswordChanged => "password_changed",
            Self::PasswordReset => "password_reset",
            Self::CredentialDeleted => "credential_deleted",
            Self::ContactReverted => "contact_reverted",
            Self::AccountSuspended => "account_suspended",
            Self::AccountDeleted => "account_deleted",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// How long sessions live, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// In any case (absolute).
    pub session_s: i64,
    /// Without a refresh.
    pub idle_s: i64,
    /// As one of two factors (NIST SP 800-63B-4 section 2.2.3).
    pub aal2_s: i64,
    /// How long after a rotation the token before may be sent again.
    pub replay_s: i64,
}

impl Session {
    /// `users/{uuid}/sessions/{id}`.
    pub fn name(&self) -> String {
        AccountId::User(self.user).child("sessions", self.id.0)
    }

    pub fn is_live(&self, now: Timestamp) -> bool {
        self.ended.is_none() && now < self.expire_time && now < self.idle_expire_time
    }

    /// When the session ends unless it is refreshed.
    pub fn end_time(&self) -> Timestamp {
        self.expire_time.min(self.idle_expire_time)
    }

    /// How surely the person is there now: two factors are worth so much for a time.
    pub fn acr(&self, now: Timestamp, lifetimes: Lifetimes) -> Assurance {
        if now <= self.auth_time.plus_s(lifetimes.aal2_s) {
            self.shown.acr
        } else {
            Assurance::Aal1
        }
    }

    /// Notes that the person has shown one more factor. The refresh token from before is no retry of
    /// anything now: whoever has it has not shown what was shown.
    pub fn step_up(&mut self, factor: Factor, now: Timestamp, lifetimes: Lifetimes) {
        self.shown = self.shown.clone().and(factor);
        self.auth_time = now;
        self.revision += 1;
        self.family.generation += 1;
        self.next_generation(now, lifetimes);
    }

    /// Starts the idle time anew.
    pub fn touch(&mut self, now: Timestamp, lifetimes: Lifetimes) {
        self.last_used_time = now;
        self.idle_expire_time = now.plus_s(lifetimes.idle_s).min(self.expire_time);
    }

    /// Puts the next refresh token in the place of the live one.
    pub fn next_generation(&mut self, now: Timestamp, lifetimes: Lifetimes) {
        self.family.generation += 1;
        self.family.rotate_time = now;
        self.touch(now, lifetimes);
    }

    /// The refresh token of the live generation.
    pub fn refresh_token(&self, key: &hmac::Key) -> Secret {
        let head = RefreshToken {
            user: self.user,
            session: self.id,
            generation: self.family.generation,
            mac: [0; 32],
        };
        let mac = head.expected_mac(key, &self.family.seed);
        Secret::new(
            Kind::RefreshToken,
            &[&head.head()[..], mac.as_ref()].concat(),
        )
    }

    /// What a genuine token of generation `presented` is worth now.
    pub fn judge(&self, presented: u32, now: Timestamp, replay_s: i64) -> Judgement {
        let Family {
            generation,
            rotate_time,
            ..
        } = self.family;
        if !self.is_live(now) {
            Judgement::Refuse
        } else if presented == generation {
            Judgement::Rotate
        } else if presented.checked_add(1) == Some(generation) && now < rotate_time.plus_s(replay_s)
        {
            Judgement::Replay
        } else {
            Judgement::Reused
        }
    }
}

/// What to do about a refresh token that was presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is the live one: the next generation takes its place.
    Rotate,
    /// Its successor is fresh and unused: answer with that again.
    Replay,
    /// It was used before: somebody else may hold it, so the session ends.
    Reused,
    /// The session is over.
    Refuse,
}

/// A refresh token as somebody presents it: which session and generation it claims to be of.
pub struct RefreshToken {
    pub user: UserId,
    pub session: SessionId,
    pub generation: u32,
    mac: [u8; 32],
}

impl RefreshToken {
    pub fn parse(text: &str) -> Option<Self> {
        let secret = Secret::parse(Kind::RefreshToken, text)?;
        let (user, rest) = secret.body().split_first_chunk::<16>()?;
        let (session, rest) = rest.split_first_chunk::<16>()?;
        let (generation, mac) = rest.split_first_chunk::<4>()?;
        Some(Self {
            user: UserId(uuid::Uuid::from_bytes(*user)),
            session: SessionId(uuid::Uuid::from_bytes(*session)),
            generation: u32::from_be_bytes(*generation),
            mac: mac.try_into().ok()?,
        })
    }

    /// Whether the family with this seed ever had this token.
    pub fn is_genuine(&self, key: &hmac::Key, seed: &[u8; 32]) -> bool {
        super::secret::equal(self.expected_mac(key, seed).as_ref(), &self.mac)
    }

    fn head(&self) -> [u8; 36] {
        let mut head = [0; 36];
        head[..16].copy_from_slice(self.user.0.as_bytes());
        head[16..32].copy_from_slice(self.session.0.as_bytes());
        head[32..].copy_from_slice(&self.generation.to_be_bytes());
        head
    }

    fn expected_mac(&self, key: &hmac::Key, seed: &[u8; 32]) -> hmac::Tag {
        hmac::sign(key, &[&seed[..], &self.head()].concat())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn session() -> Session {
        Session {
            id: SessionId(Uuid::from_u128(2)),
            user: UserId(Uuid::from_u128(1)),
            revision: 1,
            device: Device::default(),
            client: None,
            credential: None,
            shown: Shown::by(Factor::Password),
            auth_time: NOW,
            create_time: NOW,
            last_used_time: NOW,
            idle_expire_time: NOW.plus_s(100),
            expire_time: NOW.plus_s(1000),
            ended: None,
            tokens_not_before: None,
            family: Family {
                seed: [3; 32],
                generation: 5,
                rotate_time: NOW,
            },
        }
    }

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &[9; 32])
    }

    #[test]
    fn a_refresh_token_is_recognised_by_its_own_family_only() {
        let session = session();
        let text = session.refresh_token(&key()).text();
        let token = RefreshToken::parse(&text).expect("own text");
        assert_eq!(
            (token.user, token.session, token.generation),
            (session.user, session.id, 5)
        );
        assert!(token.is_genuine(&key(), &[3; 32]));
        assert!(!token.is_genuine(&key(), &[4; 32]));
        assert!(!token.is_genuine(&hmac::Key::new(hmac::HMAC_SHA256, &[8; 32]), &[3; 32]));
        let forged = RefreshToken {
            generation: 6,
            ..token
        };
        assert!(!forged.is_genuine(&key(), &[3; 32]));
    }

    #[test]
    fn a_token_is_judged_by_its_generation_and_the_time() {
        let session = session();
        assert_eq!(session.judge(5, NOW, 10), Judgement::Rotate);
        assert_eq!(session.judge(4, NOW.plus_s(9), 10), Judgement::Replay);
        assert_eq!(session.judge(4, NOW.plus_s(10), 10), Judgement::Reused);
        assert_eq!(session.judge(4, NOW, 0), Judgement::Reused);
        assert_eq!(session.judge(3, NOW, 10), Judgement::Reused);
        assert_eq!(session.judge(5, NOW.plus_s(100), 10), Judgement::Refuse);
        let ended = Session {
            ended: Some((NOW, EndReason::Revoked)),
            ..session
        };
        assert_eq!(ended.judge(5, NOW, 10), Judgement::Refuse);
        assert_eq!(ended.judge(4, NOW, 10), Judgement::Refuse);
    }

    #[test]
    fn two_factors_count_as_two_for_a_while() {
        let lifetimes = Lifetimes {
            session_s: 1000,
            idle_s: 100,
            aal2_s: 50,
            replay_s: 10,
        };
        let mut session = session();
        assert_eq!(session.acr(NOW, lifetimes), Assurance::Aal1);
        session.step_up(Factor::Totp, NOW.plus_s(20), lifetimes);
        assert_eq!(session.judge(5, NOW.plus_s(21), 10), Judgement::Reused);
        assert_eq!(session.judge(7, NOW.plus_s(21), 10), Judgement::Rotate);
        assert_eq!(session.acr(NOW.plus_s(70), lifetimes), Assurance::Aal2);
        assert_eq!(session.acr(NOW.plus_s(71), lifetimes), Assurance::Aal1);
        assert_eq!(session.auth_time, NOW.plus_s(20));
    }

    #[test]
    fn refreshing_never_outlives_the_session() {
        let mut session = session();
        let lifetimes = Lifetimes {
            session_s: 1000,
            idle_s: 100,
            aal2_s: 500,
            replay_s: 10,
        };
        session.touch(NOW.plus_s(50), lifetimes);
        assert_eq!(session.end_time(), NOW.plus_s(150));
        session.touch(NOW.plus_s(990), lifetimes);
        assert_eq!(session.end_time(), NOW.plus_s(1000));
    }
}

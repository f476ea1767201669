//! The life of a signing key: published before it signs, published as long as its tokens live.

use super::{
    error::{Error, Reason, Result},
    time::Timestamp,
};

/// Most keys that are published at once.
pub const MAX_PUBLISHED: usize = 10;

/// How often every process reads the keys again, in seconds: so long others may still publish or
/// sign with what was before.
pub const REREAD_S: i64 = 15;

/// What tokens are signed with (RFC 7518 section 3.1, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Es256,
    EdDsa,
    /// 3,072 bits.
    Rs256,
}

impl Algorithm {
    pub const ALL: [Self; 3] = [Self::Es256, Self::EdDsa, Self::Rs256];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Rs256 => "RS256",
        }
    }

    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name);
        found.ok_or_else(|| "must be ES256, EdDSA or RS256".to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Prepared,
    Active,
    Retired,
    Revoked,
}

impl State {
    const ALL: [Self; 4] = [Self::Prepared, Self::Active, Self::Retired, Self::Revoked];

    /// As stored, and as errors write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepared => "PREPARED",
            Self::Active => "ACTIVE",
            Self::Retired => "RETIRED",
            Self::Revoked => "REVOKED",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

#[derive(Clone, Debug)]
pub struct SigningKey {
    /// The key's JWK thumbprint.
    pub kid: String,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub algorithm: Algorithm,
    pub state: State,
    /// The public JWK as published.
    pub public_jwk: String,
    /// The private key, encrypted under the master key with the kid as context.
    pub private_sealed: Vec<u8>,
    pub create_time: Timestamp,
    pub activate_time: Option<Timestamp>,
    pub retire_time: Option<Timestamp>,
    pub revoke_time: Option<Timestamp>,
}

impl SigningKey {
    pub fn name(&self) -> String {
        format!("signingKeys/{}", self.kid)
    }

    /// From then on every verifier has seen the key: those that fetched the key set just before the
    /// last process published the key have fetched it again.
    pub const fn earliest_activate_time(&self, jwks_max_age_s: i64) -> Timestamp {
        self.create_time.plus_s(REREAD_S + jwks_max_age_s)
    }

    /// When the last token it signed has expired; `None` while it may still sign.
    pub fn verifies_until(&self, token_lifetime_s: i64) -> Option<Timestamp> {
        self.retire_time
            .map(|time| time.plus_s(REREAD_S + token_lifetime_s))
    }

    pub fn activate(&mut self, now: Timestamp, jwks_max_age_s: i64) -> Result<()> {
        self.require(State::Prepared)?;
        let earliest = self.earliest_activate_time(jwks_max_age_s);
        if now < earliest {
            return Err(Error::Precondition {
                reason: Reason::KeyTooFresh,
                name: self.name(),
                text: format!("may be activated from {earliest} on"),
                retry_after: Some(earliest.after(now)),
            });
        }
        self.activate_at_once(now);
        Ok(())
    }

    /// For the very first key, which no verifier can have missed, and for the one that takes the
    /// place of a revoked key, for which nothing can wait.
    pub fn activate_at_once(&mut self, now: Timestamp) {
        self.change(State::Active);
        self.activate_time = Some(now);
    }

    /// For the active key when another takes its place.
    pub fn step_down(&mut self, now: Timestamp) {
        self.change(State::Retired);
        self.retire_time = Some(now);
    }

    pub fn withdraw(&mut self, now: Timestamp) -> Result<()> {
        self.require(State::Prepared)?;
        self.step_down(now);
        Ok(())
    }

    pub fn revoke(&mut self, now: Timestamp) -> Result<()> {
        if self.state == State::Revoked {
            return Err(self.wrong_state());
        }
        self.change(State::Revoked);
        self.revoke_time = Some(now);
        Ok(())
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.revision += 1;
    }

    fn require(&self, state: State) -> Result<()> {
        if self.state == state {
            Ok(())
        } else {
            Err(self.wrong_state())
        }
    }

    fn wrong_state(&self) -> Error {
        let text = format!("is {}", self.state.name());
        Error::precondition(Reason::WrongState, self.name(), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn key(state: State) -> SigningKey {
        SigningKey {
            kid: "k".to_owned(),
            revision: 1,
            algorithm: Algorithm::Es256,
            state,
            public_jwk: String::new(),
            private_sealed: Vec::new(),
            create_time: NOW,
            activate_time: None,
            retire_time: None,
            revoke_time: None,
        }
    }

    #[test]
    fn a_key_signs_only_after_everybody_knows_it() {
        let mut fresh = key(State::Prepared);
        let error = fresh.activate(NOW.plus_s(314), 300).expect_err("too fresh");
        assert_eq!(error.reason(), Reason::KeyTooFresh);
        assert!(fresh.activate(NOW.plus_s(315), 300).is_ok());
        assert_eq!(fresh.state, State::Active);
    }

    #[test]
    fn only_a_prepared_key_is_activated_or_withdrawn() {
        for state in [State::Active, State::Retired, State::Revoked] {
            assert!(
                key(state).activate(NOW.plus_s(315), 300).is_err(),
                "{state:?}"
            );
            assert!(key(state).withdraw(NOW).is_err(), "{state:?}");
        }
        assert!(key(State::Prepared).withdraw(NOW).is_ok());
    }

    #[test]
    fn every_key_can_be_revoked_once() {
        for state in [State::Prepared, State::Active, State::Retired] {
            let mut key = key(state);
            assert!(key.revoke(NOW).is_ok(), "{state:?}");
            assert!(key.revoke(NOW).is_err(), "{state:?} twice");
        }
    }
}

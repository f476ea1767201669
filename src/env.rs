//! Where time and randomness come from: the only code that reads the clock or draws random bytes.
//!
//! The shipped program has one implementation of each; predictable ones live in the tests.

use aws_lc_rs::{
    encoding::AsDer,
    rand,
    rsa::{KeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::domain::{keyring::PrivateKey, name, signing_key::Algorithm, time::Timestamp};

pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

pub trait Random: Send + Sync {
    fn fill(&self, bytes: &mut [u8]);
}

/// The system's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the clock"
    )]
    fn now(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // Before 1970 everything is refused as not yet valid, which is safe.
        let micros = since_epoch.map_or(0, |duration| duration.as_micros());
        Timestamp::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

/// The operating system's generator, through the crypto library's DRBG.
pub struct SystemRandom;

impl Random for SystemRandom {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that draws random bytes"
    )]
    fn fill(&self, bytes: &mut [u8]) {
        rand::fill(bytes).expect("without randomness nothing here can be done safely");
    }
}

impl dyn Random + '_ {
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    pub fn uuid(&self, now: Timestamp) -> Uuid {
        name::new_uuid(now, self.bytes())
    }
}

/// A new private signing key, made by the crypto library with its own generator.
pub fn generate_key(algorithm: Algorithm) -> Result<PrivateKey, aws_lc_rs::error::Unspecified> {
    let der = match algorithm {
        Algorithm::Es256 => {
            let rng = rand::SystemRandom::new();
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &rng)?
                .as_ref()
                .to_vec()
        }
        Algorithm::EdDsa => {
            let rng = rand::SystemRandom::new();
            Ed25519KeyPair::generate_pkcs8v1(&rng)?.as_ref().to_vec()
        }
        Algorithm::Rs256 => AsDer::as_der(&KeyPair::generate(KeySize::Rsa3072)?)?
            .as_ref()
            .to_vec(),
    };
    Ok(Zeroizing::new(der))
}

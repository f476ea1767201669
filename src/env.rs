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
        Algorithm::Rs256 => {
            let pkcs8 = AsDer::as_der(&KeyPair::generate(KeySize::Rsa3072)?)?;
            pkcs1(pkcs8.as_ref())
                .ok_or(aws_lc_rs::error::Unspecified)?
                .to_vec()
        }
    };
    Ok(Zeroizing::new(der))
}

/// The RSAPrivateKey (RFC 8017 appendix A.1.2) inside a PrivateKeyInfo (RFC 5208): a sequence of
/// version, algorithm and the key as an octet string.
fn pkcs1(pkcs8: &[u8]) -> Option<&[u8]> {
    let (fields, _) = element(pkcs8, 0x30)?;
    let (_, rest) = element(fields, 0x02)?;
    let (_, rest) = element(rest, 0x30)?;
    let (key, _) = element(rest, 0x04)?;
    Some(key)
}

/// The content of a DER element of this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest
            .split_first()
            .map(|(length, rest)| (usize::from(*length), rest))?,
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    (found == tag)
        .then(|| rest.split_at_checked(length))
        .flatten()
}

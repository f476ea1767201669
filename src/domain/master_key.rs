//! The one secret that lives outside the database, and the keys derived from it.
//!
//! A stolen database is worth nothing without it: passwords are peppered, signing keys encrypted,
//! refresh tokens and device tokens made with keys derived here (HKDF-SHA256, RFC 5869), one key for
//! each purpose.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf, hmac,
};
use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

/// 256 random bits.
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl MasterKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads what [`MasterKey::to_text`] wrote: 64 hexadecimal digits, surrounded by space at most.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(HEXLOWER.decode(text.trim().as_bytes()).ok()?);
        Some(Self::new(bytes.as_slice().try_into().ok()?))
    }

    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(HEXLOWER.encode(&*self.0))
    }

    pub fn derive(&self) -> Keys {
        Keys {
            pepper: self.expand(b"password pepper"),
            signing_keys: Sealer::new(&self.expand(b"signing keys at rest")),
            page_tokens: Sealer::new(&self.expand(b"page tokens")),
            refresh_tokens: self.mac(b"refresh tokens"),
            device_tokens: self.mac(b"device tokens"),
            totp_secrets: Sealer::new(&self.expand(b"TOTP secrets at rest")),
            foreign_hashes: Sealer::new(&self.expand(b"foreign password hashes at rest")),
            messages: Sealer::new(&self.expand(b"messages at rest")),
            changes: Sealer::new(&self.expand(b"changes at rest")),
            codes: self.mac(b"one-time codes"),
            request_bodies: self.mac(b"request bodies"),
            throttle_keys: self.mac(b"throttle keys"),
            check: HEXLOWER.encode(&self.expand(b"check value")[..16]),
        }
    }

    fn expand(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"accountd master key 1")
            .extract(&*self.0)
            .expand(&[purpose], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut *key))
            .expect("32 bytes are the digest's own length");
        key
    }

    fn mac(&self, purpose: &[u8]) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &*self.expand(purpose))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(withheld)")
    }
}

/// What is derived from the master key, by purpose.
pub struct Keys {
    /// The secret input of argon2id that is not in the database.
    pub pepper: Zeroizing<[u8; 32]>,
    /// Encrypts private signing keys.
    pub signing_keys: Sealer,
    /// Encrypts page tokens.
    pub page_tokens: Sealer,
    /// Makes and recognises refresh tokens.
    pub refresh_tokens: hmac::Key,
    /// Makes and recognises device tokens.
    pub device_tokens: hmac::Key,
    /// Encrypts the secrets of TOTP generators.
    pub totp_secrets: Sealer,
    /// Encrypts password hashes of other systems, which lack the pepper.
    pub foreign_hashes: Sealer,
    /// Encrypts messages that wait to be sent.
    pub messages: Sealer,
    /// Encrypts requests that wait for a second person.
    pub changes: Sealer,
    /// Digests of recovery codes and of codes in messages.
    pub codes: hmac::Key,
    /// Fingerprints of request bodies: keyed, since a body may hold a password.
    pub request_bodies: hmac::Key,
    /// Names of throttle counters: keyed, since they stand for what people typed.
    pub throttle_keys: hmac::Key,
    /// Says whether a database belongs to this master key, and nothing about the key.
    pub check: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(withheld)")
    }
}

/// Authenticated encryption under one key (AES-256-GCM-SIV, RFC 8452: a repeated nonce reveals no
/// more than that two messages are equal).
pub struct Sealer(LessSafeKey);

impl Sealer {
    fn new(key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM_SIV, key).expect("the key is 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Encrypts for one `context`, without which the result does not open.
    pub fn seal(&self, nonce: [u8; NONCE_LEN], context: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut body = plain.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                &mut body,
            )
            .expect("messages here are far below the cipher's limit");
        [&nonce, body.as_slice()].concat()
    }

    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut body = Zeroizing::new(body.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self
            .0
            .open_in_place(nonce, Aad::from(context), &mut body)
            .ok()?
            .len();
        body.truncate(length);
        Some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_key_survives_its_file() {
        let key = MasterKey::new([7; 32]);
        let read = MasterKey::parse(&format!("{}\n", *key.to_text())).expect("own text");
        assert_eq!(read.derive().check, key.derive().check);
        assert_ne!(MasterKey::new([8; 32]).derive().check, key.derive().check);
        assert!(MasterKey::parse("abcd").is_none());
    }

    #[test]
    fn what_was_sealed_opens_only_in_its_context() {
        let keys = MasterKey::new([7; 32]).derive();
        let sealed = keys.signing_keys.seal([1; 12], b"kid-1", b"private");
        assert_eq!(
            keys.signing_keys
                .open(b"kid-1", &sealed)
                .expect("opens")
                .as_slice(),
            b"private"
        );
        assert!(keys.signing_keys.open(b"kid-2", &sealed).is_none());
        assert!(keys.page_tokens.open(b"kid-1", &sealed).is_none());
        assert!(
            keys.signing_keys
                .open(b"kid-1", &sealed[..sealed.len() - 1])
                .is_none()
        );
        assert!(keys.signing_keys.open(b"kid-1", b"").is_none());
    }
}

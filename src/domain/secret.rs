//! Secrets that machines make: how they are written, recognised and compared.
//!
//! Every secret reads `prefix_body_crc`: the prefix says what it is to a person and to a secret
//! scanner, the body is base32, and the CRC-32 tells a typing error or a false alarm from a guess.
//! Invariant: only digests are stored, and nothing here can be printed by accident.

use std::{fmt, sync::LazyLock};

use aws_lc_rs::digest;
use data_encoding::{Encoding, Specification};
use zeroize::Zeroizing;

/// SHA-256 of a secret with 256 bits of its own: needs no salt and no stretching.
pub type Digest = [u8; 32];

/// What a secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ClientSecret,
    ApiKey,
    RefreshToken,
    DeviceToken,
    PasswordReset,
    Challenge,
    ContactLink,
    ContactRevert,
}

impl Kind {
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::ClientSecret => "adcs",
            Self::ApiKey => "adak",
            Self::RefreshToken => "adrt",
            Self::DeviceToken => "addt",
            Self::PasswordReset => "adpr",
            Self::Challenge => "adch",
            Self::ContactLink => "adcl",
            Self::ContactRevert => "adcb",
        }
    }
}

/// A secret, shown once to whom it belongs.
pub struct Secret {
    kind: Kind,
    body: Zeroizing<Vec<u8>>,
}

impl Secret {
    pub fn new(kind: Kind, body: &[u8]) -> Self {
        Self {
            kind,
            body: Zeroizing::new(body.to_vec()),
        }
    }

    /// Reads what [`Secret::text`] wrote. A secret of another kind is not one of this kind.
    pub fn parse(kind: Kind, text: &str) -> Option<Self> {
        let (prefix, rest) = text.split_once('_')?;
        let (body, crc) = rest.split_once('_')?;
        let body = Zeroizing::new(BASE32.decode(body.as_bytes()).ok()?);
        let is_right = prefix == kind.prefix() && checksum(kind, &body) == crc;
        is_right.then_some(Self { kind, body })
    }

    pub fn text(&self) -> String {
        let body = Zeroizing::new(BASE32.encode(&self.body));
        format!(
            "{}_{}_{}",
            self.kind.prefix(),
            *body,
            checksum(self.kind, &self.body)
        )
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }

    pub fn digest(&self) -> Digest {
        sha256(&self.body)
    }

    /// Prefix and last four characters of the body: enough to tell secrets apart, too little to use.
    pub fn hint(&self) -> String {
        let body = Zeroizing::new(BASE32.encode(&self.body));
        format!(
            "{}_…{}",
            self.kind.prefix(),
            &body[body.len().saturating_sub(4)..]
        )
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({:?}, withheld)", self.kind)
    }
}

pub fn sha256(bytes: &[u8]) -> Digest {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 is 32 bytes")
}

/// Compares without telling by time where the first difference is.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

fn checksum(kind: Kind, body: &[u8]) -> String {
    let mut crc = crc32fast::Hasher::new();
    crc.update(kind.prefix().as_bytes());
    crc.update(body);
    BASE32.encode(&crc.finalize().to_be_bytes())
}

/// Lower-case base32 (RFC 4648 section 6) without padding: survives a double click and a phone call.
pub(super) static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification
        .symbols
        .push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 distinct symbols")
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_back_only_as_what_it_is() {
        let secret = Secret::new(Kind::ClientSecret, &[0xa5; 32]);
        let text = secret.text();
        let read = Secret::parse(Kind::ClientSecret, &text).expect("own text");
        assert_eq!(read.digest(), secret.digest());
        assert!(Secret::parse(Kind::RefreshToken, &text).is_none());
        assert!(Secret::parse(Kind::ClientSecret, &text.to_uppercase()).is_none());
        assert!(Secret::parse(Kind::ClientSecret, &format!("{text} ")).is_none());
    }

    #[test]
    fn every_single_changed_character_is_noticed() {
        let text = Secret::new(Kind::PasswordReset, &[0x5a; 32]).text();
        for place in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[place] = if changed[place] == b'a' { b'b' } else { b'a' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert!(
                Secret::parse(Kind::PasswordReset, &changed).is_none(),
                "{changed}"
            );
        }
    }

    #[test]
    fn a_secret_cannot_be_printed_by_accident() {
        let secret = Secret::new(Kind::ClientSecret, &[1; 32]);
        assert!(!format!("{secret:?}").contains(&secret.text()[5..20]));
        assert!(secret.hint().chars().count() < 12);
    }
}

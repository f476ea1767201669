//! Codes that stand in for a second factor that is lost: written down, typed by hand, used once.

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use super::{
    name::UserId,
    secret::{BASE32, Digest},
};

/// Codes of one set.
pub const COUNT: usize = 10;
/// So few left are news.
pub const FEW: i64 = 3;
/// Random bytes of one: above the 112 bits that make a stretched hash unnecessary (ASVS 6.5.2).
pub const BYTES: usize = 15;

/// One code. Nothing prints it but [`RecoveryCode::text`].
pub struct RecoveryCode(Zeroizing<[u8; BYTES]>);

impl RecoveryCode {
    pub fn new(bytes: [u8; BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Reads what a person typed: spaces, hyphens and capital letters do not matter.
    pub fn parse(typed: &str) -> Option<Self> {
        let text: Zeroizing<String> = Zeroizing::new(
            typed
                .chars()
                .filter(|c| !c.is_whitespace() && *c != '-')
                .map(|c| c.to_ascii_lowercase())
                .take(2 * BYTES)
                .collect(),
        );
        let bytes = Zeroizing::new(BASE32.decode(text.as_bytes()).ok()?);
        Some(Self::new(bytes.as_slice().try_into().ok()?))
    }

    /// In groups of four: `abcd-efgh-ijkl-mnop-qrst-uvwx`.
    pub fn text(&self) -> String {
        let text = Zeroizing::new(BASE32.encode(&*self.0));
        let groups: Vec<&str> = (0..text.len())
            .step_by(4)
            .map(|start| &text[start..start + 4])
            .collect();
        groups.join("-")
    }

    /// What is stored: keyed, and of one user only.
    pub fn digest(&self, user: UserId, key: &hmac::Key) -> Digest {
        let tag = hmac::sign(key, &[user.0.as_bytes(), &self.0[..]].concat());
        tag.as_ref().try_into().expect("HMAC-SHA256 is 32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_code_is_read_however_it_is_typed_and_by_its_owner_only() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let (alice, bob) = (UserId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)));
        let code = RecoveryCode::new([0xa5; BYTES]);
        let text = code.text();
        assert_eq!(text.len(), 29);
        let digest = |typed: &str| Some(RecoveryCode::parse(typed)?.digest(alice, &key));
        let expected = Some(code.digest(alice, &key));
        assert_eq!(digest(&text), expected);
        assert_eq!(digest(&format!(" {} ", text.to_uppercase())), expected);
        assert_eq!(digest(&text.replace('-', "")), expected);
        assert_eq!(digest(&text.replace('-', " ")), expected);
        assert_ne!(Some(code.digest(bob, &key)), expected);
        for wrong in [
            "",
            "abcd",
            &text[1..],
            &format!("{text}a"),
            &text.replace('u', "1"),
        ] {
            assert!(RecoveryCode::parse(wrong).is_none(), "{wrong}");
        }
        assert!(RecoveryCode::parse(&"a".repeat(100_000)).is_none());
    }
}

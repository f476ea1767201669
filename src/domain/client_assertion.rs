//! Programs that authenticate with a signature of their own (`private_key_jwt`, RFC 7523): which public
//! keys they may register, and what they may sign.
//!
//! RFC 8725: a key works with the one algorithm that its type says, whatever the header claims; the
//! header names at most which of the account's own keys is tried.
//! Invariant: an assertion is good for ten minutes at most, so what is remembered of those that were
//! used is bounded, and each is used once.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, ThumbprintHash},
};
use serde::{Deserialize, Serialize};

use super::{
    name::SystemAccountId,
    secret::{self, Digest},
    time::Timestamp,
    token::{self, CLOCK_SKEW_S},
};

/// Most bytes of a public key as JSON, and of an assertion.
pub const MAX_JWK_BYTES: usize = 4 * 1024;
pub const MAX_ASSERTION_BYTES: usize = 8 * 1024;
/// Longest life of an assertion that is accepted, in seconds.
const MAX_LIFE_S: i64 = 600;
/// Most keys that one assertion is tried with: anybody can send one.
const MAX_TRIED: usize = 4;
const MAX_JTI_BYTES: usize = 256;
const MAX_KID_BYTES: usize = 200;
/// Bits of an RSA modulus: at least 128 bits of security (NIST SP 800-57), at most what verifies in time.
const RSA_BITS: std::ops::RangeInclusive<usize> = 3072..=8192;
/// Members that only a private or a symmetric key has (RFC 7518 section 6).
const PRIVATE: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
/// What the header may call itself: RFC 7519 section 5.1, and the explicit type of newer drafts.
const TYPES: [&str; 2] = ["JWT", "client-authentication+jwt"];

/// A public key that a program may sign with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// The public members, and no others.
    pub jwk: String,
    /// As the program names it; the thumbprint (RFC 7638) if it has no name.
    pub kid: String,
}

/// An assertion whose signature was right, to be used up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assertion {
    /// Of its `jti`.
    pub digest: Digest,
    /// When it need not be remembered any more.
    pub forget_time: Timestamp,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    exp: i64,
    nbf: Option<i64>,
    iat: Option<i64>,
    jti: String,
}

/// RFC 7519 section 4.1.3 allows a list; one that names others as well was not meant for us alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    List([String; 1]),
}

impl PublicKey {
    /// Reads a JWK (RFC 7517). An error is the end of a sentence about it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_JWK_BYTES {
            return Err(format!("must have at most {MAX_JWK_BYTES} bytes"));
        }
        let members: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|_| "must be a JSON object".to_owned())?;
        if PRIVATE.iter().any(|name| members.contains_key(*name)) {
            let text = "holds private members: make a new key, and send its public half only";
            return Err(text.to_owned());
        }
        let text_of = |name: &str| members.get(name).map(|value| value.as_str().unwrap_or(""));
        let is_for_verifying = |operations: &serde_json::Value| {
            let operations = operations.as_array();
            operations.is_some_and(|list| list.iter().any(|operation| operation == "verify"))
        };
        if text_of("use").is_some_and(|usage| usage != "sig")
            || members
                .get("key_ops")
                .is_some_and(|list| !is_for_verifying(list))
        {
            return Err("must be for signatures".to_owned());
        }
        let mut jwk: Jwk = serde_json::from_str(text).map_err(|_| unsupported())?;
        let algorithm = algorithm(&jwk)?;
        let name = format!("{algorithm:?}");
        if text_of("alg").is_some_and(|alg| alg != name) {
            return Err(format!("must be for {name}, by its type"));
        }
        let thumbprint = jwk
            .thumbprint(ThumbprintHash::SHA256)
            .map_err(|_| unsupported())?;
        let kid = text_of("kid").map_or_else(|| thumbprint, str::to_owned);
        if !(1..=MAX_KID_BYTES).contains(&kid.len()) {
            return Err(format!("must have a kid of 1 to {MAX_KID_BYTES} bytes"));
        }
        // What is kept is what the key is made of.
        jwk.common = jsonwebtoken::jwk::CommonParameters::default();
        Ok(Self {
            jwk: serde_json::to_string(&jwk).map_err(|error| error.to_string())?,
            kid,
        })
    }

    /// What an assertion says that this key has signed.
    fn claims(&self, assertion: &str) -> Option<Claims> {
        let jwk: Jwk = serde_json::from_str(&self.jwk).ok()?;
        let mut validation = Validation::new(algorithm(&jwk).ok()?);
        // All of it is compared below.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let token = jsonwebtoken::decode::<Claims>(assertion, &key, &validation);
        token.ok().map(|token| token.claims)
    }
}

/// The one algorithm of a key, which has to be strong enough.
fn algorithm(jwk: &Jwk) -> Result<Algorithm, String> {
    match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            let point = [&[4][..], &bytes(&key.x)?, &bytes(&key.y)?].concat();
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .map_err(|_| "must be a point of P-256".to_owned())?;
            Ok(Algorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            ParsedPublicKey::new(&ED25519, bytes(&key.x)?)
                .map_err(|_| "must be a point of Ed25519".to_owned())?;
            Ok(Algorithm::EdDSA)
        }
        AlgorithmParameters::RSA(key) => {
            let modulus = bytes(&key.n)?;
            if modulus.first() == Some(&0) {
                return Err("must have a modulus without leading zeros".to_owned());
            }
            let zeros = modulus.first().map_or(0, |byte| byte.leading_zeros());
            let bits = modulus.len() * 8 - usize::try_from(zeros).unwrap_or_default();
            let is_usual = bytes(&key.e)? == [1, 0, 1];
            if RSA_BITS.contains(&bits) && is_usual {
                Ok(Algorithm::RS256)
            } else {
                Err("must have 3,072 to 8,192 bits and the exponent 65537".to_owned())
            }
        }
        _ => Err(unsupported()),
    }
}

fn unsupported() -> String {
    "must be a JWK of type EC (P-256), OKP (Ed25519) or RSA".to_owned()
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| "must have members in base64url without padding".to_owned())
}

/// Whose assertion it claims to be, which nothing has proved yet.
pub fn subject(assertion: &str) -> Option<SystemAccountId> {
    #[derive(Deserialize)]
    struct Subject {
        sub: String,
    }
    if assertion.len() > MAX_ASSERTION_BYTES {
        return None;
    }
    let payload = assertion.split('.').nth(1)?;
    let payload = BASE64URL_NOPAD.decode(payload.as_bytes()).ok()?;
    let Subject { sub } = serde_json::from_slice(&payload).ok()?;
    token::client_id(&sub)
}

/// The key that an assertion names.
pub fn kid(assertion: &str) -> Option<String> {
    if assertion.len() > MAX_ASSERTION_BYTES {
        return None;
    }
    jsonwebtoken::decode_header(assertion).ok()?.kid
}

/// Which of the keys of `client` has signed an assertion that is good now for one of `audiences`.
pub fn verify<'a, T>(
    assertion: &str,
    client: SystemAccountId,
    keys: impl IntoIterator<Item = (T, &'a PublicKey)>,
    audiences: &[String],
    now: Timestamp,
) -> Option<(T, Assertion)> {
    if assertion.len() > MAX_ASSERTION_BYTES {
        return None;
    }
    let header = jsonwebtoken::decode_header(assertion).ok()?;
    let is_typed = header.typ.as_deref().is_none_or(|typ| TYPES.contains(&typ));
    if !is_typed || header.crit.is_some() {
        return None;
    }
    let is_named = |key: &PublicKey| header.kid.as_ref().is_none_or(|kid| *kid == key.kid);
    let (found, claims) = keys
        .into_iter()
        .filter(|(_, key)| is_named(key))
        .take(MAX_TRIED)
        .find_map(|(found, key)| Some((found, key.claims(assertion)?)))?;
    let assertion = claims.check(client, audiences, now)?;
    Some((found, assertion))
}

impl Claims {
    fn check(
        self,
        client: SystemAccountId,
        audiences: &[String],
        now: Timestamp,
    ) -> Option<Assertion> {
        let id = client.0.to_string();
        let (Audience::One(audience) | Audience::List([audience])) = self.aud;
        let latest = now.plus_s(CLOCK_SKEW_S).seconds();
        let is_over = self.exp <= now.seconds();
        let is_too_long = self.exp > now.plus_s(MAX_LIFE_S).seconds();
        let is_early = [self.nbf, self.iat]
            .into_iter()
            .flatten()
            .any(|time| time > latest);
        let is_good = self.iss == id
            && self.sub == id
            && audiences.contains(&audience)
            && !is_over
            && !is_too_long
            && !is_early
            && (1..=MAX_JTI_BYTES).contains(&self.jti.len());
        is_good.then(|| Assertion {
            digest: secret::sha256(self.jti.as_bytes()),
            forget_time: Timestamp::from_seconds(self.exp),
        })
    }
}

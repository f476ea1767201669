//! The signing keys in memory: signs access tokens, verifies them, publishes the public halves.
//!
//! RFC 8725: each key works with exactly one algorithm, the token's header chooses nothing but which
//! of our own keys is tried, and the token's type is checked. Symmetric algorithms do not exist here.
//! Invariant: jsonwebtoken is named here and nowhere else on the server.

use std::collections::{HashMap, HashSet};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{
    DecodingKey, EncodingKey, Header, Validation,
    jwk::{AlgorithmParameters, Jwk, PublicKeyUse, ThumbprintHash},
};
use zeroize::Zeroizing;

use super::{
    error::Reason,
    secret,
    signing_key::{Algorithm, SigningKey, State},
    time::Timestamp,
    token::{Claims, MAX_TOKEN_BYTES},
};

/// The type of an access token (RFC 9068 section 2.1).
const TYPE: &str = "at+jwt";

/// The keys as they are at one moment; replaced as a whole when they change.
pub struct Keyring {
    signer: Signer,
    verifiers: HashMap<String, Verifier>,
    revoked: HashSet<String>,
    jwks: Jwks,
}

struct Signer {
    header: Header,
    key: EncodingKey,
}

struct Verifier {
    key: DecodingKey,
    validation: Validation,
    /// A retired key stops verifying when its last token has expired.
    until: Option<Timestamp>,
}

/// The published key set (RFC 7517 section 5).
#[derive(Clone)]
pub struct Jwks {
    /// Each public key as its JSON members, in the order of publication.
    pub keys: Vec<serde_json::Map<String, serde_json::Value>>,
    /// The document as it is served.
    pub json: String,
    /// Changes exactly when the document does.
    pub etag: String,
}

/// A private key, as PKCS #8 (ES256, EdDSA) or PKCS #1 (RS256) DER.
pub type PrivateKey = Zeroizing<Vec<u8>>;

impl Keyring {
    /// Puts the keys to work: `private` opens the one that signs. `token_lifetime_s` is how long a
    /// retired key may still be needed.
    pub fn new(
        keys: &[SigningKey],
        private: impl Fn(&SigningKey) -> Option<PrivateKey>,
        token_lifetime_s: i64,
        now: Timestamp,
    ) -> Result<Self, String> {
        let mut signer = None;
        let mut verifiers = HashMap::new();
        let mut revoked = HashSet::new();
        let mut published = Vec::new();
        for key in keys {
            let until = key.verifies_until(token_lifetime_s);
            match key.state {
                State::Revoked => {
                    revoked.insert(key.kid.clone());
                    continue;
                }
                _ if super::time::has_passed(until, now) => continue,
                State::Active => signer = Some(Signer::new(key, &private)?),
                State::Prepared | State::Retired => {}
            }
            let jwk: Jwk = serde_json::from_str(&key.public_jwk).map_err(|e| e.to_string())?;
            verifiers.insert(key.kid.clone(), Verifier::new(&jwk, key.algorithm, until)?);
            published.push(&key.public_jwk);
        }
        Ok(Self {
            signer: signer.ok_or("there is no active signing key")?,
            verifiers,
            revoked,
            jwks: Jwks::new(&published)?,
        })
    }

    pub fn sign(&self, claims: &Claims) -> Result<String, String> {
        jsonwebtoken::encode(&self.signer.header, claims, &self.signer.key)
            .map_err(|error| error.to_string())
    }

    /// The claims of a token that one of these keys signed, for whatever audience, and whose time
    /// is not over.
    pub fn verify(&self, token: &str, issuer: &str, now: Timestamp) -> Result<Claims, Reason> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TokenInvalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Reason::TokenInvalid)?;
        let kid = header.kid.as_deref().ok_or(Reason::TokenInvalid)?;
        if self.revoked.contains(kid) {
            return Err(Reason::TokenRevoked);
        }
        let verifier = self.verifiers.get(kid).ok_or(Reason::TokenInvalid)?;
        if header.typ.as_deref() != Some(TYPE)
            || header.crit.is_some()
            || super::time::has_passed(verifier.until, now)
        {
            return Err(Reason::TokenInvalid);
        }
        let token = jsonwebtoken::decode::<Claims>(token, &verifier.key, &verifier.validation)
            .map_err(|_| Reason::TokenInvalid)?;
        token.claims.check(issuer, now)?;
        Ok(token.claims)
    }

    /// Whether a token names a key that is not here: perhaps one that another process has made.
    pub fn is_unknown(&self, token: &str) -> bool {
        let kid = jsonwebtoken::decode_header(token)
            .ok()
            .and_then(|header| header.kid);
        kid.is_some_and(|kid| !self.verifiers.contains_key(&kid) && !self.revoked.contains(&kid))
    }

    pub const fn jwks(&self) -> &Jwks {
        &self.jwks
    }
}

impl Signer {
    fn new(
        key: &SigningKey,
        private: impl Fn(&SigningKey) -> Option<PrivateKey>,
    ) -> Result<Self, String> {
        let der = private(key)
            .ok_or_else(|| format!("signing key {} does not open with this master key", key.kid))?;
        let mut header = Header::new(key.algorithm.into());
        header.typ = Some(TYPE.to_owned());
        header.kid = Some(key.kid.clone());
        Ok(Self {
            header,
            key: encoding_key(key.algorithm, &der),
        })
    }
}

impl Verifier {
    fn new(jwk: &Jwk, algorithm: Algorithm, until: Option<Timestamp>) -> Result<Self, String> {
        let mut validation = Validation::new(algorithm.into());
        // Time, issuer and audience are compared by `Claims::check` and its callers.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        Ok(Self {
            key,
            validation,
            until,
        })
    }
}

impl Jwks {
    fn new(public: &[&String]) -> Result<Self, String> {
        let parse = |jwk: &&String| serde_json::from_str(jwk).map_err(|error| error.to_string());
        let keys = public.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let json = serde_json::json!({ "keys": keys }).to_string();
        let etag = format!(
            "\"{}\"",
            BASE64URL_NOPAD.encode(&secret::sha256(json.as_bytes())[..12])
        );
        Ok(Self { keys, json, etag })
    }
}

/// The kid (RFC 7638 thumbprint) and the public JWK of a private key.
pub fn public_half(algorithm: Algorithm, private: &PrivateKey) -> Result<(String, String), String> {
    let key = encoding_key(algorithm, private);
    let public = || -> jsonwebtoken::errors::Result<(String, Jwk)> {
        let mut jwk = Jwk::from_encoding_key(&key, algorithm.into())?;
        jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256)?);
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok((jwk.common.key_id.clone().unwrap_or_default(), jwk))
    };
    let (kid, jwk) = public().map_err(|error| error.to_string())?;
    if matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_)) {
        return Err("a symmetric key has no public half".to_owned());
    }
    Ok((
        kid,
        serde_json::to_string(&jwk).map_err(|error| error.to_string())?,
    ))
}

fn encoding_key(algorithm: Algorithm, der: &[u8]) -> EncodingKey {
    match algorithm {
        Algorithm::Es256 => EncodingKey::from_ec_der(der),
        Algorithm::EdDsa => EncodingKey::from_ed_der(der),
        Algorithm::Rs256 => EncodingKey::from_rsa_der(der),
    }
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Es256 => Self::ES256,
            Algorithm::EdDsa => Self::EdDSA,
            Algorithm::Rs256 => Self::RS256,
        }
    }
}

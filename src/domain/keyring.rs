//! The signing keys in memory: signs access tokens, verifies them, publishes the public halves.
//!
//! RFC 8725: each key works with exactly one algorithm, the token's header chooses nothing but which
//! of our own keys is tried, and the token's type is checked. Symmetric algorithms do not exist here.
//! Invariant: jsonwebtoken is named here and in `client_assertion` alone.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use aws_lc_rs::{
    error::{KeyRejected, Unspecified},
    rand::SystemRandom,
    rsa::KeyPair as RsaKeyPair,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256},
};
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
    /// The header of every token, encoded.
    header: String,
    key: KeyPair,
}

/// A private key that is parsed once: parsing and checking it takes longer than signing with it.
enum KeyPair {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256(RsaKeyPair),
}

struct Verifier {
    key: DecodingKey,
    validation: Validation,
    /// A retired key stops verifying when its last token has expired.
    until: Option<Timestamp>,
}

/// What a token says that a key of ours has signed. The key's id is its thumbprint, so another key
/// never has the same.
#[derive(Debug)]
pub struct Genuine {
    kid: String,
    pub claims: Claims,
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
        self.signer.sign(claims)
    }

    /// What a token says that one of these keys signed, for whatever audience, and whose time is not
    /// over. A signature is verified once, which is dear and then true for ever: `remembered` is what
    /// this said of the same token before. All else is asked each time.
    pub fn verify(
        &self,
        token: &str,
        remembered: Option<Arc<Genuine>>,
        issuer: &str,
        now: Timestamp,
    ) -> Result<Arc<Genuine>, Reason> {
        let genuine = match remembered {
            Some(genuine) => genuine,
            None => Arc::new(self.authenticate(token, now)?),
        };
        self.verifier(&genuine.kid, now)?;
        genuine.claims.check(issuer, now)?;
        Ok(genuine)
    }

    /// Whether one of these keys made the signature.
    fn authenticate(&self, token: &str, now: Timestamp) -> Result<Genuine, Reason> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Reason::TokenInvalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Reason::TokenInvalid)?;
        let kid = header.kid.ok_or(Reason::TokenInvalid)?;
        let verifier = self.verifier(&kid, now)?;
        if header.typ.as_deref() != Some(TYPE) || header.crit.is_some() {
            return Err(Reason::TokenInvalid);
        }
        let token = jsonwebtoken::decode::<Claims>(token, &verifier.key, &verifier.validation)
            .map_err(|_| Reason::TokenInvalid)?;
        Ok(Genuine {
            kid,
            claims: token.claims,
        })
    }

    fn verifier(&self, kid: &str, now: Timestamp) -> Result<&Verifier, Reason> {
        if self.revoked.contains(kid) {
            return Err(Reason::TokenRevoked);
        }
        let verifier = self.verifiers.get(kid);
        verifier
            .filter(|verifier| !super::time::has_passed(verifier.until, now))
            .ok_or(Reason::TokenInvalid)
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
        let header = serde_json::to_vec(&header).map_err(|error| error.to_string())?;
        Ok(Self {
            header: BASE64URL_NOPAD.encode(&header),
            key: KeyPair::parse(key.algorithm, &der).map_err(|error| error.to_string())?,
        })
    }

    /// A token in the compact serialisation (RFC 7515 section 7.1).
    fn sign(&self, claims: &Claims) -> Result<String, String> {
        let claims = serde_json::to_vec(claims).map_err(|error| error.to_string())?;
        let mut token = self.header.clone();
        token.push('.');
        BASE64URL_NOPAD.encode_append(&claims, &mut token);
        let signature = self.key.sign(token.as_bytes());
        let signature = signature.map_err(|_| "cannot sign".to_owned())?;
        token.push('.');
        BASE64URL_NOPAD.encode_append(&signature, &mut token);
        Ok(token)
    }
}

impl KeyPair {
    fn parse(algorithm: Algorithm, der: &[u8]) -> Result<Self, KeyRejected> {
        Ok(match algorithm {
            Algorithm::Es256 => Self::Es256(EcdsaKeyPair::from_pkcs8(
                &ECDSA_P256_SHA256_FIXED_SIGNING,
                der,
            )?),
            Algorithm::EdDsa => Self::EdDsa(Ed25519KeyPair::from_pkcs8(der)?),
            Algorithm::Rs256 => Self::Rs256(RsaKeyPair::from_der(der)?),
        })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        // A nonce that anybody could foresee would give the key away, so it comes from nowhere else.
        let random = SystemRandom::new();
        Ok(match self {
            Self::Es256(key) => key.sign(&random, message)?.as_ref().to_vec(),
            Self::EdDsa(key) => key.sign(message).as_ref().to_vec(),
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                signature
            }
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

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);
    const ISSUER: &str = "https://id.example";

    /// A key that really signs, so that nothing but the check in question can refuse its tokens.
    struct Bench {
        private: PrivateKey,
        key: SigningKey,
    }

    impl Bench {
        fn new() -> Self {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
            let der = pair.to_pkcs8v1().expect("PKCS #8");
            let private = Zeroizing::new(der.as_ref().to_vec());
            let (kid, public_jwk) = public_half(Algorithm::Es256, &private).expect("a public half");
            let key = SigningKey {
                kid,
                revision: 1,
                algorithm: Algorithm::Es256,
                state: State::Active,
                public_jwk,
                private_sealed: Vec::new(),
                create_time: NOW,
                activate_time: Some(NOW),
                retire_time: None,
                revoke_time: None,
            };
            Self { private, key }
        }

        fn keyring(&self) -> Keyring {
            let keys = [self.key.clone()];
            Keyring::new(&keys, |_| Some(self.private.clone()), 300, NOW).expect("a keyring")
        }

        fn header(&self) -> Value {
            json!({ "typ": TYPE, "alg": "ES256", "kid": self.key.kid })
        }

        /// A token of these very texts, with our signature.
        fn token(&self, header: &str, claims: &str) -> String {
            let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
            let signed = format!("{}.{}", encode(header), encode(claims));
            let key = encoding_key(Algorithm::Es256, &self.private);
            let algorithm = Algorithm::Es256.into();
            let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, algorithm);
            format!("{signed}.{}", signature.expect("a signature"))
        }

        fn verify(&self, header: &str, claims: &str) -> Result<Claims, Reason> {
            let verified = self
                .keyring()
                .verify(&self.token(header, claims), None, ISSUER, NOW);
            verified.map(|genuine| genuine.claims.clone())
        }
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "sub": Uuid::nil(), "aud": "accountd", "exp": 1_000_300,
            "iat": 1_000_000, "jti": Uuid::nil(), "client_id": "x", "scope": "",
            "account_kind": "system_account", "credential_id": Uuid::nil(),
        })
    }

    fn with(mut object: Value, name: &str, value: Value) -> String {
        object[name] = value;
        object.to_string()
    }

    #[test]
    fn headers_that_our_own_key_signed_are_not_believed_for_that() {
        let bench = Bench::new();
        let claims = claims().to_string();
        let good = bench.header();
        assert!(bench.verify(&good.to_string(), &claims).is_ok());
        let more = with(good.clone(), "x", json!(1));
        assert!(bench.verify(&more, &claims).is_ok(), "an unknown member");
        for (name, value) in [
            ("typ", json!("JWT")),
            ("typ", json!("at+jwt ")),
            ("typ", Value::Null),
            ("alg", json!("EdDSA")),
            ("alg", json!("RS256")),
            ("alg", json!("HS256")),
            ("alg", json!("none")),
            ("kid", json!("")),
            ("kid", json!("another")),
            ("kid", Value::Null),
            ("crit", json!(["exp"])),
            ("crit", json!([])),
        ] {
            let refused = bench.verify(&with(good.clone(), name, value.clone()), &claims);
            assert_eq!(refused, Err(Reason::TokenInvalid), "{name} = {value}");
        }
        for twice in [
            r#"{"alg":"none","#,
            r#"{"kid":"another","#,
            r#"{"typ":"JWT","#,
        ] {
            let header = good.to_string().replacen('{', twice, 1);
            let refused = bench.verify(&header, &claims);
            assert_eq!(refused, Err(Reason::TokenInvalid), "{header}");
        }
    }

    #[test]
    fn claims_that_our_own_key_signed_are_checked_all_the_same() {
        let bench = Bench::new();
        let header = bench.header().to_string();
        for (name, value, reason) in [
            ("exp", json!("1000300"), Reason::TokenInvalid),
            ("exp", json!(1e300), Reason::TokenInvalid),
            ("exp", json!(-1), Reason::TokenExpired),
            ("exp", json!(1_000_000), Reason::TokenExpired),
            ("exp", Value::Null, Reason::TokenInvalid),
            ("iat", json!(1_000_006), Reason::TokenInvalid),
            ("aud", json!(["accountd"]), Reason::TokenInvalid),
            ("iss", json!("https://evil.example"), Reason::TokenInvalid),
            ("sub", json!("alice"), Reason::TokenInvalid),
            ("scope", json!(["users.read"]), Reason::TokenInvalid),
            ("account_kind", json!("admin"), Reason::TokenInvalid),
        ] {
            let refused = bench.verify(&header, &with(claims(), name, value.clone()));
            assert_eq!(refused, Err(reason), "{name} = {value}");
        }
        let twice = claims()
            .to_string()
            .replacen('{', r#"{"exp":9999999999,"#, 1);
        assert_eq!(bench.verify(&header, &twice), Err(Reason::TokenInvalid));
        for text in ["", "null", "[]", "{", "{}", "\u{0}"] {
            let refused = bench.verify(&header, text);
            assert_eq!(refused, Err(Reason::TokenInvalid), "{text:?}");
        }
    }

    #[test]
    fn a_key_verifies_only_as_long_as_its_state_says() {
        let mut bench = Bench::new();
        let token = bench.token(&bench.header().to_string(), &claims().to_string());
        let active = Bench::new();
        let verify = |old: &SigningKey, now| {
            let keys = [active.key.clone(), old.clone()];
            let private = |_: &SigningKey| Some(active.private.clone());
            let keyring = Keyring::new(&keys, private, 300, NOW).expect("a keyring");
            keyring.verify(&token, None, ISSUER, now).map(drop)
        };
        bench.key.state = State::Prepared;
        assert_eq!(verify(&bench.key, NOW), Ok(()));
        bench.key.state = State::Retired;
        bench.key.retire_time = Some(NOW.plus_s(-200));
        assert_eq!(verify(&bench.key, NOW), Ok(()));
        assert_eq!(
            verify(&bench.key, NOW.plus_s(200)),
            Err(Reason::TokenInvalid)
        );
        bench.key.state = State::Revoked;
        bench.key.revoke_time = Some(NOW);
        assert_eq!(verify(&bench.key, NOW), Err(Reason::TokenRevoked));
    }

    #[test]
    fn a_signature_that_was_verified_once_makes_no_token_good_for_ever() {
        let mut bench = Bench::new();
        let token = bench.token(&bench.header().to_string(), &claims().to_string());
        let genuine = bench.keyring().verify(&token, None, ISSUER, NOW);
        let genuine = genuine.expect("our own");
        let accept = |keyring: &Keyring, issuer, now| {
            let verified = keyring.verify(&token, Some(Arc::clone(&genuine)), issuer, now);
            verified.map(drop)
        };
        assert_eq!(accept(&bench.keyring(), ISSUER, NOW), Ok(()));
        assert_eq!(
            accept(&bench.keyring(), "https://evil.example", NOW),
            Err(Reason::TokenInvalid)
        );
        assert_eq!(
            accept(&bench.keyring(), ISSUER, NOW.plus_s(300)),
            Err(Reason::TokenExpired)
        );
        assert_eq!(
            accept(&Bench::new().keyring(), ISSUER, NOW),
            Err(Reason::TokenInvalid)
        );
        let active = Bench::new();
        bench.key.state = State::Revoked;
        let keys = [active.key.clone(), bench.key.clone()];
        let keyring = Keyring::new(&keys, |_| Some(active.private.clone()), 300, NOW);
        let keyring = keyring.expect("a keyring");
        assert_eq!(accept(&keyring, ISSUER, NOW), Err(Reason::TokenRevoked));
    }
}

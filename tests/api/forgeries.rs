//! Tokens that look almost like one of ours. Those that only our own key could sign are tried where
//! there is such a key at hand, below `domain::keyring`.

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};

/// A token, and what is wrong with it.
pub type Forgery = (String, String);

/// What a forger has: a genuine token, the public key, and a key of its own.
pub struct Forger {
    good: String,
    claims: Value,
    jwks: Value,
    own_key: EncodingKey,
}

impl Forger {
    pub async fn new(url: &str, good: &str) -> Self {
        let response = reqwest::get(format!("{url}/.well-known/jwks.json")).await;
        let jwks = response.expect("an answer").json().await.expect("JSON");
        let key = accountd::env::generate_key(accountd::domain::signing_key::Algorithm::Es256);
        Self {
            good: good.to_owned(),
            claims: claims(good),
            jwks,
            own_key: EncodingKey::from_ec_der(&key.expect("a key")),
        }
    }

    pub fn forgeries(&self) -> Vec<Forgery> {
        let mut all = self.other_keys();
        all.extend(self.no_signature());
        all.extend(self.public_key_as_secret());
        all.extend(self.other_headers());
        all.extend(self.other_claims());
        all.extend(self.broken());
        all
    }

    fn public(&self) -> &Value {
        &self.jwks["keys"][0]
    }

    fn kid(&self) -> &str {
        self.public()["kid"].as_str().expect("a kid")
    }

    fn parts(&self) -> Vec<&str> {
        self.good.split('.').collect()
    }

    fn header(&self, algorithm: Algorithm) -> Header {
        let mut header = Header::new(algorithm);
        header.typ = Some("at+jwt".to_owned());
        header.kid = Some(self.kid().to_owned());
        header
    }

    /// A token with the genuine claims, signed by the forger's key.
    fn sign(&self, change: impl FnOnce(&mut Header)) -> String {
        let mut header = self.header(Algorithm::ES256);
        change(&mut header);
        jsonwebtoken::encode(&header, &self.claims, &self.own_key).expect("signs")
    }

    fn other_keys(&self) -> Vec<Forgery> {
        let embedded: Jwk = serde_json::from_value(self.public().clone()).expect("a JWK");
        let elsewhere = |path: &str| Some(format!("http://127.0.0.1:9/{path}"));
        [
            ("another key under our kid", self.sign(|_| {})),
            (
                "a foreign kid",
                self.sign(|header| header.kid = Some("foreign".to_owned())),
            ),
            ("no kid", self.sign(|header| header.kid = None)),
            (
                "an embedded key",
                self.sign(|header| header.jwk = Some(embedded)),
            ),
            (
                "a key from elsewhere",
                self.sign(|header| header.jku = elsewhere("jwks.json")),
            ),
            (
                "a chain from elsewhere",
                self.sign(|header| header.x5u = elsewhere("chain.pem")),
            ),
        ]
        .map(|(what, token)| (what.to_owned(), token))
        .to_vec()
    }

    fn no_signature(&self) -> Vec<Forgery> {
        let parts = self.parts();
        let mut tokens = Vec::new();
        for alg in ["none", "None", "NONE", "nOnE"] {
            let head = json!({ "typ": "at+jwt", "alg": alg, "kid": self.kid() });
            let head = encode(&head.to_string());
            for signature in ["", parts[2]] {
                tokens.push((
                    format!("alg {alg}"),
                    format!("{head}.{}.{signature}", parts[1]),
                ));
            }
        }
        tokens
    }

    /// The public key as an HMAC secret, in the forms in which it is to be had.
    fn public_key_as_secret(&self) -> Vec<Forgery> {
        let coordinate = |name: &str| {
            let text = self.public()[name].as_str().expect("a coordinate");
            BASE64URL_NOPAD.decode(text.as_bytes()).expect("base64url")
        };
        let point = [coordinate("x"), coordinate("y")].concat();
        let mut tokens = Vec::new();
        for secret in [
            point.clone(),
            [&[4][..], &point].concat(),
            self.public().to_string().into_bytes(),
            self.jwks.to_string().into_bytes(),
            Vec::new(),
        ] {
            for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
                let key = EncodingKey::from_secret(&secret);
                let token = jsonwebtoken::encode(&self.header(algorithm), &self.claims, &key);
                tokens.push((
                    format!("{algorithm:?} with the public key"),
                    token.expect("signs"),
                ));
            }
        }
        tokens
    }

    /// Headers exchanged under the genuine signature.
    fn other_headers(&self) -> Vec<Forgery> {
        let kid = self.kid();
        let parts = self.parts();
        let mut headers: Vec<String> = [
            json!({ "typ": "JWT", "alg": "ES256", "kid": kid }),
            json!({ "alg": "ES256", "kid": kid }),
            json!({ "typ": "at+jwt", "alg": "ES256", "kid": kid, "crit": ["exp"] }),
            json!({ "typ": "at+jwt", "alg": "ES257", "kid": kid }),
            json!({ "typ": "at+jwt", "alg": "EdDSA", "kid": kid }),
            json!({ "typ": "at+jwt", "kid": kid }),
            json!({ "typ": "at+jwt", "alg": 1, "kid": kid }),
            json!({ "typ": "at+jwt", "alg": "ES256", "kid": [kid] }),
        ]
        .map(|header| header.to_string())
        .to_vec();
        headers.push(format!(
            r#"{{"typ":"at+jwt","alg":"none","alg":"ES256","kid":"{kid}"}}"#
        ));
        let token = |header: &String| format!("{}.{}.{}", encode(header), parts[1], parts[2]);
        headers
            .iter()
            .map(|header| (header.clone(), token(header)))
            .collect()
    }

    /// Claims exchanged under the genuine signature.
    fn other_claims(&self) -> Vec<Forgery> {
        let parts = self.parts();
        let mut tokens = Vec::new();
        for (claim, value) in [
            ("exp", json!(9_999_999_999_u64)),
            ("exp", json!("9999999999")),
            ("exp", json!(1e300)),
            ("exp", json!(null)),
            ("aud", json!(["accountd", "x"])),
            ("iss", json!("https://evil.example")),
            ("sub", json!("alice")),
            ("scope", json!(["users.read"])),
        ] {
            let mut claims = self.claims.clone();
            claims[claim] = value.clone();
            let claims = encode(&claims.to_string());
            tokens.push((
                format!("{claim} = {value}"),
                format!("{}.{claims}.{}", parts[0], parts[2]),
            ));
        }
        tokens
    }

    /// What is no token at all.
    fn broken(&self) -> Vec<Forgery> {
        let (good, parts) = (&self.good, self.parts());
        [
            ("nothing", String::new()),
            ("dots", "..".to_owned()),
            ("one part", parts[0].to_owned()),
            ("two parts", parts[..2].join(".")),
            ("no signature", format!("{}.{}.", parts[0], parts[1])),
            ("four parts", format!("{good}.{}", parts[2])),
            ("padding", format!("{good}==")),
            ("a space", format!("{} {}", &good[..10], &good[10..])),
            (
                "a JSON serialisation",
                r#"{"payload":"","signatures":[]}"#.to_owned(),
            ),
            ("too long", "a".repeat(9000)),
        ]
        .map(|(what, token)| (what.to_owned(), token))
        .to_vec()
    }
}

/// The payload of a token, unverified.
pub fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("three parts");
    let payload = BASE64URL_NOPAD.decode(payload.as_bytes());
    serde_json::from_slice(&payload.expect("base64url")).expect("JSON")
}

fn encode(text: &str) -> String {
    BASE64URL_NOPAD.encode(text.as_bytes())
}

//! Authenticators of people, for tests: an app that shows codes, and a security key that does whatever
//! it is told, wrong things included.

use std::collections::BTreeMap;

use accountd::domain::secret::sha256;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use serde_cbor_2::Value as Cbor;
use serde_json::{Value, json};
use totp_rs::{Algorithm, Builder};

/// What an authenticator app keeps of one account.
pub struct App {
    secret: Vec<u8>,
    algorithm: Algorithm,
    digits: u8,
}

impl App {
    /// From the link in a QR code.
    pub fn scan(uri: &str) -> Self {
        let (_, query) = uri.split_once('?').expect("a query");
        let field = |name: &str| {
            query
                .split('&')
                .find_map(|field| field.strip_prefix(&format!("{name}=")))
        };
        let secret = field("secret").expect("a secret");
        Self {
            secret: BASE32_NOPAD.decode(secret.as_bytes()).expect("base32"),
            algorithm: match field("algorithm") {
                None | Some("SHA1") => Algorithm::SHA1,
                Some("SHA256") => Algorithm::SHA256,
                Some(other) => panic!("{other}"),
            },
            digits: field("digits").map_or(6, |digits| digits.parse().expect("a number")),
        }
    }

    /// What it shows at a time, in seconds.
    pub fn code(&self, time: i64) -> String {
        let totp = Builder::new()
            .with_algorithm(self.algorithm)
            .with_digits(self.digits)
            .with_secret(self.secret.clone())
            .build_noncompliant();
        let time = u64::try_from(time).expect("after 1970");
        totp.generate(time).to_string()
    }
}

/// A security key with one credential.
pub struct SecurityKey {
    key: EcdsaKeyPair,
    id: Vec<u8>,
    user_handle: Option<String>,
    pub counter: u32,
    /// Whether it counts its signatures; what is synchronised between devices does not.
    pub counts: bool,
    /// Whether it checks a fingerprint or a PIN.
    pub verifies: bool,
    /// The page it is used on.
    pub origin: String,
    pub domain: String,
}

const PRESENT: u8 = 1;
const VERIFIED: u8 = 1 << 2;
const HAS_KEY: u8 = 1 << 6;
pub const AAGUID: [u8; 16] = [7; 16];

impl SecurityKey {
    pub fn new(id: u8) -> Self {
        Self {
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key"),
            id: vec![id; 32],
            user_handle: None,
            counter: 0,
            counts: true,
            verifies: true,
            origin: "https://id.example".to_owned(),
            domain: "id.example".to_owned(),
        }
    }

    /// Makes a passkey: RegistrationResponseJSON for PublicKeyCredentialCreationOptionsJSON.
    pub fn enrol(&mut self, options: &str) -> String {
        let options: Value = serde_json::from_str(options).expect("JSON");
        self.user_handle = options["user"]["id"].as_str().map(str::to_owned);
        let client_data = self.client_data("webauthn.create", &options);
        let public = self.key.public_key().as_ref();
        let bytes = |part: &[u8]| Cbor::Bytes(part.to_vec());
        let cose = BTreeMap::from([
            (Cbor::Integer(1), Cbor::Integer(2)),
            (Cbor::Integer(3), Cbor::Integer(-7)),
            (Cbor::Integer(-1), Cbor::Integer(1)),
            (Cbor::Integer(-2), bytes(&public[1..33])),
            (Cbor::Integer(-3), bytes(&public[33..])),
        ]);
        let length = u16::try_from(self.id.len()).expect("short").to_be_bytes();
        let data = [
            self.head(HAS_KEY),
            AAGUID.to_vec(),
            length.to_vec(),
            self.id.clone(),
            serde_cbor_2::to_vec(&Cbor::Map(cose)).expect("CBOR"),
        ]
        .concat();
        let text = |text: &str| Cbor::Text(text.to_owned());
        let object = BTreeMap::from([
            (text("fmt"), text("none")),
            (text("attStmt"), Cbor::Map(BTreeMap::new())),
            (text("authData"), Cbor::Bytes(data)),
        ]);
        let object = serde_cbor_2::to_vec(&Cbor::Map(object)).expect("CBOR");
        self.response(&json!({
            "clientDataJSON": BASE64URL_NOPAD.encode(client_data.as_bytes()),
            "attestationObject": BASE64URL_NOPAD.encode(&object),
            "transports": ["usb"],
        }))
    }

    /// Signs: AuthenticationResponseJSON for PublicKeyCredentialRequestOptionsJSON.
    pub fn sign(&mut self, options: &str) -> String {
        let options: Value = serde_json::from_str(options).expect("JSON");
        let client_data = self.client_data("webauthn.get", &options);
        let data = self.head(0);
        let signed = [&data[..], &sha256(client_data.as_bytes())].concat();
        let signature = self
            .key
            .sign(&SystemRandom::new(), &signed)
            .expect("a signature");
        self.response(&json!({
            "clientDataJSON": BASE64URL_NOPAD.encode(client_data.as_bytes()),
            "authenticatorData": BASE64URL_NOPAD.encode(&data),
            "signature": BASE64URL_NOPAD.encode(signature.as_ref()),
            "userHandle": self.user_handle,
        }))
    }

    fn client_data(&mut self, kind: &str, options: &Value) -> String {
        self.counter += u32::from(self.counts);
        let challenge = options["challenge"].as_str().expect("a challenge");
        json!({ "type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": false })
            .to_string()
    }

    fn head(&self, flags: u8) -> Vec<u8> {
        let verified = if self.verifies { VERIFIED } else { 0 };
        [
            &sha256(self.domain.as_bytes())[..],
            &[flags | PRESENT | verified],
            &self.counter.to_be_bytes(),
        ]
        .concat()
    }

    fn response(&self, response: &Value) -> String {
        let id = BASE64URL_NOPAD.encode(&self.id);
        json!({
            "id": id, "rawId": id, "type": "public-key", "response": response,
            "authenticatorAttachment": "cross-platform", "clientExtensionResults": {},
        })
        .to_string()
    }
}

//! Authenticators of people, for tests: an app that shows codes, and a security key that does whatever
//! it is told, wrong things included.

use std::collections::BTreeMap;

use accountd::domain::secret::sha256;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{self, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
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
    /// Whoever made it and says so.
    pub maker: Option<Maker>,
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
            maker: None,
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
        let public = signature::KeyPair::public_key(&self.key).as_ref();
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
        let (format, statement) = match &self.maker {
            None => ("none", BTreeMap::new()),
            Some(maker) => {
                let signed = [&data[..], &sha256(client_data.as_bytes())].concat();
                let statement = BTreeMap::from([
                    (text("alg"), Cbor::Integer(-7)),
                    (text("sig"), Cbor::Bytes(sign(&maker.key, &signed))),
                    (
                        text("x5c"),
                        Cbor::Array(vec![Cbor::Bytes(maker.certificate.clone())]),
                    ),
                ]);
                ("packed", statement)
            }
        };
        let object = BTreeMap::from([
            (text("fmt"), text(format)),
            (text("attStmt"), Cbor::Map(statement)),
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
        self.response(&json!({
            "clientDataJSON": BASE64URL_NOPAD.encode(client_data.as_bytes()),
            "authenticatorData": BASE64URL_NOPAD.encode(&data),
            "signature": BASE64URL_NOPAD.encode(&sign(&self.key, &signed)),
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

fn sign(key: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    let signature = key.sign(&SystemRandom::new(), message);
    signature.expect("a signature").as_ref().to_vec()
}

/// A maker of security keys, who certifies a batch of them (WebAuthn Level 3 section 8.2).
pub struct Maker {
    /// The root, as operators get it.
    pub root: String,
    certificate: Vec<u8>,
    key: EcdsaKeyPair,
}

impl Maker {
    pub fn new(name: &str) -> Self {
        let (root_key, leaf_key) = (new_key(), new_key());
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        root.distinguished_name.push(DnType::CommonName, name);
        let certified = root.self_signed(&root_key).expect("a root");
        let mut leaf = CertificateParams::default();
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        for (kind, value) in [
            (DnType::CountryName, "DE"),
            (DnType::OrganizationName, "Maker"),
            (DnType::OrganizationalUnitName, "Authenticator Attestation"),
            (DnType::CommonName, "Batch 1"),
        ] {
            leaf.distinguished_name.push(kind, value);
        }
        // Which model it is, in an OCTET STRING.
        let model = [&[4, 16][..], &AAGUID].concat();
        let model_oid = [1, 3, 6, 1, 4, 1, 45724, 1, 1, 4];
        leaf.custom_extensions
            .push(CustomExtension::from_oid_content(&model_oid, model));
        let issuer = Issuer::new(root, root_key);
        let certificate = leaf.signed_by(&leaf_key, &issuer).expect("a leaf");
        let key = leaf_key.serialize_der();
        Self {
            root: certified.pem(),
            certificate: certificate.der().to_vec(),
            key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key).expect("a key"),
        }
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

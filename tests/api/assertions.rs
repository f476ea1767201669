//! Programs that authenticate with a signature (`private_key_jwt`, RFC 7523).

use accountd::{domain::error::Reason, grpc::pb, jobs};
use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use pb::{
    credential::{Detail, PublicKey, public_key::Source},
    system_account::Kind,
};
use serde_json::{Value, json};
use tonic::Status;

use crate::{
    harness::{Actor, Engine, Server, assert_refused, fields_of, on_both_engines},
    scopes,
};

const ISSUER: &str = "https://id.example";

on_both_engines! {
    async fn a_program_signs_for_its_tokens(engine: Engine) {
        let server = engine.server().await;
        let anonymous = server.anonymous().await;
        for algorithm in [Algorithm::ES256, Algorithm::EdDSA, Algorithm::RS256] {
            let program = Program::new(&server, algorithm, Kind::Service).await;
            let shown = program.credential.detail.clone();
            let Some(Detail::PublicKey(PublicKey { source: Some(Source::Jwk(jwk)), kid })) = shown else {
                panic!("no key");
            };
            assert_eq!(kid, program.kid());
            assert!(!jwk.contains("kid") && jwk.contains("kty"), "{jwk}");
            let tokens = program.issue(&anonymous, &program.claims(&server, "a")).await.expect("signed");
            assert_eq!(tokens.token_type, "Bearer");
            let own = server.with_token(&tokens.access_token).await;
            own.system_accounts().get_system_account(get("systemAccounts/me")).await.expect("it is good");
            let used = credential(&own, &program.credential.name).await;
            assert!(used.last_used_time.is_some());

            // Also where stock clients ask, and with the endpoint as audience.
            let mut claims = program.claims(&server, "b");
            claims["aud"] = json!([format!("{ISSUER}/oauth2/token")]);
            let form = [
                ("grant_type", "client_credentials"),
                ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
                ("client_assertion", &program.sign(&claims)),
            ];
            let client = reqwest::Client::new();
            let answer = client.post(server.url("/oauth2/token")).form(&form).send().await.expect("an answer");
            assert_eq!(answer.status(), 200);
            let again = client.post(server.url("/oauth2/token")).form(&form).send().await.expect("an answer");
            assert_eq!(again.status(), 401);
            let error: Value = again.json().await.expect("JSON");
            assert_eq!(error["error"], "invalid_client");
        }
    }

    async fn a_key_of_ones_own_earns_what_a_shared_secret_does_not(engine: Engine) {
        let server = engine.server_with(|config| config.tokens.max_bytes = 2_000).await;
        let operator = server.operator().await;
        let refund = pb::Scope { sensitive: true, ..scopes::scope("scopes/shop:refund") };
        scopes::create(&operator, refund).await.expect("made");
        let program = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let name = program.credential.name.split("/credentials").next().expect("an account").to_owned();
        server.grant(&name, "scopes/shop:refund").await;
        let account = pb::SystemAccount { name: name.clone(), audiences: vec!["shop".to_owned()], ..Default::default() };
        let request = pb::UpdateSystemAccountRequest { system_account: Some(account), ..Default::default() };
        operator.system_accounts().update_system_account(request).await.expect("may ask");
        let anonymous = server.anonymous().await;
        let ask = async |jti: &str, scopes: Vec<String>| {
            let request = pb::IssueTokenRequest {
                client_assertion: program.sign(&program.claims(&server, jti)),
                audience: "shop".to_owned(),
                scopes,
                ..Default::default()
            };
            anonymous.tokens().issue_token(request).await
        };
        let tokens = ask("a", Vec::new()).await.expect("a token").into_inner();
        assert_eq!((&*tokens.scopes, tokens.refusals.len()), (&["refund".to_owned()][..], 0));
        let secret = operator.create_secret(&name).await.expect("a secret").secret;
        let request = pb::IssueTokenRequest {
            client_id: program.id(),
            client_secret: secret,
            audience: "shop".to_owned(),
            ..Default::default()
        };
        let tokens = anonymous.tokens().issue_token(request).await.expect("a token").into_inner();
        assert_eq!((tokens.scopes.len(), &*tokens.refused_scopes), (0, &["refund".to_owned()][..]));

        // What would not fit says so here as well.
        for number in 0..16 {
            let scope = format!("scopes/shop:{number}{}", "x".repeat(100));
            scopes::create(&operator, scopes::scope(&scope)).await.expect("made");
            server.grant(&name, &scope).await;
        }
        assert_refused(ask("b", Vec::new()).await, Reason::TokenTooLarge);
        let tokens = ask("c", vec!["refund".to_owned()]).await.expect("a token").into_inner();
        assert_eq!(tokens.scopes, ["refund"]);
    }

    async fn an_assertion_is_good_once_wherever_it_is_used(engine: Engine) {
        let server = engine.server().await;
        let anonymous = server.anonymous().await;
        let program = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let claims = program.claims(&server, "once");
        let assertion = program.sign(&claims);
        let uses = (0..16).map(|_| {
            let (anonymous, assertion) = (anonymous.clone(), assertion.clone());
            tokio::spawn(async move { issue(&anonymous, "", &assertion).await })
        });
        let uses: Vec<_> = uses.collect();
        let mut good = 0;
        for used in uses {
            good += usize::from(used.await.expect("no panic").is_ok());
        }
        assert_eq!(good, 1);
        // The same jti in other words.
        let mut longer = claims.clone();
        longer["exp"] = json!(server.now().seconds() + 200);
        assert_refused(program.issue(&anonymous, &longer).await, Reason::InvalidCredentials);
        if engine == Engine::Postgres {
            let second = server.second_instance().await;
            let elsewhere = Actor::new(crate::harness::connect(second.address).await, None);
            assert_refused(issue(&elsewhere, "", &assertion).await, Reason::InvalidCredentials);
            program.issue(&elsewhere, &program.claims(&server, "new")).await.expect("there as well");
            second.stop().await;
        }
        let server = server.restart().await;
        let anonymous = server.anonymous().await;
        assert_refused(issue(&anonymous, "", &assertion).await, Reason::InvalidCredentials);
        // It is forgotten long after its own end.
        server.advance_s(24 * 3600 + 301);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_refused(issue(&anonymous, "", &assertion).await, Reason::InvalidCredentials);
    }

    async fn an_assertion_with_anything_wrong_about_it_is_refused_alike(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 1_000).await;
        let anonymous = server.anonymous().await;
        let program = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let other = Program::new(&server, Algorithm::ES256, Kind::Service).await;
        let now = server.now().seconds();
        let counted = std::cell::Cell::new(0);
        let good = || {
            counted.set(counted.get() + 1);
            program.claims(&server, &format!("good {}", counted.get()))
        };
        let with = |name: &str, value: Value| {
            let mut claims = good();
            claims[name] = value;
            program.sign(&claims)
        };
        let without = |name: &str| {
            let mut claims = good();
            claims.as_object_mut().expect("an object").remove(name);
            program.sign(&claims)
        };
        let header = |change: fn(&mut Header)| {
            let mut header = program.header();
            change(&mut header);
            program.sign_with(&header, &good())
        };
        let twice = {
            let signed = program.sign(&good());
            let parts: Vec<&str> = signed.split('.').collect();
            format!("{}.{}.{}.{}", parts[0], parts[1], parts[2], parts[2])
        };
        let unsigned = format!("{}.{}.", b64(br#"{"alg":"none"}"#), b64(good().to_string().as_bytes()));
        let public = program.public();
        let symmetric = {
            let key = EncodingKey::from_secret(public.as_bytes());
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &good(), &key).expect("signs")
        };
        let mut own_key = program.header();
        own_key.jwk = Some(serde_json::from_str(&other.public()).expect("a JWK"));
        let wrong = [
            ("no issuer", without("iss")),
            ("no subject", without("sub")),
            ("no audience", without("aud")),
            ("no end", without("exp")),
            ("no id", without("jti")),
            ("another issuer", with("iss", json!(other.id()))),
            ("another subject", with("sub", json!(other.id()))),
            ("nobody", with("sub", json!(uuid::Uuid::nil()))),
            ("another audience", with("aud", json!("https://other.example"))),
            ("our audience in part", with("aud", json!("https://id.example.evil"))),
            ("others beside us", with("aud", json!([ISSUER, "https://other.example"]))),
            ("no audience in a list", with("aud", json!([]))),
            ("over", with("exp", json!(now))),
            ("for too long", with("exp", json!(now + 601))),
            ("an end in words", with("exp", json!((now + 60).to_string()))),
            ("no number", with("exp", Value::Null)),
            ("not yet", with("nbf", json!(now + 6))),
            ("of the future", with("iat", json!(now + 6))),
            ("an empty id", with("jti", json!(""))),
            ("a long id", with("jti", json!("x".repeat(257)))),
            ("an id that is no text", with("jti", json!(7))),
            ("somebody else's key", other.sign(&good())),
            ("a key it brings itself", other.sign_with(&own_key, &good())),
            ("another kid", header(|header| header.kid = Some("another".to_owned()))),
            ("another type", header(|header| header.typ = Some("at+jwt".to_owned()))),
            ("no signature", unsigned),
            ("a secret that everybody knows", symmetric),
            ("one part too many", twice),
            ("cut short", program.sign(&good())[..200].to_owned()),
            ("an access token", server.operator().await.token().to_owned()),
            ("long", "x".repeat(10_000)),
            ("nonsense", "a.b.c".to_owned()),
        ];
        for (what, assertion) in &wrong {
            let refused = issue(&anonymous, "", assertion).await;
            let status = refused.expect_err(what);
            assert_eq!(crate::harness::reason_of(&status), "INVALID_CREDENTIALS", "{what}");
            assert_eq!(status.message(), "identifier or secret is wrong", "{what}");
        }
        let refused = server.events("token.refused").await;
        assert_eq!(refused.len(), wrong.len());
        let named = issue(&anonymous, &other.id(), &program.sign(&good())).await;
        assert_refused(named, Reason::InvalidCredentials);
        issue(&anonymous, &program.id(), &program.sign(&good())).await.expect("rightly named");
        let both = pb::IssueTokenRequest { client_secret: "x".to_owned(), client_assertion: program.sign(&good()), ..Default::default() };
        assert_eq!(fields_of(anonymous.tokens().issue_token(both).await), ["client_assertion"]);
    }

    async fn a_key_ends_with_its_account_its_time_and_its_networks(engine: Engine) {
        let server = engine.server().await;
        let anonymous = server.anonymous().await;
        let operator = server.operator().await;
        let program = Program::new(&server, Algorithm::EdDSA, Kind::Privileged).await;
        let secret = operator.create_secret(&program.account.name).await;
        assert_refused(secret, Reason::CredentialKindNotAllowed);
        let tokens = program.issue(&anonymous, &program.claims(&server, "1")).await.expect("signed");
        let own = server.with_token(&tokens.access_token).await;

        let suspend = pb::SuspendSystemAccountRequest { name: program.account.name.clone(), ..Default::default() };
        operator.system_accounts().suspend_system_account(suspend).await.expect("suspended");
        let refused = program.issue(&anonymous, &program.claims(&server, "2")).await;
        assert_refused(refused, Reason::InvalidCredentials);
        let resume = pb::ResumeSystemAccountRequest { name: program.account.name.clone(), ..Default::default() };
        operator.system_accounts().resume_system_account(resume).await.expect("resumed");
        program.issue(&anonymous, &program.claims(&server, "3")).await.expect("signed");

        let elsewhere = pb::Credential {
            name: program.credential.name.clone(),
            allowed_cidrs: vec!["10.0.0.0/8".to_owned()],
            ..Default::default()
        };
        let edit = pb::UpdateCredentialRequest { credential: Some(elsewhere), ..Default::default() };
        operator.credentials().update_credential(edit).await.expect("changed");
        let refused = program.issue(&anonymous, &program.claims(&server, "4")).await;
        assert_refused(refused, Reason::InvalidCredentials);

        let delete = pb::DeleteCredentialRequest { name: program.credential.name.clone(), ..Default::default() };
        operator.credentials().delete_credential(delete).await.expect("deleted");
        let refused = program.issue(&anonymous, &program.claims(&server, "5")).await;
        assert_refused(refused, Reason::InvalidCredentials);
        let me = own.system_accounts().get_system_account(get("systemAccounts/me")).await;
        assert_refused(me, Reason::TokenRevoked);
    }

    async fn a_key_that_is_weak_or_secret_is_not_taken(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, _) = server.create_system_account(&[]).await;
        let weak = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
        let weak = public_jwk(Algorithm::RS256, weak.as_der().expect("DER").as_ref());
        let good = public_jwk(Algorithm::ES256, &private_key(Algorithm::ES256));
        let changed = |name: &str, value: Value| {
            let mut jwk: Value = serde_json::from_str(&good).expect("JSON");
            jwk[name] = value;
            jwk.to_string()
        };
        for (what, jwk) in [
            ("nothing", String::new()),
            ("no JSON", "a key".to_owned()),
            ("a short RSA key", weak),
            ("the private half", changed("d", json!("AQAB"))),
            ("a symmetric key", json!({ "kty": "oct", "k": "AQAB" }).to_string()),
            ("another curve", changed("crv", json!("P-384"))),
            ("no point of the curve", changed("x", json!(b64(&[1; 32])))),
            ("another algorithm", changed("alg", json!("RS256"))),
            ("for encryption", changed("use", json!("enc"))),
            ("for signing only", changed("key_ops", json!(["sign"]))),
            ("a name that is no text", changed("kid", json!(7))),
            ("too long", changed("kid", json!("x".repeat(5_000)))),
            ("a long name", changed("kid", json!("x".repeat(201)))),
        ] {
            let refused = add_key(&operator, &account.name, &jwk).await;
            assert_eq!(fields_of(refused), ["credential.public_key.jwk"], "{what}");
        }
        let user = server.user("alice").await;
        assert_refused(add_key(&operator, &user.name, &good).await, Reason::CredentialKindNotAllowed);
        let made = add_key(&operator, &account.name, &good).await.expect("good").credential.expect("set");
        let rotate = pb::RotateCredentialRequest { name: made.name, ..Default::default() };
        let refused = operator.credentials().rotate_credential(rotate).await;
        assert_refused(refused, Reason::CredentialKindNotAllowed);
    }
}

/// A program with a key of its own.
pub struct Program {
    pub account: pb::SystemAccount,
    credential: pb::Credential,
    algorithm: Algorithm,
    private: Vec<u8>,
}

impl Program {
    pub async fn new(server: &Server, algorithm: Algorithm, kind: Kind) -> Self {
        let operator = server.operator().await;
        let account = pb::SystemAccount {
            display_name: "signer".to_owned(),
            owner: server.owner().to_owned(),
            kind: kind.into(),
            ..Default::default()
        };
        let request = pb::CreateSystemAccountRequest {
            system_account: Some(account),
            ..Default::default()
        };
        let account = operator
            .system_accounts()
            .create_system_account(request)
            .await
            .expect("an account")
            .into_inner();
        let private = private_key(algorithm);
        let jwk = public_jwk(algorithm, &private);
        let made = add_key(&operator, &account.name, &jwk).await;
        Self {
            account,
            credential: made.expect("a key").credential.expect("set"),
            algorithm,
            private,
        }
    }

    pub fn id(&self) -> String {
        self.account.uid.clone()
    }

    pub fn public(&self) -> String {
        public_jwk(self.algorithm, &self.private)
    }

    pub fn kid(&self) -> String {
        let jwk: Jwk = serde_json::from_str(&self.public()).expect("a JWK");
        let thumbprint = jwk.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256);
        thumbprint.expect("a thumbprint")
    }

    pub fn claims(&self, server: &Server, jti: &str) -> Value {
        let now = server.now().seconds();
        json!({
            "iss": self.id(), "sub": self.id(), "aud": ISSUER, "jti": jti, "iat": now,
            "exp": now + 300,
        })
    }

    pub fn header(&self) -> Header {
        Header::new(self.algorithm)
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_with(&self.header(), claims)
    }

    pub fn sign_with(&self, header: &Header, claims: &Value) -> String {
        let key = encoding_key(self.algorithm, &self.private);
        jsonwebtoken::encode(header, claims, &key).expect("signs")
    }

    /// Comes with a token that it has got by its key.
    pub async fn actor(&self, server: &Server) -> Actor {
        let tokens = self.tokens(server).await;
        server.with_token(&tokens.access_token).await
    }

    /// What it gets by its key.
    pub async fn tokens(&self, server: &Server) -> pb::TokenSet {
        let random = &server.running.app.random;
        let jti = random.uuid(server.now()).to_string();
        let anonymous = server.anonymous().await;
        let tokens = self.issue(&anonymous, &self.claims(server, &jti)).await;
        tokens.expect("a token")
    }

    pub async fn issue(&self, by: &Actor, claims: &Value) -> Result<pb::TokenSet, Status> {
        issue(by, "", &self.sign(claims)).await
    }
}

pub async fn issue(by: &Actor, client_id: &str, assertion: &str) -> Result<pb::TokenSet, Status> {
    let request = pb::IssueTokenRequest {
        client_id: client_id.to_owned(),
        client_assertion: assertion.to_owned(),
        ..Default::default()
    };
    Ok(by.tokens().issue_token(request).await?.into_inner())
}

pub async fn add_key(
    by: &Actor,
    parent: &str,
    jwk: &str,
) -> Result<pb::CreateCredentialResponse, Status> {
    let key = PublicKey {
        source: Some(Source::Jwk(jwk.to_owned())),
        ..Default::default()
    };
    by.create_credential(parent, Detail::PublicKey(key)).await
}

async fn credential(by: &Actor, name: &str) -> pb::Credential {
    let request = pb::GetCredentialRequest {
        name: name.to_owned(),
    };
    let found = by.credentials().get_credential(request).await;
    found.expect("there").into_inner()
}

fn get(name: &str) -> pb::GetSystemAccountRequest {
    pb::GetSystemAccountRequest {
        name: name.to_owned(),
    }
}

fn private_key(algorithm: Algorithm) -> Vec<u8> {
    match algorithm {
        Algorithm::ES256 => {
            let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
            key.to_pkcs8v1().expect("DER").as_ref().to_vec()
        }
        Algorithm::EdDSA => {
            let key = Ed25519KeyPair::generate().expect("a key");
            key.to_pkcs8v1().expect("DER").as_ref().to_vec()
        }
        Algorithm::RS256 => {
            let key = RsaKeyPair::generate(KeySize::Rsa3072).expect("a key");
            let der: Pkcs8V1Der<'_> = key.as_der().expect("DER");
            der.as_ref().to_vec()
        }
        other => panic!("{other:?}"),
    }
}

fn encoding_key(algorithm: Algorithm, private: &[u8]) -> EncodingKey {
    match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_der(private),
        Algorithm::EdDSA => EncodingKey::from_ed_der(private),
        _ => {
            // The library wants the key inside (RFC 8017), which ends the envelope.
            let start = private.windows(4).position(|bytes| bytes == [2, 1, 0, 2]);
            EncodingKey::from_rsa_der(&private[start.expect("a key inside") - 4..])
        }
    }
}

fn public_jwk(algorithm: Algorithm, private: &[u8]) -> String {
    let key = encoding_key(algorithm, private);
    let jwk = Jwk::from_encoding_key(&key, algorithm).expect("a public half");
    serde_json::to_string(&jwk).expect("JSON")
}

fn b64(bytes: &[u8]) -> String {
    data_encoding::BASE64URL_NOPAD.encode(bytes)
}

//! Every way in: where somebody can present a secret, wrong ones are counted, and nobody who is
//! suspended or deleted gets in by a right one.

use std::{collections::BTreeSet, sync::Arc};

use accountd::grpc::pb;
use jsonwebtoken::Algorithm;
use pb::{
    ChallengeMethod,
    answer_challenge_request::Answer,
    confirm_credential_request::Proof,
    create_challenge_request::Delivery,
    credential::{Detail, public_key::Source},
    system_account::Kind,
};
use prost_reflect::Kind as FieldKind;
use serde_json::json;
use tonic::Status;

use crate::{
    access::rpcs,
    assertions::{self, Program},
    authenticator::SecurityKey,
    authority::{Authority, Pair, speak_tls},
    certificates, contacts, factors,
    harness::{Actor, Engine, Refusal as _, Server, SignedIn, on_both_engines, password, reach},
    key_sets::{self, Publisher},
    messages::revert,
};

/// Where wrong secrets are tried, by the request field that holds them.
const TRIED: [&str; 15] = [
    "AnswerChallengeRequest.code",
    "AnswerChallengeRequest.name",
    "AnswerChallengeRequest.passkey_response_json",
    "AnswerChallengeRequest.recovery_code",
    "AnswerChallengeRequest.totp_code",
    "ChangePasswordRequest.old_password",
    "ConfirmCredentialRequest.passkey_response_json",
    "ConfirmCredentialRequest.totp_code",
    "CreateSessionRequest.password",
    "IssueTokenRequest.api_key",
    "IssueTokenRequest.client_assertion",
    "IssueTokenRequest.client_secret",
    "RefreshSessionRequest.refresh_token",
    "RevertContactRequest.token",
    "VerifyContactRequest.code",
];

/// The rest of the fields that hold secrets, and why nobody gets in by them.
const NO_WAY_IN: [(&str, &str); 9] = [
    ("ChangePasswordRequest.new_password", "is set"),
    ("CreateUserRequest.password", "is set"),
    ("CreateUserRequest.password_hash", "is set"),
    ("ImportPasswordRequest.password_hash", "is set"),
    ("ResetPasswordRequest.new_password", "is set"),
    (
        "IntrospectTokenRequest.token",
        "asked about, by a scope of its own",
    ),
    ("RevokeTokenRequest.token", "given up"),
    (
        "Device.token",
        "shows that failures are not a stranger's, and nothing else",
    ),
    ("Password.value", "is set"),
];

/// Tried under a name of its own, for want of room in one test.
const RESET: &str = "ResetPasswordRequest.code";

/// What is shown in a handshake, and in no field.
const CERTIFICATE: &str = "the certificate of the connection";
const SAN: &str = "spiffe://example/program";

#[test]
fn every_field_that_holds_a_secret_is_tried_or_no_way_in() {
    let known: BTreeSet<&str> = TRIED
        .into_iter()
        .chain([RESET])
        .chain(NO_WAY_IN.iter().map(|(field, _)| *field))
        .collect();
    let mut found = BTreeSet::new();
    for rpc in rpcs() {
        secrets_of(&rpc.input(), &mut found);
    }
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(found, known);
}

/// The secret fields of a request and of what is in it.
fn secrets_of(message: &prost_reflect::MessageDescriptor, found: &mut BTreeSet<String>) {
    for field in message.fields() {
        let redact = field
            .options()
            .get_field_by_name("debug_redact")
            .is_some_and(|v| v.as_bool() == Some(true));
        let is_passkey = field.name() == "passkey_response_json";
        match field.kind() {
            FieldKind::Message(inner) if inner.package_name() == "accountd.v1" => {
                secrets_of(&inner, found);
            }
            FieldKind::String if redact || is_passkey => {
                found.insert(format!("{}.{}", message.name(), field.name()));
            }
            _ => {}
        }
    }
}

on_both_engines! {
    async fn wrong_secrets_are_counted_wherever_they_are_tried(engine: Engine) {
        for path in TRIED.into_iter().chain([RESET, CERTIFICATE]) {
            let clients = Authority::new("clients");
            let server = engine.server_with(|config| {
                speak_tls(config, &clients.server(), Some(&clients));
                config.throttle.network_free = 3;
                config.throttle.account_free = 3;
            }).await;
            let stage = Box::pin(Stage::set(&server, clients)).await;
            let mut outcomes = Vec::new();
            while outcomes.len() < 10 && !outcomes.contains(&"THROTTLED".to_owned()) {
                outcomes.push(stage.try_wrong(&server, path).await.reason());
            }
            let (last, before) = outcomes.split_last().expect("tried");
            assert_eq!(last, "THROTTLED", "{path}: {outcomes:?}");
            let reasons = ["INVALID_CREDENTIALS", "INVALID_CODE", "INVALID_REFRESH_TOKEN", "CHALLENGE_ENDED"];
            assert!(before.len() >= 3, "{path}: {outcomes:?}");
            for reason in before {
                assert!(reasons.contains(&reason.as_str()), "{path}: {reason}");
            }
        }
    }

    async fn nobody_who_is_suspended_or_deleted_gets_in_by_any_path(engine: Engine) {
        for deleted in [false, true] {
            let publisher = Publisher::new(&Arc::new(Authority::new("publishers"))).await;
            let clients = Authority::new("clients");
            let server = engine.server_with(|config| {
                speak_tls(config, &clients.server(), Some(&clients));
                publisher.is_trusted(config);
                config.throttle.network_free = 1_000;
                config.throttle.account_free = 1_000;
            }).await;
            let ways = Ways::prepare(&server, &clients, &publisher).await;
            let operator = server.operator().await;
            let (user, programs) = (ways.user.clone(), ways.programs());
            out(&operator, &user, &programs, deleted).await;
            for (what, outcome) in Box::pin(ways.go(&server)).await {
                assert_ne!(outcome, "OK", "{what}, deleted: {deleted}");
            }
            back(&operator, &user, &programs, deleted).await;
            // What was not used up and did not end with it works again: it was right.
            let again: Vec<(&str, String)> = Box::pin(ways.go(&server)).await;
            let right: Vec<&str> = again.iter().filter(|(_, outcome)| outcome == "OK").map(|(what, _)| *what).collect();
            let expected = ["password", "code in a message", "passkey asked before", "passkey", "second factor", "recovery code", "client secret", "API key", "signature", "published key", "certificate"];
            assert_eq!(right, expected, "{again:?}");
        }
    }
}

/// Alice with a password, and a program.
struct Stage {
    alice: SignedIn,
    trusted: Actor,
    program: pb::SystemAccount,
    clients: Authority,
}

impl Stage {
    async fn set(server: &Server, clients: Authority) -> Self {
        let alice = server.signed_in("alice").await;
        let roles = [
            "roles/login-frontend",
            "scopes/accountd:contacts.return_code",
        ];
        let (program, _) = server.create_system_account(&[]).await;
        Self {
            alice,
            trusted: server.system_account(&roles).await,
            program,
            clients,
        }
    }

    async fn try_wrong(&self, server: &Server, path: &str) -> Result<(), Status> {
        let anonymous = server.anonymous().await;
        let garbage = || "garbage".to_owned();
        match path {
            "CreateSessionRequest.password" => anonymous
                .sign_in("alice", "not this one at all")
                .await
                .map(drop),
            "ChangePasswordRequest.old_password" => {
                let request = pb::ChangePasswordRequest {
                    name: "users/me".to_owned(),
                    old_password: "not this one at all".to_owned(),
                    new_password: "some new words to say".to_owned(),
                    ..Default::default()
                };
                self.alice
                    .actor
                    .credentials()
                    .change_password(request)
                    .await
                    .map(drop)
            }
            "RefreshSessionRequest.refresh_token" => anonymous.refresh("garbage").await.map(drop),
            "ResetPasswordRequest.code" => {
                crate::credentials::redeem(&anonymous, "garbage", "some new words to say")
                    .await
                    .map(drop)
            }
            "RevertContactRequest.token" => revert(&anonymous, "garbage").await.map(drop),
            "VerifyContactRequest.code" => {
                let contact = self.contact(server).await;
                let verified = self.alice.actor.verify_contact(&contact, "garbage").await;
                verified.map(drop)
            }
            "IssueTokenRequest.client_secret" => anonymous
                .issue(&self.program.uid, "garbage")
                .await
                .map(drop),
            "IssueTokenRequest.api_key" => anonymous.issue_by_key("garbage").await.map(drop),
            CERTIFICATE => self.show_certificate(server).await,
            "IssueTokenRequest.client_assertion" => {
                let request = pb::IssueTokenRequest {
                    client_assertion: garbage(),
                    ..Default::default()
                };
                anonymous.tokens().issue_token(request).await.map(drop)
            }
            "ConfirmCredentialRequest.totp_code" => {
                self.confirm(
                    Detail::Totp(pb::credential::Totp::default()),
                    Proof::TotpCode("000000".to_owned()),
                )
                .await
            }
            "ConfirmCredentialRequest.passkey_response_json" => {
                self.confirm(
                    Detail::Passkey(pb::credential::Passkey::default()),
                    Proof::PasskeyResponseJson(garbage()),
                )
                .await
            }
            "AnswerChallengeRequest.name" => {
                let asked = pb::Challenge {
                    name: "challenges/garbage".to_owned(),
                    ..Default::default()
                };
                factors::answer(&anonymous, &asked, Answer::Code("00000000".to_owned()))
                    .await
                    .map(drop)
            }
            "AnswerChallengeRequest.passkey_response_json" => {
                let asked = factors::passkey_challenge(&anonymous, "").await?;
                factors::answer(&anonymous, &asked, Answer::PasskeyResponseJson(garbage()))
                    .await
                    .map(drop)
            }
            "AnswerChallengeRequest.code" => {
                let request = factors::code_request("alice", ChallengeMethod::EmailCode);
                let asked = self
                    .trusted
                    .sessions()
                    .create_challenge(request)
                    .await?
                    .into_inner();
                factors::answer(&self.trusted, &asked, Answer::Code("00000000".to_owned()))
                    .await
                    .map(drop)
            }
            "AnswerChallengeRequest.totp_code" | "AnswerChallengeRequest.recovery_code" => {
                let asked = self.second_step(server).await?;
                let answer = if path.ends_with("totp_code") {
                    Answer::TotpCode("000000".to_owned())
                } else {
                    Answer::RecoveryCode(garbage())
                };
                factors::answer(&anonymous, &asked, answer).await.map(drop)
            }
            other => panic!("{other} is not tried"),
        }
    }

    async fn show_certificate(&self, server: &Server) -> Result<(), Status> {
        let peer = shows(server, &self.clients.client(&[SAN])).await;
        let issued = certificates::issue(&peer, &self.program.uid).await;
        issued.map(drop)
    }

    async fn confirm(&self, detail: Detail, proof: Proof) -> Result<(), Status> {
        let listed = self.pending(&detail).await;
        let name = match listed {
            Some(name) => name,
            None => {
                let made = factors::create(&self.alice.actor, detail).await?;
                made.credential.expect("set").name
            }
        };
        let request = pb::ConfirmCredentialRequest {
            name,
            proof: Some(proof),
            ..Default::default()
        };
        self.alice
            .actor
            .credentials()
            .confirm_credential(request)
            .await
            .map(drop)
    }

    /// An address with a code that somebody has brought there.
    async fn contact(&self, server: &Server) -> String {
        let request = pb::ListContactsRequest {
            parent: "users/me".to_owned(),
            ..Default::default()
        };
        let listed = self.alice.actor.contacts().list_contacts(request).await;
        if let Some(contact) = listed.expect("a list").into_inner().contacts.first() {
            return contact.name.clone();
        }
        let contact = contacts::email("alice@example.org", &[]);
        let created = self.alice.actor.create_contact("users/me", contact).await;
        let name = created.expect("created").name;
        let operator = server.operator().await;
        operator.contact_code(&name).await.expect("a code");
        name
    }

    /// A factor that waits to be confirmed.
    async fn pending(&self, detail: &Detail) -> Option<String> {
        let kind = match detail {
            Detail::Totp(_) => "totp",
            _ => "passkey",
        };
        let request = pb::ListCredentialsRequest {
            parent: "users/me".to_owned(),
            filter: format!("kind = \"{kind}\""),
            ..Default::default()
        };
        let listed = self
            .alice
            .actor
            .credentials()
            .list_credentials(request)
            .await;
        let listed = listed.expect("a list").into_inner().credentials;
        listed.first().map(|credential| credential.name.clone())
    }

    /// A right password, of somebody with a generator and recovery codes.
    async fn second_step(&self, server: &Server) -> Result<pb::Challenge, Status> {
        let anonymous = server.anonymous().await;
        let request = pb::ListCredentialsRequest {
            parent: "users/me".to_owned(),
            ..Default::default()
        };
        let has = self
            .alice
            .actor
            .credentials()
            .list_credentials(request)
            .await?;
        if has.into_inner().credentials.len() == 1 {
            let (app, _) = factors::enrol(server, &self.alice).await;
            let alice = factors::enter(server, "alice", &app, 30).await;
            let codes = pb::credential::RecoveryCodes::default();
            factors::create(&alice.actor, Detail::RecoveryCodes(codes)).await?;
        }
        let response = anonymous.sign_in("alice", &password("alice")).await?;
        Ok(factors::challenge(response))
    }
}

/// Everything by which one person and three programs can get in.
struct Ways {
    user: String,
    plain: SignedIn,
    trusted: Actor,
    coded: pb::Challenge,
    half: pb::Challenge,
    app: crate::authenticator::App,
    recovery: Vec<String>,
    key: std::sync::Mutex<SecurityKey>,
    passkey: pb::Challenge,
    reset: String,
    secret: (pb::SystemAccount, String),
    api_key: String,
    signer: Program,
    roving: pb::SystemAccount,
    certified: Actor,
    robot: Actor,
}

impl Ways {
    async fn prepare(server: &Server, clients: &Authority, publisher: &Publisher) -> Self {
        let operator = server.operator().await;
        let anonymous = server.anonymous().await;
        // A second person who signs in with the password alone.
        let plain = server.signed_in("plain").await;
        let alice = server.signed_in("alice").await;
        let mut key = SecurityKey::new(1);
        let name = alice.name().to_owned();
        let (app, _) = factors::enrol(server, &alice).await;
        let raised = factors::enter(server, "alice", &app, 30).await.actor;
        factors::enrol_passkey(&raised, &mut key)
            .await
            .expect("enrolled");
        let codes = Detail::RecoveryCodes(pb::credential::RecoveryCodes::default());
        let made = factors::create(&raised, codes).await.expect("made");
        let recovery = match made.enrolment.and_then(|enrolment| enrolment.factor) {
            Some(pb::enrolment::Factor::RecoveryCodes(made)) => made.codes,
            _ => panic!("no codes"),
        };
        let roles = [
            "roles/login-frontend",
            "scopes/accountd:contacts.return_code",
        ];
        let trusted = server.system_account(&roles).await;
        let secret = server.create_system_account(&[]).await;
        let robot = server.client(&secret.0.uid, &secret.1).await;
        let api_key = operator
            .credentials()
            .create_credential(crate::credentials::new_key(&secret.0.name))
            .await;
        let api_key = api_key.expect("a key").into_inner().secret;
        let signer = Program::new(server, Algorithm::ES256, Kind::Privileged).await;
        let (roving, _) = server.create_system_account(&[]).await;
        publisher.publish(&json!({ "keys": [key_sets::jwk(&signer, "published")] }));
        let source = Some(Source::JwksUri(publisher.url("/keys")));
        let added = key_sets::add(&operator, &roving.name, source).await;
        added.expect("a key set");
        let added = certificates::add(&operator, &secret.0.name, SAN, "").await;
        added.expect("a certificate");
        server.advance_s(30);
        Self {
            coded: code(&trusted, "plain").await,
            half: half(server).await,
            passkey: factors::passkey_challenge(&anonymous, "")
                .await
                .expect("opened"),
            reset: crate::credentials::reset_code(&operator, plain.name())
                .await
                .expect("a code"),
            user: name,
            plain,
            trusted,
            app,
            recovery,
            key: key.into(),
            secret,
            api_key,
            signer,
            roving,
            certified: shows(server, &clients.client(&[SAN])).await,
            robot,
        }
    }

    fn programs(&self) -> Vec<String> {
        vec![
            self.secret.0.name.clone(),
            self.signer.account.name.clone(),
            self.roving.name.clone(),
            self.plain.name().to_owned(),
        ]
    }

    /// Tries each with what is right.
    async fn go(&self, server: &Server) -> Vec<(&'static str, String)> {
        let mut outcomes = self.first_steps(server).await;
        outcomes.extend(self.second_steps(server).await);
        outcomes.extend(self.machines(server).await);
        // Last, because it ends what the others need.
        let anonymous = server.anonymous().await;
        let reset = crate::credentials::redeem(&anonymous, &self.reset, "some new words").await;
        outcomes.push(("reset code", of(reset)));
        outcomes
    }

    async fn first_steps(&self, server: &Server) -> Vec<(&'static str, String)> {
        let anonymous = server.anonymous().await;
        let password = anonymous.sign_in("plain", &password("plain")).await;
        let refreshed = anonymous.refresh(&self.plain.tokens.refresh_token).await;
        let own = self.plain.actor.get_user("users/me").await;
        let (before, coded) = (&self.coded, code(&self.trusted, "plain").await);
        let asked = factors::passkey_challenge(&anonymous, "")
            .await
            .expect("opened");
        let (earlier, signed) = (self.sign(&self.passkey), self.sign(&asked));
        vec![
            ("password", of(password)),
            ("refresh token", of(refreshed)),
            ("access token", of(own)),
            (
                "code asked for before",
                answer(&self.trusted, before, typed(before)).await,
            ),
            (
                "code in a message",
                answer(&self.trusted, &coded, typed(&coded)).await,
            ),
            (
                "passkey asked before",
                answer(&anonymous, &self.passkey, earlier).await,
            ),
            ("passkey", answer(&anonymous, &asked, signed).await),
        ]
    }

    async fn second_steps(&self, server: &Server) -> Vec<(&'static str, String)> {
        let anonymous = server.anonymous().await;
        let totp = || Answer::TotpCode(self.app.code(server.now().seconds()));
        let recovery = || Answer::RecoveryCode(self.recovery[1].clone());
        let mut outcomes = vec![(
            "second factor asked before",
            answer(&anonymous, &self.half, totp()).await,
        )];
        for (what, with) in [("second factor", totp()), ("recovery code", recovery())] {
            let outcome = match anonymous.sign_in("alice", &password("alice")).await {
                Ok(half) => answer(&anonymous, &factors::challenge(half), with).await,
                refused => of(refused),
            };
            outcomes.push((what, outcome));
        }
        outcomes
    }

    async fn machines(&self, server: &Server) -> Vec<(&'static str, String)> {
        let anonymous = server.anonymous().await;
        let (account, secret) = &self.secret;
        let jti = server.events("token.refused").await.len().to_string();
        let claims = self.signer.claims(server, &jti);
        let roving = {
            let mut claims = claims.clone();
            claims["iss"] = json!(self.roving.uid);
            claims["sub"] = json!(self.roving.uid);
            let mut header = self.signer.header();
            header.kid = Some("published".to_owned());
            self.signer.sign_with(&header, &claims)
        };
        let me = pb::GetSystemAccountRequest {
            name: "systemAccounts/me".to_owned(),
        };
        let mut own = self.robot.system_accounts();
        vec![
            (
                "client secret",
                of(anonymous.issue(&account.uid, secret).await),
            ),
            ("API key", of(anonymous.issue_by_key(&self.api_key).await)),
            (
                "signature",
                of(self.signer.issue(&anonymous, &claims).await),
            ),
            (
                "published key",
                of(assertions::issue(&anonymous, "", &roving).await),
            ),
            (
                "certificate",
                of(certificates::issue(&self.certified, &account.uid).await),
            ),
            ("token of a program", of(own.get_system_account(me).await)),
        ]
    }

    fn sign(&self, asked: &pb::Challenge) -> Answer {
        let mut key = self.key.lock().expect("one at a time");
        Answer::PasskeyResponseJson(key.sign(&asked.passkey_options_json))
    }
}

/// Somebody whose connection has shown a certificate.
async fn shows(server: &Server, own: &Pair) -> Actor {
    let channel = reach(server.address(), &server.config.tls, Some(own)).await;
    Actor::new(channel, None)
}

fn of<T: std::fmt::Debug>(result: Result<T, Status>) -> String {
    result.map(drop).outcome()
}

/// The code that came with a challenge.
fn typed(asked: &pb::Challenge) -> Answer {
    Answer::Code(asked.code.clone())
}

async fn answer(by: &Actor, asked: &pb::Challenge, with: Answer) -> String {
    factors::answer(by, asked, with).await.map(drop).outcome()
}

async fn code(trusted: &Actor, username: &str) -> pb::Challenge {
    let request = pb::CreateChallengeRequest {
        identifier: username.to_owned(),
        method: ChallengeMethod::EmailCode.into(),
        delivery: Delivery::Return.into(),
        ..Default::default()
    };
    let opened = trusted.sessions().create_challenge(request).await;
    opened.expect("opened").into_inner()
}

/// Alice, who has shown her password.
async fn half(server: &Server) -> pb::Challenge {
    let anonymous = server.anonymous().await;
    let response = anonymous.sign_in("alice", &password("alice")).await;
    factors::challenge(response.expect("right"))
}

async fn out(operator: &Actor, user: &str, others: &[String], deleted: bool) {
    for name in others.iter().map(String::as_str).chain([user]) {
        let name = name.to_owned();
        let is_user = name.starts_with("users/");
        match (is_user, deleted) {
            (true, false) => drop(operator.suspend_user(&name).await.expect("suspended")),
            (true, true) => {
                let request = pb::DeleteUserRequest {
                    name,
                    ..Default::default()
                };
                operator
                    .users()
                    .delete_user(request)
                    .await
                    .expect("deleted");
            }
            (false, false) => {
                let request = pb::SuspendSystemAccountRequest {
                    name,
                    ..Default::default()
                };
                operator
                    .system_accounts()
                    .suspend_system_account(request)
                    .await
                    .expect("suspended");
            }
            (false, true) => {
                let request = pb::DeleteSystemAccountRequest {
                    name,
                    ..Default::default()
                };
                operator
                    .system_accounts()
                    .delete_system_account(request)
                    .await
                    .expect("deleted");
            }
        }
    }
}

async fn back(operator: &Actor, user: &str, others: &[String], deleted: bool) {
    for name in others.iter().map(String::as_str).chain([user]) {
        let name = name.to_owned();
        let is_user = name.starts_with("users/");
        match (is_user, deleted) {
            (true, false) => {
                let request = pb::ResumeUserRequest {
                    name,
                    ..Default::default()
                };
                operator
                    .users()
                    .resume_user(request)
                    .await
                    .expect("resumed");
            }
            (true, true) => {
                let request = pb::UndeleteUserRequest {
                    name,
                    ..Default::default()
                };
                operator
                    .users()
                    .undelete_user(request)
                    .await
                    .expect("undeleted");
            }
            (false, false) => {
                let request = pb::ResumeSystemAccountRequest {
                    name,
                    ..Default::default()
                };
                operator
                    .system_accounts()
                    .resume_system_account(request)
                    .await
                    .expect("resumed");
            }
            (false, true) => {
                let request = pb::UndeleteSystemAccountRequest {
                    name,
                    ..Default::default()
                };
                operator
                    .system_accounts()
                    .undelete_system_account(request)
                    .await
                    .expect("undeleted");
            }
        }
    }
}

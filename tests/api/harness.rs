//! A server for each test, and the actors who call it.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use accountd::{
    config::{Config, DatabaseUrl, Tls},
    domain::{error::Reason, role, secret, time::Timestamp},
    env::{Clock, Random},
    grpc::pb,
    server,
    setup::Environment,
};
use tempfile::TempDir;
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::{authority, postgres};

/// Makes of each `async fn name(engine: Engine)` one test on SQLite and one on PostgreSQL. Without a
/// PostgreSQL the latter says so and passes, unless ACCOUNTD_TEST_REQUIRE_POSTGRES is set.
macro_rules! on_both_engines {
    ($($(#[$meta:meta])* async fn $name:ident($engine:ident: $kind:ident) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            use super::*;

            async fn run($engine: $kind) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                run($kind::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                if crate::postgres::is_available().await {
                    run($kind::Postgres).await;
                }
            }
        }
    )*};
}
pub(crate) use on_both_engines;

/// What a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// A server with its defaults, on an empty database.
    pub async fn server(self) -> Server {
        self.server_with(|_| {}).await
    }

    /// A server on an empty database, set up by `change`.
    pub async fn server_with(self, change: impl FnOnce(&mut Config)) -> Server {
        let folder = TempDir::new().expect("a temporary folder");
        let mut config = config(folder.path());
        if self == Self::Postgres {
            config.database_url = Some(DatabaseUrl(postgres::database().await));
        }
        change(&mut config);
        let env = TestEnvironment::new(1);
        let running = Box::pin(server::Server::start(config.clone(), &env.environment())).await;
        let running = running.expect("the server starts");
        let operator = Operator::create(&running, &config).await;
        Server {
            folder,
            config,
            env,
            running,
            operator,
        }
    }
}

/// Ports chosen by the system, patience enough for a busy machine; all else as shipped.
pub fn config(folder: &Path) -> Config {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config {
        data_dir: folder.join("data"),
        listen: any_port,
        ops_listen: any_port,
        public_url: Some("https://id.example".to_owned()),
        ..Config::default()
    };
    config.hashing.max_wait_ms = 60_000;
    config.database.max_connections = 6;
    // Most tests have one operator.
    config.four_eyes.rpcs = Vec::new();
    config.four_eyes.roles = Vec::new();
    config
}

/// A running server, its clock, and whoever may do everything on it.
pub struct Server {
    pub folder: TempDir,
    pub config: Config,
    pub env: TestEnvironment,
    pub running: server::Server,
    operator: Operator,
}

impl Server {
    /// Where everything is served.
    pub fn address(&self) -> SocketAddr {
        self.running.private_address.unwrap_or(self.running.address)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.address)
    }

    pub fn now(&self) -> Timestamp {
        self.env.clock.now()
    }

    pub fn advance_s(&self, seconds: i64) {
        self.env.clock.0.fetch_add(seconds * 1_000_000, Relaxed);
    }

    /// Somebody without a token.
    pub async fn anonymous(&self) -> Actor {
        Actor::new(reach(self.address(), &self.config.tls, None).await, None)
    }

    /// Somebody with a token.
    pub async fn with_token(&self, token: &str) -> Actor {
        Actor::new(
            reach(self.address(), &self.config.tls, None).await,
            Some(token),
        )
    }

    /// The system account that may do everything.
    pub async fn operator(&self) -> Actor {
        self.client(&self.operator.client_id, &self.operator.secret)
            .await
    }

    /// The operator's account itself.
    pub fn operator_name(&self) -> String {
        format!("systemAccounts/{}", self.operator.client_id)
    }

    /// The user who owns the operator's account.
    pub fn owner(&self) -> &str {
        &self.operator.owner
    }

    /// A system account that has signed in with its secret.
    pub async fn client(&self, client_id: &str, secret: &str) -> Actor {
        let anonymous = self.anonymous().await;
        let tokens = anonymous.issue(client_id, secret).await.expect("a token");
        Actor::new(anonymous.channel, Some(&tokens.access_token))
    }

    /// A new system account with roles or scopes (`roles/…`, `scopes/…`), and its secret.
    pub async fn create_system_account(&self, permissions: &[&str]) -> (pb::SystemAccount, String) {
        let operator = self.operator().await;
        let account = pb::SystemAccount {
            display_name: permissions.join(" ") + " account",
            owner: self.operator.owner.clone(),
            kind: pb::system_account::Kind::Service.into(),
            ..Default::default()
        };
        create_system_account(&operator, account, permissions).await
    }

    /// A new system account with roles or scopes that has signed in.
    pub async fn system_account(&self, permissions: &[&str]) -> Actor {
        let (account, secret) = self.create_system_account(permissions).await;
        self.client(&account.uid, &secret).await
    }

    /// A frontend: registers people and signs them in.
    pub async fn frontend(&self) -> Actor {
        self.system_account(&["roles/login-frontend"]).await
    }

    /// A new user with a password, which is [`password`] of the name.
    pub async fn user(&self, username: &str) -> pb::User {
        let frontend = self.frontend().await;
        let user = pb::User {
            username: username.to_owned(),
            ..Default::default()
        };
        let request = pb::CreateUserRequest {
            user: Some(user),
            password: password(username),
            ..Default::default()
        };
        frontend
            .users()
            .create_user(request)
            .await
            .expect("a user")
            .into_inner()
    }

    /// A user's sign-in; the password is [`password`] of the name.
    pub async fn sign_in(&self, username: &str) -> SignedIn {
        let anonymous = self.anonymous().await;
        let response = anonymous
            .sign_in(username, &password(username))
            .await
            .expect("a sign-in");
        SignedIn::new(&anonymous, response)
    }

    /// A new user who has signed in.
    pub async fn signed_in(&self, username: &str) -> SignedIn {
        self.user(username).await;
        self.sign_in(username).await
    }

    /// Grants a role or a scope.
    pub async fn grant(&self, principal: &str, permission: &str) -> pb::Grant {
        grant(&self.operator().await, principal, permission).await
    }

    /// Every event of one type, newest first.
    pub async fn events(&self, kind: &str) -> Vec<pb::Event> {
        let request = pb::ListEventsRequest {
            filter: format!("type = \"{kind}\""),
            ..Default::default()
        };
        let operator = self.operator().await;
        let response = operator.events().list_events(request).await;
        response.expect("the log").into_inner().events
    }

    /// Another process on the same database.
    pub async fn second_instance(&self) -> server::Server {
        let mut config = self.config.clone();
        config.data_dir = self.folder.path().join("second");
        fs::create_dir_all(&config.data_dir).expect("a folder");
        let key = config.data_dir.join("master.key");
        fs::copy(self.config.master_key_file(), key).expect("the master key");
        let env = TestEnvironment {
            seed: 2,
            ..self.env.clone()
        };
        let environment = env.environment();
        let running = Box::pin(server::Server::start(config, &environment)).await;
        running.expect("a second instance")
    }

    /// Stops and starts again on the same data.
    pub async fn restart(self) -> Self {
        let Self {
            folder,
            config,
            env,
            running,
            operator,
        } = self;
        running.stop().await;
        let env = TestEnvironment {
            seed: env.seed + 100,
            ..env
        };
        let environment = env.environment();
        let running = Box::pin(server::Server::start(config.clone(), &environment)).await;
        Self {
            folder,
            config,
            env,
            running: running.expect("starts again"),
            operator,
        }
    }
}

/// A password that is good for anybody with this name.
pub fn password(username: &str) -> String {
    format!("seven quiet herons, {}", username.len())
}

/// The account that may do everything: not `bootstrap`, whose time is soon over.
struct Operator {
    client_id: String,
    secret: String,
    owner: String,
}

impl Operator {
    async fn create(running: &server::Server, config: &Config) -> Self {
        let file = running
            .bootstrap_file
            .clone()
            .unwrap_or_else(|| config.data_dir.join("bootstrap.json"));
        let text = fs::read_to_string(file).expect("bootstrap.json");
        let bootstrap: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let text = |name: &str| bootstrap[name].as_str().expect(name).to_owned();
        let address = running.private_address.unwrap_or(running.address);
        let anonymous = Actor::new(reach(address, &config.tls, None).await, None);
        let tokens = anonymous
            .issue(&text("client_id"), &text("client_secret"))
            .await;
        let tokens = tokens.expect("a token");
        let bootstrap = Actor::new(anonymous.channel, Some(&tokens.access_token));
        let owner = bootstrap
            .create_user(pb::User::default())
            .await
            .expect("an owner");
        let account = pb::SystemAccount {
            display_name: "the operator".to_owned(),
            owner: owner.name.clone(),
            kind: pb::system_account::Kind::Service.into(),
            ..Default::default()
        };
        let (account, secret) =
            create_system_account(&bootstrap, account, &["roles/operator"]).await;
        Self {
            client_id: account.uid,
            secret,
            owner: owner.name,
        }
    }
}

async fn create_system_account(
    by: &Actor,
    account: pb::SystemAccount,
    permissions: &[&str],
) -> (pb::SystemAccount, String) {
    let request = pb::CreateSystemAccountRequest {
        system_account: Some(account),
        ..Default::default()
    };
    let created = by.system_accounts().create_system_account(request).await;
    let account = created.expect("a system account").into_inner();
    let secret = by.create_secret(&account.name).await.expect("a secret");
    for permission in permissions {
        grant(by, &account.name, permission).await;
    }
    (account, secret.secret)
}

async fn grant(by: &Actor, principal: &str, permission: &str) -> pb::Grant {
    let created = by
        .grants()
        .create_grant(grant_request(principal, permission))
        .await;
    created.expect("a grant").into_inner()
}

/// How many scopes an auditor has.
pub fn auditor_scopes() -> usize {
    role::built_in("auditor").expect("built in").len()
}

pub fn grant_request(principal: &str, permission: &str) -> pb::CreateGrantRequest {
    use pb::grant::Permission;
    let name = permission.to_owned();
    let permission = if permission.starts_with("roles/") {
        Permission::Role(name)
    } else {
        Permission::Scope(name)
    };
    pb::CreateGrantRequest {
        grant: Some(pb::Grant {
            principal: principal.to_owned(),
            permission: Some(permission),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A connection of its own.
pub async fn connect(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("a connection")
}

/// The same to a server that may speak TLS, and by somebody who may show a certificate.
pub async fn reach(address: SocketAddr, tls: &Tls, own: Option<&authority::Pair>) -> Channel {
    let (Some(certificate), Some(key)) = (&tls.certificate_file, &tls.key_file) else {
        return connect(address).await;
    };
    let read = |file| fs::read_to_string(file).expect("a file");
    let server = authority::Pair {
        certificate: read(certificate),
        key: read(key),
    };
    let channel = authority::connect(address, &server, own).await;
    channel.expect("a connection")
}

/// Somebody who calls.
#[derive(Clone)]
pub struct Actor {
    pub channel: Channel,
    pub bearer: Bearer,
}

/// Puts a token, if there is one, on every call.
#[derive(Clone)]
pub struct Bearer(pub Option<String>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value: MetadataValue<_> = format!("Bearer {token}")
                .parse()
                .map_err(|_| Status::internal("a bad token"))?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

type Authenticated = InterceptedService<Channel, Bearer>;

/// A method for each service: `actor.users().get_user(…)`.
macro_rules! services {
    ($($method:ident: $module:ident::$client:ident,)*) => {$(
        pub fn $method(&self) -> pb::$module::$client<Authenticated> {
            pb::$module::$client::with_interceptor(self.channel.clone(), self.bearer.clone())
        }
    )*};
}

impl Actor {
    pub fn new(channel: Channel, token: Option<&str>) -> Self {
        Self {
            channel,
            bearer: Bearer(token.map(str::to_owned)),
        }
    }

    services! {
        users: user_service_client::UserServiceClient,
        system_accounts: system_account_service_client::SystemAccountServiceClient,
        contacts: contact_service_client::ContactServiceClient,
        credentials: credential_service_client::CredentialServiceClient,
        sessions: session_service_client::SessionServiceClient,
        tokens: token_service_client::TokenServiceClient,
        keys: key_service_client::KeyServiceClient,
        elevations: elevation_service_client::ElevationServiceClient,
        changes: change_service_client::ChangeServiceClient,
        groups: group_service_client::GroupServiceClient,
        scopes: scope_service_client::ScopeServiceClient,
        roles: role_service_client::RoleServiceClient,
        grants: grant_service_client::GrantServiceClient,
        events: event_service_client::EventServiceClient,
    }

    pub fn token(&self) -> &str {
        self.bearer.0.as_deref().expect("a caller with a token")
    }

    pub async fn issue(&self, client_id: &str, secret: &str) -> Result<pb::TokenSet, Status> {
        let request = pb::IssueTokenRequest {
            client_id: client_id.to_owned(),
            client_secret: secret.to_owned(),
            ..Default::default()
        };
        Ok(self.tokens().issue_token(request).await?.into_inner())
    }

    pub async fn issue_by_key(&self, key: &str) -> Result<pb::TokenSet, Status> {
        let request = pb::IssueTokenRequest {
            api_key: key.to_owned(),
            ..Default::default()
        };
        Ok(self.tokens().issue_token(request).await?.into_inner())
    }

    pub async fn create_user(&self, user: pb::User) -> Result<pb::User, Status> {
        let request = pb::CreateUserRequest {
            user: Some(user),
            ..Default::default()
        };
        Ok(self.users().create_user(request).await?.into_inner())
    }

    pub async fn get_user(&self, name: &str) -> Result<pb::User, Status> {
        let request = pb::GetUserRequest {
            name: name.to_owned(),
        };
        Ok(self.users().get_user(request).await?.into_inner())
    }

    /// The names of all users, page by page.
    pub async fn all_users(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut request = pb::ListUsersRequest {
            page_size: 1000,
            ..Default::default()
        };
        loop {
            let page = self.users().list_users(request.clone()).await;
            let page = page.expect("a page").into_inner();
            names.extend(page.users.into_iter().map(|user| user.name));
            if page.next_page_token.is_empty() {
                return names;
            }
            request.page_token = page.next_page_token;
        }
    }

    /// The names of all users of whose creation there is an event.
    pub async fn all_created(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut request = pb::ListEventsRequest {
            page_size: 1000,
            filter: "type = \"user.created\"".to_owned(),
            ..Default::default()
        };
        loop {
            let page = self.events().list_events(request.clone()).await;
            let page = page.expect("a page").into_inner();
            names.extend(page.events.into_iter().map(|event| event.account));
            if page.next_page_token.is_empty() {
                return names;
            }
            request.page_token = page.next_page_token;
        }
    }

    pub async fn suspend_user(&self, name: &str) -> Result<pb::User, Status> {
        let request = pb::SuspendUserRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        Ok(self.users().suspend_user(request).await?.into_inner())
    }

    pub async fn create_secret(
        &self,
        parent: &str,
    ) -> Result<pb::CreateCredentialResponse, Status> {
        use pb::credential::{ClientSecret, Detail};
        let detail = Detail::ClientSecret(ClientSecret {});
        self.create_credential(parent, detail).await
    }

    pub async fn create_credential(
        &self,
        parent: &str,
        detail: pb::credential::Detail,
    ) -> Result<pb::CreateCredentialResponse, Status> {
        let credential = pb::Credential {
            detail: Some(detail),
            ..Default::default()
        };
        let request = pb::CreateCredentialRequest {
            parent: parent.to_owned(),
            credential: Some(credential),
            ..Default::default()
        };
        Ok(self
            .credentials()
            .create_credential(request)
            .await?
            .into_inner())
    }

    pub async fn create_contact(
        &self,
        parent: &str,
        contact: pb::Contact,
    ) -> Result<pb::Contact, Status> {
        let request = pb::CreateContactRequest {
            parent: parent.to_owned(),
            contact: Some(contact),
            ..Default::default()
        };
        Ok(self.contacts().create_contact(request).await?.into_inner())
    }

    pub async fn get_contact(&self, name: &str) -> Result<pb::Contact, Status> {
        let request = pb::GetContactRequest {
            name: name.to_owned(),
        };
        Ok(self.contacts().get_contact(request).await?.into_inner())
    }

    /// A code that this caller is to bring to the contact.
    pub async fn contact_code(&self, name: &str) -> Result<String, Status> {
        let request = pb::SendContactCodeRequest {
            name: name.to_owned(),
            delivery: pb::send_contact_code_request::Delivery::Return.into(),
            ..Default::default()
        };
        let response = self.contacts().send_contact_code(request).await?;
        Ok(response.into_inner().code)
    }

    pub async fn verify_contact(&self, name: &str, code: &str) -> Result<pb::Contact, Status> {
        let request = pb::VerifyContactRequest {
            name: name.to_owned(),
            code: code.to_owned(),
            ..Default::default()
        };
        Ok(self.contacts().verify_contact(request).await?.into_inner())
    }

    pub async fn sign_in(
        &self,
        identifier: &str,
        password: &str,
    ) -> Result<pb::SignInResponse, Status> {
        let request = pb::CreateSessionRequest {
            identifier: identifier.to_owned(),
            password: password.to_owned(),
            ..Default::default()
        };
        Ok(self.sessions().create_session(request).await?.into_inner())
    }

    pub async fn refresh(&self, refresh_token: &str) -> Result<pb::TokenSet, Status> {
        let request = pb::RefreshSessionRequest {
            refresh_token: refresh_token.to_owned(),
            ..Default::default()
        };
        Ok(self.sessions().refresh_session(request).await?.into_inner())
    }

    pub async fn introspect(&self, token: &str) -> Result<pb::IntrospectTokenResponse, Status> {
        let request = pb::IntrospectTokenRequest {
            token: token.to_owned(),
        };
        Ok(self.tokens().introspect_token(request).await?.into_inner())
    }
}

/// A person who has signed in.
pub struct SignedIn {
    pub actor: Actor,
    pub tokens: pb::TokenSet,
    pub device_token: String,
}

impl SignedIn {
    pub fn new(anonymous: &Actor, response: pb::SignInResponse) -> Self {
        let Some(pb::sign_in_response::Result::Tokens(tokens)) = response.result else {
            panic!("a sign-in without tokens");
        };
        let actor = Actor::new(anonymous.channel.clone(), Some(&tokens.access_token));
        Self {
            actor,
            tokens,
            device_token: response.device_token,
        }
    }

    /// `users/{uid}`.
    pub fn name(&self) -> &str {
        let parts: Vec<usize> = self
            .tokens
            .session
            .match_indices('/')
            .map(|(at, _)| at)
            .collect();
        &self.tokens.session[..parts[1]]
    }
}

/// What went wrong, as programs see it.
pub trait Refusal {
    fn reason(self) -> String;
    /// Code and reason, for tables.
    fn outcome(self) -> String;
}

impl<T: std::fmt::Debug> Refusal for Result<T, Status> {
    fn reason(self) -> String {
        let status = self.expect_err("a refusal");
        reason_of(&status)
    }

    fn outcome(self) -> String {
        match self {
            Ok(_) => "OK".to_owned(),
            Err(status) => {
                let code = accountd::grpc::status::code_name(status.code());
                format!("{code} {}", reason_of(&status))
            }
        }
    }
}

pub fn reason_of(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map_or_else(|| format!("no reason: {status:?}"), |info| info.reason)
}

/// Refused with this reason.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, reason: Reason) {
    assert_eq!(result.reason(), reason.name());
}

/// The fields that an INVALID_ARGUMENT complains about.
pub fn fields_of<T: std::fmt::Debug>(result: Result<T, Status>) -> Vec<String> {
    let status = result.expect_err("a refusal");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let bad = status.get_details_bad_request().expect("a BadRequest");
    bad.field_violations
        .into_iter()
        .map(|violation| violation.field)
        .collect()
}

/// A clock that stands still until it is moved.
pub struct ManualClock(AtomicI64);

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Relaxed))
    }
}

/// The same bytes in every run, different ones for every seed.
struct SeededRandom {
    seed: u64,
    drawn: AtomicU64,
}

impl Random for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            let number = self.drawn.fetch_add(1, Relaxed);
            let block = [self.seed.to_be_bytes(), number.to_be_bytes()].concat();
            chunk.copy_from_slice(&secret::sha256(&block)[..chunk.len()]);
        }
    }
}

/// Time and randomness of a test.
#[derive(Clone)]
pub struct TestEnvironment {
    pub clock: Arc<ManualClock>,
    pub seed: u64,
}

/// 2026-11-21T12:00:00Z.
const START: Timestamp = Timestamp::from_seconds(1_795_262_400);

impl TestEnvironment {
    pub fn new(seed: u64) -> Self {
        Self {
            clock: Arc::new(ManualClock(AtomicI64::new(START.micros()))),
            seed,
        }
    }

    pub fn environment(&self) -> Environment {
        Environment {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            random: Arc::new(SeededRandom {
                seed: self.seed,
                drawn: AtomicU64::new(0),
            }),
        }
    }
}

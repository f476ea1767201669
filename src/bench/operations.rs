//! What can be measured: for each operation, what it needs, made beforehand, and one call of it.

use std::{fs, sync::Arc, time::Duration};

use clap::ValueEnum;
use http::Method;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::sync::Mutex;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use super::{
    Options,
    load::{Call, OK},
};
use crate::{
    env::{Random, SystemRandom},
    grpc::{
        pb::{
            self, credential_service_client::CredentialServiceClient,
            session_service_client::SessionServiceClient,
            system_account_service_client::SystemAccountServiceClient,
            token_service_client::TokenServiceClient, user_service_client::UserServiceClient,
        },
        status,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// CreateSession with a right password.
    SignIn,
    /// IssueToken with a client secret.
    IssueToken,
    /// RefreshSession: the next pair of tokens.
    RefreshSession,
    /// IntrospectToken with somebody's access token.
    IntrospectToken,
    /// GetUser.
    GetUser,
    /// CreateUser without a password.
    CreateUser,
    /// LookupUser by username.
    LookupUser,
    /// ListUsers, 50 from anywhere.
    ListUsers,
    /// ListUsers, 50 whose username begins with something.
    SearchUsers,
    /// The key set, over HTTP.
    Jwks,
    /// The health service.
    Health,
}

impl Operation {
    pub const ALL: &[Self] = &[
        Self::SignIn,
        Self::IssueToken,
        Self::RefreshSession,
        Self::IntrospectToken,
        Self::GetUser,
        Self::CreateUser,
        Self::LookupUser,
        Self::ListUsers,
        Self::SearchUsers,
        Self::Jwks,
        Self::Health,
    ];

    /// As in the RPCs and paths they call.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SignIn => "sign-in",
            Self::IssueToken => "issue-token",
            Self::RefreshSession => "refresh-session",
            Self::IntrospectToken => "introspect-token",
            Self::GetUser => "get-user",
            Self::CreateUser => "create-user",
            Self::LookupUser => "lookup-user",
            Self::ListUsers => "list-users",
            Self::SearchUsers => "search-users",
            Self::Jwks => "jwks",
            Self::Health => "health",
        }
    }

    /// More sign-ins at once would be turned away, since they would wait too long.
    pub const fn most_in_flight(self) -> usize {
        match self {
            Self::SignIn => 8,
            _ => usize::MAX,
        }
    }
}

/// The server that is measured, and who measures it.
pub struct Subject {
    channels: Arc<[Channel]>,
    credentials: Credentials,
    /// Part of the names of everything made, so that one run does not meet another's.
    run: String,
}

#[derive(Deserialize)]
struct Credentials {
    client_id: String,
    client_secret: String,
}

/// How many accounts, sessions and names are taken in turn.
const PEOPLE: u64 = 32;
const MACHINES: u64 = 16;
const SESSIONS: u64 = 256;
const SAMPLE: usize = 10_000;
const AUDIENCE: &str = "bench";
/// Tokens live for minutes, so whatever needs them is made for each operation anew.
const PATIENCE: Duration = Duration::from_secs(30);

type Token = MetadataValue<Ascii>;

impl Subject {
    pub async fn connect(options: &Options) -> Result<Self, String> {
        let file = &options.credentials;
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let text = fs::read_to_string(file).map_err(|error| wrong(&error))?;
        let credentials = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        let mut channels = Vec::new();
        for _ in 0..options.connections {
            channels.push(endpoint(options)?.connect().await.map_err(|error| {
                format!("cannot connect to {}: {}", options.url, root_cause(&error))
            })?);
        }
        Ok(Self {
            channels: channels.into(),
            credentials,
            run: nonce(),
        })
    }

    /// Makes what the operation needs; each call takes what its number stands for.
    pub async fn prepare(&self, operation: Operation) -> Result<Call, String> {
        let prepared = match operation {
            Operation::SignIn => self.sign_in().await,
            Operation::IssueToken => self.issue_token().await,
            Operation::RefreshSession => self.refresh_session().await,
            Operation::IntrospectToken => self.introspect_token().await,
            Operation::GetUser => self.get_user().await,
            Operation::CreateUser => self.create_user().await,
            Operation::LookupUser => self.lookup_user().await,
            Operation::ListUsers => self.list_users().await,
            Operation::SearchUsers => self.search_users().await,
            Operation::Jwks => return Ok(self.jwks()),
            Operation::Health => Ok(self.each(|channel, _| async move {
                outcome(
                    HealthClient::new(channel)
                        .check(HealthCheckRequest::default())
                        .await,
                )
            })),
        };
        prepared.map_err(|status| {
            format!(
                "cannot prepare {}: {}: {}",
                operation.name(),
                reason(&status),
                status.message()
            )
        })
    }

    async fn sign_in(&self) -> Result<Call, Status> {
        let people: Arc<[Person]> = self.people("s").await?.into();
        Ok(self.each(move |channel, number| {
            let request = pick(&people, number).sign_in();
            async move {
                outcome(
                    SessionServiceClient::new(channel)
                        .create_session(request)
                        .await,
                )
            }
        }))
    }

    async fn issue_token(&self) -> Result<Call, Status> {
        let token = self.operator().await?;
        let owner = self
            .new_user(&token, format!("bench-{}-owner", self.run), "")
            .await?;
        let mut machines = Vec::new();
        for number in 0..MACHINES {
            let account = pb::SystemAccount {
                kind: pb::system_account::Kind::Service.into(),
                display_name: format!("bench {} {number}", self.run),
                owner: owner.name.clone(),
                audiences: vec![AUDIENCE.to_owned()],
                ..Default::default()
            };
            machines.push(self.new_machine(&token, account).await?);
        }
        let machines: Arc<[_]> = machines.into();
        Ok(self.each(move |channel, number| {
            let request: &pb::IssueTokenRequest = pick(&machines, number);
            let request = request.clone();
            async move { outcome(TokenServiceClient::new(channel).issue_token(request).await) }
        }))
    }

    async fn refresh_session(&self) -> Result<Call, Status> {
        let sessions = self.sessions().await?.into_iter();
        // One token follows from another, so each session refreshes one at a time.
        let chains: Arc<[_]> = sessions
            .map(|set| Arc::new(Mutex::new(set.refresh_token)))
            .collect();
        Ok(self.each(move |channel, number| {
            let chain = Arc::clone(pick(&chains, number));
            async move {
                let mut token = chain.lock().await;
                let request = pb::RefreshSessionRequest {
                    refresh_token: token.clone(),
                    ..Default::default()
                };
                let refreshed = SessionServiceClient::new(channel)
                    .refresh_session(request)
                    .await;
                if let Ok(set) = &refreshed {
                    token.clone_from(&set.get_ref().refresh_token);
                }
                outcome(refreshed)
            }
        }))
    }

    async fn introspect_token(&self) -> Result<Call, Status> {
        let (token, sessions) = (self.operator().await?, self.sessions().await?);
        let tokens: Arc<[String]> = sessions.into_iter().map(|set| set.access_token).collect();
        Ok(self.each(move |channel, number| {
            let message = pb::IntrospectTokenRequest {
                token: pick(&tokens, number).clone(),
            };
            let request = by(&token, message);
            async move {
                match TokenServiceClient::new(channel)
                    .introspect_token(request)
                    .await
                {
                    Ok(response) if !response.get_ref().active => "NOT_ACTIVE".to_owned(),
                    answer => outcome(answer),
                }
            }
        }))
    }

    async fn get_user(&self) -> Result<Call, Status> {
        let (token, users) = (self.operator().await?, self.sample().await?.users);
        Ok(self.each(move |channel, number| {
            let message = pb::GetUserRequest {
                name: pick(&users, number).name.clone(),
            };
            let request = by(&token, message);
            async move { outcome(UserServiceClient::new(channel).get_user(request).await) }
        }))
    }

    async fn create_user(&self) -> Result<Call, Status> {
        let (token, run) = (self.operator().await?, self.run.clone());
        Ok(self.each(move |channel, number| {
            let user = pb::User {
                username: format!("bench-{run}-c{number}"),
                ..Default::default()
            };
            let message = pb::CreateUserRequest {
                user: Some(user),
                ..Default::default()
            };
            let request = by(&token, message);
            async move { outcome(UserServiceClient::new(channel).create_user(request).await) }
        }))
    }

    async fn lookup_user(&self) -> Result<Call, Status> {
        let (token, users) = (self.operator().await?, self.sample().await?.named()?);
        Ok(self.each(move |channel, number| {
            let key =
                pb::lookup_user_request::Key::Identifier(pick(&users, number).username.clone());
            let request = by(&token, pb::LookupUserRequest { key: Some(key) });
            async move { outcome(UserServiceClient::new(channel).lookup_user(request).await) }
        }))
    }

    async fn list_users(&self) -> Result<Call, Status> {
        let (token, pages) = (self.operator().await?, self.sample().await?.pages);
        Ok(self.each(move |channel, number| {
            let page_token = pick(&pages, number).clone();
            let message = pb::ListUsersRequest {
                page_size: 50,
                page_token,
                ..Default::default()
            };
            let request = by(&token, message);
            async move { outcome(UserServiceClient::new(channel).list_users(request).await) }
        }))
    }

    async fn search_users(&self) -> Result<Call, Status> {
        let (token, users) = (self.operator().await?, self.sample().await?.named()?);
        Ok(self.each(move |channel, number| {
            let mut prefix = pick(&users, number).username.clone();
            prefix.truncate(prefix.char_indices().nth_back(1).map_or(0, |(at, _)| at));
            let filter = format!("username = \"{prefix}*\"");
            let message = pb::ListUsersRequest {
                page_size: 50,
                filter,
                ..Default::default()
            };
            let request = by(&token, message);
            async move { outcome(UserServiceClient::new(channel).list_users(request).await) }
        }))
    }

    fn jwks(&self) -> Call {
        self.each(|mut channel, _| async move {
            let request = http::Request::builder().method(Method::GET);
            let request = request
                .uri("/.well-known/jwks.json")
                .body(tonic::body::Body::empty());
            let Ok(request) = request else {
                return "NO_REQUEST".to_owned();
            };
            if std::future::poll_fn(|cx| tower::Service::poll_ready(&mut channel, cx))
                .await
                .is_err()
            {
                return "NO_CONNECTION".to_owned();
            }
            match tower::Service::call(&mut channel, request).await {
                Ok(response) if response.status().is_success() => {
                    let body = response.into_body().collect().await;
                    body.map_or_else(|_| "NO_BODY".to_owned(), |_| OK.to_owned())
                }
                Ok(response) => response.status().to_string(),
                Err(_) => "NO_ANSWER".to_owned(),
            }
        })
    }

    /// Calls that take the connections in turn.
    fn each<F>(&self, call: impl Fn(Channel, u64) -> F + Send + Sync + 'static) -> Call
    where
        F: Future<Output = String> + Send + 'static,
    {
        let channels = Arc::clone(&self.channels);
        Arc::new(move |number| Box::pin(call(pick(&channels, number).clone(), number)))
    }

    fn channel(&self) -> Channel {
        self.channels[0].clone()
    }

    /// A fresh token of the operator.
    async fn operator(&self) -> Result<Token, Status> {
        let request = pb::IssueTokenRequest {
            client_id: self.credentials.client_id.clone(),
            client_secret: self.credentials.client_secret.clone(),
            ..Default::default()
        };
        let set = TokenServiceClient::new(self.channel())
            .issue_token(request)
            .await?;
        bearer(&set.get_ref().access_token)
    }

    /// People who can sign in.
    async fn people(&self, kind: &str) -> Result<Vec<Person>, Status> {
        let token = self.operator().await?;
        let mut people = Vec::new();
        for number in 0..PEOPLE {
            let person = Person {
                username: format!("bench-{}-{kind}{number}", self.run),
                password: format!("{} correct horse {}", self.run, number),
            };
            self.new_user(&token, person.username.clone(), &person.password)
                .await?;
            people.push(person);
        }
        Ok(people)
    }

    /// Tokens of as many sessions, spread over people.
    async fn sessions(&self) -> Result<Vec<pb::TokenSet>, Status> {
        let people = self.people(&nonce()).await?;
        let mut sessions = Vec::new();
        for number in 0..SESSIONS {
            let mut client = SessionServiceClient::new(self.channel());
            let response = client
                .create_session(pick(&people, number).sign_in())
                .await?;
            match response.into_inner().result {
                Some(pb::sign_in_response::Result::Tokens(tokens)) => sessions.push(tokens),
                None => return Err(Status::internal("a sign-in without tokens")),
            }
        }
        Ok(sessions)
    }

    async fn new_user(
        &self,
        token: &Token,
        username: String,
        password: &str,
    ) -> Result<pb::User, Status> {
        let user = pb::User {
            username,
            ..Default::default()
        };
        let message = pb::CreateUserRequest {
            user: Some(user),
            password: password.to_owned(),
            ..Default::default()
        };
        let created = UserServiceClient::new(self.channel())
            .create_user(by(token, message))
            .await;
        Ok(created?.into_inner())
    }

    /// A system account, and what it asks its tokens with.
    async fn new_machine(
        &self,
        token: &Token,
        account: pb::SystemAccount,
    ) -> Result<pb::IssueTokenRequest, Status> {
        let message = pb::CreateSystemAccountRequest {
            system_account: Some(account),
            ..Default::default()
        };
        let mut accounts = SystemAccountServiceClient::new(self.channel());
        let account = accounts
            .create_system_account(by(token, message))
            .await?
            .into_inner();
        let detail = pb::credential::Detail::ClientSecret(pb::credential::ClientSecret::default());
        let message = pb::CreateCredentialRequest {
            parent: account.name,
            credential: Some(pb::Credential {
                detail: Some(detail),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut credentials = CredentialServiceClient::new(self.channel());
        let created = credentials
            .create_credential(by(token, message))
            .await?
            .into_inner();
        Ok(pb::IssueTokenRequest {
            client_id: account.uid,
            client_secret: created.secret,
            audience: AUDIENCE.to_owned(),
            ..Default::default()
        })
    }

    /// Users and page tokens from everywhere in the list: walks through all of it.
    async fn sample(&self) -> Result<Sample, Status> {
        let token = self.operator().await?;
        let (mut pages, mut users) = (vec![String::new()], Vec::new());
        let (mut page_token, mut walked) = (String::new(), 0_usize);
        let mut stride = 1;
        loop {
            let message = pb::ListUsersRequest {
                page_size: 1000,
                page_token: page_token.clone(),
                ..Default::default()
            };
            let request = by(&token, message);
            let mut client =
                UserServiceClient::new(self.channel()).max_decoding_message_size(usize::MAX);
            let response = client.list_users(request).await?.into_inner();
            if walked.is_multiple_of(stride) {
                let step = (1000 / (SAMPLE / 100)).max(1);
                users.extend(response.users.into_iter().step_by(step));
                pages.push(response.next_page_token.clone());
            }
            walked += 1;
            if users.len() > SAMPLE {
                // Half of what there is, from twice as far apart.
                keep_every_second(&mut users);
                keep_every_second(&mut pages);
                stride *= 2;
            }
            page_token = response.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        pages.retain(|page| !page.is_empty());
        pages.push(String::new());
        Ok(Sample {
            users: users.into(),
            pages: pages.into(),
        })
    }
}

/// What nobody else has in a name.
fn nonce() -> String {
    let random: &dyn Random = &SystemRandom;
    data_encoding::HEXLOWER.encode(&random.bytes::<4>())
}

fn keep_every_second<T>(list: &mut Vec<T>) {
    let mut keep = false;
    list.retain(|_| {
        keep = !keep;
        keep
    });
}

struct Person {
    username: String,
    password: String,
}

impl Person {
    fn sign_in(&self) -> pb::CreateSessionRequest {
        pb::CreateSessionRequest {
            identifier: self.username.clone(),
            password: self.password.clone(),
            ..Default::default()
        }
    }
}

struct Sample {
    users: Arc<[pb::User]>,
    pages: Arc<[String]>,
}

impl Sample {
    /// Those who have a username.
    fn named(self) -> Result<Arc<[pb::User]>, Status> {
        let named: Arc<[_]> = self
            .users
            .iter()
            .filter(|user| !user.username.is_empty())
            .cloned()
            .collect();
        if named.is_empty() {
            return Err(Status::not_found("there are no users with a username"));
        }
        Ok(named)
    }
}

/// What a number stands for: neighbours are far apart, so that nothing is found in a cache because
/// of the call before.
fn pick<T>(list: &[T], number: u64) -> &T {
    let length = u64::try_from(list.len()).unwrap_or(u64::MAX);
    let place = number.wrapping_mul(7919) % length;
    &list[usize::try_from(place).unwrap_or_default()]
}

fn by<T>(token: &Token, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("authorization", token.clone());
    request
}

fn bearer(token: &str) -> Result<Token, Status> {
    format!("Bearer {token}")
        .parse()
        .map_err(|_| Status::internal("a token that is no text"))
}

fn outcome<T>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(_) => OK.to_owned(),
        Err(status) => reason(&status),
    }
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map_or_else(
        || status::code_name(status.code()).to_owned(),
        |info| info.reason,
    )
}

fn endpoint(options: &Options) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(options.url.clone())
        .map_err(|error| format!("{}: {error}", options.url))?
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE)
        .tcp_nodelay(true);
    if !options.url.starts_with("https:") {
        return Ok(endpoint);
    }
    let tls = match &options.ca {
        None => ClientTlsConfig::new().with_webpki_roots(),
        Some(file) => {
            let pem = fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
    };
    endpoint
        .tls_config(tls)
        .map_err(|error| format!("{}: {}", options.url, root_cause(&error)))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

//! The server that is measured, and what is made in it beforehand.

use std::{fs, path::Path, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::sync::OnceCell;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::{Options, load::Call};
use crate::{
    env::{Random, SystemRandom},
    grpc::pb::{
        self, credential_service_client::CredentialServiceClient,
        session_service_client::SessionServiceClient,
        system_account_service_client::SystemAccountServiceClient,
        token_service_client::TokenServiceClient, user_service_client::UserServiceClient,
    },
};

/// The server that is measured, and who measures it.
pub struct Subject {
    channels: Arc<[Channel]>,
    /// Or why there are none: not everything that is measured needs them.
    credentials: Result<Credentials, String>,
    sample: OnceCell<Sample>,
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
/// One in so many users of a page is taken.
const STEP: usize = 10;
const AUDIENCE: &str = "bench";
/// How long a connection or an answer may take; a busy server answers late.
const PATIENCE: Duration = Duration::from_secs(30);

pub type Token = MetadataValue<Ascii>;

impl Subject {
    pub async fn connect(options: &Options) -> Result<Self, String> {
        let mut channels = Vec::new();
        for _ in 0..options.connections {
            channels.push(endpoint(options)?.connect().await.map_err(|error| {
                format!("cannot connect to {}: {}", options.url, root_cause(&error))
            })?);
        }
        Ok(Self {
            channels: channels.into(),
            credentials: credentials(&options.credentials),
            sample: OnceCell::new(),
        })
    }

    /// Calls that take the connections in turn.
    pub fn each<F>(&self, call: impl Fn(Channel, u64) -> F + Send + Sync + 'static) -> Call
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
    pub async fn operator(&self) -> Result<Token, Status> {
        let credentials = self.credentials.as_ref();
        let credentials = credentials.map_err(|error| Status::unauthenticated(error.clone()))?;
        let request = pb::IssueTokenRequest {
            client_id: credentials.client_id.clone(),
            client_secret: credentials.client_secret.clone(),
            ..Default::default()
        };
        let set = TokenServiceClient::new(self.channel())
            .issue_token(request)
            .await?;
        bearer(&set.get_ref().access_token)
    }

    /// People who can sign in.
    pub async fn people(&self) -> Result<Vec<Person>, Status> {
        let (token, run) = (self.operator().await?, nonce());
        let mut people = Vec::new();
        for number in 0..PEOPLE {
            let person = Person {
                username: format!("bench-{run}-{number}"),
                password: password(),
            };
            self.new_user(&token, person.username.clone(), &person.password)
                .await?;
            people.push(person);
        }
        Ok(people)
    }

    /// Tokens of as many sessions, spread over people.
    pub async fn sessions(&self) -> Result<Vec<pb::TokenSet>, Status> {
        let people = self.people().await?;
        let mut sessions = Vec::new();
        for number in 0..SESSIONS {
            let mut client = SessionServiceClient::new(self.channel());
            let response = client
                .create_session(pick(&people, number).sign_in())
                .await?;
            match response.into_inner().result {
                Some(pb::sign_in_response::Result::Tokens(tokens)) => sessions.push(tokens),
                _ => return Err(Status::internal("a sign-in without tokens")),
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

    /// What system accounts ask their tokens with.
    pub async fn machines(&self) -> Result<Vec<pb::IssueTokenRequest>, Status> {
        let (token, run) = (self.operator().await?, nonce());
        let owner = format!("bench-{run}-owner");
        let owner = self.new_user(&token, owner, "").await?;
        let mut machines = Vec::new();
        for number in 0..MACHINES {
            let account = pb::SystemAccount {
                kind: pb::system_account::Kind::Service.into(),
                display_name: format!("bench {run} {number}"),
                owner: owner.name.clone(),
                audiences: vec![AUDIENCE.to_owned()],
                ..Default::default()
            };
            machines.push(self.new_machine(&token, account).await?);
        }
        Ok(machines)
    }

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

    /// Users and page tokens from everywhere in the list, as it was when they were first asked for.
    pub async fn sample(&self) -> Result<&Sample, Status> {
        self.sample.get_or_try_init(|| self.walk()).await
    }

    /// Walks through the whole list.
    async fn walk(&self) -> Result<Sample, Status> {
        let mut token = self.operator().await?;
        let (mut pages, mut users) = (vec![String::new()], Vec::new());
        let (mut page_token, mut walked) = (String::new(), 0_usize);
        let mut stride = 1;
        loop {
            if walked % 100 == 99 {
                // A long walk outlives a token.
                token = self.operator().await?;
            }
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
                users.extend(response.users.into_iter().step_by(STEP));
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

fn credentials(file: &Path) -> Result<Credentials, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let text = fs::read_to_string(file).map_err(|error| wrong(&error))?;
    serde_json::from_str(&text).map_err(|error| wrong(&error))
}

/// Part of the names of what is made at one time, so that it does not meet what was made before.
pub fn nonce() -> String {
    let random: &dyn Random = &SystemRandom;
    data_encoding::HEXLOWER.encode(&random.bytes::<4>())
}

/// Nobody else can know it, though the accounts stay.
fn password() -> String {
    let random: &dyn Random = &SystemRandom;
    data_encoding::HEXLOWER.encode(&random.bytes::<16>())
}

fn keep_every_second<T>(list: &mut Vec<T>) {
    let mut keep = false;
    list.retain(|_| {
        keep = !keep;
        keep
    });
}

pub struct Person {
    username: String,
    password: String,
}

impl Person {
    pub fn sign_in(&self) -> pb::CreateSessionRequest {
        pb::CreateSessionRequest {
            identifier: self.username.clone(),
            password: self.password.clone(),
            ..Default::default()
        }
    }
}

pub struct Sample {
    pub users: Arc<[pb::User]>,
    pub pages: Arc<[String]>,
}

impl Sample {
    /// Those who have a username.
    pub fn named(&self) -> Result<Arc<[pb::User]>, Status> {
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
pub fn pick<T>(list: &[T], number: u64) -> &T {
    let length = u64::try_from(list.len()).unwrap_or(u64::MAX);
    let place = number.wrapping_mul(7919) % length;
    &list[usize::try_from(place).unwrap_or_default()]
}

pub fn by<T>(token: &Token, message: T) -> Request<T> {
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

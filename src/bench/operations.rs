//! What can be measured: for each operation, what it needs, made beforehand, and one call of it.

use std::sync::Arc;

use clap::ValueEnum;
use http::Method;
use http_body_util::BodyExt as _;
use tokio::sync::Mutex;
use tonic::Status;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use super::{
    load::{Call, OK},
    meter::Meter,
    subject::{Person, Subject, by, nonce, pick},
};
use crate::grpc::{
    pb::{
        self, session_service_client::SessionServiceClient,
        token_service_client::TokenServiceClient, user_service_client::UserServiceClient,
    },
    status,
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

    /// More sign-ins at once than the server's lanes are soon done with would be turned away.
    pub async fn most_in_flight(self, meter: &Meter) -> Result<usize, String> {
        match self {
            Self::SignIn => Ok(meter.hash_lanes().await? * 4),
            _ => Ok(usize::MAX),
        }
    }
}

impl Subject {
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
        let people: Arc<[Person]> = self.people().await?.into();
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
        let machines: Arc<[pb::IssueTokenRequest]> = self.machines().await?.into();
        Ok(self.each(move |channel, number| {
            let request = pick(&machines, number).clone();
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
        let sessions = self.sessions().await?;
        let token = self.operator().await?;
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
        let users = Arc::clone(&self.sample().await?.users);
        let token = self.operator().await?;
        Ok(self.each(move |channel, number| {
            let message = pb::GetUserRequest {
                name: pick(&users, number).name.clone(),
            };
            let request = by(&token, message);
            async move { outcome(UserServiceClient::new(channel).get_user(request).await) }
        }))
    }

    async fn create_user(&self) -> Result<Call, Status> {
        let (token, run) = (self.operator().await?, nonce());
        Ok(self.each(move |channel, number| {
            let user = pb::User {
                username: format!("bench-{run}-{number}"),
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
        let users = self.sample().await?.named()?;
        let token = self.operator().await?;
        Ok(self.each(move |channel, number| {
            let key =
                pb::lookup_user_request::Key::Identifier(pick(&users, number).username.clone());
            let request = by(&token, pb::LookupUserRequest { key: Some(key) });
            async move { outcome(UserServiceClient::new(channel).lookup_user(request).await) }
        }))
    }

    async fn list_users(&self) -> Result<Call, Status> {
        let pages = Arc::clone(&self.sample().await?.pages);
        let token = self.operator().await?;
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
        let users = self.sample().await?.named()?;
        let token = self.operator().await?;
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

//! TokenService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    Reply,
    call::{Call, mutate},
    convert,
    mint::{self, Bearer, Limits, Wish},
    pb,
    secrets::{self, Presented, Program},
};
use crate::{
    app::App,
    domain::{
        credential::Credential,
        error::{Error, Result},
        name::AccountId,
        secret::Kind,
        session::{EndReason, Judgement},
        time::Timestamp,
        token::{AccountClaims, Claims, MAX_TOKEN_BYTES},
    },
    store::{
        credentials,
        db::{Attempts, Isolation, Read},
        events, sessions, system_accounts, tokens, transact,
    },
};

pub(super) struct Tokens {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::token_service_server::TokenService for Tokens {
    async fn issue_token(&self, request: Request<pb::IssueTokenRequest>) -> Reply<pb::TokenSet> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let wish = Wish::parse(&request.audience, &request.scopes)?;
        let Program {
            account,
            credential,
            certificate,
        } = secrets::of_program(&call, presented(&request)?).await?;
        if !account.may_ask_for(&wish.audience) {
            let text = "is not one that this account may ask tokens for";
            return Err(Error::field("audience", text).into());
        }
        if credential.use_is_news(call.now) {
            let late = credential.is_used_late(call.now).then(|| {
                let event = call.event_of("credential.used_late");
                event.about(credential.name(), Some(account.id.into()))
            });
            let attempts = Attempts::new(call.db(), Isolation::ReadCommitted, false);
            transact!(
                attempts,
                attempts | tx | {
                    if credentials::used(tx, &credential, call.now).await? {
                        system_accounts::used(tx, account.id, call.now).await?;
                        if let Some(late) = &late {
                            events::append(tx, late).await?;
                        }
                    } else {
                        require_live(tx, &call, &credential).await?;
                    }
                }
            )?;
        }
        let entitled = mint::entitled(&call, account.id.into(), &wish.audience).await?;
        let bearer = Bearer {
            account: account.id.into(),
            claims: AccountClaims::SystemAccount {
                credential_id: credential.id.0,
            },
            client_id: account.id.0.to_string(),
            bound_to: certificate.as_deref(),
            limits: Limits::of_program(&call, &account, &credential),
            not_before: account.tokens_not_before,
        };
        Ok(Response::new(mint::token(&call, &wish, &entitled, bearer)?))
    }

    async fn introspect_token(
        &self,
        request: Request<pb::IntrospectTokenRequest>,
    ) -> Reply<pb::IntrospectTokenResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        require_token(&request.token)?;
        let response = if is_refresh_token(&request.token) {
            introspect_refresh_token(&call, &request.token).await?
        } else {
            match call.examine(&request.token).await {
                Ok(claims) => introspected(&claims),
                Err(Error::Unauthenticated(_)) => pb::IntrospectTokenResponse::default(),
                Err(error) => return Err(error.into()),
            }
        };
        Ok(Response::new(response))
    }

    async fn revoke_token(
        &self,
        request: Request<pb::RevokeTokenRequest>,
    ) -> Reply<pb::RevokeTokenResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        require_token(&request.token)?;
        if is_refresh_token(&request.token) {
            let found = secrets::look_up_refresh_token(&call, &request.token).await?;
            if let Some((_, session, _)) = found {
                mutate!(call, |tx| {
                    let (user, id) = (session.user, session.id);
                    if sessions::end(tx, user, id, call.now, EndReason::SignedOut).await? {
                        let event = call.event().about(session.name(), Some(user.into()));
                        events::append(tx, &event).await?;
                    }
                    pb::RevokeTokenResponse {}
                })?;
            }
        } else {
            match call.examine(&request.token).await {
                Ok(claims) => {
                    let account = claims.account_id();
                    mutate!(call, |tx| {
                        tokens::revoke(tx, &claims).await?;
                        let event = call
                            .event()
                            .about_account(account)
                            .detail("jti", claims.jti);
                        events::append(tx, &event).await?;
                        pb::RevokeTokenResponse {}
                    })?;
                }
                // It is worth nothing already.
                Err(Error::Unauthenticated(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Response::new(pb::RevokeTokenResponse {}))
    }
}

/// Refuses a credential that has come to its end since it was looked at.
async fn require_live(db: &mut Read, call: &Call, credential: &Credential) -> Result<()> {
    let found = credentials::find(db, credential.account, credential.id).await?;
    if found.is_some_and(|found| found.is_live(call.now)) {
        return Ok(());
    }
    Err(Error::invalid_credentials())
}

/// The one secret that a request holds, or the name of who has shown a certificate.
fn presented(request: &pb::IssueTokenRequest) -> Result<Presented<'_>> {
    let pb::IssueTokenRequest {
        client_id,
        client_secret: secret,
        api_key,
        client_assertion: assertion,
        ..
    } = request;
    match (&**client_id, &**secret, &**api_key, &**assertion) {
        (client_id, "", "", assertion) if !assertion.is_empty() => Ok(Presented::Assertion {
            client_id,
            assertion,
        }),
        (_, _, _, assertion) if !assertion.is_empty() => {
            let text = "excludes `client_secret` and `api_key`";
            Err(Error::field("client_assertion", text))
        }
        ("", "", key, _) if !key.is_empty() => Ok(Presented::ApiKey(key)),
        (client_id, "", "", _) if !client_id.is_empty() => Ok(Presented::Certificate { client_id }),
        (client_id, secret, "", _) => Ok(Presented::ClientSecret { client_id, secret }),
        _ => {
            let text = "excludes `client_id` and `client_secret`";
            Err(Error::field("api_key", text))
        }
    }
}

fn require_token(token: &str) -> Result<()> {
    if (1..=MAX_TOKEN_BYTES).contains(&token.len()) {
        return Ok(());
    }
    Err(Error::field(
        "token",
        format!("must have 1 to {MAX_TOKEN_BYTES} bytes"),
    ))
}

fn is_refresh_token(token: &str) -> bool {
    token.starts_with(Kind::RefreshToken.prefix()) && !token.contains('.')
}

fn introspected(claims: &Claims) -> pb::IntrospectTokenResponse {
    let account = claims.account_id();
    let time = |seconds| Some(convert::timestamp(Timestamp::from_seconds(seconds)));
    let response = pb::IntrospectTokenResponse {
        active: true,
        token_type: "access_token".to_owned(),
        account: account.to_string(),
        sub: claims.sub.to_string(),
        iss: claims.iss.clone(),
        aud: claims.aud.clone(),
        client_id: claims.client_id.clone(),
        jti: claims.jti.to_string(),
        scopes: claims.scopes(),
        issue_time: time(claims.iat),
        expire_time: time(claims.exp),
        cnf: claims.cnf.as_ref().map(|bound| pb::Confirmation {
            x5t_s256: bound.certificate.clone(),
        }),
        ..pb::IntrospectTokenResponse::default()
    };
    match &claims.account {
        AccountClaims::User {
            sid,
            auth_time,
            acr,
            amr,
        } => pb::IntrospectTokenResponse {
            session: account.child("sessions", *sid),
            auth_time: time(*auth_time),
            acr: acr.name().to_owned(),
            amr: amr.clone(),
            ..response
        },
        AccountClaims::SystemAccount { credential_id } => pb::IntrospectTokenResponse {
            credential: account.child("credentials", *credential_id),
            ..response
        },
    }
}

/// A refresh token is active while presenting it would yield the next one.
async fn introspect_refresh_token(call: &Call, token: &str) -> Result<pb::IntrospectTokenResponse> {
    let found = secrets::look_up_refresh_token(call, token).await?;
    let Some((token, session, user)) = found else {
        return Ok(pb::IntrospectTokenResponse::default());
    };
    let is_live = session.judge(token.generation, call.now, 0) == Judgement::Rotate;
    if !is_live || !user.may_act(call.now) {
        return Ok(pb::IntrospectTokenResponse::default());
    }
    let account = AccountId::User(session.user);
    let lifetimes = call.app().config.session_lifetimes();
    Ok(pb::IntrospectTokenResponse {
        active: true,
        token_type: "refresh_token".to_owned(),
        account: account.to_string(),
        sub: session.user.0.to_string(),
        iss: call.app().issuer.clone(),
        issue_time: Some(convert::timestamp(session.family.rotate_time)),
        expire_time: Some(convert::timestamp(session.end_time())),
        session: session.name(),
        auth_time: Some(convert::timestamp(session.auth_time)),
        acr: session.acr(call.now, lifetimes).name().to_owned(),
        amr: session.shown.amr,
        ..pb::IntrospectTokenResponse::default()
    })
}

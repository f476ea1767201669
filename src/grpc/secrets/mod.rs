//! Every secret that somebody presents is checked here, and nowhere else.
//!
//! Whatever the secret: attempts are charged, a wrong one is written to the log, and everything that
//! can be wrong has one answer. What a person types is charged before it is looked at and refunded
//! when right. Secrets with 256 bits of their own, and signatures, cannot be guessed: they are charged
//! when wrong, which bounds what wrong ones may cost, and right ones are never held up by strangers.

mod answer;
mod charge;
mod password;

pub(super) use answer::{Answered, answer, confirm_totp, new_passkey, open_generator, sealed_for};
pub(super) use password::{
    Attempt, Origin, Proven, Whose, known_device, new_password, password, password_credential,
    seal_hash,
};

use self::charge::attempted;
use super::call::Call;
use crate::{
    domain::{
        account::Lifecycle,
        client_assertion,
        credential::{self, Credential, Parameters},
        error::{Reason, Result},
        name::AccountId,
        network,
        secret::{Digest, Kind, Secret},
        session::{RefreshToken, Session},
        system_account::SystemAccount,
        token,
    },
    store::{
        client_assertions, password_resets, sessions, system_accounts, transact,
        users::{self, PasswordOwner},
    },
};

/// What a program shows for itself.
#[derive(Clone, Copy)]
pub(super) enum Presented<'a> {
    ClientSecret {
        client_id: &'a str,
        secret: &'a str,
    },
    ApiKey(&'a str),
    /// What it has signed; the client that was named beside it may be empty.
    Assertion {
        client_id: &'a str,
        assertion: &'a str,
    },
}

/// The account of a program and its secret, if that is good here and now.
pub(super) async fn of_program(
    call: &Call,
    presented: Presented<'_>,
) -> Result<(SystemAccount, Credential)> {
    let (id, kind, secret) = match presented {
        Presented::Assertion {
            client_id,
            assertion,
        } => return of_signer(call, client_id, assertion).await,
        Presented::ClientSecret { client_id, secret } => {
            let id = token::client_id(client_id);
            // Whose secret it is has to be said as well.
            let secret = id.and_then(|_| Secret::parse(Kind::ClientSecret, secret));
            (id, credential::Kind::ClientSecret, secret)
        }
        Presented::ApiKey(key) => {
            let secret = Secret::parse(Kind::ApiKey, key);
            (None, credential::Kind::ApiKey, secret)
        }
    };
    let found = match secret {
        None => None,
        Some(secret) => {
            let mut db = call.db().read().await?;
            system_accounts::find_by_secret(&mut db, kind, &secret.digest()).await?
        }
    };
    let is_good = |account: &SystemAccount, credential: &Credential| {
        id.is_none_or(|id| account.id == id) && may_come(call, account, credential)
    };
    match found {
        Some((account, credential)) if is_good(&account, &credential) => Ok((account, credential)),
        found => {
            let event = attempted(call, "token.refused", id.map(AccountId::System));
            // Whoever uses one that has come to its end is no stranger.
            let event = match found {
                Some((account, credential)) => {
                    event.about(credential.name(), Some(account.id.into()))
                }
                None => event,
            };
            Err(charge::refuse(call, call.address, event, Reason::InvalidCredentials).await?)
        }
    }
}

/// Whether a program may act, with this credential, from where it is.
fn may_come(call: &Call, account: &SystemAccount, credential: &Credential) -> bool {
    account.may_act(call.now)
        && account.kind.allows(credential.kind)
        && credential.is_live(call.now)
        && network::allows(&account.limits.allowed_cidrs, call.address)
        && network::allows(&credential.allowed_cidrs, call.address)
}

/// The account of a program and the key with which it has signed an assertion, which is used up here.
async fn of_signer(
    call: &Call,
    client_id: &str,
    assertion: &str,
) -> Result<(SystemAccount, Credential)> {
    let id = client_assertion::subject(assertion)
        .filter(|id| client_id.is_empty() || token::client_id(client_id) == Some(*id));
    let mut good = Vec::new();
    if let Some(id) = id {
        let mut db = call.db().read().await?;
        good = system_accounts::list_with_public_keys(&mut db, id).await?;
    }
    good.retain(|(account, credential)| may_come(call, account, credential));
    let keys = good.iter().filter_map(|both| match &both.1.parameters {
        Some(Parameters::PublicKey(key)) => Some((both, key)),
        _ => None,
    });
    let issuer = &call.app().issuer;
    let audiences = [
        issuer.clone(),
        format!("{issuer}/oauth2/token"),
        format!("{issuer}/v1/tokens:issue"),
    ];
    let verified = id
        .and_then(|id| client_assertion::verify(assertion, id, keys, &audiences, call.now))
        .map(|((account, credential), used)| (account.clone(), credential.clone(), used));
    if let Some((account, credential, used)) = verified {
        let is_first = transact!(
            charge::attempts(call),
            attempts | tx | { client_assertions::spend(tx, account.id, &used).await? }
        )?;
        if is_first {
            return Ok((account, credential));
        }
    }
    let event = attempted(call, "token.refused", id.map(AccountId::System));
    Err(charge::refuse(call, call.address, event, Reason::InvalidCredentials).await?)
}

/// The session that a refresh token belongs to, and the state of its user. Whether it is the live
/// token is for the caller to judge; that the session had it once is certain.
pub(super) async fn refresh_token(
    call: &Call,
    text: &str,
) -> Result<(RefreshToken, Session, Lifecycle)> {
    match look_up_refresh_token(call, text).await? {
        Some(found) => Ok(found),
        None => {
            let event = attempted(call, "session.refresh_refused", None);
            Err(charge::refuse(call, call.address, event, Reason::InvalidRefreshToken).await?)
        }
    }
}

/// The same for somebody who asks about a token, or gives it up, and gets nothing for it: a wrong
/// one is no attempt.
pub(super) async fn look_up_refresh_token(
    call: &Call,
    text: &str,
) -> Result<Option<(RefreshToken, Session, Lifecycle)>> {
    let Some(token) = RefreshToken::parse(text) else {
        return Ok(None);
    };
    let mut db = call.db().read().await?;
    let found = sessions::find_with_user(&mut db, token.user, token.session).await?;
    let key = &call.app().keys.refresh_tokens;
    let genuine = found.filter(|(session, _)| token.is_genuine(key, &session.family.seed));
    Ok(genuine.map(|(session, user)| (token, session, user)))
}

/// Whose password a one-time code sets, without using it up.
pub(super) async fn reset_code(call: &Call, text: &str) -> Result<(Digest, PasswordOwner)> {
    if let Some(code) = Secret::parse(Kind::PasswordReset, text) {
        let mut db = call.db().read().await?;
        let digest = code.digest();
        if let Some(id) = password_resets::find(&mut db, &digest, call.now).await? {
            let owner = users::find_with_password(&mut db, id).await?;
            if let Some(owner) = owner.filter(|owner| owner.lifecycle.may_act(call.now)) {
                return Ok((digest, owner));
            }
        }
    }
    let event = attempted(call, "credential.password_reset_refused", None);
    Err(charge::refuse(call, call.address, event, Reason::InvalidCode).await?)
}

//! What programs prove themselves with: a secret, a signature, or the certificate of their connection.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::call::Call,
    charge::{self, attempted},
};
use crate::{
    domain::{
        client_assertion,
        credential::{Credential, Kind, Parameters},
        error::{Reason, Result},
        key_set::{KeySet, KeySetUri},
        name::{AccountId, SystemAccountId},
        network,
        secret::{self, Secret},
        system_account::SystemAccount,
        token,
    },
    store::{client_assertions, system_accounts, transact},
};

/// What a program shows for itself.
#[derive(Clone, Copy)]
pub(in crate::grpc) enum Presented<'a> {
    ClientSecret {
        client_id: &'a str,
        secret: &'a str,
    },
    ApiKey(&'a str),
    /// What its connection has shown.
    Certificate {
        client_id: &'a str,
    },
    /// What it has signed; the client that was named beside it may be empty.
    Assertion {
        client_id: &'a str,
        assertion: &'a str,
    },
}

/// The account of a program and its secret, if that is good here and now.
pub(in crate::grpc) async fn of_program(
    call: &Call,
    presented: Presented<'_>,
) -> Result<(SystemAccount, Credential)> {
    let (id, kind, secret) = match presented {
        Presented::Assertion {
            client_id,
            assertion,
        } => return of_signer(call, client_id, assertion).await,
        Presented::Certificate { client_id } => return of_bearer(call, client_id).await,
        Presented::ClientSecret { client_id, secret } => {
            let id = token::client_id(client_id);
            // Whose secret it is has to be said as well.
            let secret = id.and_then(|_| Secret::parse(secret::Kind::ClientSecret, secret));
            (id, Kind::ClientSecret, secret)
        }
        Presented::ApiKey(key) => {
            let secret = Secret::parse(secret::Kind::ApiKey, key);
            (None, Kind::ApiKey, secret)
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

/// An account with each of its credentials of a kind that is good here and now.
async fn held_here(
    call: &Call,
    id: Option<SystemAccountId>,
    kind: Kind,
) -> Result<Vec<(SystemAccount, Credential)>> {
    let Some(id) = id else {
        return Ok(Vec::new());
    };
    let mut db = call.db().read().await?;
    let mut held = system_accounts::list_with_credentials(&mut db, id, kind).await?;
    held.retain(|(account, credential)| may_come(call, account, credential));
    Ok(held)
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
    let mut held = held_here(call, id, Kind::PublicKey).await?;
    let sets = published(call, assertion, &held).await;
    if !sets.is_empty() {
        // Fetching takes its time, in which the account may have come to its end.
        held = held_here(call, id, Kind::PublicKey).await?;
    }
    let keys = held.iter().flat_map(|both| {
        let keys = match &both.1.parameters {
            Some(Parameters::PublicKey(key)) => std::slice::from_ref(key),
            Some(Parameters::KeySet(uri)) => {
                sets.get(uri).map_or(&[][..], |set| set.keys(call.now))
            }
            _ => &[],
        };
        keys.iter().map(move |key| (both, key))
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

/// What programs publish of these keys, unless the one that the assertion names was given to us.
async fn published(
    call: &Call,
    assertion: &str,
    held: &[(SystemAccount, Credential)],
) -> HashMap<KeySetUri, Arc<KeySet>> {
    let kid = client_assertion::kid(assertion);
    let parameters = || held.iter().filter_map(|both| both.1.parameters.as_ref());
    let is_named = |parameters: &Parameters| match parameters {
        Parameters::PublicKey(key) => kid.as_ref() == Some(&key.kid),
        _ => false,
    };
    let mut sets = HashMap::new();
    if parameters().any(is_named) {
        return sets;
    }
    for parameters in parameters() {
        if let Parameters::KeySet(uri) = parameters {
            let key_sets = &call.app().key_sets;
            let set = key_sets.get(uri, kid.as_deref(), call.now).await;
            sets.insert(uri.clone(), set);
        }
    }
    sets
}

/// The account of a program and the credential that stands for the certificate of its connection.
async fn of_bearer(call: &Call, client_id: &str) -> Result<(SystemAccount, Credential)> {
    let id = token::client_id(client_id);
    let certificate = call.certificate.as_deref().filter(|certificate| {
        let tls = call.app().tls.as_ref();
        tls.is_some_and(|tls| tls.vouches_for(certificate, call.now))
    });
    if let Some(certificate) = certificate {
        let is_its = |(_, credential): &(SystemAccount, Credential)| match &credential.parameters {
            Some(Parameters::Certificate(identity)) => identity.is_of(certificate),
            _ => false,
        };
        let held = held_here(call, id, Kind::Certificate).await?;
        if let Some(found) = held.into_iter().find(is_its) {
            return Ok(found);
        }
    }
    let event = attempted(call, "token.refused", id.map(AccountId::System));
    Err(charge::refuse(call, call.address, event, Reason::InvalidCredentials).await?)
}

//! What programs prove themselves with: a secret, a signature, or the certificate of their connection.

use std::{sync::Arc, time::Duration};

use super::{
    super::call::Call,
    charge::{self, attempted},
};
use crate::{
    domain::{
        certificate::Certificate,
        client_assertion::{self, Assertion},
        credential::{Credential, Kind, Parameters},
        error::{Error, Reason, Result},
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

/// A program that has proved itself, here and now.
pub(in crate::grpc) struct Program {
    pub(in crate::grpc) account: SystemAccount,
    pub(in crate::grpc) credential: Credential,
    /// What it has proved itself with, if that is a certificate: its tokens are worth nothing without.
    pub(in crate::grpc) certificate: Option<Arc<Certificate>>,
}

/// The program that shows this.
pub(in crate::grpc) async fn of_program(call: &Call, presented: Presented<'_>) -> Result<Program> {
    match presented {
        Presented::ClientSecret { client_id, secret } => {
            let id = token::client_id(client_id);
            // Whose secret it is has to be said as well.
            let secret = id.and_then(|_| Secret::parse(secret::Kind::ClientSecret, secret));
            of_secret(call, id, Kind::ClientSecret, secret).await
        }
        Presented::ApiKey(key) => {
            let secret = Secret::parse(secret::Kind::ApiKey, key);
            of_secret(call, None, Kind::ApiKey, secret).await
        }
        Presented::Certificate { client_id } => of_certificate(call, client_id).await,
        Presented::Assertion {
            client_id,
            assertion,
        } => of_signature(call, client_id, assertion).await,
    }
}

async fn of_secret(
    call: &Call,
    id: Option<SystemAccountId>,
    kind: Kind,
    secret: Option<Secret>,
) -> Result<Program> {
    let mut found = None;
    if let Some(secret) = secret {
        let mut db = call.db().read().await?;
        found = system_accounts::find_by_secret(&mut db, kind, &secret.digest()).await?;
    }
    let is_good = |(account, credential): &(SystemAccount, Credential)| {
        id.is_none_or(|id| account.id == id) && may_come(call, account, credential)
    };
    match found {
        Some(both) if is_good(&both) => Ok(both.into()),
        // Whoever uses one that has come to its end is no stranger.
        Some((account, credential)) => {
            let event = attempted(call, REFUSED, id.map(AccountId::System));
            let event = event.about(credential.name(), Some(account.id.into()));
            Err(charge::refuse(call, call.address, event, Reason::InvalidCredentials).await?)
        }
        None => Err(refused(call, id).await?),
    }
}

/// By a key with which it has signed an assertion, which is used up here.
async fn of_signature(call: &Call, client_id: &str, assertion: &str) -> Result<Program> {
    let id = client_assertion::subject(assertion)
        .filter(|id| client_id.is_empty() || token::client_id(client_id) == Some(*id));
    let Some(id) = id else {
        return Err(refused(call, None).await?);
    };
    let held = held_here(call, Some(id), Kind::PublicKey).await?;
    let mut verified = verify(call, id, assertion, &held);
    if verified.is_none() && has_news(call, id, assertion, &held).await? {
        // Fetching takes its time, in which the account may have come to its end.
        let held = held_here(call, Some(id), Kind::PublicKey).await?;
        verified = verify(call, id, assertion, &held);
    }
    if let Some((both, used)) = verified {
        let is_first = transact!(
            charge::attempts(call),
            attempts | tx | { client_assertions::spend(tx, id, &used).await? }
        )?;
        if is_first {
            return Ok(both.into());
        }
    }
    Err(refused(call, Some(id)).await?)
}

/// Whose key has signed it, of those that we have or know to be published.
fn verify(
    call: &Call,
    id: SystemAccountId,
    assertion: &str,
    held: &[(SystemAccount, Credential)],
) -> Option<((SystemAccount, Credential), Assertion)> {
    let app = call.app();
    let now = app.clock.now();
    let sets = held
        .iter()
        .map(|(_, credential)| match &credential.parameters {
            Some(Parameters::KeySet(uri)) => app.key_sets.known(uri),
            _ => KeySet::default(),
        });
    let sets: Vec<KeySet> = sets.collect();
    let keys = held.iter().zip(&sets).flat_map(|(both, set)| {
        let keys = match &both.1.parameters {
            Some(Parameters::PublicKey(key)) => std::slice::from_ref(key),
            _ => set.keys(now),
        };
        keys.iter().map(move |key| (both, key))
    });
    let issuer = &app.issuer;
    let audiences = [
        issuer.clone(),
        format!("{issuer}/oauth2/token"),
        format!("{issuer}/v1/tokens:issue"),
    ];
    let (both, used) = client_assertion::verify(assertion, id, keys, &audiences, call.now)?;
    Some((both.clone(), used))
}

/// Has somebody look at what the program publishes, and waits for it; whether it is worth another try,
/// also because somebody else has seen it meanwhile.
async fn has_news(
    call: &Call,
    id: SystemAccountId,
    assertion: &str,
    held: &[(SystemAccount, Credential)],
) -> Result<bool> {
    let uris = held
        .iter()
        .filter_map(|(_, credential)| match &credential.parameters {
            Some(Parameters::KeySet(uri)) => Some(uri.clone()),
            _ => None,
        });
    let mut uris: Vec<KeySetUri> = uris.collect();
    if uris.is_empty() {
        return Ok(false);
    }
    let key_sets = &call.app().key_sets;
    let kid = client_assertion::kid(assertion);
    let kid = kid.as_deref();
    uris.retain(|uri| key_sets.look(uri, kid));
    // A network that has sent too much waits for nothing.
    if uris.is_empty() || !charge::may_cost(call).await? || key_sets.wait(id, &uris, kid).await {
        return Ok(true);
    }
    Err(Error::Exhausted {
        reason: Reason::Overloaded,
        retry_after: Duration::from_secs(1),
    })
}

/// By the certificate of its connection.
async fn of_certificate(call: &Call, client_id: &str) -> Result<Program> {
    let id = token::client_id(client_id);
    if let (Some(certificate), Some(tls)) = (&call.certificate, &call.app().tls) {
        let mut held = held_here(call, id, Kind::Certificate).await?;
        held.retain(|(_, credential)| match &credential.parameters {
            Some(Parameters::Certificate(identity)) => identity.is_of(certificate),
            _ => false,
        });
        // The one that says most.
        held.sort_by_key(|(_, credential)| !credential.is_pinned());
        if let Some(both) = held.into_iter().next()
            && tls.vouches_for(certificate, call.now)
        {
            return Ok(Program {
                certificate: Some(Arc::clone(certificate)),
                ..both.into()
            });
        }
    }
    Err(refused(call, id).await?)
}

impl From<(SystemAccount, Credential)> for Program {
    fn from((account, credential): (SystemAccount, Credential)) -> Self {
        Self {
            account,
            credential,
            certificate: None,
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

/// The type of the event when a program is not believed.
const REFUSED: &str = "token.refused";

/// Charges and writes down that somebody claims to be a program; the error to answer with.
async fn refused(call: &Call, id: Option<SystemAccountId>) -> Result<Error> {
    let event = attempted(call, REFUSED, id.map(AccountId::System));
    charge::refuse(call, call.address, event, Reason::InvalidCredentials).await
}

//! Principals: whoever can hold something. An account, or a group for all in it.

use std::collections::BTreeMap;

use super::{accounts, call::Call};
use crate::{
    domain::{
        account::State,
        error::{Error, Reason, Result},
        name::{AccountId, PrincipalId},
        time::Timestamp,
    },
    store::{
        db::{Read, Write},
        groups, users,
    },
};

/// What a name of a principal is to look like.
pub(super) const NAME: &str = "users/{uid}, systemAccounts/{uid} or groups/{uid}";

/// A principal as requests name it.
pub(super) fn parse(name: &str) -> Result<PrincipalId, String> {
    PrincipalId::parse(name).ok_or_else(|| format!("must be {NAME}"))
}

/// The same, `users/me` and `systemAccounts/me` included.
pub(super) fn parse_own(call: &Call, name: &str) -> Result<PrincipalId, String> {
    match call.account("", name) {
        Ok(account) => Ok(account.into()),
        Err(_) => parse(name),
    }
}

/// Who the caller is now, and until when: itself, and the groups it is in.
pub(super) async fn of_caller(
    db: &mut Read,
    call: &Call,
) -> Result<BTreeMap<PrincipalId, Timestamp>> {
    let account = call.caller.account();
    let account = account.ok_or(Error::Unauthenticated(Reason::TokenMissing))?;
    Ok(groups::principals(db, account, call.now).await?)
}

/// Whoever is to be given something has to be there: an account that is not deleted, or a group.
pub(super) async fn require_present(
    db: &mut Read,
    call: &Call,
    principal: PrincipalId,
) -> Result<()> {
    match principal {
        PrincipalId::Account(id) => {
            let found = accounts::state(db, id).await?;
            found.require(&[State::Active, State::Suspended], id, call.now)
        }
        PrincipalId::Group(_) => require_known(db, principal).await,
    }
}

/// There has to be such an account or group, in whatever state.
pub(super) async fn require_known(db: &mut Read, principal: PrincipalId) -> Result<()> {
    match principal {
        PrincipalId::Account(id) => accounts::state(db, id).await.map(drop),
        PrincipalId::Group(id) => {
            let missing = || Error::not_found(id.to_string());
            groups::find(db, id).await?.map(drop).ok_or_else(missing)
        }
    }
}

/// Whoever holds more than before is not opened by codes that were made when it was less.
pub(super) async fn void_begun(tx: &mut Write, principal: PrincipalId) -> Result<()> {
    match principal {
        PrincipalId::Account(AccountId::User(id)) => users::void_begun(tx, id).await?,
        // Nobody makes codes for programs.
        PrincipalId::Account(AccountId::System(_)) => {}
        PrincipalId::Group(id) => groups::void_begun(tx, id).await?,
    }
    Ok(())
}

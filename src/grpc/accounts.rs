//! What there is to ask of an account, whether it is a person's or a program's.

use super::call::Call;
use crate::{
    domain::{
        account::Lifecycle,
        error::{Error, Result},
        name::{AccountId, UserId},
        scope::ScopeName,
        time::Timestamp,
        token::OWN_AUDIENCE,
    },
    store::{db::Read, entitlements, grants, scopes, system_accounts, users},
};

/// The state of an account of either kind.
pub(super) async fn state(db: &mut Read, account: AccountId) -> Result<Lifecycle> {
    let found = match account {
        AccountId::User(id) => users::find(db, id).await?.map(|user| user.lifecycle),
        AccountId::System(id) => system_accounts::find(db, id)
            .await?
            .map(|found| found.lifecycle),
    };
    found.ok_or_else(|| Error::not_found(account.to_string()))
}

/// Refuses an id that somebody has, or has had who is gone and still named as somebody who grants or agrees.
pub(super) async fn require_free(db: &mut Read, account: AccountId) -> Result<()> {
    if let AccountId::User(id) = account {
        users::require_free(db, id).await?;
    }
    let name = account.to_string();
    if entitlements::is_named(db, account.into()).await?
        || scopes::granters(db).await?.contains(&name)
    {
        return Err(Error::AlreadyExists { name });
    }
    Ok(())
}

/// Whether a person may act, and holds some scopes of ours, whatever tokens they have.
pub(super) async fn may(
    db: &mut Read,
    id: UserId,
    scopes: impl IntoIterator<Item = &ScopeName>,
    now: Timestamp,
) -> Result<bool> {
    let user = users::find(db, id).await?;
    let holdings = grants::holdings(db, id.into(), Some(OWN_AUDIENCE), now).await?;
    let mut scopes = scopes.into_iter();
    Ok(user.is_some_and(|user| user.lifecycle.may_act(now))
        && scopes.all(|scope| holdings.holds(scope, now)))
}

/// Looking after people is not looking after machines: what belongs to those needs the scope for changing
/// them as well.
pub(super) fn require_to_manage(call: &Call, account: AccountId) -> Result<()> {
    match account {
        AccountId::System(_) if call.caller.account() != Some(account) => {
            call.require("system_accounts.update")
        }
        _ => Ok(()),
    }
}

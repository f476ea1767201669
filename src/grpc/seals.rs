//! What SystemAccountService does with the seals of accounts for emergencies.

use super::{
    accounts,
    call::{Call, mutate},
    convert, pb,
    system_accounts::{find_for_change, store},
};
use crate::{
    domain::{
        account::State,
        error::{Error, Fields, Reason, Result},
        name::{AccountId, SystemAccountId},
        scope::ScopeName,
        seal::{self, Seal, Step},
        system_account::{Kind, SystemAccount},
        text,
        time::Timestamp,
        token::OWN_AUDIENCE,
    },
    store::{db::Write, events, grants},
};

/// One of the two people who open an account.
pub(super) async fn unseal(
    call: &Call,
    request: pb::UnsealSystemAccountRequest,
) -> Result<pb::SystemAccount> {
    let id = call.system_account("name", &request.name)?;
    let mut fields = Fields::new();
    let reason = text::required_line(&request.reason, seal::MAX_REASON);
    let reason = fields.take("reason", reason).unwrap_or_default();
    fields.finish()?;
    let Some(AccountId::User(caller)) = call.caller.account() else {
        let text = "is unsealed by people, who show that they are there";
        return Err(Error::precondition(
            Reason::WrongState,
            id.to_string(),
            text,
        ));
    };
    let times = call.app().config.seal_times();
    let account = mutate!(call, |tx| {
        let mut account = find_sealable(tx, call, id, &request.etag).await?;
        account.lifecycle.require(&[State::Active], id, call.now)?;
        if let Some(first) = account.seal.pending(times, call.now).map(|it| it.by) {
            // Whoever asked has to be able to ask still.
            let power = grants::power(tx, id.into(), Some(OWN_AUDIENCE), call.now).await?;
            let unseal = ScopeName::own(UNSEAL);
            let asked = power.scopes().chain([&unseal]);
            if !accounts::may(tx, first, asked, call.now).await? {
                account.seal.close();
            }
        }
        let request = seal::Request {
            by: caller,
            reason: reason.clone(),
            time_us: call.now.micros(),
        };
        if account.seal.reseal(call.now) {
            let event = call.event_of("system_account.sealed").about_account(id);
            events::append(tx, &event).await?;
        }
        let refused = |text| Error::precondition(Reason::WrongState, id.to_string(), text);
        let step = account.seal.unseal(request, times, call.now);
        let event = match step.map_err(refused)? {
            Step::Requested => call.event_of("system_account.unseal_requested"),
            Step::Unsealed => call.event(),
        };
        let event = event.about_account(id).detail("reason", reason.clone());
        store(tx, call, account, event).await?
    })?;
    Ok(account)
}

/// Closes an account before its time.
pub(super) async fn seal(
    call: &Call,
    request: pb::SealSystemAccountRequest,
) -> Result<pb::SystemAccount> {
    let id = call.system_account("name", &request.name)?;
    let account = mutate!(call, |tx| {
        let mut account = find_sealable(tx, call, id, &request.etag).await?;
        account.seal.close();
        account.revoke_tokens(call.now);
        store(tx, call, account, call.event().about_account(id)).await?
    })?;
    Ok(account)
}

/// The account as it is, if it is one for emergencies.
async fn find_sealable(
    tx: &mut Write,
    call: &Call,
    id: SystemAccountId,
    etag: &str,
) -> Result<SystemAccount> {
    let account = find_for_change(tx, call, id, etag).await?;
    if account.kind == Kind::BreakGlass {
        return Ok(account);
    }
    let text = "is not of kind BREAK_GLASS";
    Err(Error::precondition(
        Reason::WrongState,
        id.to_string(),
        text,
    ))
}

/// The scope that the policy of UnsealSystemAccount asks for.
const UNSEAL: &str = "system_accounts.unseal";

pub(super) fn shown(seal: &Seal, call: &Call) -> pb::Seal {
    let request = seal.pending(call.app().config.seal_times(), call.now);
    let request_time = request.map(|request| Timestamp::from_micros(request.time_us));
    pb::Seal {
        sealed: !seal.is_open(call.now),
        requested_by: request.map_or_else(String::new, |request| request.by.to_string()),
        reason: request.map_or_else(String::new, |request| request.reason.clone()),
        request_time: convert::some_timestamp(request_time),
        unsealed_until_time: convert::some_timestamp(seal.unsealed_until_time),
    }
}

//! SystemAccountService.

use std::{collections::BTreeSet, sync::Arc};

use tonic::{Request, Response};

use super::{
    Reply, accounts,
    call::{Call, mutate},
    convert, pb,
    reach::View,
    scopes, seals,
};
use crate::{
    app::App,
    domain::{
        account::{self, State},
        error::{Error, Fields, Reason, Result},
        event::Event,
        filter,
        name::{self, SystemAccountId, UserId},
        network::{self, MAX_CIDRS},
        page,
        scope::{self, ScopeName},
        system_account::{Edit, Kind, MAX_DESCRIPTION, MAX_LIST, SystemAccount, WRITABLE},
        text,
        time::Timestamp,
        token,
        user::MAX_NAME,
    },
    store::{
        db::{Read, Write},
        events, grants,
        system_accounts::{self, Cursor, Query},
        users, within,
    },
};

/// What an account may do at most, which it does not decide itself.
const LIMITS: [&str; 4] = ["scope_ceiling", "audiences", "allowed_cidrs", "expire_time"];

pub(super) struct SystemAccounts {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::system_account_service_server::SystemAccountService for SystemAccounts {
    async fn create_system_account(
        &self,
        request: Request<pb::CreateSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.system_account.unwrap_or_default();
        let mut fields = Fields::new();
        let id = match request.system_account_id.as_str() {
            "" => call.new_uuid(),
            text => {
                let id = fields.take("system_account_id", name::chosen_uuid(text));
                id.unwrap_or_default()
            }
        };
        let kind = fields.take("system_account.kind", kind(input.kind()));
        let owner = fields.take("system_account.owner", owner(&call, &input.owner));
        let edits = edits(&mut fields, &WRITABLE, &input, call.now);
        fields.finish()?;
        let (Some(kind), Some(owner)) = (kind, owner) else {
            return Err(Error::internal("checked above").into());
        };
        let mut account = SystemAccount::new(SystemAccountId(id), kind, Some(owner), call.now);
        for edit in edits {
            account.edit(edit);
        }
        let account = mutate!(call, |tx| {
            require_owner(tx, owner, call.now).await?;
            accounts::require_free(tx, account.id.into()).await?;
            system_accounts::insert(tx, &account).await?;
            events::append(tx, &call.event().about_account(account.id)).await?;
            shown(&account, &call)
        })?;
        Ok(Response::new(account))
    }

    async fn get_system_account(
        &self,
        request: Request<pb::GetSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.system_account("name", &request.name)?;
        let account = find(&mut call.db().read().await?, id).await?;
        Ok(Response::new(shown(&account, &call)))
    }

    async fn list_system_accounts(
        &self,
        request: Request<pb::ListSystemAccountsRequest>,
    ) -> Reply<pb::ListSystemAccountsResponse> {
        let (call, request, view) = Call::enter_to_find(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let query = query(&request.filter, request.show_deleted)?;
        let flag = request.show_deleted.to_string();
        let context = call.page_context(&[&request.filter, &flag, &view.text()]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let (mut db, after) = (call.db().read().await?, after.as_ref());
        let rows = match &view {
            View::Everything => system_accounts::list(&mut db, &query, after, limit + 1).await,
            View::Groups(groups) => {
                within::system_accounts(&mut db, groups, call.now, &query, after, limit + 1).await
            }
        };
        let rows = rows.map_err(Error::from)?;
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, Cursor::after)?;
        let system_accounts = rows.iter().map(|account| shown(account, &call)).collect();
        Ok(Response::new(pb::ListSystemAccountsResponse {
            system_accounts,
            next_page_token,
        }))
    }

    async fn update_system_account(
        &self,
        request: Request<pb::UpdateSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.system_account.unwrap_or_default();
        let id = call.system_account("system_account.name", &input.name)?;
        let paths = convert::masked(request.update_mask.as_ref(), &WRITABLE, |path| {
            is_set(path, &input)
        })?;
        let mut fields = Fields::new();
        let edits = edits(&mut fields, &paths, &input, call.now);
        if call.caller.account() == Some(id.into()) {
            for path in paths.iter().filter(|path| LIMITS.contains(path)) {
                let text = "limits the account itself, so somebody else has to change it";
                fields.refuse(&format!("system_account.{path}"), text);
            }
        }
        fields.finish()?;
        let account = mutate!(call, |tx| {
            let mut account = find_for_change(tx, &call, id, &input.etag).await?;
            require_ours(&account)?;
            account
                .lifecycle
                .require(&[State::Active, State::Suspended], id, call.now)?;
            if edits.is_empty() {
                shown(&account, &call)
            } else {
                let before = account.limits.clone();
                let end = |it: &SystemAccount| it.lifecycle.expire_time.unwrap_or(Timestamp::MAX);
                let known_end = end(&account);
                for edit in edits.clone() {
                    account.edit(edit);
                }
                if end(&account) > known_end {
                    call.revives(tx, id).await?;
                }
                let limits = &account.limits;
                let field = "system_account.scope_ceiling";
                let lets_through = |name: &ScopeName| limits.permit(name) && !before.permit(name);
                let (known, ceiling) = (&before.scope_ceiling, &limits.scope_ceiling);
                call.require_own_ceiling(tx, known, ceiling).await?;
                let raised = require_to_raise(tx, &call, id, field, ceiling, lets_through).await?;
                call.gives(&raised);
                let event = call.event().about_account(id);
                store(tx, &call, account, event.changed(paths.iter().copied())).await?
            }
        })?;
        Ok(Response::new(account))
    }

    async fn suspend_system_account(
        &self,
        request: Request<pb::SuspendSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.system_account("name", &request.name)?;
        let mut fields = Fields::new();
        let reason = fields
            .take("reason", convert::reason(&request.reason))
            .unwrap_or_default();
        let until_time = convert::parse_time(request.until_time.as_ref())
            .and_then(|time| account::future(time, call.now));
        let until_time = fields.take("until_time", until_time).flatten();
        fields.finish()?;
        let account = mutate!(call, |tx| {
            let mut account = find_for_change(tx, &call, id, &request.etag).await?;
            account
                .lifecycle
                .require(&[State::Active, State::Suspended], id, call.now)?;
            if account.lifecycle.is_back_earlier(until_time, call.now) {
                require_to_come_back(tx, &call, &account).await?;
            }
            account.lifecycle.suspend(reason.clone(), until_time);
            account.seal.close();
            account.revoke_tokens(call.now);
            store(tx, &call, account, call.event().about_account(id)).await?
        })?;
        Ok(Response::new(account))
    }

    async fn resume_system_account(
        &self,
        request: Request<pb::ResumeSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.system_account("name", &request.name)?;
        let account = mutate!(call, |tx| {
            let mut account = find_for_change(tx, &call, id, &request.etag).await?;
            account
                .lifecycle
                .require(&[State::Suspended], id, call.now)?;
            require_to_come_back(tx, &call, &account).await?;
            account.lifecycle.resume();
            // One may have been issued while the suspension was on its way.
            account.revoke_tokens(call.now);
            store(tx, &call, account, call.event().about_account(id)).await?
        })?;
        Ok(Response::new(account))
    }

    async fn delete_system_account(
        &self,
        request: Request<pb::DeleteSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.system_account("name", &request.name)?;
        let retention_s = call.app().config.retention.deleted_accounts_s;
        let account = mutate!(call, |tx| {
            let mut account = find_for_change(tx, &call, id, &request.etag).await?;
            require_ours(&account)?;
            account
                .lifecycle
                .require(&[State::Active, State::Suspended], id, call.now)?;
            if account.lifecycle.state_at(call.now) == State::Suspended {
                // Undeleting ends a suspension, too.
                call.require("system_accounts.suspend")?;
            }
            account.lifecycle.delete(call.now, retention_s);
            account.seal.close();
            account.revoke_tokens(call.now);
            store(tx, &call, account, call.event().about_account(id)).await?
        })?;
        Ok(Response::new(account))
    }

    async fn undelete_system_account(
        &self,
        request: Request<pb::UndeleteSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.system_account("name", &request.name)?;
        let account = mutate!(call, |tx| {
            let mut account = find_for_change(tx, &call, id, &request.etag).await?;
            account.lifecycle.require(&[State::Deleted], id, call.now)?;
            call.revives(tx, id).await?;
            account.lifecycle.undelete();
            account.revoke_tokens(call.now);
            store(tx, &call, account, call.event().about_account(id)).await?
        })?;
        Ok(Response::new(account))
    }

    async fn transfer_system_account(
        &self,
        request: Request<pb::TransferSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.system_account("name", &request.name)?;
        let mut fields = Fields::new();
        let owner = fields.take("owner", owner(&call, &request.owner));
        fields.finish()?;
        let owner = owner.ok_or_else(|| Error::internal("checked above"))?;
        let account = mutate!(call, |tx| {
            let mut account = find_for_change(tx, &call, id, &request.etag).await?;
            require_ours(&account)?;
            account
                .lifecycle
                .require(&[State::Active, State::Suspended], id, call.now)?;
            require_owner(tx, owner, call.now).await?;
            account.owner = Some(owner);
            let event = call.event().about_account(id).detail("owner", owner);
            store(tx, &call, account, event).await?
        })?;
        Ok(Response::new(account))
    }

    async fn unseal_system_account(
        &self,
        request: Request<pb::UnsealSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(seals::unseal(&call, request).await?))
    }

    async fn seal_system_account(
        &self,
        request: Request<pb::SealSystemAccountRequest>,
    ) -> Reply<pb::SystemAccount> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(seals::seal(&call, request).await?))
    }
}

async fn find(db: &mut Read, id: SystemAccountId) -> Result<SystemAccount> {
    system_accounts::find(db, id)
        .await?
        .ok_or_else(|| Error::not_found(id.to_string()))
}

/// The account as it is, for a caller who may change it and knows its present state.
pub(super) async fn find_for_change(
    tx: &mut Write,
    call: &Call,
    id: SystemAccountId,
    etag: &str,
) -> Result<SystemAccount> {
    let account = find(tx, id).await?;
    call.require_power_over(tx, id).await?;
    convert::require_etag(etag, account.revision, id)?;
    Ok(account)
}

/// Stores a changed account with its event.
pub(super) async fn store(
    tx: &mut Write,
    call: &Call,
    mut account: SystemAccount,
    event: Event,
) -> Result<pb::SystemAccount> {
    account.touch(call.now);
    system_accounts::update(tx, &account).await?;
    events::append(tx, &event).await?;
    Ok(shown(&account, call))
}

/// Refuses to change what accountd made for itself.
pub(super) fn require_ours(account: &SystemAccount) -> Result<()> {
    if !account.built_in() {
        return Ok(());
    }
    let text = "was made by accountd for itself";
    Err(Error::precondition(
        Reason::BuiltIn,
        account.id.to_string(),
        text,
    ))
}

/// Whoever answers for an account has to be there.
async fn require_owner(db: &mut Read, owner: UserId, now: Timestamp) -> Result<()> {
    let user = users::find(db, owner).await?;
    let user = user.ok_or_else(|| Error::not_found(owner.to_string()))?;
    user.lifecycle
        .require(&[State::Active, State::Suspended], owner, now)?;
    if user.lifecycle.is_over(now) {
        let (name, text) = (owner.to_string(), "has expired");
        return Err(Error::precondition(Reason::WrongState, name, text));
    }
    Ok(())
}

fn kind(kind: pb::system_account::Kind) -> Result<Kind, String> {
    use pb::system_account::Kind as PbKind;
    match kind {
        PbKind::Service => Ok(Kind::Service),
        PbKind::Privileged => Ok(Kind::Privileged),
        PbKind::BreakGlass => Ok(Kind::BreakGlass),
        PbKind::Unspecified => Err("is required: SERVICE, PRIVILEGED or BREAK_GLASS".to_owned()),
    }
}

fn owner(call: &Call, name: &str) -> Result<UserId, String> {
    call.user("owner", name)
        .map_err(|_| "is required: users/{uid}".to_owned())
}

/// Whoever raises a ceiling gives what is granted above it: refuses unless the caller may. What that is.
pub(super) async fn require_to_raise(
    db: &mut Read,
    call: &Call,
    id: SystemAccountId,
    field: &str,
    ceiling: &[String],
    lets_through: impl Fn(&ScopeName) -> bool,
) -> Result<Vec<ScopeName>> {
    let mut raised = BTreeSet::new();
    let power = grants::power(db, id.into(), None, call.now).await?;
    for name in power.scopes() {
        // What is held for everything may be let through for some resources only.
        let parts = ceiling.iter().map(|scope| ScopeName {
            audience: name.audience.clone(),
            scope: scope.clone(),
        });
        let parts = parts.filter(|part| name.covers(part));
        raised.extend(parts.chain([name.clone()]).filter(|it| lets_through(it)));
    }
    let found = scopes::find_all(db, &raised).await?;
    call.require_to_grant(db, &found, None, field).await?;
    Ok(raised.into_iter().collect())
}

/// Somebody has to answer for an account that is to act again.
async fn require_to_come_back(tx: &mut Write, call: &Call, account: &SystemAccount) -> Result<()> {
    if let Some(owner) = account.owner {
        require_owner(tx, owner, call.now).await?;
    }
    call.revives(tx, account.id).await
}

fn is_set(path: &str, account: &pb::SystemAccount) -> bool {
    match path {
        "display_name" => !account.display_name.is_empty(),
        "description" => !account.description.is_empty(),
        "scope_ceiling" => !account.scope_ceiling.is_empty(),
        "audiences" => !account.audiences.is_empty(),
        "allowed_cidrs" => !account.allowed_cidrs.is_empty(),
        "expire_time" => account.expire_time.is_some(),
        _ => false,
    }
}

/// The named fields of a message as edits; what is wrong with them goes to `fields`.
fn edits(
    fields: &mut Fields,
    paths: &[&str],
    input: &pb::SystemAccount,
    now: Timestamp,
) -> Vec<Edit> {
    let required_audience = |text: &str| match text {
        "" => Err("must not hold an empty audience".to_owned()),
        text => token::audience(text),
    };
    let edit = |path: &str| -> Result<Edit, String> {
        Ok(match path {
            "display_name" => {
                Edit::DisplayName(text::required_line(&input.display_name, MAX_NAME)?)
            }
            "description" => Edit::Description(text::lines(&input.description, MAX_DESCRIPTION)?),
            "scope_ceiling" => {
                Edit::ScopeCeiling(convert::list(&input.scope_ceiling, MAX_LIST, scope::parse)?)
            }
            "audiences" => Edit::Audiences(convert::list(
                &input.audiences,
                MAX_LIST,
                required_audience,
            )?),
            "allowed_cidrs" => Edit::AllowedCidrs(convert::list(
                &input.allowed_cidrs,
                MAX_CIDRS,
                network::parse_cidr,
            )?),
            "expire_time" => {
                let time = convert::parse_time(input.expire_time.as_ref())?;
                Edit::ExpireTime(account::future(time, now)?)
            }
            path => return Err(format!("has no field {path}")),
        })
    };
    let name = |path: &str| format!("system_account.{path}");
    paths
        .iter()
        .filter_map(|path| fields.take(&name(path), edit(path)))
        .collect()
}

fn shown(account: &SystemAccount, call: &Call) -> pb::SystemAccount {
    use pb::system_account::{Kind as PbKind, State as PbState};
    let (state, limits) = (&account.lifecycle, &account.limits);
    pb::SystemAccount {
        name: account.id.to_string(),
        uid: account.id.0.to_string(),
        etag: convert::etag(account.revision),
        state: match state.state_at(call.now) {
            State::Active => PbState::Active,
            State::Suspended => PbState::Suspended,
            State::Deleted => PbState::Deleted,
        }
        .into(),
        state_reason: state.reason.clone(),
        state_until_time: convert::some_timestamp(state.until_time),
        kind: match account.kind {
            Kind::Service => PbKind::Service,
            Kind::Privileged => PbKind::Privileged,
            Kind::BreakGlass => PbKind::BreakGlass,
        }
        .into(),
        built_in: account.built_in(),
        display_name: account.display_name.clone(),
        description: account.description.clone(),
        owner: account
            .owner
            .map(|owner| owner.to_string())
            .unwrap_or_default(),
        scope_ceiling: limits.scope_ceiling.clone(),
        audiences: limits.audiences.clone(),
        allowed_cidrs: limits
            .allowed_cidrs
            .iter()
            .map(ToString::to_string)
            .collect(),
        create_time: Some(convert::timestamp(account.create_time)),
        update_time: Some(convert::timestamp(account.update_time)),
        last_used_time: convert::some_timestamp(account.last_used_time),
        expire_time: convert::some_timestamp(state.expire_time),
        delete_time: convert::some_timestamp(state.delete_time),
        purge_time: convert::some_timestamp(state.purge_time),
        seal: (account.kind == Kind::BreakGlass).then(|| seals::shown(&account.seal, call)),
    }
}

/// Which system accounts a list is about.
fn query(filter: &str, show_deleted: bool) -> Result<Query> {
    let offered = &[
        ("state", filter::EQUAL),
        ("kind", filter::EQUAL),
        ("owner", filter::EQUAL),
    ];
    let mut query = Query {
        state: None,
        show_deleted,
        kind: None,
        owner: None,
    };
    for term in filter::parse(filter, offered)? {
        match term.field {
            "state" => {
                let state = State::parse(&term.value);
                query.state = Some(filter::value(&term, state, "ACTIVE, SUSPENDED or DELETED")?);
            }
            "kind" => {
                let kind = Kind::parse(&term.value);
                query.kind = Some(filter::value(
                    &term,
                    kind,
                    "SERVICE, PRIVILEGED or BREAK_GLASS",
                )?);
            }
            _ => {
                let owner = term
                    .value
                    .strip_prefix("users/")
                    .and_then(name::uuid)
                    .map(UserId);
                query.owner = Some(filter::value(&term, owner, "users/{uid}")?);
            }
        }
    }
    Ok(query)
}

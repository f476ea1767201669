//! ChangeService.

use std::sync::{Arc, LazyLock};

use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage as _, Value};
use tonic::{Request, Response};
use zeroize::Zeroizing;

use super::{
    DESCRIPTORS, Reply,
    call::{Call, mutate},
    consent::{Commission, Purpose},
    convert, pb,
};
use crate::{
    app::App,
    domain::{
        change::{APPROVE, Change, State},
        error::{Error, Reason, Result},
        filter,
        name::{AccountId, ChangeId},
        page,
        time::Timestamp,
    },
    store::{
        changes::{self, Cursor, Query},
        db::Read,
        events, system_accounts,
    },
};

pub(super) struct Changes {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::change_service_server::ChangeService for Changes {
    async fn get_change(&self, request: Request<pb::GetChangeRequest>) -> Reply<pb::Change> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = parse_id(&request.name)?;
        let scopes = [READ, APPROVE];
        let change = find_visible(&mut call.db().read().await?, &call, id, &scopes).await?;
        Ok(Response::new(shown(call.app(), &change, call.now)?))
    }

    async fn list_changes(
        &self,
        request: Request<pb::ListChangesRequest>,
    ) -> Reply<pb::ListChangesResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let mut query = query(&request.filter)?;
        let context = call.page_context(&[&request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let after = after.map(|Cursor(id)| id).unwrap_or_default();
        let sees_all = [READ, APPROVE].iter().any(|scope| call.caller.holds(scope));
        let own = call.caller.account().filter(|_| !sees_all);
        let is_of_others = own.is_some() && query.proposer.is_some_and(|it| Some(it) != own);
        query.proposer = own.or(query.proposer);
        let rows = if is_of_others {
            Vec::new()
        } else {
            let mut db = call.db().read().await?;
            let rows = changes::list(&mut db, &query, after, limit + 1, call.now).await;
            rows.map_err(Error::from)?
        };
        let cursor = |change: &Change| Cursor(change.id.0);
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, cursor)?;
        let changes = rows.iter().map(|it| summary(it, call.now)).collect();
        Ok(Response::new(pb::ListChangesResponse {
            changes,
            next_page_token,
        }))
    }

    async fn approve_change(
        &self,
        request: Request<pb::ApproveChangeRequest>,
    ) -> Reply<pb::Change> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = parse_id(&request.name)?;
        let reason = convert::reason(&request.reason);
        let reason = reason.map_err(|text| Error::field("reason", text))?;
        if let Some(first) = call.first_answer().await? {
            return Ok(Response::new(first));
        }
        let mut db = call.db().read().await?;
        let change = find_to_approve(&mut db, &call, id, &request.etag).await?;
        let max_age_s = call.app().config.tokens.sensitive_max_age_s;
        call.require_own_proof(&mut db, max_age_s).await?;
        drop(db);
        let call = Arc::new(call);
        let commission = |purpose| Commission {
            approver: Arc::clone(&call),
            change: change.clone(),
            reason: reason.clone(),
            purpose,
        };
        commission(Purpose::Rehearsal).carry_out(&self.app).await?;
        if change.is_last_approval() {
            if change.first_claims.is_some() {
                commission(Purpose::Recheck).carry_out(&self.app).await?;
            }
            if let Err(refusal) = commission(Purpose::Execution).carry_out(&self.app).await {
                // What another attempt of the same request has meanwhile done.
                return match call.first_answer().await {
                    Ok(Some(first)) => Ok(Response::new(first)),
                    _ => Err(refusal),
                };
            }
            let mut done = change.clone();
            done.end(State::Approved, call.by(), reason, call.now);
            return Ok(Response::new(shown(call.app(), &done, call.now)?));
        }
        let change = mutate!(call, |tx| {
            let known = change.revision;
            let mut change = find_to_approve(tx, &call, id, &request.etag).await?;
            require_revision(&change, known)?;
            let claims = call.claims.clone();
            let claims = claims.ok_or(Error::Unauthenticated(Reason::TokenMissing))?;
            change.approve_first(claims, reason.clone());
            changes::update(tx, &change).await?;
            events::append(tx, &change.tell(call.event())).await?;
            shown(call.app(), &change, call.now)?
        })?;
        Ok(Response::new(change))
    }

    async fn deny_change(&self, request: Request<pb::DenyChangeRequest>) -> Reply<pb::Change> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = parse_id(&request.name)?;
        let reason = convert::reason(&request.reason);
        let reason = reason.map_err(|text| Error::field("reason", text))?;
        let change = mutate!(call, |tx| {
            let mut change = find_visible(tx, &call, id, &[APPROVE]).await?;
            convert::require_etag(&request.etag, change.revision, id)?;
            require_pending(&change, call.now)?;
            call.end_change(&mut change, State::Denied, reason.clone(), call.now)?;
            changes::update(tx, &change).await?;
            events::append(tx, &change.tell(call.event())).await?;
            shown(call.app(), &change, call.now)?
        })?;
        Ok(Response::new(change))
    }
}

/// The scope of those who see all of them.
const READ: &str = "changes.read";

/// A change that the caller has asked for, or holds one of the scopes for.
async fn find_visible(db: &mut Read, call: &Call, id: ChangeId, scopes: &[&str]) -> Result<Change> {
    let change = changes::find(db, id).await?;
    let holds = scopes.iter().any(|scope| call.caller.holds(scope));
    let change = change.filter(|it| holds || call.caller.account() == Some(it.proposer()));
    change.ok_or_else(|| Error::not_found(id.to_string()))
}

/// A change that still waits, whatever has happened since the caller read it.
pub(super) async fn find_pending(db: &mut Read, call: &Call, id: ChangeId) -> Result<Change> {
    let change = changes::find(db, id).await?;
    let change = change.ok_or_else(|| Error::not_found(id.to_string()))?;
    require_pending(&change, call.now)?;
    Ok(change)
}

/// A change that waits for somebody like the caller: a person, who has not asked for it, neither themselves nor by a
/// program of theirs, and has not agreed yet.
async fn find_to_approve(db: &mut Read, call: &Call, id: ChangeId, etag: &str) -> Result<Change> {
    let change = find_pending(db, call, id).await?;
    let not_approver = || Error::Denied {
        reason: Reason::NotApprover,
        scopes: Vec::new(),
    };
    let Some(AccountId::User(by)) = call.caller.account() else {
        return Err(not_approver());
    };
    let is_own = match change.proposer() {
        AccountId::User(proposer) => proposer == by,
        AccountId::System(program) => {
            let program = system_accounts::find(db, program).await?;
            program.is_none_or(|program| program.owner == Some(by))
        }
    };
    if is_own || change.has_agreed(by) {
        return Err(not_approver());
    }
    convert::require_etag(etag, change.revision, id)?;
    Ok(change)
}

/// Nobody else was faster.
pub(super) fn require_revision(change: &Change, known: i64) -> Result<()> {
    if change.revision == known {
        return Ok(());
    }
    Err(Error::Stale {
        name: change.id.to_string(),
    })
}

fn require_pending(change: &Change, now: Timestamp) -> Result<()> {
    match change.state(now) {
        State::Pending => Ok(()),
        state => {
            let text = format!("is {}", state.name());
            Err(Error::precondition(
                Reason::WrongState,
                change.id.to_string(),
                text,
            ))
        }
    }
}

fn parse_id(name: &str) -> Result<ChangeId> {
    ChangeId::parse(name).ok_or_else(|| Error::field("name", "must be changes/{id}"))
}

/// Which changes a list is about.
fn query(filter: &str) -> Result<Query> {
    let offered = &[("state", filter::EQUAL), ("proposed_by", filter::EQUAL)];
    let mut query = Query::default();
    for term in filter::parse(filter, offered)? {
        if term.field == "state" {
            let names = State::ALL.map(State::name).join(", ");
            let expected = format!("one of {names}");
            query.state = Some(filter::value(&term, State::parse(&term.value), &expected)?);
        } else {
            let expected = "users/{uid} or systemAccounts/{uid}";
            let account = AccountId::parse(&term.value);
            query.proposer = Some(filter::value(&term, account, expected)?);
        }
    }
    Ok(query)
}

/// A change with what was asked for, which has to be shown before anybody agrees.
pub(super) fn shown(app: &App, change: &Change, now: Timestamp) -> Result<pb::Change> {
    Ok(pb::Change {
        // An update may have taken the RPC away.
        request: request_shown(&change.rpc, &request(app, change)?),
        ..summary(change, now)
    })
}

fn summary(change: &Change, now: Timestamp) -> pb::Change {
    use pb::change::State as Shown;
    let state = change.state(now);
    let decided_by = || change.decided_by.clone();
    let mut approved_by = vec![change.first_approver.clone()];
    approved_by.extend((state == State::Approved).then(decided_by));
    approved_by.retain(|name| !name.is_empty());
    let waits = state == State::Pending;
    pb::Change {
        name: change.id.to_string(),
        etag: convert::etag(change.revision),
        rpc: change.rpc.trim_start_matches('/').to_owned(),
        request: None,
        proposed_by: change.proposer().to_string(),
        state: match state {
            State::Pending => Shown::Pending,
            State::Approved => Shown::Approved,
            State::Denied => Shown::Denied,
            State::Lapsed => Shown::Lapsed,
        }
        .into(),
        approved_by,
        approvals_required: change.approvals_required(),
        create_time: Some(convert::timestamp(change.create_time)),
        expire_time: convert::some_timestamp(change.next_time.filter(|_| waits)),
        denied_by: if state == State::Denied {
            decided_by()
        } else {
            String::new()
        },
        decide_reason: change.decide_reason.clone(),
        end_time: convert::some_timestamp(change.ended(now)),
        proof: change.proof().name(change.proposer()),
        ip_address: change.address.map(|it| it.to_string()).unwrap_or_default(),
    }
}

/// Encrypts a request for the change that it becomes.
pub(super) fn seal(app: &App, id: ChangeId, request: &[u8]) -> Vec<u8> {
    let nonce = app.random.bytes();
    app.keys.changes.seal(nonce, id.0.as_bytes(), request)
}

/// What was asked for, as it was sent; without its secrets once the change is over.
pub(super) fn request(app: &App, change: &Change) -> Result<Zeroizing<Vec<u8>>> {
    let id = change.id.0;
    let request = app.keys.changes.open(id.as_bytes(), &change.request);
    request.ok_or_else(|| Error::internal("a change does not open"))
}

/// A request as JSON has it, without its secrets; `None` where there is no such RPC, or JSON has no form for it.
pub(super) fn request_shown(rpc: &str, request: &[u8]) -> Option<prost_types::Struct> {
    let json = serde_json::to_string(&without_secrets(rpc, request)?).ok()?;
    convert::from_json_text(&json)
}

/// A request without its secrets; `None` where there is no such RPC.
pub(super) fn without_secrets(rpc: &str, request: &[u8]) -> Option<DynamicMessage> {
    static POOL: LazyLock<DescriptorPool> =
        LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).expect("the build made them"));
    let (service, method) = rpc.trim_start_matches('/').split_once('/')?;
    let service = POOL.get_service_by_name(service)?;
    let method = service.methods().find(|it| it.name() == method)?;
    let mut message = DynamicMessage::decode(method.input(), request).ok()?;
    withhold_secrets(&mut message);
    Some(message)
}

/// Clears whatever the protos mark as secret, at any depth.
fn withhold_secrets(message: &mut DynamicMessage) {
    let fields: Vec<_> = message.descriptor().fields().collect();
    for field in fields {
        let options = field.options();
        let redact = options.get_field_by_name("debug_redact");
        if redact.is_some_and(|it| it.as_bool() == Some(true)) {
            message.clear_field(&field);
            continue;
        }
        if !message.has_field(&field) {
            continue;
        }
        match message.get_field_mut(&field) {
            Value::Message(inner) => withhold_secrets(inner),
            Value::List(list) => {
                for item in list {
                    if let Value::Message(inner) = item {
                        withhold_secrets(inner);
                    }
                }
            }
            Value::Map(map) => {
                for item in map.values_mut() {
                    if let Value::Message(inner) = item {
                        withhold_secrets(inner);
                    }
                }
            }
            _ => {}
        }
    }
}

//! ElevationService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    Reply, accounts,
    call::{Call, mutate},
    convert,
    entitlements::{self, MIN_DURATION_S, READ},
    grants as give, pb, principals, roles,
};
use crate::{
    app::App,
    domain::{
        elevation::{
            self, Elevation, Entitlement, MAX_DURATION_S, MAX_TICKET, State, is_one_person,
        },
        error::{Error, Fields, Reason, Result},
        filter,
        grant::{Grant, Permission},
        name::{AccountId, ElevationId, GrantId},
        page, text,
        time::Window,
        user::MAX_REASON,
    },
    store::{
        self,
        db::{Read, Write},
        elevations::{self, Cursor, Query},
        events, grants, groups, sessions, system_accounts,
    },
};

pub(super) struct Elevations {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::elevation_service_server::ElevationService for Elevations {
    async fn create_entitlement(
        &self,
        request: Request<pb::CreateEntitlementRequest>,
    ) -> Reply<pb::Entitlement> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(entitlements::create(&call, request).await?))
    }

    async fn get_entitlement(
        &self,
        request: Request<pb::GetEntitlementRequest>,
    ) -> Reply<pb::Entitlement> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(entitlements::get(&call, &request).await?))
    }

    async fn list_entitlements(
        &self,
        request: Request<pb::ListEntitlementsRequest>,
    ) -> Reply<pb::ListEntitlementsResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(entitlements::list(&call, &request).await?))
    }

    async fn update_entitlement(
        &self,
        request: Request<pb::UpdateEntitlementRequest>,
    ) -> Reply<pb::Entitlement> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(entitlements::update(&call, request).await?))
    }

    async fn delete_entitlement(
        &self,
        request: Request<pb::DeleteEntitlementRequest>,
    ) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        entitlements::delete(&call, &request).await?;
        Ok(Response::new(()))
    }

    async fn request_elevation(
        &self,
        request: Request<pb::RequestElevationRequest>,
    ) -> Reply<pb::Elevation> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let mut fields = Fields::new();
        let id = entitlements::parse_id(&request.entitlement);
        let id = fields.take("entitlement", id);
        let duration_s = convert::parse_seconds(request.duration.as_ref(), MAX_DURATION_S);
        let duration_s = duration_s.and_then(|seconds| match seconds {
            Some(seconds) if seconds < MIN_DURATION_S => {
                Err(format!("must be at least {MIN_DURATION_S} s"))
            }
            seconds => Ok(seconds),
        });
        let duration_s = fields.take("duration", duration_s);
        let justification = text::lines(&request.justification, MAX_REASON);
        let justification = justification.and_then(|text| {
            let is_empty = text.trim().is_empty();
            (!is_empty).then_some(text).ok_or("is required".to_owned())
        });
        let justification = fields.take("justification", justification);
        let ticket = fields.take("ticket", text::line(&request.ticket, MAX_TICKET));
        fields.finish()?;
        let (Some(id), Some(duration_s), Some(justification), Some(ticket)) =
            (id, duration_s, justification, ticket)
        else {
            return Err(Error::internal("checked above").into());
        };
        let requester = call.caller.account();
        let requester = requester.ok_or(Error::Unauthenticated(Reason::TokenMissing))?;
        let lapse_s = call.app().config.elevation.request_s;
        let elevation = mutate!(call, |tx| {
            let entitlement = store::entitlements::find(tx, id).await?;
            let own = principals::of_caller(tx, &call).await?;
            let entitlement = entitlement.filter(|it| own.contains_key(&it.principal));
            let missing = || Error::not_found(request.entitlement.clone());
            let entitlement = entitlement.ok_or_else(missing)?;
            require_live(&entitlement, &call)?;
            let duration_s = duration_s.unwrap_or(entitlement.max_duration_s);
            require_terms(&entitlement, duration_s, &ticket)?;
            if entitlement.needs_step_up {
                let max_age_s = call.app().config.tokens.sensitive_max_age_s;
                call.require_own_proof(tx, max_age_s).await?;
            }
            if elevations::find_open(tx, requester, id, call.now)
                .await?
                .is_some()
            {
                let text = "has a request that waits, or what came of it is in effect";
                let name = entitlement.id.to_string();
                return Err(Error::precondition(Reason::WrongState, name, text));
            }
            let mut elevation = Elevation {
                id: ElevationId(call.new_uuid()),
                revision: 1,
                entitlement: id,
                requester,
                role: entitlement.role.clone(),
                stored: State::Pending,
                justification: justification.clone(),
                ticket: ticket.clone(),
                duration_s,
                create_time: call.now,
                next_time: Some(call.now.plus_s(lapse_s)),
                decided_by: String::new(),
                decide_reason: String::new(),
                decide_time: None,
                grant: None,
                end_time: None,
            };
            append_event(tx, &call, &elevation).await?;
            if entitlement.approvers.is_empty() {
                begin(tx, &call, &entitlement, &mut elevation, "").await?;
                let event = elevation.tell(call.event_of("elevation.started"));
                events::append(tx, &event).await?;
            }
            elevations::insert(tx, &elevation).await?;
            shown(&elevation, &call)
        })?;
        Ok(Response::new(elevation))
    }

    async fn approve_elevation(
        &self,
        request: Request<pb::ApproveElevationRequest>,
    ) -> Reply<pb::Elevation> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let answer = Decision::parse(&request.name, &request.reason, request.etag)?;
        let elevation = mutate!(call, |tx| {
            let (mut elevation, entitlement) = answer.find(tx, &call).await?;
            require_to_agree(tx, &call, &elevation.role).await?;
            require_live(&entitlement, &call)?;
            if require_terms(&entitlement, elevation.duration_s, &elevation.ticket).is_err() {
                let text = "does not let that be asked for any more";
                let name = entitlement.id.to_string();
                return Err(Error::precondition(Reason::WrongState, name, text));
            }
            require_entitled(tx, &call, &entitlement, elevation.requester).await?;
            begin(tx, &call, &entitlement, &mut elevation, &answer.reason).await?;
            store_changed(tx, &call, elevation).await?
        })?;
        Ok(Response::new(elevation))
    }

    async fn deny_elevation(
        &self,
        request: Request<pb::DenyElevationRequest>,
    ) -> Reply<pb::Elevation> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let answer = Decision::parse(&request.name, &request.reason, request.etag)?;
        let elevation = mutate!(call, |tx| {
            let (mut elevation, _) = answer.find(tx, &call).await?;
            elevation.deny(call.by(), answer.reason.clone(), call.now);
            store_changed(tx, &call, elevation).await?
        })?;
        Ok(Response::new(elevation))
    }

    async fn end_elevation(
        &self,
        request: Request<pb::EndElevationRequest>,
    ) -> Reply<pb::Elevation> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = parse_id(&request.name)?;
        let elevation = mutate!(call, |tx| {
            let mut elevation = find_visible(tx, &call, id).await?;
            if call.caller.account() != Some(elevation.requester)
                && !is_approver(tx, &call, &elevation).await?
            {
                call.require(WRITE)?;
                let until = Some(call.now);
                roles::require_to_grant(tx, &call, &elevation.role, until, "name").await?;
            }
            convert::require_etag(&request.etag, elevation.revision, elevation.id)?;
            let state = elevation.state(call.now);
            if !matches!(state, State::Pending | State::Active) {
                return Err(wrong_state(&elevation, state));
            }
            if let Some(grant) = elevation.grant.filter(|_| state == State::Active) {
                end_grant(tx, &call, grant, elevation.requester).await?;
            }
            elevation.end(State::Ended, call.now);
            store_changed(tx, &call, elevation).await?
        })?;
        Ok(Response::new(elevation))
    }

    async fn get_elevation(
        &self,
        request: Request<pb::GetElevationRequest>,
    ) -> Reply<pb::Elevation> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = parse_id(&request.name)?;
        let elevation = find_visible(&mut call.db().read().await?, &call, id).await?;
        Ok(Response::new(shown(&elevation, &call)))
    }

    async fn list_elevations(
        &self,
        request: Request<pb::ListElevationsRequest>,
    ) -> Reply<pb::ListElevationsResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let query = Query {
            seen_by: call.caller.account().filter(|_| !call.caller.holds(READ)),
            ..query(&request.filter)?
        };
        let context = call.page_context(&[&request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let after = after.map(|Cursor(id)| id).unwrap_or_default();
        let mut db = call.db().read().await?;
        let rows = elevations::list(&mut db, &query, after, limit + 1, call.now).await;
        let rows = rows.map_err(Error::from)?;
        let cursor = |elevation: &Elevation| Cursor(elevation.id.0);
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, cursor)?;
        let elevations = rows.iter().map(|it| shown(it, &call)).collect();
        Ok(Response::new(pb::ListElevationsResponse {
            elevations,
            next_page_token,
        }))
    }
}

/// The scope of those who say who may ask, and who end what came of it.
const WRITE: &str = "elevations.write";

/// What somebody says to a request.
struct Decision {
    id: ElevationId,
    reason: String,
    etag: String,
}

impl Decision {
    fn parse(name: &str, reason: &str, etag: String) -> Result<Self> {
        let reason = convert::reason(reason).map_err(|text| Error::field("reason", text))?;
        Ok(Self {
            id: parse_id(name)?,
            reason,
            etag,
        })
    }

    /// The request, which has to wait for an answer that the caller may give; and its entitlement.
    async fn find(&self, db: &mut Read, call: &Call) -> Result<(Elevation, Entitlement)> {
        let elevation = find_visible(db, call, self.id).await?;
        let not_approver = || Error::Denied {
            reason: Reason::NotApprover,
            scopes: Vec::new(),
        };
        let by = call.caller.account().ok_or_else(not_approver)?;
        if !is_approver(db, call, &elevation).await? || is_own(db, by, elevation.requester).await? {
            return Err(not_approver());
        }
        convert::require_etag(&self.etag, elevation.revision, elevation.id)?;
        let state = elevation.state(call.now);
        if state != State::Pending {
            return Err(wrong_state(&elevation, state));
        }
        let entitlement = entitlements::find(db, elevation.entitlement).await?;
        Ok((elevation, entitlement))
    }
}

fn wrong_state(elevation: &Elevation, state: State) -> Error {
    let text = format!("is {}", state.name());
    Error::precondition(Reason::WrongState, elevation.id.to_string(), text)
}

/// An elevation that the caller may see.
async fn find_visible(db: &mut Read, call: &Call, id: ElevationId) -> Result<Elevation> {
    let missing = || Error::not_found(id.to_string());
    let elevation = elevations::find(db, id).await?.ok_or_else(missing)?;
    let is_visible = call.caller.holds(READ)
        || call.caller.holds(WRITE)
        || call.caller.account() == Some(elevation.requester)
        || is_approver(db, call, &elevation).await?;
    if is_visible {
        Ok(elevation)
    } else {
        Err(missing())
    }
}

async fn is_approver(db: &mut Read, call: &Call, elevation: &Elevation) -> Result<bool> {
    let Some(entitlement) = store::entitlements::find(db, elevation.entitlement).await? else {
        return Ok(false);
    };
    let own = principals::of_caller(db, call).await?;
    Ok(entitlement.approvers.iter().any(|it| own.contains_key(it)))
}

/// A program agrees by what nobody else has, and to nothing that its own tokens could not have.
async fn require_to_agree(db: &mut Read, call: &Call, role: &str) -> Result<()> {
    let Some(confines) = call.confines(db, call.principal()?).await? else {
        return Ok(());
    };
    let max_age_s = call.app().config.tokens.sensitive_max_age_s;
    call.require_own_proof(db, max_age_s).await?;
    let scopes = roles::find(db, role).await?.scopes;
    match scopes.iter().find(|scope| !confines.permit(scope)) {
        None => Ok(()),
        Some(scope) => Err(Error::Denied {
            reason: Reason::NotApprover,
            scopes: vec![scope.to_string()],
        }),
    }
}

/// Whether two accounts stand for one person.
async fn is_own(db: &mut Read, one: AccountId, other: AccountId) -> Result<bool> {
    let owner_of_one = owner(db, one).await?;
    let owner_of_other = owner(db, other).await?;
    Ok(is_one_person((one, owner_of_one), (other, owner_of_other)))
}

async fn owner(db: &mut Read, account: AccountId) -> Result<Option<AccountId>> {
    let AccountId::System(id) = account else {
        return Ok(None);
    };
    let found = system_accounts::find(db, id).await?;
    Ok(found.and_then(|found| found.owner).map(AccountId::User))
}

fn require_live(entitlement: &Entitlement, call: &Call) -> Result<()> {
    if entitlement.is_over(call.now) {
        let text = "is over";
        let name = entitlement.id.to_string();
        return Err(Error::precondition(Reason::WrongState, name, text));
    }
    Ok(())
}

/// Refuses what the entitlement does not let be asked for.
fn require_terms(entitlement: &Entitlement, duration_s: i64, ticket: &str) -> Result<()> {
    let mut fields = Fields::new();
    if duration_s > entitlement.max_duration_s {
        let text = format!("must be at most {} s", entitlement.max_duration_s);
        fields.refuse("duration", &text);
    }
    if entitlement.needs_ticket && ticket.is_empty() {
        fields.refuse("ticket", "is required");
    }
    fields.finish()
}

/// Whoever asked has to be somebody who could ask now.
async fn require_entitled(
    db: &mut Read,
    call: &Call,
    entitlement: &Entitlement,
    requester: AccountId,
) -> Result<()> {
    let may_act = match requester {
        AccountId::User(_) => accounts::state(db, requester).await?.may_act(call.now),
        AccountId::System(id) => {
            let found = system_accounts::find(db, id).await?;
            found.is_some_and(|account| account.may_act(call.now))
        }
    };
    let principals = groups::principals(db, requester, call.now).await?;
    let text = if !may_act {
        "is not active"
    } else if !principals.contains_key(&entitlement.principal) {
        "is not entitled any more"
    } else {
        return Ok(());
    };
    let name = requester.to_string();
    Err(Error::precondition(Reason::WrongState, name, text))
}

/// Grants what was asked for, from now on.
async fn begin(
    tx: &mut Write,
    call: &Call,
    entitlement: &Entitlement,
    elevation: &mut Elevation,
    reason: &str,
) -> Result<()> {
    let principals = groups::principals(tx, elevation.requester, call.now).await?;
    let ends = [
        Some(call.now.plus_s(elevation.duration_s)),
        entitlement.expire_time,
        principals.get(&entitlement.principal).copied(),
    ];
    let end = ends.into_iter().flatten().min().unwrap_or(call.now);
    let grant = Grant {
        id: GrantId(call.new_uuid()),
        revision: 1,
        principal: elevation.requester.into(),
        permission: Permission::Role(elevation.role.clone()),
        resource: String::new(),
        reason: elevation.justification.clone(),
        granted_by: call.by(),
        create_time: call.now,
        window: Window {
            start: None,
            end: Some(end),
        },
        elevation: Some(elevation.id),
        needs_step_up: entitlement.needs_step_up,
    };
    give::insert(tx, call, &grant).await?;
    elevation.begin(call.by(), reason.to_owned(), grant.id, end, call.now);
    Ok(())
}

/// The grant is over, and what tokens have of it.
async fn end_grant(
    tx: &mut Write,
    call: &Call,
    grant: GrantId,
    requester: AccountId,
) -> Result<()> {
    if let Some(mut grant) = grants::find(tx, grant).await? {
        grant.window.end = Some(call.now);
        grant.touch();
        grants::update(tx, &grant).await?;
    }
    match requester {
        AccountId::User(id) => sessions::void_tokens(tx, id, call.now).await?,
        AccountId::System(id) => {
            if let Some(mut account) = system_accounts::find(tx, id).await? {
                account.revoke_tokens(call.now);
                account.touch(call.now);
                system_accounts::update(tx, &account).await?;
            }
        }
    }
    Ok(())
}

/// Stores a changed elevation with its event.
async fn store_changed(
    tx: &mut Write,
    call: &Call,
    mut elevation: Elevation,
) -> Result<pb::Elevation> {
    elevation.touch();
    elevations::update(tx, &elevation).await?;
    append_event(tx, call, &elevation).await?;
    Ok(shown(&elevation, call))
}

async fn append_event(tx: &mut Write, call: &Call, elevation: &Elevation) -> Result<()> {
    events::append(tx, &elevation.tell(call.event())).await?;
    Ok(())
}

fn parse_id(name: &str) -> Result<ElevationId> {
    ElevationId::parse(name).ok_or_else(|| Error::field("name", "must be elevations/{id}"))
}

/// Which elevations a list is about.
fn query(filter: &str) -> Result<Query> {
    let offered = &[
        ("requester", filter::EQUAL),
        ("entitlement", filter::EQUAL),
        ("state", filter::EQUAL),
    ];
    let mut query = Query::default();
    for term in filter::parse(filter, offered)? {
        match term.field {
            "requester" => {
                let expected = "users/{uid} or systemAccounts/{uid}";
                let account = AccountId::parse(&term.value);
                query.requester = Some(filter::value(&term, account, expected)?);
            }
            "entitlement" => {
                let id = entitlements::parse_id(&term.value).ok();
                query.entitlement = Some(filter::value(&term, id, "entitlements/{id}")?);
            }
            _ => {
                let names = elevation::State::ALL.map(State::name).join(", ");
                let expected = format!("one of {names}");
                query.state = Some(filter::value(&term, State::parse(&term.value), &expected)?);
            }
        }
    }
    Ok(query)
}

fn shown(elevation: &Elevation, call: &Call) -> pb::Elevation {
    use pb::elevation::State as Shown;
    let state = match elevation.state(call.now) {
        State::Pending => Shown::Pending,
        State::Active => Shown::Active,
        State::Denied => Shown::Denied,
        State::Lapsed => Shown::Lapsed,
        State::Ended => Shown::Ended,
    };
    let ended = elevation.ended(call.now);
    let expires = elevation.next_time.filter(|_| ended.is_none());
    let grant = elevation.grant.map(|id| id.to_string());
    pb::Elevation {
        name: elevation.id.to_string(),
        etag: convert::etag(elevation.revision),
        entitlement: elevation.entitlement.to_string(),
        requester: elevation.requester.to_string(),
        role: format!("roles/{}", elevation.role),
        state: state.into(),
        justification: elevation.justification.clone(),
        ticket: elevation.ticket.clone(),
        duration: Some(convert::seconds(elevation.duration_s)),
        create_time: Some(convert::timestamp(elevation.create_time)),
        expire_time: convert::some_timestamp(expires),
        decided_by: elevation.decided_by.clone(),
        decide_reason: elevation.decide_reason.clone(),
        decide_time: convert::some_timestamp(elevation.decide_time),
        grant: grant.unwrap_or_default(),
        end_time: convert::some_timestamp(ended),
    }
}

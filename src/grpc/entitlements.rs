//! Entitlements: the half of ElevationService that says who may ask for what.

use super::{
    call::{Call, mutate},
    convert, pb, principals, roles,
};
use crate::{
    domain::{
        account,
        elevation::{
            Edit, Entitlement, MAX_APPROVERS, MAX_DESCRIPTION, MAX_DURATION_S, MAX_ENTITLEMENTS,
            WRITABLE,
        },
        error::{Error, Fields, Reason, Result},
        filter,
        name::{EntitlementId, PrincipalId},
        page, role, text,
        time::Timestamp,
    },
    store::{
        db::{Read, Write},
        entitlements::{self, Cursor, Query},
        events,
    },
};

/// The shortest that anybody is elevated for, in seconds.
pub(super) const MIN_DURATION_S: i64 = 60;

pub(super) async fn create(
    call: &Call,
    request: pb::CreateEntitlementRequest,
) -> Result<pb::Entitlement> {
    let input = request.entitlement.unwrap_or_default();
    let mut fields = Fields::new();
    let principal = fields.take("entitlement.principal", principals::parse(&input.principal));
    let expected = || "must be roles/{role}".to_owned();
    let role = role::parse_name(&input.role).ok_or_else(expected);
    let role = fields.take("entitlement.role", role.map(str::to_owned));
    let edits = edits(&mut fields, &WRITABLE, &input, call.now);
    fields.finish()?;
    let (Some(principal), Some(role)) = (principal, role) else {
        return Err(Error::internal("checked above"));
    };
    let mut entitlement = Entitlement {
        id: EntitlementId(call.new_uuid()),
        revision: 1,
        principal,
        role,
        max_duration_s: 0,
        approvers: Vec::new(),
        needs_ticket: false,
        needs_step_up: false,
        description: String::new(),
        created_by: call.by(),
        create_time: call.now,
        update_time: call.now,
        expire_time: None,
    };
    for edit in edits {
        entitlement.edit(edit);
    }
    mutate!(call, |tx| {
        if entitlements::count(tx).await? >= MAX_ENTITLEMENTS {
            let text = format!("has {MAX_ENTITLEMENTS} entitlements, which is the limit");
            let refusal = Error::precondition(Reason::LimitReached, "entitlements", text);
            return Err(refusal);
        }
        require_to_entitle(tx, call, &entitlement, entitlement.expire_time).await?;
        call.gives(&roles::find(tx, &entitlement.role).await?.scopes);
        principals::require_present(tx, call, principal).await?;
        call.require_power_over(tx, principal).await?;
        require_approvers(tx, call, &entitlement.approvers).await?;
        principals::void_begun(tx, principal).await?;
        entitlements::insert(tx, &entitlement).await?;
        append_event(tx, call, &entitlement, &[]).await?;
        shown(&entitlement)
    })
}

pub(super) async fn get(
    call: &Call,
    request: &pb::GetEntitlementRequest,
) -> Result<pb::Entitlement> {
    let id = parse_id(&request.name).map_err(|text| Error::field("name", text))?;
    let mut db = call.db().read().await?;
    let entitlement = find(&mut db, id).await?;
    if !call.caller.holds(READ) {
        let own = principals::of_caller(&mut db, call).await?;
        let is_own = |principal: &PrincipalId| own.contains_key(principal);
        if !is_own(&entitlement.principal) && !entitlement.approvers.iter().any(is_own) {
            return Err(Error::not_found(entitlement.id.to_string()));
        }
    }
    Ok(shown(&entitlement))
}

pub(super) async fn list(
    call: &Call,
    request: &pb::ListEntitlementsRequest,
) -> Result<pb::ListEntitlementsResponse> {
    let limit = page::size(request.page_size)?;
    let query = query(&request.filter)?;
    let context = call.page_context(&[&request.filter]);
    let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
    let after = after.map(|Cursor(id)| id).unwrap_or_default();
    let mut db = call.db().read().await?;
    let rows = match call.caller.account() {
        Some(account) if !call.caller.holds(READ) => {
            let mut own = entitlements::of_principal(&mut db, account.into(), call.now).await?;
            let here = principals::of_caller(&mut db, call).await?;
            own.retain(|it| {
                let is_asked = query.principal.is_none_or(|asked| asked == it.principal)
                    && query.role.as_ref().is_none_or(|role| *role == it.role);
                is_asked && here.contains_key(&it.principal) && it.id.0 > after
            });
            own.sort_by_key(|it| it.id);
            own.truncate(usize::try_from(limit + 1).unwrap_or(usize::MAX));
            own
        }
        _ => entitlements::list(&mut db, &query, after, limit + 1).await?,
    };
    let cursor = |entitlement: &Entitlement| Cursor(entitlement.id.0);
    let (rows, next_page_token) = convert::page(call, &context, rows, limit, cursor)?;
    Ok(pb::ListEntitlementsResponse {
        entitlements: rows.iter().map(shown).collect(),
        next_page_token,
    })
}

pub(super) async fn update(
    call: &Call,
    request: pb::UpdateEntitlementRequest,
) -> Result<pb::Entitlement> {
    let input = request.entitlement.unwrap_or_default();
    let id = parse_id(&input.name).map_err(|text| Error::field("entitlement.name", text))?;
    let paths = convert::masked(request.update_mask.as_ref(), &WRITABLE, |path| {
        is_set(path, &input)
    })?;
    let mut fields = Fields::new();
    let edits = edits(&mut fields, &paths, &input, call.now);
    fields.finish()?;
    mutate!(call, |tx| {
        let mut entitlement = find(tx, id).await?;
        convert::require_etag(&input.etag, entitlement.revision, entitlement.id)?;
        let before = entitlement.clone();
        for edit in edits.clone() {
            entitlement.edit(edit);
        }
        if entitlement != before {
            let mut until = entitlement.expire_time;
            if entitlement.is_within(&before, call.now) {
                // It gives no more than before, and may have been given by somebody who may for longer.
                until = Some(call.now);
            } else {
                call.gives(&roles::find(tx, &entitlement.role).await?.scopes);
            }
            require_to_entitle(tx, call, &entitlement, until).await?;
            call.require_power_over(tx, entitlement.principal).await?;
            let added = entitlement.approvers.iter().copied();
            let added: Vec<PrincipalId> =
                added.filter(|it| !before.approvers.contains(it)).collect();
            require_approvers(tx, call, &added).await?;
            if before.is_over(call.now) {
                // One that was over gives what was not there.
                require_approvers(tx, call, &entitlement.approvers).await?;
                principals::void_begun(tx, entitlement.principal).await?;
            }
            entitlement.touch(call.now);
            entitlements::update(tx, &entitlement).await?;
            append_event(tx, call, &entitlement, &paths).await?;
        }
        shown(&entitlement)
    })
}

pub(super) async fn delete(call: &Call, request: &pb::DeleteEntitlementRequest) -> Result<()> {
    let id = parse_id(&request.name).map_err(|text| Error::field("name", text))?;
    mutate!(call, |tx| {
        let entitlement = find(tx, id).await?;
        convert::require_etag(&request.etag, entitlement.revision, entitlement.id)?;
        require_to_entitle(tx, call, &entitlement, Some(call.now)).await?;
        entitlements::delete(tx, id).await?;
        append_event(tx, call, &entitlement, &[]).await?;
    })
}

/// The scope of those who see all of them.
pub(super) const READ: &str = "elevations.read";

pub(super) async fn find(db: &mut Read, id: EntitlementId) -> Result<Entitlement> {
    let missing = || Error::not_found(id.to_string());
    entitlements::find(db, id).await?.ok_or_else(missing)
}

/// Refuses unless the caller may grant the role for so long: who is entitled to it may come to hold it until then.
async fn require_to_entitle(
    db: &mut Read,
    call: &Call,
    entitlement: &Entitlement,
    until: Option<Timestamp>,
) -> Result<()> {
    let field = "entitlement.expire_time";
    roles::require_to_grant(db, call, &entitlement.role, until, field).await
}

/// Who may agree has the role in hand: they have to be there, and be nobody greater than the caller; and codes that
/// were made for them when they had it not are void.
async fn require_approvers(tx: &mut Write, call: &Call, approvers: &[PrincipalId]) -> Result<()> {
    for approver in approvers {
        principals::require_present(tx, call, *approver).await?;
        call.require_power_over(tx, *approver).await?;
        principals::void_begun(tx, *approver).await?;
    }
    Ok(())
}

async fn append_event(
    tx: &mut Write,
    call: &Call,
    entitlement: &Entitlement,
    paths: &[&str],
) -> Result<()> {
    let event = call.event();
    let event = event.about(entitlement.id, entitlement.principal.account());
    let event = event.detail("principal", entitlement.principal);
    let event = event.detail("role", format!("roles/{}", entitlement.role));
    events::append(tx, &event.changed(paths.iter().copied())).await?;
    Ok(())
}

pub(super) fn parse_id(name: &str) -> Result<EntitlementId, String> {
    EntitlementId::parse(name).ok_or_else(|| "must be entitlements/{id}".to_owned())
}

/// Which entitlements a list is about.
fn query(filter: &str) -> Result<Query> {
    let offered = &[("principal", filter::EQUAL), ("role", filter::EQUAL)];
    let mut query = Query::default();
    for term in filter::parse(filter, offered)? {
        if term.field == "principal" {
            let principal = PrincipalId::parse(&term.value);
            query.principal = Some(filter::value(&term, principal, principals::NAME)?);
        } else {
            let role = role::parse_name(&term.value).map(str::to_owned);
            query.role = Some(filter::value(&term, role, "roles/{role}")?);
        }
    }
    Ok(query)
}

fn is_set(path: &str, input: &pb::Entitlement) -> bool {
    match path {
        "max_duration" => input.max_duration.is_some(),
        "approvers" => !input.approvers.is_empty(),
        "ticket_required" => input.ticket_required,
        "step_up_required" => input.step_up_required,
        "description" => !input.description.is_empty(),
        "expire_time" => input.expire_time.is_some(),
        _ => false,
    }
}

/// The named fields of a message as edits; what is wrong with them goes to `fields`.
fn edits(
    fields: &mut Fields,
    paths: &[&str],
    input: &pb::Entitlement,
    now: Timestamp,
) -> Vec<Edit> {
    let edit = |path: &str| -> Result<Edit, String> {
        Ok(match path {
            "max_duration" => {
                let seconds = convert::parse_seconds(input.max_duration.as_ref(), MAX_DURATION_S)?;
                let seconds = seconds.ok_or("is required")?;
                if seconds < MIN_DURATION_S {
                    return Err(format!("must be at least {MIN_DURATION_S} s"));
                }
                Edit::MaxDuration(seconds)
            }
            "approvers" => Edit::Approvers(convert::list(
                &input.approvers,
                MAX_APPROVERS,
                principals::parse,
            )?),
            "ticket_required" => Edit::NeedsTicket(input.ticket_required),
            "step_up_required" => Edit::NeedsStepUp(input.step_up_required),
            "description" => Edit::Description(text::lines(&input.description, MAX_DESCRIPTION)?),
            _ => {
                let time = convert::parse_time(input.expire_time.as_ref())?;
                Edit::ExpireTime(account::future(time, now)?)
            }
        })
    };
    let taken = paths
        .iter()
        .filter_map(|path| fields.take(&format!("entitlement.{path}"), edit(path)));
    taken.collect()
}

fn shown(entitlement: &Entitlement) -> pb::Entitlement {
    pb::Entitlement {
        name: entitlement.id.to_string(),
        etag: convert::etag(entitlement.revision),
        principal: entitlement.principal.to_string(),
        role: format!("roles/{}", entitlement.role),
        max_duration: Some(convert::seconds(entitlement.max_duration_s)),
        approvers: entitlement
            .approvers
            .iter()
            .map(ToString::to_string)
            .collect(),
        ticket_required: entitlement.needs_ticket,
        step_up_required: entitlement.needs_step_up,
        description: entitlement.description.clone(),
        created_by: entitlement.created_by.clone(),
        create_time: Some(convert::timestamp(entitlement.create_time)),
        update_time: Some(convert::timestamp(entitlement.update_time)),
        expire_time: convert::some_timestamp(entitlement.expire_time),
    }
}

//! What a principal may have, and why.
//!
//! Invariant: the decision is taken where tokens are minted, by the same function.

use std::borrow::Cow;

use uuid::Uuid;

use super::{
    call::Call,
    convert,
    mint::{self, Limits},
    pb, principals, scopes,
};
use crate::{
    domain::{
        credential::Credential,
        error::{Error, Fields, Result},
        filter,
        grant::{Grant, Idle, Reaching},
        name::{AccountId, CredentialId, GroupId, PrincipalId, SessionId},
        page,
        scope::{self, ScopeName},
        session::Session,
        system_account::SystemAccount,
        time::Timestamp,
        token::{self, Refusal},
        user::User,
    },
    store::{credentials, grants, sessions, system_accounts, users},
};

/// Most scopes of one check.
const MAX_CHECKED: usize = 1000;

pub(super) async fn check(
    call: &Call,
    request: &pb::CheckAccessRequest,
) -> Result<pb::CheckAccessResponse> {
    let mut fields = Fields::new();
    let principal = fields.take("principal", principals::parse_own(call, &request.principal));
    let audience = fields.take("audience", token::audience(&request.audience));
    let requested = convert::list(&request.scopes, MAX_CHECKED, scope::parse);
    let requested = fields.take("scopes", requested);
    if request.scopes.is_empty() {
        fields.refuse("scopes", "is required");
    }
    fields.finish()?;
    let (Some(principal), Some(audience), Some(requested)) = (principal, audience, requested)
    else {
        return Err(Error::internal("checked above"));
    };
    let decisions = decide(call, principal, &request.proof, &audience, &requested).await?;
    Ok(pb::CheckAccessResponse { decisions })
}

pub(super) async fn explain(
    call: &Call,
    request: &pb::ExplainAccessRequest,
) -> Result<pb::ExplainAccessResponse> {
    let mut fields = Fields::new();
    let principal = fields.take("principal", principals::parse_own(call, &request.principal));
    let expected = || "must be scopes/{audience}:{scope}".to_owned();
    let scope = ScopeName::parse(&request.scope).ok_or_else(expected);
    let scope = fields.take("scope", scope);
    let resource = match request.resource.as_str() {
        "" => Ok(None),
        text => scope::parse_resource(text).map(Some),
    };
    let resource = fields.take("resource", resource).flatten();
    fields.finish()?;
    let (Some(principal), Some(scope)) = (principal, scope) else {
        return Err(Error::internal("checked above"));
    };
    let scope = match resource {
        Some(resource) => scope.limited_to(&resource),
        None => scope,
    };
    let mut db = call.db().read().await?;
    let found = scopes::find(&mut db, &scope).await?;
    // What is over, too, for as long as it is remembered.
    let holdings = grants::holdings(&mut db, principal, None, Timestamp::EPOCH).await?;
    drop(db);
    let requested = [scope.scope.clone()];
    let decided = decide(call, principal, &request.proof, &scope.audience, &requested).await?;
    let reaching = holdings.reaching_to(&scope, call.now);
    let end = reaching.first().map(|it| it.end_time);
    let idle = holdings.idle(&scope, call.now);
    let paths = reaching
        .iter()
        .map(in_effect)
        .chain(idle.iter().map(not_in_effect));
    Ok(pb::ExplainAccessResponse {
        decision: decided.into_iter().next(),
        expire_time: convert::some_timestamp(end.filter(|end| *end != Timestamp::MAX)),
        sensitive: found.is_sensitive,
        paths: paths.collect(),
    })
}

pub(super) async fn list(
    call: &Call,
    request: &pb::ListEffectiveScopesRequest,
) -> Result<pb::ListEffectiveScopesResponse> {
    let principal = principals::parse_own(call, &request.parent)
        .map_err(|text| Error::field("parent", text))?;
    let limit = page::size(request.page_size)?;
    let expected = "1 to 255 visible ASCII characters";
    let audience = filter::only(&request.filter, "audience", expected, |text| {
        token::audience(text).ok().filter(|_| !text.is_empty())
    })?;
    let context = call.page_context(&[&request.parent, &request.filter]);
    let after: Option<ScopeName> = call.open_page(&context, &request.page_token)?;
    let mut db = call.db().read().await?;
    principals::require_known(&mut db, principal).await?;
    let holdings = grants::holdings(&mut db, principal, audience.as_deref(), call.now).await?;
    drop(db);
    let rows = holdings
        .effective(call.now)
        .into_iter()
        .filter(|(name, _)| {
            audience.as_ref().is_none_or(|it| *it == name.audience)
                && after.as_ref().is_none_or(|after| **name > *after)
        });
    let room = usize::try_from(limit + 1).unwrap_or(usize::MAX);
    let rows: Vec<_> = rows.take(room).collect();
    let cursor = |(name, _): &(Cow<'_, ScopeName>, Vec<Reaching<'_>>)| name.clone().into_owned();
    let (rows, next_page_token) = convert::page(call, &context, rows, limit, cursor)?;
    let shown = rows.into_iter().map(|(name, reaching)| {
        let end = reaching.first().map(|it| it.end_time);
        pb::EffectiveScope {
            scope: name.unlimited().to_string(),
            resource: name.resource().unwrap_or_default().to_owned(),
            expire_time: convert::some_timestamp(end.filter(|end| *end != Timestamp::MAX)),
            grants: reaching.iter().map(|it| it.grant.id.to_string()).collect(),
        }
    });
    Ok(pb::ListEffectiveScopesResponse {
        effective_scopes: shown.collect(),
        next_page_token,
    })
}

/// What a token would have of some scopes.
async fn decide(
    call: &Call,
    principal: PrincipalId,
    proof: &str,
    audience: &str,
    requested: &[String],
) -> Result<Vec<pb::AccessDecision>> {
    let subject = Subject::find(call, principal, proof).await?;
    let entitled = mint::entitled(call, principal, audience).await?;
    let limits = subject.limits(call, audience);
    let allowance = mint::allowance(call, requested, &entitled, &limits);
    let decision = |scope: &String| {
        // Who has it for some resources only has not got it.
        let is_given = allowance.scopes.contains(scope);
        let mut refused = allowance.refused.iter();
        let why = refused.find(|(it, _)| *it == scope || scope::split(it).0 == scope);
        let refusal = why.map_or(Refusal::NotGranted, |(_, refusal)| *refusal);
        let refusal = (!is_given).then_some(refusal);
        let refusal = refusal.map(mint::shown);
        pb::AccessDecision {
            scope: scope.clone(),
            allowed: refusal.is_none(),
            refusal: refusal.unwrap_or_default().into(),
        }
    };
    Ok(requested.iter().map(decision).collect())
}

/// Whom a token would be for, and what it would be asked for with, if that is known.
enum Subject {
    Person(User, Option<Session>),
    Program(SystemAccount, Option<Credential>),
    Group,
}

impl Subject {
    async fn find(call: &Call, principal: PrincipalId, proof: &str) -> Result<Self> {
        let mut db = call.db().read().await?;
        principals::require_known(&mut db, principal).await?;
        let missing = || Error::not_found(proof);
        let Some(account) = principal.account() else {
            return if proof.is_empty() {
                Ok(Self::Group)
            } else {
                Err(Error::field("proof", "must be empty for a group"))
            };
        };
        Ok(match account {
            AccountId::User(id) => {
                let session = match proof_id(call, account, proof, "sessions")? {
                    Some(session) => {
                        let found = sessions::find(&mut db, id, SessionId(session)).await?;
                        Some(found.ok_or_else(missing)?)
                    }
                    None => None,
                };
                let user = users::find(&mut db, id).await?;
                Self::Person(
                    user.ok_or_else(|| Error::not_found(account.to_string()))?,
                    session,
                )
            }
            AccountId::System(id) => {
                let credential = match proof_id(call, account, proof, "credentials")? {
                    Some(credential) => {
                        let credential = CredentialId(credential);
                        let found = credentials::find(&mut db, account, credential).await?;
                        Some(found.ok_or_else(missing)?)
                    }
                    None => None,
                };
                let found = system_accounts::find(&mut db, id).await?;
                Self::Program(
                    found.ok_or_else(|| Error::not_found(account.to_string()))?,
                    credential,
                )
            }
        })
    }

    fn limits(&self, call: &Call, audience: &str) -> Limits<'_> {
        let now = call.now;
        match self {
            Self::Group => Limits::default(),
            Self::Person(user, session) => {
                let limits = session.as_ref().map(|session| Limits {
                    bar: (!session.is_live(now)).then_some(Refusal::ProofEnded),
                    ..Limits::of_session(call, session, &user.lifecycle)
                });
                let mut limits = limits.unwrap_or_default();
                if !user.lifecycle.may_act(now) {
                    limits.bar = Some(Refusal::AccountState);
                }
                limits
            }
            Self::Program(account, credential) => {
                let of_account = || Limits {
                    ceilings: vec![(Refusal::AccountCeiling, &account.limits.scope_ceiling)],
                    ..Limits::default()
                };
                let limits = credential.as_ref().map(|credential| Limits {
                    bar: (!credential.is_live(now)).then_some(Refusal::ProofEnded),
                    ..Limits::of_program(call, account, credential)
                });
                let mut limits = limits.unwrap_or_else(of_account);
                if !account.may_act(now) {
                    limits.bar = Some(Refusal::AccountState);
                } else if !account.may_ask_for(audience) {
                    limits.bar = Some(Refusal::Audience);
                }
                limits
            }
        }
    }
}

/// The id in the name of something that belongs to an account, if a name is given.
fn proof_id(
    call: &Call,
    account: AccountId,
    proof: &str,
    collection: &str,
) -> Result<Option<Uuid>> {
    if proof.is_empty() {
        return Ok(None);
    }
    match call.child("proof", proof, collection) {
        Ok((owner, id)) if owner == account => Ok(Some(id)),
        _ => {
            let expected = format!("must be {account}/{collection}/{{id}}");
            Err(Error::field("proof", expected))
        }
    }
}

fn in_effect(reaching: &Reaching<'_>) -> pb::AccessPath {
    let Reaching {
        grant,
        way,
        end_time,
    } = reaching;
    let end = Some(*end_time).filter(|end| *end != Timestamp::MAX);
    path(grant, &way.via, pb::access_path::State::InEffect, end)
}

fn not_in_effect((grant, why, via): &(&Grant, Idle, Vec<GroupId>)) -> pb::AccessPath {
    use pb::access_path::State;
    let state = match why {
        Idle::NotStarted => State::GrantNotStarted,
        Idle::Ended => State::GrantEnded,
        Idle::NoMembership => State::MembershipNotInEffect,
        Idle::Limited => State::OtherResource,
    };
    path(grant, via, state, None)
}

fn path(
    grant: &Grant,
    via: &[GroupId],
    state: pb::access_path::State,
    end: Option<Timestamp>,
) -> pb::AccessPath {
    pb::AccessPath {
        grant: grant.id.to_string(),
        permission: grant.permission.name(),
        resource: grant.resource.clone(),
        groups: via.iter().map(ToString::to_string).collect(),
        state: state.into(),
        expire_time: convert::some_timestamp(end),
        step_up_required: grant.needs_step_up,
    }
}

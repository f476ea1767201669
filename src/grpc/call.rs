//! The door: every RPC begins with [`Call::enter`], which says who calls, whether they may, and what
//! time it is.
//!
//! Invariant: no call, no database. Only a `Call` gets a handle, only this file makes a `Call`; the
//! two ways are `enter`, for requests, and `system`, for accountd's own work.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::hmac;
use prost::Message;
use serde::de::DeserializeOwned;
use tonic::{Request, metadata::MetadataMap};
use uuid::Uuid;

use crate::{
    app::App,
    domain::{
        access::{self, Access, Caller, Policy, Principal, Proof},
        assurance::{Assurance, Demand},
        certificate::Certificate,
        credential::Credential,
        error::{Error, Reason, Result},
        event::{Actor, Event},
        keyring::Genuine,
        name::{self, AccountId, CredentialId, EventId, PrincipalId, SystemAccountId, UserId},
        page,
        scope::{Scope, ScopeName},
        secret,
        system_account::SystemAccount,
        time::Timestamp,
        token::{self, AccountClaims, Claims, OWN_AUDIENCE, Refusal},
    },
    signing,
    store::{
        credentials,
        db::{Attempts, Db, Isolation, Read, Write},
        entitlements, grants, groups,
        requests::{self, Record},
        scopes, system_accounts, tokens,
    },
};

/// What the door needs to know of a request message; generated from the protos.
pub trait Inbound: Message {
    /// The name of the resource that the HTTP path of the RPC holds.
    fn target(&self) -> &str;
    fn request_id(&self) -> &str;
    fn validate_only(&self) -> bool;
}

/// What a record for retries needs to know of an answer; generated from the protos.
pub trait Answer: Message + Default + Clone {
    /// Clears the fields that are shown once only.
    fn withhold_secrets(&mut self);
}

impl Answer for () {
    fn withhold_secrets(&mut self) {}
}

/// What the listener knows of a request before anybody has read it.
#[derive(Clone, Debug)]
pub struct Context {
    pub policy: &'static Policy,
    /// Where the call comes from, trusted proxies left out.
    pub address: Option<IpAddr>,
    /// What the peer has shown in the TLS handshake.
    pub certificate: Option<Arc<Certificate>>,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// One call, from its first line to its answer.
pub struct Call {
    app: Arc<App>,
    rpc: &'static str,
    event: &'static str,
    pub caller: Caller,
    /// The caller's token.
    claims: Option<Claims>,
    /// Why a token that came with a public call was not believed.
    doubt: Option<Reason>,
    actor: Actor,
    /// Read once; every decision of this call is taken at this time.
    pub now: Timestamp,
    pub address: Option<IpAddr>,
    pub certificate: Option<Arc<Certificate>>,
    pub user_agent: String,
    pub deadline: Instant,
    pub validate_only: bool,
    request: Option<RequestId>,
    /// Whether its transaction leaves a message to be sent.
    has_message: AtomicBool,
}

struct RequestId {
    key: requests::Key,
    body_mac: Vec<u8>,
}

impl Call {
    /// Admits a request or refuses it, looking at nothing but the token and the named target.
    pub async fn enter<T: Inbound>(app: &Arc<App>, request: Request<T>) -> Result<(Self, T)> {
        let (metadata, extensions, message) = request.into_parts();
        // The layer puts it there; a request that came another way is not served.
        let context: &Context = extensions
            .get()
            .ok_or_else(|| Error::internal("a call without context"))?;
        let policy = context.policy;
        let mut call = Self {
            rpc: policy.rpc,
            address: context.address,
            certificate: context.certificate.clone(),
            user_agent: text(&metadata, "user-agent"),
            deadline: context.deadline,
            validate_only: message.validate_only(),
            actor: Actor::Anonymous,
            ..Self::system(app, policy.event)
        };
        match call.authenticate(&metadata).await {
            Ok(claims) => {
                let principal = claims.clone().map(Principal::new);
                call.caller = principal.map_or(Caller::Anonymous, Caller::Account);
                call.claims = claims;
            }
            Err(Error::Unauthenticated(reason)) if policy.access == Access::Public => {
                call.doubt = Some(reason);
            }
            Err(error) => return Err(error),
        }
        access::authorise(policy, &call.caller, message.target())?;
        if let Some(demand) = policy.demand {
            call.require_assurance(demand).await?;
        }
        call.actor = call
            .caller
            .account()
            .map_or(Actor::Anonymous, Actor::Account);
        call.request = call.request_id(&message)?;
        Ok((call, message))
    }

    /// Refuses a person who has not shown enough, or too long ago. Programs prove themselves with every
    /// token.
    async fn require_assurance(&self, demand: Demand) -> Result<()> {
        let Some(claims) = &self.claims else {
            return Ok(());
        };
        let AccountClaims::User { acr, auth_time, .. } = claims.account else {
            return Ok(());
        };
        let has_second_factor = acr < demand.assurance
            && credentials::has_second_factor(&mut self.db().read().await?, UserId(claims.sub))
                .await?;
        let auth_time = Timestamp::from_seconds(auth_time);
        if demand.is_met(acr, auth_time, has_second_factor, self.now) {
            return Ok(());
        }
        let assurance = if has_second_factor {
            demand.assurance
        } else {
            acr
        };
        Err(Error::Insufficient(Demand {
            assurance,
            ..demand
        }))
    }

    /// Refuses whoever has not just shown, to accountd alone, what nobody else has: a person two factors, not longer
    /// ago than `max_age_s`; a program a key of its own.
    pub async fn require_own_proof(&self, db: &mut Read, max_age_s: i64) -> Result<()> {
        let Some(claims) = &self.claims else {
            return Err(Error::Unauthenticated(Reason::TokenMissing));
        };
        let credential = match claims.account {
            AccountClaims::User { .. } => None,
            AccountClaims::SystemAccount { credential_id } => {
                let id = CredentialId(credential_id);
                credentials::find(db, claims.account_id(), id).await?
            }
        };
        let is_shared = credential
            .as_ref()
            .is_some_and(|it| it.kind.is_shared_secret());
        match token::shortfall(&claims.account, is_shared, max_age_s, self.now) {
            None => Ok(()),
            Some(Refusal::NeedsOwnKey) => {
                let name = claims.account_id().to_string();
                let text = "has come with a secret that accountd knows, too";
                let reason = Reason::CredentialKindNotAllowed;
                Err(Error::precondition(reason, name, text))
            }
            Some(_) => Err(Error::Insufficient(Demand {
                assurance: Assurance::Aal2,
                max_age_s: Some(max_age_s),
            })),
        }
    }

    /// accountd's own work, in its own name.
    pub fn system(app: &Arc<App>, event: &'static str) -> Self {
        Self {
            app: Arc::clone(app),
            rpc: "",
            event,
            caller: Caller::Anonymous,
            claims: None,
            doubt: None,
            actor: Actor::Accountd,
            now: app.clock.now(),
            address: None,
            certificate: None,
            user_agent: String::new(),
            deadline: Instant::now() + Duration::from_mins(1),
            validate_only: false,
            request: None,
            has_message: AtomicBool::new(false),
        }
    }

    pub fn app(&self) -> &App {
        &self.app
    }

    pub fn db(&self) -> &Db {
        self.app.db(self)
    }

    /// For `mutate!`: rolled back in the end when the caller only wants to know.
    pub fn attempts(&self, isolation: Isolation) -> Attempts<'_> {
        Attempts::new(self.db(), isolation, self.validate_only)
    }

    /// Says that the transaction leaves a message to be sent.
    pub fn leaves_message(&self) {
        self.has_message.store(true, Relaxed);
    }

    /// For `mutate!`: what waits for the end of the transaction may begin.
    pub fn committed(&self) {
        if self.has_message.swap(false, Relaxed) {
            self.app.messenger.wake();
        }
    }

    /// The resource name of whoever calls, for what is kept of who did it.
    pub fn by(&self) -> String {
        let account = self.caller.account();
        account.map(|id| id.to_string()).unwrap_or_default()
    }

    pub fn new_uuid(&self) -> Uuid {
        self.app.random.uuid(self.now)
    }

    /// Refuses unless the caller holds `scope`, one of the policy's `field_scope`s or `scope`s.
    pub fn require(&self, scope: &str) -> Result<()> {
        self.caller
            .require(scope)
            .map_err(|error| match (error, self.doubt) {
                (Error::Unauthenticated(_), Some(doubt)) => Error::Unauthenticated(doubt),
                (error, _) => error,
            })
    }

    /// Refuses where a token came that was not believed: for public calls that mean something else without
    /// one.
    pub fn require_belief(&self) -> Result<()> {
        self.doubt
            .map_or(Ok(()), |doubt| Err(Error::Unauthenticated(doubt)))
    }

    /// Nobody changes an account that holds what they do not. A person's own account is theirs; a
    /// system account's token may be narrower than the account, so it is held to the rule.
    pub async fn require_power_over(
        &self,
        db: &mut Read,
        target: impl Into<PrincipalId>,
    ) -> Result<()> {
        let target = target.into();
        let own = self.caller.account().map(PrincipalId::Account);
        if own == Some(target) && matches!(target, PrincipalId::Account(AccountId::User(_))) {
            return Ok(());
        }
        self.require_full_power_over(db, target).await
    }

    /// The same without an exception for one's own account: for what gives a token more than it has.
    pub async fn require_full_power_over(
        &self,
        db: &mut Read,
        target: impl Into<PrincipalId>,
    ) -> Result<()> {
        let target = target.into();
        let power = grants::power(db, target, Some(OWN_AUDIENCE), self.now).await?;
        access::require_power_over(&self.caller, power.iter().map(|scope| &*scope.scope))?;
        self.require_power_over_roles(db, target).await
    }

    /// Whoever gets hold of an account that may ask for a role, or agree to one, gets what downstream systems permit by
    /// it, too.
    async fn require_power_over_roles(&self, db: &mut Read, target: PrincipalId) -> Result<()> {
        let roles = entitlements::roles_of(db, target, self.now).await?;
        let mut lent = Vec::new();
        for role in BTreeSet::from_iter(roles) {
            lent.extend(scopes::of_role(db, &role).await?);
        }
        if lent.is_empty() {
            return Ok(());
        }
        let granter = self.granter(db).await?;
        for scope in &lent {
            if granter.may_grant(scope).is_none() {
                return Err(Error::Denied {
                    reason: Reason::TargetOutranksCaller,
                    scopes: vec![scope.name.to_string()],
                });
            }
        }
        Ok(())
    }

    /// Refuses unless the caller may hand these scopes out, or take them back, for that long: who holds them,
    /// by the token and still by grants, a token being older than the grants are; and whom the catalogue says.
    /// `field` is what is wrong where they may for a shorter time.
    pub async fn require_to_grant(
        &self,
        db: &mut Read,
        scopes: &[Scope],
        until: Option<Timestamp>,
        field: &str,
    ) -> Result<()> {
        if scopes.is_empty() {
            return Ok(());
        }
        let own = scopes.iter().filter(|scope| scope.name.is_own());
        access::require_held(&self.caller, own.map(|scope| &*scope.name.scope))?;
        let granter = self.granter(db).await?;
        for scope in scopes {
            require_end(scope, granter.may_grant(scope), until, field)?;
        }
        Ok(())
    }

    /// The same for making somebody one who goes by names to which the catalogue lets grant scopes: who may grant
    /// them, or say who may.
    pub async fn require_to_appoint(
        &self,
        db: &mut Read,
        names: &BTreeSet<String>,
        until: Option<Timestamp>,
        field: &str,
    ) -> Result<()> {
        let scopes = scopes::granted_by(db, names).await?;
        if scopes.is_empty() {
            return Ok(());
        }
        let granter = self.granter(db).await?;
        for scope in &scopes {
            let end = granter.may_grant(scope).max(granter.maintains);
            require_end(scope, end, until, field)?;
        }
        Ok(())
    }

    /// What there is to know of a caller who would give.
    async fn granter(&self, db: &mut Read) -> Result<Granter> {
        let caller = self.caller.account();
        let caller = caller.ok_or(Error::Unauthenticated(Reason::TokenMissing))?;
        let holdings = grants::holdings(db, caller.into(), None, self.now).await?;
        let mut names = holdings.roles(self.now);
        for (principal, end) in groups::principals(db, caller, self.now).await? {
            names.insert(principal.to_string(), end);
        }
        let effective = holdings.effective(self.now).into_iter();
        let held: BTreeMap<ScopeName, Timestamp> = effective
            .filter_map(|(name, by)| Some((name.clone(), by.first()?.end_time)))
            .collect();
        let maintains = held.get(&ScopeName::own(MAINTAINS_CATALOGUE)).copied();
        Ok(Granter {
            names,
            maintains: maintains.filter(|_| self.caller.holds(MAINTAINS_CATALOGUE)),
            held,
            confines: self.confines(db).await?,
        })
    }

    /// What limits the caller, if it is a program: its account and the credential that it came with.
    async fn confines(&self, db: &mut Read) -> Result<Option<(SystemAccount, Credential)>> {
        let Some(Principal {
            id: AccountId::System(id),
            proof: Proof::Credential(credential),
            ..
        }) = self.caller.principal()
        else {
            return Ok(None);
        };
        let account = system_accounts::find(db, *id).await?;
        let credential = credentials::find(db, (*id).into(), *credential).await?;
        let revoked = || Error::Unauthenticated(Reason::TokenRevoked);
        account.zip(credential).map(Some).ok_or_else(revoked)
    }

    /// The event of this RPC; to be told what it is about, and appended in the transaction.
    pub fn event(&self) -> Event {
        self.event_of(self.event)
    }

    /// An event that is not the RPC's own.
    pub fn event_of(&self, kind: &str) -> Event {
        let proof = self
            .caller
            .principal()
            .map(|principal| principal.proof.name(principal.id));
        Event {
            rpc: self.rpc.trim_start_matches('/').to_owned(),
            actor_proof: proof.unwrap_or_default(),
            request_id: self.request.as_ref().map(|request| request.key.request_id),
            address: self.address,
            ..Event::new(EventId(self.new_uuid()), kind, self.actor, self.now)
        }
    }

    /// The first answer, if this is a retry: for calls that check or use up something before their
    /// transaction.
    pub async fn first_answer<A: Answer>(&self) -> Result<Option<A>> {
        match self.request {
            None => Ok(None),
            Some(_) => self.replay(&mut self.db().read().await?).await,
        }
    }

    /// For `mutate!`: a refusal, unless it is for what the first attempt of the same request has
    /// meanwhile done. Whoever no longer stands has no part in that either.
    pub async fn first_answer_or<A: Answer>(&self, refusal: Error) -> Result<A> {
        if self.request.is_none() {
            return Err(refusal);
        }
        let again = async {
            let mut db = self.db().read().await?;
            self.require_standing(&mut db).await?;
            self.replay(&mut db).await
        };
        match again.await {
            Ok(Some(answer)) => Ok(answer),
            _ => Err(refusal),
        }
    }

    /// The first answer to this request, if it is a retry.
    pub async fn replay<A: Answer>(&self, db: &mut Read) -> Result<Option<A>> {
        let Some(RequestId { key, body_mac }) = &self.request else {
            return Ok(None);
        };
        let Some(record) = requests::find(db, key).await? else {
            return Ok(None);
        };
        if !secret::equal(&record.body_mac, body_mac) {
            let text = "was used before with another request";
            return Err(Error::invalid(Reason::RequestIdReused, "request_id", text));
        }
        A::decode(record.answer.as_slice())
            .map(Some)
            .map_err(Error::internal)
    }

    /// Remembers the answer for retries, without what is shown once only.
    pub async fn record<A: Answer>(&self, tx: &mut Write, answer: &A) -> Result<()> {
        let Some(RequestId { key, body_mac }) = &self.request else {
            return Ok(());
        };
        let mut answer = answer.clone();
        answer.withhold_secrets();
        let record = Record {
            body_mac: body_mac.clone(),
            answer: answer.encode_to_vec(),
        };
        requests::insert(tx, key, record, self.now).await
    }

    /// What was made only to be checked is not handed out.
    pub fn without_secret_if_dry<A: Answer>(&self, mut answer: A) -> A {
        if self.validate_only {
            answer.withhold_secrets();
        }
        answer
    }

    /// What the page tokens of this call are good for: this caller, this RPC, this query.
    pub fn page_context(&self, query: &[&str]) -> page::Context {
        page::Context::new(self.rpc, self.caller.uuid(), query)
    }

    pub fn open_page<C: DeserializeOwned>(
        &self,
        context: &page::Context,
        token: &str,
    ) -> Result<Option<C>> {
        context.open(&self.app.keys.page_tokens, token)
    }

    /// The user that a name stands for, `users/me` included.
    pub fn user(&self, field: &str, name: &str) -> Result<UserId> {
        match self.account(field, name) {
            Ok(AccountId::User(id)) => Ok(id),
            _ => Err(Error::field(field, "must be users/{uid}")),
        }
    }

    /// The system account that a name stands for, `systemAccounts/me` included.
    pub fn system_account(&self, field: &str, name: &str) -> Result<SystemAccountId> {
        match self.account(field, name) {
            Ok(AccountId::System(id)) => Ok(id),
            _ => Err(Error::field(field, "must be systemAccounts/{uid}")),
        }
    }

    /// The account that a name stands for.
    pub fn account(&self, field: &str, name: &str) -> Result<AccountId> {
        let own = self.caller.account();
        let account = match (name, own) {
            ("users/me", Some(id @ AccountId::User(_)))
            | ("systemAccounts/me", Some(id @ AccountId::System(_))) => Some(id),
            _ => AccountId::parse(name),
        };
        account.ok_or_else(|| Error::field(field, "must be users/{uid} or systemAccounts/{uid}"))
    }

    /// The account and the id in a name such as `users/{uid}/sessions/{id}`.
    pub fn child(&self, field: &str, name: &str, collection: &str) -> Result<(AccountId, Uuid)> {
        let expected = || Error::field(field, format!("must be users/{{uid}}/{collection}/{{id}}"));
        let (parent, id) = name.rsplit_once('/').ok_or_else(expected)?;
        let parent = parent
            .strip_suffix(collection)
            .and_then(|parent| parent.strip_suffix('/'))
            .ok_or_else(expected)?;
        let account = self.account(field, parent).map_err(|_| expected())?;
        Ok((account, name::uuid(id).ok_or_else(expected)?))
    }

    /// What an access token says, if it is good now and everything behind it still stands.
    pub async fn examine(&self, token: &str) -> Result<Claims> {
        let app = self.app();
        let genuine = match self.genuine(token) {
            // Perhaps another process has made the key.
            Err(Reason::TokenInvalid) if app.keyring.load().is_unknown(token) => {
                signing::refresh_for_unknown(app, self.db()).await?;
                self.genuine(token)
            }
            verdict => verdict,
        };
        let genuine = genuine.map_err(Error::Unauthenticated)?;
        let claims = &genuine.claims;
        let standing = tokens::standing(&mut self.db().read().await?, claims).await?;
        if standing.is_some_and(|standing| standing.bears(claims, self.now)) {
            return Ok(claims.clone());
        }
        Err(Error::Unauthenticated(Reason::TokenRevoked))
    }

    /// A token with a signature of ours whose time is not over.
    fn genuine(&self, token: &str) -> Result<Arc<Genuine>, Reason> {
        let app = self.app();
        let keyring = app.keyring.load();
        let digest = secret::sha256(token.as_bytes());
        let remembered = app.genuine.get(&digest);
        let is_new = remembered.is_none();
        let genuine = keyring.verify(token, remembered, &app.issuer, self.now)?;
        if is_new {
            app.genuine.insert(digest, Arc::clone(&genuine));
        }
        Ok(genuine)
    }

    /// For `mutate!`: refuses a caller whose session, credential or account has come to an end since
    /// the call entered. On PostgreSQL a transaction that has asked already may still commit beside the
    /// one that ends them, as if it had come first, within the time that a transaction has.
    pub async fn require_standing(&self, db: &mut Read) -> Result<()> {
        let Some(claims) = &self.claims else {
            return Ok(());
        };
        let standing = tokens::standing(db, claims).await?;
        if standing.is_some_and(|standing| standing.bears(claims, self.now)) {
            return Ok(());
        }
        Err(Error::Unauthenticated(Reason::TokenRevoked))
    }

    /// What the caller's token says; nothing without one.
    async fn authenticate(&self, metadata: &MetadataMap) -> Result<Option<Claims>> {
        let invalid = || Error::Unauthenticated(Reason::TokenInvalid);
        let mut values = metadata.get_all("authorization").iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        let text = value
            .to_str()
            .ok()
            .filter(|_| values.next().is_none())
            .ok_or_else(invalid)?;
        let (scheme, token) = text.split_once(' ').ok_or_else(invalid)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(invalid());
        }
        let claims = self.examine(token.trim()).await?;
        if claims.aud != OWN_AUDIENCE || !claims.may_come_with(self.certificate.as_deref()) {
            return Err(invalid());
        }
        Ok(Some(claims))
    }

    fn request_id(&self, message: &impl Inbound) -> Result<Option<RequestId>> {
        let text = message.request_id();
        if text.is_empty() {
            return Ok(None);
        }
        let request_id =
            name::uuid(text).ok_or_else(|| Error::field("request_id", "must be a UUID"))?;
        let key = requests::Key {
            caller: self.caller.uuid(),
            rpc: self.rpc,
            request_id,
        };
        // What a caller may see of the answer depends on its scopes, so they are part of what is asked.
        let scopes = self.claims.as_ref().map_or("", |claims| &claims.scope);
        let asked = [scopes.as_bytes(), &[0], &message.encode_to_vec()].concat();
        let body_mac = hmac::sign(&self.app.keys.request_bodies, &asked);
        Ok(Some(RequestId {
            key,
            body_mac: body_mac.as_ref().to_vec(),
        }))
    }
}

/// Somebody who would give, and until when: under which names, and what they hold.
struct Granter {
    names: BTreeMap<String, Timestamp>,
    held: BTreeMap<ScopeName, Timestamp>,
    /// Says what there is to be granted, and by whom.
    maintains: Option<Timestamp>,
    /// Of programs, what their tokens are limited by.
    confines: Option<(SystemAccount, Credential)>,
}

impl Granter {
    /// Until when they may grant a scope, if at all.
    fn may_grant(&self, scope: &Scope) -> Option<Timestamp> {
        let name = &scope.name;
        // What of our own is in their token is known already.
        let could_get = name.is_own()
            || self.confines.as_ref().is_none_or(|(account, credential)| {
                account.limits.permit(name) && credential.permits(&name.scope)
            });
        let held = self.held.get(name).copied().filter(|_| could_get);
        held.max(scope.grantable_until(&self.names, self.maintains))
    }
}

fn require_end(
    scope: &Scope,
    end: Option<Timestamp>,
    until: Option<Timestamp>,
    field: &str,
) -> Result<()> {
    match end {
        None => {
            let name = if scope.name.is_own() {
                scope.name.scope.clone()
            } else {
                scope.name.to_string()
            };
            Err(Error::Denied {
                reason: Reason::ScopeNotHeld,
                scopes: vec![name],
            })
        }
        Some(end) if until.unwrap_or(Timestamp::MAX) > end => {
            let text = format!(
                "is for longer than you may grant {}: until {end}",
                scope.name
            );
            Err(Error::field(field, text))
        }
        Some(_) => Ok(()),
    }
}

/// The scope of those who say what there is to be granted.
const MAINTAINS_CATALOGUE: &str = "access.write";

fn text(metadata: &MetadataMap, name: &str) -> String {
    let value = metadata.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// Runs a mutation: as `transact!`, but the caller's token has to stand in it too, a retry gets its
/// first answer, the answer of a first attempt is recorded for retries, and `validate_only` rolls
/// everything back. Another isolation than SERIALIZABLE will do where nothing that was read, but for
/// the unique keys, has to stay true until the end.
macro_rules! mutate {
    ($call:expr, |$tx:ident| $body:block) => {
        mutate!($call, $crate::store::db::Isolation::Serializable, |$tx| {
            $body
        })
    };
    ($call:expr, $isolation:expr, |$tx:ident| $body:block) => {
        match $crate::store::transact!(
            $call.attempts($isolation),
            attempts | $tx | {
                $call.require_standing($tx).await?;
                match $call.replay($tx).await? {
                    Some(first) => first,
                    None => {
                        let answer = $body;
                        $call.record($tx, &answer).await?;
                        answer
                    }
                }
            }
        ) {
            Ok(answer) => {
                $call.committed();
                Ok(answer)
            }
            Err(refusal) => $call.first_answer_or(refusal).await,
        }
    };
}
pub(super) use mutate;

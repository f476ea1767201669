//! The door: every RPC begins with [`Call::enter`], which says who calls, whether they may, and what
//! time it is.
//!
//! Invariant: no call, no database. Only a `Call` gets a handle, only this file makes a `Call`; the
//! ways are `enter` and `enter_to_find`, for requests, and `system`, for accountd's own work.

use std::{
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

use super::{
    consent::{Commission, Consent, Purpose},
    reach::{Limit, View},
};
use crate::{
    app::App,
    domain::{
        access::{self, Access, Caller, Policy, Principal},
        assurance::{Assurance, Demand},
        certificate::Certificate,
        error::{Error, Reason, Result},
        event::{Actor, Event},
        keyring::Genuine,
        name::{self, AccountId, CredentialId, EventId, SystemAccountId, UserId},
        page, secret,
        time::Timestamp,
        token::{self, AccountClaims, Claims, OWN_AUDIENCE, Refusal},
    },
    signing,
    store::{
        credentials,
        db::{Attempts, Db, Isolation, Read, Write},
        requests::{self, Record},
        tokens,
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
    pub(super) claims: Option<Claims>,
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
    /// By which groups alone the call was admitted.
    pub(super) limit: Option<Limit>,
    pub(super) consent: Consent,
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
        let mut knock = Self::knock(app, request).await?;
        if let Err(refusal) = knock.authorise() {
            if knock.policy.reach != access::Reach::Target {
                return Err(refusal);
            }
            let target = knock.message.target();
            knock.call.admit_to(knock.policy, target, refusal).await?;
        }
        knock.admitted().await
    }

    /// The same for a request that finds something: also what it may find.
    pub async fn enter_to_find<T: Inbound>(
        app: &Arc<App>,
        request: Request<T>,
    ) -> Result<(Self, T, View)> {
        let mut knock = Self::knock(app, request).await?;
        let view = match knock.authorise() {
            Ok(()) => View::Everything,
            Err(refusal) if knock.policy.reach != access::Reach::Found => return Err(refusal),
            Err(refusal) => knock.call.admit_to_some(knock.policy, refusal)?,
        };
        let (call, message) = knock.admitted().await?;
        Ok((call, message, view))
    }

    /// A request, and who is at the door with it.
    async fn knock<T: Inbound>(app: &Arc<App>, request: Request<T>) -> Result<Knock<T>> {
        let (metadata, extensions, message) = request.into_parts();
        // The layer puts it there; a request that came another way is not served.
        let context: &Context = extensions
            .get()
            .ok_or_else(|| Error::internal("a call without context"))?;
        let policy = context.policy;
        let commission: Option<Arc<Commission>> = extensions.get().cloned();
        let is_dry =
            |it: &Arc<Commission>| it.purpose != Purpose::Execution || it.approver.validate_only;
        let mut call = Self {
            rpc: policy.rpc,
            address: context.address,
            certificate: context.certificate.clone(),
            user_agent: text(&metadata, "user-agent"),
            deadline: context.deadline,
            validate_only: message.validate_only() || commission.as_ref().is_some_and(is_dry),
            actor: Actor::Anonymous,
            ..Self::system(app, policy.event)
        };
        let authenticated = match &commission {
            Some(commission) => Ok(commission.claims()),
            None => call.authenticate(&metadata).await,
        };
        match authenticated {
            Ok(claims) => {
                let mut principal = claims.clone().map(Principal::new);
                if let (Some(principal), Some(commission)) = (&mut principal, &commission) {
                    call.narrow(principal, commission).await?;
                }
                call.caller = principal.map_or(Caller::Anonymous, Caller::Account);
                call.claims = claims;
            }
            Err(Error::Unauthenticated(reason)) if policy.access == Access::Public => {
                call.doubt = Some(reason);
            }
            Err(error) => return Err(error),
        }
        Ok(Knock {
            call,
            policy,
            message,
            commission,
        })
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
        match self.missing_proof(db, max_age_s).await? {
            None => Ok(()),
            Some(Refusal::NeedsOwnKey) => {
                let text = "has come with a secret that accountd knows, too";
                let reason = Reason::CredentialKindNotAllowed;
                Err(Error::precondition(reason, self.by(), text))
            }
            Some(_) => Err(Error::Insufficient(Demand {
                assurance: Assurance::Aal2,
                max_age_s: Some(max_age_s),
            })),
        }
    }

    /// The same, however long ago, as an answer.
    pub async fn has_own_proof(&self, db: &mut Read) -> Result<bool> {
        let missing = self.missing_proof(db, 0).await?;
        Ok(missing.is_none_or(|it| it == Refusal::NeedsFreshSignIn))
    }

    async fn missing_proof(&self, db: &mut Read, max_age_s: i64) -> Result<Option<Refusal>> {
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
        let account = &claims.account;
        Ok(token::shortfall(account, is_shared, max_age_s, self.now))
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
            limit: None,
            consent: Consent::default(),
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

    /// The path of the RPC.
    pub const fn rpc(&self) -> &'static str {
        self.rpc
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
        if self.request.is_none() || self.consent.commission.is_some() {
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
        if self.consent.commission.is_some() {
            let text = "has been done meanwhile, without waiting";
            return Err(Error::precondition(Reason::WrongState, self.rpc, text));
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
        // Somebody else's request means somebody else by it.
        let commission = self.consent.commission.as_ref();
        let own = commission.map(|it| it.change.proposer());
        let own = own.or_else(|| self.caller.account());
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
    /// the call entered, or who has lost sight of what it is about. On PostgreSQL a transaction that has
    /// asked already may still commit beside the one that ends them, as if it had come first, within the
    /// time that a transaction has.
    pub async fn require_standing(&self, db: &mut Read) -> Result<()> {
        let Some(claims) = &self.claims else {
            return Ok(());
        };
        let standing = tokens::standing(db, claims).await?;
        if !standing.is_some_and(|standing| standing.bears(claims, self.now)) {
            return Err(Error::Unauthenticated(Reason::TokenRevoked));
        }
        match &self.limit {
            Some(limit) => limit.require(db, self.now).await,
            None => Ok(()),
        }
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

    fn request_id(&self, text: &str, fingerprint: &[u8]) -> Result<Option<RequestId>> {
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
        Ok(Some(RequestId {
            key,
            body_mac: fingerprint.to_vec(),
        }))
    }

    /// What the same request of the same caller is recognised by. What a caller may see of the answer depends on
    /// its scopes, so they are part of what is asked.
    fn fingerprint(&self, request: &[u8]) -> Vec<u8> {
        let scopes = self.claims.as_ref().map_or("", |claims| &claims.scope);
        let asked = [scopes.as_bytes(), &[0], request].concat();
        let mac = hmac::sign(&self.app.keys.request_bodies, &asked);
        mac.as_ref().to_vec()
    }
}

/// A request that is not admitted yet.
struct Knock<T> {
    call: Call,
    policy: &'static Policy,
    message: T,
    commission: Option<Arc<Commission>>,
}

impl<T: Inbound> Knock<T> {
    fn authorise(&self) -> Result<()> {
        access::authorise(self.policy, &self.call.caller, self.message.target())
    }

    /// What is left to do for whoever may come in.
    async fn admitted(self) -> Result<(Call, T)> {
        let Self {
            mut call,
            policy,
            message,
            commission,
        } = self;
        // Whoever asked for a change, or agreed first, has shown it then.
        let is_of_now = |it: &Arc<Commission>| it.purpose == Purpose::Rehearsal;
        if let Some(demand) = policy.demand
            && commission.as_ref().is_none_or(is_of_now)
        {
            call.require_assurance(demand).await?;
        }
        call.actor = call
            .caller
            .account()
            .map_or(Actor::Anonymous, Actor::Account);
        let may_wait = policy.may_wait && commission.is_none();
        if may_wait || !message.request_id().is_empty() {
            let encoded = message.encode_to_vec();
            let fingerprint = call.fingerprint(&encoded);
            call.request = call.request_id(message.request_id(), &fingerprint)?;
            if may_wait {
                let is_person = matches!(call.caller.account(), Some(AccountId::User(_)));
                let is_own =
                    is_person && policy.allow_self && call.caller.is_self(message.target());
                let is_marked = call.app.four_eyes.marks(policy.rpc) && !is_own;
                call.consent = Consent::of_request(encoded, fingerprint, is_marked);
            }
        }
        let is_of_proposer = |it: &Arc<Commission>| it.purpose == Purpose::Execution;
        if !commission.as_ref().is_none_or(is_of_proposer) {
            // The request is another's, and so is its id.
            call.request = None;
        }
        call.consent.commission = commission;
        Ok((call, message))
    }
}

fn text(metadata: &MetadataMap, name: &str) -> String {
    let value = metadata.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

/// Runs a mutation: as `transact!`, but the caller's token has to stand in it too, a retry gets its
/// first answer, the answer of a first attempt is recorded for retries, `validate_only` rolls
/// everything back, and so does a call that has to wait for a second person. Another isolation than
/// SERIALIZABLE will do where nothing that was read, but for the unique keys, has to stay true until the
/// end.
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
                        $call.conclude($tx).await?;
                        answer
                    }
                }
            }
        ) {
            Ok(answer) => {
                $call.committed();
                Ok(answer)
            }
            Err(refusal) => {
                let refusal = $call.or_wait(refusal).await;
                $call.first_answer_or(refusal).await
            }
        }
    };
}
pub(super) use mutate;

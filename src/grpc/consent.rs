//! Four eyes, where calls are made: which ones wait for a second person, and how they are carried out then.
//!
//! A call that has to wait runs like any other to the end of its transaction, which is undone: what becomes a
//! change would have succeeded. Whoever agrees has it run again, first in their own name and undone, and so in that of
//! the first of two who agree, then in the name of whoever asked, in one transaction with the end of the change.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use http::{Extensions, HeaderMap};
use prost::Message as _;
use tonic::{Code, Status};

use super::{
    call::{Call, Context},
    changes,
    inward::Inward,
    services, status,
};
use crate::{
    app::App,
    domain::{
        access::{self, Principal, Proof},
        assurance::Assurance,
        change::{self, Change, MAX_PENDING, MAX_REQUEST_BYTES, State},
        error::{Error, Reason, Result},
        grant,
        name::{AccountId, ChangeId},
        scope::ScopeName,
        secret,
        time::Timestamp,
        token::{AccountClaims, Claims, OWN_AUDIENCE},
    },
    store::{
        self,
        db::{Read, Write},
        events, grants, sessions, system_accounts, transact,
    },
};

/// What of a call concerns a second person.
#[derive(Default)]
pub(super) struct Consent {
    /// Of calls that may have to wait, the request.
    request: Vec<u8>,
    /// The same as a retry is recognised by.
    fingerprint: Vec<u8>,
    may_wait: bool,
    /// Whether the call, or what it turns out to give, needs a second person.
    is_needed: AtomicBool,
    /// Why the call is made, if nobody has sent it.
    pub(super) commission: Option<Arc<Commission>>,
}

impl Consent {
    pub(super) fn of_request(request: Vec<u8>, fingerprint: Vec<u8>, is_marked: bool) -> Self {
        Self {
            request,
            fingerprint,
            may_wait: true,
            is_needed: is_marked.into(),
            commission: None,
        }
    }
}

/// A call that is made because somebody agrees to a change.
pub(super) struct Commission {
    /// The call of whoever agrees.
    pub(super) approver: Arc<Call>,
    pub(super) change: Change,
    pub(super) reason: String,
    pub(super) purpose: Purpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// In the name of whoever agrees, and undone: nobody agrees to what they could not do themselves.
    Rehearsal,
    /// The same in the name of the first of two, who could when they agreed.
    Recheck,
    /// In the name of whoever asked.
    Execution,
}

impl Commission {
    /// The token in whose name the call is made.
    pub(super) fn claims(&self) -> Option<Claims> {
        match self.purpose {
            Purpose::Rehearsal => self.approver.claims.clone(),
            Purpose::Recheck => self.change.first_claims.clone(),
            Purpose::Execution => Some(self.change.claims.clone()),
        }
    }

    /// Makes the call.
    pub(super) async fn carry_out(self, app: &Arc<App>) -> Result<(), Status> {
        let (id, rpc) = (self.change.id, self.change.rpc.clone());
        let purpose = self.purpose;
        // An update may have taken the RPC away.
        let policy =
            access::policy(&rpc).ok_or_else(|| gone(id, "there is no such RPC any more"))?;
        let message = changes::request(app, &self.change)?;
        let mut extensions = Extensions::new();
        extensions.insert(Context {
            policy,
            address: self.change.address,
            certificate: None,
            deadline: self.approver.deadline,
        });
        extensions.insert(Arc::new(self));
        let call = Inward {
            rpc: &rpc,
            message: &message,
            headers: HeaderMap::new(),
            extensions,
        };
        let outcome = call.send(services(app).into_axum_router()).await;
        outcome.map(drop).map_err(|status| {
            let is_refusal = match status.code() {
                Code::PermissionDenied
                | Code::Unauthenticated
                | Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition => true,
                Code::Aborted => !status::is_of(&status, Reason::TransactionConflict),
                _ => false,
            };
            if purpose == Purpose::Rehearsal || !is_refusal {
                return status;
            }
            // It is not whoever agrees who may not.
            let what = match purpose {
                Purpose::Recheck => {
                    "was agreed to by somebody who may not any more: to be refused, and asked for anew"
                }
                _ => "cannot be carried out any more",
            };
            gone(id, &format!("{what}: {}", status.message()))
        })
    }

    /// The change is over, in the transaction that does what it is about.
    async fn conclude(&self, tx: &mut Write) -> Result<()> {
        if self.purpose != Purpose::Execution {
            return Ok(());
        }
        let call = &self.approver;
        call.require_standing(tx).await?;
        let mut change = changes::find_pending(tx, call, self.change.id).await?;
        changes::require_revision(&change, self.change.revision)?;
        call.end_change(&mut change, State::Approved, self.reason.clone(), call.now)?;
        store::changes::update(tx, &change).await?;
        events::append(tx, &change.tell(call.event())).await?;
        call.record(tx, &changes::shown(call.app(), &change, call.now)?)
            .await
    }
}

fn gone(id: ChangeId, text: &str) -> Status {
    Error::precondition(Reason::WrongState, id.to_string(), text).into()
}

impl Call {
    /// Says that somebody gets these scopes by this call, now or later.
    pub fn gives<'a>(&self, scopes: impl IntoIterator<Item = &'a ScopeName>) {
        let four_eyes = &self.app().four_eyes;
        if scopes.into_iter().any(|scope| four_eyes.guards(scope)) {
            self.consent.is_needed.store(true, Relaxed);
        }
    }

    /// Says that an account may act again that may have kept what it held.
    pub async fn revives(&self, db: &mut Read, account: impl Into<AccountId>) -> Result<()> {
        let account = account.into();
        let power = grants::power(db, account.into(), Some(OWN_AUDIENCE), self.now).await?;
        self.gives(power.scopes());
        Ok(())
    }

    /// Says that the call may let somebody into a person's account, which lasts: refuses who has what that holds for a
    /// while only. If it is somebody else's and holds what nobody is given alone, this is not done alone either: who
    /// could get in could agree with themselves. Refuses where the call cannot wait.
    pub async fn opens(&self, db: &mut Read, account: AccountId) -> Result<()> {
        let is_own = self.caller.account() == Some(account);
        if is_own || matches!(account, AccountId::System(_)) {
            return Ok(());
        }
        let power = grants::power(db, account.into(), Some(OWN_AUDIENCE), self.now).await?;
        self.require_lasting(db, account, &power, None).await?;
        if self.consent.commission.is_some() {
            return Ok(());
        }
        let guarded = power.scopes().find(|it| self.app().four_eyes.guards(it));
        let Some(guarded) = guarded else {
            return Ok(());
        };
        if self.consent.may_wait {
            self.consent.is_needed.store(true, Relaxed);
        } else if !self.is_bootstrap(db).await? {
            return Err(Error::Denied {
                reason: Reason::TargetOutranksCaller,
                scopes: vec![guarded.scope.clone()],
            });
        }
        Ok(())
    }

    /// Ends a change: of what was asked for stays what was shown of it.
    pub fn end_change(
        &self,
        change: &mut Change,
        state: State,
        reason: String,
        time: Timestamp,
    ) -> Result<()> {
        let app = self.app();
        let shown = changes::without_secrets(&change.rpc, &changes::request(app, change)?);
        let shown = shown.map_or_else(Vec::new, |message| message.encode_to_vec());
        change.request = changes::seal(app, change.id, &shown);
        // By which the rest of it could be guessed.
        change.fingerprint.clear();
        change.end(state, self.by(), reason, time);
        Ok(())
    }

    /// Takes from a principal in whose name a change is carried out what it could not get into a token any more.
    pub(super) async fn narrow(
        &self,
        principal: &mut Principal,
        commission: &Commission,
    ) -> Result<()> {
        let mut db = self.db().read().await?;
        if let (AccountId::User(user), Proof::Session(session)) = (principal.id, principal.proof) {
            let session = sessions::find(&mut db, user, session).await?;
            if !session.is_some_and(|session| session.is_live(self.now)) {
                return Err(Error::Unauthenticated(Reason::TokenRevoked));
            }
        }
        let holdings = grants::holdings(&mut db, principal.id.into(), Some(OWN_AUDIENCE), self.now);
        let held = holdings.await?.held(OWN_AUDIENCE, self.now);
        let confines = self.confines(&mut db, principal).await?;
        let has_own_proof = match (&confines, commission.claims().map(|claims| claims.account)) {
            (Some(confines), _) => confines.is_by_own_key(),
            (None, Some(AccountClaims::User { acr, .. })) => acr == Assurance::Aal2,
            _ => false,
        };
        principal.scopes.retain(|scope| {
            grant::end(&held, scope, has_own_proof).is_some()
                && confines
                    .as_ref()
                    .is_none_or(|confines| confines.permit(&ScopeName::own(scope)))
        });
        // Whose own word counted as the first has to have it still.
        let counts = match commission.purpose {
            Purpose::Rehearsal => false,
            Purpose::Recheck => true,
            Purpose::Execution => commission.change.approvals_required() == 1,
        };
        if counts {
            principal.require(change::APPROVE)?;
        }
        Ok(())
    }

    /// For `mutate!`: what is left to do at the end of the transaction, by which it may commit.
    pub async fn conclude(&self, tx: &mut Write) -> Result<()> {
        match &self.consent.commission {
            Some(commission) => commission.conclude(tx).await,
            None if self.has_to_wait(tx).await? => {
                Err(Error::precondition(Reason::ApprovalPending, "", ""))
            }
            None => Ok(()),
        }
    }

    async fn has_to_wait(&self, db: &mut Read) -> Result<bool> {
        if self.validate_only || !self.consent.is_needed.load(Relaxed) {
            return Ok(false);
        }
        Ok(!self.is_bootstrap(db).await?)
    }

    /// Whether it is the account of whoever has the machine, which makes the first two operators.
    async fn is_bootstrap(&self, db: &mut Read) -> Result<bool> {
        let Some(AccountId::System(id)) = self.caller.account() else {
            return Ok(false);
        };
        let account = system_accounts::find(db, id).await?;
        Ok(account.is_some_and(|account| account.built_in()))
    }

    /// For `mutate!`: a refusal, unless it is that of a call which would have succeeded and has to wait: the
    /// refusal that names the change it has become.
    pub async fn or_wait(&self, refusal: Error) -> Error {
        let waits = matches!(&refusal, Error::Precondition { reason, .. } if *reason == Reason::ApprovalPending);
        if !waits {
            return refusal;
        }
        match self.propose().await {
            Ok(change) => {
                let end = change.next_time.unwrap_or(self.now);
                let text = format!("waits for the approval of another operator until {end}");
                Error::precondition(Reason::ApprovalPending, change.id.to_string(), text)
            }
            Err(error) => error,
        }
    }

    /// The change that the call becomes, or has become before.
    async fn propose(&self) -> Result<Change> {
        let claims = self.claims.clone();
        let claims = claims.ok_or(Error::Unauthenticated(Reason::TokenMissing))?;
        let request = &self.consent.request;
        if request.len() > MAX_REQUEST_BYTES {
            let text = format!("has to wait, and is longer than {MAX_REQUEST_BYTES} bytes");
            return Err(Error::precondition(Reason::LimitReached, self.rpc(), text));
        }
        // Nobody agrees to what cannot be shown to them.
        if changes::request_shown(self.rpc(), request).is_none() {
            let text = "has to wait, and holds a value that JSON has no form for";
            return Err(Error::field("", text));
        }
        let id = ChangeId(self.new_uuid());
        let app = self.app();
        let change = Change {
            id,
            revision: 1,
            rpc: self.rpc().to_owned(),
            request: changes::seal(app, id, request),
            fingerprint: self.consent.fingerprint.clone(),
            claims,
            address: self.address,
            stored: State::Pending,
            create_time: self.now,
            next_time: Some(self.now.plus_s(app.config.four_eyes.change_s)),
            first_approver: String::new(),
            first_claims: None,
            decided_by: String::new(),
            decide_reason: String::new(),
            end_time: None,
        };
        let proposer = change.proposer();
        transact!(self.db(), |tx| {
            self.require_standing(tx).await?;
            let open = store::changes::list_open(tx, proposer, self.now, MAX_PENDING).await?;
            let is_same = |it: &&Change| {
                it.rpc == change.rpc
                    && secret::equal(&it.fingerprint, &change.fingerprint)
                    && it.proof() == change.proof()
            };
            match open.iter().find(is_same) {
                Some(known) => known.clone(),
                None if i64::try_from(open.len()).unwrap_or(i64::MAX) >= MAX_PENDING => {
                    let text = format!("has {MAX_PENDING} changes that wait, which is the limit");
                    let name = proposer.to_string();
                    return Err(Error::precondition(Reason::LimitReached, name, text));
                }
                None => {
                    store::changes::insert(tx, &change).await?;
                    let event = change.tell(self.event_of("change.proposed"));
                    events::append(tx, &event).await?;
                    change.clone()
                }
            }
        })
    }
}

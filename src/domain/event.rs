//! One line of the log: what happened, who did it, to what.
//!
//! Invariant: names of fields, never their values, so that the log holds no personal data beyond ids
//! and addresses.

use std::{collections::BTreeMap, net::IpAddr};

use uuid::Uuid;

use super::{
    error::Reason,
    name::{AccountId, EventId},
    time::Timestamp,
};

#[derive(Clone, Debug)]
pub struct Event {
    pub id: EventId,
    pub time: Timestamp,
    /// `user.created`; see the policies of the RPCs.
    pub kind: String,
    pub rpc: String,
    pub actor: Actor,
    /// The session or credential the actor used, by resource name.
    pub actor_proof: String,
    /// What was changed, by resource name.
    pub target: String,
    /// The account that the target is or belongs to.
    pub account: Option<AccountId>,
    /// Why it was refused; `None` when it was done.
    pub refusal: Option<Reason>,
    pub changed_fields: Vec<String>,
    pub details: BTreeMap<String, String>,
    pub request_id: Option<Uuid>,
    pub address: Option<IpAddr>,
}

/// Who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// accountd, by itself.
    Accountd,
    Anonymous,
    Account(AccountId),
}

impl Actor {
    /// As stored and as shown.
    pub fn name(self) -> String {
        match self {
            Self::Accountd => "accountd".to_owned(),
            Self::Anonymous => "anonymous".to_owned(),
            Self::Account(id) => id.to_string(),
        }
    }
}

impl Event {
    /// Something that `actor` did; what it is about is still to be said.
    pub fn new(id: EventId, kind: &str, actor: Actor, now: Timestamp) -> Self {
        Self {
            id,
            time: now,
            kind: kind.to_owned(),
            rpc: String::new(),
            actor,
            actor_proof: String::new(),
            target: String::new(),
            account: None,
            refusal: None,
            changed_fields: Vec::new(),
            details: BTreeMap::new(),
            request_id: None,
            address: None,
        }
    }

    /// The target, and the account it belongs to.
    pub fn about(mut self, target: impl ToString, account: Option<AccountId>) -> Self {
        self.target = target.to_string();
        self.account = account;
        self
    }

    /// About an account itself.
    pub fn about_account(self, account: impl Into<AccountId>) -> Self {
        let account = account.into();
        self.about(account, Some(account))
    }

    pub fn changed<'a>(mut self, fields: impl IntoIterator<Item = &'a str>) -> Self {
        self.changed_fields = fields.into_iter().map(str::to_owned).collect();
        self
    }

    pub fn detail(mut self, name: &str, value: impl ToString) -> Self {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }
}

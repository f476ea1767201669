//! A program's account: owned by somebody, limited in what it can ever get.

use ipnet::IpNet;

use super::{
    account::Lifecycle,
    credential,
    name::{SystemAccountId, UserId},
    scope::{self, ScopeName},
    seal::Seal,
    time::Timestamp,
    token::OWN_AUDIENCE,
};

/// Most scopes in a ceiling, and most audiences.
pub const MAX_LIST: usize = 100;
/// Most characters of a description.
pub const MAX_DESCRIPTION: usize = 2000;

/// What the account is for, which decides what may authenticate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Service,
    Privileged,
    BreakGlass,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Service, Self::Privileged, Self::BreakGlass];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "SERVICE",
            Self::Privileged => "PRIVILEGED",
            Self::BreakGlass => "BREAK_GLASS",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether a credential of this kind may authenticate it: what is more than a service takes nothing
    /// that somebody else knows too.
    pub const fn allows(self, credential: credential::Kind) -> bool {
        matches!(self, Self::Service) || !credential.is_shared_secret()
    }
}

#[derive(Clone, Debug)]
pub struct SystemAccount {
    pub id: SystemAccountId,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub lifecycle: Lifecycle,
    pub kind: Kind,
    /// Who answers for it; none for accountd's own.
    pub owner: Option<UserId>,
    pub display_name: String,
    pub description: String,
    pub limits: Limits,
    /// Of accounts for emergencies.
    pub seal: Seal,
    /// Tokens issued before are worthless: moved by suspending and deleting.
    pub tokens_not_before: Option<Timestamp>,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    pub last_used_time: Option<Timestamp>,
}

/// What the account can get at most, whatever is granted to it.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Empty: no ceiling.
    pub scope_ceiling: Vec<String>,
    /// Empty: only `accountd`.
    pub audiences: Vec<String>,
    /// Empty: from anywhere.
    pub allowed_cidrs: Vec<IpNet>,
}

impl Limits {
    fn has_audience(&self, audience: &str) -> bool {
        match self.audiences.as_slice() {
            [] => audience == OWN_AUDIENCE,
            audiences => audiences.iter().any(|allowed| allowed == audience),
        }
    }

    /// Whether a token may have the scope, if it is granted.
    pub fn permit(&self, name: &ScopeName) -> bool {
        self.has_audience(&name.audience) && scope::is_within(&name.scope, &self.scope_ceiling)
    }
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    DisplayName(String),
    Description(String),
    ScopeCeiling(Vec<String>),
    Audiences(Vec<String>),
    AllowedCidrs(Vec<IpNet>),
    ExpireTime(Option<Timestamp>),
}

/// The fields that an update may name.
pub const WRITABLE: [&str; 6] = [
    "display_name",
    "description",
    "scope_ceiling",
    "audiences",
    "allowed_cidrs",
    "expire_time",
];

impl SystemAccount {
    pub fn new(id: SystemAccountId, kind: Kind, owner: Option<UserId>, now: Timestamp) -> Self {
        Self {
            id,
            revision: 1,
            lifecycle: Lifecycle::default(),
            kind,
            owner,
            display_name: String::new(),
            description: String::new(),
            limits: Limits::default(),
            seal: Seal::default(),
            tokens_not_before: None,
            create_time: now,
            update_time: now,
            last_used_time: None,
        }
    }

    /// Whether it may get tokens.
    pub fn may_act(&self, now: Timestamp) -> bool {
        self.lifecycle.may_act(now) && (self.kind != Kind::BreakGlass || self.seal.is_open(now))
    }

    /// When that is over by itself.
    pub fn end_time(&self) -> Option<Timestamp> {
        let ends = [self.lifecycle.expire_time, self.seal.unsealed_until_time];
        ends.into_iter().flatten().min()
    }

    /// Made by accountd itself.
    pub const fn built_in(&self) -> bool {
        self.owner.is_none()
    }

    pub fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::DisplayName(text) => self.display_name = text,
            Edit::Description(text) => self.description = text,
            Edit::ScopeCeiling(scopes) => self.limits.scope_ceiling = scopes,
            Edit::Audiences(audiences) => self.limits.audiences = audiences,
            Edit::AllowedCidrs(cidrs) => self.limits.allowed_cidrs = cidrs,
            Edit::ExpireTime(time) => self.lifecycle.expire_time = time,
        }
    }

    /// To be called once with each stored change.
    pub fn touch(&mut self, now: Timestamp) {
        self.revision += 1;
        self.update_time = now;
    }

    /// Makes the tokens it has worthless.
    pub fn revoke_tokens(&mut self, now: Timestamp) {
        self.tokens_not_before = Some(now);
    }

    pub fn may_ask_for(&self, audience: &str) -> bool {
        self.limits.has_audience(audience)
    }
}

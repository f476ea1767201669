//! What proves who an account is; the secret itself is only ever seen by `store` and the hasher.

use ipnet::IpNet;

use super::{
    error::{Error, Reason, Result},
    name::{AccountId, CredentialId},
    time::{self, Timestamp},
};

/// Most client secrets of one system account.
pub const MAX_CLIENT_SECRETS: i64 = 20;
/// Most characters of a label.
pub const MAX_LABEL: usize = 200;
/// Use is noted at most this often, in seconds, so that it costs no write per call.
pub const LAST_USED_GRAIN_S: i64 = 3600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Password,
    ClientSecret,
}

impl Kind {
    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::ClientSecret => "client_secret",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        [Self::Password, Self::ClientSecret]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

#[derive(Clone, Debug)]
pub struct Credential {
    pub id: CredentialId,
    pub account: AccountId,
    pub kind: Kind,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub label: String,
    /// Enough of a generated secret to tell it from others.
    pub hint: String,
    /// Empty: no ceiling.
    pub scope_ceiling: Vec<String>,
    /// Empty: from anywhere.
    pub allowed_cidrs: Vec<IpNet>,
    pub create_time: Timestamp,
    /// When the secret itself was last replaced.
    pub change_time: Timestamp,
    pub expire_time: Option<Timestamp>,
    pub last_used_time: Option<Timestamp>,
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    Label(String),
    ExpireTime(Option<Timestamp>),
    ScopeCeiling(Vec<String>),
    AllowedCidrs(Vec<IpNet>),
}

/// The fields that an update may name.
pub const WRITABLE: [&str; 4] = ["label", "expire_time", "scope_ceiling", "allowed_cidrs"];

impl Credential {
    pub fn new(id: CredentialId, account: AccountId, kind: Kind, now: Timestamp) -> Self {
        Self {
            id,
            account,
            kind,
            revision: 1,
            label: String::new(),
            hint: String::new(),
            scope_ceiling: Vec::new(),
            allowed_cidrs: Vec::new(),
            create_time: now,
            change_time: now,
            expire_time: None,
            last_used_time: None,
        }
    }

    /// `users/{uuid}/credentials/{id}`.
    pub fn name(&self) -> String {
        self.account.child("credentials", self.id.0)
    }

    /// A password has a label and nothing else to edit.
    pub fn edit(&mut self, edit: Edit) -> Result<()> {
        let is_label = matches!(edit, Edit::Label(_));
        if self.kind == Kind::Password && !is_label {
            return Err(Error::field(
                "credential",
                "is a password: only its label can be changed",
            ));
        }
        match edit {
            Edit::Label(label) => self.label = label,
            Edit::ExpireTime(time) => self.expire_time = time,
            Edit::ScopeCeiling(scopes) => self.scope_ceiling = scopes,
            Edit::AllowedCidrs(cidrs) => self.allowed_cidrs = cidrs,
        }
        Ok(())
    }

    /// Makes this, which an account makes for itself, no freer than the credential `by` that it
    /// authenticated with: what is not said is inherited, what is said may only be narrower.
    pub fn confine(&mut self, by: &Self) -> Result<()> {
        if self.scope_ceiling.is_empty() {
            self.scope_ceiling.clone_from(&by.scope_ceiling);
        }
        let wider =
            |scope: &&String| !by.scope_ceiling.is_empty() && !by.scope_ceiling.contains(scope);
        if let Some(scope) = self.scope_ceiling.iter().find(wider) {
            let scopes = vec![scope.clone()];
            return Err(Error::Denied {
                reason: Reason::ScopeNotHeld,
                scopes,
            });
        }
        if self.allowed_cidrs.is_empty() {
            self.allowed_cidrs.clone_from(&by.allowed_cidrs);
        }
        let outside = |net: &IpNet| {
            !by.allowed_cidrs.is_empty()
                && !by.allowed_cidrs.iter().any(|outer| outer.contains(net))
        };
        if self.allowed_cidrs.iter().any(outside) {
            let text = "must lie within those of the credential that makes this one";
            return Err(Error::field("credential.allowed_cidrs", text));
        }
        self.expire_time = [self.expire_time, by.expire_time]
            .into_iter()
            .flatten()
            .min();
        Ok(())
    }

    pub fn is_live(&self, now: Timestamp) -> bool {
        !time::has_passed(self.expire_time, now)
    }
}

/// Whether a use at `now` should be written down, given what is written.
pub fn use_is_news(last_used_time: Option<Timestamp>, now: Timestamp) -> bool {
    time::has_passed(
        Some(last_used_time.map_or(now, |time| time.plus_s(LAST_USED_GRAIN_S))),
        now,
    )
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::name::SystemAccountId;

    const NOW: Timestamp = Timestamp::from_seconds(100_000);

    fn secret() -> Credential {
        let account = SystemAccountId(Uuid::nil()).into();
        Credential::new(CredentialId(Uuid::nil()), account, Kind::ClientSecret, NOW)
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter()
            .map(|net| net.parse().expect("a network"))
            .collect()
    }

    #[test]
    fn what_a_credential_makes_is_no_freer_than_itself() {
        let by = Credential {
            scope_ceiling: vec!["a".to_owned(), "b".to_owned()],
            allowed_cidrs: nets(&["10.0.0.0/8"]),
            expire_time: Some(NOW.plus_s(60)),
            ..secret()
        };
        let mut made = secret();
        made.confine(&by).expect("inherits");
        assert_eq!(made.scope_ceiling, by.scope_ceiling);
        assert_eq!(made.allowed_cidrs, by.allowed_cidrs);
        assert_eq!(made.expire_time, by.expire_time);

        let mut narrower = Credential {
            scope_ceiling: vec!["a".to_owned()],
            allowed_cidrs: nets(&["10.1.0.0/16"]),
            expire_time: Some(NOW.plus_s(5)),
            ..secret()
        };
        narrower.confine(&by).expect("narrower");
        assert_eq!(narrower.expire_time, Some(NOW.plus_s(5)));

        let wider = Credential {
            scope_ceiling: vec!["c".to_owned()],
            ..secret()
        };
        assert!(wider.clone().confine(&by).is_err());
        let elsewhere = Credential {
            allowed_cidrs: nets(&["0.0.0.0/0"]),
            ..secret()
        };
        assert!(elsewhere.clone().confine(&by).is_err());
        assert!(wider.clone().confine(&secret()).is_ok(), "free makes free");
    }

    #[test]
    fn a_password_has_only_a_label() {
        let mut password = Credential {
            kind: Kind::Password,
            ..secret()
        };
        assert!(password.edit(Edit::Label("old".to_owned())).is_ok());
        assert!(password.edit(Edit::ExpireTime(None)).is_err());
    }

    #[test]
    fn use_is_noted_once_an_hour() {
        assert!(use_is_news(None, NOW));
        assert!(!use_is_news(Some(NOW.plus_s(-3599)), NOW));
        assert!(use_is_news(Some(NOW.plus_s(-3600)), NOW));
    }
}

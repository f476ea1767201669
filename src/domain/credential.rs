//! What proves who an account is; the secret itself is only ever seen by `store` and the hasher.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    certificate::Identity,
    client_assertion::PublicKey,
    error::{Error, Reason, Result},
    key_set::KeySetUri,
    name::{AccountId, CredentialId},
    passkey, scope,
    time::{self, Timestamp},
    totp,
};

/// Most secrets of one kind that a system account has.
pub const MAX_SECRETS: i64 = 20;
/// Most TOTP generators and most passkeys of a person.
pub const MAX_TOTPS: i64 = 5;
pub const MAX_PASSKEYS: i64 = 20;
/// Revoked credentials of one account that are remembered.
pub const MAX_REVOKED: i64 = 40;
/// Most characters of a label.
pub const MAX_LABEL: usize = 200;
/// How long a replaced secret has to be left unused before it is revoked, in seconds.
pub const DEFAULT_OVERLAP_S: i64 = 24 * 3600;
pub const MAX_OVERLAP_S: i64 = 90 * 24 * 3600;
/// How many days before it expires whoever answers for a credential is told.
pub const EXPIRY_NOTICES_D: [i64; 3] = [1, 7, 30];
pub const DAY_S: i64 = 24 * 3600;
/// Use is noted at most this often, in seconds, so that it costs no write per call.
const LAST_USED_GRAIN_S: i64 = 3600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Password,
    Totp,
    Passkey,
    RecoveryCodes,
    ClientSecret,
    ApiKey,
    PublicKey,
    Certificate,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Password,
        Self::Totp,
        Self::Passkey,
        Self::RecoveryCodes,
        Self::ClientSecret,
        Self::ApiKey,
        Self::PublicKey,
        Self::Certificate,
    ];

    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Totp => "totp",
            Self::Passkey => "passkey",
            Self::RecoveryCodes => "recovery_codes",
            Self::ClientSecret => "client_secret",
            Self::ApiKey => "api_key",
            Self::PublicKey => "public_key",
            Self::Certificate => "certificate",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether one of them is a way in, without anything else or as the first of two steps.
    pub const fn is_way_in(self) -> bool {
        !matches!(self, Self::Totp | Self::RecoveryCodes)
    }

    /// Whether it is known to the other side as well, and so may be lost there.
    pub const fn is_shared_secret(self) -> bool {
        matches!(self, Self::ClientSecret | Self::ApiKey)
    }

    const fn is_of_program(self) -> bool {
        matches!(
            self,
            Self::ClientSecret | Self::ApiKey | Self::PublicKey | Self::Certificate
        )
    }
}

/// Whether a credential is accepted; an expired one is not, whatever its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Enrolled, and not shown to be in the hands of its owner yet.
    Pending,
    Active,
    /// Replaced, and accepted until it has been left unused for a while.
    Retiring,
    Revoked,
}

impl State {
    const ALL: [Self; 4] = [Self::Pending, Self::Active, Self::Retiring, Self::Revoked];

    /// As stored.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Active => "ACTIVE",
            Self::Retiring => "RETIRING",
            Self::Revoked => "REVOKED",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// How a secret that was replaced comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retirement {
    pub replaced_by: CredentialId,
    /// How long it has to be left unused, in seconds.
    pub overlap_s: i64,
    /// So long after the rotation: not before, and whoever uses it from then on is late.
    pub retire_time: Timestamp,
}

impl Retirement {
    /// When it is over: once nobody has used the secret for the overlap.
    pub fn end_time(&self, last_used_time: Option<Timestamp>) -> Timestamp {
        let unused_s = self.overlap_s + self.grain_s();
        last_used_time.map_or(self.retire_time, |last| {
            last.plus_s(unused_s).max(self.retire_time)
        })
    }

    /// How often its use is noted, in seconds: more often where an hour is much of the time it has.
    fn grain_s(&self) -> i64 {
        (self.overlap_s / 10).clamp(1, LAST_USED_GRAIN_S)
    }
}

/// What is public of a credential and particular to its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parameters {
    Totp(totp::Parameters),
    Passkey(passkey::Details),
    PublicKey(PublicKey),
    KeySet(KeySetUri),
    Certificate(Identity),
}

#[derive(Clone, Debug)]
pub struct Credential {
    pub id: CredentialId,
    pub account: AccountId,
    pub kind: Kind,
    pub state: State,
    pub retirement: Option<Retirement>,
    pub revoke_time: Option<Timestamp>,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub label: String,
    pub parameters: Option<Parameters>,
    /// Recovery codes that were not used yet.
    pub codes_left: Option<i64>,
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
    /// Of [`EXPIRY_NOTICES_D`], the one that was given last.
    pub expiry_notice_d: Option<i64>,
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
            state: State::Active,
            retirement: None,
            revoke_time: None,
            revision: 1,
            label: String::new(),
            parameters: None,
            codes_left: None,
            hint: String::new(),
            scope_ceiling: Vec::new(),
            allowed_cidrs: Vec::new(),
            create_time: now,
            change_time: now,
            expire_time: None,
            expiry_notice_d: None,
            last_used_time: None,
        }
    }

    /// `users/{uuid}/credentials/{id}`.
    pub fn name(&self) -> String {
        self.account.child("credentials", self.id.0)
    }

    /// Whether its ceiling lets a scope through.
    pub fn permits(&self, scope: &str) -> bool {
        scope::is_within(scope, &self.scope_ceiling)
    }

    /// What is a person's has a label and nothing else to edit.
    pub fn edit(&mut self, edit: Edit) -> Result<()> {
        if self.state == State::Revoked {
            return Err(self.wrong_state());
        }
        let is_label = matches!(edit, Edit::Label(_));
        if !self.kind.is_of_program() && !is_label {
            let text = "is a person's: only its label can be changed";
            return Err(Error::field("credential", text));
        }
        match edit {
            Edit::Label(label) => self.label = label,
            Edit::ExpireTime(time) => {
                self.expire_time = time;
                self.expiry_notice_d = None;
            }
            Edit::ScopeCeiling(scopes) => self.scope_ceiling = scopes,
            Edit::AllowedCidrs(cidrs) => self.allowed_cidrs = cidrs,
        }
        Ok(())
    }

    /// Makes this, which an account makes for itself, no freer than the credential `by` that it
    /// authenticated with: what is not said is inherited, what is said may only be narrower. What others know makes
    /// nothing that only the account would.
    pub fn confine(&mut self, by: &Self) -> Result<()> {
        by.require_active()?;
        if by.kind.is_shared_secret() && !self.kind.is_shared_secret() {
            let text = "is a secret that accountd knows, too: it makes no keys";
            let reason = Reason::CredentialKindNotAllowed;
            return Err(Error::precondition(reason, by.name(), text));
        }
        if self.scope_ceiling.is_empty() {
            self.scope_ceiling.clone_from(&by.scope_ceiling);
        }
        let wider = |scope: &&String| !by.permits(scope);
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

    /// Whether it stands for one certificate and no other.
    pub fn is_pinned(&self) -> bool {
        matches!(&self.parameters, Some(Parameters::Certificate(it)) if it.sha256.is_some())
    }

    pub fn is_key_set(&self) -> bool {
        matches!(self.parameters, Some(Parameters::KeySet(_)))
    }

    /// What tells it from others of its kind in the log, and its name there.
    pub fn mark(&self) -> Option<(&'static str, String)> {
        match self.parameters.as_ref()? {
            Parameters::PublicKey(key) => Some(("kid", key.kid.clone())),
            Parameters::KeySet(uri) => Some(("jwks_uri", uri.place())),
            Parameters::Certificate(identity) => Some(("san", identity.san.clone())),
            Parameters::Totp(_) | Parameters::Passkey(_) => None,
        }
    }

    pub fn is_live(&self, now: Timestamp) -> bool {
        let is_accepted = matches!(self.state, State::Active | State::Retiring);
        is_accepted && !time::has_passed(self.end_time(), now)
    }

    /// The same, to be confirmed by its owner in time.
    pub fn pending(self, until: Timestamp) -> Self {
        Self {
            state: State::Pending,
            expire_time: Some(until),
            ..self
        }
    }

    /// Its owner has shown to have it.
    pub fn confirm(&mut self, now: Timestamp) -> Result<()> {
        if self.state != State::Pending || time::has_passed(self.expire_time, now) {
            return Err(self.wrong_state());
        }
        self.state = State::Active;
        self.expire_time = None;
        self.last_used_time = Some(now);
        self.revision += 1;
        Ok(())
    }

    /// When it is over by itself: at its expiry, or when it has been replaced and left unused for long
    /// enough.
    fn end_time(&self) -> Option<Timestamp> {
        let retired = self.retirement.map(|it| it.end_time(self.last_used_time));
        [self.expire_time, retired].into_iter().flatten().min()
    }

    /// The credential that takes the place of this one, which is given up in the same step.
    pub fn rotate(&mut self, id: CredentialId, overlap_s: i64, now: Timestamp) -> Result<Self> {
        if self.state != State::Active || !self.is_live(now) {
            return Err(self.wrong_state());
        }
        let life_s = |end: Timestamp| end.seconds() - self.create_time.seconds();
        let successor = Self {
            label: self.label.clone(),
            scope_ceiling: self.scope_ceiling.clone(),
            allowed_cidrs: self.allowed_cidrs.clone(),
            expire_time: self.expire_time.map(|end| now.plus_s(life_s(end))),
            ..Self::new(id, self.account, self.kind, now)
        };
        self.retirement = Some(Retirement {
            replaced_by: id,
            overlap_s,
            retire_time: now.plus_s(overlap_s),
        });
        self.revision += 1;
        if overlap_s == 0 {
            self.revoke(now);
        } else {
            self.state = State::Retiring;
        }
        Ok(successor)
    }

    /// Writes down that a retirement has come to its end, which it has done by itself.
    pub fn retire(&mut self, now: Timestamp) -> bool {
        let is_due = self.state == State::Retiring && !self.is_live(now);
        if is_due {
            self.revision += 1;
            self.revoke(now);
        }
        is_due
    }

    fn revoke(&mut self, now: Timestamp) {
        self.state = State::Revoked;
        self.revoke_time = Some(now);
    }

    /// Notes that it is time to say that the credential expires, if it is: within how many days.
    pub fn notify_of_expiry(&mut self, now: Timestamp) -> Option<i64> {
        let end = self
            .expire_time
            .filter(|_| self.state == State::Active && self.is_live(now))?;
        let days = EXPIRY_NOTICES_D
            .into_iter()
            .find(|days| end <= now.plus_s(days * DAY_S))?;
        if self.expiry_notice_d.is_some_and(|given| given <= days) {
            return None;
        }
        self.expiry_notice_d = Some(days);
        Some(days)
    }

    /// Whether a use at `now` should be written down, given what is written.
    pub fn use_is_news(&self, now: Timestamp) -> bool {
        let grain_s = self
            .retirement
            .map_or(LAST_USED_GRAIN_S, |retirement| retirement.grain_s());
        let next = self.last_used_time.map(|time| time.plus_s(grain_s));
        time::has_passed(next.or(Some(now)), now)
    }

    /// Whether a use at `now` comes after the time by which nobody should need it, and is the first in
    /// an hour that does.
    pub fn is_used_late(&self, now: Timestamp) -> bool {
        let Some(Retirement { retire_time, .. }) = self.retirement else {
            return false;
        };
        let hour = |time: Timestamp| (time.seconds() - retire_time.seconds()).div_euclid(3600);
        hour(now) >= 0
            && self
                .last_used_time
                .is_none_or(|last| hour(last) < hour(now))
    }

    pub fn require_active(&self) -> Result<()> {
        match self.state {
            State::Active => Ok(()),
            State::Pending | State::Retiring | State::Revoked => Err(self.wrong_state()),
        }
    }

    fn wrong_state(&self) -> Error {
        let text = match self.state {
            State::Pending => "is not confirmed",
            State::Active => "is not in the state for this: it is active, or has expired",
            State::Retiring => "is being replaced",
            State::Revoked => "is revoked",
        };
        Error::precondition(Reason::WrongState, self.name(), text)
    }
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

    fn id(number: u128) -> CredentialId {
        CredentialId(Uuid::from_u128(number))
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
    fn what_is_a_persons_has_only_a_label() {
        for kind in [
            Kind::Password,
            Kind::Totp,
            Kind::Passkey,
            Kind::RecoveryCodes,
        ] {
            let mut factor = Credential { kind, ..secret() };
            assert!(factor.edit(Edit::Label("old".to_owned())).is_ok());
            assert!(factor.edit(Edit::ExpireTime(None)).is_err());
        }
    }

    #[test]
    fn a_factor_counts_once_its_owner_has_shown_it() {
        let pending = || secret().pending(NOW.plus_s(60));
        assert!(!pending().is_live(NOW) && pending().require_active().is_err());
        let mut confirmed = pending();
        confirmed.confirm(NOW.plus_s(59)).expect("in time");
        assert!(confirmed.is_live(NOW.plus_s(1_000_000)), "for good");
        assert!(confirmed.confirm(NOW.plus_s(59)).is_err(), "once");
        assert!(pending().confirm(NOW.plus_s(60)).is_err(), "too late");
        assert!(pending().rotate(id(2), 60, NOW).is_err());
    }

    #[test]
    fn use_is_noted_once_an_hour() {
        let used = |seconds| Credential {
            last_used_time: Some(NOW.plus_s(seconds)),
            ..secret()
        };
        assert!(secret().use_is_news(NOW));
        assert!(!used(-3599).use_is_news(NOW));
        assert!(used(-3600).use_is_news(NOW));
    }

    #[test]
    fn a_replaced_secret_is_good_until_it_has_been_left_alone() {
        let mut old = secret();
        old.expire_time = Some(NOW.plus_s(1000));
        let new = old.rotate(id(2), 60, NOW.plus_s(100)).expect("active");
        assert_eq!(new.expire_time, Some(NOW.plus_s(1100)), "as long a life");
        assert_eq!((old.state, new.state), (State::Retiring, State::Active));
        assert!(old.is_live(NOW.plus_s(159)) && !old.retire(NOW.plus_s(159)));
        old.last_used_time = Some(NOW.plus_s(150));
        assert!(!old.is_used_late(NOW.plus_s(159)) && old.is_used_late(NOW.plus_s(160)));
        assert!(!old.retire(NOW.plus_s(215)), "used a while ago");
        assert!(
            old.use_is_news(NOW.plus_s(156)),
            "more often than once an hour"
        );
        assert!(
            old.rotate(id(3), 60, NOW.plus_s(200)).is_err(),
            "once is enough"
        );
        assert!(secret().confine(&old).is_err(), "it makes nothing new");
        assert!(!old.is_live(NOW.plus_s(216)), "nobody has to write it down");
        assert!(old.retire(NOW.plus_s(216)) && !old.retire(NOW.plus_s(217)));
        assert_eq!(old.revoke_time, Some(NOW.plus_s(216)));
        let mut late = old.clone();
        late.last_used_time = Some(NOW.plus_s(170));
        assert!(!late.is_used_late(NOW.plus_s(180)), "said already");
        assert!(late.is_used_late(NOW.plus_s(3800)), "an hour later");
        assert!(old.edit(Edit::Label(String::new())).is_err());
    }

    #[test]
    fn its_end_is_announced_thirty_and_seven_days_and_a_day_before() {
        let mut credential = secret();
        credential.expire_time = Some(NOW.plus_s(40 * DAY_S));
        let mut notices = Vec::new();
        for hour in 0..41 * 24 {
            let days = credential.notify_of_expiry(NOW.plus_s(hour * 3600));
            notices.extend(days.map(|days| (hour / 24, days)));
        }
        assert_eq!(notices, [(10, 30), (33, 7), (39, 1)]);
        let later = Some(NOW.plus_s(80 * DAY_S));
        credential.edit(Edit::ExpireTime(later)).expect("a secret");
        assert_eq!(credential.notify_of_expiry(NOW.plus_s(75 * DAY_S)), Some(7));
        let mut short = secret();
        short.expire_time = Some(NOW.plus_s(3600));
        assert_eq!(short.notify_of_expiry(NOW), Some(1), "the nearest alone");
        assert_eq!(secret().notify_of_expiry(NOW), None);
    }

    #[test]
    fn without_overlap_the_old_one_ends_at_once() {
        let mut old = secret();
        old.rotate(id(2), 0, NOW).expect("active");
        assert_eq!((old.state, old.is_live(NOW)), (State::Revoked, false));
        let mut expired = Credential {
            expire_time: Some(NOW),
            ..secret()
        };
        assert!(expired.rotate(id(2), 60, NOW).is_err());
    }
}

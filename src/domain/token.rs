//! Access tokens: what they say (RFC 9068), which scopes they get, how long they live.
//!
//! Invariant: time is compared here, with an argument; the JWT library's own clock is switched off.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    account::Lifecycle,
    assurance::Assurance,
    certificate::Certificate,
    error::Reason,
    grant::{self, Held},
    name::{self, AccountId, SystemAccountId, UserId},
    scope,
    time::{self, Timestamp},
};

/// The audience that accountd itself is.
pub const OWN_AUDIENCE: &str = "accountd";
/// Most bytes of a token that is looked at.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far the clocks of two processes may differ, in seconds.
pub const CLOCK_SKEW_S: i64 = 5;
/// Most scopes that one request may name.
pub const MAX_SCOPES: usize = 100;

/// The claims of an access token. A claim that is missing, of another JSON type or there twice
/// makes the token invalid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    /// The bare UUID of the account.
    pub sub: Uuid,
    pub aud: String,
    pub exp: i64,
    pub iat: i64,
    pub jti: Uuid,
    pub client_id: String,
    /// Space-separated (RFC 6749 section 3.3).
    pub scope: String,
    /// What its bearer has to prove besides having it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cnf: Option<Confirmation>,
    #[serde(flatten)]
    pub account: AccountClaims,
}

/// The key that a token is bound to (RFC 7800); one that is not understood makes the token invalid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// Thumbprint of a client certificate (RFC 8705 section 3.1).
    #[serde(rename = "x5t#S256")]
    pub certificate: String,
}

/// What differs between people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "account_kind", rename_all = "snake_case")]
pub enum AccountClaims {
    User {
        sid: Uuid,
        auth_time: i64,
        acr: Assurance,
        amr: Vec<String>,
    },
    SystemAccount {
        credential_id: Uuid,
    },
}

impl Claims {
    pub const fn account_id(&self) -> AccountId {
        match self.account {
            AccountClaims::User { .. } => AccountId::User(UserId(self.sub)),
            AccountClaims::SystemAccount { .. } => AccountId::System(SystemAccountId(self.sub)),
        }
    }

    pub fn scopes(&self) -> Vec<String> {
        self.scope
            .split(' ')
            .filter(|scope| !scope.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Whether the token may be used by a peer that has shown this certificate, or none.
    pub fn may_come_with(&self, certificate: Option<&Certificate>) -> bool {
        let is_of = |bound: &Confirmation| {
            certificate.is_some_and(|shown| shown.thumbprint() == bound.certificate)
        };
        self.cnf.as_ref().is_none_or(is_of)
    }

    /// Whether the token comes from `issuer` and its time has come and is not over.
    pub fn check(&self, issuer: &str, now: Timestamp) -> Result<(), Reason> {
        if self.iss != issuer || now.plus_s(CLOCK_SKEW_S).seconds() < self.iat {
            return Err(Reason::TokenInvalid);
        }
        if self.exp <= now.seconds() {
            Err(Reason::TokenExpired)
        } else {
            Ok(())
        }
    }
}

/// The facts behind a token as they are now, which its claims cannot know.
#[derive(Clone, Debug)]
pub struct Standing {
    pub account: Lifecycle,
    /// Whether the token itself was revoked, or its session has ended.
    pub revoked: bool,
    /// When the credential behind it ends.
    pub proof_expire_time: Option<Timestamp>,
    /// Tokens issued up to then are worthless.
    pub not_before: Option<Timestamp>,
}

impl Standing {
    /// Whether the token still stands for its account.
    pub fn bears(&self, claims: &Claims, now: Timestamp) -> bool {
        let is_older = |not_before| Timestamp::from_seconds(claims.iat) <= not_before;
        self.account.may_act(now)
            && !self.revoked
            && !time::has_passed(self.proof_expire_time, now)
            && !self.not_before.is_some_and(is_older)
    }
}

/// What an access token rests on, for the one function that mints.
pub struct Grounds<'a> {
    /// The scopes asked for; all there are when empty.
    pub requested: &'a [String],
    /// What the account holds of this audience now.
    pub granted: &'a Held,
    /// Of the audience, those that have to be earned.
    pub sensitive: &'a BTreeSet<String>,
    /// What is missing to earn them, and what needs a step-up, if anything is.
    pub shortfall: Option<Refusal>,
    /// What forbids every scope, if anything does.
    pub bar: Option<Refusal>,
    /// Each limits the scopes unless it is empty: of the account, of the credential.
    pub ceilings: &'a [Ceiling<'a>],
    /// Whatever ends before the token would: session, account, credential.
    pub ends: &'a [Option<Timestamp>],
}

/// A list of scopes above which a token does not get, and what is said of those that are.
pub type Ceiling<'a> = (Refusal, &'a [String]);

/// Why a scope is not in a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The account has no grant of it for the audience that is in effect, or there is no such scope.
    NotGranted,
    /// Not below the account's `scope_ceiling`.
    AccountCeiling,
    /// Not below the `scope_ceiling` of the credential.
    CredentialCeiling,
    /// It is sensitive or needs a step-up, and the person has shown one factor.
    NeedsSecondFactor,
    /// It is sensitive, and the person has shown who they are too long ago.
    NeedsFreshSignIn,
    /// It is sensitive or needs a step-up, and the program has come with a secret that somebody else knows.
    NeedsOwnKey,
    /// The account may not act.
    AccountState,
    /// The account may not ask for the audience.
    Audience,
    /// What the token would be asked for with is worth nothing.
    ProofEnded,
}

/// What somebody lacks to be given what has to be earned: a person has to have shown two factors, not longer ago
/// than `max_age_s`; a program what nobody else has.
pub fn shortfall(
    account: &AccountClaims,
    has_shared_secret: bool,
    max_age_s: i64,
    now: Timestamp,
) -> Option<Refusal> {
    match account {
        AccountClaims::SystemAccount { .. } => has_shared_secret.then_some(Refusal::NeedsOwnKey),
        AccountClaims::User { acr, .. } if *acr != Assurance::Aal2 => {
            Some(Refusal::NeedsSecondFactor)
        }
        AccountClaims::User { auth_time, .. } => {
            let end = Timestamp::from_seconds(*auth_time).plus_s(max_age_s);
            (end < now).then_some(Refusal::NeedsFreshSignIn)
        }
    }
}

/// What a token gets.
#[derive(Debug, PartialEq, Eq)]
pub struct Allowance {
    pub scopes: Vec<String>,
    /// What was asked for and not given; where all there is was asked for, what has to be earned yet.
    pub refused: BTreeMap<String, Refusal>,
    /// When the token expires, in whole seconds.
    pub expire_time: Timestamp,
}

impl Grounds<'_> {
    /// Scopes = requested ∩ granted ∩ every ceiling, and of what is sensitive what is earned; life = the
    /// shortest of all that bears the token.
    pub fn decide(&self, now: Timestamp, lifetime_s: i64) -> Allowance {
        let wants_all = self.requested.is_empty();
        let wanted = if wants_all {
            self.all()
        } else {
            self.requested
                .iter()
                .flat_map(|it| self.meant_by(it))
                .collect()
        };
        let (mut scopes, mut refused) = (BTreeSet::new(), BTreeMap::new());
        for scope in wanted {
            match self.refusal(scope) {
                None => {
                    scopes.insert(scope.clone());
                }
                Some(refusal) if !wants_all || Some(refusal) == self.shortfall => {
                    refused.insert(scope.clone(), refusal);
                }
                Some(_) => {}
            }
        }
        let has_stepped_up = self.lacks_proof().is_none();
        let of_given = scopes
            .iter()
            .filter_map(|scope| grant::end(self.granted, scope, has_stepped_up));
        let ends = self.ends.iter().flatten().copied();
        let end = ends.chain(of_given).min();
        let end = end.unwrap_or(Timestamp::MAX);
        let expire_time = now.plus_s(lifetime_s).min(end);
        Allowance {
            scopes: scopes.into_iter().collect(),
            refused,
            expire_time: Timestamp::from_seconds(expire_time.seconds()),
        }
    }

    /// All there is, but for what is part of something else.
    fn all(&self) -> Vec<&String> {
        let is_part = |scope: &str| {
            let (base, resource) = scope::split(scope);
            resource.is_some() && self.refusal(base).is_none()
        };
        self.granted.keys().filter(|it| !is_part(it)).collect()
    }

    /// A scope as it is granted: where it is for some resources only, these.
    fn meant_by<'b>(&'b self, scope: &'b String) -> Vec<&'b String> {
        let is_whole = || self.granted.contains_key(scope) && self.refusal(scope).is_none();
        if scope::split(scope).1.is_some() || is_whole() {
            return vec![scope];
        }
        let limited = self.granted.range(format!("{scope}@")..);
        let limited = limited.take_while(|(held, _)| scope::split(held).0 == scope);
        let limited: Vec<&String> = limited.map(|(held, _)| held).collect();
        if limited.is_empty() {
            vec![scope]
        } else {
            limited
        }
    }

    /// Why a scope is not given, if it is not: the first of the reasons.
    pub fn refusal(&self, scope: &str) -> Option<Refusal> {
        if grant::source(self.granted, scope).is_none() {
            return Some(Refusal::NotGranted);
        }
        if self.bar.is_some() {
            return self.bar;
        }
        let above = |(_, ceiling): &&Ceiling<'_>| !scope::is_within(scope, ceiling);
        match self.ceilings.iter().find(above) {
            Some((refusal, _)) => Some(*refusal),
            None if self.sensitive.contains(scope::split(scope).0) => self.shortfall,
            None => {
                let needs_step_up = || grant::end(self.granted, scope, false).is_none();
                self.lacks_proof().filter(|_| needs_step_up())
            }
        }
    }

    /// What is missing of a proof, however old it may be.
    fn lacks_proof(&self) -> Option<Refusal> {
        self.shortfall.filter(|it| *it != Refusal::NeedsFreshSignIn)
    }
}

/// The name of a system a token is for: 1 to 255 visible ASCII characters.
pub fn audience(text: &str) -> Result<String, String> {
    match text {
        "" => Ok(OWN_AUDIENCE.to_owned()),
        _ if text.len() <= 255 && text.bytes().all(|b| b.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err("must be 1 to 255 visible ASCII characters".to_owned()),
    }
}

/// A client id as sent: the bare UUID, or the resource name.
pub fn client_id(text: &str) -> Option<SystemAccountId> {
    let id = text.strip_prefix("systemAccounts/").unwrap_or(text);
    name::uuid(id).map(SystemAccountId)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::Source;

    const NOW: Timestamp = Timestamp::from_seconds(1_000_000);

    fn scopes(list: &str) -> Vec<String> {
        list.split_whitespace().map(str::to_owned).collect()
    }

    /// Scopes that are held for good.
    fn held(list: &str) -> Held {
        let source = |scope: &String| Source {
            plain_end_time: Some(Timestamp::MAX),
            end_time: Timestamp::MAX,
            permission: format!("scopes/shop:{scope}"),
        };
        let scopes = scopes(list);
        scopes
            .iter()
            .map(|scope| (scope.clone(), source(scope)))
            .collect()
    }

    const KINDS: [Refusal; 2] = [Refusal::AccountCeiling, Refusal::CredentialCeiling];

    fn decide(requested: &str, granted: &str, ceilings: &[&str]) -> (Vec<String>, Vec<String>) {
        let ceilings: Vec<Vec<String>> = ceilings.iter().map(|list| scopes(list)).collect();
        let ceilings = KINDS.into_iter().zip(ceilings.iter().map(Vec::as_slice));
        let ceilings: Vec<Ceiling<'_>> = ceilings.collect();
        let requested = scopes(requested);
        let granted = held(granted);
        let grounds = Grounds {
            requested: &requested,
            granted: &granted,
            sensitive: &BTreeSet::new(),
            shortfall: None,
            bar: None,
            ceilings: &ceilings,
            ends: &[],
        };
        let allowance = grounds.decide(NOW, 300);
        (allowance.scopes, allowance.refused.into_keys().collect())
    }

    #[test]
    fn a_refusal_says_what_is_missing_first() {
        let granted = held("a b c d");
        let sensitive = BTreeSet::from(["c".to_owned()]);
        let (account, credential) = (scopes("b c d"), scopes("c d"));
        let decide = |requested: &str, shortfall| {
            let grounds = Grounds {
                requested: &scopes(requested),
                granted: &granted,
                sensitive: &sensitive,
                shortfall,
                bar: None,
                ceilings: &[
                    (Refusal::AccountCeiling, &account),
                    (Refusal::CredentialCeiling, &credential),
                ],
                ends: &[],
            };
            let allowance = grounds.decide(NOW, 300);
            (
                allowance.scopes.join(" "),
                Vec::from_iter(allowance.refused),
            )
        };
        let of = |scope: &str, refusal| (scope.to_owned(), refusal);
        let missing = Some(Refusal::NeedsSecondFactor);
        let all = vec![
            of("a", Refusal::AccountCeiling),
            of("b", Refusal::CredentialCeiling),
            of("c", Refusal::NeedsSecondFactor),
            of("e", Refusal::NotGranted),
        ];
        assert_eq!(decide("e d c b a", missing), ("d".to_owned(), all));
        assert_eq!(decide("c d", None), ("c d".to_owned(), vec![]));
        // Whoever asks for all there is learns what a step-up would add, and no more.
        let earned = vec![of("c", Refusal::NeedsSecondFactor)];
        assert_eq!(decide("", missing), ("d".to_owned(), earned));
        assert_eq!(decide("", None), ("c d".to_owned(), vec![]));
    }

    #[test]
    fn what_is_barred_gives_nothing() {
        let granted = held("a");
        for (requested, refused) in [("", 0), ("a", 1)] {
            let grounds = Grounds {
                requested: &scopes(requested),
                granted: &granted,
                sensitive: &BTreeSet::new(),
                shortfall: None,
                bar: Some(Refusal::Audience),
                ceilings: &[],
                ends: &[],
            };
            let allowance = grounds.decide(NOW, 300);
            assert_eq!(
                (allowance.scopes.len(), allowance.refused.len()),
                (0, refused)
            );
        }
    }

    #[test]
    fn what_is_sensitive_has_to_be_earned() {
        let person = |acr, ago: i64| AccountClaims::User {
            sid: Uuid::nil(),
            auth_time: NOW.plus_s(-ago).seconds(),
            acr,
            amr: vec![],
        };
        let program = AccountClaims::SystemAccount {
            credential_id: Uuid::nil(),
        };
        let of = |account: &AccountClaims, has_shared_secret| {
            shortfall(account, has_shared_secret, 600, NOW)
        };
        let once = person(Assurance::Aal1, 0);
        assert_eq!(of(&once, false), Some(Refusal::NeedsSecondFactor));
        assert_eq!(of(&person(Assurance::Aal2, 600), false), None);
        let late = person(Assurance::Aal2, 601);
        assert_eq!(of(&late, false), Some(Refusal::NeedsFreshSignIn));
        assert_eq!(of(&program, true), Some(Refusal::NeedsOwnKey));
        assert_eq!(of(&program, false), None);
    }

    #[test]
    fn a_scope_that_is_refused_is_had_for_what_it_is_not_refused_for() {
        let granted = held("a a@x");
        let decide = |ceiling: &str| {
            let grounds = Grounds {
                requested: &scopes("a"),
                granted: &granted,
                sensitive: &BTreeSet::new(),
                shortfall: None,
                bar: None,
                ceilings: &[(Refusal::AccountCeiling, &scopes(ceiling))],
                ends: &[],
            };
            grounds.decide(NOW, 60).scopes
        };
        assert_eq!(decide("a"), ["a"]);
        assert_eq!(decide("a@x"), ["a@x"]);
    }

    #[test]
    fn what_needs_a_step_up_needs_no_fresh_one() {
        let mut granted = held("a b");
        granted.get_mut("b").expect("held").plain_end_time = None;
        let refused = |shortfall| {
            let grounds = Grounds {
                requested: &[],
                granted: &granted,
                sensitive: &BTreeSet::new(),
                shortfall: Some(shortfall),
                bar: None,
                ceilings: &[],
                ends: &[],
            };
            Vec::from_iter(grounds.decide(NOW, 60).refused)
        };
        for shortfall in [Refusal::NeedsSecondFactor, Refusal::NeedsOwnKey] {
            assert_eq!(refused(shortfall), [("b".to_owned(), shortfall)]);
        }
        assert_eq!(refused(Refusal::NeedsFreshSignIn), []);
    }

    #[test]
    fn scopes_are_the_intersection_and_the_rest_is_named() {
        assert_eq!(decide("", "b a", &[]), (scopes("a b"), vec![]));
        assert_eq!(decide("a c", "a b", &[]), (scopes("a"), scopes("c")));
        assert_eq!(decide("a b", "a b c", &["b c"]), (scopes("b"), scopes("a")));
        assert_eq!(decide("", "a b c", &["b c", "c d"]), (scopes("c"), vec![]));
        assert_eq!(decide("a a", "a", &[""]), (scopes("a"), vec![]));
        assert_eq!(decide("a", "", &[]), (vec![], scopes("a")));
    }

    #[test]
    fn a_token_lives_no_longer_than_what_it_rests_on() {
        let ends = |ends: &[Option<Timestamp>]| {
            let grounds = Grounds {
                requested: &[],
                granted: &Held::new(),
                sensitive: &BTreeSet::new(),
                shortfall: None,
                bar: None,
                ceilings: &[],
                ends,
            };
            grounds.decide(NOW, 300).expire_time
        };
        assert_eq!(ends(&[None]), NOW.plus_s(300));
        assert_eq!(
            ends(&[None, Some(NOW.plus_s(7)), Some(NOW.plus_s(9))]),
            NOW.plus_s(7)
        );
        // Of what is granted only what is in the token counts.
        let mut granted = held("a b");
        granted.get_mut("b").expect("held").end_time = NOW.plus_s(5);
        let ends = |requested: &str| {
            let grounds = Grounds {
                requested: &scopes(requested),
                granted: &granted,
                sensitive: &BTreeSet::new(),
                shortfall: None,
                bar: None,
                ceilings: &[],
                ends: &[],
            };
            grounds.decide(NOW, 300).expire_time
        };
        assert_eq!((ends("a"), ends("b")), (NOW.plus_s(300), NOW.plus_s(5)));
        assert_eq!(ends(""), NOW.plus_s(5));
    }

    #[test]
    fn claims_of_the_wrong_kind_do_not_parse() {
        let good = serde_json::json!({
            "iss": "https://id.example", "sub": Uuid::nil(), "aud": "accountd", "exp": 10, "iat": 5,
            "jti": Uuid::nil(), "client_id": "accountd", "scope": "", "account_kind": "user",
            "sid": Uuid::nil(), "auth_time": 5, "acr": "aal1", "amr": ["pwd"],
        });
        let parse = |value: &serde_json::Value| serde_json::from_value::<Claims>(value.clone());
        let claims = parse(&good).expect("complete");
        assert_eq!(serde_json::to_value(&claims).expect("serialises"), good);
        for (claim, wrong) in [
            ("exp", serde_json::json!("10")),
            ("exp", serde_json::json!(10.5)),
            ("exp", serde_json::json!(null)),
            ("aud", serde_json::json!(["accountd"])),
            ("sub", serde_json::json!("alice")),
            ("account_kind", serde_json::json!("admin")),
            ("scope", serde_json::json!(["users.read"])),
        ] {
            let mut bad = good.clone();
            bad[claim] = wrong.clone();
            assert!(parse(&bad).is_err(), "{claim} = {wrong}");
        }
        for claim in good.as_object().expect("an object").keys() {
            let mut bad = good.clone();
            bad.as_object_mut().expect("an object").remove(claim);
            assert!(parse(&bad).is_err(), "without {claim}");
        }
        let twice = good.to_string().replacen('{', r#"{"exp": 9999999999,"#, 1);
        assert!(
            serde_json::from_str::<Claims>(&twice).is_err(),
            "a claim there twice"
        );
    }

    fn claims() -> Claims {
        Claims {
            iss: "https://id.example".to_owned(),
            sub: Uuid::nil(),
            aud: OWN_AUDIENCE.to_owned(),
            exp: 1_000_300,
            iat: 1_000_000,
            jti: Uuid::nil(),
            client_id: String::new(),
            scope: "a b".to_owned(),
            cnf: None,
            account: AccountClaims::SystemAccount {
                credential_id: Uuid::nil(),
            },
        }
    }

    #[test]
    fn a_token_stands_only_as_long_as_everything_behind_it() {
        let good = Standing {
            account: Lifecycle::default(),
            revoked: false,
            proof_expire_time: Some(NOW.plus_s(10)),
            not_before: Some(NOW.plus_s(-1)),
        };
        let bears = |standing: &Standing, now| standing.bears(&claims(), now);
        assert!(bears(&good, NOW));
        assert!(!bears(&good, NOW.plus_s(10)));
        assert!(!bears(
            &Standing {
                revoked: true,
                ..good.clone()
            },
            NOW
        ));
        assert!(!bears(
            &Standing {
                not_before: Some(NOW),
                ..good.clone()
            },
            NOW
        ));
        let mut suspended = good;
        suspended.account.suspend(String::new(), None);
        assert!(!bears(&suspended, NOW));
    }

    #[test]
    fn a_token_is_good_from_its_issue_until_its_end() {
        let claims = claims();
        let check = |issuer, now| claims.check(issuer, now);
        assert_eq!(check("https://id.example", NOW), Ok(()));
        assert_eq!(check("https://id.example", NOW.plus_s(299)), Ok(()));
        assert_eq!(
            check("https://id.example", NOW.plus_s(300)),
            Err(Reason::TokenExpired)
        );
        assert_eq!(
            check("https://id.example", NOW.plus_s(-6)),
            Err(Reason::TokenInvalid)
        );
        assert_eq!(check("https://id.example/", NOW), Err(Reason::TokenInvalid));
        assert_eq!(claims.scopes(), scopes("a b"));
    }
}

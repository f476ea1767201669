//! Every access token is made here, and nowhere else.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{call::Call, convert, pb};
use crate::{
    domain::{
        account::Lifecycle,
        certificate::Certificate,
        credential::Credential,
        error::{Error, Fields, Reason, Result},
        grant::{self, Held},
        name::{AccountId, PrincipalId},
        scope,
        session::Session,
        system_account::SystemAccount,
        time::Timestamp,
        token::{
            self, AccountClaims, Allowance, Ceiling, Claims, Confirmation, Grounds, MAX_SCOPES,
            Refusal,
        },
    },
    store::grants,
};

/// What somebody asks a token for.
pub(super) struct Wish {
    pub(super) audience: String,
    /// All there are when empty.
    pub(super) scopes: Vec<String>,
}

impl Wish {
    pub(super) fn parse(audience: &str, scopes: &[String]) -> Result<Self> {
        let mut fields = Fields::new();
        let audience = fields.take("audience", token::audience(audience));
        let scopes = fields.take("scopes", convert::list(scopes, MAX_SCOPES, scope::parse));
        fields.finish()?;
        Ok(Self {
            audience: audience.unwrap_or_default(),
            scopes: scopes.unwrap_or_default(),
        })
    }
}

/// Whom a token is for, and what bears it.
pub(super) struct Bearer<'a> {
    pub(super) account: AccountId,
    pub(super) claims: AccountClaims,
    pub(super) client_id: String,
    /// The certificate without which the token is worth nothing.
    pub(super) bound_to: Option<&'a Certificate>,
    pub(super) limits: Limits<'a>,
    /// Tokens issued up to then are worthless.
    pub(super) not_before: Option<Timestamp>,
}

/// What limits a token, whatever is granted.
#[derive(Default)]
pub(super) struct Limits<'a> {
    /// Each limits the scopes unless it is empty.
    pub(super) ceilings: Vec<Ceiling<'a>>,
    /// What is missing for sensitive scopes, if anything is.
    pub(super) shortfall: Option<Refusal>,
    /// What forbids every scope, if anything does.
    pub(super) bar: Option<Refusal>,
    /// Whatever ends before the token would.
    pub(super) ends: Vec<Option<Timestamp>>,
}

impl<'a> Limits<'a> {
    /// Of a program that comes with a credential.
    pub(super) fn of_program(
        call: &Call,
        account: &'a SystemAccount,
        credential: &'a Credential,
    ) -> Self {
        let claims = AccountClaims::SystemAccount {
            credential_id: credential.id.0,
        };
        Self {
            ceilings: vec![
                (Refusal::AccountCeiling, &account.limits.scope_ceiling),
                (Refusal::CredentialCeiling, &credential.scope_ceiling),
            ],
            shortfall: shortfall(call, &claims, credential.kind.is_shared_secret()),
            bar: None,
            ends: vec![account.end_time(), credential.expire_time],
        }
    }

    /// Of a person in a session.
    pub(super) fn of_session(call: &Call, session: &Session, user: &Lifecycle) -> Self {
        Self {
            shortfall: shortfall(call, &claims_of(call, session), false),
            ends: vec![Some(session.end_time()), user.expire_time],
            ..Self::default()
        }
    }
}

/// What tokens say of a person in a session.
pub(super) fn claims_of(call: &Call, session: &Session) -> AccountClaims {
    AccountClaims::User {
        sid: session.id.0,
        auth_time: session.auth_time.seconds(),
        acr: session.acr(call.now, call.app().config.session_lifetimes()),
        amr: session.shown.amr.clone(),
    }
}

fn shortfall(call: &Call, claims: &AccountClaims, has_shared_secret: bool) -> Option<Refusal> {
    let max_age_s = call.app().config.tokens.sensitive_max_age_s;
    token::shortfall(claims, has_shared_secret, max_age_s, call.now)
}

/// What is granted for an audience now, and what of that has to be earned.
pub(super) struct Entitled {
    pub(super) held: Held,
    pub(super) sensitive: BTreeSet<String>,
}

impl Entitled {
    /// Whether a token of all of them is certainly short enough.
    pub(super) fn are_few(&self, call: &Call) -> bool {
        let scopes: usize = self.held.keys().map(|scope| scope.len() + 1).sum();
        // In base64 they are a third longer.
        scopes * 4 / 3 + MAX_BESIDES <= call.app().config.tokens.max_bytes
    }
}

/// Most bytes of a token without its scopes: an RS256 signature, and claims with all there may be in them.
const MAX_BESIDES: usize = 2_048;

pub(super) async fn entitled(
    call: &Call,
    principal: PrincipalId,
    audience: &str,
) -> Result<Entitled> {
    let mut db = call.db().read().await?;
    let found = grants::holdings_of(&mut db, principal, audience, call.now);
    let (holdings, sensitive) = found.await?;
    Ok(Entitled {
        held: holdings.held(audience, call.now),
        // Of our own none is: the RPCs ask for themselves.
        sensitive,
    })
}

/// The decision which scopes there are in a token, and how long it lives: for tokens, and for those who ask
/// beforehand.
pub(super) fn allowance(
    call: &Call,
    requested: &[String],
    Entitled { held, sensitive }: &Entitled,
    limits: &Limits<'_>,
) -> Allowance {
    let grounds = Grounds {
        requested,
        granted: held,
        sensitive,
        shortfall: limits.shortfall,
        bar: limits.bar,
        ceilings: &limits.ceilings,
        ends: &limits.ends,
    };
    let lifetime_s = call.app().config.tokens.access_token_lifetime_s;
    grounds.decide(call.now, lifetime_s)
}

/// An access token; the fields for people are left to the caller.
pub(super) fn token(
    call: &Call,
    wish: &Wish,
    entitled: &Entitled,
    mut bearer: Bearer<'_>,
) -> Result<pb::TokenSet> {
    let app = call.app();
    let certificate_end = bearer.bound_to.map(|it| it.expire_time);
    bearer.limits.ends.push(certificate_end);
    let Allowance {
        scopes,
        refused,
        expire_time,
    } = allowance(call, &wish.scopes, entitled, &bearer.limits);
    // Times in tokens are whole seconds: one from the second of a revocation has to be told from
    // those that were revoked.
    let first = bearer.not_before.map_or(0, |time| time.seconds() + 1);
    let claims = Claims {
        iss: app.issuer.clone(),
        sub: bearer.account.uuid(),
        aud: wish.audience.clone(),
        exp: expire_time.seconds(),
        iat: call.now.seconds().max(first),
        jti: call.new_uuid(),
        client_id: bearer.client_id,
        scope: scopes.join(" "),
        cnf: bearer.bound_to.map(|it| Confirmation {
            certificate: it.thumbprint(),
        }),
        account: bearer.claims,
    };
    let access_token = app.keyring.load().sign(&claims).map_err(Error::Internal)?;
    require_size(call, &access_token, &scopes, &entitled.held, bearer.account)?;
    Ok(pb::TokenSet {
        access_token,
        token_type: "Bearer".to_owned(),
        access_expire_time: Some(convert::timestamp(expire_time)),
        scopes,
        refused_scopes: refused.keys().cloned().collect(),
        refusals: refused
            .into_iter()
            .map(|(scope, refusal)| pb::ScopeRefusal {
                scope,
                reason: shown(refusal).into(),
            })
            .collect(),
        ..pb::TokenSet::default()
    })
}

/// Refuses a token that would not fit into the headers of most servers, and names what it is so long by.
fn require_size(
    call: &Call,
    access_token: &str,
    scopes: &[String],
    held: &Held,
    account: AccountId,
) -> Result<()> {
    let max = call.app().config.tokens.max_bytes;
    if access_token.len() <= max {
        return Ok(());
    }
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    for scope in scopes {
        let by = grant::source(held, scope).map_or("", |by| by.permission.as_str());
        *parts.entry(by).or_default() += scope.len() + 1;
    }
    let mut parts = Vec::from_iter(parts);
    parts.sort_by_key(|(_, bytes)| Reverse(*bytes));
    let mut text = format!(
        "would get a token of {} bytes, and {max} is the limit: ask for fewer scopes",
        access_token.len()
    );
    for (name, bytes) in parts.iter().take(3) {
        // Writing to a String cannot fail.
        let _ = write!(text, "; {name} has {bytes} bytes of them");
    }
    let name = account.to_string();
    Err(Error::precondition(Reason::TokenTooLarge, name, text))
}

pub(super) const fn shown(refusal: Refusal) -> pb::scope_refusal::Reason {
    use pb::scope_refusal::Reason as Shown;
    match refusal {
        Refusal::NotGranted => Shown::NotGranted,
        Refusal::AccountCeiling => Shown::AccountCeiling,
        Refusal::CredentialCeiling => Shown::CredentialCeiling,
        Refusal::NeedsSecondFactor => Shown::NeedsSecondFactor,
        Refusal::NeedsFreshSignIn => Shown::NeedsFreshSignIn,
        Refusal::NeedsOwnKey => Shown::NeedsOwnKey,
        Refusal::AccountState => Shown::AccountState,
        Refusal::Audience => Shown::Audience,
        Refusal::ProofEnded => Shown::ProofEnded,
    }
}

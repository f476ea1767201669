//! Every access token is made here, and nowhere else.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{call::Call, convert, pb};
use crate::{
    domain::{
        certificate::Certificate,
        error::{Error, Fields, Reason, Result},
        grant::Held,
        name::AccountId,
        scope,
        time::Timestamp,
        token::{
            self, AccountClaims, Allowance, Ceiling, Claims, Confirmation, Grounds, MAX_SCOPES,
            OWN_AUDIENCE, Refusal,
        },
    },
    store::{grants, scopes},
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
    /// Each limits the scopes unless it is empty.
    pub(super) ceilings: &'a [Ceiling<'a>],
    /// Whether it was asked for with a secret that somebody else knows.
    pub(super) has_shared_secret: bool,
    /// Whatever ends before the token would.
    pub(super) ends: Vec<Option<Timestamp>>,
    /// Tokens issued up to then are worthless.
    pub(super) not_before: Option<Timestamp>,
}

/// What an account holds for an audience now, and what of that has to be earned.
pub(super) struct Entitled {
    held: Held,
    sensitive: BTreeSet<String>,
}

pub(super) async fn entitled(call: &Call, account: AccountId, audience: &str) -> Result<Entitled> {
    let mut db = call.db().read().await?;
    let held = grants::holdings(&mut db, account).await?;
    let held = held.held(audience, call.now);
    // Of our own none is: the RPCs ask for themselves.
    let sensitive = if audience == OWN_AUDIENCE || held.scopes.is_empty() {
        BTreeSet::new()
    } else {
        scopes::sensitive(&mut db, audience).await?
    };
    Ok(Entitled { held, sensitive })
}

/// An access token; the fields for people are left to the caller.
pub(super) fn token(
    call: &Call,
    wish: &Wish,
    Entitled { held, sensitive }: &Entitled,
    bearer: Bearer<'_>,
) -> Result<pb::TokenSet> {
    let app = call.app();
    let mut ends = bearer.ends;
    ends.push(held.end_time);
    ends.extend(bearer.bound_to.map(|it| Some(it.expire_time)));
    let grounds = Grounds {
        requested: &wish.scopes,
        granted: &held.scopes,
        sensitive,
        shortfall: token::shortfall(
            &bearer.claims,
            bearer.has_shared_secret,
            app.config.tokens.sensitive_max_age_s,
            call.now,
        ),
        ceilings: bearer.ceilings,
        ends: &ends,
    };
    let Allowance {
        scopes,
        refused,
        expire_time,
    } = grounds.decide(call.now, app.config.tokens.access_token_lifetime_s);
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
    require_size(call, &access_token, &held.sources, bearer.account)?;
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
    sources: &[(String, usize)],
    account: AccountId,
) -> Result<()> {
    let max = call.app().config.tokens.max_bytes;
    if access_token.len() <= max {
        return Ok(());
    }
    let mut text = format!(
        "would get a token of {} bytes, and {max} is the limit: ask for fewer scopes",
        access_token.len()
    );
    for (name, bytes) in sources.iter().take(3) {
        // Writing to a String cannot fail.
        let _ = write!(text, "; {name} has {bytes} bytes of them");
    }
    let name = account.to_string();
    Err(Error::precondition(Reason::TokenTooLarge, name, text))
}

const fn shown(refusal: Refusal) -> pb::scope_refusal::Reason {
    use pb::scope_refusal::Reason as Shown;
    match refusal {
        Refusal::NotGranted => Shown::NotGranted,
        Refusal::AccountCeiling => Shown::AccountCeiling,
        Refusal::CredentialCeiling => Shown::CredentialCeiling,
        Refusal::NeedsSecondFactor => Shown::NeedsSecondFactor,
        Refusal::NeedsFreshSignIn => Shown::NeedsFreshSignIn,
        Refusal::NeedsOwnKey => Shown::NeedsOwnKey,
    }
}

//! Every access token is made here, and nowhere else.

use super::{call::Call, convert, pb};
use crate::domain::{
    certificate::Certificate,
    error::{Error, Result},
    grant,
    name::AccountId,
    role,
    time::Timestamp,
    token::{
        self, AccountClaims, Allowance, Claims, Confirmation, Grounds, MAX_SCOPES, OWN_AUDIENCE,
    },
};
use crate::store::grants;

/// What somebody asks a token for.
pub(super) struct Wish {
    pub(super) audience: String,
    /// All there are when empty.
    pub(super) scopes: Vec<String>,
}

impl Wish {
    pub(super) fn parse(audience: &str, scopes: &[String]) -> Result<Self> {
        let mut fields = crate::domain::error::Fields::new();
        let audience = fields.take("audience", token::audience(audience));
        let scopes = fields.take(
            "scopes",
            convert::list(scopes, MAX_SCOPES, role::parse_scope),
        );
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
    pub(super) ceilings: &'a [&'a [String]],
    /// Whatever ends before the token would.
    pub(super) ends: Vec<Option<Timestamp>>,
    /// Tokens issued up to then are worthless.
    pub(super) not_before: Option<Timestamp>,
}

/// What an account holds for an audience now.
pub(super) async fn held(call: &Call, account: AccountId, audience: &str) -> Result<grant::Held> {
    if audience != OWN_AUDIENCE {
        return Ok(grant::Held::default());
    }
    let mut db = call.db().read().await?;
    Ok(grant::held(
        &grants::list_all(&mut db, account).await?,
        call.now,
    ))
}

/// An access token; the fields for people are left to the caller.
pub(super) fn token(
    call: &Call,
    wish: &Wish,
    held: &grant::Held,
    bearer: Bearer<'_>,
) -> Result<pb::TokenSet> {
    let app = call.app();
    let mut ends = bearer.ends;
    ends.push(held.end_time);
    ends.extend(bearer.bound_to.map(|it| Some(it.expire_time)));
    let grounds = Grounds {
        requested: &wish.scopes,
        granted: &held.scopes,
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
    Ok(pb::TokenSet {
        access_token,
        token_type: "Bearer".to_owned(),
        access_expire_time: Some(convert::timestamp(expire_time)),
        scopes,
        refused_scopes: refused,
        ..pb::TokenSet::default()
    })
}

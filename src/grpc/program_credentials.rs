//! What CredentialService does with what programs have: secrets, keys, certificates.

use super::{
    accounts,
    call::{Call, mutate},
    convert,
    credentials::{edits, find_for_change, maker, not_allowed, require_room, shown},
    pb,
    system_accounts::require_ours,
};
use crate::{
    domain::{
        account::State as AccountState,
        certificate,
        client_assertion::PublicKey,
        credential::{
            Credential, DEFAULT_OVERLAP_S, Kind, MAX_OVERLAP_S, MAX_REVOKED, MAX_SECRETS,
            Parameters, State, WRITABLE,
        },
        error::{Error, Fields, Reason, Result},
        key_set::{KeySetUri, MAX_KEY_SETS},
        name::{AccountId, CredentialId, SystemAccountId},
        secret::{self, Secret},
    },
    store::{
        credentials::{self, Kept},
        db::Read,
        events, system_accounts,
    },
};

/// A secret of a program, made by us.
pub(super) async fn create_secret(
    call: &Call,
    parent: AccountId,
    kind: Kind,
    input: &pb::Credential,
) -> Result<pb::CreateCredentialResponse> {
    let written = secret_kind(kind).ok_or_else(|| not_allowed(parent, kind))?;
    let (id, mut credential) = new_credential(call, Fields::new(), parent, kind, input)?;
    let secret = Secret::new(written, &call.app().random.bytes::<32>());
    credential.hint = secret.hint();
    let kept = Kept::Digest(&secret.digest());
    store(call, id, &credential, kept, &secret.text()).await
}

/// A key of a program, of which we have the public half or know where it is published.
pub(super) async fn create_public_key(
    call: &Call,
    parent: AccountId,
    input: &pb::Credential,
    source: Option<pb::credential::public_key::Source>,
) -> Result<pb::CreateCredentialResponse> {
    use pb::credential::public_key::Source;
    let mut fields = Fields::new();
    let key = match source {
        Some(Source::Jwk(jwk)) => {
            let key = PublicKey::parse(&jwk).map(Parameters::PublicKey);
            fields.take("credential.public_key.jwk", key)
        }
        Some(Source::JwksUri(uri)) => {
            let uri = KeySetUri::parse(&uri).and_then(|uri| {
                call.app().key_sets.require_reachable(&uri)?;
                Ok(Parameters::KeySet(uri))
            });
            fields.take("credential.public_key.jwks_uri", uri)
        }
        None => {
            fields.refuse("credential.public_key", "must have `jwk` or `jwks_uri`");
            None
        }
    };
    let (id, mut credential) = new_credential(call, fields, parent, Kind::PublicKey, input)?;
    credential.parameters = key;
    store(call, id, &credential, Kept::Material(&[]), "").await
}

/// The certificates of a program, by the name that an authority of ours puts into them.
pub(super) async fn create_certificate(
    call: &Call,
    parent: AccountId,
    input: &pb::Credential,
    certificate: &pb::credential::Certificate,
) -> Result<pb::CreateCredentialResponse> {
    let mut fields = Fields::new();
    let san = certificate::parse_san(&certificate.san);
    let san = fields.take("credential.certificate.san", san);
    let sha256 = certificate::parse_sha256(&certificate.sha256);
    let sha256 = fields.take("credential.certificate.sha256", sha256);
    let (id, mut credential) = new_credential(call, fields, parent, Kind::Certificate, input)?;
    if !call.app().takes_certificates() {
        let text = "are not asked for: set `tls.client_ca_file`";
        let reason = Reason::CredentialKindNotAllowed;
        return Err(Error::precondition(reason, "certificates", text));
    }
    credential.parameters = san.zip(sha256).map(|(san, sha256)| {
        let identity = certificate::Identity { san, sha256 };
        Parameters::Certificate(identity)
    });
    store(call, id, &credential, Kept::Material(&[]), "").await
}

/// A program, and a new credential of it with what the message says; `fields` may know more that is wrong.
fn new_credential(
    call: &Call,
    mut fields: Fields,
    parent: AccountId,
    kind: Kind,
    input: &pb::Credential,
) -> Result<(SystemAccountId, Credential)> {
    let AccountId::System(account) = parent else {
        return Err(not_allowed(parent, kind));
    };
    let edits = edits(&mut fields, &WRITABLE, input, call.now);
    fields.finish()?;
    let id = CredentialId(call.new_uuid());
    let mut credential = Credential::new(id, parent, kind, call.now);
    for edit in edits {
        credential.edit(edit)?;
    }
    Ok((account, credential))
}

/// Stores a credential of a program, if it may have one like that.
async fn store(
    call: &Call,
    id: SystemAccountId,
    credential: &Credential,
    kept: Kept<'_>,
    secret: &str,
) -> Result<pb::CreateCredentialResponse> {
    let (parent, kind) = (credential.account, credential.kind);
    let response = mutate!(call, |tx| {
        let account = system_accounts::find(tx, id).await?;
        let account = account.ok_or_else(|| Error::not_found(parent.to_string()))?;
        call.require_power_over(tx, parent).await?;
        call.require_whole_power_over(tx, parent).await?;
        // Only whoever has the machine gets into what accountd made for itself.
        require_ours(&account)?;
        account.lifecycle.require(
            &[AccountState::Active, AccountState::Suspended],
            parent,
            call.now,
        )?;
        if !account.kind.allows(kind) {
            return Err(not_allowed(parent, kind));
        }
        require_room(tx, parent, kind, MAX_SECRETS).await?;
        if credential.is_key_set() {
            require_room_for_key_set(tx, parent).await?;
        }
        let mut credential = credential.clone();
        if let Some(own) = maker(tx, call, parent).await? {
            credential.confine(&own)?;
        }
        call.require_lasting_credential(tx, &credential).await?;
        credentials::insert(tx, &credential, kept).await?;
        let event = call.event().about(credential.name(), Some(parent));
        let event = event.detail("kind", credential.kind.name());
        let event = match credential.mark() {
            Some((name, mark)) => event.detail(name, mark),
            None => event,
        };
        events::append(tx, &event).await?;
        pb::CreateCredentialResponse {
            credential: Some(shown(&credential)),
            secret: secret.to_owned(),
            enrolment: None,
        }
    })?;
    Ok(call.without_secret_if_dry(response))
}

/// Refuses one more URL of an account that has as many as it may.
async fn require_room_for_key_set(db: &mut Read, account: AccountId) -> Result<()> {
    let kind = Some(Kind::PublicKey);
    let all = credentials::list(db, account, kind, None, MAX_SECRETS + MAX_REVOKED).await?;
    let is_live = |it: &&Credential| it.is_key_set() && it.state != State::Revoked;
    if all.iter().filter(is_live).count() < MAX_KEY_SETS {
        return Ok(());
    }
    let text = format!("has {MAX_KEY_SETS} key sets, which is the limit");
    let name = account.to_string();
    Err(Error::precondition(Reason::LimitReached, name, text))
}

/// A new secret in the place of an old one.
pub(super) async fn rotate(
    call: &Call,
    request: pb::RotateCredentialRequest,
) -> Result<pb::RotateCredentialResponse> {
    let (account, id) = call.child("name", &request.name, "credentials")?;
    let id = CredentialId(id);
    accounts::require_to_manage(call, account)?;
    let mut fields = Fields::new();
    let overlap_s = convert::parse_seconds(request.overlap.as_ref(), MAX_OVERLAP_S);
    let overlap_s = fields.take("overlap", overlap_s).flatten();
    fields.finish()?;
    let overlap_s = overlap_s.unwrap_or(DEFAULT_OVERLAP_S);
    if overlap_s == 0 && call.caller.account() != Some(account) {
        call.require("credentials.delete")?;
    }
    let body = call.app().random.bytes::<32>();
    let new_id = CredentialId(call.new_uuid());
    let response = mutate!(call, |tx| {
        let mut old = find_for_change(tx, call, account, id, &request.etag).await?;
        if let AccountId::System(id) = account
            && let Some(program) = system_accounts::find(tx, id).await?
        {
            require_ours(&program)?;
            call.require_whole_power_over(tx, account).await?;
        }
        let kind = secret_kind(old.kind).ok_or_else(|| {
            let text = "is not a secret that accountd makes";
            Error::precondition(Reason::CredentialKindNotAllowed, old.name(), text)
        })?;
        accounts::state(tx, account).await?.require(
            &[AccountState::Active, AccountState::Suspended],
            account,
            call.now,
        )?;
        // From here on `old` is not what is stored, which may be what the caller came with.
        let mut new = old.rotate(new_id, overlap_s, call.now)?;
        if let Some(own) = maker(tx, call, account).await? {
            new.confine(&own)?;
        }
        call.require_lasting_credential(tx, &new).await?;
        let secret = Secret::new(kind, &body);
        new.hint = secret.hint();
        credentials::update(tx, &old).await?;
        credentials::forget_all_but(tx, account, MAX_REVOKED).await?;
        require_room(tx, account, old.kind, MAX_SECRETS).await?;
        credentials::insert(tx, &new, Kept::Digest(&secret.digest())).await?;
        let event = call.event().about(old.name(), Some(account));
        let event = event.detail("replaced_by", new.name());
        events::append(tx, &event.detail("overlap_s", overlap_s)).await?;
        pb::RotateCredentialResponse {
            credential: Some(shown(&new)),
            secret: secret.text(),
        }
    })?;
    Ok(call.without_secret_if_dry(response))
}

/// How the secret of a credential of this kind is written, if it is one that we make.
const fn secret_kind(kind: Kind) -> Option<secret::Kind> {
    match kind {
        Kind::ClientSecret => Some(secret::Kind::ClientSecret),
        Kind::ApiKey => Some(secret::Kind::ApiKey),
        Kind::Password
        | Kind::Totp
        | Kind::Passkey
        | Kind::RecoveryCodes
        | Kind::PublicKey
        | Kind::Certificate => None,
    }
}

//! CredentialService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    Reply, accounts,
    call::{Call, mutate},
    convert, factors, passwords, pb, program_credentials,
    system_accounts::require_to_raise,
};
use crate::{
    app::App,
    domain::{
        access::Proof,
        account,
        credential::{Credential, Edit, Kind, MAX_LABEL, Parameters, State, WRITABLE},
        error::{Error, Fields, Reason, Result},
        filter,
        name::{AccountId, CredentialId},
        network::{self, MAX_CIDRS},
        page, role, scope,
        session::EndReason,
        system_account::MAX_LIST,
        text,
        time::Timestamp,
        token::OWN_AUDIENCE,
        totp::Algorithm,
    },
    store::{
        challenges,
        credentials::{self, Cursor},
        db::{Read, Write},
        events, factors as factor_store, grants,
        sessions::{self, Which},
    },
};

pub(super) struct Credentials {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::credential_service_server::CredentialService for Credentials {
    async fn create_credential(
        &self,
        request: Request<pb::CreateCredentialRequest>,
    ) -> Reply<pb::CreateCredentialResponse> {
        use pb::credential::Detail;
        let (call, request) = Call::enter(&self.app, request).await?;
        if let Some(first) = call.first_answer().await? {
            return Ok(Response::new(first));
        }
        let parent = call.account("parent", &request.parent)?;
        let mut input = request.credential.unwrap_or_default();
        accounts::require_to_manage(&call, parent)?;
        let response = match input.detail.take() {
            Some(Detail::Password(password)) => {
                passwords::create(&call, parent, &input, password.value).await?
            }
            Some(Detail::Totp(totp)) => factors::create_totp(&call, parent, &input, totp).await?,
            Some(Detail::Passkey(_)) => factors::create_passkey(&call, parent, &input).await?,
            Some(Detail::RecoveryCodes(_)) => {
                factors::create_recovery_codes(&call, parent, &input).await?
            }
            Some(Detail::ClientSecret(_)) => {
                program_credentials::create_secret(&call, parent, Kind::ClientSecret, &input)
                    .await?
            }
            Some(Detail::ApiKey(_)) => {
                program_credentials::create_secret(&call, parent, Kind::ApiKey, &input).await?
            }
            Some(Detail::PublicKey(key)) => {
                program_credentials::create_public_key(&call, parent, &input, key.source).await?
            }
            Some(Detail::Certificate(certificate)) => {
                program_credentials::create_certificate(&call, parent, &input, &certificate).await?
            }
            None => {
                let text = "must say which kind, such as `password` or `client_secret`";
                return Err(Error::field("credential", text).into());
            }
        };
        Ok(Response::new(response))
    }

    async fn confirm_credential(
        &self,
        request: Request<pb::ConfirmCredentialRequest>,
    ) -> Reply<pb::Credential> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(factors::confirm(&call, request).await?))
    }

    async fn get_credential(
        &self,
        request: Request<pb::GetCredentialRequest>,
    ) -> Reply<pb::Credential> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let (account, id) = call.child("name", &request.name, "credentials")?;
        let credential = find(&mut call.db().read().await?, account, CredentialId(id)).await?;
        Ok(Response::new(shown(&credential)))
    }

    async fn list_credentials(
        &self,
        request: Request<pb::ListCredentialsRequest>,
    ) -> Reply<pb::ListCredentialsResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let account = call.account("parent", &request.parent)?;
        let limit = page::size(request.page_size)?;
        let expected = "password, totp, passkey, recovery_codes, client_secret, api_key, \
                        public_key or certificate";
        let kind = filter::only(&request.filter, "kind", expected, Kind::parse)?;
        let parent = account.to_string();
        let context = call.page_context(&[&parent, &request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let mut db = call.db().read().await?;
        let rows = credentials::list(&mut db, account, kind, after.as_ref(), limit + 1)
            .await
            .map_err(Error::from)?;
        if rows.is_empty() {
            accounts::state(&mut db, account).await?;
        }
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, Cursor::after)?;
        let credentials = rows.iter().map(shown).collect();
        Ok(Response::new(pb::ListCredentialsResponse {
            credentials,
            next_page_token,
        }))
    }

    async fn update_credential(
        &self,
        request: Request<pb::UpdateCredentialRequest>,
    ) -> Reply<pb::Credential> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.credential.unwrap_or_default();
        let (account, id) = call.child("credential.name", &input.name, "credentials")?;
        let id = CredentialId(id);
        accounts::require_to_manage(&call, account)?;
        let paths = convert::masked(request.update_mask.as_ref(), &WRITABLE, |path| {
            is_set(path, &input)
        })?;
        let limits_change = paths.iter().any(|path| *path != "label");
        if limits_change {
            call.require("credentials.update")?;
        }
        let mut fields = Fields::new();
        let edits = edits(&mut fields, &paths, &input, call.now);
        fields.finish()?;
        let credential = mutate!(call, |tx| {
            let mut credential = find_for_change(tx, &call, account, id, &input.etag).await?;
            let before = credential.clone();
            for edit in edits.clone() {
                credential.edit(edit)?;
            }
            if limits_change {
                let by = if paths.contains(&"expire_time") {
                    maker(tx, &call, account).await?
                } else {
                    own_credential(tx, &call, account).await?
                };
                if let Some(by) = by {
                    credential.confine(&by)?;
                }
            }
            let end = |it: &Credential| it.expire_time.unwrap_or(Timestamp::MAX);
            if end(&credential) > end(&before) {
                call.require_lasting_credential(tx, &credential).await?;
            }
            if let AccountId::System(owner) = account {
                let field = "credential.scope_ceiling";
                let ceiling = &credential.scope_ceiling;
                require_to_raise(tx, &call, owner, field, ceiling, |name| {
                    credential.permits(&name.scope) && !before.permits(&name.scope)
                })
                .await?;
            }
            if !edits.is_empty() {
                credential.revision += 1;
                credentials::update(tx, &credential).await?;
                let event = call.event().about(credential.name(), Some(account));
                events::append(tx, &event.changed(paths.iter().copied())).await?;
            }
            shown(&credential)
        })?;
        Ok(Response::new(credential))
    }

    async fn rotate_credential(
        &self,
        request: Request<pb::RotateCredentialRequest>,
    ) -> Reply<pb::RotateCredentialResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let response = program_credentials::rotate(&call, request).await?;
        Ok(Response::new(response))
    }

    async fn delete_credential(&self, request: Request<pb::DeleteCredentialRequest>) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let (account, id) = call.child("name", &request.name, "credentials")?;
        let id = CredentialId(id);
        accounts::require_to_manage(&call, account)?;
        mutate!(call, |tx| {
            let credential = find_for_change(tx, &call, account, id, &request.etag).await?;
            require_another_way_in(tx, &call, &credential).await?;
            credentials::delete(tx, account, id).await?;
            if let AccountId::User(user) = account {
                // What was shown with it leads nowhere any more.
                challenges::delete_all(tx, user).await?;
                let is_last = !credentials::has_second_factor(tx, user).await?;
                if is_last || credential.kind == Kind::RecoveryCodes {
                    factor_store::delete_recovery_codes(tx, user).await?;
                }
                let which = Which {
                    credential: Some(id),
                    ..Which::default()
                };
                let reason = EndReason::CredentialDeleted;
                sessions::end_all(tx, user, which, call.now, reason).await?;
            }
            let event = call.event().about(credential.name(), Some(account));
            events::append(tx, &event.detail("kind", credential.kind.name())).await?;
        })?;
        Ok(Response::new(()))
    }

    async fn change_password(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Reply<pb::ChangePasswordResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(passwords::change(&call, request).await?))
    }

    async fn import_password(
        &self,
        request: Request<pb::ImportPasswordRequest>,
    ) -> Reply<pb::Credential> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(passwords::import(&call, request).await?))
    }

    async fn create_password_reset(
        &self,
        request: Request<pb::CreatePasswordResetRequest>,
    ) -> Reply<pb::CreatePasswordResetResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(
            passwords::create_reset(&call, request).await?,
        ))
    }

    async fn reset_password(
        &self,
        request: Request<pb::ResetPasswordRequest>,
    ) -> Reply<pb::ResetPasswordResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(passwords::reset(&call, request).await?))
    }
}

/// What a person knows or has is made by that person alone (ASVS 6.4.6).
pub(super) fn require_own(call: &Call, parent: AccountId) -> Result<()> {
    if call.caller.account() == Some(parent) {
        return Ok(());
    }
    let scopes = Vec::new();
    Err(Error::Denied {
        reason: Reason::ScopeMissing,
        scopes,
    })
}

/// Refuses one more of a kind of which an account has as many as it may.
pub(super) async fn require_room(
    db: &mut Read,
    account: AccountId,
    kind: Kind,
    max: i64,
) -> Result<()> {
    if credentials::count(db, account, kind).await? < max {
        return Ok(());
    }
    let text = format!("has {max} of kind {}, which is the limit", kind.name());
    Err(Error::precondition(
        Reason::LimitReached,
        account.to_string(),
        text,
    ))
}

/// The credential with which an account that is its own caller has authenticated.
async fn own_credential(
    db: &mut Read,
    call: &Call,
    parent: AccountId,
) -> Result<Option<Credential>> {
    match call.caller.principal() {
        Some(principal) if principal.id == parent => match principal.proof {
            Proof::Credential(id) => Ok(Some(find(db, parent, id).await?)),
            Proof::Session(_) => Ok(None),
        },
        _ => Ok(None),
    }
}

/// The same for what it makes for itself: with a certificate, that ends when the certificate does.
pub(super) async fn maker(
    db: &mut Read,
    call: &Call,
    parent: AccountId,
) -> Result<Option<Credential>> {
    let mut own = own_credential(db, call, parent).await?;
    if let (Some(own), Some(shown)) = (&mut own, &call.certificate)
        && own.kind == Kind::Certificate
    {
        let ends = [own.expire_time, Some(shown.expire_time)];
        own.expire_time = ends.into_iter().flatten().min();
    }
    Ok(own)
}

pub(super) fn not_allowed(account: AccountId, kind: Kind) -> Error {
    let text = format!("cannot hold a {}", kind.name());
    Error::precondition(Reason::CredentialKindNotAllowed, account.to_string(), text)
}

pub(super) async fn find(
    db: &mut Read,
    account: AccountId,
    id: CredentialId,
) -> Result<Credential> {
    let missing = || Error::not_found(account.child("credentials", id.0));
    credentials::find(db, account, id)
        .await?
        .ok_or_else(missing)
}

/// The credential as it is, for a caller who may change it and knows its present state.
pub(super) async fn find_for_change(
    tx: &mut Write,
    call: &Call,
    account: AccountId,
    id: CredentialId,
    etag: &str,
) -> Result<Credential> {
    let credential = find(tx, account, id).await?;
    call.require_power_over(tx, account).await?;
    call.opens(tx, account).await?;
    // Whoever has a secret that is being replaced may be whom the rotation is to keep out.
    if let Some(own) = own_credential(tx, call, account).await?
        && own.id != id
    {
        own.require_active()?;
    }
    convert::require_etag(etag, credential.revision, credential.name())?;
    Ok(credential)
}

/// Refuses to part with the one credential that lets an operator in.
async fn require_another_way_in(db: &mut Read, call: &Call, credential: &Credential) -> Result<()> {
    let (account, id, now) = (credential.account, credential.id, call.now);
    let certificates = call.app().takes_certificates();
    if !credential.kind.is_way_in()
        || !credential.is_live(now)
        || !is_operator(db, account, now).await?
        || credentials::is_another_of_operators(db, account, id, certificates, now).await?
    {
        return Ok(());
    }
    let text = "is the last that lets an operator in";
    Err(Error::precondition(
        Reason::LastCredential,
        credential.name(),
        text,
    ))
}

async fn is_operator(db: &mut Read, account: AccountId, now: Timestamp) -> Result<bool> {
    let holdings = grants::holdings(db, account.into(), Some(OWN_AUDIENCE), now).await?;
    Ok(holdings.has_role(role::OPERATOR, now))
}

fn is_set(path: &str, credential: &pb::Credential) -> bool {
    match path {
        "label" => !credential.label.is_empty(),
        "expire_time" => credential.expire_time.is_some(),
        "scope_ceiling" => !credential.scope_ceiling.is_empty(),
        "allowed_cidrs" => !credential.allowed_cidrs.is_empty(),
        _ => false,
    }
}

/// The named fields of a message as edits; what is wrong with them goes to `fields`.
pub(super) fn edits(
    fields: &mut Fields,
    paths: &[&str],
    input: &pb::Credential,
    now: Timestamp,
) -> Vec<Edit> {
    let edit = |path: &str| -> Result<Edit, String> {
        Ok(match path {
            "label" => Edit::Label(text::line(&input.label, MAX_LABEL)?),
            "expire_time" => {
                let time = convert::parse_time(input.expire_time.as_ref())?;
                Edit::ExpireTime(account::future(time, now)?)
            }
            "scope_ceiling" => {
                Edit::ScopeCeiling(convert::list(&input.scope_ceiling, MAX_LIST, scope::parse)?)
            }
            "allowed_cidrs" => Edit::AllowedCidrs(convert::list(
                &input.allowed_cidrs,
                MAX_CIDRS,
                network::parse_cidr,
            )?),
            path => return Err(format!("has no field {path}")),
        })
    };
    let name = |path: &str| format!("credential.{path}");
    paths
        .iter()
        .filter_map(|path| fields.take(&name(path), edit(path)))
        .collect()
}

/// What is a person's has none of the limits of a program's secret.
pub(super) fn refuse_limits(fields: &mut Fields, input: &pb::Credential) {
    for path in WRITABLE
        .iter()
        .filter(|path| **path != "label" && is_set(path, input))
    {
        fields.refuse(
            &format!("credential.{path}"),
            "is for the secrets of programs",
        );
    }
}

pub(super) fn shown(credential: &Credential) -> pb::Credential {
    use pb::credential::State as PbState;
    pb::Credential {
        name: credential.name(),
        etag: convert::etag(credential.revision),
        state: match credential.state {
            State::Pending => PbState::Pending,
            State::Active => PbState::Active,
            State::Retiring => PbState::Retiring,
            State::Revoked => PbState::Revoked,
        }
        .into(),
        label: credential.label.clone(),
        hint: credential.hint.clone(),
        detail: Some(detail(credential)),
        scope_ceiling: credential.scope_ceiling.clone(),
        allowed_cidrs: credential
            .allowed_cidrs
            .iter()
            .map(ToString::to_string)
            .collect(),
        create_time: Some(convert::timestamp(credential.create_time)),
        expire_time: convert::some_timestamp(credential.expire_time),
        last_used_time: convert::some_timestamp(credential.last_used_time),
        retire_time: convert::some_timestamp(credential.retirement.map(|it| it.retire_time)),
        replaced_by: credential.retirement.map_or_else(String::new, |it| {
            credential.account.child("credentials", it.replaced_by.0)
        }),
        revoke_time: convert::some_timestamp(credential.revoke_time),
    }
}

/// What differs from kind to kind.
fn detail(credential: &Credential) -> pb::credential::Detail {
    use pb::credential::{
        ApiKey, Certificate, ClientSecret, Detail, Passkey, Password, PublicKey, RecoveryCodes,
        Totp, public_key, totp,
    };
    match (credential.kind, &credential.parameters) {
        (Kind::Password, _) => Detail::Password(Password {
            value: String::new(),
            change_time: Some(convert::timestamp(credential.change_time)),
        }),
        (Kind::Totp, Some(Parameters::Totp(parameters))) => Detail::Totp(Totp {
            algorithm: match parameters.algorithm {
                Algorithm::Sha1 => totp::Algorithm::Sha1,
                Algorithm::Sha256 => totp::Algorithm::Sha256,
            }
            .into(),
            digits: parameters.digits.into(),
        }),
        (Kind::Totp, _) => Detail::Totp(Totp::default()),
        (Kind::Passkey, Some(Parameters::Passkey(details))) => Detail::Passkey(Passkey {
            aaguid: details.aaguid.to_string(),
            backed_up: details.backed_up,
            credential_id: details.credential_id.clone(),
        }),
        (Kind::Passkey, _) => Detail::Passkey(Passkey::default()),
        (Kind::RecoveryCodes, _) => Detail::RecoveryCodes(RecoveryCodes {
            remaining: credential
                .codes_left
                .and_then(|left| left.try_into().ok())
                .unwrap_or_default(),
        }),
        (Kind::ClientSecret, _) => Detail::ClientSecret(ClientSecret {}),
        (Kind::ApiKey, _) => Detail::ApiKey(ApiKey {}),
        (Kind::PublicKey, Some(Parameters::PublicKey(key))) => Detail::PublicKey(PublicKey {
            source: Some(public_key::Source::Jwk(key.jwk.clone())),
            kid: key.kid.clone(),
        }),
        (Kind::PublicKey, Some(Parameters::KeySet(uri))) => Detail::PublicKey(PublicKey {
            source: Some(public_key::Source::JwksUri(uri.as_str().to_owned())),
            ..PublicKey::default()
        }),
        (Kind::PublicKey, _) => Detail::PublicKey(PublicKey::default()),
        (Kind::Certificate, Some(Parameters::Certificate(identity))) => {
            Detail::Certificate(Certificate {
                san: identity.san.clone(),
                sha256: identity.sha256.clone().unwrap_or_default(),
            })
        }
        (Kind::Certificate, _) => Detail::Certificate(Certificate::default()),
    }
}

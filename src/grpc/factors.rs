//! What CredentialService does with a person's second factors.

use super::{
    accounts,
    call::{Call, mutate},
    challenges, convert,
    credentials::{edits, find, not_allowed, refuse_limits, require_own, require_room, shown},
    pb::{self, confirm_credential_request::Proof, enrolment::Factor as Enrolled},
    secrets,
};
use crate::{
    domain::{
        account::State,
        credential::{Credential, Kind, MAX_PASSKEYS, MAX_TOTPS, Parameters, State as Accepted},
        error::{Error, Fields, Reason, Result},
        name::{AccountId, CredentialId},
        passkey::{Asked, MAX_RESPONSE_BYTES, Owner, Passkey},
        recovery_code::{self, RecoveryCode},
        secret::Digest,
        totp::{self, Algorithm, Generator},
        user::User,
    },
    store::{
        credentials::{self, Kept},
        db::Write,
        events,
        factors::{self, Confirmed},
        users,
    },
};

/// A new generator of one-time codes, to be confirmed with one of them.
pub(super) async fn create_totp(
    call: &Call,
    parent: AccountId,
    input: &pb::Credential,
    wanted: pb::credential::Totp,
) -> Result<pb::CreateCredentialResponse> {
    use pb::credential::totp::Algorithm as Wanted;
    let user = own(call, parent, Kind::Totp).await?;
    let mut fields = Fields::new();
    let digits = match wanted.digits {
        0 | 6 => Ok(6),
        8 => Ok(8),
        _ => Err("must be 6 or 8".to_owned()),
    };
    let digits = fields.take("credential.totp.digits", digits);
    let algorithm = match Wanted::try_from(wanted.algorithm) {
        Ok(Wanted::Unspecified | Wanted::Sha1) => Ok(Algorithm::Sha1),
        Ok(Wanted::Sha256) => Ok(Algorithm::Sha256),
        Err(_) => Err("must be SHA1 or SHA256".to_owned()),
    };
    let algorithm = fields.take("credential.totp.algorithm", algorithm);
    let mut credential = enrolment(call, &mut fields, parent, Kind::Totp, input)?;
    fields.finish()?;
    let parameters = totp::Parameters {
        algorithm: algorithm.ok_or_else(|| Error::internal("checked above"))?,
        digits: digits.ok_or_else(|| Error::internal("checked above"))?,
    };
    let app = call.app();
    let mut secret = zeroize::Zeroizing::new(app.random.bytes::<32>().to_vec());
    secret.truncate(parameters.algorithm.secret_bytes());
    let generator = Generator::new(parameters, secret);
    let sealed = secrets::totp::seal(call, user.id, credential.id, &generator);
    credential.parameters = Some(Parameters::Totp(parameters));
    let service = &app.config.sign_in.service_name;
    let uri = generator.uri(service, username(&user));
    let enrolled = Enrolled::Totp(pb::enrolment::Totp {
        secret: generator.secret_text(),
        uri: uri.ok_or_else(|| Error::internal("a name that no link can have"))?,
    });
    store(call, &credential, &sealed, MAX_TOTPS, enrolled).await
}

/// A new passkey, to be confirmed with what the browser makes of the question.
pub(super) async fn create_passkey(
    call: &Call,
    parent: AccountId,
    input: &pb::Credential,
) -> Result<pb::CreateCredentialResponse> {
    let user = own(call, parent, Kind::Passkey).await?;
    let mut fields = Fields::new();
    let credential = enrolment(call, &mut fields, parent, Kind::Passkey, input)?;
    fields.finish()?;
    let stored = factors::list(&mut call.db().read().await?, user.id).await?;
    let existing = factors::passkeys(&stored).into_iter().map(|(_, key)| key);
    let existing: Vec<Passkey> = existing.collect();
    let display_name = user.profile.display_name.as_str();
    let owner = Owner {
        id: user.id,
        username: username(&user),
        display_name: if display_name.is_empty() {
            username(&user)
        } else {
            display_name
        },
    };
    let Asked { options, ceremony } = challenges::relying_party(call)?
        .enrol(&owner, &existing)
        .map_err(Error::Internal)?;
    let enrolled = Enrolled::Passkey(pb::enrolment::Passkey {
        options_json: options,
    });
    store(
        call,
        &credential,
        ceremony.as_bytes(),
        MAX_PASSKEYS,
        enrolled,
    )
    .await
}

/// A set of recovery codes in the place of the one before.
pub(super) async fn create_recovery_codes(
    call: &Call,
    parent: AccountId,
    input: &pb::Credential,
) -> Result<pb::CreateCredentialResponse> {
    let user = own(call, parent, Kind::RecoveryCodes).await?;
    let mut fields = Fields::new();
    let mut credential = enrolment(call, &mut fields, parent, Kind::RecoveryCodes, input)?;
    fields.finish()?;
    (credential.state, credential.expire_time) = (Accepted::Active, None);
    let codes: Vec<RecoveryCode> = (0..recovery_code::COUNT)
        .map(|_| RecoveryCode::new(call.app().random.bytes()))
        .collect();
    let key = &call.app().keys.codes;
    let digests: Vec<Digest> = codes.iter().map(|code| code.digest(user.id, key)).collect();
    credential.codes_left = i64::try_from(codes.len()).ok();
    let response = mutate!(call, |tx| {
        require_active(tx, call, parent).await?;
        if !credentials::has_second_factor(tx, user.id).await? {
            let text = "has no second factor that they could stand in for";
            let name = parent.to_string();
            return Err(Error::precondition(Reason::WrongState, name, text));
        }
        factors::replace_recovery_codes(tx, user.id, credential.id, &digests).await?;
        credentials::insert(tx, &credential, Kept::Material(&[])).await?;
        let event = call.event().about(credential.name(), Some(parent));
        events::append(tx, &event.detail("kind", credential.kind.name())).await?;
        let codes = codes.iter().map(RecoveryCode::text).collect();
        response(
            &credential,
            Enrolled::RecoveryCodes(pb::enrolment::RecoveryCodes { codes }),
        )
    })?;
    Ok(call.without_secret_if_dry(response))
}

/// Makes an enrolment a factor.
pub(super) async fn confirm(
    call: &Call,
    request: pb::ConfirmCredentialRequest,
) -> Result<pb::Credential> {
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    let (account, id) = call.child("name", &request.name, "credentials")?;
    let (AccountId::User(user), id) = (account, CredentialId(id)) else {
        return Err(Error::field("name", "must be users/{uid}/credentials/{id}"));
    };
    let session = call.caller.session();
    let session = session.ok_or_else(|| Error::internal("a user without a session"))?;
    let mut db = call.db().read().await?;
    let mut credential = find(&mut db, account, id).await?;
    let stored = factors::find(&mut db, user, id).await?;
    drop(db);
    let stored = stored.ok_or(Error::Conflict)?;
    // Before the proof is looked at, of which there may be none to be right.
    credential.confirm(call.now)?;
    let wrong_kind = |field| Error::field(field, "is not what this credential is confirmed with");
    let (passkey, used_step) = match request.proof {
        None => {
            return Err(Error::field(
                "totp_code",
                "or `passkey_response_json` is required",
            ));
        }
        Some(Proof::TotpCode(code)) => {
            let generator = secrets::totp::open(call, user, &stored);
            let generator = generator.ok_or_else(|| wrong_kind("totp_code"))?;
            let step = secrets::confirm_totp(call, user, session, &generator, &code).await?;
            (None, Some(step))
        }
        Some(Proof::PasskeyResponseJson(json)) => {
            if credential.kind != Kind::Passkey {
                return Err(wrong_kind("passkey_response_json"));
            }
            if json.len() > MAX_RESPONSE_BYTES {
                return Err(Error::field("passkey_response_json", "is too long"));
            }
            let passkey = secrets::new_passkey(call, user, &stored, &json).await?;
            credential.parameters = Some(Parameters::Passkey(passkey.details.clone()));
            (Some(passkey), None)
        }
    };
    let material = match &passkey {
        Some(passkey) => serde_json::to_vec(passkey).map_err(Error::internal)?,
        None => stored.material.clone(),
    };
    let passkey_id = passkey.as_ref().map(Passkey::id);
    mutate!(call, |tx| {
        require_active(tx, call, account).await?;
        let before = find(tx, account, id).await?;
        convert::require_etag(&request.etag, before.revision, before.name())?;
        let confirmed = Confirmed {
            material: &material,
            used_step,
            passkey_id: passkey_id.as_deref(),
        };
        factors::confirm(tx, &credential, &confirmed, call.now).await?;
        let event = call.event().about(credential.name(), Some(account));
        events::append(tx, &event.detail("kind", credential.kind.name())).await?;
        shown(&credential)
    })
}

/// The user who calls: nobody makes factors for somebody else (ASVS 6.4.6).
async fn own(call: &Call, parent: AccountId, kind: Kind) -> Result<User> {
    let AccountId::User(id) = parent else {
        return Err(not_allowed(parent, kind));
    };
    require_own(call, parent)?;
    users::get(&mut call.db().read().await?, id).await
}

/// A credential that waits for its confirmation.
fn enrolment(
    call: &Call,
    fields: &mut Fields,
    parent: AccountId,
    kind: Kind,
    input: &pb::Credential,
) -> Result<Credential> {
    let edits = edits(fields, &["label"], input, call.now);
    refuse_limits(fields, input);
    let lifetime_s = call.app().config.sign_in.enrolment_lifetime_s;
    let id = CredentialId(call.new_uuid());
    let mut credential = Credential::new(id, parent, kind, call.now);
    for edit in edits {
        credential.edit(edit)?;
    }
    Ok(credential.pending(call.now.plus_s(lifetime_s)))
}

async fn store(
    call: &Call,
    credential: &Credential,
    material: &[u8],
    max: i64,
    enrolled: Enrolled,
) -> Result<pb::CreateCredentialResponse> {
    let parent = credential.account;
    let response = mutate!(call, |tx| {
        require_active(tx, call, parent).await?;
        require_room(tx, parent, credential.kind, max).await?;
        credentials::insert(tx, credential, Kept::Material(material)).await?;
        let event = call.event().about(credential.name(), Some(parent));
        events::append(tx, &event.detail("kind", credential.kind.name())).await?;
        response(credential, enrolled.clone())
    })?;
    Ok(call.without_secret_if_dry(response))
}

fn response(credential: &Credential, factor: Enrolled) -> pb::CreateCredentialResponse {
    pb::CreateCredentialResponse {
        credential: Some(shown(credential)),
        secret: String::new(),
        enrolment: Some(pb::Enrolment {
            factor: Some(factor),
        }),
    }
}

async fn require_active(tx: &mut Write, call: &Call, account: AccountId) -> Result<()> {
    accounts::state(tx, account)
        .await?
        .require(&[State::Active], account, call.now)
}

/// What a person's authenticator calls the account.
fn username(user: &User) -> &str {
    user.profile
        .username
        .as_ref()
        .map_or("user", |username| username.as_str())
}

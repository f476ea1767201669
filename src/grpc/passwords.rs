//! What CredentialService does with a person's password.

use super::{
    accounts,
    call::{Call, mutate},
    convert,
    credentials::{edits, find, not_allowed, refuse_limits, require_own, shown},
    messages,
    pb::{
        self,
        create_password_reset_request::{Account, Delivery},
    },
    secrets::{self, Asked, Attempt, Proven, Whose},
};
use crate::{
    domain::{
        account::State,
        contact::Purpose,
        credential::Kind,
        error::{Error, Fields, Reason, Result},
        foreign_hash::ForeignHash,
        identifier::{self, Identifier, MAX_IDENTIFIER_BYTES},
        message::{self, Facts, Message, To, Who},
        name::{AccountId, UserId},
        password::{Password, PasswordHash},
        secret::{self, Secret},
        session::EndReason,
        time::Timestamp,
        user::User,
    },
    store::{
        challenges, contacts,
        credentials::{self, Kept},
        db::{Isolation, Read, Write},
        events, password_resets,
        sessions::{self, Which},
        users::{self, PasswordOwner},
    },
};

/// A person's first password, which only the person sets (ASVS 6.4.6).
pub(super) async fn create(
    call: &Call,
    parent: AccountId,
    input: &pb::Credential,
    typed: String,
) -> Result<pb::CreateCredentialResponse> {
    let AccountId::User(id) = parent else {
        return Err(not_allowed(parent, Kind::Password));
    };
    require_own(call, parent)?;
    let mut db = call.db().read().await?;
    let owner = Owner::find(&mut db, id).await?;
    let has_password = credentials::count(&mut db, parent, Kind::Password).await? > 0;
    drop(db);
    if has_password {
        // Before anything is hashed for nothing.
        let name = format!("{parent}/credentials");
        return Err(Error::AlreadyExists { name });
    }
    let mut fields = Fields::new();
    let field = "credential.password.value";
    let password = owner.new_password(call, &mut fields, field, typed);
    let edits = edits(&mut fields, &["label"], input, call.now);
    refuse_limits(&mut fields, input);
    fields.finish()?;
    let password = password.ok_or_else(|| Error::internal("checked above"))?;
    let hash = hash_of(call, id, password).await?;
    let mut credential = secrets::password_credential(call, id);
    for edit in edits {
        credential.edit(edit)?;
    }
    mutate!(call, |tx| {
        accounts::state(tx, parent)
            .await?
            .require(&[State::Active], parent, call.now)?;
        credentials::insert(tx, &credential, Kept::Password(&hash)).await?;
        let event = call.event().about(credential.name(), Some(parent));
        events::append(tx, &event.detail("kind", credential.kind.name())).await?;
        pb::CreateCredentialResponse {
            credential: Some(shown(&credential)),
            secret: String::new(),
            enrolment: None,
        }
    })
}

/// Replaces the caller's own password, which they have to show.
pub(super) async fn change(
    call: &Call,
    request: pb::ChangePasswordRequest,
) -> Result<pb::ChangePasswordResponse> {
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    let id = call.user("name", &request.name)?;
    let owner = Owner::find(&mut call.db().read().await?, id).await?;
    let mut fields = Fields::new();
    let old = fields.take("old_password", Password::parse(request.old_password));
    let new = owner.new_password(call, &mut fields, "new_password", request.new_password);
    fields.finish()?;
    let (Some(old), Some(new)) = (old, new) else {
        return Err(Error::internal("checked above"));
    };
    // The policy admits the user alone, and users have sessions.
    let session = call.caller.session();
    let session = session.ok_or_else(|| Error::internal("a user without a session"))?;
    let attempt = Attempt {
        whose: Whose::User(id),
        password: old,
        from: secrets::Origin::Session(session),
        address: call.address,
        refusal_event: "credential.password_change_refused",
    };
    let Proven {
        credential, hash, ..
    } = secrets::password(call, attempt).await?;
    let new = hash_of(call, id, new).await?;
    mutate!(call, |tx| {
        let password = find(tx, id.into(), credential).await?;
        convert::require_etag(&request.etag, password.revision, password.name())?;
        if !credentials::replace_password(tx, id, &hash, &new, Some(call.now)).await? {
            // Changed by somebody else since it was proved.
            return Err(Error::invalid_credentials());
        }
        users::void_begun(tx, id).await?;
        tell(tx, call, id).await?;
        let ended_sessions = if request.keep_sessions {
            0
        } else {
            let which = Which {
                except: Some(session),
                ..Which::default()
            };
            sessions::end_all(tx, id, which, call.now, EndReason::PasswordChanged).await?
        };
        let event = call.event().about(password.name(), Some(id.into()));
        events::append(tx, &event.detail("ended_sessions", ended_sessions)).await?;
        pb::ChangePasswordResponse { ended_sessions }
    })
}

/// Takes over the password that a person has in another system.
pub(super) async fn import(
    call: &Call,
    request: pb::ImportPasswordRequest,
) -> Result<pb::Credential> {
    let id = call.user("name", &request.name)?;
    let mut fields = Fields::new();
    let text = request.password_hash;
    fields.take("password_hash", ForeignHash::parse(&text));
    fields.finish()?;
    let new = secrets::seal_hash(call, id, &text);
    let credential = secrets::password_credential(call, id);
    mutate!(call, |tx| {
        accounts::state(tx, id.into()).await?.require(
            &[State::Active, State::Suspended],
            id,
            call.now,
        )?;
        call.require_full_power_over(tx, id).await?;
        call.opens(tx, id.into()).await?;
        let owner = users::find_with_password(tx, id).await?;
        let credential = match owner.and_then(|owner| owner.password) {
            None => {
                credentials::insert(tx, &credential, Kept::Password(&new)).await?;
                credential.clone()
            }
            Some((old_id, old)) => {
                let before = find(tx, id.into(), old_id).await?;
                convert::require_etag(&request.etag, before.revision, before.name())?;
                // Of ours once the person has signed in.
                if old.as_sealed().is_none() {
                    let name = before.name();
                    return Err(Error::AlreadyExists { name });
                }
                credentials::replace_password(tx, id, &old, &new, Some(call.now)).await?;
                challenges::delete_all(tx, id).await?;
                find(tx, id.into(), old_id).await?
            }
        };
        let event = call.event().about(credential.name(), Some(id.into()));
        events::append(tx, &event).await?;
        shown(&credential)
    })
}

/// Makes a one-time code for setting a password.
pub(super) async fn create_reset(
    call: &Call,
    request: pb::CreatePasswordResetRequest,
) -> Result<pb::CreatePasswordResetResponse> {
    match request.delivery() {
        Delivery::Return => call.require("credentials.reset")?,
        Delivery::Send => return send_reset(call, request).await,
        Delivery::Unspecified => {
            return Err(Error::field("delivery", "must be SEND or RETURN"));
        }
    }
    let code = Secret::new(
        secret::Kind::PasswordReset,
        &call.app().random.bytes::<32>(),
    );
    let lifetime_s = call.app().config.passwords.reset_lifetime_s;
    let expire_time = call.now.plus_s(lifetime_s);
    let response = mutate!(call, |tx| {
        let user = match &request.account {
            Some(Account::Name(name)) => users::get(tx, call.user("name", name)?).await?,
            Some(Account::Identifier(typed)) => find_identified(tx, typed).await?,
            None => return Err(Error::field("name", "or `identifier` is required")),
        };
        user.lifecycle
            .require(&[State::Active], user.id, call.now)?;
        call.require_full_power_over(tx, user.id).await?;
        call.opens(tx, user.id.into()).await?;
        // One at a time: a lost code is good for nobody once there is another.
        password_resets::delete_all(tx, user.id).await?;
        password_resets::insert(tx, &code.digest(), user.id, call.now, expire_time).await?;
        events::append(tx, &call.event().about_account(user.id)).await?;
        pb::CreatePasswordResetResponse {
            code: code.text(),
            expire_time: Some(convert::timestamp(expire_time)),
        }
    })?;
    Ok(call.without_secret_if_dry(response))
}

/// Leaves a message with a one-time code for whoever is found, if anybody is. Nobody is looked for now, so
/// neither the answer nor its time can tell.
async fn send_reset(
    call: &Call,
    request: pb::CreatePasswordResetRequest,
) -> Result<pb::CreatePasswordResetResponse> {
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    let (who, asked) = match &request.account {
        Some(Account::Name(name)) => {
            let id = call.user("name", name)?;
            (Who::User(id.0), id.to_string())
        }
        Some(Account::Identifier(typed)) if typed.len() > MAX_IDENTIFIER_BYTES => {
            let text = format!("must have at most {MAX_IDENTIFIER_BYTES} bytes");
            return Err(Error::field("identifier", text));
        }
        Some(Account::Identifier(typed)) => {
            let who = Who::Identifier(Identifier::typed(typed));
            (who, identifier::canonical(typed))
        }
        None => return Err(Error::field("name", "or `identifier` is required")),
    };
    messages::require_sender(call, None)?;
    // A frontend answers for many people.
    let address = call
        .address
        .filter(|_| !call.caller.holds("sessions.create"));
    secrets::ask(call, Asked::Message(asked), None, address).await?;
    let code = Secret::new(
        secret::Kind::PasswordReset,
        &call.app().random.bytes::<32>(),
    );
    let lifetime_s = call.app().config.passwords.reset_lifetime_s;
    let expire_time = call.now.plus_s(lifetime_s);
    let message = Message {
        kind: message::Kind::PasswordReset,
        to: To::Whoever {
            who,
            channel: None,
            purpose: Purpose::Recovery,
        },
        language: String::new(),
        name: String::new(),
        facts: Facts {
            code: code.text(),
            link: messages::link(call, "reset-password", &format!("code={}", code.text())),
            minutes: lifetime_s / 60,
            ..Facts::default()
        },
        unlocks: Some(code.digest()),
        asker: None,
    };
    mutate!(call, Isolation::ReadCommitted, |tx| {
        messages::enqueue(tx, call, None, &message, expire_time).await?;
        events::append(tx, &call.event().detail("delivery", "SEND")).await?;
        pb::CreatePasswordResetResponse {
            code: String::new(),
            expire_time: Some(convert::timestamp(expire_time)),
        }
    })
}

/// Tells a person that somebody has set a new password.
async fn tell(tx: &mut Write, call: &Call, id: UserId) -> Result<()> {
    let contacts = contacts::list_all(tx, id.into()).await?;
    let kind = message::Kind::PasswordChanged;
    let facts = Facts {
        link: messages::link(call, "reset-password", ""),
        ..Facts::default()
    };
    messages::notify(tx, call, id.into(), &contacts, None, kind, facts).await
}

/// Sets a password against a one-time code.
pub(super) async fn reset(
    call: &Call,
    request: pb::ResetPasswordRequest,
) -> Result<pb::ResetPasswordResponse> {
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    let (digest, PasswordOwner { id, password, .. }) =
        secrets::reset_code(call, &request.code).await?;
    let owner = Owner::find(&mut call.db().read().await?, id).await?;
    let mut fields = Fields::new();
    let new = owner.new_password(call, &mut fields, "new_password", request.new_password);
    fields.finish()?;
    let new = new.ok_or_else(|| Error::internal("checked above"))?;
    let new = hash_of(call, id, new).await?;
    mutate!(call, |tx| {
        let redeemed = password_resets::redeem(tx, &digest, call.now).await?;
        if redeemed != Some(id) || !is_active(tx, id, call.now).await? {
            return Err(Error::Unauthenticated(Reason::InvalidCode));
        }
        match &password {
            Some((_, old)) => {
                if !credentials::replace_password(tx, id, old, &new, Some(call.now)).await? {
                    return Err(Error::Conflict);
                }
            }
            None => {
                let credential = secrets::password_credential(call, id);
                credentials::insert(tx, &credential, Kept::Password(&new)).await?;
            }
        }
        users::void_begun(tx, id).await?;
        tell(tx, call, id).await?;
        let reason = EndReason::PasswordReset;
        let ended_sessions = sessions::end_all(tx, id, Which::default(), call.now, reason).await?;
        let event = call.event().about_account(id);
        events::append(tx, &event.detail("ended_sessions", ended_sessions)).await?;
        pb::ResetPasswordResponse { ended_sessions }
    })
}

/// Whose password it is.
struct Owner {
    user: User,
    has_second_factor: bool,
}

impl Owner {
    async fn find(db: &mut Read, id: UserId) -> Result<Self> {
        Ok(Self {
            user: users::get(db, id).await?,
            has_second_factor: credentials::has_second_factor(db, id).await?,
        })
    }

    fn new_password(
        &self,
        call: &Call,
        fields: &mut Fields,
        field: &str,
        typed: String,
    ) -> Option<Password> {
        secrets::new_password(
            call,
            fields,
            field,
            typed,
            &self.user,
            self.has_second_factor,
        )
    }
}

/// The hash of a new password, in a lane, of which one person has no more than a few.
async fn hash_of(call: &Call, id: UserId, password: Password) -> Result<PasswordHash> {
    let hasher = &call.app().hasher;
    let ticket = hasher.admit(call.deadline)?.of(id.into())?;
    hasher.hash(ticket, password).await
}

async fn find_identified(db: &mut Read, typed: &str) -> Result<User> {
    let missing = || Error::not_found("the user looked up");
    let identifier = Identifier::typed(typed).ok_or_else(missing)?;
    let user = users::find_by_identifier(db, &identifier).await?;
    user.ok_or_else(missing)
}

async fn is_active(db: &mut Read, id: UserId, now: Timestamp) -> Result<bool> {
    Ok(users::find(db, id)
        .await?
        .is_some_and(|user| user.lifecycle.may_act(now)))
}

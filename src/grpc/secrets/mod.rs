//! Every secret that somebody presents is checked here, and nowhere else.
//!
//! Whatever the secret: attempts are charged, a wrong one is written to the log, and everything that
//! can be wrong has one answer. What a person types is charged before it is looked at and refunded
//! when right. Secrets with 256 bits of their own, and signatures, cannot be guessed: they are charged
//! when wrong, which bounds what wrong ones may cost, and right ones are never held up by strangers.

mod answer;
mod charge;
mod contact;
mod enrolment;
mod password;
mod program;
pub(super) mod totp;

pub(super) use answer::{Answered, answer};
pub(super) use charge::{Asked, ask};
pub(super) use contact::{contact_change, contact_code};
pub(super) use enrolment::{confirm_totp, new_passkey};
pub(super) use password::{
    Attempt, Origin, Proven, Whose, known_device, new_password, password, password_credential,
    seal_hash,
};
pub(super) use program::{Presented, Program, of_program};

use self::charge::attempted;
use super::call::Call;
use crate::{
    domain::{
        account::Lifecycle,
        error::{Reason, Result},
        secret::{Digest, Kind, Secret},
        session::{RefreshToken, Session},
    },
    store::{
        password_resets, sessions,
        users::{self, PasswordOwner},
    },
};

/// The session that a refresh token belongs to, and the state of its user. Whether it is the live
/// token is for the caller to judge; that the session had it once is certain.
pub(super) async fn refresh_token(
    call: &Call,
    text: &str,
) -> Result<(RefreshToken, Session, Lifecycle)> {
    match look_up_refresh_token(call, text).await? {
        Some(found) => Ok(found),
        None => {
            let event = attempted(call, "session.refresh_refused", None);
            Err(charge::refuse(call, call.address, event, Reason::InvalidRefreshToken).await?)
        }
    }
}

/// The same for somebody who asks about a token, or gives it up, and gets nothing for it: a wrong
/// one is no attempt.
pub(super) async fn look_up_refresh_token(
    call: &Call,
    text: &str,
) -> Result<Option<(RefreshToken, Session, Lifecycle)>> {
    let Some(token) = RefreshToken::parse(text) else {
        return Ok(None);
    };
    let mut db = call.db().read().await?;
    let found = sessions::find_with_user(&mut db, token.user, token.session).await?;
    let key = &call.app().keys.refresh_tokens;
    let genuine = found.filter(|(session, _)| token.is_genuine(key, &session.family.seed));
    Ok(genuine.map(|(session, user)| (token, session, user)))
}

/// Whose password a one-time code sets, without using it up.
pub(super) async fn reset_code(call: &Call, text: &str) -> Result<(Digest, PasswordOwner)> {
    if let Some(code) = Secret::parse(Kind::PasswordReset, text) {
        let mut db = call.db().read().await?;
        let digest = code.digest();
        if let Some(id) = password_resets::find(&mut db, &digest, call.now).await? {
            let owner = users::find_with_password(&mut db, id).await?;
            if let Some(owner) = owner.filter(|owner| owner.lifecycle.may_act(call.now)) {
                return Ok((digest, owner));
            }
        }
    }
    let event = attempted(call, "credential.password_reset_refused", None);
    Err(charge::refuse(call, call.address, event, Reason::InvalidCode).await?)
}

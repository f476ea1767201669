//! The secrets of generators of one-time codes, which are stored encrypted under the master key.

use crate::{
    domain::{
        credential::Parameters,
        name::{CredentialId, UserId},
        totp::Generator,
    },
    grpc::call::Call,
    store::factors::Factor,
};

/// What is stored of a new generator.
pub(in crate::grpc) fn seal(
    call: &Call,
    user: UserId,
    id: CredentialId,
    generator: &Generator,
) -> Vec<u8> {
    let app = call.app();
    let nonce = app.random.bytes();
    let key = &app.keys.totp_secrets;
    key.seal(nonce, &context(user, id), generator.secret())
}

/// A stored generator.
pub(in crate::grpc) fn open(call: &Call, user: UserId, stored: &Factor) -> Option<Generator> {
    let Some(Parameters::Totp(parameters)) = &stored.parameters else {
        return None;
    };
    let key = &call.app().keys.totp_secrets;
    let secret = key.open(&context(user, stored.id), &stored.material)?;
    Some(Generator::new(*parameters, secret))
}

/// What a sealed secret is bound to: it opens nowhere else.
fn context(user: UserId, id: CredentialId) -> Vec<u8> {
    [&user.0.as_bytes()[..], &id.0.as_bytes()[..]].concat()
}

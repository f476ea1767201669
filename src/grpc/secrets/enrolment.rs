//! What people show to confirm that a new factor is in their hands.

use super::charge::{self, Payer, Tries, attempted};
use crate::{
    domain::{
        error::{Error, Reason, Result},
        name::{SessionId, UserId},
        passkey::Passkey,
        throttle::Subject,
        totp::Generator,
    },
    grpc::call::Call,
    store::factors::Factor as Stored,
};

/// The type of the event when it is wrong.
const REFUSED: &str = "credential.confirmation_refused";

/// Checks a code of a generator that a person is enrolling; the step of time it is of.
pub(in crate::grpc) async fn confirm_totp(
    call: &Call,
    user: UserId,
    session: SessionId,
    generator: &Generator,
    code: &str,
) -> Result<i64> {
    let payer = Payer {
        subject: Subject::SecondFactor(user.into()),
        rule: call.app().config.second_factor_throttle(),
        device: Some(Subject::SecondFactorDevice(session.0)),
        address: call.address,
    };
    let ways = payer.ways(call);
    charge::require_patience(&mut call.db().read().await?, call, &ways).await?;
    let charged = charge::attempt(call, ways, Tries::Unlimited).await?;
    if let Some(step) = generator.check(code, call.now, None) {
        charge::refund(call, &charged).await?;
        return Ok(step);
    }
    let event = attempted(call, REFUSED, Some(user.into()));
    Err(charge::wrong(call, event).await?)
}

/// The passkey that a person's browser has made for an enrolment.
pub(in crate::grpc) async fn new_passkey(
    call: &Call,
    user: UserId,
    stored: &Stored,
    response: &str,
) -> Result<Passkey> {
    let ceremony = std::str::from_utf8(&stored.material).map_err(Error::internal)?;
    let ours = call.app().passkeys.as_deref();
    if let Some(passkey) = ours.and_then(|ours| ours.enrolled(ceremony, response)) {
        return Ok(passkey);
    }
    let event = attempted(call, REFUSED, Some(user.into()));
    Err(charge::refuse(call, call.address, event, Reason::InvalidCode).await?)
}

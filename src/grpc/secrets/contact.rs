//! Codes and links that prove a contact.

use super::charge::{self, Asked, Payer, Tries, attempted};
use crate::{
    domain::{
        contact::{self, Contact, Method, Value},
        error::{Error, Reason, Result},
        message::{self, Recipient},
        secret::{self, Digest, Kind, Secret},
        throttle::Subject,
    },
    grpc::call::Call,
    store::{
        contact_changes::{self, Change},
        contact_codes::{self, Code},
    },
};

/// The type of the event when it is wrong.
const REFUSED: &str = "contact.verification_refused";

/// The change that a link takes back, without using it up.
pub(in crate::grpc) async fn contact_change(call: &Call, text: &str) -> Result<(Digest, Change)> {
    if let Some(token) = Secret::parse(Kind::ContactRevert, text) {
        let digest = token.digest();
        let mut db = call.db().read().await?;
        if let Some(change) = contact_changes::find(&mut db, &digest, call.now).await? {
            return Ok((digest, change));
        }
    }
    let event = attempted(call, "contact.revert_refused", None);
    Err(charge::refuse(call, call.address, event, Reason::InvalidCode).await?)
}

/// Checks a code, or what a link holds, for a value of a contact; what it was, still to be redeemed.
pub(in crate::grpc) async fn contact_code(
    call: &Call,
    contact: &Contact,
    value: &Value,
    typed: &str,
) -> Result<(Code, Method)> {
    let (account, id) = (contact.account, contact.id);
    let kept = contact_codes::find(&mut call.db().read().await?, account, id).await?;
    let event = attempted(call, REFUSED, Some(account));
    if let Some(link) = Secret::parse(Kind::ContactLink, typed) {
        let is_right = |kept: &Code| {
            let sent = kept.link.as_deref().unwrap_or_default();
            call.now < kept.link_expire_time && secret::equal(&link.digest(), sent)
        };
        return match kept.filter(is_right) {
            Some(kept) => Ok((kept, Method::SentLink)),
            None => Err(charge::refuse(call, call.address, event, Reason::InvalidCode).await?),
        };
    }
    let payer = Payer {
        // However often the contact is made anew.
        subject: match value.identifier() {
            Some(identifier) => Subject::Contact(account, identifier),
            None => return Err(Error::internal("a contact that cannot be proven")),
        },
        rule: call.app().config.second_factor_throttle(),
        device: None,
        // A frontend answers for many people.
        address: call
            .address
            .filter(|_| call.caller.account() == Some(account)),
    };
    let ways = payer.ways(call);
    charge::require_patience(&mut call.db().read().await?, call, &ways).await?;
    let charged = charge::attempt(call, ways, Tries::OfContact(account, id)).await?;
    let digest = contact::code_digest(typed, contact, value, &call.app().keys.codes);
    match kept.filter(|kept| secret::equal(&digest, &kept.digest)) {
        Some(kept) => {
            charge::refund(call, &charged).await?;
            let asked = Asked::Proof(account);
            let sent = (message::Kind::ContactCode, Some(account.uuid()));
            charge::received(call, &asked, sent, Recipient::at(value), None).await?;
            let method = if kept.is_returned {
                Method::ReturnedCode
            } else {
                Method::SentCode
            };
            Ok((kept, method))
        }
        None => Err(charge::wrong(call, event).await?),
    }
}

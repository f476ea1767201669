//! What ContactService does to prove that a contact is in its owner's hands.

use super::{
    call::{Call, mutate},
    contacts as service, convert,
    credentials::without_secret_if_dry,
    pb::{self, send_contact_code_request::Delivery},
    secrets,
};
use crate::{
    domain::{
        challenge, contact,
        error::{Error, Reason, Result},
        name::ContactId,
    },
    store::{
        contact_codes::{self, Code},
        contacts, events,
    },
};

/// Makes a code that proves what is unproven of a contact.
pub(super) async fn send(
    call: &Call,
    request: pb::SendContactCodeRequest,
) -> Result<pb::SendContactCodeResponse> {
    let (account, id) = call.child("name", &request.name, "contacts")?;
    let id = ContactId(id);
    match request.delivery() {
        Delivery::Return => call.require("contacts.return_code")?,
        Delivery::Send => {
            let text = "needs a message sender, and this version has none";
            let name = "delivery SEND";
            return Err(Error::precondition(Reason::DeliveryUnavailable, name, text));
        }
        Delivery::Unspecified => {
            return Err(Error::field("delivery", "must be SEND or RETURN"));
        }
    }
    let typed = challenge::code(call.app().random.bytes());
    let expire_time = call
        .now
        .plus_s(call.app().config.sign_in.contact_code_lifetime_s);
    let response = mutate!(call, |tx| {
        service::require_change(tx, call, account).await?;
        // Who has the code can make an address their own, in somebody else's name.
        call.require_full_power_over(tx, account).await?;
        let contact = service::find_current(tx, account, id, &request.etag).await?;
        let value = contact.require_unproven()?;
        let digest = contact::code_digest(&typed, &contact, value, &call.app().keys.codes);
        let code = Code {
            digest: digest.to_vec(),
            expire_time,
            link: None,
            link_expire_time: expire_time,
            is_returned: true,
        };
        contact_codes::replace(tx, account, id, &code).await?;
        let event = call.event().about(contact.name(), Some(account));
        events::append(tx, &event.detail("delivery", "RETURN")).await?;
        pb::SendContactCodeResponse {
            code: typed.clone(),
            expire_time: Some(convert::timestamp(expire_time)),
        }
    })?;
    Ok(without_secret_if_dry(call, response))
}

/// Verifies a contact with the code that came there.
pub(super) async fn verify(call: &Call, request: pb::VerifyContactRequest) -> Result<pb::Contact> {
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    let (account, id) = call.child("name", &request.name, "contacts")?;
    let id = ContactId(id);
    let mut db = call.db().read().await?;
    service::require_change(&mut db, call, account).await?;
    let contact = service::find_current(&mut db, account, id, &request.etag).await?;
    drop(db);
    let value = contact.require_unproven()?.clone();
    let (code, method) = secrets::contact_code(call, &contact, &value, &request.code).await?;
    mutate!(call, |tx| {
        service::require_change(tx, call, account).await?;
        let mut contact = service::find_current(tx, account, id, &request.etag).await?;
        let is_same = contact.unproven() == Some(&value);
        if !is_same || !contact_codes::redeem(tx, account, id, &code).await? {
            return Err(Error::Unauthenticated(Reason::InvalidCode));
        }
        let before = contact.clone();
        contact.prove(service::proof(call, method));
        contact.is_primary |= !service::has_primary(tx, &contact).await?;
        contact.touch(call.now);
        contacts::update(tx, &contact).await?;
        service::follow(tx, call, Some(&before), Some(&contact)).await?;
        let event = call.event().about(contact.name(), Some(account));
        events::append(tx, &event.detail("method", method.name())).await?;
        service::shown(&contact)
    })
}

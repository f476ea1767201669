//! What ContactService does to prove that a contact is in its owner's hands.

use super::{
    call::{Call, mutate},
    contact_changes, contact_fields,
    contacts::{find_current, follow, has_primary, require_change, require_hold},
    convert, messages,
    pb::{self, send_contact_code_request::Delivery},
    secrets::{self, Asked},
};
use crate::{
    domain::{
        challenge,
        contact::{self, Contact, Value},
        error::{Error, Reason, Result},
        message::{self, Channel, Facts, Message, Recipient, To},
        name::{AccountId, ContactId},
        secret::{Kind, Secret},
    },
    store::{
        contact_codes::{self, Code},
        contacts,
        db::Write,
        events, users,
    },
};

/// Makes a code that proves what is unproven of a contact.
pub(super) async fn send(
    call: &Call,
    request: pb::SendContactCodeRequest,
) -> Result<pb::SendContactCodeResponse> {
    let (account, id) = call.child("name", &request.name, "contacts")?;
    let id = ContactId(id);
    let is_returned = match request.delivery() {
        Delivery::Return => true,
        Delivery::Send => false,
        Delivery::Unspecified => {
            return Err(Error::field("delivery", "must be SEND or RETURN"));
        }
    };
    if is_returned {
        call.require("contacts.return_code")?;
    }
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    if !is_returned {
        let mut db = call.db().read().await?;
        require_hold(&mut db, call, account).await?;
        let contact = find_current(&mut db, account, id, &request.etag).await?;
        let channel = Channel::of(contact.require_unproven()?.kind());
        drop(db);
        messages::require_sender(call, channel)?;
        let is_own = call.caller.account() == Some(account);
        let address = call.address.filter(|_| is_own);
        secrets::ask(call, Asked::Proof(account), None, address).await?;
    }
    let typed = challenge::code(call.app().random.bytes());
    let link = Secret::new(Kind::ContactLink, &call.app().random.bytes::<32>());
    let settings = &call.app().config.sign_in;
    let expire_time = call.now.plus_s(settings.contact_code_lifetime_s);
    let link_expire_time = call.now.plus_s(settings.contact_link_lifetime_s);
    let response = mutate!(call, |tx| {
        require_hold(tx, call, account).await?;
        if is_returned {
            // Who has the code can make an address their own, in somebody else's name.
            call.require_full_power_over(tx, account).await?;
            call.opens(tx, account).await?;
        }
        let contact = find_current(tx, account, id, &request.etag).await?;
        let value = contact.require_unproven()?;
        let digest = contact::code_digest(&typed, &contact, value, &call.app().keys.codes);
        let has_link = !is_returned && value.kind() == contact::Kind::Email;
        let code = Code {
            digest: digest.to_vec(),
            expire_time,
            link: has_link.then(|| link.digest().to_vec()),
            link_expire_time: if has_link {
                link_expire_time
            } else {
                expire_time
            },
            is_returned,
        };
        contact_codes::replace(tx, account, id, &code).await?;
        let delivery = if is_returned { "RETURN" } else { "SEND" };
        let event = call.event().about(contact.name(), Some(account));
        events::append(tx, &event.detail("delivery", delivery)).await?;
        if !is_returned {
            enqueue(tx, call, &contact, value, &typed, &link, &code).await?;
        }
        pb::SendContactCodeResponse {
            code: if is_returned {
                typed.clone()
            } else {
                String::new()
            },
            expire_time: Some(convert::timestamp(expire_time)),
        }
    })?;
    Ok(call.without_secret_if_dry(response))
}

/// Leaves the message with a code, and with a link where there is one.
async fn enqueue(
    tx: &mut Write,
    call: &Call,
    contact: &Contact,
    value: &Value,
    typed: &str,
    link: &Secret,
    code: &Code,
) -> Result<()> {
    let Some(recipient) = Recipient::at(value) else {
        return Err(Error::internal("a contact that cannot be proven"));
    };
    let language = match contact.account {
        AccountId::User(id) => users::get(tx, id).await?.profile.language_code,
        AccountId::System(_) => String::new(),
    };
    let needs = format!("contact={}&code={}", contact.name(), link.text());
    let message = Message {
        kind: message::Kind::ContactCode,
        to: To::Address(recipient),
        language,
        // Whose address it is nobody knows yet.
        name: String::new(),
        facts: Facts {
            code: typed.to_owned(),
            link: messages::link(call, "verify-contact", &needs),
            minutes: call.app().config.sign_in.contact_code_lifetime_s / 60,
            ..Facts::default()
        },
        unlocks: None,
        asker: Some(contact.account.uuid()),
    };
    let account = Some(contact.account);
    let expire_time = code.expire_time.max(code.link_expire_time);
    messages::enqueue(tx, call, account, &message, expire_time).await
}

/// Whoever proves an address of somebody else that lets people in could go in there: that is for those who
/// may say that it is proven, and for frontends in which people register.
pub(super) fn require_to_let_in(call: &Call, contact: &Contact) -> Result<()> {
    let is_own = call.caller.account() == Some(contact.account);
    let lets_in = contact.purposes.iter().any(|purpose| purpose.lets_in());
    if lets_in && !is_own && !call.caller.holds("users.register") {
        return call.require("contacts.assert");
    }
    Ok(())
}

/// Verifies a contact with the code that came there.
pub(super) async fn verify(call: &Call, request: pb::VerifyContactRequest) -> Result<pb::Contact> {
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    let (account, id) = call.child("name", &request.name, "contacts")?;
    let id = ContactId(id);
    let mut db = call.db().read().await?;
    require_change(&mut db, call, account).await?;
    let contact = find_current(&mut db, account, id, &request.etag).await?;
    drop(db);
    require_to_let_in(call, &contact)?;
    let value = contact.require_unproven()?.clone();
    let (code, method) = secrets::contact_code(call, &contact, &value, &request.code).await?;
    mutate!(call, |tx| {
        require_change(tx, call, account).await?;
        let mut contact = find_current(tx, account, id, &request.etag).await?;
        // It may have been given other purposes since.
        require_to_let_in(call, &contact)?;
        let is_same = contact.unproven() == Some(&value);
        if !is_same || !contact_codes::redeem(tx, account, id, &code).await? {
            return Err(Error::Unauthenticated(Reason::InvalidCode));
        }
        let before = contact.clone();
        contact.prove(contact_fields::proof(call, method));
        let replaced = before.proof.is_some().then_some(&before);
        contact_changes::announce(tx, call, replaced, Some(&contact)).await?;
        contact.is_primary |= !has_primary(tx, &contact).await?;
        contact.touch(call.now);
        contacts::update(tx, &contact).await?;
        follow(tx, call, Some(&before), Some(&contact)).await?;
        let event = call.event().about(contact.name(), Some(account));
        events::append(tx, &event.detail("method", method.name())).await?;
        contact_fields::shown(&contact)
    })
}

//! What calls leave for people to read: written in the transaction that causes it, sent later.

use std::time::Duration;

use super::call::Call;
use crate::{
    domain::{
        contact::{Contact, Purpose},
        error::{Error, Reason, Result},
        message::{self, Channel, Facts, Kind, Message, Recipient, To},
        name::{AccountId, MessageId},
        time::Timestamp,
    },
    messenger,
    store::{
        db::Write,
        messages::{self, New},
        users,
    },
};

/// Refuses where no message can be sent by a channel, or by any; and while too many wait.
pub(super) fn require_sender(call: &Call, channel: Option<Channel>) -> Result<()> {
    let messenger = &call.app().messenger;
    if !messenger.can_send(channel) {
        let text = "needs a message sender, and this installation has none for it";
        let name = "delivery SEND";
        return Err(Error::precondition(Reason::DeliveryUnavailable, name, text));
    }
    if messenger.is_full() {
        return Err(Error::Exhausted {
            reason: Reason::Overloaded,
            retry_after: Duration::from_mins(1),
        });
    }
    Ok(())
}

/// A link to a page, with what that needs where no server on the way sees it. It leads where the
/// configuration says, whatever host the call was sent to.
pub(super) fn link(call: &Call, page: &str, needs: &str) -> String {
    let app = call.app();
    let pages = app.config.messages.pages_url.as_deref();
    format!("{}/{page}#{needs}", pages.unwrap_or(&app.issuer))
}

/// Leaves a message to be sent.
pub(super) async fn enqueue(
    tx: &mut Write,
    call: &Call,
    account: Option<AccountId>,
    message: &Message,
    expire_time: Timestamp,
) -> Result<()> {
    let id = MessageId(call.new_uuid());
    let body = messenger::seal(call.app(), id, message)?;
    let new = New {
        id,
        kind: message.kind,
        account,
        body: &body,
        create_time: call.now,
        expire_time,
    };
    messages::insert(tx, &new).await?;
    // What is still to be looked up waits for the clock: whoever asks for it could tell by how busy the
    // server is right after whether there was somebody to be found.
    if matches!(message.to, To::Address(_)) {
        call.leaves_message();
    }
    Ok(())
}

/// Tells the owner of an account what has happened, wherever that is to be told: at every proven contact for
/// NOTIFY or RECOVERY, and at `also`.
pub(super) async fn notify(
    tx: &mut Write,
    call: &Call,
    account: AccountId,
    contacts: &[Contact],
    also: Option<&Contact>,
    kind: Kind,
    facts: Facts,
) -> Result<()> {
    let messenger = &call.app().messenger;
    let is_told = |contact: &&Contact| {
        let is_also = also.is_some_and(|also| also.id == contact.id);
        let serves = contact.serves(Purpose::Notify) || contact.serves(Purpose::Recovery);
        serves || (is_also && contact.proof.is_some())
    };
    let told = contacts.iter().filter(is_told).filter_map(Recipient::of);
    let told: Vec<Recipient> = told
        .filter(|recipient| messenger.can_send(Some(recipient.channel)))
        .collect();
    if told.is_empty() {
        return Ok(());
    }
    let (language, name, time_zone) = match account {
        AccountId::User(id) => {
            let profile = users::get(tx, id).await?.profile;
            let name = message::greeting(&profile.display_name);
            (profile.language_code, name, profile.time_zone)
        }
        AccountId::System(_) => Default::default(),
    };
    let lifetime_s = call.app().config.messages.notice_lifetime_s;
    for recipient in told {
        let message = Message {
            kind,
            to: To::Address(recipient),
            language: language.clone(),
            name: name.clone(),
            facts: Facts {
                time: call.now.for_people(&time_zone),
                ..facts.clone()
            },
            unlocks: None,
            asker: None,
        };
        let expire_time = call.now.plus_s(lifetime_s);
        enqueue(tx, call, Some(account), &message, expire_time).await?;
    }
    Ok(())
}

//! What ContactService does so that nobody loses an account by a change of contacts: it tells the owner
//! before, and lets the owner take it back.

use super::{
    accounts,
    call::{Call, mutate},
    contacts::{demote_others, follow, remove, require_way_in, same_kind},
    messages, pb, secrets,
};
use crate::{
    domain::{
        account::State,
        contact::{self, Contact, Snapshot, Value},
        error::{Error, Reason, Result},
        message::{self, ContactChange, Facts},
        name::AccountId,
        secret::{self, Secret},
        session::EndReason,
    },
    store::{
        contact_changes::{self, Change},
        contact_codes, contacts,
        db::Write,
        events,
        sessions::{self, Which},
        users,
    },
};

/// Most contacts at which one change is told.
const MAX_TOLD: usize = 50;

/// Tells the owner of an account of a change that is about to be made to a contact, unless it has no power,
/// and how to take it back.
pub(super) async fn announce(
    tx: &mut Write,
    call: &Call,
    before: Option<&Contact>,
    after: Option<&Contact>,
) -> Result<()> {
    let Some(contact) = before.or(after) else {
        return Ok(());
    };
    if !contact.kind().can_be_proven() || before.is_some_and(|before| before.proof.is_none()) {
        return Ok(());
    }
    if !call.app().messenger.can_send(None) {
        return Ok(());
    }
    let (account, id) = (contact.account, contact.id);
    let token = Secret::new(
        secret::Kind::ContactRevert,
        &call.app().random.bytes::<32>(),
    );
    let lifetime_s = call.app().config.messages.revert_lifetime_s;
    let change = Change {
        account,
        contact: id,
        before: before.map(Snapshot::of),
        create_time: call.now,
        expire_time: call.now.plus_s(lifetime_s),
    };
    contact_changes::insert(tx, &token.digest(), &change).await?;
    let new = after.map(|after| after.pending.as_ref().unwrap_or(&after.value));
    let facts = Facts {
        change: Some(match (before, after) {
            (None, _) => ContactChange::Added,
            (Some(_), None) => ContactChange::Removed,
            (Some(before), Some(after)) if before.value != after.value => ContactChange::Replaced,
            (Some(before), Some(after)) if before.pending == after.pending => {
                ContactChange::Purposes
            }
            (Some(_), Some(_)) => ContactChange::Changed,
        }),
        old: masked(before.map(|before| &before.value)),
        new: masked(new),
        link: messages::link(call, "revert-contact", &format!("token={}", token.text())),
        minutes: lifetime_s / 60,
        ..Facts::default()
    };
    let kind = message::Kind::ContactChanged;
    let all = told(tx, call, account, before).await?;
    let (believed, others) = contact::believed(all, call.now.plus_s(-lifetime_s));
    let unlinked = Facts {
        link: String::new(),
        ..facts.clone()
    };
    messages::notify(tx, call, account, &believed, before, kind, facts).await?;
    messages::notify(tx, call, account, &others, before, kind, unlinked).await
}

/// Who is told of a change of a contact: that contact and all others that are proven, or were before a change
/// that can still be taken back; the first of them, if there are many.
async fn told(
    tx: &mut Write,
    call: &Call,
    account: AccountId,
    changed: Option<&Contact>,
) -> Result<Vec<Contact>> {
    let mut all = contacts::list_all(tx, account).await?;
    all.retain(|contact| contact.proof.is_some());
    for change in contact_changes::list(tx, account, call.now).await? {
        let before = change.before;
        let before = before.and_then(|it| it.contact(account, change.contact, call.now));
        let Some(before) = before.filter(|it| it.proof.is_some()) else {
            continue;
        };
        match all.iter_mut().find(|it| it.value == before.value) {
            // Whoever was told before is told on, and is who has been there for longer.
            Some(contact) => {
                if before.proof_time() < contact.proof_time() {
                    contact.proof = before.proof;
                }
                contact.purposes.extend(before.purposes);
            }
            None => all.push(before),
        }
    }
    let changed = changed.map(|contact| contact.id);
    all.sort_by_key(|contact| (Some(contact.id) != changed, contact.proof_time()));
    all.truncate(MAX_TOLD);
    Ok(all)
}

/// Takes a change back, with all that came after it.
pub(super) async fn undo(
    call: &Call,
    request: pb::RevertContactRequest,
) -> Result<pb::RevertContactResponse> {
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    let (digest, change) = secrets::contact_change(call, &request.token).await?;
    mutate!(call, |tx| {
        let account = change.account;
        accounts::state(tx, account)
            .await?
            .require(&[State::Active], account, call.now)?;
        if !contact_changes::redeem(tx, &digest).await? {
            return Err(Error::Unauthenticated(Reason::InvalidCode));
        }
        let mut told = contacts::list_all(tx, account).await?;
        // The last first.
        let (mut contact, mut undone) = (None, Vec::new());
        for change in contact_changes::redeem_later(tx, &change).await? {
            undone.extend(contacts::find(tx, account, change.contact).await?);
            contact = revert(tx, call, &change).await?;
        }
        for before in &undone {
            require_way_in(tx, before).await?;
        }
        // Whoever was there, and whoever is there again.
        let after = contacts::list_all(tx, account).await?;
        let is_told = |it: &Contact| {
            told.iter()
                .any(|known| known.proof.is_some() && known.value == it.value)
        };
        let back: Vec<Contact> = after.into_iter().filter(|it| !is_told(it)).collect();
        told.extend(back);
        let ended_sessions = match account {
            AccountId::User(user) => {
                users::void_begun(tx, user).await?;
                let (which, reason) = (Which::default(), EndReason::ContactReverted);
                sessions::end_all(tx, user, which, call.now, reason).await?
            }
            AccountId::System(_) => 0,
        };
        let facts = Facts {
            change: Some(ContactChange::Reverted),
            old: masked(contact.as_ref().map(|it| &it.value)),
            ..Facts::default()
        };
        let kind = message::Kind::ContactChanged;
        messages::notify(tx, call, account, &told, contact.as_ref(), kind, facts).await?;
        let name = account.child("contacts", change.contact.0);
        let event = call.event().about(name, Some(account));
        events::append(tx, &event.detail("ended_sessions", ended_sessions)).await?;
        pb::RevertContactResponse { ended_sessions }
    })
}

/// Makes a contact what it was before a change; what there is of it then, or was until now.
async fn revert(tx: &mut Write, call: &Call, change: &Change) -> Result<Option<Contact>> {
    let (account, id) = (change.account, change.contact);
    let current = contacts::find(tx, account, id).await?;
    let Some(before) = change.before.clone() else {
        if let Some(added) = &current {
            remove(tx, call, added).await?;
        }
        return Ok(current);
    };
    contact_codes::delete(tx, account, id).await?;
    let before = before.contact(account, id, call.now);
    let mut before = before.ok_or_else(|| Error::internal("a contact that cannot be read"))?;
    for other in same_kind(tx, &before).await? {
        if other.id != id && other.value.identifier() == before.value.identifier() {
            // Put there so that this one could not come back.
            remove(tx, call, &other).await?;
        }
    }
    if before.is_primary {
        demote_others(tx, call, &before).await?;
    }
    match contacts::find(tx, account, id).await? {
        None => contacts::insert(tx, &before).await?,
        Some(found) => {
            before.revision = found.revision;
            before.is_primary |= found.is_primary;
            before.touch(call.now);
            contacts::update(tx, &before).await?;
        }
    }
    follow(tx, call, current.as_ref(), Some(&before)).await?;
    Ok(Some(before))
}

fn masked(value: Option<&Value>) -> String {
    value.map(message::masked).unwrap_or_default()
}

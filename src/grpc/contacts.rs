//! ContactService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    Reply, accounts,
    call::{Call, mutate},
    contact_changes, contact_codes, contact_fields, convert, pb,
    secrets::{self, Asked},
};
use crate::{
    app::App,
    domain::{
        account::State,
        contact::{Contact, Kind, MAX_CONTACTS, WRITABLE},
        error::{Error, Fields, Reason, Result},
        filter,
        name::{AccountId, ContactId},
        page,
    },
    store::{
        contact_codes as codes,
        contacts::{self, Cursor},
        db::{Read, Write},
        events, identifiers, users,
    },
};

pub(super) struct Contacts {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::contact_service_server::ContactService for Contacts {
    async fn create_contact(
        &self,
        request: Request<pb::CreateContactRequest>,
    ) -> Reply<pb::Contact> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let account = call.account("parent", &request.parent)?;
        let input = request.contact.unwrap_or_default();
        let mut fields = Fields::new();
        let contact = contact_fields::new_contact(&call, &mut fields, "contact", account, &input);
        if contact_fields::is_asserted(&input) {
            call.require("contacts.assert")?;
        }
        fields.finish()?;
        let contact = contact.ok_or_else(|| Error::internal("checked above"))?;
        let contact = mutate!(call, |tx| {
            require_change(tx, &call, account).await?;
            if contact.proof.is_some() {
                contact_changes::announce(tx, &call, None, Some(&contact)).await?;
            }
            let contact = add(tx, &call, contact.clone()).await?;
            let event = call.event().about(contact.name(), Some(account));
            events::append(tx, &event.detail("kind", contact.kind().name())).await?;
            contact_fields::shown(&contact)
        })?;
        Ok(Response::new(contact))
    }

    async fn get_contact(&self, request: Request<pb::GetContactRequest>) -> Reply<pb::Contact> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let (account, id) = call.child("name", &request.name, "contacts")?;
        let contact = find(&mut call.db().read().await?, account, ContactId(id)).await?;
        Ok(Response::new(contact_fields::shown(&contact)))
    }

    async fn list_contacts(
        &self,
        request: Request<pb::ListContactsRequest>,
    ) -> Reply<pb::ListContactsResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let account = call.account("parent", &request.parent)?;
        let limit = page::size(request.page_size)?;
        let expected = "email, phone or postal_address";
        let kind = filter::only(&request.filter, "kind", expected, Kind::parse)?;
        let parent = account.to_string();
        let context = call.page_context(&[&parent, &request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let mut db = call.db().read().await?;
        let rows = contacts::list(&mut db, account, kind, after.as_ref(), limit + 1)
            .await
            .map_err(Error::from)?;
        if rows.is_empty() {
            accounts::state(&mut db, account).await?;
        }
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, Cursor::after)?;
        let contacts = rows.iter().map(contact_fields::shown).collect();
        Ok(Response::new(pb::ListContactsResponse {
            contacts,
            next_page_token,
        }))
    }

    async fn update_contact(
        &self,
        request: Request<pb::UpdateContactRequest>,
    ) -> Reply<pb::Contact> {
        let (call, request) = Call::enter(&self.app, request).await?;
        if let Some(first) = call.first_answer().await? {
            return Ok(Response::new(first));
        }
        let input = request.contact.unwrap_or_default();
        let (account, id) = call.child("contact.name", &input.name, "contacts")?;
        let id = ContactId(id);
        let paths = convert::masked(request.update_mask.as_ref(), &WRITABLE, |path| {
            contact_fields::is_set(path, &input)
        })?;
        let all = paths.len() == WRITABLE.len();
        let is_own = call.caller.account() == Some(account);
        if is_own && paths.iter().any(|path| *path != "label") {
            secrets::ask(&call, Asked::Change(account), None, None).await?;
        }
        let mut fields = Fields::new();
        let mut edits = Vec::new();
        for path in &paths {
            // `*` names all kinds of values, of which a contact has one.
            if !all || contact_fields::is_set(path, &input) || ["label", "purposes"].contains(path)
            {
                edits.extend(contact_fields::edit(&mut fields, "contact", path, &input));
            }
        }
        fields.finish()?;
        let contact = mutate!(call, |tx| {
            require_change(tx, &call, account).await?;
            let mut contact = find_current(tx, account, id, &input.etag).await?;
            let before = contact.clone();
            for edit in edits.clone() {
                contact.edit(edit)?;
            }
            if contact.proof.is_some() && contact.purposes != before.purposes {
                contact_codes::require_to_let_in(&call, &contact)?;
            }
            let purposes = &contact.purposes;
            Contact::check_purposes(account, contact.kind(), purposes)
                .map_err(|text| Error::field("contact.purposes", text))?;
            if contact != before {
                if contact.pending != before.pending && contact.pending.is_some()
                    || contact.purposes != before.purposes
                {
                    contact_changes::announce(tx, &call, Some(&before), Some(&contact)).await?;
                }
                if contact.unproven() != before.unproven() {
                    // The code was for what was to be proven then.
                    codes::delete(tx, account, id).await?;
                }
                contact.touch(call.now);
                contacts::update(tx, &contact).await?;
                follow(tx, &call, Some(&before), Some(&contact)).await?;
                require_way_in(tx, &before).await?;
                let event = call.event().about(contact.name(), Some(account));
                events::append(tx, &event.changed(paths.iter().copied())).await?;
            }
            contact_fields::shown(&contact)
        })?;
        Ok(Response::new(contact))
    }

    async fn delete_contact(&self, request: Request<pb::DeleteContactRequest>) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        if call.first_answer::<()>().await?.is_some() {
            return Ok(Response::new(()));
        }
        let (account, id) = call.child("name", &request.name, "contacts")?;
        let id = ContactId(id);
        if call.caller.account() == Some(account) {
            secrets::ask(&call, Asked::Change(account), None, None).await?;
        }
        mutate!(call, |tx| {
            require_change(tx, &call, account).await?;
            let contact = find_current(tx, account, id, &request.etag).await?;
            contact_changes::announce(tx, &call, Some(&contact), None).await?;
            remove(tx, &call, &contact).await?;
            require_way_in(tx, &contact).await?;
            let event = call.event().about(contact.name(), Some(account));
            events::append(tx, &event.detail("kind", contact.kind().name())).await?;
        })?;
        Ok(Response::new(()))
    }

    async fn make_contact_primary(
        &self,
        request: Request<pb::MakeContactPrimaryRequest>,
    ) -> Reply<pb::Contact> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let (account, id) = call.child("name", &request.name, "contacts")?;
        let contact = mutate!(call, |tx| {
            require_change(tx, &call, account).await?;
            let mut contact = find_current(tx, account, ContactId(id), &request.etag).await?;
            if !contact.may_be_primary() {
                let text = "is not verified";
                return Err(Error::precondition(
                    Reason::WrongState,
                    contact.name(),
                    text,
                ));
            }
            if !contact.is_primary {
                demote_others(tx, &call, &contact).await?;
                make_primary(tx, &call, &mut contact).await?;
                follow(tx, &call, Some(&contact), Some(&contact)).await?;
                let event = call.event().about(contact.name(), Some(account));
                events::append(tx, &event.detail("kind", contact.kind().name())).await?;
            }
            contact_fields::shown(&contact)
        })?;
        Ok(Response::new(contact))
    }

    async fn send_contact_code(
        &self,
        request: Request<pb::SendContactCodeRequest>,
    ) -> Reply<pb::SendContactCodeResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(contact_codes::send(&call, request).await?))
    }

    async fn verify_contact(
        &self,
        request: Request<pb::VerifyContactRequest>,
    ) -> Reply<pb::Contact> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(contact_codes::verify(&call, request).await?))
    }

    async fn revert_contact(
        &self,
        request: Request<pb::RevertContactRequest>,
    ) -> Reply<pb::RevertContactResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        Ok(Response::new(contact_changes::undo(&call, request).await?))
    }
}

/// Removes a contact. After one that came first another does.
pub(super) async fn remove(tx: &mut Write, call: &Call, contact: &Contact) -> Result<()> {
    codes::delete(tx, contact.account, contact.id).await?;
    contacts::delete(tx, contact.account, contact.id).await?;
    if contact.is_primary {
        let others = same_kind(tx, contact).await?;
        if let Some(mut next) = others.into_iter().find(Contact::may_be_primary) {
            make_primary(tx, call, &mut next).await?;
        }
    }
    follow(tx, call, Some(contact), None).await
}

/// Refuses unless the account can be changed, by this caller; who changes it may let somebody in.
pub(super) async fn require_change(db: &mut Read, call: &Call, account: AccountId) -> Result<()> {
    require_hold(db, call, account).await?;
    call.opens(db, account).await
}

/// Refuses unless the account is one to be changed, and not greater than this caller.
pub(super) async fn require_hold(db: &mut Read, call: &Call, account: AccountId) -> Result<()> {
    accounts::require_to_manage(call, account)?;
    accounts::state(db, account).await?.require(
        &[State::Active, State::Suspended],
        account,
        call.now,
    )?;
    call.require_power_over(db, account).await
}

pub(super) async fn find(db: &mut Read, account: AccountId, id: ContactId) -> Result<Contact> {
    let found = contacts::find(db, account, id).await?;
    found.ok_or_else(|| Error::not_found(account.child("contacts", id.0)))
}

/// The contact as the caller knows it.
pub(super) async fn find_current(
    db: &mut Read,
    account: AccountId,
    id: ContactId,
    etag: &str,
) -> Result<Contact> {
    let contact = find(db, account, id).await?;
    convert::require_etag(etag, contact.revision, contact.name())?;
    Ok(contact)
}

/// Stores a new contact, if there is room for it.
pub(super) async fn add(tx: &mut Write, call: &Call, mut contact: Contact) -> Result<Contact> {
    let account = contact.account;
    if contacts::count(tx, account).await? >= MAX_CONTACTS {
        let text = format!("has {MAX_CONTACTS} contacts, which is the limit");
        let name = account.to_string();
        return Err(Error::precondition(Reason::LimitReached, name, text));
    }
    contact.is_primary = contact.may_be_primary() && !has_primary(tx, &contact).await?;
    contacts::insert(tx, &contact).await?;
    follow(tx, call, None, Some(&contact)).await?;
    Ok(contact)
}

/// Whether one of its kind comes first already.
pub(super) async fn has_primary(tx: &mut Write, contact: &Contact) -> Result<bool> {
    let others = same_kind(tx, contact).await?;
    Ok(others.iter().any(|other| other.is_primary))
}

/// The contacts of the same account and kind, oldest first.
pub(super) async fn same_kind(tx: &mut Write, contact: &Contact) -> Result<Vec<Contact>> {
    let mut contacts = contacts::list_all(tx, contact.account).await?;
    contacts.retain(|other| other.kind() == contact.kind());
    Ok(contacts)
}

/// Makes way for a contact that is to come first of its kind.
pub(super) async fn demote_others(tx: &mut Write, call: &Call, first: &Contact) -> Result<()> {
    for mut other in same_kind(tx, first).await? {
        if other.is_primary && other.id != first.id {
            other.is_primary = false;
            other.touch(call.now);
            contacts::update(tx, &other).await?;
        }
    }
    Ok(())
}

async fn make_primary(tx: &mut Write, call: &Call, contact: &mut Contact) -> Result<()> {
    contact.is_primary = true;
    contact.touch(call.now);
    contacts::update(tx, contact).await
}

/// Refuses a change that leaves its owner without anything to sign in with.
pub(super) async fn require_way_in(tx: &mut Write, before: &Contact) -> Result<()> {
    let AccountId::User(user) = before.account else {
        return Ok(());
    };
    if before.identifier().is_none() || identifiers::count_typed(tx, user).await? > 0 {
        return Ok(());
    }
    let text = "is all that its owner has to sign in with";
    let name = before.name();
    Err(Error::precondition(Reason::LastIdentifier, name, text))
}

/// Makes what the account's owner is found by, and what is shown with the person, follow a change.
pub(super) async fn follow(
    tx: &mut Write,
    call: &Call,
    before: Option<&Contact>,
    after: Option<&Contact>,
) -> Result<()> {
    let account = before.or(after).map(|contact| contact.account);
    let Some(AccountId::User(user)) = account else {
        return Ok(());
    };
    let lets_in = |contact: &Contact| {
        contact.proof.is_some() && contact.purposes.iter().any(|purpose| purpose.lets_in())
    };
    let had = before
        .filter(|contact| lets_in(contact))
        .map(|contact| &contact.value);
    let has = after
        .filter(|contact| lets_in(contact))
        .map(|contact| &contact.value);
    if had.is_some() && had != has {
        // What was sent there must not let anybody in any more.
        users::void_begun(tx, user).await?;
    }
    let old = before.and_then(Contact::identifier);
    let new = after.and_then(Contact::identifier);
    if old != new {
        if let Some(new) = &new {
            identifiers::claim(tx, user, new, call.now).await?;
        }
        if let Some(old) = &old {
            let until = call.now.plus_s(call.app().config.retention.identifiers_s);
            identifiers::give_up(tx, user, old, until).await?;
        }
    }
    contacts::note_primaries(tx, user).await?;
    Ok(())
}

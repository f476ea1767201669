//! ContactService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    Reply,
    call::{Call, mutate},
    contact_codes, convert, credentials as accounts, messages, pb,
    secrets::{self, Asked},
};
use crate::{
    app::App,
    domain::{
        account::State,
        contact::{
            Contact, Edit, Kind, MAX_CONTACTS, MAX_LABEL, Method, Proof, Purpose, Snapshot, Value,
            WRITABLE,
        },
        email::Email,
        error::{Error, Fields, Reason, Result},
        filter,
        message::{self, Facts},
        name::{AccountId, ContactId},
        page,
        phone::Phone,
        postal_address::PostalAddress,
        secret::{self, Secret},
        session::EndReason,
        text,
    },
    store::{
        contact_changes::{self, Change},
        contact_codes as codes,
        contacts::{self, Cursor},
        db::{Read, Write},
        events, identifiers,
        sessions::{self, Which},
        users,
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
        let contact = new_contact(&call, &mut fields, "contact", account, &input);
        if is_asserted(&input) {
            call.require("contacts.assert")?;
        }
        fields.finish()?;
        let contact = contact.ok_or_else(|| Error::internal("checked above"))?;
        let contact = mutate!(call, |tx| {
            require_change(tx, &call, account).await?;
            let contact = add(tx, &call, contact.clone()).await?;
            let event = call.event().about(contact.name(), Some(account));
            events::append(tx, &event.detail("kind", contact.kind().name())).await?;
            shown(&contact)
        })?;
        Ok(Response::new(contact))
    }

    async fn get_contact(&self, request: Request<pb::GetContactRequest>) -> Reply<pb::Contact> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let (account, id) = call.child("name", &request.name, "contacts")?;
        let contact = find(&mut call.db().read().await?, account, ContactId(id)).await?;
        Ok(Response::new(shown(&contact)))
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
        let contacts = rows.iter().map(shown).collect();
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
            is_set(path, &input)
        })?;
        let all = paths.len() == WRITABLE.len();
        let is_own = call.caller.account() == Some(account);
        if is_own && paths.iter().any(|path| *path != "label") {
            let asked = Asked::Question(format!("contacts of {account}"));
            secrets::ask(&call, asked, None, None).await?;
        }
        let mut fields = Fields::new();
        let mut edits = Vec::new();
        for path in &paths {
            // `*` names all kinds of values, of which a contact has one.
            if !all || is_set(path, &input) || ["label", "purposes"].contains(path) {
                edits.extend(edit(&mut fields, "contact", path, &input));
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
                    announce(tx, &call, Some(&before), Some(&contact)).await?;
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
            shown(&contact)
        })?;
        Ok(Response::new(contact))
    }

    async fn delete_contact(&self, request: Request<pb::DeleteContactRequest>) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let (account, id) = call.child("name", &request.name, "contacts")?;
        let id = ContactId(id);
        mutate!(call, |tx| {
            require_change(tx, &call, account).await?;
            let contact = find_current(tx, account, id, &request.etag).await?;
            announce(tx, &call, Some(&contact), None).await?;
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
                let others = same_kind(tx, &contact).await?;
                if let Some(mut first) = others.into_iter().find(|other| other.is_primary) {
                    first.is_primary = false;
                    first.touch(call.now);
                    contacts::update(tx, &first).await?;
                }
                make_primary(tx, &call, &mut contact).await?;
                follow(tx, &call, Some(&contact), Some(&contact)).await?;
                let event = call.event().about(contact.name(), Some(account));
                events::append(tx, &event.detail("kind", contact.kind().name())).await?;
            }
            shown(&contact)
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
        if let Some(first) = call.first_answer().await? {
            return Ok(Response::new(first));
        }
        let (digest, change) = secrets::contact_change(&call, &request.token).await?;
        let response = mutate!(call, |tx| {
            let account = change.account;
            accounts::state(tx, account)
                .await?
                .require(&[State::Active], account, call.now)?;
            if !contact_changes::redeem(tx, &digest).await? {
                return Err(Error::Unauthenticated(Reason::InvalidCode));
            }
            let mut told = contacts::list(tx, account, None, None, MAX_CONTACTS).await?;
            // What came after it as well, the last first.
            let mut contact = None;
            for change in contact_changes::redeem_later(tx, &change).await? {
                contact = revert(tx, &call, &change).await?;
            }
            // Whoever was there, and whoever is there again.
            let after = contacts::list(tx, account, None, None, MAX_CONTACTS).await?;
            let new = |it: &Contact| told.iter().all(|known| known.value != it.value);
            let back: Vec<Contact> = after.into_iter().filter(new).collect();
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
                change: "reverted".to_owned(),
                old: contact
                    .as_ref()
                    .map(|it| message::masked(&it.value))
                    .unwrap_or_default(),
                ..Facts::default()
            };
            let kind = message::Kind::ContactChanged;
            messages::notify(tx, &call, account, &told, contact.as_ref(), kind, facts).await?;
            let name = account.child("contacts", change.contact.0);
            let event = call.event().about(name, Some(account));
            events::append(tx, &event.detail("ended_sessions", ended_sessions)).await?;
            pb::RevertContactResponse { ended_sessions }
        })?;
        Ok(Response::new(response))
    }
}

/// Makes a contact what it was before a change; what there is of it then, or was until now.
async fn revert(tx: &mut Write, call: &Call, change: &Change) -> Result<Option<Contact>> {
    let (account, id) = (change.account, change.contact);
    let now = contacts::find(tx, account, id).await?;
    let Some(before) = change.before.clone() else {
        if let Some(added) = &now {
            remove(tx, call, added).await?;
        }
        return Ok(now);
    };
    codes::delete(tx, account, id).await?;
    let before = before.contact(account, id, call.now);
    let mut before = before.ok_or_else(|| Error::internal("a contact that cannot be read"))?;
    for mut other in same_kind(tx, &before).await? {
        if other.id != id && other.value.identifier() == before.value.identifier() {
            // Put there so that this one could not come back.
            codes::delete(tx, account, other.id).await?;
            contacts::delete(tx, account, other.id).await?;
        } else if other.id != id && other.is_primary && before.is_primary {
            other.is_primary = false;
            other.touch(call.now);
            contacts::update(tx, &other).await?;
        }
    }
    match contacts::find(tx, account, id).await? {
        None => contacts::insert(tx, &before).await?,
        Some(now) => {
            before.revision = now.revision;
            before.is_primary |= now.is_primary;
            before.touch(call.now);
            contacts::update(tx, &before).await?;
        }
    }
    follow(tx, call, now.as_ref(), Some(&before)).await?;
    Ok(Some(before))
}

/// Removes a contact. After one that came first another does.
async fn remove(tx: &mut Write, call: &Call, contact: &Contact) -> Result<()> {
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

/// Refuses unless the account can be changed, by this caller.
pub(super) async fn require_change(db: &mut Read, call: &Call, account: AccountId) -> Result<()> {
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

/// A contact that somebody describes; what is wrong with it goes to `fields`.
pub(super) fn new_contact(
    call: &Call,
    fields: &mut Fields,
    field: &str,
    account: AccountId,
    input: &pb::Contact,
) -> Option<Contact> {
    use pb::contact::Value as Sent;
    let kind = match &input.value {
        Some(Sent::Email(_)) => "email",
        Some(Sent::Phone(_)) => "phone",
        Some(Sent::PostalAddress(_)) => "postal_address",
        None => {
            fields.refuse(field, "must hold `email`, `phone` or `postal_address`");
            return None;
        }
    };
    let value = edit(fields, field, kind, input);
    let label = edit(fields, field, "label", input);
    let purposes = edit(fields, field, "purposes", input);
    let Some(Edit::Value(value)) = value else {
        return None;
    };
    if let Some(Edit::Purposes(purposes)) = &purposes
        && let Err(text) = Contact::check_purposes(account, value.kind(), purposes)
    {
        fields.refuse(&format!("{field}.purposes"), text);
    }
    let mut contact = Contact::new(ContactId(call.new_uuid()), account, *value, call.now);
    for edit in [label, purposes].into_iter().flatten() {
        contact.edit(edit).ok()?;
    }
    if is_asserted(input) {
        if contact.kind().can_be_proven() {
            contact.prove(proof(call, Method::Asserted));
        } else {
            let text = "cannot be VERIFIED for a postal address";
            fields.refuse(&format!("{field}.verification.state"), text);
        }
    }
    Some(contact)
}

/// Whether the caller says that the contact was verified elsewhere.
pub(super) fn is_asserted(input: &pb::Contact) -> bool {
    use pb::contact::verification::State;
    let verification = input.verification.as_ref();
    verification.is_some_and(|it| it.state() == State::Verified)
}

/// The record that a contact was proven in this call.
pub(super) fn proof(call: &Call, method: Method) -> Proof {
    let by = call.caller.account().map(|account| account.to_string());
    Proof {
        method,
        time: call.now,
        by: by.unwrap_or_default(),
    }
}

/// Stores a new contact, if there is room for it.
pub(super) async fn add(tx: &mut Write, call: &Call, mut contact: Contact) -> Result<Contact> {
    let account = contact.account;
    if contacts::count(tx, account).await? >= MAX_CONTACTS {
        let text = format!("has {MAX_CONTACTS} contacts, which is the limit");
        let name = account.to_string();
        return Err(Error::precondition(Reason::LimitReached, name, text));
    }
    if contact.proof.is_some() {
        announce(tx, call, None, Some(&contact)).await?;
    }
    contact.is_primary = contact.may_be_primary() && !has_primary(tx, &contact).await?;
    contacts::insert(tx, &contact).await?;
    follow(tx, call, None, Some(&contact)).await?;
    Ok(contact)
}

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
    let masked = |value: Option<&Value>| value.map(message::masked).unwrap_or_default();
    let new = after.map(|after| after.pending.as_ref().unwrap_or(&after.value));
    let facts = Facts {
        change: match (before, after) {
            (None, _) => "added",
            (Some(_), None) => "removed",
            (Some(before), Some(after)) if before.pending == after.pending => "purposes",
            (Some(_), Some(_)) => "changed",
        }
        .to_owned(),
        old: masked(before.map(|before| &before.value)),
        new: masked(new),
        link: messages::link(call, "revert-contact", &format!("token={}", token.text())),
        minutes: lifetime_s / 60,
        ..Facts::default()
    };
    let mut all = contacts::list(tx, account, None, None, MAX_CONTACTS).await?;
    let kind = message::Kind::ContactChanged;
    // Of two who undo what the other does the one who was there first is believed.
    let settled = call.now.plus_s(-lifetime_s);
    for change in contact_changes::list(tx, account, call.now).await? {
        let before = change.before;
        let before = before.and_then(|it| it.contact(account, change.contact, call.now));
        let Some(before) = before else { continue };
        // Whoever was told before a change that can be taken back is told on.
        match all.iter_mut().find(|it| it.value == before.value) {
            Some(now) => now.purposes.extend(before.purposes),
            None => all.push(before),
        }
    }
    let first = all.iter().filter_map(Contact::proof_time).min();
    let (older, newer): (Vec<Contact>, Vec<Contact>) = all.into_iter().partition(|contact| {
        let time = contact.proof_time();
        time == first || time.is_some_and(|time| time <= settled)
    });
    let unlinked = Facts {
        link: String::new(),
        ..facts.clone()
    };
    messages::notify(tx, call, account, &older, before, kind, facts).await?;
    messages::notify(tx, call, account, &newer, before, kind, unlinked).await
}

/// Whether one of its kind comes first already.
pub(super) async fn has_primary(tx: &mut Write, contact: &Contact) -> Result<bool> {
    let others = same_kind(tx, contact).await?;
    Ok(others.iter().any(|other| other.is_primary))
}

/// The contacts of the same account and kind, oldest first.
async fn same_kind(tx: &mut Write, contact: &Contact) -> Result<Vec<Contact>> {
    let kind = Some(contact.kind());
    Ok(contacts::list(tx, contact.account, kind, None, MAX_CONTACTS).await?)
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
    let lets_in =
        |contact: &Contact| contact.serves(Purpose::Login) || contact.serves(Purpose::Recovery);
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

fn is_set(path: &str, contact: &pb::Contact) -> bool {
    use pb::contact::Value as Sent;
    match path {
        "email" => matches!(contact.value, Some(Sent::Email(_))),
        "phone" => matches!(contact.value, Some(Sent::Phone(_))),
        "postal_address" => matches!(contact.value, Some(Sent::PostalAddress(_))),
        "label" => !contact.label.is_empty(),
        "purposes" => !contact.purposes.is_empty(),
        _ => false,
    }
}

/// One field of a message as an edit; what is wrong with it goes to `fields`.
fn edit(fields: &mut Fields, field: &str, path: &str, contact: &pb::Contact) -> Option<Edit> {
    use pb::contact::Value as Sent;
    let value = match (path, &contact.value) {
        ("label", _) => {
            let label = text::line(&contact.label, MAX_LABEL);
            return fields
                .take(&format!("{field}.label"), label)
                .map(Edit::Label);
        }
        ("purposes", _) => {
            let purposes = purposes(&contact.purposes);
            return fields
                .take(&format!("{field}.purposes"), purposes)
                .map(Edit::Purposes);
        }
        ("email", Some(Sent::Email(email))) => fields
            .take(
                &format!("{field}.email.address"),
                Email::parse(&email.address),
            )
            .map(Value::Email),
        ("phone", Some(Sent::Phone(phone))) => fields
            .take(&format!("{field}.phone.e164"), Phone::parse(&phone.e164))
            .map(Value::Phone),
        ("postal_address", Some(Sent::PostalAddress(address))) => {
            let address = postal_address(address).check(|name, text| {
                fields.refuse(&format!("{field}.postal_address.{name}"), text);
            });
            Some(Value::PostalAddress(address))
        }
        (path, _) => {
            fields.refuse(&format!("{field}.{path}"), "is required where it is named");
            None
        }
    };
    value.map(|value| Edit::Value(Box::new(value)))
}

fn purposes(sent: &[i32]) -> Result<Vec<Purpose>, String> {
    use pb::contact::Purpose as Sent;
    let mut purposes = Vec::new();
    for purpose in sent {
        purposes.push(match Sent::try_from(*purpose) {
            Ok(Sent::Login) => Purpose::Login,
            Ok(Sent::Recovery) => Purpose::Recovery,
            Ok(Sent::Notify) => Purpose::Notify,
            Ok(Sent::Billing) => Purpose::Billing,
            _ => return Err("must be of LOGIN, RECOVERY, NOTIFY and BILLING".to_owned()),
        });
    }
    purposes.sort_unstable();
    purposes.dedup();
    Ok(purposes)
}

fn postal_address(sent: &pb::contact::PostalAddress) -> PostalAddress {
    let sent = sent.clone();
    PostalAddress {
        region_code: sent.region_code,
        language_code: sent.language_code,
        postal_code: sent.postal_code,
        sorting_code: sent.sorting_code,
        administrative_area: sent.administrative_area,
        locality: sent.locality,
        sublocality: sent.sublocality,
        address_lines: sent.address_lines,
        recipients: sent.recipients,
        organization: sent.organization,
    }
}

pub(super) fn shown(contact: &Contact) -> pb::Contact {
    use pb::contact::{Purpose as PbPurpose, Value as Sent};
    let purpose = |purpose: &Purpose| {
        let shown = match purpose {
            Purpose::Login => PbPurpose::Login,
            Purpose::Recovery => PbPurpose::Recovery,
            Purpose::Notify => PbPurpose::Notify,
            Purpose::Billing => PbPurpose::Billing,
        };
        shown.into()
    };
    pb::Contact {
        name: contact.name(),
        etag: convert::etag(contact.revision),
        value: Some(match contact.value.clone() {
            Value::Email(email) => Sent::Email(pb::contact::Email {
                address: email.as_str().to_owned(),
            }),
            Value::Phone(phone) => Sent::Phone(pb::contact::Phone {
                display: phone.display(),
                e164: phone.e164().to_owned(),
            }),
            Value::PostalAddress(address) => Sent::PostalAddress(pb::contact::PostalAddress {
                region_code: address.region_code,
                language_code: address.language_code,
                postal_code: address.postal_code,
                sorting_code: address.sorting_code,
                administrative_area: address.administrative_area,
                locality: address.locality,
                sublocality: address.sublocality,
                address_lines: address.address_lines,
                recipients: address.recipients,
                organization: address.organization,
            }),
        }),
        label: contact.label.clone(),
        primary: contact.is_primary,
        purposes: contact.purposes.iter().map(purpose).collect(),
        verification: contact
            .kind()
            .can_be_proven()
            .then(|| verification(contact)),
        pending_value: contact
            .pending
            .as_ref()
            .map(Value::text)
            .unwrap_or_default(),
        create_time: Some(convert::timestamp(contact.create_time)),
        update_time: Some(convert::timestamp(contact.update_time)),
    }
}

fn verification(contact: &Contact) -> pb::contact::Verification {
    use pb::contact::verification::{Method as PbMethod, State as PbState};
    let Some(proof) = &contact.proof else {
        return pb::contact::Verification {
            state: PbState::Unverified.into(),
            ..Default::default()
        };
    };
    pb::contact::Verification {
        state: PbState::Verified.into(),
        method: match proof.method {
            Method::SentCode => PbMethod::SentCode,
            Method::SentLink => PbMethod::SentLink,
            Method::ReturnedCode => PbMethod::ReturnedCode,
            Method::Asserted => PbMethod::Asserted,
        }
        .into(),
        verify_time: Some(convert::timestamp(proof.time)),
        verified_by: proof.by.clone(),
    }
}

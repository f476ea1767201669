//! UserService.

use std::{collections::BTreeMap, sync::Arc};

use tonic::{Request, Response};
use uuid::Uuid;

use super::{
    Reply, accounts,
    call::{Call, mutate},
    contact_fields, contacts, convert, pb,
    reach::View,
    secrets,
    user_fields::{edits, is_own, is_set, shown, writable},
    user_query::query,
};
use crate::{
    app::App,
    domain::{
        account::{self, State},
        contact::{self, Contact},
        error::{Error, Fields, Result},
        foreign_hash::ForeignHash,
        identifier::{self, Identifier},
        name::{self, UserId},
        page,
        session::EndReason,
        time::Timestamp,
        user::{Edit, NameKind, User},
        username::Username,
    },
    store::{
        credentials::{self, Kept},
        db::{Isolation, Write},
        events, identifiers, sessions, user_names,
        users::{self, Cursor},
        within,
    },
};

/// Most users in one BatchGetUsers.
const MAX_BATCH: usize = 100;
/// Most contacts that a user begins with.
const MAX_FIRST_CONTACTS: usize = 10;

pub(super) struct Users {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::user_service_server::UserService for Users {
    async fn create_user(&self, request: Request<pb::CreateUserRequest>) -> Reply<pb::User> {
        let (call, request) = Call::enter(&self.app, request).await?;
        if let Some(first) = call.first_answer().await? {
            return Ok(Response::new(first));
        }
        let input = request.user.unwrap_or_default();
        let mut fields = Fields::new();
        let id = fields
            .take("user_id", new_id(&call, &request.user_id))
            .unwrap_or_else(|| call.new_uuid());
        let mut user = User::new(UserId(id), call.now);
        let given: Vec<&str> = writable()
            .into_iter()
            .filter(|path| is_set(path, &input))
            .collect();
        for edit in edits(&mut fields, &given, &input, call.now) {
            user.edit(edit);
        }
        let contacts = first_contacts(&call, &mut fields, user.id, &request.contacts);
        // The first will come first, and is no password already.
        user.primary_email = first_email(&contacts);
        let has_password = !request.password.is_empty();
        let password = if has_password {
            secrets::new_password(
                &call,
                &mut fields,
                "password",
                request.password,
                &user,
                false,
            )
        } else {
            None
        };
        let foreign = Some(request.password_hash).filter(|text| !text.is_empty());
        if let Some(text) = &foreign {
            fields.take("password_hash", ForeignHash::parse(text));
            if has_password {
                fields.refuse("password_hash", "or `password`, not both");
            }
        }
        if !call.caller.holds("users.create")
            && user
                .profile
                .username
                .as_ref()
                .is_some_and(Username::is_reserved)
        {
            fields.refuse("user.username", "is reserved");
        }
        require_to_create(&call, &given, &request.user_id, has_password)?;
        if request.contacts.iter().any(contact_fields::is_asserted) {
            call.require("contacts.assert")?;
        }
        if foreign.is_some() {
            call.require("users.import")?;
        }
        fields.finish()?;
        let hash = match (password, foreign) {
            (Some(password), _) => {
                let hasher = &call.app().hasher;
                Some(hasher.hash(hasher.admit(call.deadline)?, password).await?)
            }
            (None, Some(text)) => Some(secrets::seal_hash(&call, user.id, &text)),
            (None, None) => None,
        };
        // An id of the caller's own choice may be that of a system account, or become it meanwhile; for
        // all else there are unique keys.
        let is_chosen = !request.user_id.is_empty();
        let isolation = if is_chosen {
            Isolation::Serializable
        } else {
            Isolation::ReadCommitted
        };
        let user = mutate!(call, isolation, |tx| {
            if is_chosen {
                accounts::require_free(tx, user.id.into()).await?;
            }
            users::insert(tx, &user).await?;
            if let Some(hash) = &hash {
                let credential = secrets::password_credential(&call, user.id);
                credentials::insert(tx, &credential, Kept::Password(hash)).await?;
            }
            let mut added = Vec::new();
            for contact in contacts.clone() {
                let contact = contacts::add(tx, &call, contact).await?;
                added.push(contact_fields::shown(&contact));
            }
            let event = call
                .event()
                .about_account(user.id)
                .changed(given.iter().copied())
                .detail("contacts", contacts.len());
            events::append(tx, &event).await?;
            if added.is_empty() {
                shown(&user, &call)
            } else {
                pb::User {
                    contacts: added,
                    ..shown(&users::get(tx, user.id).await?, &call)
                }
            }
        })?;
        Ok(Response::new(user))
    }

    async fn get_user(&self, request: Request<pb::GetUserRequest>) -> Reply<pb::User> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.user("name", &request.name)?;
        let user = users::get(&mut call.db().read().await?, id).await?;
        Ok(Response::new(shown(&user, &call)))
    }

    async fn batch_get_users(
        &self,
        request: Request<pb::BatchGetUsersRequest>,
    ) -> Reply<pb::BatchGetUsersResponse> {
        let (call, request, view) = Call::enter_to_find(&self.app, request).await?;
        if !(1..=MAX_BATCH).contains(&request.names.len()) {
            let text = format!("must have 1 to {MAX_BATCH} entries");
            return Err(Error::field("names", text).into());
        }
        let ids: Vec<UserId> = request
            .names
            .iter()
            .map(|name| call.user("names", name))
            .collect::<Result<_>>()?;
        let mut found = BTreeMap::new();
        let mut db = call.db().read().await?;
        let seen = view.among(&call, &mut db, &ids).await?;
        for ids in ids.chunks(users::FIND_ALL) {
            for user in users::find_all(&mut db, ids).await.map_err(Error::from)? {
                if seen.contains(&user.id) {
                    found.insert(user.id, shown(&user, &call));
                }
            }
        }
        let user = |id: &UserId| {
            found
                .get(id)
                .cloned()
                .ok_or_else(|| Error::not_found(id.to_string()))
        };
        let users = ids.iter().map(user).collect::<Result<_>>()?;
        Ok(Response::new(pb::BatchGetUsersResponse { users }))
    }

    async fn lookup_user(&self, request: Request<pb::LookupUserRequest>) -> Reply<pb::User> {
        use pb::lookup_user_request::Key;
        let (call, request, view) = Call::enter_to_find(&self.app, request).await?;
        let missing = || Error::not_found("the user looked up");
        let identifier = match request.key {
            // What cannot be anybody's identifier is nobody's.
            Some(Key::Identifier(typed)) => Identifier::typed(&typed).ok_or_else(missing)?,
            Some(Key::ExternalId(pair)) => {
                let mut fields = Fields::new();
                fields.take(
                    "external_id.source",
                    identifier::external_source(&pair.source),
                );
                fields.take("external_id.id", identifier::external_id(&pair.id));
                fields.finish()?;
                Identifier::external(&pair.source, &pair.id)
            }
            None => {
                return Err(Error::field("identifier", "or `external_id` is required").into());
            }
        };
        let mut db = call.db().read().await?;
        let user = users::find_by_identifier(&mut db, &identifier)
            .await
            .map_err(Error::from)?;
        // Looked for also where there is nobody, so that the time does not tell.
        let id = user.as_ref().map_or(UserId(Uuid::nil()), |user| user.id);
        let is_seen = view.among(&call, &mut db, &[id]).await?.contains(&id);
        let user = user.filter(|_| is_seen).ok_or_else(missing)?;
        Ok(Response::new(shown(&user, &call)))
    }

    async fn list_users(
        &self,
        request: Request<pb::ListUsersRequest>,
    ) -> Reply<pb::ListUsersResponse> {
        let (call, request, view) = Call::enter_to_find(&self.app, request).await?;
        let pb::ListUsersRequest {
            page_size,
            page_token,
            filter,
            order_by,
            show_deleted,
        } = request;
        let limit = page::size(page_size)?;
        let query = query(&filter, &order_by, show_deleted)?;
        let flag = show_deleted.to_string();
        let context = call.page_context(&[&filter, &order_by, &flag, &view.text()]);
        let after: Option<Cursor> = call.open_page(&context, &page_token)?;
        let (mut db, after) = (call.db().read().await?, after.as_ref());
        let rows = match &view {
            View::Everything => users::list(&mut db, &query, after, limit + 1).await,
            View::Groups(groups) => {
                within::users(&mut db, groups, call.now, &query, after, limit + 1).await
            }
        };
        let rows = rows.map_err(Error::from)?;
        let cursor = |user: &User| Cursor::after(user, query.order);
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, cursor)?;
        let users = rows.iter().map(|user| shown(user, &call)).collect();
        Ok(Response::new(pb::ListUsersResponse {
            users,
            next_page_token,
        }))
    }

    async fn update_user(&self, request: Request<pb::UpdateUserRequest>) -> Reply<pb::User> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let input = request.user.unwrap_or_default();
        let id = call.user("user.name", &input.name)?;
        let paths = convert::masked(request.update_mask.as_ref(), &writable(), |path| {
            is_set(path, &input)
        })?;
        if paths.iter().any(|path| !is_own(path)) {
            call.require("users.update")?;
        }
        let mut fields = Fields::new();
        let edits = edits(&mut fields, &paths, &input, call.now);
        if call.limit.is_some() {
            refuse_beyond(&mut fields, &edits);
        }
        fields.finish()?;
        let user = mutate!(call, |tx| {
            let mut user = find_for_change(tx, &call, id, &input.etag).await?;
            user.lifecycle
                .require(&[State::Active, State::Suspended], id, call.now)?;
            let end = |user: &User| user.lifecycle.expire_time.unwrap_or(Timestamp::MAX);
            let known_end = end(&user);
            if !edits.is_empty() {
                for edit in edits.clone() {
                    user.edit(edit);
                }
                if end(&user) > known_end {
                    call.revives(tx, id).await?;
                }
                user.touch(call.now);
                users::update(tx, &user).await?;
                if paths
                    .iter()
                    .any(|path| ["username", "external_ids"].contains(path))
                {
                    let wanted = user.profile.identifiers();
                    let retention = &call.app().config.retention;
                    let until = call.now.plus_s(retention.identifiers_s);
                    identifiers::replace(tx, id, &wanted, call.now, until).await?;
                }
                let event = call.event().about_account(id);
                events::append(tx, &event.changed(paths.iter().copied())).await?;
                if paths.iter().any(|path| NameKind::parse(path).is_some()) {
                    user_names::replace(tx, &user).await?;
                }
            }
            shown(&user, &call)
        })?;
        Ok(Response::new(user))
    }

    async fn suspend_user(&self, request: Request<pb::SuspendUserRequest>) -> Reply<pb::User> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.user("name", &request.name)?;
        let mut fields = Fields::new();
        let reason = fields
            .take("reason", convert::reason(&request.reason))
            .unwrap_or_default();
        let until_time = convert::parse_time(request.until_time.as_ref())
            .and_then(|time| account::future(time, call.now));
        let until_time = fields.take("until_time", until_time).flatten();
        fields.finish()?;
        let user = mutate!(call, |tx| {
            let mut user = find_for_change(tx, &call, id, &request.etag).await?;
            user.lifecycle
                .require(&[State::Active, State::Suspended], id, call.now)?;
            if user.lifecycle.is_back_earlier(until_time, call.now) {
                call.revives(tx, id).await?;
            }
            user.lifecycle.suspend(reason.clone(), until_time);
            let event = call.event().about_account(id);
            store_state(
                tx,
                &call,
                &mut user,
                event,
                Some(EndReason::AccountSuspended),
            )
            .await?
        })?;
        Ok(Response::new(user))
    }

    async fn resume_user(&self, request: Request<pb::ResumeUserRequest>) -> Reply<pb::User> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.user("name", &request.name)?;
        let user = mutate!(call, |tx| {
            let mut user = find_for_change(tx, &call, id, &request.etag).await?;
            user.lifecycle.require(&[State::Suspended], id, call.now)?;
            call.revives(tx, id).await?;
            user.lifecycle.resume();
            let event = call.event().about_account(id);
            store_state(tx, &call, &mut user, event, None).await?
        })?;
        Ok(Response::new(user))
    }

    async fn delete_user(&self, request: Request<pb::DeleteUserRequest>) -> Reply<pb::User> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.user("name", &request.name)?;
        let retention_s = call.app().config.retention.deleted_accounts_s;
        let user = mutate!(call, |tx| {
            let mut user = find_for_change(tx, &call, id, &request.etag).await?;
            user.lifecycle
                .require(&[State::Active, State::Suspended], id, call.now)?;
            if user.lifecycle.state_at(call.now) == State::Suspended {
                // Undeleting ends a suspension, too.
                call.require("users.suspend")?;
            }
            user.lifecycle.delete(call.now, retention_s);
            let event = call.event().about_account(id);
            store_state(tx, &call, &mut user, event, Some(EndReason::AccountDeleted)).await?
        })?;
        Ok(Response::new(user))
    }

    async fn undelete_user(&self, request: Request<pb::UndeleteUserRequest>) -> Reply<pb::User> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let id = call.user("name", &request.name)?;
        let user = mutate!(call, |tx| {
            let mut user = find_for_change(tx, &call, id, &request.etag).await?;
            user.lifecycle.require(&[State::Deleted], id, call.now)?;
            call.revives(tx, id).await?;
            user.lifecycle.undelete();
            let event = call.event().about_account(id);
            store_state(tx, &call, &mut user, event, None).await?
        })?;
        Ok(Response::new(user))
    }

    async fn release_identifier(
        &self,
        request: Request<pb::ReleaseIdentifierRequest>,
    ) -> Reply<()> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let identifier = Identifier::typed(&request.identifier);
        let expected = "must be a username, an e-mail address or a phone number";
        let identifier = identifier.ok_or_else(|| Error::field("identifier", expected))?;
        mutate!(call, |tx| {
            let former = identifiers::release(tx, &identifier).await?;
            let missing = || Error::not_found("an identifier that was given up");
            let former = former.ok_or_else(missing)?;
            if identifier.kind == identifier::Kind::Username {
                identifiers::release_looks(tx, former).await?;
            }
            let event = call.event().about_account(former);
            events::append(tx, &event.detail("kind", identifier.kind.name())).await?;
        })?;
        Ok(Response::new(()))
    }
}

/// The contacts that a user begins with.
fn first_contacts(
    call: &Call,
    fields: &mut Fields,
    user: UserId,
    sent: &[pb::Contact],
) -> Vec<Contact> {
    if sent.len() > MAX_FIRST_CONTACTS {
        let text = format!("must have at most {MAX_FIRST_CONTACTS} entries");
        fields.refuse("contacts", text);
        return Vec::new();
    }
    let read = |(i, contact)| {
        let field = format!("contacts[{i}]");
        contact_fields::new_contact(call, fields, &field, user.into(), contact)
    };
    sent.iter().enumerate().filter_map(read).collect()
}

fn first_email(contacts: &[Contact]) -> Option<String> {
    let is_email = |contact: &&Contact| contact.kind() == contact::Kind::Email;
    let email = contacts.iter().find(is_email)?;
    Some(email.value.text())
}

/// Whoever looks after some people only says nothing of how these are known to everybody: other systems' ids, and
/// names that are kept for who speaks for all.
fn refuse_beyond(fields: &mut Fields, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::ExternalIds(_) => {
                fields.refuse("user.external_ids", "is for who may change every user");
            }
            Edit::Username(Some(username)) if username.is_reserved() => {
                fields.refuse("user.username", "is reserved");
            }
            _ => {}
        }
    }
}

/// The user as it is, for a caller who may change it and knows its present state.
async fn find_for_change(tx: &mut Write, call: &Call, id: UserId, etag: &str) -> Result<User> {
    let user = users::get(tx, id).await?;
    call.require_power_over(tx, id).await?;
    convert::require_etag(etag, user.revision, id)?;
    Ok(user)
}

/// Stores a change of state with its event, and ends the sessions if that is what it means.
async fn store_state(
    tx: &mut Write,
    call: &Call,
    user: &mut User,
    event: crate::domain::event::Event,
    end: Option<EndReason>,
) -> Result<pb::User> {
    user.touch(call.now);
    users::update(tx, user).await?;
    if let Some(reason) = end {
        sessions::end_all(tx, user.id, sessions::Which::default(), call.now, reason).await?;
        users::void_begun(tx, user.id).await?;
    }
    events::append(tx, &event).await?;
    Ok(shown(user, call))
}

/// Registering frontends set what people may set themselves and a username; operators the rest.
/// Only the former bring a password, since only they act for the person.
fn require_to_create(call: &Call, given: &[&str], user_id: &str, password: bool) -> Result<()> {
    if password {
        call.require("users.register")?;
    }
    let registers_only =
        user_id.is_empty() && given.iter().all(|path| is_own(path) || *path == "username");
    if registers_only {
        Ok(())
    } else {
        call.require("users.create")
    }
}

fn new_id(call: &Call, text: &str) -> Result<Uuid, String> {
    if text.is_empty() {
        return Ok(call.new_uuid());
    }
    name::chosen_uuid(text)
}

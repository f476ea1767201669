//! Users as messages: what callers write, and what they are shown.

use std::collections::BTreeMap;

use super::{call::Call, convert, pb};
use crate::domain::{
    account::{self, State},
    error::Fields,
    identifier, text,
    time::Timestamp,
    user::{Edit, MAX_EXTERNAL_IDS, MAX_NAME, User, WRITABLE},
    username::Username,
};

/// The fields that an update may name.
pub(super) fn writable() -> [&'static str; WRITABLE.len()] {
    WRITABLE.map(|(path, _)| path)
}

/// Whether users may change a field of their own account.
pub(super) fn is_own(path: &str) -> bool {
    WRITABLE.iter().any(|(field, own)| *field == path && *own)
}

/// Whether a message says anything of a field.
pub(super) fn is_set(path: &str, user: &pb::User) -> bool {
    match path {
        "username" => !user.username.is_empty(),
        "display_name" => !user.display_name.is_empty(),
        "given_name" => !user.given_name.is_empty(),
        "family_name" => !user.family_name.is_empty(),
        "language_code" => !user.language_code.is_empty(),
        "time_zone" => !user.time_zone.is_empty(),
        "external_ids" => !user.external_ids.is_empty(),
        "attributes" => user.attributes.is_some(),
        "admin_attributes" => user.admin_attributes.is_some(),
        "expire_time" => user.expire_time.is_some(),
        _ => false,
    }
}

/// The named fields of a message as edits; what is wrong with them goes to `fields`.
pub(super) fn edits(
    fields: &mut Fields,
    paths: &[&str],
    user: &pb::User,
    now: Timestamp,
) -> Vec<Edit> {
    let edit = |path: &str| -> Result<Edit, String> {
        Ok(match path {
            "username" if user.username.is_empty() => Edit::Username(None),
            "username" => Edit::Username(Some(Username::parse(&user.username)?)),
            "display_name" => Edit::DisplayName(text::line(&user.display_name, MAX_NAME)?),
            "given_name" => Edit::GivenName(text::line(&user.given_name, MAX_NAME)?),
            "family_name" => Edit::FamilyName(text::line(&user.family_name, MAX_NAME)?),
            "language_code" => Edit::LanguageCode(text::language(&user.language_code)?),
            "time_zone" => Edit::TimeZone(text::time_zone(&user.time_zone)?),
            "external_ids" => Edit::ExternalIds(external_ids(&user.external_ids)?),
            "attributes" => Edit::Attributes(convert::json_text(user.attributes.as_ref())?),
            "admin_attributes" => {
                Edit::AdminAttributes(convert::json_text(user.admin_attributes.as_ref())?)
            }
            "expire_time" => {
                let time = convert::parse_time(user.expire_time.as_ref())?;
                Edit::ExpireTime(account::future(time, now)?)
            }
            path => return Err(format!("has no field {path}")),
        })
    };
    paths
        .iter()
        .filter_map(|path| fields.take(&format!("user.{path}"), edit(path)))
        .collect()
}

fn external_ids(ids: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
    if ids.len() > MAX_EXTERNAL_IDS {
        return Err(format!("must have at most {MAX_EXTERNAL_IDS} entries"));
    }
    ids.iter()
        .map(|(source, id)| {
            Ok((
                identifier::external_source(source)?,
                identifier::external_id(id)?,
            ))
        })
        .collect()
}

/// The user as the caller may see it.
pub(super) fn shown(user: &User, call: &Call) -> pb::User {
    use pb::user::State as PbState;
    let (state, profile) = (&user.lifecycle, &user.profile);
    let may_see_all = call.caller.holds("users.read");
    pb::User {
        name: user.id.to_string(),
        uid: user.id.0.to_string(),
        etag: convert::etag(user.revision),
        state: match state.state_at(call.now) {
            State::Active => PbState::Active,
            State::Suspended => PbState::Suspended,
            State::Deleted => PbState::Deleted,
        }
        .into(),
        state_reason: state.reason.clone(),
        state_until_time: convert::some_timestamp(state.until_time),
        username: profile
            .username
            .as_ref()
            .map_or("", Username::as_str)
            .to_owned(),
        display_name: profile.display_name.clone(),
        given_name: profile.given_name.clone(),
        family_name: profile.family_name.clone(),
        language_code: profile.language_code.clone(),
        time_zone: profile.time_zone.clone(),
        primary_email: user.primary_email.clone().unwrap_or_default(),
        primary_phone: user.primary_phone.clone().unwrap_or_default(),
        external_ids: profile.external_ids.clone(),
        attributes: convert::from_json_text(&profile.attributes),
        admin_attributes: may_see_all
            .then(|| convert::from_json_text(&profile.admin_attributes))
            .flatten(),
        create_time: Some(convert::timestamp(user.create_time)),
        update_time: Some(convert::timestamp(user.update_time)),
        last_sign_in_time: convert::some_timestamp(user.last_sign_in_time),
        expire_time: convert::some_timestamp(state.expire_time),
        delete_time: convert::some_timestamp(state.delete_time),
        purge_time: convert::some_timestamp(state.purge_time),
        contacts: Vec::new(),
    }
}

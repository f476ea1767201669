//! Contacts as messages: what callers write, and what they are shown.

use super::{call::Call, convert, pb};
use crate::domain::{
    contact::{Contact, Edit, MAX_LABEL, Method, Proof, Purpose, Value},
    email::Email,
    error::{Fields, Result},
    name::{AccountId, ContactId},
    phone::Phone,
    postal_address::PostalAddress,
    text,
};

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

pub(super) fn is_set(path: &str, contact: &pb::Contact) -> bool {
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
pub(super) fn edit(
    fields: &mut Fields,
    field: &str,
    path: &str,
    contact: &pb::Contact,
) -> Option<Edit> {
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

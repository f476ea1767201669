//! Which users a list is about, as callers write it.

use crate::{
    domain::{
        account::State,
        contact,
        email::Email,
        error::{Error, Reason, Result},
        filter::{self, Operator, Term},
        phone::Phone,
        text,
        time::Timestamp,
        user::NameKind,
        username,
    },
    store::users::{Order, Query},
};

/// Reads `filter`, `order_by` and `show_deleted`.
pub(super) fn query(filter: &str, order_by: &str, show_deleted: bool) -> Result<Query> {
    let offered = &[
        ("state", filter::EQUAL),
        ("username", filter::EQUAL),
        ("display_name", filter::EQUAL),
        ("given_name", filter::EQUAL),
        ("family_name", filter::EQUAL),
        ("email", filter::EQUAL),
        ("phone", filter::EQUAL),
        ("create_time", filter::ORDER),
    ];
    let order = match order_by {
        "" | "create_time" => Order::CreateTime,
        "create_time desc" => Order::CreateTimeDescending,
        "username" => Order::Username,
        _ => {
            let text = "must be `create_time`, `create_time desc` or `username`";
            return Err(Error::invalid(Reason::InvalidFilter, "order_by", text));
        }
    };
    let mut query = Query {
        order,
        state: None,
        show_deleted,
        created: (Timestamp::EPOCH, Timestamp::MAX),
        keys: (String::new(), END_OF_NAMES.to_owned()),
    };
    let mut searched = None;
    for term in filter::parse(filter, offered)? {
        let (order, keys) = match term.field {
            "state" => {
                let state = State::parse(&term.value);
                query.state = Some(filter::value(&term, state, "ACTIVE, SUSPENDED or DELETED")?);
                continue;
            }
            "create_time" => {
                filter::bound(&term, &mut query.created)?;
                continue;
            }
            "username" => (Order::Username, usernames(&term)?),
            "email" => {
                let email = Email::parse(&term.value).ok();
                let email = filter::value(&term, email, "an e-mail address")?;
                let key = email.key().to_owned();
                (Order::Contact(contact::Kind::Email), (key.clone(), key))
            }
            "phone" => {
                let phone = Phone::parse(&term.value).ok();
                let phone = filter::value(&term, phone, "a phone number with its country")?;
                let key = phone.e164().to_owned();
                (Order::Contact(contact::Kind::Phone), (key.clone(), key))
            }
            name => {
                let kind = NameKind::parse(name);
                let kind = kind.ok_or_else(|| Error::internal("a field that is not offered"))?;
                (Order::Name(kind), names(&term))
            }
        };
        if let Some(other) = searched.replace(term.field) {
            let text = format!(
                "names `{other}` and `{}`, of which it can name one",
                term.field
            );
            return Err(filter::refuse(text));
        }
        (query.order, query.keys) = (order, keys);
    }
    Ok(query)
}

/// The first and last key that a name or the beginning of one `ann*` stands for.
fn names(term: &Term) -> (String, String) {
    match term.value.strip_suffix('*') {
        Some(prefix) => {
            let key = text::name_prefix_key(prefix);
            let last = format!("{key}{END_OF_NAMES}");
            (key, last)
        }
        None => {
            let key = text::name_key(&term.value);
            (key.clone(), key)
        }
    }
}

/// Sorts after every username.
const END_OF_NAMES: &str = "\u{10ffff}";

/// The first and last key that a name or a prefix `ann*` stands for.
fn usernames(term: &Term) -> Result<(String, String)> {
    debug_assert_eq!(term.operator, Operator::Equal);
    let expected = "a username, or the beginning of one and `*`";
    match term.value.strip_suffix('*') {
        Some(prefix) => {
            let key = filter::value(term, username::prefix_key(prefix), expected)?;
            let last = format!("{key}{END_OF_NAMES}");
            Ok((key, last))
        }
        None => {
            let key = filter::value(term, username::key(&term.value), expected)?;
            Ok((key.clone(), key))
        }
    }
}

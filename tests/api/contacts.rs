//! Where people and programs can be reached: what an address may do before and after it is proven.

use std::collections::BTreeSet;

use accountd::{domain::error::Reason, grpc::pb};
use pb::contact::{
    Purpose::{self, Billing, Login, Notify, Recovery},
    Value, verification,
};

use crate::harness::{
    Actor, Engine, Server, SignedIn, assert_refused, fields_of, on_both_engines, password,
};

const DAY_S: i64 = 24 * 3600;

/// An e-mail address with purposes, to be created.
pub fn email(address: &str, purposes: &[Purpose]) -> pb::Contact {
    let address = address.to_owned();
    contact(Value::Email(pb::contact::Email { address }), purposes)
}

pub fn phone(number: &str, purposes: &[Purpose]) -> pb::Contact {
    let e164 = number.to_owned();
    let phone = pb::contact::Phone {
        e164,
        ..Default::default()
    };
    contact(Value::Phone(phone), purposes)
}

fn contact(value: Value, purposes: &[Purpose]) -> pb::Contact {
    pb::Contact {
        value: Some(value),
        purposes: purposes.iter().map(|purpose| (*purpose).into()).collect(),
        ..Default::default()
    }
}

/// What a contact holds, as text.
fn value(contact: &pb::Contact) -> &str {
    match contact.value.as_ref().expect("a value") {
        Value::Email(email) => &email.address,
        Value::Phone(phone) => &phone.e164,
        Value::PostalAddress(address) => &address.locality,
    }
}

fn is_verified(contact: &pb::Contact) -> bool {
    let verification = contact.verification.as_ref();
    verification.is_some_and(|it| it.state() == verification::State::Verified)
}

/// A contact of a person who proves it at once, with a code that the operator brings.
pub async fn verified(server: &Server, person: &SignedIn, new: pb::Contact) -> pb::Contact {
    let created = person
        .actor
        .create_contact("users/me", new)
        .await
        .expect("created");
    let code = server
        .operator()
        .await
        .contact_code(&created.name)
        .await
        .expect("a code");
    let verified = person.actor.verify_contact(&created.name, &code).await;
    verified.expect("verified")
}

async fn update(
    actor: &Actor,
    contact: pb::Contact,
    paths: &[&str],
) -> Result<pb::Contact, tonic::Status> {
    let paths = paths.iter().map(ToString::to_string).collect();
    let request = pb::UpdateContactRequest {
        contact: Some(contact),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    };
    Ok(actor.contacts().update_contact(request).await?.into_inner())
}

/// The contact with another value.
fn with_value(contact: &pb::Contact, new: pb::Contact) -> pb::Contact {
    pb::Contact {
        value: new.value,
        ..contact.clone()
    }
}

async fn delete(actor: &Actor, name: &str) -> Result<(), tonic::Status> {
    let request = pb::DeleteContactRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    actor.contacts().delete_contact(request).await.map(drop)
}

async fn make_primary(actor: &Actor, name: &str) -> Result<pb::Contact, tonic::Status> {
    let request = pb::MakeContactPrimaryRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    Ok(actor
        .contacts()
        .make_contact_primary(request)
        .await?
        .into_inner())
}

async fn list(actor: &Actor, parent: &str, filter: &str) -> Vec<String> {
    let request = pb::ListContactsRequest {
        parent: parent.to_owned(),
        filter: filter.to_owned(),
        ..Default::default()
    };
    let response = actor
        .contacts()
        .list_contacts(request)
        .await
        .expect("a list");
    response
        .into_inner()
        .contacts
        .iter()
        .map(|it| value(it).to_owned())
        .collect()
}

async fn owner_of(server: &Server, identifier: &str) -> Option<String> {
    let key = pb::lookup_user_request::Key::Identifier(identifier.to_owned());
    let request = pb::LookupUserRequest { key: Some(key) };
    let found = server.operator().await.users().lookup_user(request).await;
    found.ok().map(|user| user.into_inner().name)
}

on_both_engines! {
    async fn contacts_of_every_kind_are_kept_as_they_were_written(engine: Engine) {
        let server = engine.server().await;
        let ann = server.signed_in("ann").await.actor;
        let mail = pb::Contact {
            label: "work".to_owned(),
            ..email("Ann@Bücher.example", &[Notify, Login, Notify])
        };
        let mail = ann.create_contact("users/me", mail).await.expect("created");
        assert_eq!(value(&mail), "Ann@Bücher.example");
        assert_eq!(
            (&*mail.label, mail.primary, is_verified(&mail)),
            ("work", false, false)
        );
        assert_eq!(mail.purposes, [i32::from(Login), i32::from(Notify)]);
        let number = phone("+41 (44) 668-18-00", &[Recovery]);
        let number = ann.create_contact("users/me", number).await.expect("created");
        let Some(Value::Phone(shown)) = &number.value else {
            panic!("a phone")
        };
        assert_eq!(
            (&*shown.e164, &*shown.display),
            ("+41446681800", "+41 44 668 18 00")
        );
        let address = pb::contact::PostalAddress {
            region_code: "CH".to_owned(),
            locality: "Zürich".to_owned(),
            postal_code: "8002".to_owned(),
            address_lines: vec!["Brandschenkestrasse 110".to_owned(), "Hinterhaus".to_owned()],
            language_code: "de-CH".to_owned(),
            sorting_code: "CEDEX 3".to_owned(),
            administrative_area: "ZH".to_owned(),
            sublocality: "Enge".to_owned(),
            recipients: vec!["Ann Müller".to_owned(), "Bob Müller".to_owned()],
            organization: "Müller & Söhne".to_owned(),
        };
        let home = contact(Value::PostalAddress(address.clone()), &[Billing]);
        let home = ann.create_contact("users/me", home).await.expect("created");
        assert_eq!(home.value, Some(Value::PostalAddress(address)));
        assert!(home.primary, "the first one needs no proof");
        assert_eq!(home.verification, None);
        for contact in [&mail, &number, &home] {
            let read = ann.get_contact(&contact.name).await;
            assert_eq!(&read.expect("read"), contact);
        }
        let mut all = list(&ann, "users/me", "").await;
        all.sort();
        assert_eq!(all, ["+41446681800", "Ann@Bücher.example", "Zürich"]);
        assert_eq!(list(&ann, "users/me", "kind = phone").await, all[..1]);
        let again = ann
            .create_contact("users/me", email("ANN@xn--bcher-kva.example", &[]))
            .await;
        assert_refused(again, Reason::AlreadyExists);
    }

    async fn everything_that_is_wrong_with_a_contact_is_named(engine: Engine) {
        let server = engine.server().await;
        let ann = server.signed_in("ann").await.actor;
        let create = async |contact| fields_of(ann.create_contact("users/me", contact).await);
        assert_eq!(create(pb::Contact::default()).await, ["contact"]);
        let bad = pb::Contact {
            label: "a\nb".to_owned(),
            ..email("ann\r\nBcc: bob@example.org", &[])
        };
        assert_eq!(create(bad).await, ["contact.email.address", "contact.label"]);
        assert_eq!(create(phone("044 668 18 00", &[])).await, ["contact.phone.e164"]);
        let nowhere = pb::contact::PostalAddress {
            locality: "a\nb".to_owned(),
            ..Default::default()
        };
        let paths = [
            "contact.postal_address.region_code",
            "contact.postal_address.locality",
        ];
        assert_eq!(create(contact(Value::PostalAddress(nowhere), &[])).await, paths);
        let address = pb::contact::PostalAddress {
            region_code: "CH".to_owned(),
            ..Default::default()
        };
        let paths = ["contact.purposes"];
        assert_eq!(
            create(contact(Value::PostalAddress(address), &[Login])).await,
            paths
        );
        let unknown = pb::Contact {
            purposes: vec![99],
            ..email("ann@example.org", &[])
        };
        assert_eq!(create(unknown).await, paths);
        let (robot, _) = server.create_system_account(&[]).await;
        let operator = server.operator().await;
        let refused = operator
            .create_contact(&robot.name, email("robot@example.org", &[Login]))
            .await;
        assert_eq!(fields_of(refused), paths);
        let notified = operator
            .create_contact(&robot.name, email("robot@example.org", &[Notify]))
            .await;
        let notified = notified.expect("programs have addresses, too");
        let code = operator.contact_code(&notified.name).await.expect("a code");
        let proven = operator
            .verify_contact(&notified.name, &code)
            .await
            .expect("verified");
        assert!(proven.primary && is_verified(&proven));
        for i in 0..49 {
            let address = email(&format!("robot{i}@example.org"), &[]);
            operator.create_contact(&robot.name, address).await.expect("room");
        }
        let full = operator
            .create_contact(&robot.name, email("one@example.org", &[]))
            .await;
        assert_refused(full, Reason::LimitReached);
    }

    async fn a_verified_address_signs_in_in_whatever_spelling(engine: Engine) {
        let server = engine.server().await;
        let ann = server.signed_in("ann").await;
        verified(&server, &ann, email("Ann@Bücher.example", &[Login])).await;
        verified(&server, &ann, phone("+41 44 668 18 00", &[Login])).await;
        verified(&server, &ann, email("ann@news.example", &[Notify])).await;
        let anonymous = server.anonymous().await;
        for typed in [
            "ann",
            "Ann@Bücher.example",
            "ANN@XN--BCHER-KVA.EXAMPLE",
            " ａnn@bücher.example ",
            "+41446681800",
            "+41 (44) 668 18 00",
        ] {
            let signed_in = anonymous.sign_in(typed, &password("ann")).await;
            signed_in.unwrap_or_else(|error| panic!("{typed}: {error}"));
            assert_eq!(
                owner_of(&server, typed).await.as_deref(),
                Some(ann.name()),
                "{typed}"
            );
        }
        for typed in ["ann@news.example", "044 668 18 00", "ann@example"] {
            let refused = anonymous.sign_in(typed, &password("ann")).await;
            assert_refused(refused, Reason::InvalidCredentials);
            assert_eq!(owner_of(&server, typed).await, None, "{typed}");
        }
    }

    async fn an_address_that_nobody_has_proven_gives_its_squatter_nothing(engine: Engine) {
        let server = engine.server().await;
        let mallory = server.signed_in("mallory").await;
        let claim = email("ann@example.org", &[Login, Recovery, Notify]);
        let claim = mallory
            .actor
            .create_contact("users/me", claim)
            .await
            .expect("created");
        let anonymous = server.anonymous().await;
        let early = anonymous.sign_in("ann@example.org", &password("mallory")).await;
        assert_refused(early, Reason::InvalidCredentials);
        assert_refused(
            make_primary(&mallory.actor, &claim.name).await,
            Reason::WrongState,
        );

        let ann = server.signed_in("ann").await;
        verified(&server, &ann, email("Ann@Example.org", &[Login])).await;
        assert_eq!(
            owner_of(&server, "ann@example.org").await.as_deref(),
            Some(ann.name())
        );
        let late = anonymous.sign_in("ann@example.org", &password("mallory")).await;
        assert_refused(late, Reason::InvalidCredentials);
        // Even somebody who reads the mailbox cannot take what is somebody's.
        let operator = server.operator().await;
        let code = operator.contact_code(&claim.name).await.expect("a code");
        let taken = mallory.actor.verify_contact(&claim.name, &code).await;
        assert_refused(taken, Reason::AlreadyExists);
        assert!(!is_verified(
            &mallory.actor.get_contact(&claim.name).await.expect("read")
        ));
        let shared = pb::Contact {
            purposes: vec![Notify.into()],
            ..claim.clone()
        };
        let shared = update(&mallory.actor, shared, &["purposes"])
            .await
            .expect("updated");
        let code = operator.contact_code(&shared.name).await.expect("a code");
        mallory
            .actor
            .verify_contact(&shared.name, &code)
            .await
            .expect("a shared mailbox");
        let back = pb::Contact {
            purposes: vec![Login.into()],
            etag: String::new(),
            ..shared
        };
        assert_refused(
            update(&mallory.actor, back, &["purposes"]).await,
            Reason::AlreadyExists,
        );
        assert_eq!(
            owner_of(&server, "ann@example.org").await.as_deref(),
            Some(ann.name())
        );
    }

    async fn of_all_who_prove_one_address_at_once_one_owns_it(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let spellings = [
            "Ann@bücher.example",
            "ANN@XN--BCHER-KVA.example",
            "ａnn@Bücher.example",
            "ann@bücher.example",
        ];
        let mut codes = Vec::new();
        for i in 0..64 {
            let user = pb::User {
                username: format!("user{i}"),
                ..Default::default()
            };
            let user = operator.create_user(user).await.expect("created");
            let contact = email(spellings[i % spellings.len()], &[Login]);
            let contact = operator
                .create_contact(&user.name, contact)
                .await
                .expect("created");
            codes.push((
                contact.name.clone(),
                operator.contact_code(&contact.name).await.expect("a code"),
            ));
        }
        let attempts = codes.into_iter().map(|(name, code)| {
            let operator = operator.clone();
            tokio::spawn(async move {
                // Our own retries may be used up; a client tries again.
                loop {
                    match operator.verify_contact(&name, &code).await {
                        Err(status) if status.code() == tonic::Code::Aborted => {}
                        outcome => return (name, outcome),
                    }
                }
            })
        });
        let attempts: Vec<_> = attempts.collect();
        let mut owners = BTreeSet::new();
        for attempt in attempts {
            let (name, outcome) = attempt.await.expect("ran");
            match outcome {
                Ok(contact) => _ = owners.insert(contact.name),
                refused => {
                    assert_refused(refused, Reason::AlreadyExists);
                    assert!(!is_verified(&operator.get_contact(&name).await.expect("read")));
                }
            }
        }
        assert_eq!(owners.len(), 1);
        let owner = owner_of(&server, "ann@bücher.example").await.expect("somebody's");
        assert!(owners.first().expect("one").starts_with(&owner));
    }

    async fn a_code_is_good_once_for_a_while_and_for_its_own_value(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.signed_in("ann").await.actor;
        let one = ann
            .create_contact("users/me", email("one@example.org", &[]))
            .await
            .expect("created");
        let two = ann
            .create_contact("users/me", email("two@example.org", &[]))
            .await
            .expect("created");
        let wrong = async |name: &str, code: &str| {
            assert_refused(ann.verify_contact(name, code).await, Reason::InvalidCode);
        };
        wrong(&one.name, "12345678").await;
        let code = operator.contact_code(&one.name).await.expect("a code");
        let other = operator.contact_code(&two.name).await.expect("a code");
        wrong(&two.name, &code).await;
        wrong(&one.name, &other).await;
        let newer = operator.contact_code(&one.name).await.expect("a code");
        wrong(&one.name, &code).await;
        server.advance_s(600);
        let (operator, ann) = (server.operator().await, server.sign_in("ann").await.actor);
        assert_refused(ann.verify_contact(&one.name, &newer).await, Reason::InvalidCode);
        let code = operator.contact_code(&one.name).await.expect("a code");
        let corrected = with_value(&one, email("uno@example.org", &[]));
        update(&ann, corrected, &["email"]).await.expect("updated");
        assert_refused(ann.verify_contact(&one.name, &code).await, Reason::InvalidCode);
        let code = operator.contact_code(&one.name).await.expect("a code");
        let spaced = format!(" {} {}", &code[..4], &code[4..]);
        assert!(is_verified(
            &ann.verify_contact(&one.name, &spaced).await.expect("verified")
        ));
        assert_refused(ann.verify_contact(&one.name, &code).await, Reason::WrongState);
        assert_refused(operator.contact_code(&one.name).await, Reason::WrongState);
    }

    async fn a_sign_in_of_long_ago_changes_no_address(engine: Engine) {
        let server = engine.server_with(|config| config.tokens.access_token_lifetime_s = 3600);
        let server = server.await;
        let ann = server.signed_in("ann").await;
        let mail = verified(&server, &ann, email("ann@example.org", &[Login])).await;
        server.advance_s(601);
        let stale = Reason::InsufficientUserAuthentication;
        let new = email("bob@example.org", &[]);
        assert_refused(ann.actor.create_contact("users/me", new.clone()).await, stale);
        assert_refused(
            update(&ann.actor, with_value(&mail, new), &["email"]).await,
            stale,
        );
        assert_refused(make_primary(&ann.actor, &mail.name).await, stale);
        assert_refused(delete(&ann.actor, &mail.name).await, stale);
        ann.actor.get_contact(&mail.name).await.expect("may be read");
    }

    async fn codes_cannot_be_guessed(engine: Engine) {
        let server = engine
            .server_with(|config| config.throttle.account_free = 20)
            .await;
        let operator = server.operator().await;
        let ann = server.signed_in("ann").await.actor;
        let mail = ann
            .create_contact("users/me", email("ann@example.org", &[]))
            .await
            .expect("created");
        let code = operator.contact_code(&mail.name).await.expect("a code");
        let wrong = |i: u32| format!("{:08}", (code.parse::<u32>().expect("digits") + i) % 100_000_000);
        for i in 1..=5 {
            assert_refused(
                ann.verify_contact(&mail.name, &wrong(i)).await,
                Reason::InvalidCode,
            );
        }
        assert_refused(ann.verify_contact(&mail.name, &code).await, Reason::InvalidCode);
        // However many codes are asked for, guesses are counted for the contact.
        for _ in 0..3 {
            let code = operator.contact_code(&mail.name).await.expect("a code");
            for i in 1..=5 {
                let wrong = format!("{:08}", (code.parse::<u32>().expect("digits") + i) % 100_000_000);
                assert_refused(ann.verify_contact(&mail.name, &wrong).await, Reason::InvalidCode);
            }
        }
        let code = operator.contact_code(&mail.name).await.expect("a code");
        assert_refused(ann.verify_contact(&mail.name, &code).await, Reason::Throttled);
        // And for the address, however often it is written down.
        delete(&ann, &mail.name).await.expect("deleted");
        let again = ann
            .create_contact("users/me", email("Ann@example.org", &[]))
            .await;
        let again = again.expect("created").name;
        let code = operator.contact_code(&again).await.expect("a code");
        assert_refused(ann.verify_contact(&again, &code).await, Reason::Throttled);
        assert_eq!(server.events("contact.verification_refused").await.len(), 20);
    }

    async fn of_all_who_come_with_one_code_one_succeeds(engine: Engine) {
        let server = engine
            .server_with(|config| config.throttle.account_free = 1000)
            .await;
        let operator = server.operator().await;
        let ann = server.signed_in("ann").await.actor;
        let mail = ann
            .create_contact("users/me", email("ann@example.org", &[]))
            .await
            .expect("created");
        let code = operator.contact_code(&mail.name).await.expect("a code");
        let attempts = (0..64).map(|_| {
            let (ann, name, code) = (ann.clone(), mail.name.clone(), code.clone());
            tokio::spawn(async move { ann.verify_contact(&name, &code).await.is_ok() })
        });
        let attempts: Vec<_> = attempts.collect();
        let mut succeeded = 0;
        for attempt in attempts {
            succeeded += usize::from(attempt.await.expect("ran"));
        }
        assert_eq!(succeeded, 1);
        assert_eq!(server.events("contact.verified").await.len(), 1);
    }

    async fn a_verified_value_stays_until_its_replacement_is_verified(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.signed_in("ann").await;
        let mail = verified(&server, &ann, email("old@example.org", &[Login])).await;
        let changed = with_value(&mail, email("new@example.org", &[]));
        let changed = update(&ann.actor, changed, &["email"]).await.expect("updated");
        assert_eq!(
            (value(&changed), &*changed.pending_value),
            ("old@example.org", "new@example.org")
        );
        assert!(is_verified(&changed));
        assert_eq!(
            owner_of(&server, "old@example.org").await.as_deref(),
            Some(ann.name())
        );
        assert_eq!(owner_of(&server, "new@example.org").await, None);
        let code = operator.contact_code(&mail.name).await.expect("a code");
        let taken_back = with_value(&changed, email("old@example.org", &[]));
        let taken_back = update(&ann.actor, taken_back, &["email"]).await.expect("updated");
        assert_eq!(taken_back.pending_value, "");
        assert_refused(
            ann.actor.verify_contact(&mail.name, &code).await,
            Reason::WrongState,
        );

        let changed = with_value(&taken_back, email("new@example.org", &[]));
        update(&ann.actor, changed, &["email"]).await.expect("updated");
        assert_refused(
            ann.actor.verify_contact(&mail.name, &code).await,
            Reason::InvalidCode,
        );
        let code = operator.contact_code(&mail.name).await.expect("a code");
        let done = ann
            .actor
            .verify_contact(&mail.name, &code)
            .await
            .expect("verified");
        assert_eq!((value(&done), &*done.pending_value), ("new@example.org", ""));
        assert_eq!(
            owner_of(&server, "new@example.org").await.as_deref(),
            Some(ann.name())
        );
        assert_eq!(owner_of(&server, "old@example.org").await, None);
        let user = operator.get_user(ann.name()).await.expect("read");
        assert_eq!(user.primary_email, "new@example.org");
        let other_kind = with_value(&done, phone("+41446681800", &[]));
        assert_eq!(
            fields_of(update(&ann.actor, other_kind, &["phone"]).await),
            ["contact"]
        );
    }

    async fn one_of_each_kind_comes_first(engine: Engine) {
        let server = engine.server().await;
        let ann = server.signed_in("ann").await;
        let one = verified(&server, &ann, email("one@example.org", &[])).await;
        assert!(one.primary, "the first verified one");
        let two = verified(&server, &ann, email("two@example.org", &[])).await;
        let three = ann
            .actor
            .create_contact("users/me", email("three@example.org", &[]))
            .await
            .expect("created");
        let number = verified(&server, &ann, phone("+41446681800", &[])).await;
        assert!(!two.primary && number.primary);
        assert_refused(make_primary(&ann.actor, &three.name).await, Reason::WrongState);
        assert!(make_primary(&ann.actor, &two.name).await.expect("made").primary);
        assert!(!ann.actor.get_contact(&one.name).await.expect("read").primary);
        let primaries = async || {
            let user = ann.actor.get_user("users/me").await.expect("read");
            (user.primary_email, user.primary_phone)
        };
        let both = |email: &str, phone: &str| (email.to_owned(), phone.to_owned());
        assert_eq!(primaries().await, both("two@example.org", "+41446681800"));
        delete(&ann.actor, &two.name).await.expect("deleted");
        assert_eq!(primaries().await, both("one@example.org", "+41446681800"));
        delete(&ann.actor, &one.name).await.expect("deleted");
        delete(&ann.actor, &number.name).await.expect("deleted");
        assert_eq!(primaries().await, both("", ""), "nobody has proven the third");
    }

    async fn what_somebody_gave_up_is_nobody_else_s_for_a_while(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.signed_in("ann").await;
        let mail = verified(&server, &ann, email("ann@example.org", &[Login])).await;
        delete(&ann.actor, &mail.name).await.expect("deleted");
        assert_eq!(owner_of(&server, "ann@example.org").await, None);
        let bob = operator
            .create_user(pb::User {
                username: "bob".to_owned(),
                ..Default::default()
            })
            .await
            .expect("created");
        let asserted = pb::Contact {
            verification: Some(pb::contact::Verification {
                state: verification::State::Verified.into(),
                ..Default::default()
            }),
            ..email("ann@example.org", &[Login])
        };
        let too_soon = operator.create_contact(&bob.name, asserted.clone()).await;
        assert_refused(too_soon, Reason::AlreadyExists);
        let back = verified(&server, &ann, email("ann@example.org", &[Login])).await;
        delete(&ann.actor, &back.name)
            .await
            .expect("her own again, and given up again");
        server.advance_s(30 * DAY_S - 1);
        let operator = server.operator().await;
        let too_soon = operator.create_contact(&bob.name, asserted.clone()).await;
        assert_refused(too_soon, Reason::AlreadyExists);
        server.advance_s(1);
        let now = operator.create_contact(&bob.name, asserted).await.expect("free");
        assert_eq!(owner_of(&server, "ann@example.org").await, Some(bob.name));
        let proof = now.verification.expect("verified");
        assert_eq!(proof.method(), verification::Method::Asserted);
        assert_eq!(proof.verified_by, server.operator_name());
        // The same for a username, and for all that look like it.
        let rename = async |name: &str, username: &str| {
            let user = pb::User {
                name: name.to_owned(),
                username: username.to_owned(),
                ..Default::default()
            };
            let paths = vec!["username".to_owned()];
            let request = pb::UpdateUserRequest {
                user: Some(user),
                update_mask: Some(prost_types::FieldMask { paths }),
                ..Default::default()
            };
            operator.users().update_user(request).await
        };
        rename(ann.name(), "annabel").await.expect("renamed");
        let carl = operator.create_user(pb::User::default()).await.expect("created");
        assert_refused(rename(&carl.name, "Ann").await, Reason::AlreadyExists);
        assert_refused(rename(&carl.name, "annabe1").await, Reason::AlreadyExists);
        rename(ann.name(), "ann").await.expect("still hers");
        rename(&carl.name, "carl").await.expect("free");
    }

    async fn nobody_removes_the_last_thing_they_sign_in_with(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let nameless = operator.create_user(pb::User::default()).await.expect("created");
        let mut contacts = Vec::new();
        for new in [
            email("one@example.org", &[Login]),
            email("two@example.org", &[Login]),
        ] {
            let contact = operator
                .create_contact(&nameless.name, new)
                .await
                .expect("created");
            let code = operator.contact_code(&contact.name).await.expect("a code");
            contacts.push(
                operator
                    .verify_contact(&contact.name, &code)
                    .await
                    .expect("verified"),
            );
        }
        delete(&operator, &contacts[0].name)
            .await
            .expect("there is another");
        assert_refused(delete(&operator, &contacts[1].name).await, Reason::LastIdentifier);
        contacts[1].etag.clear();
        let useless = pb::Contact {
            purposes: Vec::new(),
            ..contacts[1].clone()
        };
        assert_refused(
            update(&operator, useless, &["purposes"]).await,
            Reason::LastIdentifier,
        );
        let changed = with_value(&contacts[1], email("three@example.org", &[]));
        update(&operator, changed, &["email"]).await.expect("updated");
        let code = operator.contact_code(&contacts[1].name).await.expect("a code");
        operator
            .verify_contact(&contacts[1].name, &code)
            .await
            .expect("one for another");
    }

    async fn people_register_with_an_address_and_prove_it(engine: Engine) {
        let server = engine.server().await;
        let frontend = server.frontend().await;
        let request = |contacts: Vec<pb::Contact>, password: &str| pb::CreateUserRequest {
            user: Some(pb::User::default()),
            contacts,
            password: password.to_owned(),
            ..Default::default()
        };
        let mail = email("ann@example.org", &[Login, Recovery]);
        let own = request(vec![mail.clone()], "ann@example.org1");
        assert_eq!(fields_of(frontend.users().create_user(own).await), ["password"]);
        let bad = request(vec![email("ann", &[])], &password("ann"));
        assert_eq!(
            fields_of(frontend.users().create_user(bad).await),
            ["contacts[0].email.address"]
        );
        let many = request(vec![mail.clone(); 11], &password("ann"));
        assert_eq!(fields_of(frontend.users().create_user(many).await), ["contacts"]);
        let asserted = pb::Contact {
            verification: Some(pb::contact::Verification {
                state: verification::State::Verified.into(),
                ..Default::default()
            }),
            ..mail.clone()
        };
        let asserted = request(vec![asserted], &password("ann"));
        let refused = frontend.users().create_user(asserted.clone()).await;
        assert_refused(refused, Reason::ScopeMissing);
        let good = request(vec![mail], &password("ann"));
        let user = frontend
            .users()
            .create_user(good)
            .await
            .expect("registered")
            .into_inner();
        let anonymous = server.anonymous().await;
        let early = anonymous.sign_in("ann@example.org", &password("ann")).await;
        assert_refused(early, Reason::InvalidCredentials);
        let operator = server.operator().await;
        let contact = &user.contacts[0].name;
        assert_refused(frontend.contact_code(contact).await, Reason::ScopeMissing);
        let code = operator.contact_code(contact).await.expect("a code");
        frontend.verify_contact(contact, &code).await.expect("verified");
        anonymous
            .sign_in("Ann@Example.org", &password("ann"))
            .await
            .expect("signed in");
        assert_eq!(
            operator.get_user(&user.name).await.expect("read").primary_email,
            "ann@example.org"
        );
    }

    async fn a_registered_name_is_not_one_of_the_service_s_own(engine: Engine) {
        let server = engine.server().await;
        let frontend = server.frontend().await;
        for username in ["Admin", "root", "adrnin", "support"] {
            let user = pb::User {
                username: username.to_owned(),
                ..Default::default()
            };
            let refused = frontend.create_user(user).await;
            assert_eq!(fields_of(refused), ["user.username"], "{username}");
        }
        let user = pb::User {
            username: "admin".to_owned(),
            ..Default::default()
        };
        server
            .operator()
            .await
            .create_user(user)
            .await
            .expect("operators may");
        let twin = pb::User {
            username: "paypal".to_owned(),
            ..Default::default()
        };
        frontend.create_user(twin).await.expect("free");
        let twin = pb::User {
            username: "paypa1".to_owned(),
            ..Default::default()
        };
        assert_refused(frontend.create_user(twin).await, Reason::AlreadyExists);
    }

    async fn a_contact_is_changed_as_it_is_known_and_once(engine: Engine) {
        let server = engine.server().await;
        let ann = server.signed_in("ann").await;
        let request = pb::CreateContactRequest {
            parent: "users/me".to_owned(),
            contact: Some(email("ann@example.org", &[])),
            validate_only: true,
            ..Default::default()
        };
        ann.actor
            .contacts()
            .create_contact(request.clone())
            .await
            .expect("would do");
        assert!(list(&ann.actor, "users/me", "").await.is_empty());
        let request = pb::CreateContactRequest {
            request_id: uuid::Uuid::from_u128(7).to_string(),
            validate_only: false,
            ..request
        };
        let first = ann
            .actor
            .contacts()
            .create_contact(request.clone())
            .await
            .expect("created")
            .into_inner();
        let again = ann
            .actor
            .contacts()
            .create_contact(request)
            .await
            .expect("the same")
            .into_inner();
        assert_eq!(first, again);
        let labelled = pb::Contact {
            label: "home".to_owned(),
            ..first.clone()
        };
        let labelled = update(&ann.actor, labelled, &["label"]).await.expect("updated");
        let stale = pb::Contact {
            label: "work".to_owned(),
            ..first.clone()
        };
        assert_refused(update(&ann.actor, stale, &["label"]).await, Reason::EtagMismatch);
        assert_eq!(ann.actor.get_contact(&first.name).await.expect("read"), labelled);
        let request = pb::DeleteContactRequest {
            name: first.name.clone(),
            etag: first.etag,
            ..Default::default()
        };
        assert_refused(
            ann.actor.contacts().delete_contact(request).await,
            Reason::EtagMismatch,
        );
        let code = server
            .operator()
            .await
            .contact_code(&first.name)
            .await
            .expect("a code");
        let dry = pb::VerifyContactRequest {
            name: first.name.clone(),
            code: code.clone(),
            validate_only: true,
            ..Default::default()
        };
        ann.actor.contacts().verify_contact(dry).await.expect("would do");
        let request = pb::VerifyContactRequest {
            name: first.name.clone(),
            code,
            request_id: uuid::Uuid::from_u128(8).to_string(),
            ..Default::default()
        };
        let once = ann
            .actor
            .contacts()
            .verify_contact(request.clone())
            .await
            .expect("verified");
        let again = ann
            .actor
            .contacts()
            .verify_contact(request)
            .await
            .expect("the same");
        assert_eq!(once.into_inner(), again.into_inner());
    }

    async fn nobody_changes_the_contacts_of_somebody_more_powerful(engine: Engine) {
        let server = engine.server().await;
        let boss = server.signed_in("boss").await;
        server.grant(boss.name(), "roles/operator").await;
        let boss = server.sign_in("boss").await;
        let mail = verified(&server, &boss, email("boss@example.org", &[Login, Recovery])).await;
        let manager = server
            .system_account(&["roles/user-manager", "scopes/accountd:contacts.return_code"])
            .await;
        let outranked = Reason::TargetOutranksCaller;
        assert_refused(
            manager
                .create_contact(boss.name(), email("m@example.org", &[Recovery]))
                .await,
            outranked,
        );
        assert_refused(delete(&manager, &mail.name).await, outranked);
        let changed = with_value(&mail, email("m@example.org", &[]));
        assert_refused(update(&manager, changed, &["email"]).await, outranked);
        assert_refused(make_primary(&manager, &mail.name).await, outranked);
        assert_refused(manager.contact_code(&mail.name).await, outranked);
        assert_refused(manager.verify_contact(&mail.name, "12345678").await, outranked);
        let somebody = server.user("somebody").await;
        manager
            .create_contact(&somebody.name, email("m@example.org", &[Recovery]))
            .await
            .expect("may");
        // To say that an address is verified takes a scope of its own, and so do programs.
        let asserted = pb::Contact {
            verification: Some(pb::contact::Verification {
                state: verification::State::Verified.into(),
                ..Default::default()
            }),
            ..email("sure@example.org", &[Notify])
        };
        let missing = Reason::ScopeMissing;
        assert_refused(
            manager.create_contact(&somebody.name, asserted.clone()).await,
            missing,
        );
        let sure = ["roles/user-manager", "scopes/accountd:contacts.assert"];
        let sure = server.system_account(&sure).await;
        sure.create_contact(&somebody.name, asserted).await.expect("may");
        let (program, _) = server.create_system_account(&[]).await;
        let address = email("program@example.org", &[Notify]);
        assert_refused(
            manager.create_contact(&program.name, address.clone()).await,
            missing,
        );
        let keeper = ["roles/user-manager", "scopes/accountd:system_accounts.update"];
        let keeper = server.system_account(&keeper).await;
        keeper.create_contact(&program.name, address).await.expect("may");
    }

    async fn nothing_remains_of_somebody_who_is_gone_but_the_wait_for_what_was_theirs(engine: Engine) {
        let server = engine.server().await;
        let ann = server.signed_in("ann").await;
        let mail = verified(&server, &ann, email("ann@example.org", &[Login])).await;
        let operator = server.operator().await;
        let request = pb::DeleteUserRequest {
            name: ann.name().to_owned(),
            ..Default::default()
        };
        operator.users().delete_user(request).await.expect("deleted");
        assert_refused(
            operator
                .create_contact(ann.name(), email("x@example.org", &[]))
                .await,
            Reason::WrongState,
        );
        assert_refused(delete(&operator, &mail.name).await, Reason::WrongState);
        server.advance_s(30 * DAY_S);
        accountd::jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        assert_refused(operator.get_contact(&mail.name).await, Reason::NotFound);
        let frontend = server.frontend().await;
        let twin = pb::User {
            username: "ann".to_owned(),
            ..Default::default()
        };
        assert_refused(frontend.create_user(twin.clone()).await, Reason::AlreadyExists);
        server.advance_s(30 * DAY_S);
        server.frontend().await.create_user(twin).await.expect("free");
    }
}

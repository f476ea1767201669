//! EventService: the log says what happened, once.

use accountd::{
    domain::error::Reason,
    grpc::pb::{self, contact::Purpose},
};

use crate::{
    changes, contacts, elevations, groups,
    harness::{Actor, Engine, Server, assert_refused, grant_request, on_both_engines, password},
    mail_server::MailServer,
    messages, roles, scopes,
};

on_both_engines! {
    async fn a_change_is_written_down_with_who_what_when_and_where(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let request = pb::CreateUserRequest {
            user: Some(pb::User { username: "alice".to_owned(), ..Default::default() }),
            request_id: "018f0000-0000-7000-8000-000000000001".to_owned(),
            ..Default::default()
        };
        let alice = operator.users().create_user(request.clone()).await.expect("created").into_inner();
        operator.users().create_user(request.clone()).await.expect("a retry");
        let events = of_account(&operator, &alice.name).await;
        assert_eq!(events.len(), 1);
        let event = &events[0];
        assert_eq!((&*event.r#type, &*event.rpc), ("user.created", "accountd.v1.UserService/CreateUser"));
        assert_eq!((&event.actor, &event.target), (&server.operator_name(), &alice.name));
        assert!(event.actor_proof.starts_with(&format!("{}/credentials/", event.actor)));
        assert_eq!((&event.request_id, &*event.ip_address), (&request.request_id, "127.0.0.1"));
        assert_eq!((&event.changed_fields, &*event.refusal), (&vec!["username".to_owned()], ""));
        assert_eq!(event.time.map(|time| time.seconds), Some(server.now().seconds()));
    }

    async fn what_did_not_happen_leaves_no_event(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let alice = server.user("alice").await;
        let before = all(&operator, "").await.len();
        let taken = pb::User { username: "alice".to_owned(), ..Default::default() };
        assert_refused(operator.create_user(taken).await, Reason::AlreadyExists);
        let request = pb::ResumeUserRequest { name: alice.name.clone(), ..Default::default() };
        assert_refused(operator.users().resume_user(request).await, Reason::WrongState);
        let request = pb::SuspendUserRequest { name: alice.name, validate_only: true, ..Default::default() };
        operator.users().suspend_user(request).await.expect("valid");
        assert_eq!(all(&operator, "").await.len(), before);
    }

    async fn every_mutation_writes_the_event_its_policy_names(engine: Engine) {
        let (server, mail) = messages::with_mail(engine).await;
        let operator = server.operator().await;
        // Everything that happens in a life, one of each.
        let alice = server.signed_in("alice").await;
        let name = alice.name().to_owned();
        let edit = pb::User { name: name.clone(), display_name: "Alice".to_owned(), ..Default::default() };
        operator.users().update_user(pb::UpdateUserRequest { user: Some(edit), ..Default::default() }).await.expect("updated");
        let tokens = server.anonymous().await.refresh(&alice.tokens.refresh_token).await.expect("refreshed");
        let request = pb::RevokeTokenRequest { token: tokens.access_token, ..Default::default() };
        operator.tokens().revoke_token(request).await.expect("revoked");
        let request = pb::RevokeSessionRequest { name: tokens.session, ..Default::default() };
        operator.sessions().revoke_session(request).await.expect("revoked");
        let request = pb::RevokeSessionsRequest { user: name.clone(), ..Default::default() };
        operator.sessions().revoke_sessions(request).await.expect("revoked");
        let code = crate::credentials::reset_code(&operator, &name).await.expect("a code");
        crate::credentials::redeem(&server.anonymous().await, &code, "an otter in the attic").await.expect("reset");
        let again = server.anonymous().await;
        let again = again.sign_in("alice", "an otter in the attic").await.expect("signed in");
        let again = crate::harness::SignedIn::new(&server.anonymous().await, again);
        let request = pb::ChangePasswordRequest {
            name: name.clone(),
            old_password: "an otter in the attic".to_owned(),
            new_password: password("alice"),
            ..Default::default()
        };
        again.actor.credentials().change_password(request).await.expect("changed");
        let newcomer = operator.create_user(pb::User::default()).await.expect("created").name;
        let hash = crate::credentials::BCRYPT.to_owned();
        let request = pb::ImportPasswordRequest { name: newcomer, password_hash: hash, ..Default::default() };
        operator.credentials().import_password(request).await.expect("imported");
        let (app, _) = crate::factors::enrol(&server, &again).await;
        server.advance_s(30);
        let anonymous = server.anonymous().await;
        let asked = anonymous.sign_in("alice", &password("alice")).await.expect("right");
        let code = app.code(server.now().seconds());
        let code = pb::answer_challenge_request::Answer::TotpCode(code);
        let asked = crate::factors::challenge(asked);
        crate::factors::answer(&anonymous, &asked, code).await.expect("right");
        operator.suspend_user(&name).await.expect("suspended");
        operator.users().resume_user(pb::ResumeUserRequest { name: name.clone(), ..Default::default() }).await.expect("resumed");
        operator.users().delete_user(pb::DeleteUserRequest { name: name.clone(), ..Default::default() }).await.expect("deleted");
        operator.users().undelete_user(pb::UndeleteUserRequest { name: name.clone(), ..Default::default() }).await.expect("undeleted");

        let (robot, _) = server.create_system_account(&[]).await;
        let robot = robot.name;
        let edit = pb::SystemAccount { name: robot.clone(), description: "x".to_owned(), ..Default::default() };
        let mut accounts = operator.system_accounts();
        accounts.update_system_account(pb::UpdateSystemAccountRequest { system_account: Some(edit), ..Default::default() }).await.expect("updated");
        accounts.transfer_system_account(pb::TransferSystemAccountRequest { name: robot.clone(), owner: name.clone(), ..Default::default() }).await.expect("transferred");
        accounts.suspend_system_account(pb::SuspendSystemAccountRequest { name: robot.clone(), ..Default::default() }).await.expect("suspended");
        accounts.resume_system_account(pb::ResumeSystemAccountRequest { name: robot.clone(), ..Default::default() }).await.expect("resumed");
        change_contacts(&operator, &mail, &name).await;
        change_catalogue(&operator).await;
        change_elevations(&server).await;
        let credential = operator.create_secret(&robot).await.expect("created").credential.expect("set");
        let edit = pb::Credential { name: credential.name.clone(), label: "x".to_owned(), ..Default::default() };
        operator.credentials().update_credential(pb::UpdateCredentialRequest { credential: Some(edit), ..Default::default() }).await.expect("updated");
        operator.credentials().rotate_credential(pb::RotateCredentialRequest { name: credential.name.clone(), ..Default::default() }).await.expect("rotated");
        operator.credentials().delete_credential(pb::DeleteCredentialRequest { name: credential.name, ..Default::default() }).await.expect("deleted");
        accounts.delete_system_account(pb::DeleteSystemAccountRequest { name: robot.clone(), ..Default::default() }).await.expect("deleted");
        accounts.undelete_system_account(pb::UndeleteSystemAccountRequest { name: robot, ..Default::default() }).await.expect("undeleted");
        let glass = pb::SystemAccount {
            display_name: "emergencies".to_owned(),
            owner: name.clone(),
            kind: pb::system_account::Kind::BreakGlass.into(),
            ..Default::default()
        };
        let request = pb::CreateSystemAccountRequest { system_account: Some(glass), ..Default::default() };
        let glass = accounts.create_system_account(request).await.expect("created").into_inner().name;
        let boss = server.user("boss").await;
        server.grant(&boss.name, "roles/operator").await;
        let unseal = pb::UnsealSystemAccountRequest { name: glass.clone(), reason: "fire".to_owned(), ..Default::default() };
        let captain = server.user("captain").await;
        server.grant(&captain.name, "roles/operator").await;
        let captain = server.sign_in("captain").await;
        captain.actor.system_accounts().unseal_system_account(unseal.clone()).await.expect("asked");
        server.sign_in("boss").await.actor.system_accounts().unseal_system_account(unseal).await.expect("agreed");
        accounts.seal_system_account(pb::SealSystemAccountRequest { name: glass, ..Default::default() }).await.expect("sealed");
        change_grant(&operator, server.grant(&name, "roles/auditor").await).await;

        let mut keys = operator.keys();
        let key = keys.prepare_signing_key(pb::PrepareSigningKeyRequest::default()).await.expect("prepared").into_inner();
        keys.retire_signing_key(pb::RetireSigningKeyRequest { name: key.name, ..Default::default() }).await.expect("retired");
        let key = keys.prepare_signing_key(pb::PrepareSigningKeyRequest::default()).await.expect("prepared").into_inner();
        server.advance_s(315);
        let operator = server.operator().await;
        let mut keys = operator.keys();
        keys.activate_signing_key(pb::ActivateSigningKeyRequest { name: key.name.clone(), ..Default::default() }).await.expect("activated");
        keys.revoke_signing_key(pb::RevokeSigningKeyRequest { name: key.name, ..Default::default() }).await.expect("revoked");

        let operator = server.operator().await;
        let events = [all(&operator, "").await, change_by_two(engine).await].concat();
        for policy in accountd::domain::access::POLICIES.iter().filter(|policy| !policy.event.is_empty()) {
            let rpc = policy.rpc.trim_start_matches('/');
            let found = events.iter().any(|event| event.r#type == policy.event && event.rpc == rpc);
            assert!(found, "{rpc} has written no {}", policy.event);
        }
        for event in &events {
            let known = accountd::domain::access::POLICIES.iter().any(|policy| policy.event == event.r#type)
                || ["system_account.unseal_requested", "change.proposed"].contains(&&*event.r#type);
            assert!(known, "{} is no policy's event", event.r#type);
        }
    }

    async fn lists_show_what_their_filters_say_newest_first(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let mut names = Vec::new();
        for number in 0..5 {
            server.advance_s(10);
            let user = pb::User { username: format!("u{number}"), ..Default::default() };
            names.push(operator.create_user(user).await.expect("created").name);
        }
        operator.suspend_user(&names[1]).await.expect("suspended");
        let auditor = server.system_account(&["roles/auditor"]).await;
        let targets = async |filter: String| -> Vec<String> {
            let events = all(&auditor, &filter).await;
            events.into_iter().map(|event| event.target).filter(|name| names.contains(name)).collect()
        };
        let mut newest_first = names.clone();
        newest_first.reverse();
        let created = "type = \"user.created\"";
        assert_eq!(targets(created.to_owned()).await, newest_first);
        assert_eq!(targets(format!("account = \"{}\"", names[1])).await, [names[1].clone(), names[1].clone()]);
        assert_eq!(targets(format!("account = \"{}\" AND {created}", names[1])).await, [names[1].clone()]);
        assert_eq!(targets(format!("actor = \"{}\" AND {created}", server.operator_name())).await, newest_first);
        let time = accountd::domain::time::Timestamp::from_seconds(server.now().seconds() - 10);
        assert_eq!(targets(format!("{created} AND time >= {time}")).await, newest_first[..2]);
        assert_eq!(targets(format!("{created} AND time > {time}")).await, newest_first[..1]);
        assert_eq!(targets(format!("{created} AND time < {time}")).await, newest_first[2..]);
        for bad in ["target = x", "type > x", "actor = alice", "time > noon"] {
            let request = pb::ListEventsRequest { filter: bad.to_owned(), ..Default::default() };
            assert_refused(auditor.events().list_events(request).await, Reason::InvalidFilter);
        }
    }

    async fn no_event_holds_what_was_typed(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let edit = pb::User { name: alice.name().to_owned(), display_name: "Very Private".to_owned(), ..Default::default() };
        let request = pb::UpdateUserRequest { user: Some(edit), ..Default::default() };
        alice.actor.users().update_user(request).await.expect("updated");
        let guess = server.anonymous().await.sign_in("somebody-else", "a guess at the password").await;
        assert_refused(guess, Reason::InvalidCredentials);
        let mail = contacts::email("private@example.org", &[Purpose::Login]);
        contacts::verified(&server, &alice, mail).await;
        let log = format!("{:?}", all(&server.operator().await, "").await);
        for private in ["Very Private", "private@", "somebody-else", "a guess", "alice", &*password("alice")] {
            assert!(!log.contains(private), "{private}");
        }
    }
}

/// Makes, changes and removes an entitlement, and what is asked for by it.
async fn change_elevations(server: &Server) {
    let (operator, ann, bob) = elevations::stage(server).await;
    let rule = elevations::entitlement(ann.name(), &[bob.name()]);
    let rule = elevations::entitle(&operator, rule).await.expect("made");
    let edit = pb::Entitlement {
        description: "For the keys.".to_owned(),
        ..rule
    };
    let rule = elevations::update(&operator, edit, &["description"]).await;
    let rule = rule.expect("updated");
    let asked = elevations::ask(&ann.actor, elevations::wish(&rule)).await;
    let denied = elevations::deny(&bob.actor, &asked.expect("asked")).await;
    denied.expect("denied");
    let asked = elevations::ask(&ann.actor, elevations::wish(&rule)).await;
    let begun = elevations::approve(&bob.actor, &asked.expect("asked")).await;
    let ended = elevations::end(&ann.actor, &begun.expect("approved")).await;
    ended.expect("ended");
    let deleted = elevations::delete(&operator, &rule.name).await;
    deleted.expect("deleted");
}

/// The events of asking for what nobody does alone: once it is refused, once it is agreed to.
async fn change_by_two(engine: Engine) -> Vec<pb::Event> {
    let server = changes::server(engine, &[]).await;
    let dan = changes::operator(&server, "dan").await;
    let ed = changes::operator(&server, "ed").await;
    let eve = server.user("eve").await.name;
    let ask = async || {
        let asked = grant_request(&eve, "roles/operator");
        changes::pending(dan.actor.grants().create_grant(asked).await)
    };
    let denied = changes::deny(&ed.actor, &ask().await).await;
    denied.expect("denied");
    let approved = changes::approve(&ed.actor, &ask().await).await;
    approved.expect("approved");
    all(&ed.actor, "").await
}

/// Changes a grant and takes it back.
async fn change_grant(operator: &Actor, grant: pb::Grant) {
    let edit = pb::Grant {
        reason: "an audit".to_owned(),
        ..grant.clone()
    };
    let request = pb::UpdateGrantRequest {
        grant: Some(edit),
        ..Default::default()
    };
    let mut grants = operator.grants();
    let changed = grants.update_grant(request).await;
    let request = pb::DeleteGrantRequest {
        name: changed.expect("updated").into_inner().name,
        ..Default::default()
    };
    grants.delete_grant(request).await.expect("deleted");
}

/// Makes, changes and removes a scope, a role and a group.
async fn change_catalogue(operator: &Actor) {
    let description = |it: &str| format!("To {it}.");
    let scope = "scopes/shop:pack";
    let made = scopes::create(operator, scopes::scope(scope)).await;
    let edit = pb::Scope {
        description: description("pack"),
        ..made.expect("made")
    };
    scopes::update(operator, edit, &["description"])
        .await
        .expect("updated");
    let made = roles::create(operator, roles::role("roles/packer", &[scope])).await;
    let edit = pb::Role {
        description: description("pack"),
        ..made.expect("made")
    };
    roles::update(operator, edit, &["description"])
        .await
        .expect("updated");
    let group = groups::create(operator, "Packers").await;
    let edit = pb::Group {
        name: group.clone(),
        description: description("pack"),
        ..Default::default()
    };
    groups::update(operator, edit, &["description"])
        .await
        .expect("updated");
    let inner = groups::create(operator, "Trainees").await;
    groups::add(operator, &group, &inner).await.expect("added");
    groups::remove(operator, &group, &inner)
        .await
        .expect("removed");
    groups::delete(operator, &group).await.expect("deleted");
    roles::delete(operator, "roles/packer")
        .await
        .expect("deleted");
    scopes::delete(operator, scope).await.expect("deleted");
}

/// Every change of contacts that there is.
async fn change_contacts(operator: &Actor, mail: &MailServer, user: &str) {
    let mut names = Vec::new();
    for address in ["a@example.org", "b@example.org"] {
        let contact = contacts::email(address, &[Purpose::Login]);
        let created = operator.create_contact(user, contact).await;
        let name = created.expect("created").name;
        let code = operator.contact_code(&name).await.expect("a code");
        operator
            .verify_contact(&name, &code)
            .await
            .expect("verified");
        names.push(name);
    }
    let mut contacts = operator.contacts();
    let edit = pb::Contact {
        name: names[0].clone(),
        label: "x".to_owned(),
        ..Default::default()
    };
    let request = pb::UpdateContactRequest {
        contact: Some(edit),
        ..Default::default()
    };
    contacts.update_contact(request).await.expect("updated");
    let request = pb::MakeContactPrimaryRequest {
        name: names[1].clone(),
        ..Default::default()
    };
    contacts.make_contact_primary(request).await.expect("made");
    for name in &names {
        let request = pb::DeleteContactRequest {
            name: name.clone(),
            ..Default::default()
        };
        contacts.delete_contact(request).await.expect("deleted");
    }
    let request = pb::ReleaseIdentifierRequest {
        identifier: "B@example.org".to_owned(),
        ..Default::default()
    };
    operator
        .users()
        .release_identifier(request)
        .await
        .expect("released");
    // Messages go side by side, so those to the other address may come first.
    let (_, needs) = loop {
        let next = mail.next().await;
        if next.to == ["a@example.org"] && next.text().contains("revert-contact#") {
            break next.link();
        }
    };
    let request = pb::RevertContactRequest {
        token: needs["token"].clone(),
        ..Default::default()
    };
    contacts.revert_contact(request).await.expect("reverted");
}

/// Everything a filter shows, page by page.
async fn all(actor: &Actor, filter: &str) -> Vec<pb::Event> {
    let mut events = Vec::new();
    let mut request = pb::ListEventsRequest {
        page_size: 3,
        filter: filter.to_owned(),
        ..Default::default()
    };
    loop {
        let page = actor
            .events()
            .list_events(request.clone())
            .await
            .expect("a page")
            .into_inner();
        events.extend(page.events);
        if page.next_page_token.is_empty() {
            return events;
        }
        request.page_token = page.next_page_token;
    }
}

async fn of_account(actor: &Actor, account: &str) -> Vec<pb::Event> {
    all(actor, &format!("account = \"{account}\"")).await
}

//! SystemAccountService.

use accountd::{domain::error::Reason, grpc::pb, jobs};
use jsonwebtoken::Algorithm;
use pb::system_account::{Kind, State};
use prost_types::FieldMask;
use tonic::{Response, Status};

use crate::{
    assertions::Program,
    harness::{
        Actor, Engine, Server, SignedIn, assert_refused, fields_of, grant_request, on_both_engines,
    },
    scopes,
};

/// Sets what limits an account.
pub async fn limit(
    by: &Actor,
    account: &str,
    scope_ceiling: &[&str],
    audiences: &[&str],
) -> Result<pb::SystemAccount, Status> {
    let limited = pb::SystemAccount {
        name: account.to_owned(),
        scope_ceiling: scope_ceiling.iter().map(ToString::to_string).collect(),
        audiences: audiences.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let paths = ["scope_ceiling", "audiences"].map(str::to_owned).to_vec();
    let request = pb::UpdateSystemAccountRequest {
        system_account: Some(limited),
        update_mask: Some(FieldMask { paths }),
        ..Default::default()
    };
    let limited = by.system_accounts().update_system_account(request).await;
    limited.map(Response::into_inner)
}

on_both_engines! {
    async fn nobody_lets_through_what_they_may_not_grant(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        for name in ["scopes/shop:pack", "scopes/shop:refund"] {
            scopes::create(&operator, scopes::scope(name)).await.expect(name);
        }
        let (robot, _) = server.create_system_account(&[]).await;
        for name in ["scopes/shop:pack", "scopes/shop:refund"] {
            operator.grants().create_grant(grant_request(&robot.name, name)).await.expect("granted");
        }
        let list = pb::ListCredentialsRequest { parent: robot.name.clone(), ..Default::default() };
        let listed = operator.credentials().list_credentials(list).await.expect("a list").into_inner();
        let credential = &listed.credentials[0].name;
        let limit = async |by: &Actor, scopes: &[&str], audiences: &[&str]| limit(by, &robot.name, scopes, audiences).await;
        let limit_credential = async |by: &Actor, scopes: &[&str]| {
            let limited = pb::Credential {
                name: credential.clone(),
                scope_ceiling: scopes.iter().map(ToString::to_string).collect(),
                ..Default::default()
            };
            let request = pb::UpdateCredentialRequest {
                credential: Some(limited),
                update_mask: Some(FieldMask { paths: vec!["scope_ceiling".to_owned()] }),
                ..Default::default()
            };
            by.credentials().update_credential(request).await
        };
        limit(&operator, &["pack"], &["accountd"]).await.expect("limited");
        limit_credential(&operator, &["pack"]).await.expect("limited");
        let manager = ["scopes/accountd:system_accounts.update", "scopes/accountd:credentials.update"];
        let manager = server.system_account(&manager).await;
        for (scopes, audiences) in [(&["pack"][..], &["accountd", "shop"][..]), (&[], &["shop"])] {
            assert_refused(limit(&manager, scopes, audiences).await, Reason::ScopeNotHeld);
        }
        limit(&manager, &["nothing"], &["shop"]).await.expect("lets nothing through");
        for scopes in [&["pack", "refund"][..], &[]] {
            assert_refused(limit_credential(&manager, scopes).await, Reason::ScopeNotHeld);
        }
        limit_credential(&manager, &["nothing"]).await.expect("lets nothing through");
        limit(&operator, &[], &["shop"]).await.expect("may grant it");
        limit_credential(&operator, &[]).await.expect("may grant it");
    }

    async fn no_program_raises_a_ceiling_above_its_own(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        // Nothing is granted to it: what is let through may be granted later.
        let (robot, _) = server.create_system_account(&[]).await;
        limit(&operator, &robot.name, &["users.read"], &[]).await.expect("limited");
        let (low, secret) = server.create_system_account(&["scopes/accountd:system_accounts.update"]).await;
        let low_actor = server.client(&low.uid, &secret).await;
        limit(&operator, &low.name, &["users.read", "users.write", "system_accounts.update"], &[]).await.expect("limited");
        for above in [&["users.read", "keys.write"][..], &[]] {
            assert_refused(limit(&low_actor, &robot.name, above, &[]).await, Reason::ScopeNotHeld);
        }
        limit(&low_actor, &robot.name, &["users.read", "users.write"], &[]).await.expect("within its own");
        limit(&operator, &low.name, &[], &[]).await.expect("without a ceiling");
        limit(&low_actor, &robot.name, &["users.read", "keys.write"], &[]).await.expect("without a ceiling");
        let list = pb::ListCredentialsRequest { parent: low.name, ..Default::default() };
        let listed = operator.credentials().list_credentials(list).await.expect("a list").into_inner();
        let limited = pb::Credential {
            name: listed.credentials[0].name.clone(),
            scope_ceiling: vec!["system_accounts.update".to_owned()],
            ..Default::default()
        };
        let request = pb::UpdateCredentialRequest { credential: Some(limited), ..Default::default() };
        operator.credentials().update_credential(request).await.expect("limited");
        assert_refused(limit(&low_actor, &robot.name, &[], &[]).await, Reason::ScopeNotHeld);
        limit(&low_actor, &robot.name, &["users.read"], &[]).await.expect("less than before");
        // What is above it already may stay.
        limit(&operator, &robot.name, &["keys.write"], &[]).await.expect("limited");
        limit(&low_actor, &robot.name, &["keys.write", "system_accounts.update"], &[]).await.expect("within its own");
    }

    async fn an_account_has_an_owner_who_is_there(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let owner = server.user("holder").await;
        let account = service(&owner.name);
        let created = create(&operator, account.clone()).await.expect("created");
        assert_eq!((created.state(), created.kind(), created.built_in), (State::Active, Kind::Service, false));
        assert_eq!(get(&operator, &created.name).await.expect("there"), created);

        let nobody = "users/018f0000-0000-7000-8000-000000000000";
        assert_refused(create(&operator, service(nobody)).await, Reason::NotFound);
        let empty = pb::SystemAccount::default();
        let expected = ["system_account.kind", "system_account.owner", "system_account.display_name"];
        assert_eq!(fields_of(create(&operator, empty).await), expected);
        let request = pb::DeleteUserRequest { name: owner.name, ..Default::default() };
        operator.users().delete_user(request).await.expect("deleted");
        assert_refused(create(&operator, account).await, Reason::WrongState);

        let heir = server.user("heir").await;
        let transfer = |owner: &str| pb::TransferSystemAccountRequest {
            name: created.name.clone(),
            owner: owner.to_owned(),
            ..Default::default()
        };
        let moved = operator.system_accounts().transfer_system_account(transfer(&heir.name)).await;
        assert_eq!(moved.expect("transferred").into_inner().owner, heir.name);
        let refused = operator.system_accounts().transfer_system_account(transfer(nobody)).await;
        assert_refused(refused, Reason::NotFound);
    }

    async fn limits_are_checked_and_kept_in_canonical_form(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let account = pb::SystemAccount {
            allowed_cidrs: vec!["10.1.2.3/8".to_owned(), "10.0.0.0/8".to_owned()],
            audiences: vec!["billing".to_owned()],
            scope_ceiling: vec!["users.read".to_owned()],
            ..service(server.owner())
        };
        let created = create(&operator, account).await.expect("created");
        assert_eq!(created.allowed_cidrs, ["10.0.0.0/8"]);
        let bad = pb::SystemAccount {
            allowed_cidrs: vec!["everywhere".to_owned()],
            audiences: vec![String::new()],
            scope_ceiling: vec!["two words".to_owned()],
            expire_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            ..service(server.owner())
        };
        let expected = [
            "system_account.scope_ceiling",
            "system_account.audiences",
            "system_account.allowed_cidrs",
            "system_account.expire_time",
        ];
        assert_eq!(fields_of(create(&operator, bad).await), expected);
        let many = pb::SystemAccount {
            audiences: (0..101).map(|number| format!("a{number}")).collect(),
            ..service(server.owner())
        };
        assert_eq!(fields_of(create(&operator, many).await), ["system_account.audiences"]);
    }

    async fn an_update_changes_what_its_mask_names(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let account = create(&operator, service(server.owner())).await.expect("created");
        let edit = pb::SystemAccount {
            name: account.name.clone(),
            description: "Sends invoices.".to_owned(),
            etag: account.etag.clone(),
            ..Default::default()
        };
        let updated = update(&operator, edit.clone(), &["description"]).await.expect("updated");
        assert_eq!((&*updated.description, &updated.display_name), ("Sends invoices.", &account.display_name));
        assert_refused(update(&operator, edit.clone(), &["description"]).await, Reason::EtagMismatch);
        let fresh = pb::SystemAccount { etag: String::new(), ..edit };
        assert_eq!(fields_of(update(&operator, fresh.clone(), &["owner"]).await), ["update_mask"]);
        assert_eq!(fields_of(update(&operator, fresh, &["*"]).await), ["system_account.display_name"]);
        assert_eq!(server.events("system_account.updated").await.len(), 1);
    }

    async fn a_suspended_account_is_out_and_its_old_tokens_stay_dead(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&["roles/auditor"]).await;
        let actor = server.client(&account.uid, &secret).await;
        get(&actor, "systemAccounts/me").await.expect("itself");
        suspend(&operator, &account.name).await.expect("suspended");
        assert_refused(get(&actor, "systemAccounts/me").await, Reason::TokenRevoked);
        assert_out(&server, &account.uid, &secret).await;

        let request = pb::ResumeSystemAccountRequest { name: account.name.clone(), ..Default::default() };
        operator.system_accounts().resume_system_account(request).await.expect("resumed");
        assert_refused(get(&actor, "systemAccounts/me").await, Reason::TokenRevoked);
        let again = server.client(&account.uid, &secret).await;
        get(&again, "systemAccounts/me").await.expect("a token from after the suspension");
    }

    async fn a_token_issued_while_a_suspension_was_on_its_way_stays_dead(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&["roles/auditor"]).await;
        server.advance_s(10);
        let late = server.client(&account.uid, &secret).await;
        // The suspension entered before that, and took effect after it.
        server.advance_s(-10);
        suspend(&operator, &account.name).await.expect("suspended");
        server.advance_s(20);
        let request = pb::ResumeSystemAccountRequest { name: account.name.clone(), ..Default::default() };
        operator.system_accounts().resume_system_account(request).await.expect("resumed");
        assert_refused(get(&late, "systemAccounts/me").await, Reason::TokenRevoked);
        let again = server.client(&account.uid, &secret).await;
        get(&again, "systemAccounts/me").await.expect("a token from after the suspension");
    }

    async fn a_deleted_account_is_out_and_comes_back_with_what_it_had(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&["roles/auditor"]).await;
        let actor = server.client(&account.uid, &secret).await;
        delete(&operator, &account.name).await.expect("deleted");
        assert_refused(get(&actor, "systemAccounts/me").await, Reason::TokenRevoked);
        assert_out(&server, &account.uid, &secret).await;
        assert_refused(delete(&operator, &account.name).await, Reason::WrongState);
        let request = pb::UndeleteSystemAccountRequest { name: account.name.clone(), ..Default::default() };
        operator.system_accounts().undelete_system_account(request).await.expect("undeleted");
        let again = server.client(&account.uid, &secret).await;
        again.events().list_events(pb::ListEventsRequest::default()).await.expect("its role");

        delete(&operator, &account.name).await.expect("deleted");
        server.advance_s(30 * 24 * 3600);
        jobs::sweep(&server.running.app).await.expect("swept");
        let operator = server.operator().await;
        assert_refused(get(&operator, &account.name).await, Reason::NotFound);
        assert_eq!(server.events("system_account.purged").await[0].account, account.name);
    }

    async fn an_account_ends_at_its_expiry(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&["roles/auditor"]).await;
        let expire_time = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        let edit = pb::SystemAccount {
            name: account.name.clone(),
            expire_time: Some(expire_time),
            ..Default::default()
        };
        update(&operator, edit, &[]).await.expect("set");
        let tokens = server.anonymous().await.issue(&account.uid, &secret).await.expect("live");
        assert_eq!(tokens.access_expire_time.expect("a time").seconds, expire_time.seconds);
        let actor = server.with_token(&tokens.access_token).await;
        server.advance_s(60);
        assert_refused(get(&actor, "systemAccounts/me").await, Reason::TokenExpired);
        assert_out(&server, &account.uid, &secret).await;
    }

    async fn an_account_authenticates_from_its_networks_only(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (account, secret) = server.create_system_account(&[]).await;
        let anonymous = server.anonymous().await;
        for (network, is_here) in [("203.0.113.0/24", false), ("127.0.0.1", true)] {
            let edit = pb::SystemAccount {
                name: account.name.clone(),
                allowed_cidrs: vec![network.to_owned()],
                ..Default::default()
            };
            update(&operator, edit, &[]).await.expect("set");
            assert_eq!(anonymous.issue(&account.uid, &secret).await.is_ok(), is_here, "{network}");
        }
    }

    async fn lists_show_what_their_filters_say(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await;
        for number in 0..5 {
            server.advance_s(1);
            let account = pb::SystemAccount {
                display_name: format!("robot {number}"),
                kind: if number == 0 { Kind::Privileged } else { Kind::Service }.into(),
                ..service(&ann.name)
            };
            let account = create(&operator, account).await.expect("created");
            if number == 1 {
                suspend(&operator, &account.name).await.expect("suspended");
            }
            if number == 2 {
                delete(&operator, &account.name).await.expect("deleted");
            }
        }
        let names = async |filter: &str| -> Vec<String> {
            let mut names = Vec::new();
            let mut request = pb::ListSystemAccountsRequest {
                page_size: 2,
                filter: filter.to_owned(),
                ..Default::default()
            };
            loop {
                let page = operator.system_accounts().list_system_accounts(request.clone()).await;
                let page = page.expect("a page").into_inner();
                names.extend(page.system_accounts.into_iter().map(|account| account.display_name));
                if page.next_page_token.is_empty() {
                    return names;
                }
                request.page_token = page.next_page_token;
            }
        };
        let of_ann = |more: &str| format!("owner = \"{}\"{more}", ann.name);
        assert_eq!(names(&of_ann("")).await, ["robot 0", "robot 1", "robot 3", "robot 4"]);
        assert_eq!(names(&of_ann(" AND state = DELETED")).await, ["robot 2"]);
        assert_eq!(names("kind = PRIVILEGED").await, ["robot 0"]);
        assert_eq!(names("state = SUSPENDED AND kind = SERVICE").await, ["robot 1"]);
        assert_eq!(names("").await.len(), 7, "with bootstrap, the operator and a frontend");
    }

    async fn what_accountd_made_for_itself_is_not_for_editing(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let everything = pb::ListSystemAccountsRequest::default();
        let all = operator.system_accounts().list_system_accounts(everything).await;
        let all = all.expect("a list").into_inner().system_accounts;
        let bootstrap = all.iter().find(|account| account.built_in).expect("bootstrap");
        assert_eq!(bootstrap.display_name, "bootstrap");
        let edit = pb::SystemAccount {
            name: bootstrap.name.clone(),
            description: "mine".to_owned(),
            ..Default::default()
        };
        assert_refused(update(&operator, edit, &[]).await, Reason::BuiltIn);
        assert_refused(delete(&operator, &bootstrap.name).await, Reason::BuiltIn);
        suspend(&operator, &bootstrap.name).await.expect("that much is right");
    }

    async fn two_people_open_an_account_for_emergencies(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let anonymous = server.anonymous().await;
        let program = Program::new(&server, Algorithm::ES256, Kind::BreakGlass).await;
        let name = program.account.name.clone();
        server.grant(&name, "scopes/accountd:events.read").await;
        assert!(program.account.seal.clone().expect("it has one").sealed);
        let issue = async |jti: &str| program.issue(&anonymous, &program.claims(&server, jti)).await;
        assert_refused(issue("1").await, Reason::InvalidCredentials);

        assert_refused(unseal(&operator, &name, "I am a program").await, Reason::WrongState);
        let captain = boss(&server, "captain").await;
        let request = pb::UnsealSystemAccountRequest {
            name: name.clone(),
            reason: "the building is on fire".to_owned(),
            request_id: "018f0000-0000-7000-8000-000000000005".to_owned(),
            ..Default::default()
        };
        let mut accounts = captain.actor.system_accounts();
        let dry = pb::UnsealSystemAccountRequest { validate_only: true, request_id: String::new(), ..request.clone() };
        accounts.unseal_system_account(dry).await.expect("valid");
        let asked = accounts.unseal_system_account(request.clone()).await.expect("asked").into_inner();
        let retry = accounts.unseal_system_account(request).await.expect("a retry").into_inner();
        assert_eq!(retry, asked);
        let seal = asked.seal.expect("it has one");
        assert_eq!((seal.sealed, &*seal.requested_by), (true, captain.name()));
        assert_refused(issue("2").await, Reason::InvalidCredentials);
        assert_refused(unseal(&captain.actor, &name, "again").await, Reason::WrongState);
        let boss = boss(&server, "boss").await;
        assert_eq!(fields_of(unseal(&boss.actor, &name, "").await), ["reason"]);
        let stale = pb::UnsealSystemAccountRequest { name: name.clone(), reason: "fire".to_owned(), etag: "x".to_owned(), ..Default::default() };
        let stale = boss.actor.system_accounts().unseal_system_account(stale).await;
        assert_refused(stale, Reason::EtagMismatch);
        let open = unseal(&boss.actor, &name, "it really is").await.expect("agreed");
        let seal = open.seal.expect("it has one");
        let until = seal.unsealed_until_time.expect("not for ever").seconds;
        assert_eq!((seal.sealed, until), (false, server.now().seconds() + 3600));
        assert_refused(unseal(&boss.actor, &name, "more").await, Reason::WrongState);

        let tokens = issue("3").await.expect("open");
        let rescuer = server.with_token(&tokens.access_token).await;
        let read = async || rescuer.events().list_events(pb::ListEventsRequest::default()).await;
        read().await.expect("its scope");
        server.advance_s(3500);
        let tokens = issue("4").await.expect("still open");
        assert_eq!(tokens.access_expire_time.map(|time| time.seconds), Some(until));
        server.advance_s(100);
        assert_refused(issue("5").await, Reason::InvalidCredentials);
        let rescuer = server.with_token(&tokens.access_token).await;
        assert_refused(get(&rescuer, "systemAccounts/me").await, Reason::TokenExpired);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_eq!(server.events("system_account.sealed").await.len(), 1, "by itself");
        let [first] = &server.events("system_account.unseal_requested").await[..] else {
            panic!("one request");
        };
        assert_eq!(first.details["reason"], "the building is on fire");
        assert_eq!(server.events("system_account.unsealed").await[0].details["reason"], "it really is");
    }

    async fn an_account_for_emergencies_is_sealed_at_once(engine: Engine) {
        let server = engine.server().await;
        let anonymous = server.anonymous().await;
        let program = Program::new(&server, Algorithm::ES256, Kind::BreakGlass).await;
        let name = program.account.name.clone();
        let captain = boss(&server, "captain").await;
        boss(&server, "mate").await;
        unseal(&captain.actor, &name, "fire").await.expect("asked");
        // A request does not wait for ever, nor for somebody who may not ask any more.
        server.advance_s(3600);
        let mate = server.sign_in("mate").await;
        let late = unseal(&mate.actor, &name, "fire").await.expect("asked anew");
        assert!(late.seal.expect("it has one").sealed);
        server.operator().await.suspend_user(mate.name()).await.expect("suspended");
        let captain = server.sign_in("captain").await;
        let anew = unseal(&captain.actor, &name, "fire").await.expect("asked anew");
        assert!(anew.seal.expect("it has one").sealed);
        let boss = boss(&server, "boss").await;
        unseal(&boss.actor, &name, "fire").await.expect("agreed");
        // Nor for somebody who has not what the account holds any more.
        let request = pb::SealSystemAccountRequest { name: name.clone(), ..Default::default() };
        captain.actor.system_accounts().seal_system_account(request).await.expect("sealed");
        server.grant(&name, "scopes/accountd:events.read").await;
        let nova = server.user("nova").await.name;
        server.grant(&nova, "scopes/accountd:system_accounts.unseal").await;
        let held = server.grant(&nova, "scopes/accountd:events.read").await.name;
        let nova = server.sign_in("nova").await;
        unseal(&nova.actor, &name, "fire").await.expect("asked");
        let taken = pb::DeleteGrantRequest { name: held, ..Default::default() };
        server.operator().await.grants().delete_grant(taken).await.expect("taken");
        let anew = unseal(&captain.actor, &name, "fire").await.expect("asked anew");
        assert!(anew.seal.expect("it has one").sealed);
        unseal(&boss.actor, &name, "fire").await.expect("agreed");
        server.advance_s(1);
        let tokens = program.issue(&anonymous, &program.claims(&server, "1")).await.expect("open");
        let rescuer = server.with_token(&tokens.access_token).await;
        get(&rescuer, "systemAccounts/me").await.expect("open");
        let request = pb::SealSystemAccountRequest { name, ..Default::default() };
        let dry = pb::SealSystemAccountRequest { validate_only: true, ..request.clone() };
        boss.actor.system_accounts().seal_system_account(dry).await.expect("valid");
        get(&rescuer, "systemAccounts/me").await.expect("still open");
        let stale = pb::SealSystemAccountRequest { etag: "x".to_owned(), ..request.clone() };
        assert_refused(boss.actor.system_accounts().seal_system_account(stale).await, Reason::EtagMismatch);
        let once = pb::SealSystemAccountRequest {
            request_id: "018f0000-0000-7000-8000-000000000007".to_owned(),
            ..request.clone()
        };
        let first = boss.actor.system_accounts().seal_system_account(once.clone()).await.expect("sealed");
        let retry = boss.actor.system_accounts().seal_system_account(once).await.expect("a retry");
        assert_eq!(retry.into_inner(), first.into_inner());
        assert_refused(get(&rescuer, "systemAccounts/me").await, Reason::TokenRevoked);
        let refused = program.issue(&anonymous, &program.claims(&server, "2")).await;
        assert_refused(refused, Reason::InvalidCredentials);
        boss.actor.system_accounts().seal_system_account(request).await.expect("sealed already");
        // A suspension closes it as well.
        let (captain, boss) = (server.sign_in("captain").await, server.sign_in("boss").await);
        unseal(&captain.actor, &program.account.name, "fire").await.expect("asked");
        unseal(&boss.actor, &program.account.name, "fire").await.expect("agreed");
        let operator = server.operator().await;
        suspend(&operator, &program.account.name).await.expect("suspended");
        let resumed = resume(&operator, &program.account.name).await.expect("resumed");
        assert!(resumed.seal.expect("it has one").sealed);
        // Only accounts for emergencies have a seal.
        let service = create(&operator, service(server.owner())).await.expect("created");
        assert_eq!(service.seal, None);
        assert_refused(unseal(&boss.actor, &service.name, "fire").await, Reason::WrongState);
    }

    async fn nobody_keeps_a_program_for_which_nobody_answers(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (gone, heir) = (server.user("gone").await, server.user("heir").await);
        let account = create(&operator, service(&gone.name)).await.expect("created");
        let secret = operator.create_secret(&account.name).await.expect("a secret").secret;
        let delete = pb::DeleteUserRequest { name: gone.name.clone(), ..Default::default() };
        operator.users().delete_user(delete).await.expect("deleted");
        server.advance_s(14 * 24 * 3600 - 1);
        jobs::sweep(&server.running.app).await.expect("swept");
        let robot = server.client(&account.uid, &secret).await;
        server.advance_s(1);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_refused(get(&robot, "systemAccounts/me").await, Reason::TokenRevoked);
        let anonymous = server.anonymous().await;
        assert_refused(anonymous.issue(&account.uid, &secret).await, Reason::InvalidCredentials);
        let operator = server.operator().await;
        let suspended = get(&operator, &account.name).await.expect("there");
        assert_eq!((suspended.state(), &*suspended.state_reason), (State::Suspended, "nobody answers for it any more"));
        let events = server.events("system_account.suspended").await;
        assert_eq!((&*events[0].actor, &*events[0].details["owner"]), ("accountd", &*gone.name));
        // Somebody has to answer for it before it comes back.
        assert_refused(resume(&operator, &account.name).await, Reason::WrongState);
        let transfer = pb::TransferSystemAccountRequest { name: account.name.clone(), owner: heir.name.clone(), ..Default::default() };
        operator.system_accounts().transfer_system_account(transfer).await.expect("transferred");
        resume(&operator, &account.name).await.expect("owned");
        jobs::sweep(&server.running.app).await.expect("swept");
        anonymous.issue(&account.uid, &secret).await.expect("back");
        // Who has expired is gone as well.
        let expire_time = prost_types::Timestamp { seconds: server.now().seconds() + 60, nanos: 0 };
        let edit = pb::User { name: heir.name, expire_time: Some(expire_time), ..Default::default() };
        operator.users().update_user(pb::UpdateUserRequest { user: Some(edit), ..Default::default() }).await.expect("updated");
        server.advance_s(14 * 24 * 3600 + 60);
        jobs::sweep(&server.running.app).await.expect("swept");
        assert_refused(anonymous.issue(&account.uid, &secret).await, Reason::InvalidCredentials);
        let operator = server.operator().await;
        assert_refused(resume(&operator, &account.name).await, Reason::WrongState);
    }
}

fn service(owner: &str) -> pb::SystemAccount {
    pb::SystemAccount {
        display_name: "a service".to_owned(),
        owner: owner.to_owned(),
        kind: Kind::Service.into(),
        ..Default::default()
    }
}

async fn create(actor: &Actor, account: pb::SystemAccount) -> Result<pb::SystemAccount, Status> {
    let request = pb::CreateSystemAccountRequest {
        system_account: Some(account),
        ..Default::default()
    };
    Ok(actor
        .system_accounts()
        .create_system_account(request)
        .await?
        .into_inner())
}

async fn get(actor: &Actor, name: &str) -> Result<pb::SystemAccount, Status> {
    let request = pb::GetSystemAccountRequest {
        name: name.to_owned(),
    };
    Ok(actor
        .system_accounts()
        .get_system_account(request)
        .await?
        .into_inner())
}

async fn update(
    actor: &Actor,
    account: pb::SystemAccount,
    mask: &[&str],
) -> Result<pb::SystemAccount, Status> {
    let paths: Vec<String> = mask.iter().map(ToString::to_string).collect();
    let request = pb::UpdateSystemAccountRequest {
        system_account: Some(account),
        update_mask: (!paths.is_empty()).then_some(FieldMask { paths }),
        ..Default::default()
    };
    Ok(actor
        .system_accounts()
        .update_system_account(request)
        .await?
        .into_inner())
}

async fn suspend(actor: &Actor, name: &str) -> Result<pb::SystemAccount, Status> {
    let request = pb::SuspendSystemAccountRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    Ok(actor
        .system_accounts()
        .suspend_system_account(request)
        .await?
        .into_inner())
}

async fn delete(actor: &Actor, name: &str) -> Result<pb::SystemAccount, Status> {
    let request = pb::DeleteSystemAccountRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    Ok(actor
        .system_accounts()
        .delete_system_account(request)
        .await?
        .into_inner())
}

async fn assert_out(server: &Server, client_id: &str, secret: &str) {
    let refused = server.anonymous().await.issue(client_id, secret).await;
    assert_refused(refused, Reason::InvalidCredentials);
}

async fn unseal(by: &Actor, name: &str, reason: &str) -> Result<pb::SystemAccount, Status> {
    let request = pb::UnsealSystemAccountRequest {
        name: name.to_owned(),
        reason: reason.to_owned(),
        ..Default::default()
    };
    let unsealed = by.system_accounts().unseal_system_account(request).await?;
    Ok(unsealed.into_inner())
}

async fn resume(by: &Actor, name: &str) -> Result<pb::SystemAccount, Status> {
    let request = pb::ResumeSystemAccountRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    let resumed = by.system_accounts().resume_system_account(request).await?;
    Ok(resumed.into_inner())
}

/// A person who may do everything, signed in.
async fn boss(server: &Server, username: &str) -> SignedIn {
    let user = server.user(username).await;
    server.grant(&user.name, "roles/operator").await;
    server.sign_in(username).await
}

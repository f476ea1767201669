//! What calls may cost the database: a read one statement, a mutation one transaction, and both one
//! statement more for who is calling. A call that checks a password has two transactions more: one that
//! charges a guess before the check, one that gives it back after.

use accountd::grpc::pb;
use pb::lookup_user_request::Key;

use crate::{
    credentials::{redeem, reset_code},
    delegation::grant_for,
    groups,
    harness::{Engine, Server, grant_request, on_both_engines},
};

/// Statements and transactions.
pub type Cost = (u64, u64);

/// What a read may cost: the caller's standing, and the answer.
const READ: Cost = (2, 0);

on_both_engines! {
    async fn reads_cost_one_statement_beside_the_callers_standing(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let operator = server.operator().await;
        let (machine, _) = server.create_system_account(&["roles/auditor"]).await;
        let (user, session) = (alice.name().to_owned(), alice.tokens.session.clone());
        let list = pb::ListCredentialsRequest { parent: user.clone(), ..Default::default() };
        let credentials = operator.credentials().list_credentials(list.clone()).await.expect("a list");
        let credential = credentials.into_inner().credentials[0].name.clone();
        let grants = operator.grants().list_grants(pb::ListGrantsRequest::default()).await.expect("a list");
        let grant = grants.into_inner().grants[0].name.clone();

        macro_rules! cost_of {
            ($($call:expr;)*) => {$(
                let cost = server.cost(async || { $call.await.expect("an answer"); }).await;
                assert!(cost <= READ, "{}: {cost:?}", stringify!($call));
            )*};
        }
        cost_of! {
            operator.get_user(&user);
            operator.users().lookup_user(pb::LookupUserRequest { key: Some(Key::Identifier("alice".to_owned())) });
            operator.users().list_users(pb::ListUsersRequest::default());
            operator.users().batch_get_users(pb::BatchGetUsersRequest { names: vec![user.clone()] });
            operator.system_accounts().get_system_account(pb::GetSystemAccountRequest { name: machine.name.clone() });
            operator.system_accounts().list_system_accounts(pb::ListSystemAccountsRequest::default());
            operator.credentials().get_credential(pb::GetCredentialRequest { name: credential.clone() });
            operator.credentials().list_credentials(list.clone());
            operator.sessions().get_session(pb::GetSessionRequest { name: session.clone() });
            operator.sessions().list_sessions(pb::ListSessionsRequest { parent: user.clone(), ..Default::default() });
            operator.grants().get_grant(pb::GetGrantRequest { name: grant.clone() });
            operator.grants().list_grants(pb::ListGrantsRequest::default());
            operator.events().list_events(pb::ListEventsRequest::default());
            operator.keys().list_signing_keys(pb::ListSigningKeysRequest::default());
            operator.introspect(&alice.tokens.access_token);
            operator.introspect(&alice.tokens.refresh_token);
            alice.actor.get_user("users/me");
        }
        let jwks = server.cost(async || { operator.keys().get_jwks(pb::GetJwksRequest {}).await.expect("keys"); });
        assert!(jwks.await.0 <= 1, "from memory");
    }

    async fn who_may_see_some_costs_one_statement_more_for_each_twenty(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let crew = groups::create(&operator, "crew").await;
        let mut names = Vec::new();
        for number in 0..40 {
            let user = pb::User { username: format!("user-{number}"), ..Default::default() };
            let name = operator.create_user(user).await.expect("made").name;
            groups::add(&operator, &crew, &name).await.expect("added");
            names.push(name);
        }
        let (clerk, secret) = server.create_system_account(&[]).await;
        grant_for(&operator, &clerk.name, "scopes/accountd:users.read", &crew).await.expect("granted");
        let clerk = server.client(&clerk.uid, &secret).await;
        let list = server.cost(async || { clerk.users().list_users(pb::ListUsersRequest::default()).await.expect("a list"); });
        assert!(list.await <= READ);
        let get = server.cost(async || { clerk.get_user(&names[0]).await.expect("in reach"); });
        assert!(get.await <= (3, 0), "where the user is");
        let batch = pb::BatchGetUsersRequest { names };
        let batch = server.cost(async || { clerk.users().batch_get_users(batch.clone()).await.expect("all"); });
        assert!(batch.await <= (5, 0), "twice where twenty are, and who they are");
    }

    async fn mutations_cost_one_transaction(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let user = server.user("alice").await.name;
        let (machine, secret) = server.create_system_account(&["roles/auditor"]).await;

        macro_rules! cost_of {
            ($($call:expr;)*) => {$(
                let before = server.spent().1;
                $call.await.expect(stringify!($call));
                assert_eq!(server.spent().1 - before, 1, "{}", stringify!($call));
            )*};
        }
        let named = |name: &str| pb::User { name: name.to_owned(), display_name: "Alice".to_owned(), ..Default::default() };
        cost_of! {
            operator.create_user(pb::User { username: "bob".to_owned(), ..Default::default() });
            operator.users().update_user(pb::UpdateUserRequest { user: Some(named(&user)), ..Default::default() });
            operator.suspend_user(&user);
            operator.users().resume_user(pb::ResumeUserRequest { name: user.clone(), ..Default::default() });
            operator.users().delete_user(pb::DeleteUserRequest { name: user.clone(), ..Default::default() });
            operator.users().undelete_user(pb::UndeleteUserRequest { name: user.clone(), ..Default::default() });
            operator.grants().create_grant(grant_request(&user, "roles/auditor"));
            operator.create_secret(&machine.name);
            operator.sessions().revoke_sessions(pb::RevokeSessionsRequest { user: user.clone(), ..Default::default() });
        }

        // A secret's use is noted once an hour; all other tokens cost no transaction at all.
        let anonymous = server.anonymous().await;
        anonymous.issue(&machine.uid, &secret).await.expect("the first");
        let cost = server.cost(async || { anonymous.issue(&machine.uid, &secret).await.expect("a token"); }).await;
        assert!(cost <= (2, 0), "the secret, and what it may have: {cost:?}");

        let machine = machine.name;
        let account = pb::SystemAccount {
            kind: pb::system_account::Kind::Service.into(),
            display_name: "other".to_owned(),
            owner: server.owner().to_owned(),
            ..Default::default()
        };
        let mut changed = account.clone();
        changed.name = machine.clone();
        let accounts = || operator.system_accounts();
        cost_of! {
            accounts().create_system_account(pb::CreateSystemAccountRequest { system_account: Some(account), ..Default::default() });
            accounts().update_system_account(pb::UpdateSystemAccountRequest { system_account: Some(changed), ..Default::default() });
            accounts().suspend_system_account(pb::SuspendSystemAccountRequest { name: machine.clone(), reason: "x".to_owned(), ..Default::default() });
            accounts().resume_system_account(pb::ResumeSystemAccountRequest { name: machine.clone(), ..Default::default() });
            accounts().transfer_system_account(pb::TransferSystemAccountRequest { name: machine.clone(), owner: user.clone(), ..Default::default() });
            accounts().delete_system_account(pb::DeleteSystemAccountRequest { name: machine.clone(), ..Default::default() });
            accounts().undelete_system_account(pb::UndeleteSystemAccountRequest { name: machine.clone(), ..Default::default() });
        }

        let grants = pb::ListGrantsRequest { filter: format!("principal = \"{user}\""), ..Default::default() };
        let grants = operator.grants().list_grants(grants).await.expect("a list");
        let grant = grants.into_inner().grants.remove(0).name;
        let credentials = pb::ListCredentialsRequest { parent: machine.clone(), ..Default::default() };
        let credentials = operator.credentials().list_credentials(credentials).await.expect("a list").into_inner().credentials;
        let secret_name = credentials[0].name.clone();
        let labelled = pb::Credential { name: secret_name.clone(), label: "old".to_owned(), ..Default::default() };
        let carol = server.signed_in("carol").await;
        let token = carol.tokens.access_token.clone();
        let keys = || operator.keys();
        cost_of! {
            operator.grants().delete_grant(pb::DeleteGrantRequest { name: grant, ..Default::default() });
            operator.credentials().update_credential(pb::UpdateCredentialRequest { credential: Some(labelled), ..Default::default() });
            operator.credentials().rotate_credential(pb::RotateCredentialRequest { name: secret_name.clone(), ..Default::default() });
            operator.credentials().delete_credential(pb::DeleteCredentialRequest { name: secret_name, ..Default::default() });
            operator.tokens().revoke_token(pb::RevokeTokenRequest { token, ..Default::default() });
            operator.sessions().revoke_session(pb::RevokeSessionRequest { name: carol.tokens.session.clone(), ..Default::default() });
            keys().prepare_signing_key(pb::PrepareSigningKeyRequest::default());
        }
        let prepared = async |name: &str| {
            let request = pb::PrepareSigningKeyRequest { algorithm: name.to_owned(), ..Default::default() };
            keys().prepare_signing_key(request).await.expect("prepared").into_inner().name
        };
        let (withdrawn, lost) = (prepared("ES256").await, prepared("EdDSA").await);
        cost_of! {
            keys().retire_signing_key(pb::RetireSigningKeyRequest { name: withdrawn, ..Default::default() });
            keys().revoke_signing_key(pb::RevokeSigningKeyRequest { name: lost, reason: "lost".to_owned(), ..Default::default() });
        }
        let next = prepared("ES256").await;
        server.advance_s(315);
        let operator = server.operator().await;
        cost_of! {
            operator.keys().activate_signing_key(pb::ActivateSigningKeyRequest { name: next, ..Default::default() });
        }
    }

    async fn a_password_costs_two_transactions_more(engine: Engine) {
        let server = engine.server_with(|config| config.hashing.memory_kib = 64).await;
        let alice = server.signed_in("alice").await;
        let (old, new) = (crate::harness::password("alice"), "an otter in the attic");
        let anonymous = server.anonymous().await;
        let (_, transactions) = server.cost_once(async || { anonymous.sign_in("alice", &old).await.expect("signed in"); }).await;
        assert_eq!(transactions, 3, "charged, given back, signed in");
        let change = pb::ChangePasswordRequest {
            name: "users/me".to_owned(),
            old_password: old,
            new_password: new.to_owned(),
            ..Default::default()
        };
        let change = async || { alice.actor.credentials().change_password(change.clone()).await.expect("changed"); };
        assert_eq!(server.cost_once(change).await.1, 3, "charged, given back, changed");

        let operator = server.operator().await;
        let before = server.spent().1;
        let code = reset_code(&operator, alice.name()).await.expect("a code");
        let between = server.spent().1;
        redeem(&anonymous, &code, "a badger in the basement").await.expect("reset");
        assert_eq!((between - before, server.spent().1 - between), (1, 1), "a code is not guessed");
    }

    async fn a_refresh_costs_one_transaction(engine: Engine) {
        let server = engine.server().await;
        let alice = server.signed_in("alice").await;
        let anonymous = server.anonymous().await;
        let token = tokio::sync::Mutex::new(alice.tokens.refresh_token.clone());
        let cost = server.cost(async || {
            let mut token = token.lock().await;
            *token = anonymous.refresh(&token).await.expect("refreshed").refresh_token;
        });
        let (statements, transactions) = cost.await;
        assert_eq!(transactions, 1);
        assert!(statements <= 4, "session, rotation, event, grants: {statements}");
    }
}

impl Server {
    /// What a call costs that can be repeated: the least of a few, since accountd's own work costs too.
    async fn cost(&self, call: impl AsyncFn()) -> Cost {
        let mut least = self.cost_once(&call).await;
        for _ in 0..4 {
            least = least.min(self.cost_once(&call).await);
        }
        least
    }

    async fn cost_once(&self, call: impl AsyncFn()) -> Cost {
        let before = self.spent();
        call().await;
        let after = self.spent();
        (after.0 - before.0, after.1 - before.1)
    }

    /// Statements and transactions since the start.
    pub fn spent(&self) -> Cost {
        let metrics = self.running.app.metrics.encode().expect("metrics");
        let value = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            line.expect(name).trim().parse().expect("a number")
        };
        (
            value("accountd_statements_total"),
            value("accountd_transactions_total"),
        )
    }
}

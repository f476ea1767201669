//! ScopeService: what downstream systems permit, who may grant it, and whose tokens have it.

use accountd::{domain::error::Reason, grpc::pb};
use pb::scope_refusal::Reason as Why;
use prost_types::FieldMask;
use tonic::Status;

use crate::{
    factors,
    forgeries::claims,
    harness::{
        Actor, Engine, Server, assert_refused, fields_of, grant_request, on_both_engines, password,
    },
    roles,
};

pub fn scope(name: &str) -> pb::Scope {
    pb::Scope {
        name: name.to_owned(),
        ..Default::default()
    }
}

pub async fn create(by: &Actor, scope: pb::Scope) -> Result<pb::Scope, Status> {
    let request = pb::CreateScopeRequest {
        scope: Some(scope),
        ..Default::default()
    };
    Ok(by.scopes().create_scope(request).await?.into_inner())
}

pub async fn update(by: &Actor, scope: pb::Scope, paths: &[&str]) -> Result<pb::Scope, Status> {
    let request = pb::UpdateScopeRequest {
        scope: Some(scope),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    };
    Ok(by.scopes().update_scope(request).await?.into_inner())
}

pub async fn delete(by: &Actor, name: &str) -> Result<(), Status> {
    let request = pb::DeleteScopeRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    by.scopes().delete_scope(request).await.map(|_| ())
}

/// All that a list has, in pages of a size.
async fn list(by: &Actor, filter: &str, page_size: i32) -> Vec<pb::Scope> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListScopesRequest {
            page_size,
            page_token,
            filter: filter.to_owned(),
        };
        let page = by.scopes().list_scopes(request).await;
        let page = page.expect(filter).into_inner();
        assert!(page.scopes.len() <= usize::try_from(page_size).expect("a size"));
        all.extend(page.scopes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// A token of a person for an audience.
pub async fn sign_in(
    server: &Server,
    username: &str,
    audience: &str,
    scopes: &[&str],
) -> Result<pb::TokenSet, Status> {
    let request = pb::CreateSessionRequest {
        identifier: username.to_owned(),
        password: password(username),
        audience: audience.to_owned(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let anonymous = server.anonymous().await;
    let answer = anonymous
        .sessions()
        .create_session(request)
        .await?
        .into_inner();
    match answer.result {
        Some(pb::sign_in_response::Result::Tokens(tokens)) => Ok(tokens),
        _ => panic!("no tokens"),
    }
}

pub fn refusals(tokens: &pb::TokenSet) -> Vec<(&str, Why)> {
    let refusals = tokens.refusals.iter();
    refusals.map(|it| (&*it.scope, it.reason())).collect()
}

on_both_engines! {
    async fn the_catalogue_is_kept_and_read(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await;
        let full = pb::Scope {
            description: "Sends money back.".to_owned(),
            sensitive: true,
            grantable_by: vec!["roles/operator".to_owned(), ann.name.clone()],
            ..scope("scopes/shop:refund")
        };
        let made = create(&operator, full.clone()).await.expect("made");
        assert_eq!((&*made.audience, &*made.scope, made.built_in), ("shop", "refund", false));
        assert_eq!((&made.description, made.sensitive, &made.grantable_by), (&full.description, true, &full.grantable_by));
        assert_refused(create(&operator, scope("scopes/shop:refund")).await, Reason::AlreadyExists);
        let names = ["scopes/bank:pay", "scopes/https%3A%2F%2Fshop.example:read", "scopes/shop:read:orders"];
        for name in names {
            create(&operator, scope(name)).await.expect(name);
        }
        let get = async |name: &str| {
            let request = pb::GetScopeRequest { name: name.to_owned() };
            operator.scopes().get_scope(request).await.map(tonic::Response::into_inner)
        };
        assert_eq!(get("scopes/shop:refund").await.expect("read"), made);
        let own = get("scopes/accountd:users.suspend").await.expect("built in");
        assert!(own.built_in && own.description.contains("UserService/SuspendUser"));
        assert_refused(get("scopes/shop:nothing").await, Reason::NotFound);
        assert_refused(get("scopes/accountd:nothing").await, Reason::NotFound);
        for size in [1, 7, 50, 1000] {
            let all = list(&operator, "", size).await;
            let is_own = all.iter().take_while(|it| it.built_in).count();
            assert!(is_own > 30 && all[..is_own].is_sorted_by_key(|it| it.name.clone()), "{size}");
            let rest: Vec<&str> = all[is_own..].iter().map(|it| &*it.name).collect();
            assert_eq!(rest, [names[0], names[1], names[2], "scopes/shop:refund"], "{size}");
        }
        assert_eq!(list(&operator, "audience = \"shop\"", 1).await.len(), 2);
        assert_eq!(list(&operator, "audience = \"https://shop.example\"", 1).await.len(), 1);
        let own = list(&operator, "audience = \"accountd\"", 1000).await;
        assert!(own.len() > 30 && own.iter().all(|it| it.built_in));

        let changed = pb::Scope { description: "Refunds.".to_owned(), ..made.clone() };
        let changed = update(&operator, changed, &["description", "sensitive", "grantable_by"]).await.expect("changed");
        assert_eq!((&*changed.description, &changed.grantable_by), ("Refunds.", &made.grantable_by));
        assert_refused(update(&operator, made.clone(), &["sensitive"]).await, Reason::EtagMismatch);
        let bare = update(&operator, scope("scopes/shop:refund"), &["*"]).await.expect("cleared");
        assert_eq!((&*bare.description, bare.sensitive, bare.grantable_by.len()), ("", false, 0));
        delete(&operator, "scopes/shop:refund").await.expect("deleted");
        assert_refused(delete(&operator, "scopes/shop:refund").await, Reason::NotFound);
        assert_eq!(server.events("scope.updated").await.len(), 2);
        assert_eq!(server.events("scope.deleted").await.len(), 1);
    }

    async fn what_is_wrong_with_a_scope_is_named(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        for name in ["", "shop:refund", "scopes/shop", "scopes/shop:a b", "scopes/:refund", "scopes/shop:%41"] {
            assert_eq!(fields_of(create(&operator, scope(name)).await), ["scope.name"], "{name}");
        }
        let bad = pb::Scope {
            description: "x".repeat(1001),
            grantable_by: vec!["groups/x".to_owned()],
            ..scope("scopes/shop:refund")
        };
        assert_eq!(fields_of(create(&operator, bad).await), ["scope.description", "scope.grantable_by"]);
        let unknown = pb::Scope { grantable_by: vec!["roles/emperor".to_owned()], ..scope("scopes/shop:refund") };
        assert_refused(create(&operator, unknown).await, Reason::NotFound);
        let own = scope("scopes/accountd:users.read");
        assert_refused(create(&operator, own.clone()).await, Reason::BuiltIn);
        assert_refused(update(&operator, own.clone(), &["sensitive"]).await, Reason::BuiltIn);
        assert_refused(delete(&operator, &own.name).await, Reason::BuiltIn);
    }

    async fn a_scope_that_is_in_use_stays(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await;
        create(&operator, scope("scopes/shop:refund")).await.expect("made");
        // One of the same name for somebody else is another.
        create(&operator, scope("scopes/bank:refund")).await.expect("made");
        let granted = operator.grants().create_grant(grant_request(&ann.name, "scopes/shop:refund")).await;
        let granted = granted.expect("granted").into_inner();
        assert_refused(delete(&operator, "scopes/shop:refund").await, Reason::InUse);
        delete(&operator, "scopes/bank:refund").await.expect("not in use");
        let request = pb::DeleteGrantRequest { name: granted.name, ..Default::default() };
        operator.grants().delete_grant(request).await.expect("taken back");
        delete(&operator, "scopes/shop:refund").await.expect("deleted");
    }

    async fn an_audience_gets_what_was_granted_for_it(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await;
        for name in ["scopes/shop:pack", "scopes/shop:refund", "scopes/bank:refund"] {
            create(&operator, scope(name)).await.expect(name);
        }
        for permission in ["scopes/shop:pack", "scopes/bank:refund", "scopes/accountd:users.read"] {
            operator.grants().create_grant(grant_request(&ann.name, permission)).await.expect(permission);
        }
        let shop = sign_in(&server, "ann", "shop", &[]).await.expect("signed in");
        assert_eq!((&*shop.scopes, shop.refusals.len()), (&["pack".to_owned()][..], 0));
        assert_eq!(claims(&shop.access_token)["scope"], "pack");
        let asked = sign_in(&server, "ann", "shop", &["refund", "pack", "users.read"]).await.expect("signed in");
        assert_eq!(asked.refused_scopes, ["refund", "users.read"]);
        assert_eq!(refusals(&asked), [("refund", Why::NotGranted), ("users.read", Why::NotGranted)]);
        let nowhere = sign_in(&server, "ann", "nowhere", &[]).await.expect("signed in");
        assert!(nowhere.scopes.is_empty());
        let own = sign_in(&server, "ann", "", &[]).await.expect("signed in");
        assert_eq!(own.scopes, ["users.read"]);

        // Programs as well, below their ceilings.
        let (robot, secret) = server.create_system_account(&["scopes/shop:pack", "scopes/shop:refund"]).await;
        let limited = pb::UpdateSystemAccountRequest {
            system_account: Some(pb::SystemAccount {
                name: robot.name.clone(),
                audiences: vec!["shop".to_owned()],
                scope_ceiling: vec!["refund".to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        };
        operator.system_accounts().update_system_account(limited).await.expect("limited");
        let issue = pb::IssueTokenRequest {
            client_id: robot.uid.clone(),
            client_secret: secret,
            audience: "shop".to_owned(),
            scopes: vec!["pack".to_owned(), "refund".to_owned()],
            ..Default::default()
        };
        let tokens = server.anonymous().await.tokens().issue_token(issue).await.expect("a token").into_inner();
        assert_eq!(tokens.scopes, ["refund"]);
        assert_eq!(refusals(&tokens), [("pack", Why::AccountCeiling)]);
    }

    async fn what_is_sensitive_is_earned(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let sensitive = pb::Scope { sensitive: true, ..scope("scopes/shop:refund") };
        create(&operator, sensitive).await.expect("made");
        create(&operator, scope("scopes/shop:pack")).await.expect("made");
        let ann = server.signed_in("ann").await;
        for permission in ["scopes/shop:refund", "scopes/shop:pack"] {
            operator.grants().create_grant(grant_request(ann.name(), permission)).await.expect(permission);
        }
        let plain = sign_in(&server, "ann", "shop", &[]).await.expect("signed in");
        assert_eq!((&*plain.scopes, refusals(&plain)), (&["pack".to_owned()][..], vec![("refund", Why::NeedsSecondFactor)]));
        let (app, _) = factors::enrol(&server, &ann).await;
        let strong = factors::enter(&server, "ann", &app, 30).await;
        let refresh = async |token: &str| {
            let request = pb::RefreshSessionRequest {
                refresh_token: token.to_owned(),
                audience: "shop".to_owned(),
                ..Default::default()
            };
            server.anonymous().await.sessions().refresh_session(request).await.expect("refreshed").into_inner()
        };
        let fresh = refresh(&strong.tokens.refresh_token).await;
        assert_eq!((&*fresh.scopes, fresh.refusals.len()), (&["pack".to_owned(), "refund".to_owned()][..], 0));
        server.advance_s(901);
        let stale = refresh(&fresh.refresh_token).await;
        assert_eq!((&*stale.scopes, refusals(&stale)), (&["pack".to_owned()][..], vec![("refund", Why::NeedsFreshSignIn)]));

        let (robot, secret) = server.create_system_account(&["scopes/shop:refund"]).await;
        let account = pb::SystemAccount { name: robot.name, audiences: vec!["shop".to_owned()], ..Default::default() };
        let request = pb::UpdateSystemAccountRequest { system_account: Some(account), ..Default::default() };
        server.operator().await.system_accounts().update_system_account(request).await.expect("updated");
        let issue = pb::IssueTokenRequest {
            client_id: robot.uid,
            client_secret: secret,
            audience: "shop".to_owned(),
            ..Default::default()
        };
        let tokens = server.anonymous().await.tokens().issue_token(issue).await.expect("a token").into_inner();
        assert_eq!((tokens.scopes.len(), refusals(&tokens)), (0, vec![("refund", Why::NeedsOwnKey)]));
    }

    async fn the_catalogue_says_who_may_grant(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await;
        let granter = server.system_account(&["scopes/accountd:grants.write"]).await;
        let (owner, secret) = server.create_system_account(&["scopes/accountd:grants.write"]).await;
        let owner_actor = server.client(&owner.uid, &secret).await;
        let maintainer = ["scopes/accountd:grants.write", "scopes/accountd:access.write"];
        let maintainer = server.system_account(&maintainer).await;
        create(&operator, scope("scopes/shop:pack")).await.expect("made");
        let named = pb::Scope { grantable_by: vec![owner.name.clone()], ..scope("scopes/shop:refund") };
        create(&operator, named).await.expect("made");
        let grant = async |by: &Actor, permission: &str| by.grants().create_grant(grant_request(&ann.name, permission)).await;
        for (by, permission, may) in [
            (&granter, "scopes/shop:pack", false),
            (&owner_actor, "scopes/shop:pack", false),
            (&maintainer, "scopes/shop:pack", true),
            (&granter, "scopes/shop:refund", false),
            (&owner_actor, "scopes/shop:refund", true),
            (&maintainer, "scopes/shop:refund", false),
        ] {
            match grant(by, permission).await {
                Ok(_) => assert!(may, "{permission}"),
                refused => {
                    assert!(!may, "{permission}");
                    assert_refused(refused, Reason::ScopeNotHeld);
                }
            }
        }
        // Who holds it may hand it on, for as long as they hold it.
        let at = |seconds: i64| Some(prost_types::Timestamp { seconds: server.now().seconds() + seconds, nanos: 0 });
        let (holder, secret) = server.create_system_account(&["scopes/accountd:grants.write"]).await;
        let mut lent = grant_request(&holder.name, "scopes/shop:pack");
        lent.grant.as_mut().expect("set").expire_time = at(600);
        maintainer.grants().create_grant(lent).await.expect("granted");
        let limited = holder.name.clone();
        let holder = server.client(&holder.uid, &secret).await;
        // What could never be in a token of its own is not for it to hand on.
        assert_refused(grant(&holder, "scopes/shop:pack").await, Reason::ScopeNotHeld);
        let account = pb::SystemAccount {
            name: limited,
            audiences: vec!["accountd".to_owned(), "shop".to_owned()],
            ..Default::default()
        };
        let request = pb::UpdateSystemAccountRequest { system_account: Some(account), ..Default::default() };
        operator.system_accounts().update_system_account(request).await.expect("updated");
        assert_eq!(fields_of(grant(&holder, "scopes/shop:pack").await), ["grant.expire_time"]);
        let mut shorter = grant_request(&ann.name, "scopes/shop:pack");
        shorter.grant.as_mut().expect("set").expire_time = at(600);
        holder.grants().create_grant(shorter).await.expect("no longer than its own");
    }

    async fn a_token_that_would_not_fit_says_why(engine: Engine) {
        let server = engine.server_with(|config| config.tokens.max_bytes = 2_000).await;
        let operator = server.operator().await;
        let ann = server.user("ann").await;
        let longest = format!("scopes/shop:longest{}", "x".repeat(110));
        create(&operator, scope(&longest)).await.expect("made");
        operator.grants().create_grant(grant_request(&ann.name, &longest)).await.expect("granted");
        for number in 0..16 {
            let name = format!("scopes/shop:{number}{}", "x".repeat(100));
            create(&operator, scope(&name)).await.expect("made");
            operator.grants().create_grant(grant_request(&ann.name, &name)).await.expect("granted");
        }
        let of_role = ["a", "b"].map(|letter| format!("scopes/shop:{}", letter.repeat(100)));
        for name in &of_role {
            create(&operator, scope(name)).await.expect("made");
        }
        let packer = roles::role("roles/packer", &of_role.each_ref().map(String::as_str));
        roles::create(&operator, packer).await.expect("made");
        operator.grants().create_grant(grant_request(&ann.name, "roles/packer")).await.expect("granted");
        let refused = sign_in(&server, "ann", "shop", &[]).await;
        let text = refused.as_ref().err().map(|status| status.message().to_owned()).unwrap_or_default();
        let largest = text.find("; roles/packer has 202 bytes").zip(text.find("; scopes/shop:longest"));
        assert!(largest.is_some_and(|(first, second)| first < second), "{text}");
        assert_refused(refused, Reason::TokenTooLarge);
        let request = pb::ListSessionsRequest { parent: ann.name.clone(), ..Default::default() };
        let sessions = operator.sessions().list_sessions(request).await.expect("a list").into_inner();
        assert!(sessions.sessions.is_empty(), "nothing has begun");
        let one = format!("3{}", "x".repeat(100));
        let tokens = sign_in(&server, "ann", "shop", &[&one]).await.expect("fewer");
        assert_eq!(tokens.scopes, [one]);
        // Nor has a refresh token been used that gets nothing for it.
        for _ in 0..2 {
            let request = pb::RefreshSessionRequest {
                refresh_token: tokens.refresh_token.clone(),
                audience: "shop".to_owned(),
                ..Default::default()
            };
            let refused = server.anonymous().await.sessions().refresh_session(request).await;
            assert_refused(refused, Reason::TokenTooLarge);
            server.advance_s(60);
        }
        server.anonymous().await.refresh(&tokens.refresh_token).await.expect("still good");
    }
}

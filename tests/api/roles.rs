//! RoleService: what a role comes to reaches all who hold it, and nobody's role grows by somebody weaker.

use accountd::{domain::error::Reason, grpc::pb};
use prost_types::FieldMask;
use tonic::Status;

use crate::{
    credentials::{redeem, reset_code},
    groups,
    harness::{Actor, Engine, assert_refused, fields_of, grant_request, on_both_engines},
    scopes::{self, scope, sign_in},
};

pub fn role(name: &str, scopes: &[&str]) -> pb::Role {
    pb::Role {
        name: name.to_owned(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

pub async fn create(by: &Actor, role: pb::Role) -> Result<pb::Role, Status> {
    let request = pb::CreateRoleRequest {
        role: Some(role),
        ..Default::default()
    };
    Ok(by.roles().create_role(request).await?.into_inner())
}

pub async fn update(by: &Actor, role: pb::Role, paths: &[&str]) -> Result<pb::Role, Status> {
    let request = pb::UpdateRoleRequest {
        role: Some(role),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    };
    Ok(by.roles().update_role(request).await?.into_inner())
}

pub async fn delete(by: &Actor, name: &str) -> Result<(), Status> {
    let request = pb::DeleteRoleRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    by.roles().delete_role(request).await.map(|_| ())
}

/// The names that a list has, in pages of a size.
async fn list(by: &Actor, filter: &str, page_size: i32) -> Vec<String> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListRolesRequest {
            page_size,
            page_token,
            filter: filter.to_owned(),
        };
        let page = by.roles().list_roles(request).await;
        let page = page.expect(filter).into_inner();
        all.extend(page.roles.into_iter().map(|role| role.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

on_both_engines! {
    async fn roles_are_kept_and_read(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        for name in ["scopes/shop:pack", "scopes/shop:ship"] {
            scopes::create(&operator, scope(name)).await.expect(name);
        }
        let packer = pb::Role {
            display_name: "Packer".to_owned(),
            description: "Packs and ships.".to_owned(),
            ..role("roles/packer", &["scopes/shop:ship", "scopes/shop:pack", "scopes/accountd:users.read"])
        };
        let made = create(&operator, packer.clone()).await.expect("made");
        assert_eq!(made.scopes, ["scopes/accountd:users.read", "scopes/shop:pack", "scopes/shop:ship"]);
        assert_eq!((&made.display_name, &made.description, made.built_in), (&packer.display_name, &packer.description, false));
        assert_refused(create(&operator, packer).await, Reason::AlreadyExists);
        create(&operator, role("roles/a-role", &[])).await.expect("made");
        let get = async |name: &str| {
            let request = pb::GetRoleRequest { name: name.to_owned() };
            operator.roles().get_role(request).await.map(tonic::Response::into_inner)
        };
        assert_eq!(get("roles/packer").await.expect("read"), made);
        let auditor = get("roles/auditor").await.expect("built in");
        assert!(auditor.built_in && auditor.scopes.contains(&"scopes/accountd:users.read".to_owned()));
        assert_refused(get("roles/emperor").await, Reason::NotFound);
        for size in [1, 3, 50] {
            let all = list(&operator, "", size).await;
            assert_eq!(all.len(), 7);
            assert_eq!(all[5..], ["roles/a-role", "roles/packer"], "{size}");
            assert_eq!(list(&operator, "scope = \"scopes/shop:pack\"", size).await, ["roles/packer"]);
            let readers = list(&operator, "scope = \"scopes/accountd:users.read\"", size).await;
            assert_eq!(readers, ["roles/operator", "roles/user-manager", "roles/auditor", "roles/packer"], "{size}");
        }
        let smaller = pb::Role { scopes: vec!["scopes/shop:pack".to_owned()], ..made.clone() };
        let smaller = update(&operator, smaller, &["scopes"]).await.expect("changed");
        assert_eq!((smaller.scopes.len(), &smaller.display_name), (1, &made.display_name));
        assert_refused(update(&operator, made, &["display_name"]).await, Reason::EtagMismatch);
        delete(&operator, "roles/packer").await.expect("deleted");
        assert_refused(delete(&operator, "roles/packer").await, Reason::NotFound);
        assert_eq!(server.events("role.created").await.len(), 2);
        assert_eq!(server.events("role.deleted").await.len(), 1);
    }

    async fn what_is_wrong_with_a_role_is_named(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        for name in ["", "packer", "roles/", "roles/Packer", "roles/1st", "roles/a/b"] {
            assert_eq!(fields_of(create(&operator, role(name, &[])).await), ["role.name"], "{name}");
        }
        let bad = pb::Role { display_name: "x".repeat(201), ..role("roles/x", &["users.read"]) };
        assert_eq!(fields_of(create(&operator, bad).await), ["role.display_name", "role.scopes"]);
        for unknown in ["scopes/shop:pack", "scopes/accountd:everything"] {
            assert_refused(create(&operator, role("roles/x", &[unknown])).await, Reason::NotFound);
        }
        assert_refused(create(&operator, role("roles/auditor", &[])).await, Reason::AlreadyExists);
        assert_refused(update(&operator, role("roles/auditor", &[]), &["scopes"]).await, Reason::BuiltIn);
        assert_refused(delete(&operator, "roles/auditor").await, Reason::BuiltIn);
    }

    async fn a_change_of_a_role_reaches_its_holders_with_the_next_token(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await;
        for name in ["scopes/shop:pack", "scopes/shop:ship"] {
            scopes::create(&operator, scope(name)).await.expect(name);
        }
        create(&operator, role("roles/packer", &["scopes/shop:pack", "scopes/accountd:users.read"])).await.expect("made");
        let granted = operator.grants().create_grant(grant_request(&ann.name, "roles/packer")).await.expect("granted");
        let shop = async || sign_in(&server, "ann", "shop", &[]).await.expect("signed in").scopes;
        assert_eq!(shop().await, ["pack"]);
        assert_eq!(sign_in(&server, "ann", "", &[]).await.expect("signed in").scopes, ["users.read"]);
        update(&operator, role("roles/packer", &["scopes/shop:pack", "scopes/shop:ship"]), &["scopes"]).await.expect("changed");
        assert_eq!(shop().await, ["pack", "ship"]);
        assert!(sign_in(&server, "ann", "", &[]).await.expect("signed in").scopes.is_empty());
        assert_refused(delete(&operator, "roles/packer").await, Reason::InUse);
        let request = pb::DeleteScopeRequest { name: "scopes/shop:ship".to_owned(), ..Default::default() };
        assert_refused(operator.scopes().delete_scope(request).await, Reason::InUse);
        let request = pb::DeleteGrantRequest { name: granted.into_inner().name, ..Default::default() };
        operator.grants().delete_grant(request).await.expect("taken back");
        assert!(shop().await.is_empty());
        delete(&operator, "roles/packer").await.expect("not in use");
    }

    async fn a_role_that_may_grant_stays(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        create(&operator, role("roles/shop-owner", &[])).await.expect("made");
        let refund = pb::Scope { grantable_by: vec!["roles/shop-owner".to_owned()], ..scope("scopes/shop:refund") };
        scopes::create(&operator, refund).await.expect("made");
        assert_refused(delete(&operator, "roles/shop-owner").await, Reason::InUse);
        let (owner, secret) = server.create_system_account(&["scopes/accountd:grants.write"]).await;
        let ann = server.user("ann").await;
        let actor = server.client(&owner.uid, &secret).await;
        let grant = async || actor.grants().create_grant(grant_request(&ann.name, "scopes/shop:refund")).await;
        assert_refused(grant().await, Reason::ScopeNotHeld);
        operator.grants().create_grant(grant_request(&owner.name, "roles/shop-owner")).await.expect("granted");
        grant().await.expect("by the role");
        // A group that holds nothing names its members all the same.
        let crew = groups::create(&operator, "Crew").await;
        let give = pb::Scope { grantable_by: vec![crew.clone()], ..scope("scopes/shop:give") };
        scopes::create(&operator, give).await.expect("made");
        let give = async || actor.grants().create_grant(grant_request(&ann.name, "scopes/shop:give")).await;
        assert_refused(give().await, Reason::ScopeNotHeld);
        groups::add(&operator, &crew, &owner.name).await.expect("added");
        give().await.expect("by the group");
        assert_refused(groups::delete(&operator, &crew).await, Reason::InUse);
    }

    async fn nobody_puts_into_a_role_what_they_may_not_grant(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let (weak, secret) = server.create_system_account(&["scopes/accountd:access.write", "scopes/accountd:users.read"]).await;
        let actor = server.client(&weak.uid, &secret).await;
        create(&operator, role("roles/helper", &["scopes/accountd:users.read"])).await.expect("made");
        operator.grants().create_grant(grant_request(&weak.name, "roles/helper")).await.expect("granted");
        // Into a role of their own, to make it greater.
        let greater = role("roles/helper", &["scopes/accountd:users.read", "scopes/accountd:grants.write"]);
        assert_refused(update(&actor, greater.clone(), &["scopes"]).await, Reason::ScopeNotHeld);
        assert_refused(create(&actor, role("roles/mine", &["scopes/accountd:grants.write"])).await, Reason::ScopeNotHeld);
        create(&actor, role("roles/mine", &["scopes/accountd:users.read"])).await.expect("what it holds");
        // Nor out of one.
        update(&operator, greater, &["scopes"]).await.expect("changed");
        assert_refused(update(&actor, role("roles/helper", &["scopes/accountd:users.read"]), &["scopes"]).await, Reason::ScopeNotHeld);
        // What is held for a while is not for a role, which has no end.
        let (brief, secret) = server.create_system_account(&["scopes/accountd:access.write"]).await;
        let mut lent = grant_request(&brief.name, "scopes/accountd:keys.read");
        let end = server.now().seconds() + 600;
        lent.grant.as_mut().expect("set").expire_time = Some(prost_types::Timestamp { seconds: end, nanos: 0 });
        operator.grants().create_grant(lent).await.expect("granted");
        let brief = server.client(&brief.uid, &secret).await;
        let refused = create(&brief, role("roles/brief", &["scopes/accountd:keys.read"])).await;
        assert_eq!(fields_of(refused), ["role.scopes"]);
    }

    async fn a_code_for_a_lesser_account_opens_no_greater_one(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await;
        create(&operator, role("roles/helper", &[])).await.expect("made");
        operator.grants().create_grant(grant_request(&ann.name, "roles/helper")).await.expect("granted");
        let frontend = server.frontend().await;
        let code = reset_code(&frontend, &ann.name).await.expect("made for somebody without power");
        update(&operator, role("roles/helper", &["scopes/accountd:grants.write"]), &["scopes"]).await.expect("changed");
        assert_refused(redeem(&frontend, &code, "four calm walruses").await, Reason::InvalidCode);
        assert_refused(reset_code(&frontend, &ann.name).await, Reason::TargetOutranksCaller);
    }
}

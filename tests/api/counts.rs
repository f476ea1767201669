//! How many there may be of what says who may have what.

use accountd::{domain::error::Reason, grpc::pb};

use crate::{
    elevations, groups,
    harness::{Engine, Server, assert_refused, fields_of, grant_request, on_both_engines},
    other::Other,
    roles, scopes,
};

/// Copies the row of a table that meets a condition so many times, with other values in the columns of `fresh`.
async fn multiply(server: &Server, table: &str, row: &str, times: i64, fresh: &[(&str, &str)]) {
    let mut other = Other::new(server).await;
    let uuid = other.random_uuid();
    let columns = other.columns(table).await;
    let values = columns.iter().map(|column| {
        let fresh = fresh.iter().find(|(name, _)| name == column);
        fresh.map_or_else(
            || format!("t.{column}"),
            |(_, value)| value.replace("{uuid}", uuid),
        )
    });
    let (names, values) = (columns.join(", "), values.collect::<Vec<_>>().join(", "));
    let sql = format!(
        "INSERT INTO {table} ({names})
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {times})
         SELECT {values} FROM n CROSS JOIN {table} t WHERE t.{row}"
    );
    other.run(&sql).await;
}

on_both_engines! {
    async fn of_nothing_there_is_more_than_its_limit(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;

        let mut request = grant_request(&ann, "roles/auditor");
        "one of many".clone_into(&mut request.grant.as_mut().expect("set").reason);
        let grant = operator.grants().create_grant(request.clone()).await.expect("the first").into_inner();
        multiply(&server, "grants", "reason = 'one of many'", 998, &[("id", "{uuid}")]).await;
        operator.grants().create_grant(request.clone()).await.expect("the thousandth");
        assert_refused(operator.grants().create_grant(request.clone()).await, Reason::LimitReached);
        let delete = pb::DeleteGrantRequest { name: grant.name, ..Default::default() };
        operator.grants().delete_grant(delete).await.expect("one less");
        operator.grants().create_grant(request).await.expect("one more");

        let crew = groups::create(&operator, "one of many").await;
        multiply(&server, "groups", "display_name = 'one of many'", 199, &[("id", "{uuid}")]).await;
        let bob = server.user("bob").await.name;
        groups::add(&operator, &crew, &bob).await.expect("the first");
        let copied = "INSERT INTO group_members (member_id, member_kind, group_id, added_by, create_time)
            SELECT m.member_id, m.member_kind, g.id, m.added_by, m.create_time
            FROM group_members m CROSS JOIN groups g
            WHERE m.added_by <> '' AND g.display_name = 'one of many' AND g.id <> m.group_id";
        Other::new(&server).await.run(copied).await;
        let another = groups::create(&operator, "another").await;
        assert_refused(groups::add(&operator, &another, &bob).await, Reason::LimitReached);
        groups::remove(&operator, &crew, &bob).await.expect("one less");
        groups::add(&operator, &another, &bob).await.expect("one more");
        groups::add(&operator, &another, &bob).await.expect("a membership of theirs");

        let sql = [("id", "{uuid}"), ("display_name", "'of no consequence'")];
        multiply(&server, "groups", "display_name = 'another'", 100_000 - 202, &sql).await;
        groups::create(&operator, "the last").await;
        let request = pb::CreateGroupRequest::default();
        assert_refused(operator.groups().create_group(request).await, Reason::LimitReached);

        roles::create(&operator, roles::role("roles/r0", &[])).await.expect("the first");
        multiply(&server, "roles", "id = 'r0'", 998, &[("id", "'r' || i")]).await;
        roles::create(&operator, roles::role("roles/last", &[])).await.expect("the thousandth");
        assert_refused(roles::create(&operator, roles::role("roles/more", &[])).await, Reason::LimitReached);
        let many: Vec<String> = (0..501).map(|number| format!("scopes/shop:{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let outcome = roles::create(&operator, roles::role("roles/more", &many)).await;
        assert_eq!(fields_of(outcome), ["role.scopes"]);

        let rule = elevations::entitlement(&ann, &[&bob]);
        let rule = pb::Entitlement { role: "roles/last".to_owned(), description: "one of many".to_owned(), ..rule };
        elevations::entitle(&operator, rule.clone()).await.expect("the first");
        multiply(&server, "entitlements", "description = 'one of many'", 9_998, &[("id", "{uuid}")]).await;
        elevations::entitle(&operator, rule.clone()).await.expect("the last");
        assert_refused(elevations::entitle(&operator, rule.clone()).await, Reason::LimitReached);
        let mut agreed = vec![bob.clone(), ann.clone()];
        agreed.extend((0..19).map(|number| format!("users/0190f0c0-0000-7000-8000-0000000000{number:02}")));
        let rule = pb::Entitlement { approvers: agreed, ..rule };
        assert_eq!(fields_of(elevations::entitle(&operator, rule).await), ["entitlement.approvers"]);

        scopes::create(&operator, scopes::scope("scopes/shop:s0")).await.expect("the first");
        multiply(&server, "scopes", "scope = 's0'", 9_998, &[("scope", "'s' || i")]).await;
        scopes::create(&operator, scopes::scope("scopes/shop:last")).await.expect("the last");
        let outcome = scopes::create(&operator, scopes::scope("scopes/shop:more")).await;
        assert_refused(outcome, Reason::LimitReached);
    }
}

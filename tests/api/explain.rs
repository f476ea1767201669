//! CheckAccess, ExplainAccess and ListEffectiveScopes: each answer beside what a token really has.

use accountd::{domain::error::Reason, grpc::pb};
use pb::{access_path::State, scope_refusal::Reason as Why};
use prost_types::Timestamp;
use tonic::Status;

use crate::{
    groups,
    harness::{Actor, Engine, Server, assert_refused, fields_of, grant_request, on_both_engines},
    roles,
    scopes::{self, scope, sign_in},
};

pub async fn check(
    by: &Actor,
    principal: &str,
    audience: &str,
    scopes: &[&str],
    proof: &str,
) -> Result<Vec<(String, Why)>, Status> {
    let request = pb::CheckAccessRequest {
        principal: principal.to_owned(),
        audience: audience.to_owned(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
        proof: proof.to_owned(),
    };
    let answer = by.grants().check_access(request).await?.into_inner();
    let shown = answer.decisions.into_iter().map(|it| {
        assert_eq!(it.allowed, it.refusal() == Why::Unspecified);
        (it.scope.clone(), it.refusal())
    });
    Ok(shown.collect())
}

async fn explain(
    by: &Actor,
    principal: &str,
    scope: &str,
    proof: &str,
) -> Result<pb::ExplainAccessResponse, Status> {
    let request = pb::ExplainAccessRequest {
        principal: principal.to_owned(),
        scope: scope.to_owned(),
        proof: proof.to_owned(),
        ..Default::default()
    };
    Ok(by.grants().explain_access(request).await?.into_inner())
}

/// The scopes that a list has, in pages of two, with how many grants are behind each.
async fn effective(by: &Actor, parent: &str, filter: &str) -> Vec<(String, usize)> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListEffectiveScopesRequest {
            parent: parent.to_owned(),
            page_size: 2,
            page_token,
            filter: filter.to_owned(),
        };
        let page = by.grants().list_effective_scopes(request).await;
        let page = page.expect(filter).into_inner();
        let scopes = page.effective_scopes.into_iter();
        all.extend(scopes.map(|it| (it.scope, it.grants.len())));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

fn until(
    mut request: pb::CreateGrantRequest,
    start: Option<i64>,
    end: Option<i64>,
) -> pb::CreateGrantRequest {
    let time = |seconds| Timestamp { seconds, nanos: 0 };
    let grant = request.grant.as_mut().expect("set");
    (grant.start_time, grant.expire_time) = (start.map(time), end.map(time));
    request
}

/// A token of all that a program has for an audience.
async fn ask(
    server: &Server,
    client_id: &str,
    client_secret: &str,
    audience: &str,
) -> Result<pb::TokenSet, Status> {
    let request = pb::IssueTokenRequest {
        client_id: client_id.to_owned(),
        client_secret: client_secret.to_owned(),
        audience: audience.to_owned(),
        ..Default::default()
    };
    let tokens = server
        .anonymous()
        .await
        .tokens()
        .issue_token(request)
        .await?;
    Ok(tokens.into_inner())
}

on_both_engines! {
    async fn what_a_person_is_said_to_have_is_what_a_token_has(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.user("ann").await.name;
        let all = ["direct", "by-role", "by-group", "later", "over", "next-week", "secret", "never"];
        for name in all {
            let secret = pb::Scope { sensitive: name == "secret", ..scope(&format!("scopes/shop:{name}")) };
            scopes::create(&operator, secret).await.expect(name);
        }
        let crew = groups::create(&operator, "Crew").await;
        let fleet = groups::create(&operator, "Fleet").await;
        let reserve = groups::create(&operator, "Reserve").await;
        groups::add(&operator, &fleet, &crew).await.expect("added");
        let now = server.now().seconds();
        groups::add_for(&operator, &crew, &ann, (None, Some(now + 1_000))).await.expect("added");
        groups::add_for(&operator, &reserve, &ann, (Some(now + 9_000), None)).await.expect("added");
        let made = roles::create(&operator, roles::role("roles/sailor", &["scopes/shop:by-role", "scopes/shop:direct"])).await;
        made.expect("made");
        let give = async |request: pb::CreateGrantRequest| {
            operator.grants().create_grant(request).await.expect("granted").into_inner().name
        };
        let direct = give(grant_request(&ann, "scopes/shop:direct")).await;
        let role = give(grant_request(&fleet, "roles/sailor")).await;
        let group = give(until(grant_request(&crew, "scopes/shop:by-group"), None, Some(now + 500))).await;
        let later = give(until(grant_request(&ann, "scopes/shop:later"), Some(now + 600), None)).await;
        let over = give(until(grant_request(&ann, "scopes/shop:over"), None, Some(now + 1))).await;
        let week = give(grant_request(&reserve, "scopes/shop:next-week")).await;
        give(grant_request(&ann, "scopes/shop:secret")).await;
        server.advance_s(1);
        let signed_in = sign_in(&server, "ann", "shop", &all).await.expect("signed in");
        let expected = [
            ("direct", Why::Unspecified, vec![(&direct, "scopes/shop:direct", State::InEffect, vec![], None), (&role, "roles/sailor", State::InEffect, vec![&crew, &fleet], Some(now + 1_000))]),
            ("by-role", Why::Unspecified, vec![(&role, "roles/sailor", State::InEffect, vec![&crew, &fleet], Some(now + 1_000))]),
            ("by-group", Why::Unspecified, vec![(&group, "scopes/shop:by-group", State::InEffect, vec![&crew], Some(now + 500))]),
            ("later", Why::NotGranted, vec![(&later, "scopes/shop:later", State::GrantNotStarted, vec![], None)]),
            ("over", Why::NotGranted, vec![(&over, "scopes/shop:over", State::GrantEnded, vec![], None)]),
            ("next-week", Why::NotGranted, vec![(&week, "scopes/shop:next-week", State::MembershipNotInEffect, vec![&reserve], None)]),
            ("never", Why::NotGranted, vec![]),
        ];
        for (name, why, paths) in expected {
            let explained = explain(&operator, &ann, &format!("scopes/shop:{name}"), &signed_in.session).await.expect(name);
            let decision = explained.decision.clone().expect(name);
            assert_eq!((decision.allowed, decision.refusal()), (why == Why::Unspecified, why), "{name}");
            assert_eq!(signed_in.scopes.contains(&name.to_owned()), decision.allowed, "{name}");
            let refused = signed_in.refusals.iter().find(|it| it.scope == name);
            assert_eq!(refused.map_or(Why::Unspecified, pb::ScopeRefusal::reason), why, "{name}");
            let found: Vec<_> = explained.paths.iter().map(|path| (
                &path.grant, &*path.permission, path.state(), path.groups.iter().collect(), path.expire_time.map(|time| time.seconds),
            )).collect();
            assert_eq!(found, paths, "{name}");
            let last = paths.first().and_then(|(_, _, _, _, end)| *end);
            assert_eq!(explained.expire_time.map(|time| time.seconds), last, "{name}");
        }
        // The first sign-in showed one factor; with the strongest there could be it would be given.
        let secret = async |proof: &str| explain(&operator, &ann, "scopes/shop:secret", proof).await.expect("explained");
        let by_session = secret(&signed_in.session).await;
        assert_eq!(by_session.decision.expect("set").refusal(), Why::NeedsSecondFactor);
        assert!(by_session.sensitive && secret("").await.decision.expect("set").allowed);
        let answered = check(&operator, &ann, "shop", &all, &signed_in.session).await.expect("checked");
        for (name, why) in answered {
            let refused = signed_in.refusals.iter().find(|it| it.scope == name);
            assert_eq!(refused.map_or(Why::Unspecified, pb::ScopeRefusal::reason), why, "{name}");
        }
        // What the list has is what is granted.
        let listed = effective(&operator, &ann, "audience = \"shop\"").await;
        let names = [("by-group", 1), ("by-role", 1), ("direct", 2), ("secret", 1)];
        assert_eq!(listed, names.map(|(name, grants)| (format!("scopes/shop:{name}"), grants)));
        assert_eq!(effective(&operator, &fleet, "").await.len(), 2);

        // Of a group: what all in it have by it, whoever they are.
        let of_crew = check(&operator, &crew, "shop", &["by-role", "by-group", "later"], "").await.expect("checked");
        assert_eq!(of_crew.into_iter().map(|(_, why)| why).collect::<Vec<_>>(), [Why::Unspecified, Why::Unspecified, Why::NotGranted]);
        let explained = explain(&operator, &crew, "scopes/shop:by-role", "").await.expect("explained");
        assert_eq!((&explained.paths[0].grant, &explained.paths[0].groups), (&role, &vec![fleet.clone()]));
        let refused = check(&operator, &crew, "shop", &["by-role"], &signed_in.session).await;
        assert_eq!(fields_of(refused), ["proof"]);

        let request = pb::RevokeSessionRequest { name: signed_in.session.clone(), ..Default::default() };
        operator.sessions().revoke_session(request).await.expect("revoked");
        let answered = check(&operator, &ann, "shop", &["direct", "never"], &signed_in.session).await.expect("checked");
        assert_eq!(answered.into_iter().map(|(_, why)| why).collect::<Vec<_>>(), [Why::ProofEnded, Why::NotGranted]);
        operator.suspend_user(&ann).await.expect("suspended");
        let answered = check(&operator, &ann, "shop", &["direct"], "").await.expect("checked");
        assert_eq!(answered, [("direct".to_owned(), Why::AccountState)]);
        assert_refused(sign_in(&server, "ann", "shop", &[]).await, Reason::InvalidCredentials);
    }

    async fn what_a_program_is_said_to_have_is_what_a_token_has(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let all = ["in-both", "not-in-account", "not-in-credential", "secret", "never"];
        for name in all {
            let secret = pb::Scope { sensitive: name == "secret", ..scope(&format!("scopes/shop:{name}")) };
            scopes::create(&operator, secret).await.expect(name);
        }
        let (robot, secret) = server.create_system_account(&[]).await;
        for name in &all[..4] {
            let request = grant_request(&robot.name, &format!("scopes/shop:{name}"));
            operator.grants().create_grant(request).await.expect("granted");
        }
        let ceiling = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let edit = pb::SystemAccount {
            name: robot.name.clone(),
            scope_ceiling: ceiling(&["in-both", "not-in-credential", "secret"]),
            audiences: vec!["shop".to_owned()],
            ..Default::default()
        };
        let request = pb::UpdateSystemAccountRequest { system_account: Some(edit), ..Default::default() };
        operator.system_accounts().update_system_account(request).await.expect("limited");
        let list = pb::ListCredentialsRequest { parent: robot.name.clone(), ..Default::default() };
        let listed = operator.credentials().list_credentials(list).await.expect("a list").into_inner();
        let credential = listed.credentials[0].name.clone();
        let edit = pb::Credential { name: credential.clone(), scope_ceiling: ceiling(&["in-both", "not-in-account", "secret"]), ..Default::default() };
        let request = pb::UpdateCredentialRequest { credential: Some(edit), ..Default::default() };
        operator.credentials().update_credential(request).await.expect("limited");
        let issue = pb::IssueTokenRequest {
            client_id: robot.uid.clone(),
            client_secret: secret.clone(),
            audience: "shop".to_owned(),
            scopes: all.map(str::to_owned).to_vec(),
            ..Default::default()
        };
        let tokens = server.anonymous().await.tokens().issue_token(issue).await.expect("a token").into_inner();
        let expected = [Why::Unspecified, Why::AccountCeiling, Why::CredentialCeiling, Why::NeedsOwnKey, Why::NotGranted];
        let answered = check(&operator, &robot.name, "shop", &all, &credential).await.expect("checked");
        assert_eq!(answered, all.map(str::to_owned).into_iter().zip(expected).collect::<Vec<_>>());
        assert_eq!(tokens.scopes, ["in-both"]);
        for (name, why) in answered {
            let refused = tokens.refusals.iter().find(|it| it.scope == name);
            assert_eq!(refused.map_or(Why::Unspecified, pb::ScopeRefusal::reason), why, "{name}");
            let explained = explain(&operator, &robot.name, &format!("scopes/shop:{name}"), &credential).await;
            let decision = explained.expect(&name).decision.expect("set");
            assert_eq!((decision.allowed, decision.refusal()), (why == Why::Unspecified, why), "{name}");
        }
        // Without saying by what, only the account limits it.
        let answered = check(&operator, &robot.name, "shop", &all, "").await.expect("checked");
        let whys = [Why::Unspecified, Why::AccountCeiling, Why::Unspecified, Why::Unspecified, Why::NotGranted];
        assert_eq!(answered.into_iter().map(|(_, why)| why).collect::<Vec<_>>(), whys);
        let elsewhere = check(&operator, &robot.name, "", &["users.read"], "").await.expect("checked");
        assert_eq!(elsewhere, [("users.read".to_owned(), Why::NotGranted)]);
        server.grant(&robot.name, "roles/auditor").await;
        let elsewhere = check(&operator, &robot.name, "", &["users.read"], "").await.expect("checked");
        assert_eq!(elsewhere, [("users.read".to_owned(), Why::Audience)]);
        let why = async |scope: &str, proof: &str| {
            let explained = explain(&operator, &robot.name, scope, proof).await.expect(scope);
            explained.decision.expect("set").refusal()
        };
        assert_eq!(why("scopes/accountd:users.read", "").await, Why::Audience);
        assert_refused(ask(&server, &robot.uid, &secret, "").await, Reason::InvalidField);
        let in_both = "scopes/shop:in-both";
        assert_eq!(why(in_both, &credential).await, Why::Unspecified);
        let suspend = pb::SuspendSystemAccountRequest { name: robot.name.clone(), ..Default::default() };
        operator.system_accounts().suspend_system_account(suspend).await.expect("suspended");
        assert_eq!(why(in_both, &credential).await, Why::AccountState);
        assert_refused(ask(&server, &robot.uid, &secret, "shop").await, Reason::InvalidCredentials);
        let resume = pb::ResumeSystemAccountRequest { name: robot.name.clone(), ..Default::default() };
        operator.system_accounts().resume_system_account(resume).await.expect("resumed");
        server.advance_s(1);
        assert_eq!(ask(&server, &robot.uid, &secret, "shop").await.expect("a token").scopes, ["in-both"]);
        let ending = pb::Credential {
            name: credential.clone(),
            expire_time: Some(Timestamp { seconds: server.now().seconds() + 5, nanos: 0 }),
            ..Default::default()
        };
        let request = pb::UpdateCredentialRequest { credential: Some(ending), ..Default::default() };
        operator.credentials().update_credential(request).await.expect("for less long");
        server.advance_s(5);
        assert_eq!(why(in_both, &credential).await, Why::ProofEnded);
        assert_refused(ask(&server, &robot.uid, &secret, "shop").await, Reason::InvalidCredentials);
    }

    async fn what_is_wrong_with_a_question_is_named(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let ann = server.signed_in("ann").await;
        let bob = server.signed_in("bob").await;
        let crew = groups::create(&operator, "Crew").await;
        let (me, session) = (ann.name().to_owned(), &*ann.tokens.session);
        assert_eq!(fields_of(check(&operator, "ann", "a b", &[], "").await), ["principal", "audience", "scopes"]);
        let many: Vec<String> = (0..1001).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(fields_of(check(&operator, &me, "", &many, "").await), ["scopes"]);
        assert_eq!(check(&operator, &me, "", &many[..1000], "").await.expect("as many").len(), 1000);
        for (principal, proof) in [(&*me, &*bob.tokens.session), (&me, "x"), (&crew, session), (bob.name(), session)] {
            assert_eq!(fields_of(check(&operator, principal, "", &["x"], proof).await), ["proof"], "{proof}");
        }
        let nobody = "users/018f0000-0000-7000-8000-000000000000";
        assert_refused(check(&operator, nobody, "", &["x"], "").await, Reason::NotFound);
        let gone = format!("{me}/sessions/018f0000-0000-7000-8000-000000000000");
        assert_refused(check(&operator, &me, "", &["x"], &gone).await, Reason::NotFound);
        assert_eq!(fields_of(explain(&operator, "ann", "users.read", "").await), ["principal", "scope"]);
        assert_refused(explain(&operator, &me, "scopes/shop:nothing", "").await, Reason::NotFound);
        assert_refused(explain(&operator, nobody, "scopes/accountd:users.read", "").await, Reason::NotFound);
        // Whoever it is may see what they have themselves.
        server.grant(&me, "scopes/accountd:users.read").await;
        assert_eq!(effective(&ann.actor, "users/me", "").await, [("scopes/accountd:users.read".to_owned(), 1)]);
        let request = pb::ListEffectiveScopesRequest { parent: me, ..Default::default() };
        assert_refused(bob.actor.grants().list_effective_scopes(request).await, Reason::ScopeMissing);
    }
}

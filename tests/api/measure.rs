//! The tools that measure: they work, and what they say is true.

use std::{fs, time::Duration};

use accountd::grpc::pb;
use serde_json::Value;

use crate::{
    harness::{Engine, on_both_engines},
    process::Installation,
};

on_both_engines! {
    async fn made_up_users_are_like_any_others(engine: Engine) {
        let installation = Installation::new(engine).await;
        let (status, text, errors) = installation.run(&["admin", "fill", "--users", "2500"]);
        assert!(status.success(), "{errors}");
        assert!(text.starts_with("2500 users in "), "{text}");
        let (status, _, errors) = installation.run(&["admin", "fill", "--users", "1"]);
        assert!(!status.success() && errors.contains("--add"), "{errors}");
        // A second run adds, when that is meant.
        assert!(installation.run(&["admin", "fill", "--users", "1", "--add"]).0.success());

        let process = installation.serve(&[]);
        let operator = installation.bootstrap(&process).await;
        let mut users: Vec<pb::User> = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = pb::ListUsersRequest { page_size: 1000, page_token, ..Default::default() };
            let page = operator.users().list_users(request).await.expect("a page").into_inner();
            users.extend(page.users);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(users.len(), 2501);
        let somebody = &users[1234];
        assert_eq!(somebody.display_name, format!("{} {}", somebody.given_name, somebody.family_name));
        let key = pb::lookup_user_request::Key::Identifier(somebody.username.to_uppercase());
        let found = operator.users().lookup_user(pb::LookupUserRequest { key: Some(key) }).await;
        assert_eq!(found.expect("found").into_inner().name, somebody.name);
        let request = pb::ListCredentialsRequest { parent: somebody.name.clone(), ..Default::default() };
        let credentials = operator.credentials().list_credentials(request).await.expect("a list");
        assert_eq!(credentials.into_inner().credentials.len(), 1, "a password nobody knows");
        let request = pb::ListEventsRequest { filter: "type = \"user.filled\"".to_owned(), ..Default::default() };
        let events = operator.events().list_events(request).await.expect("events").into_inner().events;
        assert_eq!(events.len(), 4, "one for each transaction");
    }

    async fn every_operation_can_be_measured(engine: Engine) {
        let installation = Installation::new(engine).await;
        let process = installation.serve(&[]);
        let (url, ops) = (format!("http://{}", process.address), format!("http://{}", process.ops_address));
        let arguments = [
            "bench", "--url", &url, "--ops-url", &ops, "--seconds", "1", "--in-flight", "2", "--load", "0.2",
            "--connections", "2", "--json", "figures.json",
        ];
        let mut bench = tokio::process::Command::from(installation.command(&arguments));
        let output = tokio::time::timeout(Duration::from_mins(5), bench.output()).await;
        let output = output.expect("ends").expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let figures = fs::read_to_string(installation.folder.path().join("figures.json")).expect("a file");
        let figures: Value = serde_json::from_str(&figures).expect("JSON");
        let rows = figures["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 11);
        for row in rows {
            let number = |name: &str| row[name].as_f64().expect(name);
            assert!(number("capacity_per_s") > 0.0 && number("server_us") > 0.0, "{row}");
            // On a machine that is busy with other things sign-ins may be too many, and nothing else.
            let is_expected = |name: &str| name == "OK" || (name == "OVERLOADED" && row["operation"] == "sign-in");
            for outcomes in [&row["failed"], &row["outcomes"]] {
                let outcomes = outcomes.as_object().expect("outcomes");
                assert!(outcomes.keys().all(|name| is_expected(name)), "{row}");
            }
            assert!(row["outcomes"]["OK"]["count"].as_u64() > Some(0), "{row}");
        }
        // What the bench counted is what the server counted, but for what was made beforehand.
        let created = process.metric("accountd_rpcs_total{rpc=\"accountd.v1.TokenService/IntrospectToken\",code=\"OK\"}");
        let introspect = rows.iter().find(|row| row["operation"] == "introspect-token").expect("a row");
        let counted = introspect["outcomes"]["OK"]["count"].as_f64().expect("a count");
        assert!(created.await > counted, "with the busy part and what warmed up");
    }
}

#[tokio::test]
async fn what_is_measured_again_does_not_meet_what_was_made_before() {
    let installation = Installation::new(Engine::Sqlite).await;
    let process = installation.serve(&[]);
    let (url, ops) = (
        format!("http://{}", process.address),
        format!("http://{}", process.ops_address),
    );
    let arguments = [
        "bench",
        "sign-in",
        "issue-token",
        "create-user",
        "--url",
        &url,
        "--ops-url",
        &ops,
        "--seconds",
        "1",
        "--in-flight",
        "2",
        "--load",
        "0.2",
        "--repeat",
        "2",
        "--json",
        "figures.json",
    ];
    let (status, _, errors) = installation.run(&arguments);
    assert!(status.success(), "{errors}");
    let figures = fs::read_to_string(installation.folder.path().join("figures.json"));
    let figures: Value = serde_json::from_str(&figures.expect("a file")).expect("JSON");
    let rows = figures["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3);
    for row in rows {
        let failed = row["failed"].as_object().expect("outcomes");
        assert!(!failed.contains_key("ALREADY_EXISTS"), "{row}");
        assert!(row["outcomes"]["OK"]["count"].as_u64() > Some(0), "{row}");
    }
}

#[tokio::test]
async fn what_is_recommended_for_hashing_can_be_configured() {
    let installation = Installation::new(Engine::Sqlite).await;
    let (status, text, errors) = installation.run(&[
        "calibrate",
        "--measure-ms",
        "1",
        "--max-ms",
        "60000",
        "--lanes",
        "1",
    ]);
    assert!(status.success(), "{errors}");
    let (_, settings) = text.split_once("[hashing]").expect("settings");
    let file = installation.folder.path().join("accountd.toml");
    fs::write(file, format!("[hashing]{settings}")).expect("written");
    let (status, printed, errors) = installation.run(&["config", "print"]);
    assert!(status.success(), "{errors}");
    assert!(printed.contains("accountd.toml"), "{printed}");
    let (status, _, errors) =
        installation.run(&["calibrate", "--measure-ms", "1", "--max-ms", "0.01"]);
    assert!(
        !status.success() && errors.contains("strong enough"),
        "{errors}"
    );
}

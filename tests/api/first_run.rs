//! The program as a new operator meets it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use accountd::{domain::error::Reason, grpc::pb};

use crate::{
    golden::assert_golden,
    harness::{Actor, Engine, assert_refused, connect, on_both_engines},
    process::Installation,
};

on_both_engines! {
    async fn a_first_start_makes_everything_it_needs_readable_by_nobody_else(engine: Engine) {
        let installation = Installation::new(engine).await;
        let process = installation.serve(&[]);
        let operator = installation.bootstrap(&process).await;
        operator.users().list_users(pb::ListUsersRequest::default()).await.expect("may do everything");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&installation.data()), 0o700);
        let database = ["accountd.sqlite", "accountd.sqlite-wal"];
        let database = database.iter().filter(|_| engine == Engine::Sqlite);
        for file in ["master.key", "bootstrap.json"].iter().chain(database) {
            assert_eq!(mode(&installation.data().join(file)), 0o600, "{file}");
        }
        let account = operator.system_accounts();
        let request = pb::GetSystemAccountRequest { name: "systemAccounts/me".to_owned() };
        let bootstrap = { account }.get_system_account(request).await.expect("itself").into_inner();
        assert!(bootstrap.built_in && bootstrap.owner.is_empty());
        let life_s = bootstrap.expire_time.expect("set").seconds - bootstrap.create_time.expect("set").seconds;
        assert_eq!(life_s, 24 * 3600);
        process.terminate();
        assert_eq!(process.ends_within(Duration::from_secs(30)).code(), Some(0));

        // The second start makes nothing new.
        let file = fs::read_to_string(installation.data().join("bootstrap.json")).expect("there");
        let process = installation.serve(&[]);
        installation.bootstrap(&process).await;
        assert_eq!(fs::read_to_string(installation.data().join("bootstrap.json")).expect("there"), file);
    }

    async fn recovering_makes_fresh_credentials_and_voids_the_old(engine: Engine) {
        let installation = Installation::new(engine).await;
        let process = installation.serve(&[]);
        let operator = installation.bootstrap(&process).await;
        let me = pb::SuspendSystemAccountRequest { name: "systemAccounts/me".to_owned(), ..Default::default() };
        operator.system_accounts().suspend_system_account(me).await.expect("locked out");
        if engine == Engine::Sqlite {
            let (status, _, error) = installation.run(&["admin", "recover"]);
            assert!(!status.success());
            assert!(error.starts_with("accountd: another accountd is running on"), "{error}");
        }
        process.kill();
        let old: serde_json::Value = read_json(&installation.data().join("bootstrap.json"));
        let (status, out, error) = installation.run(&["admin", "recover"]);
        assert!(status.success(), "{error}");
        assert!(out.contains("bootstrap.json"), "{out}");
        let process = installation.serve(&[]);
        let operator = installation.bootstrap(&process).await;
        operator.users().list_users(pb::ListUsersRequest::default()).await.expect("in again");
        let anonymous = Actor::new(connect(process.address).await, None);
        let text = |name: &str| old[name].as_str().expect(name).to_owned();
        let refused = anonymous.issue(&text("client_id"), &text("client_secret")).await;
        assert_refused(refused, Reason::InvalidCredentials);
        let filter = "type = \"system_account.recovered\"".to_owned();
        let request = pb::ListEventsRequest { filter, ..Default::default() };
        let events = operator.events().list_events(request).await.expect("the log").into_inner().events;
        assert_eq!((events.len(), &*events[0].actor), (1, "accountd"));
    }
}

#[tokio::test]
async fn a_second_process_on_one_sqlite_folder_is_refused_in_one_line() {
    let installation = Installation::new(Engine::Sqlite).await;
    let process = installation.serve(&[]);
    // Even where it could not listen either.
    let address = process.address.to_string();
    let (status, _, error) = installation.run(&["serve", "--listen", &address]);
    assert!(!status.success());
    let lines: Vec<&str> = error.lines().collect();
    let expected = "accountd: another accountd is running on accountd-data; SQLite serves one process, PostgreSQL many";
    assert_eq!(lines, [expected]);
    installation.bootstrap(&process).await;
}

#[tokio::test]
async fn a_master_key_that_everybody_can_read_is_refused() {
    let installation = Installation::new(Engine::Sqlite).await;
    installation.serve(&[]).kill();
    let key = installation.data().join("master.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("changed");
    let (status, _, error) = installation.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(!status.success());
    assert!(error.contains("can be read by everybody"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_is_refused_in_one_line() {
    let installation = Installation::new(Engine::Sqlite).await;
    fs::write(
        installation.folder.path().join("bad.toml"),
        "listn = \"127.0.0.1:1\"\n",
    )
    .expect("written");
    for (arguments, expected) in [
        (
            &["serve", "--listen", "203.0.113.1:0"][..],
            "can be reached from other machines",
        ),
        (
            &["serve", "--config", "bad.toml"],
            "unknown setting `listn` in bad.toml; did you mean `listen`?",
        ),
        (
            &["serve", "--config", "no.toml"],
            "there is no configuration file no.toml",
        ),
        (
            &["serve", "--database-url", "mysql://x"],
            "`database_url` has to begin with postgres://",
        ),
        (
            &["serve", "--database-url", "postgres://127.0.0.1:1/x"],
            "cannot connect to the database",
        ),
        (
            &["serve", "--listen", "203.0.113.1:1", "--insecure-plaintext"],
            "cannot listen on 203.0.113.1:1",
        ),
    ] {
        let (status, out, error) = installation.run(arguments);
        assert!(!status.success(), "{arguments:?}");
        assert!(
            error.contains(expected) && error.lines().count() == 1,
            "{arguments:?}: {error}"
        );
        assert_eq!(out, "");
    }
}

#[tokio::test]
async fn settings_say_where_they_come_from_and_secrets_do_not_show() {
    let installation = Installation::new(Engine::Sqlite).await;
    fs::write(
        installation.folder.path().join("accountd.toml"),
        "[tokens]\njwks_max_age_s = 60\n",
    )
    .expect("written");
    let output = installation
        .command(&["config", "print", "--listen", "127.0.0.1:7"])
        .env(
            "ACCOUNTD_DATABASE_URL",
            "postgres://ann:hunter2@db/accountd",
        )
        .env("ACCOUNTD_HASHING__LANES", "3")
        .output()
        .expect("the program runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for line in [
        "listen = \"127.0.0.1:7\"  # flag --listen",
        "database_url = \"postgres://ann:***@db/accountd\"  # environment ACCOUNTD_DATABASE_URL",
        "hashing.lanes = 3  # environment ACCOUNTD_HASHING__LANES",
        "tokens.jwks_max_age_s = 60  # accountd.toml",
        "tokens.algorithm = \"ES256\"  # default",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("hunter2"));
}

#[tokio::test]
async fn the_example_configuration_is_the_reference() {
    let installation = Installation::new(Engine::Sqlite).await;
    let (status, text, _) = installation.run(&["config", "example"]);
    assert!(status.success());
    assert_golden("api/golden/accountd.toml", &text);
}

fn read_json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).expect("there")).expect("JSON")
}

//! Settings from end to end: read, checked, shown.

use std::path::PathBuf;

use figment::{
    Figment,
    providers::{Format as _, Serialized, Toml},
};

use super::{
    Config, Loaded, Sources, example, mask_password,
    sources::{UNSET, leaves},
};

fn load(environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Loaded, String> {
    let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let flag = |(key, value): &(&'static str, &str)| (*key, serde_json::json!(value));
    Sources {
        file: None,
        environment: environment.iter().map(text).collect(),
        flags: flags.iter().map(flag).collect(),
    }
    .load()
}

#[test]
fn flags_win_over_the_environment_over_defaults() {
    let loaded = load(
        &[
            ("ACCOUNTD_LISTEN", "127.0.0.1:1"),
            ("ACCOUNTD_TOKENS__JWKS_MAX_AGE_S", "7"),
        ],
        &[("listen", "127.0.0.1:2")],
    )
    .expect("loads");
    assert_eq!(loaded.config.listen.port(), 2);
    assert_eq!(loaded.config.tokens.jwks_max_age_s, 7);
    let text = loaded.describe();
    assert!(
        text.contains("listen = \"127.0.0.1:2\"  # flag --listen\n"),
        "{text}"
    );
    assert!(
        text.contains("tokens.jwks_max_age_s = 7  # environment ACCOUNTD_TOKENS__JWKS_MAX_AGE_S\n")
    );
    assert!(
        text.contains("hashing.iterations = 2  # default\n"),
        "{text}"
    );
}

#[test]
fn text_that_looks_like_a_number_stays_text() {
    let loaded = load(&[("ACCOUNTD_DATA_DIR", "12345678")], &[]).expect("loads");
    assert_eq!(loaded.config.data_dir, PathBuf::from("12345678"));
    let loaded = load(&[("ACCOUNTD_TRUSTED_PROXIES", "10.0.0.0/8, ::1")], &[]).expect("loads");
    assert_eq!(loaded.config.trusted_proxies, ["10.0.0.0/8", "::1"]);
}

#[test]
fn an_empty_variable_leaves_an_optional_setting_unset() {
    let loaded = load(&[("ACCOUNTD_DATABASE_URL", "")], &[]).expect("loads");
    assert!(loaded.config.database_url.is_none());
    let text = loaded.describe();
    assert!(
        text.contains("database_url = (unset)  # default\n"),
        "{text}"
    );
    assert!(load(&[("ACCOUNTD_LISTEN", "")], &[]).is_err());
}

#[test]
fn an_unknown_setting_is_refused_with_a_suggestion() {
    let error = |name| load(&[(name, "1")], &[]).err().expect(name);
    assert_eq!(
        error("ACCOUNTD_LISTN"),
        "unknown setting `listn` in environment; did you mean `listen`?"
    );
    assert_eq!(
        error("ACCOUNTD_TOKENS__JWKS_AGE_S"),
        "unknown setting `tokens.jwks_age_s` in environment; did you mean `jwks_max_age_s`?"
    );
    assert_eq!(
        error("ACCOUNTD_XYZZY"),
        "unknown setting `xyzzy` in environment"
    );
}

#[test]
fn a_bad_value_is_not_repeated() {
    for (name, value) in [
        ("ACCOUNTD_TOKENS__JWKS_MAX_AGE_S", "hunter2"),
        ("ACCOUNTD_LISTEN", "hunter2"),
        ("ACCOUNTD_INSECURE_PLAINTEXT", "hunter2"),
    ] {
        let error = load(&[(name, value)], &[]).err().expect(name);
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_file_that_is_no_toml_is_not_repeated() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "database_url = \"postgres://ann:s3cr@h/db").expect("written");
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    let error = sources.load().err().expect("no TOML");
    assert!(!error.contains("s3cr"), "{error}");
    assert!(error.contains("line 1") && !error.contains('\n'), "{error}");
}

#[test]
fn passwords_in_urls_are_masked() {
    let url = "postgres://ann:s3cr:t@h:5432/db?sslmode=require";
    let loaded = load(&[("ACCOUNTD_DATABASE_URL", url)], &[]).expect("loads");
    assert!(
        loaded
            .describe()
            .contains("postgres://ann:***@h:5432/db?sslmode=require")
    );
    assert!(!format!("{:?}", loaded.config).contains("s3cr"));
    assert_eq!(
        mask_password("postgres:///db?user=ann&password=s3cr&sslmode=require"),
        "postgres:///db?user=ann&password=***&sslmode=require"
    );
    assert_eq!(mask_password("postgres:///db"), "postgres:///db");
}

#[test]
fn settings_that_cannot_work_are_refused() {
    for (name, value) in [
        ("ACCOUNTD_TOKENS__ALGORITHM", "HS256"),
        ("ACCOUNTD_SESSIONS__LIFETIME_S", "0"),
        ("ACCOUNTD_PASSWORDS__RESET_LIFETIME_S", "90000"),
        ("ACCOUNTD_HASHING__MEMORY_KIB", "1"),
        ("ACCOUNTD_PUBLIC_URL", "https://id.example/"),
        ("ACCOUNTD_PUBLIC_URL", "id.example"),
        ("ACCOUNTD_CORS__ALLOWED_ORIGINS", "*"),
        ("ACCOUNTD_TLS__KEY_FILE", "key.pem"),
        ("ACCOUNTD_TLS__CLIENT_CA_FILE", "ca.pem"),
        ("ACCOUNTD_TLS__RELOAD_INTERVAL_S", "0"),
        ("ACCOUNTD_TLS__RELOAD_INTERVAL_S", "3601"),
        ("ACCOUNTD_OUTBOUND__ALLOWED_NETWORKS", "everybody"),
        ("ACCOUNTD_OUTBOUND__DENIED_NETWORKS", "nobody"),
        ("ACCOUNTD_OUTBOUND__HOSTS", "*.example"),
        ("ACCOUNTD_OUTBOUND__HOSTS", "keys.example:8443"),
        ("ACCOUNTD_OUTBOUND__HOSTS", "1.1.1.1"),
        ("ACCOUNTD_OUTBOUND__TIMEOUT_S", "11"),
        ("ACCOUNTD_SESSIONS__REFRESH_REPLAY_S", "-1"),
        ("ACCOUNTD_SESSIONS__REFRESH_REPLAY_S", "61"),
        ("ACCOUNTD_BREAK_GLASS__UNSEALED_S", "86401"),
        ("ACCOUNTD_TRUSTED_PROXIES", "everybody"),
        ("ACCOUNTD_LOG__FORMAT", "xml"),
    ] {
        assert!(load(&[(name, value)], &[]).is_err(), "{name}={value}");
    }
}

#[test]
fn messages_are_sent_in_ways_that_can_work_and_are_safe() {
    let smtp = [
        ("ACCOUNTD_MESSAGES__EMAIL", "smtp"),
        ("ACCOUNTD_SMTP__HOST", "mail.example"),
        ("ACCOUNTD_SMTP__FROM", "no-reply@example.org"),
    ];
    let webhook = [
        ("ACCOUNTD_MESSAGES__SMS", "webhook"),
        ("ACCOUNTD_WEBHOOK__URL", "https://gateway.example"),
        ("ACCOUNTD_WEBHOOK__SECRET_FILE", "secret"),
    ];
    let log = [("ACCOUNTD_MESSAGES__EMAIL", "log")];
    let with = |base: &[(&str, &str)], more: &[(&str, &str)]| load(&[base, more].concat(), &[]);
    for base in [&smtp[..], &webhook, &log] {
        assert!(with(base, &[]).is_ok(), "{base:?}");
        assert!(
            base.len() == 1 || load(&base[..1], &[]).is_err(),
            "{base:?}"
        );
    }
    assert!(with(&log, &[("ACCOUNTD_PUBLIC_URL", "http://localhost:8080")]).is_ok());
    for (base, name, value, named) in [
        (&log[..], "ACCOUNTD_PUBLIC_URL", "https://id.example", "log"),
        (&log, "ACCOUNTD_MESSAGES__SMS", "smtp", "messages.sms"),
        (&log, "ACCOUNTD_MESSAGES__EMAIL", "pigeon", "messages.email"),
        (&smtp, "ACCOUNTD_SMTP__SECURITY", "none", "smtp.security"),
        (
            &smtp,
            "ACCOUNTD_SMTP__USERNAME",
            "accountd",
            "password_file",
        ),
        (&smtp, "ACCOUNTD_SMTP__TIMEOUT_S", "61", "smtp.timeout_s"),
        (
            &smtp,
            "ACCOUNTD_MESSAGES__LEASE_S",
            "20",
            "messages.lease_s",
        ),
        (
            &smtp,
            "ACCOUNTD_MESSAGES__PAGES_URL",
            "login.example",
            "pages_url",
        ),
        (
            &smtp,
            "ACCOUNTD_MESSAGES__REVERT_LIFETIME_S",
            "2592001",
            "revert_lifetime_s",
        ),
        (
            &smtp,
            "ACCOUNTD_RETENTION__IDENTIFIERS_S",
            "604799",
            "identifiers_s",
        ),
        (
            &webhook,
            "ACCOUNTD_MESSAGES__LEASE_S",
            "11",
            "messages.lease_s",
        ),
        (
            &webhook,
            "ACCOUNTD_WEBHOOK__TIMEOUT_S",
            "61",
            "webhook.timeout_s",
        ),
    ] {
        let error = with(base, &[(name, value)]).err();
        let error = error.unwrap_or_else(|| panic!("{name}={value}"));
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn plaintext_beyond_this_machine_has_to_be_meant() {
    let error = load(&[], &[("listen", "10.0.0.1:8080")])
        .err()
        .expect("refused");
    assert!(error.contains("--insecure-plaintext"), "{error}");
    let meant = [
        ("ACCOUNTD_LISTEN", "0.0.0.0:80"),
        ("ACCOUNTD_PUBLIC_URL", "https://id.example"),
        ("ACCOUNTD_INSECURE_PLAINTEXT", "true"),
    ];
    assert!(load(&meant, &[]).is_ok());
    let nameless = [meant[0], meant[2]];
    let error = load(&nameless, &[]).err().expect("refused");
    assert!(error.contains("set `public_url`"), "{error}");
    assert!(load(&[], &[("private_listen", "10.0.0.1:80")]).is_err());
}

#[test]
fn the_example_names_every_setting_and_is_valid() {
    let example = example();
    for (key, _) in leaves(&Config::default()) {
        let field = key.rsplit('.').next().expect("not empty");
        assert!(example.contains(&format!("\n#{field} = ")), "{key}");
    }
    let live: String = example
        .lines()
        .map(|line| {
            line.strip_prefix('#')
                .filter(|rest| !rest.starts_with(' '))
                .unwrap_or(line)
        })
        .filter(|line| !line.ends_with(UNSET))
        .flat_map(|line| [line, "\n"])
        .collect();
    let figment = Figment::from(Serialized::defaults(Config::default())).merge(Toml::string(&live));
    figment.extract::<Config>().expect("valid");
}

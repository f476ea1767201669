//! Which module may know which, and where each foreign crate is named: the table in `src/lib.rs`.

use proc_macro2::TokenTree;

use crate::source::{File, each_level, files, inside, is_path_separator, place};

/// For a folder, the modules of ours that it may name.
const MODULES: [(&str, &[&str]); 4] = [
    ("domain/", &["domain"]),
    ("store/", &["domain", "env", "store"]),
    (
        "grpc/",
        &[
            "app",
            "config",
            "domain",
            "env",
            "grpc",
            "hasher",
            "messenger",
            "signing",
            "store",
            "telemetry",
        ],
    ),
    (
        "http/",
        &[
            "app",
            "config",
            "domain",
            "env",
            "grpc",
            "http",
            "telemetry",
        ],
    ),
];

/// For a foreign crate, the files and folders that may name it.
const CRATES: [(&str, &[&str]); 34] = [
    ("rusqlite", &["store/"]),
    ("sqlx", &["store/"]),
    ("tonic", &["bench/", "grpc/", "server.rs"]),
    ("tonic_health", &["bench/", "server.rs"]),
    ("tonic_prost", &["grpc/"]),
    ("tonic_reflection", &["server.rs"]),
    ("tonic_types", &["bench/", "grpc/", "server.rs"]),
    ("tonic_web", &["server.rs"]),
    ("prost", &["grpc/", "http/gateway.rs"]),
    ("prost_types", &["grpc/", "http/openapi.rs"]),
    ("prost_reflect", &["grpc/", "http/"]),
    ("argon2", &["domain/password.rs", "domain/foreign_hash.rs"]),
    (
        "password_hash",
        &["domain/password.rs", "domain/foreign_hash.rs"],
    ),
    ("bcrypt", &["domain/foreign_hash.rs"]),
    ("pbkdf2", &["domain/foreign_hash.rs"]),
    ("scrypt", &["domain/foreign_hash.rs"]),
    ("sha_crypt", &["domain/foreign_hash.rs"]),
    (
        "jsonwebtoken",
        &["domain/keyring.rs", "domain/client_assertion.rs"],
    ),
    ("totp_rs", &["domain/totp.rs"]),
    ("webauthn_rs", &["domain/passkey.rs"]),
    ("webauthn_rs_proto", &["domain/passkey.rs"]),
    ("serde_cbor_2", &["domain/passkey.rs"]),
    ("rustls", &["tls.rs"]),
    ("tokio_rustls", &["tls.rs"]),
    ("webpki_roots", &["tls.rs"]),
    ("x509_parser", &["domain/certificate.rs"]),
    ("reqwest", &["key_sets.rs", "messenger/webhook.rs"]),
    ("lettre", &["messenger/smtp.rs"]),
    ("minijinja", &["messenger/templates.rs"]),
    ("celes", &["domain/postal_address.rs"]),
    ("email_address", &["domain/email.rs"]),
    ("icu_casemap", &["domain/text.rs"]),
    ("idna", &["domain/email.rs"]),
    ("phonenumber", &["domain/phone.rs"]),
];

/// What works by waiting or looks outside has no place among the rules.
const NOT_IN_DOMAIN: [&str; 5] = ["axum", "http", "hyper", "tokio", "tracing"];

#[test]
fn modules_know_only_those_below_them() {
    let mut wrong = Vec::new();
    for file in files() {
        let Some((_, allowed)) = MODULES
            .iter()
            .find(|(folder, _)| file.path.starts_with(folder))
        else {
            continue;
        };
        for (module, place) in named_modules(&file) {
            if !allowed.contains(&module.as_str()) {
                wrong.push(format!("{place}: crate::{module}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_foreign_crate_is_named_where_it_belongs() {
    let mut wrong = Vec::new();
    for file in files() {
        for (name, place) in named_crates(&file) {
            let home = CRATES.iter().find(|(crate_name, _)| *crate_name == name);
            let is_home = home
                .is_none_or(|(_, places)| places.iter().any(|home| file.path.starts_with(home)));
            let is_outside =
                file.path.starts_with("domain/") && NOT_IN_DOMAIN.contains(&name.as_str());
            if !is_home || is_outside {
                wrong.push(format!("{place}: {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The modules after `crate::`, also in a list of imports.
fn named_modules(file: &File) -> Vec<(String, String)> {
    let mut found = Vec::new();
    each_level(&file.tokens, &mut |level| {
        for (i, token) in level.iter().enumerate() {
            let is = |name: &str| matches!(token, TokenTree::Ident(ident) if ident == name);
            assert!(
                !(is("super")
                    && is_path_separator(level, i + 1)
                    && level
                        .get(i + 3)
                        .is_some_and(|next| next.to_string() == "super")),
                "{}: begin with crate::",
                place(&file.path, token)
            );
            if !is("crate") || !is_path_separator(level, i + 1) {
                continue;
            }
            match &level[i + 3] {
                TokenTree::Ident(module) => {
                    found.push((module.to_string(), place(&file.path, token)));
                }
                TokenTree::Group(list) => {
                    let mut is_first = true;
                    for token in inside(list) {
                        if let TokenTree::Ident(module) = &token
                            && is_first
                        {
                            found.push((module.to_string(), place(&file.path, &token)));
                        }
                        is_first =
                            matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ',');
                    }
                }
                _ => {}
            }
        }
    });
    found
}

/// What begins a path.
fn named_crates(file: &File) -> Vec<(String, String)> {
    let mut found = Vec::new();
    each_level(&file.tokens, &mut |level| {
        for (i, token) in level.iter().enumerate() {
            if let TokenTree::Ident(name) = token
                && is_path_separator(level, i + 1)
                && !(i >= 2 && is_path_separator(level, i - 2))
            {
                found.push((name.to_string(), place(&file.path, token)));
            }
        }
    });
    found
}

#[test]
fn the_check_sees_imports_in_every_form() {
    let text = r#"
        use crate::{domain::{error::Error, name}, store};
        fn f() { if x { crate::jobs::run(); sqlx::query("tonic::no") } }
        // prost::no
    "#;
    let tokens: proc_macro2::TokenStream = text.parse().expect("Rust");
    let file = File {
        path: "domain/x.rs".to_owned(),
        tokens: tokens.into_iter().collect(),
    };
    let names =
        |found: Vec<(String, String)>| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(named_modules(&file)), ["domain", "store", "jobs"]);
    assert_eq!(
        names(named_crates(&file)),
        ["crate", "domain", "error", "crate", "sqlx"]
    );
}

//! Secrets that somebody presents are looked at in one folder, and whoever looks there pays for it.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::source::{File, each_level, files, inside};

/// The one folder.
const HOME: &str = "grpc/secrets/";

/// What tells a right secret from a wrong one, as it is written where it is called.
const CHECKS: [&str; 14] = [
    "Secret::parse(",
    "RefreshToken::parse(",
    "KnownDevice::parse(",
    "find_by_secret(",
    "find_recovery_code(",
    "hasher.verify(",
    ".is_genuine(",
    "is_code(",
    "generator.check(",
    "client_assertion::verify(",
    ".vouches_for(",
    "identity.is_of(",
    "ours.check(",
    "ours.enrolled(",
];

/// What an attempt is paid with.
const CHARGES: [&str; 2] = ["charge::attempt(", "charge::refuse("];

/// Functions of the folder that others call and nobody pays for, and why.
const FREE: [(&str, &str); 8] = [
    (
        "known_device",
        "shows that failures are not a stranger's, and nothing else",
    ),
    (
        "look_up_refresh_token",
        "tells about a token, and wins nothing by it",
    ),
    ("redeem", "uses up an answer that was paid for"),
    (
        "open",
        "decrypts what a code is then compared with, by somebody who pays",
    ),
    ("seal", "encrypts the secret of a generator"),
    ("seal_hash", "encrypts a hash that comes in"),
    ("new_password", "says whether a new password will do"),
    ("password_credential", "makes a credential"),
];

#[test]
fn secrets_are_checked_in_one_folder() {
    let (mut wrong, mut seen) = (Vec::new(), Vec::new());
    let rules = ["domain/", "store/", "hasher.rs"];
    for file in files() {
        let is_home = file.path.starts_with(HOME);
        let is_rule = rules.iter().any(|place| file.path.starts_with(place));
        let text = written(&file.tokens);
        for check in CHECKS.iter().filter(|check| text.contains(**check)) {
            if is_home {
                seen.push(*check);
            } else if !is_rule {
                wrong.push(format!("src/{}: {check}", file.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for check in CHECKS {
        assert!(
            seen.contains(&check),
            "{check} is called nowhere: is it written otherwise now?"
        );
    }
}

#[test]
fn whoever_checks_a_secret_pays_for_it() {
    let (mut wrong, mut paying) = (Vec::new(), Vec::new());
    for file in files() {
        // What is paid with has nothing to check.
        if !file.path.starts_with(HOME) || file.path.ends_with("/charge.rs") {
            continue;
        }
        for (name, body) in public_functions(&file.tokens) {
            let body = written(&body);
            let is_free = FREE.iter().any(|(free, _)| *free == name);
            let pays = CHARGES.iter().any(|charge| body.contains(charge));
            if pays {
                paying.push(name);
            } else if !is_free {
                wrong.push(format!("src/{}: {name}", file.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    paying.sort();
    let known = [
        "answer",
        "confirm_totp",
        "new_passkey",
        "of_program",
        "password",
        "refresh_token",
        "reset_code",
    ];
    assert_eq!(paying, known);
}

#[test]
fn the_check_sees_who_pays_and_who_does_not() {
    let file = File {
        path: String::new(),
        tokens: "pub(super) async fn a(x: X) -> R { if y { charge::refuse(c) } }
                 fn b() { Secret::parse(kind, text) }
                 pub fn c() -> bool { generator . check(d) } // refuse("
            .parse::<TokenStream>()
            .expect("Rust")
            .into_iter()
            .collect(),
    };
    let text = written(&file.tokens);
    assert!(text.contains("Secret::parse(") && text.contains("generator.check("));
    let functions = public_functions(&file.tokens);
    let pays: Vec<(&str, bool)> = functions
        .iter()
        .map(|(name, body)| (name.as_str(), written(body).contains("charge::refuse(")))
        .collect();
    assert_eq!(pays, [("a", true), ("c", false)]);
}

/// Code without its blanks and comments.
fn written(tokens: &[TokenTree]) -> String {
    let tokens: TokenStream = tokens.iter().cloned().collect();
    let mut text = tokens.to_string();
    text.retain(|c| !c.is_whitespace());
    text
}

/// The functions that others may call, and what stands in their braces.
fn public_functions(tokens: &[TokenTree]) -> Vec<(String, Vec<TokenTree>)> {
    let mut found = Vec::new();
    each_level(tokens, &mut |level| {
        for (at, token) in level.iter().enumerate() {
            let is = |place: usize, name: &str| matches!(level.get(place), Some(TokenTree::Ident(ident)) if ident == name);
            if !matches!(token, TokenTree::Ident(ident) if ident == "pub") {
                continue;
            }
            let mut next = at + 1;
            next += usize::from(matches!(level.get(next), Some(TokenTree::Group(_))));
            next += usize::from(is(next, "async"));
            let body = level[next..].iter().find_map(|token| match token {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    Some(inside(group))
                }
                _ => None,
            });
            if let (true, Some(name), Some(body)) = (is(next, "fn"), level.get(next + 1), body) {
                found.push((name.to_string(), body));
            }
        }
    });
    found
}

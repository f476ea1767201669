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

/// Functions that others leave it to; each of them has to pay.
const ON_BEHALF: [&str; 4] = ["of_secret(", "of_signature(", "of_certificate(", "refused("];

/// Functions of the folder that others call and nobody pays for, and why.
const FREE: [(&str, &str); 8] = [
    (
        "password.rs: known_device",
        "shows that failures are not a stranger's, and nothing else",
    ),
    (
        "mod.rs: look_up_refresh_token",
        "tells about a token, and wins nothing by it",
    ),
    ("answer.rs: redeem", "uses up an answer that was paid for"),
    (
        "totp.rs: open",
        "decrypts what a code is then compared with, by somebody who pays",
    ),
    ("totp.rs: seal", "encrypts the secret of a generator"),
    ("password.rs: seal_hash", "encrypts a hash that comes in"),
    (
        "password.rs: new_password",
        "says whether a new password will do",
    ),
    ("password.rs: password_credential", "makes a credential"),
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
        for function in functions(&file.tokens) {
            let name = &function.name;
            let is_on_behalf = ON_BEHALF.contains(&&*format!("{name}("));
            let place = format!("{}: {name}", file.path.trim_start_matches(HOME));
            let is_free = FREE.iter().any(|(free, _)| *free == place);
            if !pays(&function) {
                if is_on_behalf || function.is_public && !is_free {
                    wrong.push(place);
                }
            } else if function.is_public {
                paying.push(function.name);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    paying.sort();
    let known = [
        "answer",
        "confirm_totp",
        "contact_change",
        "contact_code",
        "new_passkey",
        "of_program",
        "password",
        "refresh_token",
        "reset_code",
    ];
    assert_eq!(paying, known);
}

fn pays(function: &Function) -> bool {
    let body = written(&function.body);
    CHARGES
        .iter()
        .chain(&ON_BEHALF)
        .any(|charge| body.contains(charge))
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
    let functions = functions(&file.tokens);
    let seen: Vec<(&str, bool, bool)> = functions
        .iter()
        .map(|function| (&*function.name, function.is_public, pays(function)))
        .collect();
    let expected = [("a", true, true), ("b", false, false), ("c", true, false)];
    assert_eq!(seen, expected);
}

/// Code without its blanks and comments.
fn written(tokens: &[TokenTree]) -> String {
    let tokens: TokenStream = tokens.iter().cloned().collect();
    let mut text = tokens.to_string();
    text.retain(|c| !c.is_whitespace());
    text
}

struct Function {
    name: String,
    is_public: bool,
    /// What stands in its braces.
    body: Vec<TokenTree>,
}

fn functions(tokens: &[TokenTree]) -> Vec<Function> {
    let mut found = Vec::new();
    each_level(tokens, &mut |level| {
        let is = |place: usize, name: &str| matches!(level.get(place), Some(TokenTree::Ident(ident)) if ident == name);
        for at in 0..level.len() {
            let body = level[at..].iter().find_map(|token| match token {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    Some(inside(group))
                }
                _ => None,
            });
            let (true, Some(name), Some(body)) = (is(at, "fn"), level.get(at + 1), body) else {
                continue;
            };
            // `pub`, `pub async`, `pub(super)`, `pub(super) async`.
            let mut before = at.wrapping_sub(1);
            before = before.wrapping_sub(usize::from(is(before, "async")));
            let is_limited = matches!(level.get(before), Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis);
            before = before.wrapping_sub(usize::from(is_limited));
            found.push(Function {
                name: name.to_string(),
                is_public: is(before, "pub"),
                body,
            });
        }
    });
    found
}

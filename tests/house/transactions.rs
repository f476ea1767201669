//! A transaction holds a lock that others wait for, so its block waits for nothing but the database.

use proc_macro2::TokenTree;

use crate::source::{each_level, files, inside, is_braces, is_punct, macro_calls, place};

#[test]
fn a_transaction_waits_for_nothing_but_its_statements() {
    let (mut blocks, mut wrong) = (0, Vec::new());
    for file in files() {
        for name in ["transact", "mutate"] {
            for call in macro_calls(&file.tokens, name) {
                let tokens = inside(&call);
                // In the macros' own definitions the block is a variable.
                let Some(block) = tokens.iter().rfind(|token| is_braces(token)) else {
                    continue;
                };
                blocks += 1;
                for token in stray_awaits(block) {
                    wrong.push(place(&file.path, &token));
                }
                for nested in ["transact", "mutate"] {
                    if !macro_calls(std::slice::from_ref(block), nested).is_empty() {
                        wrong.push(format!(
                            "{}: a transaction within one",
                            place(&file.path, block)
                        ));
                    }
                }
            }
        }
    }
    assert!(blocks > 30, "only {blocks} blocks found");
    assert!(wrong.is_empty(), "awaits something without tx: {wrong:#?}");
}

/// The `await`s whose expression does not mention `tx`.
fn stray_awaits(block: &TokenTree) -> Vec<TokenTree> {
    let mut stray = Vec::new();
    each_level(std::slice::from_ref(block), &mut |level| {
        for (i, token) in level.iter().enumerate() {
            let is_await = token.to_string() == "await" && i > 0 && is_punct(&level[i - 1], '.');
            if is_await && !expression_before(level, i - 1).iter().any(mentions_tx) {
                stray.push(token.clone());
            }
        }
    });
    stray
}

/// The chain of calls that ends before `end`.
fn expression_before(level: &[TokenTree], end: usize) -> &[TokenTree] {
    let start = level[..end].iter().rposition(|token| {
        !(matches!(token, TokenTree::Ident(_) | TokenTree::Group(_)) && !is_braces(token)
            || ['.', ':', '?', '&']
                .iter()
                .any(|punct| is_punct(token, *punct)))
    });
    &level[start.map_or(0, |start| start + 1)..end]
}

fn mentions_tx(token: &TokenTree) -> bool {
    match token {
        TokenTree::Ident(ident) => ident == "tx",
        TokenTree::Group(group) => inside(group).iter().any(mentions_tx),
        _ => false,
    }
}

#[test]
fn the_check_sees_what_does_not_belong() {
    let stray = |text: &str| {
        let tokens: proc_macro2::TokenStream = text.parse().expect("Rust");
        stray_awaits(&tokens.into_iter().next().expect("a block")).len()
    };
    assert_eq!(
        stray("{ users::insert(tx, &user).await?; tx.execute(sql).await? }"),
        0
    );
    assert_eq!(
        stray("{ if sleep(1).await { users::find(tx, id).await? } }"),
        1
    );
    assert_eq!(stray("{ let a = tx; hasher.hash(password).await? }"), 1);
}

//! The source as tokens, so that comments and the contents of strings do not count as code.

use std::{fs, path::Path};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// One file below `src`.
pub struct File {
    /// Its path below `src`: `store/users.rs`.
    pub path: String,
    pub tokens: Vec<TokenTree>,
}

/// All of them.
pub fn files() -> Vec<File> {
    let mut files = Vec::new();
    read_folder(Path::new("src"), &mut files);
    assert!(files.len() > 50, "the source is not where it was");
    files
}

fn read_folder(folder: &Path, files: &mut Vec<File>) {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_folder(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("text");
            let tokens: TokenStream = text.parse().expect("Rust");
            let path = path.strip_prefix("src").expect("below src");
            files.push(File {
                path: path.to_str().expect("UTF-8").to_owned(),
                tokens: tokens.into_iter().collect(),
            });
        }
    }
}

/// Calls `visit` with the contents of the file and of every bracket in it, with nothing entered twice.
pub fn each_level(tokens: &[TokenTree], visit: &mut impl FnMut(&[TokenTree])) {
    visit(tokens);
    for token in tokens {
        if let TokenTree::Group(group) = token {
            each_level(&inside(group), visit);
        }
    }
}

pub fn inside(group: &Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

/// What stands in the brackets of `name!(…)`, wherever that is called.
pub fn macro_calls(tokens: &[TokenTree], name: &str) -> Vec<Group> {
    let mut calls = Vec::new();
    each_level(tokens, &mut |level| {
        for window in level.windows(3) {
            if let [TokenTree::Ident(ident), mark, TokenTree::Group(group)] = window
                && ident == name
                && is_punct(mark, '!')
            {
                calls.push(group.clone());
            }
        }
    });
    calls
}

pub fn is_punct(token: &TokenTree, punct: char) -> bool {
    matches!(token, TokenTree::Punct(p) if p.as_char() == punct)
}

/// Whether `::` stands at `place`.
pub fn is_path_separator(tokens: &[TokenTree], place: usize) -> bool {
    tokens.len() > place + 1 && is_punct(&tokens[place], ':') && is_punct(&tokens[place + 1], ':')
}

pub fn is_braces(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

/// Where a token is, for the reader of a failure.
pub fn place(path: &str, token: &TokenTree) -> String {
    format!("src/{path}:{}", token.span().start().line)
}

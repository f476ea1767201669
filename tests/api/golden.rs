//! What is kept in a file, so that a change of it is seen in review.

use std::{fs, path::Path};

/// Compares with `tests/{name}`; ACCOUNTD_TEST_UPDATE_GOLDEN writes it anew.
#[track_caller]
pub fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name);
    if std::env::var_os("ACCOUNTD_TEST_UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("the golden file");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let different = golden
        .lines()
        .zip(text.lines())
        .find(|(old, new)| old != new);
    assert!(
        golden == text,
        "{name} differs, first at {different:?}; if that is right, run again with \
         ACCOUNTD_TEST_UPDATE_GOLDEN=1 and review the change"
    );
}

//! Free text that people write: how much of it, and which characters; and how it is compared.

use icu_casemap::CaseMapper;
use unicode_normalization::UnicodeNormalization as _;

/// Text of at most `max` characters without control characters, except line breaks where `lines`.
///
/// NUL is among the control characters: `PostgreSQL` cannot store it.
pub fn parse(text: &str, max: usize, lines: bool) -> Result<String, String> {
    if text.chars().count() > max {
        return Err(format!("must have at most {max} characters"));
    }
    let allowed = |c: char| !c.is_control() || (lines && matches!(c, '\n' | '\t'));
    if !text.chars().all(allowed) {
        return Err("must not contain control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// One line of at most `max` characters.
pub fn line(text: &str, max: usize) -> Result<String, String> {
    parse(text, max, false)
}

/// Several lines of at most `max` characters in all.
pub fn lines(text: &str, max: usize) -> Result<String, String> {
    parse(text, max, true)
}

/// Like [`line`], and not empty.
pub fn required_line(text: &str, max: usize) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("is required".to_owned())
    } else {
        line(text, max)
    }
}

/// As compared without regard to case and width: NFKC, folded (Unicode chapter 3.13); of itself, itself.
pub fn fold(text: &str) -> String {
    let text: String = text.nfkc().collect();
    CaseMapper::new().fold_string(&text).nfkc().collect()
}

/// A name as it is searched for: folded, with single spaces.
pub fn name_key(name: &str) -> String {
    let folded = fold(name);
    let words: Vec<&str> = folded.split_whitespace().collect();
    words.join(" ")
}

/// The beginning of one, which may end within a word or between two.
pub fn name_prefix_key(prefix: &str) -> String {
    let key = name_key(prefix);
    let is_between = !key.is_empty() && prefix.ends_with(char::is_whitespace);
    if is_between { key + " " } else { key }
}

/// BCP 47, in its canonical letter case; empty stays empty.
pub fn language(tag: &str) -> Result<String, String> {
    if tag.is_empty() {
        return Ok(String::new());
    }
    match oxilangtag::LanguageTag::parse_and_normalize(tag) {
        Ok(tag) if tag.as_str().len() <= 64 => Ok(tag.into_inner()),
        _ => Err("must be a BCP 47 language tag such as `de-CH`".to_owned()),
    }
}

/// A name of the IANA time zone database; empty stays empty.
pub fn time_zone(name: &str) -> Result<String, String> {
    if name.is_empty() || super::time::is_time_zone(name) {
        return Ok(name.to_owned());
    }
    Err("must be a time zone of the IANA database such as `Europe/Zurich`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_excess_are_refused() {
        assert!(line("Ann Müller", 10).is_ok());
        assert!(line("Ann Müllers", 10).is_err());
        for bad in ["a\0b", "a\nb", "a\u{7f}b", "a\u{85}b", "a\rb"] {
            assert!(line(bad, 10).is_err(), "{bad:?}");
        }
        assert!(lines("a\nb", 10).is_ok());
        assert!(lines("a\rb", 10).is_err());
        assert!(required_line(" ", 10).is_err());
    }

    #[test]
    fn names_are_compared_without_case_width_and_spaces() {
        assert_eq!(name_key("  Ann   MÜLLER "), "ann müller");
        assert_eq!(name_key("Ａｎｎ"), "ann");
        assert_eq!(name_key("STRASSER"), name_key("Straßer"));
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let once = fold(&c.to_string());
            assert_eq!(fold(&once), once, "{c:?}");
        }
    }

    #[test]
    fn languages_and_zones_are_checked_and_canonical() {
        assert_eq!(language("DE-ch").as_deref(), Ok("de-CH"));
        assert!(language("not a tag").is_err());
        assert!(time_zone("Europe/Zurich").is_ok());
        assert!(time_zone("Europe/Atlantis").is_err());
        assert_eq!(language("").as_deref(), Ok(""));
    }
}

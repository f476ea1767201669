//! E-mail addresses: as a person writes them, where mail goes, and as they are compared.
//!
//! Invariant: mail goes to the address as it was written and proven; the key only says which two
//! spellings are one identifier, and the key of a key is itself.

use email_address::{EmailAddress, Options};
use precis_profiles::{UsernameCaseMapped, precis_core::profile::PrecisFastInvocation};

use super::text;

/// Most bytes of an address, and of what stands before the `@` (RFC 5321 section 4.5.3.1, erratum 1690).
const MAX_BYTES: usize = 254;
const MAX_LOCAL_BYTES: usize = 64;

/// An address of one mailbox, without a name beside it, quotes or a literal of an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email {
    text: String,
    key: String,
}

impl Email {
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || "must be an e-mail address such as ann@example.org".to_owned();
        let key = key(text).ok_or_else(expected)?;
        // What folding has made of it has to be an address as well, and its own key.
        if key.len() > MAX_BYTES || self::key(&key).as_ref() != Some(&key) {
            return Err(expected());
        }
        Ok(Self {
            text: text.to_owned(),
            key,
        })
    }

    /// For addresses read back from the store: what was good once stays readable, whatever later versions
    /// of Unicode say of it.
    pub fn from_stored(text: String) -> Self {
        let key = key(&text).unwrap_or_else(|| text::fold(&text));
        Self { text, key }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn key(&self) -> &str {
        &self.key
    }

    /// As mail servers are told: the mailbox as written, at its domain in ASCII (RFC 5890).
    pub fn mailbox(&self) -> String {
        let local = self.text.rsplit_once('@').map_or("", |(local, _)| local);
        let domain = self.key.rsplit_once('@').map_or("", |(_, domain)| domain);
        format!("{local}@{domain}")
    }
}

fn key(typed: &str) -> Option<String> {
    let (local, domain) = typed.rsplit_once('@')?;
    let domain = idna::domain_to_ascii_strict(domain).ok()?;
    if typed.len() > MAX_BYTES || local.len() > MAX_LOCAL_BYTES || !is_plain(local, &domain) {
        return None;
    }
    let local = text::fold(local);
    // Nothing that cannot be seen, and no letters that change their direction.
    UsernameCaseMapped::enforce(local.as_str()).ok()?;
    Some(format!("{local}@{domain}"))
}

/// Whether it has the form of a plain address. Which letters beyond ASCII there may be (RFC 6531) is for
/// PRECIS to say: here each is as good as another.
fn is_plain(local: &str, domain: &str) -> bool {
    let options = Options::default()
        .without_display_text()
        .without_domain_literal()
        .with_required_tld();
    let letters = local.chars().map(|c| if c.is_ascii() { c } else { 'x' });
    let form = format!("{}@{domain}", letters.collect::<String>());
    let top = domain.rsplit('.').next().unwrap_or_default();
    EmailAddress::parse_with_options(&form, options).is_ok()
        && !local.starts_with('"')
        && !top.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> String {
        Email::parse(text).expect(text).key().to_owned()
    }

    #[test]
    fn spellings_of_one_address_share_a_key() {
        for text in [
            "Ann@Example.ORG",
            "ａｎｎ@ｅｘａｍｐｌｅ.org",
            "ANN@example.org",
        ] {
            assert_eq!(key(text), "ann@example.org", "{text}");
        }
        assert_eq!(
            key("jörg@bücher.example"),
            key("JO\u{308}RG@xn--bcher-kva.example")
        );
        assert_eq!(key("straße@example.org"), key("STRASSE@example.org"));
        assert_eq!(key("संपर्क@डाटामेल.भारत"), "संपर्क@xn--c2bd4bq1db8d.xn--h2brj9c");
        assert_ne!(key("a.nn@example.org"), key("ann@example.org"));
        assert_ne!(key("ann+x@example.org"), key("ann@example.org"));
    }

    #[test]
    fn mail_goes_to_the_address_as_it_was_written() {
        let email = Email::parse("Ann.M@Bücher.example").expect("an address");
        assert_eq!(email.as_str(), "Ann.M@Bücher.example");
        assert_eq!(email.mailbox(), "Ann.M@xn--bcher-kva.example");
    }

    #[test]
    fn what_is_no_address_of_one_mailbox_is_refused() {
        let long = format!("{}@example.org", "a".repeat(65));
        let longer = format!("a@{}.org", "a.".repeat(130));
        for bad in [
            "",
            "ann",
            "ann@",
            "@example.org",
            "ann@localhost",
            "ann@127.0.0.1",
            "ann@[127.0.0.1]",
            "Ann <ann@example.org>",
            "\"ann\"@example.org",
            "\"a b\"@example.org",
            "ann@example.org, bob@example.org",
            "ann@example.org\r\nBcc: bob@example.org",
            "ann\r\n@example.org",
            "ann\u{0}@example.org",
            " ann@example.org",
            "ann@example.org ",
            "ann@example..org",
            "ann@-example.org",
            "ann@exa_mple.org",
            "<b>@example.org",
            "ann\u{202e}@example.org",
            "an\u{ad}n@example.org",
            "ann@example.org.",
            "a＠b@example.org",
            &long,
            &longer,
        ] {
            assert!(Email::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_its_own_key() {
        let mut checked = 0;
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            for text in [format!("a{c}@example.org"), format!("ann@{c}b.example")] {
                let Ok(once) = Email::parse(&text) else {
                    continue;
                };
                let again = Email::parse(once.key()).expect("a key is an address");
                assert_eq!(again.key(), once.key(), "{c:?}");
                checked += 1;
            }
        }
        assert!(checked > 150_000, "{checked} addresses");
    }
}

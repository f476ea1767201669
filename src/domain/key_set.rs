//! Public keys that a program publishes itself, as a JWK Set (RFC 7517 section 5) at a URL, so that it
//! changes them without asking anybody.

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::{client_assertion::PublicKey, time::Timestamp};

/// Most bytes of a URL, and of a set.
const MAX_URI_BYTES: usize = 2048;
pub const MAX_SET_BYTES: usize = 64 * 1024;
/// Most keys of a set that are looked at.
const MAX_KEYS: usize = 100;
/// How long a set counts as what the program publishes, in seconds.
const FRESH_S: i64 = 300;
/// How long it is used while its URL cannot be reached, in seconds.
const USABLE_S: i64 = 3600;
/// The shortest time between two looks at a URL, in seconds: who sends assertions is not known yet.
const RETRY_S: i64 = 10;

/// Where a program publishes its keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeySetUri(Url);

impl KeySetUri {
    /// An error is the end of a sentence about it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || "must be a URL such as https://billing.example/jwks.json".to_owned();
        let too_long = || Err(format!("must have at most {MAX_URI_BYTES} bytes"));
        if text.len() > MAX_URI_BYTES {
            return too_long();
        }
        let url = Url::parse(text).map_err(|_| expected())?;
        if url.as_str().len() > MAX_URI_BYTES {
            return too_long();
        }
        let is_plain = url.scheme() == "https"
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.fragment().is_none();
        if is_plain {
            Ok(Self(url))
        } else {
            Err(expected())
        }
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// Host and path, for the log: what comes after may be a secret.
    pub fn place(&self) -> String {
        format!("{}{}", self.host(), self.0.path())
    }

    /// The address that stands in it in the place of a name.
    pub fn address(&self) -> Option<std::net::IpAddr> {
        match self.0.host()? {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        }
    }
}

/// What was published at a time.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<PublicKey>,
    fetch_time: Option<Timestamp>,
}

impl KeySet {
    /// Reads the keys that a program may sign with, and passes over all others.
    pub fn parse(body: &[u8], now: Timestamp) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Published {
            keys: Vec<serde_json::Value>,
        }
        let Published { keys } =
            serde_json::from_slice(body).map_err(|_| "is not a JWK Set".to_owned())?;
        let keys = keys.iter().take(MAX_KEYS);
        let keys = keys.filter_map(|key| PublicKey::parse(&key.to_string()).ok());
        Ok(Self {
            keys: keys.collect(),
            fetch_time: Some(now),
        })
    }

    /// The keys, while they can be believed.
    pub fn keys(&self, now: Timestamp) -> &[PublicKey] {
        if self.is_younger(USABLE_S, now) {
            &self.keys
        } else {
            &[]
        }
    }

    /// Whether it will do for somebody who names a key, or none, until there is a newer one.
    pub fn serves(&self, kid: Option<&str>, now: Timestamp) -> bool {
        let is_it = |key: &PublicKey| kid.is_none_or(|kid| key.kid == kid);
        self.keys(now).iter().any(is_it)
    }

    /// Whether the set is worth another look, for somebody who names a key.
    pub fn is_wanting(&self, kid: Option<&str>, now: Timestamp) -> bool {
        let is_there = |kid: &str| self.keys.iter().any(|key| key.kid == kid);
        !self.is_fresh(now) || kid.is_some_and(|kid| !is_there(kid))
    }

    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.is_younger(FRESH_S, now)
    }

    fn is_younger(&self, seconds: i64, now: Timestamp) -> bool {
        // What a clock that was wrong has left behind is not believed.
        self.fetch_time
            .is_some_and(|time| time <= now && now < time.plus_s(seconds))
    }
}

/// Whether a URL may be looked at again.
pub fn may_try(last: Option<Timestamp>, now: Timestamp) -> bool {
    last.is_none_or(|last| now < last || now >= last.plus_s(RETRY_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(100_000);
    const KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    #[test]
    fn a_url_is_plain_and_encrypted() {
        let good = KeySetUri::parse("HTTPS://Billing.example:8443/keys?a=b").expect("a URL");
        assert_eq!(good.as_str(), "https://billing.example:8443/keys?a=b");
        assert_eq!(good.address(), None);
        for bad in [
            "",
            "billing.example/keys",
            "http://billing.example/keys",
            "file:///etc/passwd",
            "https://",
            "https://user@billing.example/",
            "https://user:secret@billing.example/",
            "https://billing.example/#keys",
        ] {
            assert!(KeySetUri::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_is_seen_however_it_is_written() {
        for (text, address) in [
            ("https://127.0.0.1/", "127.0.0.1"),
            ("https://0x7f.1/", "127.0.0.1"),
            ("https://2130706433/", "127.0.0.1"),
            ("https://[::1]/", "::1"),
            ("https://[::ffff:10.0.0.1]/", "::ffff:10.0.0.1"),
        ] {
            let uri = KeySetUri::parse(text).expect(text);
            assert_eq!(uri.address(), Some(address.parse().expect("an address")));
        }
    }

    #[test]
    fn a_set_has_the_keys_that_may_sign() {
        let weak = r#"{"kty":"oct","k":"AAAA"}"#;
        let encrypts = KEY.replace(r#""kid""#, r#""use":"enc","kid""#);
        let body = format!(r#"{{"keys":[{weak},{encrypts},{KEY},7]}}"#);
        let set = KeySet::parse(body.as_bytes(), NOW).expect("a set");
        let kids: Vec<&str> = set.keys(NOW).iter().map(|key| &*key.kid).collect();
        assert_eq!(kids, ["a"]);
        for bad in ["", "[]", "{}", r#"{"keys":{}}"#] {
            assert!(KeySet::parse(bad.as_bytes(), NOW).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_set_is_looked_at_again_when_it_is_old_or_lacks_a_key() {
        let body = format!(r#"{{"keys":[{KEY}]}}"#);
        let set = KeySet::parse(body.as_bytes(), NOW).expect("a set");
        assert!(!set.is_wanting(None, NOW) && !set.is_wanting(Some("a"), NOW));
        assert!(set.is_wanting(Some("b"), NOW));
        assert!(!set.is_wanting(None, NOW.plus_s(299)) && set.is_wanting(None, NOW.plus_s(300)));
        assert_eq!(set.keys(NOW.plus_s(3599)).len(), 1);
        assert_eq!(set.keys(NOW.plus_s(3600)), []);
        assert!(set.serves(None, NOW.plus_s(3599)) && set.serves(Some("a"), NOW));
        assert!(!set.serves(Some("b"), NOW) && !set.serves(None, NOW.plus_s(3600)));
        assert!(KeySet::default().is_wanting(None, NOW));
        assert!(may_try(None, NOW) && may_try(Some(NOW), NOW.plus_s(10)));
        assert!(!may_try(Some(NOW), NOW.plus_s(9)));
        // The clock was ahead when it was fetched.
        assert!(set.is_wanting(Some("a"), NOW.plus_s(-1)) && may_try(Some(NOW), NOW.plus_s(-1)));
        assert_eq!(set.keys(NOW.plus_s(-1)), []);
    }
}

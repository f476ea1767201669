//! Public keys that a program publishes itself, as a JWK Set (RFC 7517 section 5) at a URL, so that it
//! changes them without asking anybody.

use std::{net::IpAddr, sync::Arc};

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
/// How long it is believed while its URL cannot be reached, in seconds.
const USABLE_S: i64 = 3600;
/// The shortest time between two looks at a URL, in seconds: who sends assertions is not known yet.
const RETRY_S: i64 = 10;
/// The longest that a look can take, in seconds; after that nobody is at it any more.
const LOOK_S: i64 = 60;
/// How far two looks at the clock may differ, in seconds.
const AHEAD_S: i64 = 60;
/// Most URLs of one account: each can keep accountd busy.
pub const MAX_KEY_SETS: usize = 5;

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
    pub fn address(&self) -> Option<IpAddr> {
        match self.0.host()? {
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
            Host::Domain(_) => None,
        }
    }
}

/// What is known of a URL.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Arc<[PublicKey]>,
    /// When they were fetched.
    fetch_time: Option<Timestamp>,
    /// When somebody began to look last.
    look_time: Option<Timestamp>,
    /// When somebody has looked since, and could not see.
    miss_time: Option<Timestamp>,
    /// Whether somebody is looking now.
    is_awaited: bool,
}

/// What came of a look.
#[derive(Debug)]
pub enum Look {
    Keys(Arc<[PublicKey]>),
    Nothing,
    /// It did not come to one: nothing is known that was not before.
    NotTaken,
}

impl KeySet {
    /// Reads the keys that a program may sign with, and passes over all others.
    pub fn parse(body: &[u8]) -> Result<Arc<[PublicKey]>, String> {
        #[derive(Deserialize)]
        struct Published {
            keys: Vec<serde_json::Value>,
        }
        let Published { keys } =
            serde_json::from_slice(body).map_err(|_| "is not a JWK Set".to_owned())?;
        let keys = keys.iter().take(MAX_KEYS);
        let keys = keys.filter_map(|key| PublicKey::parse(&key.to_string()).ok());
        Ok(keys.collect())
    }

    /// The keys that are believed: those that were there lately, and older ones only where somebody has
    /// looked lately and could not see.
    pub fn keys(&self, now: Timestamp) -> &[PublicKey] {
        let is_out_of_sight =
            is_within(self.fetch_time, USABLE_S, now) && is_within(self.miss_time, FRESH_S, now);
        if self.is_fresh(now) || is_out_of_sight {
            &self.keys
        } else {
            &[]
        }
    }

    /// Whether it has the key of this name.
    pub fn has(&self, kid: &str, now: Timestamp) -> bool {
        self.keys(now).iter().any(|key| key.kid == kid)
    }

    /// Whether it is time to look, for somebody who names a key or none and found nothing; if so, they do.
    pub fn begin_to_look(&mut self, kid: Option<&str>, now: Timestamp) -> bool {
        let lacks_it = kid.is_some_and(|kid| !self.has(kid, now));
        let is_due = (lacks_it || !self.is_fresh(now))
            && !self.is_awaited(now)
            && !is_within(self.look_time, RETRY_S, now);
        if is_due {
            self.is_awaited = true;
            self.look_time = Some(now);
        }
        is_due
    }

    pub fn end_look(&mut self, look: Look, now: Timestamp) {
        self.is_awaited = false;
        match look {
            Look::Keys(keys) => {
                self.keys = keys;
                self.fetch_time = Some(now);
                self.miss_time = None;
            }
            Look::Nothing => self.miss_time = Some(now),
            Look::NotTaken => self.look_time = None,
        }
    }

    pub fn is_awaited(&self, now: Timestamp) -> bool {
        self.is_awaited && is_within(self.look_time, LOOK_S, now)
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        is_within(self.fetch_time, FRESH_S, now)
    }
}

/// Whether something was less than so long ago. What lies further ahead than clocks may differ is what
/// one that was wrong has left behind.
fn is_within(time: Option<Timestamp>, seconds: i64, now: Timestamp) -> bool {
    time.is_some_and(|time| time <= now.plus_s(AHEAD_S) && now < time.plus_s(seconds))
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

    fn parse(keys: &str) -> Result<Arc<[PublicKey]>, String> {
        KeySet::parse(format!(r#"{{"keys":[{keys}]}}"#).as_bytes())
    }

    /// As it was fetched at [`NOW`].
    fn fetched() -> KeySet {
        let mut set = KeySet::default();
        assert!(set.begin_to_look(None, NOW));
        set.end_look(Look::Keys(parse(KEY).expect("a set")), NOW);
        set
    }

    #[test]
    fn a_set_has_the_keys_that_may_sign() {
        let weak = r#"{"kty":"oct","k":"AAAA"}"#;
        let encrypts = KEY.replace(r#""kid""#, r#""use":"enc","kid""#);
        let keys = parse(&format!("{weak},{encrypts},{KEY},7")).expect("a set");
        let kids: Vec<&str> = keys.iter().map(|key| &*key.kid).collect();
        assert_eq!(kids, ["a"]);
        for bad in ["", "[]", "{}", r#"{"keys":{}}"#] {
            assert!(KeySet::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_set_is_looked_at_when_it_is_old_or_lacks_a_key_and_not_all_the_time() {
        let looks = |kid, now| fetched().begin_to_look(kid, now);
        assert!(!looks(None, NOW) && !looks(Some("b"), NOW) && !looks(Some("b"), NOW.plus_s(9)));
        assert!(!looks(None, NOW.plus_s(299)) && !looks(Some("a"), NOW.plus_s(299)));
        assert!(looks(Some("b"), NOW.plus_s(10)));
        assert!(looks(None, NOW.plus_s(300)) && looks(Some("a"), NOW.plus_s(300)));
        let mut set = fetched();
        assert!(set.begin_to_look(None, NOW.plus_s(300)));
        assert!(
            !set.begin_to_look(None, NOW.plus_s(359)),
            "somebody does already"
        );
        assert!(
            set.begin_to_look(None, NOW.plus_s(360)),
            "nobody does any more"
        );
    }

    #[test]
    fn old_keys_are_believed_only_where_somebody_has_looked_and_could_not_see() {
        let mut set = fetched();
        assert!(set.has("a", NOW.plus_s(299)) && !set.has("b", NOW));
        assert!(!set.has("a", NOW.plus_s(300)));
        assert!(set.begin_to_look(None, NOW.plus_s(300)));
        assert!(!set.has("a", NOW.plus_s(300)), "nothing is known yet");
        set.end_look(Look::Nothing, NOW.plus_s(305));
        assert!(set.has("a", NOW.plus_s(604)));
        // The next look holds nobody up.
        assert!(set.begin_to_look(Some("b"), NOW.plus_s(400)) && set.has("a", NOW.plus_s(400)));
        set.end_look(Look::NotTaken, NOW.plus_s(401));
        assert!(set.begin_to_look(Some("b"), NOW.plus_s(401)), "it was none");
        set.end_look(Look::Nothing, NOW.plus_s(3_500));
        assert!(set.has("a", NOW.plus_s(3599)) && !set.has("a", NOW.plus_s(3600)));
        // It was taken away.
        let mut set = fetched();
        assert!(set.begin_to_look(None, NOW.plus_s(300)));
        set.end_look(Look::Keys(parse("").expect("a set")), NOW.plus_s(301));
        assert!(!set.has("a", NOW.plus_s(301)));
    }

    #[test]
    fn clocks_may_differ_a_little_and_be_wrong_for_a_while() {
        assert!(fetched().has("a", NOW.plus_s(-1)));
        assert!(!fetched().begin_to_look(Some("b"), NOW.plus_s(-1)));
        assert!(!fetched().has("a", NOW.plus_s(-61)));
        assert!(fetched().begin_to_look(Some("a"), NOW.plus_s(-61)));
    }
}

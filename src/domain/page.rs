//! Pages of a list: how many, from where on.
//!
//! A page token is the place where the page before ended, encrypted and bound to the caller and the
//! query, so that it says nothing to anybody and works for nobody else.

use std::fmt::Write as _;

use data_encoding::BASE64URL_NOPAD;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    error::{Error, Reason, Result},
    master_key::Sealer,
    secret,
};

const DEFAULT_SIZE: i32 = 50;
const MAX_SIZE: i32 = 1000;

/// How many rows a page has at most.
pub fn size(requested: i32) -> Result<i64> {
    match requested {
        0 => Ok(DEFAULT_SIZE.into()),
        1.. => Ok(requested.min(MAX_SIZE).into()),
        _ => Err(Error::field("page_size", "must not be negative")),
    }
}

/// What a page token is good for: one list, one caller, one query.
pub struct Context([u8; 32]);

impl Context {
    pub fn new(rpc: &str, caller: Uuid, query: &[&str]) -> Self {
        let mut text = format!("{rpc}\n{caller}");
        for part in query {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{}:{part}", part.len());
        }
        Self(secret::sha256(text.as_bytes()))
    }

    pub fn seal<C: Serialize>(
        &self,
        sealer: &Sealer,
        nonce: [u8; 12],
        cursor: &C,
    ) -> Result<String> {
        let cursor = serde_json::to_vec(cursor).map_err(Error::internal)?;
        Ok(BASE64URL_NOPAD.encode(&sealer.seal(nonce, &self.0, &cursor)))
    }

    /// The place a token stands for; `None` for the first page.
    pub fn open<C: DeserializeOwned>(&self, sealer: &Sealer, token: &str) -> Result<Option<C>> {
        if token.is_empty() {
            return Ok(None);
        }
        let open = || -> Option<C> {
            let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
            serde_json::from_slice(&sealer.open(&self.0, &bytes)?).ok()
        };
        open().map(Some).ok_or_else(|| {
            let text = "was not made for this caller and this query";
            Error::invalid(Reason::InvalidPageToken, "page_token", text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::master_key::MasterKey;

    #[test]
    fn a_page_has_a_size_within_bounds() {
        assert_eq!(size(0).expect("default"), 50);
        assert_eq!(size(7).expect("asked for"), 7);
        assert_eq!(size(i32::MAX).expect("capped"), 1000);
        assert!(size(-1).is_err());
    }

    #[test]
    fn a_token_works_for_its_own_caller_and_query_only() {
        let keys = MasterKey::new([1; 32]).derive();
        let sealer = &keys.page_tokens;
        let here = Context::new("List", Uuid::nil(), &["state = ACTIVE", ""]);
        let token = here.seal(sealer, [2; 12], &("ann", 7)).expect("seals");
        let open = |context: &Context, token: &str| context.open::<(String, i32)>(sealer, token);
        assert_eq!(
            open(&here, &token).expect("own"),
            Some(("ann".to_owned(), 7))
        );
        assert_eq!(open(&here, "").expect("first page"), None);
        for other in [
            Context::new("List", Uuid::from_u128(1), &["state = ACTIVE", ""]),
            Context::new("List", Uuid::nil(), &["state = ACTIVE", "username"]),
            Context::new("List", Uuid::nil(), &["state = ACTIVE"]),
            Context::new("Other", Uuid::nil(), &["state = ACTIVE", ""]),
        ] {
            assert!(open(&other, &token).is_err());
        }
        let mut flipped = token.into_bytes();
        flipped[20] ^= 1;
        for bad in [
            String::from_utf8(flipped).expect("ASCII"),
            "x".to_owned(),
            "\u{1f600}".to_owned(),
        ] {
            assert!(open(&here, &bad).is_err(), "{bad}");
        }
    }
}

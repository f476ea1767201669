//! Certificates: what they say, and which of them a credential stands for that a program authenticates
//! with over TLS (RFC 8705).
//!
//! A program is known by a subject alternative name, which its authority has vouched for; common names
//! are never read. Whether the authority is one of ours is for `tls` to say.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER, HEXLOWER_PERMISSIVE};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, GeneralName, X509Certificate};

use super::{
    secret::{self, Digest},
    time::Timestamp,
};

/// Most bytes of a URI (as SPIFFE says) and of a DNS name.
const MAX_URI_BYTES: usize = 2048;
const MAX_DNS_BYTES: usize = 253;

/// A certificate with those that lead from it to its authority.
#[derive(Debug)]
pub struct Certificate {
    /// Leaf first, as it was shown.
    pub chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the leaf.
    digest: Digest,
    /// DNS names and URIs of the leaf.
    names: Vec<String>,
    /// When the first of them ends.
    pub expire_time: Timestamp,
}

/// Most certificates of a chain that is looked at.
const MAX_CHAIN: usize = 8;

impl Certificate {
    /// Nothing of a chain that is too long, or whose leaf cannot be read.
    pub fn read(chain: &[CertificateDer<'_>], now: Timestamp) -> Option<Self> {
        let leaf = chain.first().filter(|_| chain.len() <= MAX_CHAIN)?;
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let names = certificate.subject_alternative_name().ok()?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        Some(Self {
            digest: secret::sha256(leaf),
            names: names.iter().filter_map(name).collect(),
            expire_time: end(&certificate, chain, now),
            chain: chain.iter().map(|link| link.clone().into_owned()).collect(),
        })
    }

    /// `x5t#S256` of RFC 8705 section 3.1.
    pub fn thumbprint(&self) -> String {
        BASE64URL_NOPAD.encode(&self.digest)
    }
}

/// When a chain ends: what was over before proves nothing, and is not what it rests on.
fn end(leaf: &X509Certificate<'_>, chain: &[CertificateDer<'_>], now: Timestamp) -> Timestamp {
    let end = |certificate: &X509Certificate<'_>| {
        Timestamp::from_seconds(certificate.validity().not_after.timestamp())
    };
    let links = chain.iter().skip(1).filter_map(|link| {
        let (_, link) = X509Certificate::from_der(link).ok()?;
        Some(end(&link)).filter(|end| now < *end)
    });
    links.fold(end(leaf), Timestamp::min)
}

/// The name of the authority whose list of what it revoked this is, as it is written there.
pub fn issuer_of_list(list: &[u8]) -> Option<Vec<u8>> {
    let (_, list) = CertificateRevocationList::from_der(list).ok()?;
    Some(list.issuer().as_raw().to_vec())
}

/// When an authority ends, if it is one: whoever checks chains believes everything of what they are told
/// to believe.
pub fn authority(der: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let signs = certificate.key_usage().ok()?;
    let is_authority = certificate.is_ca() && signs.is_none_or(|usage| usage.value.key_cert_sign());
    let end = certificate.validity().not_after.timestamp();
    is_authority.then(|| Timestamp::from_seconds(end))
}

/// A URI as it is, or a DNS name in lower case: the one has a colon and the other none.
fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::URI(uri) if uri.contains(':') => Some((*uri).to_owned()),
        GeneralName::DNSName(dns) if !dns.contains(':') => Some(dns.to_ascii_lowercase()),
        _ => None,
    }
}

/// Which certificates are a program's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// A URI or a DNS name, one of those in the certificate.
    pub san: String,
    /// SHA-256 of the one certificate, in hexadecimal; any that has the name if there is none.
    pub sha256: Option<String>,
}

impl Identity {
    pub fn is_of(&self, certificate: &Certificate) -> bool {
        let digest = HEXLOWER.encode(&certificate.digest);
        certificate.names.contains(&self.san)
            && self.sha256.as_ref().is_none_or(|pinned| *pinned == digest)
    }
}

/// The name of a program as certificates have it. An error is the end of a sentence about it.
pub fn parse_san(text: &str) -> Result<String, String> {
    let is_good = match text.split_once(':') {
        Some((scheme, rest)) => {
            let is_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(is_scheme)
                && !rest.is_empty()
                && rest.bytes().all(|b| b.is_ascii_graphic())
                && text.len() <= MAX_URI_BYTES
        }
        None => text.len() <= MAX_DNS_BYTES && text.split('.').all(is_label),
    };
    match is_good {
        true if text.contains(':') => Ok(text.to_owned()),
        true => Ok(text.to_ascii_lowercase()),
        false => Err(
            "must be a URI such as spiffe://example/billing or a DNS name without a wildcard"
                .to_owned(),
        ),
    }
}

fn is_label(label: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    (1..=63).contains(&label.len())
        && label.bytes().all(is_inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A digest as tools print it, with or without colons; nothing if there is none.
pub fn parse_sha256(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes());
    match bytes {
        Ok(bytes) if bytes.len() == 32 => Ok(Some(HEXLOWER.encode(&bytes))),
        _ => Err("must be a SHA-256 digest in hexadecimal".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_uri_or_a_dns_name() {
        for good in [
            "spiffe://example/billing",
            "urn:uuid:0190",
            "https://Billing.example/A",
        ] {
            assert_eq!(parse_san(good), Ok(good.to_owned()));
        }
        assert_eq!(
            parse_san("Billing.Internal"),
            Ok("billing.internal".to_owned())
        );
        let long = "a".repeat(64);
        for bad in [
            "",
            ":",
            "spiffe:",
            "1a://x",
            "a b",
            "spiffe://a b",
            "*.internal",
            "a..b",
            "a.",
            "-a",
            "ä.example",
            &long,
        ] {
            assert!(parse_san(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_digest_is_read_as_tools_print_it() {
        let hex = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(parse_sha256(&hex), Ok(Some(hex.clone())));
        assert_eq!(parse_sha256(&colons), Ok(Some(hex.clone())));
        assert_eq!(parse_sha256(""), Ok(None));
        assert!(parse_sha256("abc").is_err());
        assert!(parse_sha256(&hex[2..]).is_err());
    }

    #[test]
    fn a_certificate_is_a_programs_by_name_and_digest() {
        let certificate = |names: &[&str]| Certificate {
            chain: Vec::new(),
            digest: [0xab; 32],
            names: names.iter().map(ToString::to_string).collect(),
            expire_time: Timestamp::MAX,
        };
        let identity = |sha256: Option<String>| Identity {
            san: "spiffe://example/billing".to_owned(),
            sha256,
        };
        let right = certificate(&["other.example", "spiffe://example/billing"]);
        assert!(identity(None).is_of(&right));
        assert!(identity(Some("ab".repeat(32))).is_of(&right));
        assert!(!identity(Some("cd".repeat(32))).is_of(&right));
        for other in [
            "spiffe://example/billing/x",
            "spiffe://Example/billing",
            "spiffe",
        ] {
            assert!(!identity(None).is_of(&certificate(&[other])), "{other}");
        }
        assert!(!identity(None).is_of(&certificate(&[])));
    }

    #[test]
    fn what_is_no_name_of_its_kind_is_no_name() {
        assert_eq!(name(&GeneralName::URI("billing.internal")), None);
        assert_eq!(
            name(&GeneralName::DNSName("spiffe://example/billing")),
            None
        );
        assert_eq!(name(&GeneralName::RFC822Name("a@b.example")), None);
        let dns = name(&GeneralName::DNSName("Billing.Internal"));
        assert_eq!(dns.as_deref(), Some("billing.internal"));
    }
}

//! Postal addresses, in the shape of `google.type.PostalAddress` and with the regions of CLDR.

use serde::{Deserialize, Serialize};

use super::text;

/// Most characters of one line or name.
const MAX_LINE: usize = 200;
/// Most lines, and most recipients.
pub const MAX_LINES: usize = 10;
/// A region of CLDR that ISO 3166 leaves to users.
const KOSOVO: &str = "XK";

/// Where paper is sent to. How its parts are arranged depends on the region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostalAddress {
    /// ISO 3166-1 alpha-2, in capitals.
    pub region_code: String,
    /// Canonical BCP 47, or empty.
    pub language_code: String,
    pub postal_code: String,
    pub sorting_code: String,
    pub administrative_area: String,
    pub locality: String,
    pub sublocality: String,
    pub address_lines: Vec<String>,
    pub recipients: Vec<String>,
    pub organization: String,
}

impl PostalAddress {
    /// Checks every part; `refuse` hears which one is wrong, by its name, and how.
    pub fn check(self, mut refuse: impl FnMut(&str, String)) -> Self {
        let region = &self.region_code;
        let is_region = region.len() == 2
            && region.bytes().all(|b| b.is_ascii_uppercase())
            && (region == KOSOVO || celes::Country::from_alpha2(region).is_ok());
        if !is_region {
            let text = "must be a region such as `CH` (ISO 3166-1 alpha-2)";
            refuse("region_code", text.to_owned());
        }
        let language_code = match text::language(&self.language_code) {
            Ok(tag) => tag,
            Err(text) => {
                refuse("language_code", text);
                String::new()
            }
        };
        for (name, value) in [
            ("postal_code", &self.postal_code),
            ("sorting_code", &self.sorting_code),
            ("administrative_area", &self.administrative_area),
            ("locality", &self.locality),
            ("sublocality", &self.sublocality),
            ("organization", &self.organization),
        ] {
            if let Err(text) = text::line(value, MAX_LINE) {
                refuse(name, text);
            }
        }
        for (name, lines) in [
            ("address_lines", &self.address_lines),
            ("recipients", &self.recipients),
        ] {
            if lines.len() > MAX_LINES {
                refuse(name, format!("must have at most {MAX_LINES} entries"));
            }
            let wrong = lines
                .iter()
                .find_map(|line| text::required_line(line, MAX_LINE).err());
            if let Some(text) = wrong {
                refuse(name, text);
            }
        }
        Self {
            language_code,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(address: PostalAddress) -> Vec<String> {
        let mut wrong = Vec::new();
        address.check(|name, _| wrong.push(name.to_owned()));
        wrong
    }

    fn line(lines: &[&str]) -> Vec<String> {
        lines.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_of_the_world_are_kept_as_they_are() {
        let address =
            |region_code: &str, lines: &[&str], postal_code: &str, locality: &str| PostalAddress {
                region_code: region_code.to_owned(),
                address_lines: line(lines),
                postal_code: postal_code.to_owned(),
                locality: locality.to_owned(),
                ..PostalAddress::default()
            };
        for address in [
            address("CH", &["Brandschenkestrasse 110"], "8002", "Zürich"),
            address(
                "US",
                &["1600 Amphitheatre Pkwy"],
                "94043-1351",
                "Mountain View",
            ),
            address("GB", &["1-13 St Giles High St"], "WC2H 8AG", "London"),
            address("JP", &["六本木6丁目10番1号"], "106-6126", "港区"),
            address(
                "IE",
                &["Gordon House", "Barrow Street"],
                "D04 E5W5",
                "Dublin",
            ),
            address("HK", &["1 Matheson Street"], "", "銅鑼灣"),
            address("XK", &["Rruga B"], "10000", "Prishtinë"),
        ] {
            assert_eq!(
                address.clone().check(|name, text| panic!("{name} {text}")),
                address
            );
        }
    }

    #[test]
    fn every_part_that_is_wrong_is_named() {
        let address = PostalAddress {
            region_code: "Switzerland".to_owned(),
            language_code: "no language".to_owned(),
            locality: "a\nb".to_owned(),
            address_lines: line(&["", "x"]),
            recipients: vec!["x".to_owned(); MAX_LINES + 1],
            organization: "x".repeat(MAX_LINE + 1),
            ..PostalAddress::default()
        };
        let expected = [
            "region_code",
            "language_code",
            "locality",
            "organization",
            "address_lines",
            "recipients",
        ];
        assert_eq!(wrong(address), expected);
        for region in ["", "ch", "ZZ", "C", "CHE"] {
            let address = PostalAddress {
                region_code: region.to_owned(),
                ..PostalAddress::default()
            };
            assert_eq!(wrong(address), ["region_code"], "{region}");
        }
    }
}

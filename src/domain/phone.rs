//! Phone numbers, in the one form that is the same everywhere (E.164).

use phonenumber::Mode;

/// Most characters of a number as typed.
const MAX_TYPED: usize = 32;

/// A number that can be called from anywhere, `+` and 15 digits at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phone(String);

impl Phone {
    /// Reads a number in international form, with whatever people put between its digits.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || "must be a phone number with its country, such as +41 44 668 18 00";
        let is_part = |b: u8| b.is_ascii_digit() || b" ()-./".contains(&b);
        let digits = text.strip_prefix('+').unwrap_or_default();
        let is_typed = digits.bytes().all(is_part) && (1..=MAX_TYPED).contains(&digits.len());
        let number = is_typed.then(|| phonenumber::parse(None, text).ok());
        let number = number.flatten().ok_or_else(expected)?;
        if number.extension().is_some() || !phonenumber::is_valid(&number) {
            return Err(expected().to_owned());
        }
        Ok(Self(number.format().mode(Mode::E164).to_string()))
    }

    /// For numbers read back from the store.
    pub const fn from_stored(e164: String) -> Self {
        Self(e164)
    }

    /// As stored and compared.
    pub fn e164(&self) -> &str {
        &self.0
    }

    /// As people of its country read it to foreigners.
    pub fn display(&self) -> String {
        phonenumber::parse(None, &self.0).map_or_else(
            |_| self.0.clone(),
            |number| number.format().mode(Mode::International).to_string(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_world_survive_in_one_form() {
        for (typed, e164, display) in [
            ("+41 44 668 18 00", "+41446681800", "+41 44 668 18 00"),
            ("+1 (650) 253-0000", "+16502530000", "+1 650-253-0000"),
            ("+44 20 7031 3000", "+442070313000", "+44 20 7031 3000"),
            ("+49.176.12345678", "+4917612345678", "+49 176 12345678"),
            ("+39 06 698 12345", "+390669812345", "+39 06 6981 2345"),
            ("+33 1 42 68 53 00", "+33142685300", "+33 1 42 68 53 00"),
            ("+55 11 2395-8400", "+551123958400", "+55 11 2395-8400"),
            ("+81 3-6384-9000", "+81363849000", "+81 3-6384-9000"),
            ("+91 80 6721 8000", "+918067218000", "+91 80672 18000"),
            ("+52 55 5342 8400", "+525553428400", "+52 55 5342 8400"),
            ("+7 495 644-14-00", "+74956441400", "+7 495 644-14-00"),
            ("+800 1234 5678", "+80012345678", "+800 1234 5678"),
        ] {
            let phone = Phone::parse(typed).expect(typed);
            assert_eq!((phone.e164(), &*phone.display()), (e164, display));
            for form in [e164, display] {
                assert_eq!(Phone::parse(form).as_ref(), Ok(&phone), "{form}");
            }
        }
    }

    #[test]
    fn what_cannot_be_called_from_anywhere_is_refused() {
        for bad in [
            "",
            "+",
            "044 668 18 00",
            "0041446681800",
            "tel:+41446681800",
            "+41446681800 ext. 7",
            "+41446681800;ext=7",
            "+999 123 456",
            "+12",
            "+41 44 668",
            "+41446681800\r\n",
            "+４１446681800",
            "+41 44 668 18 00 and then some more of it",
        ] {
            assert!(Phone::parse(bad).is_err(), "{bad:?}");
        }
    }
}

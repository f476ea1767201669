//! Passwords that people choose: what is accepted, and how one is kept and compared.
//!
//! Follows NIST SP 800-63B-4 section 3.1.1 and ASVS 5.0 section 6.2: length instead of composition
//! rules, a list of common passwords, no truncation. Passwords are compared after NFC, which makes
//! the same password typed on two keyboards equal and loses nothing else.
//! Invariant: argon2 is named here and in `foreign_hash` alone; whoever hashes brings the memory.

use std::{collections::HashSet, fmt, sync::LazyLock};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use data_encoding::BASE64_NOPAD;
use password_hash::phc::{Ident, Output, ParamsString, PasswordHash as Phc, Salt};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

/// Most bytes of UTF-8 that a password may have; bounds what normalising and hashing read.
pub const MAX_BYTES: usize = 1024;

/// What somebody typed as a password, in NFC.
pub struct Password(Zeroizing<String>);

impl Password {
    /// Takes over what was typed, whatever it is; [`Password::check`] says whether it will do.
    pub fn new(typed: String) -> Self {
        let typed = Zeroizing::new(typed);
        Self(Zeroizing::new(typed.nfc().collect()))
    }

    /// Like [`Password::new`], refusing what is empty or larger than any password can be.
    pub fn parse(typed: String) -> Result<Self, String> {
        match typed.len() {
            0 => Err("is required".to_owned()),
            1..=MAX_BYTES => Ok(Self::new(typed)),
            _ => Err(format!("must have at most {MAX_BYTES} bytes")),
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Whether this will do as a new password for an account whose names are `own_words`.
    pub fn check(&self, min_length: usize, own_words: &[&str]) -> Result<(), String> {
        let length = self.0.chars().count();
        if length < min_length {
            return Err(format!("must have at least {min_length} characters"));
        }
        if self.0.len() > MAX_BYTES {
            return Err(format!("must have at most {MAX_BYTES} bytes"));
        }
        let folded = Zeroizing::new(self.0.to_lowercase());
        if is_common(&folded) {
            return Err("is one of the passwords that are tried first".to_owned());
        }
        if is_made_of(&folded, own_words) {
            return Err("must not be made of the account's own names".to_owned());
        }
        Ok(())
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(withheld)")
    }
}

/// A password hash as stored: a PHC string that names its own parameters; or one of another system,
/// which lacks the pepper and is encrypted instead.
#[derive(Clone)]
pub struct PasswordHash(String);

/// What an encrypted hash of another system begins with.
const SEALED: &str = "$sealed$";

impl PasswordHash {
    pub fn from_stored(phc: String) -> Self {
        Self(phc)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A hash of another system, encrypted.
    pub fn sealed(sealed: &[u8]) -> Self {
        Self(format!("{SEALED}{}", BASE64_NOPAD.encode(sealed)))
    }

    /// What is to be decrypted, if it is of another system.
    pub fn as_sealed(&self) -> Option<Vec<u8>> {
        let text = self.0.strip_prefix(SEALED)?;
        BASE64_NOPAD.decode(text.as_bytes()).ok()
    }

    /// Whether the hash was made at another cost than `cost`, and should be made anew.
    pub fn is_outdated(&self, cost: Cost) -> bool {
        Phc::new(&self.0).ok().and_then(|phc| Cost::of(&phc)) != Some(cost)
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(withheld)")
    }
}

/// The parameters of argon2id (RFC 9106).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    pub memory_kib: u32,
    pub iterations: u32,
    pub parallelism: u32,
}

impl Cost {
    /// The most that a stored hash may ask for; beyond it the hash is refused, not computed.
    pub const CEILING: Self = Self {
        memory_kib: 256 * 1024,
        iterations: 16,
        parallelism: 8,
    };

    fn of(phc: &Phc) -> Option<Self> {
        let is_ours = phc.algorithm.as_str() == "argon2id" && phc.version == Some(0x13);
        let params = Params::try_from(phc).ok().filter(|_| is_ours)?;
        Some(Self {
            memory_kib: params.m_cost(),
            iterations: params.t_cost(),
            parallelism: params.p_cost(),
        })
    }

    pub(super) fn is_within(self, ceiling: Self) -> bool {
        self.memory_kib <= ceiling.memory_kib
            && self.iterations <= ceiling.iterations
            && self.parallelism <= ceiling.parallelism
    }

    /// The parameters, if argon2 can work with them.
    pub fn params(self) -> Result<Params, String> {
        Params::new(
            self.memory_kib,
            self.iterations,
            self.parallelism,
            Some(OUTPUT_LEN),
        )
        .map_err(|error| error.to_string())
    }
}

const OUTPUT_LEN: usize = 32;

/// The working memory of one lane, reused from hash to hash: fresh memory for every hash is not
/// given back by every allocator and grows without bound.
#[derive(Default)]
pub struct Memory {
    blocks: Vec<Block>,
    /// How many blocks it is set aside for; more is given back.
    usual: usize,
}

impl Memory {
    /// Memory set aside for hashes of this cost; the system provides it when it is first used.
    pub fn for_cost(cost: Cost) -> Result<Self, String> {
        let usual = cost.params()?.block_count();
        Ok(Self {
            blocks: Vec::with_capacity(usual),
            usual,
        })
    }

    pub(super) fn blocks(&mut self, params: &Params) -> &mut [Block] {
        let count = params.block_count();
        if self.blocks.len() < count {
            self.blocks.resize(count, Block::default());
        }
        &mut self.blocks[..count]
    }

    /// Gives back what a hash dearer than usual has taken.
    pub fn settle(&mut self) {
        if self.blocks.len() > self.usual {
            self.blocks.truncate(self.usual);
            self.blocks.shrink_to(self.usual);
        }
    }
}

/// The new hash of a password; `salt` is fresh from a generator.
pub fn hash(
    password: &Password,
    salt: [u8; 16],
    cost: Cost,
    pepper: &[u8],
    memory: &mut Memory,
) -> Result<PasswordHash, String> {
    let params = cost.params()?;
    let mut output = Zeroizing::new([0; OUTPUT_LEN]);
    fill(
        password,
        &salt,
        params.clone(),
        pepper,
        memory,
        &mut *output,
    )?;
    let phc = |error: password_hash::phc::Error| error.to_string();
    let hash = Phc {
        algorithm: Ident::new("argon2id").map_err(phc)?,
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(|error| error.to_string())?,
        salt: Some(Salt::new(&salt).map_err(phc)?),
        hash: Some(Output::new(&*output).map_err(phc)?),
    };
    Ok(PasswordHash(hash.to_string()))
}

/// Whether the password is the one that was hashed. An error means that the stored hash cannot be
/// used: damaged, of another algorithm, or above [`Cost::CEILING`].
pub fn verify(
    password: &Password,
    stored: &PasswordHash,
    pepper: &[u8],
    memory: &mut Memory,
) -> Result<bool, String> {
    let phc = Phc::new(stored.as_str()).map_err(|error| error.to_string())?;
    let cost = Cost::of(&phc).ok_or("not an argon2id hash")?;
    if !cost.is_within(Cost::CEILING) {
        return Err(format!("asks for more than is allowed: {cost:?}"));
    }
    let (salt, wanted) = phc
        .salt
        .as_ref()
        .zip(phc.hash.as_ref())
        .ok_or("without salt or hash")?;
    let mut output = Zeroizing::new(vec![0; wanted.len()]);
    let params = Params::new(
        cost.memory_kib,
        cost.iterations,
        cost.parallelism,
        Some(wanted.len()),
    )
    .map_err(|error| error.to_string())?;
    fill(password, salt.as_ref(), params, pepper, memory, &mut output)?;
    Ok(super::secret::equal(&output, wanted.as_bytes()))
}

fn fill(
    password: &Password,
    salt: &[u8],
    params: Params,
    pepper: &[u8],
    memory: &mut Memory,
    output: &mut [u8],
) -> Result<(), String> {
    let blocks = memory.blocks(&params);
    Argon2::new_with_secret(pepper, Algorithm::Argon2id, Version::V0x13, params)
        .and_then(|argon2| {
            argon2.hash_password_into_with_memory(password.as_bytes(), salt, output, blocks)
        })
        .map_err(|error| error.to_string())
}

/// The list of common passwords, all of eight characters or more and in lower case.
static COMMON: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    include_str!("common_passwords.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect()
});

/// Whether a folded password is on the list: as it is, without digits and punctuation around it, or
/// as a repetition of something on the list or of four characters or less.
fn is_common(folded: &str) -> bool {
    let core = folded.trim_matches(|c: char| !c.is_alphabetic());
    [folded, core].into_iter().any(|text| {
        let unit = repeated_unit(text);
        COMMON.contains(text) || COMMON.contains(unit) || (1..=4).contains(&unit.chars().count())
    })
}

/// The shortest start of `text` of which `text` is a repetition, the last one perhaps cut short.
fn repeated_unit(text: &str) -> &str {
    let bytes = text.as_bytes();
    let repeats = |period: &usize| {
        text.is_char_boundary(*period) && bytes[*period..] == bytes[..bytes.len() - period]
    };
    let period = (1..bytes.len()).find(repeats);
    &text[..period.unwrap_or(bytes.len())]
}

/// Whether little but the account's own words is left of a folded password.
fn is_made_of(folded: &str, own_words: &[&str]) -> bool {
    let mut rest = folded.to_owned();
    let mut found = false;
    for word in own_words
        .iter()
        .flat_map(|name| name.split_whitespace())
        .chain(["accountd"])
    {
        let word = word.nfc().collect::<String>().to_lowercase();
        if word.chars().count() >= 3 && rest.contains(&word) {
            rest = rest.replace(&word, " ");
            found = true;
        }
    }
    let left = rest.chars().filter(|c| c.is_alphabetic()).count();
    found && left < 4
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Cost = Cost {
        memory_kib: 64,
        iterations: 1,
        parallelism: 1,
    };

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    #[test]
    fn length_is_counted_in_characters_after_nfc() {
        assert!(password("correct horse b").check(15, &[]).is_ok());
        assert!(password("correct horse ").check(15, &[]).is_err());
        assert!(password("пароль из слов!").check(15, &[]).is_ok());
        assert!(password(&"u\u{308}".repeat(14)).check(15, &[]).is_err());
        assert!(Password::parse("x".repeat(1025)).is_err());
        assert!(Password::parse(String::new()).is_err());
        assert!(password(&"horse ".repeat(170)).check(15, &[]).is_ok());
    }

    #[test]
    fn common_passwords_and_their_decorations_are_refused() {
        assert!(COMMON.len() >= 10_000, "{}", COMMON.len());
        for bad in [
            "1qaz2wsx3edc4rfv",
            "PasswordPassword",
            "passwordpasswordpass",
            "aaaaaaaaaaaaaaaaaaaa",
            "abcdabcdabcdabcd",
            "123456789012345",
            "superman12345678",
            "!!!!Liverpool2026!!!!",
        ] {
            assert!(password(bad).check(15, &[]).is_err(), "{bad}");
        }
        assert!(password("Liverpool").check(8, &[]).is_err());
        assert!(password("superman flies at noon").check(15, &[]).is_ok());
    }

    #[test]
    fn the_account_s_own_words_are_not_a_password() {
        let names = ["ann.mueller", "Ann Müller"];
        for bad in [
            "ann.mueller2026!",
            "AnnMüllerAnnMüller",
            "müller müller ann",
            "accountd-accountd",
        ] {
            assert!(password(bad).check(8, &names).is_err(), "{bad}");
        }
        assert!(password("annual marmalade prize").check(15, &names).is_ok());
    }

    #[test]
    fn only_the_same_password_with_the_same_pepper_matches() {
        let mut memory = Memory::default();
        let hashed = hash(
            &password("ju\u{308}rgen"),
            [1; 16],
            CHEAP,
            b"pepper",
            &mut memory,
        )
        .expect("hashes");
        let mut verify =
            |text, pepper: &[u8]| verify(&password(text), &hashed, pepper, &mut memory);
        assert_eq!(verify("jürgen", b"pepper"), Ok(true));
        assert_eq!(verify("Jürgen", b"pepper"), Ok(false));
        assert_eq!(verify("jürgen", b"salt"), Ok(false));
        assert!(hashed.as_str().starts_with("$argon2id$v=19$m=64,t=1,p=1$"));
        assert!(!hashed.is_outdated(CHEAP));
        assert!(hashed.is_outdated(Cost {
            iterations: 2,
            ..CHEAP
        }));
    }

    #[test]
    fn a_lane_gives_back_what_a_dear_hash_has_taken() {
        let cost = |memory_kib| Cost {
            memory_kib,
            iterations: 1,
            parallelism: 1,
        };
        let mut memory = Memory::for_cost(cost(64)).expect("a cost");
        let typed = Password::new("seven quiet herons".to_owned());
        hash(&typed, [1; 16], cost(4096), b"", &mut memory).expect("hashes");
        assert!(memory.blocks.capacity() >= 4096);
        memory.settle();
        assert!(
            memory.blocks.capacity() < 128,
            "{}",
            memory.blocks.capacity()
        );
        hash(&typed, [1; 16], cost(64), b"", &mut memory).expect("hashes");
    }

    #[test]
    fn a_stored_hash_cannot_choose_what_it_costs() {
        let mut memory = Memory::default();
        let verify = |stored: &str, memory: &mut Memory| {
            verify(
                &password("x"),
                &PasswordHash::from_stored(stored.to_owned()),
                b"",
                memory,
            )
        };
        let tail = "$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        for head in [
            "$argon2id$v=19$m=4194304,t=1,p=1",
            "$argon2id$v=19$m=64,t=4000000000,p=1",
            "$argon2id$v=19$m=1048576,t=1,p=1000",
            "$argon2i$v=19$m=64,t=1,p=1",
            "$argon2id$v=16$m=64,t=1,p=1",
        ] {
            assert!(
                verify(&format!("{head}{tail}"), &mut memory).is_err(),
                "{head}"
            );
        }
        assert!(verify("", &mut memory).is_err());
        assert!(memory.blocks.is_empty(), "nothing was allocated for them");
    }
}

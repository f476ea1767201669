//! Password hashes that another system made, accepted so that people can move without choosing anew.
//!
//! | form | from |
//! |---|---|
//! | `$argon2id$…`, `$argon2i$…` | RFC 9106, PHC strings |
//! | `$2a$…`, `$2b$…`, `$2y$…` | bcrypt, which reads 72 bytes of a password |
//! | `$scrypt$ln=…,r=…,p=…$salt$hash` | RFC 7914, PHC strings |
//! | `$firebase-scrypt$ln=…,r=…$salt$separator$key$hash` | Firebase, with the project's parameters |
//! | `$pbkdf2-sha256$i=…$salt$hash`, `$pbkdf2-sha256$…$salt$hash`, `pbkdf2_sha256$…$salt$hash` | RFC 8018 as PHC, passlib and Django write it; `sha1`, `sha512` likewise, passlib's `$pbkdf2$` for SHA-1 |
//! | `$5$…`, `$6$…` | sha256-crypt, sha512-crypt |
//! | `{SSHA}…`, `{SSHA256}…`, `{SSHA512}…` | LDAP: digest and salt in base64 |
//! | `$salted-sha256$rounds=…,order=…$salt$hash` | a digest of salt and password, digested `rounds` times; `md5`, `sha1`, `sha512` likewise |
//! | `$hmac-sha256$key=…,order=…$salt$hash` | a keyed digest of salt and password; likewise |
//!
//! `order` is `salt-first` or `password-first`. Binary parts are base64 in any of its alphabets, padded
//! or not.
//! Invariant: what a hash may cost is checked when it is read, so none that is stored costs more.

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{
    cipher::{AES_256, DecryptingKey, DecryptionContext, UnboundCipherKey},
    iv::FixedLength,
};
use data_encoding::BASE64_NOPAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use password_hash::phc::PasswordHash as Phc;
use sha_crypt::{PasswordVerifier as _, ShaCrypt};
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

use super::{
    password::{Cost, Memory, Password},
    secret,
};

/// Most bytes of such a hash as it is written.
pub const MAX_BYTES: usize = 1024;
const MAX_SALT_BYTES: usize = 128;
const MAX_KEY_BYTES: usize = 256;
/// Bytes of a derived key or a digest.
const OUTPUT_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
/// The most that each kind may ask for: about a second on one core.
const MAX_BCRYPT_COST: u32 = 14;
const MAX_PBKDF2_ROUNDS: u32 = 2_000_000;
const MAX_CRYPT_ROUNDS: u32 = 1_000_000;
const MAX_CRYPT_PASSWORD_BYTES: usize = 128;
const MAX_SALTED_ROUNDS: u32 = 1_000_000;
/// Of scrypt, in KiB, and how many times over.
const MAX_SCRYPT_KIB: u64 = 128 * 1024;
const MAX_SCRYPT_PARALLELISM: u32 = 4;

/// A hash of another system that has been read and is within the limits.
pub struct ForeignHash(Scheme);

enum Scheme {
    Argon2 {
        algorithm: Algorithm,
        version: Version,
        params: Params,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    /// Checked by the library from its text.
    Bcrypt(String),
    ShaCrypt(String),
    Scrypt {
        params: scrypt::Params,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Firebase {
        params: scrypt::Params,
        /// With the separator behind it.
        salt: Vec<u8>,
        /// What is encrypted under what scrypt gives.
        key: Zeroizing<Vec<u8>>,
        hash: Vec<u8>,
    },
    Pbkdf2 {
        digest: Digest,
        rounds: u32,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Salted {
        digest: Digest,
        /// Keyed, or digested so many times.
        how: Keyed,
        order: Order,
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Digest {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

enum Keyed {
    Rounds(u32),
    Key(Zeroizing<Vec<u8>>),
}

#[derive(Clone, Copy)]
enum Order {
    SaltFirst,
    PasswordFirst,
}

impl std::fmt::Debug for ForeignHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ForeignHash(withheld)")
    }
}

impl ForeignHash {
    /// Reads a hash; an error is the end of a sentence about it, without anything of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("must have at most {MAX_BYTES} bytes"));
        }
        let unknown = || "is of no form that is known".to_owned();
        let (name, rest) = if let Some(rest) = text.strip_prefix('{') {
            rest.split_once('}').ok_or_else(unknown)?
        } else {
            let text = text.strip_prefix('$').unwrap_or(text);
            text.split_once('$').ok_or_else(unknown)?
        };
        let scheme = match name {
            "argon2id" | "argon2i" => argon2_of(text),
            "2a" | "2b" | "2y" => bcrypt_of(text),
            "5" | "6" => sha_crypt_of(text),
            "scrypt" => scrypt_of(rest),
            "firebase-scrypt" => firebase_of(rest),
            "SSHA" => ldap_of(Digest::Sha1, rest),
            "SSHA256" => ldap_of(Digest::Sha256, rest),
            "SSHA512" => ldap_of(Digest::Sha512, rest),
            "pbkdf2" => pbkdf2_of(Digest::Sha1, rest, salt_of),
            "pbkdf2_sha1" => pbkdf2_of(Digest::Sha1, rest, plain_salt_of),
            "pbkdf2_sha256" => pbkdf2_of(Digest::Sha256, rest, plain_salt_of),
            "pbkdf2_sha512" => pbkdf2_of(Digest::Sha512, rest, plain_salt_of),
            _ => {
                let (family, digest) = name.split_once('-').ok_or_else(unknown)?;
                match (family, Digest::parse(digest).ok_or_else(unknown)?) {
                    ("pbkdf2", Digest::Md5) => return Err(unknown()),
                    ("pbkdf2", digest) => pbkdf2_of(digest, rest, salt_of),
                    ("salted" | "hmac", digest) => salted_of(digest, family == "hmac", rest),
                    _ => return Err(unknown()),
                }
            }
        };
        scheme.map(Self)
    }

    /// Whether the password is the one that was hashed.
    pub fn verify(&self, password: &Password, memory: &mut Memory) -> bool {
        let password = password.as_bytes();
        match &self.0 {
            Scheme::Argon2 {
                algorithm,
                version,
                params,
                salt,
                hash,
            } => {
                let mut output = vec![0; hash.len()];
                let argon2 = Argon2::new(*algorithm, *version, params.clone());
                let blocks = memory.blocks(params);
                argon2
                    .hash_password_into_with_memory(password, salt, &mut output, blocks)
                    .is_ok_and(|()| secret::equal(&output, hash))
            }
            Scheme::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
            // Each round reads the password anew.
            Scheme::ShaCrypt(text) => {
                password.len() <= MAX_CRYPT_PASSWORD_BYTES
                    && ShaCrypt::default()
                        .verify_password(password, text.as_str())
                        .is_ok()
            }
            Scheme::Scrypt { params, salt, hash } => {
                let mut output = vec![0; hash.len()];
                scrypt::scrypt(password, salt, params, &mut output)
                    .is_ok_and(|()| secret::equal(&output, hash))
            }
            Scheme::Firebase {
                params,
                salt,
                key,
                hash,
            } => {
                let mut derived = Zeroizing::new([0; 32]);
                scrypt::scrypt(password, salt, params, &mut *derived).is_ok()
                    && encrypted(&derived, key).is_some_and(|sealed| secret::equal(&sealed, hash))
            }
            Scheme::Pbkdf2 {
                digest,
                rounds,
                salt,
                hash,
            } => {
                let mut output = vec![0; hash.len()];
                match digest {
                    Digest::Md5 => return false,
                    Digest::Sha1 => {
                        pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, *rounds, &mut output);
                    }
                    Digest::Sha256 => {
                        pbkdf2::pbkdf2_hmac::<Sha256>(password, salt, *rounds, &mut output);
                    }
                    Digest::Sha512 => {
                        pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, *rounds, &mut output);
                    }
                }
                secret::equal(&output, hash)
            }
            Scheme::Salted {
                digest,
                how,
                order,
                salt,
                hash,
            } => {
                let input = Zeroizing::new(match order {
                    Order::SaltFirst => [salt, password].concat(),
                    Order::PasswordFirst => [password, salt].concat(),
                });
                let output = match how {
                    Keyed::Key(key) => digest.mac(key, &input),
                    Keyed::Rounds(rounds) => {
                        (1..*rounds).fold(digest.of(&input), |output, _| digest.of(&output))
                    }
                };
                secret::equal(&output, hash)
            }
        }
    }
}

impl Digest {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "md5" => Self::Md5,
            "sha1" => Self::Sha1,
            "sha256" => Self::Sha256,
            "sha512" => Self::Sha512,
            _ => return None,
        })
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    fn of(self, input: &[u8]) -> Vec<u8> {
        match self {
            Self::Md5 => Md5::digest(input).to_vec(),
            Self::Sha1 => Sha1::digest(input).to_vec(),
            Self::Sha256 => Sha256::digest(input).to_vec(),
            Self::Sha512 => Sha512::digest(input).to_vec(),
        }
    }

    fn mac(self, key: &[u8], input: &[u8]) -> Vec<u8> {
        macro_rules! mac {
            ($digest:ty) => {{
                let mut mac = Hmac::<$digest>::new_from_slice(key).expect("any key will do");
                mac.update(input);
                mac.finalize().into_bytes().to_vec()
            }};
        }
        match self {
            Self::Md5 => mac!(Md5),
            Self::Sha1 => mac!(Sha1),
            Self::Sha256 => mac!(Sha256),
            Self::Sha512 => mac!(Sha512),
        }
    }
}

/// AES-256-CTR from zero, in which encrypting is decrypting.
fn encrypted(key: &[u8; 32], plain: &[u8]) -> Option<Vec<u8>> {
    let key = UnboundCipherKey::new(&AES_256, key).ok()?;
    let mut text = plain.to_vec();
    let from_zero = DecryptionContext::Iv128(FixedLength::from([0; 16]));
    DecryptingKey::ctr(key)
        .ok()?
        .decrypt(&mut text, from_zero)
        .ok()?;
    Some(text)
}

type Parsed = Result<Scheme, String>;

fn argon2_of(text: &str) -> Parsed {
    let malformed = || "is no PHC string of argon2".to_owned();
    let phc = Phc::new(text).map_err(|_| malformed())?;
    let algorithm = match phc.algorithm.as_str() {
        "argon2id" => Algorithm::Argon2id,
        _ => Algorithm::Argon2i,
    };
    let version = match phc.version {
        Some(0x13) => Version::V0x13,
        None | Some(0x10) => Version::V0x10,
        Some(_) => return Err(malformed()),
    };
    let params = Params::try_from(&phc).map_err(|_| malformed())?;
    let cost = Cost {
        memory_kib: params.m_cost(),
        iterations: params.t_cost(),
        parallelism: params.p_cost(),
    };
    if !cost.is_within(Cost::CEILING) {
        return Err(too_dear());
    }
    let (salt, hash) = phc.salt.zip(phc.hash).ok_or_else(malformed)?;
    Ok(Scheme::Argon2 {
        algorithm,
        version,
        params,
        salt: salt.to_vec(),
        hash: output(hash.as_bytes().to_vec())?,
    })
}

fn bcrypt_of(text: &str) -> Parsed {
    let malformed = || "is no bcrypt hash".to_owned();
    let mut parts = text.split('$').skip(2);
    let (cost, body) = parts.next().zip(parts.next()).ok_or_else(malformed)?;
    if parts.next().is_some() || cost.len() != 2 || body.len() != 53 || !in_crypt_alphabet(body) {
        return Err(malformed());
    }
    match cost.parse::<u32>() {
        Ok(4..=MAX_BCRYPT_COST) => Ok(Scheme::Bcrypt(text.to_owned())),
        Ok(_) => Err(too_dear()),
        Err(_) => Err(malformed()),
    }
}

/// Whether it is written in the base64 of crypt(3), which bcrypt's is another order of.
fn in_crypt_alphabet(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'/')
}

fn sha_crypt_of(text: &str) -> Parsed {
    let malformed = || "is no hash of sha256-crypt or sha512-crypt".to_owned();
    let mut parts: Vec<&str> = text.split('$').skip(2).collect();
    if let Some(rounds) = parts.first().and_then(|part| part.strip_prefix("rounds=")) {
        // What crypt(3) makes of fewer than 1,000 is not what its text says.
        match rounds.parse::<u32>() {
            Ok(1_000..=MAX_CRYPT_ROUNDS) => {}
            Ok(rounds) if rounds > MAX_CRYPT_ROUNDS => return Err(too_dear()),
            _ => return Err(malformed()),
        }
        parts.remove(0);
    }
    let length = if text.starts_with("$5$") { 43 } else { 86 };
    match parts[..] {
        [salt, hash] if salt.len() <= 16 && hash.len() == length && in_crypt_alphabet(hash) => {
            Ok(Scheme::ShaCrypt(text.to_owned()))
        }
        _ => Err(malformed()),
    }
}

fn scrypt_of(rest: &str) -> Parsed {
    let [params, salt, hash] = parts(rest)?;
    Ok(Scheme::Scrypt {
        params: scrypt_params(params)?,
        salt: salt_of(salt)?,
        hash: output(binary(hash)?)?,
    })
}

fn firebase_of(rest: &str) -> Parsed {
    let [params, salt, separator, key, hash] = parts(rest)?;
    let key = Zeroizing::new(binary(key)?);
    let hash = binary(hash)?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES || hash.len() != key.len() {
        return Err("must have a key as long as the hash".to_owned());
    }
    Ok(Scheme::Firebase {
        params: scrypt_params(params)?,
        salt: [salt_of(salt)?, salt_of(separator)?].concat(),
        key,
        hash,
    })
}

fn scrypt_params(text: &str) -> Result<scrypt::Params, String> {
    let [log_n, r, p] = ["ln", "r", "p"].map(|name| number(text, name));
    let (log_n, r, p) = (log_n?, r?, p.or_else(|_| absent(text, "p", 1))?);
    let kib = 1_u64
        .checked_shl(log_n)
        .and_then(|n| n.checked_mul(u64::from(r)))
        .map(|blocks| blocks / 8);
    if kib.is_none_or(|kib| kib > MAX_SCRYPT_KIB) || p > MAX_SCRYPT_PARALLELISM {
        return Err(too_dear());
    }
    let log_n = u8::try_from(log_n).map_err(|_| too_dear())?;
    scrypt::Params::new(log_n, r, p).map_err(|_| "has impossible parameters".to_owned())
}

fn pbkdf2_of(digest: Digest, rest: &str, salt_of: fn(&str) -> Result<Vec<u8>, String>) -> Parsed {
    let [params, salt, hash] = parts(rest)?;
    let rounds = params.parse().or_else(|_| number(params, "i"))?;
    if !(1..=MAX_PBKDF2_ROUNDS).contains(&rounds) {
        return Err(too_dear());
    }
    Ok(Scheme::Pbkdf2 {
        digest,
        rounds,
        salt: salt_of(salt)?,
        hash: output(binary(hash)?)?,
    })
}

fn ldap_of(digest: Digest, rest: &str) -> Parsed {
    let mut hash = binary(rest)?;
    if hash.len() <= digest.bytes() {
        return Err("must have a salt behind the digest".to_owned());
    }
    let salt = hash.split_off(digest.bytes());
    Ok(Scheme::Salted {
        digest,
        how: Keyed::Rounds(1),
        order: Order::PasswordFirst,
        salt: within(salt, MAX_SALT_BYTES)?,
        hash,
    })
}

fn salted_of(digest: Digest, is_keyed: bool, rest: &str) -> Parsed {
    let [params, salt, hash] = parts(rest)?;
    let order = match value(params, "order") {
        Some("salt-first") => Order::SaltFirst,
        Some("password-first") => Order::PasswordFirst,
        _ => return Err("must have an order: salt-first or password-first".to_owned()),
    };
    let how = if is_keyed {
        let key = value(params, "key").ok_or("must have a key")?;
        Keyed::Key(Zeroizing::new(within(binary(key)?, MAX_KEY_BYTES)?))
    } else {
        match number(params, "rounds").or_else(|_| absent(params, "rounds", 1))? {
            rounds @ 1..=MAX_SALTED_ROUNDS => Keyed::Rounds(rounds),
            _ => return Err(too_dear()),
        }
    };
    let hash = binary(hash)?;
    if hash.len() != digest.bytes() {
        return Err("must have a hash as long as the digest".to_owned());
    }
    Ok(Scheme::Salted {
        digest,
        how,
        order,
        salt: salt_of(salt)?,
        hash,
    })
}

fn too_dear() -> String {
    "asks for more than is allowed, or less than is possible".to_owned()
}

/// Exactly so many parts between dollar signs.
fn parts<const N: usize>(text: &str) -> Result<[&str; N], String> {
    let parts: Vec<&str> = text.split('$').collect();
    parts
        .try_into()
        .map_err(|_| format!("must have {N} parts behind its name"))
}

/// The value of a parameter in `name=value,name=value`.
fn value<'a>(params: &'a str, name: &str) -> Option<&'a str> {
    params.split(',').find_map(|param| {
        let (found, value) = param.split_once('=')?;
        (found == name).then_some(value)
    })
}

fn number(params: &str, name: &str) -> Result<u32, String> {
    value(params, name)
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| format!("must have a number `{name}`"))
}

/// What a parameter is where it is not given; one that is given has to be a number.
fn absent(params: &str, name: &str, default: u32) -> Result<u32, String> {
    match value(params, name) {
        None => Ok(default),
        Some(_) => number(params, name),
    }
}

fn binary(text: &str) -> Result<Vec<u8>, String> {
    let plain: String = text
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '-' | '.' => '+',
            '_' => '/',
            c => c,
        })
        .collect();
    // Trailing bits that are not zero are somebody else's carelessness.
    let mut lenient = BASE64_NOPAD.specification();
    lenient.check_trailing_bits = false;
    let lenient = lenient.encoding().map_err(|error| error.to_string())?;
    lenient
        .decode(plain.as_bytes())
        .map_err(|_| "must be written in base64".to_owned())
}

fn salt_of(text: &str) -> Result<Vec<u8>, String> {
    within(binary(text)?, MAX_SALT_BYTES)
}

/// Django's salts are text.
fn plain_salt_of(text: &str) -> Result<Vec<u8>, String> {
    within(text.as_bytes().to_vec(), MAX_SALT_BYTES)
}

fn within(bytes: Vec<u8>, max: usize) -> Result<Vec<u8>, String> {
    if bytes.len() <= max {
        Ok(bytes)
    } else {
        Err(format!(
            "must not have more than {max} bytes of salt or key"
        ))
    }
}

fn output(hash: Vec<u8>) -> Result<Vec<u8>, String> {
    if OUTPUT_BYTES.contains(&hash.len()) {
        Ok(hash)
    } else {
        Err("must have a hash of 16 to 64 bytes".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who made a hash, and the hash.
    fn vectors() -> Vec<(&'static str, &'static str)> {
        include_str!("foreign_hash_vectors.txt")
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .collect()
    }

    fn password(text: &str) -> Password {
        Password::new(text.to_owned())
    }

    #[test]
    fn hashes_of_the_tools_themselves_are_understood() {
        let vectors = vectors();
        assert!(vectors.len() > 25, "{}", vectors.len());
        for (tool, text) in vectors {
            let right = if tool.starts_with("Firebase") {
                "user1password"
            } else {
                "drei süße Möwen"
            };
            let hash = ForeignHash::parse(text).unwrap_or_else(|error| panic!("{text} {error}"));
            let verify = |typed: &str| hash.verify(&password(typed), &mut Memory::default());
            assert!(verify(right), "{tool}: {text}");
            for wrong in [
                "",
                "drei süße Möwe",
                "Drei süße Möwen",
                &format!("{right} "),
            ] {
                assert!(!verify(wrong), "{tool}: {text} accepts {wrong}");
            }
        }
    }

    #[test]
    fn a_hash_that_costs_too_much_or_too_little_is_refused() {
        for (text, why) in [
            (
                "$argon2id$v=19$m=999999999,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$sEMm8oxzQ7cpiktS/GP2Bm66i5n4rBfPOyo7VbeVG3Q",
                "memory",
            ),
            (
                "$argon2id$v=19$m=1024,t=99,p=1$MDEyMzQ1Njc4OWFiY2RlZg$sEMm8oxzQ7cpiktS/GP2Bm66i5n4rBfPOyo7VbeVG3Q",
                "passes",
            ),
            (
                "$argon2d$v=19$m=1024,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$sEMm8oxzQ7cpiktS/GP2Bm66i5n4rBfPOyo7VbeVG3Q",
                "argon2d",
            ),
            (
                "$2b$15$TQeYq4oCY2RlEIm4MEmHwuZ7lA7gTmWPwLLCOx4SR0vfNmDU89XBy",
                "cost",
            ),
            (
                "$2b$03$TQeYq4oCY2RlEIm4MEmHwuZ7lA7gTmWPwLLCOx4SR0vfNmDU89XBy",
                "cost",
            ),
            (
                "$2x$05$TQeYq4oCY2RlEIm4MEmHwuZ7lA7gTmWPwLLCOx4SR0vfNmDU89XBy",
                "a bug of old PHP",
            ),
            (
                "$scrypt$ln=21,r=8,p=1$jNG6V6rVGsPYG+M8B+Bciw$GU/UsjCMr+PZS+/3tCUhxbzvSMIvK72y/ZW0W3VmDYo",
                "memory",
            ),
            (
                "$scrypt$ln=10,r=8,p=5$jNG6V6rVGsPYG+M8B+Bciw$GU/UsjCMr+PZS+/3tCUhxbzvSMIvK72y/ZW0W3VmDYo",
                "lanes",
            ),
            (
                "$scrypt$ln=99,r=8,p=1$jNG6V6rVGsPYG+M8B+Bciw$GU/UsjCMr+PZS+/3tCUhxbzvSMIvK72y/ZW0W3VmDYo",
                "memory",
            ),
            (
                "$scrypt$ln=10,r=8,p=x$jNG6V6rVGsPYG+M8B+Bciw$GU/UsjCMr+PZS+/3tCUhxbzvSMIvK72y/ZW0W3VmDYo",
                "no number",
            ),
            (
                "$pbkdf2-sha256$i=2000001$c2FsdA$Z.OcIHtd37QYnCT0BOKPCEo2fZAenV70Cx8YEhL8k60",
                "rounds",
            ),
            (
                "$pbkdf2-sha256$0$c2FsdA$Z.OcIHtd37QYnCT0BOKPCEo2fZAenV70Cx8YEhL8k60",
                "rounds",
            ),
            ("$pbkdf2-sha256$1000$c2FsdA$Z.Oc", "a short hash"),
            (
                "$pbkdf2-md5$1000$c2FsdA$Z.OcIHtd37QYnCT0BOKPCEo2fZAenV70Cx8YEhL8k60",
                "MD5",
            ),
            (
                "$5$rounds=1000001$saltsalt$W3U7TPvZZrTexulf9gVsrl5OKlHZWpDCZ1.CiSbcUo5",
                "rounds",
            ),
            (
                "$5$rounds=10$saltsalt$W3U7TPvZZrTexulf9gVsrl5OKlHZWpDCZ1.CiSbcUo5",
                "rounds",
            ),
            (
                "$6$saltsalt$W3U7TPvZZrTexulf9gVsrl5OKlHZWpDCZ1.CiSbcUo5",
                "of sha256-crypt",
            ),
            (
                "$5$saltsalt$W3U7TPvZZrTexulf9gVsrl5OKlHZWpDCZ1_CiSbcUo5",
                "another alphabet",
            ),
            ("$1$saltsalt$8pRYzDDb2BzYJ5vLD6NXh1", "md5-crypt"),
            ("{SSHA}JCPMFJTXASlj0D70cqyHkiZUWTg=", "no salt"),
            ("{SHA}JCPMFJTXASlj0D70cqyHkiZUWTg=", "no salt"),
            (
                "$salted-sha256$rounds=1000001,order=salt-first$c2FsdA$j+PI8sfHGFm1hb5PPwdd4u0gzByXMr5F5yJo0OZma7c=",
                "rounds",
            ),
            (
                "$salted-sha256$rounds=1$c2FsdA$j+PI8sfHGFm1hb5PPwdd4u0gzByXMr5F5yJo0OZma7c=",
                "no order",
            ),
            (
                "$salted-sha512$order=salt-first$c2FsdA$j+PI8sfHGFm1hb5PPwdd4u0gzByXMr5F5yJo0OZma7c=",
                "of SHA-256",
            ),
            (
                "$hmac-sha256$order=salt-first$c2FsdA$j+PI8sfHGFm1hb5PPwdd4u0gzByXMr5F5yJo0OZma7c=",
                "no key",
            ),
            (
                "$firebase-scrypt$ln=14,r=8$c2FsdA$Bw==$a2V5$lSrfV15cpx95/sZS2W9c9A==",
                "key and hash differ",
            ),
            ("seven quiet otters", "a password"),
            ("", "nothing"),
            ("{}", "nothing"),
        ] {
            assert!(ForeignHash::parse(text).is_err(), "{why}: {text}");
        }
        assert!(ForeignHash::parse(&"$".repeat(MAX_BYTES + 1)).is_err());
    }

    #[test]
    fn a_long_password_does_not_make_a_cheap_hash_dear() {
        let verify = |text: &str, length: usize| {
            let hash = ForeignHash::parse(text).expect("a hash");
            hash.verify(&password(&"x".repeat(length)), &mut Memory::default())
        };
        assert!(verify(
            "$5$saltsalt$tkkQKovHTk0xathHdSQcjAvdRnJs.gwPYYQDQs5f9VB",
            128
        ));
        assert!(
            !verify(
                "$5$saltsalt$xgy.B7b8vLk64oaSlY4A3VO4DCwMd7llVLTrBk862lB",
                129
            ),
            "right, and too long"
        );
    }

    #[test]
    fn damaged_hashes_are_refused_or_match_nothing() {
        for (_, text) in vectors() {
            for cut in 0..text.trim_end_matches('=').len() {
                if let Ok(hash) = ForeignHash::parse(&text[..cut]) {
                    // Cheap ones only: it is about panics.
                    if matches!(hash.0, Scheme::Salted { .. }) {
                        assert!(!hash.verify(&password("drei süße Möwen"), &mut Memory::default()));
                    }
                }
            }
        }
    }
}

//! The rules: what an account, a credential, a session, a token may and must be.
//!
//! Invariant: pure and synchronous. No clock, no generator, no database, no wire: time and random
//! bytes are arguments, so the same arguments always give the same answer. One exception: the WebAuthn
//! library draws its challenges itself.

pub mod access;
pub mod account;
pub mod assurance;
pub mod certificate;
pub mod challenge;
pub mod change;
pub mod client_assertion;
pub mod contact;
pub mod credential;
pub mod elevation;
pub mod email;
pub mod error;
pub mod event;
pub mod filter;
pub mod foreign_hash;
pub mod grant;
pub mod group;
pub mod identifier;
pub mod key_set;
pub mod keyring;
pub mod master_key;
pub mod message;
pub mod name;
pub mod network;
pub mod pace;
pub mod page;
pub mod passkey;
pub mod password;
pub mod phone;
pub mod postal_address;
pub mod recovery_code;
pub mod role;
pub mod scope;
pub mod seal;
pub mod secret;
pub mod session;
pub mod signing_key;
pub mod system_account;
pub mod tally;
pub mod text;
pub mod throttle;
pub mod time;
pub mod token;
pub mod totp;
pub mod user;
pub mod username;

//! The SQL, and nothing else: what is stored, how it is found.
//!
//! Functions take `&mut Read` or `&mut Write` and report facts: a row or none, how many changed, a
//! duplicate. What a fact means is decided by the caller, what a caller sees by `grpc::status`.
//! Invariant: the drivers, rusqlite and sqlx, are named in this folder and nowhere else.

pub mod challenges;
pub mod changes;
pub mod client_assertions;
pub mod contact_changes;
pub mod contact_codes;
pub mod contacts;
pub mod credentials;
pub mod db;
pub mod earlier;
pub mod elevations;
pub mod entitlements;
mod error;
pub mod events;
pub mod factors;
pub mod grants;
pub mod groups;
pub mod identifiers;
mod lane;
pub mod leases;
pub mod messages;
pub mod meta;
pub mod open;
pub mod password_resets;
mod pool;
mod postgres;
pub mod requests;
pub mod roles;
pub mod scopes;
pub mod sessions;
pub mod signing_keys;
mod sql;
mod sqlite;
pub mod system_accounts;
pub mod throttles;
pub mod tokens;
pub mod user_names;
pub mod users;
pub mod within;

pub(crate) use db::transact;

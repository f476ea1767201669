//! accountd keeps the accounts of people and of programs and issues JWTs that other systems verify on
//! their own. This page is the map of its code.
//!
//! # What stands where
//!
//! A line's home follows from its kind. A rule: [`domain`]. SQL: [`store`]. Wire and order of steps:
//! [`grpc`], and [`http`] beside it. Joining: the top level. The same noun everywhere: `user.proto`,
//! `domain/user.rs`, `store/users.rs`, `grpc/users.rs`, `tests/api/users.rs`.
//!
//! In reading order:
//!
//! | module | owns |
//! |---|---|
//! | [`domain`] | the rules; pure functions of their arguments |
//! | [`store`] | the SQL: one text for SQLite and PostgreSQL, over `db`, the seam between them |
//! | [`grpc`] | one file for each proto service; `contact_codes`, `contact_changes` and `contact_fields` beside `contacts`, `messages` beside all that write to people, `passwords`, `factors` and `program_credentials` beside `credentials`, `challenges`, `answers` and `sign_in` beside `sessions`, `seals` beside `system_accounts`, `accounts` for what is asked of either kind, `access` beside `grants`, `entitlements` beside `elevations`; `call` is the door, with `giving`, who may give what, `consent`, what waits for a second person, and `reach`, what a caller finds, beside it, `secrets` and `mint` the two places where secrets are checked and tokens made |
//! | [`http`] | JSON, well-known documents and the OAuth token endpoint, all calling the RPCs |
//! | [`hasher`] | the bounded lanes in which passwords are hashed |
//! | [`messenger`] | messages to people: templates, mail server, webhook, and what became of each |
//! | [`key_sets`] | public keys that programs publish, fetched without being led astray |
//! | [`signing`] | signing keys between store and memory |
//! | [`app`] | what every call needs, in one struct |
//! | [`env`] | the clock and the generator, the only ones |
//! | [`config`], [`telemetry`] | settings; log and metrics |
//! | [`jobs`] | what accountd does by itself |
//! | [`setup`] | what the first start makes |
//! | [`listener`], [`tls`], [`unread`] | the accept loop; its certificates, and those of its peers; what they have not read yet |
//! | [`server`] | everything put together, and its end |
//! | [`bench`] | how much a server does, as its clients see it |
//! | [`calibrate`] | how dear a password hash may be on this machine |
//! | [`fill`] | made-up users by the million, to measure with |
//! | [`cli`] | what operators type |
//!
//! `tests/house` checks that `domain` imports nothing of ours, `store` only `domain` and `env`, and
//! `grpc` and `http` nothing that puts the server together; that rusqlite and sqlx are named in `store`
//! alone, tonic and generated code in `grpc`, `server` and `bench`, argon2 in `domain::password` and
//! `domain::foreign_hash`, jsonwebtoken in `domain::keyring` and `domain::client_assertion`,
//! webauthn-rs in `domain::passkey`, totp-rs in `domain::totp`, email_address and idna in `domain::email`,
//! phonenumber in `domain::phone`, celes in `domain::postal_address`, rustls in `tls`, reqwest in
//! `key_sets` and `messenger`, lettre and minijinja in `messenger`.
//!
//! # How a request flows
//!
//! ```text
//! listener        limits, TLS, where it comes from
//!  └ http         gRPC, gRPC-Web or JSON? JSON becomes gRPC here
//!     └ grpc::layer     its policy, a deadline, a task of its own that runs to completion
//!        └ grpc::users  create_user, five steps from top to bottom:
//!            1 Call::enter   who calls, may they, what time is it      grpc::call, domain::access
//!            2 parse         protobuf into domain types, all violations at once
//!            3 think         decide; hash, with no transaction open    domain, hasher
//!            4 mutate!       one transaction: state, event, record for retries    store
//!            5 answer        domain types into protobuf
//! ```
//!
//! A `?` anywhere becomes a status with a reason in `grpc::status`.
//!
//! # Where to look when reading for security
//!
//! - what somebody holds: [`domain::grant::Holdings`], [`domain::group`], `store/groups.rs`; what of it is in a
//!   token: [`domain::token::Grounds`]; who may give it to others: `grpc/giving.rs`
//! - power that is borrowed: [`domain::elevation`], `grpc/elevations.rs`; what nobody does alone:
//!   [`domain::change`], `grpc/consent.rs`; what is there for whoever holds a scope for some groups only:
//!   `grpc/reach.rs`, `store/within.rs`
//! - who may call what: the policies in `proto/`, [`domain::access`], [`grpc::call::Call::enter`]
//! - every secret that is presented: `grpc/secrets/`; guessing: [`domain::throttle`]
//! - sign-in in steps: [`domain::challenge`]; what a person has shown, and what an RPC demands:
//!   [`domain::assurance`]; second factors: [`domain::totp`], [`domain::recovery_code`],
//!   [`domain::passkey`]
//! - every token that is made: `grpc/mint.rs`; every token that is believed: [`domain::keyring`] and
//!   [`domain::token::Standing`]
//! - programs with keys of their own: [`domain::client_assertion`], [`domain::key_set`], [`key_sets`] and
//!   [`domain::network::is_public`]; with certificates: [`domain::certificate`], [`tls`]
//! - what somebody is found by, and how an address becomes theirs: [`domain::identifier`],
//!   [`domain::contact`], `store/identifiers.rs`, `grpc/contact_codes.rs`; how a change of it is taken back:
//!   `grpc/contact_changes.rs`
//! - what is written to whom: [`domain::message`], `grpc/messages.rs`, [`messenger`]
//! - refresh tokens: [`domain::session`]; what a stolen database lacks: [`domain::master_key`]
//! - what is durable when, and what waits for what: [`store`], `store/lane.rs`, `store/postgres.rs`
//! - what a stranger can cost: [`listener`], [`grpc::body`], [`unread`], [`grpc::layer`], [`hasher`],
//!   [`key_sets`]

pub mod domain;
pub mod store;

pub mod grpc;
pub mod http;

pub mod app;
pub mod env;
pub mod hasher;
pub mod key_sets;
pub mod messenger;
pub mod signing;

pub mod config;
pub mod telemetry;

pub mod jobs;
pub mod listener;
pub mod server;
pub mod setup;
pub mod tls;
pub mod unread;

pub mod bench;
pub mod calibrate;
pub mod cli;
pub mod fill;

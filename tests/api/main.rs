//! Behaviour: the real server over real channels, on SQLite and on PostgreSQL.
//!
//! A file for each service and for each promise that crosses services; a name is a sentence that says
//! the rule. Nothing is faked but the clock and the generator.

mod authenticator;
mod authority;
mod forgeries;
mod golden;
mod harness;
mod mail_server;
mod other;
mod postgres;
mod process;

mod abuse;
mod access;
mod assertions;
mod budget;
mod certificates;
mod changes;
mod contacts;
mod counts;
mod crash;
mod credentials;
mod delegation;
mod elevation_proofs;
mod elevations;
mod escalation;
mod events;
mod explain;
mod factors;
mod first_run;
mod grants;
mod groups;
mod http;
mod input;
mod key_sets;
mod keys;
mod limits;
mod load;
mod measure;
mod messages;
mod model;
mod outage;
mod paths;
mod races;
mod roles;
mod scopes;
mod sessions;
mod system_accounts;
mod throttle;
mod timing;
mod tokens;
mod users;

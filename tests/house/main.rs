//! The rules of the house that a program can check: which module may know which, that every SQL
//! text works and is fast on both engines, that what is written twice agrees, and that every RPC
//! has all that an RPC has to have.

#[path = "../api/golden.rs"]
mod golden;
#[path = "../api/postgres.rs"]
mod postgres;

mod databases;
mod imports;
mod schema;
mod secrets;
mod source;
mod statements;
mod surface;
mod transactions;

//! First answers to requests with a `request_id`, so that a retry gets them again.

use uuid::Uuid;

use super::{
    db::{Read, Write},
    error::{OnDuplicate as _, Result},
    sql::sql,
};
use crate::domain::{
    error::{self, Error},
    time::Timestamp,
};

/// What a request is recognised by: who sent it, to what, under which id.
#[derive(Clone, Debug)]
pub struct Key {
    pub caller: Uuid,
    pub rpc: &'static str,
    pub request_id: Uuid,
}

/// What was asked, and what was answered.
#[derive(Clone, Debug)]
pub struct Record {
    /// A keyed fingerprint of the request.
    pub body_mac: Vec<u8>,
    /// The answer, without its secrets.
    pub answer: Vec<u8>,
}

pub async fn find(db: &mut Read, key: &Key) -> Result<Option<Record>> {
    let sql = sql!(
        "SELECT body_mac, answer FROM requests WHERE caller_id = $1 AND rpc = $2 AND request_id = $3"
    );
    db.optional(
        sql.bind(key.caller).bind(key.rpc).bind(key.request_id),
        |row| {
            Ok(Record {
                body_mac: row.get("body_mac")?,
                answer: row.get("answer")?,
            })
        },
    )
    .await
}

/// Of two at once with the same key one is first; the other is run again, and finds its answer.
pub async fn insert(
    db: &mut Write,
    key: &Key,
    record: Record,
    now: Timestamp,
) -> error::Result<()> {
    let sql = sql!(
        "INSERT INTO requests (caller_id, rpc, request_id, body_mac, answer, create_time)
         VALUES ($1, $2, $3, $4, $5, $6)"
    )
    .bind(key.caller)
    .bind(key.rpc)
    .bind(key.request_id)
    .bind(record.body_mac)
    .bind(record.answer)
    .bind(now);
    db.execute(sql)
        .await
        .on_duplicate("requests_caller_id_rpc_request_id_key", || Error::Conflict)
        .map(drop)
}

/// Forgets answers from before `before`.
pub async fn forget(db: &mut Write, before: Timestamp, limit: i64) -> Result<u64> {
    let sql = sql!(
        "DELETE FROM requests WHERE (caller_id, rpc, request_id) IN (
            SELECT caller_id, rpc, request_id FROM requests WHERE create_time < $1
            ORDER BY create_time LIMIT $2)"
    );
    db.sweep(sql.bind(before).bind(limit)).await
}

//! The body of a request, whole: within a size and within a time.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::grpc::status::{self, JsonError};

/// How much more than its limit a body may bring before its connection is closed. A client that is
/// still sending when that happens gets to see no answer.
const DISCARDED: usize = 4;

/// How long a body may be, in bytes and in time.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub(super) bytes: usize,
    pub(super) time: Duration,
}

impl Limit {
    pub(super) async fn read(self, body: Body) -> Result<Bytes, JsonError> {
        match tokio::time::timeout(self.time, self.collect(body)).await {
            Ok(read) => read,
            Err(_) => Err(status::to_json(&status::deadline())),
        }
    }

    async fn collect(self, body: Body) -> Result<Bytes, JsonError> {
        let mut body = Limited::new(body, self.bytes.saturating_mul(1 + DISCARDED));
        let mut read = Vec::new();
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    status::to_json(&status::too_large())
                } else {
                    status::to_json(&status::malformed("the body cannot be read"))
                }
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            total += data.len();
            if total <= self.bytes {
                read.extend_from_slice(&data);
            }
        }
        if total > self.bytes {
            return Err(status::to_json(&status::too_large()));
        }
        Ok(read.into())
    }
}

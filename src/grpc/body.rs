//! Receiving the body of a request, whole: within a size, within a time, and within what all bodies
//! that are being received may take together.
//!
//! Anybody may send a body, so until it is there it must not cost much: neither a place among the
//! calls in progress, nor more memory than was set aside for strangers.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use ipnet::IpNet;
use tonic::Status;

use super::status;
use crate::domain::{network, tally::Tally};

/// How much more than its limit a body may bring before its connection is closed. A client that is
/// still sending when that happens gets to see no answer.
const DISCARDED: usize = 4;
/// One network gets this part of what all of them may take.
const NETWORK_SHARE: usize = 4;

/// How long a body may be, in bytes and in time.
#[derive(Clone, Copy)]
pub struct Limit {
    pub bytes: usize,
    pub time: Duration,
}

/// The memory for bodies.
pub struct Intake {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_network: Tally<IpNet>,
}

/// A body, and the memory it takes until this is dropped.
pub struct Received {
    pub bytes: Bytes,
    _share: Share,
}

struct Share {
    intake: Arc<Intake>,
    network: Option<IpNet>,
    bytes: usize,
}

impl Intake {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            taken: Mutex::default(),
        })
    }

    pub async fn receive(
        self: &Arc<Self>,
        body: Body,
        from: Option<IpAddr>,
        limit: Limit,
    ) -> Result<Received, Status> {
        let share = Share {
            intake: Arc::clone(self),
            network: from.map(network::source),
            bytes: 0,
        };
        match tokio::time::timeout(limit.time, collect(body, limit.bytes, share)).await {
            Ok(received) => received,
            Err(_) => Err(status::deadline()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn collect(body: Body, max: usize, mut share: Share) -> Result<Received, Status> {
    let mut body = Limited::new(body, max.saturating_mul(1 + DISCARDED));
    let mut bytes = Vec::new();
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                status::too_large()
            } else {
                status::malformed("the body cannot be read")
            }
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        total += data.len();
        if total <= max {
            share.grow(data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
    if total > max {
        return Err(status::too_large());
    }
    Ok(Received {
        bytes: bytes.into(),
        _share: share,
    })
}

impl Share {
    fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        let max = self.intake.max;
        let mut taken = self.intake.lock();
        let of_network = self.network.map(|network| taken.by_network.of(&network));
        let of_network = of_network.unwrap_or_default() + bytes;
        if taken.total + bytes > max || of_network > max / NETWORK_SHARE {
            return Err(status::overloaded());
        }
        taken.total += bytes;
        if let Some(network) = self.network {
            taken.by_network.take(network, bytes);
        }
        drop(taken);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.intake.lock();
        taken.total -= self.bytes;
        if let Some(network) = self.network {
            taken.by_network.give_back(&network, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        bytes: 100,
        time: Duration::from_secs(1),
    };

    async fn receive(
        intake: &Arc<Intake>,
        length: usize,
        from: [u8; 4],
    ) -> Result<Received, Status> {
        let body = Body::from(vec![0; length]);
        intake.receive(body, Some(from.into()), LIMIT).await
    }

    #[tokio::test]
    async fn one_network_gets_a_part_of_the_whole_and_what_is_done_is_given_back() {
        let intake = Intake::new(400);
        let first = receive(&intake, 90, [192, 0, 2, 1]).await.expect("fits");
        assert_eq!(first.bytes.len(), 90);
        assert!(
            receive(&intake, 20, [192, 0, 2, 1]).await.is_err(),
            "its share"
        );
        let mut others = Vec::new();
        for last in 2..5 {
            others.push(
                receive(&intake, 100, [192, 0, 2, last])
                    .await
                    .expect("fits"),
            );
        }
        assert!(
            receive(&intake, 20, [192, 0, 2, 9]).await.is_err(),
            "the whole"
        );
        drop((first, others));
        assert!(intake.lock().by_network.is_empty());
        assert!(receive(&intake, 100, [192, 0, 2, 1]).await.is_ok());
        assert!(
            receive(&intake, 101, [192, 0, 2, 1]).await.is_err(),
            "its limit"
        );
        assert_eq!(intake.lock().total, 0);
    }
}

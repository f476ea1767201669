//! Receiving the body of a request, whole: within a size, within a time, and within what all bodies
//! that are being received may take together.
//!
//! Anybody may send a body, so until it is there it must not cost much: neither a place among the
//! calls in progress, nor more memory than was set aside for strangers. Where that is all taken, the
//! longest body of which more may come makes room: whoever sends little is the last to be turned away.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::Notify;
use tonic::Status;

use super::status;

/// How much more than its limit a body may bring before its connection is closed. A client that is
/// still sending when that happens gets to see no answer.
const DISCARDED: usize = 4;

/// How long a body may be, in bytes and in time.
#[derive(Clone, Copy)]
pub struct Limit {
    pub bytes: usize,
    pub time: Duration,
}

/// The memory for bodies.
pub struct Intake {
    max: usize,
    next: AtomicU64,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    /// Those of which more may come, the longest last: their bytes and their number.
    growing: BTreeMap<(usize, u64), Arc<Notify>>,
}

/// A body, and the memory it takes until this is dropped.
pub struct Received {
    pub bytes: Bytes,
    _share: Share,
}

/// What one body takes.
struct Share {
    intake: Arc<Intake>,
    number: u64,
    bytes: usize,
    /// Rings when the body has to make room for others.
    turned_away: Arc<Notify>,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    Growing,
    Whole,
    TurnedAway,
}

impl Intake {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            next: AtomicU64::new(0),
            taken: Mutex::default(),
        })
    }

    pub async fn receive(self: &Arc<Self>, body: Body, limit: Limit) -> Result<Received, Status> {
        let share = self.share();
        let turned_away = Arc::clone(&share.turned_away);
        tokio::select! {
            received = tokio::time::timeout(limit.time, collect(body, limit.bytes, share)) => {
                received.unwrap_or_else(|_| Err(status::deadline()))
            }
            () = turned_away.notified() => Err(status::overloaded()),
        }
    }

    fn share(self: &Arc<Self>) -> Share {
        Share {
            intake: Arc::clone(self),
            number: self.next.fetch_add(1, Relaxed),
            bytes: 0,
            turned_away: Arc::default(),
            state: State::Growing,
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
        if !data.is_empty() && total <= max {
            share.grow(data.len())?;
            bytes.extend_from_slice(&data);
        } else if total > max {
            // The rest is only read so that the client gets to see the answer.
            bytes = Vec::new();
        }
    }
    if total > max {
        return Err(status::too_large());
    }
    share.finish()?;
    Ok(Received {
        bytes: bytes.into(),
        _share: share,
    })
}

impl Share {
    fn grow(&mut self, bytes: usize) -> Result<(), Status> {
        let mut taken = self.intake.lock();
        if self.bytes > 0 && taken.growing.remove(&(self.bytes, self.number)).is_none() {
            self.state = State::TurnedAway;
            return Err(status::overloaded());
        }
        self.bytes += bytes;
        taken.total += bytes;
        let place = (self.bytes, self.number);
        taken.growing.insert(place, Arc::clone(&self.turned_away));
        while taken.total > self.intake.max {
            let Some(((longest, number), turned_away)) = taken.growing.pop_last() else {
                break;
            };
            taken.total -= longest;
            if number == self.number {
                self.state = State::TurnedAway;
                return Err(status::overloaded());
            }
            turned_away.notify_one();
        }
        Ok(())
    }

    /// All of it is there: from now on it makes room for nobody.
    fn finish(&mut self) -> Result<(), Status> {
        let place = (self.bytes, self.number);
        if self.bytes > 0 && self.intake.lock().growing.remove(&place).is_none() {
            self.state = State::TurnedAway;
            return Err(status::overloaded());
        }
        self.state = State::Whole;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.intake.lock();
        let is_counted = match self.state {
            State::Whole => true,
            State::Growing => taken.growing.remove(&(self.bytes, self.number)).is_some(),
            State::TurnedAway => false,
        };
        if is_counted {
            taken.total -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use hyper::body::Frame;

    use super::*;

    const LIMIT: Limit = Limit {
        bytes: 100,
        time: Duration::from_mins(1),
    };

    /// A body that brings so many bytes and never ends.
    struct Endless(usize);

    impl hyper::body::Body for Endless {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            match std::mem::take(&mut self.0) {
                0 => Poll::Pending,
                length => Poll::Ready(Some(Ok(Frame::data(vec![0; length].into())))),
            }
        }
    }

    async fn receive(intake: &Arc<Intake>, length: usize) -> Result<Received, Status> {
        let body = Body::from(vec![0; length]);
        intake.receive(body, LIMIT).await
    }

    #[tokio::test]
    async fn what_is_done_is_given_back() {
        let intake = Intake::new(150);
        let first = receive(&intake, 100).await.expect("fits");
        assert_eq!(first.bytes.len(), 100);
        assert!(receive(&intake, 60).await.is_err(), "no room");
        assert!(receive(&intake, 50).await.is_ok(), "as much as there is");
        drop(first);
        assert!(receive(&intake, 100).await.is_ok());
        assert!(receive(&intake, 101).await.is_err(), "its limit");
        let taken = intake.lock();
        assert_eq!((taken.total, taken.growing.len()), (0, 0));
    }

    #[tokio::test]
    async fn the_longest_that_is_not_whole_makes_room_for_a_short_one() {
        let intake = Intake::new(150);
        let endless = |length| {
            let intake = Arc::clone(&intake);
            let receive = async move { intake.receive(Body::new(Endless(length)), LIMIT).await };
            tokio::spawn(receive)
        };
        let (long, short) = (endless(90), endless(60));
        while intake.lock().total < 150 {
            tokio::task::yield_now().await;
        }
        let third = receive(&intake, 10).await.expect("there is room for it");
        assert!(long.await.expect("no panic").is_err(), "it was the longest");
        assert!(!short.is_finished());
        assert_eq!(intake.lock().total, 70);
        drop(third);
        short.abort();
        assert!(short.await.is_err(), "it would wait for ever");
        let taken = intake.lock();
        assert_eq!((taken.total, taken.growing.len()), (0, 0));
    }
}

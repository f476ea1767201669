//! Answers that their readers have not taken yet: bounded in memory, and for each connection in time.
//!
//! A frame is counted until the last handle to its bytes is gone, wherever on its way that is. When
//! all of them together are too much, the connection with most is cut: somebody who takes what they
//! ask for is never the one.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio_util::sync::CancellationToken;

/// Most bytes of one frame, so that a slow reader is seen to go on.
const FRAME: usize = 16 * 1024;
/// What an answer counts for as long as nobody knows what is in it: a stream has some waiting.
const UNKNOWN: usize = 64 * 1024;

/// What all connections have not read.
pub struct Unread {
    max: usize,
    patience: Duration,
    total: AtomicUsize,
    readers: Mutex<HashMap<u64, Arc<Reader>>>,
    next: AtomicU64,
    begin: Instant,
}

/// Whoever is at the other end of one connection.
pub struct Reader {
    unread: Arc<Unread>,
    /// What is held for them.
    held: AtomicUsize,
    /// The part of it that they could take now.
    ready: AtomicUsize,
    /// When they last took something, or first could; in milliseconds since the beginning.
    since_ms: AtomicU64,
    /// Their connection is to end.
    pub cut: CancellationToken,
}

/// A connection's place in the list; gone when dropped.
pub struct Place {
    id: u64,
    pub reader: Arc<Reader>,
}

impl Unread {
    /// At most `max` bytes, none of them held for longer than `patience` while nothing is taken.
    pub fn new(max: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            max,
            patience,
            total: AtomicUsize::new(0),
            readers: Mutex::default(),
            next: AtomicU64::new(0),
            begin: Instant::now(),
        })
    }

    pub fn place(self: &Arc<Self>) -> Place {
        let reader = Arc::new(Reader {
            unread: Arc::clone(self),
            held: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            since_ms: AtomicU64::new(0),
            cut: CancellationToken::new(),
        });
        let id = self.next.fetch_add(1, Relaxed);
        self.readers().insert(id, Arc::clone(&reader));
        Place { id, reader }
    }

    /// Cuts the connections that have taken nothing of what is there for them for too long.
    pub fn cut_those_who_do_not_read(&self) {
        let patience_ms = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.now_ms();
        let is_stuck = |reader: &Reader| {
            let since_ms = reader.since_ms.load(Relaxed);
            reader.ready.load(Relaxed) > 0 && now_ms.saturating_sub(since_ms) > patience_ms
        };
        for reader in self.readers().values().filter(|reader| is_stuck(reader)) {
            reader.cut.cancel();
        }
    }

    /// Cuts the connection with most, unless enough is about to be given back by those that were.
    fn make_room(&self) {
        let readers = self.readers();
        let held = |reader: &&Arc<Reader>| reader.held.load(Relaxed);
        let there = || readers.values().filter(|reader| !reader.cut.is_cancelled());
        if there().map(|reader| held(&reader)).sum::<usize>() > self.max
            && let Some(most) = there().max_by_key(held)
        {
            most.cut.cancel();
        }
    }

    fn readers(&self) -> MutexGuard<'_, HashMap<u64, Arc<Reader>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.reader.unread.readers().remove(&self.id);
    }
}

impl Reader {
    /// An answer to them, counted from now on.
    pub fn answer(self: &Arc<Self>, mut body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        // One frame is fetched at once: who opens no window for it never asks, and it is there all
        // the same.
        let first = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
        let mut answer = Answer {
            body,
            reader: Arc::clone(self),
            data: None,
            next: None,
            unknown: None,
        };
        match first {
            Poll::Ready(None) => return Body::empty(),
            Poll::Ready(Some(next)) => answer.fetched(next),
            Poll::Pending => answer.unknown = Some(Count::new(self, UNKNOWN, false)),
        }
        Body::new(answer)
    }

    fn goes_on(&self) {
        self.since_ms.store(self.unread.now_ms(), Relaxed);
    }
}

/// The body of an answer.
struct Answer {
    body: Body,
    reader: Arc<Reader>,
    /// What is left of a frame.
    data: Option<Counted>,
    /// A frame that is no data, or an error.
    next: Option<Result<Frame<Bytes>, axum::Error>>,
    /// Until there is a first frame.
    unknown: Option<Count>,
}

impl Answer {
    fn fetched(&mut self, next: Result<Frame<Bytes>, axum::Error>) {
        self.unknown = None;
        match next.map(Frame::into_data) {
            Ok(Ok(bytes)) => {
                let count = Count::new(&self.reader, bytes.len(), true);
                self.data = Some(Counted { bytes, count });
            }
            Ok(Err(trailers)) => self.next = Some(Ok(trailers)),
            Err(error) => self.next = Some(Err(error)),
        }
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            if let Some(mut data) = self.data.take() {
                let piece = data.split_to(FRAME);
                self.data = (!data.bytes.is_empty()).then_some(data);
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))));
            }
            if let Some(next) = self.next.take() {
                return Poll::Ready(Some(next));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(next) => self.fetched(next),
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_waiting = self.data.is_some() || self.next.is_some() || self.unknown.is_some();
        !is_waiting && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let waiting = self.data.as_ref().map_or(0, |data| data.bytes.len() as u64);
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + waiting);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + waiting);
        }
        hint
    }
}

/// Bytes that are counted until the last handle to them is gone.
struct Counted {
    bytes: Bytes,
    count: Count,
}

impl Counted {
    /// The first bytes, at most so many.
    fn split_to(&mut self, length: usize) -> Self {
        let length = length.min(self.bytes.len());
        Self {
            bytes: self.bytes.split_to(length),
            count: self.count.split_off(length),
        }
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// So many bytes held for a reader.
struct Count {
    reader: Arc<Reader>,
    bytes: usize,
    /// Whether the reader could take them.
    is_ready: bool,
}

impl Count {
    fn new(reader: &Arc<Reader>, bytes: usize, is_ready: bool) -> Self {
        if is_ready && reader.ready.fetch_add(bytes, Relaxed) == 0 {
            reader.goes_on();
        }
        reader.held.fetch_add(bytes, Relaxed);
        let unread = &reader.unread;
        if unread.total.fetch_add(bytes, Relaxed) + bytes > unread.max {
            unread.make_room();
        }
        Self {
            reader: Arc::clone(reader),
            bytes,
            is_ready,
        }
    }

    fn split_off(&mut self, bytes: usize) -> Self {
        self.bytes -= bytes;
        Self {
            reader: Arc::clone(&self.reader),
            bytes,
            is_ready: self.is_ready,
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let reader = &self.reader;
        if self.is_ready && self.bytes > 0 {
            reader.ready.fetch_sub(self.bytes, Relaxed);
            reader.goes_on();
        }
        reader.held.fetch_sub(self.bytes, Relaxed);
        reader.unread.total.fetch_sub(self.bytes, Relaxed);
    }
}

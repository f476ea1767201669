//! Answers that their readers have not taken yet: bounded in memory, and for each connection in time.
//!
//! A frame is counted until the last handle to its bytes is gone, wherever on its way that is. When
//! all of them together are too much, a connection is cut: of those who have read nothing for a while
//! the one with most, and only if there is none, the one with most of all.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio_util::sync::CancellationToken;

/// Most bytes of one frame, so that a slow reader is seen to go on.
const FRAME: usize = 16 * 1024;
/// Who has taken nothing for so long is not reading.
const BLINK: Duration = Duration::from_secs(1);

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
    /// What is there for them.
    held: AtomicUsize,
    /// When they last took something, or first could; in milliseconds since the beginning.
    since_ms: AtomicU64,
    /// Their connection is to end.
    pub cut: CancellationToken,
}

/// A connection's entry in the list; gone when dropped.
pub struct Seat {
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

    pub fn seat(self: &Arc<Self>) -> Seat {
        let reader = Arc::new(Reader {
            unread: Arc::clone(self),
            held: AtomicUsize::new(0),
            since_ms: AtomicU64::new(0),
            cut: CancellationToken::new(),
        });
        let id = self.next.fetch_add(1, Relaxed);
        self.readers().insert(id, Arc::clone(&reader));
        Seat { id, reader }
    }

    /// Cuts the connections that have taken nothing of what is there for them for too long.
    pub fn cut_those_who_do_not_read(&self) {
        for reader in self.readers().values() {
            if reader.is_idle_for(self.patience) {
                reader.cut.cancel();
            }
        }
    }

    /// Cuts the connection with most among those who read nothing, if there are such, unless enough is
    /// about to be given back by those that were cut.
    fn make_room(&self) {
        let readers = self.readers();
        let there = || readers.values().filter(|reader| !reader.cut.is_cancelled());
        let held = |reader: &&Arc<Reader>| reader.held.load(Relaxed);
        if there().map(|reader| held(&reader)).sum::<usize>() <= self.max {
            return;
        }
        let idle = there().filter(|reader| reader.is_idle_for(BLINK));
        if let Some(most) = idle.max_by_key(held).or_else(|| there().max_by_key(held)) {
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

impl Drop for Seat {
    fn drop(&mut self) {
        self.reader.unread.readers().remove(&self.id);
    }
}

impl Reader {
    /// An answer to them, counted as it is fetched.
    pub fn answer(self: &Arc<Self>, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Body::new(Answer {
            body,
            reader: Arc::clone(self),
            data: None,
        })
    }

    /// Whether something has been there for them for so long while they took nothing.
    fn is_idle_for(&self, time: Duration) -> bool {
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // In this order: what is there now has been there since that time or a later one.
        let is_there = self.held.load(Acquire) > 0;
        let since_ms = self.since_ms.load(Relaxed);
        is_there && self.unread.now_ms().saturating_sub(since_ms) > time_ms
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
            let next = ready!(Pin::new(&mut self.body).poll_frame(context));
            match next.map(|next| next.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) => {
                    let count = Count::new(&self.reader, bytes.len());
                    self.data = Some(Counted { bytes, count });
                }
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.body.is_end_stream()
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
}

impl Count {
    fn new(reader: &Arc<Reader>, bytes: usize) -> Self {
        if reader.held.load(Relaxed) == 0 {
            reader.goes_on();
        }
        reader.held.fetch_add(bytes, Release);
        let unread = &reader.unread;
        if unread.total.fetch_add(bytes, Relaxed) + bytes > unread.max {
            unread.make_room();
        }
        Self {
            reader: Arc::clone(reader),
            bytes,
        }
    }

    fn split_off(&mut self, bytes: usize) -> Self {
        self.bytes -= bytes;
        Self {
            reader: Arc::clone(&self.reader),
            bytes,
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.reader.goes_on();
            self.reader.held.fetch_sub(self.bytes, Relaxed);
            self.reader.unread.total.fetch_sub(self.bytes, Relaxed);
        }
    }
}

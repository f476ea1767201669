//! Connections that are kept between uses, as many as there may be.
//!
//! Whoever uses one takes it out and puts it back. Invariant: what was taken and not put back is
//! closed: after a panic, a timeout or an error on the way nobody knows what state it is in.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{Error, Result};

/// After this long without use a connection is closed: a burst leaves nothing behind.
const MAX_IDLE: Duration = Duration::from_mins(10);

pub struct Pool<C> {
    places: Arc<Semaphore>,
    /// In the order in which they came back; the last is taken first.
    idle: Mutex<VecDeque<Idle<C>>>,
    acquire_timeout: Duration,
}

struct Idle<C> {
    connection: C,
    since: Instant,
}

/// A place in a pool, with a connection or room for one.
pub struct Place<C> {
    connection: Option<C>,
    /// How long the connection was idle.
    pub idle_time: Duration,
    pool: Arc<Pool<C>>,
    _permit: OwnedSemaphorePermit,
}

impl<C> Pool<C> {
    pub fn new(max: u32, acquire_timeout: Duration) -> Arc<Self> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        Arc::new(Self {
            places: Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))),
            idle: Mutex::default(),
            acquire_timeout,
        })
    }

    /// A place, as soon as there is one.
    pub async fn acquire(self: &Arc<Self>) -> Result<Place<C>> {
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let permit = Arc::clone(&self.places).acquire_owned();
                match tokio::time::timeout(self.acquire_timeout, permit).await {
                    Ok(Ok(permit)) => permit,
                    Ok(Err(_)) => return Err(Error::Unavailable("the pool is closed".to_owned())),
                    Err(_) => return Err(Error::Unavailable("no connection is free".to_owned())),
                }
            }
        };
        let now = Instant::now();
        let mut idle = self.idle();
        let last = idle.pop_back();
        let outlived = idle
            .front()
            .is_some_and(|first| now.duration_since(first.since) > MAX_IDLE);
        let outlived = if outlived { idle.pop_front() } else { None };
        drop(idle);
        drop(outlived);
        let idle_time = last.as_ref().map(|last| now.duration_since(last.since));
        Ok(Place {
            connection: last.map(|last| last.connection),
            idle_time: idle_time.unwrap_or_default(),
            pool: Arc::clone(self),
            _permit: permit,
        })
    }

    /// How long it may take to get a connection.
    pub const fn acquire_timeout(&self) -> Duration {
        self.acquire_timeout
    }

    /// Lets nobody in any more; the connections that were idle.
    pub fn close(&self) -> Vec<C> {
        self.places.close();
        let idle = std::mem::take(&mut *self.idle());
        idle.into_iter().map(|idle| idle.connection).collect()
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle<C>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Place<C> {
    pub const fn get(&mut self) -> Option<&mut C> {
        self.connection.as_mut()
    }

    pub const fn take(&mut self) -> Option<C> {
        self.connection.take()
    }

    pub fn put(&mut self, connection: C) {
        self.connection = Some(connection);
    }
}

impl<C> Drop for Place<C> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !self.pool.places.is_closed()
        {
            let since = Instant::now();
            self.pool.idle().push_back(Idle { connection, since });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_are_as_many_places_as_there_may_be() {
        let pool = Pool::<u8>::new(1, Duration::from_millis(10));
        let mut place = pool.acquire().await.expect("the first");
        place.put(7);
        let refused = pool.acquire().await.err().expect("no second");
        assert!(matches!(refused, Error::Unavailable(_)));
        drop(place);
        assert_eq!(
            pool.acquire().await.expect("free again").get(),
            Some(&mut 7)
        );
    }

    #[tokio::test]
    async fn what_was_taken_and_not_put_back_is_gone() {
        let pool = Pool::<u8>::new(1, Duration::from_millis(10));
        pool.acquire().await.expect("a place").put(7);
        assert_eq!(pool.acquire().await.expect("a place").take(), Some(7));
        assert_eq!(pool.acquire().await.expect("a place").get(), None);
    }

    #[tokio::test]
    async fn a_closed_pool_takes_nothing_back() {
        let pool = Pool::<u8>::new(2, Duration::from_millis(10));
        let mut used = pool.acquire().await.expect("a place");
        used.put(1);
        pool.acquire().await.expect("a place").put(2);
        assert_eq!(pool.close(), [2]);
        drop(used);
        assert_eq!(pool.close(), [0; 0]);
        assert!(pool.acquire().await.is_err());
    }
}

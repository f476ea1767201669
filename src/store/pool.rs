//! Connections that are kept between uses, as many as there may be.
//!
//! Whoever uses one takes it out and puts it back. Invariant: what was taken and not put back is
//! closed: after a panic, a timeout or an error on the way nobody knows what state it is in.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::error::{Error, Result};

/// After this long without use a connection is closed: a burst leaves nothing behind.
const MAX_IDLE: Duration = Duration::from_mins(10);
/// At this age a connection is closed, so that what the server keeps for it does not grow for ever,
/// and a server that joined later gets its share.
const MAX_AGE: Duration = Duration::from_mins(30);

pub struct Pool<C> {
    places: Arc<Semaphore>,
    /// In the order in which they came back; the last is taken first.
    idle: Mutex<VecDeque<Idle<C>>>,
    acquire_timeout: Duration,
}

struct Idle<C> {
    connection: C,
    opened: Instant,
    since: Instant,
}

/// A place in a pool, with a connection or room for one.
pub struct Place<C> {
    connection: Option<C>,
    opened: Instant,
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
        let unused = idle.pop_front_if(|first| now - first.since > MAX_IDLE);
        drop(idle);
        drop(unused);
        let mut place = Place {
            connection: None,
            opened: now,
            idle_time: Duration::ZERO,
            pool: Arc::clone(self),
            _permit: permit,
        };
        if let Some(last) = last
            && now - last.opened < MAX_AGE
        {
            place.connection = Some(last.connection);
            place.opened = last.opened;
            place.idle_time = now - last.since;
        }
        Ok(place)
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

    /// Puts back what was taken.
    pub fn put(&mut self, connection: C) {
        self.connection = Some(connection);
    }

    /// Puts in a connection that was just opened.
    pub fn fill(&mut self, connection: C) {
        self.opened = Instant::now();
        self.connection = Some(connection);
    }
}

impl<C> Drop for Place<C> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !self.pool.places.is_closed()
        {
            self.pool.idle().push_back(Idle {
                connection,
                opened: self.opened,
                since: Instant::now(),
            });
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

    #[tokio::test(start_paused = true)]
    async fn connections_do_not_grow_old() {
        let pool = Pool::<u8>::new(2, Duration::from_millis(10));
        pool.acquire().await.expect("a place").fill(7);
        for _ in 0..5 {
            tokio::time::advance(MAX_AGE / 6).await;
            assert_eq!(pool.acquire().await.expect("a place").get(), Some(&mut 7));
        }
        tokio::time::advance(MAX_AGE / 6).await;
        assert_eq!(pool.acquire().await.expect("a place").get(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_burst_has_left_is_closed_in_time() {
        let pool = Pool::<u8>::new(2, Duration::from_millis(10));
        let (mut first, mut second) = (
            pool.acquire().await.expect("a place"),
            pool.acquire().await.expect("a place"),
        );
        first.fill(1);
        second.fill(2);
        drop((first, second));
        tokio::time::advance(MAX_IDLE * 2 / 3).await;
        assert_eq!(pool.acquire().await.expect("a place").get(), Some(&mut 2));
        tokio::time::advance(MAX_IDLE * 2 / 3).await;
        assert_eq!(pool.acquire().await.expect("a place").get(), Some(&mut 2));
        assert_eq!(pool.close(), [2]);
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

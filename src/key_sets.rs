//! Key sets of programs, fetched from where the programs publish them and kept for a while.
//!
//! Invariant: whoever names a URL reaches nothing but public addresses by it, and those that the operator
//! allows. Only https, no redirect, no proxy, no credentials; the addresses that are connected to are those
//! that were looked at, whatever name they have. Time and size are bounded, and so is how often a stranger
//! can cause a fetch, how many there are at once, and how many calls of one account wait for any.

use std::{
    convert::Infallible,
    error::Error,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use prometheus_client::metrics::counter::Counter;
use quick_cache::sync::Cache;
use reqwest::{
    Client, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

use crate::{
    config::Outbound,
    domain::{
        key_set::{KeySet, KeySetUri, Look, MAX_SET_BYTES},
        name::SystemAccountId,
        network,
        tally::Tally,
    },
    env::Clock,
    tls,
};

/// Sets that are kept; how often a URL is looked at is known for these.
const MAX_SETS: usize = 10_000;
/// Fetches at once.
const MAX_FETCHES: usize = 64;
/// Calls that wait for fetches at once, in all and of one account.
const MAX_WAITING: usize = 128;
const MAX_WAITING_OF_ONE: usize = 32;
/// Names that are being resolved at once: the system's resolver keeps a thread for each, however long it
/// takes.
const MAX_LOOKUPS: usize = 32;

/// What is known of all URLs.
pub struct KeySets(Arc<Shared>);

struct Shared {
    client: Client,
    addresses: Addresses,
    /// Names that stand for themselves and for all below them; any when empty.
    hosts: Vec<String>,
    patience: Duration,
    clock: Arc<dyn Clock>,
    sets: Cache<KeySetUri, Arc<Mutex<KeySet>>>,
    /// Tells those who wait that a look has come to its end.
    ended: Notify,
    fetches: Semaphore,
    waiting: Mutex<Tally<Waiter>>,
    failed: Counter,
}

/// Whom a waiting call is counted for.
#[derive(PartialEq, Eq, Hash)]
enum Waiter {
    Any,
    Of(SystemAccountId),
}

impl KeySets {
    /// An error is a sentence for the operator.
    pub fn new(
        settings: &Outbound,
        clock: &Arc<dyn Clock>,
        failed: Counter,
    ) -> Result<Self, String> {
        let addresses = Addresses {
            allowed: settings.allowed()?.into(),
            denied: settings.denied()?.into(),
            lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)),
        };
        let patience = Duration::from_secs(settings.timeout_s);
        let client = Client::builder()
            .tls_backend_preconfigured(tls::outgoing(settings.ca_file.as_deref(), clock)?)
            .dns_resolver(addresses.clone())
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            // Each connection is to an address that was looked at just now.
            .pool_max_idle_per_host(0)
            .timeout(patience)
            .user_agent("accountd")
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(Shared {
            client,
            addresses,
            hosts: settings.hosts()?,
            patience,
            clock: Arc::clone(clock),
            sets: Cache::new(MAX_SETS),
            ended: Notify::new(),
            fetches: Semaphore::new(MAX_FETCHES),
            waiting: Mutex::default(),
            failed,
        })))
    }

    /// Whether a URL could be fetched from; if not, why, as the end of a sentence about it.
    pub fn require_reachable(&self, uri: &KeySetUri) -> Result<(), String> {
        self.0.require_reachable(uri)
    }

    /// What is known of a URL.
    pub fn known(&self, uri: &KeySetUri) -> KeySet {
        lock(&self.0.entry(uri)).clone()
    }

    /// Has somebody look, if it is time to, for somebody who names a key or none and found nothing; whether
    /// anybody is looking.
    pub fn look(&self, uri: &KeySetUri, kid: Option<&str>) -> bool {
        let entry = self.0.entry(uri);
        let mut set = lock(&entry);
        let now = self.0.clock.now();
        if set.begin_to_look(kid, now) {
            let (shared, uri) = (Arc::clone(&self.0), uri.clone());
            let entry = Arc::clone(&entry);
            // It comes to its end whoever gives up waiting.
            tokio::spawn(async move { shared.look(&uri, &entry).await });
        }
        set.is_awaited(now)
    }

    /// Waits until the looks at these URLs have ended, or one has found the key that is named, or it has
    /// taken too long. False where so many wait that nobody else may.
    pub async fn wait(
        &self,
        account: SystemAccountId,
        uris: &[KeySetUri],
        kid: Option<&str>,
    ) -> bool {
        let Some(_place) = self.0.place(account) else {
            return false;
        };
        let found = async {
            loop {
                let mut ended = std::pin::pin!(self.0.ended.notified());
                // From here on nothing is missed.
                ended.as_mut().enable();
                let now = self.0.clock.now();
                let mut is_awaited = false;
                for uri in uris {
                    let entry = self.0.entry(uri);
                    let set = lock(&entry);
                    if kid.is_some_and(|kid| set.has(kid, now)) {
                        return;
                    }
                    is_awaited |= set.is_awaited(now);
                }
                if !is_awaited {
                    return;
                }
                ended.await;
            }
        };
        // Whoever did not come in time is as before.
        let _ = timeout(self.0.patience, found).await;
        true
    }
}

impl Shared {
    fn entry(&self, uri: &KeySetUri) -> Arc<Mutex<KeySet>> {
        let entry = self
            .sets
            .get_or_insert_with(uri, || Ok::<_, Infallible>(Arc::default()));
        let Ok(entry) = entry;
        entry
    }

    fn place(self: &Arc<Self>, account: SystemAccountId) -> Option<Place> {
        let mut waiting = lock(&self.waiting);
        if waiting.of(&Waiter::Any) >= MAX_WAITING
            || waiting.of(&Waiter::Of(account)) >= MAX_WAITING_OF_ONE
        {
            return None;
        }
        waiting.take(Waiter::Any, 1);
        waiting.take(Waiter::Of(account), 1);
        Some(Place {
            shared: Arc::clone(self),
            account,
        })
    }

    async fn look(&self, uri: &KeySetUri, entry: &Mutex<KeySet>) {
        let fetched = match self.fetches.try_acquire() {
            Ok(_one) => match self.fetch(uri).await {
                Ok(body) => KeySet::parse(&body).map(Look::Keys),
                Err(error) => Err(error),
            },
            Err(_) => Ok(Look::NotTaken),
        };
        let look = fetched.unwrap_or_else(|error| {
            self.failed.inc();
            tracing::warn!(at = uri.place(), error, "cannot fetch a program's keys");
            Look::Nothing
        });
        lock(entry).end_look(look, self.clock.now());
        self.ended.notify_waiters();
    }

    async fn fetch(&self, uri: &KeySetUri) -> Result<Vec<u8>, String> {
        self.require_reachable(uri)?;
        let response = self.client.get(uri.as_str()).send().await;
        let mut response = response.map_err(|error| in_full(&error.without_url()))?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let mut body = Vec::new();
        loop {
            let chunk = response.chunk().await;
            let Some(chunk) = chunk.map_err(|error| in_full(&error.without_url()))? else {
                return Ok(body);
            };
            if body.len() + chunk.len() > MAX_SET_BYTES {
                return Err(format!("the answer is longer than {MAX_SET_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
    }

    fn require_reachable(&self, uri: &KeySetUri) -> Result<(), String> {
        let host = uri.host().trim_end_matches('.');
        let is_below = |name: &String| {
            let rest = host.strip_suffix(name.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if !self.hosts.is_empty() && !self.hosts.iter().any(is_below) {
            return Err("must be at a host that `outbound.hosts` names".to_owned());
        }
        // What is written as an address is not resolved.
        if uri
            .address()
            .is_some_and(|address| !self.addresses.allow(address))
        {
            return Err("must be at a public address".to_owned());
        }
        Ok(())
    }
}

/// A waiting call's place; free again when dropped.
struct Place {
    shared: Arc<Shared>,
    account: SystemAccountId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = lock(&self.shared.waiting);
        waiting.give_back(&Waiter::Any, 1);
        waiting.give_back(&Waiter::Of(self.account), 1);
    }
}

/// Nothing that panics is done while one of them is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with what it comes from.
fn in_full(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", in_full(source)),
        None => error.to_string(),
    }
}

/// The addresses that may be connected to.
#[derive(Clone)]
struct Addresses {
    allowed: Arc<[IpNet]>,
    denied: Arc<[IpNet]>,
    lookups: Arc<Semaphore>,
}

impl Addresses {
    fn allow(&self, address: IpAddr) -> bool {
        let address = network::canonical(address);
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        (network::is_public(address) || is_in(&self.allowed)) && !is_in(&self.denied)
    }
}

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.clone();
        Box::pin(async move {
            let permit = Arc::clone(&addresses.lookups).try_acquire_owned()?;
            // Held until the thread is free again, also if nobody waits any more.
            let lookup = tokio::spawn(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await;
                drop(permit);
                found.map(Vec::from_iter)
            });
            let mut found = lookup.await??;
            found.retain(|found| addresses.allow(found.ip()));
            if found.is_empty() {
                let error = io::Error::other("the name has no public address");
                return Err(error.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

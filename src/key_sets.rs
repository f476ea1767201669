//! Key sets of programs, fetched from where the programs publish them and kept for a while.
//!
//! Invariant: whoever names a URL reaches nothing but public addresses by it, and those that the operator
//! allows. Only https, no redirect, no proxy, no credentials; the addresses that are connected to are those
//! that were looked at, whatever name they have. Time and size are bounded, and so is how often a
//! stranger can cause a fetch and how many calls wait for one.

use std::{convert::Infallible, error::Error, io, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use prometheus_client::metrics::counter::Counter;
use quick_cache::sync::Cache;
use reqwest::{
    Client, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use tokio::sync::{Mutex, Semaphore};

use crate::{
    config::Outbound,
    domain::{
        key_set::{self, KeySet, KeySetUri, MAX_SET_BYTES},
        network,
        time::Timestamp,
    },
    env::Clock,
    tls,
};

/// Sets that are kept; how often a URL is looked at is known for these.
const MAX_SETS: usize = 10_000;

/// Calls that wait for a fetch: in all, and for one URL. Whoever may not wait has what is known.
const MAX_WAITING: usize = 128;
const MAX_WAITING_FOR_ONE: usize = 32;

pub struct KeySets {
    client: Client,
    addresses: Addresses,
    /// Names that stand for themselves and for all below them; any when empty.
    hosts: Vec<String>,
    waiting: Semaphore,
    sets: Cache<KeySetUri, Arc<Entry>>,
    failed: Counter,
}

/// What is known of one URL.
struct Entry {
    set: ArcSwap<KeySet>,
    /// When it was last looked at; held while somebody does.
    look: Mutex<Option<Timestamp>>,
    waiting: Semaphore,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            set: ArcSwap::default(),
            look: Mutex::default(),
            waiting: Semaphore::new(MAX_WAITING_FOR_ONE),
        }
    }
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
        };
        let ca_file = settings.ca_file.as_deref();
        let client = Client::builder()
            .tls_backend_preconfigured(tls::outgoing(ca_file, clock)?)
            .dns_resolver(addresses.clone())
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            // Each connection is to an address that was looked at just now.
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(settings.timeout_s))
            .user_agent("accountd")
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            client,
            addresses,
            hosts: settings
                .hosts
                .iter()
                .map(|host| host.to_ascii_lowercase())
                .collect(),
            waiting: Semaphore::new(MAX_WAITING),
            sets: Cache::new(MAX_SETS),
            failed,
        })
    }

    /// Whether a URL could be fetched from: not from a host that the operator has not named, nor from an
    /// address in it that is not public.
    pub fn may_reach(&self, uri: &KeySetUri) -> bool {
        let host = uri.host().trim_end_matches('.');
        let is_below = |name: &String| {
            let rest = host.strip_suffix(name.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        // What is written as an address is not resolved.
        let is_allowed = |address| self.addresses.allow(address);
        (self.hosts.is_empty() || self.hosts.iter().any(is_below))
            && uri.address().is_none_or(is_allowed)
    }

    /// What a program publishes, as it was fetched last.
    pub fn known(&self, uri: &KeySetUri) -> Arc<KeySet> {
        self.entry(uri).set.load_full()
    }

    /// The same, fetched now if that is due for somebody who names a key, or none. Of all who need it at
    /// once, one fetches; others wait, a few of them, only if what there is will not do for them.
    pub async fn refresh(&self, uri: &KeySetUri, kid: Option<&str>, now: Timestamp) -> Arc<KeySet> {
        let entry = self.entry(uri);
        let known = entry.set.load_full();
        let (Ok(_one), Ok(_all)) = (entry.waiting.try_acquire(), self.waiting.try_acquire()) else {
            return known;
        };
        let mut looked = match entry.look.try_lock() {
            Ok(looked) => looked,
            Err(_) if known.serves(kid, now) => return known,
            Err(_) => entry.look.lock().await,
        };
        let known = entry.set.load_full();
        if !known.is_wanting(kid, now) || !key_set::may_try(*looked, now) {
            return known;
        }
        *looked = Some(now);
        let fetched = async {
            let body = self.fetch(uri).await?;
            KeySet::parse(&body, now)
        };
        match fetched.await {
            Ok(set) => entry.set.store(Arc::new(set)),
            Err(error) => {
                self.failed.inc();
                tracing::warn!(at = uri.place(), error, "cannot fetch a program's keys");
            }
        }
        entry.set.load_full()
    }

    fn entry(&self, uri: &KeySetUri) -> Arc<Entry> {
        let entry = self
            .sets
            .get_or_insert_with(uri, || Ok::<_, Infallible>(Arc::default()));
        let Ok(entry) = entry;
        entry
    }

    async fn fetch(&self, uri: &KeySetUri) -> Result<Vec<u8>, String> {
        if !self.may_reach(uri) {
            return Err("the address is not public".to_owned());
        }
        let response = self.client.get(uri.as_str()).send().await;
        let mut response = response.map_err(|error| in_full(&error.without_url()))?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| in_full(&error.without_url()))?
        {
            if body.len() + chunk.len() > MAX_SET_BYTES {
                return Err(format!("the answer is longer than {MAX_SET_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
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
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<_> = found.filter(|found| addresses.allow(found.ip())).collect();
            if allowed.is_empty() {
                let error = io::Error::other("the name has no public address");
                return Err(error.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

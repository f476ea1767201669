//! Key sets of programs, fetched from where the programs publish them and kept for a while.
//!
//! Invariant: whoever names a URL gets nothing from inside our network by it. Only https, no redirect,
//! no proxy, no credentials; every address that is connected to is public or allowed by the operator,
//! whatever name it has; time and size are bounded, and so is how often a stranger can cause a fetch.

use std::{convert::Infallible, error::Error, io, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use quick_cache::sync::Cache;
use reqwest::{
    Client, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use tokio::sync::Mutex;

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

/// Sets that are kept.
const MAX_SETS: usize = 1_000;

pub struct KeySets {
    client: Client,
    addresses: Addresses,
    sets: Cache<KeySetUri, Arc<Entry>>,
}

/// What is known of one URL.
#[derive(Default)]
struct Entry {
    set: ArcSwap<KeySet>,
    /// When it was last looked at; held while somebody does.
    look: Mutex<Option<Timestamp>>,
}

impl KeySets {
    /// An error is a sentence for the operator.
    pub fn new(settings: &Outbound, clock: &Arc<dyn Clock>) -> Result<Self, String> {
        let addresses = Addresses {
            allowed: settings.networks()?.into(),
        };
        let ca_file = settings.ca_file.as_deref();
        let client = Client::builder()
            .tls_backend_preconfigured(tls::client(ca_file, clock)?)
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
            sets: Cache::new(MAX_SETS),
        })
    }

    /// What a program publishes, for an assertion that names a key or none: as it was fetched lately, or
    /// now. Of all who need it at once, one fetches.
    pub async fn get(&self, uri: &KeySetUri, kid: Option<&str>, now: Timestamp) -> Arc<KeySet> {
        let entry = self
            .sets
            .get_or_insert_with(uri, || Ok::<_, Infallible>(Arc::default()));
        let Ok(entry) = entry;
        let set = entry.set.load_full();
        if !set.is_wanting(kid, now) {
            return set;
        }
        let mut looked = entry.look.lock().await;
        let set = entry.set.load_full();
        if !set.is_wanting(kid, now) || !key_set::may_try(*looked, now) {
            return set;
        }
        *looked = Some(now);
        let fetched = async {
            let body = self.fetch(uri).await?;
            KeySet::parse(&body, now)
        };
        match fetched.await {
            Ok(set) => entry.set.store(Arc::new(set)),
            Err(error) => {
                tracing::warn!(uri = uri.as_str(), error, "cannot fetch a program's keys");
            }
        }
        entry.set.load_full()
    }

    async fn fetch(&self, uri: &KeySetUri) -> Result<Vec<u8>, String> {
        // What is written as an address is not resolved.
        if uri
            .address()
            .is_some_and(|address| !self.addresses.allow(address))
        {
            return Err("the address is not public".to_owned());
        }
        let response = self.client.get(uri.as_str()).send().await;
        let mut response = response.map_err(|error| in_full(&error))?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| in_full(&error))? {
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
}

impl Addresses {
    fn allow(&self, address: IpAddr) -> bool {
        let address = network::canonical(address);
        network::is_public(address) || self.allowed.iter().any(|net| net.contains(&address))
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

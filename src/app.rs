//! What every call needs, in one place: fields, no behaviour.

use std::sync::{Arc, atomic::AtomicI64};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use quick_cache::sync::Cache;
use uuid::Uuid;

use crate::{
    config::Config,
    domain::{
        change::FourEyes,
        keyring::{Genuine, Keyring},
        master_key::Keys,
        passkey::RelyingParty,
        secret::Digest,
    },
    env::{Clock, Random},
    grpc::{body::Intake, call::Call},
    hasher::Hasher,
    key_sets::KeySets,
    messenger::Messenger,
    store::db::Db,
    telemetry::Metrics,
    tls::Tls,
};

pub struct App {
    pub config: Config,
    /// The URL of this service, in every token.
    pub issuer: String,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub hasher: Hasher,
    /// What the master key comes to.
    pub keys: Keys,
    /// What browsers know this installation by, if it can have passkeys.
    pub passkeys: Option<Box<RelyingParty>>,
    /// The signing keys as last read; see `signing::refresh`.
    pub keyring: ArcSwap<Keyring>,
    /// Tokens whose signatures were verified, by their digests.
    pub genuine: Cache<Digest, Arc<Genuine>>,
    /// Held while they are read: what was read earlier must not replace what was read later.
    pub keyring_reader: tokio::sync::Mutex<()>,
    /// The second in which the keys were last read because of an unknown one.
    pub unknown_key_s: AtomicI64,
    pub key_sets: KeySets,
    pub messenger: Box<Messenger>,
    /// Of the listeners, unless they speak in the clear.
    pub tls: Option<Arc<Tls>>,
    pub metrics: Metrics,
    /// What requests may take while they are being received.
    pub intake: Arc<Intake>,
    pub proxies: Vec<IpNet>,
    /// What needs a second person.
    pub four_eyes: FourEyes,
    /// This process among others on the same database.
    pub instance: Uuid,
    db: Db,
}

/// All fields of an [`App`], for the one place that puts it together.
pub struct Parts {
    pub config: Config,
    pub issuer: String,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub hasher: Hasher,
    pub keys: Keys,
    pub keyring: Keyring,
    pub tls: Option<Arc<Tls>>,
    pub db: Db,
}

impl App {
    pub fn new(parts: Parts) -> Result<Self, String> {
        let Parts {
            config,
            issuer,
            clock,
            random,
            hasher,
            keys,
            keyring,
            tls,
            db,
        } = parts;
        let metrics = Metrics::new(&hasher, db.stats(), tls.as_ref());
        Ok(Self {
            proxies: config.proxies()?,
            four_eyes: config.four_eyes.read()?,
            key_sets: KeySets::new(&config.outbound, &clock, metrics.key_sets_failed.clone())?,
            messenger: Box::new(Messenger::new(&config, &clock)?),
            passkeys: config.relying_party(&issuer)?.map(Box::new),
            metrics,
            intake: Intake::new(config.limits.max_received_bytes),
            instance: random.uuid(clock.now()),
            keyring: ArcSwap::from_pointee(keyring),
            genuine: Cache::new(config.limits.max_verified_tokens),
            keyring_reader: tokio::sync::Mutex::default(),
            unknown_key_s: AtomicI64::new(0),
            config,
            issuer,
            clock,
            random,
            hasher,
            keys,
            tls,
            db,
        })
    }

    /// Whether programs may authenticate with certificates here.
    pub fn takes_certificates(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.takes_certificates())
    }

    /// The database, for somebody who can say in whose name.
    pub const fn db(&self, _: &Call) -> &Db {
        &self.db
    }
}

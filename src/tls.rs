//! TLS: what the listeners show and whose certificates they take, from files that are read again while
//! the server runs; and what connections of our own believe.
//!
//! Invariant: whoever authenticates with a certificate has proved in the handshake that the key is
//! theirs, and is vouched for by the authorities of now, at the time when a token is asked for: neither
//! a connection nor a session that is resumed outlives the certificate or the trust in who signed it.

use std::{
    fmt::{self, Debug, Display, Formatter},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject as _,
};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::{
    config,
    domain::{
        certificate::{self, Certificate},
        secret::{self, Digest},
        time::Timestamp,
    },
    env::Clock,
};

/// The TLS of a server that has any.
pub struct Tls {
    settings: config::Tls,
    clock: Arc<dyn Clock>,
    current: ArcSwap<Current>,
    /// What was wrong with the files when they were looked at last, or their digest.
    seen: Mutex<Result<Digest, String>>,
}

/// What the files come to.
struct Current {
    acceptor: TlsAcceptor,
    /// Who vouches for clients, if any are asked for a certificate.
    clients: Option<Clients>,
    expire_time: Timestamp,
}

/// Those who vouch for clients.
struct Clients {
    verifier: Arc<dyn ClientCertVerifier>,
    /// When the first of them ends, and has to be left out.
    end_time: Timestamp,
}

impl Tls {
    /// Nothing without a certificate; an error is a sentence for the operator.
    pub fn open(
        settings: &config::Tls,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Arc<Self>>, String> {
        let Some(files) = Files::read(settings)? else {
            return Ok(None);
        };
        Ok(Some(Arc::new(Self {
            current: ArcSwap::from_pointee(files.open(clock)?),
            seen: Mutex::new(Ok(files.digest())),
            settings: settings.clone(),
            clock: Arc::clone(clock),
        })))
    }

    /// For the handshake of a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.load().acceptor.clone()
    }

    /// Uses the files as they are now; whether anything had changed. What is wrong with them is said
    /// once, and what there was stays in use: they may be half written.
    pub fn reload(&self) -> Result<bool, String> {
        let files = Files::read(&self.settings);
        let found = match &files {
            Ok(files) => Ok(files.as_ref().map(Files::digest).unwrap_or_default()),
            Err(error) => Err(error.clone()),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == found && !self.is_over() {
            return Ok(false);
        }
        *seen = found;
        match files? {
            Some(files) => self.current.store(Arc::new(files.open(&self.clock)?)),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Whether an authority that vouches for clients has ended since the files were read.
    fn is_over(&self) -> bool {
        let current = self.current.load();
        let clients = current.clients.as_ref();
        clients.is_some_and(|clients| clients.end_time <= self.clock.now())
    }

    /// When what the listeners show now ends.
    pub fn expire_time(&self) -> Timestamp {
        self.current.load().expire_time
    }

    /// Whether clients are asked for a certificate.
    pub fn takes_certificates(&self) -> bool {
        self.current.load().clients.is_some()
    }

    /// Whether the authorities of now vouch for a certificate at this time.
    pub fn vouches_for(&self, certificate: &Certificate, now: Timestamp) -> bool {
        let current = self.current.load();
        let (Some(clients), Some((leaf, links))) =
            (&current.clients, certificate.chain.split_first())
        else {
            return false;
        };
        let vouched = clients
            .verifier
            .verify_client_cert(leaf, links, unix_time(now));
        now < clients.end_time && vouched.is_ok()
    }
}

/// What the files hold.
struct Files {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
    client_crl: Option<Vec<u8>>,
}

impl Files {
    fn read(settings: &config::Tls) -> Result<Option<Self>, String> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let (Some(certificate), Some(key)) = (&settings.certificate_file, &settings.key_file)
        else {
            return Ok(None);
        };
        let some = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        Ok(Some(Self {
            certificate: read(certificate)?,
            key: Zeroizing::new(read(key)?),
            client_ca: some(&settings.client_ca_file)?,
            client_crl: some(&settings.client_crl_file)?,
        }))
    }

    fn digest(&self) -> Digest {
        let some = |file: &'_ Option<Vec<u8>>| file.clone().unwrap_or_default();
        let (client_ca, client_crl) = (some(&self.client_ca), some(&self.client_crl));
        let files = [&*self.certificate, &self.key, &client_ca, &client_crl];
        secret::sha256(&files.map(secret::sha256).concat())
    }

    fn open(&self, clock: &Arc<dyn Clock>) -> Result<Current, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let cannot = |setting: &str, error: &dyn Display| {
            format!("cannot use the file of `tls.{setting}`: {error}")
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificate).collect();
        let chain = chain.map_err(|error| cannot("certificate_file", &error))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        let key = key.map_err(|error| cannot("key_file", &error))?;
        let shown = Certificate::read(&chain);
        let shown = shown.ok_or_else(|| cannot("certificate_file", &"no certificate in it"))?;
        let clients = match &self.client_ca {
            Some(roots) => {
                let lists = self.client_crl.as_deref();
                Some(clients(roots, lists, &provider, clock.now())?)
            }
            None => None,
        };
        let time = Arc::new(ServiceTime(Arc::clone(clock)));
        let builder = ServerConfig::builder_with_details(provider, time)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(&clients.verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| cannot("certificate_file", &error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if clients.is_some() {
            // Whoever resumes is not looked at again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Current {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            clients,
            expire_time: shown.expire_time,
        })
    }
}

/// Takes certificates of those of these authorities that have not ended, and clients without any. Where
/// there are lists of what was revoked, every certificate needs one of its authority, in time.
fn clients(
    roots: &[u8],
    lists: Option<&[u8]>,
    provider: &Arc<CryptoProvider>,
    now: Timestamp,
) -> Result<Clients, String> {
    let cannot =
        |error: &dyn Display| format!("cannot use the file of `tls.client_ca_file`: {error}");
    let mut store = RootCertStore::empty();
    let mut end_time = Timestamp::MAX;
    for root in CertificateDer::pem_slice_iter(roots) {
        let root = root.map_err(|error| cannot(&error))?;
        let end = certificate::authority(&root);
        let end = end.ok_or_else(|| cannot(&"it holds a certificate that is no authority's"))?;
        if now < end {
            end_time = end_time.min(end);
            store.add(root).map_err(|error| cannot(&error))?;
        }
    }
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
            .allow_unauthenticated();
    if let Some(lists) = lists {
        let lists: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(lists).collect();
        let lists = lists
            .map_err(|error| format!("cannot use the file of `tls.client_crl_file`: {error}"))?;
        if lists.is_empty() {
            return Err("there is no list in the file of `tls.client_crl_file`".to_owned());
        }
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    Ok(Clients {
        verifier: builder.build().map_err(|error| cannot(&error))?,
        end_time,
    })
}

/// For connections of our own: believes the public authorities, and those in `ca_file`.
pub fn outgoing(ca_file: Option<&Path>, clock: &Arc<dyn Clock>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let time = Arc::new(ServiceTime(Arc::clone(clock)));
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    if let Some(file) = ca_file {
        let cannot = |error: &dyn Display| format!("cannot use {}: {error}", file.display());
        let public = roots.len();
        for root in CertificateDer::pem_file_iter(file).map_err(|error| cannot(&error))? {
            let root = root.map_err(|error| cannot(&error))?;
            roots.add(root).map_err(|error| cannot(&error))?;
        }
        if roots.len() == public {
            return Err(cannot(&"no certificate in it"));
        }
    }
    let builder = ClientConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    // Whoever resumes is not looked at again.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The service's clock, for who checks certificates.
struct ServiceTime(Arc<dyn Clock>);

impl TimeProvider for ServiceTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now()))
    }
}

impl Debug for ServiceTime {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceTime")
    }
}

fn unix_time(time: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(
        time.seconds().try_into().unwrap_or_default(),
    ))
}

//! TLS: what the listeners show and whose certificates they take, from files that are read again while
//! the server runs; and what connections of our own believe.
//!
//! Invariant: whoever authenticates with a certificate has proved in the handshake that the key is
//! theirs, and is vouched for by the authorities of now, at the time when a token is asked for: neither
//! a connection nor a session that is resumed outlives the certificate or the trust in who signed it.

use std::{
    collections::BTreeSet,
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
    /// All of them, for the handshake.
    all: Arc<dyn ClientCertVerifier>,
    /// Each, until it ends: whoever checks chains believes authorities for ever.
    each: Vec<(Timestamp, Arc<dyn ClientCertVerifier>)>,
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
        if *seen == found {
            return Ok(false);
        }
        *seen = found;
        match files? {
            Some(files) => self.current.store(Arc::new(files.open(&self.clock)?)),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// When what the listeners show now ends.
    pub fn expire_time(&self) -> Timestamp {
        self.current.load().expire_time
    }

    /// Whether there is anybody who vouches for clients.
    pub fn takes_certificates(&self) -> bool {
        let (current, now) = (self.current.load(), self.clock.now());
        let clients = current.clients.as_ref();
        clients.is_some_and(|clients| clients.each.iter().any(|(end, _)| now < *end))
    }

    /// What a peer has shown in the handshake.
    pub fn shown(&self, chain: &[CertificateDer<'_>]) -> Option<Certificate> {
        Certificate::read(chain, self.clock.now())
    }

    /// Whether the authorities of now vouch for a certificate at this time.
    pub fn vouches_for(&self, certificate: &Certificate, now: Timestamp) -> bool {
        let current = self.current.load();
        let (Some(clients), Some((leaf, links))) =
            (&current.clients, certificate.chain.split_first())
        else {
            return false;
        };
        clients.each.iter().any(|(end, verifier)| {
            now < *end
                && verifier
                    .verify_client_cert(leaf, links, unix_time(now))
                    .is_ok()
        })
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
        let shown = Certificate::read(&chain, clock.now());
        let shown = shown.ok_or_else(|| cannot("certificate_file", &"no certificate in it"))?;
        let clients = match &self.client_ca {
            Some(roots) => {
                let lists = self.client_crl.as_deref();
                Some(clients(roots, lists, &provider)?)
            }
            None => None,
        };
        let time = Arc::new(ServiceTime(Arc::clone(clock)));
        let builder = ServerConfig::builder_with_details(provider, time)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(&clients.all)),
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

/// Takes certificates of these authorities, and clients without any. Where there are lists of what was
/// revoked, every certificate needs one of its authority, in time.
fn clients(
    roots: &[u8],
    lists: Option<&[u8]>,
    provider: &Arc<CryptoProvider>,
) -> Result<Clients, String> {
    let lists = lists.map(revoked).transpose()?;
    let cannot =
        |error: &dyn Display| format!("cannot use the file of `tls.client_ca_file`: {error}");
    let verifier = |roots: RootCertStore| {
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .allow_unauthenticated();
        let builder = match &lists {
            Some(lists) => builder
                .with_crls(lists.clone())
                .enforce_revocation_expiration(),
            None => builder,
        };
        builder.build().map_err(|error| cannot(&error))
    };
    let (mut all, mut each) = (RootCertStore::empty(), Vec::new());
    for root in CertificateDer::pem_slice_iter(roots) {
        let root = root.map_err(|error| cannot(&error))?;
        let end = certificate::authority(&root);
        let end = end.ok_or_else(|| cannot(&NO_AUTHORITY))?;
        let mut one = RootCertStore::empty();
        one.add(root.clone()).map_err(|error| cannot(&error))?;
        all.add(root).map_err(|error| cannot(&error))?;
        each.push((end, verifier(one)?));
    }
    let all = verifier(all)?;
    Ok(Clients { all, each })
}

const NO_AUTHORITY: &str = "it holds a certificate that is no authority's";

/// Lists of what was revoked. Of two lists of one authority only the first would be looked at.
fn revoked(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let cannot =
        |error: &dyn Display| format!("cannot use the file of `tls.client_crl_file`: {error}");
    let mut issuers = BTreeSet::new();
    let mut lists = Vec::new();
    for list in CertificateRevocationListDer::pem_slice_iter(pem) {
        let list = list.map_err(|error| cannot(&error))?;
        let issuer = certificate::issuer_of_list(&list);
        let issuer = issuer.ok_or_else(|| cannot(&"it holds what is no list"))?;
        if !issuers.insert(issuer) {
            return Err(cannot(&"it holds two lists of one authority"));
        }
        lists.push(list);
    }
    if lists.is_empty() {
        return Err(cannot(&"there is no list in it"));
    }
    Ok(lists)
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
            certificate::authority(&root).ok_or_else(|| cannot(&NO_AUTHORITY))?;
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

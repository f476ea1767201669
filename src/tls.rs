//! TLS of the listeners: what they show, and whose certificates they take. The files are read again
//! while the server runs.
//!
//! Invariant: whoever comes with a certificate was asked in the handshake to prove that the key is
//! theirs, and is vouched for by the authorities of now, at the time of each use: neither a
//! connection nor a session that is resumed outlives the certificate or the trust in who signed it.

use std::{
    fmt::{self, Debug, Display, Formatter},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::{
    config,
    domain::{
        client_certificate::ClientCertificate,
        secret::{self, Digest},
        time::Timestamp,
    },
    env::Clock,
};

/// The TLS of a server that has any.
pub struct Tls {
    settings: config::Tls,
    time: Arc<dyn TimeProvider>,
    current: ArcSwap<Current>,
    /// Of the files as they were looked at last, good or not.
    seen: Mutex<Digest>,
}

/// What the files come to.
struct Current {
    acceptor: TlsAcceptor,
    /// Who vouches for clients, if any are asked for a certificate.
    clients: Option<Arc<dyn ClientCertVerifier>>,
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
        let time: Arc<dyn TimeProvider> = Arc::new(ServiceTime(Arc::clone(clock)));
        Ok(Some(Arc::new(Self {
            current: ArcSwap::from_pointee(files.open(&time)?),
            seen: Mutex::new(files.digest()),
            settings: settings.clone(),
            time,
        })))
    }

    /// For the handshake of a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.load().acceptor.clone()
    }

    /// Puts what is in the files now to use, whether it is something new. What is wrong with new
    /// files is said once, and what there was stays in use: they may be half written.
    pub fn reload(&self) -> Result<bool, String> {
        let Some(files) = Files::read(&self.settings)? else {
            return Ok(false);
        };
        let digest = files.digest();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == digest {
            return Ok(false);
        }
        *seen = digest;
        self.current.store(Arc::new(files.open(&self.time)?));
        Ok(true)
    }

    /// Whether clients are asked for a certificate.
    pub fn takes_certificates(&self) -> bool {
        self.current.load().clients.is_some()
    }

    /// Whether the authorities of now vouch for a certificate at this time.
    pub fn vouches_for(&self, certificate: &ClientCertificate, now: Timestamp) -> bool {
        let current = self.current.load();
        let (Some(clients), Some((leaf, links))) =
            (&current.clients, certificate.chain.split_first())
        else {
            return false;
        };
        clients
            .verify_client_cert(leaf, links, unix_time(now))
            .is_ok()
    }
}

/// What the files hold.
struct Files {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
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
        let client_ca = settings.client_ca_file.as_deref().map(read);
        Ok(Some(Self {
            certificate: read(certificate)?,
            key: Zeroizing::new(read(key)?),
            client_ca: client_ca.transpose()?,
        }))
    }

    fn digest(&self) -> Digest {
        let client_ca = self.client_ca.as_deref().unwrap_or_default();
        let digests = [&self.certificate, &**self.key, client_ca].map(secret::sha256);
        secret::sha256(&digests.concat())
    }

    fn open(&self, time: &Arc<dyn TimeProvider>) -> Result<Current, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let cannot = |setting: &str, error: &dyn Display| {
            format!("cannot use the file of `tls.{setting}`: {error}")
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.certificate).collect();
        let chain = chain.map_err(|error| cannot("certificate_file", &error))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        let key = key.map_err(|error| cannot("key_file", &error))?;
        let clients = self
            .client_ca
            .as_ref()
            .map(|pem| verifier(pem, &provider))
            .transpose()
            .map_err(|error| cannot("client_ca_file", &error))?;
        let builder = ServerConfig::builder_with_details(provider, Arc::clone(time))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
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
        })
    }
}

/// Takes certificates of these authorities, and clients without any.
fn verifier(
    pem: &[u8],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem) {
        let root = root.map_err(|error| error.to_string())?;
        roots.add(root).map_err(|error| error.to_string())?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| error.to_string())
}

/// For connections that we make: believes the public authorities, and those in `ca_file`.
pub fn client(ca_file: Option<&Path>, clock: &Arc<dyn Clock>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let time = Arc::new(ServiceTime(Arc::clone(clock)));
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    if let Some(file) = ca_file {
        let cannot = |error: &dyn Display| format!("cannot use {}: {error}", file.display());
        for root in CertificateDer::pem_file_iter(file).map_err(|error| cannot(&error))? {
            let root = root.map_err(|error| cannot(&error))?;
            roots.add(root).map_err(|error| cannot(&error))?;
        }
    }
    let builder = ClientConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
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

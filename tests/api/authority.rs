//! A certificate authority of a test's own.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use accountd::config::{Config, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        Self::make(name, CertificateParams::default())
    }

    /// One whose own certificate has names.
    pub fn named(uris: &[&str]) -> Self {
        let mut params = CertificateParams::default();
        let uris = uris.iter().map(|uri| (*uri).try_into().expect("ASCII"));
        params.subject_alt_names.extend(uris.map(SanType::URI));
        Self::make("named", params)
    }

    /// One that ends at the beginning of a day.
    pub fn ending(name: &str, (year, month, day): (i32, u8, u8)) -> Self {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(year, month, day);
        Self::make(name, params)
    }

    fn make(name: &str, params: CertificateParams) -> Self {
        let (params, key) = Self::parts(name, params);
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn parts(name: &str, mut params: CertificateParams) -> (CertificateParams, KeyPair) {
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        (params, KeyPair::generate().expect("a key"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// An authority below this one.
    pub fn below(&self, name: &str) -> Self {
        let (params, key) = Self::parts(name, CertificateParams::default());
        Self(CertifiedIssuer::signed_by(params, key, &self.0).expect("an authority"))
    }

    /// The same, which ends at the beginning of a day.
    pub fn below_until(&self, name: &str, (year, month, day): (i32, u8, u8)) -> Self {
        let (mut params, key) = Self::parts(name, CertificateParams::default());
        params.not_after = rcgen::date_time_ymd(year, month, day);
        Self(CertifiedIssuer::signed_by(params, key, &self.0).expect("an authority"))
    }

    /// Its list of what it has revoked, from now until a day ends.
    pub fn revokes(&self, serials: &[u64], (year, month, day): (i32, u8, u8)) -> String {
        let time = rcgen::date_time_ymd(2026, 11, 21);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: time,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: time,
            next_update: rcgen::date_time_ymd(year, month, day),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.0).expect("a list");
        list.pem().expect("PEM")
    }

    /// Its own certificate, in the hands of somebody who has its key.
    pub fn itself(&self) -> Pair {
        Pair {
            certificate: self.pem(),
            key: self.0.key().serialize_pem(),
        }
    }

    /// A certificate for a program: names that look like URIs are URIs.
    pub fn client(&self, names: &[&str]) -> Pair {
        self.issue(names, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    /// A certificate for a server on this machine, and the authority's own after it.
    pub fn server(&self) -> Pair {
        let pair = self.issue(&["localhost", "127.0.0.1"], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        Pair {
            certificate: pair.certificate + &self.pem(),
            ..pair
        }
    }

    pub fn issue(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let (uris, names): (Vec<&str>, Vec<&str>) =
            names.iter().partition(|name| name.contains(':'));
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names).expect("names");
        for uri in uris {
            let uri = uri.try_into().expect("ASCII");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let made = params.signed_by(&key, &self.0).expect("a certificate");
        Pair {
            certificate: made.pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Pair {
    /// The leaf.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("a certificate")
    }

    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .expect("certificates")
    }

    pub fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key")
    }
}

/// Has a server speak TLS with what is written to the folder here.
pub fn speak_tls(config: &mut Config, server: &Pair, clients: Option<&Authority>) {
    let folder = config.data_dir.with_extension("tls");
    fs::create_dir_all(&folder).expect("a folder");
    config.tls.certificate_file = Some(folder.join("certificate.pem"));
    config.tls.key_file = Some(folder.join("key.pem"));
    config.tls.client_ca_file = clients.map(|_| folder.join("clients.pem"));
    replace(&config.tls, server, clients);
}

/// Puts other files in the place of those that a server has.
pub fn replace(tls: &Tls, server: &Pair, clients: Option<&Authority>) {
    let write = |path: &Option<std::path::PathBuf>, text: &str| {
        let path: &Path = path.as_deref().expect("a file");
        fs::write(path, text).expect("written");
    };
    write(&tls.certificate_file, &server.certificate);
    write(&tls.key_file, &server.key);
    if let Some(clients) = clients {
        write(&tls.client_ca_file, &clients.pem());
    }
}

/// A connection to a server with this certificate, by somebody who shows one of their own.
pub async fn connect(
    address: SocketAddr,
    server: &Pair,
    own: Option<&Pair>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&server.certificate))
        .domain_name("localhost");
    if let Some(Pair { certificate, key }) = own {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?;
    endpoint.tls_config(tls)?.connect().await
}

/// A client that believes the last certificate of `server`, and shows one of its own.
pub fn client_config(server: &Pair, own: Option<&Pair>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let root = server.chain().pop().expect("a chain");
    roots.add(root).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    Arc::new(match own {
        Some(own) => builder
            .with_client_auth_cert(own.chain(), own.private())
            .expect("an identity"),
        None => builder.with_no_client_auth(),
    })
}

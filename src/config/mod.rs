//! Every setting: its name, meaning, unit and default, and where its value comes from.
//!
//! Flags over environment over file over defaults. A key that does not exist is an error with a
//! suggestion, never ignored. Secrets are not settings: they live in files that settings name; the
//! one exception, a password inside `database_url`, is masked wherever settings are shown.

mod check;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::sources::{Loaded, Sources, environment, example};
use crate::domain::{
    change, name, network, passkey::RelyingParty, password::Cost, seal, session::Lifetimes,
    signing_key::Algorithm, throttle,
};

/// A section: a struct whose fields have a default and whose documentation can be printed.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident {
        $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $name {
            const DOCS: Docs = &[$((stringify!($field), &[$($doc),+]),)*];
        }
    };
}

/// Field by field, the lines of its documentation.
type Docs = &'static [(&'static str, &'static [&'static str])];

section! {
    /// The settings of a server.
    Config {
        /// Folder of the database, the master key and the bootstrap credentials.
        data_dir: PathBuf = PathBuf::from("accountd-data"),
        /// Address of gRPC, gRPC-Web and HTTP/JSON.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8080)),
        /// A second address. When set, RPCs for administration are served only there.
        private_listen: Option<SocketAddr> = None,
        /// Address of /healthz, /readyz and /metrics.
        ops_listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 9090)),
        /// The URL under which clients reach the service: the issuer of its tokens.
        /// Derived from `listen` when unset; the same for all processes on one database.
        public_url: Option<String> = None,
        /// `postgres://user:password@host/database`; unset: SQLite in the data folder.
        database_url: Option<DatabaseUrl> = None,
        /// File of the master key; unset: `master.key` in the data folder, made when missing.
        master_key_file: Option<PathBuf> = None,
        /// Serve without TLS beyond this machine, because a proxy in front ends it.
        insecure_plaintext: bool = false,
        /// Networks of proxies whose `x-forwarded-for` is believed.
        trusted_proxies: Vec<String> = Vec::new(),
        /// TLS of the listeners.
        tls: Tls = Tls::default(),
        /// The database.
        database: Database = Database::default(),
        /// What one client, and all of them together, may take.
        limits: Limits = Limits::default(),
        /// What a password hash costs, and how many are computed at once.
        hashing: Hashing = Hashing::default(),
        /// Which passwords are accepted.
        passwords: Passwords = Passwords::default(),
        /// Access tokens and the keys that sign them.
        tokens: Tokens = Tokens::default(),
        /// Sessions of people.
        sessions: Sessions = Sessions::default(),
        /// How people sign in.
        sign_in: SignIn = SignIn::default(),
        /// Passkeys.
        passkeys: Passkeys = Passkeys::default(),
        /// Failed attempts to prove an identity.
        throttle: Throttle = Throttle::default(),
        /// Accounts for emergencies.
        break_glass: BreakGlass = BreakGlass::default(),
        /// Roles for a while.
        elevation: Elevation = Elevation::default(),
        /// What nobody does alone.
        four_eyes: FourEyes = FourEyes::default(),
        /// What accountd fetches from elsewhere: keys that programs publish.
        outbound: Outbound = Outbound::default(),
        /// Messages to people: codes, links, notices.
        messages: Messages = Messages::default(),
        /// The mail server that messages are handed to.
        smtp: Smtp = Smtp::default(),
        /// A gateway that messages are handed to over HTTP.
        webhook: Webhook = Webhook::default(),
        /// Browsers calling from other origins.
        cors: Cors = Cors::default(),
        /// How long things are kept.
        retention: Retention = Retention::default(),
        /// What the server says about its work.
        log: Log = Log::default(),
    }
}

section! {
    Tls {
        /// PEM file of the certificate chain, leaf first. Unset: no TLS.
        certificate_file: Option<PathBuf> = None,
        /// PEM file of its private key.
        key_file: Option<PathBuf> = None,
        /// PEM file of the authorities whose certificates programs may authenticate with. Unset: nobody
        /// is asked for one. When set, a connection that shows a certificate of somebody else is refused,
        /// and browsers may ask people which of theirs to show.
        client_ca_file: Option<PathBuf> = None,
        /// PEM file of their revocation lists (CRLs). When set, every authority of a chain needs one, in time,
        /// those between included.
        client_crl_file: Option<PathBuf> = None,
        /// Seconds between looks at these files, which are used as soon as they have changed; at most an hour.
        reload_interval_s: u64 = 10,
    }
}

section! {
    Database {
        /// Connections for reading; on PostgreSQL as many again for writing.
        max_connections: u32 = 16,
        /// How long a call waits for a connection.
        acquire_timeout_s: u64 = 5,
        /// How long one transaction may take.
        transaction_timeout_s: u64 = 10,
    }
}

section! {
    Limits {
        /// Connections in all.
        max_connections: usize = 10_000,
        /// Connections from one address, or from one /64 of IPv6.
        max_connections_per_address: usize = 1_000,
        /// Calls at once on one connection.
        max_streams: u32 = 128,
        /// Calls at once in all, those included whose client has gone; more are refused.
        max_calls: usize = 4_096,
        /// Access tokens whose signature is not verified again; about a kilobyte each.
        max_verified_tokens: usize = 10_000,
        /// Bytes of one request.
        max_message_bytes: usize = 256 * 1024,
        /// Bytes of all requests that are being received; when there are more, the longest of them is
        /// turned away.
        max_received_bytes: usize = 64 * 1024 * 1024,
        /// Bytes of all answers of one listener that were not read yet; when there are more, the
        /// connection with most of them is closed, first of those that read nothing.
        max_unread_bytes: usize = 128 * 1024 * 1024,
        /// Bytes of the headers of one request.
        max_header_bytes: u32 = 16 * 1024,
        /// Seconds for a TLS handshake.
        handshake_timeout_s: u64 = 10,
        /// Seconds until a new connection has sent its first request.
        first_request_timeout_s: u64 = 10,
        /// Seconds for one call, unless its client asks for less.
        request_timeout_s: u64 = 30,
        /// Seconds after which a connection is closed that reads nothing of what is there for it.
        unread_timeout_s: u64 = 30,
        /// Seconds between pings on an idle connection.
        keep_alive_interval_s: u64 = 20,
        /// Seconds until an unanswered ping closes the connection.
        keep_alive_timeout_s: u64 = 10,
        /// Seconds after which a connection is asked to go, so that clients spread anew.
        max_connection_age_s: u64 = 3_600,
        /// Seconds for calls to finish after SIGTERM.
        drain_timeout_s: u64 = 20,
    }
}

section! {
    Hashing {
        /// Hashes at once, each with its own memory; 0: one per core.
        lanes: usize = 0,
        /// Memory of one argon2id hash, in KiB. Raise it as hardware allows; hashes follow as people
        /// sign in. Until they have, the time of a refusal tells old hashes from new ones.
        memory_kib: u32 = 19_456,
        /// Passes of argon2id over its memory.
        iterations: u32 = 2,
        /// Lanes within one argon2id hash; they are computed one after another.
        parallelism: u32 = 1,
        /// Longest wait for a lane, in milliseconds; who would wait longer is turned away at once.
        max_wait_ms: u64 = 1_000,
    }
}

section! {
    Passwords {
        /// Characters, where the password alone lets somebody in (NIST SP 800-63B-4: 15).
        min_length: usize = 15,
        /// Characters, where a second factor is needed too.
        min_length_with_second_factor: usize = 8,
        /// Life of a code for setting a new password, in seconds; at most a day.
        reset_lifetime_s: i64 = 1_800,
    }
}

section! {
    Tokens {
        /// What new signing keys are for: ES256, EdDSA or RS256.
        algorithm: String = Algorithm::Es256.name().to_owned(),
        /// Life of an access token, in seconds.
        access_token_lifetime_s: i64 = 300,
        /// Most bytes of an access token: above that, servers downstream refuse the header it comes in. At
        /// most 8,192.
        max_bytes: usize = 4_096,
        /// How long ago a person may have shown two factors to be given sensitive scopes, in seconds.
        sensitive_max_age_s: i64 = 900,
        /// How long verifiers may keep the key set, in seconds; a new key waits this long before
        /// it signs.
        jwks_max_age_s: i64 = 300,
    }
}

section! {
    Sessions {
        /// Longest life, in seconds, however much it is used (NIST: at most 30 days).
        lifetime_s: i64 = 2_592_000,
        /// Life without use, in seconds.
        idle_lifetime_s: i64 = 1_209_600,
        /// How long two factors count as two, in seconds; then `acr` is aal1 (NIST: at most a day).
        aal2_lifetime_s: i64 = 86_400,
        /// Live sessions of one user; a sign-in above that ends the oldest.
        max_per_user: i64 = 100,
        /// Seconds during which a refresh token may be sent again to get the same successor.
        refresh_replay_s: i64 = 10,
    }
}

section! {
    SignIn {
        /// Only callers with the scope `sessions.create` may sign people in.
        require_frontend: bool = false,
        /// How long a device is remembered, in seconds.
        device_lifetime_s: i64 = 15_552_000,
        /// Life of a challenge and of the code in it, in seconds; at most 10 minutes.
        challenge_lifetime_s: i64 = 300,
        /// Life of a code that proves a contact, in seconds; at most 10 minutes.
        contact_code_lifetime_s: i64 = 600,
        /// Life of the link beside it in an e-mail, in seconds; at most a day.
        contact_link_lifetime_s: i64 = 86_400,
        /// How long a new TOTP generator or passkey waits to be confirmed, in seconds; at most an hour.
        enrolment_lifetime_s: i64 = 600,
        /// What people's authenticators call this service.
        service_name: String = "accountd".to_owned(),
    }
}

section! {
    Passkeys {
        /// The domain they are for (WebAuthn relying party id), which can never change without losing
        /// them all. Derived from `public_url` when unset; there are none where that is an IP address.
        domain: Option<String> = None,
        /// Origins (`https://login.example`) of the pages that ask for them, the domain's own first;
        /// those of other domains are named in /.well-known/webauthn. Unset: that of `public_url`.
        origins: Vec<String> = Vec::new(),
        /// `none`, or `required`: only authenticators of the makers in `attestation_roots_file`.
        attestation: String = "none".to_owned(),
        /// PEM file of the root certificates of makers.
        attestation_roots_file: Option<PathBuf> = None,
        /// Models (AAGUIDs) of these makers that are accepted; all of them when empty.
        attestation_models: Vec<String> = Vec::new(),
    }
}

section! {
    Throttle {
        /// Failures of one account, and of one device it is used on, that cost no waiting.
        account_free: u32 = 5,
        /// The same for one source network.
        network_free: u32 = 50,
        /// Challenges of one source network that are open at once.
        network_challenges: i64 = 1_000,
        /// The first wait, in seconds; each further failure doubles it.
        base_delay_s: i64 = 1,
        /// The longest wait, in seconds.
        max_delay_s: i64 = 900,
        /// The longest wait for who has shown a first factor and fails at the second, in seconds.
        second_factor_max_delay_s: i64 = 86_400,
        /// Such failures are forgotten after this long without an attempt, in seconds.
        second_factor_forget_s: i64 = 2_592_000,
        /// Failures of an account are forgotten after this long without an attempt, in seconds.
        account_forget_s: i64 = 86_400,
        /// The same for one source network.
        network_forget_s: i64 = 3_600,
    }
}

section! {
    BreakGlass {
        /// Seconds in which a second person has to agree.
        request_s: i64 = 3_600,
        /// Seconds until an account that was unsealed is sealed again; at most a day.
        unsealed_s: i64 = 3_600,
    }
}

section! {
    Elevation {
        /// Seconds in which somebody has to answer a request for a role; at most 7 days.
        request_s: i64 = 86_400,
    }
}

section! {
    FourEyes {
        /// RPCs that take effect once a second person has agreed, such as `DeleteUser`; they need a scope, change
        /// something, answer no secret and are not ChangeService's own.
        rpcs: Vec<String> = vec!["RevokeSigningKey".to_owned()],
        /// Built-in roles that nobody is given by one person alone, nor the scopes that no lesser role has.
        roles: Vec<String> = vec!["roles/operator".to_owned()],
        /// Seconds in which somebody has to agree; at most 7 days.
        change_s: i64 = 86_400,
    }
}

section! {
    Outbound {
        /// Hosts that may be fetched from, each with all names below it; any when empty.
        hosts: Vec<String> = Vec::new(),
        /// Networks of your own that may be fetched from, beside all public addresses.
        allowed_networks: Vec<String> = Vec::new(),
        /// Networks that may not be fetched from although they are public: yours, if you have such.
        denied_networks: Vec<String> = Vec::new(),
        /// PEM file of authorities that are believed beside the public ones, which are those of Mozilla; read
        /// at the start.
        ca_file: Option<PathBuf> = None,
        /// Seconds for one fetch, at most 10.
        timeout_s: u64 = 5,
    }
}

section! {
    Messages {
        /// How e-mails are sent: `smtp`, `webhook`, or for development `log`, which writes them, codes and all,
        /// into the log and is refused where `public_url` is not of this machine. Unset: not at all.
        email: Option<String> = None,
        /// The same for text messages: `webhook` or `log`.
        sms: Option<String> = None,
        /// Where the pages are that links in messages lead to: `verify-contact`, `sign-in`, `reset-password`
        /// and `revert-contact` below it, with what they need behind a `#`. Unset: `public_url`.
        pages_url: Option<String> = None,
        /// Folder of templates in the place of those that accountd comes with: `en/contact_code.txt`,
        /// `.html`, `.sms` and so on; see `accountd message preview`.
        templates_dir: Option<PathBuf> = None,
        /// For people whose language there are no templates in.
        default_language: String = "en".to_owned(),
        /// Messages with a code to one address that are sent without waiting.
        address_free: u32 = 5,
        /// The first wait for the next one, in seconds; each further message doubles it.
        address_base_delay_s: i64 = 60,
        /// The longest wait, in seconds.
        address_max_delay_s: i64 = 3_600,
        /// Messages of one process in a minute; more have to wait.
        max_per_minute: u32 = 600,
        /// Messages that one process sends at once.
        max_at_once: usize = 8,
        /// Messages that may wait to be sent; above that nobody can ask for one.
        max_queued: i64 = 100_000,
        /// Seconds until a message comes up again whose process has died over it; more than the time-outs of
        /// the senders.
        lease_s: i64 = 120,
        /// Seconds for which a notice is tried; codes and links are while they are of use.
        notice_lifetime_s: i64 = 259_200,
        /// Seconds in which the owner of a contact can take back what somebody has changed; at most 30 days.
        revert_lifetime_s: i64 = 604_800,
    }
}

section! {
    Smtp {
        /// Name of the server, which its certificate has to be for.
        host: String = String::new(),
        /// 587 for STARTTLS, 465 for TLS from the first byte.
        port: u16 = 587,
        /// `starttls`, which is required, or `tls`. There is no way of sending in the clear.
        security: String = "starttls".to_owned(),
        /// Name to authenticate with; unset: nobody does.
        username: Option<String> = None,
        /// File of the password.
        password_file: Option<PathBuf> = None,
        /// PEM file of authorities that are believed beside the public ones.
        ca_file: Option<PathBuf> = None,
        /// Sender of the messages, such as `Example <no-reply@example.org>`.
        from: String = String::new(),
        /// Seconds for one message, at most 60.
        timeout_s: u64 = 20,
    }
}

section! {
    Webhook {
        /// Where messages are posted as JSON, signed as Standard Webhooks says; https, or this machine.
        url: Option<String> = None,
        /// File of the secret they are signed with: `whsec_` and 24 to 64 bytes in base64.
        secret_file: Option<PathBuf> = None,
        /// PEM file of authorities that are believed beside the public ones.
        ca_file: Option<PathBuf> = None,
        /// Seconds for one message, at most 60.
        timeout_s: u64 = 10,
    }
}

section! {
    Cors {
        /// Origins (`https://app.example`) whose pages may call from browsers; none by default.
        allowed_origins: Vec<String> = Vec::new(),
    }
}

section! {
    Retention {
        /// Seconds until a deleted account is removed for good.
        deleted_accounts_s: i64 = 2_592_000,
        /// Seconds during which a username, address or number that somebody gave up is nobody else's, so that
        /// nobody is taken for its former owner.
        identifiers_s: i64 = 2_592_000,
        /// Seconds until an event is forgotten.
        events_s: i64 = 34_560_000,
        /// Seconds during which a `request_id` is remembered.
        requests_s: i64 = 86_400,
        /// Seconds until a session is forgotten, after the end of the longest life it could have had.
        ended_sessions_s: i64 = 2_592_000,
        /// Seconds until a credential that was replaced and revoked is forgotten.
        revoked_credentials_s: i64 = 7_776_000,
        /// Seconds until a system account is suspended whose owner was deleted or has expired.
        ownerless_accounts_s: i64 = 1_209_600,
        /// Seconds until a message that was sent, or could not be, is forgotten.
        messages_s: i64 = 604_800,
        /// Seconds until a grant or membership that has expired, and an elevation or change that is over, is forgotten.
        ended_grants_s: i64 = 2_592_000,
    }
}

section! {
    Log {
        /// `text` or `json`.
        format: String = "text".to_owned(),
        /// `error`, `warn`, `info`, `debug` or `trace`, or a list such as `info,accountd::store=trace`.
        level: String = "info".to_owned(),
    }
}

const SECTIONS: [(&str, Docs); 19] = [
    ("tls", Tls::DOCS),
    ("database", Database::DOCS),
    ("limits", Limits::DOCS),
    ("hashing", Hashing::DOCS),
    ("passwords", Passwords::DOCS),
    ("tokens", Tokens::DOCS),
    ("sessions", Sessions::DOCS),
    ("sign_in", SignIn::DOCS),
    ("passkeys", Passkeys::DOCS),
    ("throttle", Throttle::DOCS),
    ("break_glass", BreakGlass::DOCS),
    ("elevation", Elevation::DOCS),
    ("four_eyes", FourEyes::DOCS),
    ("outbound", Outbound::DOCS),
    ("messages", Messages::DOCS),
    ("smtp", Smtp::DOCS),
    ("webhook", Webhook::DOCS),
    ("cors", Cors::DOCS),
    ("retention", Retention::DOCS),
];

/// A URL that may hold a password.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(pub String);

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&mask_password(&self.0))
    }
}

/// Replaces the password in `scheme://user:password@host/…`, and `?password=…`.
fn mask_password(url: &str) -> String {
    let masked = || {
        let (scheme, rest) = url.split_once("://")?;
        let (user, host) = rest.rsplit_once('@')?;
        let (name, _) = user.split_once(':')?;
        Some(format!("{scheme}://{name}:***@{host}"))
    };
    let url = masked().unwrap_or_else(|| url.to_owned());
    let Some((head, query)) = url.split_once('?') else {
        return url;
    };
    let fields = query.split('&').map(|field| match field.split_once('=') {
        Some((name, _)) if name.contains("pass") => format!("{name}=***"),
        _ => field.to_owned(),
    });
    format!("{head}?{}", fields.collect::<Vec<_>>().join("&"))
}

impl Config {
    pub fn algorithm(&self) -> Result<Algorithm, String> {
        Algorithm::parse(&self.tokens.algorithm)
            .map_err(|expected| format!("setting `tokens.algorithm` {expected}"))
    }

    pub fn proxies(&self) -> Result<Vec<IpNet>, String> {
        networks("trusted_proxies", &self.trusted_proxies)
    }

    pub const fn cost(&self) -> Cost {
        let Hashing {
            memory_kib,
            iterations,
            parallelism,
            ..
        } = self.hashing;
        Cost {
            memory_kib,
            iterations,
            parallelism,
        }
    }

    pub const fn session_lifetimes(&self) -> Lifetimes {
        let Sessions {
            lifetime_s,
            idle_lifetime_s,
            refresh_replay_s,
            aal2_lifetime_s,
            ..
        } = self.sessions;
        Lifetimes {
            session_s: lifetime_s,
            idle_s: idle_lifetime_s,
            aal2_s: aal2_lifetime_s,
            replay_s: refresh_replay_s,
        }
    }

    pub const fn account_throttle(&self) -> throttle::Rule {
        let Throttle {
            account_free,
            base_delay_s,
            max_delay_s,
            account_forget_s,
            ..
        } = self.throttle;
        throttle::Rule {
            free: account_free,
            base_delay_s,
            max_delay_s,
            forget_after_s: account_forget_s,
        }
    }

    /// For who has shown a first factor.
    pub const fn second_factor_throttle(&self) -> throttle::Rule {
        let Throttle {
            account_free,
            base_delay_s,
            second_factor_max_delay_s,
            second_factor_forget_s,
            ..
        } = self.throttle;
        throttle::Rule {
            free: account_free,
            base_delay_s,
            max_delay_s: second_factor_max_delay_s,
            forget_after_s: second_factor_forget_s,
        }
    }

    /// For messages with a code to one address.
    pub const fn message_throttle(&self) -> throttle::Rule {
        let Messages {
            address_free,
            address_base_delay_s,
            address_max_delay_s,
            ..
        } = self.messages;
        throttle::Rule {
            free: address_free,
            base_delay_s: address_base_delay_s,
            max_delay_s: address_max_delay_s,
            forget_after_s: self.throttle.account_forget_s,
        }
    }

    pub const fn seal_times(&self) -> seal::Times {
        let BreakGlass {
            request_s,
            unsealed_s,
        } = self.break_glass;
        seal::Times {
            request_s,
            unsealed_s,
        }
    }

    pub const fn network_throttle(&self) -> throttle::Rule {
        let Throttle {
            network_free,
            base_delay_s,
            max_delay_s,
            network_forget_s,
            ..
        } = self.throttle;
        throttle::Rule {
            free: network_free,
            base_delay_s,
            max_delay_s,
            forget_after_s: network_forget_s,
        }
    }

    pub fn master_key_file(&self) -> PathBuf {
        self.master_key_file
            .clone()
            .unwrap_or_else(|| self.data_dir.join("master.key"))
    }

    pub fn sqlite_file(&self) -> PathBuf {
        self.data_dir.join("accountd.sqlite")
    }

    /// The issuer of tokens, given where the server really listens.
    pub fn issuer(&self, listen: SocketAddr) -> String {
        let scheme = if self.tls.certificate_file.is_some() {
            "https"
        } else {
            "http"
        };
        self.public_url
            .clone()
            .unwrap_or_else(|| format!("{scheme}://{listen}"))
    }

    /// What browsers know this installation by, if it can have passkeys: an IP address cannot.
    pub fn relying_party(&self, issuer: &str) -> Result<Option<RelyingParty>, String> {
        let url: http::Uri = issuer
            .parse()
            .map_err(|error| format!("{issuer}: {error}"))?;
        let host = url.host().unwrap_or_default();
        let settings = &self.passkeys;
        let domain = match settings.domain.as_deref() {
            Some(domain) => domain,
            None if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() => return Ok(None),
            None => host,
        };
        let own = format!(
            "{}://{}",
            url.scheme_str().unwrap_or_default(),
            url.authority().map_or("", http::uri::Authority::as_str)
        );
        let origins = if settings.origins.is_empty() {
            vec![own]
        } else {
            settings.origins.clone()
        };
        let models: Result<Vec<Uuid>, String> = settings
            .attestation_models
            .iter()
            .map(|model| {
                name::uuid(model)
                    .ok_or_else(|| format!("`{model}` in `passkeys.attestation_models` is no UUID"))
            })
            .collect();
        let models = models?;
        let roots = match &settings.attestation_roots_file {
            Some(file) => pem_blocks(&read_file(file)?),
            None => Vec::new(),
        };
        let roots = (settings.attestation == "required").then_some((&*roots, &*models));
        let name = &self.sign_in.service_name;
        RelyingParty::new(domain, name, &origins, roots)
            .map(Some)
            .map_err(|error| format!("passkeys: {error}"))
    }

    pub const fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.limits.request_timeout_s)
    }
}

impl FourEyes {
    pub fn read(&self) -> Result<change::FourEyes, String> {
        change::FourEyes::new(&self.rpcs, &self.roles)
            .map_err(|text| format!("`four_eyes`: {text}"))
    }
}

impl Outbound {
    pub fn allowed(&self) -> Result<Vec<IpNet>, String> {
        networks("outbound.allowed_networks", &self.allowed_networks)
    }

    /// As URLs have them.
    pub fn hosts(&self) -> Result<Vec<String>, String> {
        let parse = |host: &String| match url::Host::parse(host.trim_end_matches('.')) {
            Ok(url::Host::Domain(name)) if !name.starts_with(['.', '*']) => Ok(name),
            _ => Err(format!(
                "`{host}` in `outbound.hosts` is not a name such as keys.example"
            )),
        };
        self.hosts.iter().map(parse).collect()
    }

    pub fn denied(&self) -> Result<Vec<IpNet>, String> {
        networks("outbound.denied_networks", &self.denied_networks)
    }
}

fn networks(setting: &str, list: &[String]) -> Result<Vec<IpNet>, String> {
    let parsed: Result<_, _> = list.iter().map(|net| network::parse_cidr(net)).collect();
    parsed.map_err(|error| format!("setting `{setting}`: {error}"))
}

/// The certificates in a PEM file, one text each.
pub fn pem_blocks(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END)
        .filter(|block| block.contains(END))
        .map(|block| block.trim().to_owned())
        .collect()
}

/// Reads a file that a setting names.
pub fn read_file(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))
}

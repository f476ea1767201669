//! Every setting: its name, meaning, unit and default, and where its value comes from.
//!
//! Flags over environment over file over defaults. A key that does not exist is an error with a
//! suggestion, never ignored. Secrets are not settings: they live in files that settings name; the
//! one exception, a password inside `database_url`, is masked wherever settings are shown.

use std::{
    collections::HashMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format as _, Serialized, Toml},
    value::{Dict, Map, Value},
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::{
    name, network, passkey::RelyingParty, password::Cost, seal, session::Lifetimes,
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
        /// What accountd fetches from elsewhere: keys that programs publish.
        outbound: Outbound = Outbound::default(),
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
        /// PEM file of their revocation lists (CRLs). When set, each of the authorities needs one, in time.
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
    Cors {
        /// Origins (`https://app.example`) whose pages may call from browsers; none by default.
        allowed_origins: Vec<String> = Vec::new(),
    }
}

section! {
    Retention {
        /// Seconds until a deleted account is removed for good.
        deleted_accounts_s: i64 = 2_592_000,
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
        /// Seconds until a grant that has expired is forgotten.
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

const SECTIONS: [(&str, Docs); 14] = [
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
    ("outbound", Outbound::DOCS),
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

/// Where to look for settings besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file that has to be there; without it `accountd.toml` is read if it is.
    pub file: Option<PathBuf>,
    /// Variables named `ACCOUNTD_…`.
    pub environment: Vec<(String, String)>,
    /// What flags set, by key.
    pub flags: HashMap<&'static str, serde_json::Value>,
}

const DEFAULT_FILE: &str = "accountd.toml";
const PREFIX: &str = "ACCOUNTD_";

/// Settings and where each came from.
pub struct Loaded {
    pub config: Config,
    figment: Figment,
}

impl Sources {
    /// Reads and checks all settings. An error is a sentence for the operator.
    pub fn load(self) -> Result<Loaded, String> {
        let file = match self.file {
            Some(file) if !file.is_file() => {
                return Err(format!("there is no configuration file {}", file.display()));
            }
            Some(file) => Some(file),
            None => Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.is_file()),
        };
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(file) = file {
            figment = figment.merge(Toml::file_exact(file));
        }
        figment = figment
            .merge(Environment(self.environment))
            .merge(Flags(self.flags));
        let config: Config = figment.extract().map_err(|error| explain(&error))?;
        config.check()?;
        Ok(Loaded { config, figment })
    }
}

impl Loaded {
    /// One line for each setting: key, value, where it came from.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (key, value) in leaves(&self.config) {
            let source = self
                .figment
                .find_metadata(&key)
                .map_or("default".to_owned(), |found| {
                    match found.source.as_ref().and_then(figment::Source::file_path) {
                        Some(file) => file.display().to_string(),
                        None if found.name == DEFAULTS => "default".to_owned(),
                        None => {
                            let keys: Vec<&str> = key.split('.').collect();
                            found.interpolate(&Profile::Default, &keys)
                        }
                    }
                });
            let value = if key == "database_url" {
                mask_password(&value)
            } else {
                value
            };
            let _ = writeln!(text, "{key} = {value}  # {source}");
        }
        text
    }
}

/// How figment names the layer of defaults.
const DEFAULTS: &str = "accountd::config::Config";

/// A file with every setting, explained, at its default, commented out.
pub fn example() -> String {
    let mut text = String::from(
        "# Settings of accountd, at their defaults. Also set by the environment, ACCOUNTD_LISTEN or\n\
         # ACCOUNTD_TOKENS__ALGORITHM, and the first few by flags of `accountd serve`.\n",
    );
    let values: HashMap<String, String> = leaves(&Config::default()).into_iter().collect();
    let mut section = |heading: &str, prefix: &str, docs: Docs| {
        let _ = write!(text, "{heading}");
        for (field, lines) in docs {
            let Some(value) = values.get(&format!("{prefix}{field}")) else {
                continue;
            };
            for line in *lines {
                let _ = writeln!(text, "#{line}");
            }
            let _ = writeln!(text, "#{field} = {value}");
        }
    };
    section("\n", "", Config::DOCS);
    for (name, docs) in SECTIONS.into_iter().chain([("log", Log::DOCS)]) {
        let about = Config::DOCS.iter().find(|(field, _)| *field == name);
        let about = about.map_or("", |(_, lines)| lines[0]);
        section(
            &format!("\n#{about}\n[{name}]\n"),
            &format!("{name}."),
            docs,
        );
    }
    text
}

/// Every setting by its full key, as TOML writes the value, or [`UNSET`].
fn leaves(config: &Config) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    let tree = serde_json::to_value(config).unwrap_or_default();
    for (key, value) in tree.as_object().into_iter().flatten() {
        match value {
            serde_json::Value::Object(section) => {
                leaves.extend(
                    section
                        .iter()
                        .map(|(name, v)| (format!("{key}.{name}"), toml(v))),
                );
            }
            value => leaves.push((key.clone(), toml(value))),
        }
    }
    leaves.sort_by_key(|(key, _)| (key.contains('.'), key.clone()));
    leaves
}

/// No value of TOML, so that nobody sets it by removing a `#`.
const UNSET: &str = "(unset)";

fn toml(value: &serde_json::Value) -> String {
    if value.is_null() {
        UNSET.to_owned()
    } else {
        value.to_string()
    }
}

/// The sentence for a setting that cannot be read: what, where, and what may have been meant.
fn explain(error: &figment::Error) -> String {
    use figment::error::Kind;
    let place = error.metadata.as_ref().map_or(String::new(), |metadata| {
        match metadata
            .source
            .as_ref()
            .and_then(figment::Source::file_path)
        {
            Some(file) => format!(" in {}", file.display()),
            None => format!(" in {}", metadata.name),
        }
    });
    let path = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(key, known) => {
            let closest = known.iter().max_by(|a, b| {
                strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b))
            });
            let hint = closest.filter(|known| strsim::jaro_winkler(key, known) > 0.7);
            let hint = hint.map_or(String::new(), |known| format!("; did you mean `{known}`?"));
            let mut full = error.path.clone();
            full.retain(|part| part != key);
            full.push(key.clone());
            format!("unknown setting `{}`{place}{hint}", full.join("."))
        }
        // The value itself is not shown: it may be a secret.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("setting `{path}`{place} has to be {expected}")
        }
        // A syntax error shows the line it is on, which may hold a secret: where it is and what is
        // wrong are its first and its last line.
        Kind::Message(text) => {
            let mut lines = text.lines().filter(|line| !line.trim().is_empty());
            let (first, last) = (lines.next().unwrap_or_default(), lines.next_back());
            let last = last.map_or(String::new(), |last| format!(": {last}"));
            format!("settings{place}: {first}{last}")
        }
        kind => format!("setting `{path}`{place}: {kind}"),
    }
}

/// Variables `ACCOUNTD_…`; a section's name is followed by two underscores. Text stays text: what a
/// variable means is decided by the type of the setting.
struct Environment(Vec<(String, String)>);

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment").interpolater(|_, keys| {
            format!("environment {PREFIX}{}", keys.join("__").to_uppercase())
        })
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
        let mut settings = Dict::new();
        for (name, text) in &self.0 {
            let key = name
                .trim_start_matches(PREFIX)
                .to_lowercase()
                .replace("__", ".");
            let pointer = format!("/{}", key.replace('.', "/"));
            let value = match defaults.pointer(&pointer) {
                // How compose files and charts spell a setting that is not there.
                Some(serde_json::Value::Null) if text.is_empty() => continue,
                Some(serde_json::Value::Number(_)) => text
                    .parse::<i64>()
                    .map_or_else(|_| Value::from(text.as_str()), Value::from),
                Some(serde_json::Value::Bool(_)) => text
                    .parse::<bool>()
                    .map_or_else(|_| Value::from(text.as_str()), Value::from),
                Some(serde_json::Value::Array(_)) => {
                    let items = text
                        .split(',')
                        .map(str::trim)
                        .filter(|item| !item.is_empty());
                    items.map(Value::from).collect::<Vec<Value>>().into()
                }
                _ => Value::from(text.as_str()),
            };
            insert(&mut settings, &key, value);
        }
        Ok(Profile::Default.collect(settings))
    }
}

/// What flags of the command line set.
struct Flags(HashMap<&'static str, serde_json::Value>);

impl Provider for Flags {
    fn metadata(&self) -> Metadata {
        Metadata::named("command line")
            .interpolater(|_, keys| format!("flag --{}", keys.join("-").replace('_', "-")))
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let mut settings = Dict::new();
        for (key, value) in &self.0 {
            insert(&mut settings, key, Value::serialize(value)?);
        }
        Ok(Profile::Default.collect(settings))
    }
}

fn insert(settings: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(settings.insert(key.to_owned(), value)),
        Some((section, key)) => {
            let entry = settings
                .entry(section.to_owned())
                .or_insert_with(|| Dict::new().into());
            if let Value::Dict(_, section) = entry {
                insert(section, key, value);
            }
        }
    }
}

/// Variables of this process that are settings; those for the tests are not.
pub fn environment(variables: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let not_settings = ["ACCOUNTD_CONFIG"];
    variables
        .filter(|(name, _)| name.starts_with(PREFIX) && !name.starts_with("ACCOUNTD_TEST_"))
        .filter(|(name, _)| !not_settings.contains(&name.as_str()))
        .collect()
}

/// What is promised or would harm if there were more of it.
const AT_MOST: [(&str, i64); 9] = [
    ("break_glass.unsealed_s", 86_400),
    ("limits.drain_timeout_s", 25),
    ("outbound.timeout_s", 10),
    ("passwords.reset_lifetime_s", 86_400),
    ("sessions.aal2_lifetime_s", 86_400),
    ("sessions.refresh_replay_s", 60),
    ("sign_in.challenge_lifetime_s", 600),
    ("sign_in.enrolment_lifetime_s", 3_600),
    ("tls.reload_interval_s", 3_600),
];

impl Config {
    /// What the types cannot say. An error is a sentence for the operator.
    fn check(&self) -> Result<(), String> {
        self.algorithm()?;
        self.proxies()?;
        self.outbound.allowed()?;
        self.outbound.denied()?;
        self.cost()
            .params()
            .map_err(|error| format!("hashing: {error}"))?;
        self.check_numbers()?;
        if self.tls.certificate_file.is_some() != self.tls.key_file.is_some() {
            return Err("`tls.certificate_file` and `tls.key_file` go together".to_owned());
        }
        if self.tls.client_ca_file.is_some() && self.tls.certificate_file.is_none() {
            return Err("`tls.client_ca_file` needs `tls.certificate_file`".to_owned());
        }
        if self.tls.client_crl_file.is_some() && self.tls.client_ca_file.is_none() {
            return Err("`tls.client_crl_file` needs `tls.client_ca_file`".to_owned());
        }
        if !["none", "required"].contains(&self.passkeys.attestation.as_str()) {
            return Err("setting `passkeys.attestation` has to be none or required".to_owned());
        }
        let origins = &self.passkeys.origins;
        if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
            return Err(format!(
                "`{bad}` in `passkeys.origins` is not an origin such as https://login.example"
            ));
        }
        if !["text", "json"].contains(&self.log.format.as_str()) {
            return Err("setting `log.format` has to be text or json".to_owned());
        }
        let is_postgres = |url: &DatabaseUrl| {
            url.0.starts_with("postgres://") || url.0.starts_with("postgresql://")
        };
        if self
            .database_url
            .as_ref()
            .is_some_and(|url| !is_postgres(url))
        {
            return Err("setting `database_url` has to begin with postgres://".to_owned());
        }
        if let Some(url) = &self.public_url {
            check_public_url(url)?;
        }
        let origins = &self.cors.allowed_origins;
        if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
            return Err(format!(
                "`{bad}` in `cors.allowed_origins` is not an origin such as https://app.example"
            ));
        }
        if self.public_url.is_none() && self.listen.ip().is_unspecified() {
            return Err(format!(
                "no client can reach {}: set `public_url`, which is in every token",
                self.listen
            ));
        }
        self.check_plaintext()
    }

    /// A limit of 0 would be none, or would let nothing through; and some are promises.
    fn check_numbers(&self) -> Result<(), String> {
        let may_be_0 = [
            "hashing.lanes",
            "sessions.refresh_replay_s",
            "throttle.account_free",
            "throttle.network_free",
        ];
        for (key, value) in leaves(self) {
            let Ok(number) = value.parse::<i64>() else {
                continue;
            };
            let least = i64::from(!may_be_0.contains(&key.as_str()));
            if number < least {
                return Err(format!("setting `{key}` has to be at least {least}"));
            }
            let most = AT_MOST.iter().find(|(bounded, _)| *bounded == key);
            if let Some((_, most)) = most.filter(|(_, most)| number > *most) {
                return Err(format!("setting `{key}` has to be at most {most}"));
            }
        }
        Ok(())
    }

    /// Passwords and tokens do not cross a network in the clear by oversight.
    fn check_plaintext(&self) -> Result<(), String> {
        let exposed = [Some(self.listen), self.private_listen]
            .into_iter()
            .flatten()
            .find(|address| !network::is_loopback(address.ip()));
        match exposed {
            Some(address) if self.tls.certificate_file.is_none() && !self.insecure_plaintext => {
                Err(format!(
                    "{address} can be reached from other machines: set `tls.certificate_file`, or \
                     --insecure-plaintext if a proxy in front ends TLS"
                ))
            }
            _ => Ok(()),
        }
    }

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

impl Outbound {
    pub fn allowed(&self) -> Result<Vec<IpNet>, String> {
        networks("outbound.allowed_networks", &self.allowed_networks)
    }

    pub fn denied(&self) -> Result<Vec<IpNet>, String> {
        networks("outbound.denied_networks", &self.denied_networks)
    }
}

fn networks(setting: &str, list: &[String]) -> Result<Vec<IpNet>, String> {
    let parsed: Result<_, _> = list.iter().map(|net| network::parse_cidr(net)).collect();
    parsed.map_err(|error| format!("setting `{setting}`: {error}"))
}

/// The issuer is compared byte by byte (RFC 8414 section 2): no query, no fragment, no final slash.
fn check_public_url(url: &str) -> Result<(), String> {
    let parsed: Result<http::Uri, _> = url.parse();
    let is_good = parsed.is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some()
            && uri.query().is_none()
    });
    if is_good && !url.ends_with('/') && !url.contains('#') {
        return Ok(());
    }
    Err("setting `public_url` has to be like https://id.example, without a final slash".to_owned())
}

fn is_origin(origin: &str) -> bool {
    check_public_url(origin).is_ok() && origin.matches('/').count() == 2
}

/// The certificates in a PEM file, one text each.
fn pem_blocks(text: &str) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn load(
        environment: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Result<Loaded, String> {
        let text = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let flag = |(key, value): &(&'static str, &str)| (*key, serde_json::json!(value));
        Sources {
            file: None,
            environment: environment.iter().map(text).collect(),
            flags: flags.iter().map(flag).collect(),
        }
        .load()
    }

    #[test]
    fn flags_win_over_the_environment_over_defaults() {
        let loaded = load(
            &[
                ("ACCOUNTD_LISTEN", "127.0.0.1:1"),
                ("ACCOUNTD_TOKENS__JWKS_MAX_AGE_S", "7"),
            ],
            &[("listen", "127.0.0.1:2")],
        )
        .expect("loads");
        assert_eq!(loaded.config.listen.port(), 2);
        assert_eq!(loaded.config.tokens.jwks_max_age_s, 7);
        let text = loaded.describe();
        assert!(
            text.contains("listen = \"127.0.0.1:2\"  # flag --listen\n"),
            "{text}"
        );
        assert!(text.contains(
            "tokens.jwks_max_age_s = 7  # environment ACCOUNTD_TOKENS__JWKS_MAX_AGE_S\n"
        ));
        assert!(
            text.contains("hashing.iterations = 2  # default\n"),
            "{text}"
        );
    }

    #[test]
    fn text_that_looks_like_a_number_stays_text() {
        let loaded = load(&[("ACCOUNTD_DATA_DIR", "12345678")], &[]).expect("loads");
        assert_eq!(loaded.config.data_dir, PathBuf::from("12345678"));
        let loaded = load(&[("ACCOUNTD_TRUSTED_PROXIES", "10.0.0.0/8, ::1")], &[]).expect("loads");
        assert_eq!(loaded.config.trusted_proxies, ["10.0.0.0/8", "::1"]);
    }

    #[test]
    fn an_empty_variable_leaves_an_optional_setting_unset() {
        let loaded = load(&[("ACCOUNTD_DATABASE_URL", "")], &[]).expect("loads");
        assert!(loaded.config.database_url.is_none());
        let text = loaded.describe();
        assert!(
            text.contains("database_url = (unset)  # default\n"),
            "{text}"
        );
        assert!(load(&[("ACCOUNTD_LISTEN", "")], &[]).is_err());
    }

    #[test]
    fn an_unknown_setting_is_refused_with_a_suggestion() {
        let error = |name| load(&[(name, "1")], &[]).err().expect(name);
        assert_eq!(
            error("ACCOUNTD_LISTN"),
            "unknown setting `listn` in environment; did you mean `listen`?"
        );
        assert_eq!(
            error("ACCOUNTD_TOKENS__JWKS_AGE_S"),
            "unknown setting `tokens.jwks_age_s` in environment; did you mean `jwks_max_age_s`?"
        );
        assert_eq!(
            error("ACCOUNTD_XYZZY"),
            "unknown setting `xyzzy` in environment"
        );
    }

    #[test]
    fn a_bad_value_is_not_repeated() {
        for (name, value) in [
            ("ACCOUNTD_TOKENS__JWKS_MAX_AGE_S", "hunter2"),
            ("ACCOUNTD_LISTEN", "hunter2"),
            ("ACCOUNTD_INSECURE_PLAINTEXT", "hunter2"),
        ] {
            let error = load(&[(name, value)], &[]).err().expect(name);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_is_not_repeated() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let file = folder.path().join("bad.toml");
        std::fs::write(&file, "database_url = \"postgres://ann:s3cr@h/db").expect("written");
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        let error = sources.load().err().expect("no TOML");
        assert!(!error.contains("s3cr"), "{error}");
        assert!(error.contains("line 1") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn passwords_in_urls_are_masked() {
        let url = "postgres://ann:s3cr:t@h:5432/db?sslmode=require";
        let loaded = load(&[("ACCOUNTD_DATABASE_URL", url)], &[]).expect("loads");
        assert!(
            loaded
                .describe()
                .contains("postgres://ann:***@h:5432/db?sslmode=require")
        );
        assert!(!format!("{:?}", loaded.config).contains("s3cr"));
        assert_eq!(
            mask_password("postgres:///db?user=ann&password=s3cr&sslmode=require"),
            "postgres:///db?user=ann&password=***&sslmode=require"
        );
        assert_eq!(mask_password("postgres:///db"), "postgres:///db");
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for (name, value) in [
            ("ACCOUNTD_TOKENS__ALGORITHM", "HS256"),
            ("ACCOUNTD_SESSIONS__LIFETIME_S", "0"),
            ("ACCOUNTD_PASSWORDS__RESET_LIFETIME_S", "90000"),
            ("ACCOUNTD_HASHING__MEMORY_KIB", "1"),
            ("ACCOUNTD_PUBLIC_URL", "https://id.example/"),
            ("ACCOUNTD_PUBLIC_URL", "id.example"),
            ("ACCOUNTD_CORS__ALLOWED_ORIGINS", "*"),
            ("ACCOUNTD_TLS__KEY_FILE", "key.pem"),
            ("ACCOUNTD_TLS__CLIENT_CA_FILE", "ca.pem"),
            ("ACCOUNTD_TLS__RELOAD_INTERVAL_S", "0"),
            ("ACCOUNTD_TLS__RELOAD_INTERVAL_S", "3601"),
            ("ACCOUNTD_OUTBOUND__ALLOWED_NETWORKS", "everybody"),
            ("ACCOUNTD_OUTBOUND__DENIED_NETWORKS", "nobody"),
            ("ACCOUNTD_OUTBOUND__TIMEOUT_S", "11"),
            ("ACCOUNTD_SESSIONS__REFRESH_REPLAY_S", "-1"),
            ("ACCOUNTD_SESSIONS__REFRESH_REPLAY_S", "61"),
            ("ACCOUNTD_BREAK_GLASS__UNSEALED_S", "86401"),
            ("ACCOUNTD_TRUSTED_PROXIES", "everybody"),
            ("ACCOUNTD_LOG__FORMAT", "xml"),
        ] {
            assert!(load(&[(name, value)], &[]).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn plaintext_beyond_this_machine_has_to_be_meant() {
        let error = load(&[], &[("listen", "10.0.0.1:8080")])
            .err()
            .expect("refused");
        assert!(error.contains("--insecure-plaintext"), "{error}");
        let meant = [
            ("ACCOUNTD_LISTEN", "0.0.0.0:80"),
            ("ACCOUNTD_PUBLIC_URL", "https://id.example"),
            ("ACCOUNTD_INSECURE_PLAINTEXT", "true"),
        ];
        assert!(load(&meant, &[]).is_ok());
        let nameless = [meant[0], meant[2]];
        let error = load(&nameless, &[]).err().expect("refused");
        assert!(error.contains("set `public_url`"), "{error}");
        assert!(load(&[], &[("private_listen", "10.0.0.1:80")]).is_err());
    }

    #[test]
    fn the_example_names_every_setting_and_is_valid() {
        let example = example();
        for (key, _) in leaves(&Config::default()) {
            let field = key.rsplit('.').next().expect("not empty");
            assert!(example.contains(&format!("\n#{field} = ")), "{key}");
        }
        let live: String = example
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .filter(|line| !line.ends_with(UNSET))
            .flat_map(|line| [line, "\n"])
            .collect();
        let figment =
            Figment::from(Serialized::defaults(Config::default())).merge(Toml::string(&live));
        figment.extract::<Config>().expect("valid");
    }
}

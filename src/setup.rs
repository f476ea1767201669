//! What a server needs before it can serve, made where it is missing: the data folder, the lock on
//! it, the master key, the schema, the first signing key, the account of the first operator.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::fs::Mode;
use serde_json::json;

use crate::{
    app::{App, Parts},
    config::Config,
    domain::{
        credential::{Credential, Kind},
        error::Error,
        event::{Actor, Event},
        grant::{Grant, Permission},
        keyring::Keyring,
        master_key::{Keys, MasterKey},
        name::{CredentialId, EventId, GrantId, SystemAccountId},
        secret::{self, Secret},
        system_account::{self, Edit, SystemAccount},
        time::{Timestamp, Window},
    },
    env::{Clock, Random},
    hasher::Hasher,
    signing,
    store::{
        credentials::{self, Kept},
        db::{Db, Write},
        events, grants, meta,
        open::{self, Settings, Target},
        signing_keys, system_accounts, transact,
    },
    tls::Tls,
};

/// Where time and randomness come from.
#[derive(Clone)]
pub struct Environment {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
}

/// An opened server, not serving yet.
pub struct Opened {
    pub app: Arc<App>,
    /// Where the credentials of the first operator are, if they were made just now.
    pub bootstrap_file: Option<PathBuf>,
    /// Held as long as the server runs.
    pub lock: Option<Lock>,
}

/// The data folder in the hands of one process: on SQLite as long as it runs, otherwise while it
/// makes what is missing there.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// How long to wait for the folder where processes share it.
const LOCK_TRIES: u32 = 300;
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// The name of the built-in account of the first operator.
const BOOTSTRAP: &str = "bootstrap";
/// How long it can be used, in seconds.
const BOOTSTRAP_LIFETIME_S: i64 = 24 * 3600;
const BOOTSTRAP_FILE: &str = "bootstrap.json";

/// No clock of a machine on which this program exists shows less: 2026-01-01.
const EARLIEST: Timestamp = Timestamp::from_seconds(1_767_225_600);

/// Makes the data folder and takes it. On SQLite a second process is refused before it can touch
/// anything; on PostgreSQL, where processes may share a folder, it waits for its turn.
pub async fn take_folder(config: &Config) -> Result<Lock, String> {
    make_folder(&config.data_dir)?;
    for _ in 0..LOCK_TRIES {
        match lock(&config.data_dir)? {
            Some(lock) => return Ok(lock),
            None if config.database_url.is_some() => tokio::time::sleep(LOCK_PAUSE).await,
            None => {
                return Err(format!(
                    "another accountd is running on {}; SQLite serves one process, PostgreSQL many",
                    config.data_dir.display()
                ));
            }
        }
    }
    Err(format!(
        "another accountd keeps the folder {} for too long",
        config.data_dir.display()
    ))
}

/// Opens everything in the folder that was taken; an error is a sentence for the operator.
pub async fn open(
    config: Config,
    lock: Lock,
    issuer: String,
    tls: Option<Arc<Tls>>,
    env: &Environment,
) -> Result<Opened, String> {
    let Store { db, keys } = open_store(&config, env).await?;
    let bootstrap_file = first_start(&db, &keys, &config, &issuer, env).await?;
    let keyring = read_keyring(&db, &keys, &config, env).await?;
    let hasher = Hasher::start(
        config.cost(),
        config.hashing.lanes,
        Duration::from_millis(config.hashing.max_wait_ms),
        keys.pepper.clone(),
        Arc::clone(&env.random),
    )?;
    let app = App::new(Parts {
        config,
        issuer,
        clock: Arc::clone(&env.clock),
        random: Arc::clone(&env.random),
        hasher,
        keys,
        keyring,
        tls,
        db,
    })?;
    Ok(Opened {
        lock: app.config.database_url.is_none().then_some(lock),
        app: Arc::new(app),
        bootstrap_file,
    })
}

/// Makes fresh credentials for the first operator's account, whatever has become of it. For when
/// nobody can sign in any more; works on the store alone. The file they are in.
pub async fn recover(config: &Config, issuer: &str, env: &Environment) -> Result<PathBuf, String> {
    let _lock = take_folder(config).await?;
    let Store { db, keys } = &open_store(config, env).await?;
    first_start(db, keys, config, issuer, env).await?;
    let now = env.clock.now();
    let found =
        async { Ok(system_accounts::find_built_in(&mut db.read().await?, BOOTSTRAP).await?) };
    let account = found.await.map_err(|error: Error| error.to_string())?;
    let bootstrap = Bootstrap::new(account, env);
    let file = bootstrap.write(&config.data_dir, issuer)?;
    let recovered = transact!(db, |tx| {
        bootstrap
            .store(tx, env, "system_account.recovered", now)
            .await?;
    });
    recovered.map_err(|error| error.to_string())?;
    db.close().await;
    Ok(file)
}

/// The store, with its schema up to date, and the keys to what is sealed in it.
pub struct Store {
    pub db: Db,
    pub keys: Keys,
}

pub async fn open_store(config: &Config, env: &Environment) -> Result<Store, String> {
    let now = env.clock.now();
    if now < EARLIEST {
        return Err(format!(
            "the clock of this machine says {now}, which cannot be"
        ));
    }
    let target = match &config.database_url {
        Some(url) => Target::Postgres(url.0.clone()),
        None => Target::Sqlite(config.sqlite_file()),
    };
    let settings = Settings {
        target,
        max_connections: config.database.max_connections,
        acquire_timeout: Duration::from_secs(config.database.acquire_timeout_s),
        transaction_timeout: Duration::from_secs(config.database.transaction_timeout_s),
    };
    let db = open::open(&settings, &*env.clock, &env.random).await?;
    let keys = master_key(&db, config, env).await?.derive();
    Ok(Store { db, keys })
}

fn make_folder(folder: &Path) -> Result<(), String> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    made.map_err(|error| format!("cannot make the folder {}: {error}", folder.display()))
}

/// The lock on a folder, unless another process has it.
fn lock(folder: &Path) -> Result<Option<Lock>, String> {
    let path = folder.join("lock");
    let cannot = |error: std::io::Error| format!("cannot open {}: {error}", path.display());
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(cannot(error)),
    }
}

/// The master key of this database: read from its file, or made for a database that has none yet.
async fn master_key(db: &Db, config: &Config, env: &Environment) -> Result<MasterKey, String> {
    let path = config.master_key_file();
    let known = known_check(db).await?;
    let key = if path.exists() {
        require_private(&path)?;
        let text = zeroize::Zeroizing::new(crate::config::read_file(&path)?);
        MasterKey::parse(&text)
            .ok_or_else(|| format!("{} does not hold a master key", path.display()))?
    } else if known.is_some() || config.master_key_file.is_some() {
        return Err(format!("there is no master key in {}", path.display()));
    } else {
        let key = MasterKey::new(env.random.bytes());
        write_secret(&path, &key.to_text())?;
        key
    };
    match known {
        Some(check) if check != key.derive().check => Err(format!(
            "the master key in {} is not the one of this database",
            path.display()
        )),
        _ => Ok(key),
    }
}

/// A key that every user of the machine can read protects nothing.
fn require_private(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path);
    let mode = metadata
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?
        .permissions()
        .mode();
    let others = Mode::from_raw_mode(mode) & Mode::RWXO;
    if others.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} can be read by everybody on this machine: take that right away (chmod 600)",
        path.display()
    ))
}

async fn known_check(db: &Db) -> Result<Option<String>, String> {
    let read = async { Ok(meta::find(&mut db.read().await?, meta::MASTER_KEY_CHECK).await?) };
    read.await.map_err(|error: Error| error.to_string())
}

/// On an empty database: remembers the master key, makes the first signing key and the account of
/// the first operator, all or nothing. The file with that account's credentials, if this was it.
async fn first_start(
    db: &Db,
    keys: &Keys,
    config: &Config,
    issuer: &str,
    env: &Environment,
) -> Result<Option<PathBuf>, String> {
    if known_check(db).await?.is_some() {
        return Ok(None);
    }
    let now = env.clock.now();
    let key = signing::make(config.algorithm()?, keys, &*env.random, now);
    let mut key = key.map_err(|error| error.to_string())?;
    key.activate_at_once(now);
    let bootstrap = Bootstrap::new(None, env);
    // Written first: credentials that were stored and cannot be read would help nobody.
    let file = bootstrap.write(&config.data_dir, issuer)?;
    let is_first = transact!(db, |tx| {
        let is_first = meta::find(tx, meta::MASTER_KEY_CHECK).await?.is_none();
        if is_first {
            meta::insert(tx, meta::MASTER_KEY_CHECK, &keys.check).await?;
            signing_keys::insert(tx, &key).await?;
            let event = event(env, "signing_key.activated", now).about(key.name(), None);
            events::append(tx, &event).await?;
            bootstrap
                .store(tx, env, "system_account.created", now)
                .await?;
        }
        is_first
    });
    match is_first {
        Ok(true) => Ok(Some(file)),
        // Another process was faster, with credentials of its own.
        Ok(false) => {
            let _ = fs::remove_file(&file);
            let same = known_check(db).await? == Some(keys.check.clone());
            same.then_some(None).ok_or_else(|| {
                "another process has just started this database with another master key".to_owned()
            })
        }
        Err(error) => Err(error.to_string()),
    }
}

async fn read_keyring(
    db: &Db,
    keys: &Keys,
    config: &Config,
    env: &Environment,
) -> Result<Keyring, String> {
    let keyring = signing::read(db, keys, &config.tokens, env.clock.now()).await;
    keyring.map_err(|error| error.to_string())
}

/// The first operator's account with a fresh secret.
struct Bootstrap {
    account: SystemAccount,
    is_new: bool,
    credential: Credential,
    secret: Secret,
    grant: Grant,
}

impl Bootstrap {
    fn new(found: Option<SystemAccount>, env: &Environment) -> Self {
        let now = env.clock.now();
        let is_new = found.is_none();
        let mut account = found.unwrap_or_else(|| {
            let id = SystemAccountId(env.random.uuid(now));
            let mut account = SystemAccount::new(id, system_account::Kind::Service, None, now);
            account.edit(Edit::DisplayName(BOOTSTRAP.to_owned()));
            let description = "The first operator, made when the database was.";
            account.edit(Edit::Description(description.to_owned()));
            account
        });
        account.lifecycle.undelete();
        account.lifecycle.expire_time = Some(now.plus_s(BOOTSTRAP_LIFETIME_S));
        let secret = Secret::new(secret::Kind::ClientSecret, &env.random.bytes::<32>());
        let id = CredentialId(env.random.uuid(now));
        let mut credential = Credential::new(id, account.id.into(), Kind::ClientSecret, now);
        credential.hint = secret.hint();
        let grant = Grant {
            id: GrantId(env.random.uuid(now)),
            revision: 1,
            principal: account.id.into(),
            resource: String::new(),
            permission: Permission::Role("operator".to_owned()),
            reason: "the first operator".to_owned(),
            granted_by: Actor::Accountd.name(),
            create_time: now,
            window: Window::default(),
            elevation: None,
            needs_step_up: false,
        };
        Self {
            account,
            is_new,
            credential,
            secret,
            grant,
        }
    }

    /// Writes what the operator needs, readable by nobody else.
    fn write(&self, folder: &Path, issuer: &str) -> Result<PathBuf, String> {
        let file = folder.join(BOOTSTRAP_FILE);
        let credentials = json!({
            "issuer": issuer,
            "client_id": self.account.id.0,
            "client_secret": self.secret.text(),
            "expire_time": self.account.lifecycle.expire_time.map(|time| time.to_string()),
        });
        write_secret(&file, &format!("{credentials:#}\n"))?;
        Ok(file)
    }

    /// One secret and one grant, in the place of whatever there was.
    async fn store(
        &self,
        tx: &mut Write,
        env: &Environment,
        kind: &str,
        now: Timestamp,
    ) -> crate::domain::error::Result<()> {
        let id = self.account.id;
        if self.is_new {
            system_accounts::insert(tx, &self.account).await?;
        } else {
            let mut account = self.account.clone();
            account.touch(now);
            system_accounts::update(tx, &account).await?;
            credentials::delete_all(tx, id.into()).await?;
            grants::delete_all(tx, id.into()).await?;
        }
        credentials::insert(tx, &self.credential, Kept::Digest(&self.secret.digest())).await?;
        grants::insert(tx, &self.grant).await?;
        events::append(tx, &event(env, kind, now).about_account(id)).await?;
        Ok(())
    }
}

fn event(env: &Environment, kind: &str, now: Timestamp) -> Event {
    Event::new(EventId(env.random.uuid(now)), kind, Actor::Accountd, now)
}

/// Writes a file that its owner alone can read, whole or not at all.
fn write_secret(path: &Path, text: &str) -> Result<(), String> {
    let temporary = path.with_extension("tmp");
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let folder = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()))
}

//! The signing keys between the store and memory: making, encrypting, reading.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use crate::{
    app::App,
    config::Tokens,
    domain::{
        error::{Error, Result},
        keyring::{self, Keyring},
        master_key::Keys,
        signing_key::{Algorithm, SigningKey, State},
        time::Timestamp,
    },
    env::{self, Random},
    store::{db::Db, signing_keys},
};

/// How long revoked keys are remembered as revoked, in seconds: their tokens have long expired.
const REVOKED_MEMORY_S: i64 = 30 * 24 * 3600;

/// A new PREPARED key with its private half encrypted.
pub fn make(
    algorithm: Algorithm,
    keys: &Keys,
    random: &dyn Random,
    now: Timestamp,
) -> Result<SigningKey> {
    // RSA takes a while, and must not keep others waiting.
    let private = tokio::task::block_in_place(|| env::generate_key(algorithm));
    let private = private.map_err(Error::internal)?;
    let (kid, public_jwk) = keyring::public_half(algorithm, &private).map_err(Error::Internal)?;
    let private_sealed = keys
        .signing_keys
        .seal(random.bytes(), kid.as_bytes(), &private);
    Ok(SigningKey {
        kid,
        revision: 1,
        algorithm,
        state: State::Prepared,
        public_jwk,
        private_sealed,
        create_time: now,
        activate_time: None,
        retire_time: None,
        revoke_time: None,
    })
}

/// The keys as they are in the store now.
pub async fn read(db: &Db, keys: &Keys, tokens: &Tokens, now: Timestamp) -> Result<Keyring> {
    let since = now.plus_s(-REVOKED_MEMORY_S.max(tokens.access_token_lifetime_s));
    let current = signing_keys::list_current(&mut db.read().await?, since).await?;
    let open = |key: &SigningKey| {
        keys.signing_keys
            .open(key.kid.as_bytes(), &key.private_sealed)
    };
    Keyring::new(&current, open, tokens.access_token_lifetime_s, now).map_err(Error::Internal)
}

/// Reads the keys again: after a change of ours, and every few seconds for changes of others.
pub async fn refresh(app: &App, db: &Db) -> Result<()> {
    let _alone = app.keyring_reader.lock().await;
    let keyring = read(db, &app.keys, &app.config.tokens, app.clock.now()).await?;
    app.keyring.store(Arc::new(keyring));
    Ok(())
}

/// Reads the keys again because a token names one that is not known, at most once a second however
/// many such tokens arrive.
pub async fn refresh_for_unknown(app: &App, db: &Db) -> Result<()> {
    let now_s = app.clock.now().seconds();
    let is_due = app.unknown_key_s.swap(now_s, Relaxed) != now_s;
    if is_due {
        refresh(app, db).await
    } else {
        Ok(())
    }
}

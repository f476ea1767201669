//! KeyService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{
    Reply,
    call::{Call, mutate},
    convert, pb,
};
use crate::{
    app::App,
    domain::{
        error::{Error, Fields, Reason, Result},
        event::Event,
        filter, page,
        signing_key::{Algorithm, MAX_PUBLISHED, SigningKey, State},
        text,
        user::MAX_REASON,
    },
    signing,
    store::{
        db::{Read, Write},
        events,
        signing_keys::{self, Cursor},
    },
};

pub(super) struct Keys {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::key_service_server::KeyService for Keys {
    async fn get_jwks(&self, request: Request<pb::GetJwksRequest>) -> Reply<pb::Jwks> {
        let (call, _) = Call::enter(&self.app, request).await?;
        let keyring = call.app().keyring.load();
        let keys = keyring.jwks().keys.iter().map(|jwk| {
            let member = |name: &str| {
                jwk.get(name)
                    .and_then(serde_json::Value::as_str)
                    .map(str::to_owned)
            };
            pb::jwks::Jwk {
                kid: member("kid").unwrap_or_default(),
                kty: member("kty").unwrap_or_default(),
                alg: member("alg").unwrap_or_default(),
                r#use: member("use").unwrap_or_default(),
                crv: member("crv"),
                x: member("x"),
                y: member("y"),
                n: member("n"),
                e: member("e"),
            }
        });
        Ok(Response::new(pb::Jwks {
            keys: keys.collect(),
        }))
    }

    async fn list_signing_keys(
        &self,
        request: Request<pb::ListSigningKeysRequest>,
    ) -> Reply<pb::ListSigningKeysResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let expected = "PREPARED, ACTIVE, RETIRED or REVOKED";
        let state = filter::only(&request.filter, "state", expected, State::parse)?;
        let context = call.page_context(&[&request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let mut db = call.db().read().await?;
        let rows = signing_keys::list(&mut db, state, after.as_ref(), limit + 1)
            .await
            .map_err(Error::from)?;
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, Cursor::after)?;
        let signing_keys = rows.iter().map(|key| shown(key, &call)).collect();
        Ok(Response::new(pb::ListSigningKeysResponse {
            signing_keys,
            next_page_token,
        }))
    }

    async fn prepare_signing_key(
        &self,
        request: Request<pb::PrepareSigningKeyRequest>,
    ) -> Reply<pb::SigningKey> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let mut fields = Fields::new();
        let algorithm = match request.algorithm.as_str() {
            "" => call.app().config.algorithm(),
            name => Algorithm::parse(name),
        };
        let algorithm = fields.take("algorithm", algorithm);
        fields.finish()?;
        let algorithm = algorithm.ok_or_else(|| Error::internal("checked above"))?;
        let key = make(&call, algorithm)?;
        let since = call
            .now
            .plus_s(-call.app().config.tokens.access_token_lifetime_s);
        let key = mutate!(call, |tx| {
            let current = signing_keys::list_current(tx, since).await?;
            let published = current
                .iter()
                .filter(|key| key.state != State::Revoked)
                .count();
            if published >= MAX_PUBLISHED {
                let text = format!("are {MAX_PUBLISHED} published, which is the limit");
                return Err(Error::precondition(
                    Reason::LimitReached,
                    "signingKeys",
                    text,
                ));
            }
            signing_keys::insert(tx, &key).await?;
            events::append(tx, &call.event().about(key.name(), None)).await?;
            shown(&key, &call)
        })?;
        reread(&call).await;
        Ok(Response::new(key))
    }

    async fn activate_signing_key(
        &self,
        request: Request<pb::ActivateSigningKeyRequest>,
    ) -> Reply<pb::SigningKey> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let max_age_s = call.app().config.tokens.jwks_max_age_s;
        let key = mutate!(call, |tx| {
            let mut key = find_for_change(tx, &request.name, &request.etag).await?;
            key.activate(call.now, max_age_s)?;
            if let Some(mut active) = signing_keys::find_active(tx).await? {
                active.step_down(call.now);
                signing_keys::update(tx, &active).await?;
            }
            store(tx, &call, &key, call.event()).await?
        })?;
        reread(&call).await;
        Ok(Response::new(key))
    }

    async fn retire_signing_key(
        &self,
        request: Request<pb::RetireSigningKeyRequest>,
    ) -> Reply<pb::SigningKey> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let key = mutate!(call, |tx| {
            let mut key = find_for_change(tx, &request.name, &request.etag).await?;
            key.withdraw(call.now)?;
            store(tx, &call, &key, call.event()).await?
        })?;
        reread(&call).await;
        Ok(Response::new(key))
    }

    async fn revoke_signing_key(
        &self,
        request: Request<pb::RevokeSigningKeyRequest>,
    ) -> Reply<pb::SigningKey> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let mut fields = Fields::new();
        let reason = fields.take("reason", text::line(&request.reason, MAX_REASON));
        fields.finish()?;
        let reason = reason.unwrap_or_default();
        // Needed if the key that signs is the one to go.
        let successor = make(
            &call,
            call.app().config.algorithm().map_err(Error::Internal)?,
        )?;
        let key = mutate!(call, |tx| {
            let mut key = find_for_change(tx, &request.name, &request.etag).await?;
            let was_active = key.state == State::Active;
            key.revoke(call.now)?;
            let event = call.event().detail("reason", &reason);
            let shown = store(tx, &call, &key, event).await?;
            if was_active {
                let mut successor = successor.clone();
                successor.activate_at_once(call.now);
                signing_keys::insert(tx, &successor).await?;
                let event = call
                    .event_of("signing_key.activated")
                    .about(successor.name(), None);
                events::append(tx, &event).await?;
            }
            shown
        })?;
        reread(&call).await;
        Ok(Response::new(key))
    }
}

const REREAD_TRIES: usize = 3;

/// Takes up what was changed. The change stands in any case, and the keys are read again every few
/// seconds, so nothing that goes wrong here is an answer.
async fn reread(call: &Call) {
    for _ in 0..REREAD_TRIES {
        match signing::refresh(call.app(), call.db()).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "cannot read the signing keys after a change"),
        }
    }
}

fn make(call: &Call, algorithm: Algorithm) -> Result<SigningKey> {
    let app = call.app();
    signing::make(algorithm, &app.keys, &*app.random, call.now)
}

/// The key as it is, for a caller who knows its present state.
async fn find_for_change(db: &mut Read, name: &str, etag: &str) -> Result<SigningKey> {
    let is_plain = |kid: &str| {
        kid.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let kid = name
        .strip_prefix("signingKeys/")
        .filter(|kid| (1..=64).contains(&kid.len()) && is_plain(kid));
    let kid = kid.ok_or_else(|| Error::field("name", "must be signingKeys/{kid}"))?;
    let key = signing_keys::find(db, kid)
        .await?
        .ok_or_else(|| Error::not_found(name))?;
    convert::require_etag(etag, key.revision, key.name())?;
    Ok(key)
}

/// Stores a changed key with its event.
async fn store(
    tx: &mut Write,
    call: &Call,
    key: &SigningKey,
    event: Event,
) -> Result<pb::SigningKey> {
    signing_keys::update(tx, key).await?;
    events::append(tx, &event.about(key.name(), None)).await?;
    Ok(shown(key, call))
}

fn shown(key: &SigningKey, call: &Call) -> pb::SigningKey {
    use pb::signing_key::State as PbState;
    let earliest = key.earliest_activate_time(call.app().config.tokens.jwks_max_age_s);
    pb::SigningKey {
        name: key.name(),
        etag: convert::etag(key.revision),
        state: match key.state {
            State::Prepared => PbState::Prepared,
            State::Active => PbState::Active,
            State::Retired => PbState::Retired,
            State::Revoked => PbState::Revoked,
        }
        .into(),
        algorithm: key.algorithm.name().to_owned(),
        create_time: Some(convert::timestamp(key.create_time)),
        activate_time: convert::some_timestamp(key.activate_time),
        retire_time: convert::some_timestamp(key.retire_time),
        revoke_time: convert::some_timestamp(key.revoke_time),
        earliest_activate_time: (key.state == State::Prepared)
            .then(|| convert::timestamp(earliest)),
    }
}

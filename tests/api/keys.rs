//! KeyService, and what a stolen database lacks.

use accountd::{domain::error::Reason, grpc::pb, server, signing};
use pb::signing_key::State;
use tonic::Status;

use crate::harness::{
    Actor, Engine, Server, TestEnvironment, assert_refused, fields_of, on_both_engines,
};

on_both_engines! {
    async fn a_key_is_published_before_it_signs_and_as_long_as_it_matters(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let old = list(&operator).await.remove(0);
        assert_eq!((old.state(), &*old.algorithm), (State::Active, "ES256"));
        server.advance_s(1);
        let next = prepare(&operator, "").await.expect("prepared");
        let kids = kids(&server).await;
        assert_eq!(kids.len(), 2);
        assert!(kids.contains(&kid(&next)));
        assert_refused(activate(&operator, &next).await, Reason::KeyTooFresh);

        let before = server.signed_in("alice").await;
        // All processes have it after 15 seconds, all verifiers 300 seconds later.
        server.advance_s(315);
        let operator = server.operator().await;
        let before_rotation = operator.token().to_owned();
        let active = activate(&operator, &next).await.expect("old enough");
        assert_eq!(active.state(), State::Active);
        let states: Vec<State> = list(&operator).await.iter().map(pb::SigningKey::state).collect();
        assert_eq!(states, [State::Active, State::Retired]);
        // Tokens of both keys are good; the new ones are of the new key.
        server.with_token(&before_rotation).await.get_user(before.name()).await.expect("of the old key");
        let tokens = server.anonymous().await.refresh(&before.tokens.refresh_token).await.expect("refreshed");
        assert_eq!(header(&tokens.access_token)["kid"], *kid(&next));
        server.with_token(&tokens.access_token).await.get_user("users/me").await.expect("of the new key");
        assert_refused(activate(&operator, &old).await, Reason::WrongState);

        // When the last token of the old key has expired, the key goes.
        server.advance_s(316);
        reread(&server).await;
        assert_eq!(self::kids(&server).await, [kid(&next)]);
    }

    async fn tokens_are_signed_with_whatever_kind_of_key_is_active(engine: Engine) {
        let server = engine.server().await;
        for algorithm in ["EdDSA", "RS256", "ES256"] {
            let operator = server.operator().await;
            let key = prepare(&operator, algorithm).await.expect(algorithm);
            server.advance_s(315);
            let operator = server.operator().await;
            activate(&operator, &key).await.expect(algorithm);
            let operator = server.operator().await;
            assert_eq!(header(operator.token())["alg"], algorithm);
            list(&operator).await;
        }
        let operator = server.operator().await;
        assert_eq!(fields_of(prepare(&operator, "HS256").await), ["algorithm"]);
        let jwks = operator.keys().get_jwks(pb::GetJwksRequest {}).await.expect("keys").into_inner().keys;
        let published: serde_json::Value = reqwest::get(server.url("/.well-known/jwks.json"))
            .await.expect("an answer").json().await.expect("JSON");
        assert_eq!(jwks.len(), published["keys"].as_array().expect("a list").len());
        for (key, published) in jwks.iter().zip(published["keys"].as_array().expect("a list")) {
            assert_eq!(published["kid"], *key.kid);
            assert_eq!((&published["use"], &published["alg"]), (&"sig".into(), &(*key.alg).into()));
            assert!(published.get("d").is_none(), "no private part");
        }
    }

    async fn a_revoked_key_takes_its_tokens_along_and_is_replaced_at_once(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let stolen = list(&operator).await.remove(0);
        let alice = server.signed_in("alice").await;
        let request = pb::RevokeSigningKeyRequest {
            name: stolen.name.clone(),
            reason: "left on a train".to_owned(),
            ..Default::default()
        };
        let revoked = operator.keys().revoke_signing_key(request.clone()).await.expect("revoked").into_inner();
        assert_eq!(revoked.state(), State::Revoked);
        assert_refused(alice.actor.get_user("users/me").await, Reason::TokenRevoked);
        let operator = server.operator().await;
        assert_refused(operator.keys().revoke_signing_key(request).await, Reason::WrongState);
        let states: Vec<State> = list(&operator).await.iter().map(pb::SigningKey::state).collect();
        assert!(states.contains(&State::Active) && states.contains(&State::Revoked), "{states:?}");
        assert!(!kids(&server).await.contains(&kid(&stolen)));
        let tokens = server.anonymous().await.refresh(&alice.tokens.refresh_token).await.expect("the session lives");
        server.with_token(&tokens.access_token).await.get_user("users/me").await.expect("a new key");
        let event = &server.events("signing_key.revoked").await[0];
        assert_eq!(event.details["reason"], "left on a train");
        // Also after a restart.
        let old = alice.tokens.access_token.clone();
        let server = server.restart().await;
        assert_refused(server.with_token(&old).await.get_user("users/me").await, Reason::TokenRevoked);
    }

    async fn a_prepared_key_can_be_withdrawn_and_there_are_not_too_many(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let key = prepare(&operator, "").await.expect("prepared");
        let retire = async |key: &pb::SigningKey, etag: &str| {
            let request = pb::RetireSigningKeyRequest {
                name: key.name.clone(),
                etag: etag.to_owned(),
                ..Default::default()
            };
            operator.keys().retire_signing_key(request).await.map(tonic::Response::into_inner)
        };
        assert_refused(retire(&key, "r9").await, Reason::EtagMismatch);
        assert_eq!(retire(&key, &key.etag).await.expect("withdrawn").state(), State::Retired);
        assert_refused(retire(&key, "").await, Reason::WrongState);
        let active = list(&operator).await.into_iter().find(|key| key.state() == State::Active);
        assert_refused(retire(&active.expect("one"), "").await, Reason::WrongState);
        let unknown = pb::SigningKey { name: "signingKeys/x".to_owned(), ..Default::default() };
        assert_refused(retire(&unknown, "").await, Reason::NotFound);
        while kids(&server).await.len() < 10 {
            prepare(&operator, "").await.expect("below the limit");
        }
        assert_refused(prepare(&operator, "").await, Reason::LimitReached);
    }

    async fn lists_show_what_their_filters_say(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        prepare(&operator, "").await.expect("prepared");
        let filtered = async |filter: &str| {
            let request = pb::ListSigningKeysRequest { filter: filter.to_owned(), ..Default::default() };
            operator.keys().list_signing_keys(request).await.map(|response| response.into_inner().signing_keys.len())
        };
        for (filter, count) in [("", 2), ("state = ACTIVE", 1), ("state = PREPARED", 1), ("state = REVOKED", 0)] {
            assert_eq!(filtered(filter).await.expect("a list"), count, "{filter}");
        }
        for bad in ["state = active", "state < ACTIVE", "algorithm = ES256"] {
            assert_refused(filtered(bad).await, Reason::InvalidFilter);
        }
    }

    async fn another_master_key_opens_nothing(engine: Engine) {
        let server = engine.server().await;
        let config = server.config.clone();
        let env = TestEnvironment::new(7);
        let Server { folder, running, .. } = server;
        running.stop().await;
        let file = config.master_key_file();
        std::fs::write(&file, "00".repeat(32)).expect("another key");
        let error = server::Server::start(config.clone(), &env.environment()).await.err().expect("refused");
        assert!(error.contains("is not the one of this database"), "{error}");
        std::fs::write(&file, "a key").expect("nonsense");
        let error = server::Server::start(config.clone(), &env.environment()).await.err().expect("refused");
        assert!(error.contains("does not hold a master key"), "{error}");
        std::fs::remove_file(&file).expect("no key");
        let error = server::Server::start(config, &env.environment()).await.err().expect("refused");
        assert!(error.contains("there is no master key"), "{error}");
        assert!(!file.exists(), "and none is made up");
        drop(folder);
    }

    async fn processes_on_one_database_know_each_other_s_keys(engine: Engine) {
        if engine == Engine::Sqlite {
            return;
        }
        let server = engine.server().await;
        let second = server.second_instance().await;
        let operator = server.operator().await;
        let there = |token: &str| {
            let token = token.to_owned();
            async move { Actor::new(crate::harness::connect(second.address).await, Some(&token)) }
        };
        let first = list(&operator).await.remove(0);
        let request = pb::RevokeSigningKeyRequest { name: first.name, ..Default::default() };
        operator.keys().revoke_signing_key(request).await.expect("revoked");
        let operator = server.operator().await;
        // The second has not heard of the new key, and learns of it from the first token.
        let there = there(operator.token()).await;
        list(&there).await;
    }
}

pub async fn list(actor: &Actor) -> Vec<pb::SigningKey> {
    let response = actor
        .keys()
        .list_signing_keys(pb::ListSigningKeysRequest::default())
        .await;
    response.expect("a list").into_inner().signing_keys
}

pub async fn prepare(actor: &Actor, algorithm: &str) -> Result<pb::SigningKey, Status> {
    let request = pb::PrepareSigningKeyRequest {
        algorithm: algorithm.to_owned(),
        ..Default::default()
    };
    Ok(actor
        .keys()
        .prepare_signing_key(request)
        .await?
        .into_inner())
}

async fn activate(actor: &Actor, key: &pb::SigningKey) -> Result<pb::SigningKey, Status> {
    let request = pb::ActivateSigningKeyRequest {
        name: key.name.clone(),
        ..Default::default()
    };
    Ok(actor
        .keys()
        .activate_signing_key(request)
        .await?
        .into_inner())
}

fn kid(key: &pb::SigningKey) -> String {
    key.name.trim_start_matches("signingKeys/").to_owned()
}

/// The kids that are published.
async fn kids(server: &Server) -> Vec<String> {
    let anonymous = server.anonymous().await;
    let jwks = anonymous
        .keys()
        .get_jwks(pb::GetJwksRequest {})
        .await
        .expect("keys")
        .into_inner();
    jwks.keys.into_iter().map(|key| key.kid).collect()
}

/// What the job does every few seconds.
async fn reread(server: &Server) {
    let app = &server.running.app;
    let call = accountd::grpc::call::Call::system(app, "");
    signing::refresh(app, call.db())
        .await
        .expect("reads the keys");
}

fn header(token: &str) -> serde_json::Value {
    let head = token.split('.').next().expect("a head");
    let head = data_encoding::BASE64URL_NOPAD
        .decode(head.as_bytes())
        .expect("base64url");
    serde_json::from_slice(&head).expect("JSON")
}

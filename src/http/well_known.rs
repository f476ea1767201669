//! Documents that others fetch: the key set, what the service is, its OpenAPI description.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use super::Web;
use crate::domain::{assurance::Assurance, passkey::RelyingParty, signing_key::Algorithm};

/// The public keys (RFC 7517), from memory.
pub(super) async fn jwks(State(web): State<Arc<Web>>, headers: HeaderMap) -> Response {
    let keyring = web.app.keyring.load();
    let jwks = keyring.jwks();
    let max_age_s = web.app.config.tokens.jwks_max_age_s;
    let document = Bytes::copy_from_slice(jwks.json.as_bytes());
    cached(
        &headers,
        "application/jwk-set+json",
        &document,
        &jwks.etag,
        max_age_s,
    )
}

/// A document that does not change while the server runs.
pub(super) struct Document {
    bytes: Bytes,
    etag: String,
}

impl From<String> for Document {
    fn from(text: String) -> Self {
        let digest = crate::domain::secret::sha256(text.as_bytes());
        let tag = data_encoding::BASE64URL_NOPAD.encode(&digest[..12]);
        Self {
            bytes: text.into(),
            etag: format!("\"{tag}\""),
        }
    }
}

/// What [`metadata`] answers.
pub(super) fn metadata_of(issuer: &str, takes_certificates: bool) -> Document {
    let algorithms: Vec<&str> = Algorithm::ALL
        .iter()
        .map(|algorithm| algorithm.name())
        .collect();
    let mut methods = vec![
        "client_secret_basic",
        "client_secret_post",
        "private_key_jwt",
    ];
    // RFC 8705 section 2.1.1.
    methods.extend(takes_certificates.then_some("tls_client_auth"));
    let document = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "token_endpoint_auth_methods_supported": methods,
        "tls_client_certificate_bound_access_tokens": takes_certificates,
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "grant_types_supported": ["client_credentials"],
        "acr_values_supported": [Assurance::Aal1.name(), Assurance::Aal2.name()],
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
        "service_documentation": format!("{issuer}/openapi.json"),
    });
    document.to_string().into()
}

/// Metadata of the authorization server (RFC 8414), also where OpenID Connect looks for it.
pub(super) async fn metadata(State(web): State<Arc<Web>>, headers: HeaderMap) -> Response {
    let Document { bytes, etag } = &web.metadata;
    let max_age_s = web.app.config.tokens.jwks_max_age_s;
    cached(&headers, "application/json", bytes, etag, max_age_s)
}

/// What [`webauthn`] answers.
pub(super) fn webauthn_of(ours: &RelyingParty) -> Document {
    json!({ "origins": ours.origins }).to_string().into()
}

/// The origins whose pages may ask for our passkeys (WebAuthn Level 3 section 5.11.1).
pub(super) async fn webauthn(State(web): State<Arc<Web>>, headers: HeaderMap) -> Response {
    match &web.webauthn {
        Some(Document { bytes, etag }) => cached(&headers, "application/json", bytes, etag, 300),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

pub(super) async fn openapi(State(web): State<Arc<Web>>, headers: HeaderMap) -> Response {
    let Document { bytes, etag } = &web.openapi;
    cached(&headers, "application/json", bytes, etag, 300)
}

/// A document that may be kept for a while, or the word that it has not changed (RFC 9110
/// section 13.1.2).
fn cached(
    headers: &HeaderMap,
    kind: &'static str,
    document: &Bytes,
    etag: &str,
    max_age_s: i64,
) -> Response {
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut known = known
        .flat_map(|list| list.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"));
    let is_known = known.any(|tag| tag == etag || tag == "*");
    let text = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
    let head: [(HeaderName, HeaderValue); 3] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::ETAG, text(etag)),
        (
            header::CACHE_CONTROL,
            text(&format!("public, max-age={max_age_s}")),
        ),
    ];
    if is_known {
        (StatusCode::NOT_MODIFIED, head).into_response()
    } else {
        (head, document.clone()).into_response()
    }
}

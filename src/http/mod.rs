//! HTTP beside gRPC on the same port: JSON, the well-known documents, the OAuth token endpoint.
//!
//! Invariant: thin. What is decided is decided by the RPCs, which these call; only their form is
//! different here.

mod gateway;
mod oauth;
mod openapi;
mod template;
mod well_known;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use prost_reflect::DescriptorPool;
use tower::ServiceExt as _;
use tower_http::cors::CorsLayer;

use crate::{app::App, grpc::body::Limit};
use gateway::Gateway;
use well_known::Document;

/// What the HTTP handlers share.
struct Web {
    app: Arc<App>,
    gateway: Gateway,
    /// The gRPC services, and the same behind gRPC-Web.
    grpc: Router,
    translated: Router,
    metadata: Document,
    webauthn: Option<Document>,
    openapi: Document,
}

/// Everything on the port: `grpc` and, translated, `grpc_web`, with HTTP around them.
pub fn router(app: &Arc<App>, descriptors: &[u8], grpc: Router, grpc_web: Router) -> Router {
    let pool = DescriptorPool::decode(descriptors).expect("the build made them");
    let limit = Limit {
        bytes: app.config.limits.max_message_bytes,
        time: app.config.request_timeout(),
    };
    let web = Arc::new(Web {
        app: Arc::clone(app),
        gateway: Gateway::new(app, &pool, grpc.clone(), limit),
        grpc,
        translated: grpc_web,
        metadata: well_known::metadata_of(&app.issuer, app.takes_certificates()),
        webauthn: app.passkeys.as_deref().map(well_known::webauthn_of),
        openapi: openapi::document(&pool, &app.issuer).into(),
    });
    let router = Router::new()
        .route("/.well-known/jwks.json", routing::get(well_known::jwks))
        .route(
            "/.well-known/openid-configuration",
            routing::get(well_known::metadata),
        )
        .route(
            "/.well-known/oauth-authorization-server",
            routing::get(well_known::metadata),
        )
        .route("/.well-known/webauthn", routing::get(well_known::webauthn))
        .route("/openapi.json", routing::get(well_known::openapi))
        .route("/oauth2/token", routing::post(oauth::token))
        .fallback(dispatch)
        .with_state(web);
    match cors(&app.config.cors.allowed_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// By content type: gRPC, gRPC-Web, or JSON.
async fn dispatch(State(web): State<Arc<Web>>, request: Request) -> Response {
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let router = if kind.starts_with(b"application/grpc-web") {
        &web.translated
    } else if kind.starts_with(b"application/grpc") {
        &web.grpc
    } else {
        return web.gateway.serve(request).await;
    };
    match router.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Browsers of other origins are let in only where the operator says so.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let origins: Vec<HeaderValue> = origins
        .iter()
        .filter_map(|origin| HeaderValue::from_str(origin).ok())
        .collect();
    let names = |names: &[&'static str]| -> Vec<HeaderName> {
        names
            .iter()
            .map(|name| HeaderName::from_static(name))
            .collect()
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(names(&[
            "authorization",
            "content-type",
            "grpc-timeout",
            "x-grpc-web",
            "x-user-agent",
        ]))
        .expose_headers(names(&[
            "grpc-status",
            "grpc-message",
            "grpc-status-details-bin",
            "retry-after",
            "www-authenticate",
        ]))
        .max_age(std::time::Duration::from_mins(10));
    Some(layer)
}

/// Whether the content is declared to be of a type, whatever its parameters.
fn is_of_type(headers: &HeaderMap, expected: &str) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let essence = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case(expected))
}

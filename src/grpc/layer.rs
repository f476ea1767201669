//! What surrounds every gRPC call, however it arrived.
//!
//! Each call runs to completion in a task of its own: a client that disconnects must not stop a
//! transaction half way, nor free a hash lane that is still at work. A cap on calls in progress
//! bounds what is left running. What is received is received before that: a peer that never finishes
//! a request takes no place.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};
use tracing::Instrument as _;

use super::{
    body::{Limit, Received},
    call::Context,
    inward::FRAME_HEAD,
    status,
};
use crate::{
    app::App,
    domain::{access, certificate::Certificate, error::Error, network},
};

/// The connection a request came in on.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// Whether RPCs for administration are served here.
    pub private: bool,
    /// What it has shown in the TLS handshake.
    pub certificate: Option<Arc<Certificate>>,
}

/// What the layer keeps between calls.
pub struct Guard {
    app: Arc<App>,
    calls: Arc<Semaphore>,
}

impl Guard {
    pub fn new(app: &Arc<App>) -> Arc<Self> {
        let calls = Arc::new(Semaphore::new(app.config.limits.max_calls));
        Arc::new(Self {
            app: Arc::clone(app),
            calls,
        })
    }
}

/// Runs one call: finds its policy, sets its deadline, spawns it, and sees that whatever is answered
/// has a reason.
pub async fn guard(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let patience = patience(request.headers(), guard.app.config.request_timeout());
    let peer: Option<Peer> = request.extensions().get().cloned();
    let address = peer.as_ref().map(|peer| peer.address);
    let path = request.uri().path().to_owned();
    let policy = access::policy(&path);
    if let Some(policy) = policy {
        if policy.private && !peer.as_ref().is_some_and(|peer| peer.private) {
            return answer(&status::unknown(&path));
        }
        let context = Context {
            policy,
            address: address.map(|peer| client(&guard.app, peer, request.headers())),
            certificate: peer.and_then(|peer| shown(&guard.app, peer)),
            deadline: begin + patience,
        };
        request.extensions_mut().insert(context);
    }
    // Reflection is a stream; everything else here is one message.
    let is_stream = path.starts_with("/grpc.reflection.");
    if policy.is_none() && !is_stream && !path.starts_with("/grpc.health.") {
        return answer(&status::unknown(&path));
    }
    let mut memory = None;
    if !is_stream {
        (request, memory) = match whole(&guard.app, request, patience).await {
            Ok((request, received)) => (request, Some(received)),
            Err(status) => return answer(&status),
        };
    }
    // How long a client takes to send its request says nothing about the server.
    let received = Instant::now();
    let patience = (begin + patience).saturating_duration_since(received);
    if patience.is_zero() {
        return answer(&status::deadline());
    }
    let Ok(permit) = Arc::clone(&guard.calls).try_acquire_owned() else {
        return answer(&status::overloaded());
    };
    let place = Place {
        app: Arc::clone(&guard.app),
        _permit: permit,
    };
    place.app.metrics.calls.inc();
    let name = policy.map_or("other", |policy| policy.rpc.trim_start_matches('/'));
    let span = tracing::info_span!(
        "rpc",
        name,
        from = address.map(|address| address.to_string())
    );
    let call = async move {
        let response = next.run(request).await;
        drop(memory);
        let head = status::of_head(response.headers());
        let better = head.as_ref().and_then(status::with_reason);
        let head = better.as_ref().or(head.as_ref());
        let code = head.map_or(Code::Ok, Status::code);
        let metrics = &place.app.metrics;
        metrics.rpc(name, status::code_name(code), received.elapsed());
        tracing::debug!(code = status::code_name(code), "answered");
        drop(place);
        match better {
            Some(better) => answer(&better),
            None => response,
        }
    };
    let call = call.instrument(span);
    // Health and reflection change nothing, so they may end with whoever asked.
    let outcome = match policy {
        Some(_) => tokio::time::timeout(patience, tokio::spawn(call)).await,
        None => tokio::time::timeout(patience, call).await.map(Ok),
    };
    match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(panic)) => answer(&Status::from(Error::internal(panic))),
        Err(_) => answer(&status::deadline()),
    }
}

/// The request with its body at hand, and the memory that this takes.
async fn whole(
    app: &App,
    request: Request,
    patience: Duration,
) -> Result<(Request, Received), Status> {
    let limit = Limit {
        bytes: app.config.limits.max_message_bytes + FRAME_HEAD,
        time: patience,
    };
    let (head, body) = request.into_parts();
    let received = app.intake.receive(body, limit).await?;
    let body = Body::from(received.bytes.clone());
    Ok((Request::from_parts(head, body), received))
}

/// A call's place among those in progress; free again when dropped, also by a panic.
struct Place {
    app: Arc<App>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.app.metrics.calls.dec();
    }
}

/// A status as a gRPC response.
pub fn answer(status: &Status) -> Response {
    status
        .clone()
        .into_http::<tonic::body::Body>()
        .map(Body::new)
}

/// What the client itself has shown: the certificate of a proxy is not that of whoever is behind it.
fn shown(app: &App, peer: Peer) -> Option<Arc<Certificate>> {
    let is_proxy = app.proxies.iter().any(|net| net.contains(&peer.address));
    if is_proxy && peer.certificate.is_some() {
        tracing::debug!(from = %peer.address, "the certificate of a trusted proxy proves nothing");
        return None;
    }
    peer.certificate
}

fn client(app: &App, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let forwarded = headers.get_all("x-forwarded-for").iter();
    let forwarded: Vec<&str> = forwarded.filter_map(|value| value.to_str().ok()).collect();
    network::canonical(network::client(peer, &forwarded, &app.proxies))
}

/// How long the caller waits: its own `grpc-timeout`, if that is shorter than ours.
fn patience(headers: &HeaderMap, limit: Duration) -> Duration {
    let asked = headers
        .get("grpc-timeout")
        .and_then(|value| parse_timeout(value.to_str().ok()?));
    asked.map_or(limit, |asked| asked.min(limit))
}

/// At most eight digits and a unit, as the gRPC protocol says.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_says() {
        assert_eq!(parse_timeout("300m"), Some(Duration::from_millis(300)));
        assert_eq!(
            parse_timeout("99999999H"),
            Some(Duration::from_hours(99_999_999))
        );
        for bad in ["", "m", "+3S", "123456789S", "3", "3x", "3 S", "٣S"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }
}

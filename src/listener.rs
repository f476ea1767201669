//! The accept loop: connections in, requests out, every limit set.
//!
//! Our own, over hyper: the ready-made servers leave open how many connections there may be, how long
//! a peer may say nothing, and how long the end may take.

use std::{
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::{
    config::Limits,
    domain::{network, tally::Tally},
    grpc::layer::Peer,
    telemetry::Connections,
    tls::Tls,
    unread::Unread,
};

/// What the connections of one listener share.
pub struct Shared {
    limits: Limits,
    slots: Arc<Semaphore>,
    per_network: Mutex<Tally<IpNet>>,
    tls: Option<Arc<Tls>>,
    metrics: Connections,
    unread: Arc<Unread>,
}

impl Shared {
    pub fn new(limits: &Limits, tls: Option<Arc<Tls>>, metrics: Connections) -> Arc<Self> {
        Arc::new(Self {
            limits: limits.clone(),
            slots: Arc::new(Semaphore::new(limits.max_connections)),
            per_network: Mutex::default(),
            tls,
            metrics,
            unread: Unread::new(
                limits.max_unread_bytes,
                Duration::from_secs(limits.unread_timeout_s),
            ),
        })
    }

    /// A place for one more connection from an address, if there is one.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let network = network::source(address);
        let mut per_network = self.per_network();
        if per_network.of(&network) >= self.limits.max_connections_per_address {
            return None;
        }
        per_network.take(network, 1);
        self.metrics.open.inc();
        Some(Place {
            shared: Arc::clone(self),
            network,
            _permit: permit,
        })
    }

    fn per_network(&self) -> MutexGuard<'_, Tally<IpNet>> {
        self.per_network
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place; free again when dropped.
struct Place {
    shared: Arc<Shared>,
    network: IpNet,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.per_network().give_back(&self.network, 1);
        self.shared.metrics.open.dec();
    }
}

/// Accepts until `stop`, then closes the socket, asks every peer to go, waits, and cuts what is left.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    private: bool,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    let http = Arc::new(http(&shared.limits));
    let (connections, cut) = (TaskTracker::new(), CancellationToken::new());
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = second.tick() => {
                shared.unread.cut_those_who_do_not_read();
                continue;
            }
            () = stop.cancelled() => break,
        };
        let Ok((stream, address)) = accepted else {
            // Out of file descriptors, most likely: must neither spin nor end the loop.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let address = network::canonical(address.ip());
        let Some(place) = shared.admit(address) else {
            shared.metrics.refused.inc();
            continue;
        };
        let peer = Peer {
            address,
            private,
            certificate: None,
        };
        let connection = Connection {
            http: Arc::clone(&http),
            router: router.clone(),
            peer,
            shared: Arc::clone(&shared),
            stop: stop.clone(),
        };
        let cut = cut.clone();
        connections.spawn(async move {
            let _place = place;
            tokio::select! {
                () = connection.handshake(stream) => {}
                () = cut.cancelled() => {}
            }
        });
    }
    drop(listener);
    connections.close();
    let drain = Duration::from_secs(shared.limits.drain_timeout_s);
    if timeout(drain, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

struct Connection {
    http: Arc<auto::Builder<TokioExecutor>>,
    router: Router,
    peer: Peer,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl Connection {
    async fn handshake(mut self, stream: TcpStream) {
        // Small answers should not wait for more.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.shared.tls else {
            return self.run(stream).await;
        };
        let acceptor = tls.acceptor();
        let limit = Duration::from_secs(self.shared.limits.handshake_timeout_s);
        let stream = match timeout(limit, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            refused => {
                let why = refused.map_or("took too long".to_owned(), |outcome| {
                    outcome
                        .err()
                        .map_or(String::new(), |error| error.to_string())
                });
                tracing::debug!(from = %self.peer.address, why, "no TLS handshake");
                self.shared.metrics.handshakes_failed.inc();
                return;
            }
        };
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates();
        self.peer.certificate = chain.and_then(|chain| tls.shown(chain)).map(Arc::new);
        self.run(stream).await;
    }

    /// Serves one connection until it ends, has grown too old, or the server stops.
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Self {
            http,
            router,
            peer,
            shared,
            stop,
        } = self;
        let limits = &shared.limits;
        let address = peer.address;
        let spoke = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&spoke);
        let seat = shared.unread.seat();
        let reader = Arc::clone(&seat.reader);
        let service = router.map_request(move |mut request: Request<hyper::body::Incoming>| {
            mark.store(true, Relaxed);
            request.extensions_mut().insert(peer.clone());
            request.map(Body::new)
        });
        let service =
            service.map_response(move |response| response.map(|body| reader.answer(body)));
        let service = TowerToHyperService::new(service);
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        let mut first = pin!(sleep(Duration::from_secs(limits.first_request_timeout_s)));
        let max_age = max_age(limits, address);
        let mut age = pin!(sleep(max_age));
        // A stream that its peer never ends keeps no connection for ever.
        let drain = Duration::from_secs(limits.drain_timeout_s);
        let mut cut = pin!(sleep(max_age + drain));
        let (mut waited, mut leaving) = (false, false);
        loop {
            tokio::select! {
                // An error here is the peer's: it has gone, or does not speak HTTP.
                _ = connection.as_mut() => return,
                () = &mut first, if !waited => {
                    waited = true;
                    if !spoke.load(Relaxed) {
                        return;
                    }
                }
                () = &mut age, if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = &mut cut => return,
                () = seat.reader.cut.cancelled() => {
                    shared.metrics.cut.inc();
                    return;
                }
                () = stop.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Spread over a tenth, so that clients that came together do not come again together.
fn max_age(limits: &Limits, address: IpAddr) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    let age_ms = limits.max_connection_age_s.saturating_mul(1000);
    let spread = RandomState::new().hash_one(address) % (age_ms / 10).max(1);
    Duration::from_millis(age_ms.saturating_sub(spread))
}

/// HTTP/1 and HTTP/2 with every limit explicit.
fn http(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let header_bytes = limits.max_header_bytes;
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        // Without a timer there is no header timeout at all.
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(limits.first_request_timeout_s))
        .max_buf_size(
            usize::try_from(header_bytes)
                .unwrap_or(usize::MAX)
                .max(8 * 1024),
        )
        .max_headers(64);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        // A peer that makes us fail its streams (RUSTSEC-2024-0003 and "MadeYouReset").
        .max_local_error_reset_streams(256)
        // A peer that resets its own (CVE-2023-44487). One that gives up everything it has open at once
        // is no attacker: it may be a frontend whose users went away.
        .max_pending_accept_reset_streams(usize::try_from(limits.max_streams).unwrap_or(usize::MAX))
        .max_header_list_size(header_bytes)
        .max_frame_size(16 * 1024)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(256 * 1024)
        .keep_alive_interval(Duration::from_secs(limits.keep_alive_interval_s))
        .keep_alive_timeout(Duration::from_secs(limits.keep_alive_timeout_s));
    http
}

/// Opens a socket; an error is a sentence for the operator.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address}: {error}"))
}

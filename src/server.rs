//! Puts the server together: listeners, services, limits, health, and its end.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, extract::State, middleware, response::IntoResponse, routing};
use http::{StatusCode, header};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    app::App,
    config::{Config, Limits},
    domain::access,
    grpc::{self, layer::Guard},
    http as web, jobs,
    listener::{self, Shared},
    messenger,
    setup::{self, Environment, Lock, Opened},
    telemetry::Connections,
    tls::Tls,
};

/// A server that is serving.
pub struct Server {
    pub app: Arc<App>,
    /// Where it listens, with the ports that were chosen for 0.
    pub address: SocketAddr,
    pub private_address: Option<SocketAddr>,
    pub ops_address: SocketAddr,
    /// Where the credentials of the first operator are, if they were made just now.
    pub bootstrap_file: Option<PathBuf>,
    stop: CancellationToken,
    work: JoinHandle<()>,
}

impl Server {
    /// Starts everything; an error is a sentence for the operator.
    pub async fn start(config: Config, env: &Environment) -> Result<Self, String> {
        let tls = Tls::open(&config.tls, &env.clock)?;
        let lock = setup::take_folder(&config).await?;
        let public = listener::bind(config.listen).await?;
        let private = match config.private_listen {
            Some(address) => Some(listener::bind(address).await?),
            None => None,
        };
        let ops = listener::bind(config.ops_listen).await?;
        let local =
            |listener: &TcpListener| listener.local_addr().map_err(|error| error.to_string());
        let (address, ops_address) = (local(&public)?, local(&ops)?);
        let private_address = private.as_ref().map(local).transpose()?;

        let issuer = config.issuer(address);
        let Opened {
            app,
            bootstrap_file,
            lock,
        } = Box::pin(setup::open(config, lock, issuer, tls, env)).await?;
        let stop = CancellationToken::new();
        let (health, grpc) = grpc_router(&app)?;
        report_health(&health, ServingStatus::Serving).await;
        let router = web::router(&app, grpc::DESCRIPTORS, grpc.clone(), grpc_web(grpc));
        // Each listener has places of its own: a full public port does not lock operators out.
        let shared = || {
            let connections = app.metrics.connections.clone();
            Shared::new(&app.config.limits, app.tls.clone(), connections)
        };
        let listeners = TaskTracker::new();
        // Without a private listener the only one serves everything.
        let everything = private.is_none();
        let serve = |listener, is_private| {
            listener::serve(listener, router.clone(), is_private, shared(), stop.clone())
        };
        listeners.spawn(serve(public, everything));
        if let Some(private) = private {
            listeners.spawn(serve(private, true));
        }
        listeners.close();
        let ops_stop = CancellationToken::new();
        let ops_task = serve_ops(ops, &app, &stop, &ops_stop);
        watch_health(&app, &stop, health.clone());
        messenger::start(&app, &stop);

        let work = Work {
            app: Arc::clone(&app),
            listeners,
            health,
            lock,
        };
        let work = tokio::spawn(work.until(stop.clone(), ops_stop, ops_task));
        Ok(Self {
            app,
            address,
            private_address,
            ops_address,
            bootstrap_file,
            stop,
            work,
        })
    }

    /// No new work; what is in progress finishes, within the configured time; then everything ends.
    pub async fn stop(self) {
        self.stop.cancel();
        // A panic of that task has been reported by the runtime.
        let _ = self.work.await;
    }
}

/// What has to be brought to an end.
struct Work {
    app: Arc<App>,
    listeners: TaskTracker,
    health: HealthReporter,
    lock: Option<Lock>,
}

impl Work {
    async fn until(
        self,
        stop: CancellationToken,
        ops_stop: CancellationToken,
        ops: JoinHandle<()>,
    ) {
        stop.cancelled().await;
        report_health(&self.health, ServingStatus::NotServing).await;
        self.listeners.wait().await;
        // Calls whose client has gone are still at work.
        let patience = Duration::from_secs(2);
        let _ = tokio::time::timeout(patience, idle(&self.app)).await;
        let _ = tokio::time::timeout(patience, self.app.messenger.idle()).await;
        ops_stop.cancel();
        let _ = ops.await;
        let call = grpc::call::Call::system(&self.app, "");
        let _ = tokio::time::timeout(patience, self.app.db(&call).close()).await;
        drop(self.lock);
    }
}

async fn idle(app: &App) {
    while app.metrics.calls.get() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Every gRPC service on one screen.
fn grpc_router(app: &Arc<App>) -> Result<(HealthReporter, Router), String> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(grpc::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients that work from reflection can read the details of errors.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    let text = |error: tonic_reflection::server::Error| error.to_string();
    let max = app.config.limits.max_message_bytes;
    let (v1, v1alpha) = (reflection().build_v1(), reflection().build_v1alpha());
    let router = grpc::services(app)
        .add_service(health.max_decoding_message_size(max))
        .add_service(v1.map_err(text)?.max_decoding_message_size(max))
        .add_service(v1alpha.map_err(text)?.max_decoding_message_size(max));
    let router = Routes::into_axum_router(router).layer(middleware::from_fn_with_state(
        Guard::new(app),
        grpc::layer::guard,
    ));
    Ok((reporter, router))
}

fn grpc_web(grpc: Router) -> Router {
    grpc.layer(tonic_web::GrpcWebLayer::new())
}

/// gRPC health follows what the jobs find out.
fn watch_health(app: &Arc<App>, stop: &CancellationToken, health: HealthReporter) {
    let stopping = stop.clone();
    jobs::start(app, stop, move |is_healthy| {
        let (health, stopping) = (health.clone(), stopping.clone());
        tokio::spawn(async move {
            if is_healthy {
                report_health(&health, ServingStatus::Serving).await;
            }
            // Whatever was found out before the end, it does not outlast it.
            if !is_healthy || stopping.is_cancelled() {
                report_health(&health, ServingStatus::NotServing).await;
            }
        });
    });
}

/// Of the server, which is the empty name, and of each of its services: they stand and fall together.
async fn report_health(health: &HealthReporter, status: ServingStatus) {
    let services = access::POLICIES
        .iter()
        .filter_map(|policy| policy.rpc.split('/').nth(1));
    let services: BTreeSet<&str> = services.chain([""]).collect();
    for service in services {
        health.set_service_status(service, status).await;
    }
}

/// The port for whoever watches the server: alive, ready, metrics.
fn serve_ops(
    listener: TcpListener,
    app: &Arc<App>,
    stop: &CancellationToken,
    ops_stop: &CancellationToken,
) -> JoinHandle<()> {
    let ready = {
        let stop = stop.clone();
        async move |State(app): State<Arc<App>>| {
            if !stop.is_cancelled() && jobs::is_healthy(&app).await {
                (StatusCode::OK, "ready\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
            }
        }
    };
    let metrics = async |State(app): State<Arc<App>>| match app.metrics.encode() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let router = Router::new()
        .route("/healthz", routing::get(async || "ok\n"))
        .route("/readyz", routing::get(ready))
        .route("/metrics", routing::get(metrics))
        .with_state(Arc::clone(app));
    let limits = Limits {
        max_connections: 100,
        max_connections_per_address: 100,
        drain_timeout_s: 1,
        ..app.config.limits.clone()
    };
    // Its connections are not those of clients, so they are counted apart.
    let shared = Shared::new(&limits, None, Connections::default());
    tokio::spawn(listener::serve(
        listener,
        router,
        true,
        shared,
        ops_stop.clone(),
    ))
}

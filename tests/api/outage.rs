//! A database that stops answering without a word, as when its host has vanished.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use accountd::{domain::error::Reason, grpc::pb};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::{
    harness::{Engine, assert_refused},
    postgres,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_a_host_that_has_vanished_are_given_up() {
    if !postgres::is_available().await {
        return;
    }
    let wire = Wire::new().await;
    let server = Engine::Postgres.server_with(|config| {
        config.database.max_connections = 2;
        config.database.acquire_timeout_s = 4;
        config.database.transaction_timeout_s = 1;
        if let Some(url) = &mut config.database_url {
            url.0 = wire.lead_to(&url.0);
        }
    });
    let server = server.await;
    let operator = server.operator().await;
    let user = operator
        .create_user(pb::User::default())
        .await
        .expect("created");
    wire.cut();
    for _ in 0..3 {
        let calls = tokio::join!(
            operator.get_user(&user.name),
            operator.suspend_user(&user.name)
        );
        assert_refused(calls.0, Reason::StoreUnavailable);
        assert_refused(calls.1, Reason::StoreUnavailable);
    }
    wire.mend();
    let found = tokio::time::timeout(Duration::from_secs(30), operator.get_user(&user.name)).await;
    found.expect("in time").expect("found");
    operator.suspend_user(&user.name).await.expect("suspended");
}

/// Forwards connections. When it is cut, what it carries goes nowhere, but nothing is closed.
struct Wire {
    port: u16,
    target: Arc<OnceLock<String>>,
    /// How often it was cut or mended: it is whole while that is even.
    times: Arc<AtomicUsize>,
}

impl Wire {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let wire = Self {
            port: listener.local_addr().expect("its number").port(),
            target: Arc::default(),
            times: Arc::default(),
        };
        let (target, times) = (Arc::clone(&wire.target), Arc::clone(&wire.times));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(target.get().expect("known by now")).await;
                let (near, far) = (near.into_split(), far.expect("PostgreSQL").into_split());
                tokio::spawn(carry(near.0, far.1, Arc::clone(&times)));
                tokio::spawn(carry(far.0, near.1, Arc::clone(&times)));
            }
        });
        wire
    }

    /// The URL of the same database by way of this.
    fn lead_to(&self, url: &str) -> String {
        let (head, tail) = url.rsplit_once('@').expect("a user");
        let (address, name) = tail.split_once('/').expect("a database");
        self.target.set(address.to_owned()).expect("once");
        format!("{head}@127.0.0.1:{}/{name}", self.port)
    }

    fn cut(&self) {
        self.times.fetch_add(1, Relaxed);
    }

    fn mend(&self) {
        self.times.fetch_add(1, Relaxed);
    }
}

/// Carries bytes until the wire is cut; those of a connection that was made before go nowhere after.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, times: Arc<AtomicUsize>) {
    let (born, mut bytes) = (times.load(Relaxed), [0; 8192]);
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let is_whole = born % 2 == 0 && times.load(Relaxed) == born;
        if is_whole && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

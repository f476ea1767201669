//! Peers that abuse HTTP/2, frame by frame: they are cut off, memory stays, and a bystander goes on.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::{
    harness::{Actor, Engine},
    process::{Installation, Process},
};

const MIB: u64 = 1024 * 1024;
/// How long each attack lasts, and from how many connections at once.
const ATTACK: Duration = Duration::from_secs(3);
const ATTACKERS: usize = 8;

/// Frame types and flags (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The setting that no stream has room for an answer (RFC 9113 section 6.5.2).
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
/// `:method` in the static table (RFC 7541 appendix A).
const GET: u8 = 0x82;
const POST: u8 = 0x83;

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_at_once_cut_their_connection() {
    let cut = attack(|mut peer| async move {
        let mut stream = 1;
        loop {
            let mut frames = frame(HEADERS, END_HEADERS, stream, &call_headers());
            frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            if peer.write_all(&frames).await.is_err() {
                return;
            }
            stream += 2;
        }
    });
    assert!(
        cut.await > ATTACKERS,
        "each of them is cut, and comes again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_an_end_cut_their_connection() {
    let cut = attack(|mut peer| async move {
        let _ = peer.write_all(&frame(HEADERS, 0, 1, &call_headers())).await;
        // A literal header field that is not indexed: "x", and a value of 16,000 bytes.
        let mut field = vec![0, 1, b'x', 0x7f, 0x81, 0x7c];
        field.resize(field.len() + 16_000, b'y');
        while peer
            .write_all(&frame(CONTINUATION, 0, 1, &field))
            .await
            .is_ok()
        {}
    });
    assert!(
        cut.await > ATTACKERS,
        "each of them is cut, and comes again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_is_empty_wins_nothing() {
    attack(|mut peer| async move {
        let _ = peer
            .write_all(&frame(HEADERS, END_HEADERS, 1, &call_headers()))
            .await;
        let empty = frame(DATA, 0, 1, b"").repeat(100);
        while peer.write_all(&empty).await.is_ok() {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_want_an_answer_each_are_not_hoarded() {
    attack(|peer| async move {
        // Never reads what it is sent.
        let (_read, mut write) = peer.into_split();
        let settings = frame(SETTINGS, 0, 0, b"").repeat(100);
        while write.write_all(&settings).await.is_ok() {}
    })
    .await;
}

/// Asks for the longest document there is, as often as one may at once, and lets nothing of it come.
async fn read_nothing(mut peer: TcpStream) {
    let mut asked = frame(SETTINGS, 0, 0, &NO_WINDOW);
    for stream in (1..256).step_by(2) {
        let end = END_HEADERS | END_STREAM;
        asked.extend(frame(HEADERS, end, stream, &document_headers()));
    }
    if peer.write_all(&asked).await.is_ok() {
        read_to_the_end(&mut peer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_cut_their_connection_when_they_are_too_many() {
    let limit = (MIB * 8).to_string();
    let settings = [("ACCOUNTD_LIMITS__MAX_UNREAD_BYTES", limit.as_str())];
    let cut = attack_with(&settings, read_nothing);
    assert!(
        cut.await > ATTACKERS,
        "each of them is cut, and comes again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_cut_their_connection_in_time() {
    let settings = [("ACCOUNTD_LIMITS__UNREAD_TIMEOUT_S", "1")];
    let cut = attack_with(&settings, read_nothing);
    assert!(cut.await >= ATTACKERS, "each of them is cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_on_which_nothing_comes_is_nobodys_fault() {
    let settings = [("ACCOUNTD_LIMITS__UNREAD_TIMEOUT_S", "1")];
    let server = Server::start(&settings).await;
    let mut peer = connect(server.process.address, 1).await;
    let reflection = headers_of(
        POST,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    );
    let opening = frame(HEADERS, END_HEADERS, 1, &reflection);
    peer.write_all(&opening).await.expect("a call");
    tokio::select! {
        () = read_to_the_end(&mut peer) => panic!("cut"),
        () = server.bystander_goes_on() => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_peers_hold_nobody_up() {
    let server = Server::start(&[]).await;
    let mut peers = JoinSet::new();
    for _ in 0..200 {
        let address = server.process.address;
        peers.spawn(async move {
            let mut peer = connect(address, 1).await;
            let headers = frame(HEADERS, END_HEADERS, 1, &call_headers());
            for byte in headers.iter().cycle() {
                if peer.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    server.bystander_goes_on().await;
    peers.shutdown().await;
    server.memory_is_bounded(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_connections_hold_nobody_up() {
    allow_files();
    let server = Server::start(&[]).await;
    let mut idle = Vec::new();
    // As many as there may be: all but a few, and from one address no more than a tenth of them.
    for number in 0..9_950_u32 {
        let source = u8::try_from(number / 950 + 2).expect("few addresses");
        idle.push(connect(server.process.address, source).await);
    }
    server.bystander_goes_on().await;
    let mut open = 0;
    for peer in &mut idle {
        let mut byte = [0; 1];
        let read = tokio::time::timeout(Duration::from_micros(10), peer.read(&mut byte)).await;
        open += usize::from(!matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert!(open > 9_000, "only {open} were let in");
    server.memory_is_bounded(10_000);
}

/// A server, and somebody who uses it.
struct Server {
    _installation: Installation,
    process: Process,
    bystander: Actor,
    /// Resident memory before anything happened.
    base: u64,
}

impl Server {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let installation = Installation::new(Engine::Sqlite).await;
        let process = installation.serve(settings);
        let bystander = installation.bootstrap(&process).await;
        bystander
            .create_user(accountd::grpc::pb::User::default())
            .await
            .expect("a user");
        let (base, _) = process.memory();
        Self {
            _installation: installation,
            process,
            bystander,
            base,
        }
    }

    /// Calls one after another while the attack lasts. Each is answered; by the build that is shipped
    /// also in time.
    async fn bystander_goes_on(&self) {
        let begin = Instant::now();
        let mut times = Vec::new();
        let request = || accountd::grpc::pb::ListUsersRequest::default();
        while begin.elapsed() < ATTACK {
            let since = Instant::now();
            self.bystander
                .users()
                .list_users(request())
                .await
                .expect("an answer");
            times.push(since.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if std::env::var_os("ACCOUNTD_TEST_BINARY").is_none() {
            return;
        }
        // By its own clock, and as far as half of the calls go by that of a client that has to share
        // the processors with those who attack.
        let within = async |limit: &str| {
            let rpc = "rpc=\"accountd.v1.UserService/ListUsers\"";
            let line = format!("accountd_rpc_seconds_bucket{{le=\"{limit}\",{rpc}}}");
            self.process.metric(&line).await
        };
        let (quick, all) = (within("0.1").await, within("+Inf").await);
        assert!(
            all > 0.0 && quick >= all * 0.99,
            "{quick} of {all} within 100 ms"
        );
        times.sort();
        let median = times[times.len() / 2];
        assert!(median <= Duration::from_millis(100), "{median:?}");
    }

    /// The most there was, over what there was before: what requests may take, and so much for each
    /// connection.
    fn memory_is_bounded(&self, connections: u64) {
        let (_, peak) = self.process.memory();
        let (grown, limit) = (
            peak.saturating_sub(self.base),
            64 * MIB + connections * 24 * 1024,
        );
        assert!(grown < limit, "{} MiB more than before", grown / MIB);
    }
}

/// Runs an attack from several connections, each again whenever it ends; how often one ended.
async fn attack<F>(abuse: impl Fn(TcpStream) -> F + Clone + Send + Sync + 'static) -> usize
where
    F: Future<Output = ()> + Send,
{
    attack_with(&[], abuse).await
}

async fn attack_with<F>(
    settings: &[(&str, &str)],
    abuse: impl Fn(TcpStream) -> F + Clone + Send + Sync + 'static,
) -> usize
where
    F: Future<Output = ()> + Send,
{
    let server = Server::start(settings).await;
    let (ended, stop) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let mut attackers = JoinSet::new();
    for _ in 0..ATTACKERS {
        let (abuse, ended, stop) = (abuse.clone(), Arc::clone(&ended), Arc::clone(&stop));
        let address = server.process.address;
        attackers.spawn(async move {
            while !stop.load(Relaxed) {
                abuse(connect(address, 1).await).await;
                ended.fetch_add(1, Relaxed);
            }
        });
    }
    server.bystander_goes_on().await;
    stop.store(true, Relaxed);
    attackers.shutdown().await;
    server.memory_is_bounded(8);
    ended.load(Relaxed)
}

/// A connection from 127.0.0.`source` that has begun to speak HTTP/2.
async fn connect(address: SocketAddr, source: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddr::from(([127, 0, 0, source], 0)))
        .expect("an address");
    let mut peer = socket.connect(address).await.expect("a connection");
    let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    opening.extend(frame(SETTINGS, 0, 0, b""));
    // May be refused at once.
    let _ = peer.write_all(&opening).await;
    peer
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn read_to_the_end(peer: &mut TcpStream) {
    let mut bytes = vec![0; 64 * 1024];
    while matches!(peer.read(&mut bytes).await, Ok(length) if length > 0) {}
}

/// The header block of a gRPC call that anybody may make.
fn call_headers() -> Vec<u8> {
    headers_of(POST, "/accountd.v1.TokenService/IssueToken")
}

fn document_headers() -> Vec<u8> {
    headers_of(GET, "/openapi.json")
}

/// A header block (RFC 7541).
fn headers_of(method: u8, path: &str) -> Vec<u8> {
    // :method, :scheme http; then literals with an indexed name: :path, :authority, content-type.
    let mut block = vec![method, 0x86];
    let literals: [(&[u8], &str); 3] = [
        (&[0x04], path),
        (&[0x01], "x"),
        (&[0x0f, 0x10], "application/grpc"),
    ];
    for (name, value) in literals {
        block.extend(name);
        block.push(u8::try_from(value.len()).expect("short"));
        block.extend(value.as_bytes());
    }
    block
}

/// As many open files as this process may have.
fn allow_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, all).expect("its own limit");
}

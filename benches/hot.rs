//! The hot pure parts, and what the storage seam adds to the bare driver: `cargo bench --bench hot`.

use std::{hint::black_box, sync::Arc, time::Duration};

use accountd::{
    config::Config,
    domain::{
        filter,
        identifier::Identifier,
        keyring::{self, Keyring},
        name::UserId,
        password::{self, Memory, Password},
        secret,
        signing_key::{Algorithm, SigningKey, State},
        time::Timestamp,
        token::{AccountClaims, Claims},
        user::User,
    },
    env::{self, Random, SystemClock, SystemRandom},
    store::{
        db::{Attempts, Db, Isolation},
        open::{self, Settings, Target},
        users,
    },
};
use divan::{Bencher, counter::ItemsCount};
use tempfile::TempDir;
use uuid::Uuid;

#[global_allocator]
static ALLOCATIONS: divan::AllocProfiler = divan::AllocProfiler::system();

fn main() {
    divan::main();
}

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const ISSUER: &str = "https://id.example";

/// One lane: the shipped cost, in memory that is used again.
#[divan::bench(sample_count = 20, sample_size = 1)]
fn hash_lane(bencher: Bencher) {
    let cost = Config::default().cost();
    let mut memory = Memory::for_cost(cost).expect("sound parameters");
    bencher.counter(ItemsCount::new(1_u64)).bench_local(|| {
        let password = Password::new("a password of usual length".to_owned());
        password::hash(&password, [1; 16], cost, &[2; 32], &mut memory).expect("hashes")
    });
}

fn keyring(algorithm: Algorithm) -> Keyring {
    let private = env::generate_key(algorithm).expect("a key");
    let (kid, public_jwk) = keyring::public_half(algorithm, &private).expect("a public half");
    let key = SigningKey {
        kid,
        revision: 1,
        algorithm,
        state: State::Active,
        public_jwk,
        private_sealed: Vec::new(),
        create_time: NOW,
        activate_time: Some(NOW),
        retire_time: None,
        revoke_time: None,
    };
    Keyring::new(&[key], |_| Some(private.clone()), 300, NOW).expect("a keyring")
}

fn claims() -> Claims {
    Claims {
        iss: ISSUER.to_owned(),
        sub: Uuid::from_u128(1),
        aud: "orders".to_owned(),
        exp: NOW.seconds() + 300,
        iat: NOW.seconds(),
        jti: Uuid::from_u128(2),
        client_id: Uuid::from_u128(3).to_string(),
        scope: "orders.read orders.write".to_owned(),
        cnf: None,
        account: AccountClaims::SystemAccount {
            credential_id: Uuid::from_u128(4),
        },
    }
}

#[divan::bench(args = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256])]
fn sign(bencher: Bencher, algorithm: Algorithm) {
    let (keyring, claims) = (keyring(algorithm), claims());
    bencher.bench(|| keyring.sign(&claims).expect("signs"));
}

/// What is done with a token that is seen for the first time.
#[divan::bench(args = [Algorithm::Es256, Algorithm::EdDsa, Algorithm::Rs256])]
fn verify(bencher: Bencher, algorithm: Algorithm) {
    let keyring = keyring(algorithm);
    let token = keyring.sign(&claims()).expect("signs");
    bencher.bench(|| keyring.verify(&token, None, ISSUER, NOW).expect("our own"));
}

/// What is done with one that has been seen: its digest, and the cheap half of the check.
#[divan::bench]
fn verify_again(bencher: Bencher) {
    let keyring = keyring(Algorithm::Es256);
    let token = keyring.sign(&claims()).expect("signs");
    let genuine = keyring.verify(&token, None, ISSUER, NOW).expect("our own");
    bencher.bench(|| {
        black_box(secret::sha256(token.as_bytes()));
        let remembered = Some(Arc::clone(&genuine));
        keyring
            .verify(&token, remembered, ISSUER, NOW)
            .expect("good");
    });
}

#[divan::bench(args = ["alice", "Björn.Lindqvist-1987"])]
fn parse_identifier(typed: &str) -> Option<Identifier> {
    Identifier::typed(black_box(typed))
}

#[divan::bench]
fn parse_filter() -> usize {
    let offered = [("state", filter::EQUAL), ("create_time", filter::ORDER)];
    let text = "state = ACTIVE AND create_time > \"2026-01-01T00:00:00Z\"";
    filter::parse(black_box(text), &offered)
        .expect("a filter")
        .len()
}

/// An SQLite with some users, opened as the server does it.
struct Store {
    runtime: tokio::runtime::Runtime,
    db: Db,
    users: Vec<UserId>,
    folder: TempDir,
}

impl Store {
    fn open() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let folder = TempDir::new().expect("a folder");
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let settings = Settings {
            target: Target::Sqlite(folder.path().join("hot.sqlite")),
            max_connections: 4,
            acquire_timeout: Duration::from_secs(5),
            transaction_timeout: Duration::from_secs(5),
        };
        let db = runtime
            .block_on(open::open(&settings, &SystemClock, &random))
            .expect("opens");
        let made: Vec<User> = (0..1000)
            .map(|_| User::new(UserId(random.uuid(NOW)), NOW))
            .collect();
        runtime.block_on(async {
            let mut attempts = Attempts::new(&db, Isolation::ReadCommitted, false);
            let mut tx = attempts.begin().await.expect("begins");
            users::insert_all(&mut tx, &made).await.expect("inserts");
            attempts
                .finish(tx, Ok(()))
                .await
                .expect("no conflict")
                .expect("commits");
        });
        let users = made.iter().map(|user| user.id).collect();
        Self {
            runtime,
            db,
            users,
            folder,
        }
    }
}

/// A user through the seam.
#[divan::bench]
fn read_by_the_seam(bencher: Bencher) {
    let Store {
        runtime,
        db,
        users,
        folder: _folder,
    } = Store::open();
    let mut number = 0;
    bencher.bench_local(|| {
        number += 1;
        runtime.block_on(async {
            let mut db = db.read().await.expect("a connection");
            users::find(&mut db, users[number % users.len()])
                .await
                .expect("works")
                .expect("found")
        })
    });
}

/// The same columns by the bare driver.
#[divan::bench]
fn read_by_the_driver(bencher: Bencher) {
    const TEXT: &str = "SELECT u.id, u.revision, u.state, u.state_reason, u.state_until_time, u.expire_time,
        u.delete_time, u.purge_time, u.username, u.username_key, u.display_name, u.given_name, u.family_name,
        u.language_code, u.time_zone, u.external_ids, u.attributes, u.admin_attributes, u.create_time,
        u.update_time, u.last_sign_in_time FROM users u WHERE u.id = ?1";
    let store = Store::open();
    let file = store.folder.path().join("hot.sqlite");
    let connection = rusqlite::Connection::open(file).expect("opens");
    let mut number = 0;
    bencher.bench_local(|| {
        number += 1;
        let mut statement = connection.prepare_cached(TEXT).expect("SQL");
        let id = store.users[number % store.users.len()];
        let mut rows = statement.query([id.0]).expect("rows");
        let row = rows.next().expect("works").expect("found");
        let values: Vec<rusqlite::types::Value> = (0..21)
            .map(|column| row.get(column).expect("a value"))
            .collect();
        black_box(values)
    });
}

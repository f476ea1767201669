//! Fills a database with made-up users, so that it can be measured at the size it will have.
//!
//! They have usernames, names, and a password hash of the usual length that no password gives. They
//! seem to have come over three years, and are written by the thousand: state and one event for each
//! transaction.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::task::JoinSet;

use crate::{
    config::Config,
    domain::{
        credential::{Credential, Kind},
        error::{Error, Result},
        event::{Actor, Event},
        name::{CredentialId, EventId, UserId},
        password::{self, Memory, Password, PasswordHash},
        time::Timestamp,
        user::User,
        username::Username,
    },
    env::Random,
    setup::{self, Environment, Store},
    store::{
        credentials::{self, Kept},
        db::{Attempts, Db, Isolation},
        events, transact, users,
    },
};

const GIVEN: [&str; 24] = [
    "Amara", "Björn", "Chen", "Dalia", "Emeka", "Farah", "Greta", "Hiro", "Ines", "Jonas", "Kavya",
    "Liam", "Maja", "Noor", "Oskar", "Priya", "Quinn", "Rosa", "Sven", "Tala", "Uma", "Viktor",
    "Wanda", "Yusuf",
];
const FAMILY: [&str; 24] = [
    "Abadi",
    "Bauer",
    "Costa",
    "Dubois",
    "Eriksen",
    "Fischer",
    "Garcia",
    "Haddad",
    "Ivanov",
    "Jansen",
    "Kim",
    "Lindqvist",
    "Moreau",
    "Nguyen",
    "Okafor",
    "Petrov",
    "Rossi",
    "Sato",
    "Tanaka",
    "Ueda",
    "Varga",
    "Weber",
    "Yilmaz",
    "Zhang",
];
/// Users of one transaction.
const BATCH: u64 = 1000;
/// Transactions at once; SQLite takes them one after another.
const WRITERS: usize = 4;
const THREE_YEARS_S: i64 = 3 * 365 * 24 * 3600;

/// Adds users, to those that there are only if `add`; an error is a sentence for the operator.
pub async fn fill(
    config: &Config,
    count: u64,
    add: bool,
    env: &Environment,
) -> std::result::Result<(), String> {
    let _lock = setup::take_folder(config).await?;
    let Store { db, keys } = setup::open_store(config, env).await?;
    if !add && has_users(&db).await.map_err(|error| error.to_string())? {
        return Err(
            "there are users already, and made-up ones are never removed; --add adds to them"
                .to_owned(),
        );
    }
    let hash = unknown_password(config, &*keys.pepper, &*env.random)?;
    let made = Arc::new(Making {
        run: env.random.bytes(),
        end: env.clock.now(),
        random: Arc::clone(&env.random),
        next: AtomicU64::new(0),
        count,
        hash,
    });
    let (db, mut writers) = (Arc::new(db), JoinSet::new());
    for _ in 0..WRITERS {
        let (db, made) = (Arc::clone(&db), Arc::clone(&made));
        writers.spawn(async move {
            while let Some(batch) = made.next_batch()? {
                let credentials: Vec<(Credential, Kept<'_>)> = batch
                    .iter()
                    .map(|user| (made.password(user), Kept::Password(&made.hash)))
                    .collect();
                let event = made.event(&batch);
                let attempts = Attempts::new(&db, Isolation::ReadCommitted, false);
                transact!(
                    attempts,
                    attempts | tx | {
                        users::insert_all(tx, &batch).await?;
                        credentials::insert_all(tx, &credentials).await?;
                        events::append(tx, &event).await?;
                    }
                )?;
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(outcome) = writers.join_next().await {
        outcome
            .map_err(|error| error.to_string())?
            .map_err(|error: Error| error.to_string())?;
    }
    db.close().await;
    Ok(())
}

async fn has_users(db: &Db) -> Result<bool> {
    Ok(users::has_any(&mut db.read().await?).await?)
}

fn unknown_password(
    config: &Config,
    pepper: &[u8],
    random: &dyn Random,
) -> std::result::Result<PasswordHash, String> {
    let password = Password::new(data_encoding::BASE64.encode(&random.bytes::<32>()));
    let mut memory = Memory::for_cost(config.cost())?;
    password::hash(
        &password,
        random.bytes(),
        config.cost(),
        pepper,
        &mut memory,
    )
}

struct Making {
    /// In every username, so that a second run meets nobody of the first.
    run: [u8; 3],
    end: Timestamp,
    random: Arc<dyn Random>,
    next: AtomicU64,
    count: u64,
    hash: PasswordHash,
}

impl Making {
    fn next_batch(&self) -> Result<Option<Vec<User>>> {
        let first = self.next.fetch_add(BATCH, Relaxed);
        let last = self.count.min(first.saturating_add(BATCH));
        let batch = (first < last).then(|| (first..last).map(|number| self.user(number)).collect());
        batch.transpose().map_err(Error::Internal)
    }

    fn user(&self, number: u64) -> Result<User, String> {
        let part = |list: &[&'static str], number: u64| {
            let length = u64::try_from(list.len()).unwrap_or(1);
            list[usize::try_from(number % length).unwrap_or_default()]
        };
        let (given, family) = (part(&GIVEN, number), part(&FAMILY, number / 24));
        let passed =
            i128::from(THREE_YEARS_S) * 1_000_000 * i128::from(number) / i128::from(self.count);
        let begin = self.end.plus_s(-THREE_YEARS_S).micros();
        let time = Timestamp::from_micros(begin + i64::try_from(passed).unwrap_or_default());
        let mut user = User::new(UserId(self.random.uuid(time)), time);
        let run = data_encoding::HEXLOWER.encode(&self.run);
        let username = format!("{given}.{family}.{run}{number:08}");
        user.profile.username = Some(Username::parse(&username)?);
        user.profile.display_name = format!("{given} {family}");
        given.clone_into(&mut user.profile.given_name);
        family.clone_into(&mut user.profile.family_name);
        Ok(user)
    }

    fn password(&self, user: &User) -> Credential {
        let id = CredentialId(self.random.uuid(user.create_time));
        Credential::new(id, user.id.into(), Kind::Password, user.create_time)
    }

    fn event(&self, batch: &[User]) -> Event {
        let id = EventId(self.random.uuid(self.end));
        Event::new(id, "user.filled", Actor::Accountd, self.end).detail("count", batch.len())
    }
}

//! What the decision about a token costs the database: `cargo bench --bench access`.
//!
//! 10,000 groups, ten in one another; 100,000 memberships of people; 100,000 grants, of which each person has
//! 500 through 50 groups. Timed is what IssueToken and CheckAccess ask the database for to decide, beside who it is.

#[path = "../tests/api/postgres.rs"]
mod postgres;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use accountd::{
    domain::{
        error::Result,
        grant::{Grant, Permission},
        group::{Group, Membership},
        name::{GrantId, GroupId, PrincipalId, UserId},
        role::Role,
        scope::{Scope, ScopeName},
        time::{Timestamp, Window},
    },
    env::{Random, SystemClock, SystemRandom},
    store::{
        db::{Attempts, Db, Isolation},
        grants, groups,
        open::{self, Settings, Target},
        roles, scopes,
    },
};
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const CHAINS: usize = 1_000;
const DEPTH: usize = 10;
const PEOPLE: usize = 20_000;
/// Groups that each person is directly in.
const MEMBERSHIPS: usize = 5;
const GRANTS_OF_A_GROUP: usize = 10;
const AUDIENCES: usize = 20;
const SCOPES: usize = 50;
const ROLES: usize = 40;
const BATCH: usize = 500;
const ASKED: usize = 3_000;

/// Runs the block in one transaction.
macro_rules! in_one {
    ($db:expr, |$tx:ident| $body:block) => {{
        let mut attempts = Attempts::new($db, Isolation::ReadCommitted, false);
        let mut write = attempts.begin().await?;
        let $tx = &mut write;
        $body
        attempts.finish(write, Ok(())).await.expect("no conflict")?;
    }};
}

#[tokio::main]
#[expect(clippy::disallowed_macros, reason = "a program that prints")]
async fn main() {
    let folder = TempDir::new().expect("a folder");
    let mut targets = vec![(
        "SQLite",
        Target::Sqlite(folder.path().join("access.sqlite")),
    )];
    if postgres::is_available().await {
        let url = postgres::database().await;
        targets.push(("PostgreSQL", Target::Postgres(url)));
    }
    println!(
        "{:<12}{:<16}{:>10}{:>10}{:>10}{:>10}",
        "", "", "p50 ms", "p90 ms", "p99 ms", "most"
    );
    for (name, target) in targets {
        let settings = Settings {
            target,
            max_connections: 4,
            acquire_timeout: Duration::from_secs(5),
            transaction_timeout: Duration::from_secs(30),
        };
        let random: Arc<dyn Random> = Arc::new(SystemRandom);
        let db = open::open(&settings, &SystemClock, &random)
            .await
            .expect("opens");
        let people = fill(&db, &*random).await.expect("filled");
        for (what, audience) in [("own audience", "accountd"), ("another", "audience-7")] {
            let mut times = Vec::with_capacity(ASKED);
            for number in 0..ASKED + 200 {
                let person = people[number * 7_919 % PEOPLE];
                let begin = Instant::now();
                decide(&db, person, audience).await.expect("decided");
                // The first ones fill caches.
                if number >= 200 {
                    times.push(begin.elapsed().as_secs_f64() * 1e3);
                }
            }
            times.sort_by(f64::total_cmp);
            let at = |per_cent: usize| times[(ASKED - 1) * per_cent / 100];
            let (half, ninety, most) = (at(50), at(90), at(100));
            println!(
                "{name:<12}{what:<16}{half:>10.2}{ninety:>10.2}{:>10.2}{most:>10.2}",
                at(99)
            );
        }
        db.close().await;
    }
}

/// What `mint::entitled` asks for.
async fn decide(db: &Db, person: PrincipalId, audience: &str) -> Result<()> {
    let mut read = db.read().await?;
    let (holdings, _) = grants::holdings_of(&mut read, person, audience, NOW).await?;
    assert!(holdings.grants.len() >= MEMBERSHIPS * DEPTH * 2);
    let held = holdings.held(audience, NOW);
    assert_eq!(held.is_empty(), audience == "accountd");
    Ok(())
}

fn scope(number: usize) -> ScopeName {
    let (audience, scope) = (number % AUDIENCES, number / AUDIENCES % SCOPES);
    ScopeName::parse(&format!("scopes/audience-{audience}:scope-{scope}")).expect("a name")
}

async fn fill(db: &Db, random: &dyn Random) -> Result<Vec<PrincipalId>> {
    let id = || random.uuid(NOW);
    in_one!(db, |tx| {
        for number in 0..AUDIENCES * SCOPES {
            scopes::insert(tx, &Scope::new(scope(number), NOW)).await?;
        }
        for number in 0..ROLES {
            let mut role = Role::new(format!("role-{number}"), NOW);
            role.scopes = (0..10)
                .map(|step| scope(number * 37 + step * 101))
                .collect();
            roles::insert(tx, &role).await?;
        }
    });
    let mut innermost = Vec::new();
    for chunk in 0..CHAINS / 10 {
        let made: Vec<GroupId> = (0..10 * DEPTH).map(|_| GroupId(id())).collect();
        in_one!(db, |tx| {
            for (number, group) in made.iter().enumerate() {
                groups::insert(tx, &Group::new(*group, NOW)).await?;
                if number % DEPTH > 0 {
                    groups::put_member(tx, &membership(made[number - 1], (*group).into())).await?;
                }
                for step in 0..GRANTS_OF_A_GROUP {
                    let any = chunk * 7_919 + number * 31 + step;
                    let permission = if step < 2 {
                        Permission::Role(format!("role-{}", any % ROLES))
                    } else {
                        Permission::Scope(scope(any))
                    };
                    grants::insert(tx, &grant(GrantId(id()), *group, permission)).await?;
                }
            }
        });
        innermost.extend(made.chunks(DEPTH).filter_map(|chain| chain.last().copied()));
    }
    let people: Vec<PrincipalId> = (0..PEOPLE).map(|_| UserId(id()).into()).collect();
    for (chunk, batch) in people.chunks(BATCH).enumerate() {
        in_one!(db, |tx| {
            for (number, person) in batch.iter().enumerate() {
                for step in 0..MEMBERSHIPS {
                    let group = innermost[(chunk * BATCH + number * 13 + step * 211) % CHAINS];
                    groups::put_member(tx, &membership(group, *person)).await?;
                }
            }
        });
    }
    Ok(people)
}

fn membership(group: GroupId, member: PrincipalId) -> Membership {
    Membership {
        group,
        member,
        window: Window::default(),
        added_by: "accountd".to_owned(),
        create_time: NOW,
    }
}

fn grant(id: GrantId, group: GroupId, permission: Permission) -> Grant {
    Grant {
        id,
        revision: 1,
        principal: group.into(),
        permission,
        resource: String::new(),
        reason: "made up".to_owned(),
        granted_by: "accountd".to_owned(),
        create_time: NOW,
        window: Window::default(),
        elevation: None,
        needs_step_up: false,
    }
}

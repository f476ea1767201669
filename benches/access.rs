//! What the decision about a token costs the database: `cargo bench --bench access`.
//!
//! 10,000 groups, ten in one another; 100,000 memberships of people; 100,000 grants, of which each person has
//! 500 through 50 groups. Timed is what IssueToken and CheckAccess ask the database for to decide, beside who it is;
//! and a page of the users in one group, as whoever looks after them gets it.

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
        user::User,
    },
    env::{Random, SystemClock, SystemRandom},
    store::{
        db::{Attempts, Db, Isolation},
        grants, groups,
        open::{self, Settings, Target},
        roles, scopes, users, within,
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
            let times = timed(ASKED, async |number| {
                let person = people[number * 7_919 % PEOPLE];
                decide(&db, person, audience).await
            });
            println!("{name:<12}{what:<16}{}", times.await);
        }
        for members in [1_000, 10_000, 100_000] {
            let group = crowd(&db, &*random, members).await.expect("filled");
            let calls = ASKED / 100;
            let times = timed(calls, async |number| {
                page(&db, group, number % calls * members / calls / 2).await
            });
            println!(
                "{name:<12}{:<16}{}",
                format!("{members} users"),
                times.await
            );
        }
        db.close().await;
    }
}

/// The percentiles of so many calls, after some that fill caches.
async fn timed(calls: usize, call: impl AsyncFn(usize) -> Result<()>) -> String {
    let mut times = Vec::with_capacity(calls);
    let first = calls / 15;
    for number in 0..first + calls {
        let begin = Instant::now();
        call(number).await.expect("answered");
        if number >= first {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |per_cent: usize| times[(calls - 1) * per_cent / 100];
    [50, 90, 99, 100]
        .map(|per_cent| format!("{:>10.2}", at(per_cent)))
        .concat()
}

/// A group with so many users in it.
async fn crowd(db: &Db, random: &dyn Random, members: usize) -> Result<GroupId> {
    let group = GroupId(random.uuid(NOW));
    in_one!(db, |tx| {
        groups::insert(tx, &Group::new(group, NOW)).await?;
    });
    for batch in (0..members).collect::<Vec<_>>().chunks(BATCH) {
        in_one!(db, |tx| {
            for number in batch {
                let time = NOW.plus_s(i64::try_from(*number).expect("few"));
                let user = User::new(UserId(random.uuid(time)), time);
                users::insert(tx, &user).await?;
                groups::put_member(tx, &membership(group, user.id.into())).await?;
            }
        });
    }
    Ok(group)
}

/// The 50 users of a group that come after so many.
async fn page(db: &Db, group: GroupId, after: usize) -> Result<()> {
    let query = users::Query {
        order: users::Order::CreateTime,
        state: None,
        show_deleted: false,
        created: (
            NOW.plus_s(i64::try_from(after).expect("few")),
            Timestamp::MAX,
        ),
        keys: (String::new(), String::new()),
    };
    let mut read = db.read().await?;
    let found = within::users(&mut read, &[group], NOW, &query, None, 51).await?;
    assert_eq!(found.len(), 51);
    Ok(())
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

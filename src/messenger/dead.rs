//! Messages that could not be sent, for operators: what they are, and another try.

use crate::{
    domain::{
        error::Result,
        event::{Actor, Event},
        name::{EventId, MessageId},
    },
    setup::Environment,
    store::{
        db::Db,
        events,
        messages::{self, Dead},
        transact,
    },
};

/// Most messages in a list.
const MAX_LISTED: i64 = 1_000;

/// The last to have failed first.
pub async fn list(db: &Db) -> Result<Vec<Dead>> {
    Ok(messages::list_dead(&mut db.read().await?, MAX_LISTED).await?)
}

/// Has them sent again: all of them that are still of use, or one. How many.
pub async fn redrive(db: &Db, id: Option<MessageId>, env: &Environment) -> Result<u64> {
    let now = env.clock.now();
    let event = EventId(env.random.uuid(now));
    transact!(db, |tx| {
        let count = messages::redrive(tx, id, now).await?;
        if count > 0 {
            let event = Event::new(event, "message.redriven", Actor::Accountd, now);
            events::append(tx, &event.detail("count", count)).await?;
        }
        count
    })
}

//! EventService.

use std::sync::Arc;

use tonic::{Request, Response};

use super::{Reply, call::Call, convert, pb};
use crate::{
    app::App,
    domain::{
        error::{Error, Reason, Result},
        event::Event,
        filter,
        name::AccountId,
        page,
        time::Timestamp,
    },
    store::events::{self, Cursor, Query},
};

pub(super) struct Events {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl pb::event_service_server::EventService for Events {
    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Reply<pb::ListEventsResponse> {
        let (call, request) = Call::enter(&self.app, request).await?;
        let limit = page::size(request.page_size)?;
        let query = query(&request.filter)?;
        let context = call.page_context(&[&request.filter]);
        let after: Option<Cursor> = call.open_page(&context, &request.page_token)?;
        let mut db = call.db().read().await?;
        let rows = events::list(&mut db, &query, after.as_ref(), limit + 1)
            .await
            .map_err(Error::from)?;
        let (rows, next_page_token) = convert::page(&call, &context, rows, limit, Cursor::after)?;
        let events = rows.into_iter().map(shown).collect();
        Ok(Response::new(pb::ListEventsResponse {
            events,
            next_page_token,
        }))
    }
}

fn shown(event: Event) -> pb::Event {
    pb::Event {
        name: event.id.to_string(),
        r#type: event.kind,
        time: Some(convert::timestamp(event.time)),
        rpc: event.rpc,
        actor: event.actor.name(),
        actor_proof: event.actor_proof,
        target: event.target,
        account: event.account.map(|id| id.to_string()).unwrap_or_default(),
        refusal: event.refusal.map_or("", Reason::name).to_owned(),
        changed_fields: event.changed_fields,
        details: event.details,
        request_id: event
            .request_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        ip_address: event.address.map(|ip| ip.to_string()).unwrap_or_default(),
    }
}

/// Which events a list is about.
fn query(filter: &str) -> Result<Query> {
    let offered = &[
        ("type", filter::EQUAL),
        ("actor", filter::EQUAL),
        ("account", filter::EQUAL),
        ("time", filter::ORDER),
    ];
    let mut query = Query {
        kind: None,
        actor: None,
        account: None,
        time: (Timestamp::EPOCH, Timestamp::MAX),
    };
    let expected = "users/{uid} or systemAccounts/{uid}";
    for term in filter::parse(filter, offered)? {
        match term.field {
            "type" => query.kind = Some(term.value),
            "actor" => {
                query.actor = Some(filter::value(
                    &term,
                    AccountId::parse(&term.value),
                    expected,
                )?);
            }
            "account" => {
                query.account = Some(filter::value(
                    &term,
                    AccountId::parse(&term.value),
                    expected,
                )?);
            }
            _ => filter::bound(&term, &mut query.time)?,
        }
    }
    Ok(query)
}

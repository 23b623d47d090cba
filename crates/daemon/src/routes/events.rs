//! What happened, one JSON object per line.

use super::body::Options;
use super::error::Failure;
use crate::fleet::{Fleet, FleetError};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use futures_util::stream::try_unfold;
use pando_wire::api::Event;
use serde::Deserialize;
use utoipa::IntoParams;

/// How many events are read at a time.
const BATCH: i64 = 256;

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct EventOptions {
    /// Only those behind this number.
    #[serde(default)]
    after: i64,
    /// Go on with those that are yet to come.
    #[serde(default)]
    follow: bool,
}

/// What happened to VMs, oldest first, one JSON object per line. Only the last 10 000 events are kept.
#[utoipa::path(
    get,
    path = "/events",
    params(EventOptions),
    responses((status = 200, body = Event, content_type = "application/x-ndjson"))
)]
pub(super) async fn list(
    State(fleet): State<Fleet>,
    Options(options): Options<EventOptions>,
) -> Result<impl IntoResponse, Failure> {
    let newest = fleet.newest_event();
    let batches = try_unfold((fleet, newest, options.after), move |(fleet, mut newest, after)| async move {
        loop {
            let seen = *newest.borrow_and_update();
            let events = fleet.events(after, BATCH).await?;
            if let Some(last) = events.last() {
                let after = last.seq;
                return Ok::<_, FleetError>(Some((lines(&events), (fleet, newest, after))));
            }
            if !options.follow {
                return Ok(None);
            }
            let mut shutdown = fleet.shutdown();
            tokio::select! {
                newer = newest.wait_for(|newest| *newest > seen) => if newer.is_err() { return Ok(None) },
                _ = shutdown.wait_for(|over| *over) => return Ok(None),
            }
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(batches)))
}

fn lines(events: &[Event]) -> Bytes {
    let mut lines = Vec::new();
    for event in events {
        // Numbers and strings always have a JSON form.
        if serde_json::to_writer(&mut lines, event).is_ok() {
            lines.push(b'\n');
        }
    }
    lines.into()
}

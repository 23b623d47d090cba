//! The connection to a guest that a client's last request went over, for its next one: a new one costs the guest more than
//! most answers do.
//!
//! *Invariants.* It belongs to one connection of one client, so no answer reaches somebody else. Only requests that may be
//! made twice go over it, as whoever listens may end it while the next one is on its way (RFC 9112, 9.3.1); what fails on it
//! is made again on a new one. Nobody is in the VM for its sake.

use super::exchange::Connection;
use hyper::Method;
use hyper::body::{Body, Incoming};
use hyper::http::request::Parts;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

/// How many wait for a next request at a time, of all clients.
pub(super) const MAX_KEPT: usize = 256;
/// How long one does, at least, and a quarter more at most. Servers of a guest end theirs after 5 s (Node.js) or more.
const WAIT: Duration = Duration::from_secs(4);

/// Where one client's is while no request is under way.
#[derive(Debug)]
pub(super) struct Kept {
    waiting: Mutex<Option<Waiting>>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Waiting {
    connection: Connection,
    goes_to: Goal,
    since: Instant,
    _place: OwnedSemaphorePermit,
}

/// A VM's id, and a port of it.
pub(super) type Goal = (String, u16);

impl Kept {
    /// One client's, of those that have `room` together.
    pub(super) fn new(room: Arc<Semaphore>) -> Self {
        Self { waiting: Mutex::new(None), room }
    }

    /// The connection that goes there, if there is one. One that goes elsewhere ends.
    pub(super) fn take(&self, goal: &Goal) -> Option<Connection> {
        let waiting = self.lock().take()?;
        (waiting.goes_to == *goal && !waiting.connection.has_ended()).then_some(waiting.connection)
    }

    /// Ends what waits for too long, for ever.
    pub(super) async fn tire(&self) -> Infallible {
        loop {
            sleep(WAIT / 4).await;
            let mut waiting = self.lock();
            if waiting.as_ref().is_some_and(|waiting| waiting.since.elapsed() >= WAIT) {
                *waiting = None;
            }
        }
    }

    fn put(&self, connection: Connection, goes_to: Goal) {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else { return };
        *self.lock() = Some(Waiting { connection, goes_to, since: Instant::now(), _place: place });
    }

    fn lock(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that carries an answer.
#[derive(Debug)]
pub(super) struct Lease {
    /// Absent once it was given back.
    connection: Option<Connection>,
    back_to: Option<(Arc<Kept>, Goal)>,
}

impl Lease {
    /// Of a connection that ends with its answer, unless it goes back.
    pub(super) fn new(connection: Connection, back_to: Option<(Arc<Kept>, Goal)>) -> Self {
        Self { connection: Some(connection), back_to }
    }

    /// The answer is through.
    pub(super) fn end(&mut self) {
        if let (Some((kept, goal)), Some(connection)) = (self.back_to.take(), self.connection.take()) {
            kept.put(connection, goal);
        }
    }
}

/// Whether a request may be made twice, and from its head alone.
pub(super) fn is_repeatable(parts: &Parts, body: &Incoming) -> bool {
    matches!(parts.method, Method::GET | Method::HEAD) && body.is_end_stream()
}

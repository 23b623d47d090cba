//! A connection to what listens in a VM, or soon will.

use crate::fleet::{Fleet, FleetError, Visit};
use pando_wire::api::State;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::time::sleep;

/// How long is waited for somebody to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);
/// Between two attempts, at first and at last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// A connection to `port` of VM `id`, as soon as somebody listens, and that somebody is in the VM. One that sleeps is woken.
///
/// # Errors
///
/// Fails at once where the VM has to be started first, and after [`LISTEN_LIMIT`] where it is starting or nobody listens.
pub(crate) async fn reach(fleet: &Fleet, id: &str, port: u16) -> Result<(UnixStream, Visit), FleetError> {
    let (mut deadline, mut pause) = (None, PAUSES.0);
    loop {
        let error = match fleet.connect(id, port).await {
            Ok((stream, _, visit)) => return Ok((stream, visit)),
            Err(error) => error,
        };
        let is_soon = matches!(error, FleetError::NobodyListens { .. } | FleetError::State { is: State::Starting, .. });
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + LISTEN_LIMIT);
        if !is_soon || Instant::now() + pause > deadline {
            return Err(error);
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(PAUSES.1);
    }
}

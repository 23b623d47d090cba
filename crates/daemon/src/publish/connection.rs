//! One connection: to the guest as soon as somebody listens there, bytes both ways, and how that ends.

use super::client::Client;
use crate::fleet::Fleet;
use crate::stream::{Upstream, reach, relay};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::sleep;

/// Connections at a time, of all published ports together.
pub(super) const MAX_CONNECTIONS: usize = 2000;
/// How long connections that are under way may go on when the daemon ends, and how long they may be quiet meanwhile.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const QUIET_LIMIT: Duration = Duration::from_millis(500);

/// Carries what `client` says to `port` of VM `id`, and back. Where that does not end well, the client sees a reset.
pub(super) async fn carry(mut client: Client, fleet: Fleet, id: String, port: u16) {
    let carried = AtomicU64::new(0);
    let ending = fleet.shutdown();
    let outcome = tokio::select! {
        outcome = converse(&mut client, &fleet, &id, port, &carried) => outcome,
        () = quiet_at_the_end(ending, &carried) => Err(io::Error::other("the daemon ends")),
    };
    let ended = match outcome {
        Ok(()) => client.finish().await,
        Err(error) => Err(error), // Dropped, it is reset.
    };
    if let Err(error) = ended {
        tracing::debug!(vm = id, port, %error, "a connection to a published port broke");
    }
}

async fn converse(client: &mut Client, fleet: &Fleet, id: &str, port: u16, carried: &AtomicU64) -> io::Result<()> {
    let reached = reach(fleet, id, port).await;
    let (stream, visit) = reached.map_err(|error| io::Error::other(error.in_one_line()))?;
    drop(visit); // From here on, what is carried is a use.
    let mut upstream = Upstream::new(stream);
    relay(&mut *client, &mut upstream, || {
        carried.fetch_add(1, Ordering::Relaxed);
        fleet.note_use(id);
    })
    .await?;
    // Behind our own end, the guest's looks the same whether it had said everything or died.
    if client.waits_for_end() && !fleet.is_up(id).await {
        return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the VM ended"));
    }
    Ok(())
}

/// Comes back when the daemon ends, and nothing was carried for a while or it takes too long.
async fn quiet_at_the_end(mut ending: watch::Receiver<bool>, carried: &AtomicU64) {
    let _ = ending.wait_for(|ends| *ends).await;
    let deadline = Instant::now() + DRAIN_LIMIT;
    let mut before = None;
    while Instant::now() < deadline {
        let now = Some(carried.load(Ordering::Relaxed));
        if std::mem::replace(&mut before, now) == now {
            return;
        }
        sleep(QUIET_LIMIT).await;
    }
}

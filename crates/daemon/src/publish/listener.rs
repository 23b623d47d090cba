//! Connections in, and how many there may be.

use super::bind::{Bound, bind};
use super::board::Problem;
use super::client::Client;
use super::connection;
use crate::fleet::Fleet;
use pando_wire::api::Publish;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How soon it is tried again to listen on a port that another has.
const BIND_PAUSE: Duration = Duration::from_secs(5);
/// How soon it is tried again to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One published port.
pub(super) struct Listener {
    pub(super) fleet: Fleet,
    /// Of the VM.
    pub(super) id: String,
    pub(super) port: Publish,
    pub(super) problem: Problem,
    /// A place for each connection of this daemon.
    pub(super) room: Arc<Semaphore>,
}

impl Listener {
    /// Serves the port until the daemon is told to end, and connections that are under way then for a moment more.
    pub(super) async fn serve(self, bound: Bound) {
        let mut ending = self.fleet.shutdown();
        let mut clients = JoinSet::new();
        tokio::select! {
            _ = ending.wait_for(|ends| *ends) => (),
            () = self.accept_all(bound, &mut clients) => (), // It never ends.
        }
        // Each knows that the daemon ends.
        while clients.join_next().await.is_some() {}
    }

    async fn accept_all(&self, bound: Bound, clients: &mut JoinSet<()>) {
        let listener = self.listen(bound).await;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = clients.join_next() => continue,
            };
            let client = match accepted {
                Ok((stream, _)) => Client::new(stream),
                Err(error) => {
                    // Most likely no descriptors are left. Connections that end give some back.
                    tracing::warn!(vm = self.id, %error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Dropped, it is reset.
            let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else { continue };
            let carried = connection::carry(client, self.fleet.clone(), self.id.clone(), self.port.guest_port);
            clients.spawn(async move {
                carried.await;
                drop(place);
            });
        }
    }

    /// What listens on the port, as soon as that is possible.
    async fn listen(&self, mut bound: Bound) -> TcpListener {
        if let Some(problem) = bound.problem() {
            tracing::warn!(vm = self.id, "a port is not published: {problem}");
        }
        loop {
            self.problem.set(bound.problem());
            if let Ok(listener) = bound.listener {
                let Publish { address, host_port, guest_port } = bound.port;
                tracing::info!(vm = self.id, %address, host_port, guest_port, "published");
                return listener;
            }
            sleep(BIND_PAUSE).await;
            bound = bind(self.port).await;
        }
    }
}

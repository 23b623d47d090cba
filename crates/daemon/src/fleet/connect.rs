//! A connection to what listens in a VM, over its agent: no network is needed for it.

use super::error::FleetError;
use super::presence::Visit;
use super::{AGENT_LIMIT, Fleet};
use crate::agent::{Agent, AgentError};
use pando_wire::agent::{FailureKind, Request, UNREADABLE};
use tokio::net::UnixStream;

impl Fleet {
    /// A connection to what listens on `port` in the VM of this name or id, which is woken if it sleeps: bytes both ways,
    /// and halves that end by themselves. With the VM's id, and that somebody is in it; it may fall asleep all the same
    /// if somebody wants that, and then the connection breaks.
    ///
    /// One that breaks ends both halves at once: see [`Request::Connect`].
    pub(crate) async fn connect(&self, name: &str, port: u16) -> Result<(UnixStream, String, Visit), FleetError> {
        let (record, mut visit) = self.enter(name, "connect to").await?;
        let socket = self.0.paths.vsock_socket(&record.id);
        let connected = Agent::order(&socket, &Request::Connect { port }, AGENT_LIMIT).await;
        visit.is_heard();
        match connected {
            Ok(agent) => Ok((agent.into_stream(), record.id, visit)),
            Err(source) => Err(not_connected(record.name, port, source)),
        }
    }

    /// That somebody is in the VM of this id, by a connection that there is already: one that sleeps is woken, and has lost it.
    pub(crate) async fn visit(&self, id: &str) -> Result<Visit, FleetError> {
        let (_, mut visit) = self.enter(id, "connect to").await?;
        visit.is_heard();
        Ok(visit)
    }

    /// Whether the VM of this id can be reached: it has neither ended nor fallen asleep. That is no reason to wake it.
    pub(crate) async fn is_up(&self, id: &str) -> bool {
        let _visit = self.0.presence.enter(id).await;
        Agent::ask(&self.0.paths.vsock_socket(id), &Request::Ping, AGENT_LIMIT).await.is_ok()
    }

    /// Notes that the VM of this id is used just now, by who is not in it.
    pub(crate) fn note_use(&self, id: &str) {
        self.0.presence.note(id);
    }
}

fn not_connected(name: String, port: u16, source: AgentError) -> FleetError {
    match source {
        AgentError::Failed(failure) if failure.kind == FailureKind::NotFound => {
            FleetError::NobodyListens { name, port }
        }
        AgentError::Failed(failure) if failure.message.starts_with(&format!("cannot {UNREADABLE}")) => {
            FleetError::OldAgent { name }
        }
        AgentError::Failed(_) => FleetError::Guest { name, source },
        _ => FleetError::Agent { name, source },
    }
}

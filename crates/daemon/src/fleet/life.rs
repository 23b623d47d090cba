//! What happens to a VM between its start and its removal.

use super::error::{FleetError, cannot};
use super::{Fleet, blocking, wrong_state};
use crate::agent::Agent;
use crate::db::{Change, Record};
use crate::monitor::Monitor;
use crate::paths;
use pando_wire::agent::Request as AgentRequest;
use pando_wire::api::{State, Vm};
use pando_wire::control::Request;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long removing a VM waits for an operation that still goes on, once the VM is dead.
const TURN_LIMIT: Duration = Duration::from_secs(30);

impl Fleet {
    /// Makes a VM stand still. One that sleeps is woken for that.
    pub(crate) async fn pause(&self, name: &str) -> Result<Vm, FleetError> {
        let (vm, _turn) = self.awake(name).await?;
        self.shift(vm, State::Running, "pause", &Request::Pause, Change::Paused).await
    }

    /// Makes a VM go on.
    pub(crate) async fn resume(&self, name: &str) -> Result<Vm, FleetError> {
        let id = self.find(name).await?.id;
        let _turn = self.0.turns.vm(&id).await;
        self.shift(self.find(&id).await?, State::Paused, "resume", &Request::Resume, Change::Resumed).await
    }

    /// Has `record`, whose turn it is, go from one state to another.
    async fn shift(
        &self,
        record: Record,
        from: State,
        wanted: &'static str,
        request: &Request,
        change: Change<'_>,
    ) -> Result<Vm, FleetError> {
        if record.state != from {
            return Err(wrong_state(&record, wanted));
        }
        self.order(&record, wanted, request).await?;
        if !self.0.db.change(&record.id, record.epoch, change).await? {
            // It ended just then.
            return Err(wrong_state(&self.find(&record.id).await?, wanted));
        }
        self.get(&record.id).await
    }

    /// Asks a guest to power off, and ends it when it has not after `limit`. One that sleeps is woken for that: only it can
    /// write what it has not written yet.
    pub(crate) async fn stop(&self, name: &str, limit: Duration) -> Result<Vm, FleetError> {
        let (record, _turn) = self.awake(name).await?;
        let id = record.id.clone();
        let Some(live) = self.0.supervisor.live(&id) else { return Err(wrong_state(&record, "stop")) };
        let deadline = Instant::now() + limit;
        if record.state == State::Paused {
            // A guest that stands still cannot power off.
            self.order(&record, "resume", &Request::Resume).await?;
            self.0.db.change(&id, record.epoch, Change::Resumed).await?;
        }
        let socket = self.0.paths.vsock_socket(&id);
        let polite = async {
            match Agent::order(&socket, &AgentRequest::PowerOff, limit).await {
                Ok(_) => live.ended().await,
                Err(error) => {
                    tracing::info!(vm = id, %error, "cannot ask the guest to power off");
                    String::new()
                }
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let is_over = timeout(left, polite).await.is_ok_and(|ending| !ending.is_empty());
        if !is_over {
            self.0.supervisor.kill(&id).await;
        }
        self.get(&id).await
    }

    /// Ends a VM now. Does not wait for its turn, so that an operation which hangs can be ended too.
    pub(crate) async fn kill(&self, name: &str) -> Result<Vm, FleetError> {
        let record = self.find(name).await?;
        if self.0.supervisor.kill(&record.id).await.is_none() {
            self.kill_silent(&record.id).await?;
        }
        self.get(&record.id).await
    }

    /// Ends a VM whose monitor does not answer, and which therefore nobody looks after.
    async fn kill_silent(&self, id: &str) -> Result<(), FleetError> {
        let record = self.find(id).await?;
        let Ok(_turn) = timeout(Duration::from_secs(1), self.0.turns.vm(id)).await else {
            return Err(wrong_state(&record, "kill"));
        };
        let record = self.find(id).await?;
        let is_silent = !record.state.is_at_rest() && self.0.supervisor.live(id).is_none();
        if !is_silent {
            return Err(wrong_state(&record, "kill"));
        }
        self.0.supervisor.evict(id, record.layer()).await.map_err(cannot(format!("end {}", record.name)))?;
        self.0.supervisor.sweep(id).await;
        self.0.db.change(id, record.epoch, Change::Stopped { ending: "killed" }).await?;
        Ok(())
    }

    /// Removes a VM: a stopped one, or with `force` any. The layers of its disk stay while a descendant needs them.
    pub(crate) async fn remove(&self, name: &str, force: bool) -> Result<(), FleetError> {
        let record = self.find(name).await?;
        if record.state != State::Stopped && !force {
            return Err(wrong_state(&record, "remove"));
        }
        // An operation that goes on fails once the VM is dead, and only then is it our turn.
        let deadline = Instant::now() + TURN_LIMIT;
        let _turn = loop {
            if force {
                self.0.supervisor.kill(&record.id).await;
            }
            match timeout(Duration::from_millis(100), self.0.turns.vm(&record.id)).await {
                Ok(turn) => break turn,
                Err(_) if Instant::now() < deadline => (),
                Err(_) => return Err(wrong_state(&self.find(&record.id).await?, "remove")),
            }
        };
        // One that did not come to life was removed by whoever had the turn before.
        let Some(record) = self.0.db.vm(&record.id).await? else { return Ok(()) };
        if self.0.supervisor.live(&record.id).is_some() && !force {
            return Err(wrong_state(&record, "remove"));
        }
        // It may have been started while we waited.
        self.0.supervisor.kill(&record.id).await;
        self.erase(&record).await
    }

    /// Removes what there is of a VM that does not run.
    pub(super) async fn erase(&self, record: &Record) -> Result<(), FleetError> {
        self.0.supervisor.evict(&record.id, record.layer()).await.map_err(cannot(format!("end {}", record.name)))?;
        self.0.supervisor.sweep(&record.id).await;
        let unused = self.0.db.remove_vm(&record.id, record.epoch, &record.name).await?;
        self.close_ports(&record.id).await;
        self.0.lessons.forget(&record.id);
        self.forget_sleep(record).await?;
        let (paths, id) = (self.0.paths.clone(), record.id.clone());
        blocking(move || {
            let layers = unused.iter().map(|layer| paths.layer(layer));
            for dir in [paths.vm(&id)].into_iter().chain(layers) {
                paths::remove(&dir).map_err(cannot(format!("remove {}", dir.display())))?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn order(
        &self,
        record: &Record,
        wanted: &'static str,
        request: &Request,
    ) -> Result<(), FleetError> {
        let path = self.0.paths.control_socket(&record.id);
        let ordered = async { Monitor::connect(&path)?.order(request).await };
        ordered.await.map_err(|source| FleetError::Monitor { name: record.name.clone(), wanted, source })
    }
}

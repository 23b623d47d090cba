//! Finding the VMs of an earlier daemon: they outlive it.

use super::error::{FleetError, cannot};
use super::guest::identity;
use super::{Fleet, blocking};
use crate::agent::{Agent, AgentError};
use crate::db::{Change, Record};
use crate::monitor::Monitor;
use crate::paths;
use crate::supervisor::{DIED, Process};
use futures_util::future::join_all;
use pando_wire::agent::Request as AgentRequest;
use pando_wire::api::State;
use pando_wire::control::{Phase, Request, Status};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a monitor may take to say that it is there.
const STATUS_LIMIT: Duration = Duration::from_secs(5);
/// How long the guest of a VM that was starting when the daemon ended may still take.
const START_LIMIT: Duration = Duration::from_secs(120);

impl Fleet {
    /// Takes over every VM whose monitor still runs, writes down the end of the others, and removes files that belong
    /// to no VM (an earlier daemon may have died between one step and the next).
    pub(crate) async fn adopt(&self) -> Result<(), FleetError> {
        let records = self.0.db.vms().await?;
        let ids: HashSet<_> = records.iter().map(|record| record.id.clone()).collect();
        let layers: HashSet<_> = self.0.db.all_layers().await?.into_iter().collect();
        let paths = self.0.paths.clone();
        blocking(move || {
            let all = [(paths.all_vms(), &ids), (paths.all_sockets(), &ids), (paths.all_layers(), &layers)];
            for (dir, known) in all {
                for stray in strays(&dir, known)? {
                    tracing::info!(path = %stray.display(), "removing what belongs to no VM");
                    paths::remove(&stray).map_err(cannot(format!("remove {}", stray.display())))?;
                }
            }
            Ok(())
        })
        .await?;
        let running = records.into_iter().filter(|record| record.state != State::Stopped);
        join_all(running.map(|record| self.adopt_vm(record))).await.into_iter().collect()
    }

    async fn adopt_vm(&self, record: Record) -> Result<(), FleetError> {
        let Record { id, epoch, .. } = &record;
        let Some(status) = self.take_over(&record).await else {
            self.0.supervisor.sweep(id).await;
            self.0.db.change(id, *epoch, Change::Stopped { ending: DIED }).await?;
            tracing::info!(vm = id, name = record.name, "its monitor is gone");
            return Ok(());
        };
        tracing::info!(vm = id, name = record.name, pid = status.pid, "adopted");
        self.0.db.change(id, *epoch, Change::Monitored { pid: status.pid }).await?;
        match (record.state, status.phase) {
            (State::Running, Phase::Paused) => {
                self.0.db.change(id, *epoch, Change::Paused).await?;
            }
            (State::Paused, Phase::Running) => {
                self.0.db.change(id, *epoch, Change::Resumed).await?;
            }
            (State::Starting, _) => {
                tokio::spawn(self.clone().finish_start(record));
            }
            // As it was.
            _ => (),
        }
        Ok(())
    }

    /// Begins to look after the monitor of `record`. `None` when there is none; one that is there and does not answer
    /// is ended.
    async fn take_over(&self, record: &Record) -> Option<Status> {
        let monitor = Monitor::connect(&self.0.paths.control_socket(&record.id)).ok()?;
        let asked = async {
            let status = monitor.status().await.ok()?;
            if status.phase == Phase::Created {
                // The earlier daemon died before it could tell this one what to be.
                let _ = monitor.order(&Request::Kill).await;
                return None;
            }
            let process = Process::hold(status.pid).ok()?;
            let monitor = Arc::new(monitor);
            monitor.send(&Request::Watch, &[]).await.ok()?;
            self.0.supervisor.supervise(&record.id, record.epoch, process, monitor);
            Some(status)
        };
        let status = timeout(STATUS_LIMIT, asked).await.ok().flatten();
        if status.is_none()
            && let Some(pid) = record.pid
            // Somebody listens on its socket, so it lives, and its number is still its own.
            && let Ok(process) = Process::hold(pid)
        {
            tracing::warn!(vm = record.id, pid, "its monitor does not answer and is killed");
            process.kill();
        }
        status
    }

    /// Does what the earlier daemon would have done for a VM that it was starting when it ended.
    async fn finish_start(self, record: Record) {
        let _turn = self.0.turns.vm(&record.id).await;
        let socket = self.0.paths.vsock_socket(&record.id);
        let finished = async {
            Agent::reach(&socket, &AgentRequest::Ping, START_LIMIT).await?;
            if record.parent.is_some() {
                // It may not have been told yet that it is not its parent; to be told twice does no harm.
                Agent::order(&socket, &AgentRequest::Adopt(identity(&record)), START_LIMIT).await?;
            }
            Ok::<_, AgentError>(())
        };
        if let Err(error) = finished.await {
            tracing::warn!(vm = record.id, %error, "it does not finish its start");
            self.0.supervisor.kill(&record.id).await;
            return;
        }
        if let Err(error) = self.0.db.change(&record.id, record.epoch, Change::Running { detail: "adopted" }).await {
            tracing::error!(vm = record.id, %error, "cannot write down that it runs");
        }
    }
}

/// The entries of `dir` that are not in `known`.
fn strays(dir: &Path, known: &HashSet<String>) -> Result<Vec<PathBuf>, FleetError> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let is_known = entry.file_name().to_str().is_some_and(|name| known.contains(name));
            if !is_known {
                strays.push(entry.path());
            }
        }
        Ok(strays)
    };
    list().map_err(cannot(format!("read {}", dir.display())))
}

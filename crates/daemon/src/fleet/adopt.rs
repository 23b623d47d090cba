//! Finding the VMs of an earlier daemon: they outlive it.

use super::boot::{BOOT_LIMIT, random};
use super::error::{FleetError, cannot};
use super::guest::identity;
use super::{Fleet, blocking, files};
use crate::agent::Agent;
use crate::db::{Change, Record};
use crate::monitor::{Monitor, MonitorError};
use crate::paths;
use crate::supervisor::{DIED, Process};
use futures_util::future::join_all;
use pando_wire::agent::Request as AgentRequest;
use pando_wire::api::State;
use pando_wire::control::{Phase, Request, Status};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long a monitor may take to say that it is there.
const STATUS_LIMIT: Duration = Duration::from_secs(2);
/// Between two attempts to reach one that does not, at first and at last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

impl Fleet {
    /// Takes over every VM whose monitor still runs, writes down the end of the others, and removes files that belong
    /// to no VM (an earlier daemon may have died between one step and the next).
    pub(crate) async fn adopt(&self) -> Result<(), FleetError> {
        let records = self.0.db.vms().await?;
        let ids: HashSet<_> = records.iter().map(|record| record.id.clone()).collect();
        let seeds = self.0.db.checkpoints().await?.into_iter().map(|checkpoint| checkpoint.id);
        let sleeps = self.0.db.sleeps().await?;
        let sockets = ids.iter().cloned().chain(seeds).chain(sleeps).collect();
        let layers: HashSet<_> = self.0.db.all_layers().await?.into_iter().collect();
        let images = self.0.db.images().await?.into_iter().map(|image| format!("{}.ext4", image.digest)).collect();
        let paths = self.0.paths.clone();
        blocking(move || {
            let all = [
                (paths.all_vms(), &ids),
                (paths.all_sockets(), &sockets),
                (paths.all_layers(), &layers),
                (paths.images(), &images),
            ];
            for (dir, known) in all {
                for stray in strays(&dir, known)? {
                    tracing::info!(path = %stray.display(), "removing what belongs to no VM");
                    paths::remove(&stray).map_err(cannot(format!("remove {}", stray.display())))?;
                }
            }
            Ok(())
        })
        .await?;
        self.0.supervisor.sweep_groups();
        self.adopt_networks().await?;
        self.adopt_checkpoints().await?;
        for record in &records {
            self.settle_sleep(record).await?;
        }
        self.adopt_ports(&records).await?;
        let running = records.into_iter().filter(|record| !record.state.is_at_rest());
        join_all(running.map(|record| self.settle(record))).await.into_iter().collect()
    }

    /// Finds out about one VM, now or, where its monitor does not answer or is of another build, in the background.
    async fn settle(&self, record: Record) -> Result<(), FleetError> {
        if !self.adopt_vm(&record).await? {
            tracing::warn!(
                vm = record.id,
                name = record.name,
                "it cannot be taken over yet; its monitor is asked again"
            );
            tokio::spawn(self.clone().ask_again(record.id));
        }
        Ok(())
    }

    /// Asks the monitor of VM `id` until it answers in our language, or until that no longer matters.
    async fn ask_again(self, id: String) {
        let mut closing = self.0.closing.clone();
        let mut pause = PAUSES.0;
        loop {
            tokio::select! {
                () = sleep(pause) => (),
                _ = closing.wait_for(|over| *over) => return,
            }
            pause = (pause * 2).min(PAUSES.1);
            let _turn = self.0.turns.vm(&id).await;
            let adopted = match self.0.db.vm(&id).await {
                Ok(Some(record)) if !record.state.is_at_rest() => self.adopt_vm(&record).await,
                Ok(_) => return, // It was killed or removed.
                Err(error) => Err(error.into()),
            };
            match adopted {
                Ok(true) => return,
                Ok(false) => (),
                Err(error) => tracing::error!(vm = id, error = error.in_one_line(), "cannot take it over"),
            }
        }
    }

    /// Takes over one VM, or puts away what is left of it. The answer is whether that was possible.
    async fn adopt_vm(&self, record: &Record) -> Result<bool, FleetError> {
        let Record { id, epoch, .. } = record;
        let status = match self.take_over(record).await {
            Found::Silent => return Ok(false),
            Found::Gone => return self.put_away(record).await,
            Found::Unborn => {
                self.0.supervisor.end_unknown(id).await;
                return self.put_away(record).await;
            }
            Found::Foreign(version) => {
                if self.0.foreign.note(id, version) {
                    tracing::warn!(vm = id, name = record.name, version, "another build's monitor is left alone");
                }
                return Ok(false);
            }
            Found::Alive(status) => status,
        };
        if record.is_to_wake() {
            // It was being woken, and stands still since: nobody was told, and it sleeps on.
            return Ok(self.0.supervisor.kill(id).await.is_some());
        }
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
                tokio::spawn(self.clone().finish_start(record.clone()));
            }
            // As it was.
            _ => (),
        }
        Ok(true)
    }

    /// Writes down the end of a VM whose monitor is gone. One that never ran and wrote nothing is removed: the daemon
    /// died while it made it, so nobody was ever told of it, and it could not be started.
    async fn put_away(&self, record: &Record) -> Result<bool, FleetError> {
        let id = &record.id;
        // Its socket is not all that a monitor is.
        if let Err(error) = self.0.supervisor.evict(id, record.layer()).await {
            tracing::error!(vm = id, %error, "its monitor cannot be ended");
            return Ok(false);
        }
        self.0.foreign.forget(id);
        if record.state == State::Starting
            && !self.0.db.has_run(id).await?
            && !files::has_disk(&self.0.paths, record.layer())
        {
            tracing::info!(vm = id, name = record.name, "it never came to life and is removed");
            self.erase(record).await?;
            return Ok(true);
        }
        self.0.supervisor.sweep(id).await;
        self.0.db.change(id, record.epoch, Change::Stopped { ending: DIED }).await?;
        tracing::info!(vm = id, name = record.name, "its monitor is gone");
        Ok(true)
    }

    /// Begins to look after the monitor of `record`, if it answers.
    async fn take_over(&self, record: &Record) -> Found {
        let monitor = match Monitor::connect(&self.0.paths.control_socket(&record.id)) {
            Ok(monitor) => Arc::new(monitor),
            // Nobody listens. Whatever else can be wrong (no descriptor left, a full queue) says nothing about it.
            Err(MonitorError::Connect(error))
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Found::Gone;
            }
            Err(_) => return Found::Silent,
        };
        let asked = async {
            let status = monitor.status().await?;
            if status.phase == Phase::Created {
                return Ok(Found::Unborn);
            }
            monitor.send(&Request::Watch, &[]).await?;
            let process = Process::hold(status.pid).map_err(MonitorError::Process)?;
            let (live, _) = self.0.supervisor.supervise(&record.id, record.epoch, process, Arc::clone(&monitor));
            live.set_arrives(true); // It may have woken just before, and is asked once.
            Ok::<_, MonitorError>(Found::Alive(status))
        };
        match timeout(STATUS_LIMIT, asked).await {
            Ok(Ok(found)) => found,
            Ok(Err(MonitorError::Version(version))) => Found::Foreign(version),
            Ok(Err(_)) | Err(_) => Found::Silent,
        }
    }

    /// Does what the earlier daemon would have done for a VM that it was starting when it ended.
    async fn finish_start(self, record: Record) {
        let _turn = self.0.turns.vm(&record.id).await;
        let socket = self.0.paths.vsock_socket(&record.id);
        let unfinished = |source| FleetError::Agent { name: record.name.clone(), source };
        let finished = async {
            if record.sleep.is_some() {
                // The earlier daemon may have written down that it runs, and no more.
                self.order(&record, "wake", &Request::Resume).await?;
            }
            Agent::reach(&socket, &AgentRequest::Ping, BOOT_LIMIT).await.map_err(unfinished)?;
            self.set_clock(&record).await?;
            if record.generation > 0 || record.sleep.is_some() {
                // It may not have been told yet that it is another one's twin, or that it slept; to be told twice does no harm.
                Agent::adopt(&socket, identity(&record), random()?, BOOT_LIMIT).await.map_err(unfinished)?;
            }
            Ok::<_, FleetError>(())
        };
        if let Err(error) = finished.await {
            tracing::warn!(vm = record.id, error = error.in_one_line(), "it does not finish its start");
            self.0.supervisor.kill(&record.id).await;
            return;
        }
        if let Err(error) = self.0.db.change(&record.id, record.epoch, Change::Running { detail: "adopted" }).await {
            tracing::error!(vm = record.id, %error, "cannot write down that it runs");
        }
    }
}

/// What became of a monitor.
enum Found {
    /// It runs, and is looked after.
    Alive(Status),
    /// It waits to be told what to be: the earlier daemon died before it could.
    Unborn,
    /// Nobody listens on its socket.
    Gone,
    /// It is there, and does not answer in time.
    Silent,
    /// It speaks this other version, and is left alone: the daemon that it belongs to can take it over.
    Foreign(u32),
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

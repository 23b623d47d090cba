//! A VM that sleeps in the store comes back: the same one, in a fresh monitor.
//!
//! ```text
//! Hibernated ─► Starting ─► monitor has it all, stands still ─► written down: it left its sleep ─► resume ─► Running
//!                  └─────────────────┴─ any failure: it sleeps on                └───────┴─ any failure: it is stopped
//! ```
//!
//! *Invariant.* What the store has of a VM is woken once. Its disk stayed in its own layers, where it goes on writing: from its
//! first instruction on, that memory and this disk are no longer of one instant. So that it runs is written down before it
//! does, and a power cut cannot undo that: whoever finds it afterwards without a monitor has a VM that crashed, which starts
//! from its disk.
//!
//! Its programs stand still until its clock is right: the barrier that they fell asleep behind ends with what the agent is
//! told last. What it was woken from stays in the store until it sleeps again or is removed, as its memory is read from there
//! for a while.

use super::super::error::{FleetError, cannot};
use super::super::files::{Own, Shared, open_kvm, sync_names};
use super::super::load::Source;
use super::super::presence::Visit;
use super::super::turns::Turn;
use super::super::{Fleet, blocking, room, wrong_state};
use super::cold::Stored;
use crate::agent::Agent;
use crate::db::{Change, Record};
use crate::paths::{self, Paths};
use pando_wire::agent::Request as AgentRequest;
use pando_wire::api::{State, Vm};
use pando_wire::control::{Asleep, Listener, Origin, Request, Restore};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long setting a clock may take.
const CLOCK_LIMIT: Duration = Duration::from_secs(60);

impl Fleet {
    /// Brings back a VM that sleeps. After an error it sleeps on, or is stopped if it has run.
    pub(crate) async fn wake(&self, name: &str) -> Result<Vm, FleetError> {
        let id = self.find(name).await?.id;
        let _turn = self.0.turns.vm(&id).await;
        let vm = self.find(&id).await?;
        if vm.state != State::Hibernated {
            return Err(wrong_state(&vm, "wake"));
        }
        self.rouse(&vm).await?;
        self.get(&id).await
    }

    /// The VM of this name or id, which must be running, or is woken if it sleeps or is falling asleep. It does not fall
    /// asleep again until its agent was heard.
    pub(in crate::fleet) async fn enter(
        &self,
        name: &str,
        wanted: &'static str,
    ) -> Result<(Record, Visit), FleetError> {
        let id = self.find(name).await?.id;
        loop {
            let visit = self.0.presence.enter(&id).await;
            if !is_asleep(&self.find(&id).await?) {
                return self.running(&id, wanted).await.map(|vm| (vm, visit));
            }
            drop(visit);
            self.wake_if_asleep(&id).await?;
        }
    }

    /// The VM of this name or id, and its turn: not asleep, it is woken for that, and with all of its memory there if it
    /// runs, as it must be for a fork. That may take long, so it is for before its programs stand still, and not a part of
    /// its turn: others may stop it meanwhile.
    pub(in crate::fleet) async fn awake_and_whole(
        &self,
        name: &str,
        wanted: &'static str,
    ) -> Result<(Record, Turn), FleetError> {
        let id = self.find(name).await?.id;
        loop {
            self.wake_if_asleep(&id).await?;
            self.gathered(&id, wanted).await?;
            let turn = self.0.turns.vm(&id).await;
            let vm = self.find(&id).await?;
            // It may have fallen asleep while others had their turn, and even be awake again.
            if !is_asleep(&vm) && !self.arrives(&vm) {
                return Ok((vm, turn));
            }
        }
    }

    /// The VM of this name or id, and its turn: not asleep, it is woken for that.
    pub(in crate::fleet) async fn awake(&self, name: &str) -> Result<(Record, Turn), FleetError> {
        let id = self.find(name).await?.id;
        loop {
            self.wake_if_asleep(&id).await?;
            let turn = self.0.turns.vm(&id).await;
            let vm = self.find(&id).await?;
            if !is_asleep(&vm) {
                return Ok((vm, turn));
            }
        }
    }

    async fn wake_if_asleep(&self, id: &str) -> Result<(), FleetError> {
        if !is_asleep(&self.find(id).await?) {
            return Ok(());
        }
        let (fleet, id) = (self.clone(), id.to_owned());
        // To its end, also when whoever asked goes away.
        let waking = tokio::spawn(async move {
            let _turn = fleet.0.turns.vm(&id).await;
            let vm = fleet.find(&id).await?;
            // Somebody else may have woken it while we waited.
            if vm.state == State::Hibernated { fleet.rouse(&vm).await } else { Ok(()) }
        });
        waking.await.map_err(|_| FleetError::CutShort)?
    }

    /// Sets the clock of the guest of `vm`, if that slept: before its programs go on.
    pub(in crate::fleet) async fn set_clock(&self, vm: &Record) -> Result<(), FleetError> {
        if vm.sleep.is_none() {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = AgentRequest::SetClock { unix_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX) };
        let set = Agent::order(&self.0.paths.vsock_socket(&vm.id), &clock, CLOCK_LIMIT).await;
        set.map(drop).map_err(|source| FleetError::Agent { name: vm.name.clone(), source })
    }

    /// Lets `vm` run, which a monitor has from the store and which stands still, if that slept: once it is written down that
    /// it does.
    pub(in crate::fleet) async fn let_run(&self, vm: &Record) -> Result<(), FleetError> {
        if vm.sleep.is_none() {
            return Ok(());
        }
        if !self.0.db.leave_sleep(&vm.id, vm.epoch).await? {
            return Err(wrong_state(&self.find(&vm.id).await?, "wake"));
        }
        self.order(vm, "wake", &Request::Resume).await
    }

    async fn rouse(&self, vm: &Record) -> Result<(), FleetError> {
        let arrival = Instant::now();
        room::check(&self.0.meminfo, || vm.name.clone(), room::PER_BOOT)?;
        if !self.0.db.change(&vm.id, vm.epoch, Change::Starting).await? {
            return Err(wrong_state(vm, "wake"));
        }
        match self.bring_back(vm, arrival).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(vm = vm.id, error = error.in_one_line(), "it does not wake");
                if self.0.supervisor.kill(&vm.id).await.is_none() {
                    self.0.supervisor.sweep(&vm.id).await;
                    self.0.db.change(&vm.id, vm.epoch, Change::Stopped { ending: "did not wake" }).await?;
                }
                Err(error)
            }
        }
    }

    /// Starts the monitor of `vm` from the store. After an error it may run.
    async fn bring_back(&self, vm: &Record, arrival: Instant) -> Result<(), FleetError> {
        let stored = vm.sleep.clone().ok_or_else(|| wrong_state(vm, "wake"))?;
        let disk_bytes = self.stored_disk_bytes(&stored).await?;
        let (vcpus, memory_bytes) = (vm.cpus, vm.memory_bytes);
        let begins = match disk_bytes {
            None => {
                // Nobody comes to read it before it has run: it is its turn, and a descendant has a row before it is made.
                let is_alone = !self.0.db.is_shared(vm.layer(), &vm.id).await?;
                Origin::Asleep(Asleep { vcpus, memory_bytes, is_alone })
            }
            Some(disk_bytes) => Origin::Checkpoint(Restore { vcpus, memory_bytes, disk_bytes, is_twin: false }),
        };
        self.0.supervisor.evict(&vm.id, vm.layer()).await.map_err(cannot(format!("end {}", vm.name)))?;
        let mut inherited = self.0.db.layers(&vm.id).await?;
        inherited.pop(); // Its own.
        let (fleet, of) = (self.clone(), vm.clone());
        let (own, control, shared) = blocking(move || {
            let (paths, kvm) = (&fleet.0.paths, open_kvm(&fleet.0.kvm)?);
            let (own, control) = match disk_bytes {
                None => Own::open(paths, &of.id, of.layer())?,
                Some(_) => create_anew(paths, &of)?,
            };
            Ok((own, control, Shared::open(paths, kvm, &of.image, &inherited, disk_bytes.is_none())?))
        })
        .await?;
        let pages = self.serve_stored(&vm.id, &Stored { name: stored, remote: None }).await?;
        let source = Source { begins, shared, arrival, origin: "woken" };
        let report = self.load(vm, own, control, pages, &source).await?;
        tracing::info!(vm = vm.id, ready_us = report.ready_us, reseeded = report.reseeded, "woken");
        if let Some(problem) = report.error {
            tracing::warn!(vm = vm.id, problem, "it woke, and its guest complains");
        }
        Ok(())
    }
}

/// The files of `vm` whose disk an earlier build put into the store: its layer is filled from there.
fn create_anew(paths: &Paths, vm: &Record) -> Result<(Own, Listener), FleetError> {
    // What an attempt to wake it has left, in which it has not run.
    let layer = paths.layer(vm.layer());
    paths::remove(&layer).map_err(cannot(format!("remove {}", layer.display())))?;
    let created = Own::create(paths, &vm.id, vm.layer())?;
    sync_names(paths, [vm.layer()]).map_err(cannot("sync the disk's folder"))?;
    Ok(created)
}

/// Whether `vm` must be woken: one that is starting may be woken by somebody else just now.
fn is_asleep(vm: &Record) -> bool {
    vm.state == State::Hibernated || (vm.state == State::Starting && vm.sleep.is_some())
}

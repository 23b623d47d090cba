//! A VM falls asleep: its seed is stored, and only then it ends. Its disk stays where it is, in its own layers.
//!
//! ```text
//! door closed, intend ─► barrier, pause ─► flush ─► fork a seed ─► seed is stored ─► written down: hibernated ─► monitor and seed end
//!                  └────────────┴────────────┴───────────┴────────────────┘ any failure: resume, the seed ends, what was stored is removed
//! ```
//!
//! *Invariant.* The VM never runs on behind the instant that is stored. Nothing writes to its disk from the pause on, and all
//! that is on it is durable before the sleep is written down: so what is stored and the disk are of one instant, also after
//! a power cut. A daemon that finds an intention and no written down sleep does what a failure does; one that finds a sleep
//! ends what is left of the VM. Whoever comes meanwhile waits at the door, and wakes it.

use super::super::error::{FleetError, cannot};
use super::super::files::sync_names;
use super::super::fork::longest_gap;
use super::super::presence::Closed;
use super::super::{Fleet, blocking, room, wrong_state};
use super::save::sentence;
use super::store::Kept;
use crate::agent::{Agent, AgentError};
use crate::db::Record;
use crate::monitor::{Monitor, MonitorError};
use crate::supervisor::Process;
use pando_wire::agent::Request as AgentRequest;
use pando_wire::api::{State, Vm};
use pando_wire::control::{Request, Response};
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How long programs may take to stand still.
const BARRIER_LIMIT: Duration = Duration::from_secs(2);
/// How long the host may take to write what it has in its page cache of a disk.
const FLUSH_LIMIT: Duration = Duration::from_secs(600);

impl Fleet {
    /// Puts a running VM into the store and ends its process. After an error it runs on.
    pub(crate) async fn hibernate(&self, name: &str) -> Result<Vm, FleetError> {
        let id = self.gathered(name, "hibernate").await?.id;
        let _turn = self.0.turns.vm(&id).await;
        let vm = self.find(&id).await?;
        if vm.state != State::Running {
            return Err(wrong_state(&vm, "hibernate"));
        }
        let closed = self.0.presence.close(&id).await;
        self.lay_down(&vm, "", closed).await?;
        self.get(&id).await
    }

    /// Does that to `vm`, whose turn it is and which nobody can enter meanwhile. `detail` is the event's.
    pub(in crate::fleet) async fn lay_down(
        &self,
        vm: &Record,
        detail: &str,
        _closed: Closed,
    ) -> Result<(), FleetError> {
        let id = &vm.id;
        room::check(&self.0.meminfo, || format!("a copy of {}", vm.name), room::PER_CHILD)?;
        let sleep = Uuid::now_v7().to_string();
        self.0.db.intend_sleep(id, vm.epoch, Some(&sleep)).await?;
        if let Err(error) = self.put_to_sleep(vm, &sleep, detail).await {
            tracing::warn!(vm = id, error = error.in_one_line(), "it does not fall asleep");
            self.stay_awake(vm, &sleep).await;
            return Err(error);
        }
        tracing::info!(vm = id, sleep, "hibernated");
        self.0.supervisor.kill(id).await;
        self.0.lessons.forget(id);
        self.0.presence.tell_sleepless(id, None);
        if let Some(earlier) = &vm.woken {
            self.leave_behind(earlier, &sleep).await;
        }
        Ok(())
    }

    /// Has `sleep` take over what is known of `earlier`, which the VM was woken from, and removes that. It sleeps, whatever
    /// of that fails.
    async fn leave_behind(&self, earlier: &str, sleep: &str) {
        if let Err(error) = self.expect_as_before(earlier, sleep).await {
            // It is a hint: without it, the VM waits as it did when it woke for the first time.
            tracing::info!(sleep, error = error.in_one_line(), "nothing is expected of its next wake");
        }
        if let Err(error) = self.unstore(earlier).await {
            tracing::error!(sleep, error = error.in_one_line(), "cannot remove what it was woken from before");
        }
    }

    /// What a new daemon does of a sleep that an earlier one began.
    pub(in crate::fleet) async fn settle_sleep(&self, vm: &Record) -> Result<(), FleetError> {
        let Some(sleep) = &vm.sleep else { return Ok(()) };
        match vm.state {
            State::Hibernated => {
                self.0.supervisor.end_unknown(&vm.id).await;
                self.0.supervisor.sweep(&vm.id).await;
                self.end_seed(sleep).await;
            }
            State::Starting => (), // It was being woken, and is looked at as any that was starting.
            State::Running | State::Paused | State::Stopped => self.stay_awake(vm, sleep).await,
        }
        Ok(())
    }

    /// Removes what the store has of a VM that was removed.
    pub(in crate::fleet) async fn forget_sleep(&self, vm: &Record) -> Result<(), FleetError> {
        if let Some(sleep) = &vm.sleep {
            self.end_seed(sleep).await;
        }
        for stored in vm.stored() {
            self.unstore(stored).await?;
        }
        Ok(())
    }

    /// Stores `vm` as `sleep`, and writes that down.
    async fn put_to_sleep(&self, vm: &Record, sleep: &str, detail: &str) -> Result<(), FleetError> {
        let control = self.listen_for_seed(sleep).await?;
        let unheard = |source| FleetError::Agent { name: vm.name.clone(), source };
        // When it wakes, its programs go on once its clock is right: without a barrier they could not be held until then.
        let vsock = self.0.paths.vsock_socket(&vm.id);
        let barrier = Agent::order(&vsock, &AgentRequest::ForkBarrier, BARRIER_LIMIT).await.map_err(unheard)?;
        self.order(vm, "pause", &Request::Pause).await?;
        if !barrier.is_silent() {
            return Err(unheard(AgentError::Late { limit: BARRIER_LIMIT, source: None }));
        }
        self.make_durable(vm).await?;
        self.ask_for_fork(vm, vec![control]).await?;
        let failed = |source| FleetError::Monitor { name: vm.name.clone(), wanted: "copy", source };
        let (seed, _monitor) = self.newborn_seed(sleep).await.map_err(failed)?;
        let stored = self.store_sleep(vm, sleep, &seed).await;
        seed.kill();
        seed.end(sleep).await;
        self.0.supervisor.sweep(sleep).await;
        stored?;
        self.write_down(vm, sleep, detail).await?;
        drop(barrier); // It held until here: from now on nobody resumes it.
        Ok(())
    }

    /// Makes durable what the disk of `vm`, which is paused, holds: in its own layer and in those that it inherited, and their
    /// names.
    async fn make_durable(&self, vm: &Record) -> Result<(), FleetError> {
        let flushed = async {
            let monitor = Monitor::connect(&self.0.paths.control_socket(&vm.id))?;
            match monitor.call(&Request::Flush, &[], FLUSH_LIMIT).await {
                Ok(Response::Done) => Ok(()),
                Ok(_) => Err(MonitorError::Confused),
                Err(error) => Err(self.unknown_to_earlier(&vm.id, error, "leave a disk where it is")),
            }
        };
        let failed = |source| FleetError::Monitor { name: vm.name.clone(), wanted: "hibernate", source };
        flushed.await.map_err(failed)?;
        let (paths, layers) = (self.0.paths.clone(), self.0.db.layers(&vm.id).await?);
        blocking(move || {
            sync_names(&paths, layers.iter().map(String::as_str)).map_err(cannot("sync the disks' folder"))
        })
        .await
    }

    /// Writes down that `vm` sleeps as `sleep`.
    async fn write_down(&self, vm: &Record, sleep: &str, detail: &str) -> Result<(), FleetError> {
        match self.0.db.fall_asleep(&vm.id, vm.epoch, sleep, detail).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(wrong_state(&self.find(&vm.id).await?, "hibernate")),
            // It may be there all the same, and then the VM must not run on.
            Err(_) if self.find(&vm.id).await?.state == State::Hibernated => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Has the seed `sleep` stored. Whether it is, the store says.
    async fn store_sleep(&self, vm: &Record, sleep: &str, seed: &Process) -> Result<(), FleetError> {
        let earlier = self.earlier(&vm.id, sleep, seed).await;
        let output = self.write_out(sleep, &vm.name, None, earlier).await?;
        if self.kept(sleep).await? == Kept::Whole {
            return Ok(());
        }
        Err(cannot(format!("store {}", vm.name))(io::Error::other(sentence(&output.stderr))))
    }

    /// Undoes what was done for `vm` to become `sleep`: it goes on as it was.
    async fn stay_awake(&self, vm: &Record, sleep: &str) {
        // It may be gone, and has not been paused perhaps.
        if let Err(error) = self.order(vm, "resume", &Request::Resume).await {
            tracing::info!(vm = vm.id, error = error.in_one_line(), "it is not resumed");
        }
        let undone = async {
            self.end_seed(sleep).await;
            self.unstore(sleep).await?;
            Ok::<_, FleetError>(self.0.db.intend_sleep(&vm.id, vm.epoch, None).await?)
        };
        if let Err(error) = undone.await {
            tracing::error!(vm = vm.id, error = error.in_one_line(), "cannot remove what was stored of it");
        }
        // Its heart was started with the barrier, and nobody asks how long it missed.
        let (_, nobody_answers) = mpsc::channel(1);
        let _ = longest_gap(Some(&self.0.paths.vsock_socket(&vm.id)), nobody_answers).await;
    }

    async fn end_seed(&self, sleep: &str) {
        self.0.supervisor.end_unknown(sleep).await;
        self.0.supervisor.sweep(sleep).await;
    }
}

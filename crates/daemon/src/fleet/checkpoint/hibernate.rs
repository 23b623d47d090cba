//! A VM falls asleep: its seed is stored, and only then it ends.
//!
//! ```text
//! door closed, intend ─► barrier, pause ─► fork a seed ─► seed is stored ─► written down: hibernated ─► monitor and seed end
//!                  └────────────┴──────────────┴────────────────┘ any failure: resume, the seed ends, what was stored is removed
//! ```
//!
//! *Invariant.* The VM never runs on behind the instant that is stored. A daemon that finds an intention and no written
//! down sleep does what a failure does; one that finds a sleep ends what is left of the VM. Whoever comes meanwhile waits
//! at the door, and wakes it.

use super::super::error::{FleetError, cannot};
use super::super::fork::longest_gap;
use super::super::presence::Closed;
use super::super::{Fleet, room, wrong_state};
use super::save::sentence;
use super::store::Kept;
use crate::agent::{Agent, AgentError};
use crate::db::Record;
use crate::supervisor::Process;
use pando_wire::agent::Request as AgentRequest;
use pando_wire::api::{State, Vm};
use pando_wire::control::Request;
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;
use uuid::Uuid;

/// How long programs may take to stand still.
const BARRIER_LIMIT: Duration = Duration::from_secs(2);

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
        let unused = match self.put_to_sleep(vm, &sleep, detail).await {
            Ok(unused) => unused,
            Err(error) => {
                tracing::warn!(vm = id, error = error.in_one_line(), "it does not fall asleep");
                self.stay_awake(vm, &sleep).await;
                return Err(error);
            }
        };
        tracing::info!(vm = id, sleep, "hibernated");
        self.0.supervisor.kill(id).await;
        self.0.lessons.forget(id);
        self.0.presence.tell_sleepless(id, None);
        if let Some(earlier) = &vm.layer
            && let Err(error) = self.expect_as_before(earlier, &sleep).await
        {
            // It is a hint: without it, the VM waits as it did when it woke for the first time.
            tracing::info!(vm = id, error = error.in_one_line(), "nothing is expected of its next wake");
        }
        // It sleeps, whatever cannot be removed: the next daemon does that.
        if let Err(error) = self.leave_behind(vm, unused).await {
            tracing::error!(vm = id, error = error.in_one_line(), "cannot remove what it needs no more");
        }
        Ok(())
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
            State::Starting => (), // It was being woken.
            State::Running | State::Paused | State::Stopped => self.stay_awake(vm, sleep).await,
        }
        Ok(())
    }

    /// Removes what the store has of a VM that was removed.
    pub(in crate::fleet) async fn forget_sleep(&self, vm: &Record) -> Result<(), FleetError> {
        if let Some(sleep) = &vm.sleep {
            self.end_seed(sleep).await;
        }
        for stored in vm.sleep.iter().chain(&vm.layer) {
            self.unstore(stored).await?;
        }
        Ok(())
    }

    /// Stores `vm` as `sleep`, and writes that down. The answer is the layers that nobody needs any more.
    async fn put_to_sleep(&self, vm: &Record, sleep: &str, detail: &str) -> Result<Vec<String>, FleetError> {
        let layers = self.layers_of_parent(vm, "hibernate").await?;
        let control = self.listen_for_seed(sleep).await?;
        let unheard = |source| FleetError::Agent { name: vm.name.clone(), source };
        // When it wakes, its programs go on once its clock is right: without a barrier they could not be held until then.
        let vsock = self.0.paths.vsock_socket(&vm.id);
        let barrier = Agent::order(&vsock, &AgentRequest::ForkBarrier, BARRIER_LIMIT).await.map_err(unheard)?;
        self.order(vm, "pause", &Request::Pause).await?;
        if !barrier.is_silent() {
            return Err(unheard(AgentError::Late { limit: BARRIER_LIMIT, source: None }));
        }
        self.ask_for_fork(vm, vec![control]).await?;
        let failed = |source| FleetError::Monitor { name: vm.name.clone(), wanted: "copy", source };
        let (seed, _monitor) = self.newborn_seed(sleep).await.map_err(failed)?;
        let stored = self.store_sleep(vm, sleep, &seed, layers).await;
        seed.kill();
        seed.end(sleep).await;
        self.0.supervisor.sweep(sleep).await;
        stored?;
        let asleep = self.0.db.fall_asleep(&vm.id, vm.epoch, sleep, detail).await?;
        let Some(unused) = asleep else { return Err(wrong_state(&self.find(&vm.id).await?, "hibernate")) };
        drop(barrier); // It held until here: from now on nobody resumes it.
        Ok(unused)
    }

    /// Has the seed `sleep` stored. Whether it is, the store says.
    async fn store_sleep(
        &self,
        vm: &Record,
        sleep: &str,
        seed: &Process,
        layers: Vec<String>,
    ) -> Result<(), FleetError> {
        let earlier = self.earlier(&vm.id, sleep, seed).await;
        let output = self.write_out(sleep, &vm.name, layers, earlier).await?;
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

    /// Removes what `vm` needs no more, as it sleeps: layers, and what it was woken from before.
    async fn leave_behind(&self, vm: &Record, unused: Vec<String>) -> Result<(), FleetError> {
        self.remove_layers(unused).await?;
        match &vm.layer {
            Some(earlier) => self.unstore(earlier).await,
            None => Ok(()),
        }
    }
}

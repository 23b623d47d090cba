//! A VM as it was at one instant, for others to begin from.
//!
//! ```text
//! VM ──fork──► seed ──Save──► pando pages save ──► store
//!                │ Fork                              │ pando pages serve
//!                ▼                                   ▼
//!        warm: forks of the seed      cold: fresh monitors, memory as they touch it, from the store or a bucket
//! ```
//!
//! *Invariants.* A seed is a fork's child that nobody starts; nothing else tells it from one. It is never ended before the
//! store has its checkpoint, unless somebody removes that. Whether a checkpoint is stored, the store says.

mod adopt; // finding the checkpoints of an earlier daemon
mod bucket; // where others find them
mod cold; // VMs from the store
mod remote; // VMs from a checkpoint that stays in a bucket
mod description; // what a daemon knows of one, on its way
mod export; // one leaves
mod import; // one arrives
mod pull; // one is fetched from a bucket
mod push; // one is sent to a bucket
mod hibernate; // a VM falls asleep in the store
mod run; // VMs from a checkpoint
mod save; // a seed is written into the store
mod earlier; // what a seed may have in common with one that is stored
mod shed; // seeds that are no longer worth their memory
mod seed; // from a VM to a process that keeps its memory
mod store; // the store, from where nothing may block
mod wake; // a VM that sleeps in the store comes back

pub use bucket::spec as bucket_spec;
pub(super) use save::Saves;
pub(super) use shed::Uses;

use super::error::FleetError;
use super::{Fleet, blocking, names, room, wrong_state};
use crate::db::{self, Kind, Record, now_ms};
use crate::{paths, usage};
use pando_wire::api::{Checkpoint, CheckpointRequest, CheckpointState, State};
use uuid::Uuid;

impl Fleet {
    /// Every checkpoint, oldest first, with what the memory of their seeds costs.
    pub(crate) async fn checkpoints(&self) -> Result<Vec<Checkpoint>, FleetError> {
        let mut all: Vec<_> = self.0.db.checkpoints().await?.into_iter().map(|it| self.told(it)).collect();
        blocking(move || {
            all.iter_mut().for_each(weigh);
            Ok(all)
        })
        .await
    }

    /// One checkpoint, by name or id, likewise.
    pub(crate) async fn checkpoint(&self, name: &str) -> Result<Checkpoint, FleetError> {
        let mut checkpoint = self.told(self.find_checkpoint(name).await?);
        blocking(move || {
            weigh(&mut checkpoint);
            Ok(checkpoint)
        })
        .await
    }

    /// Keeps a running or paused VM as it is now, and one that sleeps when it has been woken: a seed, which begins to write
    /// itself into the store. The VM goes on.
    pub(crate) async fn create_checkpoint(
        &self,
        name: &str,
        request: CheckpointRequest,
    ) -> Result<Checkpoint, FleetError> {
        request.name.as_deref().map_or(Ok(()), names::check)?;
        let (vm, _turn) = self.awake_and_whole(name, "checkpoint").await?;
        if !matches!(vm.state, State::Running | State::Paused) {
            return Err(wrong_state(&vm, "checkpoint"));
        }
        room::check(&self.0.meminfo, || format!("a checkpoint of {}", vm.name), room::PER_CHILD)?;
        let layers = self.layers_of_parent(&vm, "checkpoint").await?;

        let id = Uuid::now_v7().to_string();
        // Before anybody can see it, so that nobody removes one that is about to be born.
        let _its_turn = self.0.turns.vm(&id).await;
        let owner = self.0.db.owner().to_owned();
        let inserted = self.0.db.insert_checkpoint(&layers, |is_taken| plan(&vm, id, owner, request.name, is_taken));
        let checkpoint = inserted.await??;
        let pause_us = match self.sow(&vm, &checkpoint).await {
            Ok(pause_us) => pause_us,
            Err(error) => {
                if let Err(error) = self.forget(&checkpoint).await {
                    tracing::error!(checkpoint = checkpoint.id, error = error.in_one_line(), "cannot remove it");
                }
                return Err(error);
            }
        };
        let detail = format!("{}, {pause_us} µs pause", checkpoint.name);
        if let Err(error) = self.0.db.record(&vm.id, Kind::Checkpointed, &detail).await {
            // It is there all the same.
            tracing::error!(vm = vm.id, %error, "cannot write down a checkpoint");
        }
        tracing::info!(vm = vm.id, checkpoint = checkpoint.id, name = checkpoint.name, pause_us, "checkpointed");
        self.begin_to_save(&checkpoint);
        Ok(self.told(checkpoint))
    }

    /// Removes a checkpoint. VMs that were run from it live on. What only it needed of the store is garbage from then on.
    pub(crate) async fn remove_checkpoint(&self, name: &str) -> Result<(), FleetError> {
        let id = self.find_checkpoint(name).await?.id;
        let _turn = self.0.turns.vm(&id).await;
        let checkpoint = self.find_checkpoint(&id).await?;
        self.forget(&checkpoint).await
    }

    /// Removes what there is of a checkpoint: first what writes, then what was written.
    async fn forget(&self, checkpoint: &db::Checkpoint) -> Result<(), FleetError> {
        let id = &checkpoint.id;
        self.0.saves.end(id).await;
        if self.0.supervisor.kill(id).await.is_none() {
            self.0.supervisor.end_unknown(id).await;
        }
        self.0.supervisor.sweep(id).await;
        self.0.lessons.forget(id);
        self.0.uses.forget(id);
        self.unstore(id).await?;
        let unused = self.0.db.remove_checkpoint(id, checkpoint.epoch).await?;
        self.remove_layers(unused).await
    }

    /// Removes layers that nobody needs.
    async fn remove_layers(&self, unused: Vec<String>) -> Result<(), FleetError> {
        let paths = self.0.paths.clone();
        blocking(move || {
            for layer in unused.iter().map(|layer| paths.layer(layer)) {
                paths::remove(&layer).map_err(super::cannot(format!("remove {}", layer.display())))?;
            }
            Ok(())
        })
        .await
    }

    /// The checkpoint of this name or id.
    async fn find_checkpoint(&self, name: &str) -> Result<db::Checkpoint, FleetError> {
        let found = self.0.db.checkpoint(name).await?;
        found.ok_or_else(|| FleetError::NoSuchCheckpoint(name.to_owned()))
    }

    /// As the API shows it.
    fn told(&self, checkpoint: db::Checkpoint) -> Checkpoint {
        let seed = self.0.supervisor.live(&checkpoint.id).map(|live| live.pid());
        Checkpoint {
            id: checkpoint.id,
            name: checkpoint.name,
            vm: checkpoint.vm_name,
            vm_id: checkpoint.vm,
            state: checkpoint.state,
            problem: checkpoint.problem,
            image: checkpoint.image,
            cpus: checkpoint.cpus,
            memory_bytes: checkpoint.memory_bytes,
            seed,
            usage: None,
            logical_bytes: checkpoint.logical_bytes,
            stored_bytes: checkpoint.stored_bytes,
            hashed_bytes: checkpoint.hashed_bytes,
            created_ms: checkpoint.created_ms,
        }
    }
}

/// Fills in what a seed's memory costs. It may end meanwhile, and then it costs nothing. Blocks.
fn weigh(checkpoint: &mut Checkpoint) {
    checkpoint.usage = checkpoint.seed.and_then(|pid| usage::of_process(pid).ok());
}

/// Decides what a checkpoint of `vm` will be; `is_taken` tells which names are.
fn plan(
    vm: &Record,
    id: String,
    owner: String,
    name: Option<String>,
    is_taken: &dyn Fn(&str) -> bool,
) -> Result<db::Checkpoint, FleetError> {
    let name = match name {
        Some(name) if is_taken(&name) => return Err(FleetError::CheckpointTaken(name)),
        Some(name) => name,
        None => names::of_child(&vm.name, &mut 1, is_taken),
    };
    Ok(db::Checkpoint {
        id,
        name,
        vm: vm.id.clone(),
        vm_name: vm.name.clone(),
        state: CheckpointState::Saving,
        problem: None,
        generation: vm.generation,
        image: vm.image.clone(),
        cpus: vm.cpus,
        memory_bytes: vm.memory_bytes,
        command: vm.command.clone(),
        env: vm.env.clone(),
        cwd: vm.cwd.clone(),
        user: vm.user.clone(),
        kernel: vm.kernel.clone(),
        network: vm.network.clone(),
        logical_bytes: None,
        stored_bytes: None,
        hashed_bytes: None,
        created_ms: now_ms(),
        owner,
        epoch: 1,
    })
}

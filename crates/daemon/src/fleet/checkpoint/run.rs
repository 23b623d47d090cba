//! VMs from a checkpoint: forks of its seed while it has one, and otherwise from the store.

use super::super::error::FleetError;
use super::super::fork::{Forked, check_count};
use super::super::twin::micros;
use super::super::{Fleet, room};
use crate::db::{Checkpoint, Record};
use pando_wire::api::{CheckpointRunReport, CheckpointState, ForkRequest, State};
use std::time::Instant;

impl Fleet {
    /// Runs VMs from a checkpoint. The answer tells of each, also of those that failed.
    pub(crate) async fn run_from(&self, name: &str, request: ForkRequest) -> Result<CheckpointRunReport, FleetError> {
        let arrival = Instant::now();
        check_count(request.children.len())?;
        if request.via.is_some() {
            return Err(FleetError::Invalid("a VM from a checkpoint is forked from its seed while it has one".into()));
        }
        let id = self.find_checkpoint(name).await?.id;
        let turn = self.0.turns.vm(&id).await;
        let checkpoint = self.find_checkpoint(&id).await?;
        if self.0.supervisor.live(&id).is_some() {
            self.0.uses.note(&id);
            return self.run_warm(checkpoint, request, arrival).await;
        }
        if checkpoint.state == CheckpointState::Stored {
            // Whoever reads from the store keeps what is read there.
            drop(turn);
            return self.run_cold(checkpoint, request, arrival).await;
        }
        Err(FleetError::NotStored(checkpoint.name))
    }

    /// Forks the seed of `checkpoint`.
    async fn run_warm(
        &self,
        checkpoint: Checkpoint,
        request: ForkRequest,
        arrival: Instant,
    ) -> Result<CheckpointRunReport, FleetError> {
        let count = request.children.len() as u64;
        room::check(
            &self.0.meminfo,
            || format!("{count} VMs from {}", checkpoint.name),
            room::PER_CHILD.saturating_mul(count),
        )?;
        let layers = self.0.db.seed_layers(&checkpoint.id).await?;
        let model = model(&checkpoint);
        let (shared, children) = self.prepare(&model, &layers, request.children).await?;
        let prepare_us = micros(arrival.elapsed());
        // Its programs stand still already.
        let forked = self.fork_prepared(&model, arrival, shared, children, None).await?;
        let Forked { timings, children, .. } = forked;
        if timings.expected_pages == 0
            && let Some(child) = children.iter().find_map(|child| child.id.clone())
        {
            self.learn_first(&checkpoint.id, &child).await;
        }
        let running = children.iter().filter(|child| child.id.is_some()).count();
        tracing::info!(checkpoint = checkpoint.id, running, count, fork_us = timings.fork_us, "forked a seed");
        Ok(CheckpointRunReport {
            checkpoint: checkpoint.name,
            warm: true,
            prepare_us,
            fork_us: timings.fork_us,
            children,
        })
    }
}

/// A VM that is run from `checkpoint`, but for what is its own. Warm or cold, it has no parent: nothing depends on the VM
/// that the checkpoint is of. Its id and name are those of the checkpoint, whose seed answers where a parent would.
pub(super) fn model(checkpoint: &Checkpoint) -> Record {
    let Checkpoint { id, name, image, cpus, memory_bytes, command, env, cwd, user, kernel, network, owner, .. } =
        checkpoint.clone();
    Record {
        id,
        name,
        state: State::Starting,
        ending: None,
        pid: None,
        parent: None,
        generation: checkpoint.generation.saturating_add(1),
        image,
        cpus,
        memory_bytes,
        command,
        env,
        cwd,
        user,
        kernel,
        created_ms: checkpoint.created_ms,
        owner,
        epoch: 1,
        layer: None,
        sleep: None,
        woken: None,
        idle_timeout_ms: None,
        network,
    }
}

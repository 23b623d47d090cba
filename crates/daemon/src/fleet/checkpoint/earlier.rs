//! What a seed may have in common with one that is stored: the pages that neither has to itself, and the blocks that lie
//! where they lay.
//!
//! *Invariant.* Both seeds come from one monitor, which had the memory first: only then are addresses in the one those in
//! the other. So they are of one VM between two of its beginnings.

use super::super::Fleet;
use crate::db::Checkpoint;
use crate::monitor::{Monitor, SHORT};
use crate::supervisor::Process;
use pando_wire::api::CheckpointState;
use pando_wire::control::{DiskSeal, Request, Response};
use std::fs::File;
use std::io;

/// A checkpoint that is stored, and whose seed lived a moment ago.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) id: String,
    /// What a seed is told of it, as [`Request::Save`] has it.
    pub(super) known_by: [File; 3],
    /// How its disk was sealed, where its monitor can tell.
    pub(super) disk: Option<DiskSeal>,
}

impl Fleet {
    /// The newest checkpoint of VM `vm` that `seed`, which is becoming `id`, can be compared with. Where that cannot be found
    /// out, there is none: it costs time, and nothing else.
    pub(super) async fn earlier(&self, vm: &str, id: &str, seed: &Process) -> Option<Earlier> {
        let checkpoints = self.0.db.checkpoints().await.unwrap_or_default();
        let stored = |it: &Checkpoint| it.vm == vm && it.id != id && it.state == CheckpointState::Stored;
        let mut found = checkpoints.into_iter().rev().filter(stored).find_map(|checkpoint| {
            let live = self.0.supervisor.live(&checkpoint.id)?;
            if !live.process().is_of_one_tree(seed) {
                return None;
            }
            let known_by = known_by(live.process(), seed).ok()?;
            Some(Earlier { id: checkpoint.id, known_by, disk: None })
        })?;
        found.disk = self.disk_seal(&found.id).await;
        Some(found)
    }

    /// How the disk of the seed `id` was sealed. One of an earlier build does not tell.
    async fn disk_seal(&self, id: &str) -> Option<DiskSeal> {
        let monitor = Monitor::connect(&self.0.paths.control_socket(id)).ok()?;
        match monitor.call(&Request::DiskSeal, &[], SHORT).await {
            Ok(Response::DiskSeal(seal)) => Some(seal),
            _ => None,
        }
    }
}

fn known_by(earlier: &Process, own: &Process) -> io::Result<[File; 3]> {
    Ok([earlier.pagemap()?, own.pagemap()?, File::open("/proc/vmstat")?])
}

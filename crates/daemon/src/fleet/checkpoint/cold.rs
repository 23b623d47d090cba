//! VMs from the store, or from a bucket: each a fresh monitor, and a page server that it has its memory from.
//!
//! ```text
//! daemon            monitor                     pando pages serve
//!  │ Start(Checkpoint) ►│ describe, blocks, pages ──►│ store
//!  │◄────────── Started │ runs; the rest arrives     │
//!  │ Ping, Adopt ──────►│                            │ ends with its last connection
//! ```

use super::super::birth::Child;
use super::super::error::{FleetError, cannot};
use super::super::files::Shared;
use super::super::load::Source;
use super::super::twin::{failure, micros};
use super::super::{Fleet, blocking, room};
use super::run::model;
use crate::db::Checkpoint;
use crate::supervisor::serve_pages;
use pando_wire::api::{CheckpointRunReport, ForkRequest};
use pando_wire::control::{Origin, Restore};
use pando_wire::pages::Remote;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Where pages are stored.
pub(super) struct Stored {
    /// What the store calls them.
    pub(super) name: String,
    /// The bucket that they are in, if they are not in the store.
    pub(super) remote: Option<Remote>,
}

impl Fleet {
    /// Runs VMs from what the store has of `checkpoint`.
    pub(super) async fn run_cold(
        &self,
        checkpoint: Checkpoint,
        request: ForkRequest,
        arrival: Instant,
    ) -> Result<CheckpointRunReport, FleetError> {
        self.room_for_cold(&checkpoint, request.children.len())?;
        // Without a disk it is none of a checkpoint, which its monitor finds.
        let disk_bytes = self.stored_disk_bytes(&checkpoint.id).await?.unwrap_or_default();
        // Its disk is the base and a layer of its own, into which all that was stored is written first.
        let (shared, children) = self.prepare(&model(&checkpoint), &[], request.children).await?;
        self.wake_all(checkpoint, disk_bytes, None, shared, children, arrival).await
    }

    pub(super) fn room_for_cold(&self, checkpoint: &Checkpoint, count: usize) -> Result<(), FleetError> {
        let count = count as u64;
        let what = || format!("{count} VMs from {}", checkpoint.name);
        room::check(&self.0.meminfo, what, room::PER_BOOT.saturating_mul(count))
    }

    /// Brings VMs to life that were prepared, from the store or from `remote`.
    pub(super) async fn wake_all(
        &self,
        checkpoint: Checkpoint,
        disk_bytes: u64,
        remote: Option<Remote>,
        shared: Shared,
        children: Vec<Child>,
        arrival: Instant,
    ) -> Result<CheckpointRunReport, FleetError> {
        let Checkpoint { cpus: vcpus, memory_bytes, .. } = checkpoint;
        let begins = Origin::Checkpoint(Restore { vcpus, memory_bytes, disk_bytes, is_twin: true });
        let prepare_us = micros(arrival.elapsed());
        let origin = if remote.is_some() { "woken from a bucket" } else { "woken from a checkpoint" };
        let stored = Stored { name: checkpoint.id, remote };
        let source = Source { begins, shared, arrival, origin };
        let bringing = children.into_iter().map(async |child| match child.prepared {
            Err((_, error)) => failure(child.name, &error),
            Ok(prepared) => {
                let id = prepared.birth.record.id.clone();
                self.bring_or_discard(child.name, prepared, self.serve_stored(&id, &stored), &source).await
            }
        });
        let children = self.bring_all(bringing).await;
        Ok(CheckpointRunReport { checkpoint: checkpoint.name, warm: false, prepare_us, fork_us: 0, children })
    }

    /// Starts a server of what is `stored`, for VM `id`. The answer is the VM's ends of its connections.
    pub(super) async fn serve_stored(&self, id: &str, stored: &Stored) -> Result<Vec<UnixStream>, FleetError> {
        let inner = &self.0;
        let Stored { name, remote } = stored;
        let store = if remote.is_some() { inner.paths.bucket_cache() } else { inner.paths.store() };
        let (program, name, remote) = (inner.monitor.clone(), name.clone(), remote.clone());
        let log = inner.paths.monitor_log(id);
        let serving =
            blocking(move || serve_pages(&program, &store, &name, remote, &log).map_err(cannot("start a page server")));
        let (pages, server) = serving.await?;
        // As long as its memory arrives, it is not idle.
        inner.supervisor.adopt_helper(id, server, inner.presence.stay(id));
        Ok(pages)
    }
}

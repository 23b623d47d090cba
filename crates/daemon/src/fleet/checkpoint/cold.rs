//! VMs from the store, or from a bucket: each a fresh monitor, and a page server that it has its memory from.
//!
//! ```text
//! daemon            monitor                     pando pages serve
//!  │ Start(Checkpoint) ►│ describe, blocks, pages ──►│ store
//!  │◄────────── Started │ runs; the rest arrives     │
//!  │ Ping, Adopt ──────►│                            │ ends with its last connection
//! ```

use super::super::birth::{Birth, Child, Prepared};
use super::super::boot::{BOOT_LIMIT, random};
use super::super::error::{FleetError, cannot};
use super::super::files::{Own, Shared, descriptors};
use super::super::twin::{Twin, failure, micros};
use super::super::{Fleet, blocking, room};
use super::run::model;
use crate::db::{Checkpoint, Record};
use crate::monitor::{Monitor, MonitorError};
use crate::supervisor::serve_pages;
use futures_util::{StreamExt, stream};
use pando_wire::api::{CheckpointRunReport, ChildReport, ForkRequest};
use pando_wire::control::{Listener, Origin, Request, Restore, Start};
use pando_wire::pages::Remote;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

/// How many begin at a time: each reads from the store what it needs first.
const AT_ONCE: usize = 4;

/// Where VMs come from.
pub(super) struct Source {
    /// What the store calls it.
    pub(super) stored: String,
    /// The bucket that it is in, if it is not in the store.
    pub(super) remote: Option<Remote>,
    /// As what they begin.
    pub(super) begins: Origin,
    pub(super) shared: Shared,
    /// When somebody asked for them.
    pub(super) arrival: Instant,
    /// How they came to be, in a word.
    pub(super) origin: &'static str,
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
        let source = Source { stored: checkpoint.id, remote, begins, shared, arrival, origin };
        let waking = children.into_iter().map(|child| self.wake_or_discard(child, &source));
        let mut children: Vec<ChildReport> = stream::iter(waking).buffered(AT_ONCE).collect().await;
        if let Err(error) = self.sync_layer_names().await {
            // They run all the same, and whoever asked must be told of them.
            for child in children.iter_mut().filter(|child| child.id.is_some()) {
                child.error.get_or_insert_with(|| error.in_one_line());
            }
        }
        self.sync_layers(&children);
        Ok(CheckpointRunReport { checkpoint: checkpoint.name, warm: false, prepare_us, fork_us: 0, children })
    }

    async fn wake_or_discard(&self, child: Child, source: &Source) -> ChildReport {
        let Prepared { birth, own, control } = match child.prepared {
            Ok(prepared) => prepared,
            Err((_, error)) => return failure(child.name, &error),
        };
        let Birth { record, .. } = &birth;
        match self.load(record, own, control, source).await {
            Ok(report) => report,
            Err(error) => {
                tracing::warn!(vm = record.id, error = error.in_one_line(), "it does not wake");
                self.discard(record).await;
                failure(child.name, &error)
            }
        }
    }

    /// Brings one VM to life. After an error its monitor may still run.
    pub(super) async fn load(
        &self,
        record: &Record,
        own: Own,
        control: Listener,
        source: &Source,
    ) -> Result<ChildReport, FleetError> {
        let inner = &self.0;
        let network = self.give_network(record).await?;
        let start = Start {
            origin: source.begins.clone(),
            generation: random()?,
            inherited_layers: source.shared.layer_count(),
            layer: inner.paths.layer(record.layer()).display().to_string(),
            network: network.start(record),
        };
        let process = self.spawn(record, control).await?;
        let connected = Monitor::connect(&inner.paths.control_socket(&record.id));
        let failed = |source| FleetError::Monitor { name: record.name.clone(), wanted: "wake", source };
        let monitor = match connected {
            Ok(monitor) => Arc::new(monitor),
            Err(error) => {
                process.kill();
                process.end(&record.id).await;
                return Err(failed(error));
            }
        };
        let (live, answered) = inner.supervisor.supervise(&record.id, record.epoch, process, Arc::clone(&monitor));
        live.set_arrives(true);
        let (program, remote) = (inner.monitor.clone(), source.remote.clone());
        let store = if remote.is_some() { inner.paths.bucket_cache() } else { inner.paths.store() };
        let (stored, log) = (source.stored.clone(), inner.paths.monitor_log(&record.id));
        let serving = blocking(move || {
            serve_pages(&program, &store, &stored, remote, &log).map_err(cannot("start a page server"))
        });
        let (pages, server) = serving.await?;
        // As long as its memory arrives, it is not idle.
        inner.supervisor.adopt_helper(&record.id, server, inner.presence.stay(&record.id));
        let files = descriptors(&source.shared, &own, pages.iter().map(AsFd::as_fd), &network);
        let told = async {
            monitor.send(&Request::Watch, &[]).await?;
            monitor.send(&Request::Start(start), &files).await
        };
        // One that has ended already is told of below.
        match told.await {
            Ok(()) | Err(MonitorError::Ended) => (),
            Err(error) => return Err(failed(error)),
        }
        drop(files);
        let Source { arrival, origin, .. } = *source;
        let twin = Twin { record: record.clone(), live, answered, arrival, origin };
        self.welcome(twin, BOOT_LIMIT, (own, pages, network), ()).await
    }
}

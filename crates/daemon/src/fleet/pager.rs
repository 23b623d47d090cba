//! Children that pull what their parent is: `fork --via pager`.
//!
//! ```text
//! daemon                                     parent                        children, in monitors of their own
//!  │ names, records, files                    │                              │
//!  │ ForkBarrier ────────────────────────────►│                              │
//!  │ Serve + connections of all children ────►│ pause, fork ─► copy          │
//!  │◄──────────────────────────────── Serving │                │             │
//!  │ Start(Checkpoint) + connections ─────────────────────────────────────►  │
//!  │                                          │                │◄─ describe, blocks, pages
//!  │ Ping, Adopt ─────────────────────────────────────────────────────────►  │ runs; the rest arrives
//!  │                                          │                └ ends with the last page
//! ```
//!
//! A child begins as one from a checkpoint does; what serves it is no store but a copy of its parent. It has a disk of its
//! own, without layers below, and memory of its own: nothing of it depends on its parent, once all has come.
//!
//! *Invariant.* The copy reads layers of the parent's disk until its children run. Meanwhile the parent may write above
//! its freeze line and end, but it is its turn: nobody wakes it to overwrite what lies below.

use super::birth::{Child, Prepared};
use super::error::{FleetError, cannot};
use super::fork::{Forked, child_of, longest_gap, raise_barrier};
use super::load::Source;
use super::twin::{failure, micros};
use super::{Fleet, blocking};
use crate::db::Record;
use crate::monitor::{LONG, Monitor, MonitorError};
use crate::supervisor::Process;
use pando_wire::api::ChildSpec;
use pando_wire::control::{
    Fork, ForkTimings, MAX_PULLING, Origin, PAGES_CONNECTIONS, Request, Response, Restore, Serving,
};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;
use tokio::sync::mpsc;

/// Both ends of the connections of all children, in order, and the data files of their parent's layers.
struct Ends {
    children: Vec<Vec<UnixStream>>,
    copy: Vec<UnixStream>,
    layers: Vec<File>,
}

/// A copy that serves.
struct Copy {
    process: Process,
    serving: Serving,
    /// A connection to it for each child.
    children: Vec<Vec<UnixStream>>,
    barrier_us: Option<u64>,
}

impl Fleet {
    /// Forks `parent` into children that pull from a copy of it. The first answer is how long it took until everything was
    /// prepared, in microseconds.
    pub(super) async fn fork_by_pager(
        &self,
        parent: &Record,
        arrival: Instant,
        children: Vec<ChildSpec>,
    ) -> Result<(u64, Forked), FleetError> {
        let began = Instant::now();
        let layers = self.0.db.layers(&parent.id).await?;
        let (shared, children) = self.prepare(&child_of(parent), &[], children).await?;
        let prepare_us = micros(began.elapsed());

        let born = children.iter().filter(|child| child.prepared.is_ok()).count();
        let copied = match born {
            0 => None,
            _ => match self.copy_to_serve(parent, layers, born).await {
                Ok(copy) => Some(copy),
                Err(error) => {
                    self.heart_stops(parent).await;
                    let prepared = children.into_iter().filter_map(|child| child.prepared.ok());
                    for Prepared { birth, own, control } in prepared {
                        drop((own, control)); // Who holds a disk's lock would be waited for.
                        self.discard(&birth.record).await;
                    }
                    return Err(error);
                }
            },
        };
        let (timings, barrier_us, disk_bytes, connections) = match copied {
            None => (ForkTimings::default(), None, 0, Vec::new()),
            Some(Copy { process, serving, children: connections, barrier_us }) => {
                self.look_after_copy(process, &children);
                (serving.timings, barrier_us, serving.disk_bytes, connections)
            }
        };
        let heart = async { if born > 0 { self.heart_stops(parent).await } else { None } };
        let Record { cpus: vcpus, memory_bytes, .. } = *parent;
        let begins = Origin::Checkpoint(Restore { vcpus, memory_bytes, disk_bytes, is_twin: true });
        let source = Source { begins, shared, arrival, origin: "forked by way of a pager" };
        let mut connections = connections.into_iter();
        let bringing = children.into_iter().map(|child| {
            let pages = if child.prepared.is_ok() { connections.next().unwrap_or_default() } else { Vec::new() };
            (child, pages)
        });
        let bringing = bringing.map(async |(child, pages)| match child.prepared {
            Err((_, error)) => failure(child.name, &error),
            Ok(prepared) => self.bring_or_discard(child.name, prepared, async { Ok(pages) }, &source).await,
        });
        let (children, guest_gap_us) = tokio::join!(self.bring_all(bringing), heart);
        Ok((prepare_us, Forked { timings, barrier_us, guest_gap_us, shared_pages: 0, children }))
    }

    /// Stops the heart that began with the barrier. The answer is the longest gap that it saw, in microseconds.
    async fn heart_stops(&self, parent: &Record) -> Option<u64> {
        let (_, nobody_answers) = mpsc::channel(1);
        longest_gap(self.programs(parent).as_deref(), nobody_answers).await
    }

    /// Has `parent`, the disk of which has these `layers`, copied for so many children. Its programs stand still meanwhile.
    async fn copy_to_serve(&self, parent: &Record, layers: Vec<String>, children: usize) -> Result<Copy, FleetError> {
        let Ends { children: ours, copy: theirs, layers } = self.open_ends(layers, children).await?;
        let raised = Instant::now();
        let barrier = match self.programs(parent) {
            Some(socket) => raise_barrier(&socket).await,
            None => None,
        };
        let barrier_us = micros(raised.elapsed());
        let asked = async {
            let monitor = Monitor::connect(&self.0.paths.control_socket(&parent.id))?;
            let descriptors: Vec<_> = theirs.iter().map(AsFd::as_fd).chain(layers.iter().map(AsFd::as_fd)).collect();
            // `MAX_PULLING` bounds it.
            let request = Request::Serve(Fork { children: u32::try_from(children).unwrap_or(u32::MAX) });
            match monitor.call(&request, &descriptors, LONG).await {
                Ok(Response::Serving(serving)) => Ok(serving),
                Ok(_) => Err(MonitorError::Confused),
                Err(error) => Err(self.unknown_to_earlier(&parent.id, error, "serve its pages")),
            }
        };
        let failed = |source| FleetError::Monitor { name: parent.name.clone(), wanted: "copy", source };
        let served = asked.await;
        // An agent that could not hold it any longer has said so.
        let barrier_us = barrier.as_ref().filter(|barrier| barrier.is_silent()).map(|_| barrier_us);
        drop(barrier); // Its programs go on.
        let serving = served.map_err(failed)?;
        // It does not end before its connections, which are here.
        let process = Process::hold(serving.pid).map_err(MonitorError::Process).map_err(failed)?;
        Ok(Copy { process, serving, children: ours, barrier_us })
    }

    async fn open_ends(&self, layers: Vec<String>, children: usize) -> Result<Ends, FleetError> {
        let paths = self.0.paths.clone();
        blocking(move || {
            let open = |layer: &String| {
                let path = paths.layer_data(layer);
                File::open(&path).map_err(cannot(format!("open {}", path.display())))
            };
            let layers = layers.iter().map(open).collect::<Result<_, _>>()?;
            let mut ends = Ends { children: Vec::new(), copy: Vec::new(), layers };
            for _ in 0..children {
                let pairs = (0..PAGES_CONNECTIONS).map(|_| UnixStream::pair()).collect::<io::Result<Vec<_>>>();
                let (ours, theirs): (Vec<_>, Vec<_>) = pairs.map_err(cannot("make a socket"))?.into_iter().unzip();
                ends.children.push(ours);
                ends.copy.extend(theirs);
            }
            Ok(ends)
        })
        .await
    }

    /// As long as there is the copy, memory of its `children` arrives, and they are not idle. It is counted as one of the
    /// first.
    fn look_after_copy(&self, process: Process, children: &[Child]) {
        let born: Vec<_> = children.iter().filter_map(|child| child.prepared.as_ref().ok()).collect();
        let visits: Vec<_> = born.iter().map(|child| self.0.presence.stay(&child.birth.record.id)).collect();
        if let Some(first) = born.first() {
            self.0.supervisor.adopt_helper(&first.birth.record.id, process, visits);
        }
    }
}

/// Checks how many children are asked for.
pub(super) fn check_pulling(count: usize) -> Result<(), FleetError> {
    if (1..=MAX_PULLING).contains(&count) {
        return Ok(());
    }
    Err(FleetError::Invalid(format!(
        "{count} children by way of a pager are not possible: 1 to {MAX_PULLING} are, and more by fork"
    )))
}

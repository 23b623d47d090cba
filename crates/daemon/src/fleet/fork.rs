//! One VM becomes many.
//!
//! ```text
//! daemon                                     parent          children
//!  │ Gather ──────────────────────────────────►│ all memory is there
//!  │ names, records, files, sockets            │
//!  │ ForkBarrier ─────────────────────────────►│
//!  │ Fork + one listening socket per child ───►│ pause, fork ──►│
//!  │ Start + files, at the same time, on every such socket ────►│
//!  │◄────────────────────────────────── Forked │                │
//!  │◄───────────────────────────────────────────────── Started  │
//!  │ Ping ─────────────────────────────────────────────────────►│ answers: it is ready
//!  │ Adopt(identity) ──────────────────────────────────────────►│ hooks
//!  │ HeartbeatStop ───────────────────────────►│
//! ```
//!
//! All that can be done before the parent stands still is done before. A child that fails is removed, and fails nobody
//! else.

use super::birth::{Birth, Child, Prepared};
use super::boot::random;
use super::burst::Burst;
use super::error::FleetError;
use super::files::{Own, Shared, descriptors};
use super::pager::check_pulling;
use super::twin::{Twin, failure, micros};
use super::{Fleet, blocking, launch, network, room, wrong_state};
use crate::agent::Agent;
use crate::db::{Kind, Record};
use crate::monitor::{LONG, Monitor, MonitorError};
use crate::usage;
use futures_util::future::join_all;
use pando_disk::MAX_LAYERS;
use pando_wire::agent::{Reply, Request as AgentRequest};
use pando_wire::api::{ChildReport, ChildSpec, ForkReport, ForkRequest, State, Via};
use pando_wire::control::{Fork, ForkTimings, Listener, MAX_CHILDREN, Origin, Request, Response, Start};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long a parent's heartbeat may take to tell. Long only where a host has too little for all that runs on it.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(3);
/// How long a parent's programs may take to stand still.
const BARRIER_LIMIT: Duration = Duration::from_secs(1);
/// How long the memory of a VM that woke may take to be there. A monitor ends by itself when none comes for half a minute.
const GATHER_LIMIT: Duration = Duration::from_secs(600);
/// How long a child may take until its agent answers.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How much longer for each child of the same fork: they share the host's CPUs, and of a slow host one.
const READY_LIMIT_EACH: Duration = Duration::from_secs(5);
/// The unit of `shared_pages`.
const PAGE_BYTES: u64 = 4096;

impl Fleet {
    /// Copies a running or paused VM; one that sleeps is woken for it. The answer tells of every child, also of those that
    /// failed.
    pub(crate) async fn fork(&self, name: &str, request: ForkRequest) -> Result<ForkReport, FleetError> {
        let arrival = Instant::now();
        let ForkRequest { children, via } = request;
        let (count, via) = (children.len(), via.unwrap_or_default());
        match via {
            Via::Fork => check_count(count)?,
            Via::Pager => check_pulling(count)?,
        }
        let (parent, _turn) = self.awake_and_whole(name, "fork").await?;
        let (id, arrive_us) = (parent.id.clone(), micros(arrival.elapsed()));
        if !matches!(parent.state, State::Running | State::Paused) {
            return Err(wrong_state(&parent, "fork"));
        }
        let each = match via {
            Via::Fork => room::PER_CHILD,
            Via::Pager => room::PER_BOOT,
        };
        let what = || format!("{count} children of {}", parent.name);
        room::check(&self.0.meminfo, what, each.saturating_mul(count as u64))?;
        let (prepare_us, forked) = match via {
            Via::Fork => self.fork_whole(&parent, arrival, children).await?,
            Via::Pager => self.fork_by_pager(&parent, arrival, children).await?,
        };
        let Forked { timings, barrier_us, guest_gap_us, shared_pages, children } = forked;

        let running = children.iter().filter(|child| child.id.is_some()).count();
        let detail = format!("{running} of {count} children, {} µs pause", timings.pause_us);
        if let Err(error) = self.0.db.record(&id, Kind::Forked, &detail).await {
            // It is forked all the same.
            tracing::error!(vm = id, %error, "cannot write down a fork");
        }
        tracing::info!(vm = id, running, count, pause_us = timings.pause_us, "forked");
        Ok(ForkReport {
            parent: parent.name,
            arrive_us,
            prepare_us,
            barrier_us,
            pause_us: timings.pause_us,
            park_us: timings.park_us,
            save_us: timings.save_us,
            seal_us: timings.seal_us,
            fork_us: timings.fork_us,
            resume_us: timings.resume_us,
            guest_gap_us,
            shared_pages,
            expected_pages: timings.expected_pages,
            children,
        })
    }

    /// Forks the monitor of `parent`. The first answer is how long it took until everything was prepared, in microseconds.
    async fn fork_whole(
        &self,
        parent: &Record,
        arrival: Instant,
        children: Vec<ChildSpec>,
    ) -> Result<(u64, Forked), FleetError> {
        let began = Instant::now();
        let layers = self.layers_of_parent(parent, "fork").await?;
        let programs = self.programs(parent);
        let (shared, children) = self.prepare(&child_of(parent), &layers, children).await?;
        let prepare_us = micros(began.elapsed());
        let forked = self.fork_prepared(parent, arrival, shared, children, programs.as_deref()).await?;
        if forked.timings.expected_pages == 0
            && let Some(child) = forked.children.iter().find_map(|child| child.id.clone())
        {
            self.learn_first(&parent.id, &child).await;
        }
        Ok((prepare_us, forked))
    }

    /// The VM of this name or id, with all of its memory there if it runs, as it must be for a fork: of one that woke just
    /// now some is still on its way. That may take long, so it is for before its turn and before its programs stand still.
    pub(super) async fn gathered(&self, name: &str, wanted: &'static str) -> Result<Record, FleetError> {
        let vm = self.find(name).await?;
        if let Some(live) = self.0.supervisor.live(&vm.id).filter(|_| self.arrives(&vm)) {
            let path = self.0.paths.control_socket(&vm.id);
            let gathered = async { Monitor::connect(&path)?.call(&Request::Gather, &[], GATHER_LIMIT).await };
            gathered.await.map_err(|source| FleetError::Monitor { name: vm.name.clone(), wanted, source })?;
            live.set_arrives(false);
        }
        Ok(vm)
    }

    /// Whether `vm` runs with memory that may be missing. Most were booted or forked, and need not be asked.
    pub(super) fn arrives(&self, vm: &Record) -> bool {
        let has_started = matches!(vm.state, State::Running | State::Paused);
        has_started && self.0.supervisor.live(&vm.id).is_some_and(|live| live.arrives())
    }

    /// The layers that a child of `parent` inherits, which must leave room for one of its own.
    pub(super) async fn layers_of_parent(
        &self,
        parent: &Record,
        wanted: &'static str,
    ) -> Result<Vec<String>, FleetError> {
        let layers = self.0.db.layers(&parent.id).await?;
        let most = network::most_layers(parent, MAX_LAYERS);
        if layers.len() < most {
            return Ok(layers);
        }
        Err(FleetError::TooDeep { name: parent.name.clone(), wanted, layers: layers.len(), most: most - 1 })
    }

    /// Where to reach the programs of `parent`, that they stand still at a fork. A guest that stands still itself answers
    /// nobody.
    pub(super) fn programs(&self, parent: &Record) -> Option<PathBuf> {
        (parent.state == State::Running).then(|| self.0.paths.vsock_socket(&parent.id))
    }

    /// Forks `parent` into those `children` that are prepared, and waits until each of them runs or has failed.
    /// `programs` is the parent's vsock socket if its programs are to stand still meanwhile.
    pub(super) async fn fork_prepared(
        &self,
        parent: &Record,
        arrival: Instant,
        shared: Shared,
        children: Vec<Child>,
        programs: Option<&Path>,
    ) -> Result<Forked, FleetError> {
        let shared = Arc::new(shared);
        // `MAX_CHILDREN` bounds it.
        let ready_limit = READY_LIMIT + READY_LIMIT_EACH * u32::try_from(children.len()).unwrap_or(u32::MAX);
        let mut sockets = Vec::new();
        let mut waiting = Vec::new();
        for child in children {
            waiting.push(match child.prepared {
                Err((_, error)) => (child.name, Err(error)),
                Ok(Prepared { birth, own, control }) => {
                    sockets.push(control);
                    (child.name, Ok((birth, own)))
                }
            });
        }
        let raised = Instant::now();
        let barrier = match programs {
            Some(socket) if !sockets.is_empty() => raise_barrier(socket).await,
            _ => None,
        };
        let barrier_us = micros(raised.elapsed());
        let (answering, all_answered) = mpsc::channel(1);
        let burst = Arc::new(Burst::of(sockets.len()));
        let mut is_first = true;
        let raising: Vec<_> = waiting
            .into_iter()
            .map(|(name, child)| {
                let (fleet, shared, answering) = (self.clone(), Arc::clone(&shared), answering.clone());
                let burst = Arc::clone(&burst);
                let raise = |(birth, own): (Birth, Own)| {
                    let (record, id) = (birth.record.clone(), birth.record.id.clone());
                    let is_first = std::mem::take(&mut is_first);
                    let raising = async move {
                        if !is_first {
                            fleet.be_taught(&burst, &id).await;
                        }
                        let raised = fleet.clone().raise(record, own, shared, arrival, ready_limit, answering).await;
                        if is_first {
                            fleet.teach(&burst, &id).await;
                        }
                        raised
                    };
                    (birth, tokio::spawn(raising))
                };
                (name, child.map(raise))
            })
            .collect();
        drop(answering);
        let forked = self.ask_for_fork(parent, sockets).await;
        // An agent that could not hold it any longer has said so.
        let barrier_us = barrier.as_ref().filter(|barrier| barrier.is_silent()).map(|_| barrier_us);
        drop(barrier); // Its programs go on.
        let timings = match forked {
            Ok(timings) => {
                burst.expects(timings.expected_pages);
                timings
            }
            Err(error) => {
                join_all(raising.into_iter().filter_map(|(_, child)| child.ok()).map(async |(birth, task)| {
                    task.abort();
                    let _ = task.await;
                    self.discard(&birth.record).await;
                }))
                .await;
                // Its heart was started with the barrier.
                let _ = longest_gap(programs, all_answered).await;
                return Err(error);
            }
        };

        let reports = join_all(raising.into_iter().map(|(name, child)| async {
            match child {
                Err(error) => failure(name, &error),
                Ok((birth, task)) => match task.await.unwrap_or(Err(FleetError::CutShort)) {
                    Ok(raised) => raised,
                    Err(error) => {
                        tracing::warn!(vm = birth.record.id, error = error.in_one_line(), "a child failed");
                        self.discard(&birth.record).await;
                        failure(name, &error)
                    }
                },
            }
        }));
        let (mut reports, synced, guest_gap_us) =
            tokio::join!(reports, self.sync_layer_names(), longest_gap(programs, all_answered));
        if let Err(error) = synced {
            // They run all the same, and whoever asked must be told of them.
            for child in reports.iter_mut().filter(|child| child.id.is_some()) {
                child.error.get_or_insert_with(|| error.in_one_line());
            }
        }
        let shared_pages = self.shared_pages(&parent.id).await;
        self.sync_layers(&reports);
        Ok(Forked { timings, barrier_us, guest_gap_us, shared_pages, children: reports })
    }

    /// Sends the fork itself, unless every child has failed already.
    pub(super) async fn ask_for_fork(
        &self,
        parent: &Record,
        sockets: Vec<Listener>,
    ) -> Result<ForkTimings, FleetError> {
        if sockets.is_empty() {
            return Ok(ForkTimings::default());
        }
        let path = self.0.paths.control_socket(&parent.id);
        // `MAX_CHILDREN` bounds it.
        let children = u32::try_from(sockets.len()).unwrap_or(u32::MAX);
        let asked = async {
            let monitor = Monitor::connect(&path)?;
            let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
            monitor.send(&Request::Fork(Fork { children }), &descriptors).await?;
            // From here on a child's socket is closed when the child is gone, and whoever waits for it knows.
            drop(sockets);
            match tokio::time::timeout(LONG, monitor.receive()).await {
                Err(_) => Err(MonitorError::Late(LONG)),
                Ok(Ok(Response::Forked(timings))) => Ok(timings),
                Ok(Ok(Response::Refused(chain))) => Err(MonitorError::Refused(chain)),
                Ok(Ok(_)) => Err(MonitorError::Confused),
                Ok(Err(error)) => Err(error),
            }
        };
        asked.await.map_err(|source| FleetError::Monitor { name: parent.name.clone(), wanted: "fork", source })
    }

    /// Brings one child to life. After an error it may still run.
    async fn raise(
        self,
        record: Record,
        own: Own,
        shared: Arc<Shared>,
        arrival: Instant,
        ready_limit: Duration,
        answering: mpsc::Sender<()>,
    ) -> Result<ChildReport, FleetError> {
        let inner = &self.0;
        let network = self.give_network(&record).await?;
        let start = Start {
            origin: Origin::Fork,
            generation: random()?,
            inherited_layers: shared.layer_count(),
            layer: inner.paths.layer(record.layer()).display().to_string(),
            network: network.start(&record),
        };
        let failed = |source| FleetError::Monitor { name: record.name.clone(), wanted: "start", source };
        let monitor = Arc::new(Monitor::connect(&inner.paths.control_socket(&record.id)).map_err(failed)?);
        // All of it waits for the child to be born.
        monitor.send(&Request::Watch, &[]).await.map_err(failed)?;
        monitor.send(&Request::Status, &[]).await.map_err(failed)?;
        monitor.send(&Request::Start(start), &descriptors(&shared, &own, [], &network)).await.map_err(failed)?;
        let process = launch::born(&monitor).await.map_err(failed)?;
        let (live, answered) = inner.supervisor.supervise(&record.id, record.epoch, process, monitor);
        let twin = Twin { record, live, answered, arrival, origin: "forked" };
        self.welcome(twin, ready_limit, (own, shared, network), answering).await
    }

    /// How many pages the monitor of VM `id` has in common with others. 0 if that cannot be told. Asked for when all is
    /// done: the kernel takes a millisecond per gigabyte or so.
    async fn shared_pages(&self, id: &str) -> u64 {
        let Some(live) = self.0.supervisor.live(id) else { return 0 };
        let usage = blocking(move || Ok(usage::of_process(live.pid()).ok())).await;
        usage.ok().flatten().map_or(0, |usage| usage.rss_bytes.saturating_sub(usage.private_bytes) / PAGE_BYTES)
    }
}

/// What a child of `parent` is, but for what is its own.
pub(super) fn child_of(parent: &Record) -> Record {
    let generation = parent.generation.saturating_add(1);
    Record { parent: Some(parent.id.clone()), generation, ..parent.clone() }
}

/// What a fork came to.
pub(super) struct Forked {
    pub(super) timings: ForkTimings,
    pub(super) barrier_us: Option<u64>,
    pub(super) guest_gap_us: Option<u64>,
    pub(super) shared_pages: u64,
    pub(super) children: Vec<ChildReport>,
}

/// Checks how many children are asked for.
pub(super) fn check_count(count: usize) -> Result<(), FleetError> {
    if (1..=MAX_CHILDREN).contains(&count) {
        return Ok(());
    }
    Err(FleetError::Invalid(format!("{count} children are not possible: 1 to {MAX_CHILDREN} are")))
}

/// Has the programs of the guest at `socket` stand still for as long as the answer lives, and starts its heart. A fork can
/// do without.
pub(super) async fn raise_barrier(socket: &Path) -> Option<Agent> {
    match Agent::order(socket, &AgentRequest::ForkBarrier, BARRIER_LIMIT).await {
        Ok(agent) => Some(agent),
        Err(error) => {
            tracing::info!(%error, "a fork goes on without a barrier");
            None
        }
    }
}

/// The longest gap that the heart in a parent saw until all of its children had answered, or failed to. `socket` is
/// the parent's, if its heart beats.
pub(super) async fn longest_gap(socket: Option<&Path>, mut all_answered: mpsc::Receiver<()>) -> Option<u64> {
    let socket = socket?;
    all_answered.recv().await; // Nothing is ever sent: it ends with the last sender.
    match Agent::ask(socket, &AgentRequest::HeartbeatStop, HEARTBEAT_LIMIT).await {
        Ok((_, Reply::Gap { longest_us, .. })) => Some(longest_us),
        _ => None,
    }
}

//! One VM becomes many.
//!
//! ```text
//! daemon                                     parent          children
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

use super::boot::{check_env, random};
use super::error::{FleetError, cannot};
use super::files::{Own, Shared, descriptors, open_kvm};
use super::guest::identity;
use super::turns::Turn;
use super::{Fleet, blocking, launch, names, room, wrong_state};
use crate::agent::{Adopted, Agent};
use crate::db::{Change, Insert, Kind, Record, now_ms};
use crate::monitor::{LONG, Monitor, MonitorError};
use crate::paths::Paths;
use crate::usage;
use futures_util::future::join_all;
use pando_disk::MAX_LAYERS;
use pando_wire::agent::{Reply, Request as AgentRequest};
use pando_wire::api::{ChildReport, ChildSpec, ForkReport, ForkRequest, State};
use pando_wire::control::{Fork, ForkTimings, Listener, MAX_CHILDREN, Origin, Request, Response, Start, StartTimings};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use uuid::Uuid;

/// How long a parent's heartbeat may take to tell. Long only where a host has too little for all that runs on it.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(3);
/// How long a parent's programs may take to stand still.
const BARRIER_LIMIT: Duration = Duration::from_secs(1);
/// How long a child may take until its agent answers.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a child's fork hooks may take.
const ADOPT_LIMIT: Duration = Duration::from_secs(60);
/// The unit of `shared_pages`.
const PAGE_BYTES: u64 = 4096;
/// How many threads create the files of children.
const CREATORS: usize = 4;

impl Fleet {
    /// Copies a running or paused VM. The answer tells of every child, also of those that failed.
    pub(crate) async fn fork(&self, name: &str, request: ForkRequest) -> Result<ForkReport, FleetError> {
        let arrival = Instant::now();
        let count = request.children.len();
        if !(1..=MAX_CHILDREN).contains(&count) {
            return Err(FleetError::Invalid(format!("{count} children are not possible: 1 to {MAX_CHILDREN} are")));
        }
        let id = self.find(name).await?.id;
        let _turn = self.0.turns.vm(&id).await;
        let parent = self.find(&id).await?;
        if !matches!(parent.state, State::Running | State::Paused) {
            return Err(wrong_state(&parent, "fork"));
        }
        let needed = room::PER_CHILD.saturating_mul(count as u64);
        room::check(&self.0.meminfo, || format!("{count} children of {}", parent.name), needed)?;
        let layers = self.0.db.layers(&id).await?;
        if layers.len() >= MAX_LAYERS {
            return Err(FleetError::TooDeep {
                name: parent.name,
                wanted: "fork",
                layers: layers.len(),
                most: MAX_LAYERS - 1,
            });
        }

        let socket = self.0.paths.vsock_socket(&id);
        let listens = parent.state == State::Running;
        let (shared, children) = self.prepare(&parent, &layers, request.children).await?;
        let prepare_us = micros(arrival.elapsed());
        // A guest that stands still answers nobody.
        let programs = listens.then_some(socket.as_path());
        let forked = self.fork_prepared(&parent, arrival, shared, children, programs).await;
        let Forked { timings, barrier_us, guest_gap_us, shared_pages, children } = forked?;
        if timings.expected_pages == 0
            && let Some(child) = children.iter().find_map(|child| child.id.clone())
        {
            self.learn_first(&id, &child).await;
        }

        let running = children.iter().filter(|child| child.id.is_some()).count();
        let detail = format!("{running} of {count} children, {} µs pause", timings.pause_us);
        if let Err(error) = self.0.db.record(&id, Kind::Forked, &detail).await {
            // It is forked all the same.
            tracing::error!(vm = id, %error, "cannot write down a fork");
        }
        tracing::info!(vm = id, running, count, pause_us = timings.pause_us, "forked");
        Ok(ForkReport {
            parent: parent.name,
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

    /// Does all that need not wait for the fork: records, files, sockets.
    async fn prepare(
        &self,
        parent: &Record,
        layers: &[String],
        specs: Vec<ChildSpec>,
    ) -> Result<(Shared, Vec<Child>), FleetError> {
        let (of, inherited) = (parent.clone(), layers.to_vec());
        let mut seats = Vec::new();
        for spec in specs {
            let id = Uuid::now_v7().to_string();
            // Before anybody can see the child, so that nobody removes one that is about to be born.
            let turn = self.0.turns.vm(&id).await;
            seats.push((Seat { id, turn }, spec));
        }
        let planned = self.0.db.insert_vms(move |is_taken| plan(&of, &inherited, seats, is_taken)).await?;

        let plans = planned.iter().filter_map(|child| child.plan.as_ref().ok());
        let records: Vec<_> = plans.map(|birth| birth.record.clone()).collect();
        // Both to their ends: nothing may be created once it is being removed.
        let (shared, mut children) = match tokio::join!(self.open_shared(parent, layers), self.create_all(planned)) {
            (Ok(shared), Ok(children)) => (shared, children),
            (shared, created) => {
                // The turns of the children are in `created`.
                join_all(records.iter().map(|record| self.discard(record))).await;
                return Err(shared.err().or(created.err()).unwrap_or(FleetError::CutShort));
            }
        };
        for child in &mut children {
            if let Err((birth, _)) = &mut child.prepared
                && let Some(birth) = birth.take()
            {
                self.discard(&birth.record).await;
            }
        }
        Ok((shared, children))
    }

    /// Opens what all children inherit. The parent's own layer is among it.
    async fn open_shared(&self, parent: &Record, layers: &[String]) -> Result<Shared, FleetError> {
        let (fleet, image, layers) = (self.clone(), parent.image.clone(), layers.to_vec());
        blocking(move || {
            let kvm = open_kvm(&fleet.0.kvm)?;
            Shared::open(&fleet.0.paths, kvm, &image, &layers, false)
        })
        .await
    }

    /// Creates the files and sockets of every child, on a few threads: on a disk it is the larger part of the time
    /// that a large fork takes before it begins.
    async fn create_all(&self, planned: Vec<Planned>) -> Result<Vec<Child>, FleetError> {
        let share = planned.len().div_ceil(CREATORS);
        let mut planned = planned.into_iter();
        let mut creating = Vec::new();
        while planned.len() > 0 {
            let (fleet, some) = (self.clone(), planned.by_ref().take(share).collect::<Vec<_>>());
            creating.push(tokio::task::spawn_blocking(move || {
                some.into_iter().map(|child| create(&fleet.0.paths, child)).collect::<Vec<_>>()
            }));
        }
        let mut children = Vec::new();
        for created in creating {
            children.extend(created.await.map_err(|_| FleetError::CutShort)?);
        }
        Ok(children)
    }

    /// Forks `parent` into those `children` that are prepared, and waits until each of them runs or has failed.
    /// `programs` is the parent's vsock socket if its programs are to stand still meanwhile.
    async fn fork_prepared(
        &self,
        parent: &Record,
        arrival: Instant,
        shared: Shared,
        children: Vec<Child>,
        programs: Option<&Path>,
    ) -> Result<Forked, FleetError> {
        let shared = Arc::new(shared);
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
            Some(socket) if !sockets.is_empty() => order(socket, AgentRequest::ForkBarrier, BARRIER_LIMIT).await,
            _ => None,
        };
        let barrier_us = micros(raised.elapsed());
        let (answering, all_answered) = mpsc::channel(1);
        let raising: Vec<_> = waiting
            .into_iter()
            .map(|(name, child)| {
                let (fleet, shared, answering) = (self.clone(), Arc::clone(&shared), answering.clone());
                let raise = |(birth, own): (Birth, Own)| {
                    let record = birth.record.clone();
                    (birth, tokio::spawn(fleet.raise(record, own, shared, arrival, answering)))
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
            Ok(timings) => timings,
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
    async fn ask_for_fork(&self, parent: &Record, sockets: Vec<Listener>) -> Result<ForkTimings, FleetError> {
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
        answering: mpsc::Sender<()>,
    ) -> Result<ChildReport, FleetError> {
        let inner = &self.0;
        let start = Start {
            origin: Origin::Fork,
            generation: random()?,
            inherited_layers: shared.layer_count(),
            layer: inner.paths.layer(&record.id).display().to_string(),
        };
        let failed = |source| FleetError::Monitor { name: record.name.clone(), wanted: "start", source };
        let monitor = Arc::new(Monitor::connect(&inner.paths.control_socket(&record.id)).map_err(failed)?);
        // All of it waits for the child to be born.
        monitor.send(&Request::Watch, &[]).await.map_err(failed)?;
        monitor.send(&Request::Status, &[]).await.map_err(failed)?;
        monitor.send(&Request::Start(start), &descriptors(&shared, &own, None)).await.map_err(failed)?;
        let process = launch::born(&monitor).await.map_err(failed)?;
        let pid = process.pid();
        let (live, answered) = inner.supervisor.supervise(&record.id, record.epoch, process, monitor);

        let vsock = inner.paths.vsock_socket(&record.id);
        let written = async { Ok(inner.db.change(&record.id, record.epoch, Change::Monitored { pid }).await?) };
        let ready = async {
            let timings = launch::started(answered).await.map_err(failed)?;
            let runs = Instant::now();
            drop((own, shared)); // They are the monitor's now.
            let answer = Agent::reach(&vsock, &AgentRequest::Ping, READY_LIMIT).await;
            let (ready_us, agent_us) = (micros(arrival.elapsed()), micros(runs.elapsed()));
            answer
                .map(|_| (timings, ready_us, agent_us))
                .map_err(|source| FleetError::Agent { name: record.name.clone(), source })
        };
        let died = |ending| FleetError::Boot {
            name: record.name.clone(),
            reason: format!("it {ending}"),
            console: Vec::new(),
        };
        let (_, (timings, ready_us, agent_us)) = tokio::select! {
            ready = async { tokio::try_join!(written, ready) } => ready?,
            ending = launch::ended(&live) => return Err(died(ending)),
        };
        drop(answering);

        let answered = Instant::now();
        let adopt = Agent::adopt(&vsock, identity(&record), random()?, ADOPT_LIMIT);
        let adopted = tokio::select! {
            adopted = adopt => adopted,
            ending = launch::ended(&live) => return Err(died(ending)),
        };
        // If it does not answer, perhaps it does not know who it is, and a twin that thinks it is its parent must not run.
        let Adopted { reseeded, failure } =
            adopted.map_err(|source| FleetError::Agent { name: record.name.clone(), source })?;
        let adopt_us = micros(answered.elapsed());
        let is_running = inner.db.change(&record.id, record.epoch, Change::Running { detail: "forked" }).await?;
        if !is_running {
            return Err(wrong_state(&self.find(&record.id).await?, "use"));
        }
        Ok(ChildReport {
            name: record.name,
            id: Some(record.id),
            ready_us: Some(ready_us),
            phases_us: phases(&timings, agent_us, adopt_us),
            reseeded: Some(reseeded),
            // What its hooks did not do is for its owner to see, in the child.
            error: failure.map(|failure| failure.message),
        })
    }

    /// Makes the names of all layers durable.
    async fn sync_layer_names(&self) -> Result<(), FleetError> {
        let paths = self.0.paths.clone();
        blocking(move || crate::paths::sync(&paths.all_layers()).map_err(cannot("sync the disks' folder"))).await
    }

    /// In the background, makes durable what is in the children's layers (empty files, which a guest's first flush makes
    /// durable on every common file system): to wait for the disk once per child would make a large fork a slow one.
    fn sync_layers(&self, reports: &[ChildReport]) {
        let paths = self.0.paths.clone();
        let ids: Vec<_> = reports.iter().filter_map(|report| report.id.clone()).collect();
        tokio::task::spawn_blocking(move || {
            for id in ids {
                match crate::paths::sync(&paths.layer(&id)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::error!(vm = id, %error, "cannot sync its disk's folder");
                    }
                    _ => (), // Done, or removed by now.
                }
            }
        });
    }

    /// How many pages the monitor of VM `id` has in common with others. 0 if that cannot be told. Asked for when all is
    /// done: the kernel takes a millisecond per gigabyte or so.
    async fn shared_pages(&self, id: &str) -> u64 {
        let Some(live) = self.0.supervisor.live(id) else { return 0 };
        let usage = blocking(move || Ok(usage::of_process(live.pid()).ok())).await;
        usage.ok().flatten().map_or(0, |usage| usage.rss_bytes.saturating_sub(usage.private_bytes) / PAGE_BYTES)
    }
}

/// What a fork came to.
struct Forked {
    timings: ForkTimings,
    barrier_us: Option<u64>,
    guest_gap_us: Option<u64>,
    shared_pages: u64,
    children: Vec<ChildReport>,
}

/// What a child is before anybody knows whether there will be one: its id, and the turn of it.
struct Seat {
    id: String,
    turn: Turn,
}

/// A child that is in the database, and that nobody else does anything with until it runs or is removed.
struct Birth {
    record: Record,
    _turn: Turn,
}

/// A child as it was asked for.
struct Planned {
    name: String,
    plan: Result<Birth, FleetError>,
}

/// A child with everything that can be had before the fork.
struct Child {
    name: String,
    /// Or why not, and what has to be removed again.
    prepared: Result<Prepared, (Option<Birth>, FleetError)>,
}

struct Prepared {
    birth: Birth,
    own: Own,
    control: Listener,
}

/// Decides what each child will be; `is_taken` tells which names are.
fn plan(
    parent: &Record,
    layers: &[String],
    specs: Vec<(Seat, ChildSpec)>,
    is_taken: &dyn Fn(&str) -> bool,
) -> (Vec<Insert>, Vec<Planned>) {
    // A name that was chosen goes before one that is made up, wherever in the list they are.
    let mut chosen: HashSet<String> = HashSet::new();
    let checked: Vec<_> = specs
        .into_iter()
        .map(|(seat, spec)| {
            let checked = check_env(spec.env.keys()).and_then(|()| match &spec.name {
                None => Ok(()),
                Some(name) => {
                    names::check(name)?;
                    let is_free = !is_taken(name) && chosen.insert(name.clone());
                    if is_free { Ok(()) } else { Err(FleetError::NameTaken(name.clone())) }
                }
            });
            (seat, spec, checked)
        })
        .collect();
    let mut next = 1;
    let mut inserts = Vec::new();
    let planned = checked
        .into_iter()
        .map(|(Seat { id, turn }, spec, checked)| {
            let name = spec.name.unwrap_or_else(|| {
                names::of_child(&parent.name, &mut next, |name| is_taken(name) || chosen.contains(name))
            });
            let plan = checked.map(|()| {
                let mut env = parent.env.clone();
                env.extend(spec.env);
                let record = Record {
                    id,
                    name: name.clone(),
                    state: State::Starting,
                    ending: None,
                    pid: None,
                    parent: Some(parent.id.clone()),
                    generation: parent.generation.saturating_add(1),
                    env,
                    created_ms: now_ms(),
                    epoch: 1,
                    ..parent.clone()
                };
                inserts.push(Insert { record: record.clone(), inherited: layers.to_vec() });
                Birth { record, _turn: turn }
            });
            Planned { name, plan }
        })
        .collect();
    (inserts, planned)
}

/// Creates the files and sockets of one child. Blocks.
fn create(paths: &Paths, child: Planned) -> Child {
    let prepared = match child.plan {
        Err(error) => Err((None, error)),
        Ok(birth) => match Own::create(paths, &birth.record.id) {
            Ok((own, control)) => Ok(Prepared { birth, own, control }),
            Err(error) => Err((Some(birth), error)),
        },
    };
    Child { name: child.name, prepared }
}

/// Tells the agent at `socket` to do something that a fork can do without.
async fn order(socket: &Path, request: AgentRequest, limit: Duration) -> Option<Agent> {
    match Agent::order(socket, &request, limit).await {
        Ok(agent) => Some(agent),
        Err(error) => {
            tracing::info!(?request, %error, "a fork goes on without");
            None
        }
    }
}

/// The longest gap that the heart in a parent saw until all of its children had answered, or failed to. `socket` is
/// the parent's, if its heart beats.
async fn longest_gap(socket: Option<&Path>, mut all_answered: mpsc::Receiver<()>) -> Option<u64> {
    let socket = socket?;
    all_answered.recv().await; // Nothing is ever sent: it ends with the last sender.
    match Agent::ask(socket, &AgentRequest::HeartbeatStop, HEARTBEAT_LIMIT).await {
        Ok((_, Reply::Gap { longest_us, .. })) => Some(longest_us),
        _ => None,
    }
}

fn failure(name: String, error: &FleetError) -> ChildReport {
    let error = Some(error.in_one_line());
    ChildReport { name, id: None, ready_us: None, phases_us: BTreeMap::new(), reseeded: None, error }
}

fn phases(timings: &StartTimings, agent_us: u64, adopt_us: u64) -> BTreeMap<String, u64> {
    let StartTimings { total_us, seed_us, wait_us, create_vm_us, memory_us, copy_us, map_us, vcpus_us, devices_us } =
        *timings;
    [
        ("total", total_us),
        ("agent", agent_us),
        ("adopt", adopt_us),
        ("seed", seed_us),
        ("wait", wait_us),
        ("create_vm", create_vm_us),
        ("memory", memory_us),
        ("copy", copy_us),
        ("map", map_us),
        ("vcpus", vcpus_us),
        ("devices", devices_us),
    ]
    .map(|(phase, us)| (phase.to_owned(), us))
    .into()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

//! Monitors as processes: starting them, seeing them end, finding them again.
//!
//! *Invariant: whatever a VM has on the host besides its disk and its logs goes away here, in [`Supervisor::supervise`],
//! within a second of its end, however it ended.*

mod cgroup; // a control group per VM
mod holder; // who writes a disk
mod process; // a process that is perhaps not our child
mod spawn; // starting a monitor, or a page server

pub(crate) use holder::lock;
use process::FORCED_LIMIT;
pub(crate) use process::Process;
pub(crate) use spawn::{serve_pages, spawn};

use crate::db::{Change, Db};
use crate::monitor::{Monitor, MonitorError};
use crate::paths::{self, Paths};
use cgroup::Cgroups;
use pando_wire::control::{Ending, Request, Response};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

/// How long a monitor that was told to end may take until it is forced to.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// How often it is tried to find and end whoever writes a disk.
const EVICTIONS: usize = 10;

/// Said of a VM whose monitor went without a word.
pub(crate) const DIED: &str = "monitor died";

/// Every monitor that runs.
#[derive(Debug)]
pub(crate) struct Supervisor {
    db: Db,
    paths: Paths,
    cgroups: Option<Cgroups>,
    live: Mutex<HashMap<String, Arc<Live>>>,
    /// Becomes true when the last request was answered, and then nobody touches anything any more.
    closing: watch::Receiver<bool>,
}

/// What ends with a monitor.
#[derive(Debug, Clone, Copy)]
enum Ward {
    Vm,
    /// A checkpoint goes on without its seed.
    Seed,
}

/// One monitor that runs, or one seed.
#[derive(Debug)]
pub(crate) struct Live {
    process: Process,
    /// Why it ended, once everything is put away.
    ended: watch::Sender<Option<String>>,
    /// Some of the VM's memory may still be on its way from the store.
    arrives: AtomicBool,
}

impl Live {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Whether some of the VM's memory may still be on its way. One that was adopted may have woken just before.
    pub(crate) fn arrives(&self) -> bool {
        self.arrives.load(Ordering::Relaxed)
    }

    /// Says whether it may.
    pub(crate) fn set_arrives(&self, arrives: bool) {
        self.arrives.store(arrives, Ordering::Relaxed);
    }

    /// Waits until the VM has ended and everything of it is put away; the answer is why it ended.
    pub(crate) async fn ended(&self) -> String {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ending) => ending.clone().unwrap_or_default(),
            // Its sender is `self`.
            Err(_) => DIED.to_owned(),
        }
    }
}

impl Supervisor {
    pub(crate) fn new(db: Db, paths: Paths, closing: watch::Receiver<bool>) -> Self {
        Self { db, paths, cgroups: Cgroups::find(), live: Mutex::default(), closing }
    }

    /// The monitor of VM `id`, or the seed of checkpoint `id`, if it runs.
    pub(crate) fn live(&self, id: &str) -> Option<Arc<Live>> {
        self.lock().get(id).cloned()
    }

    /// Looks after the monitor of VM `id` from here on, over `monitor`, which was sent a `Watch` and on which nobody else
    /// may wait for anything any more. The second answer is what the monitor says to its `Start`: it ends without one
    /// when the VM does.
    pub(crate) fn supervise(
        self: &Arc<Self>,
        id: &str,
        epoch: i64,
        process: Process,
        monitor: Arc<Monitor>,
    ) -> (Arc<Live>, oneshot::Receiver<Response>) {
        self.look_after(Ward::Vm, id, epoch, process, monitor)
    }

    /// The same for the seed of checkpoint `id`, which nobody starts.
    pub(crate) fn supervise_seed(self: &Arc<Self>, id: &str, epoch: i64, process: Process, monitor: Arc<Monitor>) {
        // What it answers to nobody's question, nobody reads.
        let _ = self.look_after(Ward::Seed, id, epoch, process, monitor);
    }

    fn look_after(
        self: &Arc<Self>,
        ward: Ward,
        id: &str,
        epoch: i64,
        process: Process,
        monitor: Arc<Monitor>,
    ) -> (Arc<Live>, oneshot::Receiver<Response>) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.enter(id, process.pid());
        }
        let live = Arc::new(Live { process, ended: watch::Sender::new(None), arrives: AtomicBool::new(false) });
        self.lock().insert(id.to_owned(), Arc::clone(&live));
        let (answer, answered) = oneshot::channel();
        let (supervisor, id, watched) = (Arc::clone(self), id.to_owned(), Arc::clone(&live));
        tokio::spawn(async move {
            let mut closing = supervisor.closing.clone();
            let ending = tokio::select! {
                ending = end(&monitor, &watched.process, answer) => ending,
                // The VM outlives this daemon.
                _ = closing.wait_for(|over| *over) => return,
            };
            supervisor.put_away(ward, &id, epoch, &watched, ending).await;
        });
        (live, answered)
    }

    /// Ends the VM `id` now, whatever it is doing, and waits until everything is put away. The answer is why it ended,
    /// or `None` if it does not run.
    pub(crate) async fn kill(&self, id: &str) -> Option<String> {
        let live = self.live(id)?;
        let asked = async {
            Monitor::connect(&self.paths.control_socket(id))?.order(&Request::Kill).await?;
            Ok::<_, MonitorError>(live.ended().await)
        };
        if let Ok(Ok(ending)) = timeout(KILL_LIMIT, asked).await {
            return Some(ending);
        }
        // It may have ended without an answer; then this finds nobody.
        live.process.kill();
        timeout(FORCED_LIMIT, live.ended()).await.ok()
    }

    /// Ends the monitor that listens on the control socket of VM `id`, which nobody looks after: one that was never told
    /// what to be.
    pub(crate) async fn end_unknown(&self, id: &str) {
        let asked = async {
            let monitor = Monitor::connect(&self.paths.control_socket(id))?;
            // One that is not born yet finds both when it is.
            monitor.send(&Request::Status, &[]).await?;
            monitor.send(&Request::Kill, &[]).await?;
            match monitor.receive().await? {
                Response::Status(status) => Ok(status.pid),
                _ => Err(MonitorError::Confused),
            }
        };
        let Ok(Ok(pid)) = timeout(KILL_LIMIT, asked).await else { return };
        if let Ok(process) = Process::hold(pid) {
            process.end(id).await;
        }
    }

    /// Ends whoever still writes `layer`, the one of VM `id`: a monitor that cannot be reached any more.
    ///
    /// # Errors
    ///
    /// Fails where it cannot be told who that is, or where they cannot be ended.
    pub(crate) async fn evict(&self, id: &str, layer: &str) -> io::Result<()> {
        for _ in 0..EVICTIONS {
            let path = self.paths.layer_data(layer);
            if !blocking(move || holder::is_held(&path)).await? {
                return Ok(());
            }
            let find = || {
                let path = self.paths.layer_data(layer);
                blocking(move || holder::holders(&path))
            };
            for pid in find().await? {
                // It may have ended meanwhile.
                let Ok(process) = Process::hold(pid) else { continue };
                // The number may have come to mean another one before it was held.
                if find().await?.contains(&pid) {
                    tracing::warn!(vm = id, pid, "a monitor that nobody looks after is ended");
                    process.kill();
                    process.end(id).await;
                }
            }
            // A process that is just ending, or one that is just being forked.
            sleep(Duration::from_millis(100)).await;
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "a process that cannot be found writes its disk"))
    }

    /// Puts away the control groups that an earlier daemon left.
    pub(crate) fn sweep_groups(&self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.sweep();
        }
    }

    /// Puts away what a VM that no longer runs has left, if it has.
    pub(crate) async fn sweep(&self, id: &str) {
        let sockets = self.paths.sockets(id);
        let removed = tokio::task::spawn_blocking(move || paths::remove(&sockets)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(vm = id, %error, "cannot remove its sockets");
        }
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove(id).await;
        }
    }

    /// Puts away what the seed of checkpoint `id`, which no longer runs, has left, if it has: above all the layers that only
    /// it needed.
    pub(crate) async fn put_seed_away(&self, id: &str, epoch: i64) {
        self.sweep(id).await;
        let unused = match self.db.seed_is_gone(id, epoch).await {
            Ok(unused) => unused,
            Err(error) => {
                tracing::error!(checkpoint = id, %error, "cannot write down that its seed ended");
                return;
            }
        };
        let layers: Vec<_> = unused.iter().map(|layer| self.paths.layer(layer)).collect();
        let removed = blocking(move || layers.iter().try_for_each(|layer| paths::remove(layer))).await;
        if let Err(error) = removed {
            tracing::warn!(checkpoint = id, %error, "cannot remove the layers of its seed");
        }
    }

    /// Puts a process that works for VM `id` into its control group, where its threads are weighed against the VM's own, waits
    /// in the background for its end, which nobody else waits for, and takes it out of the process table. `until_then` is
    /// dropped then.
    pub(crate) fn adopt_helper<T: Send + 'static>(&self, id: &str, process: Process, until_then: T) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.enter(id, process.pid());
        }
        let mut closing = self.closing.clone();
        tokio::spawn(async move {
            let _until_then = until_then;
            tokio::select! {
                () = gone(&process) => process.reap(),
                _ = closing.wait_for(|over| *over) => (),
            }
        });
    }

    async fn put_away(&self, ward: Ward, id: &str, epoch: i64, live: &Live, ending: String) {
        live.process.end(id).await;
        match ward {
            Ward::Vm => self.put_vm_away(id, epoch, &ending).await,
            Ward::Seed => {
                tracing::info!(checkpoint = id, ending, "its seed ended");
                self.put_seed_away(id, epoch).await;
            }
        }
        {
            let mut all = self.lock();
            // It may have been started again, since it is written down that it stopped.
            if all.get(id).is_some_and(|other| std::ptr::eq(&raw const **other, live)) {
                all.remove(id);
            }
        }
        live.ended.send_replace(Some(ending));
    }

    async fn put_vm_away(&self, id: &str, epoch: i64, ending: &str) {
        self.sweep(id).await;
        tracing::info!(vm = id, ending, "stopped");
        match self.db.change(id, epoch, Change::Stopped { ending }).await {
            Ok(true) => (),
            Ok(false) => tracing::warn!(vm = id, "it had been stopped already"),
            Err(error) => tracing::error!(vm = id, %error, "cannot write down that it stopped"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Live>>> {
        // No code that holds it can panic half-way through a change.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until the VM ends; the answer is why. What the monitor says to its `Start` goes to `answer`.
async fn end(monitor: &Monitor, process: &Process, answer: oneshot::Sender<Response>) -> String {
    let mut answer = Some(answer);
    let said = async {
        loop {
            match monitor.receive().await {
                Ok(Response::Ended(ending)) => return Some(ending),
                Ok(Response::Done) => (), // To the `Watch`.
                Ok(response) => {
                    if let Some(answer) = answer.take() {
                        // Whoever asked may have given up.
                        let _ = answer.send(response);
                    }
                }
                Err(_) => return None,
            }
        }
    };
    tokio::pin!(said);
    let ending = tokio::select! {
        ending = &mut said => ending,
        // Its last words may have been on their way.
        () = gone(process) => timeout(Duration::from_millis(50), said).await.unwrap_or_default(),
    };
    match ending {
        Some(Ending::PowerOff) => "powered off".into(),
        Some(Ending::Reset) => "reset".into(),
        Some(Ending::Killed) => "killed".into(),
        Some(Ending::Crashed(how)) => format!("crashed: {how}"),
        None => DIED.into(),
    }
}

/// Runs what blocks in a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

async fn gone(process: &Process) {
    if let Err(error) = process.exited().await {
        // The connection still tells of the end.
        tracing::warn!(pid = process.pid(), %error, "cannot watch a process");
        std::future::pending::<()>().await;
    }
}

//! Many VMs: every operation on them, in words that know nothing of HTTP.
//!
//! *Invariants.* One operation at a time per VM; `kill` alone does not wait for its turn. The database says what there
//! is; what is kept in memory is which monitors run. An operation, once begun, runs to its end.

mod adopt; // finding the VMs of an earlier daemon
mod birth; // children before they are born
mod boot; // from nothing, or from a stopped VM's disk, to an agent that answers
mod burst; // many children of one fork
mod checkpoint; // a VM as it was at one instant, for others to begin from
mod connect; // to what listens in a VM
mod error; // what can be wrong
mod exec; // running a program in a VM
mod files; // the files that a monitor is handed
mod foreign; // VMs of another build
mod fork; // one VM becomes many
mod guest; // kernel and initramfs
mod idle; // VMs that nobody uses hibernate
mod last_seen; // what did not come to life
mod launch; // a monitor is told what to be
mod learn; // what children of a VM write first
mod life; // pause, resume, stop, kill, remove
mod load; // VMs whose memory comes as they touch it
mod logs; // what a VM wrote to its console
mod network; // what a VM reaches
mod names; // possible names, made-up names
mod pager; // children that pull what their parent is
mod ports; // which of them can be seen from outside
mod publish; // which ports of the host are theirs
mod progress; // how far long work is
mod presence; // who is in a VM, and the door that is closed while it falls asleep
mod room; // whether the host has memory
mod settings; // how this daemon is set
mod traffic; // what passed the network of one, and what was refused
mod turns; // one operation at a time per VM
mod twin; // a twin becomes itself

pub use checkpoint::bucket_spec;
pub(crate) use error::{FleetError, cannot};
pub(crate) use names::is_name;
pub(crate) use presence::Visit;

use crate::agent::Agent;
use crate::config::Config;
use crate::db::{Db, Record};
use crate::images::{Incoming, import_stream};
use crate::network::Networks;
use crate::paths::Paths;
use crate::publish::Board as Ports;
use crate::settings::Settings;
use crate::supervisor::Supervisor;
use crate::usage;
use checkpoint::{Saves, Uses};
use foreign::Foreign;
use guest::Guests;
use learn::Lessons;
use pando_wire::api::{Event, Image, State, Vm};
use presence::Presence;
use progress::Watched;
use settings::Board;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use turns::Turns;

/// How long an agent that should be there may take to answer. Where twenty guests share a CPU, it takes seconds to what takes
/// milliseconds in one that is alone.
const AGENT_LIMIT: Duration = Duration::from_secs(20);

/// All VMs of this daemon.
#[derive(Debug, Clone)]
pub(crate) struct Fleet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    monitor: PathBuf,
    kvm: PathBuf,
    meminfo: PathBuf,
    paths: Paths,
    db: Db,
    supervisor: Arc<Supervisor>,
    guests: Guests,
    networks: Networks,
    published: Ports,
    turns: Turns,
    presence: Presence,
    settings: Board,
    lessons: Lessons,
    foreign: Foreign,
    saves: Saves,
    uses: Uses,
    watched: Watched,
    keep_seeds: Duration,
    shutdown: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
}

impl Fleet {
    /// The fleet that `db` tells of. Call [`Fleet::adopt`] before anything else. `shutdown` becomes true when the daemon
    /// is told to end, `closing` when it has answered all that it was asked before.
    pub(crate) fn new(
        config: &Config,
        settings: Settings,
        paths: Paths,
        db: Db,
        networks: Networks,
        shutdown: watch::Receiver<bool>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self(Arc::new(Inner {
            monitor: config.monitor.clone(),
            kvm: config.kvm.clone(),
            meminfo: config.meminfo.clone(),
            supervisor: Arc::new(Supervisor::new(db.clone(), paths.clone(), closing.clone())),
            paths,
            db,
            guests: Guests::default(),
            networks,
            published: Ports::default(),
            turns: Turns::default(),
            presence: Presence::default(),
            settings: Board::new(settings),
            lessons: Lessons::default(),
            foreign: Foreign::default(),
            saves: Saves::default(),
            uses: Uses::default(),
            watched: Watched::default(),
            keep_seeds: config.keep_seeds,
            shutdown,
            closing,
        }))
    }

    /// Every VM, oldest first.
    pub(crate) async fn list(&self) -> Result<Vec<Vm>, FleetError> {
        Ok(self.0.db.vms().await?.into_iter().map(|record| self.show(record)).collect())
    }

    /// One VM, by name or id, with what its memory costs.
    pub(crate) async fn get(&self, name: &str) -> Result<Vm, FleetError> {
        let mut vm = self.show(self.look_up(name).await?);
        if let Some(live) = self.0.supervisor.live(&vm.id) {
            let pid = live.pid();
            // It may end meanwhile, and then it costs nothing.
            vm.usage = blocking(move || Ok(usage::of_process(pid).ok())).await?;
            vm.sleepless = self.0.presence.sleepless(&vm.id);
            vm.traffic = self.traffic(&vm, live).await;
        }
        Ok(vm)
    }

    /// A VM as the API shows it.
    fn show(&self, record: Record) -> Vm {
        let vm = self.0.foreign.show(record);
        Vm { published: self.0.published.of(&vm.id), ..vm }
    }

    /// Every image.
    pub(crate) async fn images(&self) -> Result<Vec<Image>, FleetError> {
        Ok(self.0.db.images().await?)
    }

    /// Makes an image of an archive or a raw disk.
    pub(crate) async fn import(&self, incoming: Incoming) -> Result<Image, FleetError> {
        // So that the file of an image which is imported again is not removed at the same time.
        let _turn = self.0.turns.images().await;
        let paths = self.0.paths.clone();
        let image = blocking(move || import_stream(&paths, incoming)).await?;
        self.0.db.insert_image(&image).await?;
        Ok(image)
    }

    /// Forgets an image that nothing needs.
    pub(crate) async fn remove_image(&self, digest: &str) -> Result<(), FleetError> {
        let _turn = self.0.turns.images().await;
        // Also keeps whatever was sent from being taken for a path.
        let Some(image) = self.0.db.image(digest).await? else {
            return Err(FleetError::NoSuchImage(digest.to_owned()));
        };
        if let Some(vm) = self.0.db.remove_image(&image.digest).await? {
            return Err(FleetError::ImageInUse { digest: image.digest, vm });
        }
        let path = self.0.paths.image(&image.digest);
        blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(cannot(format!("remove {}", path.display()))(error))
            }
            _ => Ok(()),
        })
        .await
    }

    /// At most `limit` events behind number `after`, oldest first.
    pub(crate) async fn events(&self, after: i64, limit: i64) -> Result<Vec<Event>, FleetError> {
        Ok(self.0.db.events(after, limit).await?)
    }

    /// The number of the newest event, to wait for newer ones.
    pub(crate) fn newest_event(&self) -> watch::Receiver<i64> {
        self.0.db.newest()
    }

    /// Becomes true when the daemon ends.
    pub(crate) fn shutdown(&self) -> watch::Receiver<bool> {
        self.0.shutdown.clone()
    }

    /// A connection to the agent of a VM, for a client that speaks its protocol.
    /// With the VM's id, and that somebody is in it.
    pub(crate) async fn agent(&self, name: &str) -> Result<(UnixStream, String, Visit), FleetError> {
        let (record, visit) = self.enter(name, "reach").await?;
        let socket = self.0.paths.vsock_socket(&record.id);
        let opened = Agent::open(&socket, AGENT_LIMIT).await;
        let stream = opened.map_err(|source| FleetError::Agent { name: record.name, source })?;
        Ok((stream, record.id, visit))
    }

    /// The VM of this name or id, to do something with it, which is a use of it.
    async fn find(&self, name: &str) -> Result<Record, FleetError> {
        let record = self.look_up(name).await?;
        self.0.presence.note(&record.id);
        self.0.foreign.check(&record).map(|()| record)
    }

    /// The VM of this name or id, to look at it.
    async fn look_up(&self, name: &str) -> Result<Record, FleetError> {
        self.0.db.vm(name).await?.ok_or_else(|| FleetError::NoSuchVm(name.to_owned()))
    }

    /// The VM of this name or id, which must be running.
    async fn running(&self, name: &str, wanted: &'static str) -> Result<Record, FleetError> {
        let record = self.find(name).await?;
        if record.state == State::Running { Ok(record) } else { Err(wrong_state(&record, wanted)) }
    }
}

fn wrong_state(record: &Record, wanted: &'static str) -> FleetError {
    FleetError::State { name: record.name.clone(), is: record.state, wanted }
}

/// Runs what blocks in a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FleetError> + Send + 'static,
) -> Result<T, FleetError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FleetError::CutShort)?
}

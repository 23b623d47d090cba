//! `pando vmm`, driven over its control socket as the daemon does it, without the daemon.

use crate::Toy;
use pando_disk::{BLOCK_BYTES, Disk, Files};
use pando_sys::threads;
use pando_wire::control::{
    Boot, Connection, Fork, ForkTimings, Listener, Origin, Request, Response, Start, StartNetwork, StartTimings,
    WorkingSet,
};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{error, fmt, io, thread};
use tempfile::TempDir;

/// The disk that every toy has and none looks at.
const DISK_BYTES: u64 = 4096;

/// How long a monitor may take for anything. One that hangs takes for ever.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A running monitor with a toy guest. It ends when this is dropped.
#[derive(Debug)]
pub struct Monitor {
    pub(crate) dir: Arc<TempDir>,
    /// Those of its ancestors, which hold the files below and outlive them.
    pub(crate) ancestors: Vec<Arc<TempDir>>,
    pub(crate) base: PathBuf,
    /// The data files of the layers that the disk inherited, oldest first.
    pub(crate) inherited: Vec<PathBuf>,
    /// The monitor that was started here; a child of a fork is somebody else's to reap.
    process: Option<std::process::Child>,
}

/// What a monitor boots.
#[derive(Debug, Clone)]
pub struct Guest {
    /// An ELF executable.
    pub kernel: Vec<u8>,
    /// 1 to 32.
    pub vcpus: u8,
    /// A multiple of 2 MiB.
    pub memory_bytes: u64,
    /// All zeroes at first; a multiple of 4096.
    pub disk_bytes: u64,
}

impl Guest {
    /// How its machine is powered on.
    pub fn boot(&self) -> Boot {
        Boot {
            vcpus: self.vcpus,
            memory_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
            command_line: String::new(),
            recover_layers: false,
        }
    }
}

/// A child of a fork, and where its time went.
#[derive(Debug)]
pub struct Child {
    /// Its monitor.
    pub monitor: Monitor,
    /// What it reported.
    pub timings: StartTimings,
}

/// What a monitor did not do.
#[derive(Debug)]
pub enum MonitorError {
    /// It said no.
    Refused(Vec<String>),
    /// It answered something else than what was asked, or nothing.
    Answer(String),
    /// The host would not.
    Host(io::Error),
    /// The guest did not get there in time.
    TimedOut,
}

impl fmt::Display for MonitorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(chain) => write!(f, "{}", chain.join(": ")),
            Self::Answer(answer) => write!(f, "the monitor answered {answer}"),
            Self::Host(error) => write!(f, "{error}"),
            Self::TimedOut => write!(f, "the guest did not get there in time"),
        }
    }
}

impl error::Error for MonitorError {}

impl From<io::Error> for MonitorError {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// Whether `/dev/kvm` can be opened here; native tests with toy guests need no more.
pub fn usable_kvm() -> bool {
    read_write("/dev/kvm".as_ref()).is_ok()
}

impl Monitor {
    /// Starts the `pando` at `pando` as a monitor and boots `toy` in it.
    pub fn boot(pando: &Path, toy: &Toy, memory_bytes: u64) -> Result<Self, MonitorError> {
        Self::boot_guest(pando, &Guest { kernel: toy.elf(), vcpus: 1, memory_bytes, disk_bytes: DISK_BYTES })
    }

    /// Starts the `pando` at `pando` as a monitor and boots `guest` in it.
    pub fn boot_guest(pando: &Path, guest: &Guest) -> Result<Self, MonitorError> {
        Self::spawn(pando)?.boot_with(guest, guest.boot())
    }

    /// The same, with a network: the queues of a tap.
    pub fn boot_networked(pando: &Path, guest: &Guest, taps: Vec<OwnedFd>) -> Result<Self, MonitorError> {
        let monitor = Self::spawn(pando)?;
        let files = monitor.kernel_of(guest)?;
        monitor.start_networked(Origin::Boot(guest.boot()), files, taps)?;
        Ok(monitor)
    }

    /// The same as [`Monitor::boot_guest`], where these blocks of the disk were written to before.
    pub fn boot_used(
        pando: &Path,
        guest: &Guest,
        blocks: impl IntoIterator<Item = (u64, [u8; BLOCK_BYTES as usize])>,
    ) -> Result<Self, MonitorError> {
        let monitor = Self::spawn(pando)?;
        let file = |name: &str| read_write(&monitor.dir.path().join(name));
        let files = Files {
            base: File::open(&monitor.base)?,
            inherited: Vec::new(),
            data: file("data")?,
            journal: file("journal")?,
        };
        let mut disk = Disk::create(files, guest.disk_bytes).map_err(io::Error::other)?;
        for (block, bytes) in blocks {
            disk.write_at(block * BLOCK_BYTES, &bytes).map_err(io::Error::other)?;
        }
        disk.flush().map_err(io::Error::other)?;
        monitor.boot_with(guest, Boot { recover_layers: true, ..guest.boot() })
    }

    fn boot_with(self, guest: &Guest, boot: Boot) -> Result<Self, MonitorError> {
        let files = self.kernel_of(guest)?;
        self.start(Origin::Boot(boot), files)?;
        Ok(self)
    }

    fn kernel_of(&self, guest: &Guest) -> Result<Vec<OwnedFd>, MonitorError> {
        let at = |name: &str| self.dir.path().join(name);
        fs::write(at("toy"), &guest.kernel)?;
        fs::write(at("initramfs"), b"")?;
        Ok(vec![File::open(at("toy"))?.into(), File::open(at("initramfs"))?.into()])
    }

    /// Starts the `pando` at `pando` as a monitor, with nothing in it yet.
    pub(crate) fn spawn(pando: &Path) -> Result<Self, MonitorError> {
        let dir = Arc::new(tempfile::tempdir()?);
        let base = dir.path().join("base");
        fs::write(&base, vec![0; DISK_BYTES as usize])?;
        let listener = Listener::bind(&dir.path().join("control"))?;
        let process = Command::new(pando)
            .args(["vmm", "--name", "toy"])
            .stdin(Stdio::from(listener.into_fd()))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { dir, ancestors: Vec::new(), base, inherited: Vec::new(), process: Some(process) })
    }

    /// A monitor that a fork is going to make, and the socket it is to be given.
    pub(crate) fn unborn(&self) -> Result<(Self, Listener), MonitorError> {
        let dir = Arc::new(tempfile::tempdir()?);
        let listener = Listener::bind(&dir.path().join("control"))?;
        let ancestors = self.ancestors.iter().chain([&self.dir]).cloned().collect();
        Ok((Self { dir, ancestors, base: self.base.clone(), inherited: self.layers(), process: None }, listener))
    }

    /// The data files that a child inherits. What was not started has no layer of its own.
    pub(crate) fn layers(&self) -> Vec<PathBuf> {
        let own = self.dir.path().join("data");
        self.inherited.iter().cloned().chain(own.exists().then_some(own)).collect()
    }

    /// Forks the VM. Every child has its `Start` waiting before the fork is asked for.
    pub fn fork(&self, count: u32) -> Result<(ForkTimings, Vec<Child>), MonitorError> {
        self.fork_networked((0..count).map(|_| Vec::new()).collect())
    }

    /// The same, a child for each tap, which is given as its queues, or as none of them.
    pub fn fork_networked(&self, taps: Vec<Vec<OwnedFd>>) -> Result<(ForkTimings, Vec<Child>), MonitorError> {
        let count = taps.len() as u32;
        let mut starting = Vec::new();
        let mut listeners = Vec::new();
        for taps in taps {
            let (monitor, listener) = self.unborn()?;
            listeners.push(listener);
            starting.push(thread::spawn(move || {
                let timings = monitor.start_networked(Origin::Fork, Vec::new(), taps)?;
                Ok(Child { monitor, timings })
            }));
        }
        let fds: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
        let forked = self.ask_with(&Request::Fork(Fork { children: count }), &fds)?;
        drop(listeners);
        let children: Result<Vec<_>, MonitorError> = starting
            .into_iter()
            .map(|child| child.join().unwrap_or_else(|_| Err(MonitorError::Answer("a panic".into()))))
            .collect();
        match forked {
            Response::Forked(timings) => Ok((timings, children?)),
            other => Err(MonitorError::Answer(format!("{other:?}"))),
        }
    }

    /// Waits until all of its memory is there.
    pub fn gather(&self) -> Result<(), MonitorError> {
        self.ask(&Request::Gather).map(drop)
    }

    /// Sends one request without descriptors.
    pub fn ask(&self, request: &Request) -> Result<Response, MonitorError> {
        self.ask_with(request, &[])
    }

    /// Which pages its process alone has.
    pub fn touched(&self) -> Result<WorkingSet, MonitorError> {
        let pagemap = self.pagemap()?;
        match self.ask_with(&Request::Touched, &[pagemap.as_fd()])? {
            Response::Touched(pages) => Ok(pages),
            other => Err(MonitorError::Answer(format!("{other:?}"))),
        }
    }

    /// The page tables of its process.
    pub fn pagemap(&self) -> Result<File, MonitorError> {
        Ok(File::open(format!("/proc/{}/pagemap", self.pid()?))?)
    }

    /// Sends one request with descriptors.
    pub(crate) fn ask_with(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Response, MonitorError> {
        let connection = self.connect()?;
        connection.send(request, descriptors)?;
        receive(&connection)
    }

    /// The folder with its files and sockets: `control`, `vsock`, `console`, `data`, `journal`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The monitor's process id.
    pub fn pid(&self) -> Result<u32, MonitorError> {
        match self.ask(&Request::Status)? {
            Response::Status(status) => Ok(status.pid),
            other => Err(MonitorError::Answer(format!("{other:?}"))),
        }
    }

    /// How it is, for whoever finds that its guest does not get there: what it says of itself, what its threads are at, and
    /// where its vCPUs are.
    pub fn last_seen(&self) -> String {
        let said = self.ask(&Request::Status);
        let threads = match &said {
            Ok(Response::Status(status)) => threads(status.pid),
            _ => Vec::new(),
        };
        format!("{said:?}, {threads:?}, {:x?}", self.ask(&Request::Vcpus))
    }

    /// Everything that the guest has written to its console.
    pub fn console(&self) -> Result<Vec<u8>, MonitorError> {
        Ok(fs::read(self.dir.path().join("console"))?)
    }

    /// Waits until the guest has written at least `len` bytes, and returns all.
    pub fn console_of(&self, len: usize, limit: Duration) -> Result<Vec<u8>, MonitorError> {
        let deadline = Instant::now() + limit;
        loop {
            let console = self.console()?;
            if console.len() >= len {
                return Ok(console);
            }
            if Instant::now() > deadline {
                return Err(MonitorError::TimedOut);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A connection on which it says how its VM ends.
    pub fn watch(&self) -> Result<Connection, MonitorError> {
        let connection = self.connect()?;
        connection.send(&Request::Watch, &[])?;
        match receive(&connection)? {
            Response::Done => Ok(connection),
            other => Err(MonitorError::Answer(format!("{other:?}"))),
        }
    }

    /// A connection on which nothing was asked yet.
    pub fn connect(&self) -> Result<Connection, MonitorError> {
        let connection = Connection::connect(&self.dir.path().join("control"))?;
        set_socket_timeout(&connection, Timeout::Recv, Some(ANSWER_LIMIT)).map_err(io::Error::from)?;
        Ok(connection)
    }

    /// Starts what `origin` says; `more` are the descriptors that belong to that.
    pub(crate) fn start(&self, origin: Origin, more: Vec<OwnedFd>) -> Result<StartTimings, MonitorError> {
        self.start_networked(origin, more, Vec::new())
    }

    /// The same, with a tap if it has queues.
    fn start_networked(
        &self,
        origin: Origin,
        more: Vec<OwnedFd>,
        taps: Vec<OwnedFd>,
    ) -> Result<StartTimings, MonitorError> {
        let at = |name: &str| self.dir.path().join(name);
        let console = File::options().append(true).create(true).open(at("console"))?;
        let vsock = UnixListener::bind(at("vsock"))?;
        let mut fds: Vec<OwnedFd> = vec![read_write("/dev/kvm".as_ref())?.into(), console.into(), vsock.into()];
        fds.push(File::open(&self.base)?.into());
        for layer in &self.inherited {
            fds.push(File::open(layer)?.into());
        }
        fds.push(read_write(&at("data"))?.into());
        fds.push(read_write(&at("journal"))?.into());
        fds.extend(more);
        let network = (!taps.is_empty()).then_some(StartNetwork { queue_pairs: taps.len() as u8 });
        fds.extend(taps);
        let inherited_layers = self.inherited.len() as u32;
        let layer = at("data").display().to_string();
        let start = Start { origin, generation: new_generation(), inherited_layers, layer, network };
        let connection = self.connect()?;
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        connection.send(&Request::Start(start), &borrowed)?;
        match receive(&connection)? {
            Response::Started(timings) => Ok(timings),
            other => Err(MonitorError::Answer(format!("{other:?}"))),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.ask(&Request::Kill);
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Different for every VM of this process.
fn new_generation() -> [u8; 16] {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let mut generation = [1; 16];
    generation[..8].copy_from_slice(&(LAST.fetch_add(1, Ordering::Relaxed) + 1).to_le_bytes());
    generation
}

fn receive(connection: &Connection) -> Result<Response, MonitorError> {
    match connection.receive()? {
        Some((Response::Refused(chain), _)) => Err(MonitorError::Refused(chain)),
        Some((response, _)) => Ok(response),
        None => Err(MonitorError::Answer("nothing".into())),
    }
}

fn read_write(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(!path.starts_with("/dev")).truncate(false).open(path)
}

//! Seeds, what is saved of them, and VMs that begin from that.

use crate::monitor::{Guest, Monitor, MonitorError};
use pando_wire::control::{
    Asleep, Connection, DiskSeal, Fork, ForkTimings, Origin, PAGES_CONNECTIONS, Request, Response, Restore, Serving,
};
use pando_wire::pages::{Remote, Serve};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A page server, and a monitor's ends of the connections to it.
#[derive(Debug)]
pub struct PageServer {
    /// It ends when the connections are closed.
    pub process: Child,
    /// For [`Monitor::restore`].
    pub connections: Vec<UnixStream>,
}

/// A copy of a VM that serves its pages.
#[derive(Debug)]
pub struct Copy {
    /// What the VM's monitor said of it.
    pub serving: Serving,
    /// For each child: what [`Monitor::restore`] takes.
    pub connections: Vec<Vec<UnixStream>>,
}

/// A seed that was saved before another one.
#[derive(Debug)]
pub struct Earlier {
    /// What it is called in the store.
    pub name: String,
    /// Its page tables, opened by somebody who may know where its pages are.
    pub pagemap: File,
    /// How its disk was sealed.
    pub disk: DiskSeal,
}

/// Starts the `pando` at `pando` as a page server for a checkpoint of this name.
pub fn serve(pando: &Path, store: &Path, name: &str) -> io::Result<PageServer> {
    serve_from(pando, store, name, None)
}

/// The same of one that is elsewhere, and the store a cache.
pub fn serve_from(pando: &Path, store: &Path, name: &str, remote: Option<Remote>) -> io::Result<PageServer> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let process = pages(pando, "serve", store, name).stdin(Stdio::from(theirs)).spawn()?;
    let pairs: Vec<_> = (0..PAGES_CONNECTIONS).map(|_| UnixStream::pair()).collect::<Result<_, _>>()?;
    let (connections, servers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let fds: Vec<_> = servers.iter().map(|server| server.as_fd()).collect();
    Connection::from_fd(ours).send(&Serve { connections: PAGES_CONNECTIONS as u32, remote }, &fds)?;
    Ok(PageServer { process, connections })
}

impl Monitor {
    /// Forks the VM into a child that nobody starts.
    pub fn seed(&self) -> Result<Self, MonitorError> {
        self.keep().map(|(_, seed)| seed)
    }

    /// The same, and how long the VM stood still.
    pub fn keep(&self) -> Result<(ForkTimings, Self), MonitorError> {
        let (seed, listener) = self.unborn()?;
        match self.ask_with(&Request::Fork(Fork { children: 1 }), &[listener.as_fd()])? {
            Response::Forked(timings) => Ok((timings, seed)),
            other => Err(MonitorError::Answer(format!("{other:?}"))),
        }
    }

    /// Copies the VM into a process that so many children pull from.
    pub fn serve(&self, children: u32) -> Result<Copy, MonitorError> {
        let pairs: Vec<_> =
            (0..children as usize * PAGES_CONNECTIONS).map(|_| UnixStream::pair()).collect::<Result<_, _>>()?;
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let layers = self.layers().into_iter().map(File::open).collect::<Result<Vec<_>, _>>()?;
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).chain(layers.iter().map(AsFd::as_fd)).collect();
        let answer = self.ask_with(&Request::Serve(Fork { children }), &fds)?;
        let Response::Serving(serving) = answer else { return Err(MonitorError::Answer(format!("{answer:?}"))) };
        let mut ours = ours.into_iter();
        let connections = (0..children).map(|_| ours.by_ref().take(PAGES_CONNECTIONS).collect()).collect();
        Ok(Copy { serving, connections })
    }

    /// Saves a seed into a store, with the `pando` at `pando`. What that printed.
    pub fn save(&self, pando: &Path, store: &Path, name: &str) -> Result<String, MonitorError> {
        told(self.start_saving(pando, store, name)?)
    }

    /// The same, but for what is still as it was in an earlier seed.
    pub fn save_since(
        &self,
        earlier: &Earlier,
        pando: &Path,
        store: &Path,
        name: &str,
    ) -> Result<String, MonitorError> {
        told(self.start_saving_since(Some(earlier), pando, store, name)?)
    }

    /// What a later seed needs to know of this one, which is `name` in the store.
    pub fn as_earlier(&self, name: &str) -> Result<Earlier, MonitorError> {
        match self.ask(&Request::DiskSeal)? {
            Response::DiskSeal(disk) => Ok(Earlier { name: name.to_owned(), pagemap: self.pagemap()?, disk }),
            other => Err(MonitorError::Answer(format!("{other:?}"))),
        }
    }

    /// Saves a seed into a store, but for its disk. What the `pando` at `pando` printed.
    pub fn save_without_disk(&self, pando: &Path, store: &Path, name: &str) -> Result<String, MonitorError> {
        let (ours, theirs) = UnixStream::pair()?;
        self.ask_with(&Request::SaveWithoutDisk, &[theirs.as_fd()])?;
        drop(theirs); // So that the stream ends with its writer.
        let mut command = pages(pando, "save", store, name);
        command.stdin(Stdio::from(OwnedFd::from(ours))).stdout(Stdio::piped()).stderr(Stdio::piped());
        told(command.spawn()?)
    }

    /// A save that is not waited for: the process that writes into the store.
    pub fn start_saving(&self, pando: &Path, store: &Path, name: &str) -> Result<Child, MonitorError> {
        self.start_saving_since(None, pando, store, name)
    }

    /// The same for [`Monitor::save_since`], where there is an earlier seed.
    pub fn start_saving_since(
        &self,
        earlier: Option<&Earlier>,
        pando: &Path,
        store: &Path,
        name: &str,
    ) -> Result<Child, MonitorError> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut fds: Vec<OwnedFd> = vec![theirs.into()];
        for layer in self.layers() {
            fds.push(File::open(layer)?.into());
        }
        if let Some(earlier) = earlier {
            let files = [earlier.pagemap.try_clone()?, self.pagemap()?, File::open("/proc/vmstat")?];
            fds.extend(files.map(OwnedFd::from));
        }
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let request = earlier.map_or(Request::Save, |earlier| Request::SaveSince(earlier.disk));
        self.ask_with(&request, &borrowed)?;
        drop(fds); // So that the stream ends with its writer.
        let mut command = pages(pando, "save", store, name);
        if let Some(earlier) = earlier {
            command.args(["--since", &earlier.name]);
        }
        command.stdin(Stdio::from(OwnedFd::from(ours))).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// Starts the `pando` at `pando` as a monitor that goes on with what was saved of `guest`, as its twin.
    pub fn restore(pando: &Path, guest: &Guest, connections: Vec<UnixStream>) -> Result<Self, MonitorError> {
        let Guest { vcpus, memory_bytes, disk_bytes, .. } = *guest;
        let monitor = Self::spawn(pando)?;
        let origin = Origin::Checkpoint(Restore { vcpus, memory_bytes, disk_bytes, is_twin: true });
        monitor.start(origin, connections.into_iter().map(OwnedFd::from).collect())?;
        Ok(monitor)
    }

    /// Starts the `pando` at `pando` as a monitor that goes on with what was saved of `guest` without its disk, which was this
    /// monitor's: it has ended, and its files are the next one's. That stands still until it is resumed.
    pub fn wake(self, pando: &Path, guest: &Guest, connections: Vec<UnixStream>) -> Result<Self, MonitorError> {
        let Guest { vcpus, memory_bytes, .. } = *guest;
        let mut next = Self::spawn(pando)?;
        for file in ["data", "journal"] {
            fs::rename(self.dir().join(file), next.dir().join(file))?;
        }
        (next.base, next.inherited) = (self.base.clone(), self.inherited.clone());
        next.ancestors = self.ancestors.iter().chain([&self.dir]).cloned().collect();
        drop(self);
        let journals = next.inherited.iter().map(|data| File::open(data.with_file_name("journal")));
        let journals = journals.collect::<Result<Vec<_>, _>>()?;
        let more = connections.into_iter().map(OwnedFd::from).chain(journals.into_iter().map(OwnedFd::from));
        next.start(Origin::Asleep(Asleep { vcpus, memory_bytes, is_alone: true }), more.collect())?;
        Ok(next)
    }
}

fn told(saving: Child) -> Result<String, MonitorError> {
    let saved = saving.wait_with_output()?;
    match saved.status.success() {
        true => Ok(String::from_utf8_lossy(&saved.stdout).into_owned()),
        false => Err(MonitorError::Answer(String::from_utf8_lossy(&saved.stderr).into_owned())),
    }
}

fn pages(pando: &Path, what: &str, store: &Path, name: &str) -> Command {
    let mut command = Command::new(pando);
    command.args(["pages", what, "--name", name, "--store"]).arg(store);
    command
}

//! A monitor's process. It is our child if we started it, or if it was forked by one that we started and we were there
//! ever since; after a restart of the daemon it is nobody's in particular.

use crate::ready::{Held, register};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitOptions, getpgid, getpgrp, pidfd_getfd, pidfd_open,
    pidfd_send_signal, waitpgid, waitpid,
};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// What `/proc` calls the file of a tap's queue.
const TUN: &str = "/dev/net/tun";
/// How long a monitor that has announced its end may take to be gone.
const EXIT_LIMIT: Duration = Duration::from_millis(500);
/// How long the kernel may take to end a process that has gigabytes to give back.
pub(super) const FORCED_LIMIT: Duration = Duration::from_secs(10);

/// A process, held so that its number cannot come to mean another one.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    /// The process group of its tree, unless that is our own.
    tree: Option<Pid>,
    fd: AsyncFd<Held<OwnedFd>>,
}

impl Process {
    /// Takes hold of process `pid`, which must be known to be alive or our own zombie.
    pub(crate) fn hold(pid: u32) -> io::Result<Self> {
        let no_such = || io::Error::new(io::ErrorKind::NotFound, format!("no process has the number {pid}"));
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(no_such)?;
        let fd = register(pidfd_open(pid, PidfdFlags::empty())?, Interest::READABLE)?;
        let tree = getpgid(Some(pid)).ok().filter(|&group| group != getpgrp());
        Ok(Self { pid, tree, fd })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether both were forked, by however many forks, from one monitor that we started: then they had their guest memory
    /// from it. Both are to live.
    pub(crate) fn is_of_one_tree(&self, other: &Self) -> bool {
        self.tree.is_some() && self.tree == other.tree
    }

    /// Its page tables, of which nothing can be read any more once it has ended.
    pub(crate) fn pagemap(&self) -> io::Result<File> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid()))?;
        // As long as it lives, its number means nobody else.
        let mut end = [PollFd::new(&self.fd.get_ref().0, PollFlags::IN)];
        match poll(&mut end, Some(&Timespec::default()))? {
            0 => Ok(pagemap),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended")),
        }
    }

    /// A queue of its tap, if it has one. As long as this descriptor is open the tap is there, also when the process has ended.
    ///
    /// By whoever may trace it: its own user's daemon, where nothing forbids it, or root.
    pub(crate) fn tap(&self) -> io::Result<Option<OwnedFd>> {
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid()))? {
            let entry = entry?;
            let is_tap = fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == TUN);
            if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_tap) {
                // Of the process that is held: had another its number by now, nothing would be found here.
                return Ok(Some(pidfd_getfd(&self.fd.get_ref().0, number, PidfdGetfdFlags::empty())?));
            }
        }
        Ok(None)
    }

    /// Waits until it has exited. It may still have to be reaped.
    pub(crate) async fn exited(&self) -> io::Result<()> {
        self.fd.readable().await.map(|_guard| ())
    }

    /// Sees to it that it is gone: waits for a moment, as it may be ending, and then forces it to. `vm` is for the log.
    pub(crate) async fn end(&self, vm: &str) {
        if timeout(EXIT_LIMIT, self.exited()).await.is_err() {
            self.kill();
            if timeout(FORCED_LIMIT, self.exited()).await.is_err() {
                tracing::error!(vm, pid = self.pid(), "its monitor cannot be killed");
            }
        }
        self.reap();
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        // The only error that can be is that it has exited.
        let _ = pidfd_send_signal(&self.fd.get_ref().0, Signal::KILL);
    }

    /// Takes it, and what else of its tree ended and was left to us, out of the process table. Never waits.
    ///
    /// Only ever by number or by a monitor's group: other code in this process may wait for children of its own.
    pub(crate) fn reap(&self) {
        // No child of ours: somebody else reaps it.
        let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
        if let Some(tree) = self.tree {
            while let Ok(Some(_)) = waitpgid(tree, WaitOptions::NOHANG) {}
        }
    }
}

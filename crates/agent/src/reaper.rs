//! Who waits for whom in PID 1.
//!
//! Every orphan of the guest becomes a child of this process and must be waited for, and a wait for *any* child would
//! steal the status that somebody else wants. So one thread waits for all and hands statuses out:
//!
//! ```text
//! spawn:   lock ─ fork+exec ─ note the pid ─ unlock
//! reaper:  sleep until some child is dead, without taking it (WNOWAIT)
//!          lock ─ take every dead child; its status goes to whoever noted the pid, or nowhere ─ unlock
//! ```
//!
//! No child is taken while a spawn is under way, so a child that dies at once is not missed, a pid cannot be reused
//! between its death and the look-up, and `Command::spawn` finds its own failed children still there.

use crate::agent::lock;
use pando_wire::agent::Exit;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, WaitStatus, pidfd_open, wait, waitid},
};
use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    process::Command,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

/// Waits for every child of this process.
pub struct Reaper {
    awaited: Mutex<HashMap<Pid, Sender<Exit>>>,
    spawned: Condvar,
}

/// A child that somebody waits for.
pub struct Child {
    /// Its process id, valid at least until `exit` yields.
    pub pid: Pid,
    /// Readable once it is dead.
    pub pidfd: OwnedFd,
    /// Yields how it ended, once.
    pub exit: Receiver<Exit>,
}

impl Reaper {
    /// Starts the thread. From now on nothing else in this process may wait for a child.
    pub fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self { awaited: Mutex::default(), spawned: Condvar::new() });
        let thread = Arc::clone(&reaper);
        thread::Builder::new().name("reaper".into()).spawn(move || thread.run())?;
        Ok(reaper)
    }

    /// Starts `command`. Pipes in it are refused by being dropped: pass descriptors instead.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let (sender, exit) = channel();
        let mut awaited = lock(&self.awaited);
        let id = command.spawn()?.id();
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        awaited.insert(pid, sender);
        self.spawned.notify_all();
        // It may be dead by now, but not taken: we hold the lock.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Child { pid, pidfd, exit })
    }

    fn run(&self) {
        loop {
            match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) => self.take_the_dead(),
                Err(Errno::CHILD) => self.wait_for_a_child(),
                Err(Errno::INTR) => (),
                // Nothing else is documented; do not spin should it happen.
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn take_the_dead(&self) {
        let mut awaited = lock(&self.awaited);
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(sender) = awaited.remove(&pid) {
                // Nobody may want it any more.
                let _ = sender.send(exit(status));
            }
        }
    }

    fn wait_for_a_child(&self) {
        let awaited = lock(&self.awaited);
        let still_none = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG);
        if matches!(still_none, Err(Errno::CHILD)) {
            // Without children there are no descendants, hence no orphans to come either.
            drop(self.spawned.wait(awaited).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

fn exit(status: WaitStatus) -> Exit {
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(signal),
        None => Exit::Code(status.exit_status().unwrap_or_default()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::{process::Stdio, sync::OnceLock};

    /// One for all tests of the process.
    pub(crate) fn reaper() -> Arc<Reaper> {
        static REAPER: OnceLock<Arc<Reaper>> = OnceLock::new();
        Arc::clone(REAPER.get_or_init(|| Reaper::start().unwrap()))
    }

    fn sh(script: &str) -> Child {
        reaper().spawn(Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::null())).unwrap()
    }

    #[test]
    fn every_child_gets_its_own_status_however_fast_it_dies() {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                thread::spawn(move || {
                    for round in 0..50 {
                        let code = (thread * 50 + round) % 200;
                        assert_eq!(sh(&format!("exit {code}")).exit.recv().unwrap(), Exit::Code(code));
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_signal_is_told_from_a_status() {
        assert_eq!(sh("kill -9 $$").exit.recv().unwrap(), Exit::Signal(9));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_and_leaves_no_zombie() {
        let error = reaper().spawn(&mut Command::new("/no/such/program")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(sh("exit 3").exit.recv().unwrap(), Exit::Code(3));
    }

    #[test]
    fn orphans_are_taken_too() {
        rustix::process::set_child_subreaper(Pid::from_raw(1)).unwrap();
        let mut pipe = rustix::pipe::pipe().map(|(read, write)| (std::fs::File::from(read), write)).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "(sleep 0.1) & echo $!"]).stdin(Stdio::null()).stdout(pipe.1.try_clone().unwrap());
        drop(pipe.1);
        let child = reaper().spawn(&mut command).unwrap();
        drop(command);
        let mut orphan = String::new();
        io::Read::read_to_string(&mut pipe.0, &mut orphan).unwrap();
        child.exit.recv().unwrap();
        let gone = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(10));
            !std::path::Path::new(&format!("/proc/{}", orphan.trim())).exists()
        });
        assert!(gone, "the orphan {} is still there", orphan.trim());
    }
}

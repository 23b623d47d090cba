//! QEMU, from one command to the next: a process id and a start time, for ids are used again.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;

/// A process, which may have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) id: u32,
    /// When it started, in the kernel's ticks since the boot.
    start_ticks: u64,
}

impl Process {
    /// The process that has this id now.
    pub(super) fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let start_ticks = start_ticks(&stat)?;
        Some(Self { id, start_ticks })
    }

    /// Whether it runs.
    pub(super) fn is_alive(self) -> bool {
        Self::of(self.id) == Some(self)
    }

    /// Kills it. Nothing is killed when it has ended.
    pub(super) fn kill(self) -> io::Result<()> {
        let Some(id) = i32::try_from(self.id).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        let process = match pidfd_open(id, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // Only now does the id stay with one process.
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The start time in `/proc/<id>/stat`; none for a process that has ended and is still to be collected.
fn start_ticks(stat: &str) -> Option<u64> {
    // The name, in parentheses, may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_not_taken_for_another_one_with_its_id() {
        let this = Process::of(std::process::id()).unwrap();
        assert!(this.is_alive());
        let earlier = Process { start_ticks: this.start_ticks - 1, ..this };
        assert!(!earlier.is_alive());
        earlier.kill().unwrap(); // And this test goes on.
    }

    #[test]
    fn a_killed_process_is_not_alive_before_it_is_collected() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        process.kill().unwrap();
        while process.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        process.kill().unwrap();
    }

    #[test]
    fn a_name_may_contain_anything() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_ticks(&format!("12 (a) Z (b) {rest}")), Some(4711));
        assert_eq!(start_ticks("12 (a) Z 1 2"), None);
        assert_eq!(start_ticks(""), None);
    }
}

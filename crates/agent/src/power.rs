//! The end: every program is asked, then told, and the disk is written back.

use crate::console::say;
use rustix::{
    mount::{MountFlags, mount_remount},
    process::{Pid, Signal, kill_process},
    system::{RebootCommand, reboot},
};
use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// After SIGKILL. A program that still has files open for writing keeps the disk from being unmounted cleanly.
const DYING: Duration = Duration::from_secs(1);

/// Ends the VM. Returns only when the kernel refuses to power off.
pub(crate) fn off() {
    end_all(Signal::TERM, GRACE);
    end_all(Signal::KILL, DYING);
    rustix::fs::sync();
    // Refused while a file is open for writing; all is written back anyhow, and the journal covers the rest.
    let _ = mount_remount("/", MountFlags::RDONLY, "");
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        say(format_args!("cannot power off: {error}"));
    }
}

/// Sends `signal` to every program and waits until none is left, for `limit` at most.
fn end_all(signal: Signal, limit: Duration) {
    let deadline = Instant::now() + limit;
    for pid in programs() {
        // Gone in the meantime: all the better.
        let _ = kill_process(pid, signal);
    }
    while !programs().is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Every process that is neither this one, nor the kernel's, nor dead.
fn programs() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw)
        .filter(|pid| *pid != rustix::process::getpid())
        .filter(|pid| {
            let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_pid()));
            stat.is_ok_and(|stat| is_program(&String::from_utf8_lossy(&stat)).unwrap_or(false))
        })
        .collect()
}

/// Whether a line of `/proc/PID/stat` is that of a program with files that may be open. A dying one has no memory any
/// more, and so no command line, while it still closes them; a zombie has closed them, unless it has threads left.
fn is_program(stat: &str) -> Option<bool> {
    const KERNEL_THREAD: u32 = 0x0020_0000; // PF_KTHREAD.
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let fields: Vec<_> = behind_name.split(' ').collect();
    let (state, flags, threads): (&str, u32, u32) =
        (fields.first()?, fields.get(6)?.parse().ok()?, fields.get(17)?.parse().ok()?);
    let is_dead = matches!(state, "Z" | "X") && threads <= 1;
    Some(flags & KERNEL_THREAD == 0 && !is_dead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_a_program_until_it_is_dead_and_the_kernels_are_none() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(programs().contains(&pid));
        assert!(!programs().contains(&rustix::process::getpid()));
        child.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while programs().contains(&pid) {
            assert!(Instant::now() < deadline, "a zombie is a program");
        }
        child.wait().unwrap();

        let kernels = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 4 0 0 20 0 1 0 2 0 0";
        assert_eq!(is_program(kernels), Some(false));
        // It has no memory any more, and a leader that ended before its other threads.
        let dying = "77 (a) b) D 1 77 77 0 -1 4228100 0 0 0 0 0 4 0 0 20 0 1 0 2 0 0";
        assert_eq!(is_program(dying), Some(true));
        let leader = "77 (app) Z 1 77 77 0 -1 4228100 0 0 0 0 0 4 0 0 20 0 3 0 2 0 0";
        assert_eq!(is_program(leader), Some(true));
        assert_eq!(is_program(&leader.replace(" 0 3 0 ", " 0 1 0 ")), Some(false));
    }
}

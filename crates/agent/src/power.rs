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

/// Ends the VM. Returns only when the kernel refuses to power off.
pub(crate) fn off() {
    signal_all(Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while !programs().is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    signal_all(Signal::KILL);
    rustix::fs::sync();
    // Refused while a file is open for writing; all is written back anyhow, and the journal covers the rest.
    let _ = mount_remount("/", MountFlags::RDONLY, "");
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        say(format_args!("cannot power off: {error}"));
    }
}

fn signal_all(signal: Signal) {
    for pid in programs() {
        // Gone in the meantime: all the better.
        let _ = kill_process(pid, signal);
    }
}

/// Every process that is neither this one, nor the kernel's, nor dead.
fn programs() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw)
        .filter(|pid| *pid != rustix::process::getpid())
        .filter(|pid| {
            let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid()));
            command.is_ok_and(|command| !command.is_empty())
        })
        .collect()
}

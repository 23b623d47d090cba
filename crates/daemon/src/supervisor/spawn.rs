//! Starting a monitor.

use super::Process;
use pando_wire::control::Listener;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Starts `program` as a monitor that serves `control` and writes its complaints to `log`. Blocks for the time of an
/// `exec`. The process is the caller's to reap.
pub(crate) fn spawn(program: &Path, name: &str, control: Listener, log: &Path) -> io::Result<Process> {
    let log = File::options().append(true).create(true).open(log)?;
    let mut monitor = Command::new(program)
        .args(["vmm", "--name", name])
        .current_dir("/")
        .stdin(Stdio::from(control.into_fd()))
        .stdout(Stdio::null())
        .stderr(log)
        // A signal that is meant for the daemon, such as Ctrl-C, must not reach the VMs.
        .process_group(0)
        .spawn()?;
    Process::hold(monitor.id()).inspect_err(|_| {
        let _ = monitor.kill();
        let _ = monitor.wait();
    })
}

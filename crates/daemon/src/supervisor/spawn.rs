//! Starting a monitor, or a page server.

use super::Process;
use pando_wire::control::{Connection, Listener, PAGES_CONNECTIONS};
use pando_wire::pages::{Remote, Serve};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

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
    hold(&mut monitor)
}

/// Starts `program` as a server of the pages of checkpoint `name` in `store`, or in the bucket that is `remote` with `store` as
/// its cache; it writes its complaints to `log`. The first answer is the other ends of its connections; it ends with the last
/// of them. Blocks for the time of an `exec`.
pub(crate) fn serve_pages(
    program: &Path,
    store: &Path,
    name: &str,
    remote: Option<Remote>,
    log: &Path,
) -> io::Result<(Vec<UnixStream>, Process)> {
    let pairs = (0..PAGES_CONNECTIONS).map(|_| UnixStream::pair()).collect::<io::Result<Vec<_>>>()?;
    let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (ask, stdin) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let log = File::options().append(true).create(true).open(log)?;
    let mut server = Command::new(program)
        .args(["pages", "serve", "--name", name, "--store"])
        .arg(store)
        .current_dir("/")
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(log)
        // As a monitor, it outlives the daemon.
        .process_group(0)
        .spawn()?;
    let process = hold(&mut server)?;
    let descriptors: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    let connections = descriptors.len() as u32; // A few.
    match Connection::from_fd(ask).send(&Serve { connections, remote }, &descriptors) {
        Ok(()) => Ok((ours, process)),
        Err(error) => {
            process.kill();
            let _ = server.wait();
            Err(error)
        }
    }
}

/// Takes hold of a process that was just started, or ends it.
fn hold(child: &mut Child) -> io::Result<Process> {
    Process::hold(child.id()).inspect_err(|_| {
        let _ = child.kill();
        let _ = child.wait();
    })
}

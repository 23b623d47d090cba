//! A twin's SSH host keys: not its parent's.
//!
//! Whoever has a twin's keys could pass for its parent, and every client would believe it. So an image that has host
//! keys where OpenSSH keeps them gets new ones in every child of a fork, before its hooks run and before the fork is done.
//!
//! Of the types that were there, those that take milliseconds to make. An RSA key takes up to seconds, and is renewed
//! only where it is the only one; else it is removed, as every client since 2014 knows another type. A hook that runs
//! `ssh-keygen -A` makes that, too.

use crate::{agent::Agent, identity::run};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

/// Where OpenSSH keeps them.
const DIRECTORY: &str = "etc/ssh";

/// Types of keys that are made in milliseconds.
const QUICK: [&str; 2] = ["ed25519", "ecdsa"];

/// And those that are not, or not made at all any more.
const OTHERS: [&str; 2] = ["rsa", "dsa"];

/// Makes new keys in the place of what there is, and has a server that runs read them. When that fails, keys are left
/// as they are: the machine stays within reach, and it is told that it has its parent's.
pub(crate) fn renew(agent: &Agent, deadline: Instant) -> Result<(), String> {
    let directory = agent.root.join(DIRECTORY);
    let is_there = |kind: &&str| key(&directory, kind).exists();
    let mut kinds: Vec<_> = QUICK.into_iter().filter(is_there).collect();
    let others: Vec<_> = OTHERS.into_iter().filter(is_there).collect();
    if kinds.is_empty() {
        kinds.extend(others.first().map(|_| OTHERS[0]));
    }
    for kind in &kinds {
        make(agent, &directory, kind, deadline)?;
    }
    for kind in others.iter().filter(|kind| !kinds.contains(kind)) {
        for file in [key(&directory, kind), public(&key(&directory, kind))] {
            remove(&file).map_err(|error| format!("cannot remove {}: {error}", file.display()))?;
        }
    }
    if !kinds.is_empty() {
        reload_server(&agent.root);
    }
    Ok(())
}

/// Makes a key beside the old one, and puts it in its place: at no time there is none.
fn make(agent: &Agent, directory: &Path, kind: &str, deadline: Instant) -> Result<(), String> {
    let (there, made) = (key(directory, kind), directory.join(format!(".ssh_host_{kind}_key.pando")));
    let cannot = |error: io::Error| format!("cannot renew {}: {error}", there.display());
    // Of an attempt that was cut short: it would be asked whether to overwrite it.
    remove(&made).map_err(cannot)?;
    let path = made.to_string_lossy().into_owned();
    let argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", &path].map(str::to_owned).to_vec();
    run(agent, argv, deadline).map_err(|why| cannot(io::Error::other(format!("ssh-keygen: {why}"))))?;
    fs::rename(&made, &there).map_err(cannot)?;
    fs::rename(public(&made), public(&there)).map_err(cannot)
}

fn key(directory: &Path, kind: &str) -> PathBuf {
    directory.join(format!("ssh_host_{kind}_key"))
}

fn public(key: &Path) -> PathBuf {
    let mut path = key.as_os_str().to_owned();
    path.push(".pub");
    path.into()
}

/// Also what is not there is removed.
fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A server reads its keys when it starts, and when it is hung up on. There may be none.
fn reload_server(root: &Path) {
    let pid = fs::read_to_string(root.join("run/sshd.pid")).ok();
    let pid = pid.and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
    // A number that was left behind may be somebody else's by now.
    if let Some(pid) = pid
        && fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_pid())).is_ok_and(|name| name.trim_end() == "sshd")
    {
        let _ = kill_process(pid, Signal::HUP); // Gone just now: it needs no keys.
    }
}

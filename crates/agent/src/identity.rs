//! Who this VM is, and the fork hooks.
//!
//! A child of a fork wakes up as its parent. The host tells it who it is now, and hooks in [`HOOKS`] change what only
//! the image knows about: host keys, node ids, seeds of a program's own random numbers.

use crate::{
    agent::{Agent, lock},
    console::say,
    failure, heartbeat, host_keys,
    launch::{Plan, launch},
    network,
    reaper::Child,
    twins,
};
use pando_wire::agent::{Exec, Exit, Failure, FailureKind, Identity, Reply, SEED};
use rustix::process::{Signal, kill_process_group};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Every executable here runs in a child of a fork, in the order of their names, as root, with `PANDO_NAME` and
/// `PANDO_GENERATION`.
const HOOKS: &str = "etc/pando/fork.d";

/// How long the hooks may take together. One that runs then is killed, and the rest do not start.
const HOOKS_LIMIT: Duration = Duration::from_secs(30);

/// Becomes who the host says, and runs the hooks. A machine that is told who it was already has only slept: hooks are
/// for twins.
pub(crate) fn adopt(agent: &Agent, identity: Identity, seed: &[u8; SEED]) -> Reply {
    let reseeded = twins::reseed(agent, seed);
    heartbeat::forget(agent);
    let is_twin = *lock(&agent.identity) != identity;
    let taken = take_on(agent, identity);
    let hooked = if is_twin { run_hooks(agent) } else { Ok(()) };
    Reply::Adopted { reseeded, failure: taken.and(hooked).err() }
}

/// Becomes who the host says: each part of it, whether or not another fails; the first failure is told.
pub(crate) fn take_on(agent: &Agent, identity: Identity) -> Result<(), Failure> {
    *lock(&agent.identity) = identity.clone();
    let in_guest = agent.root == Path::new("/");
    let hostname = match in_guest {
        true => rustix::system::sethostname(identity.name.as_bytes()).map_err(io::Error::from),
        false => Ok(()), // A test must not rename its host.
    };
    let etc = agent.root.join("etc");
    let in_etc = |name: &str, text: &str| match etc.is_dir() {
        true => fs::write(etc.join(name), format!("{text}\n")),
        false => Ok(()), // An image without `/etc` has no use for it.
    };
    let run = agent.root.join("run/pando");
    let steps = [
        ("set the hostname", hostname),
        ("write /etc/hostname", in_etc("hostname", &identity.name)),
        ("write /etc/machine-id", in_etc("machine-id", &identity.machine_id)),
        ("write /etc/hosts", network::know_yourself(&agent.root, &identity.name)),
        ("make /run/pando", fs::create_dir_all(&run)),
        ("write /run/pando/name", fs::write(run.join("name"), &identity.name)),
        ("write /run/pando/generation", fs::write(run.join("generation"), identity.generation.to_string())),
    ];
    steps.into_iter().try_for_each(|(what, done)| done.map_err(|error| failure::because(what, error)))
}

fn run_hooks(agent: &Agent) -> Result<(), Failure> {
    let deadline = Instant::now() + HOOKS_LIMIT;
    let mut bad = Vec::new();
    // First, so that a hook finds what a twin has, and may change it.
    if let Err(why) = host_keys::renew(agent, deadline) {
        say(format_args!("this machine has SSH host keys of its parent's: {why}"));
        bad.push(why);
    }
    for hook in hooks(&agent.root) {
        if let Err(why) = run(agent, vec![hook.to_string_lossy().into_owned()], deadline) {
            say(format_args!("fork hook {}: {why}", hook.display()));
            bad.push(format!("{}: {why}", hook.display()));
        }
    }
    match bad.is_empty() {
        true => Ok(()),
        false => Err(failure::of(FailureKind::Other, format!("fork hooks went wrong: {}", bad.join("; ")))),
    }
}

/// The hooks, in order.
fn hooks(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root.join(HOOKS)) else { return Vec::new() };
    let executable = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let mut hooks: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(executable).collect();
    hooks.sort();
    hooks
}

/// Runs `argv` as root until it ends, `deadline` at the latest, with who this machine is in its environment.
pub(crate) fn run(agent: &Agent, argv: Vec<String>, deadline: Instant) -> Result<(), String> {
    if Instant::now() >= deadline {
        return Err("no time was left for it".into());
    }
    let identity = agent.identity();
    let exec = Exec {
        argv,
        env: BTreeMap::from([
            ("PANDO_NAME".into(), identity.name),
            ("PANDO_GENERATION".into(), identity.generation.to_string()),
        ]),
        // As whoever the agent is, which in a guest is root.
        user: Some(format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())),
        ..Exec::default()
    };
    let child = on_console(agent, &exec).map_err(|failure| failure.message)?;
    match child.exit.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(exit) => Err(describe(exit)),
        Err(_) => {
            let _ = kill_process_group(child.pid, Signal::KILL);
            Err(format!("the hooks together took more than {} s", HOOKS_LIMIT.as_secs()))
        }
    }
}

/// Starts a program that nobody is connected to: no input, and its output goes to the console.
pub(crate) fn on_console(agent: &Agent, exec: &Exec) -> Result<Child, Failure> {
    let open = |path: &str| {
        let opened = File::options().read(true).write(true).open(path);
        opened.map_err(|error| failure::because(format_args!("open {path}"), error))
    };
    let null = open("/dev/null")?;
    // A console may be missing (no serial port); its words are lost then.
    let console = open("/dev/console").or_else(|_| open("/dev/null"))?;
    launch(agent, &Plan::new(agent, exec)?, [null.as_fd(), console.as_fd(), console.as_fd()])
}

/// For people.
pub(crate) fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exited with status {code}"),
        Exit::Signal(signal) => format!("was ended by signal {signal}"),
    }
}

//! From the first instruction to the listening socket.

use crate::{Agent, console::say, heartbeat, identity, launch, modules, network, power, reaper::Reaper, root, server};
use pando_wire::{
    agent::{BOOT_PATH, Boot, Exec},
    frame,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{fs, path::PathBuf, sync::Arc, thread, time::Duration};

/// Soft limit of open files: what servers ask for. Not the hard limit, since programs exist that close every number
/// below the soft one, one by one.
const OPEN_FILES: u64 = 65_536;

/// Hard limit of open files: the kernel's default for the whole machine.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// PID 1. Comes back neither well nor badly: a PID 1 that exits is a kernel that panics.
pub fn run() -> ! {
    if rustix::process::getpid().as_raw_pid() != 1 {
        say("this is PID 1 of a guest, and does nothing anywhere else");
        std::process::exit(2);
    }
    let Err(why) = serve();
    say(why);
    power::off();
    loop {
        // Without power management the kernel is still here. The host ends it.
        thread::sleep(Duration::from_secs(3600));
    }
}

fn serve() -> Result<std::convert::Infallible, String> {
    root::mount_kernel()?;
    if let Err(why) = modules::load() {
        say(why); // Fatal only if the disk or the socket is missed below.
    }
    let boot = fs::read(BOOT_PATH).and_then(|bytes| frame::decode::<Boot>(&bytes));
    let boot = boot.map_err(|error| format!("cannot read {BOOT_PATH}: {error}"))?;
    root::enter()?;
    let cgroup = root::make_cgroup().map_err(say).ok();
    if let Err(error) = network::bring_up_loopback() {
        say(format_args!("cannot bring up the loopback interface: {error}"));
    }
    let files = Rlimit { current: Some(OPEN_FILES), maximum: Some(MAX_OPEN_FILES) };
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        say(format_args!("cannot raise the limit of open files: {error}"));
    }

    let reaper = Reaper::start().map_err(|error| format!("cannot start the reaper: {error}"))?;
    // Our own binary was deleted with the initramfs, and is still there under this name.
    let mut agent = Agent::new(reaper, PathBuf::from("/proc/self/exe"), cgroup, PathBuf::from("/"));
    if let Some(network) = &boot.network {
        network::set_up(&agent.root, network).into_iter().for_each(say);
        agent = agent.on_network();
    }
    let agent = Arc::new(agent);
    if let Err(failure) = identity::take_on(&agent, boot.identity) {
        say(failure.message);
    }
    let listener = server::listen().map_err(|error| format!("cannot listen: {error}"))?;
    if let Some(command) = boot.command {
        start(&agent, command);
    }
    let later = Arc::clone(&agent);
    let ahead = thread::Builder::new().name("ahead".into()).spawn(move || {
        // In this order: a heart is made from a helper, too.
        let heart = heartbeat::prepare(&later);
        launch::prepare(&later);
        heart
    });
    drop(ahead); // Whoever needs one and finds none makes it.
    server::accept(&agent, &listener)
}

/// Starts the VM's command. The VM stays when it ends, or could not be started: its files are still to be looked at.
///
/// It runs before anybody is answered, so whoever looks at the VM, or forks it, as soon as it is up finds it there.
fn start(agent: &Agent, command: Exec) {
    // The console is no terminal of its own.
    let child = match identity::on_console(agent, &Exec { terminal: None, ..command }) {
        Ok(child) => child,
        Err(failure) => return say(failure.message),
    };
    let thread = thread::Builder::new().name("command".into()).spawn(move || match child.exit.recv() {
        Ok(exit) => say(format_args!("command {}", identity::describe(exit))),
        Err(_) => say("command ended, and nobody saw how"),
    });
    if let Err(error) = thread {
        say(format_args!("cannot start a thread that waits for the command: {error}"));
    }
}

//! A monitor without a VM, with an agent in it: what the daemon's tests run instead of `pando vmm`. It keeps the two
//! protocols and checks what it is sent. How it misbehaves depends on the VM's name, or on its environment.

#![allow(clippy::unwrap_used, reason = "a helper of tests, which fail where it does")]

mod agent; // the guest's side
mod control; // the monitor's side
mod pages; // what stands between it and the store

use pando_wire::control::{Connection, Ending, Listener, Phase, Response, WorkingSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// Set for a child of a fork: when its parent's disk was flushed.
const FLUSHED: &str = "PANDO_FAKE_FLUSHED";

/// What this monitor is.
struct Monitor {
    /// From the command line; of a child of a fork, whose child it is.
    name: String,
    /// When its parent's disk was flushed, as a number; empty if it was written to since.
    disk_of: String,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    watching: Vec<Connection>,
    disk: Option<File>,
    /// Where its disk says what is on it.
    journal: Option<File>,
    /// When that was flushed, likewise.
    flushed: String,
    /// The name that its agent was given.
    adopted: String,
    /// Its tap, which is there for as long as these are open.
    queues: Vec<OwnedFd>,
    /// The page server that its memory comes from.
    pages: Vec<UnixStream>,
    expected: WorkingSet,
    /// Whether its clock was set.
    is_on_time: bool,
    /// How often it was asked what it has written.
    touched: u32,
    /// How often it was paused.
    pauses: u32,
    /// How often it was told to go on.
    resumes: u32,
}

impl Monitor {
    /// Tells everybody who watches, and ends.
    fn end(&self, ending: Ending) -> ! {
        for connection in &self.state.lock().unwrap().watching {
            let _ = connection.send(&Response::Ended(ending.clone()), &[]);
        }
        std::process::exit(0)
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // Goes away at once, so that the child is left to the daemon, as a real monitor's seed does.
        [_, "seed", parent, expected] => {
            let child = Command::new(&arguments[0])
                .args(["vmm", "--name", &format!("child of {parent}"), expected])
                .spawn()
                .unwrap();
            drop(child);
        }
        // Likewise, and says which process it has left.
        [_, "copier", said] => {
            let copy =
                Command::new(&arguments[0]).args(["copy", said]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            let copy = copy.unwrap();
            println!("{}", copy.id());
            drop(copy);
        }
        [_, "copy", said] => pages::copy(said),
        [_, "vmm", "--name", name] => serve(name, WorkingSet::default()),
        [_, "vmm", "--name", name, pages] => serve(name, WorkingSet(vec![(0, pages.parse().unwrap())])),
        [_, "pages", "save", "--name", name, "--store", store] => pages::save(store, name, None),
        [_, "pages", "save", "--name", name, "--store", store, "--since", since] => {
            pages::save(store, name, Some(since));
        }
        [_, "pages", "serve", "--name", name, "--store", store] => pages::serve(store, name),
        _ => panic!("unknown arguments {arguments:?}"),
    }
}

fn serve(name: &str, expected: WorkingSet) {
    match name {
        "dead" => return,
        "child of late" => std::thread::sleep(std::time::Duration::from_secs(2)),
        _ => (),
    }
    let monitor = Arc::new(Monitor {
        name: name.to_owned(),
        disk_of: std::env::var(FLUSHED).unwrap_or_default(),
        state: Mutex::new(State {
            phase: Phase::Created,
            watching: Vec::new(),
            disk: None,
            journal: None,
            flushed: String::new(),
            adopted: String::new(),
            queues: Vec::new(),
            pages: Vec::new(),
            expected,
            is_on_time: false,
            touched: 0,
            pauses: 0,
            resumes: 0,
        }),
    });
    let listener = Listener::from_fd(rustix::stdio::stdin().try_clone_to_owned().unwrap());
    loop {
        let connection = listener.accept().unwrap();
        let monitor = Arc::clone(&monitor);
        std::thread::spawn(move || control::serve(&monitor, connection));
    }
}

//! The fork-point oracle: a program that notices when a copy of its machine was not taken at one instant.
//!
//! ```text
//! oracle run DIR [SOCKET]     write without end: memory on every CPU, disk records in DIR
//! oracle side N [SOCKET]      from now on this machine's writes carry N
//! oracle check [SOCKET]       look at all that was there when this was asked; exit 0, or 1 and why not
//! oracle part N [SOCKET]      side N, then check
//! ```
//!
//! Every writer knows from its registers and its stack what it wrote last, and looks at what it wrote one lap ago before
//! it writes the next. A copy whose memory, registers and disk are of different instants contradicts itself there:
//!
//! ```text
//! register: next step is s      memory: pages hold s-1 … s-P       disk: slots hold d-1 … d-L, and d-1 is written
//!
//! pages older than registers    page of s-1 holds s-1-P            found one lap later
//! pages newer than registers    page of s holds s, not s-P         found at once
//! disk newer than memory        slot of d+1 holds d+1, not d+1-L   found two records later
//! disk older than memory        slot of d-1 holds d-1-L            found at once
//! ```
//!
//! A disk that is newer by a record still in flight when the copy was taken is no contradiction, and cannot be noticed.

mod control; // the socket: check, side
mod disk; // a writer of disk records
mod memory; // a writer of memory pages
mod state; // what writers and checks share

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use state::State;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::{env, fs, thread};

const SOCKET: &str = "/run/oracle.sock";
const USAGE: &str = "usage: oracle run DIR [SOCKET] | oracle side|part N [SOCKET] | oracle check [SOCKET]";
/// Each has a file of its own, so that several requests are in the disk's queue.
const DISK_WRITERS: usize = 2;
/// Where a program lands that is in no group which a fork makes stand still.
const ROOT_CGROUP: &str = "/sys/fs/cgroup/cgroup.procs";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let socket = |index: usize| PathBuf::from(*args.get(index).unwrap_or(&SOCKET));
    let result = match args[..] {
        ["run", dir] | ["run", dir, _] => run(Path::new(dir), &socket(2)),
        [verb @ ("side" | "part"), side] | [verb @ ("side" | "part"), side, _] => {
            control::ask(&socket(2), &format!("{verb} {side}"))
        }
        ["check"] | ["check", _] => control::ask(&socket(1), "check"),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(code) => code,
        Err(why) => {
            eprintln!("oracle: {why}");
            ExitCode::from(2)
        }
    }
}

/// Starts the writers and answers on the socket. Comes back only when something cannot be set up.
fn run(dir: &Path, socket: &Path) -> Result<ExitCode, String> {
    escape_the_barrier()?;
    fs::create_dir_all(dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    let cpus = cpus()?;
    let memory_writers = cpus.len();
    let state = Arc::new(State::new(memory_writers + DISK_WRITERS));
    for (writer, cpu) in cpus.into_iter().enumerate() {
        let state = Arc::clone(&state);
        spawn(format!("memory.{cpu}"), move || {
            pin(cpu)?;
            let _ = rustix::process::nice(10); // So that whoever asks is answered. It may always go down.
            memory::write(&state, writer)
        })?;
    }
    for number in 0..DISK_WRITERS {
        let (state, path) = (Arc::clone(&state), dir.join(format!("records.{number}")));
        spawn(format!("disk.{number}"), move || disk::write(&state, memory_writers + number, &path))?;
    }
    control::serve(&state, socket)
}

/// Programs of a guest stand still around a fork, which would hide from us what we are here to see. Those that root
/// moved elsewhere do not.
fn escape_the_barrier() -> Result<(), String> {
    match fs::write(ROOT_CGROUP, "0") {
        // No guest of ours: the program's own tests.
        Err(_) if env::var_os("ORACLE_STAYS").is_some() => Ok(()),
        result => result.map_err(|error| format!("cannot leave the fork barrier through {ROOT_CGROUP}: {error}")),
    }
}

/// A writer that ends has failed, and with it the whole program: a check must not find the others well.
fn spawn(name: String, write: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), String> {
    let writer = move || {
        let why = write().err().unwrap_or_else(|| "it ended".to_owned());
        eprintln!("oracle: a writer gave up: {why}");
        std::process::exit(2);
    };
    thread::Builder::new().name(name).spawn(writer).map(drop).map_err(|error| format!("cannot start a thread: {error}"))
}

/// The CPUs that this program may use.
fn cpus() -> Result<Vec<usize>, String> {
    let set = sched_getaffinity(None).map_err(|error| format!("cannot read the CPU affinity: {error}"))?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

fn pin(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| format!("cannot pin a thread to CPU {cpu}: {error}"))
}

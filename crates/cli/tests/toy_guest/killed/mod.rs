//! A save that is killed at any moment: a checkpoint is in the store as a whole, or not at all.

mod since; // one that takes over what an earlier one has
mod transfer; // who is killed at a push, or while garbage is collected

use crate::fork::assert_unbroken;
use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Guest, Monitor, PageServer, Toy, serve};
use pando_store::Store;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many times somebody is killed, in each of the tests here; many find what is rare.
const KILLS: &str = "PANDO_KILLS";
/// How many saves are killed when that is not set, a process of each in turn.
const FEW_KILLS: u32 = 32;
/// What the guest writes anew in each lap, in pages: enough for a seed to be killed while it tells of them.
const PAGES: u64 = 8192;

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The process that writes into the store.
    Saver,
    /// The seed's copy of itself, which tells it everything.
    Teller,
    /// The seed, which is not needed any more once the teller is there.
    Seed,
    /// The VM that the seed was forked from.
    Monitor,
}

const VICTIMS: [Victim; 4] = [Victim::Saver, Victim::Teller, Victim::Seed, Victim::Monitor];

fn kills(few: u32) -> u32 {
    std::env::var(KILLS).map_or(few, |kills| kills.parse().unwrap())
}

fn kill(pid: u32) {
    // It may have ended by itself.
    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
}

fn guest() -> Guest {
    Guest { kernel: Toy::walking(PAGES).elf(), vcpus: 1, memory_bytes: MEMORY, disk_bytes: 4096 }
}

fn boot() -> Monitor {
    let vm = Monitor::boot_guest(PANDO.as_ref(), &guest()).unwrap();
    vm.console_of(3, LIMIT).unwrap();
    vm
}

#[test]
fn a_save_that_is_killed_is_whole_or_not_there() {
    if !needs_kvm() {
        return;
    }
    let mut parent = boot();
    let first = parent.seed().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    first.save(PANDO.as_ref(), dir.path(), "whole").unwrap();
    let took = start.elapsed();
    drop(first);
    let store = Store::open(dir.path()).unwrap();
    let mut known = vec!["whole".to_owned()];
    let kills = kills(FEW_KILLS).next_multiple_of(VICTIMS.len() as u32);
    let (mut whole, ended) = ([0; VICTIMS.len()], AtomicBool::new(false));
    thread::scope(|scope| {
        let sweeper = scope.spawn(|| sweep(dir.path(), &ended));
        let end = End(&ended);
        for kill in 0..kills {
            let (name, victim) = (format!("k{kill}"), kill as usize % VICTIMS.len());
            let done = save_and_kill(&parent, dir.path(), &name, took * kill / kills, VICTIMS[victim]);
            let now = store.checkpoints().unwrap();
            // It may be whole before its writer can say so, and then is like any other.
            if done || now.contains(&name) {
                whole[victim] += 1;
                goes_on(dir.path(), &name);
                known.push(name);
            }
            known.sort();
            assert_eq!(now, known);
            assert_eq!(store.verify().unwrap().damage.len(), 0);
            if VICTIMS[victim] == Victim::Monitor {
                parent = boot();
            }
        }
        drop(end);
        assert!(sweeper.join().unwrap() > 0);
    });
    drop(parent);
    println!("of {kills} saves {whole:?} were whole when one of {VICTIMS:?} was killed");
    let each = kills / VICTIMS.len() as u32;
    assert!(whole[0] < each && whole[1] < each, "kills came in the middle of it: {whole:?}");
    assert_eq!(whole[2..], [each; 2], "a seed that dies takes nothing along, and neither does its VM");
}

/// The checkpoint is a VM that goes on.
fn goes_on(store: &Path, name: &str) {
    let PageServer { connections, .. } = serve(PANDO.as_ref(), store, name).unwrap();
    let vm = Monitor::restore(PANDO.as_ref(), &guest(), connections).unwrap();
    assert_unbroken(&vm.console_of(3, LIMIT).unwrap());
}

/// Makes a checkpoint, and kills one of those at work so long after the beginning. Whether it was said to be stored.
fn save_and_kill(parent: &Monitor, store: &Path, name: &str, moment: Duration, victim: Victim) -> bool {
    let laps = parent.console().unwrap().len();
    parent.console_of(laps + 1, LIMIT).unwrap(); // So that there is something new to be stored.
    let seed = parent.seed().unwrap();
    let pid = seed.pid().unwrap();
    let mut saving = seed.start_saving(PANDO.as_ref(), store, name).unwrap();
    thread::sleep(moment);
    let pids = match victim {
        Victim::Saver => vec![saving.id()],
        Victim::Teller => children(pid),
        Victim::Seed => vec![pid],
        Victim::Monitor => vec![parent.pid().unwrap()],
    };
    pids.into_iter().for_each(kill);
    saving.wait().unwrap().success()
}

/// The processes that a process has forked and that live, or have not been waited for.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// Ends the sweeper, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Takes back what nobody needs, again and again. How many times.
fn sweep(store: &Path, ended: &AtomicBool) -> usize {
    let store = Store::open(store).unwrap();
    let mut sweeps = 0;
    while !ended.load(Ordering::SeqCst) {
        store.collect().unwrap();
        sweeps += 1;
    }
    sweeps
}

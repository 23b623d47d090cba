//! What is asked of a VM while it is at something else: it does both, or says why not, and nothing is lost.

use crate::checkpoint::{ALL, Between, WITNESS, layers, restore, save};
use crate::instant::{boot, wait_for_laps};
use crate::moments::Moments;
use crate::{LIMIT, PANDO};
use pando_bench::{Child, Monitor, MonitorError, Witness, serve};
use pando_store::Store;
use pando_wire::control::{Request, Response};
use std::path::Path;
use std::process::Child as Process;
use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// How often each of these is tried, each time at other moments.
const TIMES: usize = 16;

/// One with so much memory that a fork early in its life finds most of it on its way.
const LARGE: Witness = Witness { pages: 512, ..WITNESS };
/// How long each answer of its slow page server takes.
const DELAY: Duration = Duration::from_millis(5);
/// How often that is tried: its laps take their time.
const TIMES_LARGE: usize = 6;

fn cold(store: &Path, name: &str) -> Monitor {
    restore(serve(PANDO.as_ref(), store, name).unwrap().connections).unwrap()
}

/// Every page and record of it was looked at, after a while in which all of them ran.
fn are_well<'m>(vms: impl IntoIterator<Item = &'m Monitor>) {
    vms.into_iter().for_each(|vm| wait_for_laps(vm, WITNESS, ALL, LIMIT));
}

fn monitors(children: &[Child]) -> impl Iterator<Item = &Monitor> {
    children.iter().map(|child| &child.monitor)
}

/// A save that was started comes to its end, and what is stored is what the seed still is: it is stored once more, at
/// rest, and has the same hashes.
fn is_saved_right(seed: &Monitor, saving: Process, store: &Path, name: &str) {
    let saved = saving.wait_with_output().unwrap();
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let again = format!("{name}.again");
    save(seed, store, &again);
    assert_eq!(layers(store, name), layers(store, &again));
}

#[test]
fn a_checkpoint_during_a_fork_and_both_are_whole() {
    let Some(parent) = boot(WITNESS) else { return };
    let (dir, mut moments) = (tempfile::tempdir().unwrap(), Moments::new());
    for time in 0..TIMES {
        let (fork_at, keep_at) = (moments.next(Duration::from_millis(2)), moments.next(Duration::from_millis(4)));
        let (name, start) = (format!("c{time}"), Barrier::new(2));
        let at = |moment| {
            start.wait();
            thread::sleep(moment);
        };
        let (children, (seed, saving)) = thread::scope(|scope| {
            let fork = scope.spawn(|| {
                at(fork_at);
                parent.fork(3).unwrap().1
            });
            let keep = scope.spawn(|| {
                at(keep_at);
                let seed = parent.seed().unwrap();
                let saving = seed.start_saving(PANDO.as_ref(), dir.path(), &name).unwrap();
                (seed, saving)
            });
            (fork.join().unwrap(), keep.join().unwrap())
        });
        let (_, warm) = seed.fork(1).unwrap(); // While it is being saved.
        is_saved_right(&seed, saving, dir.path(), &name);
        are_well(monitors(&children).chain(monitors(&warm)).chain([&cold(dir.path(), &name), &parent]));
    }
    assert_eq!(Store::open(dir.path()).unwrap().verify().unwrap().damage, []);
}

#[test]
fn a_vm_that_falls_asleep_during_its_checkpoint_leaves_that_whole_and_wakes() {
    let Some(mut vm) = boot(WITNESS) else { return };
    let (dir, mut moments) = (tempfile::tempdir().unwrap(), Moments::new());
    for time in 0..TIMES {
        moments.pass();
        let [kept, asleep] = ["kept", "asleep"].map(|what| format!("{what}{time}"));
        let seed = vm.seed().unwrap();
        let saving = seed.start_saving(PANDO.as_ref(), dir.path(), &kept).unwrap();
        thread::sleep(moments.next(Duration::from_millis(40)));
        // What the daemon does: stand still, be kept and stored, and only then end.
        assert_eq!(vm.ask(&Request::Pause).unwrap(), Response::Done);
        let sleep = vm.seed().unwrap();
        let sleeping = sleep.start_saving(PANDO.as_ref(), dir.path(), &asleep).unwrap();
        is_saved_right(&sleep, sleeping, dir.path(), &asleep);
        drop((vm, sleep));
        is_saved_right(&seed, saving, dir.path(), &kept);
        drop(seed);

        let (woken, of_kept) = (cold(dir.path(), &asleep), cold(dir.path(), &kept));
        are_well([&woken, &of_kept]);
        woken.gather().unwrap();
        vm = woken;
    }
    assert_eq!(Store::open(dir.path()).unwrap().verify().unwrap().damage, []);
}

#[test]
fn a_vm_that_is_forked_while_it_wakes_is_forked_whole_or_says_that_it_is_not() {
    let Some(parent) = boot(LARGE) else { return };
    let (dir, mut moments) = (tempfile::tempdir().unwrap(), Moments::new());
    save(&parent.seed().unwrap(), dir.path(), "vm");
    drop(parent);
    let mut refusals = 0;
    for time in 0..TIMES_LARGE {
        let mut between = Between::new(serve(PANDO.as_ref(), dir.path(), "vm").unwrap().connections, |_, _| DELAY);
        let vm = restore(std::mem::take(&mut between.monitors)).unwrap();
        let slow_for = moments.next(Duration::from_millis(30));
        let children = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(slow_for);
                between.is_slow.store(false, Ordering::SeqCst);
            });
            // The first that is not refused comes as early as can be.
            loop {
                match vm.fork(1) {
                    Ok((_, children)) => break children,
                    Err(MonitorError::Refused(chain)) => {
                        assert_eq!(chain, ["the memory of the VM is still on its way: gather it first"]);
                        refusals += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let seed = vm.seed().unwrap();
        let name = format!("c{time}");
        let saving = seed.start_saving(PANDO.as_ref(), dir.path(), &name).unwrap();
        is_saved_right(&seed, saving, dir.path(), &name);
        are_well(monitors(&children).chain([&cold(dir.path(), &name), &vm]));
    }
    assert!(refusals > 0, "nobody came early");
    assert_eq!(Store::open(dir.path()).unwrap().verify().unwrap().damage, []);
}

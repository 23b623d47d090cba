//! A VM sleeps with its memory in the store and its disk where it was. The witness sees whether both are of one instant.

use crate::checkpoint::{ALL, WITNESS, next_laps};
use crate::instant::{boot, wait_for_laps};
use crate::moments::Moments;
use crate::{LIMIT, MEMORY, PANDO};
use pando_bench::{Monitor, MonitorError, Told, serve};
use pando_store::Store;
use pando_wire::control::{Phase, Request, Response};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How often a VM sleeps, each time at another moment.
const TIMES: usize = 10;

fn order(vm: &Monitor, request: &Request) {
    assert_eq!(vm.ask(request).unwrap(), Response::Done);
}

fn phase(vm: &Monitor) -> Phase {
    let Response::Status(status) = vm.ask(&Request::Status).unwrap() else { panic!("no status") };
    status.phase
}

/// What the daemon does until a VM may end.
fn lay_down(vm: &Monitor, store: &Path, name: &str) {
    order(vm, &Request::Pause);
    order(vm, &Request::Flush);
    let seed = vm.seed().unwrap();
    let printed = seed.save_without_disk(PANDO.as_ref(), store, name).unwrap();
    let sizes: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(sizes["logical_bytes"], MEMORY, "nothing of the disk: {printed}");
    assert!(Store::open(store).unwrap().checkpoint(name).unwrap().disks.is_empty());
}

/// `vm` has ended, and goes on as `name`. It stands still.
fn wake(vm: Monitor, store: &Path, name: &str) -> Monitor {
    let _ = vm.ask(&Request::Kill); // The files are to be the next one's alone.
    let vm = vm.wake(PANDO.as_ref(), &WITNESS.guest(MEMORY), serve(PANDO.as_ref(), store, name).unwrap().connections);
    let vm = vm.unwrap();
    assert_eq!(phase(&vm), Phase::Paused);
    vm
}

#[test]
fn memory_and_disk_of_a_vm_that_slept_are_of_one_instant_and_a_child_has_its_parents_layers() {
    let Some(parent) = boot(WITNESS) else { return };
    let (dir, mut moments) = (tempfile::tempdir().unwrap(), Moments::new());
    let (_, mut children) = parent.fork(1).unwrap();
    let mut vm = children.remove(0).monitor;
    wait_for_laps(&parent, WITNESS, 2, LIMIT); // It goes on in its layer, above what its child reads.
    drop(parent);
    let mut lengths = Vec::new();
    for time in 0..TIMES {
        wait_for_laps(&vm, WITNESS, 2, LIMIT);
        thread::sleep(moments.next(Duration::from_millis(20)));
        let name = format!("s{time}");
        lay_down(&vm, dir.path(), &name);
        vm = wake(vm, dir.path(), &name);
        // Woken and never let run, it sleeps on, and is woken again.
        vm = wake(vm, dir.path(), &name);
        order(&vm, &Request::Resume);
        wait_for_laps(&vm, WITNESS, ALL, LIMIT);
        vm.gather().unwrap();
        lengths.push(fs::metadata(vm.dir().join("data")).unwrap().len());
    }
    assert!(lengths.iter().max() <= lengths.get(1), "it overwrites in place what nobody else reads: {lengths:?}");
    let (_, children) = vm.fork(1).unwrap();
    wait_for_laps(&children[0].monitor, WITNESS, ALL, LIMIT);
    assert!(vm.console().unwrap().len() > next_laps(&vm, WITNESS).len());
}

#[test]
fn what_was_woken_and_has_run_no_longer_fits_its_disk_and_this_guest_sees_it() {
    let Some(vm) = boot(WITNESS) else { return };
    let dir = tempfile::tempdir().unwrap();
    wait_for_laps(&vm, WITNESS, ALL, LIMIT);
    lay_down(&vm, dir.path(), "once");
    let vm = wake(vm, dir.path(), "once");
    order(&vm, &Request::Resume);
    wait_for_laps(&vm, WITNESS, ALL, LIMIT);
    order(&vm, &Request::Pause);
    order(&vm, &Request::Flush);

    let vm = wake(vm, dir.path(), "once");
    order(&vm, &Request::Resume);

    let deadline = Instant::now() + LIMIT;
    let sees_it = || vm.console().unwrap().iter().any(|byte| matches!(Told::from_byte(*byte), Told::Broken(..)));
    while !sees_it() {
        assert!(Instant::now() < deadline, "an old memory and a newer disk are one VM");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn only_a_vm_that_stands_still_is_flushed_and_a_save_without_disk_takes_no_layer() {
    let Some(vm) = boot(WITNESS) else { return };
    let refused = |monitor: &Monitor, request| match monitor.ask(&request) {
        Err(MonitorError::Refused(chain)) => chain.join(": "),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&vm, Request::Flush), "only a VM that is paused is flushed");
    let seed = vm.seed().unwrap();
    assert_eq!(refused(&seed, Request::Flush), "the VM has not been started");
    let files = "0 descriptors came with the request, where a socket and 0 files of layers belong";
    assert_eq!(refused(&seed, Request::SaveWithoutDisk), files);
    wait_for_laps(&vm, WITNESS, ALL, LIMIT);
}

//! Children that pull what they are made of from a copy of their parent: of its instant, whoever goes meanwhile, and
//! never with zeroes for what did not come.

use crate::LIMIT;
use crate::checkpoint::{ALL, Between, WITNESS, acpi, ending, next_laps, restore, until};
use crate::instant::{boot, wait_for_laps};
use crate::moments::Moments;
use pando_bench::{Copy, Monitor, MonitorError};
use pando_wire::control::{Ending, Fork, MAX_PULLING, Request, Response, WorkingSet};
use pando_wire::pages::Client;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::sync::atomic::Ordering;

const ROUNDS: usize = 24;

fn pid(copy: &Copy) -> Pid {
    Pid::from_raw(copy.serving.pid as i32).unwrap()
}

fn order(vm: &Monitor, request: &Request) {
    assert_eq!(vm.ask(request).unwrap(), Response::Done);
}

/// The process is put away by its parent's kernel when it has ended.
fn wait_for_the_end_of(copy: Pid) {
    until("the end of the copy", || test_kill_process(copy).is_err().then_some(()));
}

/// The only child of a new copy, through somebody who keeps a page of it back.
fn pull_slowly(parent: &Monitor) -> (Pid, Between, Monitor) {
    let mut copy = parent.serve(1).unwrap();
    let mut between = Between::new(copy.connections.remove(0), acpi);
    let child = restore(std::mem::take(&mut between.monitors)).unwrap();
    (pid(&copy), between, child)
}

#[test]
fn memory_registers_and_disk_of_a_vm_that_pulls_are_of_one_instant_that_of_a_fork() {
    let Some(mut parent) = boot(WITNESS) else { return };
    let mut moments = Moments::new();
    for round in 1..=ROUNDS {
        moments.pass();
        // Standing still, so that there is one instant for both; and running, as most are.
        let is_still = round % 2 == 0;
        if is_still {
            order(&parent, &Request::Pause);
        }
        let mut copy = parent.serve(1).unwrap();
        let forked = is_still.then(|| parent.fork(1).unwrap().1.remove(0).monitor);
        if is_still {
            order(&parent, &Request::Resume);
        }
        let pulled = restore(copy.connections.remove(0)).unwrap();
        wait_for_laps(&pulled, WITNESS, ALL, LIMIT);
        if let Some(forked) = forked {
            wait_for_laps(&forked, WITNESS, 2, LIMIT);
            assert_eq!(next_laps(&pulled, WITNESS), next_laps(&forked, WITNESS), "round {round}");
        }
        wait_for_laps(&parent, WITNESS, if round % 4 == 0 { ALL } else { 1 }, LIMIT);
        if round % 6 == 0 {
            pulled.gather().unwrap();
            let (_, children) = pulled.fork(1).unwrap();
            wait_for_laps(&children[0].monitor, WITNESS, ALL, LIMIT);
            parent = pulled; // Copies of what was pulled.
        }
    }
}

#[test]
fn children_of_one_copy_go_on_from_one_instant_and_outlive_their_parent_and_it_ends_with_the_last_page() {
    let Some(parent) = boot(WITNESS) else { return };
    wait_for_laps(&parent, WITNESS, ALL, LIMIT);
    let copy = parent.serve(3).unwrap();
    let copied = pid(&copy);
    drop(parent);
    let children: Vec<_> = copy.connections.into_iter().map(|connections| restore(connections).unwrap()).collect();
    children.iter().for_each(|child| wait_for_laps(child, WITNESS, ALL, LIMIT));
    let next: Vec<_> = children.iter().map(|child| next_laps(child, WITNESS)).collect();
    assert!(next.iter().all(|laps| *laps == next[0]), "{next:?}");
    children.iter().for_each(|child| child.gather().unwrap());
    wait_for_the_end_of(copied);
    children.iter().for_each(|child| wait_for_laps(child, WITNESS, 2, LIMIT));
}

#[test]
fn what_a_copy_takes_with_it_is_lost_and_its_child_ends_with_a_sentence() {
    let Some(parent) = boot(WITNESS) else { return };
    wait_for_laps(&parent, WITNESS, ALL, LIMIT);
    let (copied, _between, child) = pull_slowly(&parent);
    let watching = child.watch().unwrap();
    wait_for_laps(&child, WITNESS, 1, LIMIT);
    kill_process(copied, Signal::KILL).unwrap();
    let Some(Ending::Crashed(how)) = ending(&watching) else { panic!("it did not crash") };
    assert!(how.contains("of the guest's memory are lost: the page server does not answer"), "{how}");
    wait_for_laps(&parent, WITNESS, ALL, LIMIT);

    // Before it said anything at all.
    let mut copy = parent.serve(1).unwrap();
    kill_process(pid(&copy), Signal::KILL).unwrap();
    let refused = restore(copy.connections.remove(0)).map(drop).unwrap_err().to_string();
    assert_eq!(refused.split(": ").next(), Some("cannot learn what was saved"), "{refused}");
}

#[test]
fn a_child_that_pulls_is_copied_when_all_is_there_and_a_copy_that_nobody_asks_ends() {
    let Some(parent) = boot(WITNESS) else { return };
    wait_for_laps(&parent, WITNESS, 1, LIMIT);
    let (_, between, child) = pull_slowly(&parent);
    let refused = child.serve(1).map(drop).unwrap_err().to_string();
    assert_eq!(refused, "the memory of the VM is still on its way: gather it first");
    between.is_slow.store(false, Ordering::SeqCst);
    child.gather().unwrap();
    let mut copy = child.serve(1).unwrap();
    let grandchild = restore(copy.connections.remove(0)).unwrap();
    wait_for_laps(&grandchild, WITNESS, ALL, LIMIT);
    drop(grandchild);
    wait_for_the_end_of(pid(&copy));

    let expected = vec![(1024, 16)]; // As children were seen to write them.
    order(&parent, &Request::Expect(WorkingSet(expected.clone())));
    let mut copy = parent.serve(2).unwrap();
    let copied = pid(&copy);
    let (described, _) = Client::new(copy.connections[0].remove(0)).describe().unwrap();
    assert_eq!(described.expected, expected);
    drop(copy); // Whoever asked for it went away.
    wait_for_the_end_of(copied);
}

#[test]
fn a_copy_that_cannot_be_is_refused_and_the_vm_goes_on() {
    let Some(parent) = boot(WITNESS) else { return };
    let refused = |served: Result<Response, MonitorError>| match served {
        Err(MonitorError::Refused(chain)) => chain.join(": "),
        other => panic!("{other:?}"),
    };
    let serve = |children| parent.ask(&Request::Serve(Fork { children }));
    assert_eq!(refused(serve(0)), "0 children cannot pull from one copy: 1 to 20 can");
    assert_eq!(refused(serve(MAX_PULLING as u32 + 1)), "21 children cannot pull from one copy: 1 to 20 can");
    assert_eq!(refused(serve(1)), "0 descriptors came with the request, where 7 belong");
    let seed = parent.seed().unwrap();
    assert_eq!(refused(seed.ask(&Request::Serve(Fork { children: 1 }))), "the VM has not been started");
    wait_for_laps(&parent, WITNESS, ALL, LIMIT);
}

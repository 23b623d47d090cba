//! What a fork promises, held against a guest of one CPU that walks over its memory.

use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{BROKEN, Child, Guest, Monitor, MonitorError, READY, Toy};
use pando_wire::control::{Phase, Request, Response, WorkingSet};

fn boot(toy: &Toy, memory_bytes: u64) -> Option<Monitor> {
    needs_kvm().then(|| Monitor::boot(PANDO.as_ref(), toy, memory_bytes).unwrap())
}

/// The successor of a lap's byte.
fn after(byte: u8) -> u8 {
    byte.wrapping_add(1) & 0x7f
}

/// Every lap once, in order, and no page that was not what it should be.
pub(crate) fn assert_unbroken(laps: &[u8]) {
    assert!(!laps.contains(&BROKEN), "registers and memory were of two instants");
    let gap = laps.windows(2).position(|pair| pair[1] != after(pair[0]));
    assert_eq!(gap, None, "an access was repeated or lost: {:?}", gap.map(|at| &laps[at.saturating_sub(3)..at + 3]));
}

/// The laps of a guest that was booted, once it has made `len` of them.
fn laps(monitor: &Monitor, len: usize) -> Vec<u8> {
    let console = monitor.console_of(len + 1, LIMIT).unwrap();
    assert_eq!(console[0], READY);
    console[1..].to_vec()
}

fn paused(monitor: &Monitor) -> Vec<u8> {
    assert_eq!(monitor.ask(&Request::Pause).unwrap(), Response::Done);
    monitor.console().unwrap()
}

#[test]
fn a_child_makes_the_step_that_its_parent_was_about_to_make() {
    // A vCPU that stops between an access and its completion repeats the access in every child (or loses it). The
    // guest of one page does little else than to write to its serial port, so it is nearly always stopped there.
    let Some(parent) = boot(&Toy::walking(1), MEMORY) else { return };
    laps(&parent, 10);
    for _ in 0..20 {
        let before = paused(&parent);
        let last = *before.last().unwrap();
        let (_, children) = parent.fork(1).unwrap();
        let child = children[0].monitor.console_of(3, LIMIT).unwrap();
        assert_eq!(child[0], after(last), "the child goes on right behind {last}");
        assert_unbroken(&child);
        assert_eq!(parent.console().unwrap(), before, "a parent that was paused stays so");
        parent.ask(&Request::Resume).unwrap();
        let now = parent.console_of(before.len() + 3, LIMIT).unwrap();
        assert_unbroken(&now[1..]);
    }
}

#[test]
fn registers_and_memory_of_every_child_are_of_one_instant() {
    // 64 pages are written in every lap, so nearly every fork falls into the middle of one.
    let Some(parent) = boot(&Toy::walking(64), MEMORY) else { return };
    laps(&parent, 2);
    let mut children: Vec<Child> = Vec::new();
    for _ in 0..40 {
        let (_, mut forked) = parent.fork(4).unwrap();
        for child in &forked {
            assert_unbroken(&child.monitor.console_of(3, LIMIT).unwrap());
        }
        children.append(&mut forked);
        children.truncate(4); // The others end here, while these and the parent go on.
    }
    for child in &children {
        assert_unbroken(&child.monitor.console().unwrap());
    }
    assert_unbroken(&laps(&parent, 10));
}

#[test]
fn a_line_of_forks_lives_on_in_whichever_order_its_ancestors_die() {
    for order in orders(4) {
        let Some(first) = boot(&Toy::walking(16), MEMORY) else { return };
        laps(&first, 2);
        let mut line = vec![Some(first)];
        for _ in 1..order.len() {
            let (_, mut forked) = line.last().unwrap().as_ref().unwrap().fork(1).unwrap();
            let child = forked.remove(0).monitor;
            child.console_of(2, LIMIT).unwrap(); // It has written to its memory before it is forked.
            line.push(Some(child));
        }
        let (last, dying) = order.split_last().unwrap();
        for &dies in dying {
            drop(line[dies].take());
            for lives in line.iter().flatten() {
                let before = lives.console().unwrap().len();
                lives.console_of(before + 2, LIMIT).unwrap();
            }
        }
        let console = line[*last].as_ref().unwrap().console().unwrap();
        assert_unbroken(&console[usize::from(*last == 0)..]); // Only the first was booted, and said so.
    }
}

/// Every order of `count` things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let longer = |order: Vec<usize>| {
        (0..count).map(move |at| {
            let mut order = order.clone();
            order.insert(at, count - 1);
            order
        })
    };
    orders(count - 1).into_iter().flat_map(longer).collect()
}

#[test]
fn memory_above_the_hole_is_forked_as_well() {
    let high = 4 << 30;
    let toy = Toy { touched: [0..0, 0..0], walked: high..high + (16 << 12) };
    let Some(parent) = boot(&toy, 4 << 30) else { return };
    laps(&parent, 2);
    let (_, children) = parent.fork(2).unwrap();
    for child in &children {
        assert_unbroken(&child.monitor.console_of(5, LIMIT).unwrap());
    }
}

#[test]
fn what_one_child_wrote_is_there_for_the_next_before_it_runs() {
    let Some(parent) = boot(&Toy::walking(64), MEMORY) else { return };
    laps(&parent, 2);
    let walked = (Toy::FREE_FROM / 4096) as u32..(Toy::FREE_FROM / 4096) as u32 + 64;
    let holds_walk = |pages: &WorkingSet| {
        walked.clone().all(|page| pages.0.iter().any(|run| (run.0..run.0 + run.1).contains(&page)))
    };

    let (timings, first) = parent.fork(1).unwrap();
    assert_eq!(timings.expected_pages, 0);
    first[0].monitor.console_of(3, LIMIT).unwrap();
    let written = first[0].monitor.touched().unwrap();
    assert!(holds_walk(&written), "{written:?}");

    assert_eq!(parent.ask(&Request::Expect(written.clone())).unwrap(), Response::Done);
    paused(&parent); // So that it does not part from the next child by writing itself.
    let (timings, second) = parent.fork(1).unwrap();
    assert_eq!(timings.expected_pages, written.pages());
    let prepared = second[0].monitor.touched().unwrap();
    assert!(holds_walk(&prepared), "{prepared:?}");
    assert_unbroken(&second[0].monitor.console_of(3, LIMIT).unwrap());
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let Some(parent) = boot(&Toy::walking(1), MEMORY) else { return };
    for count in [0, 251] {
        let refused = parent.ask(&Request::Fork(pando_wire::control::Fork { children: count }));
        assert!(matches!(refused, Err(MonitorError::Refused(_))), "{refused:?}");
    }
    let Response::Status(status) = parent.ask(&Request::Status).unwrap() else { panic!("no status") };
    assert_eq!(status.phase, Phase::Running);
    let before = laps(&parent, 1).len();
    assert_unbroken(&laps(&parent, before + 2));
}

#[test]
fn a_kernel_that_is_none_is_refused_by_name() {
    if !needs_kvm() {
        return;
    }
    let refused = |booted: Result<Monitor, MonitorError>| match booted {
        Err(MonitorError::Refused(chain)) => chain.join(": "),
        other => panic!("{other:?}"),
    };
    let kernel = std::fs::read(PANDO).unwrap();
    let none = Monitor::boot_guest(PANDO.as_ref(), &Guest { kernel, vcpus: 1, memory_bytes: MEMORY, disk_bytes: 4096 });
    let what = "the kernel is neither a 64-bit ELF executable nor a bzImage with a 64-bit entry";
    assert_eq!(refused(none), what);
    let too_little = Monitor::boot(PANDO.as_ref(), &Toy::walking(1), 64 << 20);
    assert_eq!(refused(too_little), "64 MiB of memory is outside the range of 128 to 65536 MiB");
}

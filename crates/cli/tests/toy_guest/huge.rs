//! Memory that a VM has for itself is in huge pages again some seconds after a fork, and what it shares stays shared.

use crate::fork::assert_unbroken;
use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Monitor, READY, Toy};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

const MIB_KB: u64 = 1 << 10;
/// How much of its memory a guest writes, all the time.
const WALKED_KB: u64 = 64 * MIB_KB;
/// Long enough for all of a VM's memory to be looked at.
const LOOKED_AT: Duration = Duration::from_secs(4);

/// What `smaps_rollup` of the VM's monitor says, in KiB.
fn memory_kb(vm: &Monitor, field: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", vm.pid().unwrap())).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

fn huge_kb(vm: &Monitor) -> u64 {
    memory_kb(vm, "AnonHugePages")
}

fn private_kb(vm: &Monitor) -> u64 {
    memory_kb(vm, "Private_Dirty")
}

/// Waits until the guest has made two more laps, one of them whole.
fn write_all(vm: &Monitor) {
    vm.console_of(vm.console().unwrap().len() + 2, LIMIT).unwrap();
}

fn boot(walked_kb: u64) -> Option<Monitor> {
    let toy = Toy::touching(MEMORY, walked_kb << 10);
    needs_kvm().then(|| Monitor::boot(PANDO.as_ref(), &toy, MEMORY).unwrap())
}

#[test]
fn memory_that_a_guest_wrote_beside_a_seed_is_in_huge_pages_again() {
    let Some(vm) = boot(WALKED_KB) else { return };
    write_all(&vm);
    let whole = huge_kb(&vm);
    assert!(whole > WALKED_KB, "this host has huge pages: {whole} KiB");
    let seed = vm.seed().unwrap();
    write_all(&vm);
    // Where the guest is slow, some of it is huge again by now.
    let broken = huge_kb(&vm);
    assert!(broken + WALKED_KB / 8 < whole, "{broken} of {whole} KiB: what was written is mapped page by page");
    let since = Instant::now();
    // Forks in the middle of it, each of which begins it anew.
    let mut children = Vec::new();
    while huge_kb(&vm) + 4 * MIB_KB < whole {
        assert!(since.elapsed() < LIMIT, "{} of {whole} KiB", huge_kb(&vm));
        if huge_kb(&vm) > broken && children.len() < 3 {
            children.extend(vm.fork(1).unwrap().1);
        }
        sleep(Duration::from_millis(1));
    }
    assert!(!children.is_empty(), "none was forked while some was huge");
    for child in children.iter().map(|child| &child.monitor) {
        write_all(child);
        let since = Instant::now();
        while huge_kb(child) + 4 * MIB_KB < whole {
            assert!(since.elapsed() < LIMIT, "{} of {whole} KiB in a child that wrote as much", huge_kb(child));
            sleep(Duration::from_millis(10));
        }
    }
    let console = vm.console().unwrap();
    assert_eq!(console[0], READY);
    assert_unbroken(&console[1..]);
    children.iter().for_each(|child| assert_unbroken(&child.monitor.console().unwrap()));
    drop(seed);
}

#[test]
fn a_vm_is_given_no_memory_that_it_shares() {
    // Less than half of a huge page: of more, the kernel's own khugepaged makes one (`max_ptes_shared`).
    let Some(vm) = boot(MIB_KB / 4) else { return };
    write_all(&vm);
    let (_, mut children) = vm.fork(1).unwrap();
    let child = children.remove(0).monitor;
    [&vm, &child].into_iter().for_each(write_all);
    let before = [&vm, &child].map(private_kb);
    sleep(LOOKED_AT);
    let after = [&vm, &child].map(private_kb);
    let grown = [0, 1].map(|of| after[of].saturating_sub(before[of]));
    assert!(grown.iter().all(|kb| *kb < MIB_KB / 2), "parent and child: {before:?}, then {after:?} KiB");
}

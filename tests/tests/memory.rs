//! What a guest does not use is the host's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm, wait_for};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What the guest fills and frees.
const FILLED_MIB: u64 = 200;
/// What of that must come back at least: the kernel reports blocks of 2 MiB and more that are free as a whole.
const RETURNED_MIB: u64 = 150;
/// Linux looks for free pages every two seconds, and tells of a part of them each time.
const REPORT_LIMIT: Duration = Duration::from_secs(90);

#[test]
#[ignore = "needs a Linux guest: make test"]
fn memory_that_a_guest_frees_goes_back_to_the_host_and_its_relatives_keep_theirs() {
    let parent = TestDaemon::shared().boot_with("frees", &["--memory", "512M"], &[]);
    parent.sh("mkdir /ram && mount -t tmpfs -o size=300m none /ram");
    parent.sh("dd if=/dev/urandom of=/ram/kept bs=1M count=16");
    parent.sh(&format!("yes a line that is not zeroes | dd of=/ram/filled bs=1M iflag=fullblock count={FILLED_MIB}"));
    let (kept, filled) = (parent.sh("md5sum /ram/kept"), parent.sh("md5sum /ram/filled"));
    let full = resident_mib(&parent);
    assert!(full >= FILLED_MIB, "{full} MiB are resident, and the guest has filled more");

    let child = parent.fork();
    assert!(resident_mib(&child) >= FILLED_MIB, "a child has what its parent has");
    child.sh("rm /ram/filled");
    wait_until_returned(&child, full);
    assert_eq!(child.sh("md5sum /ram/kept"), kept);
    assert_eq!(parent.sh("md5sum /ram/filled"), filled, "what a child gives back is still its parent's");
    assert!(resident_mib(&parent) >= FILLED_MIB);

    parent.sh("rm /ram/filled");
    wait_until_returned(&parent, full);
    let small = parent.fork();
    let resident = resident_mib(&small);
    assert!(
        resident + RETURNED_MIB <= full,
        "a child has {resident} MiB of {full}: what its parent gave back is in it"
    );
    for vm in [&parent, &child, &small] {
        assert_eq!(vm.sh("md5sum /ram/kept"), kept);
        // Pages that were given back are the guest's to use again.
        vm.sh("dd if=/dev/urandom of=/ram/again bs=1M count=32 && md5sum /ram/again > /ram/sum");
        vm.sh("md5sum -c /ram/sum");
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn memory_that_a_guest_freed_is_not_stored_and_does_not_come_back_with_the_rest() {
    let daemon = TestDaemon::start();
    let vm = daemon.boot_with("sleeps", &["--memory", "512M"], &[]);
    vm.sh("mkdir /ram && mount -t tmpfs -o size=300m none /ram");
    vm.sh("dd if=/dev/urandom of=/ram/kept bs=1M count=16");
    let kept = vm.sh("md5sum /ram/kept");
    // No store makes that smaller.
    vm.sh(&format!("dd if=/dev/urandom of=/ram/filled bs=1M count={FILLED_MIB}"));
    let full = resident_mib(&vm);
    vm.sh("rm /ram/filled");
    wait_until_returned(&vm, full);

    assert_eq!(daemon.pando(&["hibernate", "sleeps"]).ok(), "sleeps");
    let stored = size(&daemon.state_dir().join("store/packs")) >> 20;
    pando_tests::progress(format!("of {full} MiB, {stored} MiB were stored"));
    assert!(stored + RETURNED_MIB <= full, "{stored} MiB were stored of {full}: what was given back is in it");
    assert_eq!(vm.sh("md5sum /ram/kept"), kept);
    let child = vm.fork(); // So all is there.
    for vm in [&vm, &child] {
        let resident = resident_mib(vm);
        assert!(resident + RETURNED_MIB <= full, "{} has {resident} MiB of {full}", vm.name());
    }
    drop(child);

    // Freed, and asleep before that is told: it is told while these pages are on their way.
    vm.sh(&format!("yes a line that is not zeroes | dd of=/ram/filled bs=1M iflag=fullblock count={FILLED_MIB}"));
    vm.sh("rm /ram/filled");
    assert_eq!(daemon.pando(&["hibernate", "sleeps"]).ok(), "sleeps");
    assert_eq!(vm.sh("md5sum /ram/kept"), kept);
    let child = vm.fork();
    for vm in [&vm, &child] {
        wait_until_returned(vm, full);
        assert_eq!(vm.sh("md5sum /ram/kept"), kept);
        vm.sh("dd if=/dev/urandom of=/ram/again bs=1M count=32 && md5sum /ram/again > /ram/sum && md5sum -c /ram/sum");
    }
}

/// How long the files in `dir` are together, in bytes.
fn size(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn wait_until_returned(vm: &TestVm<'_>, full: u64) {
    let what = format!("{} gives back {RETURNED_MIB} MiB of {full}", vm.name());
    let took = wait_for(&what, REPORT_LIMIT, || resident_mib(vm) + RETURNED_MIB <= full);
    pando_tests::progress(format!("{what}: after {took:?}, {} MiB are left", resident_mib(vm)));
}

/// How much memory the monitor of `vm` has mapped, guest and all, shared with relatives or not.
fn resident_mib(vm: &TestVm<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

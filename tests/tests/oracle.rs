//! Memory, CPUs and disk of a child are of one instant. `tests/programs/src/bin/oracle` says how it is known.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm, prepared, progress, setting, wait_for};
use std::time::{Duration, Instant};

/// Forks of one VM that is never at rest.
const FORKS: u64 = 40;

#[test]
#[ignore = "needs a Linux guest: make test"]
fn memory_cpus_and_disk_of_every_child_are_of_one_instant() {
    let daemon = TestDaemon::start();
    let mut parent = boot(&daemon);
    let start = Instant::now();
    for side in 1..=FORKS {
        let child = parent.fork();
        parent.exec(&["oracle", "side", &side.to_string()]).ok();
        assert_well(&child, &["oracle", "part", &(1000 + side).to_string()]);
        // A violation is remembered, so the parent need not be asked after every fork. Then the child goes on in its
        // place: forks of forks.
        if side % 10 == 0 {
            progress(format_args!("{side} forks of {FORKS} in {:.0?}", start.elapsed()));
            assert_well(&parent, &["oracle", "check"]);
            parent = child;
        }
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn the_oracle_notices_a_disk_captured_after_the_resume() {
    let daemon = TestDaemon::start_with(&prepared(setting::PLANTED), None);
    let parent = boot(&daemon);
    let noticed = (1..=32).any(|_| {
        let child = parent.fork();
        let run = child.exec(&["oracle", "check"]);
        assert!(run.code == 1 || run.code == 0, "{run:?}");
        run.code == 1 && run.stdout.contains("disk writer")
    });
    assert!(noticed, "32 children got a disk that was sealed too late, and the oracle found them all well");
}

/// A VM whose two CPUs and disk never rest.
fn boot(daemon: &TestDaemon) -> TestVm<'_> {
    let options = ["--cpus", "2", "--memory", "256M"];
    let vm = daemon.boot_with("oracle", &options, &["oracle", "run", "/data/oracle"]);
    wait_for("the oracle runs", Duration::from_secs(60), || vm.exec(&["oracle", "check"]).code == 0);
    vm
}

#[track_caller]
fn assert_well(vm: &TestVm, question: &[&str]) {
    let run = vm.exec(question);
    assert_eq!(run.code, 0, "{question:?} of {}: {}{}", vm.name(), run.stdout, run.stderr);
}

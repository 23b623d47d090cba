//! Memory, CPUs and disk of a child, and of a VM from a checkpoint, are of one instant. `tests/programs/src/bin/oracle`
//! says how it is known.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm, prepared, progress, setting, wait_for};
use pando_wire::api::{Checkpoint, CheckpointState};
use std::process::Command;
use std::time::{Duration, Instant};

/// Forks of one VM that is never at rest.
const FORKS: u64 = 40;
/// Checkpoints of one; each takes as long as it is to be stored, and woken once more.
const CHECKPOINTS: u64 = 4;
/// Until the guest, the store or the daemon has done something.
const LIMIT: Duration = Duration::from_secs(180);

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
    let noticed = (1..=32).any(|_| finds_the_disk_wrong(&parent.fork()));
    assert!(noticed, "32 children got a disk that was sealed too late, and the oracle found them all well");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn memory_cpus_and_disk_of_a_vm_from_a_checkpoint_are_of_one_instant_also_without_its_seed() {
    let daemon = TestDaemon::start();
    let mut parent = boot(&daemon);
    for number in 1..=CHECKPOINTS {
        let name = format!("warm{number}");
        checkpoint(&daemon, &parent, &name);
        parent.exec(&["oracle", "side", &number.to_string()]).ok();
        let warm = run_from(&daemon, &name, "forked from memory");
        assert_well(&warm, &["oracle", "part", &(1000 + number).to_string()]);
        drop(warm);
        store_and_end_seed(&daemon, &name);
        let cold = run_from(&daemon, &name, "woken from the store");
        assert_well(&cold, &["oracle", "part", &(2000 + number).to_string()]);
        assert_well(&parent, &["oracle", "check"]);
        progress(format_args!("checkpoint {number} of {CHECKPOINTS}"));
        if number % 2 == 0 {
            parent = cold; // Checkpoints of what was woken.
        }
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn the_oracle_notices_a_disk_captured_after_the_resume_in_a_vm_from_the_store() {
    let daemon = TestDaemon::start_with(&prepared(setting::PLANTED), None);
    let parent = boot(&daemon);
    let noticed = (1..=16).any(|number| {
        let name = format!("warm{number}");
        checkpoint(&daemon, &parent, &name);
        store_and_end_seed(&daemon, &name);
        finds_the_disk_wrong(&run_from(&daemon, &name, "woken from the store"))
    });
    assert!(noticed, "16 checkpoints have a disk that was sealed too late, and the oracle found them all well");
}

/// Makes a checkpoint of a VM that goes on meanwhile.
fn checkpoint(daemon: &TestDaemon, vm: &TestVm<'_>, name: &str) {
    assert_eq!(daemon.pando(&["checkpoint", "create", vm.name(), name]).ok(), name);
}

/// A VM from the checkpoint, which comes from where it is `said` to.
fn run_from<'d>(daemon: &'d TestDaemon, checkpoint: &str, said: &str) -> TestVm<'d> {
    let run = daemon.pando(&["run", "--from", checkpoint]);
    assert!(run.stderr.contains(said), "{run:?}");
    TestVm::new(daemon, &run.ok())
}

/// Waits until the checkpoint is stored, and kills its seed.
fn store_and_end_seed(daemon: &TestDaemon, name: &str) {
    let inspect = || -> Checkpoint {
        serde_json::from_str(&daemon.pando(&["checkpoint", "inspect", "-o", "json", name]).ok()).unwrap()
    };
    wait_for("it is stored", LIMIT, || inspect().state != CheckpointState::Saving);
    let made = inspect();
    assert_eq!(made.state, CheckpointState::Stored, "{made:?}");
    let seed = made.seed.unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &seed]).status().unwrap().success());
    wait_for("its seed is gone", LIMIT, || inspect().seed.is_none());
}

/// Whether the oracle in it, which must be there, complains of a writer of the disk.
fn finds_the_disk_wrong(vm: &TestVm<'_>) -> bool {
    let run = vm.exec(&["oracle", "check"]);
    assert!(run.code == 1 || run.code == 0, "{run:?}");
    run.code == 1 && run.stdout.contains("disk writer")
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

//! A checkpoint: a VM as it was at one instant, which others begin from; from memory, and from the store.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm, progress, setting, wait_for};
use pando_wire::api::{Checkpoint, CheckpointState, ForkReport, State, Vm};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Until something that a guest is at has gone on.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a fork, a checkpoint and a sleep come at once, each time in another order.
const ROUNDS: usize = 3;

fn inspect(daemon: &TestDaemon, name: &str) -> Checkpoint {
    serde_json::from_str(&daemon.pando(&["checkpoint", "inspect", "-o", "json", name]).ok()).unwrap()
}

/// Two VMs from the checkpoint; the first answer is what was said of where they came from.
fn run_two<'d>(daemon: &'d TestDaemon, checkpoint: &str, prefix: &str) -> (String, Vec<TestVm<'d>>) {
    let run = daemon.pando(&["run", "--from", checkpoint, "--count", "2", "--prefix", prefix, "-e", "B=2"]);
    let said = run.stderr.clone();
    eprintln!("{} took {:?}: {said}", run.what, run.took);
    let names = run.ok();
    (said, names.lines().map(|name| TestVm::new(daemon, name)).collect())
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_vm_that_was_removed_is_run_from_its_checkpoint_again_and_again() {
    let daemon = TestDaemon::start();
    let web = daemon.boot("web");
    web.write("/tmp/note", "before");
    web.write("/data/note", "before");
    web.write("/tmp/count", "n=0; while :; do n=$((n+1)); echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n; done\n");
    web.start("sh /tmp/count");
    wait_for("the counter counts", LIMIT, || web.exec(&["test", "-s", "/tmp/n"]).code == 0);
    let counted: u64 = web.read("/tmp/n").parse().unwrap();

    assert_eq!(daemon.pando(&["checkpoint", "create", "web", "warm"]).ok(), "warm");
    web.write("/tmp/note", "after");
    web.write("/data/note", "after");
    wait_for("it is stored", LIMIT * 3, || inspect(&daemon, "warm").state != CheckpointState::Saving);
    let made = inspect(&daemon, "warm");
    eprintln!("{made:?}");
    assert_eq!((made.state, &made.problem), (CheckpointState::Stored, &None));
    assert_eq!(web.read("/tmp/note"), "after");
    drop(web);

    let (said, warm) = run_two(&daemon, "warm", "warm");
    assert!(said.contains("forked from memory"), "{said}");
    are_as_it_was(&warm, counted);
    drop(warm);

    let seed = made.seed.unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &seed]).status().unwrap().success());
    wait_for("its seed is gone", LIMIT, || inspect(&daemon, "warm").seed.is_none());
    let (said, cold) = run_two(&daemon, "warm", "cold");
    assert!(said.contains("woken from the store"), "{said}");
    are_as_it_was(&cold, counted);

    assert!(daemon.pando(&["checkpoint", "verify"]).ok().ends_with("all whole"));
    assert_eq!(daemon.pando(&["checkpoint", "rm", "warm"]).ok(), "warm");
    assert_eq!(
        cold[0].read("/data/note"),
        "before",
        "it does not need the checkpoint any more, or keeps what it needs"
    );
}

/// Each is what the VM was at the checkpoint, goes on from there, and is another one than the others.
fn are_as_it_was(vms: &[TestVm<'_>], counted: u64) {
    for vm in vms {
        let name = vm.name();
        assert_eq!((vm.read("/tmp/note"), vm.read("/data/note")), ("before".into(), "before".into()), "{name}");
        assert_eq!(vm.sh("hostname; echo $(cat /run/pando/generation); echo $B"), format!("{name}\n1\n2"));
        let first: u64 = vm.read("/tmp/n").parse().unwrap();
        assert!(first >= counted, "{name} counts on: {first}, before {counted}");
        let counts = || vm.read("/tmp/n").parse::<u64>().is_ok_and(|now| now > first + 2);
        wait_for("the counter counts on", LIMIT, counts);
        vm.end("/tmp/count");
        vm.write("/data/own", name);
    }
    for vm in vms {
        assert_eq!(vm.read("/data/own"), vm.name());
        vm.sh("sync");
    }
    let ids: Vec<_> = vms.iter().map(|vm| vm.read("/etc/machine-id")).collect();
    let random: Vec<_> = vms.iter().map(|vm| vm.sh("head -c 16 /dev/urandom | od -An -tx1")).collect();
    assert!(ids[0] != ids[1] && random[0] != random[1], "{ids:?} {random:?}");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_vm_sleeps_without_a_process_and_a_program_wakes_it_where_it_was() {
    let daemon = TestDaemon::start();
    let web = daemon.boot("web");
    web.write("/data/note", "before");
    web.write("/tmp/count", "n=0; while :; do n=$((n+1)); echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n; done\n");
    web.start("sh /tmp/count");
    web.start("sh -c 'sleep 10; touch /tmp/slept'");
    wait_for("the counter counts", LIMIT, || web.exec(&["test", "-s", "/tmp/n"]).code == 0);
    let (counted, id): (u64, _) = (web.read("/tmp/n").parse().unwrap(), web.read("/etc/machine-id"));
    let blob = web.sh("dd if=/dev/urandom of=/data/blob bs=1M count=8 && md5sum /data/blob");
    let messages = web.sh("dmesg");
    let state = || -> Vm { serde_json::from_str(&daemon.pando(&["inspect", "-o", "json", "web"]).ok()).unwrap() };
    let process = format!("/proc/{}", state().pid.unwrap());

    assert_eq!(daemon.pando(&["hibernate", "web"]).ok(), "web");

    assert_eq!((state().state, state().pid), (State::Hibernated, None));
    assert!(!Path::new(&process).exists());
    let slept = Slept::for_a_week();
    let said: u64 = web.sh("date +%s").parse().unwrap();
    let now = seconds();
    assert!(now.abs_diff(said) <= 5, "the guest says {said}, and it is {now}");
    drop(slept);
    wait_for("what was asleep goes on", LIMIT, || web.exec(&["test", "-e", "/tmp/slept"]).code == 0);
    let first: u64 = web.read("/tmp/n").parse().unwrap();
    assert!(first >= counted, "it counts on: {first}, before {counted}");
    wait_for("the counter counts on", LIMIT, || web.read("/tmp/n").parse::<u64>().is_ok_and(|now| now > first + 2));
    assert_eq!((web.read("/data/note"), web.read("/etc/machine-id")), ("before".into(), id));
    assert_eq!(web.sh("hostname; echo $(cat /run/pando/generation)"), "web\n0");
    // Its disk is where it was, and is read from there.
    web.sh("sync; echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(web.sh("md5sum /data/blob"), blob.lines().last().unwrap());
    web.end("/tmp/count");
    web.write("/data/note", "after");
    assert_eq!(web.sh("sync; cat /data/note"), "after");
    let said = web.sh("dmesg");
    let since = said.strip_prefix(&messages).unwrap_or(&said);
    for complaint in ["lockup", "stall", "unstable", "blocked for more than", "BUG"] {
        assert!(!since.contains(complaint), "{since}");
    }

    // Forked as soon as it is awake, when most of its memory is still on its way.
    let sum = web.sh("md5sum /bin/sh");
    assert_eq!(daemon.pando(&["hibernate", "web"]).ok(), "web");
    assert_eq!(daemon.pando(&["wake", "web"]).ok(), "web");
    let (report, children) = web.fork_with(&["--count", "2"]);
    eprintln!("its memory was there after {} µs", report.arrive_us);
    for vm in children.iter().chain([&web]) {
        assert_eq!(vm.read("/data/note"), "after");
        assert_eq!(vm.sh("md5sum /bin/sh"), sum, "also what it had read before it slept");
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_fork_a_checkpoint_and_a_sleep_that_come_at_once_are_done_or_refused_and_nothing_is_lost() {
    let daemon = TestDaemon::start();
    let web = daemon.boot("web");
    for round in 0..ROUNDS {
        let note = format!("round {round}");
        let checkpoint = format!("warm{round}");
        ["/tmp/note", "/data/note"].iter().for_each(|path| web.write(path, &note));
        let mut commands =
            [&["fork", "-o", "json", "web"][..], &["checkpoint", "create", "web", &checkpoint], &["hibernate", "web"]];
        commands.rotate_left(round);
        // Each comes while the one before it is at work.
        let runs = thread::scope(|scope| {
            let run = |args| {
                thread::sleep(Duration::from_millis(20 << round));
                let daemon = &daemon;
                scope.spawn(move || daemon.pando(args))
            };
            commands.map(run).map(|run| run.join().unwrap())
        });
        assert!(runs.iter().any(|run| run.code == 0), "all were refused: {runs:?}");
        let mut vms = Vec::new();
        for (args, run) in commands.iter().zip(runs) {
            progress(format_args!(
                "round {round}: {args:?} took {:?}: {} {}",
                run.took,
                run.code,
                run.stderr.trim_end()
            ));
            match (args[0], run.code) {
                (_, code @ 1..) => drop(run.refused(code)),
                ("fork", _) => {
                    let report: ForkReport = serde_json::from_str(&run.ok()).unwrap();
                    vms.push(TestVm::new(&daemon, &report.children[0].name));
                }
                ("checkpoint", _) => {
                    wait_for("it is stored", LIMIT * 3, || {
                        inspect(&daemon, &checkpoint).state == CheckpointState::Stored
                    });
                    let name = daemon.pando(&["run", "--from", &checkpoint]).ok();
                    vms.push(TestVm::new(&daemon, &name));
                }
                _ => (),
            }
        }
        for vm in vms.iter().chain([&web]) {
            assert_eq!((vm.read("/tmp/note"), vm.read("/data/note")), (note.clone(), note.clone()), "{}", vm.name());
        }
        assert!(daemon.pando(&["checkpoint", "verify"]).ok().ends_with("all whole"));
    }
}

/// A host whose clock is a week ahead until this is dropped; one that is not the tests' own is left alone, and some time
/// passes instead, long enough for a guest's clock that was not set to be seen.
struct Slept {
    week: bool,
}

impl Slept {
    const WEEK: u64 = 7 * 24 * 3600;

    fn for_a_week() -> Self {
        let week = std::env::var_os(setting::OWN_HOST).is_some();
        if week {
            set_clock(seconds() + Self::WEEK);
        } else {
            thread::sleep(Duration::from_secs(10));
        }
        Self { week }
    }
}

impl Drop for Slept {
    fn drop(&mut self) {
        if self.week {
            set_clock(seconds() - Self::WEEK);
        }
    }
}

fn set_clock(to: u64) {
    assert!(Command::new("date").arg("-s").arg(format!("@{to}")).status().unwrap().success());
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

//! A fork: what a child keeps, what it does not see, and what it must not have in common.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm, wait_for};
use pando_wire::api::State;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

/// One boot for all tests whose forks leave the parent as it was.
fn base() -> &'static TestVm<'static> {
    static VM: LazyLock<TestVm<'static>> = LazyLock::new(|| TestDaemon::shared().boot("base"));
    &VM
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_child_keeps_what_the_parent_had_and_misses_what_it_does_next() {
    let parent = base();
    parent.write("/tmp/note", "before");
    parent.write("/data/note", "before");

    let child = parent.fork();
    parent.write("/tmp/note", "after");
    parent.write("/data/note", "after");
    child.write("/data/own", "child");

    assert_eq!(child.read("/tmp/note"), "before");
    assert_eq!(child.read("/data/note"), "before");
    assert_eq!(parent.read("/tmp/note"), "after");
    assert_eq!(parent.read("/data/note"), "after");
    assert_eq!(parent.exec(&["cat", "/data/own"]).code, 1);
    assert_no_stall(&[parent, &child]);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_running_program_goes_on_in_parent_and_child_from_the_same_instant() {
    let parent = base();
    parent.write("/tmp/count", "n=0; while :; do n=$((n+1)); echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n; done\n");
    parent.start("sh /tmp/count");
    wait_for("the counter counts", Duration::from_secs(30), || parent.exec(&["test", "-s", "/tmp/n"]).code == 0);
    let before: u64 = parent.read("/tmp/n").parse().unwrap();

    let child = parent.fork();
    for vm in [parent, &child] {
        let first: u64 = vm.read("/tmp/n").parse().unwrap();
        assert!(first >= before, "{} counts on: {first}, before the fork {before}", vm.name());
        let counts = || vm.read("/tmp/n").parse::<u64>().is_ok_and(|now| now > first + 2);
        wait_for("the counter counts on", Duration::from_secs(30), counts);
        vm.end("/tmp/count");
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_child_by_way_of_a_pager_goes_on_like_any_other_and_needs_nothing_of_its_parent_in_the_end() {
    let parent = TestDaemon::shared().boot("whole");
    parent.write("/data/note", "before");
    parent.write("/tmp/count", "n=0; while :; do n=$((n+1)); echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n; done\n");
    parent.start("sh /tmp/count");
    wait_for("the counter counts", Duration::from_secs(30), || parent.exec(&["test", "-s", "/tmp/n"]).code == 0);
    let before: u64 = parent.read("/tmp/n").parse().unwrap();
    let seen = |vm: &TestVm| vm.sh("cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1");

    let (report, children) = parent.fork_with(&["--via", "pager", "--count", "2", "-e", "BRANCH=fix"]);
    parent.write("/data/note", "after");

    assert_eq!(report.shared_pages, 0);
    let all: BTreeSet<_> = children.iter().chain([&parent]).map(seen).collect();
    assert_eq!(all.len(), 3, "each is somebody else: {all:?}");
    for child in &children {
        assert_eq!(child.read("/data/note"), "before");
        assert_eq!(child.sh("hostname; echo $BRANCH"), format!("{}\nfix", child.name()));
        let first: u64 = child.read("/tmp/n").parse().unwrap();
        assert!(first >= before, "{} counts on: {first}, before the fork {before}", child.name());
    }
    // The fork waits until all of it is there, so nothing is under way when its parent goes.
    let grandchild = children[0].fork();
    TestDaemon::shared().pando(&["rm", "-f", "whole"]).ok();
    for vm in children.iter().chain([&grandchild]) {
        let first: u64 = vm.read("/tmp/n").parse().unwrap();
        let counts = || vm.read("/tmp/n").parse::<u64>().is_ok_and(|now| now > first + 2);
        wait_for("the counter counts on", Duration::from_secs(30), counts);
        assert_eq!(vm.read("/data/note"), "before");
        vm.write("/data/own", vm.name());
        assert_eq!(vm.read("/data/own"), vm.name());
    }
    assert_no_stall(&children.iter().chain([&grandchild]).collect::<Vec<_>>());
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn many_children_of_one_fork_cost_one_pause_and_are_all_different() {
    let parent = base();
    let (report, children) = parent.fork_with(&["--count", "8", "--prefix", "many", "-e", "BRANCH=fix"]);
    assert_eq!(report.children.len(), 8);
    let parts = report.park_us + report.save_us + report.seal_us + report.fork_us + report.resume_us;
    assert!(report.pause_us.abs_diff(parts) <= 10, "the pause {} is its parts {parts}", report.pause_us);
    assert!(report.shared_pages > 0);

    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for child in &children {
        assert_eq!(
            child.sh("hostname; echo $(cat /run/pando/generation); echo $BRANCH"),
            format!("{}\n1\nfix", child.name())
        );
        seen.entry("machine-id").or_default().insert(child.read("/etc/machine-id"));
        seen.entry("random").or_default().insert(child.sh("head -c 16 /dev/urandom | od -An -tx1"));
        seen.entry("uuid").or_default().insert(child.read("/proc/sys/kernel/random/uuid"));
    }
    for (what, values) in seen {
        assert_eq!(values.len(), children.len(), "every child has another {what}: {values:?}");
    }
    assert_eq!(parent.sh("hostname; echo $(cat /run/pando/generation); echo \"<$BRANCH>\""), "base\n0\n<>");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn one_child_that_fails_does_not_fail_the_others() {
    let daemon = TestDaemon::shared();
    let (_, taken) = base().fork_with(&["--name", "ten.3"]);
    let run = daemon.pando(&["fork", base().name(), "--count", "10", "--prefix", "ten"]);
    let names: Vec<_> = run.stdout.lines().collect();
    let _children: Vec<_> = names.iter().map(|name| TestVm::new(daemon, name)).collect();
    assert_eq!(run.code, 1);
    assert_eq!(names.len(), 9, "{run:?}");
    assert!(run.stderr.contains("ten.3"), "{}", run.stderr);
    for name in names {
        assert_eq!(TestVm::new(daemon, name).sh("hostname"), name);
    }
    assert_eq!(taken[0].sh("hostname"), "ten.3");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn hooks_run_in_the_child_alone_and_one_that_fails_is_named() {
    let daemon = TestDaemon::shared();
    let parent = base();
    let hook = "/etc/pando/fork.d/50-test";
    parent.write(hook, "#!/bin/sh\necho \"$PANDO_NAME $PANDO_GENERATION $WHY\" > /run/hooked\n");
    parent.sh(&format!("chmod +x {hook}"));
    let (_, children) = parent.fork_with(&["--name", "hooked", "-e", "WHY=because"]);
    assert_eq!(children[0].read("/run/hooked"), "hooked 1 because");
    assert_eq!(parent.exec(&["cat", "/run/hooked"]).code, 1);

    parent.write(hook, "#!/bin/sh\nexit 9\n");
    let run = daemon.pando(&["fork", parent.name(), "--name", "unhooked"]);
    let _child = TestVm::new(daemon, "unhooked");
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("50-test") && run.stderr.contains('9'), "{}", run.stderr);
    parent.sh(&format!("rm {hook}"));
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn an_exec_across_a_fork_stays_the_parents_and_its_copy_in_the_child_goes_on_unheard() {
    let parent = base();
    let script = "echo up; read word; echo got $word; echo got $word > /run/got";
    let mut exec = TestDaemon::shared()
        .command(&["exec", "-i", parent.name(), "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the exec runs", Duration::from_secs(30), || !parent.running("echo up").is_empty());

    let child = parent.fork();
    let copy = child.running("echo up");
    assert_eq!(copy, parent.running("echo up"), "the child has the same program");
    std::io::Write::write_all(&mut exec.stdin.take().unwrap(), b"word\n").unwrap();
    let output = exec.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "up\ngot word\n");
    assert_eq!(parent.read("/run/got"), "got word");

    assert_eq!(child.running("echo up"), copy, "nothing came to the copy's input, not even its end");
    assert_eq!(child.exec(&["cat", "/run/got"]).code, 1);
    child.end("echo up");
    wait_for("the copy is gone", Duration::from_secs(10), || child.running("echo up").is_empty());
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn no_random_number_is_drawn_twice_from_the_fork_on() {
    let parent = base();
    draw(parent, 500, (400_000, Duration::from_micros(200)));

    let child = parent.fork();
    let (ours, theirs) = (numbers(parent), numbers(&child));
    parent.end("getrandom");
    let common = ours.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs).count();
    assert!(common > 500, "the child has the parent's past: {common} numbers");
    assert!(theirs.len() > common + 10 && ours.len() > common + 10, "both went on");

    let after: BTreeSet<_> = ours[common..].iter().map(|(_, number)| number).collect();
    let twice: Vec<_> = theirs[common..].iter().filter(|(_, number)| after.contains(number)).collect();
    assert!(twice.is_empty(), "drawn in parent and child: {twice:?}");

    // All programs stand still at the fork, so it is a gap in the times. Numbers must differ from there on, and not
    // only when the kernel came to it.
    for (who, lines) in [("parent", &ours), ("child", &theirs)] {
        let gap = |index: usize| lines[index].0 - lines[index - 1].0;
        let mut gaps: Vec<_> = (1..common).map(gap).collect();
        gaps.sort_unstable();
        let usual = gaps[gaps.len() / 2];
        let there = gap(common).max(gap(common + 1)); // Drawn before the fork, or its time taken before.
        assert!(there > 3 * usual, "{who}: numbers part at line {common} with no gap: {there} ns, usually {usual} ns");
    }
}

/// Has a program in `vm` draw so many random numbers, with so long between two, and waits until there are `count`.
fn draw(vm: &TestVm<'_>, count: u64, (all, pause): (u32, Duration)) {
    vm.sh("touch /run/numbers"); // It may take the program a while to get there.
    vm.start(&format!("getrandom /run/numbers {all} {}", pause.as_micros()));
    let enough = || vm.sh("wc -l < /run/numbers").parse::<u64>().unwrap() > count;
    wait_for("numbers are drawn", Duration::from_secs(60), enough);
}

/// The children of a large fork begin to run long after their parent's programs stood still.
#[test]
#[ignore = "needs a Linux guest: make test"]
fn twenty_children_of_one_fork_draw_no_random_number_in_common() {
    let parent = TestDaemon::shared().boot("draws");
    // Few, and slowly: twenty-one that drew all the time would leave nothing of one CPU to who asks for the numbers.
    draw(&parent, 100, (1500, Duration::from_millis(20)));

    let (report, children) = parent.fork_with(&["--count", "20", "--prefix", "drawn"]);
    assert!(report.barrier_us.is_some(), "the parent's programs stood still");
    for child in &report.children {
        assert_eq!(child.reseeded, Some(true), "{} was reseeded before its programs ran", child.name);
    }
    let mut lines: Vec<_> = children.iter().map(numbers).collect();
    lines.push(numbers(&parent));
    let is_common = |index: usize| lines.iter().all(|each| each.get(index) == lines[0].get(index));
    let common = (0..lines[0].len()).take_while(|&index| is_common(index)).count();
    assert!(common > 100, "they have a past in common: {common} numbers");

    let mut drawn_by: BTreeMap<&str, usize> = BTreeMap::new();
    for (who, each) in lines.iter().enumerate() {
        assert!(each.len() > common, "number {who} draws on");
        for (_, number) in &each[common..] {
            let other = drawn_by.insert(number, who);
            assert_eq!(other, None, "{number} was drawn twice, the second time by number {who}");
        }
    }
}

/// Time and number of each line.
fn numbers(vm: &TestVm) -> Vec<(u64, String)> {
    let text = vm.sh("cp /run/numbers /run/numbers.copy; cat /run/numbers.copy");
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .filter(|(_, number)| number.len() == 32)
        .map(|(time, number)| (time.parse().unwrap(), number.into()))
        .collect()
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_line_of_forks_lives_on_whichever_ancestor_dies() {
    let child = base().fork();
    child.write("/data/child", "1");
    let grandchild = child.fork();
    grandchild.write("/data/grandchild", "2");
    let great = grandchild.fork();
    let greater = great.fork();
    assert_eq!(greater.read("/run/pando/generation"), "4");

    drop(grandchild); // One in the middle, then the oldest of them.
    drop(child);
    for vm in [&great, &greater] {
        assert_eq!(vm.sh("cat /data/child /data/grandchild"), "12", "{} reads its ancestors' layers", vm.name());
        vm.sh("echo 3 > /proc/sys/vm/drop_caches; sync; cat /data/child /data/grandchild > /data/both");
        assert_eq!(vm.read("/data/both"), "12");
    }
    let last = greater.fork();
    drop(great);
    drop(greater);
    assert_eq!(last.sh("echo 3 > /proc/sys/vm/drop_caches; cat /data/both"), "12");
    assert_no_stall(&[&last]);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_vm_with_two_cpus_forks_under_load() {
    let parent = TestDaemon::shared().boot_with("two", &["--cpus", "2", "--memory", "256M"], &[]);
    for _ in 0..2 {
        parent.start("yes");
    }
    let children: Vec<_> = (0..3).map(|_| parent.fork()).collect();
    for vm in children.iter().chain([&parent]) {
        assert_eq!(vm.sh("nproc; taskset 1 echo a; taskset 2 echo b"), "2\na\nb", "{}", vm.name());
        assert_no_stall(&[vm]);
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_guest_with_memory_above_the_32_bit_hole_forks() {
    let parent = TestDaemon::shared().boot_with("large", &["--memory", "4G"], &[]);
    let kib: u64 = parent.sh("awk '/MemTotal/ {print $2}' /proc/meminfo").parse().unwrap();
    assert!(kib > 3_800_000, "{kib} KiB");
    parent.sh(
        "mkdir -p /m && mount -t tmpfs -o size=100% m /m && dd if=/dev/urandom of=/m/data bs=1M count=64 2>/dev/null",
    );
    let sum = parent.sh("sha1sum < /m/data");
    let child = parent.fork();
    parent.sh("dd if=/dev/zero of=/m/data bs=1M count=64 2>/dev/null");
    assert_eq!(child.sh("sha1sum < /m/data"), sum);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_paused_vm_forks_into_children_that_run() {
    let daemon = TestDaemon::shared();
    let parent = base();
    parent.write("/tmp/word", "paused");
    daemon.pando(&["pause", parent.name()]).ok();
    let run = daemon.pando(&["fork", parent.name(), "--name", "unpaused"]);
    let state = parent.inspect().state;
    daemon.pando(&["resume", parent.name()]).ok();
    assert_eq!(run.ok(), "unpaused");
    let child = TestVm::new(daemon, "unpaused");
    assert_eq!(state, State::Paused, "the fork did not wake the parent");
    assert_eq!(child.read("/tmp/word"), "paused");
    assert_eq!(parent.read("/tmp/word"), "paused", "the parent goes on");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn clocks_do_not_jump_at_a_fork() {
    let parent = base();
    let clocks = |vm: &TestVm| {
        let text = vm.sh("date +%s; cut -d' ' -f1 /proc/uptime");
        let (wall, uptime) = text.split_once('\n').unwrap();
        (wall.parse::<f64>().unwrap(), uptime.parse::<f64>().unwrap())
    };
    let host = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let (before, uptime_before) = clocks(parent);
    let start = host();
    let child = parent.fork();
    // A clock that went back stands still until it is again where it was: longer than this.
    thread::sleep(Duration::from_secs(4));
    for vm in [parent, &child] {
        let at_least = host() - start - 1.5; // The wall clock is read in whole seconds.
        let (wall, uptime) = clocks(vm);
        let at_most = host() - start + 2.0;
        for (what, passed) in [("wall clock", wall - before), ("uptime", uptime - uptime_before)] {
            let name = vm.name();
            assert!((at_least..=at_most).contains(&passed), "{name}: {what} {passed} s, not {at_least} to {at_most}");
        }
    }
    assert_no_stall(&[parent, &child]);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_pause_longer_than_the_watchdogs_patience_is_forgiven() {
    let daemon = TestDaemon::shared();
    let parent = daemon.boot("patient");
    // A CPU that is away for twice as many seconds is complained of.
    parent.sh("echo 1 > /proc/sys/kernel/watchdog_thresh");
    daemon.pando(&["pause", parent.name()]).ok();
    thread::sleep(Duration::from_secs(5));
    let child = parent.fork();
    daemon.pando(&["resume", parent.name()]).ok();
    // Each has time to complain.
    thread::sleep(Duration::from_secs(3));
    assert_no_stall(&[&parent, &child]);
}

/// No kernel complained of a CPU that was away for too long, or of anything else since it booted.
fn assert_no_stall(vms: &[&TestVm]) {
    const COMPLAINTS: [&str; 6] =
        ["soft lockup", "detected stalls", "self-detected stall", "hung_task", "Call Trace", "unstable"];
    for vm in vms {
        let log = vm.sh("dmesg");
        let (_, since) = log.split_once("Run /init as init process").unwrap_or(("", &log));
        let complaint = COMPLAINTS.into_iter().find(|words| since.contains(words));
        assert_eq!(complaint, None, "{}'s kernel:\n{since}", vm.name());
    }
}

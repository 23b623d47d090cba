//! Somebody dies; the others live, and nothing of the dead stays.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm, wait_for};
use pando_wire::api::State;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Until a dead VM's things are gone. An emulated host, where everything is slow, needs less than a tenth of it.
const GONE_LIMIT: Duration = Duration::from_secs(1);

#[test]
#[ignore = "needs a Linux guest: make test"]
fn vms_outlive_a_daemon_that_is_killed_and_the_next_one_takes_them_over() {
    let daemon = TestDaemon::start();
    let vm = daemon.boot("survivor");
    let child = vm.fork();
    vm.write("/tmp/word", "alive");
    let pids = (vm.pid(), child.pid());

    daemon.end("KILL");
    assert_eq!(daemon.monitors().len(), 2, "the VMs go on without a daemon");
    daemon.restart();

    assert_eq!((vm.pid(), child.pid()), pids, "they are the same processes");
    assert_eq!(vm.read("/tmp/word"), "alive");
    assert_eq!(child.sh("hostname"), child.name());
    let grandchild = child.fork();
    assert_eq!(grandchild.sh("hostname"), grandchild.name());

    daemon.end("TERM");
    assert_eq!(daemon.monitors().len(), 3, "nor does a daemon that ends in order take them along");
    daemon.restart();
    vm.signal("KILL");
    vm.wait_until_stopped(); // Seen by a daemon whose child it never was.
    assert_eq!(grandchild.sh("echo alive"), "alive");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_vm_that_ended_while_there_was_no_daemon_is_found_stopped() {
    let daemon = TestDaemon::start();
    let (vm, other) = (daemon.boot("lost"), daemon.boot("kept"));
    let (id, pid) = (vm.inspect().id, vm.pid());
    daemon.end("KILL");
    kill(pid);
    wait_for("the monitor is gone", GONE_LIMIT, || daemon.monitors().len() == 1);
    // Of a VM that a daemon was making when it was killed.
    let stray = Path::new("/sys/fs/cgroup/pando/stray");
    if has_cgroups() {
        fs::create_dir(stray).unwrap();
    }
    daemon.restart();
    assert!(!stray.exists(), "a group that nobody is in is swept");
    assert_eq!(vm.inspect().state, State::Stopped);
    assert!(!daemon.runtime_dir().join("vms").join(id).exists(), "its sockets are gone");
    assert_eq!(other.sh("echo alive"), "alive");
    daemon.pando(&["start", "lost"]).ok();
    assert_eq!(vm.sh("echo again"), "again");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn the_death_of_one_vm_hurts_no_relative_and_leaves_nothing() {
    let daemon = TestDaemon::shared();
    let parent = daemon.boot("family");
    parent.write("/data/word", "inherited");
    let (_, children) = parent.fork_with(&["--count", "3"]);
    let grandchild = children[0].fork();

    for dying in [&children[0], &parent] {
        let vm = dying.inspect();
        let (pid, sockets) = (vm.pid.unwrap(), daemon.runtime_dir().join("vms").join(&vm.id));
        assert!(sockets.is_dir());
        assert_eq!(cgroups(&vm.id), usize::from(has_cgroups()), "it has a group of its own");
        kill(pid);
        let gone = || !Path::new(&format!("/proc/{pid}")).exists() && !sockets.exists() && cgroups(&vm.id) == 0;
        let took = wait_for("process, sockets and cgroup are gone", GONE_LIMIT, gone);
        println!("gone after {took:?}");
        dying.wait_until_stopped();
    }
    for alive in [&children[1], &children[2], &grandchild] {
        assert_eq!(alive.sh("echo 3 > /proc/sys/vm/drop_caches; cat /data/word"), "inherited", "{}", alive.name());
        let own = alive.fork();
        assert_eq!(own.sh("hostname"), own.name());
    }
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn many_forks_and_removals_leave_nothing_behind() {
    let daemon = TestDaemon::start();
    let parent = daemon.boot("source");
    let round = || drop(parent.fork_with(&["--count", "5"]).1);
    round(); // What is made once is made now.
    let before = settle(&daemon);
    for _ in 0..6 {
        round();
    }
    let after = settle(&daemon);
    assert_eq!(after, before, "after 30 forks more: monitors, descriptors, threads and files");
    assert_eq!(parent.sh("echo alive"), "alive");
}

/// Two connections that write and four that read, with a database, its log and the log's index each.
const DATABASE_DESCRIPTORS: usize = 6 * 3;

/// What there is of a daemon once it has nothing more to clear away.
fn settle(daemon: &TestDaemon) -> (usize, usize, usize, Vec<String>) {
    wait_for("only the parent's monitor is left", GONE_LIMIT, || daemon.monitors().len() == 1);
    // Of its database it opens more when there is more to do at once, up to a limit: those are counted by themselves.
    let count = || {
        let entries = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten();
        let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        let (database, others): (Vec<_>, Vec<_>) = targets.partition(|target| target.to_string_lossy().contains(".db"));
        assert!(database.len() <= DATABASE_DESCRIPTORS, "{database:?}");
        others.len()
    };
    // A connection of the last command may still be on its way out, and a thread of a pool waits for more work.
    let (mut fds, mut calm) = (count(), 0);
    wait_for("descriptors are closed", Duration::from_secs(60), || {
        let now = count();
        calm = if now == fds { calm + 1 } else { 0 };
        fds = now;
        calm >= 25
    });
    let zombies = count_zombies(daemon.pid());
    let mut files = Vec::new();
    for root in [daemon.state_dir().to_path_buf(), daemon.runtime_dir()] {
        list(&root, &root, &mut files);
    }
    // Of a database, its log comes and goes.
    files.retain(|file| !file.contains(".db"));
    files.sort();
    (daemon.monitors().len(), fds, zombies, files)
}

fn count_zombies(parent: u32) -> usize {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let zombie = |pid: &&str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    };
    children.split_whitespace().filter(zombie).count()
}

fn list(root: &Path, dir: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        files.push(path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(root, &path, files);
        }
    }
}

/// Whether VMs have control groups: of version 2 alone.
fn has_cgroups() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// How many control groups are called so.
fn cgroups(id: &str) -> usize {
    fn count(dir: &Path, id: &str, depth: usize) -> usize {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let one = |entry: fs::DirEntry| {
            let deeper = if depth > 0 { count(&entry.path(), id, depth - 1) } else { 0 };
            usize::from(entry.file_name().to_string_lossy().contains(id)) + deeper
        };
        folders.map(one).sum()
    }
    count(Path::new("/sys/fs/cgroup"), id, 4)
}

fn kill(pid: u32) {
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Kept for its name in the list: the VM that a test keeps is removed by nobody but the daemon's end.
#[test]
#[ignore = "needs a Linux guest: make test"]
fn the_end_of_a_test_takes_its_daemon_and_vms_along() {
    let daemon = TestDaemon::start();
    let vm: TestVm = daemon.boot("forgotten");
    vm.keep();
    let (folder, pid) = (daemon.folder().to_path_buf(), daemon.pid());
    let monitors = daemon.monitors();
    drop(daemon);
    assert!(!folder.exists());
    for pid in monitors.into_iter().chain([pid]) {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{pid} lives: {state}");
    }
}

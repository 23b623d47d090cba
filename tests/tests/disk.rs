//! What a guest was told to be on disk is there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm, wait_for};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
#[ignore = "needs a Linux guest: make test"]
fn what_was_synced_survives_the_death_of_the_monitor() {
    let vm = TestDaemon::shared().boot("synced");
    let durable = die_while_syncing(&vm);
    TestDaemon::shared().pando(&["start", "synced"]).ok();
    vm.exec(&["fsyncer", "check", "/data/log", &durable.to_string()]).ok();
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_child_that_died_finds_its_own_data_and_its_ancestors_again() {
    let daemon = TestDaemon::shared();
    let parent = daemon.boot("ancestor");
    parent.sh("dd if=/dev/urandom of=/data/old bs=1M count=8 2>/dev/null; sync");
    let sum = parent.sh("sha1sum < /data/old");
    parent.sh("dd if=/dev/urandom of=/data/unsynced bs=1M count=1 2>/dev/null");
    let child = parent.fork();
    let kept = child.sh("sync; sha1sum < /data/unsynced");
    let durable = die_while_syncing(&child);
    drop(parent);

    daemon.pando(&["start", child.name()]).ok();
    assert_eq!(child.sh("sha1sum < /data/old"), sum);
    assert_eq!(child.sh("sha1sum < /data/unsynced"), kept, "synced by the child, written by the parent");
    child.exec(&["fsyncer", "check", "/data/log", &durable.to_string()]).ok();
    let grandchild = child.fork();
    assert_eq!(grandchild.sh("sha1sum < /data/old"), sum, "what was recovered can be forked");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_host_without_space_is_an_io_error_in_the_guest_and_the_vm_lives() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can mount a small file system");
        return;
    }
    let small = Mount::tmpfs("160M");
    let binary = pando_tests::prepared(pando_tests::setting::BINARY);
    let daemon = TestDaemon::start_with(&binary, Some(&small.0.join("state")));
    let vm = daemon.boot("full");
    let pid = vm.pid();
    // A program that needs no disk: ext4 answers even reads with errors once its own journal could not be written.
    vm.sh("echo kept > /data/kept; sync; cp /bin/fsyncer /run/fsyncer; fsyncer write /run/log 3");
    // Memory holds what does not fit, so that the program itself, and not only the file system, hears of it.
    let filled = vm.exec(&["sh", "-c", "dd if=/dev/urandom of=/data/big bs=1M count=200 conv=fsync 2>&1"]);
    assert_ne!(filled.code, 0, "200 MiB fit where less than 160 MiB are: {}", filled.stdout);
    assert!(vm.console().contains("I/O error, dev vda"), "the guest's kernel was told");
    vm.exec(&["/run/fsyncer", "check", "/run/log", "3"]).ok();
    assert_eq!(vm.pid(), pid);

    // The log lies on the same file system: what could not be written there is written when there is room.
    run("mount", &["-o", "remount,size=600M", &small.0.to_string_lossy()], &small.0);
    let layers = small.0.join("state");
    let tells =
        |line: &str| line.contains("disk: ") && line.contains("no space") && line.contains(&*layers.to_string_lossy());
    wait_for("the log names the folder that is full", Duration::from_secs(30), || {
        vm.exec(&["sync"]); // Something for the devices to do, whether or not the program can be read.
        vm.console().lines().any(tells)
    });
    // The guest's file system may have given up until it is mounted anew.
    vm.signal("KILL");
    vm.wait_until_stopped();
    daemon.pando(&["start", vm.name()]).ok();
    let write = "dd if=/dev/urandom of=/data/new bs=1M count=8 conv=fsync 2>/dev/null && echo written";
    assert_eq!(vm.sh(&format!("cat /data/kept; rm -f /data/big; {write}")), "kept\nwritten");
}

/// Kills the VM's monitor while the guest syncs record after record; the last record that was told to be durable.
fn die_while_syncing(vm: &TestVm) -> u64 {
    let mut exec = TestDaemon::shared()
        .command(&["exec", vm.name(), "fsyncer", "write", "/data/log", "1000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut durable = 0;
    let mut killed = false;
    for line in BufReader::new(exec.stdout.take().unwrap()).lines() {
        durable = line.unwrap().parse().unwrap();
        if durable >= 50 && !killed {
            vm.signal("KILL");
            killed = true;
        }
    }
    exec.wait().unwrap();
    assert!(durable >= 50, "only {durable} records were synced");
    let (ending, _) = vm.wait_until_stopped();
    assert!(!ending.is_empty(), "a VM that died says so");
    durable
}

/// A small file system, unmounted at the end.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap().keep();
        let options = format!("size={size}");
        run("mount", &["-t", "tmpfs", "-o", &options, "small", &dir.to_string_lossy()], &dir);
        Self(dir)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &["-l", &self.0.to_string_lossy()], &self.0);
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn run(program: &str, args: &[&str], dir: &Path) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success() || std::thread::panicking(), "{program} for {}: {status}", dir.display());
}

//! A command in a throw-away emulated host, through the real QEMU. Skipped with one line where there is none.

use pando_machine::{Outcome, RunSpec};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the tests that need the command's output, which goes to this process's, run themselves again.
const AGAIN: &str = "PANDO_MACHINE_TEST_AGAIN";

fn spec(writable: &Path, script: &str) -> RunSpec {
    let cache = std::env::var_os("PANDO_CACHE_DIR").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    RunSpec {
        command: ["sh", "-c", script].map(OsString::from).to_vec(),
        environment: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()), ("TOLD".into(), "it's".into())],
        writable: vec![writable.to_owned()],
        memory_mib: 1024,
        limit: Duration::from_secs(120),
        disk: None,
        cut_power_after: None,
        kernel: None,
        cache_dir: cache.unwrap_or_else(|| home().join(".cache/pando")),
    }
}

fn run(spec: &RunSpec) -> Outcome {
    pando_machine::run(spec, &mut |step| eprintln!("{step}")).expect("a host that starts")
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: no qemu-system-x86_64");
    }
    found
}

#[test]
fn a_command_has_its_streams_its_status_its_folder_and_kvm() {
    if !has_qemu() {
        return;
    }
    if std::env::var_os(AGAIN).is_some() {
        let folder = tempfile::tempdir().unwrap();
        let script = "test -w /dev/kvm && test $(cut -d' ' -f5 /proc/self/stat) -gt 0 && echo \"to out, $TOLD\" >/dev/stdout; test -e /dev/fd/0; echo to err >&2; echo kept >file; exit 17";
        let outcome = run(&spec(folder.path(), script));
        assert_eq!(outcome, Outcome::Exited(17));
        assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "kept\n");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "a_command_has_its_streams_its_status_its_folder_and_kvm"])
        .env(AGAIN, "1")
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("to out, it's\n") && !out.contains("to err") && !out.contains("Linux version"), "{out}");
    assert!(err.contains("to err\n") && !err.contains("to out"), "{err}");
}

#[test]
fn a_command_that_does_not_end_is_ended() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let outcome = run(&RunSpec { limit: Duration::from_secs(3), ..spec(folder.path(), "sleep 600") });
    assert_eq!(outcome, Outcome::TimedOut);
    assert!(children(std::process::id()).is_empty());
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_host_ends_with_its_starter_however_that_ends() {
    if !has_qemu() {
        return;
    }
    const NAME: &str = "a_host_ends_with_its_starter_however_that_ends";
    if std::env::var_os(AGAIN).is_some() {
        let folder = tempfile::tempdir().unwrap();
        run(&spec(folder.path(), "echo up; sleep 600"));
        return;
    }
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", NAME])
        .env(AGAIN, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(starter.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap() == "up"), "no host came up");
    let [qemu] = *children(starter.id()) else {
        panic!("there is no QEMU, or there are several");
    };
    starter.kill().unwrap();
    starter.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while Path::new(&format!("/proc/{qemu}")).exists() {
        assert!(Instant::now() < deadline, "QEMU runs on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes that `parent` started and has not collected.
fn children(parent: u32) -> Vec<u32> {
    let processes =
        fs::read_dir("/proc").expect("/proc").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok()) == Some(parent)
    };
    processes.filter(is_child).collect()
}

#[test]
fn what_was_synced_survives_a_power_cut_and_what_was_not_does_not() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let on_disk = |script: &str| RunSpec { disk: Some(disk.clone()), ..spec(folder.path(), script) };

    let script = "mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && echo a >/mnt/synced && sync /mnt/synced /mnt && \
                  echo b >/mnt/unsynced && echo PANDO-CUT-POWER && sleep 600";
    let outcome = run(&RunSpec { cut_power_after: Some(Duration::ZERO), ..on_disk(script) });
    assert_eq!(outcome, Outcome::PowerCut);

    let outcome = run(&on_disk("mount /dev/vda /mnt && test -s /mnt/synced && test ! -s /mnt/unsynced"));
    assert_eq!(outcome, Outcome::Exited(0));
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = pando_machine::run(&spec(Path::new("/no/such/folder"), ""), &mut |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "cannot use /no/such/folder");
}

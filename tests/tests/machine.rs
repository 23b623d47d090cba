//! `pando machine` from its first start on, as somebody uses it who is not root and has no hardware KVM: the commands are
//! those of everywhere, and find the emulated host by themselves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{Run, prepared, rootfs, setting};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// For one command: the start of an emulated host, or a boot in it.
const LIMIT: Duration = Duration::from_secs(300);
/// Somebody without any right. Root's tests are run as this user, because root may do more than others.
const NOBODY: &str = "65534";
const NOT_FOUND: i32 = 3;

/// A user's folders, and the emulated host in them. Both are gone in the end, however the test ends.
struct Home {
    folder: TempDir,
    pando: PathBuf,
    cache: PathBuf,
    /// Set where this computer has hardware KVM, which commands would otherwise prefer.
    way: Option<&'static str>,
}

impl Home {
    fn new() -> Self {
        let folder = TempDir::with_prefix_in("pm.", "/tmp").unwrap();
        let at = |name: &str| folder.path().join(name);
        rootfs::build(&at("rootfs"));
        fs::copy(prepared(setting::BINARY), at("pando")).unwrap();
        let mut cache = prepared(setting::CACHE);
        if geteuid().is_root() {
            copy(&cache, &at("cache"));
            cache = at("cache");
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            Run::of(Command::new("chown").args(["-R", NOBODY]).arg(folder.path()), &[], LIMIT).ok();
        }
        let mut home = Self { pando: at("pando"), folder, cache, way: None };
        let report: Value = serde_json::from_str(&home.pando(&["doctor", "--json"]).ok()).unwrap();
        home.way = (report["way"] == "native").then_some("machine");
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pando(&self, args: &[&str]) -> Run {
        Run::of(&mut self.command(args), &[], LIMIT)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]).arg(&self.pando);
            command
        } else {
            Command::new(&self.pando)
        };
        command.args(args).current_dir(self.folder.path()).env("HOME", self.folder.path());
        for name in ["PANDO_HOST", "PANDO_TOKEN", "PANDO_WAY", "PANDO_MACHINE_KERNEL"] {
            command.env_remove(name);
        }
        command.env("PANDO_STATE_DIR", self.at("state")).env("PANDO_RUNTIME_DIR", self.at("run"));
        command.env("PANDO_CACHE_DIR", &self.cache).envs(self.way.map(|way| ("PANDO_WAY", way)));
        command
    }

    /// What `pando machine status` says; nothing when none runs.
    fn status(&self) -> Option<Value> {
        let run = self.pando(&["machine", "status", "-o", "json"]);
        assert!([0, NOT_FOUND].contains(&run.code), "{run:?}");
        let status = serde_json::from_str(&run.stdout).unwrap();
        (run.code == 0).then_some(status)
    }

    fn start(&self) {
        let told = self.pando(&["machine", "start", "--memory", "3072"]).ok();
        assert!(told.contains("running"), "{told}");
    }

    /// What runs of this home: QEMU, a daemon, a command. Each has the folder's name in its command line.
    fn processes(&self) -> Vec<Pid> {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let line = |id: i32| {
            String::from_utf8_lossy(&fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default()).into_owned()
        };
        ids.filter(|id| line(*id).contains(&folder)).filter_map(Pid::from_raw).collect()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["daemon.log", "console.log", "qemu.log"] {
                let text = fs::read(self.at("state/machine").join(log)).unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                let from = text.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
                eprintln!("--- {log}\n{}", &text[from..]);
            }
        }
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL); // It may have ended this moment.
        }
    }
}

fn copy(from: &Path, to: &Path) {
    Run::of(Command::new("cp").args(["-a", "--reflink=auto"]).args([from, to]), &[], LIMIT).ok();
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn all_commands_find_the_emulated_host_and_what_it_keeps_outlives_it() {
    let home = Home::new();
    let pando = |args: &[&str]| home.pando(args);
    let doctor = pando(&["doctor"]).ok();
    assert!(home.way.is_some() || doctor.contains("pando machine start"), "{doctor}");
    assert_eq!(home.status(), None);
    let refused = pando(&["run", "rootfs"]).refused(1);
    assert!(refused.contains("pando machine start"), "{refused}");
    assert_eq!(home.processes(), [], "and started no daemon for it");

    home.start();
    assert_eq!(home.status().unwrap()["state"], "running");
    assert_eq!(pando(&["run", "--name", "web", "--memory", "256M", "rootfs"]).ok(), "web");
    pando(&["exec", "web", "sh", "-c", "echo kept > /data/note; echo gone > /run/note; sync"]).ok();
    assert_eq!(pando(&["fork", "web", "--name", "copy"]).ok(), "copy");
    assert_eq!(pando(&["exec", "copy", "sh", "-c", "hostname; cat /run/note"]).ok(), "copy\ngone");
    assert_eq!(pando(&["exec", "copy", "sh", "-c", "exit 42"]).code, 42);
    pando(&["exec", "copy", "sh", "-c", "echo own > /data/own; sync"]).ok();
    let images = pando(&["images", "-o", "json"]).ok();

    assert_eq!(pando(&["machine", "stop"]).code, 0);
    assert_eq!((home.status(), home.processes()), (None, Vec::new()));
    home.start();
    assert_eq!(pando(&["images", "-o", "json"]).ok(), images);
    assert_eq!(pando(&["ls", "-q"]).ok(), "web\ncopy");
    assert_eq!(pando(&["ls", "-q", "--running"]).ok(), "");
    pando(&["start", "web", "copy"]).ok();
    assert_eq!(pando(&["exec", "web", "cat", "/data/note"]).ok(), "kept");
    assert_eq!(pando(&["exec", "copy", "cat", "/data/note", "/data/own"]).ok(), "kept\nown");
    assert_eq!(pando(&["exec", "web", "test", "-e", "/run/note"]).code, 1, "it was booted anew");
    assert_eq!(pando(&["exec", "nobody", "true"]).code, NOT_FOUND);
    pando(&["machine", "stop"]).ok();
    assert_eq!(home.processes(), [], "nothing is left running");
}

#[test]
#[ignore = "needs an emulated host: make test"]
fn one_command_in_a_throw_away_host_has_kvm_and_its_status_is_that_of_pando() {
    let home = Home::new();
    let run =
        home.pando(&["machine", "run", "-m", "1024", "--", "sh", "-c", "test -w /dev/kvm && echo has it; exit 7"]);
    assert_eq!((run.code, run.stdout.as_str()), (7, "has it\n"), "{run:?}");
    // QEMU does it wrong, and kernels fell over it: those of guests, and the host's own.
    let cx16 = home.pando(&["machine", "run", "-m", "1024", "--", "grep", "-c", "cx16", "/proc/cpuinfo"]);
    assert_eq!((cx16.code, cx16.stdout.as_str()), (1, "0\n"), "{cx16:?}");
    let late = home.pando(&["machine", "run", "-m", "1024", "-t", "3s", "--", "sleep", "600"]);
    assert!(late.took < LIMIT / 2, "{late:?}");
    let told = late.refused(124);
    assert!(told.contains("3s"), "{told}");
    assert_eq!(home.status(), None);
}

//! The oracle itself, on this computer: it finds a machine well that is well, and notices what a bad copy would do to it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const ORACLE: &str = env!("CARGO_BIN_EXE_oracle");
const PAGE: usize = 4096;

/// A running oracle.
struct Oracle {
    process: Child,
    dir: TempDir,
}

impl Oracle {
    fn start() -> Self {
        // Not in /tmp, which may be a file system without direct I/O.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let socket = dir.path().join("s");
        let mut run = Command::new(ORACLE);
        run.arg("run").arg(dir.path()).arg(&socket).env("ORACLE_STAYS", "1").stderr(Stdio::inherit());
        let process = run.spawn().unwrap();
        let oracle = Self { process, dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !oracle.ask(&["check"]).status.success() {
            assert!(Instant::now() < deadline, "the oracle does not answer");
            sleep(Duration::from_millis(20));
        }
        oracle
    }

    fn ask(&self, question: &[&str]) -> Output {
        Command::new(ORACLE).args(question).arg(self.dir.path().join("s")).output().unwrap()
    }

    fn check(&self) -> (Option<i32>, String) {
        let output = self.ask(&["check"]);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn records(&self) -> PathBuf {
        self.dir.path().join("records.0")
    }

    /// Does something to it while it stands still.
    fn stopped<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        self.signal("STOP");
        sleep(Duration::from_millis(50)); // A request that is at the disk arrives.
        let result = work(self);
        self.signal("CONT");
        result
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn memory(&self) -> File {
        OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", self.process.id())).unwrap()
    }

    /// Every page of a memory writer, by address: three words that are not zero, the last one a seal.
    fn pages(&self) -> Vec<(u64, Vec<u8>)> {
        let memory = self.memory();
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.process.id())).unwrap();
        let mut pages = Vec::new();
        for line in maps.lines().filter(|line| line.contains(" rw-p ") && !line.contains("/")) {
            let (start, end) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
            let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
            for address in (start..end).step_by(PAGE) {
                let mut page = vec![0; PAGE];
                if memory.read_exact_at(&mut page, address).is_err() {
                    continue; // A guard page.
                }
                let idle = page[16..PAGE - 8].iter().all(|&byte| byte == 0);
                if idle && page[PAGE - 8..] != [0; 8] && page[..8] != [0; 8] {
                    pages.push((address, page));
                }
            }
        }
        pages
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_machine_that_is_well_is_found_well_and_takes_sides() {
    let oracle = Oracle::start();
    assert!(oracle.ask(&["side", "7"]).status.success());
    let (code, text) = oracle.check();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("side 7"), "{text}");
    let parted = oracle.ask(&["part", "8"]);
    assert!(parted.status.success() && String::from_utf8_lossy(&parted.stdout).contains("side 8"));
}

#[test]
fn a_disk_older_than_memory_is_noticed() {
    let oracle = Oracle::start();
    let old = oracle.stopped(|oracle| fs::read(oracle.records()).unwrap());
    sleep(Duration::from_millis(200));
    oracle.stopped(|oracle| overwrite(&oracle.records(), &old));
    notices(&oracle, "disk writer");
}

#[test]
fn memory_older_than_registers_is_noticed() {
    let oracle = Oracle::start();
    let old = oracle.stopped(Oracle::pages);
    assert!(old.len() >= 256, "found only {} pages", old.len());
    sleep(Duration::from_millis(50));
    oracle.stopped(|oracle| {
        let memory = oracle.memory();
        for (address, page) in &old {
            memory.write_all_at(page, *address).unwrap();
        }
    });
    notices(&oracle, "memory writer");
}

#[test]
fn a_disk_newer_than_memory_is_noticed() {
    // Two machines begin alike; the one that is ahead lends the other its disk.
    let (behind, ahead) = (Oracle::start(), Oracle::start());
    behind.signal("STOP");
    sleep(Duration::from_secs(1));
    ahead.signal("STOP");
    overwrite(&behind.records(), &fs::read(ahead.records()).unwrap());
    behind.signal("CONT");
    ahead.signal("CONT");
    notices(&behind, "disk writer");
}

#[test]
fn what_a_relative_wrote_after_the_parting_is_noticed() {
    let (ours, theirs) = (Oracle::start(), Oracle::start());
    assert!(theirs.ask(&["side", "9"]).status.success());
    assert_eq!(theirs.check().0, Some(0));
    let foreign = theirs.stopped(|theirs| fs::read(theirs.records()).unwrap());
    ours.stopped(|ours| overwrite(&ours.records(), &foreign));
    notices(&ours, "of side 9");
}

fn notices(oracle: &Oracle, words: &str) {
    let (code, text) = oracle.check();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(words), "{text}");
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_all().unwrap();
}

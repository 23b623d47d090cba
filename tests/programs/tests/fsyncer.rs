//! The fsyncer itself, on this computer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Output};

fn fsyncer(verb: &str, path: &Path, count: u64) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fsyncer"));
    command.arg(verb).arg(path).arg(count.to_string()).output().unwrap()
}

#[test]
fn records_that_are_there_are_found_and_one_that_is_lost_or_torn_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let told = fsyncer("write", &path, 5);
    assert_eq!(String::from_utf8(told.stdout).unwrap(), "1\n2\n3\n4\n5\n");
    assert!(fsyncer("check", &path, 5).status.success());
    assert!(fsyncer("check", &path, 3).status.success(), "more than was asked for is fine");
    assert!(!fsyncer("check", &path, 6).status.success());

    let whole = fs::read(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(whole.len() as u64 - 1).unwrap();
    assert!(!fsyncer("check", &path, 5).status.success(), "the last record is torn");
    assert!(fsyncer("check", &path, 4).status.success(), "a torn record behind those that count is fine");

    let mut bytes = whole;
    bytes[2 * 512 + 100] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(!fsyncer("check", &path, 5).status.success(), "the third record is another");
}

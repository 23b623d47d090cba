//! What the tests share.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

mod pages;

pub(crate) use pages::*;
use std::path::Path;

/// A directory that goes away, in memory where that is possible: a killed process is no power cut, so nothing here needs
/// a disk, and syncing one takes most of the time.
pub(crate) fn temporary() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

//! How far long work is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How far long work is, in files of the store, for whoever looks on meanwhile. A file is at most 16 MiB long.
#[derive(Debug, Default)]
pub struct Meter {
    done: AtomicU64,
    files: AtomicU64,
}

impl Meter {
    /// How many files are done, and how many there are; both 0 before that is known. They are never of one instant, so
    /// they are for eyes.
    pub fn read(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.files.load(Relaxed))
    }

    pub(crate) fn expect(&self, files: usize) {
        self.files.fetch_add(files as u64, Relaxed);
    }

    pub(crate) fn one_more(&self) {
        self.done.fetch_add(1, Relaxed);
    }
}

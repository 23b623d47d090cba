//! Taking back the space of what no checkpoint needs, while others write and read.

mod mark; // what is needed
mod sweep; // deleting the rest
mod compact; // packs that are mostly garbage, or tiny

use crate::local::{FileError, Lease, Pins, StoreLock, sync_directory};
use crate::store::Store;
use std::path::PathBuf;

/// Why nothing was collected, or not everything. What checkpoints need is as it was.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// What a checkpoint needs is not known, so anything may be.
    #[error("nothing is collected while what checkpoint {checkpoint} needs cannot be known; remove it to go on")]
    Unknown {
        /// Which checkpoint.
        checkpoint: String,
        /// Why it is not known.
        source: FileError,
    },
    /// The kernel says no.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What was collected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests that no checkpoint, writer or reader needs.
    pub manifests: usize,
    /// Packs of which nothing was needed.
    pub packs: usize,
    /// Packs whose needed chunks were moved into others.
    pub compacted: usize,
    /// What dead writers left.
    pub dead_writers: usize,
    /// By how much the packs are smaller, in bytes.
    pub freed_bytes: u64,
    /// Packs that are kept because they are damaged, and so what is in them is not known.
    pub damaged: Vec<PathBuf>,
}

impl Store {
    /// Deletes what no checkpoint needs and no living writer or reader relies on. Safe at any time: others may write and
    /// read meanwhile. They wait for it where they begin, find a pack for the first time, finish one, or publish.
    ///
    /// Packs of which less than half is needed are rewritten, so a store is at most about twice as large as what it
    /// holds. Dying in the middle of it loses nothing.
    pub fn collect(&self) -> Result<Collected, GcError> {
        let directory = &self.inner.directory;
        let _lock = StoreLock::exclusive(directory)?;
        let pins = Pins::read(directory)?;
        let needed = mark::mark(directory, &pins)?;
        let mut collected = Collected::default();
        sweep::dead_writers(&pins, &mut collected)?;
        sweep::manifests(directory, &needed, &mut collected)?;
        let wasteful = sweep::packs(directory, &pins, &needed, &mut collected)?;
        if !wasteful.is_empty() {
            let lease = Lease::take_locked(directory)?;
            compact::compact(directory, &lease, &wasteful, &mut collected)?;
        }
        sync_directory(&directory.packs())?;
        sync_directory(&directory.manifests())?;
        Ok(collected)
    }
}

//! The index that the threads of a process share. Who looks something up never waits for a disk: packs are read without a
//! lock, and added when they are.

use super::directory::{Directory, FileError, read, read_start};
use super::index::{Index, Place};
use crate::format::{FileKind, FormatError, PackIndex, index_bytes, read_index, unseal};
use crate::id::{ChunkId, PackId};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How much of a pack is read at first; its index is seldom longer.
const FIRST_READ: usize = 8 << 10;

/// Where chunks lie, as far as it is loaded.
#[derive(Default)]
pub(crate) struct Catalog {
    index: RwLock<Index>,
    /// Held by who refreshes.
    refresh: Mutex<()>,
    /// How many times that was begun.
    begun: AtomicU64,
}

impl Catalog {
    /// Loads the packs of the directory that are not loaded, and forgets those that are gone, and only those. A damaged
    /// one is left out: what is in it counts as missing, and `verify` names it.
    ///
    /// Of many threads that want this at once, few do it.
    pub(crate) fn refresh(&self, directory: &Directory) -> Result<(), FileError> {
        let seen = self.begun.load(Ordering::Acquire);
        let _one = self.refresh.lock().unwrap_or_else(PoisonError::into_inner);
        if self.begun.load(Ordering::Acquire) > seen {
            return Ok(()); // One began after this was called, and has ended.
        }
        self.begun.fetch_add(1, Ordering::AcqRel);
        let added = self.index().added();
        let there = directory.list_packs()?;
        self.load(directory, &there)?;
        self.index_mut().retain(&there, added);
        Ok(())
    }

    /// Loads these packs where they are not loaded yet. Those that are gone or damaged are left out.
    pub(crate) fn load(&self, directory: &Directory, packs: &[PackId]) -> Result<(), FileError> {
        let unknown: Vec<PackId> = {
            let index = self.index();
            packs.iter().copied().filter(|id| !index.has(*id)).collect()
        };
        for id in unknown {
            match load(&directory.pack(id)) {
                Ok(index) => self.add(id, &index),
                Err(FileError::Damaged { .. }) => (), // See above.
                Err(error) if error.is_absent() => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds a pack that is there.
    pub(crate) fn add(&self, id: PackId, index: &PackIndex) {
        self.index_mut().add(id, index);
    }

    pub(crate) fn find(&self, id: &ChunkId) -> Option<Place> {
        self.index().find(id)
    }

    /// All places where a chunk lies, most often one.
    pub(crate) fn places(&self, id: &ChunkId) -> Vec<Place> {
        self.index().places(id).collect()
    }

    /// For who looks up much. Nothing can be added meanwhile.
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the index of a pack, and sees that the file is as long as it should be.
pub(crate) fn load(path: &Path) -> Result<PackIndex, FileError> {
    match load_start(path) {
        // A bit that was flipped there must not stop everything. Only all of the file tells.
        Err(FileError::Newer { .. }) => match unseal(FileKind::Pack, &read(path)?) {
            Err(why) => Err(FileError::format(path, why)),
            Ok(_) => load_start(path),
        },
        loaded => loaded,
    }
}

fn load_start(path: &Path) -> Result<PackIndex, FileError> {
    let failed = |error| FileError::io("read", path, error);
    let damaged = |why| FileError::format(path, why);
    let file = File::open(path).map_err(failed)?;
    let file_len = file.metadata().map_err(failed)?.len();
    let mut start = read_start(&file, FIRST_READ.min(file_len as usize)).map_err(failed)?;
    let wanted = index_bytes(&start).map_err(damaged)?;
    if wanted > start.len() {
        start = read_start(&file, wanted.min(file_len as usize)).map_err(failed)?;
    }
    let index = read_index(&start).map_err(damaged)?;
    if index.file_len == file_len { Ok(index) } else { Err(damaged(FormatError::Length)) }
}

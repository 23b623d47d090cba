//! Where each chunk lies, in memory: made from the indexes of the packs.

use super::directory::{Directory, FileError};
use crate::format::{FormatError, PackEntry, PackIndex, index_bytes, read_index};
use crate::id::{ChunkId, PackId};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How much of a pack is read at first; its index is seldom longer.
const FIRST_READ: usize = 8 << 10;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pack: PackId,
    pub(crate) entry: PackEntry,
}

/// A place, as small as can be: there is one for each chunk of the store.
#[derive(Clone, Copy)]
struct Packed {
    pack: u32,
    offset: u32,
    stored: u32,
    raw: u32,
}

/// Where the chunks lie of the packs that were loaded. About 80 bytes of memory per chunk.
#[derive(Default)]
pub(crate) struct Index {
    packs: Vec<PackId>,
    loaded: HashSet<PackId>,
    chunks: HashMap<ChunkId, Packed>,
}

impl Index {
    /// Loads the packs of the directory that are not loaded, and forgets those that are gone. A damaged one is left out:
    /// what is in it counts as missing, and `verify` names it.
    pub(crate) fn refresh(&mut self, directory: &Directory) -> Result<(), FileError> {
        let there = directory.list_packs()?;
        let is_there = |id| there.binary_search(id).is_ok();
        if !self.loaded.iter().all(is_there) {
            *self = Self::default();
        }
        self.load(directory, &there)
    }

    /// Loads these packs where they are not loaded yet. Those that are gone or damaged are left out.
    pub(crate) fn load(&mut self, directory: &Directory, packs: &[PackId]) -> Result<(), FileError> {
        for id in packs {
            if self.loaded.contains(id) {
                continue;
            }
            let path = directory.pack(*id);
            match load(&path) {
                Ok(index) => self.add(*id, &index),
                Err(FileError::Damaged { .. }) => (), // See above.
                Err(error) if error.is_absent() => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Adds a pack. A chunk that is known stays where it is known to be.
    pub(crate) fn add(&mut self, id: PackId, index: &PackIndex) {
        if !self.loaded.insert(id) {
            return;
        }
        let pack = self.packs.len() as u32;
        self.packs.push(id);
        for PackEntry { id, offset, stored, raw } in &index.entries {
            self.chunks.entry(*id).or_insert(Packed { pack, offset: *offset, stored: *stored, raw: *raw });
        }
    }

    pub(crate) fn find(&self, id: &ChunkId) -> Option<Place> {
        let Packed { pack, offset, stored, raw } = *self.chunks.get(id)?;
        let pack = self.packs[pack as usize];
        Some(Place { pack, entry: PackEntry { id: *id, offset, stored, raw } })
    }
}

/// Reads the index of a pack, and sees that the file is as long as it should be.
pub(crate) fn load(path: &Path) -> Result<PackIndex, FileError> {
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

/// The first `len` bytes of a file, or fewer if it became shorter.
fn read_start(file: &File, len: usize) -> io::Result<Vec<u8>> {
    let mut start = vec![0; len];
    let mut at = 0;
    while at < len {
        match file.read_at(&mut start[at..], at as u64) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    start.truncate(at);
    Ok(start)
}

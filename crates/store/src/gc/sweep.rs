//! Deleting what is not needed: the only part for which others wait.

use super::mark::Needed;
use super::plan::Going;
use super::{Collected, GcError};
use crate::id::ChunkId;
use crate::local::{Directory, FileError, Pins, StoreLock, remove, sync_directory};
use std::collections::HashSet;
use std::{fs, io};

/// How many files are deleted before others have their turn.
const AT_ONCE: usize = 64;

/// The exclusive lock, and all that is needed by anybody while it is held.
struct Alone<'s> {
    directory: &'s Directory,
    needed: &'s Needed,
    pins: Pins,
    _lock: StoreLock,
}

impl<'s> Alone<'s> {
    fn begin(directory: &'s Directory, needed: &'s mut Needed) -> Result<Self, GcError> {
        let lock = StoreLock::exclusive(directory)?;
        let pins = Pins::read(directory)?;
        needed.follow(directory, &pins)?;
        // Whoever removed a checkpoint may not have come as far as this; after a power cut it would be back, without what
        // is deleted now.
        sync_directory(&directory.checkpoints())?;
        Ok(Self { directory, needed, pins, _lock: lock })
    }

    /// Deletes a pack unless it is needed by now. Of the chunks `elsewhere`, there is another copy.
    fn delete(&self, pack: &Going, elsewhere: &HashSet<ChunkId>) -> Result<bool, FileError> {
        let is_needed = |chunk| self.needed.has_chunk(chunk) && !elsewhere.contains(chunk);
        if self.pins.has_pack(pack.id) || pack.chunks.iter().any(is_needed) {
            return Ok(false);
        }
        remove(&self.directory.pack(pack.id))
    }
}

/// Deletes what dead writers left.
pub(super) fn dead_writers(
    directory: &Directory,
    needed: &mut Needed,
    collected: &mut Collected,
) -> Result<(), GcError> {
    let alone = Alone::begin(directory, needed)?;
    for own in &alone.pins.dead {
        match fs::remove_dir_all(own) {
            Ok(()) => collected.dead_writers += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (), // It went by itself.
            Err(error) => return Err(FileError::io("remove", own, error).into()),
        }
    }
    Ok(())
}

/// Deletes manifests that nobody needs.
pub(super) fn manifests(directory: &Directory, needed: &mut Needed, collected: &mut Collected) -> Result<(), GcError> {
    let listed = directory.list_manifests()?;
    let garbage: Vec<_> = listed.into_iter().filter(|id| !needed.has_manifest(*id)).collect();
    for some in garbage.chunks(AT_ONCE) {
        let alone = Alone::begin(directory, needed)?;
        for id in some.iter().filter(|id| !alone.needed.has_manifest(**id)) {
            collected.manifests += usize::from(remove(&directory.manifest(*id))?);
        }
    }
    Ok(())
}

/// Deletes these packs, but not those that are needed by now. How many, and how long they were together.
pub(super) fn packs(
    directory: &Directory,
    needed: &mut Needed,
    garbage: &[&Going],
    elsewhere: &HashSet<ChunkId>,
) -> Result<(usize, u64), GcError> {
    let mut deleted = (0, 0);
    for some in garbage.chunks(AT_ONCE) {
        let alone = Alone::begin(directory, needed)?;
        for pack in some {
            if alone.delete(pack, elsewhere)? {
                deleted = (deleted.0 + 1, deleted.1 + pack.file_len);
            }
        }
    }
    Ok(deleted)
}

//! Deleting what is not needed, and finding what is hardly.

use super::mark::Needed;
use super::{Collected, GcError};
use crate::format::PackIndex;
use crate::id::{ChunkId, PackId};
use crate::local::{Directory, FileError, Pins, load_index};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

/// A pack that is to be rewritten.
pub(super) struct Wasteful {
    pub(super) id: PackId,
    pub(super) file_len: u64,
    /// The chunks in it that are needed and in no pack that stays.
    pub(super) needed: Vec<crate::format::PackEntry>,
}

/// Packs shorter than this are put together, once there are enough of them.
const SMALL_BYTES: u64 = 512 << 10;
const SMALL_PACKS: usize = 8;

pub(super) fn dead_writers(pins: &Pins, collected: &mut Collected) -> Result<(), GcError> {
    for own in &pins.dead {
        match fs::remove_dir_all(own) {
            Ok(()) => collected.dead_writers += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (), // It went by itself.
            Err(error) => return Err(FileError::io("remove", own, error).into()),
        }
    }
    Ok(())
}

pub(super) fn manifests(directory: &Directory, needed: &Needed, collected: &mut Collected) -> Result<(), GcError> {
    for id in directory.list_manifests()? {
        if !needed.manifests.contains(&id) {
            remove(&directory.manifest(id))?;
            collected.manifests += 1;
        }
    }
    Ok(())
}

/// Deletes the packs of which nothing is needed, and returns those of which too little is.
pub(super) fn packs(
    directory: &Directory,
    pins: &Pins,
    needed: &Needed,
    collected: &mut Collected,
) -> Result<Vec<Wasteful>, GcError> {
    let mut loaded: Vec<(PackId, PackIndex)> = Vec::new();
    for id in directory.list_packs()? {
        let path = directory.pack(id);
        match load_index(&path) {
            Ok(index) => loaded.push((id, index)),
            Err(FileError::Damaged { .. }) => collected.damaged.push(path),
            Err(error) => return Err(error.into()),
        }
    }
    // A chunk counts where it is first seen. Pinned packs stay anyway, and dense ones should: so they come first.
    let live = |index: &PackIndex| -> u64 {
        let needed = index.entries.iter().filter(|entry| needed.chunks.contains(&entry.id));
        needed.map(|entry| u64::from(entry.stored)).sum()
    };
    loaded.sort_by_cached_key(|(id, index)| {
        let permille = live(index) * 1000 / index.file_len.max(1);
        (!pins.has_pack(*id), std::cmp::Reverse(permille), *id)
    });
    let mut seen: HashSet<ChunkId> = HashSet::new();
    let (mut wasteful, mut small) = (Vec::new(), Vec::new());
    for (id, index) in loaded {
        let mut entries = index.entries;
        entries.retain(|entry| needed.chunks.contains(&entry.id) && seen.insert(entry.id));
        let live: u64 = entries.iter().map(|entry| u64::from(entry.stored)).sum();
        let pack = Wasteful { id, file_len: index.file_len, needed: entries };
        match live {
            _ if pins.has_pack(id) => (),
            0 => {
                remove(&directory.pack(id))?;
                collected.packs += 1;
                collected.freed_bytes += index.file_len;
            }
            live if live * 2 < index.file_len => wasteful.push(pack),
            _ if index.file_len < SMALL_BYTES => small.push(pack),
            _ => (),
        }
    }
    if small.len() >= SMALL_PACKS {
        wasteful.append(&mut small);
    }
    Ok(wasteful)
}

pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io("remove", path, error)),
        _ => Ok(()),
    }
}

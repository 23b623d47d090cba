//! Moves what is needed of wasteful packs into new ones, as any writer writes them.

use super::plan::Going;
use crate::format::{Pack, PackBuilder};
use crate::id::{ChunkId, PackId};
use crate::local::{Directory, FileError, Lease, read, sync_directory};
use crate::read::decompress;
use std::collections::HashSet;
use std::mem;
use zstd::bulk::Decompressor;

/// The length of new packs, in bytes.
const PACK_BYTES: usize = 2 << 20;

/// What was moved out of some packs, durably.
pub(super) struct Moved {
    pub(super) chunks: HashSet<ChunkId>,
    /// The new packs. One may have the name of an old one, if it has the same chunks.
    pub(super) packs: HashSet<PackId>,
    /// Their length.
    pub(super) bytes: u64,
    /// Of the old packs, those that are damaged. Nothing was moved out of them: damage is not to be copied, and the whole
    /// pack is evidence of what it was.
    pub(super) damaged: HashSet<PackId>,
}

/// Copies what is needed of these packs. They are not touched.
pub(super) fn compact<'g>(
    directory: &Directory,
    lease: &Lease,
    old: impl IntoIterator<Item = &'g Going>,
) -> Result<Moved, FileError> {
    let moved = Moved { chunks: HashSet::new(), packs: HashSet::new(), bytes: 0, damaged: HashSet::new() };
    let mut new = New { directory, lease, pack: PackBuilder::default(), moved };
    for pack in old {
        if !new.add_all_of(pack)? {
            new.moved.damaged.insert(pack.id);
        }
    }
    new.finish_pack()?;
    // Before the only other copies go.
    sync_directory(&directory.packs())?;
    Ok(new.moved)
}

struct New<'d> {
    directory: &'d Directory,
    lease: &'d Lease,
    pack: PackBuilder,
    moved: Moved,
}

impl New<'_> {
    /// Copies the needed chunks of a pack. `false`, and nothing is copied, where it is damaged.
    fn add_all_of(&mut self, going: &Going) -> Result<bool, FileError> {
        let path = self.directory.pack(going.id);
        let file = read(&path)?;
        let Ok(pack) = Pack::read(going.id, &file) else { return Ok(false) };
        let mut decompressor = Decompressor::new().map_err(|error| FileError::io("decompress", &path, error))?;
        for entry in &going.needed {
            let (raw, spare) = decompress(decompressor, entry, pack.stored(entry).to_vec());
            decompressor = spare;
            if raw.is_none() {
                return Ok(false);
            }
        }
        for entry in &going.needed {
            if self.moved.chunks.insert(entry.id) {
                self.pack.push(entry.id, pack.stored(entry), entry.raw as usize);
            }
            if self.pack.file_len() >= PACK_BYTES {
                self.finish_pack()?;
            }
        }
        Ok(true)
    }

    fn finish_pack(&mut self) -> Result<(), FileError> {
        let pack = mem::take(&mut self.pack);
        if !pack.is_empty() {
            let (id, _, bytes) = pack.finish();
            self.lease.place_pack(id, &bytes)?;
            self.moved.packs.insert(id);
            self.moved.bytes += bytes.len() as u64;
        }
        Ok(())
    }
}

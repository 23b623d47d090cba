//! Moves what is needed of wasteful packs into new ones, and deletes the old ones once those are durable.

use super::sweep::{Wasteful, remove};
use super::{Collected, GcError};
use crate::format::{Pack, PackBuilder};
use crate::id::PackId;
use crate::local::{Directory, FileError, Lease, read, sync_directory};
use crate::read::decompress;
use std::collections::HashSet;
use std::mem;
use zstd::bulk::Decompressor;

/// The length of new packs, in bytes.
const PACK_BYTES: usize = 2 << 20;

/// The caller holds the exclusive lock.
pub(super) fn compact(
    directory: &Directory,
    lease: &Lease,
    wasteful: &[Wasteful],
    collected: &mut Collected,
) -> Result<(), GcError> {
    let mut new = New { directory, lease, pack: PackBuilder::default(), placed: HashSet::new(), bytes: 0 };
    let mut old = Vec::new();
    for pack in wasteful {
        match new.add_all_of(pack)? {
            true => old.push(pack),
            false => collected.damaged.push(directory.pack(pack.id)),
        }
    }
    new.finish_pack()?;
    sync_directory(&directory.packs())?;
    // A pack of which all was needed, and that alone, may have been made again under the same name.
    for pack in old.iter().filter(|pack| !new.placed.contains(&pack.id)) {
        remove(&directory.pack(pack.id))?;
        collected.compacted += 1;
        collected.freed_bytes += pack.file_len;
    }
    collected.freed_bytes = collected.freed_bytes.saturating_sub(new.bytes);
    Ok(())
}

struct New<'d> {
    directory: &'d Directory,
    lease: &'d Lease,
    pack: PackBuilder,
    placed: HashSet<PackId>,
    bytes: u64,
}

impl New<'_> {
    /// Copies the needed chunks of a pack. `false`, and nothing is copied, where it is damaged: damage is not to be
    /// copied, and the whole pack is evidence of what it was.
    fn add_all_of(&mut self, wasteful: &Wasteful) -> Result<bool, GcError> {
        let path = self.directory.pack(wasteful.id);
        let file = read(&path)?;
        let Ok(pack) = Pack::read(wasteful.id, &file) else { return Ok(false) };
        let mut decompressor = Decompressor::new().map_err(|error| FileError::io("decompress", &path, error))?;
        for entry in &wasteful.needed {
            let (raw, spare) = decompress(decompressor, entry, pack.stored(entry).to_vec());
            decompressor = spare;
            if raw.is_none() {
                return Ok(false);
            }
        }
        for entry in &wasteful.needed {
            self.pack.push(entry.id, pack.stored(entry), entry.raw as usize);
            if self.pack.file_len() >= PACK_BYTES {
                self.finish_pack()?;
            }
        }
        Ok(true)
    }

    fn finish_pack(&mut self) -> Result<(), GcError> {
        let pack = mem::take(&mut self.pack);
        if !pack.is_empty() {
            let (id, _, bytes) = pack.finish();
            self.lease.place_pack_locked(id, &bytes)?;
            self.placed.insert(id);
            self.bytes += bytes.len() as u64;
        }
        Ok(())
    }
}

//! Which packs are to go, and what of them is to be kept first.

use super::GcError;
use super::mark::Needed;
use crate::format::{PackEntry, PackIndex};
use crate::id::{ChunkId, PackId};
use crate::local::{Directory, FileError, Pins, load_index};
use crate::read::decompress;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use zstd::bulk::Decompressor;

/// Packs shorter than this are put together, once there are enough of them.
const SMALL_BYTES: u64 = 512 << 10;
const SMALL_PACKS: usize = 8;

/// A pack that is to go.
pub(super) struct Going {
    pub(super) id: PackId,
    pub(super) file_len: u64,
    /// All chunks in it.
    pub(super) chunks: Vec<ChunkId>,
    /// Those that are needed and of which no other pack has a copy that can be read.
    pub(super) needed: Vec<PackEntry>,
}

#[derive(Default)]
pub(super) struct Plan {
    /// Packs that can go.
    pub(super) garbage: Vec<Going>,
    /// Packs that can go once what is needed of them is elsewhere.
    pub(super) wasteful: Vec<Going>,
    /// Chunks of these packs of which another pack has a copy that was read.
    pub(super) elsewhere: HashSet<ChunkId>,
    /// Packs of which it is not known what is in them.
    pub(super) damaged: Vec<PathBuf>,
}

impl Plan {
    pub(super) fn make(directory: &Directory, pins: &Pins, needed: &Needed) -> Result<Self, GcError> {
        let mut plan = Self::default();
        let loaded = plan.load(directory, pins, needed)?;
        // A chunk counts where it is first seen.
        let mut first: HashMap<ChunkId, usize> = HashMap::new();
        let mut small = Vec::new();
        for (at, (id, index)) in loaded.iter().enumerate() {
            let mut own = index.entries.clone();
            own.retain(|entry| needed.has_chunk(&entry.id) && *first.entry(entry.id).or_insert(at) == at);
            let live: u64 = own.iter().map(|entry| u64::from(entry.stored)).sum();
            let stays = live * 2 >= index.file_len;
            if pins.has_pack(*id) || (stays && index.file_len >= SMALL_BYTES) {
                continue;
            }
            let going = (at, own);
            if stays { small.push(going) } else { plan.add(directory, &loaded, &first, needed, going)? }
        }
        if small.len() >= SMALL_PACKS {
            small.into_iter().try_for_each(|going| plan.add(directory, &loaded, &first, needed, going))?;
        }
        Ok(plan)
    }

    /// The packs that can be read: those that are to stay first, which are pinned or dense.
    fn load(
        &mut self,
        directory: &Directory,
        pins: &Pins,
        needed: &Needed,
    ) -> Result<Vec<(PackId, PackIndex)>, GcError> {
        let mut loaded: Vec<(PackId, PackIndex)> = Vec::new();
        for id in directory.list_packs()? {
            let path = directory.pack(id);
            match load_index(&path) {
                Ok(index) => loaded.push((id, index)),
                Err(FileError::Damaged { .. }) => self.damaged.push(path),
                Err(error) => return Err(error.into()),
            }
        }
        let live = |index: &PackIndex| -> u64 {
            let needed = index.entries.iter().filter(|entry| needed.has_chunk(&entry.id));
            needed.map(|entry| u64::from(entry.stored)).sum()
        };
        loaded.sort_by_cached_key(|(id, index)| {
            let permille = live(index) * 1000 / index.file_len.max(1);
            (!pins.has_pack(*id), Reverse(permille), *id)
        });
        Ok(loaded)
    }

    /// Adds a pack, with the chunks that it has `own`. What it has in common with others counts as theirs only where they
    /// have it as it should be: or the only good copy would go.
    fn add(
        &mut self,
        directory: &Directory,
        loaded: &[(PackId, PackIndex)],
        first: &HashMap<ChunkId, usize>,
        needed: &Needed,
        (at, own): (usize, Vec<PackEntry>),
    ) -> Result<(), GcError> {
        let (id, index) = &loaded[at];
        let mut going = Going {
            id: *id,
            file_len: index.file_len,
            chunks: index.entries.iter().map(|entry| entry.id).collect(),
            needed: own,
        };
        for entry in index.entries.iter().filter(|entry| needed.has_chunk(&entry.id)) {
            let other = first[&entry.id];
            if other == at || self.elsewhere.contains(&entry.id) {
                continue;
            }
            let (other, index) = &loaded[other];
            let copy = index.entries.iter().find(|copy| copy.id == entry.id);
            if copy.is_some_and(|copy| is_good(directory, *other, copy)) {
                self.elsewhere.insert(entry.id);
            } else {
                going.needed.push(*entry);
            }
        }
        if going.needed.is_empty() {
            self.garbage.push(going)
        } else {
            self.wasteful.push(going)
        }
        Ok(())
    }
}

/// Whether a chunk can be read.
fn is_good(directory: &Directory, pack: PackId, entry: &PackEntry) -> bool {
    let read = || {
        let mut stored = vec![0; entry.stored as usize];
        File::open(directory.pack(pack))?.read_exact_at(&mut stored, u64::from(entry.offset))?;
        Ok::<_, std::io::Error>(decompress(Decompressor::new()?, entry, stored).0)
    };
    matches!(read(), Ok(Some(_)))
}

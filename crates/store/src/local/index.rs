//! Where each chunk lies, in memory: made from the indexes of the packs.

use crate::format::{PackEntry, PackIndex};
use crate::id::{ChunkId, PackId};
use std::collections::HashMap;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pack: PackId,
    pub(crate) entry: PackEntry,
}

/// A place, as small as can be: there is one for each chunk of the store.
#[derive(Clone, Copy)]
struct Packed {
    slot: u32,
    offset: u32,
    stored: u32,
    raw: u32,
}

struct Slot {
    id: PackId,
    /// A pack that is gone keeps its slot for as long as chunks may point to it.
    is_there: bool,
    chunks: usize,
    /// Which of the packs that were ever added it is.
    number: u64,
}

/// Where the chunks lie of the packs that were added. About 80 bytes of memory per chunk.
#[derive(Default)]
pub(crate) struct Index {
    slots: Vec<Slot>,
    loaded: HashMap<PackId, u32>,
    chunks: HashMap<ChunkId, Packed>,
    /// Where else chunks lie that are in several packs.
    copies: HashMap<ChunkId, Vec<Packed>>,
    added: u64,
    /// Chunks of packs that are gone, at most.
    stale: usize,
}

impl Index {
    /// How many packs were ever added: to tell old ones from new ones.
    pub(crate) fn added(&self) -> u64 {
        self.added
    }

    pub(crate) fn has(&self, id: PackId) -> bool {
        self.loaded.contains_key(&id)
    }

    /// Adds a pack. A chunk that is known stays where it is known to be, and has another place now.
    pub(crate) fn add(&mut self, id: PackId, index: &PackIndex) {
        if self.has(id) {
            return;
        }
        let slot = self.slots.len() as u32;
        self.slots.push(Slot { id, is_there: true, chunks: index.entries.len(), number: self.added });
        self.loaded.insert(id, slot);
        self.added += 1;
        for PackEntry { id, offset, stored, raw } in &index.entries {
            let packed = Packed { slot, offset: *offset, stored: *stored, raw: *raw };
            let first = self.chunks.entry(*id).or_insert(packed);
            if first.slot == slot {
            } else if self.slots[first.slot as usize].is_there {
                self.copies.entry(*id).or_default().push(packed);
            } else {
                *first = packed;
            }
        }
    }

    /// Forgets the packs that are not in a list, unless they were added after so many others: the list is older.
    pub(crate) fn retain(&mut self, listed: &[PackId], added: u64) {
        for slot in &mut self.slots {
            if slot.is_there && slot.number < added && listed.binary_search(&slot.id).is_err() {
                slot.is_there = false;
                self.stale += slot.chunks;
                self.loaded.remove(&slot.id);
            }
        }
        if self.stale > self.chunks.len() / 2 {
            self.clean();
        }
    }

    /// Where a chunk lies, as far as that is known. Most lie in one pack.
    pub(crate) fn places(&self, id: &ChunkId) -> impl Iterator<Item = Place> {
        let first = self.chunks.get(id).into_iter();
        let copies = self.copies.get(id).map_or(&[][..], Vec::as_slice);
        first.chain(copies).filter_map(|packed| self.place(*id, packed))
    }

    pub(crate) fn find(&self, id: &ChunkId) -> Option<Place> {
        self.places(id).next()
    }

    fn place(&self, id: ChunkId, packed: &Packed) -> Option<Place> {
        let Packed { slot, offset, stored, raw } = *packed;
        let slot = &self.slots[slot as usize];
        slot.is_there.then_some(Place { pack: slot.id, entry: PackEntry { id, offset, stored, raw } })
    }

    /// Throws out what points to packs that are gone.
    fn clean(&mut self) {
        let mut moved = vec![None; self.slots.len()];
        let mut slots = Vec::new();
        for (slot, to) in std::mem::take(&mut self.slots).into_iter().zip(&mut moved) {
            if slot.is_there {
                *to = Some(slots.len() as u32);
                self.loaded.insert(slot.id, slots.len() as u32);
                slots.push(slot);
            }
        }
        self.slots = slots;
        let mut stays = |packed: &mut Packed| match moved[packed.slot as usize] {
            Some(slot) => {
                packed.slot = slot;
                true
            }
            None => false,
        };
        self.copies.retain(|_, copies| {
            copies.retain_mut(&mut stays);
            !copies.is_empty()
        });
        let copies = &mut self.copies;
        self.chunks.retain(|id, packed| {
            let mut copy = || copies.get_mut(id).and_then(Vec::pop);
            stays(packed) || copy().map(|copy| *packed = copy).is_some()
        });
        self.copies.retain(|_, copies| !copies.is_empty());
        self.stale = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(of: u8) -> ChunkId {
        ChunkId([of; 32])
    }

    fn pack(chunks: &[u8]) -> PackIndex {
        let entry = |of: &u8| PackEntry { id: chunk(*of), offset: u32::from(*of), stored: 1, raw: 1 };
        PackIndex { entries: chunks.iter().map(entry).collect(), file_len: 100 }
    }

    fn places(index: &Index, of: u8) -> Vec<u8> {
        index.places(&chunk(of)).map(|place| place.pack.0[0]).collect()
    }

    #[test]
    fn a_pack_that_is_gone_takes_its_places_along_and_no_others() {
        let ids = [1, 2, 3, 4].map(|of| PackId([of; 32]));
        let mut index = Index::default();
        index.add(ids[0], &pack(&[1, 2, 3]));
        index.add(ids[1], &pack(&[2]));
        index.add(ids[2], &pack(&[3, 4]));
        assert_eq!([1, 2, 3, 4].map(|of| places(&index, of)), [vec![1], vec![1, 2], vec![1, 3], vec![3]]);
        index.retain(&ids[2..], index.added());
        assert_eq!([1, 2, 3, 4].map(|of| places(&index, of)), [vec![], vec![], vec![3], vec![3]]);
        assert!(!index.has(ids[0]) && index.has(ids[2]));
        index.add(ids[3], &pack(&[1, 2]));
        assert_eq!([1, 2, 3, 4].map(|of| places(&index, of)), [vec![4], vec![4], vec![3], vec![3]]);
        index.add(ids[0], &pack(&[1, 2, 3]));
        assert_eq!([1, 2, 3].map(|of| places(&index, of)), [vec![4, 1], vec![4, 1], vec![3, 1]]);
    }

    #[test]
    fn a_pack_that_was_added_after_the_list_was_made_stays() {
        let mut index = Index::default();
        index.add(PackId([1; 32]), &pack(&[1]));
        let added = index.added();
        index.add(PackId([2; 32]), &pack(&[2]));
        index.retain(&[], added);
        assert_eq!([1, 2].map(|of| places(&index, of)), [vec![], vec![2]]);
    }

    #[test]
    fn what_is_gone_takes_no_memory_for_long() {
        let mut index = Index::default();
        for round in 0..100u8 {
            let id = PackId([round; 32]);
            index.add(id, &pack(&(0..100).map(|at| round.wrapping_mul(7).wrapping_add(at)).collect::<Vec<_>>()));
            index.retain(&[id], index.added());
        }
        assert!(index.slots.len() <= 3 && index.chunks.len() <= 200, "{} {}", index.slots.len(), index.chunks.len());
        assert!(index.copies.is_empty());
    }
}

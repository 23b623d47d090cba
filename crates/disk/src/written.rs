//! What a sealed disk holds beside its base: what is stored of it, and what of that an earlier seal had already.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::BLOCK_BYTES;
use crate::fork::Sealed;
use crate::io::ReadError;
use crate::map::{Place, Slot};
use crate::open::{self, OpenError};

/// How far a disk had come when it was sealed. Of two seals of one life, the one with fewer slots is the earlier one, and
/// those with as many are one.
///
/// A slot below the freeze line is never written again, and belongs to one block for ever. So a block that lies in the
/// base, in an inherited layer or in one of these slots at a later seal has lain there since this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    /// Names the disk from its beginning to its end: what is recovered or branched is another one, because it may have
    /// lost what this one had, and begins to count anew.
    pub life: [u8; 16],
    /// How many slots of its own layer held something.
    pub slots: u64,
}

/// The blocks of a sealed disk that were ever written, in ascending order, whichever layers they lie in.
pub struct Written<'a> {
    sealed: &'a Sealed,
    /// The data files of the layers, oldest first.
    data: &'a [File],
    /// What it is held against: so many slots of the last layer, where there is anything.
    since: Option<u64>,
    /// How many blocks are told to be unchanged together.
    group: u64,
    /// The block to look at next.
    next: u64,
    /// The end of the last group that was found to have changed.
    changed_to: u64,
}

/// What comes next of a sealed disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    /// Blocks from this one on, whose bytes were read.
    Written(u64),
    /// Whole groups, the last of which may end with the disk. Each block in them lies where it lay at the earlier seal, in
    /// the base or in a layer.
    Unchanged(Range<u64>),
}

impl Sealed {
    /// The size that the guest sees, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// How many layers there are, of which a child inherits all.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// By which a later seal of the same disk knows this one.
    pub fn seal(&self) -> Seal {
        Seal { life: self.life, slots: self.layers.last().map_or(0, |own| own.slots) }
    }

    /// Its blocks that are not what the base says. `data` are the data files of its layers, oldest first. What is
    /// unchanged since the `earlier` seal is told in groups of `group` blocks (not 0), each beginning at a multiple of
    /// that; where that seal is of another disk, or a later one, nothing is.
    ///
    /// # Errors
    ///
    /// Fails where there is not one file for each layer, or one is shorter than it was at the fork.
    pub fn written<'a>(
        &'a self,
        data: &'a [File],
        earlier: Option<Seal>,
        group: u64,
    ) -> Result<Written<'a>, OpenError> {
        open::check_inherited(self.layers.len(), data.len())?;
        for (ordinal, (file, layer)) in data.iter().zip(&self.layers).enumerate() {
            let (found_bytes, wanted_bytes) =
                (open::length("an inherited disk layer", file)?, layer.slots * BLOCK_BYTES);
            if found_bytes < wanted_bytes {
                return Err(OpenError::ShortLayer { ordinal, found_bytes, wanted_bytes });
            }
        }
        let own = self.seal();
        let is_earlier = |seal: &Seal| seal.life == own.life && seal.slots <= own.slots;
        let since = earlier.filter(is_earlier).map(|seal| seal.slots);
        Ok(Written { sealed: self, data, since, group, next: 0, changed_to: 0 })
    }
}

impl Written<'_> {
    /// Passes over all blocks before this one.
    pub fn skip_to(&mut self, block: u64) {
        self.next = self.next.max(block.min(self.sealed.map.len()));
    }

    /// What follows: blocks, at most `most` of them (not 0), with their bytes in `bytes`, or such as are unchanged. `None`
    /// behind the last.
    pub fn next_run(&mut self, most: usize, bytes: &mut Vec<u8>) -> Result<Option<Run>, ReadError> {
        let map = &self.sealed.map;
        bytes.clear();
        while self.next < map.len() && map.get(self.next) == Place::Base {
            self.next += 1;
        }
        if let Some(unchanged) = self.unchanged_groups() {
            self.next = unchanged.end;
            return Ok(Some(Run::Unchanged(unchanged)));
        }
        let first = self.next;
        while bytes.len() < most * BLOCK_BYTES as usize
            && self.next < map.len()
            && let Place::Layer(slot) = map.get(self.next)
            && self.is_in_changed_group()
        {
            self.read(slot, bytes).map_err(|source| ReadError::Layer { ordinal: slot.ordinal, source })?;
            self.next += 1;
        }
        Ok((!bytes.is_empty()).then_some(Run::Written(first)))
    }

    /// The groups from that of the next block on that are unchanged, if that is one of them.
    fn unchanged_groups(&mut self) -> Option<Range<u64>> {
        if self.next == self.sealed.map.len() || self.is_in_changed_group() {
            return None;
        }
        let first = self.next - self.next % self.group;
        let mut end = self.group_end(self.next);
        while end < self.sealed.map.len() && self.is_unchanged(end..self.group_end(end)) {
            end = self.group_end(end);
        }
        Some(first..end)
    }

    /// Whether the group of the next block has changed, as far as is known.
    fn is_in_changed_group(&mut self) -> bool {
        if self.changed_to <= self.next {
            let group = self.next - self.next % self.group..self.group_end(self.next);
            if self.is_unchanged(group.clone()) {
                return false;
            }
            self.changed_to = group.end;
        }
        true
    }

    fn group_end(&self, block: u64) -> u64 {
        (block - block % self.group).saturating_add(self.group).min(self.sealed.map.len())
    }

    fn is_unchanged(&self, blocks: Range<u64>) -> bool {
        let Some(slots) = self.since else { return false };
        let own_ordinal = self.sealed.layers.len() - 1;
        let mut places = blocks.map(|block| self.sealed.map.get(block));
        places.all(|place| match place {
            Place::Base => true,
            Place::Layer(slot) => usize::from(slot.ordinal) < own_ordinal || u64::from(slot.index) < slots,
        })
    }

    fn read(&self, slot: Slot, bytes: &mut Vec<u8>) -> io::Result<()> {
        let at = bytes.len();
        bytes.resize(at + BLOCK_BYTES as usize, 0);
        self.data[usize::from(slot.ordinal)].read_exact_at(&mut bytes[at..], u64::from(slot.index) * BLOCK_BYTES)
    }
}

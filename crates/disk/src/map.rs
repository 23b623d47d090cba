//! Where each block of a disk lies: one flat table for the whole stack of layers.

use crc_fast::{CrcAlgorithm, Digest};

/// Where a block's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the base, at the block's own index. Past the end of the base, in nothing: zeroes.
    Base,
    /// In a layer's data file.
    Layer(Slot),
}

/// A place in a layer's data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Which layer, 0 being the oldest.
    pub(crate) ordinal: u16,
    /// Which unit of 4 KiB in its data file.
    pub(crate) index: u32,
}

/// The table. A word per block: 0 is the base, and a slot has its layer's ordinal plus one in the upper half.
pub(crate) struct BlockMap(Vec<u64>);

impl BlockMap {
    /// A map of `blocks` blocks that all lie in the base, or nothing where the address space does not allow it.
    ///
    /// The memory is zeroed by the kernel on first touch, so an untouched map costs nothing.
    pub(crate) fn new(blocks: usize) -> Option<Self> {
        // `vec!` aborts where it finds no room; asking first makes that an error.
        Vec::<u64>::new().try_reserve_exact(blocks).ok()?;
        Some(Self(vec![0; blocks]))
    }

    /// How many blocks there are.
    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Where `block` lies. The caller has checked that the disk has such a block.
    pub(crate) fn get(&self, block: u64) -> Place {
        match self.0[block as usize] {
            0 => Place::Base,
            word => Place::Layer(Slot { ordinal: ((word >> 32) - 1) as u16, index: word as u32 }),
        }
    }

    /// Says that `block` lies in `slot` from now on. The caller has checked that the disk has such a block.
    pub(crate) fn set(&mut self, block: u64, slot: Slot) {
        self.0[block as usize] = ((u64::from(slot.ordinal) + 1) << 32) | u64::from(slot.index);
    }

    /// A digest of every block that does not lie in the base. Reads the whole map.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        for (block, word) in self.0.iter().enumerate().filter(|(_, word)| **word != 0) {
            digest.update(&(block as u64).to_le_bytes());
            digest.update(&word.to_le_bytes());
        }
        digest.finalize()
    }

    #[cfg(test)]
    pub(crate) fn copy(&self) -> Self {
        Self(self.0.clone())
    }
}

//! A descriptor chain, read once and checked: what follows needs no look at the guest's descriptors again.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

/// The most descriptors of one chain, its indirect ones included. The specification allows as many as the queue has;
/// no queue here has more.
const MAX_DESCRIPTORS: usize = 256;

/// Why a descriptor chain is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It loops, leaves its table, or nests indirect tables.
    #[error("descriptor chain {head} does not end")]
    Endless {
        /// Its first descriptor.
        head: u16,
    },
    /// It has more than 256 descriptors.
    #[error("descriptor chain {head} has more than {MAX_DESCRIPTORS} descriptors")]
    TooLong {
        /// Its first descriptor.
        head: u16,
    },
    /// One of its buffers is not guest memory.
    #[error("{len} bytes at {start:#x} are not guest memory")]
    OutsideMemory {
        /// The guest's address.
        start: u64,
        /// In bytes.
        len: u32,
    },
    /// A buffer for the device to read follows one for it to write.
    #[error("descriptor chain {head} has a readable buffer after a writable one")]
    Order {
        /// Its first descriptor.
        head: u16,
    },
    /// The device wanted more of it than there is.
    #[error("{len} bytes at {offset} are not in a chain of {chain_len} bytes")]
    Short {
        /// In bytes.
        offset: usize,
        /// In bytes.
        len: usize,
        /// In bytes.
        chain_len: usize,
    },
}

/// A descriptor chain whose buffers all lie in guest memory, the readable ones first.
///
/// It says nothing of the bytes inside, and they may change while they are read.
pub(crate) struct Chain<'m> {
    memory: &'m GuestMemoryMmap,
    head: u16,
    readable: Buffers,
    writable: Buffers,
}

impl<'m> Chain<'m> {
    /// Checks what the driver put in a queue.
    pub(crate) fn claim(
        memory: &'m GuestMemoryMmap,
        descriptors: DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Result<Self, ChainError> {
        let head = descriptors.head_index();
        let mut chain = Self { memory, head, readable: Buffers::default(), writable: Buffers::default() };
        let mut ends = false;
        for (count, descriptor) in descriptors.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(ChainError::TooLong { head });
            }
            if !descriptor.is_write_only() && chain.writable.any {
                return Err(ChainError::Order { head });
            }
            let side = if descriptor.is_write_only() { &mut chain.writable } else { &mut chain.readable };
            side.push(memory, descriptor.addr(), descriptor.len())?;
            ends = !descriptor.has_next();
        }
        // The iterator stops without a word at a descriptor that it cannot follow.
        if ends { Ok(chain) } else { Err(ChainError::Endless { head }) }
    }

    /// Its first descriptor, by which it is given back.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    /// How many bytes the driver sent.
    pub(crate) fn readable_len(&self) -> usize {
        self.readable.len
    }

    /// How many bytes the driver has room for.
    pub(crate) fn writable_len(&self) -> usize {
        self.writable.len
    }

    /// The buffers that the driver has room in, in its order: where each begins, and how many bytes it has.
    pub(crate) fn writable(&self) -> impl Iterator<Item = (GuestAddress, usize)> {
        self.writable.ranges.iter().map(|range| (range.start, range.len))
    }

    /// Copies bytes that the driver sent, from `offset` on.
    pub(crate) fn read_at(&self, offset: usize, data: &mut [u8]) -> Result<(), ChainError> {
        self.readable
            .pieces(offset, data.len(), |address, range| self.memory.read_slice(&mut data[range], address).is_ok())
    }

    /// Adds what the driver sent, from `offset` on, to `slices`.
    pub(crate) fn readable_slices(&self, offset: usize, slices: &mut Vec<VolatileSlice<'m>>) -> Result<(), ChainError> {
        self.slices(&self.readable, offset, slices)
    }

    /// Adds the driver's buffers to `slices`.
    pub(crate) fn writable_slices(&self, slices: &mut Vec<VolatileSlice<'m>>) -> Result<(), ChainError> {
        self.slices(&self.writable, 0, slices)
    }

    fn slices(&self, of: &Buffers, offset: usize, slices: &mut Vec<VolatileSlice<'m>>) -> Result<(), ChainError> {
        of.pieces(offset, of.len.saturating_sub(offset), |address, range| {
            // A buffer that lies in two regions of memory is two of them.
            let Ok(found) = GuestMemory::get_slices(self.memory, address, range.len(), Permissions::ReadWrite) else {
                return false;
            };
            found.into_iter().all(|slice| slice.map(|slice| slices.push(slice)).is_ok())
        })
    }

    /// Copies `data` into the driver's buffers, from `offset` on.
    pub(crate) fn write_at(&self, offset: usize, data: &[u8]) -> Result<(), ChainError> {
        self.writable
            .pieces(offset, data.len(), |address, range| self.memory.write_slice(&data[range], address).is_ok())
    }
}

/// Buffers that the driver lent for one direction.
#[derive(Default)]
struct Buffers {
    ranges: Vec<GuestRange>,
    len: usize,
    any: bool,
}

/// Bytes of guest memory: they do not wrap, and all of them are there.
#[derive(Clone, Copy)]
struct GuestRange {
    start: GuestAddress,
    len: usize,
}

impl Buffers {
    fn push(&mut self, memory: &GuestMemoryMmap, start: GuestAddress, len: u32) -> Result<(), ChainError> {
        self.any = true;
        let len_bytes = len as usize;
        if len_bytes == 0 {
            return Ok(()); // Nothing is lent, wherever it lies.
        }
        let wraps = start.0.checked_add(u64::from(len) - 1).is_none();
        if wraps || !GuestMemory::check_range(memory, start, len_bytes, Permissions::ReadWrite) {
            return Err(ChainError::OutsideMemory { start: start.0, len });
        }
        self.len += len_bytes; // At most 256 times 4 GiB.
        self.ranges.push(GuestRange { start, len: len_bytes });
        Ok(())
    }

    /// Calls `each` with every stretch of guest memory that makes up `len` bytes at `offset`, and with where in those
    /// bytes it belongs.
    fn pieces(
        &self,
        offset: usize,
        len: usize,
        mut each: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> Result<(), ChainError> {
        let short = ChainError::Short { offset, len, chain_len: self.len };
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(short);
        }
        let (mut skip, mut done) = (offset, 0);
        for range in &self.ranges {
            if done == len {
                break;
            }
            if skip >= range.len {
                skip -= range.len;
                continue;
            }
            let count = (range.len - skip).min(len - done);
            if !each(GuestAddress(range.start.0 + skip as u64), done..done + count) {
                return Err(short); // Cannot be: the range was checked, and guest memory does not shrink.
            }
            done += count;
            skip = 0;
        }
        Ok(())
    }
}

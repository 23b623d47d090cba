//! What a disk is between one operation and the next.

use std::fs::File;

use serde::{Deserialize, Serialize};

use crate::BLOCK_BYTES;
use crate::journal::{Ancestor, Journal, LayerId};
use crate::map::{BlockMap, Place};

/// The disk of one VM.
///
/// ```text
/// create ─┐
/// recover ┼─► ( read_at | write_at | flush | seal )*      the parent, which goes on
/// branch ─┘                                    │
///    ▲                                  fork(2)└─► into_sealed      the child
///    └──────────────────────────────────────────────────┘
/// ```
///
/// Blocks of the own layer at or above the freeze line are overwritten in place; every other block that is written gets
/// the next free slot. The line moves up at each fork, and at each recovery, because what lies below may be read by
/// others.
pub struct Disk {
    pub(crate) len_bytes: u64,
    /// Names what this is until it is dropped, unlike all that was or will be made of the same files.
    pub(crate) life: LayerId,
    pub(crate) base: Base,
    pub(crate) inherited: Vec<Inherited>,
    pub(crate) own: Own,
    pub(crate) journal: Journal,
    pub(crate) map: BlockMap,
    pub(crate) pending: Pending,
    /// Whether a sync has failed: the kernel may have dropped what it could not write, so no later sync can be believed.
    pub(crate) broken: bool,
    pub(crate) dropped_journal_bytes: u64,
}

/// The base image.
pub(crate) struct Base {
    pub(crate) file: File,
    /// Its length when the disk was opened. Blocks past it are zeroes.
    pub(crate) len_bytes: u64,
}

/// A layer of an ancestor. It is never written to.
pub(crate) struct Inherited {
    pub(crate) data: File,
    pub(crate) layer: Ancestor,
    /// How many slots the map may name in it.
    pub(crate) slots: u64,
    /// Whether it may hold data that is not durable yet. Its owner may sync it much later than this disk needs it.
    pub(crate) unsynced: bool,
}

/// The layer that this disk writes to.
pub(crate) struct Own {
    pub(crate) data: File,
    /// The first slot that holds nothing.
    pub(crate) next_slot: u64,
    /// Slots below this may be read by others and are never written again.
    pub(crate) frozen: u64,
    /// Whether it was written to since it was last durable.
    pub(crate) unsynced: bool,
}

/// The blocks whose place changed since the journal last said so.
#[derive(Default)]
pub(crate) struct Pending(pub(crate) Vec<u32>);

/// A disk in short, for tests and logs: equal disks have equal states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// The size that the guest sees.
    pub len_bytes: u64,
    /// How many layers there are, the own one included.
    pub layers: usize,
    /// The first slot of the own layer that holds nothing.
    pub next_slot: u64,
    /// The freeze line of the own layer.
    pub frozen: u64,
    /// A digest of the whole block map.
    pub map_digest: u64,
}

impl Disk {
    /// The size that the guest sees, a multiple of [`BLOCK_BYTES`].
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// How many layers there are, the own one included. At [`crate::MAX_LAYERS`] the disk cannot be forked again.
    pub fn layers(&self) -> usize {
        self.inherited.len() + 1
    }

    /// How many bytes [`Disk::recover`] cut from the end of the journal because they were no valid record: what a crash
    /// during a flush leaves behind. 0 for every other disk.
    pub fn dropped_journal_bytes(&self) -> u64 {
        self.dropped_journal_bytes
    }

    /// The disk in short. Reads the whole map, so it is not for the pause of a fork.
    pub fn state(&self) -> DiskState {
        DiskState {
            len_bytes: self.len_bytes,
            layers: self.layers(),
            next_slot: self.own.next_slot,
            frozen: self.own.frozen,
            map_digest: self.map.digest(),
        }
    }

    /// The own layer's ordinal.
    pub(crate) fn own_ordinal(&self) -> u16 {
        self.inherited.len() as u16 // At most `MAX_LAYERS`.
    }

    /// The slot of `block`, where it may be overwritten in place.
    pub(crate) fn writable_slot(&self, block: u64) -> Option<u64> {
        match self.map.get(block) {
            Place::Layer(slot) if slot.ordinal == self.own_ordinal() => {
                Some(u64::from(slot.index)).filter(|index| self.own.frozen <= *index)
            }
            Place::Layer(_) | Place::Base => None,
        }
    }

    /// Whether `length` bytes at `offset` lie on the disk.
    pub(crate) fn holds(&self, offset: u64, length: usize) -> bool {
        offset.checked_add(length as u64).is_some_and(|end| end <= self.len_bytes)
    }
}

impl Pending {
    /// Notes that `block` moved.
    pub(crate) fn push(&mut self, block: u64) {
        // A block moves at most once between two seals. Dropping repeats before growing keeps a VM that never flushes
        // and is forked often from holding more than two entries per block.
        if self.0.len() == self.0.capacity() {
            self.sort();
        }
        self.0.push(block as u32); // A block's index fits: see `MAX_DISK_BYTES`.
    }

    /// Sorts, and drops repeats.
    pub(crate) fn sort(&mut self) {
        self.0.sort_unstable();
        self.0.dedup();
    }
}

/// How many whole blocks a data file of `len_bytes` holds.
pub(crate) fn whole_slots(len_bytes: u64) -> u64 {
    len_bytes / BLOCK_BYTES
}

//! A VM's disk: a read-only base that many VMs share, and copy-on-write layers above it.
//!
//! Its own crate because all of it can be tested without KVM, and because the bytes it leaves on disk are a promise of
//! their own (`docs/disk-format.md`).
//!
//! *Invariants.* One map says where each block lies, however deep the tree of forks: no read walks a chain. A slot that
//! a relative may read is never written again. A layer is written by one VM only: the one that owns it.

mod disk; // the disk, between one operation and the next
mod files; // the files that a disk is made of
mod flush; // making it all durable
mod fork; // one disk becomes two
mod written; // what a sealed disk holds beside its base
mod io; // reading and writing blocks
mod journal; // the map's bytes on disk, and reading them back
mod map; // where each block lies
mod open; // creating one, and finding one again after a crash

pub use disk::{Disk, DiskState};
pub use files::{DATA_FILE, Files, JOURNAL_FILE};
pub use flush::FlushError;
pub use fork::Sealed;
pub use io::{ReadError, WriteError};
#[cfg(feature = "fuzzing")]
pub use journal::fuzz_journal;
pub use journal::{EntryError, JournalError};
pub use open::OpenError;
pub use written::{Run, Seal, Written};

/// The unit of the map and of the data files, in bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// The largest disk: 16 TiB, so that a block's index fits in 32 bits. The map takes 8 bytes of address space per block
/// and 8 bytes of memory per block that was ever written (in units of a page of 512 blocks).
pub const MAX_DISK_BYTES: u64 = BLOCK_BYTES << 32;

/// The most layers of one disk, its own included: how deep a tree of forks can be. Every layer is one open file in the
/// monitor, and to recover a disk two per layer cross its control socket in one message, which takes 253. Forking one VM
/// many times adds no depth; forking a child of a child of a child does.
pub const MAX_LAYERS: usize = 120;

/// The most blocks that one layer's data file holds (16 TiB of them).
const MAX_SLOTS: u64 = 1 << 32;

#[cfg(test)]
mod tests;

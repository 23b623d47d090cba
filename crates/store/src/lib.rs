//! Checkpoints on disk: pages by content, written while others read, collect and write.
//!
//! Its own crate because the bytes it leaves on disk are a promise of their own (`docs/snapshot-format.md`), and because
//! all of it can be tested without KVM.
//!
//! *Invariants.* A file has its final name only when its content is whole and durable, and is never changed after that; but
//! a working set, which is a hint, may be replaced. A checkpoint is published after everything it names. A page that is
//! read was checked against its name. Writing and reading know no async runtime: the monitor does both.

mod id; // names made from content
mod format; // every byte, drawn and checked
mod local; // files of a directory, and how processes share it
mod store; // opening one, and what is in it
mod write; // pages in
mod read; // pages out
mod working_set; // which pages are wanted first
mod gc; // taking back what nobody needs
mod verify; // finding every flipped bit
mod meter; // how far long work is
mod sizes; // how much room checkpoints take
mod transfer; // into a file or a bucket, and back
#[cfg(feature = "fuzzing")]
mod fuzz; // entry points for fuzzers
#[cfg(test)]
mod tests; // what needs an eye on every change of the directory

#[cfg(test)]
extern crate self as pando_store; // as the tests outside have it

pub use format::{
    Checkpoint, FORMAT, FileKind, FormatError, HEADER_BYTES, Kind, MAX_CHUNK_PAGES, MAX_NAME_BYTES, MAX_PACK_BYTES,
    MAX_PAGES, Machine, Manifest, NameError, PAGE_BYTES, PackEntry, Page, Span,
};
#[cfg(feature = "fuzzing")]
pub use fuzz::{fuzz_checkpoint, fuzz_manifest, fuzz_pack, fuzz_working_set};
pub use gc::{Collected, GcError};
pub use id::{ChunkId, IdError, ManifestId, PackId};
pub use local::FileError;
pub use meter::Meter;
pub use read::{Layer, Location, OpenCheckpoint, ReadError, Turn, Turns};
pub use sizes::Sizes;
pub use store::{CheckpointError, Store};
#[cfg(feature = "bucket")]
pub use transfer::{Bucket, BucketError, BucketSpec, Fetched, Pulled, Pushed, Said, SpecError, Swept};
pub use transfer::{ExportError, ImportError, IntakeError};
pub use verify::{Damage, Verified, VerifyError};
pub use write::{LayerWriter, Tuning, WriteError, Writer};

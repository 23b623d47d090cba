//! The bytes of every file of a store, drawn in `docs/snapshot-format.md`. Nothing here opens a file.
//!
//! All numbers are little-endian. Whatever the bytes say, decoding them fails or succeeds and does nothing else.

mod envelope; // what every file begins with
mod fields; // reading numbers and texts, one after the other
mod pack; // chunks in one file
mod manifest; // which chunk each page is in
mod working_set; // which pages are wanted first
mod checkpoint; // the top: everything a VM was at one instant

pub(crate) use checkpoint::StoredCheckpoint;
pub(crate) use checkpoint::check_name;
pub use checkpoint::{Checkpoint, MAX_NAME_BYTES, Machine, NameError};
pub use envelope::{FORMAT, FileKind, FormatError, HEADER_BYTES};
pub(crate) use envelope::{seal, unseal};
pub(crate) use manifest::InChunk;
pub use manifest::{Kind, MAX_CHUNK_PAGES, MAX_PAGES, Manifest, PAGE_BYTES, Page, Span};
#[cfg(feature = "fuzzing")]
pub(crate) use pack::make_index_checksum_right;
pub use pack::{MAX_PACK_BYTES, PackEntry};
pub(crate) use pack::{Pack, PackBuilder, PackIndex, index_bytes, read_index};
pub(crate) use working_set::{read_working_set, write_working_set};

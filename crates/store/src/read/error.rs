//! What can go wrong while a page is read.

use crate::id::{ChunkId, ManifestId, PackId};
use crate::local::FileError;
use std::ops::Range;

/// Why a page cannot be read. Never does a reader give other bytes than were written.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file of the store cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The checkpoint has no such layer.
    #[error("checkpoint {checkpoint} has no layer {layer}")]
    NoLayer {
        /// Which checkpoint.
        checkpoint: String,
        /// The layer that was asked for.
        layer: ManifestId,
    },
    /// There is no such page.
    #[error("page {page} is behind the end of the layer, which has {pages}")]
    Range {
        /// Which page.
        page: u64,
        /// How many there are.
        pages: u64,
    },
    /// The checkpoint is elsewhere, and what lies there does not come.
    #[error("cannot fetch chunk {chunk} of checkpoint {checkpoint}")]
    Source {
        /// Which chunk.
        chunk: ChunkId,
        /// The checkpoint that was read.
        checkpoint: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No pack that can be read has the chunk.
    #[error("chunk {chunk} is missing: pages {first} to {last} of checkpoint {checkpoint} are lost", first = .pages.start, last = .pages.end.saturating_sub(1))]
    Missing {
        /// Which chunk.
        chunk: ChunkId,
        /// The checkpoint that was read.
        checkpoint: String,
        /// The pages of the layer that may lie in it.
        pages: Range<u64>,
    },
    /// The chunk is not what was written.
    #[error("chunk {chunk} in pack {pack} is damaged: pages {first} to {last} of checkpoint {checkpoint} are lost", first = .pages.start, last = .pages.end.saturating_sub(1))]
    Damaged {
        /// Which chunk.
        chunk: ChunkId,
        /// Where it lies.
        pack: PackId,
        /// The checkpoint that was read.
        checkpoint: String,
        /// The pages of the layer that may lie in it.
        pages: Range<u64>,
    },
}

//! What can go wrong while a checkpoint is written.

use crate::format::{FormatError, NameError};
use crate::id::{ChunkId, ManifestId};
use crate::local::FileError;
use crate::read::ReadError;
use std::io;

/// Why nothing was stored. What was in the store before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A file cannot be written, because the disk is full or for a reason of the kernel's.
    #[error(transparent)]
    File(#[from] FileError),
    /// An earlier call of the same writer told why.
    #[error("this writer stopped at an earlier error")]
    Stopped,
    /// Pages came out of order, or there are more than the layer has, or not whole ones.
    #[error("page {page} does not follow what was written, or is not in the layer")]
    Order {
        /// The first page of those.
        page: u64,
    },
    /// The layer cannot be written down.
    #[error("the layer cannot be written down")]
    Layer(#[source] FormatError),
    /// A part of the checkpoint is longer than 32 bits can say.
    #[error("checkpoint {0} is too large to be written down")]
    TooLarge(String),
    /// There cannot be a checkpoint of that name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is one already.
    #[error("there is a checkpoint called {0} already")]
    Exists(String),
    /// It names a layer that this writer neither wrote nor reused.
    #[error("layer {0} is not in the store")]
    NoLayer(ManifestId),
    /// A layer that was reused names a chunk that is nowhere.
    #[error("chunk {chunk} of layer {layer} is not in the store")]
    MissingChunk {
        /// Which chunk.
        chunk: ChunkId,
        /// The layer that needs it.
        layer: ManifestId,
    },
    /// Pages of another layer cannot be read.
    #[error("cannot take over pages of another layer")]
    Inherit(#[source] ReadError),
    /// A thread cannot be started.
    #[error("cannot start a thread to compress pages")]
    Thread(#[source] io::Error),
    /// The compressor refuses.
    #[error("cannot compress pages")]
    Compress(#[source] io::Error),
}

//! Where the chunks of a checkpoint come from.

use crate::format::Manifest;
use crate::id::{ChunkId, ManifestId};
use crate::local::{Held, Place};
use std::error::Error;
use std::sync::Arc;

/// Something outside of the store that has a checkpoint.
pub(crate) trait Source: Send + Sync {
    /// A manifest that the checkpoint names.
    fn manifest(&self, id: ManifestId) -> Option<Arc<Manifest>>;

    /// Where a chunk lies there.
    fn find(&self, chunk: &ChunkId) -> Option<Place>;

    /// Brings a chunk into the store, unless it `is_here` when it is this thread's turn. It stays for a while.
    fn fetch(&self, chunk: &ChunkId, is_here: &dyn Fn() -> bool) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// What makes the chunks of a checkpoint stay while it is read, or brings them back.
#[derive(Clone)]
pub(crate) enum Origin {
    Store {
        _held: Arc<Held>,
    },
    #[cfg_attr(not(feature = "bucket"), expect(dead_code, reason = "there are no others"))]
    Source(Arc<dyn Source>),
}

//! How much room checkpoints take.

use crate::format::PAGE_BYTES;
use crate::id::ChunkId;
use crate::local::{FileError, StoreLock};
use crate::store::Store;
use std::collections::HashMap;

/// How much room a checkpoint takes, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Its name.
    pub name: String,
    /// Its layers as the guest sees them.
    pub logical: u64,
    /// Those of its pages that are not zero.
    pub data: u64,
    /// Its chunks as they are stored, each once.
    pub stored: u64,
    /// Those of its chunks that no other checkpoint needs: what removing it and collecting would free.
    pub unique: u64,
}

impl Store {
    /// The sizes of all checkpoints, by name. Chunks that are missing count nothing.
    pub fn sizes(&self) -> Result<Vec<Sizes>, FileError> {
        let inner = &self.inner;
        let _lock = StoreLock::shared(&inner.directory)?;
        inner.catalog.refresh(&inner.directory)?;
        let mut sizes = Vec::new();
        // How many checkpoints need a chunk, and which one was the last to say so.
        let mut users: HashMap<ChunkId, (u32, usize)> = HashMap::new();
        for name in inner.directory.list_checkpoints()? {
            let checkpoint = inner.directory.read_checkpoint(&name)?.checkpoint;
            let mut size = Sizes { name, logical: 0, data: 0, stored: 0, unique: 0 };
            let this = sizes.len();
            for id in checkpoint.manifests() {
                let manifest = inner.directory.read_manifest(id)?;
                size.logical += manifest.pages() * PAGE_BYTES as u64;
                size.data += manifest.data_pages() * PAGE_BYTES as u64;
                for chunk in manifest.spans().iter().filter_map(|span| span.chunk) {
                    let (count, last) = users.entry(chunk).or_insert((0, usize::MAX));
                    if *last != this {
                        (*count, *last) = (*count + 1, this);
                    }
                }
            }
            sizes.push((size, checkpoint));
        }
        let index = inner.catalog.index();
        let mut done = Vec::with_capacity(sizes.len());
        for (mut size, checkpoint) in sizes {
            let mut counted = std::collections::HashSet::new();
            for id in checkpoint.manifests() {
                for chunk in inner.directory.read_manifest(id)?.spans().iter().filter_map(|span| span.chunk) {
                    if !counted.insert(chunk) {
                        continue;
                    }
                    let stored = index.find(&chunk).map_or(0, |place| u64::from(place.entry.stored));
                    size.stored += stored;
                    if users.get(&chunk).is_some_and(|(count, _)| *count == 1) {
                        size.unique += stored;
                    }
                }
            }
            done.push(size);
        }
        Ok(done)
    }
}

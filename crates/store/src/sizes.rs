//! How much room checkpoints take.

use crate::format::PAGE_BYTES;
use crate::id::ChunkId;
use crate::local::{Directory, FileError, StoreLock};
use crate::store::Store;
use std::collections::{HashMap, HashSet};

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
    /// What of it cannot be read, and so counts nothing.
    pub problem: Option<String>,
}

impl Store {
    /// The sizes of all checkpoints, by name. Chunks that are missing count nothing.
    pub fn sizes(&self) -> Result<Vec<Sizes>, FileError> {
        let directory = &self.inner.directory;
        let _lock = StoreLock::shared(directory)?;
        self.inner.catalog.refresh(directory)?;
        let mut sizes = Vec::new();
        // How many checkpoints need a chunk.
        let mut users: HashMap<ChunkId, u32> = HashMap::new();
        for name in directory.list_checkpoints()? {
            if let Some((size, chunks)) = measure(directory, name) {
                chunks.iter().for_each(|chunk| *users.entry(*chunk).or_default() += 1);
                sizes.push((size, chunks));
            }
        }
        let index = self.inner.catalog.index();
        let counted = sizes.into_iter().map(|(mut size, chunks)| {
            for chunk in chunks {
                let stored = index.find(&chunk).map_or(0, |place| u64::from(place.entry.stored));
                size.stored += stored;
                size.unique += if users[&chunk] == 1 { stored } else { 0 };
            }
            size
        });
        Ok(counted.collect())
    }
}

/// What a checkpoint's manifests say, and its chunks, each once. `None` if it is gone.
fn measure(directory: &Directory, name: String) -> Option<(Sizes, HashSet<ChunkId>)> {
    let mut chunks = HashSet::new();
    let mut size = Sizes { name, logical: 0, data: 0, stored: 0, unique: 0, problem: None };
    let checkpoint = match directory.read_checkpoint(&size.name) {
        Ok(stored) => stored.checkpoint,
        Err(error) if error.is_absent() => return None,
        Err(error) => {
            size.problem = Some(error.to_string());
            return Some((size, chunks));
        }
    };
    for id in checkpoint.manifests() {
        match directory.read_manifest(id) {
            Ok(manifest) => {
                size.logical += manifest.pages() * PAGE_BYTES as u64;
                size.data += manifest.data_pages() * PAGE_BYTES as u64;
                chunks.extend(manifest.spans().iter().filter_map(|span| span.chunk));
            }
            Err(error) => size.problem = Some(error.to_string()),
        }
    }
    Some((size, chunks))
}

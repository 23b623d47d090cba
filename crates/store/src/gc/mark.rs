//! What is needed: by checkpoints, and by those who write and read.

use super::GcError;
use crate::format::Manifest;
use crate::id::{ChunkId, ManifestId};
use crate::local::{Directory, FileError, Pins};
use std::collections::HashSet;

#[derive(Default)]
pub(super) struct Needed {
    pub(super) manifests: HashSet<ManifestId>,
    pub(super) chunks: HashSet<ChunkId>,
}

/// Follows every checkpoint and every pinned manifest to its chunks. The caller holds the exclusive lock.
pub(super) fn mark(directory: &Directory, pins: &Pins) -> Result<Needed, GcError> {
    let mut needed = Needed::default();
    for name in directory.list_checkpoints()? {
        let unknown = |source| GcError::Unknown { checkpoint: name.clone(), source };
        let stored = directory.read_checkpoint(&name).map_err(unknown)?;
        for id in stored.checkpoint.manifests() {
            if needed.manifests.insert(id) {
                needed.add(&directory.read_manifest(id).map_err(unknown)?);
            }
        }
    }
    for id in directory.list_manifests()? {
        if pins.has_manifest(id) && needed.manifests.insert(id) {
            match directory.read_manifest(id) {
                Ok(manifest) => needed.add(&manifest),
                // Whoever pinned it has read it before, or will find the same.
                Err(FileError::Damaged { .. }) => (),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(needed)
}

impl Needed {
    fn add(&mut self, manifest: &Manifest) {
        self.chunks.extend(manifest.spans().iter().filter_map(|span| span.chunk));
    }
}

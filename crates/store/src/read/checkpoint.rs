//! A checkpoint that stays while it is read.

use super::error::ReadError;
use super::layer::Layer;
use super::source::Origin;
#[cfg(feature = "bucket")]
use super::source::Source;
use crate::format::{Checkpoint, FormatError};
use crate::id::ManifestId;
use crate::local::{FileError, Held, StoreLock};
use crate::store::{CheckpointError, Inner, Store};
use std::sync::Arc;

/// A checkpoint that can be read. While it or one of its layers exists, nothing of it is collected, even if it is
/// removed.
pub struct OpenCheckpoint {
    store: Arc<Inner>,
    origin: Origin,
    checkpoint: Checkpoint,
}

impl Store {
    /// Opens a checkpoint. Nothing is written: it can be read on a disk that is full, or that cannot be written to.
    pub fn open_checkpoint(&self, name: &str) -> Result<OpenCheckpoint, CheckpointError> {
        let inner = &self.inner;
        // So that it is not removed and collected between reading it and holding what it names.
        let lock = StoreLock::shared(&inner.directory)?;
        let stored = inner.stored_checkpoint(name)?;
        let held = Held::of(&inner.directory, &stored.checkpoint)?;
        drop(lock);
        inner.catalog.load(&inner.directory, &stored.packs)?;
        let origin = Origin::Store { _held: Arc::new(held) };
        Ok(OpenCheckpoint { store: inner.clone(), origin, checkpoint: stored.checkpoint })
    }
}

impl OpenCheckpoint {
    /// A checkpoint that is elsewhere.
    #[cfg(feature = "bucket")]
    pub(crate) fn from_source(store: Arc<Inner>, checkpoint: Checkpoint, source: Arc<dyn Source>) -> Self {
        Self { store, origin: Origin::Source(source), checkpoint }
    }

    /// What it says.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Its RAM, if it has any.
    pub fn memory(&self) -> Result<Option<Layer>, ReadError> {
        self.checkpoint.memory.map(|id| self.layer(id)).transpose()
    }

    /// One of the layers that it names.
    pub fn layer(&self, id: ManifestId) -> Result<Layer, ReadError> {
        let checkpoint = &self.checkpoint.name;
        if !self.checkpoint.manifests().any(|named| named == id) {
            return Err(ReadError::NoLayer { checkpoint: checkpoint.clone(), layer: id });
        }
        let manifest = match &self.origin {
            Origin::Store { .. } => Some(Arc::new(self.store.directory.read_manifest(id)?)),
            Origin::Source(source) => source.manifest(id),
        };
        let no_layer = || ReadError::NoLayer { checkpoint: checkpoint.clone(), layer: id };
        let manifest = manifest.ok_or_else(no_layer)?;
        if self.checkpoint.memory == Some(id) && manifest.kind() != crate::format::Kind::Memory {
            let path = self.store.directory.manifest(id);
            return Err(FileError::format(&path, FormatError::Field("layer kind")).into());
        }
        Ok(Layer {
            store: self.store.clone(),
            origin: self.origin.clone(),
            id,
            manifest,
            checkpoint: checkpoint.as_str().into(),
        })
    }
}

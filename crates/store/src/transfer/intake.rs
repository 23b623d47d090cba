//! Files from elsewhere come into a store. None is believed: a chunk that is not what it is named after would spoil
//! every later checkpoint that has it.

use crate::format::{Checkpoint, FormatError, Manifest, Pack, StoredCheckpoint, read_working_set};
use crate::id::{ChunkId, ManifestId, PackId};
use crate::local::{FileError, Lease, read, sync_directory};
use crate::read::decompress;
use crate::store::{Inner, Store};
use crate::transfer::names::Name;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use zstd::bulk::Decompressor;

/// Why a file from elsewhere is not taken.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// It is not what it should be.
    #[error("{name} is damaged")]
    Damaged {
        /// Which.
        name: String,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A later build wrote it.
    #[error("{name} is of store format {found}, and this build reads up to {newest}: a newer pando is needed", newest = crate::format::FORMAT)]
    Newer {
        /// Which.
        name: String,
        /// Its format.
        found: u32,
    },
    /// The checkpoint needs what did not come with it.
    #[error("checkpoint {checkpoint} is not complete: {what} is missing")]
    Incomplete {
        /// Which checkpoint.
        checkpoint: String,
        /// What is missing.
        what: String,
    },
    /// There is another one of that name here.
    #[error("there is another checkpoint called {0} already")]
    Exists(String),
    /// The store here cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The decompressor cannot be made.
    #[error("cannot decompress chunks")]
    Decompress(#[source] io::Error),
}

impl IntakeError {
    pub(super) fn format(name: impl ToString, why: FormatError) -> Self {
        match why {
            FormatError::Newer(found) => Self::Newer { name: name.to_string(), found },
            source => Self::Damaged { name: name.to_string(), source },
        }
    }
}

/// A store that files come into. What no checkpoint came for is garbage once this is dropped.
pub(crate) struct Intake {
    store: Arc<Inner>,
    lease: Arc<Lease>,
}

impl Intake {
    pub(crate) fn begin(store: &Store) -> Result<Self, IntakeError> {
        let lease = Lease::take(&store.inner.directory)?;
        store.inner.catalog.refresh(&store.inner.directory)?;
        Ok(Self::with(store.inner.clone(), Arc::new(lease)))
    }

    /// The same, with a lease that there is.
    pub(crate) fn with(store: Arc<Inner>, lease: Arc<Lease>) -> Self {
        Self { store, lease }
    }

    /// Whether a pack is here, as it should be; then it stays.
    pub(crate) fn has_pack(&self, id: PackId) -> Result<bool, IntakeError> {
        let is_there = self.lease.pin_pack(id)?;
        Ok(is_there && read(&self.store.directory.pack(id)).is_ok_and(|file| Pack::read(id, &file).is_ok()))
    }

    /// Whether a manifest is here, as it should be; then it stays.
    pub(crate) fn has_manifest(&self, id: ManifestId) -> Result<bool, IntakeError> {
        let is_there = self.lease.pin_manifest(id)?;
        Ok(is_there && self.store.directory.read_manifest(id).is_ok())
    }

    /// Whether a pack or manifest is here. Nothing else ever is.
    #[cfg(feature = "bucket")]
    pub(crate) fn has(&self, name: &Name) -> Result<bool, IntakeError> {
        match name {
            Name::Pack(id) => self.has_pack(*id),
            Name::Manifest(id) => self.has_manifest(*id),
            Name::Mark | Name::Checkpoint(_) | Name::WorkingSet(_) => Ok(false),
        }
    }

    /// Takes a pack or manifest. Marks and checkpoints are not files to be copied.
    #[cfg(feature = "bucket")]
    pub(crate) fn take(&self, name: &Name, file: &[u8]) -> Result<(), IntakeError> {
        match name {
            Name::Pack(id) => self.pack(*id, file),
            Name::Manifest(id) => self.manifest(*id, file),
            Name::Mark | Name::Checkpoint(_) | Name::WorkingSet(_) => Ok(()),
        }
    }

    pub(crate) fn pack(&self, id: PackId, file: &[u8]) -> Result<(), IntakeError> {
        let name = Name::Pack(id);
        let pack = Pack::read(id, file).map_err(|why| IntakeError::format(&name, why))?;
        let mut decompressor = Decompressor::new().map_err(IntakeError::Decompress)?;
        for entry in &pack.index.entries {
            let (raw, spare) = decompress(decompressor, entry, pack.stored(entry).to_vec());
            decompressor = spare;
            if raw.is_none() {
                return Err(IntakeError::format(&name, FormatError::Field("chunk")));
            }
        }
        self.lease.place_pack(id, file)?;
        self.store.catalog.add(id, &pack.index);
        Ok(())
    }

    pub(crate) fn manifest(&self, id: ManifestId, file: &[u8]) -> Result<(), IntakeError> {
        Manifest::read(id, file).map_err(|why| IntakeError::format(Name::Manifest(id), why))?;
        Ok(self.lease.place_manifest(id, file)?)
    }

    /// Takes what says which pages are wanted first, if it is not damaged: nothing depends on it.
    pub(crate) fn working_set(&self, layer: ManifestId, file: &[u8]) -> Result<(), IntakeError> {
        match read_working_set(layer, file) {
            Ok(_) => Ok(self.store.directory.put_working_set(layer, file)?),
            Err(_) => Ok(()),
        }
    }

    /// Publishes a checkpoint of which everything is here. Durable when this returns. One that is here already, and the
    /// same, is fine.
    pub(crate) fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), IntakeError> {
        let packs = self.pin_chunks(checkpoint)?;
        let directory = &self.store.directory;
        sync_directory(&directory.packs())?;
        sync_directory(&directory.manifests())?;
        let stored = StoredCheckpoint { checkpoint: checkpoint.clone(), packs };
        let too_large = || IntakeError::format(&checkpoint.name, FormatError::Length);
        let bytes = stored.write().ok_or_else(too_large)?;
        if !self.lease.place_checkpoint(&checkpoint.name, &bytes)? {
            let here = directory.read_checkpoint(&checkpoint.name)?;
            if here.checkpoint != *checkpoint {
                return Err(IntakeError::Exists(checkpoint.name.clone()));
            }
            // Whoever put it there may not have come this far.
            sync_directory(&directory.checkpoints())?;
        }
        Ok(())
    }

    /// Makes everything that the checkpoint needs stay, and returns the packs that it is in.
    fn pin_chunks(&self, checkpoint: &Checkpoint) -> Result<Vec<PackId>, IntakeError> {
        let incomplete = |what: String| IntakeError::Incomplete { checkpoint: checkpoint.name.clone(), what };
        let mut packs = BTreeSet::new();
        for id in checkpoint.manifests() {
            if !self.lease.pin_manifest(id)? {
                return Err(incomplete(format!("layer {id}")));
            }
            let manifest = self.store.directory.read_manifest(id)?;
            for chunk in manifest.spans().iter().filter_map(|span| span.chunk) {
                packs.insert(self.pin_chunk(&chunk)?.ok_or_else(|| incomplete(format!("chunk {chunk}")))?);
            }
        }
        Ok(packs.into_iter().collect())
    }

    fn pin_chunk(&self, chunk: &ChunkId) -> Result<Option<PackId>, IntakeError> {
        Ok(self.store.pin_chunk(&self.lease, chunk)?.map(|place| place.pack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{PAGE_BYTES, PackBuilder};

    #[test]
    fn a_pack_whose_chunk_is_not_what_it_is_named_after_would_spoil_others_and_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path()).unwrap();
        let mut pack = PackBuilder::default();
        // All checksums are right, and the name is that of the content.
        pack.push(ChunkId::of(&[1; PAGE_BYTES]), &[2; PAGE_BYTES], PAGE_BYTES);
        let (id, _, file) = pack.finish();
        let refused = Intake::begin(&store).unwrap().pack(id, &file).unwrap_err();
        assert_eq!(refused.to_string(), format!("packs/{id} is damaged"));
        assert!(store.inner.catalog.find(&ChunkId::of(&[1; PAGE_BYTES])).is_none());
        assert!(store.inner.directory.list_packs().unwrap().is_empty());
    }
}

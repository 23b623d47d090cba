//! What a checkpoint needs, held until it is sent.

use super::names::Name;
use crate::format::StoredCheckpoint;
use crate::id::{ManifestId, PackId};
use crate::local::{FileError, Lease, StoreLock};
use crate::store::{CheckpointError, Inner, Store};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// A checkpoint with all its files. While this exists, none of them is collected or rewritten.
pub(crate) struct Outgoing {
    store: Arc<Inner>,
    _lease: Lease,
    pub(crate) stored: StoredCheckpoint,
    pub(crate) manifests: Vec<ManifestId>,
}

impl Outgoing {
    pub(crate) fn begin(store: &Store, name: &str) -> Result<Self, CheckpointError> {
        let inner = store.inner.clone();
        let directory = &inner.directory;
        // Nothing is collected from here to the end, so where chunks lie now is where they lie.
        let _lock = StoreLock::shared(directory)?;
        let mut stored = inner.stored_checkpoint(name)?;
        let lease = Lease::take_locked(directory)?;
        inner.index_mut().refresh(directory)?;
        let manifests: BTreeSet<_> = stored.checkpoint.manifests().collect();
        let mut packs = BTreeSet::new();
        for id in &manifests {
            lease.pin_manifest_locked(*id)?;
            let index = inner.index();
            for chunk in directory.read_manifest(*id)?.spans().iter().filter_map(|span| span.chunk) {
                let missing = || {
                    FileError::io(
                        "find",
                        &directory.packs().join(format!("with-chunk-{chunk}")),
                        std::io::ErrorKind::NotFound.into(),
                    )
                };
                packs.insert(index.find(&chunk).ok_or_else(missing)?.pack);
            }
        }
        for id in &packs {
            lease.pin_pack_locked(*id)?;
        }
        stored.packs = packs.into_iter().collect();
        Ok(Self { store: inner.clone(), _lease: lease, stored, manifests: manifests.into_iter().collect() })
    }

    /// Its packs, sorted.
    pub(crate) fn packs(&self) -> &[PackId] {
        &self.stored.packs
    }

    /// Where a file lies.
    pub(crate) fn path(&self, name: &Name) -> PathBuf {
        self.store.directory.root().join(name.to_string())
    }

    /// The checkpoint's own file, as it is to be sent. `None` where a part does not fit in 32 bits of length.
    pub(crate) fn checkpoint_file(&self) -> Option<Vec<u8>> {
        self.stored.write()
    }
}

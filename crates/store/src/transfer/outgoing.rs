//! What a checkpoint needs, held until it is sent.

use super::names::Name;
use crate::format::{Manifest, Pack, StoredCheckpoint, read_working_set};
use crate::id::{ManifestId, PackId};
use crate::local::{Directory, FileError, Held, Lease, StoreLock, read};
use crate::store::{CheckpointError, Inner, Store};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A checkpoint with all its files. While this exists, none of them is collected or rewritten.
pub(crate) struct Outgoing {
    store: Arc<Inner>,
    _held: (Held, Hold),
    pub(crate) stored: StoredCheckpoint,
    pub(crate) manifests: Vec<ManifestId>,
}

/// What keeps the packs where they are.
enum Hold {
    Lease {
        _lease: Lease,
    },
    /// On a disk that is full or cannot be written to: nothing at all is collected meanwhile.
    Lock {
        _lock: StoreLock,
    },
}

impl Outgoing {
    pub(crate) fn begin(store: &Store, name: &str) -> Result<Self, CheckpointError> {
        let inner = store.inner.clone();
        let directory = &inner.directory;
        // Nothing is collected from here to the end, so where chunks lie now is where they lie.
        let lock = StoreLock::shared(directory)?;
        let mut stored = inner.stored_checkpoint(name)?;
        let held = Held::of(directory, &stored.checkpoint)?;
        inner.catalog.refresh(directory)?;
        let manifests: BTreeSet<_> = stored.checkpoint.manifests().collect();
        let mut packs = BTreeSet::new();
        for id in &manifests {
            let index = inner.catalog.index();
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
        let hold = match hold(directory, &packs) {
            Ok(lease) => Hold::Lease { _lease: lease },
            Err(_) => Hold::Lock { _lock: lock },
        };
        stored.packs = packs.into_iter().collect();
        Ok(Self { store: inner.clone(), _held: (held, hold), stored, manifests: manifests.into_iter().collect() })
    }

    /// Its packs, sorted.
    pub(crate) fn packs(&self) -> &[PackId] {
        &self.stored.packs
    }

    /// All of a pack or manifest, which is what it is named after: what is damaged here is not to get elsewhere.
    pub(crate) fn read(&self, name: &Name) -> Result<Vec<u8>, FileError> {
        let path = self.store.directory.root().join(name.to_string());
        let bytes = read(&path)?;
        let checked = match name {
            Name::Pack(id) => Pack::read(*id, &bytes).map(drop),
            Name::Manifest(id) => Manifest::read(*id, &bytes).map(drop),
            Name::WorkingSet(id) => read_working_set(*id, &bytes).map(drop),
            Name::Mark | Name::Checkpoint(_) => Ok(()), // Neither is copied as a file.
        };
        checked.map(|()| bytes).map_err(|why| FileError::format(&path, why))
    }

    /// The working sets of its layers, as far as there are any that can be used.
    pub(crate) fn working_sets(&self) -> Vec<(Name, Vec<u8>)> {
        let names = self.manifests.iter().map(|id| Name::WorkingSet(*id));
        names.filter_map(|name| self.read(&name).ok().map(|file| (name, file))).collect()
    }

    /// The checkpoint's own file, as it is to be sent. `None` where a part does not fit in 32 bits of length.
    pub(crate) fn checkpoint_file(&self) -> Option<Vec<u8>> {
        self.stored.write()
    }
}

fn hold(directory: &Directory, packs: &BTreeSet<PackId>) -> Result<Lease, FileError> {
    let lease = Lease::take_locked(directory)?;
    packs.iter().try_for_each(|id| lease.pin_pack_locked(*id).map(drop))?;
    Ok(lease)
}

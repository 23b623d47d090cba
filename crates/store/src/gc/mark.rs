//! What is needed: by checkpoints, and by those who write and read.

use super::GcError;
use crate::id::{ChunkId, ManifestId};
use crate::local::{Directory, FileError, Pins, is_held};
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::{fs, io};

/// Everything that was found to be needed since this was made: it grows, and nothing leaves it.
#[derive(Default)]
pub(super) struct Needed {
    manifests: HashSet<ManifestId>,
    chunks: HashSet<ChunkId>,
    /// The checkpoints that were followed.
    seen: HashSet<Seen>,
}

/// A checkpoint's file. One that is removed and written again under the same name is another.
#[derive(PartialEq, Eq, Hash)]
struct Seen {
    name: String,
    inode: u64,
    changed: (i64, i64),
}

impl Needed {
    /// Follows every checkpoint, and every manifest that is pinned or held, to its chunks, where that was not done before.
    ///
    /// Complete if the caller holds the exclusive lock, and then quick if it was done shortly before. Otherwise it is that
    /// work done in advance.
    pub(super) fn follow(&mut self, directory: &Directory, pins: &Pins) -> Result<(), GcError> {
        for name in directory.list_checkpoints()? {
            let Some(seen) = Seen::of(directory, &name)? else { continue };
            if self.seen.contains(&seen) {
                continue;
            }
            let unknown = |source| GcError::Unknown { checkpoint: name.clone(), source };
            let stored = match directory.read_checkpoint(&name) {
                Err(error) if error.is_absent() => continue,
                read => read.map_err(unknown)?,
            };
            for id in stored.checkpoint.manifests() {
                self.add(directory, id).map_err(unknown)?;
            }
            self.seen.insert(seen);
        }
        for id in directory.list_manifests()? {
            if !self.manifests.contains(&id) && (pins.has_manifest(id) || is_held(directory, id)?) {
                match self.add(directory, id) {
                    // Whoever relies on it has read it before, or will find the same.
                    Err(FileError::Damaged { .. }) => drop(self.manifests.insert(id)),
                    added => added?,
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, directory: &Directory, id: ManifestId) -> Result<(), FileError> {
        if !self.manifests.contains(&id) {
            let manifest = directory.read_manifest(id)?;
            self.chunks.extend(manifest.spans().iter().filter_map(|span| span.chunk));
            self.manifests.insert(id);
        }
        Ok(())
    }

    pub(super) fn has_manifest(&self, id: ManifestId) -> bool {
        self.manifests.contains(&id)
    }

    pub(super) fn has_chunk(&self, id: &ChunkId) -> bool {
        self.chunks.contains(id)
    }
}

impl Seen {
    /// `None` if it is gone.
    fn of(directory: &Directory, name: &str) -> Result<Option<Self>, FileError> {
        let path = directory.checkpoint(name);
        match fs::metadata(&path) {
            Ok(file) => {
                let changed = (file.ctime(), file.ctime_nsec());
                Ok(Some(Self { name: name.to_owned(), inode: file.ino(), changed }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FileError::io("look at", &path, error)),
        }
    }
}

//! Which pages of a layer are wanted first, learned at one wake for the next: a hint, and nothing depends on it.

use crate::format::{read_working_set, write_working_set};
use crate::id::ManifestId;
use crate::local::{Directory, FileError, Lease, read, remove};
use crate::store::Store;
use std::ops::Range;

impl Store {
    /// The pages of a layer that are wanted first, in the order in which they were noted. `None` if nobody noted any, or
    /// if what was noted is damaged.
    pub fn working_set(&self, layer: ManifestId) -> Option<Vec<Range<u64>>> {
        let file = read(&self.inner.directory.working_set(layer)).ok()?;
        read_working_set(layer, &file).ok()
    }

    /// Notes the pages of a layer that are wanted first, instead of what was noted before. They go with the layer. Empty
    /// runs are left out.
    pub fn note_working_set(&self, layer: ManifestId, pages: &[Range<u64>]) -> Result<(), FileError> {
        let runs: Vec<_> = pages.iter().filter(|run| !run.is_empty()).cloned().collect();
        // More runs than 32 bits can count are of no use as a hint.
        write_working_set(layer, &runs).map_or(Ok(()), |file| self.inner.directory.put_working_set(layer, &file))
    }
}

impl Directory {
    pub(crate) fn put_working_set(&self, layer: ManifestId, file: &[u8]) -> Result<(), FileError> {
        Lease::take(self)?.replace(&self.working_set(layer), file)
    }

    /// Deletes those whose layer is gone.
    pub(crate) fn sweep_working_sets(&self) -> Result<(), FileError> {
        for layer in self.list_working_sets()? {
            let manifest = self.manifest(layer);
            let is_needed = manifest.try_exists().map_err(|error| FileError::io("look for", &manifest, error))?;
            if !is_needed {
                remove(&self.working_set(layer))?;
            }
        }
        Ok(())
    }
}

//! Which pages of a layer are wanted first, learned at one wake for the next: a hint, and nothing depends on it.

use crate::format::{read_working_set, write_working_set};
use crate::id::ManifestId;
use crate::local::{Directory, FileError, Lease, read, remove};
use crate::store::Store;
use std::ops::Range;

/// One run in so many is not passed on.
const FORGETS_ONE_IN: u8 = 8;

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

    /// Notes for layer `to` what is noted for `from`: the same memory at an earlier time. Does nothing where nothing is.
    ///
    /// Of a page that came because it was expected, nobody knows whether it was wanted. So one run in eight is left out,
    /// others for each layer: what is wanted is waited for once more, and noted again; what is not is forgotten after some
    /// times.
    pub fn pass_on_working_set(&self, from: ManifestId, to: ManifestId) -> Result<(), FileError> {
        let Some(runs) = self.working_set(from) else { return Ok(()) };
        let runs = runs.into_iter().enumerate().filter(|(at, _)| !is_forgotten(*at, to)).map(|(_, run)| run);
        self.note_working_set(to, &runs.collect::<Vec<_>>())
    }
}

/// Whether run `at` is left out for `layer`, whose name is as good as random.
fn is_forgotten(at: usize, layer: ManifestId) -> bool {
    let byte = layer.0[at % layer.0.len()];
    (byte ^ (at / layer.0.len()) as u8).is_multiple_of(FORGETS_ONE_IN)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eighth_is_forgotten_and_after_many_times_everything() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let layer = |at: u64| ManifestId(*blake3::hash(&at.to_le_bytes()).as_bytes());
        let noted: Vec<_> = (0..1000).rev().map(|page| page * 9..page * 9 + 1).collect();
        store.note_working_set(layer(0), &noted).unwrap();
        let passed = |at| {
            store.pass_on_working_set(layer(at), layer(at + 1)).map(|()| store.working_set(layer(at + 1)).unwrap())
        };
        let first = passed(0).unwrap();
        assert!((800..950).contains(&first.len()), "{} of 1000", first.len());
        assert!(first.iter().is_sorted_by_key(|run| std::cmp::Reverse(run.start)), "in their order");
        assert!((1..100).map(|at| passed(at).unwrap().len()).is_sorted_by(|before, after| before >= after));
        assert_eq!(store.working_set(layer(100)).unwrap(), []);
        store.pass_on_working_set(layer(500), layer(501)).unwrap();
        assert_eq!(store.working_set(layer(501)), None, "nothing was noted");
    }
}

//! From a pack to checked bytes.

use super::cache::ChunkCache;
use crate::format::PackEntry;
use crate::id::{ChunkId, PackId};
use crate::local::{Directory, FileError, Place, StoreLock};
use crate::store::Inner;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, PoisonError};
use zstd::bulk::Decompressor;

/// Packs that stay open.
const OPEN_PACKS: usize = 128;
/// After so many more, it is looked which of them are gone.
const LOOK_AFTER: usize = 32;

/// Reads chunks.
pub(crate) struct ChunkReader {
    cache: ChunkCache,
    open: Mutex<HashMap<PackId, Arc<File>>>,
    /// Those that no thread uses.
    decompressors: Mutex<Vec<Decompressor<'static>>>,
}

/// Why there is no chunk.
pub(super) enum Failure {
    File(FileError),
    Missing,
    Damaged(PackId),
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl Inner {
    /// A chunk, which must be this long. What is returned was checked against its id.
    pub(super) fn chunk(&self, id: &ChunkId, raw_len: usize) -> Result<Arc<[u8]>, Failure> {
        let bytes = self.chunks.cache.get_or_read(id, || self.read_where_it_lies(id, raw_len).map(Arc::from))?;
        // Were it of another length, two chunks would have one id.
        if bytes.len() == raw_len { Ok(bytes) } else { Err(Failure::Missing) }
    }

    /// Garbage collection moves chunks between any two steps of a reader: what was looked up, however lately, may be gone
    /// when it is opened, and be in another pack by then. So the last attempt is made while nothing can be moved.
    ///
    /// A place that cannot be read is an error only after all others.
    pub(super) fn read_where_it_lies(&self, id: &ChunkId, raw_len: usize) -> Result<Vec<u8>, Failure> {
        let mut failed = None;
        if let Some(bytes) = self.read_known(id, raw_len, &mut failed) {
            return Ok(bytes);
        }
        self.refresh()?;
        if let Some(bytes) = self.read_known(id, raw_len, &mut failed) {
            return Ok(bytes);
        }
        let _lock = StoreLock::shared(&self.directory)?;
        self.refresh()?;
        self.read_known(id, raw_len, &mut failed).ok_or_else(|| failed.unwrap_or(Failure::Missing))
    }

    fn refresh(&self) -> Result<(), FileError> {
        self.catalog.refresh(&self.directory)?;
        self.chunks.close_gone();
        Ok(())
    }

    /// Reads a chunk from one of the places where it is known to lie, and notes what was wrong with the others. `None`
    /// where it is not known to lie anywhere, or not there.
    fn read_known(&self, id: &ChunkId, raw_len: usize, failed: &mut Option<Failure>) -> Option<Vec<u8>> {
        let right = |place: &Place| place.entry.raw as usize == raw_len;
        for place in self.catalog.places(id).into_iter().filter(right) {
            match self.read_at(place) {
                Ok(bytes) => return Some(bytes),
                Err(Failure::File(error)) if error.is_absent() => (),
                Err(failure) => {
                    // An open file may be one that has been replaced since, by one that is as it should be.
                    self.chunks.close(place.pack);
                    failed.get_or_insert(failure);
                }
            }
        }
        None
    }

    fn read_at(&self, place: Place) -> Result<Vec<u8>, Failure> {
        let Place { pack, entry } = place;
        let file = self.chunks.open(&self.directory, pack)?;
        let mut stored = vec![0; entry.stored as usize];
        match file.read_exact_at(&mut stored, u64::from(entry.offset)) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Failure::Damaged(pack)),
            Err(error) => return Err(FileError::io("read", &self.directory.pack(pack), error).into()),
        }
        let decompressor = self
            .chunks
            .decompressor()
            .map_err(|error| FileError::io("decompress", &self.directory.pack(pack), error))?;
        let (bytes, decompressor) = decompress(decompressor, &entry, stored);
        self.chunks.give_back(decompressor);
        bytes.ok_or(Failure::Damaged(pack))
    }
}

impl ChunkReader {
    pub(crate) fn new(cache_bytes: usize) -> Self {
        Self { cache: ChunkCache::new(cache_bytes), open: Mutex::default(), decompressors: Mutex::default() }
    }

    fn open(&self, directory: &Directory, pack: PackId) -> Result<Arc<File>, FileError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&pack) {
            return Ok(file.clone());
        }
        let path = directory.pack(pack);
        let file = Arc::new(File::open(&path).map_err(|error| FileError::io("open", &path, error))?);
        if open.len() >= OPEN_PACKS {
            open.clear();
        }
        open.insert(pack, file.clone());
        if open.len().is_multiple_of(LOOK_AFTER) {
            open.retain(|_, file| has_a_name(file));
        }
        Ok(file)
    }

    /// Forgets the file of a pack.
    fn close(&self, pack: PackId) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&pack);
    }

    /// Lets go of packs that were collected, which take room on the disk until then.
    fn close_gone(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, file| has_a_name(file));
    }

    fn decompressor(&self) -> io::Result<Decompressor<'static>> {
        let spare = self.decompressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(Decompressor::new, Ok)
    }

    fn give_back(&self, decompressor: Decompressor<'static>) {
        self.decompressors.lock().unwrap_or_else(PoisonError::into_inner).push(decompressor);
    }
}

fn has_a_name(file: &Arc<File>) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

/// The bytes of a chunk, if they are those that its id names. Gives the decompressor back.
pub(crate) fn decompress<'d>(
    mut decompressor: Decompressor<'d>,
    entry: &PackEntry,
    stored: Vec<u8>,
) -> (Option<Vec<u8>>, Decompressor<'d>) {
    let raw = match entry.stored == entry.raw {
        true => Some(stored),
        false => decompressor.decompress(&stored, entry.raw as usize).ok(),
    };
    let is_it = |raw: &Vec<u8>| raw.len() == entry.raw as usize && ChunkId::of(raw) == entry.id;
    (raw.filter(is_it), decompressor)
}

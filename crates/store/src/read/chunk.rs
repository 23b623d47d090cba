//! From a pack to checked bytes.

use super::cache::ChunkCache;
use crate::format::PackEntry;
use crate::id::{ChunkId, PackId};
use crate::local::{Directory, FileError, Place, StoreLock};
use crate::store::Inner;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};
use zstd::bulk::Decompressor;

/// Bytes of uncompressed chunks that a store's handles keep.
const CACHE_BYTES: usize = 32 << 20;
/// Packs that stay open.
const OPEN_PACKS: usize = 128;

/// Reads chunks.
pub(crate) struct ChunkReader {
    cache: ChunkCache,
    open: Mutex<HashMap<PackId, Arc<File>>>,
    /// Those that no thread uses.
    decompressors: Mutex<Vec<Decompressor<'static>>>,
}

impl Default for ChunkReader {
    fn default() -> Self {
        Self { cache: ChunkCache::new(CACHE_BYTES), open: Mutex::default(), decompressors: Mutex::default() }
    }
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
        if let Some(bytes) = self.chunks.cache.get(id) {
            // Were it of another length, two chunks would have one id.
            return if bytes.len() == raw_len { Ok(bytes) } else { Err(Failure::Missing) };
        }
        let bytes = self.read_where_it_lies(id, raw_len)?;
        let bytes: Arc<[u8]> = Arc::from(bytes);
        self.chunks.cache.put(*id, bytes.clone());
        Ok(bytes)
    }

    /// Garbage collection moves chunks between any two steps of a reader: what was looked up, however lately, may be gone
    /// when it is opened, and be in another pack by then. So the last attempt is made while nothing can be moved.
    fn read_where_it_lies(&self, id: &ChunkId, raw_len: usize) -> Result<Vec<u8>, Failure> {
        if let Some(bytes) = self.read_known(id, raw_len)? {
            return Ok(bytes);
        }
        self.index_mut().refresh(&self.directory)?;
        if let Some(bytes) = self.read_known(id, raw_len)? {
            return Ok(bytes);
        }
        let _lock = StoreLock::shared(&self.directory)?;
        self.index_mut().refresh(&self.directory)?;
        self.read_known(id, raw_len)?.ok_or(Failure::Missing)
    }

    /// Reads a chunk from where it is known to lie. `None` where it is not known, or not there.
    fn read_known(&self, id: &ChunkId, raw_len: usize) -> Result<Option<Vec<u8>>, Failure> {
        let Some(place) = self.index().find(id) else { return Ok(None) };
        match self.read_at(place, raw_len) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Failure::File(error)) if error.is_absent() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn read_at(&self, place: Place, raw_len: usize) -> Result<Vec<u8>, Failure> {
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
        bytes.filter(|bytes| bytes.len() == raw_len).ok_or(Failure::Damaged(pack))
    }
}

impl ChunkReader {
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
        Ok(file)
    }

    fn decompressor(&self) -> io::Result<Decompressor<'static>> {
        let spare = self.decompressors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(Decompressor::new, Ok)
    }

    fn give_back(&self, decompressor: Decompressor<'static>) {
        self.decompressors.lock().unwrap_or_else(PoisonError::into_inner).push(decompressor);
    }
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

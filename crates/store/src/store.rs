//! A store: opening it, and what is in it.

use crate::format::{Checkpoint, NameError, StoredCheckpoint, check_name};
use crate::id::{ChunkId, ManifestId};
use crate::local::{Catalog, Directory, FileError, Lease, Place, StoreLock, read, remove, sync_directory};
use crate::read::ChunkReader;
use std::path::Path;
use std::sync::Arc;

/// Bytes of uncompressed chunks that a store's handles keep, where nobody says otherwise.
const CACHE_BYTES: usize = 32 << 20;

/// Checkpoints in a directory, shared by any number of processes. Cloning it is cheap, and clones share their caches.
///
/// It holds no lock and no thread. Several handles on one directory, in one process or many, know nothing of each other
/// and need not.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) directory: Directory,
    pub(crate) catalog: Catalog,
    pub(crate) chunks: ChunkReader,
}

/// A checkpoint that cannot be listed or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is none of that name.
    #[error("no checkpoint is called {0}")]
    Absent(String),
    /// There cannot be one of that name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file of it cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Store {
    /// The store in this directory, which is created if it is not there.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        Directory::create(path).map(|directory| Self::of(directory, CACHE_BYTES))
    }

    /// The store in this directory.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::open_caching(path, CACHE_BYTES)
    }

    /// The same, whose clones together keep so many bytes of chunks in memory, uncompressed, instead of 32 MiB.
    pub fn open_caching(path: &Path, cache_bytes: usize) -> Result<Self, FileError> {
        Directory::open(path).map(|directory| Self::of(directory, cache_bytes))
    }

    fn of(directory: Directory, cache_bytes: usize) -> Self {
        let inner = Inner { directory, catalog: Catalog::default(), chunks: ChunkReader::new(cache_bytes) };
        Self { inner: Arc::new(inner) }
    }

    /// The names of its checkpoints, sorted.
    pub fn checkpoints(&self) -> Result<Vec<String>, FileError> {
        self.inner.directory.list_checkpoints()
    }

    /// What a checkpoint says, without its pages.
    pub fn checkpoint(&self, name: &str) -> Result<Checkpoint, CheckpointError> {
        self.inner.stored_checkpoint(name).map(|stored| stored.checkpoint)
    }

    /// How long a layer is, in pages, held or not. Reads its manifest and nothing else, and keeps nothing from being collected.
    pub fn layer_pages(&self, id: ManifestId) -> Result<u64, FileError> {
        self.inner.directory.read_manifest(id).map(|manifest| manifest.pages())
    }

    /// Removes a checkpoint. What only it needed goes with the next garbage collection; a reader that is open keeps it
    /// until then and longer.
    pub fn remove(&self, name: &str) -> Result<(), CheckpointError> {
        check_name(name)?;
        let directory = &self.inner.directory;
        let path = directory.checkpoint(name);
        let _lock = StoreLock::shared(directory)?;
        if !remove(&path)? {
            return Err(CheckpointError::Absent(name.to_owned()));
        }
        Ok(sync_directory(&directory.checkpoints())?)
    }
}

impl Inner {
    pub(crate) fn stored_checkpoint(&self, name: &str) -> Result<StoredCheckpoint, CheckpointError> {
        check_name(name)?;
        match self.directory.read_checkpoint(name) {
            Err(error) if error.is_absent() => Err(CheckpointError::Absent(name.to_owned())),
            read => Ok(read?),
        }
    }

    /// Makes a chunk stay where it lies while the lease lives. `None` if it is nowhere.
    ///
    /// Garbage collection moves chunks between looking one up and pinning it, so the last attempt is made while nothing
    /// can be moved.
    pub(crate) fn pin_chunk(&self, lease: &Lease, id: &ChunkId) -> Result<Option<Place>, FileError> {
        if let Some(place) = self.catalog.find(id)
            && lease.pin_pack(place.pack)?
        {
            return Ok(Some(place));
        }
        let _lock = StoreLock::shared(&self.directory)?;
        self.catalog.refresh(&self.directory)?;
        let Some(place) = self.catalog.find(id) else { return Ok(None) };
        Ok(lease.pin_pack_locked(place.pack)?.then_some(place))
    }
}

impl Directory {
    /// A checkpoint, whose name has been checked.
    pub(crate) fn read_checkpoint(&self, name: &str) -> Result<StoredCheckpoint, FileError> {
        let path = self.checkpoint(name);
        let bytes = read(&path)?;
        let stored = StoredCheckpoint::read(&bytes).map_err(|why| FileError::format(&path, why))?;
        if stored.checkpoint.name == name {
            Ok(stored)
        } else {
            Err(FileError::format(&path, crate::format::FormatError::Name))
        }
    }

    /// A manifest.
    pub(crate) fn read_manifest(&self, id: ManifestId) -> Result<crate::format::Manifest, FileError> {
        let path = self.manifest(id);
        crate::format::Manifest::read(id, &read(&path)?).map_err(|why| FileError::format(&path, why))
    }
}

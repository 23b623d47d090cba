//! A store: opening it, and what is in it.

use crate::format::{Checkpoint, NameError, StoredCheckpoint, check_name};
use crate::id::ChunkId;
use crate::local::{Directory, FileError, Index, Lease, Place, StoreLock, read, sync_directory};
use crate::read::ChunkReader;
use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
    index: RwLock<Index>,
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
        Directory::create(path).map(Self::of)
    }

    /// The store in this directory.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Directory::open(path).map(Self::of)
    }

    fn of(directory: Directory) -> Self {
        let inner = Inner { directory, index: RwLock::default(), chunks: ChunkReader::default() };
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

    /// Removes a checkpoint. What only it needed goes with the next garbage collection; a reader that is open keeps it
    /// until then and longer.
    pub fn remove(&self, name: &str) -> Result<(), CheckpointError> {
        check_name(name)?;
        let directory = &self.inner.directory;
        let path = directory.checkpoint(name);
        let _lock = StoreLock::shared(directory)?;
        match fs::remove_file(&path) {
            Ok(()) => Ok(sync_directory(&directory.checkpoints())?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(CheckpointError::Absent(name.to_owned())),
            Err(error) => Err(FileError::io("remove", &path, error).into()),
        }
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
        if let Some(place) = self.index().find(id)
            && lease.pin_pack(place.pack)?
        {
            return Ok(Some(place));
        }
        let _lock = StoreLock::shared(&self.directory)?;
        self.index_mut().refresh(&self.directory)?;
        let Some(place) = self.index().find(id) else { return Ok(None) };
        Ok(lease.pin_pack_locked(place.pack)?.then_some(place))
    }

    /// Where chunks lie, as far as it is loaded.
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
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
    pub(crate) fn read_manifest(&self, id: crate::id::ManifestId) -> Result<crate::format::Manifest, FileError> {
        let path = self.manifest(id);
        crate::format::Manifest::read(id, &read(&path)?).map_err(|why| FileError::format(&path, why))
    }
}

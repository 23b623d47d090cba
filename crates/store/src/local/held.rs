//! What a reader reads stays, and nothing is written for that: a full disk, or one that cannot be written to, is no
//! reason to read nothing.
//!
//! A reader keeps the manifests that it reads open and locked (`flock`, shared), which it begins under the store's shared
//! lock. Garbage collection, which holds the exclusive one, sees whether it could lock a manifest itself.

use super::directory::{Directory, FileError};
use crate::format::Checkpoint;
use crate::id::ManifestId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use std::fs::File;

/// Manifests that stay, and with them every chunk that they name. Until this is dropped, or the process ends.
///
/// A child of `fork(2)` that keeps the descriptors keeps them, too, which is safe and costs space only.
pub(crate) struct Held {
    _manifests: Vec<File>,
}

impl Held {
    /// Holds what a checkpoint names, all of which must be there, while the caller holds the store's lock.
    pub(crate) fn of(directory: &Directory, checkpoint: &Checkpoint) -> Result<Self, FileError> {
        let hold = |id| {
            let path = directory.manifest(id);
            let file = File::open(&path).map_err(|error| FileError::io("find", &path, error))?;
            retry_on_intr(|| flock(&file, FlockOperation::LockShared))
                .map_err(|error| FileError::io("lock", &path, error.into()))?;
            Ok(file)
        };
        let _manifests = checkpoint.manifests().map(hold).collect::<Result<_, FileError>>()?;
        Ok(Self { _manifests })
    }
}

/// Whether somebody holds a manifest. `false` if it is gone.
pub(crate) fn is_held(directory: &Directory, id: ManifestId) -> Result<bool, FileError> {
    let path = directory.manifest(id);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(FileError::io("open", &path, error)),
    };
    match retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(FileError::io("lock", &path, error.into())),
    }
}

//! One lock per store, held for moments: by garbage collection alone, or by any number of others.

use super::directory::{Directory, FileError};
use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;
use std::fs::File;

/// The lock of a store. Dropping it, or dying, lets go of it.
pub(crate) struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Nothing is collected while this is held.
    pub(crate) fn shared(directory: &Directory) -> Result<Self, FileError> {
        Self::take(directory, FlockOperation::LockShared)
    }

    /// Nobody else begins, pins or publishes anything while this is held.
    pub(crate) fn exclusive(directory: &Directory) -> Result<Self, FileError> {
        Self::take(directory, FlockOperation::LockExclusive)
    }

    fn take(directory: &Directory, how: FlockOperation) -> Result<Self, FileError> {
        let path = directory.lock();
        let lock = || -> std::io::Result<File> {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            retry_on_intr(|| flock(&file, how))?;
            Ok(file)
        };
        lock().map(|file| Self { _file: file }).map_err(|error| FileError::io("lock", &path, error))
    }
}

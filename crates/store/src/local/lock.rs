//! One lock per store, held for moments: by garbage collection alone, or by any number of others.

use super::directory::{Directory, FileError};
use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;
use std::fs::File;
use std::io;
use std::path::Path;

/// The lock of a store. Dropping it, or dying, lets go of it.
pub(crate) struct StoreLock {
    _file: File,
}

impl StoreLock {
    /// Nothing is collected while this is held.
    pub(crate) fn shared(directory: &Directory) -> Result<Self, FileError> {
        Self::take(&directory.lock(), FlockOperation::LockShared)
    }

    /// Nobody else begins, pins or publishes anything while this is held: so it is held to look and to delete, never to
    /// read or write what takes its time.
    pub(crate) fn exclusive(directory: &Directory) -> Result<Self, FileError> {
        Self::take(&directory.lock(), FlockOperation::LockExclusive)
    }

    /// One garbage collection at a time. Nobody else waits for this.
    pub(crate) fn collector(directory: &Directory) -> Result<Self, FileError> {
        Self::take(&directory.mark(), FlockOperation::LockExclusive)
    }

    fn take(path: &Path, how: FlockOperation) -> Result<Self, FileError> {
        let lock = || -> io::Result<File> {
            // Locking needs no right to write, which a reader may not have.
            let file = match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    File::options().read(true).write(true).create(true).truncate(false).open(path)?
                }
                opened => opened?,
            };
            retry_on_intr(|| flock(&file, how))?;
            Ok(file)
        };
        lock().map(|file| Self { _file: file }).map_err(|error| FileError::io("lock", path, error))
    }
}

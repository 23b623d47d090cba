//! What a writer works on, so that nothing of it is collected, and so that what it leaves when it dies is.
//!
//! A lease is a directory of its own under `writers/`: a file `lease`, which its owner keeps locked, and files that are
//! not finished. The lease lists what its owner relies on (*pins*): packs whose chunks it will not write again, and
//! manifests that it reads. Two rules make garbage collection safe beside running writers:
//!
//! - a pin is added, and a file gets its name, under the store's shared lock, after seeing that what is pinned is there;
//! - a file is deleted under the exclusive lock, by somebody who has read every pin of every living owner.

use super::directory::{Directory, FileError, list, random_name, read};
use super::files;
use super::lock::StoreLock;
use crate::id::{ID_BYTES, ManifestId, PackId};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

const LEASE: &str = "lease";

/// A process's claim on parts of a store. Ends when it is dropped, or with the process.
///
/// A child of `fork(2)` that keeps the descriptor keeps the claim alive, which is safe and costs space only.
pub(crate) struct Lease {
    directory: Directory,
    /// Its own directory.
    own: PathBuf,
    file: File,
    pinned: Mutex<HashSet<[u8; ID_BYTES]>>,
    next_temporary: AtomicU64,
    /// Whose it is.
    process: u32,
}

impl Lease {
    /// Takes a new one.
    pub(crate) fn take(directory: &Directory) -> Result<Self, FileError> {
        let _lock = StoreLock::shared(directory)?;
        Self::take_locked(directory)
    }

    /// Takes a new one while the caller holds the store's lock, either way.
    pub(crate) fn take_locked(directory: &Directory) -> Result<Self, FileError> {
        let own = directory
            .writers()
            .join(random_name().map_err(|error| FileError::io("name a writer of", directory.root(), error))?);
        let path = own.join(LEASE);
        let create = || -> std::io::Result<File> {
            files::make_directory(&own)?;
            let file = File::options().append(true).create_new(true).open(&path)?;
            retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
            Ok(file)
        };
        let file = create().map_err(|error| FileError::io("create", &path, error))?;
        Ok(Self {
            directory: directory.clone(),
            own,
            file,
            pinned: Mutex::default(),
            next_temporary: AtomicU64::new(0),
            process: std::process::id(),
        })
    }

    /// Pins a pack. `false` if it is gone.
    pub(crate) fn pin_pack(&self, id: PackId) -> Result<bool, FileError> {
        self.pin_existing(id.0, &self.directory.pack(id))
    }

    /// Pins a manifest, and with it every chunk it names. `false` if it is gone.
    pub(crate) fn pin_manifest(&self, id: ManifestId) -> Result<bool, FileError> {
        self.pin_existing(id.0, &self.directory.manifest(id))
    }

    fn pin_existing(&self, id: [u8; ID_BYTES], path: &Path) -> Result<bool, FileError> {
        if self.is_pinned(id) {
            return Ok(true);
        }
        let _lock = StoreLock::shared(&self.directory)?;
        self.pin_existing_locked(id, path)
    }

    /// Pins a pack while the caller holds the store's lock. `false` if it is gone.
    pub(crate) fn pin_pack_locked(&self, id: PackId) -> Result<bool, FileError> {
        self.pin_existing_locked(id.0, &self.directory.pack(id))
    }

    fn pin_existing_locked(&self, id: [u8; ID_BYTES], path: &Path) -> Result<bool, FileError> {
        match path.try_exists() {
            Ok(true) => self.pin(id).map(|()| true),
            Ok(false) => Ok(false),
            Err(error) => Err(FileError::io("look for", path, error)),
        }
    }

    fn is_pinned(&self, id: [u8; ID_BYTES]) -> bool {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    fn pin(&self, id: [u8; ID_BYTES]) -> Result<(), FileError> {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if !pinned.contains(&id) {
            (&self.file).write_all(&id).map_err(|error| FileError::io("write", &self.own.join(LEASE), error))?;
            pinned.insert(id);
        }
        Ok(())
    }

    /// Puts a pack into the store. It is durable, but for its name.
    pub(crate) fn place_pack(&self, id: PackId, bytes: &[u8]) -> Result<(), FileError> {
        self.place(id.0, &self.directory.pack(id), bytes)
    }

    /// Puts a manifest into the store. It is durable, but for its name.
    pub(crate) fn place_manifest(&self, id: ManifestId, bytes: &[u8]) -> Result<(), FileError> {
        self.place(id.0, &self.directory.manifest(id), bytes)
    }

    /// Replaces a file of the same name, whose content is the same or damaged; but leaves one that is as it should be,
    /// because readers hold it.
    fn place(&self, id: [u8; ID_BYTES], path: &Path, bytes: &[u8]) -> Result<(), FileError> {
        let is_there = || fs::read(path).is_ok_and(|there| there == bytes);
        if self.pin_existing(id, path)? && is_there() {
            return Ok(());
        }
        let temporary = self.temporary();
        files::write_durably(&temporary, bytes)?;
        let _lock = StoreLock::shared(&self.directory)?;
        self.pin(id)?;
        files::rename(&temporary, path)
    }

    /// Puts a file in place of one that nobody relies on, or of none. It gets its directory, if that is the first.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
        let temporary = self.temporary();
        files::write_durably(&temporary, bytes)?;
        path.parent().map_or(Ok(()), files::make_directories)?;
        files::rename(&temporary, path)
    }

    /// Puts a checkpoint into the store. `false` if there is one of that name. It is durable when this returns, and not
    /// there at all if this fails.
    pub(crate) fn place_checkpoint(&self, name: &str, bytes: &[u8]) -> Result<bool, FileError> {
        let (temporary, path) = (self.temporary(), self.directory.checkpoint(name));
        files::write_durably(&temporary, bytes)?;
        let _lock = StoreLock::shared(&self.directory)?;
        if !files::rename_new(&temporary, &path)? {
            return Ok(false);
        }
        files::sync_directory(&self.directory.checkpoints()).map(|()| true).inspect_err(|_| {
            // Nobody was told that it is there. If this fails, too, then the disk is gone.
            let _ = files::remove(&path);
        })
    }

    fn temporary(&self) -> PathBuf {
        self.own.join(self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A child of fork(2) ends, and its parent still works.
        if self.process == std::process::id() {
            // What cannot be removed is garbage, and is collected as such.
            let _ = fs::remove_dir_all(&self.own);
        }
    }
}

/// What the living owners of leases rely on.
#[derive(Default)]
pub(crate) struct Pins {
    ids: HashSet<[u8; ID_BYTES]>,
    /// The directories that dead owners left, if this was read under the exclusive lock.
    pub(crate) dead: Vec<PathBuf>,
}

impl Pins {
    /// Reads them all. Complete only while the caller holds the exclusive lock.
    pub(crate) fn read(directory: &Directory) -> Result<Self, FileError> {
        let mut pins = Self::default();
        let writers = directory.writers();
        for name in list(&writers)? {
            let own = writers.join(name);
            match living(&own.join(LEASE))? {
                Some(bytes) => pins.ids.extend(bytes.as_chunks().0),
                None => pins.dead.push(own),
            }
        }
        Ok(pins)
    }

    pub(crate) fn has_pack(&self, id: PackId) -> bool {
        self.ids.contains(&id.0)
    }

    pub(crate) fn has_manifest(&self, id: ManifestId) -> bool {
        self.ids.contains(&id.0)
    }
}

/// The content of a lease whose owner lives.
///
/// One without a file is dead: it gets its file under the shared lock that its owner takes, and the caller holds the
/// exclusive one.
fn living(lease: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(lease) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::io("open", lease, error)),
    };
    match retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => match read(lease) {
            Ok(bytes) => Ok(Some(bytes)),
            // It ended just now.
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        },
        Err(error) => Err(FileError::io("lock", lease, error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ends_takes_nothing_from_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        let directory = Directory::create(directory.path()).unwrap();
        let mut lease = Lease::take(&directory).unwrap();
        let own = lease.own.clone();
        lease.process += 1; // As it is in a process that was forked.
        drop(lease);
        assert!(own.join(LEASE).exists());
        drop(Lease::take(&directory).unwrap());
        assert_eq!(list(&directory.writers()).unwrap().len(), 1, "its owner's end is the end of it");
    }
}

//! Where the files of a store lie, and how one gets there: whole and durable, or not at all.

use super::files;
use crate::format::{FORMAT, FileKind, FormatError, HEADER_BYTES, check_name, seal, unseal};
use crate::id::{ManifestId, PackId};
use rustix::io::retry_on_intr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Why a file of a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel says no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was wanted.
        action: &'static str,
        /// Of what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A later build wrote it.
    #[error("{path} is of store format {found}, and this build reads up to {FORMAT}: a newer pando is needed")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is damaged.
    #[error("{path} cannot be used")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
}

impl FileError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn format(path: &Path, source: FormatError) -> Self {
        match source {
            FormatError::Newer(found) => Self::Newer { path: path.to_owned(), found },
            source => Self::Damaged { path: path.to_owned(), source },
        }
    }

    fn is_refused(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether there is no such file.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A store's directory.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Makes a store of a directory, which may already be one. Several processes may do this at once.
    pub(crate) fn create(root: &Path) -> Result<Self, FileError> {
        let directory = Self { root: root.to_owned() };
        for path in
            [root.to_owned(), directory.packs(), directory.manifests(), directory.checkpoints(), directory.writers()]
        {
            files::make_directories(&path)?;
        }
        let mark = directory.mark();
        let is_there = mark.try_exists().map_err(|error| FileError::io("look for", &mark, error))?;
        if !is_there {
            // Who finds the mark relies on the rest.
            if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                // Who may not read it has made nothing in it.
                files::sync_directory(parent).or_else(|error| if error.is_refused() { Ok(()) } else { Err(error) })?;
            }
            files::sync_directory(root)?;
            let name = random_name().map_err(|error| FileError::io("name a part of", root, error))?;
            let temporary = root.join(format!(".mark-{name}"));
            files::write_durably(&temporary, &seal(FileKind::Store, vec![0; HEADER_BYTES]))?;
            files::rename(&temporary, &mark)?;
        }
        // Also for who was just killed here.
        files::sync_directory(root)?;
        Self::open(root)
    }

    /// A directory that is a store, of a format that is known here.
    pub(crate) fn open(root: &Path) -> Result<Self, FileError> {
        let directory = Self { root: root.to_owned() };
        let mark = directory.mark();
        let bytes = read(&mark)?;
        let payload = unseal(FileKind::Store, &bytes).map_err(|why| FileError::format(&mark, why))?;
        match payload {
            [] => Ok(directory),
            _ => Err(FileError::format(&mark, FormatError::Length)),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn mark(&self) -> PathBuf {
        self.root.join("store")
    }

    pub(crate) fn packs(&self) -> PathBuf {
        self.root.join("packs")
    }

    pub(crate) fn pack(&self, id: PackId) -> PathBuf {
        self.root.join(format!("packs/{id}"))
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    pub(crate) fn manifest(&self, id: ManifestId) -> PathBuf {
        self.root.join(format!("manifests/{id}"))
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// `name` has been checked.
    pub(crate) fn checkpoint(&self, name: &str) -> PathBuf {
        debug_assert!(check_name(name).is_ok());
        self.root.join("checkpoints").join(name)
    }

    pub(crate) fn working_set(&self, layer: ManifestId) -> PathBuf {
        self.root.join(format!("working-sets/{layer}"))
    }

    /// The layers that have a working set. The directory is made for the first one.
    pub(crate) fn list_working_sets(&self) -> Result<Vec<ManifestId>, FileError> {
        match list(&self.root.join("working-sets")) {
            Ok(names) => Ok(names.iter().filter_map(|name| name.parse().ok()).collect()),
            Err(error) if error.is_absent() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn writers(&self) -> PathBuf {
        self.root.join("writers")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn turn(&self) -> PathBuf {
        self.root.join("turn")
    }

    /// The packs that are there, sorted. Files of other names are none of ours.
    pub(crate) fn list_packs(&self) -> Result<Vec<PackId>, FileError> {
        Ok(list(&self.packs())?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The manifests that are there, sorted.
    pub(crate) fn list_manifests(&self) -> Result<Vec<ManifestId>, FileError> {
        Ok(list(&self.manifests())?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The names of the checkpoints, sorted.
    pub(crate) fn list_checkpoints(&self) -> Result<Vec<String>, FileError> {
        let mut names = list(&self.checkpoints())?;
        names.retain(|name| check_name(name).is_ok());
        Ok(names)
    }
}

/// The names in a directory, sorted; those that are no UTF-8 are none of ours.
pub(crate) fn list(path: &Path) -> Result<Vec<String>, FileError> {
    let failed = |error| FileError::io("list", path, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// All of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|error| FileError::io("read", path, error))
}

/// The first `len` bytes of a file, or fewer if it became shorter.
pub(crate) fn read_start(file: &File, len: usize) -> io::Result<Vec<u8>> {
    let mut start = vec![0; len];
    let mut at = 0;
    while at < len {
        match file.read_at(&mut start[at..], at as u64) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    start.truncate(at);
    Ok(start)
}

/// A name that nobody else has.
pub(crate) fn random_name() -> io::Result<String> {
    let mut bytes = [0; 16];
    let len = retry_on_intr(|| rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()))?;
    if len != bytes.len() {
        return Err(io::Error::other("the kernel has no random bytes"));
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn many_may_create_one_store_at_once_and_it_is_nobody_elses_business() {
        for _ in 0..20 {
            let parent = tempfile::tempdir().unwrap();
            let root = parent.path().join("a/store");
            std::thread::scope(|scope| {
                (0..8).for_each(|_| drop(scope.spawn(|| Directory::create(&root).unwrap())));
            });
            let directory = Directory::open(&root).unwrap();
            for path in [root.clone(), directory.packs(), directory.manifests(), directory.checkpoints()] {
                assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
            }
            assert_eq!(list(&root).unwrap(), ["checkpoints", "manifests", "packs", "store", "writers"]);
        }
    }
}

//! Where the files of a store lie, and how one gets there: whole and durable, or not at all.

use crate::format::{FORMAT, FileKind, FormatError, HEADER_BYTES, check_name, seal, unseal};
use crate::id::{ManifestId, PackId};
use std::fs::{self, File};
use std::io;
use std::io::Write;
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
    /// Makes a store of a directory, which may already be one.
    pub(crate) fn create(root: &Path) -> Result<Self, FileError> {
        let directory = Self { root: root.to_owned() };
        for path in
            [root.to_owned(), directory.packs(), directory.manifests(), directory.checkpoints(), directory.writers()]
        {
            fs::create_dir_all(&path).map_err(|error| FileError::io("create", &path, error))?;
        }
        let mark = directory.mark();
        let is_there = mark.try_exists().map_err(|error| FileError::io("look for", &mark, error))?;
        if !is_there {
            // Several processes may do this at once: each renames the same bytes to the same place.
            let temporary = root.join(format!(".mark-{}", std::process::id()));
            write_durably(&temporary, &seal(FileKind::Store, vec![0; HEADER_BYTES]))?;
            fs::rename(&temporary, &mark).map_err(|error| FileError::io("create", &mark, error))?;
            sync_directory(root)?;
        }
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

    pub(crate) fn writers(&self) -> PathBuf {
        self.root.join("writers")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
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

/// Writes a new file and makes its content durable; its name is not, before [`sync_directory`].
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(path); // What is left is garbage either way.
        FileError::io("write", path, error)
    })
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(|error| FileError::io("make durable", path, error))
}

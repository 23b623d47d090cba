//! The emulated host's disk: an ext4 file system in a sparse file.

use crate::tools::{MKFS, ToolError};
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its file cannot be made.
    #[error("cannot create {path}")]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be given a file system.
    #[error("cannot make a file system in {path}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ToolError,
    },
}

/// Makes the disk at `path` unless it is there. It appears when it is complete.
pub(super) fn ensure(path: &Path, bytes: u64) -> Result<(), DiskError> {
    if path.exists() {
        return Ok(());
    }
    let failed = |source| DiskError::Create { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.as_file().set_len(bytes).map_err(failed)?;
    let options = ["-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"].map(AsRef::as_ref);
    MKFS.output(options.into_iter().chain([file.path()]))
        .map_err(|source| DiskError::Format { path: path.to_owned(), source })?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_disk_is_sparse_and_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        ensure(&path, 64 << 30).unwrap();
        let made = path.metadata().unwrap();
        assert_eq!(made.len(), 64 << 30);
        assert!(made.blocks() * 512 < 256 << 20, "{} blocks", made.blocks());
        ensure(&path, 1 << 30).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 64 << 30);
    }

    #[test]
    fn a_disk_too_small_for_a_file_system_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = ensure(&folder.path().join("disk"), 4096).unwrap_err();
        assert!(matches!(error, DiskError::Format { .. }));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}

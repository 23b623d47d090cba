//! The files that a disk is made of. The daemon creates and opens them; a disk only ever gets them open.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// The name that [`create_files`] gives to a layer's blocks.
pub const DATA_FILE: &str = "data";
/// The name that [`create_files`] gives to a layer's map journal.
pub const JOURNAL_FILE: &str = "map";

/// Every file of one disk. Only positioned reads and writes are used, so a shared file offset does no harm.
#[derive(Debug)]
pub struct Files {
    /// The base image, open for reading.
    pub base: File,
    /// The data files of the inherited layers, oldest first, open for reading.
    pub inherited: Vec<File>,
    /// The own layer's data file, open for reading and writing.
    pub data: File,
    /// The own layer's map journal, open for reading and writing.
    pub journal: File,
}

/// The two files of one layer.
#[derive(Debug)]
pub struct LayerFiles {
    /// The blocks.
    pub data: File,
    /// The map journal.
    pub journal: File,
}

/// Creates the two empty files of a new layer in `dir`, and makes their names durable.
///
/// That `dir` itself has a durable name is the caller's to see to.
///
/// # Errors
///
/// Fails where one of the files exists already, or cannot be created or synced.
pub fn create_files(dir: &Path) -> io::Result<LayerFiles> {
    let create = |name: &str| OpenOptions::new().read(true).write(true).create_new(true).open(dir.join(name));
    let files = LayerFiles { data: create(DATA_FILE)?, journal: create(JOURNAL_FILE)? };
    File::open(dir)?.sync_all()?;
    Ok(files)
}

/// Makes what was written to `file` durable, whoever wrote it.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    #[cfg(test)]
    crate::tests::power::on_sync(file)?;
    file.sync_data()
}

//! The files that a disk is made of. The daemon creates and opens them; a disk only ever gets them open.

use std::fs::File;
use std::io;

/// What the file of a layer's blocks is called.
pub const DATA_FILE: &str = "data";
/// What the file of a layer's map journal is called.
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

/// Makes what was written to `file` durable, whoever wrote it.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    #[cfg(test)]
    crate::tests::power::on_sync(file)?;
    file.sync_data()
}

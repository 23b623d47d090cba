//! Everything that changes a store's directory, each in one function: the tests record these, to tell what a power cut
//! between any two of them leaves.

use super::directory::FileError;
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Memory of guests is nobody else's business.
const MODE: u32 = 0o700;

/// Makes a directory that may be there already, and those above it.
pub(crate) fn make_directories(path: &Path) -> Result<(), FileError> {
    let make = || DirBuilder::new().mode(MODE).recursive(true).create(path);
    change(Change::MakeDirectory(path), make).map_err(|error| FileError::io("create", path, error))
}

/// Makes a directory that is not there.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    change(Change::MakeDirectory(path), || DirBuilder::new().mode(MODE).create(path))
}

/// Writes a new file and makes its content durable; its name is not, before [`sync_directory`].
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let write = || {
        let mut file = File::create(path)?;
        change(Change::Write(path, bytes), || file.write_all(bytes))?;
        change(Change::SyncFile(path), || file.sync_all())
    };
    write().map_err(|error| {
        let _ = fs::remove_file(path); // What is left is garbage either way.
        FileError::io("write", path, error)
    })
}

/// Gives a file another name, in place of what had that.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    change(Change::Rename(from, to), || fs::rename(from, to)).map_err(|error| FileError::io("create", to, error))
}

/// Gives a file another name. `false` if that is taken.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool, FileError> {
    let cwd = rustix::fs::CWD;
    let rename = || Ok(rustix::fs::renameat_with(cwd, from, cwd, to, RenameFlags::NOREPLACE)?);
    match change(Change::Rename(from, to), rename) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => Ok(false),
        Err(error) => Err(FileError::io("create", to, error)),
    }
}

/// Removes a file. `false` if there is none.
pub(crate) fn remove(path: &Path) -> Result<bool, FileError> {
    match change(Change::Remove(path), || fs::remove_file(path)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::io("remove", path, error)),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    change(Change::SyncDirectory(path), || File::open(path)?.sync_all())
        .map_err(|error| FileError::io("make durable", path, error))
}

/// What is about to be done.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "the tests look into it"))]
pub(crate) enum Change<'p> {
    MakeDirectory(&'p Path),
    Write(&'p Path, &'p [u8]),
    SyncFile(&'p Path),
    Rename(&'p Path, &'p Path),
    Remove(&'p Path),
    SyncDirectory(&'p Path),
}

#[cfg(not(test))]
fn change(_: Change<'_>, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    make()
}

#[cfg(test)]
fn change(what: Change<'_>, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    crate::tests::power::on(what, make)
}

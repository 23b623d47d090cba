//! Importing a root file system: a tar stream or a raw ext4 image becomes a root disk image.
//!
//! Nothing from the archive is ever created on the host: its tree exists in memory, its contents in one spool file, and
//! both are written into an ext4 image as data. So no root is needed, and no path can escape.

mod archive; // a tar stream becomes a tree and a spool
mod image; // tree and spool become ext4
mod input; // the bytes: decompressed, counted, with their failures told apart
mod pax; // what tar says in extended headers
mod raw; // an ext4 image is taken as it is
mod spool; // what files contain, on disk
mod store;
mod tree; // names and nodes, in memory // images by digest

use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use input::{Input, Kind};
pub use tree::TreeError;

/// A root disk image in the image directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedImage {
    /// The image's name: the BLAKE3 digest, in hexadecimal, of its length (8 bytes, little-endian) and then, in order, of
    /// each 4 KiB block that is not all zeroes: its index (8 bytes, little-endian) and its bytes.
    ///
    /// Zeroes are left out because an image is mostly holes, and reading those takes longer than all the rest.
    pub digest: String,
    /// Where it is: `<digest>.ext4` in the directory given.
    pub path: PathBuf,
    /// Its length, which is also the size of the file system in it. Most of it is holes.
    pub size_bytes: u64,
}

/// Why an import failed. Nothing is left in the image directory then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is nothing in it.
    #[error("the image is empty: it holds no file, directory or file system")]
    Empty,
    /// It is something else.
    #[error("the image is neither a tar archive nor an ext4 file system, plain or compressed with gzip or zstd")]
    NotAnImage,
    /// It ends too early.
    #[error("the image is truncated: it ends before it should")]
    Truncated,
    /// It began well and then made no sense.
    #[error("the image is damaged")]
    Damaged {
        /// The cause.
        source: io::Error,
    },
    /// An extended header of the archive is larger than any real one.
    #[error("the archive has a header of more than {} KiB", input::MAX_HEADER_BYTES >> 10)]
    HeaderTooLarge,
    /// The archive uses a feature that is not implemented.
    #[error("{path} is stored as {what}, which cannot be imported")]
    Unsupported {
        /// Which entry.
        path: String,
        /// What it is.
        what: String,
    },
    /// An entry of the archive cannot be a file in an ext4 file system.
    #[error("cannot import {path}")]
    Entry {
        /// Which entry.
        path: String,
        /// The cause.
        source: TreeError,
    },
    /// The files of the archive are larger than one image may hold.
    #[error("the files in the image have more than {} GiB", spool::MAX_CONTENT_BYTES >> 30)]
    TooLarge,
    /// The image could not be read from where it comes.
    #[error("cannot read the image")]
    Read {
        /// The cause.
        source: io::Error,
    },
    /// The host's file system is full.
    #[error("no space for the image on the host")]
    NoSpace {
        /// The cause.
        source: io::Error,
    },
    /// The image directory could not be written to.
    #[error("cannot write {path}")]
    Write {
        /// Which file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file system could not be laid out.
    #[error("cannot make an ext4 file system of the image")]
    Layout {
        /// The cause.
        source: mkext4::Error,
    },
}

/// Reads a root file system from `input` to its end, and leaves it in `out_dir` as an image named by its digest. An image
/// that is there already stays, so importing the same input twice gives the same file.
///
/// `input` is a tar archive or a raw ext4 file system, either plain or compressed with gzip or zstd. Of a tar archive,
/// directories, files, sparse files, links, devices, pipes, modes, owners, modification times and extended attributes
/// (other than ACLs) are kept; a later entry replaces an earlier one of the same name; absolute names and `..` are taken
/// relative to the archive's root; a directory without an entry of its own belongs to root. Whiteouts of OCI layers are
/// ordinary files here. The file system has 8 GiB more room than its contents need. `/dev`, `/etc`, `/proc`, `/run`,
/// `/sys` and `/tmp` are added where they are missing, and `/lost+found` is the file system's own.
///
/// `progress` is told now and then how many bytes of `input` were read.
///
/// # Errors
///
/// See [`ImportError`].
pub fn import(input: impl Read, out_dir: &Path, mut progress: impl FnMut(u64)) -> Result<ImportedImage, ImportError> {
    let mut input = Input::open(input, &mut progress)?;
    let mut image = store::NewImage::create(out_dir)?;
    match input.kind() {
        Kind::Ext4 { len_bytes } => raw::copy(&mut input, len_bytes, &mut image)?,
        Kind::Tar => {
            let mut spool = spool::Spool::create(out_dir)?;
            let (tree, uuid) = archive::read(&mut input, &mut spool)?;
            image::write(&tree, &spool, uuid, &mut image)?;
        }
    }
    image.keep()
}

/// A failure of the host's, with a full disk told apart.
fn write_error(path: &Path, source: io::Error) -> ImportError {
    let is_full = matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge);
    if is_full { ImportError::NoSpace { source } } else { ImportError::Write { path: path.to_owned(), source } }
}

#[cfg(test)]
mod tests;

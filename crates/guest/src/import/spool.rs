//! What the files of an archive contain, set aside until the layout is known: ext4 wants every size first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mkext4::SparseSeg;

use crate::import::store::{BLOCK_BYTES, is_zero, unused_path};
use crate::import::{ImportError, write_error};

/// The most that all files of one archive may have together, holes included: 1 TiB.
pub(super) const MAX_CONTENT_BYTES: u64 = 1 << 40;

/// A nameless file of contents, one behind the other. It goes away with its descriptor.
pub(super) struct Spool {
    file: File,
    path: PathBuf,
    end: u64,
    /// All lengths so far, holes included.
    content_bytes: u64,
    buffer: Vec<u8>,
}

/// Where in the spool a file's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    /// Where its data begins, in bytes.
    pub(super) start: u64,
    /// Its length with holes, in bytes.
    pub(super) len_bytes: u64,
    /// For a sparse file, data and holes in turn; only the data is in the spool.
    pub(super) segments: Option<Vec<SparseSeg>>,
}

impl Content {
    /// How many bytes of it are data.
    pub(super) fn data_bytes(&self) -> u64 {
        let Some(segments) = &self.segments else { return self.len_bytes };
        segments.iter().map(|segment| if let SparseSeg::Data(bytes) = segment { *bytes } else { 0 }).sum()
    }
}

impl Spool {
    pub(super) fn create(out_dir: &Path) -> Result<Self, ImportError> {
        let path = unused_path(out_dir, "spool");
        let create = || {
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        };
        let file = create().map_err(|source| write_error(&path, source))?;
        Ok(Self { file, path, end: 0, content_bytes: 0, buffer: vec![0; 1 << 20] })
    }

    /// Takes `len_bytes` from `input`. The inner error is the input's.
    pub(super) fn take(
        &mut self,
        input: &mut impl Read,
        len_bytes: u64,
    ) -> Result<Result<Content, io::Error>, ImportError> {
        self.count(len_bytes)?;
        let start = self.end;
        let mut left = len_bytes;
        while left != 0 {
            let most = left.min(self.buffer.len() as u64) as usize;
            let count = match input.read(&mut self.buffer[..most]) {
                Ok(0) => return Ok(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Err(error)),
            };
            self.file.write_all(&self.buffer[..count]).map_err(|source| write_error(&self.path, source))?;
            self.end += count as u64;
            left -= count as u64;
        }
        Ok(Ok(Content { start, len_bytes, segments: None }))
    }

    /// Takes a sparse file of `len_bytes` from `input`, which gives its holes as zeroes; whole blocks of zeroes become
    /// holes. The inner error is the input's.
    pub(super) fn take_sparse(
        &mut self,
        input: &mut impl Read,
        len_bytes: u64,
    ) -> Result<Result<Content, io::Error>, ImportError> {
        self.count(len_bytes)?;
        let start = self.end;
        let mut segments = Vec::new();
        let mut left = len_bytes;
        let mut block = [0; BLOCK_BYTES];
        while left != 0 {
            let count = left.min(BLOCK_BYTES as u64) as usize;
            if let Err(error) = input.read_exact(&mut block[..count]) {
                return Ok(Err(error));
            }
            if !is_zero(&block[..count]) {
                self.file.write_all(&block[..count]).map_err(|source| write_error(&self.path, source))?;
                self.end += count as u64;
                extend(&mut segments, SparseSeg::Data(count as u64));
            } else {
                extend(&mut segments, SparseSeg::Hole(count as u64));
            }
            left -= count as u64;
        }
        let segments = (!segments.is_empty()).then_some(segments);
        Ok(Ok(Content { start, len_bytes, segments }))
    }

    /// The data of `content`, in order.
    pub(super) fn read(&self, content: &Content) -> impl Read {
        SpoolReader { file: &self.file, at: content.start, end: content.start + content.data_bytes() }
    }

    fn count(&mut self, len_bytes: u64) -> Result<(), ImportError> {
        let total = self.content_bytes.checked_add(len_bytes).filter(|total| *total <= MAX_CONTENT_BYTES);
        self.content_bytes = total.ok_or(ImportError::TooLarge)?;
        Ok(())
    }
}

/// Adds `more` to the last segment where it is of the same kind.
fn extend(segments: &mut Vec<SparseSeg>, more: SparseSeg) {
    match (segments.last_mut(), more) {
        (Some(SparseSeg::Data(bytes)), SparseSeg::Data(more)) => *bytes += more,
        (Some(SparseSeg::Hole(bytes)), SparseSeg::Hole(more)) => *bytes += more,
        _ => segments.push(more),
    }
}

struct SpoolReader<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for SpoolReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = (self.end - self.at).min(buffer.len() as u64) as usize;
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

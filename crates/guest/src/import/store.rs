//! Images by digest: written under another name, made durable, and then renamed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::import::{ImportError, ImportedImage, write_error};

/// The unit of holes and of digests.
pub(super) const BLOCK_BYTES: usize = 4096;

/// An image being written. Where it is not kept, it is removed.
pub(super) struct NewImage {
    file: File,
    path: PathBuf,
    out_dir: PathBuf,
}

impl NewImage {
    pub(super) fn create(out_dir: &Path) -> Result<Self, ImportError> {
        let path = unused_path(out_dir, "partial");
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| write_error(&path, source))?;
        Ok(Self { file, path, out_dir: out_dir.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the image's length; what is new reads as zeroes.
    pub(super) fn set_len(&self, len_bytes: u64) -> Result<(), ImportError> {
        self.file.set_len(len_bytes).map_err(|source| write_error(&self.path, source))
    }

    /// Writes `bytes` at `offset`, a multiple of a block, leaving out blocks of zeroes. Nothing was written there before.
    pub(super) fn write_sparse(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        for run in bytes.chunks(BLOCK_BYTES).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let len: usize = run.iter().map(|block| block.len()).sum();
            if !is_zero(run[0]) {
                self.file.write_all_at(&bytes[at..at + len], offset + at as u64)?;
            }
            at += len;
        }
        Ok(())
    }

    /// Makes the image durable and gives it its name, unless there is one of that name already.
    pub(super) fn keep(self) -> Result<ImportedImage, ImportError> {
        let (digest, size_bytes) = digest(&self.file).map_err(|source| write_error(&self.path, source))?;
        let path = self.out_dir.join(format!("{digest}.ext4"));
        let is_there = fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == size_bytes);
        if !is_there {
            self.file.sync_all().map_err(|source| write_error(&self.path, source))?;
            fs::rename(&self.path, &path).map_err(|source| write_error(&path, source))?;
            let synced = File::open(&self.out_dir).and_then(|directory| directory.sync_all());
            synced.map_err(|source| write_error(&self.out_dir, source))?;
        }
        Ok(ImportedImage { digest, path, size_bytes })
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        // After the rename there is nothing of this name, and where removing fails, nobody can do better.
        let _ = fs::remove_file(&self.path);
    }
}

/// A name in `out_dir` that nobody else in this or another process uses. It begins with a dot: it is nobody's business.
pub(super) fn unused_path(out_dir: &Path, suffix: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    out_dir.join(format!(".import-{}-{now}-{count}.{suffix}", process::id()))
}

/// The digest that [`ImportedImage::digest`] describes, and the file's length.
fn digest(file: &File) -> io::Result<(String, u64)> {
    let len_bytes = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&len_bytes.to_le_bytes());
    let mut buffer = vec![0; 256 * BLOCK_BYTES];
    let mut at = 0;
    while at < len_bytes {
        // Where the file system knows no holes, this gives `at` itself.
        let data_at = match seek(file, SeekFrom::Data(at)) {
            Ok(data_at) => data_at,
            Err(Errno::NXIO) => break, // Nothing but a hole is left.
            Err(error) => return Err(error.into()),
        };
        at = data_at - data_at % BLOCK_BYTES as u64;
        let count = (len_bytes - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..count], at)?;
        for block in buffer[..count].chunks(BLOCK_BYTES) {
            if !is_zero(block) {
                hasher.update(&(at / BLOCK_BYTES as u64).to_le_bytes());
                hasher.update(block);
            }
            at += block.len() as u64;
        }
    }
    Ok((hasher.finalize().to_hex().to_string(), len_bytes))
}

/// Whether a block, or what there is of one, is all zeroes.
pub(super) fn is_zero(block: &[u8]) -> bool {
    static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    block == &ZEROES[..block.len()]
}

//! Where the sectors are.

use std::io;

/// What a [`Block`](super::Block) reads and writes. Ranges are in bytes, and within `len_bytes`.
pub trait Backing: Send {
    /// The size of the disk. It does not change.
    fn len_bytes(&self) -> u64;

    /// Fills `buf` with what is at `offset`.
    ///
    /// # Errors
    ///
    /// It cannot be read; what is in `buf` then is of no account.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `buf` at `offset`.
    ///
    /// # Errors
    ///
    /// It cannot be written; some of it may have been.
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes what was written before last through a crash of the host.
    ///
    /// # Errors
    ///
    /// It cannot be promised to last.
    fn flush(&mut self) -> io::Result<()>;
}

impl Backing for pando_disk::Disk {
    fn len_bytes(&self) -> u64 {
        pando_disk::Disk::len_bytes(self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        pando_disk::Disk::read_at(self, offset, buf).map_err(io::Error::other)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        pando_disk::Disk::write_at(self, offset, buf).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        pando_disk::Disk::flush(self).map_err(io::Error::other)
    }
}

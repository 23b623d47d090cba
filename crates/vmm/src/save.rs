//! A seed writes what it is into a socket. A process of its own does it, forked from the seed: so it has the memory as it
//! is, at no cost, and takes its time.

use crate::complaints::chain;
use crate::fork::Inherited;
use crate::image::{DiskImage, Image, PAGE};
use crate::machine::EncodeError;
use pando_disk::Sealed;
use pando_sys::SysError;
use pando_wire::saved::{LayerKind, MAX_PAGES_AT_ONCE, PAGE_BYTES, Writer};
use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// A page of zeroes: what need not be written.
const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Why a seed is not saved. It stays as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    /// Not a socket, and a file for each layer.
    #[error("{got} descriptors came with the request, where a socket and {layers} files of layers belong")]
    Descriptors { got: usize, layers: usize },
    /// It cannot be: a child of a fork has a sealed disk.
    #[error("the disk is not sealed")]
    NotSealed,
    /// The machine's state.
    #[error("cannot encode the state of the machine")]
    Encode(#[from] EncodeError),
    /// `fork(2)`.
    #[error("the host has no room for another process")]
    Fork(#[source] SysError),
}

impl Inherited {
    /// Has a process write all of this into the first of `descriptors`; the others are the files of the disk's layers.
    pub(crate) fn save(&self, descriptors: Vec<OwnedFd>) -> Result<(), SaveError> {
        let DiskImage::Sealed(disk) = &self.image.disk else { return Err(SaveError::NotSealed) };
        if descriptors.len() != 1 + disk.layers() {
            return Err(SaveError::Descriptors { got: descriptors.len(), layers: disk.layers() });
        }
        let state = self.image.machine.encode()?;
        let in_writer = |descriptors: Vec<OwnedFd>| {
            let mut descriptors = descriptors.into_iter();
            if let Some(socket) = descriptors.next().map(UnixStream::from) {
                let data: Vec<_> = descriptors.map(File::from).collect();
                // Whoever reads sees that it is not whole. There is nobody else to tell: this log is another VM's.
                let _ = write(&self.image, &state, disk, &data, socket);
            }
        };
        pando_sys::fork(descriptors, in_writer).map(drop).map_err(SaveError::Fork)
    }
}

fn write(image: &Image, state: &[u8], disk: &Sealed, data: &[File], socket: UnixStream) -> io::Result<()> {
    let mut writer = Writer::begin(BufWriter::new(socket), image.machine.described(), state)?;
    let layers = write_memory(&image.memory, &mut writer).and_then(|()| write_disk(disk, data, &mut writer));
    match layers {
        Ok(()) => writer.end(),
        Err(error) => writer.fail(chain(error.as_ref())),
    }
}

fn write_memory<W: Write>(memory: &GuestMemoryMmap, writer: &mut Writer<W>) -> Result<(), Box<dyn Error>> {
    writer.layer(LayerKind::Memory, memory.last_addr().raw_value() / PAGE + 1)?;
    let mut bytes = vec![0; MAX_PAGES_AT_ONCE as usize * PAGE_BYTES];
    for region in memory.iter() {
        let (start, end) = (region.start_addr().raw_value(), region.start_addr().raw_value() + region.len());
        for address in (start..end).step_by(bytes.len()) {
            let bytes = &mut bytes[..(end - address).min(u64::from(MAX_PAGES_AT_ONCE) * PAGE) as usize];
            memory.read_slice(bytes, GuestAddress(address))?;
            write_pages(address / PAGE, bytes, writer)?;
        }
    }
    Ok(())
}

/// Writes those of these pages that are not zero, in runs.
fn write_pages<W: Write>(first: u64, bytes: &[u8], writer: &mut Writer<W>) -> io::Result<()> {
    let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
    let mut at = 0;
    for run in pages.chunk_by(|one, next| (*one == ZERO_PAGE) == (*next == ZERO_PAGE)) {
        if run[0] != ZERO_PAGE {
            writer.pages(first + at as u64, run.as_flattened())?;
        }
        at += run.len();
    }
    Ok(())
}

fn write_disk<W: Write>(disk: &Sealed, data: &[File], writer: &mut Writer<W>) -> Result<(), Box<dyn Error>> {
    writer.layer(LayerKind::Disk, disk.len_bytes() / pando_disk::BLOCK_BYTES)?;
    let mut written = disk.written(data)?;
    let mut bytes = Vec::new();
    while let Some(first) = written.next_run(MAX_PAGES_AT_ONCE as usize, &mut bytes)? {
        writer.pages(first, &bytes)?;
    }
    Ok(())
}

//! A seed writes what it is into a socket. A process of its own does it, forked from the seed: so it has the memory as it
//! is, at no cost, and takes its time.

use crate::complaints::chain;
use crate::fork::Inherited;
use crate::image::{DiskImage, Image, PAGE};
use crate::machine::EncodeError;
use pando_disk::Sealed;
use pando_memory::{Known, TwoSeeds};
use pando_sys::SysError;
use pando_wire::saved::{GROUP_PAGES, LayerKind, MAX_PAGES_AT_ONCE, PAGE_BYTES, Writer};
use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// A page of zeroes: what need not be written.
const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// How many pages are compared with an earlier seed's before any of them is written: 32 MiB.
const KNOWN_AT_ONCE: usize = 8192;

/// Why a seed is not saved. It stays as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    /// Not a socket, and a file for each layer to be read, and with or without what an earlier seed is known by.
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
    /// Has a process write all of this into the first of `descriptors`, or of its memory only what an earlier seed does not
    /// have; the others are as [`Request::Save`](pando_wire::control::Request::Save) lists them.
    pub(crate) fn save(&self, descriptors: Vec<OwnedFd>) -> Result<(), SaveError> {
        let DiskImage::Sealed(disk) = &self.image.disk else { return Err(SaveError::NotSealed) };
        self.save_with(Some(disk), descriptors)
    }

    /// The same, and nothing of the disk, of which no layer comes.
    pub(crate) fn save_without_disk(&self, descriptors: Vec<OwnedFd>) -> Result<(), SaveError> {
        self.save_with(None, descriptors)
    }

    fn save_with(&self, disk: Option<&Sealed>, descriptors: Vec<OwnedFd>) -> Result<(), SaveError> {
        let layers = disk.map_or(0, Sealed::layers);
        if ![1 + layers, 1 + layers + 3].contains(&descriptors.len()) {
            return Err(SaveError::Descriptors { got: descriptors.len(), layers });
        }
        let state = self.image.machine.encode()?;
        let in_writer = |descriptors: Vec<OwnedFd>| {
            let mut descriptors = descriptors.into_iter();
            if let Some(socket) = descriptors.next().map(UnixStream::from) {
                let mut files = descriptors.map(File::from);
                let data: Vec<_> = files.by_ref().take(layers).collect();
                let seeds = match [files.next(), files.next(), files.next()] {
                    [Some(earlier), Some(own), Some(vmstat)] => Some(TwoSeeds::new(earlier, own, vmstat)),
                    _ => None,
                };
                // Whoever reads sees that it is not whole. There is nobody else to tell: this log is another VM's.
                let _ = write(&self.image, &state, (disk, &data), seeds.as_ref(), socket);
            }
        };
        pando_sys::fork(descriptors, in_writer).map(drop).map_err(SaveError::Fork)
    }
}

fn write(
    image: &Image,
    state: &[u8],
    (disk, data): (Option<&Sealed>, &[File]),
    seeds: Option<&TwoSeeds>,
    socket: UnixStream,
) -> io::Result<()> {
    let mut writer = Writer::begin(BufWriter::new(socket), image.machine.described(), state)?;
    let layers = write_memory(&image.memory, seeds, &mut writer)
        .and_then(|()| disk.map_or(Ok(()), |disk| write_disk(disk, data, &mut writer)));
    match layers {
        Ok(()) => writer.end(),
        Err(error) => writer.fail(chain(error.as_ref())),
    }
}

fn write_memory<W: Write>(
    memory: &GuestMemoryMmap,
    seeds: Option<&TwoSeeds>,
    writer: &mut Writer<W>,
) -> Result<(), Box<dyn Error>> {
    writer.layer(LayerKind::Memory, memory.last_addr().raw_value() / PAGE + 1)?;
    let mut buffer = vec![0; MAX_PAGES_AT_ONCE as usize * PAGE_BYTES];
    for region in memory.iter() {
        let pages = region.start_addr().raw_value() / PAGE..(region.start_addr().raw_value() + region.len()) / PAGE;
        // As they are written, so that an earlier seed that ends meanwhile has helped until then.
        for first in pages.clone().step_by(KNOWN_AT_ONCE) {
            let pages = first..pages.end.min(first + KNOWN_AT_ONCE as u64);
            let runs = match seeds {
                Some(seeds) => seeds.compare(memory, pages, GROUP_PAGES),
                None => vec![(pages, Known::Nothing)],
            };
            for (run, known) in runs {
                match known {
                    Known::Zero => (), // As what does not come.
                    Known::Same => writer.same(run.start, run.end - run.start)?,
                    Known::Nothing => read_and_write(memory, run, &mut buffer, writer)?,
                }
            }
        }
    }
    Ok(())
}

fn read_and_write<W: Write>(
    memory: &GuestMemoryMmap,
    pages: Range<u64>,
    buffer: &mut [u8],
    writer: &mut Writer<W>,
) -> Result<(), Box<dyn Error>> {
    for first in pages.clone().step_by(MAX_PAGES_AT_ONCE as usize) {
        let count = (pages.end - first).min(u64::from(MAX_PAGES_AT_ONCE));
        let bytes = &mut buffer[..count as usize * PAGE_BYTES];
        memory.read_slice(bytes, GuestAddress(first * PAGE))?;
        write_pages(first, bytes, writer)?;
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

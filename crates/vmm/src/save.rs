//! A seed writes what it is into a socket. A process of its own does it, forked from the seed: so it has the memory as it
//! is, at no cost, and takes its time.

use crate::complaints::chain;
use crate::fork::Inherited;
use crate::image::{DiskImage, Image, PAGE};
use crate::machine::EncodeError;
use pando_disk::{Run, Seal, Sealed};
use pando_memory::{Known, TwoSeeds};
use pando_sys::SysError;
use pando_wire::control::DiskSeal;
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

/// What is known of an earlier seed.
struct Earlier {
    memory: Option<TwoSeeds>,
    disk: Option<Seal>,
}

impl Inherited {
    /// How its disk was sealed.
    pub(crate) fn disk_seal(&self) -> Result<DiskSeal, SaveError> {
        let Seal { life, slots } = self.disk()?.seal();
        Ok(DiskSeal { life, slots })
    }

    /// Has a process write all of this into the first of `descriptors`, or only what an earlier seed does not have: that
    /// seed's disk was sealed as `earlier`, and for its memory `descriptors` are as
    /// [`Request::Save`](pando_wire::control::Request::Save) lists them.
    pub(crate) fn save(&self, earlier: Option<DiskSeal>, descriptors: Vec<OwnedFd>) -> Result<(), SaveError> {
        self.save_with(Some(self.disk()?), earlier, descriptors)
    }

    /// The same, and nothing of the disk, of which no layer comes.
    pub(crate) fn save_without_disk(&self, descriptors: Vec<OwnedFd>) -> Result<(), SaveError> {
        self.save_with(None, None, descriptors)
    }

    fn save_with(
        &self,
        disk: Option<&Sealed>,
        earlier: Option<DiskSeal>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), SaveError> {
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
                let earlier =
                    Earlier { memory: seeds, disk: earlier.map(|DiskSeal { life, slots }| Seal { life, slots }) };
                let _ = write(&self.image, &state, (disk, &data), &earlier, socket);
            }
        };
        pando_sys::fork(descriptors, in_writer).map(drop).map_err(SaveError::Fork)
    }

    fn disk(&self) -> Result<&Sealed, SaveError> {
        match &self.image.disk {
            DiskImage::Sealed(disk) => Ok(disk),
            _ => Err(SaveError::NotSealed),
        }
    }
}

fn write(
    image: &Image,
    state: &[u8],
    (disk, data): (Option<&Sealed>, &[File]),
    earlier: &Earlier,
    socket: UnixStream,
) -> io::Result<()> {
    let mut writer = Writer::begin(BufWriter::new(socket), image.machine.described(), state)?;
    let layers = write_memory(&image.memory, earlier.memory.as_ref(), &mut writer)
        .and_then(|()| disk.map_or(Ok(()), |disk| write_disk(disk, data, earlier.disk, &mut writer)));
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

fn write_disk<W: Write>(
    disk: &Sealed,
    data: &[File],
    earlier: Option<Seal>,
    writer: &mut Writer<W>,
) -> Result<(), Box<dyn Error>> {
    writer.layer(LayerKind::Disk, disk.len_bytes() / pando_disk::BLOCK_BYTES)?;
    let mut written = disk.written(data, earlier, GROUP_PAGES)?;
    let mut bytes = Vec::new();
    while let Some(run) = written.next_run(MAX_PAGES_AT_ONCE as usize, &mut bytes)? {
        match run {
            Run::Written(first) => writer.pages(first, &bytes)?,
            Run::Unchanged(blocks) => writer.same(blocks.start, blocks.end - blocks.start)?,
        }
    }
    Ok(())
}

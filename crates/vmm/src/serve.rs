//! A copy of a VM answers as a page server of a store does: children that begin in monitors of their own pull from it what
//! they are made of.
//!
//! ```text
//! parent   run ── pause · save · seal · fork(2) · resume ── run
//!                                         │
//! copy                                    └─ frozen memory ─ a thread for each connection ─ ends with the last of them
//! ```
//!
//! One copy serves all children of an instant, however far they have come: it has every page that they have not, so none of
//! them looks further. It opens nothing but its own page tables, writes nothing and has no KVM.

use crate::complaints::chain;
use crate::fork::ForkError;
use crate::image::{DiskImage, Image, PAGE};
use crate::machine::EncodeError;
use crate::vm::Vm;
use pando_disk::{BLOCK_BYTES, OpenError, ReadError, Run as Blocks, Sealed};
use pando_sys::give_way;
use pando_wire::control::{MAX_PULLING, PAGES_CONNECTIONS, Serving};
use pando_wire::pages::{Answer, Ask, Description, MAX_PAGES, Run, Server, covering, urgent};
use pando_wire::saved::{MAX_PAGES_AT_ONCE, PAGE_BYTES};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A page of zeroes: what need not be sent.
const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
/// Any page can be read alone.
const CHUNK_PAGES: u32 = 1;

/// Why there is no copy that serves. The VM goes on as it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Out of range.
    #[error("{0} children cannot pull from one copy: 1 to {MAX_PULLING} can")]
    Children(u32),
    /// Not as many connections and files as belong.
    #[error("{got} descriptors came with the request, where {wanted} belong")]
    Descriptors { got: usize, wanted: usize },
    /// The copy.
    #[error(transparent)]
    Fork(#[from] ForkError),
}

/// Why a copy has nothing to give.
#[derive(Debug, thiserror::Error)]
enum LostError {
    #[error("the disk was not sealed")]
    NotSealed,
    #[error("cannot encode the state of the machine")]
    Encode(#[from] EncodeError),
    #[error("cannot read the disk")]
    Open(#[from] OpenError),
    #[error("cannot read the disk")]
    Read(#[from] ReadError),
    #[error("there are no pages {0} to {1}")]
    NoPages(u32, u32),
    #[error("cannot read its page tables")]
    Pagemap(#[from] io::Error),
}

impl Vm {
    /// Copies the VM into a process that serves so many children: see
    /// [`Request::Serve`](pando_wire::control::Request::Serve). A VM that was paused stays so.
    pub(crate) fn serve(&mut self, children: u32, descriptors: Vec<OwnedFd>) -> Result<Serving, ServeError> {
        if !(1..=MAX_PULLING).contains(&(children as usize)) {
            return Err(ServeError::Children(children));
        }
        let (disk_bytes, layers) = self.platform.disk_size();
        let wanted = children as usize * PAGES_CONNECTIONS + layers;
        if descriptors.len() != wanted {
            return Err(ServeError::Descriptors { got: descriptors.len(), wanted });
        }
        let (pid, timings) = self.copy(descriptors, |image, mut descriptors, _asked| {
            let layers = descriptors.split_off(descriptors.len() - layers);
            live(image, descriptors, layers)
        })?;
        Ok(Serving { pid, disk_bytes, timings })
    }
}

/// The copy: serves until nobody asks any more.
fn live(image: Image, connections: Vec<OwnedFd>, layers: Vec<OwnedFd>) -> ! {
    let served = Served { image, layers: layers.into_iter().map(File::from).collect() };
    thread::scope(|scope| {
        let served = &served;
        for (at, connection) in connections.into_iter().enumerate() {
            let connection = Server::new(UnixStream::from(connection));
            scope.spawn(move || {
                if at % PAGES_CONNECTIONS >= urgent(PAGES_CONNECTIONS) {
                    give_way();
                }
                // A connection that breaks is the child's to notice.
                served.serve(connection)
            });
        }
    });
    std::process::exit(0)
}

struct Served {
    image: Image,
    /// The data files of the disk's layers, oldest first.
    layers: Vec<File>,
}

impl Served {
    /// Answers until the connection is closed.
    fn serve(&self, mut connection: Server<UnixStream>) -> io::Result<()> {
        let mut bytes = Vec::new();
        while let Some(ask) = connection.asked()? {
            bytes.clear();
            match ask {
                Ask::Describe => {
                    let answer = self.describe(&mut bytes);
                    give(&mut connection, answer, &bytes)?;
                }
                Ask::Memory(runs) => self.memory(&runs, &mut bytes, &mut connection)?,
                Ask::Disk(first) => {
                    let answer = self.disk(first, &mut bytes);
                    give(&mut connection, answer, &bytes)?;
                }
                // Everything is in memory: nobody waits for a disk that others read.
                Ask::BeginTurn => connection.give(&Answer::Turn, &[])?,
                Ask::EndTurn => (),
                // There is no next time.
                Ask::Recorded(_) => connection.give(&Answer::Noted, &[])?,
            }
        }
        Ok(())
    }

    fn describe(&self, bytes: &mut Vec<u8>) -> Result<Answer, LostError> {
        let Image { machine, memory, disk, expected, .. } = &self.image;
        *bytes = machine.encode()?;
        Ok(Answer::Described(Description {
            machine: machine.described(),
            state_bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX), // Which nobody believes.
            memory_pages: memory.last_addr().raw_value() / PAGE + 1,
            disk_pages: sealed(disk)?.len_bytes() / BLOCK_BYTES,
            chunk_pages: CHUNK_PAGES,
            held: covering(&held(memory)?),
            expected: expected.0.clone(),
        }))
    }

    /// Each run as soon as it is read, and nothing behind one that cannot be.
    fn memory(&self, runs: &[(u32, u32)], bytes: &mut Vec<u8>, connection: &mut Server<UnixStream>) -> io::Result<()> {
        let mut left = MAX_PAGES;
        for &(first, pages) in runs {
            let pages = left.min(pages);
            left -= pages;
            bytes.clear();
            let answer = read(&self.image.memory, first, pages, bytes);
            let is_lost = answer.is_err();
            give(connection, answer, bytes)?;
            if is_lost {
                break;
            }
        }
        Ok(())
    }

    fn disk(&self, first: u64, bytes: &mut Vec<u8>) -> Result<Answer, LostError> {
        let mut written = sealed(&self.image.disk)?.written(&self.layers, None, 1)?;
        written.skip_to(first);
        Ok(match written.next_run(MAX_PAGES_AT_ONCE as usize, bytes)? {
            Some(Blocks::Written(first)) => Answer::Blocks(first, (bytes.len() / PAGE_BYTES) as u32),
            Some(Blocks::Unchanged(_)) | None => Answer::Blocks(first, 0),
        })
    }
}

/// Gives an answer, or the reason why there is none.
fn give(connection: &mut Server<UnixStream>, answer: Result<Answer, LostError>, bytes: &[u8]) -> io::Result<()> {
    match answer {
        Ok(answer) => connection.give(&answer, bytes),
        Err(error) => connection.give(&Answer::Lost(chain(&error)), &[]),
    }
}

/// Pages of memory: of what kind they are, and the bytes of those that are not zero.
fn read(memory: &GuestMemoryMmap, first: u32, pages: u32, bytes: &mut Vec<u8>) -> Result<Answer, LostError> {
    let mut runs: Vec<Run> = Vec::new();
    for page in first..first.saturating_add(pages) {
        let mut read = [0; PAGE_BYTES];
        let there = memory.read_slice(&mut read, GuestAddress(u64::from(page) * PAGE));
        there.map_err(|_| LostError::NoPages(first, first.saturating_add(pages)))?;
        let is_data = read != ZERO_PAGE;
        if is_data {
            bytes.extend_from_slice(&read);
        }
        match runs.last_mut().filter(|run| run.is_data == is_data) {
            Some(run) => run.pages += 1,
            None => runs.push(Run { pages: 1, is_data }),
        }
    }
    Ok(Answer::Pages(runs))
}

/// The pages of `memory` that may not be zero.
fn held(memory: &GuestMemoryMmap) -> io::Result<Vec<(u32, u32)>> {
    pando_memory::held_pages(memory, &File::open("/proc/self/pagemap")?)
}

fn sealed(disk: &DiskImage) -> Result<&Sealed, LostError> {
    match disk {
        DiskImage::Sealed(disk) => Ok(disk),
        _ => Err(LostError::NotSealed),
    }
}

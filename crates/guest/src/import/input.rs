//! The bytes of an image: what they are, decompressed, and why they stopped coming.

use std::cell::{Cell, RefCell};
use std::io::{self, BufReader, Cursor, ErrorKind, Read};
use std::rc::Rc;

use crate::import::ImportError;

/// The most that all headers of one archive entry may take together. Names and attributes are far shorter; without a
/// bound, an archive could have any amount of memory filled with one name.
pub(super) const MAX_HEADER_BYTES: u64 = 1 << 20;

/// How often progress is told.
const PROGRESS_STEP_BYTES: u64 = 1 << 20;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const TAR_BLOCK_BYTES: usize = 512;
/// Enough to see what is compressed, and an ext4 superblock.
const HEAD_BYTES: usize = 2048;

/// What an image is, once decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A tar archive, or something that is found out not to be one.
    Tar,
    /// An ext4 file system, which says how long it is.
    Ext4 { len_bytes: u64 },
}

/// An image, decompressed, whatever it is.
pub(super) struct Input<'a> {
    kind: Kind,
    decoded: Box<dyn Read + 'a>,
    state: Rc<State>,
}

/// What happened to the bytes on their way. Readers in the middle rewrite errors; this is where they began.
#[derive(Default)]
struct State {
    /// The error of the caller's own reader.
    source_error: RefCell<Option<io::Error>>,
    /// Whether the decompressed bytes ended.
    has_ended: Cell<bool>,
    /// How many bytes may be read until the next budget is given.
    budget: Cell<Option<u64>>,
}

impl<'a> Input<'a> {
    /// Looks at the beginning of `source`.
    pub(super) fn open(source: impl Read + 'a, progress: &'a mut dyn FnMut(u64)) -> Result<Self, ImportError> {
        let state = Rc::new(State::default());
        let mut source = Source { source, progress, read: 0, told: 0, state: Rc::clone(&state) };
        let head = read_head(&mut source).map_err(|error| state.explain(error))?;
        let whole = Cursor::new(head.clone()).chain(source);
        let mut decoded: Box<dyn Read + 'a> = if head.starts_with(&GZIP_MAGIC) {
            Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(whole)))
        } else if head.starts_with(&ZSTD_MAGIC) {
            Box::new(zstd::stream::read::Decoder::new(whole).map_err(|error| state.explain(error))?)
        } else {
            Box::new(whole)
        };
        let head = read_head(&mut decoded).map_err(|error| state.explain(error))?;
        if head.is_empty() {
            return Err(ImportError::Empty);
        }
        let kind = recognise(&head);
        Ok(Self { kind, decoded: Box::new(Cursor::new(head).chain(decoded)), state })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// What an error from reading this, through whatever other readers, means.
    pub(super) fn explain(&self, error: io::Error) -> ImportError {
        self.state.explain(error)
    }

    /// A second hand on the same state, for while something else reads.
    pub(super) fn watch(&self) -> Watch {
        Watch(Rc::clone(&self.state))
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = match self.state.budget.get() {
            Some(0) => return Err(io::Error::other("a header is too large")),
            Some(budget) => budget.min(buffer.len() as u64) as usize,
            None => buffer.len(),
        };
        let count = self.decoded.read(&mut buffer[..most])?;
        if count == 0 && most != 0 {
            self.state.has_ended.set(true);
        }
        self.state.budget.set(self.state.budget.get().map(|budget| budget - count as u64));
        Ok(count)
    }
}

/// Watches an [`Input`] that something else is reading.
pub(super) struct Watch(Rc<State>);

impl Watch {
    /// Bounds what may be read from now on, until [`Watch::lift`].
    pub(super) fn bound_header(&self) {
        self.0.budget.set(Some(MAX_HEADER_BYTES));
    }

    pub(super) fn lift(&self) {
        self.0.budget.set(None);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.0.has_ended.get()
    }

    pub(super) fn explain(&self, error: io::Error) -> ImportError {
        self.0.explain(error)
    }
}

impl State {
    fn explain(&self, error: io::Error) -> ImportError {
        if let Some(source) = self.source_error.take() {
            return ImportError::Read { source };
        }
        if self.budget.get() == Some(0) {
            return ImportError::HeaderTooLarge;
        }
        if self.has_ended.get() || error.kind() == ErrorKind::UnexpectedEof {
            return ImportError::Truncated;
        }
        ImportError::Damaged { source: error }
    }
}

/// The caller's reader, counted.
struct Source<'a, R> {
    source: R,
    progress: &'a mut dyn FnMut(u64),
    read: u64,
    told: u64,
    state: Rc<State>,
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer).inspect_err(|error| {
            if error.kind() != ErrorKind::Interrupted {
                *self.state.source_error.borrow_mut() = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })?;
        self.read += count as u64;
        let is_end = count == 0 && !buffer.is_empty();
        if self.told + PROGRESS_STEP_BYTES <= self.read || is_end && self.told < self.read {
            self.told = self.read;
            (self.progress)(self.read);
        }
        Ok(count)
    }
}

/// The first bytes, as many as there are.
fn read_head(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    input.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// A tar archive may hold anything at the place of a superblock, so its own magic comes first.
fn recognise(head: &[u8]) -> Kind {
    let is_tar = TAR_BLOCK_BYTES <= head.len() && &head[257..262] == b"ustar";
    match ext4_len_bytes(head) {
        Some(len_bytes) if !is_tar => Kind::Ext4 { len_bytes },
        _ => Kind::Tar,
    }
}

/// How long the ext4 file system with this beginning is, where it is one.
fn ext4_len_bytes(head: &[u8]) -> Option<u64> {
    const SUPERBLOCK_AT: usize = 1024;
    const BLOCKS_LOW_AT: usize = 0x4;
    const LOG_BLOCK_SIZE_AT: usize = 0x18;
    const MAGIC_AT: usize = 0x38;
    const INCOMPATIBLE_AT: usize = 0x60;
    const BLOCKS_HIGH_AT: usize = 0x150;
    const INCOMPATIBLE_64BIT: u32 = 0x80;

    let superblock = head.get(SUPERBLOCK_AT..HEAD_BYTES)?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| superblock[at + n]));
    if superblock[MAGIC_AT..MAGIC_AT + 2] != [0x53, 0xef] {
        return None;
    }
    let has_high = word(INCOMPATIBLE_AT) & INCOMPATIBLE_64BIT != 0;
    let high = if has_high { u64::from(word(BLOCKS_HIGH_AT)) } else { 0 };
    let blocks = high << 32 | u64::from(word(BLOCKS_LOW_AT));
    let block_bytes = 1024_u64.checked_shl(word(LOG_BLOCK_SIZE_AT)).filter(|bytes| (1024..=65536).contains(bytes))?;
    blocks.checked_mul(block_bytes)
}

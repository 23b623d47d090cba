//! What a seed writes into a socket when it is [saved](crate::control::Request::Save): a machine, its RAM, its disk.
//!
//! ```text
//! header │ Machine, its state │ Layer (RAM) │ Pages, their bytes │ … │ Layer (disk) │ Pages, their bytes │ … │ End
//! ```
//!
//! The header is [`MAGIC`] and a version; what follows are [frames](crate::frame), some with bytes behind them. Only a
//! stream that ends with `End` is whole. What is read is checked: order, lengths, and that every page is in its layer
//! and comes once. Instead of pages, `Same` may come where whoever asked for the stream knows an earlier one.

use crate::frame;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// The version of the stream.
pub const VERSION: u32 = 1;
/// What a stream begins with.
pub const MAGIC: [u8; 8] = *b"PANDOSAV";
/// A page or block, in bytes.
pub const PAGE_BYTES: usize = 4096;
/// The most pages that come at once: 256 KiB.
pub const MAX_PAGES_AT_ONCE: u32 = 64;
/// What is the same as earlier is said of whole groups of so many pages, each beginning at a multiple of that: what a store
/// keeps as one.
pub const GROUP_PAGES: u64 = 4;
/// The longest state of a machine: far more than 32 vCPUs have.
pub const MAX_STATE_BYTES: usize = 16 << 20;
/// The longest layer: 16 TiB.
const MAX_LAYER_PAGES: u64 = 1 << 32;

/// CPUs and devices at the instant of the save, and what a host must have to continue them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// What encoded the state.
    pub kind: String,
    /// Which version of that.
    pub version: u32,
    /// The CPU's architecture, as `uname -m` has it.
    pub arch: String,
    /// The features of the CPU that the guest was shown, by the names of `/proc/cpuinfo`.
    pub cpu_features: Vec<String>,
}

/// RAM or a disk, as pages of [`PAGE_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Which of the two.
    pub kind: LayerKind,
    /// Its length in pages: for RAM, guest-physical addresses up to the end of the last region.
    pub pages: u64,
}

/// What a layer is. They come in this order, one of each; no disk where the VM
/// [keeps its own](crate::control::Request::SaveWithoutDisk).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LayerKind {
    /// Pages that do not come are zeroes.
    Memory,
    /// Blocks that do not come are what the disk's base says.
    Disk,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Record {
    /// A machine. So many bytes of state follow.
    Machine(Machine, u32),
    /// The pages that follow are of this layer.
    Layer(Layer),
    /// So many pages from the first on, whose bytes follow.
    Pages(u64, u32),
    /// That was all: so many pages.
    End(u64),
    /// It cannot be saved. The error and its causes, outermost first.
    Failed(Vec<String>),
    /// So many pages of the layer from the first on are what they were in the earlier seed that the writer was told of. Who
    /// told it of none never reads this.
    Same(u64, u64),
}

/// Writes a stream.
#[derive(Debug)]
pub struct Writer<W: Write> {
    stream: W,
    pages: u64,
}

impl<W: Write> Writer<W> {
    /// Begins with `machine` and its `state`.
    pub fn begin(mut stream: W, machine: Machine, state: &[u8]) -> io::Result<Self> {
        if state.len() > MAX_STATE_BYTES {
            return Err(invalid("the state of the machine is too long"));
        }
        stream.write_all(&MAGIC)?;
        stream.write_all(&VERSION.to_le_bytes())?;
        frame::write(&mut stream, &Record::Machine(machine, state.len() as u32))?;
        stream.write_all(state)?;
        Ok(Self { stream, pages: 0 })
    }

    /// Begins a layer.
    pub fn layer(&mut self, kind: LayerKind, pages: u64) -> io::Result<()> {
        frame::write(&mut self.stream, &Record::Layer(Layer { kind, pages }))
    }

    /// Adds whole pages, at most [`MAX_PAGES_AT_ONCE`], behind those that came before.
    pub fn pages(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let pages = (bytes.len() / PAGE_BYTES) as u32; // Far below 2^32.
        self.pages += u64::from(pages);
        frame::write(&mut self.stream, &Record::Pages(first, pages))?;
        self.stream.write_all(bytes)
    }

    /// Says that so many pages, behind those that came before, are the same as earlier. In a disk, what never came earlier
    /// does not come now either.
    pub fn same(&mut self, first: u64, pages: u64) -> io::Result<()> {
        self.pages += pages;
        frame::write(&mut self.stream, &Record::Same(first, pages))
    }

    /// Ends the stream: it is whole.
    pub fn end(mut self) -> io::Result<()> {
        frame::write(&mut self.stream, &Record::End(self.pages))?;
        self.stream.flush()
    }

    /// Ends the stream with the reason why it is not whole.
    pub fn fail(mut self, chain: Vec<String>) -> io::Result<()> {
        frame::write(&mut self.stream, &Record::Failed(chain))?;
        self.stream.flush()
    }
}

/// Reads a stream.
#[derive(Debug)]
pub struct Reader<R: Read> {
    stream: R,
    layer: Option<Layer>,
    /// The first page that may come.
    next: u64,
    pages: u64,
    bytes: Vec<u8>,
}

/// What comes behind a machine.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// What follows is of this layer.
    Layer(Layer),
    /// Whole pages from the first on.
    Pages(u64, &'a [u8]),
    /// So many pages from the first on are the same as earlier.
    Same(u64, u64),
}

impl<R: Read> Reader<R> {
    /// Reads the machine and its state.
    pub fn begin(mut stream: R) -> io::Result<(Machine, Vec<u8>, Self)> {
        let mut header = [0; MAGIC.len() + size_of::<u32>()];
        stream.read_exact(&mut header).map_err(cut)?;
        let (magic, version) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(invalid("this is no saved machine"));
        }
        if version != VERSION.to_le_bytes() {
            return Err(invalid("the machine was saved by another version of pando"));
        }
        let (machine, len) = match frame::read(&mut stream).map_err(cut)? {
            Some(Record::Machine(machine, len)) => (machine, len),
            Some(_) => return Err(invalid("a saved machine does not begin with its state")),
            None => return Err(cut(io::ErrorKind::UnexpectedEof.into())),
        };
        if len as usize > MAX_STATE_BYTES {
            return Err(invalid("the state of the machine is too long"));
        }
        let mut state = vec![0; len as usize];
        stream.read_exact(&mut state).map_err(cut)?;
        Ok((machine, state, Self { stream, layer: None, next: 0, pages: 0, bytes: Vec::new() }))
    }

    /// The next part. `None` where the stream is whole; an error where it ends before that.
    pub fn next_part(&mut self) -> io::Result<Option<Part<'_>>> {
        match frame::read(&mut self.stream).map_err(cut)? {
            None => Err(cut(io::ErrorKind::UnexpectedEof.into())),
            Some(Record::Layer(layer)) => self.begin_layer(layer).map(|()| Some(Part::Layer(layer))),
            Some(Record::Pages(first, pages)) => {
                self.take(first, pages)?;
                Ok(Some(Part::Pages(first, &self.bytes)))
            }
            Some(Record::Same(first, pages)) if pages > 0 => {
                self.pass(first, pages)?;
                Ok(Some(Part::Same(first, pages)))
            }
            Some(Record::Same(..)) => Err(invalid("no pages of the saved machine are the same as earlier")),
            Some(Record::End(pages)) if pages == self.pages && self.layer.is_some() => Ok(None),
            Some(Record::End(_)) => Err(invalid("parts of the saved machine are missing")),
            Some(Record::Failed(chain)) => Err(io::Error::other(chain.join(": "))),
            Some(Record::Machine(..)) => Err(invalid("a saved machine has a second state")),
        }
    }

    fn has(&self, kind: LayerKind) -> bool {
        self.layer.is_some_and(|layer| layer.kind == kind)
    }

    fn begin_layer(&mut self, layer: Layer) -> io::Result<()> {
        let is_next = match layer.kind {
            LayerKind::Memory => self.layer.is_none(),
            LayerKind::Disk => self.has(LayerKind::Memory),
        };
        if !is_next || layer.pages > MAX_LAYER_PAGES {
            return Err(invalid("a layer of the saved machine is out of order, or too long"));
        }
        (self.layer, self.next) = (Some(layer), 0);
        Ok(())
    }

    /// Goes on behind these pages, which are to be in the layer and behind those before.
    fn pass(&mut self, first: u64, pages: u64) -> io::Result<()> {
        let end = self.layer.and_then(|layer| first.checked_add(pages).filter(|end| *end <= layer.pages));
        let Some(end) = end.filter(|_| self.next <= first) else {
            return Err(invalid("pages of the saved machine are out of order, or outside of their layer"));
        };
        (self.next, self.pages) = (end, self.pages + pages);
        Ok(())
    }

    fn take(&mut self, first: u64, pages: u32) -> io::Result<()> {
        if !(1..=MAX_PAGES_AT_ONCE).contains(&pages) {
            return Err(invalid("pages of the saved machine are none, or too many at once"));
        }
        self.pass(first, pages.into())?;
        self.bytes.resize(pages as usize * PAGE_BYTES, 0);
        self.stream.read_exact(&mut self.bytes).map_err(cut)
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// An end where none belongs has one meaning here.
fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the saved machine ends before its end"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine { kind: "k".into(), version: 2, arch: "a".into(), cpu_features: vec!["f".into()] }
    }

    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(&mut bytes, machine(), b"state").unwrap();
        writer.layer(LayerKind::Memory, 8).unwrap();
        writer.pages(1, &[1; 2 * PAGE_BYTES]).unwrap();
        writer.same(4, 3).unwrap();
        writer.pages(7, &[2; PAGE_BYTES]).unwrap();
        writer.layer(LayerKind::Disk, 6).unwrap();
        writer.pages(0, &[3; PAGE_BYTES]).unwrap();
        writer.same(4, 2).unwrap();
        writer.end().unwrap();
        bytes
    }

    /// All of a stream, as text.
    fn read(bytes: &[u8]) -> io::Result<String> {
        let (machine, state, mut reader) = Reader::begin(bytes)?;
        let mut text = format!("{} {} ", machine.kind, state.len());
        while let Some(part) = reader.next_part()? {
            text += &match part {
                Part::Layer(layer) => format!("{:?}({}) ", layer.kind, layer.pages),
                Part::Pages(first, bytes) => format!("{first}+{}:{} ", bytes.len() / PAGE_BYTES, bytes[0]),
                Part::Same(first, pages) => format!("{first}+{pages}:same "),
            };
        }
        Ok(text)
    }

    #[test]
    fn what_was_saved_is_read_back() {
        assert_eq!(read(&stream()).unwrap(), "k 5 Memory(8) 1+2:1 4+3:same 7+1:2 Disk(6) 0+1:3 4+2:same ");
    }

    #[test]
    fn a_machine_without_its_disk_is_whole() {
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(&mut bytes, machine(), b"state").unwrap();
        writer.layer(LayerKind::Memory, 8).unwrap();
        writer.pages(1, &[1; PAGE_BYTES]).unwrap();
        writer.end().unwrap();
        assert_eq!(read(&bytes).unwrap(), "k 5 Memory(8) 1+1:1 ");
    }

    /// A change here is a new [`VERSION`], unless it is a line more of what comes only where it was asked for.
    #[test]
    fn every_record_is_encoded_as_ever() {
        let encoded = |record: Record| postcard::to_stdvec(&record).unwrap();
        assert_eq!(encoded(Record::Machine(machine(), 9)), [0, 1, b'k', 2, 1, b'a', 1, 1, b'f', 9]);
        assert_eq!(encoded(Record::Layer(Layer { kind: LayerKind::Memory, pages: 5 })), [1, 0, 5]);
        assert_eq!(encoded(Record::Layer(Layer { kind: LayerKind::Disk, pages: 5 })), [1, 1, 5]);
        assert_eq!(encoded(Record::Pages(6, 7)), [2, 6, 7]);
        assert_eq!(encoded(Record::End(8)), [3, 8]);
        assert_eq!(encoded(Record::Failed(vec!["w".into()])), [4, 1, 1, b'w']);
        assert_eq!(encoded(Record::Same(6, 7)), [5, 6, 7]);
        assert_eq!(stream()[..12], *b"PANDOSAV\x01\0\0\0");
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_is_not_whole() {
        let whole = stream();
        for len in (0..64).chain((64..whole.len()).step_by(61)).chain(whole.len() - 8..whole.len()) {
            let error = read(&whole[..len]).unwrap_err();
            assert_eq!(error.to_string(), "the saved machine ends before its end", "cut to {len}");
        }
    }

    #[test]
    fn claims_that_cannot_be_are_refused() {
        let refused = |body: &dyn Fn(&mut Writer<&mut Vec<u8>>) -> io::Result<()>| {
            let mut bytes = Vec::new();
            let mut writer = Writer::begin(&mut bytes, machine(), &[]).unwrap();
            body(&mut writer).unwrap();
            writer.end().unwrap();
            let error = read(&bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        };
        let page = [1; PAGE_BYTES];
        refused(&|_| Ok(())); // Nothing but an end.
        refused(&|writer| writer.layer(LayerKind::Disk, 8)); // No RAM.
        refused(&|writer| writer.layer(LayerKind::Memory, u64::MAX));
        refused(&|writer| writer.pages(0, &page)); // Of no layer.
        for (first, bytes) in [(8, &page[..]), (u64::MAX, &page), (0, &[]), (0, &[0; 65 * PAGE_BYTES])] {
            refused(&|writer| {
                writer.layer(LayerKind::Memory, 8)?;
                writer.pages(first, bytes)
            });
        }
        refused(&|writer| {
            writer.layer(LayerKind::Memory, 8)?;
            writer.pages(3, &page)?;
            writer.pages(3, &page) // Twice.
        });
        refused(&|writer| {
            writer.layer(LayerKind::Memory, 8)?;
            writer.layer(LayerKind::Memory, 8)
        });
        refused(&|writer| writer.same(0, 4)); // Of no layer.
        for (first, pages) in [(2, 4), (8, 4), (4, u64::MAX - 8), (u64::MAX, 4), (4, 0)] {
            refused(&|writer| {
                writer.layer(LayerKind::Memory, 8)?;
                writer.pages(3, &page)?;
                writer.same(first, pages)?;
                writer.layer(LayerKind::Disk, 8)
            });
        }
        for (first, pages) in [(0, 0), (0, 7), (2, 4), (6, 4), (u64::MAX, 4)] {
            refused(&|writer| {
                writer.layer(LayerKind::Memory, 8)?;
                writer.layer(LayerKind::Disk, 6)?;
                writer.pages(3, &page)?;
                writer.same(first, pages)
            });
        }
    }

    #[test]
    fn why_it_was_not_saved_is_what_the_reader_says() {
        let mut bytes = Vec::new();
        let writer = Writer::begin(&mut bytes, machine(), &[]).unwrap();
        writer.fail(vec!["no".into(), "because".into()]).unwrap();
        assert_eq!(read(&bytes).unwrap_err().to_string(), "no: because");
    }
}

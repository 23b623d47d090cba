//! Pages go in, in order; zero pages go no further.

use super::compress::Job;
use super::error::WriteError;
use super::shared::lock;
use super::writer::Writer;
use crate::format::{Kind, MAX_PAGES, Manifest, PAGE_BYTES, Page, Span};
use crate::id::ManifestId;
use crate::read::Layer;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// How much is handed to a thread at once: enough that handing it over costs nothing, little enough to fit its cache.
const JOB_BYTES: usize = 512 << 10;
/// How many spans without data are handed over at once.
const JOB_PIECES: usize = 4096;
const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A span that is not hashed yet.
#[derive(Clone, Copy, Default)]
pub(super) struct Piece {
    pub(super) index: u64,
    pub(super) held: u64,
    pub(super) data: u64,
}

/// What comes back from the threads.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) spans: Mutex<Vec<Span>>,
}

/// A layer that is being written.
pub struct LayerWriter<'w> {
    writer: &'w Writer,
    kind: Kind,
    pages: u64,
    /// The first page that may come.
    next: u64,
    piece: Piece,
    pieces: Vec<Piece>,
    bytes: Vec<u8>,
    /// Spans that another layer has.
    inherited: Vec<Span>,
    handed_over: usize,
    collected: Arc<Collected>,
}

impl<'w> LayerWriter<'w> {
    pub(super) fn new(writer: &'w Writer, kind: Kind, pages: u64) -> Result<Self, WriteError> {
        if pages > MAX_PAGES {
            return Err(WriteError::Layer(crate::format::FormatError::Field("number of pages")));
        }
        Ok(Self {
            writer,
            kind,
            pages,
            next: 0,
            piece: Piece::default(),
            pieces: Vec::new(),
            bytes: writer.shared.buffer(),
            inherited: Vec::new(),
            handed_over: 0,
            collected: Arc::default(),
        })
    }

    /// Adds pages: whole ones, none of which was added or passed over before. What is passed over is absent. Pages of
    /// zeroes are noticed, and cost nothing.
    ///
    /// Blocks where the threads are behind. An error may belong to pages that were added earlier.
    pub fn write(&mut self, first_page: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let (pages, rest) = bytes.as_chunks::<PAGE_BYTES>();
        self.expect(first_page, pages.len() as u64, rest.is_empty())?;
        for (page, bytes) in (first_page..).zip(pages) {
            let is_zero = *bytes == ZERO_PAGE;
            match (is_zero, self.kind) {
                (true, Kind::Memory) => (), // As absent.
                (true, Kind::Disk) => self.hold(page, None)?,
                (false, _) => self.hold(page, Some(bytes))?,
            }
        }
        Ok(())
    }

    /// Adds pages of zeroes, as [`LayerWriter::write`] would.
    pub fn write_zeroes(&mut self, first_page: u64, count: u64) -> Result<(), WriteError> {
        self.expect(first_page, count, true)?;
        if self.kind == Kind::Disk {
            (first_page..first_page + count).try_for_each(|page| self.hold(page, None))?;
        }
        Ok(())
    }

    /// Adds pages as another layer of this store has them, which then stays. Their bytes are neither read nor hashed where
    /// a chunk of that layer has nothing but such pages: so a range that begins and ends at multiples of its pages per
    /// chunk costs next to nothing. At the ends of other ranges, and where this writer has other chunks, pages are read.
    ///
    /// The range is to be in the other layer, and in order with what was added before.
    pub fn inherit(&mut self, from: &Layer, pages: Range<u64>) -> Result<(), WriteError> {
        let count = pages.end.saturating_sub(pages.start);
        let is_in_it = pages.end <= from.pages() && from.kind() == self.kind;
        self.expect(pages.start, count, is_in_it)?;
        let chunk_pages = u64::from(self.writer.shared.tuning.chunk_pages);
        if u64::from(from.manifest().chunk_pages()) != chunk_pages {
            return pages.clone().try_for_each(|page| self.copy(from, page));
        }
        if !self.writer.shared.lease.pin_manifest(from.id())? {
            return Err(WriteError::NoLayer(from.id()));
        }
        let spans = from.manifest().spans();
        let first = spans.partition_point(|span| (span.index + 1) * chunk_pages <= pages.start);
        for span in &spans[first..] {
            let own = span.index * chunk_pages..(span.index + 1) * chunk_pages;
            if own.start >= pages.end {
                break;
            }
            let is_whole = pages.start <= own.start && (own.end <= pages.end || pages.end == self.pages);
            if is_whole {
                self.inherited.push(*span);
            } else {
                let common = own.start.max(pages.start)..own.end.min(pages.end);
                common.into_iter().try_for_each(|page| self.copy(from, page))?;
            }
        }
        Ok(())
    }

    /// Adds one page as another layer has it.
    fn copy(&mut self, from: &Layer, page: u64) -> Result<(), WriteError> {
        let mut bytes = [0; PAGE_BYTES];
        match from.read_page(page, &mut bytes).map_err(WriteError::Inherit)? {
            Page::Absent => Ok(()),
            Page::Zero => self.hold(page, None),
            Page::Data => self.hold(page, Some(&bytes)),
        }
    }

    /// Ends the layer. What it is called depends on its pages alone. It is durable once a checkpoint that names it is
    /// published.
    pub fn finish(mut self) -> Result<ManifestId, WriteError> {
        self.end_piece();
        self.hand_over()?;
        self.writer.shared.jobs_in_flight.wait();
        self.writer.shared.check()?;
        let mut spans = mem::take(&mut *lock(&self.collected.spans));
        if spans.len() != self.handed_over {
            return Err(WriteError::Stopped); // A thread panicked.
        }
        spans.append(&mut self.inherited);
        let chunk_pages = self.writer.shared.tuning.chunk_pages;
        let manifest = Manifest::new(self.kind, chunk_pages, self.pages, spans).map_err(WriteError::Layer)?;
        Ok(self.writer.add_layer(manifest))
    }

    fn expect(&mut self, first_page: u64, count: u64, are_whole: bool) -> Result<(), WriteError> {
        let end = first_page.checked_add(count).filter(|end| *end <= self.pages);
        match end {
            Some(end) if self.next <= first_page && are_whole => {
                self.next = end;
                Ok(())
            }
            _ => Err(WriteError::Order { page: first_page }),
        }
    }

    fn hold(&mut self, page: u64, data: Option<&[u8; PAGE_BYTES]>) -> Result<(), WriteError> {
        let chunk_pages = u64::from(self.writer.shared.tuning.chunk_pages);
        let (index, bit) = (page / chunk_pages, 1 << (page % chunk_pages));
        if index != self.piece.index {
            self.end_piece();
            if self.bytes.len() >= JOB_BYTES || self.pieces.len() >= JOB_PIECES {
                self.hand_over()?;
            }
            self.piece = Piece { index, ..Piece::default() };
        }
        self.piece.held |= bit;
        if let Some(bytes) = data {
            self.piece.data |= bit;
            self.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn end_piece(&mut self) {
        let piece = mem::take(&mut self.piece);
        if piece.held != 0 {
            self.pieces.push(piece);
        }
    }

    fn hand_over(&mut self) -> Result<(), WriteError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        self.writer.shared.check()?;
        let bytes = mem::replace(&mut self.bytes, self.writer.shared.buffer());
        let pieces = mem::take(&mut self.pieces);
        self.handed_over += pieces.len();
        let job =
            Job { bytes, pieces, layer: self.collected.clone(), _ticket: self.writer.shared.jobs_in_flight.ticket() };
        self.writer.give(job)
    }
}

//! Pages of a layer.

use super::chunk::Failure;
use super::error::ReadError;
use super::source::Origin;
use crate::format::{InChunk, Kind, Manifest, PAGE_BYTES, Page, Span};
use crate::id::{ChunkId, ManifestId, PackId};
use crate::local::Place;
use crate::store::Inner;
use std::ops::Range;
use std::sync::Arc;

/// A layer of a checkpoint, ready to be read by any number of threads. While it exists, nothing of it is collected.
#[derive(Clone)]
pub struct Layer {
    pub(super) store: Arc<Inner>,
    pub(super) origin: Origin,
    pub(super) id: ManifestId,
    pub(super) manifest: Arc<Manifest>,
    pub(super) checkpoint: Arc<str>,
}

/// Where a chunk lies. In order of packs, and then of where in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// In which pack.
    pub pack: PackId,
    /// Where it begins there, in bytes.
    pub offset: u32,
    /// How long it is there, in bytes.
    pub len: u32,
}

impl Layer {
    /// Its name.
    pub fn id(&self) -> ManifestId {
        self.id
    }

    /// What the layer is.
    pub fn kind(&self) -> Kind {
        self.manifest.kind()
    }

    /// How long it is, in pages, held or not.
    pub fn pages(&self) -> u64 {
        self.manifest.pages()
    }

    /// Which page is in which chunk.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the layer says about a page. Reads nothing.
    pub fn page(&self, page: u64) -> Result<Page, ReadError> {
        self.find(page).map(|(what, _)| what)
    }

    /// Reads a page. Where it is not [`Page::Data`], `bytes` become zeroes.
    pub fn read_page(&self, page: u64, bytes: &mut [u8; PAGE_BYTES]) -> Result<Page, ReadError> {
        let (what, place) = self.find(page)?;
        match place {
            None => bytes.fill(0),
            Some((span, at)) => {
                let chunk = self.read_span(span)?;
                // `chunk` has refused any other length than the span's, and `at` is of a page in it.
                bytes.copy_from_slice(&chunk[at..at + PAGE_BYTES]);
            }
        }
        Ok(what)
    }

    /// Reads pages that follow each other: a chunk is looked up once, however many of them are in it. `each` is given runs
    /// of them, in their order: what they are, how many, and their bytes, which only [`Page::Data`] has.
    pub fn read_pages(&self, pages: Range<u64>, mut each: impl FnMut(Page, u32, &[u8])) -> Result<(), ReadError> {
        if pages.end > self.pages() {
            return Err(ReadError::Range { page: pages.end - 1, pages: self.pages() });
        }
        let chunk_pages = u64::from(self.manifest.chunk_pages());
        let mut page = pages.start;
        while page < pages.end {
            let first = page - page % chunk_pages;
            let end = pages.end.min(first + chunk_pages);
            match self.span_of(page) {
                None => each(Page::Absent, (end - page) as u32, &[]),
                Some(span) => self.read_in_span(span, (page - first) as u32..(end - first) as u32, &mut each)?,
            }
            page = end;
        }
        Ok(())
    }

    /// The same for pages of one span, counted from its first.
    fn read_in_span(
        &self,
        span: &Span,
        bits: Range<u32>,
        each: &mut impl FnMut(Page, u32, &[u8]),
    ) -> Result<(), ReadError> {
        let has_data = bits.clone().any(|bit| span.page(bit) == Page::Data);
        let chunk = if has_data { self.read_span(span)? } else { Arc::from([]) };
        let mut bit = bits.start;
        while bit < bits.end {
            let what = span.page(bit);
            let run = (bit..bits.end).take_while(|bit| span.page(*bit) == what).count() as u32;
            match what {
                // `read_span` has refused any other length than the span's.
                Page::Data => each(what, run, &chunk[span.data_before(bit)..][..run as usize * PAGE_BYTES]),
                Page::Absent | Page::Zero => each(what, run, &[]),
            }
            bit += run;
        }
        Ok(())
    }

    /// Reads all pages of a span that have data, one after the other; no bytes where none has.
    pub fn read_span(&self, span: &Span) -> Result<Arc<[u8]>, ReadError> {
        let Some(chunk) = span.chunk else { return Ok(Arc::from([])) };
        let read = || self.store.chunk(&chunk, span.raw_len());
        let failure = match (read(), &self.origin) {
            (Ok(bytes), _) => return Ok(bytes),
            (Err(Failure::Missing | Failure::Damaged(_)), Origin::Source(source)) => {
                let failed = |source| ReadError::Source { chunk, checkpoint: self.checkpoint.to_string(), source };
                source.fetch(&chunk, &|| read().is_ok()).map_err(failed)?;
                match read() {
                    Ok(bytes) => return Ok(bytes),
                    Err(failure) => failure,
                }
            }
            (Err(failure), _) => failure,
        };
        Err(self.lost(span, chunk, failure))
    }

    /// Reads them from the disk, whatever is cached, and says how many bytes they are.
    pub(crate) fn check_span(&self, span: &Span) -> Result<usize, ReadError> {
        let Some(chunk) = span.chunk else { return Ok(0) };
        let read = self.store.read_where_it_lies(&chunk, span.raw_len());
        read.map(|bytes| bytes.len()).map_err(|failure| self.lost(span, chunk, failure))
    }

    fn lost(&self, span: &Span, chunk: ChunkId, failure: Failure) -> ReadError {
        let first = span.index.saturating_mul(u64::from(self.manifest.chunk_pages()));
        let pages = first..first.saturating_add(u64::from(self.manifest.chunk_pages())).min(self.pages());
        let checkpoint = self.checkpoint.to_string();
        match failure {
            Failure::File(error) => error.into(),
            Failure::Missing => ReadError::Missing { chunk, checkpoint, pages },
            Failure::Damaged(pack) => ReadError::Damaged { chunk, pack, checkpoint, pages },
        }
    }

    /// The span that a page is in, if that holds anything.
    pub fn span_of(&self, page: u64) -> Option<&Span> {
        let spans = self.manifest.spans();
        let index = page / u64::from(self.manifest.chunk_pages());
        spans.binary_search_by_key(&index, |span| span.index).ok().map(|at| &spans[at])
    }

    /// Where a page's chunk lies, as far as that is known without reading anything: pages that are fetched in this order are
    /// fetched pack by pack, and in a pack from its beginning on. `None` where there is nothing to be read, or where garbage
    /// collection has just moved it.
    pub fn locate(&self, page: u64) -> Result<Option<Location>, ReadError> {
        let (_, place) = self.find(page)?;
        let place = place.and_then(|(span, _)| span.chunk).and_then(|chunk| match &self.origin {
            Origin::Store { .. } => self.store.catalog.find(&chunk),
            Origin::Source(source) => source.find(&chunk),
        });
        Ok(place.map(|Place { pack, entry }| Location { pack, offset: entry.offset, len: entry.stored }))
    }

    fn find(&self, page: u64) -> Result<(Page, Option<InChunk<'_>>), ReadError> {
        self.manifest.find(page).ok_or(ReadError::Range { page, pages: self.pages() })
    }
}

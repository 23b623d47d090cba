//! Pages of a layer.

use super::chunk::Failure;
use super::error::ReadError;
use crate::format::{InChunk, Kind, Manifest, PAGE_BYTES, Page, Span};
use crate::local::Held;
use crate::store::Inner;
use std::sync::Arc;

/// A layer of a checkpoint, ready to be read by any number of threads. While it exists, nothing of it is collected.
#[derive(Clone)]
pub struct Layer {
    pub(super) store: Arc<Inner>,
    pub(super) _held: Arc<Held>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) checkpoint: Arc<str>,
}

impl Layer {
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

    /// Reads all pages of a span that have data, one after the other; no bytes where none has.
    pub fn read_span(&self, span: &Span) -> Result<Arc<[u8]>, ReadError> {
        let Some(chunk) = span.chunk else { return Ok(Arc::from([])) };
        self.store.chunk(&chunk, span.raw_len()).map_err(|failure| {
            let first = span.index.saturating_mul(u64::from(self.manifest.chunk_pages()));
            let pages = first..first.saturating_add(u64::from(self.manifest.chunk_pages())).min(self.pages());
            let checkpoint = self.checkpoint.to_string();
            match failure {
                Failure::File(error) => error.into(),
                Failure::Missing => ReadError::Missing { chunk, checkpoint, pages },
                Failure::Damaged(pack) => ReadError::Damaged { chunk, pack, checkpoint, pages },
            }
        })
    }

    /// The span that a page is in, if that holds anything.
    pub fn span_of(&self, page: u64) -> Option<&Span> {
        let spans = self.manifest.spans();
        let index = page / u64::from(self.manifest.chunk_pages());
        spans.binary_search_by_key(&index, |span| span.index).ok().map(|at| &spans[at])
    }

    fn find(&self, page: u64) -> Result<(Page, Option<InChunk<'_>>), ReadError> {
        self.manifest.find(page).ok_or(ReadError::Range { page, pages: self.pages() })
    }
}

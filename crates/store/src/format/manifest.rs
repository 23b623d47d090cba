//! A manifest: which chunk each page of a layer is in. It names chunks and not where they lie, so the same pages always
//! give the same bytes.

use super::envelope::{self, FileKind, FormatError, HEADER_BYTES};
use super::fields::Fields;
use crate::id::{ChunkId, ID_BYTES, ManifestId};

/// The unit of a layer, in bytes.
pub const PAGE_BYTES: usize = 4096;
/// The most pages of a chunk: a word has a bit for each.
pub const MAX_CHUNK_PAGES: u32 = 64;
/// The most pages of a layer: 16 TiB, as much as a disk can have.
pub const MAX_PAGES: u64 = 1 << 32;

const CHUNK_PAGES_AT: usize = size_of::<u32>();
const PAGES_AT: usize = CHUNK_PAGES_AT + size_of::<u32>();
const SPAN_COUNT_AT: usize = PAGES_AT + size_of::<u64>();
const SPANS_AT: usize = SPAN_COUNT_AT + size_of::<u64>();
const _: () = assert!(HEADER_BYTES + SPANS_AT == 56, "docs/snapshot-format.md says 56");

const SPAN_HELD_AT: usize = size_of::<u64>();
const SPAN_DATA_AT: usize = SPAN_HELD_AT + size_of::<u64>();
const SPAN_CHUNK_AT: usize = SPAN_DATA_AT + size_of::<u64>();
const SPAN_BYTES: usize = SPAN_CHUNK_AT + ID_BYTES;
const _: () = assert!(SPAN_BYTES == 56, "docs/snapshot-format.md says 56");

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Guest RAM. A page that is not held is zero.
    Memory,
    /// A sealed layer of a disk. A page that is not held is what the layer below says.
    Disk,
}

impl Kind {
    const fn number(self) -> u32 {
        match self {
            Self::Memory => 1,
            Self::Disk => 2,
        }
    }
}

/// What a layer says about a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Nothing. In RAM that means zeroes; in a disk, that a layer below knows.
    Absent,
    /// Zeroes, which are not stored.
    Zero,
    /// Bytes that are stored.
    Data,
}

/// Where a page's bytes lie: its span, and where in that span's chunk.
pub(crate) type InChunk<'m> = (&'m Span, usize);

/// As many pages of a layer as a chunk can have, beginning at a multiple of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which one: its first page divided by the pages per chunk.
    pub index: u64,
    /// A bit for each page that the layer says something about, the lowest for the first.
    pub held: u64,
    /// A bit for each of those that is not zero. These pages, one after the other, are the chunk.
    pub data: u64,
    /// The chunk. `None` where `data` is 0.
    pub chunk: Option<ChunkId>,
}

impl Span {
    /// The length of the chunk uncompressed, in bytes.
    pub fn raw_len(&self) -> usize {
        self.data.count_ones() as usize * PAGE_BYTES
    }

    /// What the layer says about one of the pages, counted from the first.
    pub(crate) fn page(&self, bit: u32) -> Page {
        match (self.held >> bit & 1, self.data >> bit & 1) {
            (_, 1) => Page::Data,
            (1, _) => Page::Zero,
            _ => Page::Absent,
        }
    }

    /// How many bytes of the chunk are of pages before that one.
    pub(crate) fn data_before(&self, bit: u32) -> usize {
        (self.data & ((1 << bit) - 1)).count_ones() as usize * PAGE_BYTES
    }
}

/// A layer, without its pages' bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    kind: Kind,
    chunk_pages: u32,
    pages: u64,
    spans: Vec<Span>,
}

impl Manifest {
    /// Makes one from spans in any order.
    pub(crate) fn new(kind: Kind, chunk_pages: u32, pages: u64, mut spans: Vec<Span>) -> Result<Self, FormatError> {
        spans.sort_unstable_by_key(|span| span.index);
        let manifest = Self { kind, chunk_pages, pages, spans };
        manifest.check()?;
        Ok(manifest)
    }

    /// What the layer is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How long the layer is, in pages, held or not.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How many pages a chunk has at most.
    pub fn chunk_pages(&self) -> u32 {
        self.chunk_pages
    }

    /// The spans that hold something, in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// How many pages are not zero.
    pub fn data_pages(&self) -> u64 {
        self.spans.iter().map(|span| u64::from(span.data.count_ones())).sum()
    }

    /// What the layer says about a page, and where in a chunk it lies when that is data. `None` behind the end.
    pub(crate) fn find(&self, page: u64) -> Option<(Page, Option<InChunk<'_>>)> {
        if page >= self.pages {
            return None;
        }
        let (index, bit) = (page / u64::from(self.chunk_pages), (page % u64::from(self.chunk_pages)) as u32);
        let span = self.spans.binary_search_by_key(&index, |span| span.index).ok().map(|at| &self.spans[at]);
        Some(match span.map(|span| (span, span.page(bit))) {
            Some((span, Page::Data)) => (Page::Data, Some((span, span.data_before(bit)))),
            Some((_, what)) => (what, None),
            None => (Page::Absent, None),
        })
    }

    /// The whole file, and its name.
    pub(crate) fn write(&self) -> (ManifestId, Vec<u8>) {
        let mut file = Vec::with_capacity(HEADER_BYTES + SPANS_AT + self.spans.len() * SPAN_BYTES);
        file.resize(HEADER_BYTES, 0);
        file.extend_from_slice(&self.kind.number().to_le_bytes());
        file.extend_from_slice(&self.chunk_pages.to_le_bytes());
        file.extend_from_slice(&self.pages.to_le_bytes());
        file.extend_from_slice(&(self.spans.len() as u64).to_le_bytes());
        for span in &self.spans {
            file.extend_from_slice(&span.index.to_le_bytes());
            file.extend_from_slice(&span.held.to_le_bytes());
            file.extend_from_slice(&span.data.to_le_bytes());
            file.extend_from_slice(&span.chunk.map_or([0; ID_BYTES], |id| id.0));
        }
        let file = envelope::seal(FileKind::Manifest, file);
        (ManifestId::of(&file), file)
    }

    /// Reads a whole file whose name is its id.
    pub(crate) fn read(id: ManifestId, file: &[u8]) -> Result<Self, FormatError> {
        let manifest = Self::decode(file)?;
        if ManifestId::of(file) != id {
            return Err(FormatError::Name);
        }
        Ok(manifest)
    }

    /// Reads a whole file, whatever its name.
    pub(crate) fn decode(file: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields(envelope::unseal(FileKind::Manifest, file)?);
        let kind = match fields.u32()? {
            1 => Kind::Memory,
            2 => Kind::Disk,
            _ => return Err(FormatError::Field("layer kind")),
        };
        let (chunk_pages, pages, count) = (fields.u32()?, fields.u64()?, fields.u64()?);
        if count.checked_mul(SPAN_BYTES as u64) != Some(fields.0.len() as u64) {
            return Err(FormatError::Length);
        }
        let mut spans = Vec::with_capacity(fields.0.len() / SPAN_BYTES);
        for _ in 0..count {
            let (index, held, data) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let chunk = Some(fields.array()?).filter(|id| *id != [0; ID_BYTES]).map(ChunkId);
            spans.push(Span { index, held, data, chunk });
        }
        fields.end()?;
        let manifest = Self { kind, chunk_pages, pages, spans };
        manifest.check()?;
        Ok(manifest)
    }

    /// There is one way to write a layer down, and this is it.
    fn check(&self) -> Result<(), FormatError> {
        if !(1..=MAX_CHUNK_PAGES).contains(&self.chunk_pages) {
            return Err(FormatError::Field("number of pages per chunk"));
        }
        if self.pages > MAX_PAGES {
            return Err(FormatError::Field("number of pages"));
        }
        let mut next = 0;
        for span in &self.spans {
            let first_page = span.index.checked_mul(u64::from(self.chunk_pages));
            let left = first_page.and_then(|page| self.pages.checked_sub(page)).unwrap_or(0);
            let pages = left.min(u64::from(self.chunk_pages)) as u32;
            let allowed = u64::MAX.checked_shr(u64::BITS - pages).unwrap_or(0);
            if span.index < next {
                return Err(FormatError::Field("order of spans"));
            }
            let is_canonical = span.held != 0
                && span.held & !allowed == 0
                && span.data & !span.held == 0
                && span.chunk.is_some() == (span.data != 0)
                && (self.kind == Kind::Disk || span.held == span.data);
            if !is_canonical {
                return Err(FormatError::Field("span"));
            }
            next = span.index + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(index: u64, held: u64, data: u64) -> Span {
        Span { index, held, data, chunk: (data != 0).then(|| ChunkId::of(&index.to_le_bytes())) }
    }

    #[test]
    fn a_manifest_reads_back_equal_and_its_pages_are_found() {
        let spans = vec![span(5, 0b1011, 0b1010), span(0, 1, 0)];
        let manifest = Manifest::new(Kind::Disk, 16, 84, spans).unwrap();
        let (id, file) = manifest.write();
        assert_eq!(Manifest::read(id, &file), Ok(manifest.clone()));
        let what = |page| manifest.find(page).map(|(what, place)| (what, place.map(|(_, at)| at)));
        assert_eq!(what(0), Some((Page::Zero, None)));
        assert_eq!(what(1), Some((Page::Absent, None)));
        assert_eq!(what(80), Some((Page::Zero, None)));
        assert_eq!(what(81), Some((Page::Data, Some(0))));
        assert_eq!(what(83), Some((Page::Data, Some(PAGE_BYTES))));
        assert_eq!(what(84), None);
    }

    #[test]
    fn a_layer_has_one_written_form() {
        let bad = |kind, chunk_pages, pages, spans| Manifest::new(kind, chunk_pages, pages, spans).is_err();
        assert!(bad(Kind::Memory, 0, 1, vec![]), "no pages per chunk");
        assert!(bad(Kind::Memory, 65, 1, vec![]), "more than a word has bits");
        assert!(bad(Kind::Memory, 16, MAX_PAGES + 1, vec![]), "too long");
        assert!(bad(Kind::Memory, 16, 16, vec![span(0, 1, 1), span(0, 2, 2)]), "twice");
        assert!(bad(Kind::Memory, 16, 16, vec![span(1, 1, 1)]), "behind the end");
        assert!(bad(Kind::Memory, 16, 17, vec![span(1, 2, 2)]), "a page behind the end");
        assert!(bad(Kind::Memory, 16, 32, vec![span(0, 1 << 16, 1 << 16)]), "a bit of no page");
        assert!(bad(Kind::Memory, 16, 16, vec![span(0, 1, 0)]), "zeroes of RAM");
        assert!(bad(Kind::Disk, 16, 16, vec![span(0, 0, 0)]), "nothing");
        assert!(bad(Kind::Disk, 16, 16, vec![span(0, 1, 2)]), "data that is not held");
        assert!(bad(Kind::Disk, 16, 16, vec![Span { chunk: None, ..span(0, 1, 1) }]), "data without chunk");
        assert!(bad(Kind::Disk, 64, 1 << 30, vec![span(u64::MAX, 1, 0)]), "an index that wraps");
        assert!(!bad(Kind::Disk, 64, 64, vec![span(0, u64::MAX, u64::MAX)]), "a full word is fine");
    }
}

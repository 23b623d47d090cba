//! A pack: chunks in one file, of the size of an object in a bucket. Its index comes first, so that what lies in a pack
//! is known from its beginning.

use super::envelope::{self, FileKind, FormatError, HEADER_BYTES, Header};
use super::fields::Fields;
use super::manifest::{MAX_CHUNK_PAGES, PAGE_BYTES};
use crate::id::{ChunkId, ID_BYTES, PackId};
use crc_fast::{CrcAlgorithm, Digest};
use std::ops::Range;

const COUNT_AT: usize = HEADER_BYTES;
const PADDING_AT: usize = COUNT_AT + size_of::<u32>();
const INDEX_CHECKSUM_AT: usize = PADDING_AT + size_of::<u32>();
const ENTRIES_AT: usize = INDEX_CHECKSUM_AT + size_of::<u64>();
const _: () = assert!(ENTRIES_AT == 48, "docs/snapshot-format.md says 48");

const ENTRY_STORED_AT: usize = ID_BYTES;
const ENTRY_RAW_AT: usize = ENTRY_STORED_AT + size_of::<u32>();
const ENTRY_BYTES: usize = ENTRY_RAW_AT + size_of::<u32>();
const _: () = assert!(ENTRY_BYTES == 40, "docs/snapshot-format.md says 40");

/// The largest pack that is read, in bytes. Writers stay far below it.
pub const MAX_PACK_BYTES: u64 = 16 << 20;
const MAX_RAW_BYTES: usize = MAX_CHUNK_PAGES as usize * PAGE_BYTES;

/// A chunk in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// Which chunk.
    pub id: ChunkId,
    /// Where it begins in the file.
    pub offset: u32,
    /// How long it is there, in bytes. As long as `raw` where compressing it saved nothing, and then it is not compressed.
    pub stored: u32,
    /// How long it is uncompressed, in bytes: a positive number of pages.
    pub raw: u32,
}

impl PackEntry {
    /// Where it lies in the file.
    pub(crate) fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + self.stored as usize
    }
}

/// What lies in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PackIndex {
    /// The chunks, in the order in which they lie in the file, without gaps.
    pub(crate) entries: Vec<PackEntry>,
    /// The length of the whole file.
    pub(crate) file_len: u64,
}

/// How much of the beginning of a pack [`read_index`] wants, according to its first bytes (at least 48, or all there are).
pub(crate) fn index_bytes(start: &[u8]) -> Result<usize, FormatError> {
    let header = Header::read(FileKind::Pack, start)?;
    let count = Fields(&start[HEADER_BYTES..]).u32()? as usize;
    let len = count.checked_mul(ENTRY_BYTES).and_then(|len| len.checked_add(ENTRIES_AT)).ok_or(FormatError::Length)?;
    let file_len = header.payload_len.checked_add(HEADER_BYTES as u64).ok_or(FormatError::Length)?;
    let is_sane = file_len <= MAX_PACK_BYTES && len as u64 <= file_len;
    if is_sane { Ok(len) } else { Err(FormatError::Length) }
}

/// Reads the index at the beginning of a pack. The chunks need not be in `start`.
pub(crate) fn read_index(start: &[u8]) -> Result<PackIndex, FormatError> {
    let header = Header::read(FileKind::Pack, start)?;
    let len = index_bytes(start)?;
    let index = start.get(..len).ok_or(FormatError::Length)?;
    let mut fields = Fields(&index[COUNT_AT..]);
    let count = fields.u32()? as usize;
    if fields.u32()? != 0 {
        return Err(FormatError::Field("padding"));
    }
    if fields.u64()? != index_checksum(index) {
        return Err(FormatError::Checksum);
    }
    // Cannot wrap: `index_bytes` has seen that it is at most `MAX_PACK_BYTES`.
    let file_len = header.payload_len + HEADER_BYTES as u64;
    let mut offset = len as u64;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let id = ChunkId(fields.array()?);
        let (stored, raw) = (fields.u32()?, fields.u32()?);
        let is_whole_pages = raw != 0 && (raw as usize).is_multiple_of(PAGE_BYTES) && raw as usize <= MAX_RAW_BYTES;
        if !is_whole_pages || stored == 0 || stored > raw {
            return Err(FormatError::Field("chunk length"));
        }
        entries.push(PackEntry { id, offset: offset as u32, stored, raw });
        // No overflow: fewer than 2^24 entries of less than 2^19 bytes. And no wrong offset: the sum is checked below.
        offset += u64::from(stored);
    }
    if offset != file_len {
        return Err(FormatError::Length);
    }
    Ok(PackIndex { entries, file_len })
}

/// A whole pack in memory.
pub(crate) struct Pack<'f> {
    file: &'f [u8],
    pub(crate) index: PackIndex,
}

impl<'f> Pack<'f> {
    /// Reads a pack whose name is its id, with every check but those of the chunks.
    pub(crate) fn read(id: PackId, file: &'f [u8]) -> Result<Self, FormatError> {
        envelope::unseal(FileKind::Pack, file)?;
        let index = read_index(file)?;
        if PackId::of(file) != id {
            return Err(FormatError::Name);
        }
        Ok(Self { file, index })
    }

    /// A chunk as it is stored.
    pub(crate) fn stored(&self, entry: &PackEntry) -> &'f [u8] {
        // `unseal` has seen that the file has its full length, and `read_index` that the entries add up to it.
        &self.file[entry.range()]
    }
}

/// A pack that is being filled.
#[derive(Default)]
pub(crate) struct PackBuilder {
    entries: Vec<(ChunkId, u32, u32)>,
    chunks: Vec<u8>,
}

impl PackBuilder {
    /// Adds a chunk: its stored bytes, and its length uncompressed. Equal lengths mean that it is not compressed.
    pub(crate) fn push(&mut self, id: ChunkId, stored: &[u8], raw_len: usize) {
        debug_assert!(!stored.is_empty() && stored.len() <= raw_len && raw_len <= MAX_RAW_BYTES);
        self.entries.push((id, stored.len() as u32, raw_len as u32));
        self.chunks.extend_from_slice(stored);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The length of the file, were it finished now.
    pub(crate) fn file_len(&self) -> usize {
        ENTRIES_AT + self.entries.len() * ENTRY_BYTES + self.chunks.len()
    }

    /// The finished file and its name.
    pub(crate) fn finish(self) -> (PackId, PackIndex, Vec<u8>) {
        let mut file = Vec::with_capacity(self.file_len());
        file.resize(ENTRIES_AT, 0);
        file[COUNT_AT..PADDING_AT].copy_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for (id, stored, raw) in &self.entries {
            file.extend_from_slice(&id.0);
            file.extend_from_slice(&stored.to_le_bytes());
            file.extend_from_slice(&raw.to_le_bytes());
        }
        let index_len = file.len();
        let mut offset = index_len as u32;
        let place = |(id, stored, raw): (ChunkId, u32, u32)| {
            let entry = PackEntry { id, offset, stored, raw };
            offset += stored;
            entry
        };
        let entries = self.entries.into_iter().map(place).collect();
        file.extend_from_slice(&self.chunks);
        // Twice: the index's checksum covers the header, and the header's covers the index.
        let mut file = envelope::seal(FileKind::Pack, file);
        let checksum = index_checksum(&file[..index_len]);
        file[INDEX_CHECKSUM_AT..ENTRIES_AT].copy_from_slice(&checksum.to_le_bytes());
        let file = envelope::seal(FileKind::Pack, file);
        (PackId::of(&file), PackIndex { entries, file_len: file.len() as u64 }, file)
    }
}

/// Overwrites the checksums of a pack, as far as its count leads and its data goes.
#[cfg(feature = "fuzzing")]
pub(crate) fn make_index_checksum_right(file: &mut Vec<u8>) {
    let Ok(len) = index_bytes(file) else { return };
    let Some(index) = file.get(..len) else { return };
    let checksum = index_checksum(index);
    file[INDEX_CHECKSUM_AT..ENTRIES_AT].copy_from_slice(&checksum.to_le_bytes());
    *file = envelope::seal(FileKind::Pack, std::mem::take(file));
}

/// Of the header without its checksum, the count, and the entries: what is read where the chunks are not.
fn index_checksum(index: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(envelope::identity(index));
    digest.update(&index[COUNT_AT..INDEX_CHECKSUM_AT]);
    digest.update(&index[ENTRIES_AT..]);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (PackId, PackIndex, Vec<u8>) {
        let mut pack = PackBuilder::default();
        pack.push(ChunkId::of(&[1; PAGE_BYTES]), &[7; 100], PAGE_BYTES);
        pack.push(ChunkId::of(&[2; PAGE_BYTES]), &[2; PAGE_BYTES], PAGE_BYTES);
        pack.finish()
    }

    #[test]
    fn the_index_is_known_from_the_beginning_of_the_file() {
        let (id, index, file) = sample();
        let len = index_bytes(&file[..ENTRIES_AT]).unwrap();
        assert_eq!(read_index(&file[..len]).unwrap(), index);
        let pack = Pack::read(id, &file).unwrap();
        assert_eq!(pack.stored(&index.entries[0]), [7; 100]);
        assert_eq!(pack.stored(&index.entries[1]), [2; PAGE_BYTES]);
    }

    #[test]
    fn every_flipped_bit_of_a_pack_is_found_and_those_of_its_index_without_the_chunks() {
        let (id, _, good) = sample();
        let index_len = index_bytes(&good).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Pack::read(id, &bad).is_err(), "bit {bit}");
            let is_checksum_of_all = (24..32).contains(&(bit / 8));
            if bit / 8 < index_len && !is_checksum_of_all {
                assert!(read_index(&bad[..index_len]).is_err(), "bit {bit} of the index");
            }
        }
    }

    #[test]
    fn a_cut_pack_is_refused() {
        let (id, _, good) = sample();
        (0..good.len()).for_each(|len| assert!(Pack::read(id, &good[..len]).is_err(), "cut to {len}"));
    }
}

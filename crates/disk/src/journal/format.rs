//! The bytes of a map journal. All numbers are little-endian.

use crc_fast::{CrcAlgorithm, Digest};

use crate::map::Slot;

/// Names a layer for good, so that files which were mixed up are noticed.
pub(crate) type LayerId = [u8; 16];

pub(super) const MAGIC: [u8; 8] = *b"PANDOMAP";
/// The format that this build writes and reads.
pub(super) const FORMAT: u32 = 1;

const FORMAT_AT: usize = MAGIC.len();
const ANCESTOR_COUNT_AT: usize = FORMAT_AT + size_of::<u32>();
const ID_AT: usize = ANCESTOR_COUNT_AT + size_of::<u32>();
const LEN_AT: usize = ID_AT + size_of::<LayerId>();
const BASE_LEN_AT: usize = LEN_AT + size_of::<u64>();
/// The part of a header that is always there; ancestors and checksum follow.
pub(super) const HEADER_START_BYTES: usize = BASE_LEN_AT + size_of::<u64>();
const _: () = assert!(HEADER_START_BYTES == 48, "docs/disk-format.md says 48");

const ANCESTOR_JOURNAL_AT: usize = size_of::<LayerId>();
pub(super) const ANCESTOR_BYTES: usize = ANCESTOR_JOURNAL_AT + size_of::<u64>();
const _: () = assert!(ANCESTOR_BYTES == 24, "docs/disk-format.md says 24");

pub(super) const CHECKSUM_BYTES: usize = size_of::<u64>();

const RECORD_MAGIC: [u8; 4] = *b"MAP+";
const RECORD_COUNT_AT: usize = RECORD_MAGIC.len();
const SEQUENCE_AT: usize = RECORD_COUNT_AT + size_of::<u32>();
/// The part of a record in front of its entries; entries and checksum follow.
pub(super) const RECORD_START_BYTES: usize = SEQUENCE_AT + size_of::<u64>();
const _: () = assert!(RECORD_START_BYTES == 16, "docs/disk-format.md says 16");

const SLOT_AT: usize = size_of::<u32>();
const ORDINAL_AT: usize = SLOT_AT + size_of::<u32>();
const PADDING_AT: usize = ORDINAL_AT + size_of::<u16>();
pub(super) const ENTRY_BYTES: usize = PADDING_AT + size_of::<u16>();
const _: () = assert!(ENTRY_BYTES == 12, "docs/disk-format.md says 12");

/// The most entries of one record, so that neither side needs more than 768 KiB for one. A flush of more writes several.
pub(super) const MAX_ENTRIES: usize = 1 << 16;
/// The number of a journal's first record.
pub(super) const FIRST_SEQUENCE: u64 = 1;

/// What a journal says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The layer that this is the journal of.
    pub(crate) id: LayerId,
    /// The disk's size.
    pub(crate) len_bytes: u64,
    /// The base's size.
    pub(crate) base_len_bytes: u64,
    /// The layers that were inherited, oldest first.
    pub(crate) ancestors: Vec<Ancestor>,
}

/// An inherited layer, as of the fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ancestor {
    pub(crate) id: LayerId,
    /// How much of its journal counts. 0 where nothing of it was durable: all that mattered is in the child's journal.
    pub(crate) journal_bytes: u64,
}

/// One change of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) block: u32,
    pub(crate) slot: Slot,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_START_BYTES + self.ancestors.len() * ANCESTOR_BYTES + CHECKSUM_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(self.ancestors.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.len_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.base_len_bytes.to_le_bytes());
        for ancestor in &self.ancestors {
            bytes.extend_from_slice(&ancestor.id);
            bytes.extend_from_slice(&ancestor.journal_bytes.to_le_bytes());
        }
        let checksum = header_checksum(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// The always-there part of a header, of which only magic, format and lengths' places are known so far.
pub(super) struct HeaderStart {
    pub(super) magic: [u8; 8],
    pub(super) format: u32,
    pub(super) ancestor_count: u32,
    pub(super) id: LayerId,
    pub(super) len_bytes: u64,
    pub(super) base_len_bytes: u64,
}

impl HeaderStart {
    pub(super) fn decode(bytes: &[u8; HEADER_START_BYTES]) -> Self {
        Self {
            magic: field(bytes, 0),
            format: u32::from_le_bytes(field(bytes, FORMAT_AT)),
            ancestor_count: u32::from_le_bytes(field(bytes, ANCESTOR_COUNT_AT)),
            id: field(bytes, ID_AT),
            len_bytes: u64::from_le_bytes(field(bytes, LEN_AT)),
            base_len_bytes: u64::from_le_bytes(field(bytes, BASE_LEN_AT)),
        }
    }
}

impl Ancestor {
    pub(super) fn decode(bytes: &[u8; ANCESTOR_BYTES]) -> Self {
        Self { id: field(bytes, 0), journal_bytes: u64::from_le_bytes(field(bytes, ANCESTOR_JOURNAL_AT)) }
    }
}

/// The part of a record in front of its entries. `None` where it is no record.
pub(super) struct RecordStart {
    pub(super) count: usize,
    pub(super) sequence: u64,
}

impl RecordStart {
    pub(super) fn decode(bytes: &[u8; RECORD_START_BYTES]) -> Option<Self> {
        let count = u32::from_le_bytes(field(bytes, RECORD_COUNT_AT)) as usize;
        let is_record = bytes.starts_with(&RECORD_MAGIC) && (1..=MAX_ENTRIES).contains(&count);
        is_record.then(|| Self { count, sequence: u64::from_le_bytes(field(bytes, SEQUENCE_AT)) })
    }
}

impl Entry {
    /// An entry, and the two bytes behind it, which are zero in a journal of ours.
    pub(super) fn decode(bytes: &[u8; ENTRY_BYTES]) -> (Self, u16) {
        let slot = Slot {
            ordinal: u16::from_le_bytes(field(bytes, ORDINAL_AT)),
            index: u32::from_le_bytes(field(bytes, SLOT_AT)),
        };
        (Self { block: u32::from_le_bytes(field(bytes, 0)), slot }, u16::from_le_bytes(field(bytes, PADDING_AT)))
    }
}

/// A whole record of `entries`, at most [`MAX_ENTRIES`].
pub(super) fn encode_record(id: LayerId, sequence: u64, entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD_START_BYTES + entries.len() * ENTRY_BYTES + CHECKSUM_BYTES);
    bytes.extend_from_slice(&RECORD_MAGIC);
    bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&sequence.to_le_bytes());
    for Entry { block, slot } in entries {
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(&slot.index.to_le_bytes());
        bytes.extend_from_slice(&slot.ordinal.to_le_bytes());
        bytes.extend_from_slice(&[0; size_of::<u16>()]);
    }
    let checksum = record_checksum(id, &bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The checksum of a header.
pub(super) fn header_checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// The checksum of a record. It begins with the layer's id, so that a record of another journal is none here.
pub(super) fn record_checksum(id: LayerId, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(&id);
    digest.update(bytes);
    digest.finalize()
}

/// The `N` bytes at `at`, which the caller's array type proves to be there.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

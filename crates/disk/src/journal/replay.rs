//! Reading a journal back. Nothing in it is trusted: lengths are bounded before they are used, checksums come before
//! meaning, and meaning is checked against the files that are there.

use std::io::{self, ErrorKind, Read};

use super::format::{
    self, ANCESTOR_BYTES, Ancestor, CHECKSUM_BYTES, ENTRY_BYTES, Entry, FIRST_SEQUENCE, FORMAT, HEADER_START_BYTES,
    Header, HeaderStart, LayerId, MAGIC, RECORD_START_BYTES, RecordStart,
};
use crate::MAX_LAYERS;
use crate::map::BlockMap;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It could not be read.
    #[error("cannot read it")]
    Read {
        /// The cause.
        source: io::Error,
    },
    /// It ends before its header does: power was lost before the disk's first flush.
    #[error("it has no whole header, so the disk was never flushed")]
    NoHeader,
    /// It begins with something else.
    #[error("it is not a map journal")]
    Magic,
    /// Another build wrote it.
    #[error("it has format {found}, this build reads {FORMAT}")]
    Format {
        /// The format it has.
        found: u32,
    },
    /// It claims more ancestors than a disk can have.
    #[error("it names {found} inherited layers, and a disk has at most {MAX_LAYERS} layers")]
    TooDeep {
        /// How many it claims.
        found: u32,
    },
    /// The header is damaged.
    #[error("the checksum of its header is wrong")]
    HeaderChecksum,
    /// A valid record says what cannot be.
    #[error("record {sequence} puts block {block} into slot {slot} of layer {ordinal}, {problem}")]
    Entry {
        /// The record's number, the first being 1.
        sequence: u64,
        /// The block, in units of 4 KiB.
        block: u32,
        /// The slot, in units of 4 KiB.
        slot: u32,
        /// The layer, 0 being the oldest.
        ordinal: u16,
        /// What is wrong with that.
        problem: EntryError,
    },
}

/// Why a change of the map cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The block is past the disk's end.
    #[error("but the disk has no such block")]
    Block,
    /// The layer is younger than the journal, or does not exist.
    #[error("but the journal knows no such layer")]
    Layer,
    /// The slot is past the end of the layer's data file.
    #[error("but the layer's data file is shorter")]
    Slot,
    /// Bytes that this format leaves at zero are not.
    #[error("with a meaning that this build does not know")]
    Padding,
}

/// What reading the records gave.
#[derive(Debug)]
pub(crate) struct Replayed {
    /// Where the last valid record ends, in bytes from the start of the journal.
    pub(crate) end: u64,
    /// The number that the next record has.
    pub(crate) next_sequence: u64,
}

impl Header {
    /// Reads the header, and leaves `input` at the first record.
    pub(crate) fn read(input: &mut impl Read) -> Result<Self, JournalError> {
        let start_bytes: [u8; HEADER_START_BYTES] = read_header_part(input)?;
        let start = HeaderStart::decode(&start_bytes);
        if start.magic != MAGIC {
            return Err(JournalError::Magic);
        }
        if start.format != FORMAT {
            return Err(JournalError::Format { found: start.format });
        }
        if MAX_LAYERS as u32 <= start.ancestor_count {
            return Err(JournalError::TooDeep { found: start.ancestor_count });
        }
        let mut bytes = start_bytes.to_vec();
        let mut ancestors = Vec::new();
        for _ in 0..start.ancestor_count {
            let ancestor: [u8; ANCESTOR_BYTES] = read_header_part(input)?;
            bytes.extend_from_slice(&ancestor);
            ancestors.push(Ancestor::decode(&ancestor));
        }
        let checksum: [u8; CHECKSUM_BYTES] = read_header_part(input)?;
        if u64::from_le_bytes(checksum) != format::header_checksum(&bytes) {
            return Err(JournalError::HeaderChecksum);
        }
        Ok(Self { id: start.id, len_bytes: start.len_bytes, base_len_bytes: start.base_len_bytes, ancestors })
    }

    /// How many bytes the header takes.
    pub(crate) fn encoded_bytes(&self) -> u64 {
        (HEADER_START_BYTES + self.ancestors.len() * ANCESTOR_BYTES + CHECKSUM_BYTES) as u64
    }
}

/// Reads records until there is none or one is not valid, and says each change to `map`.
///
/// `input` is behind the header. `slots` has one element per layer that the journal may name: how many slots are there.
pub(crate) fn replay(
    input: &mut impl Read,
    header: &Header,
    slots: &[u64],
    map: &mut BlockMap,
) -> Result<Replayed, JournalError> {
    let mut replayed = Replayed { end: header.encoded_bytes(), next_sequence: FIRST_SEQUENCE };
    while let Some((bytes, count)) = read_record(input, header.id, replayed.next_sequence)? {
        let entries = &bytes[RECORD_START_BYTES..RECORD_START_BYTES + count * ENTRY_BYTES];
        for entry in entries.as_chunks().0 {
            apply(Entry::decode(entry), slots, map).map_err(|(Entry { block, slot }, problem)| {
                JournalError::Entry {
                    sequence: replayed.next_sequence,
                    block,
                    slot: slot.index,
                    ordinal: slot.ordinal,
                    problem,
                }
            })?;
        }
        replayed.end += bytes.len() as u64;
        replayed.next_sequence += 1;
    }
    Ok(replayed)
}

/// The bytes of the next record and the number of its entries, where there is a valid one.
fn read_record(input: &mut impl Read, id: LayerId, sequence: u64) -> Result<Option<(Vec<u8>, usize)>, JournalError> {
    let mut start_bytes = [0; RECORD_START_BYTES];
    if !read_all(input, &mut start_bytes)? {
        return Ok(None);
    }
    let Some(start) = RecordStart::decode(&start_bytes).filter(|start| start.sequence == sequence) else {
        return Ok(None);
    };
    // At most 768 KiB, whatever the journal says: `decode` bounds the count.
    let mut bytes = vec![0; RECORD_START_BYTES + start.count * ENTRY_BYTES + CHECKSUM_BYTES];
    bytes[..RECORD_START_BYTES].copy_from_slice(&start_bytes);
    if !read_all(input, &mut bytes[RECORD_START_BYTES..])? {
        return Ok(None);
    }
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    let is_whole = checksum == format::record_checksum(id, content).to_le_bytes();
    Ok(is_whole.then_some((bytes, start.count)))
}

fn apply((entry, padding): (Entry, u16), slots: &[u64], map: &mut BlockMap) -> Result<(), (Entry, EntryError)> {
    if padding != 0 {
        return Err((entry, EntryError::Padding));
    }
    if map.len() <= u64::from(entry.block) {
        return Err((entry, EntryError::Block));
    }
    match slots.get(usize::from(entry.slot.ordinal)) {
        None => Err((entry, EntryError::Layer)),
        Some(there) if *there <= u64::from(entry.slot.index) => Err((entry, EntryError::Slot)),
        Some(_) => {
            map.set(u64::from(entry.block), entry.slot);
            Ok(())
        }
    }
}

fn read_header_part<const N: usize>(input: &mut impl Read) -> Result<[u8; N], JournalError> {
    let mut bytes = [0; N];
    if read_all(input, &mut bytes)? { Ok(bytes) } else { Err(JournalError::NoHeader) }
}

/// Fills `buffer`; false where the input ends before that.
fn read_all(input: &mut impl Read, buffer: &mut [u8]) -> Result<bool, JournalError> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(source) => Err(JournalError::Read { source }),
    }
}

/// Reads `data` as a journal over a small disk. For fuzzers: whatever `data` is, this must return.
#[cfg(feature = "fuzzing")]
pub fn fuzz_journal(mut data: &[u8]) {
    const BLOCKS: usize = 1024;
    const SLOTS: u64 = 64;
    let Ok(header) = Header::read(&mut data) else { return };
    let Some(mut map) = BlockMap::new(BLOCKS) else { return };
    let slots = vec![SLOTS; header.ancestors.len() + 1];
    let _ = replay(&mut data, &header, &slots, &mut map);
}

//! A disk's journal that is the input; once as it is, and once with checksums made right, or hardly any input would get
//! behind the first of them. The places of the checksums are those of `docs/disk-format.md`.
#![no_main]

use crc_fast::{CrcAlgorithm, Digest};

const HEADER_START_BYTES: usize = 48;
const ANCESTOR_COUNT_AT: usize = 12;
const LAYER_ID_AT: usize = 16;
const ANCESTOR_BYTES: usize = 24;
const RECORD_START_BYTES: usize = 16;
const ENTRY_COUNT_AT: usize = 4;
const ENTRY_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 8;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    pando_disk::fuzz_journal(data);
    let mut data = data.to_vec();
    make_checksums_right(&mut data);
    pando_disk::fuzz_journal(&data);
});

/// Overwrites the checksums of the header and of all records, as far as the counts lead and the data goes.
fn make_checksums_right(data: &mut [u8]) -> Option<()> {
    let header_bytes = HEADER_START_BYTES + count(data, ANCESTOR_COUNT_AT)?.checked_mul(ANCESTOR_BYTES)?;
    let layer_id: [u8; 16] = data.get(LAYER_ID_AT..LAYER_ID_AT + 16)?.try_into().ok()?;
    let mut rest = seal(data, header_bytes, &[])?;
    loop {
        let record_bytes = RECORD_START_BYTES + count(rest, ENTRY_COUNT_AT)?.checked_mul(ENTRY_BYTES)?;
        rest = seal(rest, record_bytes, &layer_id)?;
    }
}

/// Writes the checksum of `prefix` and the first `len` bytes behind those, and returns what follows it.
fn seal<'d>(data: &'d mut [u8], len: usize, prefix: &[u8]) -> Option<&'d mut [u8]> {
    let (content, rest) = data.split_at_mut_checked(len)?;
    let (checksum, rest) = rest.split_at_mut_checked(CHECKSUM_BYTES)?;
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(prefix);
    digest.update(content);
    checksum.copy_from_slice(&digest.finalize().to_le_bytes());
    Some(rest)
}

fn count(data: &[u8], at: usize) -> Option<usize> {
    let bytes = data.get(at..at + size_of::<u32>())?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
}

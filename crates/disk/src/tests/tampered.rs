use std::fs;
use std::path::PathBuf;

use crate::journal::{Entry, Header};
use crate::map::Slot;
use crate::tests::{Bench, read, spoil};
use crate::{BLOCK_BYTES, EntryError, JOURNAL_FILE, JournalError, MAX_LAYERS, OpenError};

/// A disk of four blocks with one flushed block, and the path of its journal.
fn flushed(bench: &Bench) -> PathBuf {
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);
    disk.write_at(0, b"flushed").unwrap();
    disk.flush().unwrap();
    bench.layer("vm").join(JOURNAL_FILE)
}

/// What recovering says after `change` was made to the journal's bytes.
fn refused(change: impl FnOnce(&mut Vec<u8>)) -> JournalError {
    let bench = Bench::new(0);
    let journal = flushed(&bench);
    let mut bytes = fs::read(&journal).unwrap();
    change(&mut bytes);
    fs::write(&journal, &bytes).unwrap();
    match bench.recover("vm", &[]).map(|disk| disk.state()) {
        Err(OpenError::Journal { ordinal: 0, source }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_spoiled_header_is_refused_by_name() {
    assert!(matches!(refused(|bytes| bytes[0] = b'x'), JournalError::Magic));
    assert!(matches!(refused(|bytes| bytes[8] = 2), JournalError::Format { found: 2 }));
    assert!(matches!(refused(|bytes| bytes[12] = MAX_LAYERS as u8), JournalError::TooDeep { found: 120 }));
    assert!(matches!(refused(|bytes| bytes[16] ^= 1), JournalError::HeaderChecksum));
    assert!(matches!(refused(|bytes| bytes[33] ^= 1), JournalError::HeaderChecksum));
    assert!(matches!(refused(|bytes| bytes.truncate(55)), JournalError::NoHeader));
    assert!(matches!(refused(Vec::clear), JournalError::NoHeader));
}

#[test]
fn a_valid_record_that_says_what_cannot_be_is_refused_by_name() {
    for (block, ordinal, index, wanted) in [
        (4, 0, 0, EntryError::Block),
        (u32::MAX, 0, 0, EntryError::Block),
        (0, 1, 0, EntryError::Layer),
        (0, u16::MAX, 0, EntryError::Layer),
        (0, 0, 1, EntryError::Slot),
        (0, 0, u32::MAX, EntryError::Slot),
    ] {
        let bench = Bench::new(0);
        let mut disk = bench.create("vm", 4 * BLOCK_BYTES);
        disk.write_at(0, b"flushed").unwrap();
        disk.flush().unwrap();
        disk.journal.append([Entry { block, slot: Slot { ordinal, index } }].into_iter()).unwrap();

        match bench.recover("vm", &[]).map(|disk| disk.state()) {
            Err(OpenError::Journal { source: JournalError::Entry { problem, sequence: 2, .. }, .. }) => {
                assert_eq!(problem, wanted);
            }
            other => panic!("{wanted:?}: {other:?}"),
        }
    }
}

#[test]
fn an_impossible_size_in_a_valid_header_is_refused() {
    for (n, len_bytes) in [0, 1, u64::MAX, 1 << 50].into_iter().enumerate() {
        let bench = Bench::new(0);
        let name = format!("vm-{n}");
        let files = bench.new_files(&name, &[]);
        let header = Header { id: [7; 16], len_bytes, base_len_bytes: 0, ancestors: Vec::new() };
        crate::journal::Journal::create(files.journal, &header).unwrap();
        assert!(matches!(bench.recover(&name, &[]), Err(OpenError::Length { .. })), "{len_bytes}");
    }
}

#[test]
fn a_base_of_another_size_is_refused() {
    let bench = Bench::new(0);
    flushed(&bench);
    fs::write(bench.layer("base"), [1; 10]).unwrap();
    assert!(matches!(bench.recover("vm", &[]), Err(OpenError::BaseChanged { found: 10, recorded: 0 })));
}

#[test]
fn a_torn_end_is_cut_off_and_reported_wherever_it_is_torn() {
    let bench = Bench::new(0);
    let journal = flushed(&bench);
    let whole = fs::read(&journal).unwrap();
    let mut disk = bench.recover("vm", &[]).unwrap();
    disk.write_at(BLOCK_BYTES, b"second").unwrap();
    disk.flush().unwrap();
    drop(disk);
    let longer = fs::read(&journal).unwrap();

    for end in whole.len()..longer.len() {
        fs::write(&journal, &longer[..end]).unwrap();
        let mut disk = bench.recover("vm", &[]).unwrap();
        assert_eq!(disk.dropped_journal_bytes() as usize, end - whole.len());
        assert_eq!(fs::metadata(&journal).unwrap().len() as usize, whole.len());
        assert_eq!(read(&disk, 0, 7), b"flushed");
        assert_eq!(read(&disk, BLOCK_BYTES, 6), [0; 6]);
        disk.write_at(BLOCK_BYTES, b"third").unwrap();
        disk.flush().unwrap();
        assert_eq!(read(&bench.recover("vm", &[]).unwrap(), BLOCK_BYTES, 5), b"third");
    }
}

#[test]
fn a_spoiled_record_is_never_believed() {
    let bench = Bench::new(0);
    let journal = flushed(&bench);
    let bytes = fs::read(&journal).unwrap();
    for at in 56..bytes.len() {
        fs::write(&journal, &bytes).unwrap();
        spoil(&journal, at as u64);
        let disk = bench.recover("vm", &[]).unwrap();
        assert_eq!(disk.dropped_journal_bytes() as usize, bytes.len() - 56, "byte {at}");
        assert_eq!(read(&disk, 0, 7), [0; 7]);
    }
}

#[test]
fn a_record_of_another_layer_is_not_believed() {
    let bench = Bench::new(0);
    let journal = flushed(&bench);
    let other = bench.create("other", 4 * BLOCK_BYTES);
    drop(other);
    let record = fs::read(&journal).unwrap().split_off(56);
    let other = bench.layer("other").join(JOURNAL_FILE);
    let mut bytes = fs::read(&other).unwrap();
    bytes.extend_from_slice(&record);
    fs::write(&other, &bytes).unwrap();

    assert_eq!(bench.recover("other", &[]).unwrap().dropped_journal_bytes() as usize, record.len());
}

#[test]
fn a_record_out_of_its_turn_is_not_believed() {
    let bench = Bench::new(0);
    let journal = flushed(&bench);
    let mut bytes = fs::read(&journal).unwrap();
    let record = bytes[56..].to_vec();
    bytes.extend_from_slice(&record); // Again, with the sequence it had.
    fs::write(&journal, &bytes).unwrap();

    assert_eq!(bench.recover("vm", &[]).unwrap().dropped_journal_bytes() as usize, record.len());
}

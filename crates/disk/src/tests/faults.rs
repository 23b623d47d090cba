use std::fs::OpenOptions;
use std::mem;

use crate::tests::{Bench, power, read};
use crate::{BLOCK_BYTES, Disk, FlushError, WriteError};

const BLOCK: usize = BLOCK_BYTES as usize;

/// A file on a device that is always full.
fn full() -> std::fs::File {
    OpenOptions::new().read(true).write(true).open("/dev/full").unwrap()
}

#[test]
fn a_write_that_finds_no_space_changes_nothing_and_can_be_repeated() {
    let bench = Bench::new(BLOCK);
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);
    disk.write_at(0, b"old").unwrap();
    disk.seal();
    let before = disk.state();
    let roomy = mem::replace(&mut disk.own.data, full());

    let error = disk.write_at(0, b"new").unwrap_err();

    assert!(matches!(error, WriteError::NoSpace { .. }));
    assert_eq!(error.to_string(), "disk layer: no space");
    assert_eq!(disk.state(), before);

    disk.own.data = roomy;
    assert_eq!(read(&disk, 0, 3), b"old");
    disk.write_at(0, b"new").unwrap();
    assert_eq!(read(&disk, 0, 3), b"new");
}

#[test]
fn a_flush_that_finds_no_space_can_be_repeated() {
    let bench = Bench::new(BLOCK);
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);
    disk.write_at(0, b"kept").unwrap();
    let roomy = mem::replace(&mut disk.journal.file, full());

    assert!(matches!(disk.flush(), Err(FlushError::NoSpace { .. })));

    disk.journal.file = roomy;
    disk.flush().unwrap();
    assert_eq!(read(&bench.recover("vm", &[]).unwrap(), 0, 4), b"kept");
}

#[test]
fn after_a_failed_sync_no_flush_of_the_disk_or_its_children_succeeds() {
    let bench = Bench::new(BLOCK);
    for (syncs, expected) in [(0, "the disk layer"), (1, "the disk map journal")] {
        let name = format!("vm-{syncs}");
        let mut disk = bench.create(&name, 4 * BLOCK_BYTES);
        disk.write_at(0, b"lost?").unwrap();

        power::fail_syncs_after(Some(syncs));
        let first = disk.flush();
        power::fail_syncs_after(None);

        assert!(matches!(first, Err(FlushError::Sync { what, .. }) if what == expected));
        assert!(matches!(disk.flush(), Err(FlushError::Broken)));
        let mut child = bench.fork(&mut disk, &[&name], &format!("child-{syncs}"));
        assert!(matches!(child.flush(), Err(FlushError::Broken)));
    }
}

#[test]
fn a_flush_without_changes_writes_nothing() {
    let bench = Bench::new(BLOCK);
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);
    disk.write_at(0, b"x").unwrap();
    disk.flush().unwrap();
    let journal_bytes = disk.journal.file.metadata().unwrap().len();

    power::fail_syncs_after(Some(0)); // Nothing needs a sync, so none can fail.
    disk.flush().unwrap();
    power::fail_syncs_after(None);

    assert_eq!(disk.journal.file.metadata().unwrap().len(), journal_bytes);
}

#[test]
fn the_largest_flush_comes_back() {
    let bench = Bench::new(0);
    let blocks = 70_000_u64; // More than one record holds.
    let mut disk = bench.create("vm", blocks * BLOCK_BYTES);
    for block in (0..blocks).rev() {
        disk.write_at(block * BLOCK_BYTES, &block.to_le_bytes()).unwrap();
    }
    // Without `on_sync`'s copy of 280 MB: only the journal matters here.
    disk.own.unsynced = false;
    disk.flush().unwrap();

    let recovered: Disk = bench.recover("vm", &[]).unwrap();
    assert_eq!(recovered.state().map_digest, disk.state().map_digest);
}

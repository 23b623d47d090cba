use crate::tests::{Bench, base_contents, read};
use crate::{BLOCK_BYTES, Disk, MAX_DISK_BYTES, OpenError, ReadError, WriteError};

const BLOCK: usize = BLOCK_BYTES as usize;

#[test]
fn a_new_disk_is_its_base_and_zeroes_behind_it() {
    let bench = Bench::new(2 * BLOCK + 100);
    let disk = bench.create("vm", 4 * BLOCK_BYTES);

    let mut expected = base_contents(2 * BLOCK + 100);
    expected.resize(4 * BLOCK, 0);
    assert_eq!(read(&disk, 0, 4 * BLOCK), expected);
    assert_eq!(read(&disk, 8190, 200), expected[8190..8390]);
}

#[test]
fn a_part_of_a_block_is_written_and_its_rest_stays() {
    let bench = Bench::new(2 * BLOCK);
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);

    disk.write_at(4000, &[0xab; 300]).unwrap();

    let mut expected = base_contents(2 * BLOCK);
    expected.resize(4 * BLOCK, 0);
    expected[4000..4300].fill(0xab);
    assert_eq!(read(&disk, 0, 4 * BLOCK), expected);
}

#[test]
fn a_block_that_is_written_again_keeps_its_slot() {
    let bench = Bench::new(0);
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);

    disk.write_at(0, &[1; BLOCK]).unwrap();
    let before = disk.state();
    disk.write_at(0, &[2; BLOCK]).unwrap();
    disk.write_at(100, &[3; 10]).unwrap();

    assert_eq!(disk.state(), before);
    assert_eq!(read(&disk, 98, 4), [2, 2, 3, 3]);
}

#[test]
fn a_disk_that_nobody_else_reads_does_not_grow_by_what_it_overwrites_after_each_recovery() {
    let bench = Bench::new(0);
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);
    let data_bytes = || std::fs::metadata(bench.layer("vm").join(crate::DATA_FILE)).unwrap().len();
    for life in 1..=10 {
        disk.write_at(0, &[life; 3 * BLOCK]).unwrap();
        disk.flush().unwrap();
        assert_eq!(data_bytes(), 3 * BLOCK_BYTES);
        disk = bench.recover("vm", &[]).unwrap();
        disk.thaw();
        assert_eq!(read(&disk, 0, 4 * BLOCK), [[life; 3 * BLOCK].as_slice(), &[0; BLOCK]].concat());
    }
    // But for what a child reads.
    let child = bench.fork(&mut disk, &["vm"], "child");
    disk.write_at(0, &[99; BLOCK]).unwrap();
    assert_eq!((data_bytes(), read(&child, 0, BLOCK)), (4 * BLOCK_BYTES, vec![10; BLOCK]));
}

#[test]
fn blocks_written_together_lie_together() {
    let bench = Bench::new(0);
    let mut disk = bench.create("vm", 16 * BLOCK_BYTES);

    disk.write_at(5 * BLOCK_BYTES, &[5; 4 * BLOCK]).unwrap();
    disk.write_at(2 * BLOCK_BYTES, &[2; 8 * BLOCK]).unwrap(); // Old slots in the middle of new ones.

    assert_eq!(disk.state().next_slot, 8);
    assert_eq!(read(&disk, 2 * BLOCK_BYTES, 9 * BLOCK), [[2; 8 * BLOCK].as_slice(), &[0; BLOCK]].concat());
}

#[test]
fn what_is_past_the_end_is_refused() {
    let bench = Bench::new(0);
    let mut disk = bench.create("vm", 2 * BLOCK_BYTES);
    let at = 2 * BLOCK_BYTES - 1;

    assert!(matches!(disk.read_at(at, &mut [0; 2]), Err(ReadError::OutOfRange { length: 2, .. })));
    assert!(matches!(disk.write_at(at, &[0; 2]), Err(WriteError::OutOfRange { length: 2, .. })));
    assert!(matches!(disk.write_at(u64::MAX, &[0; 2]), Err(WriteError::OutOfRange { .. })));
    assert!(disk.read_at(at + 1, &mut []).is_ok());
}

#[test]
fn impossible_sizes_are_refused() {
    let bench = Bench::new(3 * BLOCK);
    for (n, len_bytes) in [0, 100, BLOCK_BYTES + 1, MAX_DISK_BYTES + BLOCK_BYTES].into_iter().enumerate() {
        let created = Disk::create(bench.new_files(&format!("size-{n}"), &[]), len_bytes);
        assert!(matches!(created, Err(OpenError::Length { .. } | OpenError::BaseLonger { .. })), "{len_bytes}");
    }
    let shorter = Disk::create(bench.new_files("shorter", &[]), 2 * BLOCK_BYTES);
    assert!(matches!(shorter, Err(OpenError::BaseLonger { .. })));
}

#[test]
fn a_new_layer_never_overwrites_an_old_one() {
    let bench = Bench::new(0);
    let mut disk = bench.create("vm", 2 * BLOCK_BYTES);
    disk.write_at(0, &[1; 10]).unwrap();
    drop(disk);

    let again = Disk::create(bench.old_files("vm", &[]), 2 * BLOCK_BYTES);
    assert!(matches!(again, Err(OpenError::NotEmpty { .. })));
}

#[test]
fn what_was_flushed_is_there_after_a_kill() {
    let bench = Bench::new(BLOCK);
    let mut disk = bench.create("vm", 8 * BLOCK_BYTES);
    disk.write_at(3 * BLOCK_BYTES - 7, &[9; 5000]).unwrap();
    disk.flush().unwrap();
    let before = disk.state();
    drop(disk);

    let disk = bench.recover("vm", &[]).unwrap();

    assert_eq!(read(&disk, 3 * BLOCK_BYTES - 7, 5000), [9; 5000]);
    assert_eq!(disk.dropped_journal_bytes(), 0);
    assert_eq!(disk.state().map_digest, before.map_digest);
    assert_eq!(disk.state().frozen, before.next_slot, "children of the earlier life may read what was there");
}

#[test]
fn a_disk_of_the_largest_size_costs_nothing_until_it_is_written() {
    let bench = Bench::new(BLOCK);
    // The largest size that this host's address space policy is sure to allow.
    let len_bytes = MAX_DISK_BYTES / 16;
    let mut disk = bench.create("vm", len_bytes);

    disk.write_at(len_bytes - 4, &[7; 4]).unwrap();
    disk.flush().unwrap();
    drop(disk);

    let disk = bench.recover("vm", &[]).unwrap();
    assert_eq!(read(&disk, len_bytes - 6, 6), [0, 0, 7, 7, 7, 7]);
}

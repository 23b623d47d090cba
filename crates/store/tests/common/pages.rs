//! Checkpoints to write and to compare with. Also a part of the helper program, which has no dependencies of tests.
#![allow(dead_code, reason = "each test file uses a part")]

use pando_store::{Checkpoint, Kind, Machine, ManifestId, PAGE_BYTES, Page, Store, WriteError, Writer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A layer by its pages: a missing one is absent, 0 is zeroes, other numbers are bytes that only that number has.
pub(crate) type Pages = BTreeMap<u64, u64>;

/// The bytes of a page. Half of the numbers give bytes that compress, half do not.
pub(crate) fn page(number: u64) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    if number == 0 {
        return bytes;
    }
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in bytes.as_chunks_mut::<8>().0 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let value = if number.is_multiple_of(2) { number } else { state ^ (state >> 29) };
        *word = value.to_le_bytes();
    }
    bytes
}

pub(crate) fn write(writer: &Writer, kind: Kind, len: u64, pages: &Pages) -> Result<ManifestId, WriteError> {
    let mut layer = writer.layer(kind, len)?;
    for (at, number) in pages {
        layer.write(*at, &page(*number))?;
    }
    layer.finish()
}

pub(crate) fn checkpoint(name: &str, memory: Option<ManifestId>, disks: &[ManifestId]) -> Checkpoint {
    let machine = Machine {
        kind: "test".into(),
        version: 1,
        arch: "x86_64".into(),
        cpu_features: vec!["sse2".into()],
        state: name.as_bytes().to_vec(),
    };
    Checkpoint { name: name.into(), created_ms: 1, machine, memory, disks: disks.to_vec() }
}

/// Writes and publishes a checkpoint of this memory, with a writer of its own. Returns how many bytes of packs were new.
pub(crate) fn publish(store: &Store, name: &str, len: u64, pages: &Pages) -> Result<u64, WriteError> {
    let writer = store.writer()?;
    let memory = write(&writer, Kind::Memory, len, pages)?;
    writer.publish(&checkpoint(name, Some(memory), &[]))?;
    Ok(writer.new_bytes())
}

/// Everything that a checkpoint's memory reads as must be these pages.
pub(crate) fn assert_memory(store: &Store, name: &str, len: u64, pages: &Pages) {
    let open = store.open_checkpoint(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let memory = open.memory().unwrap().unwrap();
    assert_eq!(memory.pages(), len);
    let mut bytes = [1; PAGE_BYTES];
    for at in 0..len {
        let number = pages.get(&at).copied().unwrap_or(0);
        let what = memory.read_page(at, &mut bytes).unwrap_or_else(|error| panic!("{name}, page {at}: {error}"));
        assert_eq!(what, if number == 0 { Page::Absent } else { Page::Data }, "page {at}");
        assert!(bytes == page(number), "{name}: page {at} is not what was written");
    }
}

/// All files below a folder of a store, sorted.
pub(crate) fn files(store: &Path, folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(store.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Pages `0..count` with numbers from `first` on.
pub(crate) fn numbered(count: u64, first: u64) -> Pages {
    (0..count).map(|at| (at, first + at)).collect()
}

/// The length of a checkpoint that is written until its writer is killed.
pub(crate) const CHURN_PAGES: u64 = 160;

/// The memory of such a checkpoint, which its name says: much that all have in common, and some that only it has.
pub(crate) fn churned(name: &str) -> Pages {
    let own = 1_000_000 + name.bytes().fold(0u64, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte)) * 100;
    let mut pages = numbered(CHURN_PAGES, 1);
    for step in 0..20 {
        pages.insert((own + step * 37) % CHURN_PAGES, own + step);
    }
    pages
}

//! A store that the first version wrote is read for ever.
//!
//! `tests/fixtures/v1` was written by `write_the_fixture` below, with the code of format 1, and is never written again. A
//! later format gets a fixture of its own beside it.
#![allow(clippy::unwrap_used, reason = "a test that finds something else than it expects is to panic")]

mod common;

use common::{Pages, checkpoint, page, temporary, write};
use pando_store::{Kind, PAGE_BYTES, Page, Store};
use std::path::{Path, PathBuf};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

fn memory() -> Pages {
    // Pages that compress, that do not, that are zero, and that come twice.
    Pages::from([(0, 2), (1, 3), (2, 0), (5, 4), (6, 5), (40, 2), (41, 3), (99, 6)])
}

fn disk() -> Pages {
    Pages::from([(3, 0), (4, 8), (63, 9)])
}

/// Copied, because a reader takes a lease.
fn opened() -> (tempfile::TempDir, Store) {
    let directory = temporary();
    let to = directory.path().join("store");
    let copied = std::process::Command::new("cp").arg("-r").args([&fixture(), &to]).status().unwrap();
    assert!(copied.success());
    // Git keeps no empty directories.
    std::fs::create_dir_all(to.join("writers")).unwrap();
    let store = Store::open(&to).unwrap();
    (directory, store)
}

#[test]
#[ignore = "writes the fixture, once for each format"]
fn write_the_fixture() {
    assert!(!fixture().exists(), "there is one already");
    let store = Store::create(&fixture()).unwrap();
    let writer = store.writer().unwrap();
    let disk = write(&writer, Kind::Disk, 64, &disk()).unwrap();
    let memory = write(&writer, Kind::Memory, 100, &memory()).unwrap();
    let mut top = checkpoint("first", Some(memory), &[disk]);
    top.created_ms = 1_764_000_000_000;
    top.machine.cpu_features = vec!["avx2".into(), "sse2".into()];
    writer.publish(&top).unwrap();
}

#[test]
fn the_first_versions_store_reads_as_it_was_written() {
    let (_directory, store) = opened();
    assert_eq!(store.checkpoints().unwrap(), ["first"]);
    let open = store.open_checkpoint("first").unwrap();
    let top = open.checkpoint();
    assert_eq!((top.created_ms, top.machine.version, &*top.machine.kind), (1_764_000_000_000, 1, "test"));
    assert_eq!((&*top.machine.arch, &*top.machine.state), ("x86_64", &b"first"[..]));
    assert_eq!(top.machine.missing_features(&["sse2"]), ["avx2"]);
    let layers = [(top.memory.unwrap(), memory(), 100, Page::Absent), (top.disks[0], disk(), 64, Page::Zero)];
    for (id, pages, len, zero) in layers {
        let layer = open.layer(id).unwrap();
        assert_eq!(layer.pages(), len);
        for at in 0..len {
            let mut bytes = [1; PAGE_BYTES];
            let expected = match pages.get(&at) {
                None => Page::Absent,
                Some(0) => zero,
                Some(_) => Page::Data,
            };
            assert_eq!(layer.read_page(at, &mut bytes).unwrap(), expected, "page {at}");
            assert!(bytes == page(pages.get(&at).copied().unwrap_or(0)), "page {at}");
        }
    }
    assert_eq!(store.verify().unwrap().damage, []);
}

#[test]
fn this_version_finds_every_chunk_of_the_first_ones_again() {
    let (directory, store) = opened();
    let before = store.checkpoint("first").unwrap();
    let writer = store.writer().unwrap();
    let disk = write(&writer, Kind::Disk, 64, &disk()).unwrap();
    let memory = write(&writer, Kind::Memory, 100, &memory()).unwrap();
    assert_eq!((Some(memory), vec![disk]), (before.memory, before.disks), "the same content has the same name");
    writer.publish(&checkpoint("again", Some(memory), &[disk])).unwrap();
    assert_eq!(common::files(&directory.path().join("store"), "packs").len(), 1);
}

//! What goes in comes out, and costs what is new.
#![allow(clippy::unwrap_used, reason = "a test that finds something else than it expects is to panic")]

mod common;

use common::{Pages, assert_memory, checkpoint, files, numbered, page, publish, temporary, write};
use pando_store::{CheckpointError, Kind, PAGE_BYTES, Page, ReadError, Store, Tuning, WriteError};
use proptest::collection::btree_map;
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 48 } else { 256 }))]

    #[test]
    fn every_page_of_memory_and_disk_comes_back(
        memory in btree_map(0u64..200, 0u64..6, 0..80),
        disk in btree_map(0u64..300, 0u64..6, 0..80),
        chunk_pages in 1u32..=64,
        pack_bytes in 4usize << 10..64 << 10,
        run in (0u64..=300, 0u64..=300),
    ) {
        let directory = temporary();
        let store = Store::create(directory.path()).unwrap();
        let writer = store.writer_with(Tuning { chunk_pages, pack_bytes, ..Tuning::default() }).unwrap();
        let memory_id = write(&writer, Kind::Memory, 200, &memory).unwrap();
        let disk_id = write(&writer, Kind::Disk, 300, &disk).unwrap();
        writer.publish(&checkpoint("one", Some(memory_id), &[disk_id])).unwrap();
        drop(writer);

        let store = Store::open(directory.path()).unwrap();
        assert_memory(&store, "one", 200, &memory);
        let layer = store.open_checkpoint("one").unwrap().layer(disk_id).unwrap();
        for at in 0..300 {
            let mut bytes = [1; PAGE_BYTES];
            let expected = match disk.get(&at) {
                None => Page::Absent,
                Some(0) => Page::Zero,
                Some(_) => Page::Data,
            };
            prop_assert_eq!(layer.read_page(at, &mut bytes).unwrap(), expected);
            prop_assert!(bytes == page(disk.get(&at).copied().unwrap_or(0)));
        }
        let run = run.0.min(run.1)..run.0.max(run.1);
        let (mut at, mut read) = (run.start, Vec::new());
        let each = |what, pages, bytes: &[u8]| {
            (at..at + u64::from(pages)).for_each(|at| assert_eq!(layer.page(at).unwrap(), what));
            at += u64::from(pages);
            read.extend_from_slice(bytes);
        };
        layer.read_pages(run.clone(), each).unwrap();
        let data: Vec<u8> = disk.range(run.clone()).filter(|(_, of)| **of > 0).flat_map(|(_, of)| page(*of)).collect();
        prop_assert!((at, read) == (run.end, data));
        let is_refused = matches!(layer.read_pages(run.start..301, |_, _, _| ()), Err(ReadError::Range { page: 300, .. }));
        prop_assert!(is_refused, "behind the end");
    }

    #[test]
    fn a_layer_that_inherits_has_the_same_manifest_as_one_that_was_given_all_pages(
        parent in btree_map(0u64..300, 0u64..50, 0..200),
        changed in btree_map(0u64..300, 0u64..50, 0..20),
        is_memory in any::<bool>(),
        same_chunks in any::<bool>(),
    ) {
        let kind = if is_memory { Kind::Memory } else { Kind::Disk };
        let directory = temporary();
        let store = Store::create(directory.path()).unwrap();
        let writer = store.writer().unwrap();
        let first = write(&writer, kind, 300, &parent).unwrap();
        let (memory, disks) = if is_memory { (Some(first), vec![]) } else { (None, vec![first]) };
        writer.publish(&checkpoint("first", memory, &disks)).unwrap();
        let from = store.open_checkpoint("first").unwrap().layer(first).unwrap();
        let chunk_pages = if same_chunks { 4 } else { 8 };
        let writer = store.writer_with(Tuning { chunk_pages, ..Tuning::default() }).unwrap();
        let mut all = parent.clone();
        all.extend(&changed);
        let expected = write(&writer, kind, 300, &all).unwrap();
        // Between what has changed, everything is inherited.
        let mut layer = writer.layer(kind, 300).unwrap();
        let mut next = 0;
        for (at, number) in &changed {
            layer.inherit(&from, next..*at).unwrap();
            layer.write(*at, &page(*number)).unwrap();
            next = at + 1;
        }
        layer.inherit(&from, next..300).unwrap();
        // Zeroes that replace data are held in a disk; there `parent` and `changed` say the same.
        prop_assert_eq!(layer.finish().unwrap(), expected);
    }

    #[test]
    fn the_same_content_has_the_same_manifest_however_it_was_written(
        pages in btree_map(0u64..500, 0u64..50, 0..200),
        other in btree_map(0u64..500, 0u64..50, 0..200),
        threads in 1usize..4,
    ) {
        let directory = temporary();
        let store = Store::create(directory.path()).unwrap();
        let writer = store.writer().unwrap();
        let first = write(&writer, Kind::Memory, 500, &pages).unwrap();
        // Into another store, with other packs, in other pieces and beside other layers.
        let elsewhere = temporary();
        let store = Store::create(elsewhere.path()).unwrap();
        let tuning = Tuning { threads, pack_bytes: 8 << 10, ..Tuning::default() };
        let writer = store.writer_with(tuning).unwrap();
        write(&writer, Kind::Memory, 500, &other).unwrap();
        let mut layer = writer.layer(Kind::Memory, 500).unwrap();
        let all: Vec<u8> = (0..500).flat_map(|at| page(pages.get(&at).copied().unwrap_or(0))).collect();
        for (at, bytes) in all.chunks(7 * PAGE_BYTES).enumerate() {
            layer.write(at as u64 * 7, bytes).unwrap();
        }
        prop_assert_eq!(layer.finish().unwrap(), first);
    }
}

#[test]
fn a_second_checkpoint_costs_what_changed() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    // Odd numbers only, whose pages do not compress.
    let mut pages: Pages = (0..2000).map(|at| (at, 2 * at + 1)).collect();
    let first = publish(&store, "first", 2000, &pages).unwrap();
    assert!(first > 2000 * PAGE_BYTES as u64);

    pages.insert(1000, 99_999);
    let store = Store::open(directory.path()).unwrap();
    let second = publish(&store, "second", 2000, &pages).unwrap();
    assert!(second < 5 * PAGE_BYTES as u64 + 500 * 60, "one chunk was new, and {second} bytes were written");
    let third = publish(&store, "third", 2000, &pages).unwrap();
    assert!(third < 500 * 60, "nothing was new but a manifest, and {third} bytes were written");
    assert_memory(&Store::open(directory.path()).unwrap(), "second", 2000, &pages);
}

#[test]
fn zero_pages_are_never_stored() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    let zeroes: Pages = (0..5000).map(|at| (at, 0)).collect();
    assert!(publish(&store, "zeroes", 5000, &zeroes).unwrap() < 100, "an empty manifest");
    assert_memory(&store, "zeroes", 5000, &zeroes);
    let writer = store.writer().unwrap();
    let mut disk = writer.layer(Kind::Disk, 5000).unwrap();
    disk.write_zeroes(10, 4000).unwrap();
    let disk = disk.finish().unwrap();
    writer.publish(&checkpoint("disk", None, &[disk])).unwrap();
    let layer = store.open_checkpoint("disk").unwrap().layer(disk).unwrap();
    assert_eq!(
        [9, 10, 4009, 4010].map(|at| layer.page(at).unwrap()),
        [Page::Absent, Page::Zero, Page::Zero, Page::Absent]
    );
    assert!(files(directory.path(), "packs").is_empty());
}

#[test]
fn a_layer_that_is_there_is_reused_without_its_pages() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    let pages = numbered(100, 1);
    publish(&store, "first", 100, &pages).unwrap();
    let memory = store.checkpoint("first").unwrap().memory.unwrap();
    let writer = store.writer().unwrap();
    let refused = writer.publish(&checkpoint("second", Some(memory), &[]));
    assert!(matches!(refused, Err(WriteError::NoLayer(id)) if id == memory), "a layer must be held to be named");
    writer.reuse(memory).unwrap();
    writer.publish(&checkpoint("second", Some(memory), &[])).unwrap();
    store.remove("first").unwrap();
    assert_memory(&store, "second", 100, &pages);
}

/// Two layers of a writer have a chunk in common. The thread of the one is still compressing it when the other, which has
/// passed it over, is done: published then, a checkpoint would name a chunk that is nowhere.
#[test]
fn a_checkpoint_waits_for_chunks_that_another_layer_of_its_writer_has_begun() {
    for is_dropped in [false, true] {
        let directory = temporary();
        let store = Store::create(directory.path()).unwrap();
        // A level at which a chunk takes its time.
        let writer = store.writer_with(Tuning { chunk_pages: 64, level: 22, ..Tuning::default() }).unwrap();
        let both = numbered(64, 1);
        let mut slow = writer.layer(Kind::Memory, 256).unwrap();
        for (at, number) in (0..256).zip((1..=64).chain(1001..)) {
            slow.write(at, &page(number)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
        let slow = (!is_dropped).then_some(slow);
        let quick = write(&writer, Kind::Memory, 64, &both).unwrap();
        writer.publish(&checkpoint("quick", Some(quick), &[])).unwrap();
        assert_memory(&Store::open(directory.path()).unwrap(), "quick", 64, &both);
        drop(slow);
    }
}

#[test]
fn what_is_inherited_is_neither_read_nor_hashed_and_stays() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    let mut pages = numbered(1000, 1);
    publish(&store, "first", 1000, &pages).unwrap();
    let first = store.open_checkpoint("first").unwrap().memory().unwrap().unwrap();
    let writer = store.writer().unwrap();
    // If a page were read now, that would fail.
    let packs = files(directory.path(), "packs");
    let hidden = |pack: &PathBuf| directory.path().join(pack.file_name().unwrap());
    let contents: Vec<_> = packs.iter().map(|pack| fs::read(pack).unwrap()).collect();
    packs.iter().zip(&contents).for_each(|(pack, good)| fs::write(pack, vec![0; good.len()]).unwrap());
    let mut layer = writer.layer(Kind::Memory, 1000).unwrap();
    layer.inherit(&first, 0..400).unwrap();
    (400..404).for_each(|at| layer.write(at, &page(90_000 + at)).unwrap());
    layer.inherit(&first, 404..1000).unwrap();
    let memory = layer.finish().unwrap();
    assert_eq!(writer.hashed_bytes(), 4 * PAGE_BYTES as u64);
    packs.iter().zip(&contents).for_each(|(pack, good)| {
        fs::write(hidden(pack), good).unwrap();
        fs::rename(hidden(pack), pack).unwrap();
    });
    // The parent goes before the child is published.
    drop(first);
    store.remove("first").unwrap();
    Store::open(directory.path()).unwrap().collect().unwrap();
    writer.publish(&checkpoint("second", Some(memory), &[])).unwrap();
    drop(writer);
    let store = Store::open(directory.path()).unwrap();
    store.collect().unwrap();
    pages.extend((400..404).map(|at| (at, 90_000 + at)));
    assert_memory(&store, "second", 1000, &pages);
    let elsewhere = temporary();
    let other = Store::create(elsewhere.path()).unwrap();
    let second = store.open_checkpoint("second").unwrap().memory().unwrap().unwrap();
    let writer = other.writer().unwrap();
    let refused = writer.layer(Kind::Memory, 1000).unwrap().inherit(&second, 0..1000).unwrap_err();
    assert!(matches!(refused, WriteError::NoLayer(id) if id == memory), "{refused}");
}

#[test]
fn pages_that_are_fetched_as_they_lie_are_fetched_pack_by_pack() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    let writer = store.writer_with(Tuning { pack_bytes: 64 << 10, ..Tuning::default() }).unwrap();
    let pages: Pages = (0..400).filter(|at| at % 40 != 0).map(|at| (at, at)).collect();
    let memory = write(&writer, Kind::Memory, 400, &pages).unwrap();
    writer.publish(&checkpoint("one", Some(memory), &[])).unwrap();
    let memory = store.open_checkpoint("one").unwrap().memory().unwrap().unwrap();
    assert_eq!(memory.locate(40).unwrap(), None, "a page of zeroes lies nowhere");
    assert!(matches!(memory.locate(400), Err(ReadError::Range { .. })));
    let mut places: Vec<_> = (0..400).filter_map(|at| memory.locate(at).unwrap()).collect();
    assert_eq!(places.len(), pages.len());
    places.sort();
    let mut packs: Vec<_> = places.iter().map(|place| place.pack).collect();
    packs.dedup();
    assert_eq!(packs.len(), files(directory.path(), "packs").len(), "each pack once");
    let is_forward = |pair: &[pando_store::Location]| pair[0].pack != pair[1].pack || pair[0].offset <= pair[1].offset;
    assert!(places.windows(2).all(is_forward));
}

#[test]
fn a_layer_of_which_a_pack_is_missing_is_not_published_again() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "first", 100, &numbered(100, 1)).unwrap();
    let memory = store.checkpoint("first").unwrap().memory.unwrap();
    let writer = store.writer().unwrap();
    writer.reuse(memory).unwrap();
    fs::remove_file(&files(directory.path(), "packs")[0]).unwrap();
    let refused = writer.publish(&checkpoint("second", Some(memory), &[])).unwrap_err();
    assert!(matches!(refused, WriteError::MissingChunk { layer, .. } if layer == memory), "{refused}");
    assert_eq!(store.checkpoints().unwrap(), ["first"]);
}

#[test]
fn a_name_is_given_once() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 10, &numbered(10, 1)).unwrap();
    let again = publish(&store, "one", 10, &numbered(10, 50));
    assert_eq!(again.unwrap_err().to_string(), "there is a checkpoint called one already");
    assert_memory(&store, "one", 10, &numbered(10, 1));
    assert!(matches!(publish(&store, "../one", 1, &Pages::new()), Err(WriteError::Name(_))));
    assert_eq!(store.checkpoints().unwrap(), ["one"]);
    store.remove("one").unwrap();
    assert!(matches!(store.open_checkpoint("one"), Err(CheckpointError::Absent(_))));
    assert!(matches!(store.remove("one"), Err(CheckpointError::Absent(_))));
}

#[test]
fn pages_out_of_order_are_refused() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    let writer = store.writer().unwrap();
    let mut layer = writer.layer(Kind::Memory, 10).unwrap();
    layer.write(4, &page(1)).unwrap();
    for (at, bytes) in [(4, &page(1)[..]), (0, &page(1)), (10, &page(1)), (9, &[1; 2 * PAGE_BYTES]), (5, &[1; 100])] {
        assert!(matches!(layer.write(at, bytes), Err(WriteError::Order { page }) if page == at), "{at}");
    }
    assert!(matches!(layer.write_zeroes(u64::MAX, 2), Err(WriteError::Order { .. })));
    let id = layer.finish().unwrap();
    writer.publish(&checkpoint("one", Some(id), &[])).unwrap();
    let memory = store.open_checkpoint("one").unwrap().memory().unwrap().unwrap();
    assert!(matches!(memory.page(10), Err(ReadError::Range { page: 10, pages: 10 })));
}

#[test]
fn many_threads_read_one_layer() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    let pages = numbered(3000, 1);
    publish(&store, "one", 3000, &pages).unwrap();
    let store = Store::open(directory.path()).unwrap();
    let memory = store.open_checkpoint("one").unwrap().memory().unwrap().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (memory, pages) = (memory.clone(), &pages);
            scope.spawn(move || {
                let mut bytes = [0; PAGE_BYTES];
                for step in 0..3000 {
                    let at = (step * 7 + thread * 1111) % 3000;
                    memory.read_page(at, &mut bytes).unwrap();
                    assert!(bytes == page(pages[&at]), "page {at}");
                }
            });
        }
    });
}

#[test]
fn a_working_set_is_a_hint_that_goes_with_its_layer() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 100, &numbered(100, 1)).unwrap();
    let layer = store.checkpoint("one").unwrap().memory.unwrap();
    assert_eq!(store.working_set(layer), None);
    store.note_working_set(layer, &[40..44, 7..7]).unwrap();
    store.note_working_set(layer, &[0..4, 90..91]).unwrap();
    assert_eq!(store.working_set(layer), Some(vec![0..4, 90..91]), "the last word counts");
    store.collect().unwrap();
    assert!(store.working_set(layer).is_some());

    // It travels where that is wished, and only then.
    let (mut with, mut without) = (Vec::new(), Vec::new());
    store.export_with_working_sets(&["one"], &mut with).unwrap();
    store.export(&["one"], &mut without).unwrap();
    for (export, expected) in [(&without, None), (&with, Some(vec![0..4, 90..91]))] {
        let elsewhere = temporary();
        let other = Store::create(elsewhere.path()).unwrap();
        assert_eq!(other.import(&export[..]).unwrap(), ["one"]);
        assert_eq!(other.working_set(layer), expected);
        assert_memory(&other, "one", 100, &numbered(100, 1));
    }

    let path = files(directory.path(), "working-sets").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(store.working_set(layer), None, "damage is no hint");
    assert_eq!(store.verify().unwrap().damage, [], "and nothing that anybody needs");
    store.remove("one").unwrap();
    store.collect().unwrap();
    assert!(files(directory.path(), "working-sets").is_empty());
}

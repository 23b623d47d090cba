//! Garbage collection: takes what nobody needs, beside everybody.
#![allow(clippy::unwrap_used, reason = "a test that finds something else than it expects is to panic")]

mod common;

use common::{Pages, assert_memory, checkpoint, files, numbered, publish, temporary, write};
use pando_store::{GcError, Kind, PAGE_BYTES, Store};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn what_no_checkpoint_needs_is_collected_and_nothing_else() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 500, &numbered(500, 1)).unwrap();
    publish(&store, "two", 500, &numbered(500, 10_001)).unwrap();
    assert_eq!(store.collect().unwrap(), Default::default(), "everything is needed");
    store.remove("one").unwrap();
    let collected = store.collect().unwrap();
    assert_eq!((collected.packs, collected.manifests), (1, 1));
    assert_memory(&store, "two", 500, &numbered(500, 10_001));
    store.remove("two").unwrap();
    store.collect().unwrap();
    assert!(files(directory.path(), "packs").is_empty() && files(directory.path(), "manifests").is_empty());
}

#[test]
fn a_pack_that_is_mostly_garbage_is_rewritten_and_readers_follow() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    // Odd numbers only, whose pages do not compress.
    let all: Pages = (0..400).map(|at| (at, 2 * at + 1)).collect();
    let few: Pages = all.iter().map(|(at, number)| (*at, *number)).take(48).collect();
    publish(&store, "all", 400, &all).unwrap();
    publish(&store, "few", 400, &few).unwrap();
    let memory = store.open_checkpoint("few").unwrap().memory().unwrap().unwrap();
    let mut bytes = [0; PAGE_BYTES];
    memory.read_page(0, &mut bytes).unwrap();

    let other = Store::open(directory.path()).unwrap();
    other.remove("all").unwrap();
    let collected = other.collect().unwrap();
    assert_eq!((collected.packs, collected.compacted), (0, 1));
    assert!(collected.freed_bytes > 300 * PAGE_BYTES as u64, "{collected:?}");
    memory.read_page(47, &mut bytes).unwrap();
    assert!(bytes == common::page(all[&47]), "the reader found the chunk where it is now");
    assert_memory(&Store::open(directory.path()).unwrap(), "few", 400, &few);
    assert_eq!(other.collect().unwrap().compacted, 0, "once is enough");
}

#[test]
fn many_small_packs_become_one() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    for number in 0..12 {
        publish(&store, &format!("c{number}"), 50, &numbered(50, 1 + number * 50)).unwrap();
    }
    assert_eq!(files(directory.path(), "packs").len(), 12);
    assert_eq!(store.collect().unwrap().compacted, 12);
    assert_eq!(files(directory.path(), "packs").len(), 1);
    (0..12).for_each(|number| assert_memory(&store, &format!("c{number}"), 50, &numbered(50, 1 + number * 50)));
}

#[test]
fn what_a_writer_found_or_wrote_stays_until_it_publishes() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "old", 500, &numbered(500, 1)).unwrap();
    let writer = store.writer().unwrap();
    let memory = write(&writer, Kind::Memory, 1000, &numbered(1000, 1)).unwrap();

    let other = Store::open(directory.path()).unwrap();
    other.remove("old").unwrap();
    let collected = other.collect().unwrap();
    assert_eq!(collected.packs, 0, "the writer relies on it");

    writer.publish(&checkpoint("new", Some(memory), &[])).unwrap();
    drop(writer);
    other.collect().unwrap();
    assert_memory(&Store::open(directory.path()).unwrap(), "new", 1000, &numbered(1000, 1));
    assert_eq!(other.verify().unwrap().damage, []);
}

#[test]
fn a_writer_whose_index_is_older_than_a_collection_writes_again_what_is_gone() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "old", 500, &numbered(500, 1)).unwrap();
    // Begun, and so it knows where chunks lie; but it relies on none yet.
    let writer = store.writer().unwrap();
    let other = Store::open(directory.path()).unwrap();
    other.remove("old").unwrap();
    assert_eq!(other.collect().unwrap().packs, 1);
    let memory = write(&writer, Kind::Memory, 500, &numbered(500, 1)).unwrap();
    writer.publish(&checkpoint("new", Some(memory), &[])).unwrap();
    assert_memory(&store, "new", 500, &numbered(500, 1));
    assert_memory(&other, "new", 500, &numbered(500, 1));
}

/// Counts writers that ended, even by a panic: or the collector would go on for ever.
struct Ended<'c>(&'c AtomicU64);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn writers_readers_and_collectors_at_once_lose_nothing() {
    let directory = temporary();
    let (ended, collections) = (AtomicU64::new(0), AtomicU64::new(0));
    Store::create(directory.path()).unwrap();
    std::thread::scope(|scope| {
        for side in ["a", "b", "c"] {
            let (directory, ended) = (directory.path(), Ended(&ended));
            scope.spawn(move || {
                let _ended = ended;
                for number in 0..60 {
                    // A handle each, as if each were a process.
                    let store = Store::open(directory).unwrap();
                    let name = format!("{side}-{number}");
                    publish(&store, &name, common::CHURN_PAGES, &common::churned(&name)).unwrap();
                    assert_memory(
                        &Store::open(directory).unwrap(),
                        &name,
                        common::CHURN_PAGES,
                        &common::churned(&name),
                    );
                    if number > 1 {
                        let old = format!("{side}-{}", number - 2);
                        assert_memory(&store, &old, common::CHURN_PAGES, &common::churned(&old));
                        store.remove(&old).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            let store = Store::open(directory.path()).unwrap();
            while ended.load(Ordering::Relaxed) < 3 {
                store.collect().unwrap();
                collections.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
    });
    assert!(collections.into_inner() > 10);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.checkpoints().unwrap(), ["a-58", "a-59", "b-58", "b-59", "c-58", "c-59"]);
    assert_eq!(store.verify().unwrap().damage, []);
    for name in store.checkpoints().unwrap() {
        store.remove(&name).unwrap();
    }
    store.collect().unwrap();
    assert!(files(directory.path(), "packs").is_empty() && files(directory.path(), "writers").is_empty());
}

#[test]
fn nothing_is_collected_while_a_checkpoint_cannot_be_read() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "good", 50, &numbered(50, 1)).unwrap();
    publish(&store, "bad", 50, &numbered(50, 100)).unwrap();
    publish(&store, "gone", 50, &numbered(50, 200)).unwrap();
    store.remove("gone").unwrap();
    let path = directory.path().join("checkpoints/bad");
    let mut bytes = fs::read(&path).unwrap();
    bytes[50] ^= 1;
    fs::write(&path, bytes).unwrap();
    let before = files(directory.path(), "packs");
    let refused = store.collect().unwrap_err();
    assert!(matches!(&refused, GcError::Unknown { checkpoint, .. } if checkpoint == "bad"));
    assert_eq!(
        refused.to_string(),
        "nothing is collected while what checkpoint bad needs cannot be known; remove it to go on"
    );
    assert_eq!(files(directory.path(), "packs"), before);
    store.remove("bad").unwrap();
    assert_eq!(store.collect().unwrap().packs, 2);
    assert_memory(&store, "good", 50, &numbered(50, 1));
}

#[test]
fn sizes_say_what_is_shared_and_what_is_not() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    let one: Pages = (0..160).map(|at| (at, 2 * at + 1)).collect();
    let mut two = one.clone();
    two.insert(0, 99_999);
    publish(&store, "one", 1000, &one).unwrap();
    publish(&store, "two", 1000, &two).unwrap();
    let sizes = store.sizes().unwrap();
    let chunk = 4 * PAGE_BYTES as u64;
    for size in &sizes {
        assert_eq!((size.logical, size.data), (1000 * PAGE_BYTES as u64, 160 * PAGE_BYTES as u64));
        assert_eq!((size.stored, size.unique), (40 * chunk, chunk), "{size:?}");
    }
    store.remove("two").unwrap();
    assert_eq!(store.sizes().unwrap()[0].unique, 40 * chunk);
}

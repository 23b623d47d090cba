//! Histories of a store, cut by a power cut at any moment: what was reported done is there, and nothing else is offered.

use super::common::{Pages, assert_memory, checkpoint, numbered, write};
use super::power::{Event, Note, Recorder, cut};
use crate::local::remove;
use crate::{Kind, Store, Tuning};
use std::collections::BTreeSet;
use std::path::Path;

/// So often is each history cut, at random moments.
const CUTS: usize = 1500;
const PAGES: u64 = 48;

fn temporary() -> tempfile::TempDir {
    // Memory where possible: what is durable here is what the model says.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// The memory of a checkpoint, which its name says: much that all have in common.
fn pages(name: &str) -> Pages {
    let own = 1000 + 100 * name.bytes().map(u64::from).sum::<u64>();
    let mut pages = numbered(PAGES, 1);
    pages.extend((0..8).map(|step| ((own + step * 5) % PAGES, own + step)));
    pages
}

/// What a test does with a store, told to the recorder.
struct History {
    _directory: tempfile::TempDir,
    store: Store,
    recorder: Recorder,
}

impl History {
    fn begin() -> Self {
        let directory = temporary();
        let recorder = Recorder::of(directory.path());
        let store = Store::create(&directory.path().join("store")).unwrap();
        recorder.note(Note::Created);
        Self { _directory: directory, store, recorder }
    }

    fn publish(&self, name: &str) {
        let writer = self.store.writer_with(Tuning { pack_bytes: 16 << 10, ..Tuning::default() }).unwrap();
        let memory = write(&writer, Kind::Memory, PAGES, &pages(name)).unwrap();
        writer.publish(&checkpoint(name, Some(memory), &[])).unwrap();
        self.recorder.note(Note::Done(name.to_owned()));
    }

    fn remove(&self, name: &str) {
        self.recorder.note(Note::Removing(name.to_owned()));
        self.store.remove(name).unwrap();
        self.recorder.note(Note::Removed(name.to_owned()));
    }

    /// Cuts the power at random moments, and looks at what is left.
    fn cut_everywhere(self) {
        let events = self.recorder.events();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut choose = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize % below
        };
        for number in 0..CUTS {
            let at = choose(events.len() + 1);
            let left = temporary();
            cut(&events[..at], left.path(), &mut choose);
            check(&events[..at], &left.path().join("store"), number % 8 == 0);
        }
        println!("{CUTS} power cuts in {} changes", events.len());
    }
}

fn check(events: &[Event], path: &Path, goes_on: bool) {
    let (mut must, mut may_not, mut is_created) = (BTreeSet::new(), BTreeSet::new(), false);
    for event in events {
        let Event::Note(note) = event else { continue };
        match note {
            Note::Created => is_created = true,
            Note::Done(name) => drop(must.insert(name.clone())),
            Note::Removing(name) => drop(must.remove(name)),
            Note::Removed(name) => drop(may_not.insert(name.clone())),
        }
    }
    let store = match Store::open(path) {
        // Whoever was creating it does so again.
        Err(_) if !is_created => Store::create(path),
        opened => opened,
    };
    let store = store.unwrap();
    let here: BTreeSet<String> = store.checkpoints().unwrap().into_iter().collect();
    assert!(must.is_subset(&here), "lost: {:?}", must.difference(&here));
    assert!(may_not.is_disjoint(&here), "back: {:?}", may_not.intersection(&here));
    for name in &here {
        assert_memory(&store, name, PAGES, &pages(name));
    }
    assert_eq!(store.verify().unwrap().damage, []);
    if goes_on {
        let writer = store.writer().unwrap();
        let memory = write(&writer, Kind::Memory, PAGES, &pages("after")).unwrap();
        writer.publish(&checkpoint("after", Some(memory), &[])).unwrap();
        store.collect().unwrap();
        here.iter().for_each(|name| assert_memory(&store, name, PAGES, &pages(name)));
        assert_memory(&Store::open(path).unwrap(), "after", PAGES, &pages("after"));
    }
}

#[test]
fn checkpoints_that_were_reported_done_survive_a_power_cut_and_removed_ones_stay_removed() {
    let history = History::begin();
    history.publish("one");
    history.publish("two");
    history.remove("one");
    history.publish("three");
    history.cut_everywhere();
}

#[test]
fn a_power_cut_during_garbage_collection_loses_nothing() {
    let history = History::begin();
    ["one", "two", "three", "four"].iter().for_each(|name| history.publish(name));
    history.remove("one");
    history.remove("three");
    let collected = history.store.collect().unwrap();
    assert!(collected.compacted > 0 && collected.packs + collected.manifests > 0, "{collected:?}");
    history.publish("five");
    history.remove("two");
    history.store.collect().unwrap();
    history.cut_everywhere();
}

/// Whoever removed it was killed before that was durable.
#[test]
fn a_checkpoint_that_comes_back_with_the_power_has_what_it_needs() {
    let history = History::begin();
    history.publish("one");
    history.publish("two");
    history.recorder.note(Note::Removing("one".to_owned()));
    remove(&history.store.inner.directory.checkpoint("one")).unwrap();
    history.store.collect().unwrap();
    history.cut_everywhere();
}

#[test]
fn on_a_full_disk_garbage_goes_and_what_was_not_rewritten_is_told() {
    let history = History::begin();
    ["one", "two", "three"].iter().for_each(|name| history.publish(name));
    history.remove("one");
    history.remove("two");
    let not_at_all = history.store.collect_within(0).unwrap();
    assert!(not_at_all.packs > 0 && not_at_all.compacted == 0 && not_at_all.not_compacted > 0, "{not_at_all:?}");
    assert_eq!(not_at_all.problem, None);
    history.publish("four");
    history.remove("four");
    history.recorder.set_full(true);
    let collected = history.store.collect().unwrap();
    assert!(collected.manifests > 0 && collected.packs > 0 && collected.not_compacted > 0, "{collected:?}");
    assert!(collected.problem.unwrap().starts_with("cannot write "));
    history.recorder.set_full(false);
    let rest = history.store.collect().unwrap();
    assert!(rest.compacted == collected.not_compacted && rest.not_compacted == 0, "{rest:?}");
    assert_memory(&history.store, "three", PAGES, &pages("three"));
    history.cut_everywhere();
}

#[test]
fn a_checkpoint_whose_last_sync_fails_is_not_there() {
    let history = History::begin();
    history.publish("one");
    history.recorder.fail_syncs_of("checkpoints");
    let writer = history.store.writer().unwrap();
    let memory = write(&writer, Kind::Memory, PAGES, &pages("two")).unwrap();
    let refused = writer.publish(&checkpoint("two", Some(memory), &[])).unwrap_err();
    assert!(refused.to_string().starts_with("cannot make durable "), "{refused}");
    assert_eq!(history.store.checkpoints().unwrap(), ["one"]);
}

#[test]
fn an_import_that_was_reported_done_survives_a_power_cut() {
    let other = History::begin();
    ["one", "two"].iter().for_each(|name| other.publish(name));
    let mut export = Vec::new();
    other.store.export(&["one", "two"], &mut export).unwrap();
    let history = History::begin();
    assert_eq!(history.store.import(&export[..]).unwrap(), ["one", "two"]);
    ["one", "two"].iter().for_each(|name| history.recorder.note(Note::Done((*name).to_owned())));
    history.remove("one");
    history.store.collect().unwrap();
    history.cut_everywhere();
}

//! The second checkpoint of a VM costs what changed, and is what it would be if all had been read.

use crate::checkpoint::{ALL, WITNESS, next_laps, restore};
use crate::instant::{boot, wait_for_laps};
use crate::moments::Moments;
use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Guest, Monitor, Toy, Witness, serve};
use pando_store::{ManifestId, Store};
use pando_wire::saved::{self, GROUP_PAGES, LayerKind, PAGE_BYTES};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const TOUCHED: u64 = 64 << 20;
const WALKED_PAGES: u64 = 32;

/// A guest that has used some of its memory, and goes on with little of it.
fn busy() -> Option<Monitor> {
    let touched = [Toy::FREE_FROM..Toy::FREE_FROM + TOUCHED, 0..0];
    let toy = Toy { touched, walked: Toy::FREE_FROM..Toy::FREE_FROM + WALKED_PAGES * 4096 };
    let parent = needs_kvm().then(|| Monitor::boot(PANDO.as_ref(), &toy, MEMORY).unwrap())?;
    parent.console_of(3, LIMIT).unwrap();
    Some(parent)
}

/// What was read and hashed.
pub(crate) fn hashed(printed: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(printed).unwrap()["hashed_bytes"].as_u64().unwrap()
}

/// RAM and disk of a checkpoint.
pub(crate) fn layers(store: &Path, name: &str) -> (Option<ManifestId>, Vec<ManifestId>) {
    let checkpoint = Store::open(store).unwrap().checkpoint(name).unwrap();
    (checkpoint.memory, checkpoint.disks)
}

/// Holds a checkpoint against all of its seed, which is saved elsewhere.
pub(crate) fn assert_whole(seed: &Monitor, store: &Path, name: &str) {
    let elsewhere = tempfile::tempdir().unwrap();
    seed.save(PANDO.as_ref(), elsewhere.path(), name).unwrap();
    assert_eq!(layers(store, name), layers(elsewhere.path(), name), "{name}");
    assert_eq!(Store::open(store).unwrap().verify().unwrap().damage.len(), 0);
}

/// Whether this process is told in which frames a process has its pages.
fn knows_frames() -> bool {
    let page = Box::new([1_u8; 4096]);
    let mut entry = [0; 8];
    let at = page.as_ptr() as u64 / 4096 * 8;
    File::open("/proc/self/pagemap").unwrap().read_exact_at(&mut entry, at).unwrap();
    u64::from_ne_bytes(entry) << 9 != 0
}

#[test]
fn the_next_checkpoint_reads_what_changed_and_has_the_same_layers_as_one_that_reads_all() {
    let Some(parent) = busy() else { return };
    let (dir, pando) = (tempfile::tempdir().unwrap(), PANDO.as_ref());
    let mut earlier = parent.seed().unwrap();
    let first = hashed(&earlier.save(pando, dir.path(), "c0").unwrap());
    assert!((TOUCHED..TOUCHED + (2 << 20)).contains(&first), "{first}");
    let mut fewest = first;
    for round in 1..8 {
        parent.console_of(parent.console().unwrap().len() + 2, LIMIT).unwrap();
        let seed = parent.seed().unwrap();
        let (before, name) = (earlier.as_earlier(&format!("c{}", round - 1)).unwrap(), format!("c{round}"));
        let now = hashed(&seed.save_since(&before, pando, dir.path(), &name).unwrap());
        assert!(now >= WALKED_PAGES * 4096, "it walked over these: {now}");
        fewest = fewest.min(now);
        assert_whole(&seed, dir.path(), &name);
        earlier = seed;
    }
    // Beside what the kernel moved meanwhile, of which nothing is known.
    assert!(!knows_frames() || fewest < WALKED_PAGES * 4096 + (1 << 20), "{fewest} of {first}");
    println!("hashed: {first} bytes, then {fewest}");
}

/// Much of a disk that was used before: records are kept in its first blocks, and in every tenth group none was written to.
/// Some blocks are zeroes, which is another thing than never written.
pub(crate) fn used_disk() -> impl Iterator<Item = (u64, [u8; PAGE_BYTES])> {
    let is_used = |block: &u64| !(block / GROUP_PAGES).is_multiple_of(10);
    let bytes = |block: u64| match block.is_multiple_of(7) {
        true => [0; PAGE_BYTES],
        false => std::array::from_fn(|at| block.to_le_bytes()[at % 8]),
    };
    (RECORDS..DISK_BLOCKS).filter(is_used).map(move |block| (block, bytes(block)))
}

/// A guest that goes on with little of its disk, in each lap with another block.
pub(crate) const RECORDER: Witness = Witness { vcpus: 2, pages: 16, records: RECORDS };
const RECORDS: u64 = 16;
/// Of which the last one is a group of its own.
const DISK_BLOCKS: u64 = 8193;

pub(crate) fn recorder(witness: Witness) -> Option<Monitor> {
    let guest = Guest { disk_bytes: DISK_BLOCKS * PAGE_BYTES as u64, ..witness.guest(MEMORY) };
    needs_kvm().then(|| Monitor::boot_used(PANDO.as_ref(), &guest, used_disk()).unwrap())
}

#[test]
fn the_next_checkpoint_reads_of_the_disk_what_was_written_since_also_of_a_child_of_a_fork() {
    let Some(parent) = recorder(RECORDER) else { return };
    let dir = tempfile::tempdir().unwrap();
    let used: u64 = used_disk().filter(|(_, bytes)| bytes != &[0; PAGE_BYTES]).map(|_| PAGE_BYTES as u64).sum();
    wait_for_laps(&parent, RECORDER, 2, LIMIT);
    let (_, children) = parent.fork(1).unwrap();
    for (name, vm) in [("parent", &parent), ("child", &children[0].monitor)] {
        let mut earlier = vm.seed().unwrap();
        let first = hashed(&earlier.save(PANDO.as_ref(), dir.path(), &format!("{name}0")).unwrap());
        assert!(first > used, "{first}");
        let mut most = 0;
        for round in 1..8 {
            wait_for_laps(vm, RECORDER, round % 3, LIMIT);
            let seed = vm.seed().unwrap();
            let before = earlier.as_earlier(&format!("{name}{}", round - 1)).unwrap();
            let now = hashed(&seed.save_since(&before, PANDO.as_ref(), dir.path(), &format!("{name}{round}")).unwrap());
            most = most.max(now);
            assert_whole(&seed, dir.path(), &format!("{name}{round}"));
            earlier = seed;
        }
        // All records, and all memory where nobody knows of frames.
        assert!(most <= first - used + RECORDS * PAGE_BYTES as u64 + (1 << 20), "{most} of {first}");
        println!("{name}: hashed {first} bytes, then at most {most}");
    }
}

#[test]
fn a_checkpoint_is_whole_also_since_one_that_is_later_or_of_another_vm_of_the_tree() {
    let Some(parent) = recorder(RECORDER) else { return };
    let dir = tempfile::tempdir().unwrap();
    let save = |seed: &Monitor, name: &str| seed.save(PANDO.as_ref(), dir.path(), name).unwrap();
    wait_for_laps(&parent, RECORDER, 2, LIMIT);
    let first = parent.seed().unwrap();
    let (_, children) = parent.fork(1).unwrap();
    for vm in [&parent, &children[0].monitor] {
        wait_for_laps(vm, RECORDER, RECORDS as usize + 2, LIMIT);
    }
    let (later, childs) = (parent.seed().unwrap(), children[0].monitor.seed().unwrap());
    save(&later, "later");
    save(&childs, "childs");
    let since = |seed: &Monitor, earlier: &Monitor, of: &str, name: &str| {
        seed.save_since(&earlier.as_earlier(of).unwrap(), PANDO.as_ref(), dir.path(), name).unwrap();
        assert_whole(seed, dir.path(), name);
    };
    since(&first, &later, "later", "first");
    since(&first, &childs, "childs", "first-since-childs");
    since(&childs, &first, "first", "childs-since-first");
    since(&childs, &later, "later", "childs-since-later");
}

#[test]
fn who_may_not_know_where_pages_are_stores_the_same_and_reads_all() {
    let Some(parent) = busy() else { return };
    let dir = tempfile::tempdir().unwrap();
    let earlier = parent.seed().unwrap();
    let first = hashed(&earlier.save(PANDO.as_ref(), dir.path(), "c0").unwrap());
    let without_the_right = || {
        let all = capabilities(None).unwrap();
        let effective = all.effective - CapabilitySet::SYS_ADMIN;
        set_capabilities(None, CapabilitySets { effective, ..all }).unwrap();
        earlier.as_earlier("c0").unwrap()
    };
    let hidden = thread::scope(|scope| scope.spawn(without_the_right).join()).unwrap();
    let seed = parent.seed().unwrap();
    assert!(hashed(&seed.save_since(&hidden, PANDO.as_ref(), dir.path(), "c1").unwrap()) >= first);
    assert_whole(&seed, dir.path(), "c1");
}

#[test]
fn an_earlier_seed_that_ends_while_it_is_compared_with_costs_time_and_nothing_else() {
    let Some(parent) = busy() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut least_and_most = (u64::MAX, 0);
    for round in 0..8 {
        let earlier = parent.seed().unwrap();
        let names = [format!("earlier{round}"), format!("c{round}")];
        earlier.save(PANDO.as_ref(), dir.path(), &names[0]).unwrap();
        let (before, seed) = (earlier.as_earlier(&names[0]).unwrap(), parent.seed().unwrap());
        let printed = thread::scope(|scope| {
            let saved = scope.spawn(|| seed.save_since(&before, PANDO.as_ref(), dir.path(), &names[1]));
            thread::sleep(Duration::from_millis(round * 5));
            drop(earlier);
            saved.join().unwrap().unwrap()
        });
        least_and_most = (least_and_most.0.min(hashed(&printed)), least_and_most.1.max(hashed(&printed)));
        assert_whole(&seed, dir.path(), &names[1]);
    }
    assert!(least_and_most.1 >= TOUCHED, "one was gone before anything was compared: {least_and_most:?}");
    println!("hashed: {least_and_most:?} bytes");
}

#[test]
fn a_vm_goes_on_from_a_checkpoint_whose_earlier_ones_are_gone() {
    let Some(parent) = boot(WITNESS) else { return };
    let (dir, mut moments) = (tempfile::tempdir().unwrap(), Moments::new());
    let mut earlier = parent.seed().unwrap();
    earlier.save(PANDO.as_ref(), dir.path(), "c0").unwrap();
    for round in 1..=6 {
        moments.pass();
        let (seed, name) = (parent.seed().unwrap(), format!("c{round}"));
        let before = earlier.as_earlier(&format!("c{}", round - 1)).unwrap();
        seed.save_since(&before, PANDO.as_ref(), dir.path(), &name).unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.remove(&before.name).unwrap();
        store.collect().unwrap();
        let (_, warm) = seed.fork(1).unwrap();
        wait_for_laps(&warm[0].monitor, WITNESS, ALL, LIMIT);
        let cold = restore(serve(PANDO.as_ref(), dir.path(), &name).unwrap().connections).unwrap();
        wait_for_laps(&cold, WITNESS, ALL, LIMIT);
        assert_eq!(next_laps(&cold, WITNESS), next_laps(&warm[0].monitor, WITNESS), "checkpoint {round}");
        earlier = seed;
    }
}

#[test]
fn without_its_earlier_checkpoint_nothing_is_stored_and_then_all_can_be() {
    let Some(parent) = busy() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (earlier, seed) = (parent.seed().unwrap(), parent.seed().unwrap());
    let gone = earlier.as_earlier("gone").unwrap();
    let refused = seed.save_since(&gone, PANDO.as_ref(), dir.path(), "c1").unwrap_err().to_string();
    assert!(refused.contains("cannot save checkpoint c1") && refused.contains("gone"), "{refused}");
    seed.save(PANDO.as_ref(), dir.path(), "c1").unwrap();
    assert_whole(&seed, dir.path(), "c1");
}

#[test]
fn what_is_the_same_as_nobody_knows_what_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let machine = saved::Machine { kind: "k".into(), version: 1, arch: "a".into(), cpu_features: Vec::new() };
    let mut writer = saved::Writer::begin(&theirs, machine, &[]).unwrap();
    writer.layer(LayerKind::Memory, 8).unwrap();
    writer.same(0, 4).unwrap();
    writer.layer(LayerKind::Disk, 8).unwrap();
    writer.end().unwrap();
    let mut command = Command::new(PANDO);
    command.args(["pages", "save", "--name", "one", "--store"]).arg(dir.path());
    let stored = command.stdin(Stdio::from(OwnedFd::from(ours))).output().unwrap();
    let said = "error: cannot save checkpoint one\n  because: nobody knows what it is the same as\n";
    assert_eq!((String::from_utf8(stored.stderr).unwrap().as_str(), stored.status.code()), (said, Some(1)));
    assert!(Store::open(dir.path()).unwrap().checkpoints().unwrap().is_empty());
}

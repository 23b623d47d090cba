//! What a seed promises, and what comes back of one that was saved: the same witnesses as for a fork, which look at
//! memory, registers and disk at every step.

use crate::fork::assert_unbroken;
use crate::instant::{boot, wait_for_laps};
use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Child, Guest, Monitor, MonitorError, PageServer, Told, Toy, Witness, serve};
use pando_store::{Layer, ManifestId, Page, Store};
use pando_wire::control::{Connection, Ending, Phase, Request, Response, WorkingSet};
use pando_wire::frame;
use pando_wire::pages::{Ask, Client};
use pando_wire::saved::PAGE_BYTES;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const WITNESS: Witness = Witness { vcpus: 2, pages: 16, records: 4 };
/// So many laps that every page and every record that was there before is looked at.
pub(crate) const ALL: usize = WITNESS.records as usize + 2;

/// Where VMGENID's counter lies, which a monitor writes before its guest runs.
const GENERATION_PAGE: u64 = 0xf_0000 / 4096;

fn seed() -> Option<(Monitor, Monitor)> {
    let parent = boot(WITNESS)?;
    wait_for_laps(&parent, WITNESS, ALL, LIMIT);
    let seed = parent.seed().unwrap();
    Some((parent, seed))
}

pub(crate) fn save(seed: &Monitor, store: &Path, name: &str) {
    let printed = seed.save(PANDO.as_ref(), store, name).unwrap();
    let sizes: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let memory = serde_json::json!(MEMORY + WITNESS.guest(MEMORY).disk_bytes);
    assert_eq!(sizes["logical_bytes"], memory, "{printed}");
    assert!(sizes["stored_bytes"].is_u64(), "{printed}");
}

pub(crate) fn restore(connections: Vec<UnixStream>) -> Result<Monitor, MonitorError> {
    Monitor::restore(PANDO.as_ref(), &WITNESS.guest(MEMORY), connections)
}

fn phase(monitor: &Monitor) -> Phase {
    let Response::Status(status) = monitor.ask(&Request::Status).unwrap() else { panic!("no status") };
    status.phase
}

/// The lap that each CPU came to first in this monitor, once all have.
pub(crate) fn next_laps(monitor: &Monitor, witness: Witness) -> Vec<u8> {
    let console = monitor.console().unwrap();
    let next = |cpu| {
        console.iter().find_map(|byte| match Told::from_byte(*byte) {
            Told::Lap(whose, lap) if whose == cpu => Some(lap),
            _ => None,
        })
    };
    (0..witness.vcpus).map(|cpu| next(cpu).unwrap()).collect()
}

/// Tries until it works.
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn twenty_children_of_a_seed_part_ways_and_it_stays_a_seed() {
    let Some((parent, seed)) = seed() else { return };
    wait_for_laps(&parent, WITNESS, 2, LIMIT);
    let expected = WorkingSet(vec![((4 << 20) / 4096, 16)]);
    assert_eq!(seed.ask(&Request::Expect(expected)).unwrap(), Response::Done);
    let (timings, children) = seed.fork(20).unwrap();
    assert_eq!((timings.expected_pages, timings.pause_us), (16, timings.fork_us));
    drop(parent); // Nobody needs it.
    let ask = |child: &Child, request| assert_eq!(child.monitor.ask(&request).unwrap(), Response::Done);
    children.iter().for_each(|child| ask(child, Request::Pause)); // All have run, and each now has the CPUs to itself.
    for child in &children {
        ask(child, Request::Resume);
        wait_for_laps(&child.monitor, WITNESS, ALL, LIMIT);
        ask(child, Request::Pause);
    }
    drop(children);

    assert_eq!(phase(&seed), Phase::Created);
    let (_, again) = seed.fork(2).unwrap();
    let (_, grandchildren) = again[0].monitor.fork(1).unwrap();
    for child in again.iter().chain(&grandchildren) {
        wait_for_laps(&child.monitor, WITNESS, ALL, LIMIT);
    }
    assert_eq!(
        next_laps(&again[0].monitor, WITNESS),
        next_laps(&again[1].monitor, WITNESS),
        "all of one seed go on from one instant"
    );
}

#[test]
fn what_a_seed_cannot_do_is_refused_and_it_stays_one() {
    let Some((parent, seed)) = seed() else { return };
    let refused = |monitor: &Monitor, request| match monitor.ask(&request) {
        Err(MonitorError::Refused(chain)) => chain.join(": "),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&seed, Request::Pause), "the VM has not been started");
    let files = "0 descriptors came with the request, where a socket and 1 files of layers belong";
    assert_eq!(refused(&seed, Request::Save), files);
    let only = "only a seed is saved: a child of a fork that has not been started";
    assert_eq!(refused(&parent, Request::Save), only);
    assert_eq!(phase(&seed), Phase::Created);
}

#[test]
fn a_seed_that_is_saved_twice_has_the_same_layers_and_is_no_larger() {
    let Some((parent, seed)) = seed() else { return };
    let dir = tempfile::tempdir().unwrap();
    save(&seed, dir.path(), "one");
    wait_for_laps(&parent, WITNESS, 2, LIMIT); // The parent goes on; its seed does not.
    let printed = seed.save(PANDO.as_ref(), dir.path(), "two").unwrap();
    let sizes: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert!(sizes["stored_bytes"].as_u64().unwrap() < 4096, "its pages are there already: {printed}");
    let store = Store::open(dir.path()).unwrap();
    let [one, two] = ["one", "two"].map(|name| store.checkpoint(name).unwrap());
    assert_eq!((&one.memory, &one.disks, &one.machine), (&two.memory, &two.disks, &two.machine));
    assert!(one.machine.cpu_features.iter().any(|feature| feature == "sse2"), "{:?}", one.machine.cpu_features);

    // A name that is taken stays what it is.
    let taken = seed.save(PANDO.as_ref(), dir.path(), "two").unwrap_err().to_string();
    assert!(taken.contains("there is a checkpoint called two already"), "{taken}");
}

#[test]
fn a_stream_that_is_cut_is_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"PANDOSAV\x01\0\0\0").unwrap();
    drop(theirs);
    let saved = std::process::Command::new(PANDO)
        .args(["pages", "save", "--name", "one", "--store"])
        .arg(dir.path())
        .stdin(std::os::fd::OwnedFd::from(ours))
        .output()
        .unwrap();
    let said = "error: cannot save checkpoint one\n  because: the saved machine ends before its end\n";
    assert_eq!((String::from_utf8(saved.stderr).unwrap().as_str(), saved.status.code()), (said, Some(1)));
    assert!(Store::open(dir.path()).unwrap().checkpoints().unwrap().is_empty());
}

#[test]
fn a_vm_that_was_saved_goes_on_from_its_instant_in_another_monitor() {
    let Some((parent, seed)) = seed() else { return };
    let dir = tempfile::tempdir().unwrap();
    save(&seed, dir.path(), "vm");
    let (_, sibling) = seed.fork(1).unwrap();
    wait_for_laps(&sibling[0].monitor, WITNESS, ALL, LIMIT);
    let next = next_laps(&sibling[0].monitor, WITNESS);
    drop((parent, sibling, seed)); // All of them, and their files.

    let mut woken = Vec::new();
    for wake in 0..2 {
        let PageServer { mut process, connections } = serve(PANDO.as_ref(), dir.path(), "vm").unwrap();
        let vm = restore(connections).unwrap();
        wait_for_laps(&vm, WITNESS, ALL, LIMIT);
        assert_eq!(next_laps(&vm, WITNESS), next, "wake {wake}: each CPU goes on with its next lap");
        vm.gather().unwrap();
        let (_, children) = vm.fork(1).unwrap();
        wait_for_laps(&children[0].monitor, WITNESS, ALL, LIMIT);
        wait_for_laps(&vm, WITNESS, 2, LIMIT);
        assert!(until("the server's end", || process.try_wait().unwrap()).success(), "when all is there, it ends");
        woken.push(vm);
    }
    for vm in &woken {
        wait_for_laps(vm, WITNESS, ALL, LIMIT); // Both are on their own.
    }
}

#[test]
fn a_vm_that_was_restored_is_saved_as_any_other() {
    let Some((parent, seed)) = seed() else { return };
    let dir = tempfile::tempdir().unwrap();
    save(&seed, dir.path(), "first");
    drop((parent, seed));
    let vm = restore(serve(PANDO.as_ref(), dir.path(), "first").unwrap().connections).unwrap();
    wait_for_laps(&vm, WITNESS, ALL, LIMIT);
    vm.gather().unwrap();
    let seed = vm.seed().unwrap();
    save(&seed, dir.path(), "second");
    drop((vm, seed));
    let vm = restore(serve(PANDO.as_ref(), dir.path(), "second").unwrap().connections).unwrap();
    wait_for_laps(&vm, WITNESS, ALL, LIMIT);
}

#[test]
fn memory_above_the_hole_comes_back_as_well() {
    if !needs_kvm() {
        return;
    }
    let high = 4 << 30;
    let toy = Toy { touched: [0..0, 0..0], walked: high..high + (16 << 12) };
    let guest = Guest { kernel: toy.elf(), vcpus: 1, memory_bytes: 4 << 30, disk_bytes: 4096 };
    let parent = Monitor::boot_guest(PANDO.as_ref(), &guest).unwrap();
    parent.console_of(3, LIMIT).unwrap();
    let seed = parent.seed().unwrap();
    let dir = tempfile::tempdir().unwrap();
    seed.save(PANDO.as_ref(), dir.path(), "vm").unwrap();
    let (_, sibling) = seed.fork(1).unwrap();
    let next = sibling[0].monitor.console_of(1, LIMIT).unwrap()[0];
    drop((parent, sibling, seed));

    let connections = serve(PANDO.as_ref(), dir.path(), "vm").unwrap().connections;
    let vm = Monitor::restore(PANDO.as_ref(), &guest, connections).unwrap();
    let console = vm.console_of(5, LIMIT).unwrap();
    assert_eq!(console[0], next);
    assert_unbroken(&console);
}

/// How long an answer with these pages, first and how many, is kept back while a server is slow.
pub(crate) type Delay = fn(u32, u32) -> Duration;

/// Keeps back a page that a guest has and never touches, the first of its ACPI tables.
pub(crate) fn acpi(first: u32, pages: u32) -> Duration {
    if (first..first + pages).contains(&(0xe_0000 >> 12)) { LIMIT } else { Duration::ZERO }
}

/// Who lies between a monitor and its page server, and lets it be slow.
pub(crate) struct Between {
    pub(crate) is_slow: Arc<AtomicBool>,
    /// The ends that a monitor is given.
    pub(crate) monitors: Vec<UnixStream>,
    /// Both ends of all that passes.
    all: Arc<Mutex<Vec<UnixStream>>>,
}

impl Between {
    pub(crate) fn new(servers: Vec<UnixStream>, delay: Delay) -> Self {
        let (is_slow, all) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
        let mut monitors = Vec::new();
        for server in servers {
            let (monitor, ours) = UnixStream::pair().unwrap();
            monitors.push(monitor);
            all.lock().unwrap().extend([ours.try_clone().unwrap(), server.try_clone().unwrap()]);
            let is_slow = Arc::clone(&is_slow);
            let (up, down) = ((ours.try_clone().unwrap(), server.try_clone().unwrap()), (server, ours));
            thread::spawn(move || pass_asks(up.0, up.1, delay, &is_slow));
            thread::spawn(move || pass(down.0, down.1));
        }
        Self { is_slow, monitors, all }
    }

    /// The server dies.
    fn cut(&self) {
        for stream in self.all.lock().unwrap().iter() {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
}

fn pass_asks(mut from: UnixStream, mut to: UnixStream, delay: Delay, is_slow: &AtomicBool) {
    while let Ok(Some(ask)) = frame::read::<Ask>(&mut from) {
        let runs = if let Ask::Memory(runs) = &ask { runs.as_slice() } else { &[] };
        let delay = runs.iter().map(|(first, pages)| delay(*first, *pages)).max().unwrap_or_default();
        let came = Instant::now();
        while is_slow.load(Ordering::SeqCst) && came.elapsed() < delay {
            thread::sleep(Duration::from_millis(1));
        }
        if frame::write(&mut to, &ask).is_err() {
            return;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn pass(mut from: UnixStream, mut to: UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_vm_whose_memory_is_on_its_way_runs_and_is_not_forked_before_all_is_there() {
    let Some((parent, seed)) = seed() else { return };
    let dir = tempfile::tempdir().unwrap();
    save(&seed, dir.path(), "vm");
    drop((parent, seed));
    let mut between = Between::new(serve(PANDO.as_ref(), dir.path(), "vm").unwrap().connections, acpi);
    let vm = restore(std::mem::take(&mut between.monitors)).unwrap();
    wait_for_laps(&vm, WITNESS, ALL, LIMIT);
    for _ in 0..3 {
        let refused = vm.fork(1).map(|_| ()).unwrap_err().to_string();
        assert_eq!(refused, "the memory of the VM is still on its way: gather it first");
        wait_for_laps(&vm, WITNESS, 1, LIMIT);
    }
    assert_eq!(vm.ask(&Request::Pause).unwrap(), Response::Done);
    assert_eq!(vm.ask(&Request::Resume).unwrap(), Response::Done);
    between.is_slow.store(false, Ordering::SeqCst);
    vm.gather().unwrap();
    let (_, children) = vm.fork(1).unwrap();
    wait_for_laps(&children[0].monitor, WITNESS, ALL, LIMIT);
    wait_for_laps(&vm, WITNESS, ALL, LIMIT);

    // What its guest waited for is what the next server expects.
    let mut server = serve(PANDO.as_ref(), dir.path(), "vm").unwrap();
    let (described, _) = Client::new(server.connections.remove(0)).describe().unwrap();
    // Whichever of the pages that it walks over it was at: the others may have come along with that one.
    let walked = (4 << 20) / 4096..(4 << 20) / 4096 + WITNESS.pages as u32;
    let is_known = described.expected.iter().any(|(first, pages)| *first < walked.end && walked.start < first + pages);
    assert!(is_known, "{:?}", described.expected);
    drop(server.connections);
    assert!(server.process.wait().unwrap().success());
}

/// A VM that has begun to run, with a page that is kept back.
fn arriving(store: &Path) -> Option<(Between, Monitor)> {
    let (parent, seed) = seed()?;
    save(&seed, store, "vm");
    drop((parent, seed));
    let mut between = Between::new(serve(PANDO.as_ref(), store, "vm").unwrap().connections, acpi);
    let vm = restore(std::mem::take(&mut between.monitors)).unwrap();
    Some((between, vm))
}

/// The hashes of all that a checkpoint holds: they name its layers.
pub(crate) fn layers(store: &Path, name: &str) -> (Option<ManifestId>, Vec<ManifestId>) {
    let kept = Store::open(store).unwrap().checkpoint(name).unwrap();
    (kept.memory, kept.disks)
}

/// Which pages of the memory hold bytes, and which.
fn pages(store: &Path, name: &str) -> Vec<(u64, Vec<u8>)> {
    let memory = Store::open(store).unwrap().open_checkpoint(name).unwrap().memory().unwrap().unwrap();
    let mut bytes = vec![0; PAGE_BYTES];
    let with_bytes = (0..memory.pages()).filter_map(|page| {
        let is_data = memory.read_page(page, bytes.as_mut_slice().try_into().unwrap()).unwrap() == Page::Data;
        is_data.then(|| (page, bytes.clone()))
    });
    with_bytes.collect()
}

#[test]
fn who_forks_a_vm_at_once_after_it_woke_waits_and_every_page_is_right_while_the_vm_runs() {
    let dir = tempfile::tempdir().unwrap();
    let Some((between, vm)) = arriving(dir.path()) else { return };
    let is_there = AtomicBool::new(false);
    let gather = || {
        vm.gather().unwrap();
        is_there.store(true, Ordering::SeqCst);
    };
    thread::scope(|scope| {
        // Two at once, and a third that goes away.
        let both = [scope.spawn(gather), scope.spawn(gather)];
        let third = Connection::connect(&vm.dir().join("control")).unwrap();
        third.send(&Request::Gather, &[]).unwrap();
        drop(third);
        wait_for_laps(&vm, WITNESS, 2, LIMIT);
        assert_eq!(vm.ask(&Request::Pause).unwrap(), Response::Done);
        assert_eq!(phase(&vm), Phase::Paused);
        assert!(!is_there.load(Ordering::SeqCst), "it ran and stood still meanwhile");
        between.is_slow.store(false, Ordering::SeqCst);
        both.into_iter().for_each(|one| one.join().unwrap());
    });
    let seed = vm.seed().unwrap();
    save(&seed, dir.path(), "fork");
    let [before, after] = ["vm", "fork"].map(|name| pages(dir.path(), name));
    let numbers = |pages: &[(u64, Vec<u8>)]| {
        pages.iter().map(|(page, _)| *page).filter(|page| *page != Witness::HEADER_PAGE).collect::<Vec<_>>()
    };
    assert!(before.len() > 2 * WITNESS.pages as usize);
    assert_eq!(numbers(&after), numbers(&before));
    let (_, children) = seed.fork(2).unwrap();
    assert_eq!(vm.ask(&Request::Resume).unwrap(), Response::Done);
    let all = children.iter().map(|child| &child.monitor).chain([&vm]);
    all.for_each(|monitor| wait_for_laps(monitor, WITNESS, ALL, LIMIT));
    vm.gather().unwrap(); // Which it has: at once, and for a seed likewise.
    seed.gather().unwrap();
}

#[test]
fn who_waits_for_the_memory_of_a_vm_is_told_when_it_ends_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let kill: fn(&Between, &Monitor) = |_, vm| assert_eq!(vm.ask(&Request::Kill).unwrap(), Response::Done);
    let cut: fn(&Between, &Monitor) = |between, _| between.cut();
    for (end, why) in [(kill, None), (cut, Some("the page server does not answer"))] {
        let dir = dir.path().join(if why.is_some() { "cut" } else { "killed" });
        let Some((between, vm)) = arriving(&dir) else { return };
        let connection = vm.connect().unwrap();
        connection.send(&Request::Gather, &[]).unwrap();
        wait_for_laps(&vm, WITNESS, 1, LIMIT);
        end(&between, &vm);
        let Some((Response::Refused(chain), _)) = connection.receive().unwrap() else { panic!("it is not told") };
        assert_eq!(chain[0], "the VM has ended before all of its memory was there");
        assert_eq!(chain.len(), 1 + usize::from(why.is_some()), "{chain:?}");
        assert!(why.is_none_or(|why| chain[1].contains(why)), "{chain:?}");
    }
}

/// How the VM ends that somebody watches.
pub(crate) fn ending(watching: &Connection) -> Option<Ending> {
    match watching.receive::<Response>().unwrap()? {
        (Response::Ended(ending), _) => Some(ending),
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn a_page_server_that_dies_ends_the_vm_with_a_sentence() {
    let Some((parent, seed)) = seed() else { return };
    let dir = tempfile::tempdir().unwrap();
    save(&seed, dir.path(), "vm");
    drop((parent, seed));
    let mut between = Between::new(serve(PANDO.as_ref(), dir.path(), "vm").unwrap().connections, acpi);
    let vm = restore(std::mem::take(&mut between.monitors)).unwrap();
    let watching = vm.watch().unwrap();
    wait_for_laps(&vm, WITNESS, 1, LIMIT);
    between.cut();
    let Some(Ending::Crashed(how)) = ending(&watching) else { panic!("it did not crash") };
    assert!(how.contains("of the guest's memory are lost: the page server does not answer"), "{how}");
    let console = until("the sentence", || {
        let console = String::from_utf8_lossy(&vm.console().unwrap()).into_owned();
        console.contains("the guest cannot go on").then_some(console)
    });
    assert!(console.contains("the page server does not answer"), "{console}");
    until("its end", || vm.ask(&Request::Status).is_err().then_some(()));
}

/// Changes a byte of the chunk that has `page`.
fn damage(store: &Path, layer: &Layer, page: u64) {
    let location = layer.locate(page).unwrap().unwrap();
    let pack = store.join("packs").join(location.pack.to_string());
    let file = std::fs::File::options().read(true).write(true).open(pack).unwrap();
    let (at, mut byte) = (u64::from(location.offset + location.len / 2), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn last_data_page(layer: &Layer) -> u64 {
    (0..layer.pages()).rev().find(|page| layer.page(*page).unwrap() == Page::Data).unwrap()
}

#[test]
fn a_damaged_chunk_ends_the_vm_with_a_sentence_and_nobody_sees_zeroes() {
    let Some((parent, seed)) = seed() else { return };
    let dir = tempfile::tempdir().unwrap();
    save(&seed, dir.path(), "vm");
    drop((parent, seed));
    let store = Store::open(dir.path()).unwrap();
    let open = store.open_checkpoint("vm").unwrap();
    let memory = open.memory().unwrap().unwrap();
    let page = last_data_page(&memory); // The last that a CPU walks over: nobody needs it to begin.
    damage(dir.path(), &memory, page);

    let vm = restore(serve(PANDO.as_ref(), dir.path(), "vm").unwrap().connections).unwrap();
    let console = until("the sentence", || {
        let console = vm.console().unwrap();
        String::from_utf8_lossy(&console).contains("is damaged: pages").then_some(console)
    });
    let text = String::from_utf8_lossy(&console).into_owned();
    assert!(text.contains("error: the guest cannot go on\n  because: pages"), "{text}");
    // Broken is what the witness says where it finds anything but what it wrote.
    let told = &console[..console.windows(6).position(|bytes| bytes == b"error:").unwrap()];
    assert!(!told.iter().any(|byte| matches!(Told::from_byte(*byte), Told::Broken(..))));
    until("its end", || vm.ask(&Request::Status).is_err().then_some(()));
}

#[test]
fn a_monitor_that_itself_waits_for_a_lost_page_ends_all_the_same() {
    let Some((parent, seed)) = seed() else { return };
    let dir = tempfile::tempdir().unwrap();
    save(&seed, dir.path(), "vm");
    drop((parent, seed));
    let store = Store::open(dir.path()).unwrap();
    let memory = store.open_checkpoint("vm").unwrap().memory().unwrap().unwrap();
    damage(dir.path(), &memory, GENERATION_PAGE);
    let asked = Instant::now();
    let started = restore(serve(PANDO.as_ref(), dir.path(), "vm").unwrap().connections);
    assert!(matches!(&started, Err(MonitorError::Answer(answer)) if answer == "nothing"), "{started:?}");
    assert!(asked.elapsed() < LIMIT / 2);
}

#[test]
fn a_disk_that_cannot_be_read_or_another_machine_is_refused_at_the_start() {
    let Some((parent, seed)) = seed() else { return };
    let dir = tempfile::tempdir().unwrap();
    save(&seed, dir.path(), "vm");
    drop((parent, seed));
    let refused = |started: Result<Monitor, MonitorError>| match started {
        Err(MonitorError::Refused(chain)) => chain.join(": "),
        other => panic!("{other:?}"),
    };
    let serve = |name: &str| serve(PANDO.as_ref(), dir.path(), name).unwrap().connections;
    let absent = refused(restore(serve("gone")));
    assert_eq!(absent, "cannot learn what was saved: cannot serve checkpoint gone: no checkpoint is called gone");
    let guest = WITNESS.guest(MEMORY);
    for (other, what) in [
        (Guest { vcpus: 3, ..guest.clone() }, "CPUs"),
        (Guest { memory_bytes: MEMORY + (2 << 20), ..guest.clone() }, "memory"),
        (Guest { disk_bytes: guest.disk_bytes + 4096, ..guest.clone() }, "disk"),
    ] {
        let said = refused(Monitor::restore(PANDO.as_ref(), &other, serve("vm")));
        assert_eq!(said, format!("the VM that was saved has other {what} than the one that is to be started"));
    }
    let store = Store::open(dir.path()).unwrap();
    let open = store.open_checkpoint("vm").unwrap();
    let disk = open.layer(open.checkpoint().disks[0]).unwrap();
    damage(dir.path(), &disk, last_data_page(&disk));
    let said = refused(restore(serve("vm")));
    assert!(said.starts_with("cannot restore the disk: cannot fetch the disk's blocks: chunk "), "{said}");
    assert!(said.contains(" is damaged: pages "), "{said}");
}

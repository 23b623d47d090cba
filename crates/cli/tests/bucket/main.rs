//! A VM whose memory is in a bucket while it runs: of a real S3 server, on loopback, behind a network that has moods. Toy
//! guests that look at themselves at every step. Runs on any KVM, also one that only emulates the CPU.

#![expect(clippy::unwrap_used, reason = "what a monitor refuses here is the test's failure")]

#[allow(dead_code, reason = "the store's tests use more of it")]
#[path = "../../../store/tests/bucket/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "the store's tests use more of it")]
#[path = "../../../store/tests/bucket/server.rs"]
mod server;

use pando_bench::{Monitor, MonitorError, PageServer, Told, Witness, serve_from};
use pando_store::{Bucket, BucketSpec, Checkpoint, Kind, PAGE_BYTES, Page, Store};
use pando_wire::api;
use pando_wire::control::{Connection, Ending, Response};
use pando_wire::pages::Remote;
use proxy::{Mood, Proxy};
use server::Server;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

const PANDO: &str = env!("CARGO_BIN_EXE_pando");
const MEMORY: u64 = 128 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const WITNESS: Witness = Witness { vcpus: 2, pages: 16, records: 4 };
/// So many laps that every page and every record that was there before is looked at.
const ALL: usize = WITNESS.records as usize + 2;
/// Pages that the guest has and never touches: 8 MiB that do not compress, so four packs.
const ASIDE: std::ops::Range<u64> = (64 << 20) / PAGE_BYTES as u64..(72 << 20) / PAGE_BYTES as u64;

type Pages = BTreeMap<u64, Vec<u8>>;

/// A witness that was saved and is in a bucket, and nowhere else.
struct Away {
    proxy: Proxy,
    server: Server,
    /// What its memory holds.
    pages: Pages,
    /// The pack with the last page that it never touches, and its bytes.
    last: (PathBuf, Vec<u8>),
    page_servers: Mutex<Vec<Child>>,
    dir: tempfile::TempDir,
}

impl Away {
    fn new() -> Option<Self> {
        if !pando_bench::usable_kvm() {
            eprintln!("skipped: /dev/kvm cannot be opened here");
            return None;
        }
        let parent = Monitor::boot_guest(PANDO.as_ref(), &WITNESS.guest(MEMORY)).unwrap();
        wait_for_laps(&parent, ALL);
        let here = tempfile::tempdir().unwrap();
        parent.seed().unwrap().save(PANDO.as_ref(), here.path(), "small").unwrap();
        let store = Store::open(here.path()).unwrap();
        let pages = enlarge(&store);
        let memory = store.open_checkpoint("vm").unwrap().memory().unwrap().unwrap();
        let last = here.path().join("packs").join(memory.locate(ASIDE.end - 1).unwrap().unwrap().pack.to_string());
        let last = (last.file_name().unwrap().into(), std::fs::read(&last).unwrap());
        let server = Server::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let pushed = Bucket::new(&server.spec("vms")).unwrap();
        runtime.block_on(pushed.push(&store, "vm")).unwrap();
        let (proxy, dir) = (Proxy::before(&server), tempfile::tempdir().unwrap());
        Some(Self { proxy, server, pages, last, page_servers: Mutex::default(), dir })
    }

    /// What is kept of it here.
    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// How much of it is here, in bytes.
    fn here(&self) -> u64 {
        let packs = std::fs::read_dir(self.cache().join("packs")).unwrap().flatten();
        packs.map(|pack| pack.metadata().unwrap().len()).sum()
    }

    /// Starts a VM from it.
    fn wake(&self) -> Result<Monitor, MonitorError> {
        let BucketSpec { endpoint, access_key, secret_key, .. } = self.proxy.spec("vms");
        let bucket = api::Bucket {
            url: self.proxy.spec("vms").to_string(),
            endpoint,
            region: None,
            access_key_id: access_key,
            secret_access_key: secret_key,
            session_token: None,
        };
        let remote = Remote { bucket, cache_bytes: 1 << 30 };
        let PageServer { connections, process } =
            serve_from(PANDO.as_ref(), &self.cache(), "vm", Some(remote)).unwrap();
        self.page_servers.lock().unwrap().push(process);
        Monitor::restore(PANDO.as_ref(), &WITNESS.guest(MEMORY), connections)
    }

    /// Starts one of which most is still in the bucket when its guest has looked at all that it has: the network is slow.
    fn arriving(&self) -> Monitor {
        self.proxy.mood(Mood::Slow);
        let vm = self.wake().unwrap();
        wait_for_laps(&vm, ALL);
        assert!(self.here() < (6 << 20), "{} bytes of 8 MiB and more are here", self.here());
        vm
    }

    /// That all of the memory of a VM came as it was.
    fn assert_whole(&self, vm: &Monitor, name: &str) {
        vm.gather().unwrap();
        let store = self.dir.path().join("after");
        vm.seed().unwrap().save(PANDO.as_ref(), &store, name).unwrap();
        let after = pages(&Store::open(&store).unwrap(), name);
        let numbers =
            |pages: &Pages| pages.keys().copied().filter(|page| *page != Witness::HEADER_PAGE).collect::<Vec<_>>();
        assert_eq!(numbers(&after), numbers(&self.pages), "the same pages hold something");
        // The guest has written to the others since, and has looked at each before.
        assert!(ASIDE.into_iter().all(|page| after[&page] == self.pages[&page]));
        wait_for_laps(vm, ALL);
    }
}

impl Drop for Away {
    /// A page server ends after its monitor, when it has given up what it was fetching.
    fn drop(&mut self) {
        self.page_servers.lock().unwrap().iter_mut().for_each(|server| drop(server.wait()));
    }
}

/// Makes checkpoint "vm" of "small", with the pages that the guest does not know of. What its memory holds.
fn enlarge(store: &Store) -> Pages {
    let mut all = pages(store, "small");
    let mut number = 0x9e37_79b9_7f4a_7c15_u64;
    for page in ASIDE {
        let words = std::iter::repeat_with(|| {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            number.to_le_bytes()
        });
        assert!(all.insert(page, words.take(PAGE_BYTES / 8).flatten().collect()).is_none());
    }
    let small = store.checkpoint("small").unwrap();
    let length = store.open_checkpoint("small").unwrap().memory().unwrap().unwrap().pages();
    let writer = store.writer().unwrap();
    let mut memory = writer.layer(Kind::Memory, length).unwrap();
    all.iter().for_each(|(page, bytes)| memory.write(*page, bytes).unwrap());
    let memory = Some(memory.finish().unwrap());
    let before = store.open_checkpoint("small").unwrap().layer(small.disks[0]).unwrap();
    let (mut disk, mut bytes) = (writer.layer(Kind::Disk, before.pages()).unwrap(), [0; PAGE_BYTES]);
    for block in 0..before.pages() {
        if before.read_page(block, &mut bytes).unwrap() != Page::Absent {
            disk.write(block, &bytes).unwrap();
        }
    }
    let disks = vec![disk.finish().unwrap()];
    writer.publish(&Checkpoint { name: "vm".into(), memory, disks, ..small }).unwrap();
    all
}

/// The pages of a checkpoint's memory that hold something.
fn pages(store: &Store, name: &str) -> Pages {
    let memory = store.open_checkpoint(name).unwrap().memory().unwrap().unwrap();
    let mut bytes = [0; PAGE_BYTES];
    let held = (0..memory.pages()).filter_map(|page| {
        let is_data = memory.read_page(page, &mut bytes).unwrap() == Page::Data;
        is_data.then(|| (page, bytes.to_vec()))
    });
    held.collect()
}

/// Waits until every CPU has made `wanted` laps more. Nothing that any has looked at was wrong.
#[track_caller]
fn wait_for_laps(monitor: &Monitor, wanted: usize) {
    let (begun, before) = (Instant::now(), laps(monitor));
    while laps(monitor).iter().zip(&before).any(|(now, before)| *now < before + wanted) {
        assert!(begun.elapsed() < LIMIT, "from {before:?} laps, the guest came to {:?}", laps(monitor));
        thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn laps(monitor: &Monitor) -> Vec<usize> {
    let mut laps = vec![0; WITNESS.vcpus.into()];
    for told in told(&monitor.console().unwrap()) {
        match told {
            Told::Broken(cpu, what) => panic!("CPU {cpu}: {what}"),
            Told::Lap(cpu, _) => laps[usize::from(cpu)] += 1,
            Told::Ready(_) => (),
        }
    }
    laps
}

/// What a guest said, up to what its monitor says at the end.
fn told(console: &[u8]) -> impl Iterator<Item = Told> + '_ {
    let end = console.windows(6).position(|bytes| bytes == b"error:").unwrap_or(console.len());
    console[..end].iter().map(|byte| Told::from_byte(*byte))
}

/// How a VM crashed, whose guest has seen nothing wrong until then.
#[track_caller]
fn crash(vm: &Monitor, watching: &Connection) -> String {
    let how = match watching.receive::<Response>().unwrap() {
        Some((Response::Ended(Ending::Crashed(how)), _)) => how,
        other => panic!("{other:?}"),
    };
    let console = vm.console().unwrap();
    assert!(!told(&console).any(|told| matches!(told, Told::Broken(..))), "it saw what it had not written");
    how
}

#[test]
fn a_vm_runs_before_its_memory_is_here_and_all_of_it_comes_and_the_next_one_has_it_at_hand() {
    let Some(away) = Away::new() else { return };
    let vm = away.arriving();
    let at_first = away.here();
    away.proxy.mood(Mood::Well);
    away.assert_whole(&vm, "one");
    assert!(away.here() > 8 << 20 && at_first < away.here(), "{at_first} bytes, and then {}", away.here());
    drop(vm);
    // Enough for the mark and the checkpoint, and for no pack.
    away.proxy.mood(Mood::DieAfter(512 << 10));
    let vm = away.wake().unwrap();
    wait_for_laps(&vm, ALL);
    away.assert_whole(&vm, "two");
}

#[test]
fn a_bucket_that_is_away_for_a_while_is_waited_for() {
    let Some(away) = Away::new() else { return };
    for mood in [Mood::DieAfter(0), Mood::DieAfter(100 << 10), Mood::Stalled] {
        std::fs::remove_dir_all(away.cache()).unwrap_or_default();
        let vm = away.arriving();
        away.proxy.mood(mood);
        thread::sleep(Duration::from_secs(3));
        away.proxy.mood(Mood::Well);
        away.assert_whole(&vm, &format!("{mood:?}").replace(['(', ')'], "."));
    }
}

#[test]
fn a_bucket_that_does_not_come_back_ends_the_vm_with_a_sentence_and_nobody_sees_zeroes() {
    let Some(away) = Away::new() else { return };
    for mood in [Mood::DieAfter(0), Mood::Stalled] {
        std::fs::remove_dir_all(away.cache()).unwrap_or_default();
        let vm = away.arriving();
        let watching = vm.watch().unwrap();
        let begun = Instant::now();
        away.proxy.mood(mood);
        let how = crash(&vm, &watching);
        assert!(how.contains("cannot fetch chunk ") && how.contains(" in s3://pando-test/vms: "), "{how}");
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "before the pager gives up by itself: {:?}",
            begun.elapsed()
        );
    }
}

#[test]
fn wrong_bytes_or_wrong_keys_end_the_vm_with_a_sentence() {
    let Some(away) = Away::new() else { return };
    let (pack, mut bytes) = away.last.clone();
    *bytes.last_mut().unwrap() ^= 1;
    away.server.put(&format!("vms/packs/{}", pack.display()), &bytes);
    let vm = away.arriving();
    let watching = vm.watch().unwrap();
    away.proxy.mood(Mood::Well);
    let how = crash(&vm, &watching);
    assert!(how.contains(&format!("packs/{} is damaged", pack.display())), "{how}");

    // A page server that is ending may still write into it.
    while let Err(error) = std::fs::remove_dir_all(away.cache()) {
        assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty);
    }
    let vm = away.arriving();
    let watching = vm.watch().unwrap();
    away.server.ask_for_credentials();
    away.proxy.mood(Mood::Well);
    let how = crash(&vm, &watching);
    assert!(how.contains("s3://pando-test/vms refuses these credentials"), "{how}");
    let refused = match away.wake() {
        Err(MonitorError::Refused(chain)) => chain.join(": "),
        other => panic!("{other:?}"),
    };
    let sentence = "cannot serve checkpoint vm: s3://pando-test/vms refuses these credentials";
    assert!(refused.contains(sentence) && !refused.contains("somebody"), "{refused}");
}

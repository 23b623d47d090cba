//! A checkpoint that an earlier version exported is imported, read and run, for ever. docs/snapshot-format.md says how
//! another one is added.

use crate::checkpoint::next_laps;
use crate::instant::wait_for_laps;
use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Daemon, Monitor, MonitorError, PageServer, Witness, serve};
use pando_store::{Layer, PAGE_BYTES, Page, Store};
use pando_wire::api::{Checkpoint, CheckpointState, Image};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

/// The guest of all fixtures, which looks at memory, disk and registers at every step.
const WITNESS: Witness = Witness { vcpus: 3, pages: 8, records: 4 };
/// The image that they need: an ext4 of 1 MiB with nothing in it. They are run without looking at it.
const IMAGE: &[u8] = include_bytes!("../fixtures/image.zst");
/// What the store calls the checkpoint.
const ID: &str = "019b0000-0000-7000-8000-000000000001";
const VM: &str = "019b0000-0000-7000-8000-000000000002";
/// The pages that it walks over.
const WORKING_SET: Range<u64> = 1024..1024 + WITNESS.pages * WITNESS.vcpus as u64;
const CREATED_MS: i64 = 1_795_664_867_000;

/// What one holds, as it was when it was written.
struct Fixture {
    /// The version of its machine's state.
    version: u32,
    /// What `pando checkpoint export` wrote.
    export: &'static [u8],
    /// That state.
    machine: &'static [u8],
    /// [`hash`] of its memory and of its disk.
    hashes: [&'static str; 2],
    /// What its guest was shown.
    cpu_features: &'static [&'static str],
    /// The lap that each of its CPUs comes to next.
    next_laps: [u8; WITNESS.vcpus as usize],
}

const FIXTURES: [Fixture; 3] = [
    Fixture {
        version: 1,
        export: include_bytes!("../fixtures/1/checkpoint"),
        machine: include_bytes!("../../../../fuzz/seeds/machine/1"),
        hashes: [
            "02d84a5cee050cb367dcc93da8bb9b07fdccbe9637593ef83358bfa7b94be33f",
            "1ab8662fe5f50510d3a352c117308d1b77145bd30453134c3f4c9ff22aa2f633",
        ],
        cpu_features: &["clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm"],
        next_laps: [3, 6, 4],
    },
    Fixture {
        version: 2,
        export: include_bytes!("../fixtures/2/checkpoint"),
        machine: include_bytes!("../../../../fuzz/seeds/machine/2"),
        hashes: [
            "64bced1c112893b70cd32c5aec6dc8aff50a425762caf51b849609393cd4fe92",
            "83e3e2be9a1c5fee6d8d2d0c59ba646b168b3f8af12ae9e4b1b199d3686507f7",
        ],
        cpu_features: &["clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm"],
        next_laps: [10, 6, 5],
    },
    Fixture {
        version: 3,
        export: include_bytes!("../fixtures/3/checkpoint"),
        machine: include_bytes!("../../../../fuzz/seeds/machine/3"),
        hashes: [
            "b09b9789e8a76fa3719a736e130e703aa23f9d1c85f039a4b0bf04bab8ecb1c0",
            "1ada119bc6a0658e10e7b7ccb2a20efc1a9cacb8d89e46a5780e65c7757d5686",
        ],
        cpu_features: &["clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm"],
        next_laps: [9, 0, 7],
    },
];

/// A daemon that has nothing but the image, and that image's digest.
fn daemon() -> (Daemon, String) {
    let daemon = Daemon::start(PANDO.as_ref(), &[]).unwrap();
    let image: Image = daemon.send("POST", "/images", IMAGE).unwrap();
    (daemon, image.digest)
}

/// A daemon that has imported `export` as a user does.
fn imported(export: &[u8]) -> Daemon {
    let (daemon, _) = daemon();
    let path = daemon.state().join("arrived");
    fs::write(&path, export).unwrap();
    assert_eq!(daemon.pando(&["checkpoint", "import", path.to_str().unwrap()]).unwrap(), "first\n");
    daemon
}

/// BLAKE3 of all pages in order, each behind a byte that says whether the layer has it, and as zeroes or not.
fn hash(layer: &Layer) -> String {
    let (mut hash, mut bytes) = (blake3::Hasher::new(), [0; PAGE_BYTES]);
    for page in 0..layer.pages() {
        let kind = match layer.read_page(page, &mut bytes).unwrap() {
            Page::Absent => 0,
            Page::Zero => 1,
            Page::Data => 2,
        };
        hash.update(&[kind]).update(&bytes);
    }
    hash.finalize().to_string()
}

/// Hashes of the memory and the disk of the checkpoint `id`.
fn hashes(store: &Store, id: &str) -> [String; 2] {
    let open = store.open_checkpoint(id).unwrap();
    let disk = open.layer(open.checkpoint().disks[0]).unwrap();
    [hash(&open.memory().unwrap().unwrap()), hash(&disk)]
}

#[test]
fn what_an_earlier_version_exported_is_imported_and_holds_every_page_and_block() {
    for fixture in &FIXTURES {
        let daemon = imported(fixture.export);
        let told: Checkpoint = daemon.call("GET", "/checkpoints/first", &()).unwrap();
        let expected = Checkpoint {
            id: ID.into(),
            name: "first".into(),
            vm: "fixture".into(),
            vm_id: VM.into(),
            state: CheckpointState::Stored,
            cpus: WITNESS.vcpus,
            memory_bytes: MEMORY,
            logical_bytes: Some(MEMORY + WITNESS.guest(MEMORY).disk_bytes),
            created_ms: CREATED_MS,
            ..told.clone()
        };
        assert_eq!(format!("{told:?}"), format!("{expected:?}"));
        assert!(daemon.pando(&["checkpoint", "verify"]).unwrap().ends_with("all whole\n"));

        let store = Store::open(&daemon.state().join("store")).unwrap();
        assert_eq!(store.checkpoints().unwrap(), [ID]);
        assert_eq!(hashes(&store, ID), fixture.hashes);
        let kept = store.checkpoint(ID).unwrap();
        assert_eq!(store.working_set(kept.memory.unwrap()).unwrap(), [WORKING_SET]);
        let machine = kept.machine;
        let described = (&*machine.kind, machine.version, &*machine.arch);
        assert_eq!(described, ("pando-vmm", fixture.version, "x86_64"));
        assert_eq!(machine.cpu_features, fixture.cpu_features);
        assert!(machine.state == fixture.machine, "it is another machine than pando-vmm decodes in its tests");
    }
}

#[test]
fn a_guest_that_an_earlier_version_stored_goes_on() {
    if !needs_kvm() {
        return;
    }
    for fixture in &FIXTURES {
        let daemon = imported(fixture.export);
        let PageServer { connections, .. } = serve(PANDO.as_ref(), &daemon.state().join("store"), ID).unwrap();
        match Monitor::restore(PANDO.as_ref(), &WITNESS.guest(MEMORY), connections) {
            Ok(vm) => {
                wait_for_laps(&vm, WITNESS, WITNESS.records as usize + 2, LIMIT);
                assert_eq!(next_laps(&vm, WITNESS), fixture.next_laps);
                vm.gather().unwrap();
                wait_for_laps(&vm, WITNESS, WITNESS.records as usize + 2, LIMIT);
                println!("the guest of version {} goes on", fixture.version);
            }
            // It was shown what every CPU for x86-64 has; should one have less, it is named.
            Err(MonitorError::Refused(chain)) => {
                let lacks = "the CPU of this host lacks what the guest was shown: ";
                assert!(chain.len() == 1 && chain[0].starts_with(lacks), "{chain:?}");
                println!("the guest of version {} does not go on: {}", fixture.version, chain[0]);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The second of two steps: what pando-vmm's tests wrote into the file `PANDO_FIXTURE` as `pando checkpoint export` has it.
#[test]
#[ignore = "writes a fixture, once for each version"]
fn write_the_fixture() {
    let Some(stream) = std::env::var_os("PANDO_FIXTURE") else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut save = Command::new(PANDO);
    save.args(["pages", "save", "--name", ID, "--store"]).arg(dir.path()).stdin(File::open(stream).unwrap());
    assert!(save.status().unwrap().success());
    let PageServer { connections, .. } = serve(PANDO.as_ref(), dir.path(), ID).unwrap();
    let vm = Monitor::restore(PANDO.as_ref(), &WITNESS.guest(MEMORY), connections).unwrap();
    wait_for_laps(&vm, WITNESS, 2, LIMIT);
    println!("next_laps: {:?}", next_laps(&vm, WITNESS));
    drop(vm);

    let (daemon, image) = daemon();
    let store = Store::open(dir.path()).unwrap();
    let kept = store.checkpoint(ID).unwrap();
    store.note_working_set(kept.memory.unwrap(), &[WORKING_SET]).unwrap();
    let machine = kept.machine;
    let (version, path) = (machine.version, daemon.state().join("made"));
    fs::write(&path, described(&store, &image)).unwrap();
    daemon.pando(&["checkpoint", "import", path.to_str().unwrap()]).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fixture = here.join(format!("tests/fixtures/{version}/checkpoint"));
    assert!(!fixture.exists(), "there is one already");
    fs::create_dir_all(fixture.parent().unwrap()).unwrap();
    fs::write(here.join(format!("../../fuzz/seeds/machine/{version}")), &machine.state).unwrap();
    daemon.pando(&["checkpoint", "export", "first", fixture.to_str().unwrap()]).unwrap();
    println!("cpu_features: {:?}", machine.cpu_features);
    println!("hashes: {:?}", hashes(&store, ID));
}

/// The checkpoint in `store` behind what a daemon would know of it, which has none here, as no agent is in the guest.
fn described(store: &Store, image: &str) -> Vec<u8> {
    let mut all = ahead_of_export(&json!({
        "id": ID, "name": "first", "vm": VM, "vm_name": "fixture", "generation": 1, "image": image,
        "cpus": WITNESS.vcpus, "memory_bytes": MEMORY, "command": ["true"], "env": {"A": "1"}, "cwd": "/", "user": null,
        "kernel": null, "created_ms": CREATED_MS,
    }));
    store.export_with_working_sets(&[ID], &mut all).unwrap();
    all
}

/// What a daemon writes ahead of an export, of what it knows: mark, format, length, hash, JSON.
pub(crate) fn ahead_of_export(known: &Value) -> Vec<u8> {
    let json = known.to_string().into_bytes();
    let (format, len) = (1_u32.to_le_bytes(), (json.len() as u32).to_le_bytes());
    [&b"pando checkpoint"[..], &format, &len, blake3::hash(&json).as_bytes(), &json].concat()
}

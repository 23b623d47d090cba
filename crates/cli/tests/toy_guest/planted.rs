//! Tests of these tests: faults that were built into a `pando`, and that the guests must notice.

use crate::instant::{WITNESS, boot_in};
use crate::{LIMIT, MEMORY, needs_kvm};
use pando_bench::{Monitor, Relay, Told, serve};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// After so long without a word, a guest that talks all the time has stalled.
const STALL: Duration = Duration::from_secs(5);

/// The `pando` that `make test` built with a fault and told of in the variable `name`.
fn planted(name: &str) -> PathBuf {
    assert!(needs_kvm(), "a fault is looked for where there is a KVM");
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set; `make test` prepares it")).into()
}

#[test]
#[ignore = "needs a pando with a fault: make test"]
fn the_witness_notices_a_disk_captured_after_the_resume() {
    let parent = boot_in(&planted("PANDO_PLANTED_LATE_DISK"), WITNESS);
    let noticed = (0..20).any(|_| {
        let (_, children) = parent.fork(1).unwrap();
        complaint(&children[0].monitor).is_some_and(|what| what.starts_with("a record on the disk"))
    });
    assert!(noticed, "20 children got a disk that was sealed too late, and the witness found them all well");
}

#[test]
#[ignore = "needs a pando with a fault: make test"]
fn the_witness_notices_a_disk_captured_after_the_resume_in_a_vm_from_the_store() {
    let pando = planted("PANDO_PLANTED_LATE_DISK");
    let (parent, dir) = (boot_in(&pando, WITNESS), tempfile::tempdir().unwrap());
    let noticed = (0..20).any(|number| {
        let name = format!("c{number}");
        parent.seed().unwrap().save(&pando, dir.path(), &name).unwrap(); // The seed goes at once.
        let connections = serve(&pando, dir.path(), &name).unwrap().connections;
        let vm = Monitor::restore(&pando, &WITNESS.guest(MEMORY), connections).unwrap();
        complaint(&vm).is_some_and(|what| what.starts_with("a record on the disk"))
    });
    assert!(noticed, "20 checkpoints have a disk that was sealed too late, and the witness found them all well");
}

#[test]
#[ignore = "needs a pando with a fault: make test"]
fn the_relay_notices_an_interrupt_that_came_after_a_cpu_read_its_state() {
    let relay = Relay { vcpus: 2 };
    let parent = Monitor::boot_guest(&planted("PANDO_PLANTED_EARLY_READ"), &relay.guest(MEMORY)).unwrap();
    let all_said_so = 2 * usize::from(relay.vcpus);
    parent.console_of(all_said_so, LIMIT).unwrap();
    let noticed = (0..40).any(|_| {
        let (_, children) = parent.fork(1).unwrap();
        children[0].monitor.console_of(all_said_so, STALL).is_err()
    });
    assert!(noticed, "40 children were read while a CPU could still send an interrupt, and none of them stalls");
    let before = parent.console().unwrap().len();
    parent.console_of(before + all_said_so, LIMIT).unwrap(); // It has lost nothing.
}

/// What the witness says is wrong, if it does before its first CPU has looked at every record.
fn complaint(monitor: &Monitor) -> Option<&'static str> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let console = monitor.console().unwrap();
        let mut laps = 0;
        for told in console.iter().map(|byte| Told::from_byte(*byte)) {
            match told {
                Told::Broken(_, what) => return Some(what),
                Told::Lap(0, _) => laps += 1,
                Told::Lap(..) | Told::Ready(_) => (),
            }
        }
        if laps >= WITNESS.records + 2 {
            return None;
        }
        assert!(Instant::now() < deadline, "the guest came to {laps} laps");
        thread::sleep(Duration::from_millis(1));
    }
}

//! The fork-point oracle with truly parallel CPUs: `pando_bench::Witness` looks at memory, registers and disk at every
//! step, and says so when a child was not copied at one instant, or is not its own.

use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Monitor, Relay, Told, Witness};
use pando_wire::control::Request;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a child may take for all that is wanted of it. One that hangs never gets there.
const CHILD_LIMIT: Duration = Duration::from_secs(60);

/// 16 pages a lap: many forks fall among them, others into a request to the disk.
pub(crate) const WITNESS: Witness = Witness { vcpus: 2, pages: 16, records: 4 };

pub(crate) fn boot(witness: Witness) -> Option<Monitor> {
    needs_kvm().then(|| boot_in(PANDO.as_ref(), witness))
}

/// Boots it in the `pando` at `pando`.
pub(crate) fn boot_in(pando: &Path, witness: Witness) -> Monitor {
    let monitor = Monitor::boot_guest(pando, &witness.guest(MEMORY)).unwrap();
    wait_for_laps(&monitor, witness, 2, LIMIT);
    monitor
}

/// Waits until every CPU has made `wanted` laps more, and looks at all that the guest ever said.
#[track_caller]
pub(crate) fn wait_for_laps(monitor: &Monitor, witness: Witness, wanted: usize, limit: Duration) {
    let count = || (0..witness.vcpus).map(|cpu| laps(&monitor.console().unwrap(), cpu)).collect::<Vec<_>>();
    let before: Vec<_> = count();
    let deadline = Instant::now() + limit;
    loop {
        let now = count();
        if now.iter().zip(&before).all(|(now, before)| now - before >= wanted) {
            return;
        }
        let is_in_time = Instant::now() < deadline;
        assert!(is_in_time, "from {before:?} laps, the guest came to {now:?}; its monitor: {}", monitor.last_seen());
        thread::sleep(Duration::from_millis(1));
    }
}

/// How many laps `cpu` has told of. They follow each other, and nothing else is told but the beginning.
#[track_caller]
fn laps(console: &[u8], cpu: u8) -> usize {
    let mut count = 0;
    let mut last = None;
    for (at, byte) in console.iter().enumerate() {
        match Told::from_byte(*byte) {
            Told::Broken(cpu, what) => panic!("CPU {cpu}: {what}"),
            Told::Lap(whose, lap) if whose == cpu => {
                let follows = last.is_none_or(|last: u8| (last + 1) & 15 == lap);
                assert!(follows, "CPU {cpu}: lap {lap} after {last:?} at byte {at}: told twice, or not at all");
                (last, count) = (Some(lap), count + 1);
            }
            Told::Lap(..) | Told::Ready(_) => (),
        }
    }
    count
}

#[test]
fn memory_registers_and_disk_of_every_child_are_of_one_instant_and_its_own() {
    let witness = WITNESS;
    let Some(mut parent) = boot(witness) else { return };
    for fork in 1..=160 {
        let (_, mut children) = parent.fork(if fork % 8 == 0 { 3 } else { 1 }).unwrap();
        // Every other time the parent is quiet while its child is looked at, for the sake of this test's duration.
        let is_quiet = fork % 2 == 0;
        if is_quiet {
            parent.ask(&Request::Pause).unwrap();
        }
        for child in &children {
            // So many that every page and every record that came from the parent was looked at.
            wait_for_laps(&child.monitor, witness, witness.records as usize + 2, CHILD_LIMIT);
        }
        if is_quiet {
            parent.ask(&Request::Resume).unwrap();
        }
        // And back: what the children wrote is not the parent's.
        wait_for_laps(&parent, witness, 1, CHILD_LIMIT);
        if fork % 20 == 0 {
            wait_for_laps(&parent, witness, witness.records as usize + 2, CHILD_LIMIT);
            parent = children.remove(0).monitor; // Forks of forks.
        }
    }
}

#[test]
fn four_cpus_are_of_one_instant_as_well() {
    let witness = Witness { vcpus: 4, pages: 8, records: 4 };
    let Some(parent) = boot(witness) else { return };
    for _ in 0..10 {
        let (_, children) = parent.fork(2).unwrap();
        for child in &children {
            wait_for_laps(&child.monitor, witness, witness.records as usize + 2, CHILD_LIMIT);
        }
    }
    wait_for_laps(&parent, witness, witness.records as usize + 2, CHILD_LIMIT);
}

#[test]
fn an_interrupt_from_one_cpu_to_another_is_lost_in_no_child() {
    // A CPU that reads its state while another still runs does not read the interrupt that the other sends it then.
    for relay in [Relay { vcpus: 2 }, Relay { vcpus: 4 }] {
        if !needs_kvm() {
            return;
        }
        let parent = Monitor::boot_guest(PANDO.as_ref(), &relay.guest(MEMORY)).unwrap();
        let all_said_so = 2 * usize::from(relay.vcpus);
        parent.console_of(all_said_so, LIMIT).unwrap();
        for fork in 1..=100 {
            let (_, children) = parent.fork(1).unwrap();
            let console = children[0].monitor.console_of(all_said_so, CHILD_LIMIT);
            assert!(console.is_ok(), "child {fork} of {relay:?} stalls");
        }
        let before = parent.console().unwrap().len();
        parent.console_of(before + all_said_so, LIMIT).unwrap();
    }
}

#[test]
fn no_thread_holds_a_lock_at_a_fork() {
    // One page: the guest does little but talk to its disk, its vsock and its serial port, and clients come all the
    // time. A child that was forked while a thread of its parent's held a lock would wait for it for ever: there is
    // no such thread in it.
    let witness = Witness { vcpus: 2, pages: 1, records: 2 };
    let Some(parent) = boot(witness) else { return };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                knock(&parent.dir().join("vsock"));
            }
        });
        let _over = OnDrop(&over); // Also when a child is found to hang.
        for _ in 0..300 {
            let (_, children) = parent.fork(1).unwrap();
            wait_for_laps(&children[0].monitor, witness, 4, CHILD_LIMIT);
        }
    });
    wait_for_laps(&parent, witness, 4, CHILD_LIMIT);
}

/// Sets a flag in the end.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client that wants something of the guest, which does not answer, and goes.
fn knock(vsock: &Path) {
    let Ok(mut client) = UnixStream::connect(vsock) else { return };
    client.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let _ = client.write_all(b"CONNECT 9\n");
    let _ = client.read(&mut [0]);
}

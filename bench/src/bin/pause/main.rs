//! How long a fork or a checkpoint stops its VM, and where its children's time goes; with a toy guest, which runs on any KVM.
//!
//! ```text
//! pause [PANDO]      PANDO is the program, target/release/pando when absent
//! ```
//!
//! A pause is held against `fork(2)` of a process with the same memory and nothing else, and the two take turns, so that
//! whatever else this computer does happens to both.

mod bare; // fork(2) and nothing else

use bare::Bare;
use pando_bench::{Monitor, MonitorError, READY, Toy, bound, median_of, mib, row, table, took, usable_kvm};
use pando_wire::control::{ForkTimings, Request, StartTimings};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// The smallest is the least that the monitor allows.
const SIZES: [u64; 3] = [128 << 20, 1 << 30, 4 << 30];
/// Forks per median.
const FORKS: usize = 20;
/// What a guest writes to all the time while its pause is compared with a bare fork.
const WALKED: u64 = 256 << 10;
/// What a guest has written to since the fork before, when that is what counts.
const DIRTIED: [u64; 2] = [16 << 20, 512 << 20];
/// RAM of the guests that dirty it.
const DIRTY_RAM: u64 = 1 << 30;
/// How long after its writes a guest is a quiet one: its memory has become huge pages again.
const LATER: Duration = Duration::from_secs(10);
/// Checkpoints per median of those that are made that long after.
const LATER_KEPT: usize = 5;
/// Until a guest has touched all its memory, or made a lap.
const LIMIT: Duration = Duration::from_secs(120);
/// How often it is looked whether the memory of a child that ended is given back.
const SETTLE: Duration = Duration::from_millis(5);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [argument, bytes] = args.as_slice()
        && argument == bare::ARGUMENT
    {
        return bare::serve(bytes.parse()?);
    }
    let pando = PathBuf::from(args.first().map_or("target/release/pando", String::as_str));
    if !usable_kvm() {
        println!("skipped: /dev/kvm cannot be opened here");
        return Ok(());
    }
    against_bare_forks(&pando)?;
    after_writes(&pando)?;
    Ok(())
}

/// The pause and the children's phases by the size of RAM.
fn against_bare_forks(pando: &Path) -> Result<(), MonitorError> {
    let mut measured = Vec::new();
    for size in SIZES {
        measured.push((size, measure(pando, size)?));
    }
    println!(
        "The parent's pause by RAM, all of it touched: medians of {FORKS} forks, in µs. 128 MiB is the least RAM."
    );
    let rows = measured.iter().map(|(size, of)| of.pause_row(*size)).collect::<Vec<_>>();
    table(&["RAM", "pause", "park", "save", "seal", "fork", "resume", "least pause", "bare fork(2)"], &rows);
    for (size, of) in &measured {
        let (pause, bare) = (of.pause_us(), of.bare_us());
        let limit = bare * 13 / 10 + 300;
        let ratio = pause as f64 / bare.max(1) as f64;
        let what = format!("{}: {ratio:.2} times a bare fork", mib(*size));
        bound(&what, &took(pause), &format!("<= 1.3 x bare + 0.3 ms = {}", took(limit)), pause <= limit);
    }
    if let [(small, first), .., (large, last)] = measured.as_slice() {
        at_most(&format!("pause, {} against {}", mib(*large), mib(*small)), last.pause_us(), first.pause_us(), 8.0);
    }

    println!("\nWhere a child's time goes, from the fork to its first instruction: medians, in µs");
    let rows = measured.iter().map(|(size, of)| of.child_row(*size)).collect::<Vec<_>>();
    table(&["RAM", "total", "seed", "wait", "create VM", "memory", "vCPUs", "devices"], &rows);
    Ok(())
}

/// The pause by what was written since the fork before, or since the checkpoint.
fn after_writes(pando: &Path) -> Result<(), MonitorError> {
    let mut guests = Vec::new();
    for walked in DIRTIED {
        let guest = touched(pando, DIRTY_RAM, walked)?;
        guest.ask(&Request::Pause)?;
        guests.push(Dirtied { walked, guest, forks: [(); WAYS.len()].map(|()| Measured::default()) });
    }
    // In turns, and the other one stands still.
    for _ in 0..FORKS {
        for Dirtied { guest, forks: [fork, checkpoint, ..], .. } in &mut guests {
            write_all(guest)?;
            fork.fork(guest)?;
            write_all(guest)?;
            end([checkpoint.keep(guest)?])?;
            guest.ask(&Request::Pause)?;
        }
    }
    // Last, as it breaks the guest's huge pages: what is written while somebody else has it is copied page by page.
    for Dirtied { guest, forks: [_, _, beside, _], .. } in &mut guests {
        let mut before = guest.seed()?;
        for _ in 0..FORKS {
            write_all(guest)?;
            let seed = beside.keep(guest)?;
            end([std::mem::replace(&mut before, seed)])?;
            guest.ask(&Request::Pause)?;
        }
        end([before])?;
    }
    beside_one_later(&mut guests)?;
    report_writes(&guests);
    Ok(())
}

/// Checkpoints beside a seed that lives, of guests that go on for a while after their writes, in turns.
fn beside_one_later(guests: &mut [Dirtied]) -> Result<(), MonitorError> {
    let mut seeds = guests.iter().map(|of| of.guest.seed()).collect::<Result<Vec<_>, _>>()?;
    for _ in 0..LATER_KEPT {
        for (Dirtied { guest, forks: [.., later], .. }, before) in guests.iter_mut().zip(&mut seeds) {
            write_all(guest)?;
            sleep(LATER);
            let seed = later.keep(guest)?;
            end([std::mem::replace(before, seed)])?;
            guest.ask(&Request::Pause)?;
        }
    }
    end(seeds)
}

/// How the memory is shared while a guest writes, and what then stops it.
const WAYS: [&str; 4] = ["fork", "checkpoint", "checkpoint beside one", "checkpoint beside one, later"];

/// A guest that writes to so many bytes between two forks.
struct Dirtied {
    walked: u64,
    guest: Monitor,
    /// One for each of [`WAYS`].
    forks: [Measured; WAYS.len()],
}

fn report_writes(guests: &[Dirtied]) {
    println!(
        "\nThe VM's pause by what it wrote since the one before, {} of RAM: medians of {FORKS}, in µs. The child or seed of \
         that has ended before the VM writes; beside one, that seed lives meanwhile; later, {} s after the writes ({LATER_KEPT} \
         each)",
        mib(DIRTY_RAM),
        LATER.as_secs()
    );
    let row = |of: &Dirtied, way: usize| {
        let mut row = of.forks[way].pause_row(of.walked);
        row[0] = format!("{}, {}", WAYS[way], row[0]);
        row
    };
    let rows: Vec<_> = guests.iter().flat_map(|of| (0..WAYS.len()).map(move |way| row(of, way))).collect();
    table(&["written", "pause", "park", "save", "seal", "fork", "resume", "least pause"], &rows);
    for Dirtied { walked, forks: [fork, checkpoint, ..], .. } in guests {
        let what = format!("checkpoint against fork, {} written", mib(*walked));
        at_most(&what, checkpoint.pause_us(), fork.pause_us(), 1.2);
    }
    if let [little, much] = guests {
        for ((way, little), much) in WAYS.iter().zip(&little.forks).zip(&much.forks) {
            let what = format!("{way}, {} written against {}", mib(DIRTIED[1]), mib(DIRTIED[0]));
            at_most(&what, much.pause_us(), little.pause_us(), 1.3);
        }
    }
}

/// Lets a guest go on until it has written to all that it writes to.
fn write_all(guest: &Monitor) -> Result<(), MonitorError> {
    guest.ask(&Request::Resume)?;
    // The lap that ends next began before; the one after it is whole.
    guest.console_of(guest.console()?.len() + 2, LIMIT).map(drop)
}

/// Ends what was forked, and waits until its memory is given back: what is written before that is copied page by page.
fn end(forked: impl IntoIterator<Item = Monitor>) -> Result<(), MonitorError> {
    for monitor in forked {
        let memory = format!("/proc/{}/statm", monitor.pid()?);
        drop(monitor);
        // Nothing, or that of a process that nobody has reaped yet.
        while fs::read_to_string(&memory).is_ok_and(|pages| !pages.starts_with("0 ")) {
            sleep(SETTLE);
        }
    }
    sleep(SETTLE);
    Ok(())
}

/// Prints how many times `against` a figure is, and whether that is at most `limit`.
fn at_most(what: &str, figure: u64, against: u64, limit: f64) {
    let ratio = figure as f64 / against.max(1) as f64;
    bound(what, &format!("{ratio:.2} x"), &format!("<= {limit} x"), ratio <= limit);
}

fn measure(pando: &Path, size: u64) -> Result<Measured, MonitorError> {
    let mut bare = Bare::start(size)?;
    let guest = touched(pando, size, WALKED)?;
    let mut measured = Measured::default();
    for _ in 0..FORKS {
        measured.bare.push(bare.fork_us()?);
        measured.fork(&guest)?;
    }
    Ok(measured)
}

/// A guest that has touched all its memory.
fn touched(pando: &Path, memory_bytes: u64, walked: u64) -> Result<Monitor, MonitorError> {
    let guest = Monitor::boot(pando, &Toy::touching(memory_bytes, walked), memory_bytes)?;
    match guest.console_of(2, LIMIT)?.first() {
        Some(&READY) => Ok(guest),
        other => Err(MonitorError::Answer(format!("{other:?} on its console"))),
    }
}

/// What some forks took.
#[derive(Default)]
struct Measured {
    bare: Vec<u64>,
    forks: Vec<ForkTimings>,
    starts: Vec<StartTimings>,
}

impl Measured {
    /// Forks once; the child lives until it runs.
    fn fork(&mut self, guest: &Monitor) -> Result<(), MonitorError> {
        let (timings, children) = guest.fork(1)?;
        self.forks.push(timings);
        self.starts.extend(children.iter().map(|child| child.timings));
        end(children.into_iter().map(|child| child.monitor))
    }

    /// Makes a checkpoint.
    fn keep(&mut self, guest: &Monitor) -> Result<Monitor, MonitorError> {
        let (timings, seed) = guest.keep()?;
        self.forks.push(timings);
        Ok(seed)
    }

    fn pause_us(&self) -> u64 {
        median_of(&self.forks, |fork| fork.pause_us)
    }

    fn bare_us(&self) -> u64 {
        median_of(&self.bare, |us| *us)
    }

    fn pause_row(&self, size: u64) -> Vec<String> {
        let phases: [fn(&ForkTimings) -> u64; 6] =
            [|f| f.pause_us, |f| f.park_us, |f| f.save_us, |f| f.seal_us, |f| f.fork_us, |f| f.resume_us];
        let phases = phases.into_iter().map(|phase| median_of(&self.forks, phase));
        let bare = (!self.bare.is_empty()).then(|| self.bare_us());
        let least = self.forks.iter().map(|fork| fork.pause_us).min();
        row(size, phases.chain(least).chain(bare))
    }

    fn child_row(&self, size: u64) -> Vec<String> {
        let phases: [fn(&StartTimings) -> u64; 7] = [
            |s| s.total_us,
            |s| s.seed_us,
            |s| s.wait_us,
            |s| s.create_vm_us,
            |s| s.memory_us,
            |s| s.vcpus_us,
            |s| s.devices_us,
        ];
        row(size, phases.into_iter().map(|phase| median_of(&self.starts, phase)))
    }
}

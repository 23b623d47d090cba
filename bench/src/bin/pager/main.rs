//! What it costs to run in memory that is still arriving: fault latency, fill throughput, what a known working set saves,
//! and what huge pages are worth afterwards.
//!
//! ```text
//! pager [MIB]       how much RAM, 512 when absent
//! ```
//!
//! The source is in memory: what a store or a line adds comes on top, and is stood in for by a delay where that matters.

mod source; // pages from memory

use pando_bench::{bound, median, table, took};
use pando_memory::pager::{End, Pager, Spec, Stats, Tuning};
use pando_sys::{HUGE_PAGE, Userfault, collapse, fork, give_back, guest_memory};
use source::{PAGE, Source};
use std::error::Error;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// What a fetch from a store that is not in the page cache takes, about.
const DELAY: Duration = Duration::from_micros(300);
/// Runs of pages that are touched one after the other, and how long each is.
const RUNS: u64 = 400;
const RUN_PAGES: u64 = 24;
const TURNS: usize = 5;
const READS: u64 = 2_000_000;

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let mib: u64 = std::env::args().nth(1).map_or(Ok(512), |mib| mib.parse())?;
    let len = mib << 20;
    println!("{mib} MiB of RAM, {RUNS} runs of {RUN_PAGES} pages touched; a source in memory");
    by_neighbours(len, Duration::ZERO, "no delay")?;
    by_neighbours(len, DELAY, "300 µs a fetch")?;
    beside_the_fill(len)?;
    throughput(len)?;
    known_working_set(len)?;
    huge_pages(len)
}

struct Lazy {
    pager: Pager,
    memory: GuestMemoryMmap,
    ends: Receiver<End>,
}

fn start(len: u64, source: Source, spec: Spec) -> Result<Lazy, Failure> {
    let memory = guest_memory(&[(0, len)])?;
    let (tell, ends) = channel();
    // Nobody may be left to be told.
    let on_end = move |end| drop(tell.send(end));
    let pager = Pager::start(Userfault::new(memory.clone())?, source, spec, on_end)?;
    pager.begin_fill();
    Ok(Lazy { pager, memory, ends })
}

impl Lazy {
    fn complete(&self) -> Result<Stats, Failure> {
        match self.ends.recv()? {
            End::Complete(stats) => Ok(stats),
            End::Failed(error) => Err(error.into()),
        }
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        let pages = self.memory.iter().map(|region| (region.len() / PAGE) as u32).sum();
        // What cannot be given back is only missed.
        let _ = give_back(&self.memory, 0..pages);
    }
}

/// Touches runs of pages here and there; the same ones each time.
fn touch(memory: &GuestMemoryMmap, len: u64) -> Result<Duration, Failure> {
    let started = Instant::now();
    let mut random = 1;
    for _ in 0..RUNS {
        random = next(random);
        let first = random % (len / PAGE - RUN_PAGES);
        for page in first..first + RUN_PAGES {
            memory.read_obj::<u64>(GuestAddress(page * PAGE))?;
        }
    }
    Ok(started.elapsed())
}

fn next(random: u64) -> u64 {
    random.wrapping_mul(6_364_136_223_846_793_005).rotate_left(23).wrapping_add(1_442_695_040_888_963_407)
}

fn latencies(name: String, stats: &Stats, touching: Duration) -> Vec<String> {
    let us = |duration: Duration| took(duration.as_micros() as u64);
    let latency = &stats.latency;
    let figures = [latency.percentile(50), latency.percentile(99), latency.max(), touching].map(us);
    [name, stats.faults.to_string()].into_iter().chain(figures).collect()
}

const HEAD: [&str; 6] = ["", "faults", "p50", "p99", "max", "all touched in"];

fn by_neighbours(len: u64, delay: Duration, what: &str) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for around_pages in [1, 4, 8, 16, 32, 64, 128] {
        let tuning = Tuning { around_pages, ..Tuning::default() };
        let source = Source { delay, chunk_pages: around_pages.min(4), answers_fill: false };
        let lazy = start(len, source, Spec { tuning, ..Spec::default() })?;
        let touching = touch(&lazy.memory, len)?;
        rows.push(latencies(format!("{around_pages} pages"), &lazy.pager.stats(), touching));
    }
    println!("\nFaults, by how many pages come together ({what}, no fill):");
    table(&HEAD, &rows);
    Ok(())
}

fn beside_the_fill(len: u64) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for fill_pages in [16, 64, 256] {
        let tuning = Tuning { fill_pages, collapse: false, ..Tuning::default() };
        let lazy = start(len, Source { delay: DELAY, ..Source::default() }, Spec { tuning, ..Spec::default() })?;
        let touching = touch(&lazy.memory, len)?;
        rows.push(latencies(format!("fill of {fill_pages} pages"), &lazy.pager.stats(), touching));
        lazy.complete()?;
    }
    println!("\nFaults beside the fill (300 µs a fetch):");
    table(&HEAD, &rows);
    Ok(())
}

fn throughput(len: u64) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for fill_threads in [1, 2, 4] {
        for fill_pages in [16, 64, 256] {
            let tuning = Tuning { fill_pages, fill_threads, collapse: false, ..Tuning::default() };
            let started = Instant::now();
            start(len, Source::default(), Spec { tuning, ..Spec::default() })?.complete()?;
            let per_second = (len >> 20) as f64 / started.elapsed().as_secs_f64();
            rows.push(vec![format!("{fill_threads} × {fill_pages} pages"), format!("{per_second:.0}")]);
        }
    }
    println!("\nFill, with nobody waiting:");
    table(&["threads × pages at once", "MiB/s"], &rows);
    Ok(())
}

fn known_working_set(len: u64) -> Result<(), Failure> {
    let source = || Source { delay: DELAY, ..Source::default() };
    let tuning = || Tuning { collapse: false, ..Tuning::default() };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let lazy = start(len, source(), Spec { tuning: tuning(), ..Spec::default() })?;
        first.push(touch(&lazy.memory, len)?.as_micros() as u64);
        let spec = Spec { expected: lazy.pager.recorded(), tuning: tuning(), ..Spec::default() };
        lazy.complete()?;
        let lazy = start(len, source(), spec)?;
        second.push(touch(&lazy.memory, len)?.as_micros() as u64);
        lazy.complete()?;
    }
    let (first, second) = (median(&mut first), median(&mut second));
    println!("\nAll touched, 300 µs a fetch: {} the first time, {} with what that recorded", took(first), took(second));
    let ratio = second as f64 / first as f64;
    bound("a known working set against an unknown one", &format!("{ratio:.2}"), "at most 0.6", ratio <= 0.6);
    Ok(())
}

fn huge_pages(len: u64) -> Result<(), Failure> {
    let tuning = Tuning { collapse: false, ..Tuning::default() };
    let lazy = start(len, Source::default(), Spec { tuning, ..Spec::default() })?;
    lazy.complete()?;
    let before = [forking()?, reading(&lazy.memory, len)?];
    let mut collapsing = Vec::new();
    for first in (0..len).step_by(HUGE_PAGE as usize) {
        let started = Instant::now();
        collapse(&lazy.memory, (first / PAGE) as u32)?;
        collapsing.push(started.elapsed().as_micros() as u64);
    }
    let after = [forking()?, reading(&lazy.memory, len)?];
    println!("\nWhat huge pages are worth ({} for each of them):", took(median(&mut collapsing)));
    let row = |name: &str, figures: [u64; 2]| vec![name.into(), took(figures[0]), figures[1].to_string()];
    table(&["", "fork(2)", "ns a random read"], &[row("pages of 4 KiB", before), row("huge pages", after)]);
    let ratio = after[0] as f64 / before[0] as f64;
    bound("fork(2) after against before", &format!("{ratio:.2}"), "at most 0.5", ratio <= 0.5);
    Ok(())
}

/// Microseconds of a `fork(2)` of this process.
fn forking() -> Result<u64, Failure> {
    let mut took = Vec::new();
    for _ in 0..TURNS {
        let started = Instant::now();
        let (child, _) = fork(Vec::new(), |_| ())?;
        took.push(started.elapsed().as_micros() as u64);
        rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
    }
    Ok(median(&mut took))
}

/// Nanoseconds of a read of memory, here and there.
fn reading(memory: &GuestMemoryMmap, len: u64) -> Result<u64, Failure> {
    let started = Instant::now();
    let mut random = 1;
    for _ in 0..READS {
        random = next(random) ^ u64::from(memory.read_obj::<u8>(GuestAddress(random % len))? == 0);
    }
    Ok(started.elapsed().as_nanos() as u64 / READS)
}

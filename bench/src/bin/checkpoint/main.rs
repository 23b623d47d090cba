//! What a checkpoint of a running Linux VM costs, and what it takes to wake one from the store. Needs hardware KVM, or an
//! emulated host that has it.
//!
//! ```text
//! checkpoint [PANDO [ROUNDS [CHECKPOINTS]]]     PANDO is the program, target/release/pando when absent; ROUNDS are wakes
//!                                               per median, 3 when absent; CHECKPOINTS of one VM, 10 when absent
//! checkpoint PANDO burst|dirty                  many wakes at once, or pauses beside a living seed, and nothing else
//! ```
//!
//! The kernel of guests must be in the daemon's cache. What is compared takes turns, so that whatever else this computer
//! does happens to both.

mod burst; // many VMs from the store at once
mod dirty; // its pause by what it wrote
mod everything; // loading all of the memory of a checkpoint, and nothing else
mod keep; // checkpoints of a VM at work
mod wake; // VMs from the store

use keep::{Kept, Worker};
use pando_bench::{ApiError, Daemon, bound, median_of, mib, table, took};
use pando_wire::api::ForkReport;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use wake::{Wakes, Woken};

/// RAM of the VM.
const MEMORY: u64 = 1 << 30;
/// Of that, what it has filled with bytes that do not compress: with what its kernel and agent need, it uses 200 MiB.
const FILLED_MIB: u32 = 150;
/// What it writes anew before each checkpoint, in MiB.
const WORK_MIB: u32 = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let pando = PathBuf::from(args.first().map_or("target/release/pando", String::as_str));
    let part = args.get(1).map_or("", String::as_str);
    if part == "dirty" {
        return dirty::report(&pando);
    }
    // Seeds go when they are stored, so that VMs come from the store.
    let daemon = Daemon::start(&pando, &["--keep-seeds", "500ms"])?;
    let image = daemon.import()?;
    if part == "burst" {
        return Ok(burst::report(&daemon, &image)?);
    }
    let rounds: usize = args.get(1).map_or(Ok(3), |count| count.parse())?;
    let checkpoints: usize = args.get(2).map_or(Ok(10), |count| count.parse())?;
    let worker = Worker::boot(&daemon, "worker", &image, MEMORY, FILLED_MIB)?;
    println!(
        "A Linux VM with {} of RAM, {FILLED_MIB} MiB of it full of random bytes; it writes {WORK_MIB} MiB anew before each of \
         {checkpoints} checkpoints",
        mib(MEMORY)
    );
    let (mut forks, mut kept, mut wakes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..checkpoints {
        let (fork, checkpoint) = keep(&worker, round)?;
        tell_kept(round, &fork, &checkpoint);
        if round < rounds {
            let round = wake(&pando, &daemon, &checkpoint)?;
            tell_wakes(&round);
            wakes.push(round);
        }
        forks.push(fork);
        kept.push(checkpoint);
    }
    report_pauses(&forks, &kept);
    report_sizes(&kept);
    report_wakes(&wakes);
    burst::report(&daemon, &image)?;
    drop(daemon);
    dirty::report(&pando)?;
    Ok(())
}

/// A fork and a checkpoint, of which one time the one is first and one time the other.
fn keep(worker: &Worker<'_>, round: usize) -> Result<(ForkReport, Kept), ApiError> {
    worker.work(WORK_MIB)?;
    if round.is_multiple_of(2) {
        let fork = worker.fork()?;
        Ok((fork, worker.checkpoint()?))
    } else {
        let kept = worker.checkpoint()?;
        Ok((worker.fork()?, kept))
    }
}

/// The wakes of one checkpoint that are compared.
fn wake(pando: &Path, daemon: &Daemon, kept: &Kept) -> Result<Wakes, Box<dyn Error>> {
    let loaded_us = everything::load(pando, &daemon.state().join("store"), &kept.id)?;
    println!("     all of its memory read from a server in {}", took(loaded_us));
    let first = Woken::at_once(daemon, &kept.name)?;
    let second = Woken::at_once(daemon, &kept.name)?;
    let whole = Woken::when_all_is_there(daemon, &kept.name)?;
    Ok(Wakes { first, second, whole, loaded_us })
}

/// Says at once how one checkpoint went: the whole takes minutes.
fn tell_kept(round: usize, fork: &ForkReport, kept: &Kept) {
    println!(
        "  {}: paused {} at the fork and {} at the checkpoint, {} stored in {}",
        round + 1,
        took(fork.pause_us),
        took(kept.pause_us),
        mib(kept.stored_bytes),
        took(kept.stored_us)
    );
}

fn tell_wakes(Wakes { first, second, whole, .. }: &Wakes) {
    let [first, second, whole] = [first, second, whole].map(|woken| took(woken.executed_us));
    println!("     a program had run in {first}, then in {second}, and after all memory had come in {whole}");
}

/// One of the wakes of a checkpoint.
type Which = fn(&Wakes) -> &Woken;

fn report_pauses(forks: &[ForkReport], kept: &[Kept]) {
    let fork_us = median_of(forks, |fork| fork.pause_us);
    let kept_us = median_of(kept, |kept| kept.pause_us);
    println!("\nThe VM's pause, medians of {}", kept.len());
    println!("  at a fork                                   {:>12}", took(fork_us));
    println!("  at a checkpoint                             {:>12}", took(kept_us));
    at_most("pause, checkpoint against fork", kept_us, fork_us, 1.2);
    println!("  from the request until it is stored         {:>12}", took(median_of(kept, |kept| kept.stored_us)));
}

fn report_sizes(kept: &[Kept]) {
    let stored: u64 = kept.iter().map(|kept| kept.stored_bytes).sum();
    let resident: u64 = kept.iter().map(|kept| kept.resident_bytes).sum();
    println!("\nStored, {} checkpoints", kept.len());
    let count = kept.len() as u64;
    println!("  the first; a later one                      {:>12}   {}", first_size(kept), later_size(kept));
    at_most(&format!("stored ({}), against raw images", mib(stored)), stored, count * MEMORY, 0.1);
    println!(
        "  ... against what of them is resident         {:>12.3}   of {}",
        stored as f64 / resident.max(1) as f64,
        mib(resident)
    );
}

fn first_size(kept: &[Kept]) -> String {
    mib(kept.first().map_or(0, |kept| kept.stored_bytes))
}

fn later_size(kept: &[Kept]) -> String {
    mib(median_of(kept.get(1..).unwrap_or_default(), |kept| kept.stored_bytes))
}

fn report_wakes(wakes: &[Wakes]) {
    println!(
        "\nRun from the store, which is in the page cache, to the end of a first /bin/true: medians of {}",
        wakes.len()
    );
    let of = |figure: fn(&Wakes) -> u64| median_of(wakes, figure);
    let (first, second) = (of(|it| it.first.executed_us), of(|it| it.second.executed_us));
    let whole = of(|it| it.whole.executed_us);
    println!("  the first time                              {:>12}", took(first));
    println!("  the second time, the working set known      {:>12}", took(second));
    println!("  when all memory has come                    {:>12}", took(whole));
    println!("  all memory read from a server, no VM        {:>12}", took(of(|it| it.loaded_us)));
    at_most("the first, against loading everything first", first, whole, 0.2);
    at_most("the second, against the first", second, first, 0.6);

    println!("\nWaits for a page, and what came: medians");
    let came: [(&str, Which); 3] =
        [("first", |it| &it.first), ("second", |it| &it.second), ("all there", |it| &it.whole)];
    let head = ["wake", "waits", "p50, µs", "p99, µs", "beside", "expected", "others", "zero", "requests", "all there"];
    let rows: Vec<_> = came.iter().map(|(name, of)| came_row(name, wakes, *of)).collect();
    table(&head, &rows);

    println!("\nWhere the time goes: medians, in µs");
    let phases: BTreeSet<&str> = wakes.iter().flat_map(|it| it.first.phases_us.keys().map(String::as_str)).collect();
    let phases: Vec<&str> = phases.into_iter().collect();
    let head = [&["wake", "prepare", "ready", "answer", "first exec"], phases.as_slice()].concat();
    let rows: Vec<_> = came.iter().map(|(name, of)| phase_row(name, wakes, *of, &phases)).collect();
    table(&head, &rows);
}

fn came_row(name: &str, wakes: &[Wakes], of: Which) -> Vec<String> {
    let figures = (0..wake::CAME).map(|at| median_of(wakes, |it| of(it).came[at]).to_string());
    let there = took(median_of(wakes, |it| of(it).there_us));
    std::iter::once(name.to_owned()).chain(figures).chain([there]).collect()
}

fn phase_row(name: &str, wakes: &[Wakes], of: Which, phases: &[&str]) -> Vec<String> {
    let times: [fn(&Woken) -> u64; 4] = [|it| it.prepare_us, |it| it.ready_us, |it| it.answered_us, |it| it.exec_us];
    let times = times.iter().map(|time| median_of(wakes, |it| time(of(it))).to_string());
    let phase = |phase: &&str| median_of(wakes, |it| of(it).phases_us.get(*phase).copied().unwrap_or(0)).to_string();
    std::iter::once(name.to_owned()).chain(times).chain(phases.iter().map(phase)).collect()
}

/// Prints how many times `against` a figure is, and whether that is at most `limit`.
fn at_most(what: &str, figure: u64, against: u64, limit: f64) {
    let ratio = figure as f64 / against.max(1) as f64;
    bound(what, &format!("{ratio:.3} x"), &format!("<= {limit} x"), ratio <= limit);
}

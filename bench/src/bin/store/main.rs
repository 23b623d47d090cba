//! What a checkpoint costs to store and to read, by chunk size and level; and the store against `zstd -T2`.
//!
//! ```text
//! store [MIB [PANDO]]       how much RAM, 512 when absent; PANDO is the program, target/release/pando when absent
//! ```
//!
//! Everything is measured in this run, on the same bytes: no figure here is compared with one of another day.

mod again; // the second checkpoint of a VM
mod memory; // bytes that look like a guest's RAM

use memory::{Random, dirty, guest_ram};
use pando_bench::{bound, percentile, table};
use pando_store::{Checkpoint, Kind, Machine, PAGE_BYTES, Store, Tuning};
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const CHUNK_PAGES: [u32; 6] = [1, 2, 4, 8, 16, 64];
const LEVELS: [i32; 5] = [-5, -1, 1, 2, 3];
/// Pages that are written to between two checkpoints, here and there, of a hundred.
const DIRTY_PERCENT: usize = 2;
/// Pages that are read cold, for the latency of a fault.
const READS: u64 = 2000;
/// Checkpoints of one busy VM.
const GENERATIONS: usize = 10;
/// Turns, of which the median counts.
const TURNS: usize = 5;

/// What one tuning costs.
struct Cost {
    took: Duration,
    stored: u64,
    second_took: Duration,
    second: u64,
    read_p50: u64,
    read_p99: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mib: usize = std::env::args().nth(1).map_or(Ok(512), |mib| mib.parse())?;
    let ram = guest_ram(mib << 20)?;
    let mut later = ram.clone();
    dirty(&mut later, ram.len() / PAGE_BYTES * DIRTY_PERCENT / 100, &mut Random(7));
    let zero = ram.as_chunks::<PAGE_BYTES>().0.iter().filter(|page| **page == [0; PAGE_BYTES]).count();
    println!(
        "{mib} MiB of RAM, {} MiB of it zero pages; {DIRTY_PERCENT} % of the pages written to for the second checkpoint",
        (zero * PAGE_BYTES) >> 20
    );
    by_chunk_size(&ram, &later)?;
    by_level(&ram, &later)?;
    against_zstd(&ram)?;
    ten_checkpoints(ram)?;
    let pando = std::env::args().nth(2).unwrap_or("target/release/pando".into());
    again::report(Path::new(&pando), (mib as u64) << 20)
}

const HEAD: [&str; 7] = ["", "first, MiB", "MiB/s", "second, MiB", "MiB/s", "read p50, µs", "p99"];

fn by_chunk_size(ram: &[u8], later: &[u8]) -> Result<(), Box<dyn Error>> {
    let mut rows = Vec::new();
    for chunk_pages in CHUNK_PAGES {
        let cost = measure(ram, later, Tuning { chunk_pages, ..Tuning::default() })?;
        rows.push(row(format!("{} KiB", (chunk_pages as usize * PAGE_BYTES) >> 10), ram.len(), &cost));
    }
    println!("\nBy chunk size, level {}:", Tuning::default().level);
    table(&HEAD, &rows);
    Ok(())
}

fn by_level(ram: &[u8], later: &[u8]) -> Result<(), Box<dyn Error>> {
    let mut rows = Vec::new();
    for level in LEVELS {
        let cost = measure(ram, later, Tuning { level, ..Tuning::default() })?;
        rows.push(row(format!("level {level}"), ram.len(), &cost));
    }
    println!("\nBy level, chunks of {} KiB:", (Tuning::default().chunk_pages as usize * PAGE_BYTES) >> 10);
    table(&HEAD, &rows);
    Ok(())
}

fn row(name: String, len: usize, cost: &Cost) -> Vec<String> {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let speed = |took: Duration| format!("{:.0}", len as f64 / f64::from(1 << 20) / took.as_secs_f64());
    vec![
        name,
        mib(cost.stored),
        speed(cost.took),
        mib(cost.second),
        speed(cost.second_took),
        cost.read_p50.to_string(),
        cost.read_p99.to_string(),
    ]
}

fn measure(ram: &[u8], later: &[u8], tuning: Tuning) -> Result<Cost, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let (took, stored) = save(directory.path(), "first", ram, tuning)?;
    let (second_took, second) = save(directory.path(), "second", later, tuning)?;
    // A handle that has nothing cached, but a warm page cache: as for a machine that wakes soon.
    let store = Store::open(directory.path())?;
    let layer = store.open_checkpoint("second")?.memory()?.ok_or("no memory")?;
    let (mut random, mut page, mut times) = (Random(3), [0; PAGE_BYTES], Vec::new());
    while (times.len() as u64) < READS {
        let at = random.next() % layer.pages();
        let begun = Instant::now();
        let what = layer.read_page(at, &mut page)?;
        if what == pando_store::Page::Data {
            times.push(begun.elapsed().as_micros() as u64);
        }
    }
    let (read_p50, read_p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
    Ok(Cost { took, stored, second_took, second, read_p50, read_p99 })
}

/// Stores RAM as a checkpoint, durably. How long that took, and how many bytes were new.
fn save(directory: &Path, name: &str, ram: &[u8], tuning: Tuning) -> Result<(Duration, u64), Box<dyn Error>> {
    let begun = Instant::now();
    let store = Store::create(directory)?;
    let writer = store.writer_with(tuning)?;
    let mut layer = writer.layer(Kind::Memory, (ram.len() / PAGE_BYTES) as u64)?;
    for (at, bytes) in ram.chunks(1 << 20).enumerate() {
        layer.write((at * (1 << 20) / PAGE_BYTES) as u64, bytes)?;
    }
    let memory = layer.finish()?;
    let machine =
        Machine { kind: "bench".into(), version: 1, arch: String::new(), cpu_features: vec![], state: vec![] };
    writer.publish(&Checkpoint { name: name.into(), created_ms: 0, machine, memory: Some(memory), disks: vec![] })?;
    Ok((begun.elapsed(), writer.new_bytes()))
}

/// The two take turns, so that whatever else this computer does happens to both.
fn against_zstd(ram: &[u8]) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let raw = directory.path().join("ram");
    fs::write(&raw, ram)?;
    let level = Tuning::default().level;
    let mut rows = Vec::new();
    for theirs in [level, 3] {
        let (mut ours, mut zstd, mut sizes) = (Vec::new(), Vec::new(), (0, 0));
        for _ in 0..TURNS {
            let (took, stored) =
                save(&directory.path().join("store"), "one", ram, Tuning { level: theirs, ..Tuning::default() })?;
            ours.push(took.as_micros() as u64);
            fs::remove_dir_all(directory.path().join("store"))?;
            let out = directory.path().join("ram.zst");
            let begun = Instant::now();
            let status = Command::new("zstd")
                .args(["-q", "-f", "-T2", &format!("-{theirs}"), "-o"])
                .arg(&out)
                .arg(&raw)
                .status()?;
            zstd.push(begun.elapsed().as_micros() as u64);
            if !status.success() {
                return Err("zstd cannot compress that".into());
            }
            sizes = (stored, fs::metadata(&out)?.len());
        }
        let (ours, zstd) = (percentile(&mut ours, 50), percentile(&mut zstd, 50));
        let ratio = zstd as f64 / ours as f64;
        rows.push((theirs, ratio, sizes.0 as f64 / sizes.1 as f64, ours, zstd));
    }
    println!("\nThe same bytes through zstd -T2, medians of {TURNS} turns; ours end durable, its do not:");
    for (theirs, speed, size, ours, zstd) in rows {
        let figure = format!("{speed:.2}");
        bound(
            &format!("speed, both at level {theirs} ({} against {} ms)", ours / 1000, zstd / 1000),
            &figure,
            "at least 0.8",
            speed >= 0.8,
        );
        bound(&format!("size, both at level {theirs}"), &format!("{size:.2}"), "told", true);
    }
    Ok(())
}

fn ten_checkpoints(mut ram: Vec<u8>) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let (mut stored, mut random) = (0, Random(11));
    let (mut alone, dirty_pages) = (0, ram.len() / PAGE_BYTES * DIRTY_PERCENT / 100);
    for generation in 0..GENERATIONS {
        stored += save(directory.path(), &format!("c{generation}"), &ram, Tuning::default())?.1;
        let other = tempfile::tempdir()?;
        alone += save(other.path(), "alone", &ram, Tuning::default())?.1;
        dirty(&mut ram, dirty_pages, &mut random);
    }
    let raw = (ram.len() * GENERATIONS) as u64;
    println!("\n{GENERATIONS} checkpoints of one busy VM:");
    let share = stored as f64 / raw as f64;
    bound("stored, against as many raw images", &format!("{share:.3}"), "at most 0.1", share <= 0.1);
    bound("stored, against each stored alone", &format!("{:.3}", stored as f64 / alone as f64), "told", true);
    Ok(())
}

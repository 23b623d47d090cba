//! The second checkpoint of a VM against the first: with guests whose pages and blocks are nearly all alike, so that neither
//! has much to compress or to write. What is left is reading and hashing.

use pando_bench::{Guest, Monitor, READY, Toy, Witness, bound, median_of, mib, took, usable_kvm};
use pando_store::PAGE_BYTES;
use std::error::Error;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a guest writes to between two checkpoints, of its memory or of its disk.
const CHANGED: u64 = 10 << 20;
/// The least that a guest can have.
const LITTLE_MEMORY: u64 = 128 << 20;
/// Until it has touched all its memory, or gone over what it changes.
const LIMIT: Duration = Duration::from_secs(300);
/// Turns, of which the median counts.
const TURNS: usize = 7;

/// What one save took, and what it hashed.
struct Saved {
    us: u64,
    hashed_bytes: u64,
}

/// Reports how long it takes to store a VM again, with so many bytes of RAM, all of it touched, or on its disk.
pub(crate) fn report(pando: &Path, bytes: u64) -> Result<(), Box<dyn Error>> {
    println!("\nToy VMs that write to {} between checkpoints:", mib(CHANGED));
    if !usable_kvm() {
        println!("  skipped: /dev/kvm cannot be opened here");
        return Ok(());
    }
    println!(" of {} of memory, all of it touched, beside as much on a disk that stays as it is", mib(bytes));
    let kernel = Toy::touching(bytes, CHANGED).elf();
    let guest = Guest { kernel, vcpus: 1, memory_bytes: bytes, disk_bytes: bytes };
    let vm = Monitor::boot_used(pando, &guest, numbered(0..blocks(bytes)))?;
    if vm.console_of(2, LIMIT)?.first() != Some(&READY) {
        return Err("the guest has not touched its memory".into());
    }
    again(&vm, pando, 2)?;

    println!(" of {} that were written on its disk, beside little memory", mib(bytes));
    let witness = Witness { vcpus: 1, pages: 16, records: blocks(CHANGED) };
    let guest = Guest { disk_bytes: bytes.max(CHANGED), ..witness.guest(LITTLE_MEMORY) };
    let vm = Monitor::boot_used(pando, &guest, numbered(witness.records..blocks(bytes)))?;
    let laps = witness.records as usize; // In each lap one record.
    vm.console_of(laps, LIMIT)?;
    again(&vm, pando, laps)
}

fn blocks(bytes: u64) -> u64 {
    bytes / PAGE_BYTES as u64
}

/// Blocks that differ in their number only.
fn numbered(blocks: Range<u64>) -> impl Iterator<Item = (u64, [u8; PAGE_BYTES])> {
    blocks.map(|block| {
        let mut bytes = [1; PAGE_BYTES];
        bytes[..8].copy_from_slice(&block.to_le_bytes());
        (block, bytes)
    })
}

/// Stores a VM again and again, each time after it has said so many bytes more.
fn again(vm: &Monitor, pando: &Path, said: usize) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let mut earlier = vm.seed()?;
    earlier.save(pando, directory.path(), "0")?;
    let (mut whole, mut since) = (Vec::new(), Vec::new());
    for turn in 1..=TURNS {
        vm.console_of(vm.console()?.len() + said, LIMIT)?;
        let seed = vm.seed()?;
        // In turns, of one seed.
        let elsewhere = tempfile::tempdir()?;
        whole.push(save(|| seed.save(pando, elsewhere.path(), "all"))?);
        let before = earlier.as_earlier(&(turn - 1).to_string())?;
        since.push(save(|| seed.save_since(&before, pando, directory.path(), &turn.to_string()))?);
        earlier = seed;
    }
    for (what, saved) in [("the first", &whole), ("a later one, since the one before", &since)] {
        let hashed = median_of(saved, |saved| saved.hashed_bytes);
        println!("  {what:<46} {:>10}   {} hashed", took(median_of(saved, |saved| saved.us)), mib(hashed));
    }
    let of = |saved: &[Saved]| median_of(saved, |saved| saved.us).max(1);
    let ratio = of(&since) as f64 / of(&whole) as f64;
    bound("a later one, against the first", &format!("{ratio:.3} x"), "told", true);
    Ok(())
}

fn save(save: impl FnOnce() -> Result<String, pando_bench::MonitorError>) -> Result<Saved, Box<dyn Error>> {
    let begun = Instant::now();
    let printed: serde_json::Value = serde_json::from_str(&save()?)?;
    let hashed_bytes = printed["hashed_bytes"].as_u64().ok_or("it does not say what it hashed")?;
    Ok(Saved { us: begun.elapsed().as_micros() as u64, hashed_bytes })
}

//! The second checkpoint of a VM against the first: with a toy guest, whose pages are nearly all alike, so that neither has
//! much to compress or to write. What is left is reading and hashing.

use pando_bench::{Monitor, READY, Toy, bound, median_of, mib, took, usable_kvm};
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the guest writes to between two checkpoints.
const WALKED: u64 = 10 << 20;
/// Until it has touched all its memory, or made a lap.
const LIMIT: Duration = Duration::from_secs(120);
/// Turns, of which the median counts.
const TURNS: usize = 7;

/// What one save took, and what it hashed.
struct Saved {
    us: u64,
    hashed_bytes: u64,
}

/// Reports how long it takes to store a VM of so much RAM again, all of it touched.
pub(crate) fn report(pando: &Path, memory_bytes: u64) -> Result<(), Box<dyn Error>> {
    println!(
        "\nA toy VM with {}, all of it touched, that writes to {} between checkpoints:",
        mib(memory_bytes),
        mib(WALKED)
    );
    if !usable_kvm() {
        println!("  skipped: /dev/kvm cannot be opened here");
        return Ok(());
    }
    let guest = Monitor::boot(pando, &Toy::touching(memory_bytes, WALKED), memory_bytes)?;
    if guest.console_of(2, LIMIT)?.first() != Some(&READY) {
        return Err("the guest has not touched its memory".into());
    }
    let directory = tempfile::tempdir()?;
    let mut earlier = guest.seed()?;
    earlier.save(pando, directory.path(), "0")?;
    let (mut whole, mut since) = (Vec::new(), Vec::new());
    for turn in 1..=TURNS {
        guest.console_of(guest.console()?.len() + 2, LIMIT)?;
        let seed = guest.seed()?;
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

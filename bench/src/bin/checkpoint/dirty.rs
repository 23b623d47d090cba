//! The pause at a checkpoint beside the seed of the one before, by what the VM has written since.

use crate::keep::Worker;
use pando_bench::{Daemon, bound, median_of, took};
use std::error::Error;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// RAM of the VM: half of it can be in files.
const MEMORY: u64 = 3 << 29;
/// What it writes before a checkpoint, in MiB.
const DIRTIED: [u32; 2] = [16, 512];
/// How long after its writes the VM is a quiet one, also on an emulated host: its memory has become huge pages again.
const LATER: Duration = Duration::from_secs(20);
/// Checkpoints after each amount.
const ROUNDS: usize = 3;

/// Measures in a daemon of its own, whose seeds stay, and prints.
pub(crate) fn report(pando: &Path) -> Result<(), Box<dyn Error>> {
    let daemon = Daemon::start(pando, &["--keep-seeds", "1h"])?;
    let image = daemon.import()?;
    let worker = Worker::boot(&daemon, "dirty", &image, MEMORY, 0)?;
    worker.write_zeroes(DIRTIED[1])?;
    worker.pause_at_checkpoint()?; // The first has none beside it.
    let mut pauses = DIRTIED.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (mib, pauses) in DIRTIED.into_iter().zip(&mut pauses) {
            worker.write_zeroes(mib)?;
            sleep(LATER);
            pauses.push(worker.pause_at_checkpoint()?);
        }
    }
    println!(
        "\nThe VM's pause at a checkpoint beside a living seed, {} s after its writes, medians of {ROUNDS}",
        LATER.as_secs()
    );
    let [little, much] = pauses.map(|pauses| median_of(&pauses, |us| *us));
    println!("  {} MiB written                              {:>12}", DIRTIED[0], took(little));
    println!("  {} MiB written                             {:>12}", DIRTIED[1], took(much));
    let ratio = much as f64 / little.max(1) as f64;
    let what = format!("pause, {} MiB written against {}", DIRTIED[1], DIRTIED[0]);
    bound(&what, &format!("{ratio:.3} x"), "<= 1.3 x", ratio <= 1.3);
    Ok(())
}

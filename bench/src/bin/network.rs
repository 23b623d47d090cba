//! What a VM's network costs its host: how long one takes, and what the kernel keeps for it.
//!
//! ```text
//! network        needs root; all of it is in a network namespace that nobody else sees
//! ```

use futures_util::future::try_join_all;
use pando_bench::{median, table, took};
use pando_daemon::network::{DEFAULT_RANGE, NetworkError, Networks, Policy, READY, Taken};
use pando_wire::network::MAX_QUEUE_PAIRS;
use std::error::Error;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Networks per median.
const ROUNDS: usize = 20;
/// VMs of one fork.
const BURST: usize = 50;
/// Until those that are kept ready are.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(lack) = pando_sys::network_lack() {
        println!("skipped: {lack}");
        return Ok(());
    }
    pando_sys::new_network()?;
    // In this thread, whose namespace it is.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let networks = Networks::with_name_server("a benchmark", DEFAULT_RANGE, None);
    let before = slab_bytes()?;
    networks.refill()?;
    let policy = Policy::default();

    let mut rows = Vec::new();
    for pairs in [1, 2, MAX_QUEUE_PAIRS] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            fill(&networks, READY)?;
            let begun = Instant::now();
            let taken = runtime.block_on(networks.take(pairs, &policy))?;
            times.push(us(begun.elapsed()));
            drop(taken); // Only now: the kernel needs many times as long to take one away.
        }
        let worst = times.iter().max().copied().unwrap_or_default();
        rows.push(vec![format!("one that is ready, {pairs} queues"), took(median(&mut times)), took(worst)]);
    }
    let mut times = Vec::new();
    let mut kept = drain(&networks, &runtime)?;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        kept.push(runtime.block_on(networks.take(1, &policy))?);
        times.push(us(begun.elapsed()));
    }
    let worst = times.iter().max().copied().unwrap_or_default();
    rows.push(vec!["one that is made first".into(), took(median(&mut times)), took(worst)]);
    fill(&networks, READY)?;
    let begun = Instant::now();
    kept.extend(runtime.block_on(try_join_all((0..BURST).map(|_| networks.take(1, &policy))))?);
    rows.push(vec![format!("{BURST} at once, {READY} of them ready"), took(us(begun.elapsed())), String::new()]);
    let expected = networks.expect(BURST);
    let begun = Instant::now();
    fill(&networks, BURST)?;
    rows.push(vec![
        format!("{BURST} that are expected, until they are ready"),
        took(us(begun.elapsed())),
        String::new(),
    ]);
    let begun = Instant::now();
    kept.extend(runtime.block_on(try_join_all((0..BURST).map(|_| networks.take(1, &policy))))?);
    rows.push(vec!["... taken at once".into(), took(us(begun.elapsed())), String::new()]);
    table(&["", "median", "worst"], &rows);

    let all = kept.len() + networks.ready();
    println!("  the kernel keeps {} KiB for each of {all}", slab_bytes()?.saturating_sub(before) / all as u64 / 1024);
    drop((expected, kept));
    networks.close();
    Ok(())
}

/// Takes what is ready, so that the next one is made.
fn drain(networks: &Networks, runtime: &tokio::runtime::Runtime) -> Result<Vec<Taken>, NetworkError> {
    (0..2 * READY).map(|_| runtime.block_on(networks.take(1, &Policy::default()))).collect()
}

/// Waits until so many are ready.
fn fill(networks: &Networks, count: usize) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    while networks.ready() < count {
        if begun.elapsed() > LIMIT {
            return Err("networks are not made".into());
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What the kernel has for its own objects, in bytes.
fn slab_bytes() -> Result<u64, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Slab:")?.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.ok_or("/proc/meminfo has no Slab")? * 1024)
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

//! Many forks at once, with a network each, and without.

use crate::{MEMORY, at_most, fork_into, timed};
use pando_bench::{ApiError, Daemon, took};
use pando_wire::api::NetworkMode;
use std::thread::sleep;
use std::time::Duration;

/// How many.
const BURST: usize = 50;
/// Bursts of each; the first of a VM teaches what its children write, and has the networks of a daemon that knows no burst.
const ROUNDS: usize = 2;
/// The host is idle when it was so for nine tenths of this.
const CALM: Duration = Duration::from_secs(6);
/// How often that is waited for: longer than all networks of a burst take to end, and those for the next one to be made.
const CALM_LOOKS: usize = 50;

/// Forks two VMs that differ in nothing else, in turns.
pub(crate) fn report(daemon: &Daemon, image: &str) -> Result<(), ApiError> {
    for (name, mode) in [("without", NetworkMode::None), ("with", NetworkMode::Nat)] {
        daemon.boot_in(name, image, MEMORY, mode)?;
    }
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(burst(daemon, "without")?);
        with.push(burst(daemon, "with")?);
    }
    println!("{BURST} forks at once, until the daemon has answered");
    println!("  without networks, the first burst           {:>12}", took(without[0]));
    println!("  with networks, the first burst              {:>12}", took(with[0]));
    let least = |all: &[u64]| all[1..].iter().min().copied().unwrap_or_default();
    println!("  without networks, the quickest later one    {:>12}", took(least(&without)));
    println!("  with networks, the quickest later one       {:>12}", took(least(&with)));
    at_most("with, against without, the first", with[0], without[0], 1.3);
    at_most("with, against without, later", least(&with), least(&without), 1.3);
    println!();
    ["without", "with"].iter().try_for_each(|name| daemon.remove(name))
}

/// How long one takes, in microseconds. Its children are removed.
fn burst(daemon: &Daemon, name: &str) -> Result<u64, ApiError> {
    calm()?;
    let (report, us) = timed(|| fork_into(daemon, name, BURST))?;
    if let Some(error) = report.children.iter().find_map(|child| child.error.clone()) {
        return Err(ApiError::Refused(error));
    }
    report.children.iter().try_for_each(|child| daemon.remove(&child.name))?;
    Ok(us)
}

/// Waits until the host is idle: long after a burst its networks end, and others are made for the next one.
fn calm() -> Result<(), ApiError> {
    for _ in 0..CALM_LOOKS {
        let before = cpu_time()?;
        sleep(CALM);
        let after = cpu_time()?;
        if 10 * (after.0 - before.0) >= 9 * (after.1 - before.1) {
            return Ok(());
        }
    }
    Ok(()) // Both kinds of burst have the same of it.
}

/// Idle and all time of the CPUs since the boot, in ticks (`proc(5)`).
fn cpu_time() -> Result<(u64, u64), ApiError> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let times: Vec<u64> = stat.lines().next().unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
    // What a guest used is in the first of them already.
    Ok((times.get(3).copied().unwrap_or_default(), times.iter().take(8).sum()))
}

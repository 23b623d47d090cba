//! Many VMs from the store at once.

use crate::keep::Worker;
use pando_bench::{ApiError, Daemon, median, percentile, took};
use pando_wire::api::{CheckpointRunReport, ChildSpec, ForkRequest};

/// How many.
const BURST: usize = 30;
/// How often one is woken alone: the median counts.
const ALONE: usize = 5;
/// RAM of each, so little that all of them fit an emulated host.
const MEMORY: u64 = 128 << 20;

/// Wakes one, then many at once, and says when the agents of those answered: whether all got slower, or some starved.
pub(crate) fn report(daemon: &Daemon, image: &str) -> Result<(), ApiError> {
    let worker = Worker::boot(daemon, "small", image, MEMORY, 8)?;
    let kept = worker.checkpoint()?;
    let mut alone = Vec::new();
    for _ in 0..ALONE {
        alone.append(&mut wake(daemon, &kept.name, 1)?);
    }
    let alone = median(&mut alone);
    let mut many = wake(daemon, &kept.name, BURST)?;
    let [first, middle, last] = [0, 50, 100].map(|percent| percentile(&mut many, percent));
    println!("\n{BURST} VMs run from the store at once, until their agents answered");
    println!("  one alone                                   {:>12}", took(alone));
    println!("  of {BURST}: the first                            {:>12}", took(first));
    println!("      the median                              {:>12}", took(middle));
    println!("      the last                                {:>12}", took(last));
    let each = last as f64 / (alone.max(1) * BURST as u64) as f64;
    println!("      the last, against one alone {BURST} times over   {each:>7.3} x");
    Ok(())
}

/// Times until the agents of `count` VMs answered, in microseconds.
fn wake(daemon: &Daemon, checkpoint: &str, count: usize) -> Result<Vec<u64>, ApiError> {
    let request = ForkRequest { children: vec![ChildSpec::default(); count], via: None };
    let report: CheckpointRunReport = daemon.call("POST", &format!("/checkpoints/{checkpoint}/run"), &request)?;
    let mut times = Vec::new();
    for child in &report.children {
        match (&child.error, child.ready_us) {
            (None, Some(ready_us)) if !report.warm => times.push(ready_us),
            (error, _) => return Err(ApiError::Refused(format!("warm: {}, {error:?}", report.warm))),
        }
    }
    for child in &report.children {
        daemon.remove(&child.name)?;
    }
    Ok(times)
}

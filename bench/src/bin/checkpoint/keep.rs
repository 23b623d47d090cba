//! A VM at work, of which checkpoints are made.

use pando_bench::{ApiError, Daemon};
use pando_wire::api::{Checkpoint, CheckpointRequest, CheckpointState, ChildSpec, Event, ForkReport, ForkRequest};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where its random bytes are, in memory.
const FILE: &str = "/run/used";
/// Until a checkpoint is stored and its seed has ended.
const STORE_LIMIT: Duration = Duration::from_secs(300);
/// How often that is asked.
const PAUSE: Duration = Duration::from_millis(50);

/// Such a VM. It is the daemon's to remove.
pub(crate) struct Worker<'d> {
    daemon: &'d Daemon,
    name: String,
}

/// A checkpoint that is in the store, and nowhere else.
pub(crate) struct Kept {
    /// What the store calls it.
    pub(crate) id: String,
    pub(crate) name: String,
    /// For how long the VM stood still.
    pub(crate) pause_us: u64,
    /// From the request until it was stored.
    pub(crate) stored_us: u64,
    /// What the store has grown by.
    pub(crate) stored_bytes: u64,
    /// What the VM's process had in memory.
    pub(crate) resident_bytes: u64,
}

impl<'d> Worker<'d> {
    /// Boots one and fills some of its memory with bytes that do not compress.
    pub(crate) fn boot(
        daemon: &'d Daemon,
        name: &str,
        image: &str,
        memory_bytes: u64,
        mib: u32,
    ) -> Result<Self, ApiError> {
        let worker = Self { daemon, name: daemon.boot(name, image, memory_bytes)?.name };
        worker.work(mib)?;
        Ok(worker)
    }

    /// Writes so much over what was written before, from the beginning on.
    pub(crate) fn work(&self, mib: u32) -> Result<(), ApiError> {
        self.write("if=/dev/urandom", mib)
    }

    /// The same with zeroes, of which a store keeps nothing.
    pub(crate) fn write_zeroes(&self, mib: u32) -> Result<(), ApiError> {
        self.write("if=/dev/zero", mib)
    }

    fn write(&self, from: &str, mib: u32) -> Result<(), ApiError> {
        let (out, count) = (format!("of={FILE}"), format!("count={mib}"));
        self.daemon.exec(&self.name, &["dd", from, &out, "bs=1M", &count, "conv=notrunc"])
    }

    /// Makes a checkpoint whose seed stays. For how long the VM stood still.
    pub(crate) fn pause_at_checkpoint(&self) -> Result<u64, ApiError> {
        let path = format!("/vms/{}/checkpoint", self.name);
        let made: Checkpoint = self.daemon.call("POST", &path, &CheckpointRequest::default())?;
        self.pause_us(&made.name)
    }

    /// Forks it into one child, which is removed.
    pub(crate) fn fork(&self) -> Result<ForkReport, ApiError> {
        let request = ForkRequest { children: vec![ChildSpec::default()], via: None };
        let report: ForkReport = self.daemon.call("POST", &format!("/vms/{}/fork", self.name), &request)?;
        for child in &report.children {
            match &child.error {
                Some(error) => return Err(ApiError::Refused(error.clone())),
                None => self.daemon.remove(&child.name)?,
            }
        }
        Ok(report)
    }

    /// Makes a checkpoint, and waits until it is nowhere but in the store.
    pub(crate) fn checkpoint(&self) -> Result<Kept, ApiError> {
        let start = Instant::now();
        let path = format!("/vms/{}/checkpoint", self.name);
        let made: Checkpoint = self.daemon.call("POST", &path, &CheckpointRequest::default())?;
        let (mut resident_bytes, mut stored_us) = (0, 0);
        loop {
            let now: Checkpoint = self.daemon.call("GET", &format!("/checkpoints/{}", made.id), &())?;
            resident_bytes = now.usage.map_or(0, |usage| usage.rss_bytes).max(resident_bytes);
            if now.state == CheckpointState::Stored && stored_us == 0 {
                stored_us = start.elapsed().as_micros() as u64;
            }
            match now {
                Checkpoint { problem: Some(problem), .. } => return Err(ApiError::Refused(problem)),
                Checkpoint { state: CheckpointState::Stored, seed: None, stored_bytes, id, name, .. } => {
                    let (pause_us, stored_bytes) = (self.pause_us(&name)?, stored_bytes.unwrap_or(0));
                    return Ok(Kept { id, name, pause_us, stored_us, stored_bytes, resident_bytes });
                }
                _ if start.elapsed() > STORE_LIMIT => return Err(ApiError::Answer("it is never stored".into())),
                _ => sleep(PAUSE),
            }
        }
    }

    /// For how long a VM stood still at its checkpoint `name`, as the daemon's events have it: `NAME, N µs pause`.
    fn pause_us(&self, name: &str) -> Result<u64, ApiError> {
        let events = self.daemon.pando(&["events", "-o", "json"])?;
        let event = |line: &str| serde_json::from_str::<Event>(line).ok().filter(|event| event.kind == "checkpointed");
        let pause = |event: Event| event.detail.strip_prefix(name)?.strip_prefix(", ")?.split(' ').next()?.parse().ok();
        events.lines().filter_map(event).find_map(pause).ok_or(ApiError::Answer(events))
    }
}

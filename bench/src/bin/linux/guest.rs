//! A Linux VM under measurement.

use pando_bench::{ApiError, Daemon};
use pando_wire::api::{ChildReport, ChildSpec, ForkReport, ForkRequest};
use std::thread;
use std::time::Instant;

/// Where the guest's writer leaves its process id.
const WRITER: &str = "/run/writer";
/// Writes 32 MiB over and over, as fast as the vCPU can.
const WRITE: &str = "setsid sh -c 'echo $$ >/run/writer; \
    while :; do dd if=/dev/zero of=/run/written bs=1M count=32 conv=notrunc; done' </dev/null >/dev/null 2>&1 & \
    while [ ! -s /run/written ]; do sleep 0.1; done";
/// In how many children a program is run at once; an emulated host has one CPU, and the daemon waits 5 s for an agent.
const AT_ONCE: usize = 4;

/// A VM that was booted. It is the daemon's to remove.
pub(crate) struct Guest<'d> {
    daemon: &'d Daemon,
    name: String,
}

/// A fork with one child, which was used and removed.
pub(crate) struct Forked {
    /// What the daemon reported.
    pub(crate) report: ForkReport,
    /// From the request to the daemon's answer, at which children know who they are.
    pub(crate) returned_us: u64,
    /// From the request to the end of `/bin/true` in the child.
    pub(crate) executed_us: u64,
}

/// A fork into many.
pub(crate) struct Many {
    /// What the daemon reported.
    pub(crate) report: ForkReport,
    /// In how many children `/bin/true` ran.
    pub(crate) executed: usize,
    /// From the request until it had in the last.
    pub(crate) executed_us: u64,
    /// Why the others did not get there.
    pub(crate) failures: Vec<String>,
}

impl<'d> Guest<'d> {
    /// Boots one. How long the request took, which ends with the first answer of the agent.
    pub(crate) fn boot(daemon: &'d Daemon, image: &str, memory_bytes: u64) -> Result<(Self, u64), ApiError> {
        let start = Instant::now();
        let vm = daemon.boot("bench", image, memory_bytes)?;
        Ok((Self { daemon, name: vm.name }, us_since(start)))
    }

    /// Forks it once, runs `/bin/true` in the child, and removes the child.
    pub(crate) fn fork(&self) -> Result<Forked, ApiError> {
        let start = Instant::now();
        let report = self.fork_into(1)?;
        let returned_us = us_since(start);
        let [child] = report.children.as_slice() else {
            return Err(ApiError::Answer(format!("{report:?}")));
        };
        if let Some(error) = &child.error {
            return Err(ApiError::Refused(error.clone()));
        }
        self.daemon.exec(&child.name, &["/bin/true"])?;
        let executed_us = us_since(start);
        self.daemon.remove(&child.name)?;
        Ok(Forked { report, returned_us, executed_us })
    }

    /// Forks it into many, and runs `/bin/true` in all of them, [`AT_ONCE`] at a time. Children that fail are counted.
    pub(crate) fn fork_many(&self, count: usize) -> Result<Many, ApiError> {
        let start = Instant::now();
        let report = self.fork_into(count)?;
        let mut failures: Vec<_> = report.children.iter().filter_map(|child| child.error.clone()).collect();
        let running: Vec<_> = report.children.iter().filter(|child| child.id.is_some()).collect();
        let mut executed = 0;
        thread::scope(|scope| {
            let share = running.len().div_ceil(AT_ONCE).max(1);
            let run = |child: &&ChildReport| self.daemon.exec(&child.name, &["/bin/true"]);
            let workers =
                running.chunks(share).map(|share| scope.spawn(move || share.iter().map(run).collect::<Vec<_>>()));
            for worker in workers.collect::<Vec<_>>() {
                for result in worker.join().unwrap_or_default() {
                    match result {
                        Ok(()) => executed += 1,
                        Err(error) => failures.push(error.to_string()),
                    }
                }
            }
        });
        Ok(Many { report, executed, executed_us: us_since(start), failures })
    }

    /// Starts a program in it that writes to memory without end.
    pub(crate) fn start_writer(&self) -> Result<(), ApiError> {
        self.daemon.exec(&self.name, &["sh", "-c", WRITE])
    }

    /// Ends that.
    pub(crate) fn end_writer(&self) -> Result<(), ApiError> {
        self.daemon.exec(&self.name, &["sh", "-c", &format!("kill -9 -$(cat {WRITER})")])
    }

    /// Ends and removes it.
    pub(crate) fn remove(self) -> Result<(), ApiError> {
        self.daemon.remove(&self.name)
    }

    fn fork_into(&self, count: usize) -> Result<ForkReport, ApiError> {
        let request = ForkRequest { children: vec![ChildSpec::default(); count], via: None };
        self.daemon.call("POST", &format!("/vms/{}/fork", self.name), &request)
    }
}

fn us_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

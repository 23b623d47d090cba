//! VMs from the store.

use pando_bench::{ApiError, Daemon};
use pando_wire::api::{CheckpointRunReport, ChildSpec, ForkRequest};
use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How a monitor says, where the console is written to, that all memory has come: this, and then [`CAME`] numbers between words.
const ALL_THERE: &str = "all memory is there: ";
/// Waits, two percentiles of them in microseconds, pages of four kinds, and requests.
pub(crate) const CAME: usize = 8;
/// Until all memory is there.
const LIMIT: Duration = Duration::from_secs(120);
/// How often the log is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// The wakes of one checkpoint.
pub(crate) struct Wakes {
    /// Nobody knew what it would need.
    pub(crate) first: Woken,
    /// What it waited for the first time is known.
    pub(crate) second: Woken,
    /// Nothing is asked of it before all its memory has come.
    pub(crate) whole: Woken,
    /// How long it takes to read all its memory from a page server, in one sequence.
    pub(crate) loaded_us: u64,
}

/// A VM that was woken, used once, and removed. Times are from the request on, except where it is said.
pub(crate) struct Woken {
    pub(crate) prepare_us: u64,
    /// Until its agent answered.
    pub(crate) ready_us: u64,
    /// Until the daemon did.
    pub(crate) answered_us: u64,
    /// Of `/bin/true` alone.
    pub(crate) exec_us: u64,
    /// Until `/bin/true` had run.
    pub(crate) executed_us: u64,
    /// Until all its memory was there.
    pub(crate) there_us: u64,
    /// What the monitor counted.
    pub(crate) came: [u64; CAME],
    pub(crate) phases_us: BTreeMap<String, u64>,
}

impl Woken {
    /// One in which a program runs at once.
    pub(crate) fn at_once(daemon: &Daemon, checkpoint: &str) -> Result<Self, ApiError> {
        Self::run(daemon, checkpoint, false)
    }

    /// One in which a program runs when all its memory has come.
    pub(crate) fn when_all_is_there(daemon: &Daemon, checkpoint: &str) -> Result<Self, ApiError> {
        Self::run(daemon, checkpoint, true)
    }

    fn run(daemon: &Daemon, checkpoint: &str, waits: bool) -> Result<Self, ApiError> {
        let start = Instant::now();
        let us = || start.elapsed().as_micros() as u64;
        let children = vec![ChildSpec { name: Some("woken".into()), ..ChildSpec::default() }];
        let request = ForkRequest { children, via: None };
        let path = format!("/checkpoints/{checkpoint}/run");
        let report: CheckpointRunReport = daemon.call("POST", &path, &request)?;
        let answered_us = us();
        let (false, [child]) = (report.warm, report.children.as_slice()) else {
            return Err(ApiError::Answer(format!("{report:?}")));
        };
        let Some(id) = child.id.as_deref().filter(|_| child.error.is_none()) else {
            return Err(ApiError::Refused(format!("{:?}", child.error)));
        };
        let all = || -> Result<_, ApiError> { Ok((all_there(daemon, id)?, us())) };
        let already = if waits { Some(all()?) } else { None };
        let before = us();
        daemon.exec(&child.name, &["/bin/true"])?;
        let executed_us = us();
        let (came, there_us) = match already {
            Some(there) => there,
            None => all()?,
        };
        daemon.remove(&child.name)?;
        let (ready_us, phases_us) = (child.ready_us.unwrap_or(0), child.phases_us.clone());
        let (prepare_us, exec_us) = (report.prepare_us, executed_us - before);
        Ok(Self { prepare_us, ready_us, answered_us, exec_us, executed_us, there_us, came, phases_us })
    }
}

/// Waits until all memory of the VM with this id is there, and what it waited for is noted.
fn all_there(daemon: &Daemon, id: &str) -> Result<[u64; CAME], ApiError> {
    let (log, start) = (daemon.state().join("vms").join(id).join("console.log"), Instant::now());
    while start.elapsed() < LIMIT {
        let text = fs::read_to_string(&log)?;
        if let Some((_, line)) = text.split_once(ALL_THERE)
            && let Some((line, _)) = line.split_once('\n')
        {
            let numbers: Vec<_> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            return numbers.try_into().map_err(|_| ApiError::Answer(line.to_owned()));
        }
        sleep(PAUSE);
    }
    Err(ApiError::Answer(format!("not that all memory is there, but: {}", fs::read_to_string(&log)?)))
}

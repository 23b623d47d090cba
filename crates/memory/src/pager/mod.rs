//! Guest memory that arrives while the guest runs.
//!
//! ```text
//!                        ┌ fault threads ─ fetch now, neighbours too ─┐
//! touch a missing page ─►│                                            ├─► PageSource ─► put there, wake
//!                        │                 meanwhile what is expected │
//!                        └ fill threads ── then all ──────────────────┘
//!                                                                        all there: unregister, huge pages
//! ```
//!
//! `docs/pager.md` has the states, what each failure does, and the order in which an owner forks or ends.

mod collapse; // huge pages, afterwards
mod fill; // the rest, in turns with others
mod pages; // sets of pages
mod serve; // the threads
mod source; // where pages come from
mod state; // what is missing, and who waits for it
mod stats; // what was done
#[cfg(test)]
mod tests;

pub use pages::Runs;
pub use source::{FetchError, Fetched, PageSource, SourceError, TooManyPages, Wanted};
pub use stats::{Latencies, Stats};

use fill::Turn;
use pages::range;
use pando_sys::{SysError, Userfault};
use rustix::event::{EventfdFlags, eventfd};
use serve::{Guarded, Shared, wait};
use source::PAGE;
use state::State;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

/// Of the threads for faults, one listens and one answers. The others bring what is expected, so there is one at least.
const FOR_FAULTS: u32 = 2;
const FEWEST_FAULT_THREADS: u32 = FOR_FAULTS + 1;

/// What a pager is to do.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// What is missing; everything when there is nothing said. What is not missing is there already, or zero, and nobody
    /// is asked for it.
    pub missing: Option<Runs>,
    /// What the guest will want first, in that order: what an earlier pager [recorded](Pager::recorded). A hint; pages
    /// that do not exist are ignored.
    pub expected: Runs,
    /// How it is done.
    pub tuning: Tuning,
}

/// How pages are brought. The figures behind the defaults are in `docs/pager.md`.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Pages that come together when one is waited for; a power of two, at most 512, not less than a chunk of the source.
    pub around_pages: u32,
    /// Pages that are fetched at once while nobody waits; likewise.
    pub fill_pages: u32,
    /// Threads for faults, at least three: one always listens, and all but one more bring what is expected meanwhile.
    pub fault_threads: u32,
    /// Threads for the rest, at least one.
    pub fill_threads: u32,
    /// How long a fetch may take, with all its retries, before the source counts as dead.
    pub stall_limit: Duration,
    /// At most so many pages are recorded.
    pub record_pages: u32,
    /// Whether huge pages are made at the end.
    pub collapse: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            around_pages: 16,
            fill_pages: 64,
            fault_threads: 4,
            fill_threads: 2,
            stall_limit: Duration::from_secs(30),
            record_pages: 1 << 16,
            collapse: true,
        }
    }
}

/// How a pager ended.
#[derive(Debug)]
pub enum End {
    /// Every page is there or known to be zero; nothing waits any more.
    Complete(Stats),
    /// It gave up. Pages are missing, and who touches one waits until this process ends: end it.
    Failed(PagerError),
}

/// Why a pager gave up.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The source said so.
    #[error("pages {first} to {last} of the guest's memory are lost", first = .pages.start, last = .pages.end.saturating_sub(1))]
    Lost {
        /// Pages that were asked for.
        pages: Range<u32>,
        /// What the source said.
        #[source]
        cause: SourceError,
    },
    /// The source gave less than it was asked for.
    #[error("{lacking} of the pages {first} to {last} of the guest's memory did not come", first = .pages.start, last = .pages.end.saturating_sub(1))]
    Lacking {
        /// Pages that were asked for.
        pages: Range<u32>,
        /// How many of them did not come.
        lacking: u32,
    },
    /// The source did not answer in time.
    #[error("pages {first} to {last} of the guest's memory have not come for {limit:?}", first = .pages.start, last = .pages.end.saturating_sub(1))]
    Stalled {
        /// Pages that were asked for.
        pages: Range<u32>,
        /// For how long.
        limit: Duration,
        /// What it said the last time, if anything.
        #[source]
        cause: Option<SourceError>,
    },
    /// The host cannot put pages there.
    #[error("cannot put pages into the guest's memory")]
    Kernel(#[source] SysError),
}

/// Why a pager did not start. The memory is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Pages that are said to be missing do not exist.
    #[error("there are no pages {first} to {last} in the guest's memory, which are said to be missing", first = .0.start, last = .0.end.saturating_sub(1))]
    Missing(Range<u32>),
    /// No thread, or no descriptor.
    #[error("cannot start the threads of the pager")]
    Threads(#[source] io::Error),
}

type OnEnd = Box<dyn FnOnce(End) + Send>;

/// Brings the memory of one guest. It goes on when this is dropped, as the guest needs it to.
///
/// In a child of a `fork(2)` there is no pager, only this object, which must be forgotten: the child starts its own, from
/// what was [missing](Held::missing).
pub struct Pager(Arc<Shared>);

impl Pager {
    /// Starts to bring the memory that `userfault` has registered, and that nobody has touched since: what is waited for and
    /// what is expected, until the [fill](Pager::begin_fill) begins.
    ///
    /// `on_end` is called once, perhaps before this returns, by any thread that uses the pager. It must be brief, must
    /// not panic, and must not use the pager.
    pub fn start(
        userfault: Userfault,
        source: impl PageSource + 'static,
        spec: Spec,
        on_end: impl FnOnce(End) + Send + 'static,
    ) -> Result<Self, StartError> {
        let all = regions(&userfault);
        let missing = match &spec.missing {
            None => all.clone(),
            Some(runs) => runs.iter().map(|run| existing(&all, *run)).collect::<Result<_, _>>()?,
        };
        let guarded = Guarded {
            state: State::new(&all, &missing, &spec, source.chunk_pages()),
            on_end: Some(Box::new(on_end)),
            is_held: false,
            was_held: false,
            is_listening: false,
            turn: Turn::Theirs,
            idle: 0,
            is_uncollapsed: true,
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            userfault,
            source: Box::new(source),
            tuning: spec.tuning,
            guarded: Mutex::new(guarded),
            faults: Condvar::new(),
            fills: Condvar::new(),
            changed: Condvar::new(),
            wake: wake.map_err(|error| StartError::Threads(error.into()))?,
        });
        shared.end_if_complete(&mut shared.lock());
        for _ in 0..shared.tuning.fault_threads.max(FEWEST_FAULT_THREADS) {
            spawn("pager-faults", &shared, |shared| shared.serve_faults())?;
        }
        for _ in 0..shared.tuning.fill_threads.max(1) {
            spawn("pager-fill", &shared, |shared| shared.fill())?;
        }
        Ok(Self(shared))
    }

    /// Brings the pager's threads to stand still, for a `fork(2)`: asleep in the kernel or in the source, with nothing
    /// half-done and no lock. They go on when the result is dropped.
    ///
    /// Call it when all those stand still who touch guest memory: to get there, they may need pages.
    pub fn hold(&self) -> Held<'_> {
        let since = Instant::now();
        let mut guarded = self.0.lock();
        guarded.is_held = true;
        guarded.was_held = true;
        while guarded.state.is_installing() {
            guarded = wait(&self.0.changed, guarded);
        }
        Held { shared: &self.0, guarded, since }
    }

    /// Begins to bring the rest as well, while nobody waits: it needs CPUs, and may find what cannot be had, so it does not
    /// begin before the guest runs.
    pub fn begin_fill(&self) {
        self.0.lock().state.begin_fill();
        self.0.fills.notify_all();
    }

    /// Somebody waits for all of it: from now on the rest comes as fast as it can, also while the guest waits for a page.
    pub fn hurry(&self) {
        self.0.lock().state.hurry();
        self.0.faults.notify_all();
        self.0.fills.notify_all();
    }

    /// Makes pages zero: what is missing of them will not come any more. For a balloon, which says so first and gives the
    /// pages back to the host after that, never the other way round: else they come back with old content.
    pub fn discard(&self, runs: &[(u32, u32)]) {
        let mut guarded = self.0.lock();
        for run in runs.iter().map(|run| range(*run)) {
            let zeroes = guarded.state.discard(&run, Instant::now());
            self.0.place_zeroes(&mut guarded, zeroes);
            while guarded.state.is_installing_in(&run) {
                guarded = wait(&self.0.changed, guarded);
            }
        }
        self.0.fills.notify_all(); // Nobody may wait any more for what they gave way to.
        self.0.end_if_complete(&mut guarded);
    }

    /// Ends the recording of the pages that were waited for, in that order, and gives it. Store it, and give it as
    /// [expected](Spec::expected) the next time; what was expected did not have to be waited for and is not in it.
    pub fn recorded(&self) -> Runs {
        self.0.lock().state.recorded()
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        self.0.lock().state.stats.clone()
    }

    /// How many pages are missing.
    pub fn missing_pages(&self) -> u32 {
        self.0.lock().state.missing_pages()
    }
}

/// A pager that stands still.
pub struct Held<'a> {
    shared: &'a Shared,
    guarded: MutexGuard<'a, Guarded>,
    since: Instant,
}

impl Held<'_> {
    /// What is missing: what a child must [start](Spec::missing) with, before anybody touches its memory, where all of
    /// these read as zeroes until it does.
    pub fn missing(&self) -> Runs {
        self.guarded.state.missing()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.guarded.is_held = false;
        self.guarded.state.postpone(self.since.elapsed());
        self.shared.changed.notify_all();
    }
}

fn regions(userfault: &Userfault) -> Vec<Range<u32>> {
    let page = |address: u64| (address / PAGE as u64) as u32; // RAM ends below 2^44 bytes.
    let run = |region: &vm_memory::GuestRegionMmap| {
        let start = region.start_addr().raw_value();
        page(start)..page(start + region.len())
    };
    userfault.memory().iter().map(run).collect()
}

fn existing(all: &[Range<u32>], run: (u32, u32)) -> Result<Range<u32>, StartError> {
    let pages = range(run);
    let exists = all.iter().any(|region| region.start <= pages.start && pages.end <= region.end);
    let is_whole = pages.len() == run.1 as usize;
    if exists && is_whole { Ok(pages) } else { Err(StartError::Missing(pages)) }
}

fn spawn(name: &str, shared: &Arc<Shared>, live: fn(&Shared)) -> Result<(), StartError> {
    let shared = Arc::clone(shared);
    pando_sys::spawn(name, move || live(&shared)).map(drop).map_err(StartError::Threads)
}

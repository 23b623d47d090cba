//! Huge pages again, after a fork.
//!
//! Where parent and child share a huge page, the first write of either splits its mapping, and each write copies 4 KiB. So
//! a guest that has written much is mapped page by page, and its next `fork(2)` copies 512 entries where one would do.
//! A thread makes huge pages of that:
//!
//! ```text
//! fork ──► quiet for a second ──► look at each 2 MiB: nearly all of it ours alone, all of it there, not huge ─► make, rest
//!   ▲            ▲                       │
//!   │            └── enough was written ◄┘ all looked at
//!   └─ whenever one is held: at once, but for the one in the making
//! ```
//!
//! - **What relatives share stays shared**: to make a huge page copies what is not ours alone, so of 512 pages at most 64
//!   are copied.
//! - **What was given back stays away**: the kernel would fill it with zeroes, so all 512 must be there, and giving back
//!   [waits](HugePages::while_none_is_made) for the one in the making.
//! - **What others must not see half-done** is under the lock: looking at 2 MiB and making it huge is one step. Between steps
//!   the thread sleeps and owns nothing, so a child inherits nothing of it, and starts its own.

#[cfg(test)]
mod tests;

use crate::collapse::{DENSE, Made, one_by_one};
use crate::pagemap::{ENTRY, EXCLUSIVE, IN_HUGE_PAGE, PAGE, PRESENT, has};
use pando_sys::{is_huge, minor_faults};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::ControlFlow::{self, Break, Continue};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// How long after a fork nothing is made, and how often it is seen whether there may be something: the next fork may come at
/// once, and what was written shortly after one is written by then.
const QUIET: Duration = Duration::from_secs(1);
/// How often all is looked at though little was written: pages also become ours alone when a relative ends.
const SELDOM: Duration = Duration::from_secs(30);

/// Why no huge pages are made. Forks take longer, and nothing else is different.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The kernel does not show a process its page tables.
    #[error("cannot open /proc/self/pagemap")]
    Pagemap(#[source] io::Error),
    /// No thread.
    #[error("cannot start the thread that makes huge pages")]
    Thread(#[source] io::Error),
}

/// Makes huge pages of what one guest has for itself, from [`begin`](Self::begin) on.
///
/// In a child of a `fork(2)` this object must be forgotten: there is no thread, and the lock is held for ever.
#[derive(Clone)]
pub struct HugePages(Arc<Shared>);

struct Shared {
    memory: GuestMemoryMmap,
    guarded: Mutex<Guarded>,
    /// It is not held any more.
    released: Condvar,
}

struct Guarded {
    /// A fork is under way.
    is_held: bool,
    /// The last fork, or the beginning.
    forked: Instant,
    has_begun: bool,
    made: BTreeSet<u32>,
}

impl HugePages {
    /// For all of `memory`. It does nothing yet.
    pub fn of(memory: GuestMemoryMmap) -> Self {
        let guarded = Guarded { is_held: false, forked: Instant::now(), has_begun: false, made: BTreeSet::new() };
        Self(Arc::new(Shared { memory, guarded: Mutex::new(guarded), released: Condvar::new() }))
    }

    /// The memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.0.memory
    }

    /// Begins to look for what can be made huge, when it has not begun: the memory is shared from now on. All of it must be
    /// there, so no pager is under way.
    pub fn begin(&self) -> Result<(), BeginError> {
        let mut guarded = self.0.lock();
        if std::mem::replace(&mut guarded.has_begun, true) {
            return Ok(());
        }
        guarded.forked = Instant::now();
        drop(guarded);
        let pagemap = File::open("/proc/self/pagemap").map_err(BeginError::Pagemap)?;
        let shared = Arc::clone(&self.0);
        pando_sys::spawn("huge-pages", move || shared.live(&pagemap)).map(drop).map_err(BeginError::Thread)
    }

    /// Has nothing made until the result is dropped, nor for a while after that. Waits for the huge page in the making: call it
    /// before the guest has to stand still.
    pub fn hold(&self) -> Held<'_> {
        self.0.lock().is_held = true;
        Held { shared: &self.0, guarded: None }
    }

    /// Does what no huge page may be made during: giving pages back, which would be looked at while they are there and made
    /// after they were given.
    pub fn while_none_is_made<T>(&self, act: impl FnOnce() -> T) -> T {
        let _guarded = self.0.lock();
        act()
    }

    /// The first pages of the huge pages that were made.
    pub fn made(&self) -> BTreeSet<u32> {
        self.0.lock().made.clone()
    }
}

/// Nothing is made while this lives.
pub struct Held<'a> {
    shared: &'a Shared,
    guarded: Option<MutexGuard<'a, Guarded>>,
}

impl Held<'_> {
    /// Keeps the lock as well, so that the thread holds it at no `fork(2)`. Call it when all those stand still who give pages
    /// back.
    pub fn stand_still(&mut self) {
        self.guarded = Some(self.shared.lock());
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut guarded = self.guarded.take().unwrap_or_else(|| self.shared.lock());
        guarded.is_held = false;
        guarded.forked = Instant::now();
        self.shared.released.notify_all();
    }
}

impl Shared {
    /// Locks, also after a thread panicked with the lock held: nothing in there is ever half-done.
    fn lock(&self) -> MutexGuard<'_, Guarded> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self, pagemap: &File) {
        let (mut looked, mut faults_then) = (Instant::now(), 0);
        loop {
            self.wait_until_quiet();
            let faults = minor_faults();
            // As long as few pages were copied, no huge page is full of them.
            let is_due = faults.saturating_sub(faults_then) >= u64::from(DENSE) || looked.elapsed() > SELDOM;
            if is_due && one_by_one(self.huge_pages(), |first| self.look(first, pagemap)) {
                (looked, faults_then) = (Instant::now(), faults);
            }
        }
    }

    /// Returns [`QUIET`] from now or after the last fork, whichever is later.
    fn wait_until_quiet(&self) {
        thread::sleep(QUIET);
        let mut guarded = self.lock();
        loop {
            guarded =
                self.released.wait_while(guarded, |guarded| guarded.is_held).unwrap_or_else(PoisonError::into_inner);
            let left = QUIET.saturating_sub(guarded.forked.elapsed());
            if left.is_zero() {
                return;
            }
            drop(guarded);
            thread::sleep(left);
            guarded = self.lock();
        }
    }

    /// The first page of each huge page of the memory.
    fn huge_pages(&self) -> impl Iterator<Item = u32> {
        self.memory.iter().flat_map(|region| {
            let start = region.start_addr().raw_value() / PAGE;
            let end = start + region.len() / PAGE;
            (start as u32..end as u32).step_by(IN_HUGE_PAGE) // RAM ends below 2^44 bytes.
        })
    }

    /// Makes a huge page of the 2 MiB that begin at page `first`, if it is to be one. Breaks off for a fork.
    fn look(&self, first: u32, pagemap: &File) -> ControlFlow<(), Made> {
        let mut guarded = self.lock();
        if guarded.is_held || guarded.forked.elapsed() < QUIET {
            return Break(());
        }
        // A kernel that does not tell does little where there is one already.
        let is_done = is_huge(&self.memory, pagemap, first).unwrap_or(false);
        if is_done || !self.is_ours(first, pagemap) {
            return Continue(Made::NOTHING);
        }
        let made = Made::of(&self.memory, first);
        if made.is_huge {
            guarded.made.insert(first);
        }
        Continue(made)
    }

    /// Whether all of the 2 MiB that begin at page `first` is there, and nearly all of it is in no other process.
    fn is_ours(&self, first: u32, pagemap: &File) -> bool {
        let Ok(address) = self.memory.get_host_address(GuestAddress(u64::from(first) * PAGE)) else { return false };
        let mut entries = [0; IN_HUGE_PAGE * ENTRY as usize];
        if pagemap.read_exact_at(&mut entries, address as u64 / PAGE * ENTRY).is_err() {
            return false;
        }
        let entries = || entries.chunks_exact(ENTRY as usize);
        entries().all(|entry| has(entry, PRESENT))
            && entries().filter(|entry| has(entry, EXCLUSIVE)).count() >= usize::from(DENSE)
    }
}

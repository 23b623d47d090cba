//! The threads for faults, of which one always listens, and what those for the rest do in the same way.
//!
//! What a thread does without the lock is: sleep in the kernel, wait for the source, or put pages there. The first two
//! are as good as standing still; [`hold`](super::Pager::hold) waits for the third, and keeps the lock. So there is no
//! gate for these threads to stop at.

use super::fill::Turn;
use super::source::{FetchError, Fetched, PageSource, SourceError, Wanted};
use super::state::{Phase, State};
use super::{End, FEWEST_FAULT_THREADS, FOR_FAULTS, OnEnd, PagerError, Tuning};
use pando_sys::{SysError, Userfault};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The pause before a fetch is tried again: at first, and at most, doubling in between.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How often, per stall limit, somebody looks whether it has passed.
const LOOKS: u32 = 8;

/// What the threads and the owner share.
pub(super) struct Shared {
    pub(super) userfault: Userfault,
    pub(super) source: Box<dyn PageSource>,
    pub(super) tuning: Tuning,
    pub(super) guarded: Mutex<Guarded>,
    /// A fault is queued, or nobody listens.
    pub(super) faults: Condvar,
    /// There may be something to fill.
    pub(super) fills: Condvar,
    /// Pages were put there, threads are released, or the phase is another one.
    pub(super) changed: Condvar,
    /// Wakes who listens.
    pub(super) wake: OwnedFd,
}

/// What the lock guards.
pub(super) struct Guarded {
    pub(super) state: State,
    /// Called with the lock held: at a fork, it is not under way.
    pub(super) on_end: Option<OnEnd>,
    /// No more pages may be put there.
    pub(super) is_held: bool,
    /// There may be a child that shares pages.
    pub(super) was_held: bool,
    /// A fault thread sleeps until a fault comes.
    pub(super) is_listening: bool,
    /// Whether the rest may come.
    pub(super) turn: Turn,
    /// Fault threads that have nothing to do.
    pub(super) idle: u32,
    /// Nobody has begun to make huge pages.
    pub(super) is_uncollapsed: bool,
}

impl Shared {
    /// Locks, also after a thread panicked with the lock held: a guest that goes on beats one that stops.
    pub(super) fn lock(&self) -> MutexGuard<'_, Guarded> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a fault thread. One of them listens at any time, and answers no fault that takes the source unless
    /// another can listen meanwhile: somebody must notice that the source does not answer.
    pub(super) fn serve_faults(&self) {
        let (mut fetched, mut pages) = (Fetched::default(), Vec::new());
        let mut guarded = self.lock();
        while guarded.state.phase == Phase::Filling {
            if !guarded.is_listening {
                guarded.is_listening = true;
                drop(guarded);
                pages.clear();
                self.userfault.wait(self.wake.as_fd(), self.tuning.stall_limit / LOOKS);
                let read = self.userfault.read_faults(&mut pages);
                guarded = self.lock();
                if let Err(error) = read {
                    self.fail(&mut guarded, PagerError::Kernel(error));
                }
                self.take_faults(&mut guarded, &pages);
                guarded.is_listening = false;
                if guarded.idle == 0 {
                    continue;
                }
                // One listens; more only where there is more to do.
                match guarded.state.queued() {
                    0 | 1 => self.faults.notify_one(),
                    _ => self.faults.notify_all(),
                }
            }
            let since = Instant::now();
            let fault = guarded.state.claim_fault(since);
            let is_fault = fault.is_some();
            let claimed = fault.map_or_else(|| self.claim_ahead(&mut guarded), |claimed| vec![claimed]);
            if claimed.is_empty() {
                self.fills.notify_all(); // What they gave way to may have come otherwise.
                if guarded.is_listening {
                    guarded.idle += 1;
                    guarded = wait(&self.faults, guarded);
                    guarded.idle -= 1;
                }
                continue;
            }
            drop(guarded);
            self.bring(claimed, true, &mut fetched);
            guarded = self.lock();
            if !is_fault {
                guarded.state.came_ahead(since.elapsed());
            }
        }
        self.faults.notify_all();
        drop(guarded);
        // Not by a thread that gives way: nobody can fault while a huge page is made, nor fork.
        self.collapse();
    }

    /// What is expected, for a thread that has no fault to answer, if there is still one for the next fault.
    fn claim_ahead(&self, guarded: &mut Guarded) -> Vec<Range<u32>> {
        let most = self.tuning.fault_threads.max(FEWEST_FAULT_THREADS) - FOR_FAULTS;
        let most = if guarded.is_listening { most as usize } else { 0 };
        guarded.state.claim_ahead(most, Instant::now())
    }

    /// Answers what needs no source, queues the rest, and sees whether the source still answers.
    fn take_faults(&self, guarded: &mut Guarded, pages: &[u32]) {
        let now = Instant::now();
        for page in pages {
            if let Some(zeroes) = guarded.state.fault(*page, now) {
                self.place_zeroes(guarded, [zeroes]);
            }
        }
        if let Some((pages, cause)) = guarded.state.stalled(now, self.tuning.stall_limit) {
            self.fail(guarded, PagerError::Stalled { pages, limit: self.tuning.stall_limit, cause });
        }
    }

    /// Fetches claimed runs of pages, and puts each there as soon as it has come.
    pub(super) fn bring(&self, claimed: Vec<Range<u32>>, is_urgent: bool, fetched: &mut Fetched) {
        let wanted: Vec<_> = claimed.into_iter().map(|pages| Wanted { pages, is_urgent }).collect();
        let (mut came, mut pause) = (0, FIRST_PAUSE);
        while let Some(first) = wanted.get(came) {
            fetched.begin(first.pages.clone());
            let result = self.source.fetch_each(&wanted[came..], fetched, &mut |fetched| {
                if let Some(arrived) = wanted.get(came) {
                    self.take(&arrived.pages, fetched);
                    came += 1;
                }
                fetched.begin(wanted.get(came).map_or(0..0, |next| next.pages.clone()));
            });
            let Some(Wanted { pages, .. }) = wanted.get(came) else { return };
            let error = match result {
                Ok(()) => PagerError::Lacking { pages: pages.clone(), lacking: fetched.lacking() },
                Err(FetchError::Final(cause)) => PagerError::Lost { pages: pages.clone(), cause },
                Err(FetchError::Transient(cause)) => match self.pause(pages, cause, pause) {
                    true => {
                        pause = LAST_PAUSE.min(pause * 2);
                        continue;
                    }
                    false => return, // Nobody wants the pages any more.
                },
            };
            return self.fail(&mut self.lock(), error);
        }
    }

    /// Puts claimed pages there, if that is what has come.
    fn take(&self, claimed: &Range<u32>, fetched: &Fetched) {
        let installed = match fetched.lacking() {
            0 => self.install(claimed, fetched),
            lacking => Err(PagerError::Lacking { pages: claimed.clone(), lacking }),
        };
        if let Err(error) = installed {
            self.fail(&mut self.lock(), error);
        }
    }

    /// Waits before a fetch is tried again. Whether it is to be.
    fn pause(&self, claimed: &Range<u32>, cause: SourceError, pause: Duration) -> bool {
        let mut guarded = self.lock();
        guarded.state.note_trouble(claimed, cause);
        let is_filling = |guarded: &mut Guarded| guarded.state.phase == Phase::Filling;
        let (guarded, timeout) =
            self.changed.wait_timeout_while(guarded, pause, is_filling).unwrap_or_else(PoisonError::into_inner);
        drop(guarded);
        timeout.timed_out()
    }

    /// Puts there what was fetched, but for what was discarded meanwhile. Zero pages that nobody wants yet need only be
    /// known.
    fn install(&self, claimed: &Range<u32>, fetched: &Fetched) -> Result<(), PagerError> {
        let mut guarded = self.lock();
        while guarded.is_held {
            guarded = wait(&self.changed, guarded);
        }
        if guarded.state.phase != Phase::Filling {
            return Ok(());
        }
        let (runs, with_zeroes) = guarded.state.begin_install(claimed);
        drop(guarded);
        let put = runs.iter().try_for_each(|run| self.put(run, fetched, with_zeroes));
        let mut guarded = self.lock();
        if let Err(error) = put {
            guarded.state.abandon(claimed);
            self.changed.notify_all();
            return Err(PagerError::Kernel(error));
        }
        let zeroes = guarded.state.settle(claimed, fetched, Instant::now());
        self.place_zeroes(&mut guarded, zeroes);
        self.end_if_complete(&mut guarded);
        self.changed.notify_all();
        self.fills.notify_all();
        Ok(())
    }

    /// Zeroes first: putting bytes there wakes those who wait for them, and they may go on to the zeroes.
    fn put(&self, run: &Range<u32>, fetched: &Fetched, with_zeroes: bool) -> Result<(), SysError> {
        if with_zeroes {
            fetched.zeroes_in(run).try_for_each(|zeroes| self.userfault.zero(zeroes).map(drop))?;
        }
        fetched.data_in(run).try_for_each(|(first, bytes)| self.userfault.copy(first, bytes).map(drop))
    }

    /// Puts zeroes where somebody waits for them.
    pub(super) fn place_zeroes(&self, guarded: &mut Guarded, runs: impl IntoIterator<Item = Range<u32>>) {
        for run in runs {
            if guarded.state.phase != Phase::Filling {
                return; // Complete: they are zeroes anyway. Failed: nobody is to be woken.
            }
            match self.userfault.zero(run.clone()) {
                Ok(_) => guarded.state.answered(&run, Instant::now()),
                Err(error) => self.fail(guarded, PagerError::Kernel(error)),
            }
        }
    }

    /// Ends the pager when nothing is missing any more.
    pub(super) fn end_if_complete(&self, guarded: &mut Guarded) {
        if guarded.state.phase != Phase::Filling || guarded.state.missing_pages() > 0 {
            return;
        }
        match self.userfault.unregister() {
            Ok(()) => self.end(guarded, Phase::Complete, End::Complete(guarded.state.stats.clone())),
            Err(error) => self.fail(guarded, PagerError::Kernel(error)),
        }
    }

    /// Ends the pager with pages missing. They stay registered, so who waits for one goes on waiting.
    fn fail(&self, guarded: &mut Guarded, error: PagerError) {
        if guarded.state.phase == Phase::Filling {
            self.end(guarded, Phase::Failed, End::Failed(error));
        }
    }

    fn end(&self, guarded: &mut Guarded, phase: Phase, end: End) {
        guarded.state.phase = phase;
        self.faults.notify_all();
        self.fills.notify_all();
        self.changed.notify_all();
        // It can only fail where the counter is full, and then it wakes as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        if let Some(on_end) = guarded.on_end.take() {
            on_end(end);
        }
    }
}

pub(super) fn wait<'a>(on: &Condvar, guarded: MutexGuard<'a, Guarded>) -> MutexGuard<'a, Guarded> {
    on.wait(guarded).unwrap_or_else(PoisonError::into_inner)
}

//! What is missing, who fetches it, and who waits for it. No thread, no memory, no clock: all of it is told.
//!
//! ```text
//! a page:   missing ──► claimed (being fetched) ──► being put there ──► settled: there, or known to be zero
//!              │             │                                            ▲
//!              └─────────────┴────────────── discard ─────────────────────┘
//! ```
//!
//! A page is settled only after it was put there, and is never missing again. So a fault on a settled page is one that
//! came late, or one on a page that is known to be zero, or that was given back: zeroes are right for all of them.

use super::pages::{PageSet, Runs, range};
use super::source::{Fetched, PAGE, SourceError, intersection};
use super::stats::Stats;
use super::{Spec, Tuning};
use crate::collapse::DENSE;
use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Pages in a huge page. No run of pages that is fetched reaches across the end of one.
pub(super) const HUGE: u32 = 512;

/// Expected pages that are asked for at once, about, and at most for how long one request may take: who touches one of them
/// meanwhile waits for those before it.
const AHEAD_PAGES: u32 = 128;
const AHEAD_TIME: Duration = Duration::from_millis(100);

/// Where in its life a pager is.
///
/// ```text
/// Filling ──► Complete    every page is settled, nothing is registered any more
///    └──────► Failed      missing pages stay missing, and who touches them waits for ever
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Filling,
    Complete,
    Failed,
}

/// Why pages are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Fault,
    Expected,
    Fill,
}

/// Pages that one thread fetches.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) pages: Range<u32>,
    pub(super) why: Why,
    pub(super) since: Instant,
    is_installing: bool,
    /// Who could answer a fault fetches them, with the other claims of this number.
    ahead: Option<u64>,
    /// What went wrong when it was last tried.
    trouble: Option<SourceError>,
}

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) stats: Stats,
    missing: PageSet,
    /// Settled, and nothing was put there. At the beginning, what is not missing: where that is there, nobody waits.
    zeroes: PageSet,
    /// They do not overlap.
    claims: Vec<Claim>,
    /// Pages that somebody waits for and nobody fetches, when last looked at.
    queue: VecDeque<u32>,
    waiting: Vec<(u32, Instant)>,
    expected: VecDeque<Range<u32>>,
    /// No page before this one is missing and unclaimed, but for what is expected or queued.
    fill_at: u32,
    /// Pages that came with bytes, for each huge page.
    dense: Vec<u16>,
    recorder: Recorder,
    /// Also what nobody waits for or expects comes.
    fills: bool,
    /// What is missing gives way to nobody.
    is_hurried: bool,
    around: u32,
    fill: u32,
    /// Claims ahead that were made, and how many pages the next one is of.
    aheads: u64,
    ahead_pages: u32,
}

impl State {
    /// `missing`: runs of pages that are all in the memory, which is `all`.
    pub(super) fn new(all: &[Range<u32>], missing: &[Range<u32>], spec: &Spec, chunk_pages: u32) -> Self {
        let end = all.iter().map(|region| region.end).max().unwrap_or(0);
        let (mut set, mut zeroes) = (PageSet::below(end), PageSet::below(end));
        missing.iter().for_each(|run| set.insert(run.clone()));
        all.iter().for_each(|run| zeroes.insert(run.clone()));
        for run in missing {
            zeroes.remove(run.clone());
        }
        let Tuning { around_pages, fill_pages, record_pages, .. } = spec.tuning;
        let window = |pages: u32| pages.max(chunk_pages).clamp(1, HUGE).next_power_of_two();
        Self {
            phase: Phase::Filling,
            stats: Stats::default(),
            missing: set,
            zeroes,
            claims: Vec::new(),
            queue: VecDeque::new(),
            waiting: Vec::new(),
            expected: spec.expected.iter().map(|run| range(*run)).collect(),
            fill_at: 0,
            dense: vec![0; end.div_ceil(HUGE) as usize],
            recorder: Recorder { most: record_pages, ..Default::default() },
            fills: false,
            is_hurried: false,
            around: window(around_pages),
            fill: window(fill_pages),
            aheads: 0,
            ahead_pages: 1,
        }
    }

    pub(super) fn missing(&self) -> Runs {
        self.missing.runs()
    }

    pub(super) fn missing_pages(&self) -> u32 {
        self.missing.len()
    }

    /// Somebody waits for `page`. The zeroes to put there at once, if that is all; else it waits for a claim, there is
    /// one or it is queued.
    pub(super) fn fault(&mut self, page: u32, now: Instant) -> Option<Range<u32>> {
        self.stats.faults += 1;
        self.waiting.push((page, now));
        if !self.missing.contains(page) {
            return Some(self.take_zeroes(page));
        }
        self.recorder.add(page);
        if self.claim_of(page).is_none() {
            self.queue.push_back(page);
        }
        None
    }

    /// Zeroes to put around a settled page.
    fn take_zeroes(&mut self, page: u32) -> Range<u32> {
        let run = match self.zeroes.contains(page) {
            true => self.zeroes.run_around(page, &window(page, self.around)),
            false => page..page + 1,
        };
        self.zeroes.remove(run.clone());
        run
    }

    /// How many pages are waited for that nobody fetches.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Claims what somebody waits for, and its neighbours.
    pub(super) fn claim_fault(&mut self, now: Instant) -> Option<Range<u32>> {
        while let Some(page) = self.queue.pop_front() {
            let claimed = self.claim(page, window(page, self.around), Why::Fault, now);
            if claimed.is_some() {
                self.stats.fetches += 1;
                return claimed;
            }
        }
        None
    }

    /// From now on, what nobody waits for or expects is claimed as well.
    pub(super) fn begin_fill(&mut self) {
        self.fills = true;
    }

    /// From now on, what is missing is claimed whoever waits.
    pub(super) fn hurry(&mut self) {
        self.fills = true;
        self.is_hurried = true;
    }

    /// Claims what will be waited for, unless `most` of such claims are under way: what is expected, in as many runs as are
    /// worth one request, and in a hurry the rest. Each run then comes by itself.
    pub(super) fn claim_ahead(&mut self, most: usize, now: Instant) -> Vec<Range<u32>> {
        let under_way: HashSet<u64> = self.claims.iter().filter_map(|claim| claim.ahead).collect();
        if under_way.len() >= most {
            return Vec::new();
        }
        let first = self.claims.len();
        let mut pages = 0;
        while pages < self.ahead_pages
            && let Some(claimed) = self.claim_expected(now)
        {
            pages += claimed.len() as u32;
        }
        if pages > 0 {
            self.stats.fetches += 1;
        } else if self.is_hurried {
            self.claim_fill(now);
        }
        self.aheads += 1;
        let claims = &mut self.claims[first..];
        claims.iter_mut().for_each(|claim| claim.ahead = Some(self.aheads));
        claims.iter().map(|claim| claim.pages.clone()).collect()
    }

    /// How long it took until all came that was claimed ahead at once: the next such claim is larger, or smaller.
    pub(super) fn came_ahead(&mut self, took: Duration) {
        self.ahead_pages = match took <= AHEAD_TIME {
            true => AHEAD_PAGES.min(2 * self.ahead_pages.max(self.around)),
            false => self.ahead_pages / 2,
        };
        self.ahead_pages = self.ahead_pages.max(1);
    }

    fn claim_expected(&mut self, now: Instant) -> Option<Range<u32>> {
        while let Some(run) = self.expected.pop_front() {
            let Some(page) = self.first_free(run.clone()) else { continue };
            let rounded = window(run.start, self.around).start..window(run.end - 1, self.around).end;
            let within = intersection(&rounded, &window(page, self.fill)).unwrap_or(page..page + 1);
            if within.end < run.end {
                self.expected.push_front(within.end..run.end);
            }
            return self.claim(page, within, Why::Expected, now);
        }
        None
    }

    /// Claims what is missing, from the first page on, while nobody waits for a fetch and nothing is expected, or in a
    /// hurry.
    pub(super) fn claim_fill(&mut self, now: Instant) -> Option<Range<u32>> {
        let page = self.next_fill()?;
        let claimed = self.claim(page, page..window(page, self.fill).end, Why::Fill, now)?;
        self.stats.fetches += 1;
        self.fill_at = claimed.end;
        Some(claimed)
    }

    /// Whether there is something to claim in that way.
    pub(super) fn is_fill_due(&self) -> bool {
        self.next_fill().is_some()
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.is_hurried
    }

    fn next_fill(&self) -> Option<u32> {
        let is_urgent = |claim: &Claim| claim.why != Why::Fill;
        let gives_way = self.queued() > 0 || !self.expected.is_empty() || self.claims.iter().any(is_urgent);
        if !self.fills || gives_way && !self.is_hurried {
            return None;
        }
        self.first_free(self.fill_at..u32::MAX)
    }

    /// The first page of `within` that is missing and unclaimed.
    fn first_free(&self, within: Range<u32>) -> Option<u32> {
        let mut from = within.start;
        loop {
            let page = self.missing.next(from).filter(|page| *page < within.end)?;
            match self.claim_of(page) {
                Some(claim) => from = self.claims[claim].pages.end,
                None => return Some(page),
            }
        }
    }

    /// Claims what is missing and unclaimed of `within`, next to `page` and to each other.
    fn claim(&mut self, page: u32, mut within: Range<u32>, why: Why, now: Instant) -> Option<Range<u32>> {
        if !self.missing.contains(page) || self.claim_of(page).is_some() {
            return None;
        }
        for claim in &self.claims {
            match claim.pages.end <= page {
                true => within.start = within.start.max(claim.pages.end),
                false => within.end = within.end.min(claim.pages.start),
            }
        }
        let pages = self.missing.run_around(page, &within);
        let claim = Claim { pages: pages.clone(), why, since: now, is_installing: false, ahead: None, trouble: None };
        self.claims.push(claim);
        Some(pages)
    }

    fn claim_of(&self, page: u32) -> Option<usize> {
        self.claims.iter().position(|claim| claim.pages.contains(&page))
    }

    /// Why a fetch is to be tried again.
    pub(super) fn note_trouble(&mut self, claimed: &Range<u32>, trouble: SourceError) {
        self.stats.retries += 1;
        if let Some(at) = self.claim_of(claimed.start) {
            self.claims[at].trouble = Some(trouble);
        }
    }

    /// The oldest claim, if it is older than `limit`: its pages, and its trouble.
    pub(super) fn stalled(&mut self, now: Instant, limit: Duration) -> Option<(Range<u32>, Option<SourceError>)> {
        // Of those that were asked for together, the one that does not come.
        let oldest = self.claims.iter_mut().min_by_key(|claim| (claim.since, claim.trouble.is_none()))?;
        (now.duration_since(oldest.since) > limit).then(|| (oldest.pages.clone(), oldest.trouble.take()))
    }

    /// Time passed in which nothing could be done.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.claims.iter_mut().for_each(|claim| claim.since += by);
    }

    /// What of a claim is to be put there: what was not discarded meanwhile. And whether its zeroes are, too: near a page
    /// that somebody wants they are soon wanted as well.
    pub(super) fn begin_install(&mut self, claimed: &Range<u32>) -> (Vec<Range<u32>>, bool) {
        let Some(at) = self.claim_of(claimed.start) else { return (Vec::new(), false) };
        self.claims[at].is_installing = true;
        (self.missing.runs_in(claimed.clone()).collect(), self.claims[at].why != Why::Fill)
    }

    /// Whether pages are being put there just now.
    pub(super) fn is_installing(&self) -> bool {
        self.claims.iter().any(|claim| claim.is_installing)
    }

    /// Whether pages of `run` are.
    pub(super) fn is_installing_in(&self, run: &Range<u32>) -> bool {
        self.claims.iter().any(|claim| claim.is_installing && intersection(&claim.pages, run).is_some())
    }

    /// A claim could not be put there.
    pub(super) fn abandon(&mut self, claimed: &Range<u32>) {
        self.claims.retain(|claim| claim.pages != *claimed);
    }

    /// A claim has been put there. The zeroes that somebody waits for.
    pub(super) fn settle(&mut self, claimed: &Range<u32>, fetched: &Fetched, now: Instant) -> Vec<Range<u32>> {
        let Some(claim) = self.claim_of(claimed.start).map(|at| self.claims.swap_remove(at)) else { return Vec::new() };
        // The source answers, so what comes behind it has no longer waited than since now.
        let behind = |other: &&mut Claim| claim.ahead.is_some() && other.ahead == claim.ahead;
        self.claims.iter_mut().filter(behind).for_each(|other| other.since = now);
        let still_missing: Vec<_> = self.missing.runs_in(claimed.clone()).collect();
        for run in still_missing {
            for (first, bytes) in fetched.data_in(&run) {
                self.stats.bytes += bytes.len() as u64;
                self.dense[(first / HUGE) as usize] += (bytes.len() / PAGE) as u16;
            }
            for zeroes in fetched.zeroes_in(&run) {
                self.stats.zero_pages += zeroes.len() as u64;
                if claim.why == Why::Fill {
                    self.zeroes.insert(zeroes);
                }
            }
            let pages = match claim.why {
                Why::Fault => &mut self.stats.faulted_pages,
                Why::Expected => &mut self.stats.prefetched_pages,
                Why::Fill => &mut self.stats.filled_pages,
            };
            *pages += u64::from(self.missing.remove(run));
        }
        self.answer(claimed, now)
    }

    /// Makes pages zero that were missing: from now on nothing of them comes from the source. The zeroes that somebody
    /// waits for.
    pub(super) fn discard(&mut self, run: &Range<u32>, now: Instant) -> Vec<Range<u32>> {
        self.stats.discarded_pages += u64::from(self.missing.remove(run.clone()));
        self.zeroes.insert(run.clone());
        // What was given back of a huge page would come back with it.
        let of_which = run.start / HUGE..run.end.div_ceil(HUGE);
        self.dense.iter_mut().take(of_which.end as usize).skip(of_which.start as usize).for_each(|pages| *pages = 0);
        self.answer(run, now)
    }

    /// Those who wait for settled pages of `run`: where those were put there they wait no longer. The zeroes that the
    /// others wait for.
    fn answer(&mut self, run: &Range<u32>, now: Instant) -> Vec<Range<u32>> {
        let mut zeroes: Vec<Range<u32>> = Vec::new();
        let settled = |page: &u32| run.contains(page) && !self.missing.contains(*page);
        let pages: Vec<u32> = self.waiting.iter().map(|(page, _)| *page).filter(settled).collect();
        for page in pages {
            match self.zeroes.contains(page) {
                true => zeroes.push(self.take_zeroes(page)),
                false if zeroes.iter().any(|run| run.contains(&page)) => {} // Answered together with those.
                false => self.answered(&(page..page + 1), now),
            }
        }
        zeroes
    }

    /// Nobody waits for pages of `run` any more.
    pub(super) fn answered(&mut self, run: &Range<u32>, now: Instant) {
        let latency = &mut self.stats.latency;
        self.waiting.retain(|(page, since)| {
            let goes_on = run.contains(page);
            if goes_on {
                latency.add(now.duration_since(*since));
            }
            !goes_on
        });
    }

    /// The first pages of the huge pages of which nearly all came with bytes.
    pub(super) fn dense(&self) -> Vec<u32> {
        let is_dense = |(at, pages): (usize, &u16)| (*pages >= DENSE).then_some(at as u32 * HUGE);
        self.dense.iter().enumerate().filter_map(is_dense).collect()
    }

    /// Whether that which begins at page `first` still is one of them.
    pub(super) fn is_dense(&self, first: u32) -> bool {
        self.dense[(first / HUGE) as usize] >= DENSE
    }

    pub(super) fn recorded(&mut self) -> Runs {
        std::mem::take(&mut self.recorder).runs
    }
}

/// The `pages` pages, a power of two, around `page`.
fn window(page: u32, pages: u32) -> Range<u32> {
    let start = page & !(pages - 1);
    start..start.saturating_add(pages)
}

/// The pages that were waited for, in that order, up to a limit.
#[derive(Debug, Default)]
struct Recorder {
    runs: Runs,
    seen: HashSet<u32>,
    most: u32,
}

impl Recorder {
    fn add(&mut self, page: u32) {
        if self.seen.len() >= self.most as usize || !self.seen.insert(page) {
            return;
        }
        match self.runs.last_mut().filter(|run| run.0 + run.1 == page) {
            Some(run) => run.1 += 1,
            None => self.runs.push((page, 1)),
        }
    }
}

#[cfg(test)]
mod tests;

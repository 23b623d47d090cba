//! Where pages come from.

use std::error::Error;
use std::ops::Range;

/// Bytes in a page.
pub(super) const PAGE: usize = 4096;

/// Any error, for its message and its causes.
pub type SourceError = Box<dyn Error + Send + Sync>;

/// Where pages come from: a process that reads the store, over a socket; a seed on this host or on another.
///
/// Several threads call it at a time, and each may wait in there. So a source has several requests in flight, and may
/// keep a way of its own for those that a guest is waiting for.
///
/// While a VM is forked, calls may be under way; they must then be asleep in the kernel or at work on memory of their
/// own, and hold no lock that a child would use. A child never uses its parent's source.
pub trait PageSource: Send + Sync {
    /// How many pages it reads at once, at multiples of that: a power of two. Less is never asked for where more is
    /// missing.
    fn chunk_pages(&self) -> u32;

    /// Puts all pages of `wanted` into `fetched`, in ascending order. What is left in there after an error is ignored.
    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError>;

    /// The same for several requests, in their order, for a source that needs to be asked only once: as soon as the pages of
    /// one are in `fetched` it calls `arrived`, which takes them out and has it ready for the next one's. After an error,
    /// those that have not arrived are asked for again, or given up.
    fn fetch_each(
        &self,
        wanted: &[Wanted],
        fetched: &mut Fetched,
        arrived: &mut dyn FnMut(&mut Fetched),
    ) -> Result<(), FetchError> {
        for wanted in wanted {
            self.fetch(wanted, fetched)?;
            arrived(fetched);
        }
        Ok(())
    }

    /// Waits until it is this guest's turn to fetch what nobody waits for, where several have a source in common. One
    /// thread at a time has it or waits for it, and nothing is claimed meanwhile, so it may take as long as it takes.
    fn begin_turn(&self) {}

    /// Ends the turn, at once.
    fn end_turn(&self) {}
}

/// A request for pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Guest-physical page numbers: addresses divided by 4096.
    pub pages: Range<u32>,
    /// Somebody stands still until they are there.
    pub is_urgent: bool,
}

/// Why pages were not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It may work the next time.
    #[error("the source of the memory does not answer")]
    Transient(#[source] SourceError),
    /// It never will.
    #[error("the source of the memory has lost pages")]
    Final(#[source] SourceError),
}

impl From<TooManyPages> for FetchError {
    fn from(error: TooManyPages) -> Self {
        Self::Final(error.into())
    }
}

/// The source wants to give more pages than it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the source has more pages to give than the {0} it was asked for")]
pub struct TooManyPages(u32);

/// What a source has fetched: runs of pages with bytes and runs of zero pages, in ascending order.
#[derive(Debug, Default)]
pub struct Fetched {
    wanted: Range<u32>,
    got: u32,
    parts: Vec<Part>,
    /// Only ever grows: what is used of it is `used`.
    bytes: Vec<u8>,
    used: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Zero(Range<u32>),
    /// Its bytes begin there.
    Data(Range<u32>, usize),
}

impl Fetched {
    /// The next `pages` pages are zeroes.
    pub fn zeroes(&mut self, pages: u32) -> Result<(), TooManyPages> {
        let run = self.next(pages)?;
        match self.parts.last_mut() {
            Some(Part::Zero(last)) => last.end = run.end,
            _ => self.parts.push(Part::Zero(run)),
        }
        Ok(())
    }

    /// Room for the bytes of the next `pages` pages, all of which must be written to.
    pub fn data(&mut self, pages: u32) -> Result<&mut [u8], TooManyPages> {
        let run = self.next(pages)?;
        let (from, to) = (self.used, self.used + pages as usize * PAGE);
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        match self.parts.last_mut() {
            Some(Part::Data(last, _)) => last.end = run.end,
            _ => self.parts.push(Part::Data(run, from)),
        }
        self.used = to;
        Ok(&mut self.bytes[from..to])
    }

    fn next(&mut self, pages: u32) -> Result<Range<u32>, TooManyPages> {
        let wanted = self.wanted.len() as u32;
        if pages > wanted - self.got {
            return Err(TooManyPages(wanted));
        }
        let first = self.wanted.start + self.got;
        self.got += pages;
        Ok(first..first + pages)
    }

    /// Forgets what it has, for another request.
    pub(super) fn begin(&mut self, wanted: Range<u32>) {
        self.parts.clear();
        (self.wanted, self.got, self.used) = (wanted, 0, 0);
    }

    /// How many pages are lacking.
    pub(super) fn lacking(&self) -> u32 {
        self.wanted.len() as u32 - self.got
    }

    /// The pages of `within` that have bytes, in runs, with them.
    pub(super) fn data_in(&self, within: &Range<u32>) -> impl Iterator<Item = (u32, &[u8])> {
        self.parts.iter().filter_map(|part| {
            let Part::Data(run, from) = part else { return None };
            let shared = intersection(run, within)?;
            let at = from + (shared.start - run.start) as usize * PAGE;
            Some((shared.start, &self.bytes[at..at + shared.len() * PAGE]))
        })
    }

    /// The pages of `within` that are zeroes, in runs.
    pub(super) fn zeroes_in(&self, within: &Range<u32>) -> impl Iterator<Item = Range<u32>> {
        self.parts.iter().filter_map(|part| match part {
            Part::Zero(run) => intersection(run, within),
            Part::Data(..) => None,
        })
    }
}

/// What is in both, if anything is.
pub(super) fn intersection(one: &Range<u32>, other: &Range<u32>) -> Option<Range<u32>> {
    let both = one.start.max(other.start)..one.end.min(other.end);
    (!both.is_empty()).then_some(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_is_found_by_page() {
        let mut fetched = Fetched::default();
        fetched.begin(10..16);
        fetched.data(1).unwrap().fill(1);
        fetched.data(1).unwrap().fill(3);
        fetched.zeroes(2).unwrap();
        fetched.zeroes(1).unwrap();
        assert_eq!(fetched.lacking(), 1);
        fetched.data(1).unwrap().fill(2);
        assert_eq!(fetched.lacking(), 0);
        let data: Vec<_> = fetched.data_in(&(11..16)).map(|(first, bytes)| (first, bytes.len(), bytes[0])).collect();
        assert_eq!(data, [(11, PAGE, 3), (15, PAGE, 2)]);
        assert_eq!(fetched.data_in(&(0..99)).next().map(|(first, bytes)| (first, bytes.len())), Some((10, 2 * PAGE)));
        assert_eq!(fetched.zeroes_in(&(0..14)).next(), Some(12..14));
        assert_eq!(fetched.zeroes_in(&(15..16)).next(), None);
    }

    #[test]
    fn no_more_is_taken_than_was_asked_for() {
        let mut fetched = Fetched::default();
        fetched.begin(10..12);
        assert!(fetched.data(3).is_err());
        fetched.zeroes(2).unwrap();
        assert!(fetched.data(1).is_err());
        assert!(fetched.zeroes(u32::MAX).is_err());
        assert!(fetched.bytes.is_empty());
    }
}

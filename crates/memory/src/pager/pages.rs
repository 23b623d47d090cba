//! Sets of pages, a bit for each.

use std::ops::Range;

/// Runs of pages as plain data: `(first page, pages)`, guest-physical page numbers.
pub type Runs = Vec<(u32, u32)>;

/// A run as a range; empty where it would wrap.
pub(super) fn range(run: (u32, u32)) -> Range<u32> {
    run.0..run.0.checked_add(run.1).unwrap_or(run.0)
}

/// A set of pages.
#[derive(Debug, Default)]
pub(super) struct PageSet {
    words: Vec<u64>,
    len: u32,
}

impl PageSet {
    /// An empty set that has room for pages below `end`.
    pub(super) fn below(end: u32) -> Self {
        Self { words: vec![0; end.div_ceil(64) as usize], len: 0 }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn contains(&self, page: u32) -> bool {
        self.words.get(page as usize / 64).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Adds pages; those that there is no room for are left out.
    pub(super) fn insert(&mut self, run: Range<u32>) {
        for_words(run, &mut self.words, |word, mask| {
            self.len += (mask & !*word).count_ones();
            *word |= mask;
        });
    }

    /// Takes pages out. How many were in.
    pub(super) fn remove(&mut self, run: Range<u32>) -> u32 {
        let before = self.len;
        for_words(run, &mut self.words, |word, mask| {
            self.len -= (mask & *word).count_ones();
            *word &= !mask;
        });
        before - self.len
    }

    /// The first page at or after `from`.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let mut mask = u64::MAX << (from % 64);
        for (at, word) in self.words.iter().enumerate().skip(from as usize / 64) {
            if word & mask != 0 {
                return Some(at as u32 * 64 + (word & mask).trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }

    /// The pages of `within` that are in and next to each other and to `page`, which is one of them.
    pub(super) fn run_around(&self, page: u32, within: &Range<u32>) -> Range<u32> {
        let first = (within.start..page).rev().take_while(|before| self.contains(*before)).last().unwrap_or(page);
        let last = (page + 1..within.end).take_while(|after| self.contains(*after)).last().unwrap_or(page);
        first..last + 1
    }

    /// The runs of pages of `within` that are in.
    pub(super) fn runs_in(&self, within: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let mut from = within.start;
        std::iter::from_fn(move || {
            let first = self.next(from).filter(|first| *first < within.end)?;
            let end = (first..within.end).find(|page| !self.contains(*page)).unwrap_or(within.end);
            from = end;
            Some(first..end)
        })
    }

    /// All of it.
    pub(super) fn runs(&self) -> Runs {
        let end = self.words.len() as u32 * 64;
        self.runs_in(0..end).map(|run| (run.start, run.end - run.start)).collect()
    }
}

/// Calls `each(word, bits)` for every word that has pages of `run`.
fn for_words(run: Range<u32>, words: &mut [u64], mut each: impl FnMut(&mut u64, u64)) {
    let mut page = run.start;
    while let Some(word) = words.get_mut(page as usize / 64).filter(|_| page < run.end) {
        let bit = page % 64;
        let bits = (run.end - page).min(64 - bit);
        each(word, (u64::MAX >> (64 - bits)) << bit);
        page += bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_in_and_out_in_runs() {
        let mut set = PageSet::below(1000);
        set.insert(60..200);
        set.insert(100..210);
        set.insert(300..301);
        assert_eq!(set.len(), 151);
        assert_eq!(set.remove(64..128), 64);
        assert_eq!(set.remove(0..61), 1);
        assert_eq!(set.runs(), [(61, 3), (128, 82), (300, 1)]);
        assert_eq!(set.runs_in(62..130).collect::<Vec<_>>(), [62..64, 128..130]);
        assert_eq!((set.next(0), set.next(64), set.next(300), set.next(301)), (Some(61), Some(128), Some(300), None));
        assert_eq!(set.run_around(130, &(120..133)), 128..133);
        assert_eq!(set.run_around(300, &(0..1000)), 300..301);
    }

    #[test]
    fn pages_beyond_the_room_are_left_out() {
        let mut set = PageSet::below(64);
        set.insert(60..70);
        assert_eq!(set.runs(), [(60, 4)]);
        assert!(!set.contains(u32::MAX));
        assert_eq!(set.remove(0..u32::MAX), 4);
        assert_eq!(range((u32::MAX, 2)), u32::MAX..u32::MAX);
    }
}

//! How many namespaces are to be ready. Nothing is made here.

use std::time::{Duration, Instant};

/// How many namespaces are kept ready, when there were never many at once.
pub const READY: usize = 8;
/// The most that are kept ready for as many at once as there were of late.
pub const MOST_READY: usize = 64;
/// For how long many at once are remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What is asked for, and what will be.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// VMs that are about to begin.
    expected: usize,
    /// How many of them have their network.
    taken: usize,
    /// The most that were expected at once of late, and when that was.
    most: Option<(usize, Instant)>,
}

impl Demand {
    /// So many VMs are about to begin.
    pub(super) fn expect(&mut self, count: usize, now: Instant) {
        self.expected += count;
        if self.remembered(now).is_none_or(|most| most <= self.expected) {
            self.most = Some((self.expected, now));
        }
    }

    /// So many that were about to begin have begun, or never will.
    pub(super) fn settle(&mut self, count: usize) {
        self.expected -= count;
        self.taken = self.taken.saturating_sub(count);
    }

    /// One was taken, or asked for.
    pub(super) fn take(&mut self) {
        self.taken = (self.taken + 1).min(self.expected);
    }

    /// How many are to be ready. While VMs are about to begin none is made for later ones: they need the CPU themselves.
    pub(super) fn wanted(&self, now: Instant) -> usize {
        match self.expected {
            0 => self.kept(now),
            expected => expected - self.taken,
        }
    }

    /// How many are kept when nothing is expected. What is ready beyond has been forgotten.
    pub(super) fn kept(&self, now: Instant) -> usize {
        self.remembered(now).unwrap_or_default().clamp(READY, MOST_READY)
    }

    /// How long that holds.
    pub(super) fn holds(&self, now: Instant) -> Option<Duration> {
        let (_, at) = self.most?;
        REMEMBERED.checked_sub(now - at)
    }

    fn remembered(&self, now: Instant) -> Option<usize> {
        self.most.filter(|&(_, at)| now - at <= REMEMBERED).map(|(most, _)| most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_wanted_until_it_is_taken_and_nothing_for_later_meanwhile() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        assert_eq!(demand.wanted(now), READY);
        demand.expect(20, now);
        demand.expect(3, now);
        assert_eq!(demand.wanted(now), 23);
        (0..22).for_each(|_| demand.take());
        assert_eq!(demand.wanted(now), 1);
        demand.settle(20);
        assert_eq!(demand.wanted(now), 1, "of the other three");
        (0..9).for_each(|_| demand.take());
        assert_eq!(demand.wanted(now), 0, "more were taken than were expected");
        demand.settle(3);
        assert_eq!(demand.wanted(now), 23);
    }

    #[test]
    fn as_many_are_kept_as_there_were_at_once_but_not_for_ever_and_not_any_number() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for count in [50, 1] {
            demand.expect(count, now);
            demand.settle(count);
        }
        assert_eq!(demand.kept(now), 50);
        let later = now + demand.holds(now).unwrap() + Duration::from_millis(1);
        assert_eq!((demand.kept(later), demand.holds(later)), (READY, None));
        demand.expect(9, later);
        assert_eq!(demand.kept(later), 9, "what was forgotten does not stand in the way");
        demand.expect(200, later);
        assert_eq!(demand.kept(later), MOST_READY);
    }
}

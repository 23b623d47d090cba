//! What a pager did, as plain data.

use std::time::Duration;

/// What a pager has done so far. Pages that are zero count as fetched, without bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// How often somebody waited for a page.
    pub faults: u64,
    /// Pages that came because somebody waited for them or for a neighbour.
    pub faulted_pages: u64,
    /// Pages that came because they were expected.
    pub prefetched_pages: u64,
    /// Pages that came because they were missing.
    pub filled_pages: u64,
    /// Pages that were given up before they came.
    pub discarded_pages: u64,
    /// How many of those that came are zero.
    pub zero_pages: u64,
    /// Bytes of the others.
    pub bytes: u64,
    /// Requests to the source.
    pub fetches: u64,
    /// Requests that were made again.
    pub retries: u64,
    /// Huge pages that were made.
    pub collapsed: u64,
    /// How long those who waited did.
    pub latency: Latencies,
}

/// A histogram: eight buckets for each doubling, so a percentile is at most an eighth too high.
#[derive(Debug, Clone, PartialEq)]
pub struct Latencies {
    counts: Vec<u64>,
    max_ns: u64,
}

const FINE: u32 = 3;
const BUCKETS: usize = (64 - FINE as usize + 1) << FINE;

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], max_ns: 0 }
    }
}

impl Latencies {
    /// Adds one.
    pub(super) fn add(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.max_ns = self.max_ns.max(ns);
        self.counts[bucket(ns)] += 1;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What `percent` of a hundred do not exceed; nothing when there are none.
    pub fn percentile(&self, percent: u64) -> Duration {
        let wanted = (self.count() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Duration::from_nanos(found.map_or(0, |at| upper(at).min(self.max_ns)))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }
}

fn bucket(ns: u64) -> usize {
    let Some(doublings) = (ns >> FINE).checked_ilog2() else { return ns as usize };
    ((doublings as usize + 1) << FINE) + (ns >> doublings) as usize - (1 << FINE)
}

/// The largest value in a bucket.
fn upper(bucket: usize) -> u64 {
    let Some(doublings) = (bucket >> FINE).checked_sub(1) else { return bucket as u64 };
    let fine = (bucket % (1 << FINE) + (1 << FINE)) as u128;
    u64::try_from(((fine + 1) << doublings) - 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_has_a_bucket_that_ends_at_most_an_eighth_above_it() {
        for ns in (0..4096).chain([1 << 20, (1 << 20) + 1, u64::MAX / 3, u64::MAX]) {
            let upper = upper(bucket(ns));
            assert!(upper >= ns && upper - ns <= ns / 8, "{ns}: {upper}");
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentile(50), Duration::ZERO);
        (1..=100).for_each(|us| latencies.add(Duration::from_micros(us)));
        let us = |percent| latencies.percentile(percent).as_micros();
        assert!((50..=56).contains(&us(50)), "{}", us(50));
        assert!((99..=100).contains(&us(99)), "{}", us(99));
        assert_eq!(latencies.max(), Duration::from_micros(100));
    }
}

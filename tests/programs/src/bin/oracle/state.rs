//! What writers and checks share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The most sides that one line of machines may have had.
const MAX_SIDES: usize = 256;
/// How many contradictions are kept in words.
const MAX_WORDS: usize = 8;

/// What writers and checks share.
pub(crate) struct State {
    /// The sides that this machine and its ancestors were on, oldest first.
    sides: [AtomicU64; MAX_SIDES],
    side_count: AtomicUsize,
    laps: Vec<AtomicU64>,
    violations: AtomicU64,
    words: Mutex<Vec<String>>,
}

impl State {
    /// For so many writers, on side 0.
    pub(crate) fn new(writers: usize) -> Self {
        Self {
            sides: [const { AtomicU64::new(0) }; MAX_SIDES],
            side_count: AtomicUsize::new(1),
            laps: (0..writers).map(|_| AtomicU64::new(0)).collect(),
            violations: AtomicU64::new(0),
            words: Mutex::new(Vec::new()),
        }
    }

    /// The side that writes carry now.
    pub(crate) fn side(&self) -> u64 {
        self.sides[self.side_count.load(Ordering::Acquire) - 1].load(Ordering::Relaxed)
    }

    /// Whether this machine or an ancestor was ever on `side`. What carries another was written by a relative after
    /// they parted.
    pub(crate) fn is_ours(&self, side: u64) -> bool {
        let count = self.side_count.load(Ordering::Acquire);
        self.sides[..count].iter().rev().any(|known| known.load(Ordering::Relaxed) == side)
    }

    /// Changes sides. False when there were too many.
    pub(crate) fn take_side(&self, side: u64) -> bool {
        let count = self.side_count.load(Ordering::Acquire);
        let Some(slot) = self.sides.get(count) else { return false };
        slot.store(side, Ordering::Relaxed);
        self.side_count.store(count + 1, Ordering::Release);
        true
    }

    /// A writer has looked at everything of its own once more.
    pub(crate) fn count_lap(&self, writer: usize) {
        self.laps[writer].fetch_add(1, Ordering::AcqRel);
    }

    /// Laps of each writer so far.
    pub(crate) fn laps(&self) -> Vec<u64> {
        self.laps.iter().map(|laps| laps.load(Ordering::Acquire)).collect()
    }

    /// A contradiction.
    pub(crate) fn violated(&self, what: impl FnOnce() -> String) {
        self.violations.fetch_add(1, Ordering::AcqRel);
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() < MAX_WORDS {
            words.push(what());
        }
    }

    /// How many contradictions there were, and the first of them in words.
    pub(crate) fn violations(&self) -> (u64, Vec<String>) {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        (self.violations.load(Ordering::Acquire), words.clone())
    }
}

/// Ties a number, the side that wrote it and a place together, so that bytes of two writes are never taken for one.
pub(crate) fn seal(number: u64, side: u64, place: u64) -> u64 {
    let mut hash = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ side.rotate_left(32) ^ place.rotate_left(48);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash ^ (hash >> 32)
}

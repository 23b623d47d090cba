//! When something happens that may happen at any time.

use std::thread;
use std::time::Duration;

/// Moments at random, the same in every run.
pub(crate) struct Moments(u64);

impl Moments {
    pub(crate) fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    /// One below `limit`.
    pub(crate) fn next(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        limit.mul_f64((self.0 >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// Lets a few milliseconds pass.
    pub(crate) fn pass(&mut self) {
        thread::sleep(self.next(Duration::from_millis(4)));
    }
}

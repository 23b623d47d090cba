//! How long nobody has used a VM, and when it is worth trying to put it to sleep.

use std::time::{Duration, Instant};

/// The share of one CPU above which a monitor is at work for a guest that is used: several times what a Linux guest takes in
/// which nothing runs, on a host as slow as an emulated one. `docs/idle.md` has what was measured.
const SHARE: f64 = 0.05;
/// What the kernel's account may be wrong by: two of its units.
const GRAIN: Duration = Duration::from_millis(20);
/// How long it is not tried again after it went wrong, at first and at last.
const RESTS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// The clock of one monitor. Another process is another clock, which begins anew.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    pub(super) pid: u32,
    /// When its VM was last used, as far as is known.
    used: Instant,
    /// When its CPU time was last read, and what it was.
    read: (Instant, Duration),
    /// Until when nothing is tried, and how long that pause is.
    rest: Option<(Instant, Duration)>,
}

impl Clock {
    /// Begins to count.
    pub(super) fn new(pid: u32, now: Instant, cpu: Duration) -> Self {
        Self { pid, used: now, read: (now, cpu), rest: None }
    }

    /// Looks at the CPU time of the monitor. The answer is how long nobody has used its VM.
    pub(super) fn read(&mut self, now: Instant, cpu: Duration) -> Duration {
        let (then, before) = self.read;
        let allowed = GRAIN + now.saturating_duration_since(then).mul_f64(SHARE);
        if cpu.saturating_sub(before) > allowed {
            self.used = now;
        }
        self.read = (now, cpu);
        now.saturating_duration_since(self.used)
    }

    /// Somebody used it at `when`.
    pub(super) fn used(&mut self, when: Instant) {
        self.used = self.used.max(when);
    }

    /// It could not be put to sleep.
    pub(super) fn failed(&mut self, now: Instant) {
        let pause = self.rest.map_or(RESTS.0, |(_, pause)| (pause * 2).min(RESTS.1));
        self.rest = Some((now + pause, pause));
    }

    /// Whether it is worth trying.
    pub(super) fn is_rested(&self, now: Instant) -> bool {
        self.rest.is_none_or(|(until, _)| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_guest_that_serves_its_timer_is_idle_and_one_that_computes_is_not() {
        let start = Instant::now();
        for (cpu_ms, idle_s) in [(0, 10), (10, 10), (60, 10), (100, 0), (1000, 0)] {
            let mut clock = Clock::new(1, start, SECOND);
            let idle = (1..=10).map(|n| clock.read(start + n * SECOND, SECOND + n * Duration::from_millis(cpu_ms)));
            assert_eq!(idle.last(), Some(idle_s * SECOND), "{cpu_ms} ms each second");
        }
    }

    #[test]
    fn one_that_computed_is_idle_from_then_on() {
        let start = Instant::now();
        let mut clock = Clock::new(1, start, Duration::ZERO);
        clock.read(start + SECOND, SECOND);
        assert_eq!(clock.read(start + 4 * SECOND, SECOND), 3 * SECOND);
        clock.used(start + 3 * SECOND);
        clock.used(start + 2 * SECOND);
        assert_eq!(clock.read(start + 5 * SECOND, SECOND), 2 * SECOND);
    }

    #[test]
    fn what_went_wrong_is_tried_again_later_and_later() {
        let mut now = Instant::now();
        let mut clock = Clock::new(1, now, Duration::ZERO);
        assert!(clock.is_rested(now));
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            clock.failed(now);
            let until = now + minutes * 60 * SECOND;
            assert!(!clock.is_rested(until - SECOND) && clock.is_rested(until), "{minutes}");
            now = until;
        }
    }
}

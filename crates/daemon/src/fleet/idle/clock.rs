//! How long nobody has used a VM, and when it is worth trying to put it to sleep.

use std::time::{Duration, Instant};

/// The share of one CPU above which a monitor is at work for a guest that is used: several times what a Linux guest takes in
/// which nothing runs, on a host as slow as an emulated one. `docs/idle.md` has what was measured.
const SHARE: f64 = 0.05;
/// What the kernel's account may be wrong by: two of its units.
const GRAIN: Duration = Duration::from_millis(20);
/// The bytes a second, and those in one burst, above which what comes from outside is use: an answer of a time server is none,
/// and a download is one.
const BYTES_A_SECOND: f64 = 1024.0;
const BYTES_AT_ONCE: u64 = 4096;
/// How long it is not tried again after it went wrong, at first and at last.
const RESTS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// What is counted of a VM, as far as it tells of use. It only grows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    /// CPU time of its monitor.
    pub(super) cpu: Duration,
    /// Bytes that came for it from outside.
    pub(super) received: u64,
}

/// The clock of one monitor. Another process is another clock, which begins anew.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    pub(super) pid: u32,
    /// The host's link to its VM, if that has a network.
    pub(super) link: Option<String>,
    /// When its VM was last used, as far as is known.
    used: Instant,
    /// When it was last counted, and what that was.
    read: (Instant, Counted),
    /// Until when nothing is tried, and how long that pause is.
    rest: Option<(Instant, Duration)>,
}

impl Clock {
    /// Begins to count.
    pub(super) fn new(pid: u32, link: Option<String>, now: Instant, counted: Counted) -> Self {
        Self { pid, link, used: now, read: (now, counted), rest: None }
    }

    /// Looks at what was counted. The answer is how long nobody has used the VM.
    pub(super) fn read(&mut self, now: Instant, counted: Counted) -> Duration {
        let (then, before) = self.read;
        let passed = now.saturating_duration_since(then);
        let cpu = GRAIN + passed.mul_f64(SHARE);
        let bytes = BYTES_AT_ONCE + (passed.as_secs_f64() * BYTES_A_SECOND) as u64;
        let is_at_work = counted.cpu.saturating_sub(before.cpu) > cpu;
        if is_at_work || counted.received.saturating_sub(before.received) > bytes {
            self.used = now;
        }
        self.read = (now, counted);
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

    fn clock(now: Instant) -> Clock {
        Clock::new(1, None, now, Counted::default())
    }

    fn cpu(cpu: Duration) -> Counted {
        Counted { cpu, received: 0 }
    }

    #[test]
    fn a_guest_that_serves_its_timer_is_idle_and_one_that_computes_is_not() {
        let start = Instant::now();
        for (cpu_ms, idle_s) in [(0, 10), (10, 10), (60, 10), (100, 0), (1000, 0)] {
            let mut clock = clock(start);
            let idle = (1..=10).map(|n| clock.read(start + n * SECOND, cpu(n * Duration::from_millis(cpu_ms))));
            assert_eq!(idle.last(), Some(idle_s * SECOND), "{cpu_ms} ms each second");
        }
    }

    #[test]
    fn a_guest_that_asks_for_the_time_is_idle_and_one_that_loads_something_is_not() {
        let start = Instant::now();
        for (bytes, idle_s) in [(0, 10), (90, 10), (5000, 10), (6000, 0), (1 << 20, 0)] {
            let mut clock = clock(start);
            let counted = |n: u32| Counted { cpu: Duration::ZERO, received: u64::from(n) * bytes };
            let idle = (1..=10).map(|n| clock.read(start + n * SECOND, counted(n)));
            assert_eq!(idle.last(), Some(idle_s * SECOND), "{bytes} bytes each second");
        }
    }

    #[test]
    fn one_that_computed_is_idle_from_then_on() {
        let start = Instant::now();
        let mut clock = clock(start);
        clock.read(start + SECOND, cpu(SECOND));
        assert_eq!(clock.read(start + 4 * SECOND, cpu(SECOND)), 3 * SECOND);
        clock.used(start + 3 * SECOND);
        clock.used(start + 2 * SECOND);
        assert_eq!(clock.read(start + 5 * SECOND, cpu(SECOND)), 2 * SECOND);
    }

    #[test]
    fn what_went_wrong_is_tried_again_later_and_later() {
        let mut now = Instant::now();
        let mut clock = clock(now);
        assert!(clock.is_rested(now));
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            clock.failed(now);
            let until = now + minutes * 60 * SECOND;
            assert!(!clock.is_rested(until - SECOND) && clock.is_rested(until), "{minutes}");
            now = until;
        }
    }
}

//! A writer of memory pages: one per CPU, pinned.

use crate::state::{State, seal};
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Pages of each writer: one lap.
const PAGES: u64 = 256;
const WORDS: usize = 512;
/// A page whose first words say which step wrote it; the last seals them.
///
/// Atomics because they are written and read where they are named, and nowhere is anything of them kept in a register.
#[repr(align(4096))]
struct Page([AtomicU64; WORDS]);

impl Page {
    fn write(&self, step: u64, side: u64) {
        self.0[0].store(step, Relaxed);
        self.0[1].store(side, Relaxed);
        self.0[WORDS - 1].store(seal(step, side, 0), Relaxed);
    }

    fn read(&self) -> (u64, u64, u64) {
        (self.0[0].load(Relaxed), self.0[1].load(Relaxed), self.0[WORDS - 1].load(Relaxed))
    }
}

/// Writes without end.
pub(crate) fn write(state: &State, writer: usize) -> Result<(), String> {
    let pages: Vec<Page> = (0..PAGES).map(|_| Page([const { AtomicU64::new(0) }; WORDS])).collect();
    let mut side = state.side();
    for (step, page) in (0..).zip(&pages) {
        page.write(step, side);
    }
    let mut step = PAGES; // The next one, in a register.
    let mut float = PAGES as f64; // The same, in a register of the floating-point unit.
    let mut clock = now();
    loop {
        for page in &pages {
            let (found, found_side, sealed) = page.read();
            let whole = sealed == seal(found, found_side, 0);
            if found != step - PAGES || !whole || !state.is_ours(found_side) {
                state.violated(|| {
                    format!(
                        "memory writer {writer}, step {step}: the page of step {} holds step {found} of side \
                         {found_side}, {}",
                        step - PAGES,
                        if whole { "whole" } else { "torn" }
                    )
                });
            }
            if float != step as f64 {
                state.violated(|| format!("memory writer {writer}, step {step}: the float register says {float}"));
                float = step as f64;
            }
            page.write(step, side);
            step += 1;
            float += 1.0;
        }
        tick(state, writer, &mut clock);
        state.count_lap(writer);
        side = state.side();
    }
}

/// Moves `clock` to now. Time that goes back is a contradiction too.
fn tick(state: &State, writer: usize, clock: &mut u64) {
    let then = std::mem::replace(clock, now());
    if *clock < then {
        state.violated(|| format!("memory writer {writer}: the clock went back from {then} ns to {clock} ns"));
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned() // Never before the boot.
}

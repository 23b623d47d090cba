//! Huge pages, made one at a time: the one way in which memory becomes huge that came or was copied page by page.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::GuestMemoryMmap;

/// How much longer than for making a huge page the thread sleeps after it. The kernel lets nobody fault meanwhile, so a
/// low priority would only make those wait longer who want to.
const REST: u32 = 2;
/// So many pages of a huge page must be this process's own for it to be made one: what is missing of it is memory that it
/// costs.
pub(crate) const DENSE: u16 = 448;

/// What became of 2 MiB.
pub(crate) struct Made {
    pub(crate) is_huge: bool,
    took: Duration,
}

impl Made {
    /// Nothing was done.
    pub(crate) const NOTHING: Self = Self { is_huge: false, took: Duration::ZERO };

    /// Makes a huge page of the 2 MiB of which `first` is the first page. What cannot be one is left as it is: there is no
    /// memory for it.
    pub(crate) fn of(memory: &GuestMemoryMmap, first: u32) -> Self {
        let started = Instant::now();
        let is_huge = pando_sys::collapse(memory, first).is_ok();
        Self { is_huge, took: started.elapsed() }
    }
}

/// Has `make` look at the 2 MiB that begin at each of `firsts`, with a rest behind each huge page, until there are no more or
/// it breaks. Whether it came to the end.
///
/// A step takes a lock and lets go of it, so that whoever wants nothing made waits for one huge page at most.
pub(crate) fn one_by_one(
    firsts: impl IntoIterator<Item = u32>,
    mut make: impl FnMut(u32) -> ControlFlow<(), Made>,
) -> bool {
    for first in firsts {
        let ControlFlow::Continue(made) = make(first) else { return false };
        if !made.took.is_zero() {
            thread::sleep(made.took * REST);
        }
    }
    true
}

//! Huge pages again, once everything is there: pages that came one by one are mapped one by one, which makes every later
//! `fork(2)` slow.

use super::serve::Shared;
use super::state::Phase;
use std::thread;
use std::time::Instant;

/// How much longer than for making a huge page the thread sleeps after it. The kernel lets nobody fault meanwhile, so a
/// low priority would only make those wait longer who want to.
const REST: u32 = 4;

impl Shared {
    /// Makes huge pages of what came with bytes, one thread and one huge page at a time. Ends when the owner holds the
    /// pager: what a child shares would be copied, at the cost of memory.
    pub(super) fn collapse(&self) {
        let mut guarded = self.lock();
        let is_mine = guarded.state.phase == Phase::Complete && std::mem::take(&mut guarded.is_uncollapsed);
        if !is_mine || !self.tuning.collapse {
            return;
        }
        let dense = guarded.state.dense();
        drop(guarded);
        for first in dense {
            let mut guarded = self.lock();
            if guarded.was_held {
                return;
            }
            let started = Instant::now();
            // What cannot be one is left as it is: there is no memory, or the guest has given some of it back.
            let collapsed = pando_sys::collapse(self.userfault.memory(), first);
            guarded.state.stats.collapsed += u64::from(collapsed.is_ok());
            drop(guarded);
            thread::sleep(started.elapsed() * REST);
        }
    }
}

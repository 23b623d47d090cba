//! Huge pages again, once everything is there: pages that came one by one are mapped one by one, which makes every later
//! `fork(2)` slow.

use super::serve::Shared;
use super::state::Phase;
use crate::collapse::{Made, one_by_one};
use std::ops::ControlFlow::{Break, Continue};

impl Shared {
    /// Makes huge pages of what came with bytes, one thread and one huge page at a time. Ends when the owner holds the
    /// pager: what a child shares would be copied, at the cost of memory. [`HugePages`](crate::HugePages) is for what comes
    /// after.
    pub(super) fn collapse(&self) {
        let mut guarded = self.lock();
        let is_mine = guarded.state.phase == Phase::Complete && std::mem::take(&mut guarded.is_uncollapsed);
        if !is_mine || !self.tuning.collapse {
            return;
        }
        let dense = guarded.state.dense();
        drop(guarded);
        one_by_one(dense, |first| {
            let mut guarded = self.lock();
            if guarded.was_held {
                return Break(());
            }
            if !guarded.state.is_dense(first) {
                return Continue(Made::NOTHING); // The guest has given some of it back.
            }
            let made = Made::of(self.userfault.memory(), first);
            guarded.state.stats.collapsed += u64::from(made.is_huge);
            Continue(made)
        });
    }
}

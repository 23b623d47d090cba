//! The rest: what nobody waits for and nobody expects. It comes in turns with that of other guests.

use super::serve::{Guarded, Shared, wait};
use super::source::Fetched;
use super::state::Phase;
use pando_sys::give_way;
use std::sync::MutexGuard;
use std::time::Instant;

/// Pages of a turn, about: 2 MiB.
const TURN_PAGES: u32 = 512;

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Others'.
    Theirs,
    /// A thread asks for it.
    Asked,
    /// Ours, for so many pages.
    Ours(u32),
}

impl Shared {
    /// The life of a fill thread. The guest, its devices and who answers its faults go first.
    pub(super) fn fill(&self) {
        give_way();
        let mut fetched = Fetched::default();
        let mut guarded = self.lock();
        while guarded.state.phase == Phase::Filling {
            let claimed = match guarded.turn {
                _ if guarded.state.is_hurried() => guarded.state.claim_fill(Instant::now()),
                Turn::Ours(1..) => guarded.state.claim_fill(Instant::now()),
                Turn::Theirs if guarded.state.is_fill_due() => {
                    guarded = self.begin_turn(guarded);
                    continue;
                }
                _ => None,
            };
            let Some(claimed) = claimed else {
                if !self.end_turn(&mut guarded) {
                    guarded = wait(&self.fills, guarded);
                }
                continue;
            };
            if let Turn::Ours(left) = &mut guarded.turn {
                *left = left.saturating_sub(claimed.len() as u32);
            }
            drop(guarded);
            self.bring(vec![claimed], false, &mut fetched);
            guarded = self.lock();
            if guarded.turn == Turn::Ours(0) {
                self.end_turn(&mut guarded);
            }
        }
    }

    /// Asks for a turn before anything is claimed: what is claimed could be waited for.
    fn begin_turn<'s>(&'s self, mut guarded: MutexGuard<'s, Guarded>) -> MutexGuard<'s, Guarded> {
        guarded.turn = Turn::Asked;
        drop(guarded);
        self.source.begin_turn();
        let mut guarded = self.lock();
        guarded.turn = Turn::Ours(TURN_PAGES);
        self.fills.notify_all();
        guarded
    }

    /// Ends the turn, if it is ours: who gives way or has nothing to do keeps nobody waiting. Whether it was.
    fn end_turn(&self, guarded: &mut Guarded) -> bool {
        let was_ours = matches!(guarded.turn, Turn::Ours(_));
        if was_ours {
            guarded.turn = Turn::Theirs;
            self.source.end_turn();
        }
        was_ours
    }
}

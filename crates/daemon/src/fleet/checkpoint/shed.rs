//! Seeds end when nobody has used them for a while, or when the host needs their memory: what is stored can be run from
//! the store.

use super::super::Fleet;
use super::super::error::FleetError;
use super::store::Kept;
use crate::db::{Checkpoint, now_ms};
use crate::usage;
use pando_wire::api::CheckpointState;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::sleep;

/// How often it is looked, at most and at least.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// With less memory than this, in bytes, the host is short of it: what a fork of a few children may be refused for.
const SHORT: u64 = 512 << 20;

/// When each seed was last used, in milliseconds since 1970, as far as this daemon knows.
#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<HashMap<String, i64>>);

impl Uses {
    pub(super) fn note(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), now_ms());
    }

    pub(super) fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn last(&self, checkpoint: &Checkpoint) -> i64 {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&checkpoint.id).copied();
        used.map_or(checkpoint.created_ms, |used| used.max(checkpoint.created_ms))
    }
}

impl Fleet {
    /// Ends seeds that are no longer worth their memory, until the daemon ends.
    pub(super) async fn shed_seeds(self) {
        let mut closing = self.0.closing.clone();
        let pause = self.0.keep_seeds.clamp(PAUSES.0, PAUSES.1);
        loop {
            tokio::select! {
                () = sleep(pause) => (),
                _ = closing.wait_for(|over| *over) => return,
            }
            if let Err(error) = self.shed_some().await {
                tracing::error!(error = error.in_one_line(), "cannot end seeds that nobody uses");
            }
        }
    }

    /// Ends the seeds that are too old, or at least the one that has not been used for the longest time while the host is
    /// short of memory.
    async fn shed_some(&self) -> Result<(), FleetError> {
        let mut warm = self.0.db.checkpoints().await?;
        warm.retain(|it| it.state == CheckpointState::Stored && self.0.supervisor.live(&it.id).is_some());
        warm.sort_by_key(|checkpoint| self.0.uses.last(checkpoint));
        let is_short = usage::available_bytes(&self.0.meminfo).is_some_and(|available| available < SHORT);
        let uses = warm.iter().map(|checkpoint| self.0.uses.last(checkpoint)).collect::<Vec<_>>();
        let going = going(&uses, now_ms(), self.0.keep_seeds, is_short);
        for checkpoint in warm.into_iter().take(going) {
            self.shed(&checkpoint.id).await?;
        }
        Ok(())
    }

    /// Ends the seed of checkpoint `id`, if nothing else is done with that, and the store has it.
    async fn shed(&self, id: &str) -> Result<(), FleetError> {
        let _turn = self.0.turns.vm(id).await;
        // The store is asked, whatever was written down.
        if self.kept(id).await? == Kept::Whole {
            tracing::info!(checkpoint = id, "its seed is ended; it is in the store");
            self.0.supervisor.kill(id).await;
            self.0.uses.forget(id);
        }
        Ok(())
    }
}

/// How many of these uses, the oldest first, are of seeds that end.
fn going(uses: &[i64], now_ms: i64, keep: Duration, is_short: bool) -> usize {
    let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let old = uses.iter().take_while(|&&used| now_ms.saturating_sub(used) >= keep).count();
    old.max(usize::from(is_short && !uses.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_seeds_end_and_the_oldest_where_memory_is_short() {
        let (minute, uses) = (Duration::from_mins(1), [0, 30_000, 90_000]);
        assert_eq!(going(&uses, 59_999, minute, false), 0);
        assert_eq!(going(&uses, 60_000, minute, false), 1);
        assert_eq!(going(&uses, 100_000, minute, true), 2);
        assert_eq!(going(&uses, 0, minute, true), 1);
        assert_eq!(going(&[], 0, minute, true), 0);
    }
}

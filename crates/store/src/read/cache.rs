//! Chunks that were read lately, uncompressed, up to a limit in bytes.

use crate::id::ChunkId;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Forgets what was not asked for since it was last looked at (second chance), oldest first.
pub(super) struct ChunkCache {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Default)]
struct State {
    chunks: HashMap<ChunkId, Cached>,
    /// Every chunk in `chunks`, once.
    order: VecDeque<ChunkId>,
    len_bytes: usize,
}

struct Cached {
    bytes: Arc<[u8]>,
    was_asked_for: bool,
}

impl ChunkCache {
    pub(super) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit }
    }

    pub(super) fn get(&self, id: &ChunkId) -> Option<Arc<[u8]>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = state.chunks.get_mut(id)?;
        cached.was_asked_for = true;
        Some(cached.bytes.clone())
    }

    pub(super) fn put(&self, id: ChunkId, bytes: Arc<[u8]>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let len = bytes.len();
        if state.chunks.insert(id, Cached { bytes, was_asked_for: false }).is_some() {
            return; // Another thread read it, too; the same id means the same length.
        }
        state.order.push_back(id);
        state.len_bytes += len;
        while state.len_bytes > self.limit {
            let Some(oldest) = state.order.pop_front() else { return };
            match state.chunks.get_mut(&oldest) {
                Some(cached) if cached.was_asked_for => {
                    cached.was_asked_for = false;
                    state.order.push_back(oldest);
                }
                _ => state.len_bytes -= state.chunks.remove(&oldest).map_or(0, |cached| cached.bytes.len()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(of: u8) -> ChunkId {
        ChunkId([of; 32])
    }

    #[test]
    fn the_cache_stays_within_its_limit_and_keeps_what_is_asked_for() {
        let cache = ChunkCache::new(300);
        (0..3).for_each(|of| cache.put(id(of), Arc::from([of; 100])));
        assert!(cache.get(&id(0)).is_some());
        cache.put(id(3), Arc::from([3; 100]));
        assert!(cache.get(&id(1)).is_none(), "the oldest that nobody asked for went");
        assert!([0, 2, 3].iter().all(|of| cache.get(&id(*of)).is_some()));
        assert_eq!(cache.state.lock().unwrap().len_bytes, 300);
    }

    #[test]
    fn a_chunk_larger_than_the_limit_is_not_kept() {
        let cache = ChunkCache::new(10);
        cache.put(id(1), Arc::from([1; 11]));
        assert!(cache.get(&id(1)).is_none());
    }
}

//! Chunks that were read lately, uncompressed, up to a limit in bytes; and each read once, however many threads want it.

use crate::id::ChunkId;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Forgets what was not asked for since it was last looked at (second chance), oldest first.
pub(super) struct ChunkCache {
    state: Mutex<State>,
    /// A chunk that somebody was reading is there, or was not to be read.
    was_read: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    chunks: HashMap<ChunkId, Cached>,
    /// Every chunk in `chunks`, once.
    order: VecDeque<ChunkId>,
    len_bytes: usize,
    /// Chunks that somebody is reading.
    reading: HashSet<ChunkId>,
}

struct Cached {
    bytes: Arc<[u8]>,
    was_asked_for: bool,
}

/// Somebody's turn to read a chunk, which ends even if that panics.
struct Turn<'c> {
    cache: &'c ChunkCache,
    id: ChunkId,
}

impl ChunkCache {
    pub(super) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), was_read: Condvar::new(), limit }
    }

    /// A chunk, which is read unless it is here. Who wants one that another thread is reading waits for that; where that
    /// fails, the next one tries.
    pub(super) fn get_or_read<E>(
        &self,
        id: &ChunkId,
        read: impl FnOnce() -> Result<Arc<[u8]>, E>,
    ) -> Result<Arc<[u8]>, E> {
        let turn = match self.get_or_wait(id) {
            Ok(bytes) => return Ok(bytes),
            Err(turn) => turn,
        };
        let bytes = read()?;
        self.put(*id, bytes.clone());
        drop(turn);
        Ok(bytes)
    }

    fn get_or_wait(&self, id: &ChunkId) -> Result<Arc<[u8]>, Turn<'_>> {
        let mut state = self.state();
        loop {
            if let Some(bytes) = state.get(id) {
                return Ok(bytes);
            }
            if state.reading.insert(*id) {
                return Err(Turn { cache: self, id: *id });
            }
            state = self.was_read.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put(&self, id: ChunkId, bytes: Arc<[u8]>) {
        let mut state = self.state();
        let len = bytes.len();
        if state.chunks.insert(id, Cached { bytes, was_asked_for: false }).is_none() {
            state.order.push_back(id);
            state.len_bytes += len;
        }
        state.shrink(self.limit);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.cache.state().reading.remove(&self.id);
        self.cache.was_read.notify_all();
    }
}

impl State {
    fn get(&mut self, id: &ChunkId) -> Option<Arc<[u8]>> {
        let cached = self.chunks.get_mut(id)?;
        cached.was_asked_for = true;
        Some(cached.bytes.clone())
    }

    fn shrink(&mut self, limit: usize) {
        while self.len_bytes > limit {
            let Some(oldest) = self.order.pop_front() else { return };
            match self.chunks.get_mut(&oldest) {
                Some(cached) if cached.was_asked_for => {
                    cached.was_asked_for = false;
                    self.order.push_back(oldest);
                }
                _ => self.len_bytes -= self.chunks.remove(&oldest).map_or(0, |cached| cached.bytes.len()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn id(of: u8) -> ChunkId {
        ChunkId([of; 32])
    }

    #[test]
    fn the_cache_stays_within_its_limit_and_keeps_what_is_asked_for() {
        let cache = ChunkCache::new(300);
        (0..3).for_each(|of| cache.put(id(of), Arc::from([of; 100])));
        assert!(cache.state().get(&id(0)).is_some());
        cache.put(id(3), Arc::from([3; 100]));
        assert!(cache.state().get(&id(1)).is_none(), "the oldest that nobody asked for went");
        assert!([0, 2, 3].iter().all(|of| cache.state().get(&id(*of)).is_some()));
        assert_eq!(cache.state().len_bytes, 300);
    }

    #[test]
    fn a_chunk_larger_than_the_limit_is_not_kept() {
        let cache = ChunkCache::new(10);
        cache.put(id(1), Arc::from([1; 11]));
        assert!(cache.state().get(&id(1)).is_none());
    }

    #[test]
    fn threads_that_want_one_chunk_at_once_read_it_once() {
        let (cache, reads, barrier) = (ChunkCache::new(100), AtomicUsize::new(0), Barrier::new(8));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let read = || -> Result<Arc<[u8]>, Infallible> {
                        reads.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(100));
                        Ok(Arc::from([7; 10]))
                    };
                    assert_eq!(*cache.get_or_read(&id(7), read).unwrap(), [7; 10]);
                });
            }
        });
        assert_eq!(reads.into_inner(), 1);
    }

    #[test]
    fn a_read_that_fails_or_panics_leaves_the_turn_to_the_next() {
        let cache = ChunkCache::new(100);
        assert_eq!(cache.get_or_read(&id(1), || Err("no")), Err("no"));
        let panics = || cache.get_or_read(&id(1), || -> Result<_, ()> { panic!("a read that panics") });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert!(cache.get_or_read(&id(1), || Ok::<_, ()>(Arc::from([1; 5]))).is_ok());
    }
}

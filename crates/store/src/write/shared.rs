//! What the threads of a writer share.

use super::error::WriteError;
use super::progress::{Progress, Ticket};
use super::tuning::Tuning;
use crate::format::PackBuilder;
use crate::id::ChunkId;
use crate::local::{Lease, sync_directory};
use crate::store::Inner;
use std::collections::HashSet;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A pack that is to be written.
pub(super) struct Full {
    pub(super) pack: PackBuilder,
    pub(super) _ticket: Ticket,
}

pub(super) struct Shared {
    pub(super) store: Arc<Inner>,
    pub(super) lease: Lease,
    pub(super) tuning: Tuning,
    /// Chunks that this writer has stored, or found, or is about to.
    claimed: Mutex<HashSet<ChunkId>>,
    /// Of all layers: a layer may pass over a chunk because a job of another one has it.
    pub(super) jobs_in_flight: Arc<Progress>,
    open_pack: Mutex<PackBuilder>,
    packs_in_flight: Arc<Progress>,
    /// Buffers to be used again.
    spare: Mutex<Vec<Vec<u8>>>,
    failed: AtomicBool,
    error: Mutex<Option<WriteError>>,
    pub(super) new_bytes: AtomicU64,
    pub(super) hashed_bytes: AtomicU64,
}

impl Shared {
    pub(super) fn new(store: Arc<Inner>, lease: Lease, tuning: Tuning) -> Self {
        Self {
            store,
            lease,
            tuning,
            claimed: Mutex::default(),
            jobs_in_flight: Arc::default(),
            open_pack: Mutex::default(),
            packs_in_flight: Arc::default(),
            spare: Mutex::default(),
            failed: AtomicBool::new(false),
            error: Mutex::default(),
            new_bytes: AtomicU64::new(0),
            hashed_bytes: AtomicU64::new(0),
        }
    }

    /// Whether the caller is the first of this writer's threads that has this chunk, and so the one to see to it.
    pub(super) fn claim(&self, id: ChunkId) -> bool {
        lock(&self.claimed).insert(id)
    }

    /// Adds a chunk to the open pack, and hands that on when it is full.
    pub(super) fn append(&self, id: ChunkId, stored: &[u8], raw_len: usize, packs: &SyncSender<Full>) {
        let full = {
            let mut open = lock(&self.open_pack);
            open.push(id, stored, raw_len);
            (open.file_len() >= self.tuning.pack_bytes).then(|| self.close(&mut open))
        };
        self.hand_on(full, packs);
    }

    /// Hands on the open pack, full or not, and waits until all packs that have been begun are in the store.
    pub(super) fn flush(&self, packs: &SyncSender<Full>) {
        let full = {
            let mut open = lock(&self.open_pack);
            (!open.is_empty()).then(|| self.close(&mut open))
        };
        self.hand_on(full, packs);
        self.packs_in_flight.wait();
    }

    /// Takes the open pack. From here on, and without a gap, it is in flight.
    fn close(&self, open: &mut PackBuilder) -> Full {
        Full { pack: mem::take(open), _ticket: self.packs_in_flight.ticket() }
    }

    fn hand_on(&self, full: Option<Full>, packs: &SyncSender<Full>) {
        if let Some(full) = full
            && packs.send(full).is_err()
        {
            self.fail(WriteError::Stopped); // Its thread panicked.
        }
    }

    /// Writes packs until no more can come.
    pub(super) fn write_packs(&self, packs: &Mutex<Receiver<Full>>) {
        loop {
            let full = lock(packs).recv();
            let Ok(Full { pack, _ticket }) = full else { return };
            if self.has_failed() {
                continue;
            }
            let (id, index, bytes) = pack.finish();
            match self.lease.place_pack(id, &bytes) {
                Ok(()) => {
                    self.new_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    self.store.catalog.add(id, &index);
                }
                Err(error) => self.fail(error.into()),
            }
        }
    }

    /// Makes the names of everything that was placed durable.
    pub(super) fn sync_names(&self) -> Result<(), WriteError> {
        sync_directory(&self.store.directory.packs())?;
        Ok(sync_directory(&self.store.directory.manifests())?)
    }

    /// A buffer to fill.
    pub(super) fn buffer(&self) -> Vec<u8> {
        lock(&self.spare).pop().unwrap_or_default()
    }

    pub(super) fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        lock(&self.spare).push(buffer);
    }

    pub(super) fn fail(&self, error: WriteError) {
        lock(&self.error).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The first error, for the first who asks.
    pub(super) fn check(&self) -> Result<(), WriteError> {
        match self.has_failed() {
            true => Err(lock(&self.error).take().unwrap_or(WriteError::Stopped)),
            false => Ok(()),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A writer: its threads, and the order in which a checkpoint becomes durable.

use super::compress::{Job, work};
use super::error::WriteError;
use super::layer::LayerWriter;
use super::shared::{Full, Shared, lock};
use super::tuning::Tuning;
use crate::format::{Checkpoint, Kind, Manifest, StoredCheckpoint, check_name};
use crate::id::{ManifestId, PackId};
use crate::local::Lease;
use crate::store::Store;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Jobs that wait for a thread, and packs that wait for the disk: so that memory stays bounded (about 20 MiB).
const WAITING_JOBS: usize = 2;
const WAITING_PACKS: usize = 2;
/// Threads that wait for the disk, which does several syncs at once in the time of one.
const DISK_THREADS: usize = 4;

/// Writes checkpoints into a store. Any number of writers may do so at once, in any number of processes.
///
/// What it wrote and no checkpoint names is garbage once it is dropped, or dies.
pub struct Writer {
    pub(super) shared: Arc<Shared>,
    layers: Mutex<HashMap<ManifestId, Layer>>,
    /// `None` while it is dropped.
    jobs: Option<SyncSender<Job>>,
    packs: Option<SyncSender<Full>>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts a thread of this name.
type Spawn<'s> = &'s mut dyn FnMut(&str, Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;

fn spawn(name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

struct Layer {
    manifest: Manifest,
    is_placed: bool,
}

impl Store {
    /// Begins to write, with the sizes and the level that were chosen on measurements.
    pub fn writer(&self) -> Result<Writer, WriteError> {
        self.writer_with(Tuning::default())
    }

    /// Begins to write, tuned otherwise.
    pub fn writer_with(&self, tuning: Tuning) -> Result<Writer, WriteError> {
        let tuning = tuning.clamped();
        let inner = self.inner.clone();
        let lease = Lease::take(&inner.directory)?;
        inner.catalog.refresh(&inner.directory)?;
        Writer::start(Shared::new(inner, lease, tuning), &mut spawn)
    }
}

impl Writer {
    fn start(shared: Shared, spawn: Spawn<'_>) -> Result<Self, WriteError> {
        let shared = Arc::new(shared);
        let (jobs, waiting_jobs) = sync_channel(WAITING_JOBS);
        let (packs, waiting_packs) = sync_channel(WAITING_PACKS);
        let mut writer = Self {
            shared: shared.clone(),
            layers: Mutex::default(),
            jobs: Some(jobs),
            packs: Some(packs),
            threads: Vec::new(),
        };
        let waiting_jobs = Arc::new(Mutex::new(waiting_jobs));
        for _ in 0..shared.tuning.threads {
            // No sender outlives the writer here: if the next thread does not start, those before are to end.
            let Some(packs) = writer.packs.clone() else { break };
            let (shared, jobs) = (shared.clone(), waiting_jobs.clone());
            writer.add(spawn("store-compress", Box::new(move || work(&shared, &jobs, &packs))))?;
        }
        let waiting_packs = Arc::new(Mutex::new(waiting_packs));
        for _ in 0..DISK_THREADS {
            let (shared, packs) = (shared.clone(), waiting_packs.clone());
            writer.add(spawn("store-write", Box::new(move || shared.write_packs(&packs))))?;
        }
        Ok(writer)
    }

    fn add(&mut self, thread: io::Result<JoinHandle<()>>) -> Result<(), WriteError> {
        self.threads.push(thread.map_err(WriteError::Thread)?);
        Ok(())
    }

    /// Begins a layer of so many pages. Several may be written at once.
    pub fn layer(&self, kind: Kind, pages: u64) -> Result<LayerWriter<'_>, WriteError> {
        LayerWriter::new(self, kind, pages)
    }

    /// Makes a layer that is in the store, for a checkpoint that names it too, stay there. Reads its manifest, but not
    /// its pages.
    pub fn reuse(&self, id: ManifestId) -> Result<(), WriteError> {
        if lock(&self.layers).contains_key(&id) {
            return Ok(());
        }
        if !self.shared.lease.pin_manifest(id)? {
            return Err(WriteError::NoLayer(id));
        }
        let manifest = self.shared.store.directory.read_manifest(id)?;
        lock(&self.layers).insert(id, Layer { manifest, is_placed: true });
        Ok(())
    }

    /// How many bytes of packs and manifests it has added to the store so far.
    pub fn new_bytes(&self) -> u64 {
        self.shared.new_bytes.load(Ordering::Relaxed)
    }

    /// How many bytes of pages it has hashed so far.
    pub fn hashed_bytes(&self) -> u64 {
        self.shared.hashed_bytes.load(Ordering::Relaxed)
    }

    /// Publishes a checkpoint of layers that this writer wrote or reused. When this returns, it survives a power cut;
    /// before that, it is not there at all.
    pub fn publish(&self, checkpoint: &Checkpoint) -> Result<(), WriteError> {
        check_name(&checkpoint.name)?;
        self.shared.check()?;
        if let Some(packs) = &self.packs {
            self.shared.flush(packs);
        }
        self.shared.check()?;
        let packs = self.place_layers(checkpoint)?;
        self.shared.sync_names()?;
        let stored = StoredCheckpoint { checkpoint: checkpoint.clone(), packs };
        let bytes = stored.write().ok_or_else(|| WriteError::TooLarge(checkpoint.name.clone()))?;
        if !self.shared.lease.place_checkpoint(&checkpoint.name, &bytes)? {
            return Err(WriteError::Exists(checkpoint.name.clone()));
        }
        Ok(())
    }

    /// Writes the manifests that the checkpoint names, and returns the packs that these need, each of which stays.
    fn place_layers(&self, checkpoint: &Checkpoint) -> Result<Vec<PackId>, WriteError> {
        let mut layers = lock(&self.layers);
        let mut packs = BTreeSet::new();
        for id in checkpoint.manifests() {
            let layer = layers.get_mut(&id).ok_or(WriteError::NoLayer(id))?;
            if !layer.is_placed {
                let (_, bytes) = layer.manifest.write();
                self.shared.lease.place_manifest(id, &bytes)?;
                self.shared.new_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                layer.is_placed = true;
            }
            for chunk in layer.manifest.spans().iter().filter_map(|span| span.chunk) {
                let place = self.shared.store.pin_chunk(&self.shared.lease, &chunk)?;
                packs.insert(place.ok_or(WriteError::MissingChunk { chunk, layer: id })?.pack);
            }
        }
        Ok(packs.into_iter().collect())
    }

    pub(super) fn add_layer(&self, manifest: Manifest) -> ManifestId {
        let (id, _) = manifest.write();
        lock(&self.layers).entry(id).or_insert(Layer { manifest, is_placed: false });
        id
    }

    pub(super) fn give(&self, job: Job) -> Result<(), WriteError> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(()) } else { Err(WriteError::Stopped) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        (self.jobs, self.packs) = (None, None);
        // A thread that panicked has said so, and its lease goes with the last reference to `shared`.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_start_is_an_error_and_ends_those_that_did() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(directory.path()).unwrap();
        for fine in 0..Tuning::default().threads + DISK_THREADS {
            let mut left = fine;
            let mut limited = |name: &str, body: Box<dyn FnOnce() + Send>| {
                left = left.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
                spawn(name, body)
            };
            let lease = Lease::take(&store.inner.directory).unwrap();
            let shared = Shared::new(store.inner.clone(), lease, Tuning::default());
            assert!(matches!(Writer::start(shared, &mut limited), Err(WriteError::Thread(_))));
        }
    }
}

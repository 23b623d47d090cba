//! Reading a checkpoint that lies in a bucket, before it is here: a pack is fetched when one of its chunks is wanted.

use super::AT_ONCE;
use super::error::BucketError;
use super::objects::Bucket;
use super::push::blocking;
use crate::format::{FormatError, Manifest, StoredCheckpoint};
use crate::id::{ChunkId, ManifestId, PackId};
use crate::local::{FileError, Lease, Place};
use crate::read::{OpenCheckpoint, Source};
use crate::store::{Inner, Store};
use crate::transfer::intake::{Intake, IntakeError};
use crate::transfer::names::Name;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// A checkpoint of a bucket. Has threads of its own that talk to it, until it is dropped.
struct Attached {
    store: Arc<Inner>,
    bucket: Bucket,
    manifests: HashMap<ManifestId, Arc<Manifest>>,
    places: HashMap<ChunkId, Place>,
    /// Who fetches a pack holds its lock, so that it is fetched once.
    turns: Mutex<HashMap<PackId, Arc<Mutex<()>>>>,
    cache: Mutex<Cache>,
    /// `None` while it is dropped.
    runtime: Option<Runtime>,
}

/// What was fetched and stays: half of the limit at least, and all of it at most. What was fetched before that is garbage
/// as any other, and is fetched again if it has been collected.
struct Cache {
    limit: u64,
    newer: Fetched,
    _older: Fetched,
}

#[derive(Default)]
struct Fetched {
    lease: Option<Arc<Lease>>,
    bytes: u64,
}

impl Store {
    /// Opens a checkpoint that lies in a bucket. Its manifests and the beginnings of its packs are fetched now; a pack when
    /// a chunk of it is wanted and not in this store, in which it then stays for a while: of what was fetched, `cache_bytes`
    /// at most are kept from garbage collection.
    ///
    /// The checkpoint does not get into this store, as it does with [`Bucket::pull`]. Not to be called, and the result not
    /// to be used, where an async runtime runs; and the threads behind it do not survive a fork(2).
    pub fn attach(&self, bucket: &Bucket, name: &str, cache_bytes: u64) -> Result<OpenCheckpoint, BucketError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store-bucket")
            .enable_all()
            .build()
            .map_err(BucketError::Runtime)?;
        // Connections belong to the runtime that made them.
        let bucket = bucket.anew()?;
        let (stored, manifests, places) = runtime.block_on(async {
            let stored = bucket.stored_checkpoint(name).await?;
            let manifests = bucket.manifests(&stored).await?;
            let places = bucket.places(&stored).await?;
            Ok::<_, BucketError>((stored, manifests, places))
        })?;
        let missing = manifests
            .values()
            .flat_map(|manifest| manifest.spans())
            .filter_map(|span| span.chunk)
            .find(|chunk| !places.contains_key(chunk));
        if let Some(chunk) = missing {
            return Err(incomplete(name, format!("chunk {chunk}")));
        }
        let attached = Attached {
            store: self.inner.clone(),
            bucket,
            manifests,
            places,
            turns: Mutex::default(),
            cache: Mutex::new(Cache { limit: cache_bytes, newer: Fetched::default(), _older: Fetched::default() }),
            runtime: Some(runtime),
        };
        Ok(OpenCheckpoint::from_source(self.inner.clone(), stored.checkpoint, Arc::new(attached)))
    }
}

impl Source for Attached {
    fn manifest(&self, id: ManifestId) -> Option<Arc<Manifest>> {
        self.manifests.get(&id).cloned()
    }

    fn find(&self, chunk: &ChunkId) -> Option<Place> {
        self.places.get(chunk).copied()
    }

    fn fetch(&self, chunk: &ChunkId, is_here: &dyn Fn() -> bool) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Some(Place { pack, .. }) = self.find(chunk) else { return Ok(()) };
        let turn = lock(&self.turns).entry(pack).or_default().clone();
        let _turn = lock(&turn);
        // Another thread may have fetched it while this one waited.
        if is_here() {
            return Ok(());
        }
        let name = Name::Pack(pack);
        let Some(file) = self.get(&name)? else {
            return Err(format!("{name} is not in {} any more", self.bucket.name).into());
        };
        let lease = lock(&self.cache).lease(&self.store, file.len() as u64)?;
        Ok(Intake::with(self.store.clone(), lease).pack(pack, &file)?)
    }
}

impl Attached {
    /// An object, for which a connection that breaks while it comes is no reason to give up.
    fn get(&self, name: &Name) -> Result<Option<Vec<u8>>, BucketError> {
        let Some(runtime) = &self.runtime else { return Err(BucketError::Interrupted) };
        let begun = Instant::now();
        loop {
            match runtime.block_on(self.bucket.get(name)) {
                Err(BucketError::Unreachable { .. }) if begun.elapsed() < self.bucket.patience() => sleep(PAUSE),
                got => return got,
            }
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Cache {
    /// What keeps a pack of this length.
    fn lease(&mut self, store: &Inner, bytes: u64) -> Result<Arc<Lease>, FileError> {
        if self.newer.bytes + bytes > self.limit / 2 {
            self._older = std::mem::take(&mut self.newer);
        }
        let lease = match &self.newer.lease {
            Some(lease) => lease.clone(),
            None => Arc::new(Lease::take(&store.directory)?),
        };
        self.newer.bytes += bytes;
        self.newer.lease = Some(lease.clone());
        Ok(lease)
    }
}

impl Bucket {
    /// A checkpoint of it, as it lies there.
    pub(super) async fn stored_checkpoint(&self, name: &str) -> Result<StoredCheckpoint, BucketError> {
        crate::format::check_name(name).map_err(crate::store::CheckpointError::from)?;
        if !self.is_store().await? {
            return Err(BucketError::NoStore(self.name.clone()));
        }
        let top = Name::Checkpoint(name.to_owned());
        let Some(file) = self.get(&top).await? else {
            return Err(BucketError::Absent { checkpoint: name.to_owned(), bucket: self.name.clone() });
        };
        let damaged = |why| IntakeError::format(&top, why);
        let stored = StoredCheckpoint::read(&file).map_err(damaged)?;
        if stored.checkpoint.name != name {
            return Err(damaged(FormatError::Name).into());
        }
        Ok(stored)
    }

    async fn manifests(&self, stored: &StoredCheckpoint) -> Result<HashMap<ManifestId, Arc<Manifest>>, BucketError> {
        let mut manifests = HashMap::new();
        for id in stored.checkpoint.manifests() {
            let name = Name::Manifest(id);
            let file = self.get(&name).await?;
            let file = file.ok_or_else(|| incomplete(&stored.checkpoint.name, name.to_string()))?;
            let read = blocking(move || Manifest::read(id, &file)).await?;
            manifests.insert(id, Arc::new(read.map_err(|why| IntakeError::format(&name, why))?));
        }
        Ok(manifests)
    }

    /// Where each chunk lies, from the beginnings of all packs.
    async fn places(&self, stored: &StoredCheckpoint) -> Result<HashMap<ChunkId, Place>, BucketError> {
        let indexes = stream::iter(stored.packs.iter().copied())
            .map(|id| async move {
                let index = self.index(id).await?;
                index.map(|index| (id, index)).ok_or_else(|| incomplete(&stored.checkpoint.name, format!("packs/{id}")))
            })
            .buffer_unordered(AT_ONCE);
        let places = indexes.try_fold(HashMap::new(), |mut places, (pack, index)| async move {
            places.extend(index.entries.into_iter().map(|entry| (entry.id, Place { pack, entry })));
            Ok(places)
        });
        places.await
    }
}

fn incomplete(checkpoint: &str, what: String) -> BucketError {
    IntakeError::Incomplete { checkpoint: checkpoint.to_owned(), what }.into()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

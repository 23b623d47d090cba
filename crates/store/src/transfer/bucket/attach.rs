//! Reading a checkpoint that lies in a bucket, before it is here: a pack is fetched when one of its chunks is wanted.
//!
//! What is fetched gets into a store, which is the cache: a directory of its own where that is to have a bound.

use super::AT_ONCE;
use super::error::BucketError;
use super::objects::Bucket;
use super::push::blocking;
use crate::format::{FormatError, Manifest, StoredCheckpoint};
use crate::id::{ChunkId, ManifestId, PackId};
use crate::local::{FileError, Lease, Place, load_index};
use crate::read::{OpenCheckpoint, Source};
use crate::store::{Inner, Store};
use crate::transfer::intake::{Intake, IntakeError};
use crate::transfer::names::Name;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// A checkpoint of a bucket. Has threads of its own that talk to it, until it is dropped.
struct Attached {
    store: Store,
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
    /// Whose directory it is.
    room: Room,
}

/// How full the store is.
#[derive(Clone, Copy)]
enum Room {
    /// It has checkpoints of its own: what is garbage in it is for others to collect.
    Shared,
    /// It is a cache and nothing else, and when more than `limit` bytes of packs are in it, those go that nobody holds.
    /// `bytes` are in it as far as this process knows, and `held` were left when it last looked.
    Own { limit: u64, bytes: u64, held: u64 },
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
    ///
    /// A pack comes within the spec's timeout and patience together, or whoever wants it is told why not.
    pub fn attach(&self, bucket: &Bucket, name: &str, cache_bytes: u64) -> Result<OpenCheckpoint, BucketError> {
        self.attach_with(bucket, name, cache_bytes, Room::Shared)
    }

    /// The same where this store is a cache and nothing else: a directory that any number of processes use, and that may
    /// be deleted when none does. Manifests and working sets stay in it, too. When its packs are longer than
    /// `cache_bytes` together, all go but those that a process holds because it fetched them lately, each as much at most.
    pub fn attach_as_cache(
        &self,
        bucket: &Bucket,
        name: &str,
        cache_bytes: u64,
    ) -> Result<OpenCheckpoint, BucketError> {
        let mut room = Room::Own { limit: cache_bytes, bytes: self.inner.packs_bytes()?, held: 0 };
        room.take(self, 0);
        self.attach_with(bucket, name, cache_bytes, room)
    }

    fn attach_with(
        &self,
        bucket: &Bucket,
        name: &str,
        cache_bytes: u64,
        room: Room,
    ) -> Result<OpenCheckpoint, BucketError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store-bucket")
            .enable_all()
            .build()
            .map_err(BucketError::Runtime)?;
        // Connections belong to the runtime that made them.
        let bucket = bucket.anew()?;
        let keep = matches!(room, Room::Own { .. }).then_some(self);
        let (stored, manifests, places) = runtime.block_on(async {
            let stored = bucket.stored_checkpoint(name).await?;
            let manifests = bucket.manifests(&stored, keep).await?;
            let places = bucket.places(&stored, self).await?;
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
        let (newer, _older) = Default::default();
        let attached = Attached {
            store: self.clone(),
            bucket,
            manifests,
            places,
            turns: Mutex::default(),
            cache: Mutex::new(Cache { limit: cache_bytes, newer, _older, room }),
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
        Ok(Intake::with(self.store.inner.clone(), lease).pack(pack, &file)?)
    }
}

impl Attached {
    /// An object, for which a connection that breaks while it comes is no reason to give up.
    fn get(&self, name: &Name) -> Result<Option<Vec<u8>>, BucketError> {
        let Some(runtime) = &self.runtime else { return Err(BucketError::Interrupted) };
        let limit = self.bucket.longest();
        let mut failed = None;
        let trying = async {
            loop {
                match self.bucket.get(name).await {
                    Err(error @ BucketError::Unreachable { .. }) => failed = Some(error),
                    got => return got,
                }
                sleep(PAUSE).await;
            }
        };
        let got = runtime.block_on(async { timeout(limit, trying).await });
        // What was said last tells more than that it took too long.
        got.unwrap_or_else(|_| Err(failed.unwrap_or_else(|| self.bucket.late(name, limit))))
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
    fn lease(&mut self, store: &Store, bytes: u64) -> Result<Arc<Lease>, FileError> {
        if self.newer.bytes + bytes > self.limit / 2 {
            self._older = std::mem::take(&mut self.newer);
        }
        self.room.take(store, bytes);
        let lease = match &self.newer.lease {
            Some(lease) => lease.clone(),
            None => Arc::new(Lease::take(&store.inner.directory)?),
        };
        self.newer.bytes += bytes;
        self.newer.lease = Some(lease.clone());
        Ok(lease)
    }
}

impl Room {
    /// Makes room for a pack of so many bytes.
    fn take(&mut self, store: &Store, pack_bytes: u64) {
        let Self::Own { limit, bytes, held } = self else { return };
        *bytes += pack_bytes;
        // Where others hold more than that, there is no point in looking for each pack.
        let most = if *held < *limit { *limit } else { *held + *limit / 8 };
        if most < *bytes {
            // What cannot be taken back now is taken back the next time.
            let _ = store.collect();
            *held = store.inner.packs_bytes().unwrap_or_default();
            *bytes = *held + pack_bytes;
        }
    }
}

impl Inner {
    /// How long the packs are together, in bytes.
    fn packs_bytes(&self) -> Result<u64, FileError> {
        let packs = self.directory.list_packs()?;
        let len = |id| std::fs::metadata(self.directory.pack(id)).map_or(0, |file| file.len());
        Ok(packs.into_iter().map(len).sum())
    }
}

impl Bucket {
    /// How long the disks of a checkpoint are, in pages.
    pub async fn disk_pages(&self, checkpoint: &str) -> Result<Vec<u64>, BucketError> {
        let stored = self.stored_checkpoint(checkpoint).await?;
        let mut pages = Vec::new();
        for id in &stored.checkpoint.disks {
            pages.push(self.manifest(*id, checkpoint).await?.0.pages());
        }
        Ok(pages)
    }

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

    /// The manifests of a checkpoint. Those that the store to `keep` them in has are not fetched; and what the bucket
    /// knows to be wanted first, if that store does not know better.
    async fn manifests(
        &self,
        stored: &StoredCheckpoint,
        keep: Option<&Store>,
    ) -> Result<HashMap<ManifestId, Arc<Manifest>>, BucketError> {
        let mut manifests = HashMap::new();
        for id in stored.checkpoint.manifests() {
            let here = keep.cloned();
            let here = blocking(move || here.and_then(|store| store.inner.directory.read_manifest(id).ok())).await?;
            let manifest = match (here, keep) {
                (Some(manifest), _) => manifest,
                (None, None) => self.manifest(id, &stored.checkpoint.name).await?.0,
                (None, Some(store)) => {
                    let (manifest, file) = self.manifest(id, &stored.checkpoint.name).await?;
                    let wanted_first = self.get(&Name::WorkingSet(id)).await;
                    keep_manifest(store.clone(), id, file, wanted_first.unwrap_or_default()).await?;
                    manifest
                }
            };
            manifests.insert(id, Arc::new(manifest));
        }
        Ok(manifests)
    }

    /// A manifest, and its bytes.
    async fn manifest(&self, id: ManifestId, checkpoint: &str) -> Result<(Manifest, Vec<u8>), BucketError> {
        let name = Name::Manifest(id);
        let file = self.get(&name).await?.ok_or_else(|| incomplete(checkpoint, name.to_string()))?;
        let (read, file) = blocking(move || (Manifest::read(id, &file), file)).await?;
        Ok((read.map_err(|why| IntakeError::format(&name, why))?, file))
    }

    /// Where each chunk lies, from the beginnings of all packs. Of those that `store` has, from what it has.
    async fn places(&self, stored: &StoredCheckpoint, store: &Store) -> Result<HashMap<ChunkId, Place>, BucketError> {
        let indexes = stream::iter(stored.packs.iter().copied())
            .map(|id| async move {
                let path = store.inner.directory.pack(id);
                let index = match blocking(move || load_index(&path).ok()).await? {
                    Some(here) => Some(here),
                    None => self.index(id).await?,
                };
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

/// Puts a manifest, and what is wanted first of its layer, where the next one who wants them looks. Nothing relies on them.
async fn keep_manifest(
    store: Store,
    id: ManifestId,
    file: Vec<u8>,
    working_set: Option<Vec<u8>>,
) -> Result<(), BucketError> {
    blocking(move || {
        // Without a lease that outlives this: what a lease holds keeps all its chunks.
        let intake = Intake::begin(&store)?;
        intake.manifest(id, &file)?;
        working_set.map_or(Ok(()), |file| intake.working_set(id, &file))
    })
    .await??;
    Ok(())
}

fn incomplete(checkpoint: &str, what: String) -> BucketError {
    IntakeError::Incomplete { checkpoint: checkpoint.to_owned(), what }.into()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

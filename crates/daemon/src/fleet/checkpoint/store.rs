//! The store, from where nothing may block.

use super::super::error::{FleetError, cannot};
use super::super::{Fleet, blocking};
use pando_store::{CheckpointError, PAGE_BYTES, Store};
use pando_wire::api::{Collected, Damage, Verified};
use std::collections::{BTreeSet, HashMap};

/// Whether the store has a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Whole,
    Absent,
}

impl Fleet {
    /// Whether the store has checkpoint `id`.
    pub(super) async fn kept(&self, id: &str) -> Result<Kept, FleetError> {
        let id = id.to_owned();
        self.with_store(move |store| match store.checkpoint(&id) {
            Ok(_) => Ok(Kept::Whole),
            Err(CheckpointError::Absent(_)) => Ok(Kept::Absent),
            Err(error) => Err(cannot("read the store")(error)),
        })
        .await
    }

    /// How large the disk in checkpoint `id` is, in bytes. `None` where it has none: a VM's that sleeps and keeps its own.
    pub(super) async fn stored_disk_bytes(&self, id: &str) -> Result<Option<u64>, FleetError> {
        let id = id.to_owned();
        self.with_store(move |store| {
            let checkpoint = store.checkpoint(&id).map_err(cannot("read the store"))?;
            let Some(&disk) = checkpoint.disks.first() else { return Ok(None) };
            let pages = store.layer_pages(disk).map_err(cannot("read the store"))?;
            Ok(Some(pages * PAGE_BYTES as u64))
        })
        .await
    }

    /// Has what was waited for in the memory of `earlier` be expected in that of `later`, which is the same at a later time.
    pub(super) async fn expect_as_before(&self, earlier: &str, later: &str) -> Result<(), FleetError> {
        let of = [earlier.to_owned(), later.to_owned()];
        self.with_store(move |store| {
            let failed = || cannot("read the store");
            let [earlier, later] = of.map(|id| store.checkpoint(&id).map(|checkpoint| checkpoint.memory));
            let (Some(earlier), Some(later)) = (earlier.map_err(failed())?, later.map_err(failed())?) else {
                return Ok(());
            };
            store.pass_on_working_set(earlier, later).map_err(cannot("write into the store"))
        })
        .await
    }

    /// Removes checkpoint `id` from the store, where it need not be.
    pub(super) async fn unstore(&self, id: &str) -> Result<(), FleetError> {
        let id = id.to_owned();
        self.with_store(move |store| match store.remove(&id) {
            Ok(()) | Err(CheckpointError::Absent(_)) => Ok(()),
            Err(error) => Err(cannot("remove it from the store")(error)),
        })
        .await
    }

    /// Removes the checkpoints of the store that are none of `known`.
    pub(super) async fn unstore_strays(&self, known: BTreeSet<String>) -> Result<(), FleetError> {
        self.with_store(move |store| {
            let failed = || cannot("read the store");
            for stray in store.checkpoints().map_err(failed())?.into_iter().filter(|id| !known.contains(id)) {
                tracing::info!(checkpoint = stray, "removing from the store what nobody knows of");
                match store.remove(&stray) {
                    Ok(()) | Err(CheckpointError::Absent(_)) => (),
                    Err(error) => return Err(cannot("remove a checkpoint from the store")(error)),
                }
            }
            Ok(())
        })
        .await
    }

    /// Takes back what no checkpoint needs.
    pub(crate) async fn collect(&self) -> Result<Collected, FleetError> {
        self.with_store(|store| {
            let collected = store.collect().map_err(cannot("collect the store's garbage"))?;
            Ok(Collected {
                freed_bytes: collected.freed_bytes,
                manifests: collected.manifests as u64,
                packs: collected.packs as u64,
                compacted: collected.compacted as u64,
                damaged: collected.damaged.iter().map(|path| path.display().to_string()).collect(),
                problem: collected.problem,
            })
        })
        .await
    }

    /// Reads all of the store and checks every byte. `watcher` is what its progress is called.
    pub(crate) async fn verify(&self, watcher: Option<String>) -> Result<Verified, FleetError> {
        let meter = self.meter(watcher);
        let checkpoints = self.0.db.checkpoints().await?;
        let names: HashMap<_, _> = checkpoints.into_iter().map(|checkpoint| (checkpoint.id, checkpoint.name)).collect();
        self.with_store(move |store| {
            let verified = store.verify_watched(&meter).map_err(cannot("read the store"))?;
            let damage = verified.damage.into_iter().map(|damage| Damage {
                path: damage.path.display().to_string(),
                problem: damage.problem,
                affected: damage.affected.into_iter().map(|id| names.get(&id).cloned().unwrap_or(id)).collect(),
            });
            Ok(Verified { checkpoints: verified.checkpoints as u64, bytes: verified.bytes, damage: damage.collect() })
        })
        .await
    }

    /// Does something with the store, in a thread that may block.
    pub(super) async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, FleetError> + Send + 'static,
    ) -> Result<T, FleetError> {
        let path = self.0.paths.store();
        blocking(move || {
            let store = Store::create(&path).map_err(cannot(format!("open the store {}", path.display())))?;
            work(&store)
        })
        .await
    }
}

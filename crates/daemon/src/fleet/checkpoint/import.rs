//! A checkpoint arrives from elsewhere.
//!
//! It has a row before the store has anything of it: the row keeps its name, and the image that it needs. A daemon that is
//! killed meanwhile leaves what any checkpoint is that was not stored, which the next one removes.

use super::super::error::{FleetError, cannot};
use super::super::{Fleet, blocking, names};
use super::description::Description;
use crate::db::{self, Outcome, Sizes};
use crate::images::Incoming;
use pando_store::{ImportError, IntakeError, PAGE_BYTES, Store};
use pando_wire::api::Checkpoint;

/// Why pages that arrived whole are not what was described.
#[derive(Debug, thiserror::Error)]
enum Mismatch {
    #[error("it holds other checkpoints than it says")]
    Names,
    #[error("its memory or disk is not of the size that it says")]
    Sizes,
}

impl Fleet {
    /// Imports a checkpoint, under its own name or another one. It is here in full then, or not at all; what arrived of one
    /// that is refused is garbage in the store.
    pub(crate) async fn import_checkpoint(
        &self,
        name: Option<String>,
        mut incoming: Incoming,
    ) -> Result<Checkpoint, FleetError> {
        name.as_deref().map_or(Ok(()), names::check)?;
        let described = blocking(move || Ok((Description::read(&mut incoming)?, incoming)));
        let (description, incoming) = described.await?;
        let _turn = self.0.turns.vm(&description.id).await;
        let checkpoint = self.reserve(description, name).await?;
        if let Err(error) = self.take_in(&checkpoint, incoming).await {
            if let Err(error) = self.forget(&checkpoint).await {
                tracing::error!(checkpoint = checkpoint.id, error = error.in_one_line(), "cannot remove it");
            }
            return Err(error);
        }
        tracing::info!(checkpoint = checkpoint.id, name = checkpoint.name, "imported");
        Ok(self.told(self.find_checkpoint(&checkpoint.id).await?))
    }

    /// Makes the row of a checkpoint that arrives.
    pub(super) async fn reserve(
        &self,
        description: Description,
        name: Option<String>,
    ) -> Result<db::Checkpoint, FleetError> {
        // Until there is a row that needs it, the image could be removed.
        let _images = self.0.turns.images().await;
        if let Some(same) = self.0.db.checkpoint(&description.id).await? {
            return Err(FleetError::CheckpointTaken(same.name));
        }
        if self.0.db.image(&description.image).await?.is_none() {
            let Description { name: checkpoint, image, .. } = description;
            return Err(FleetError::NeedsImage { checkpoint, image, wanted: "import" });
        }
        let name = name.unwrap_or_else(|| description.name.clone());
        let owner = self.0.db.owner().to_owned();
        let inserted = self.0.db.insert_checkpoint(&[], |is_taken| match is_taken(&name) {
            true => Err(FleetError::CheckpointTaken(name)),
            false => Ok(description.arriving(name, owner)),
        });
        inserted.await?
    }

    /// Reads what the store is to have of `checkpoint`, and holds it against what was said of it.
    async fn take_in(&self, checkpoint: &db::Checkpoint, incoming: Incoming) -> Result<(), FleetError> {
        let (id, memory_bytes) = (checkpoint.id.clone(), checkpoint.memory_bytes);
        let logical = self.with_store(move |store| {
            let names = store.import(incoming).map_err(refused)?;
            if names != [id.as_str()] {
                return Err(FleetError::NoExport(Mismatch::Names.into()));
            }
            logical_bytes(store, &id, memory_bytes)
        });
        let sizes = Sizes { logical_bytes: Some(logical.await?), ..Sizes::default() };
        Ok(self.0.db.checkpoint_became(checkpoint, Outcome::Stored(sizes)).await?)
    }
}

/// How long memory and disk of a checkpoint are in the store, which are what a VM with so much memory has.
pub(super) fn logical_bytes(store: &Store, id: &str, memory_bytes: u64) -> Result<u64, FleetError> {
    let (memory, disks) = sizes(store, id)?;
    match (memory, &disks[..]) {
        // All addresses up to its end are stored: more than it has where there is a hole for devices.
        (Some(memory), [disk]) if memory >= memory_bytes => Ok(memory + disk),
        _ => Err(FleetError::NoExport(Mismatch::Sizes.into())),
    }
}

/// The sizes of a checkpoint's memory and disks, in bytes.
fn sizes(store: &Store, id: &str) -> Result<(Option<u64>, Vec<u64>), FleetError> {
    let open = store.open_checkpoint(id).map_err(cannot("read the store"))?;
    let size = |layer| {
        let layer = open.layer(layer).map_err(cannot("read the store"))?;
        Ok::<_, FleetError>(layer.manifest().pages() * PAGE_BYTES as u64)
    };
    let memory = open.checkpoint().memory.map(size).transpose()?;
    let disks = open.checkpoint().disks.iter().copied().map(size).collect::<Result<_, _>>()?;
    Ok((memory, disks))
}

/// Why the store did not take it: what was sent, or the host.
fn refused(error: ImportError) -> FleetError {
    match error {
        ImportError::Intake(IntakeError::File(_) | IntakeError::Decompress(_)) => {
            cannot("import the checkpoint")(error)
        }
        _ => FleetError::NoExport(error.into()),
    }
}

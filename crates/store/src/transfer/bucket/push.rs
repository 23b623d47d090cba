//! Into a bucket: packs and manifests that it does not have, and then the checkpoint.

use super::AT_ONCE;
use super::error::BucketError;
use super::objects::Bucket;
use crate::format::{Checkpoint, StoredCheckpoint};
use crate::local::read;
use crate::store::Store;
use crate::transfer::intake::IntakeError;
use crate::transfer::names::Name;
use crate::transfer::outgoing::Outgoing;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Packs and manifests that were sent.
    pub sent: usize,
    /// Those that were there.
    pub there: usize,
    /// How much was sent, in bytes.
    pub bytes: u64,
}

impl Bucket {
    /// Sends a checkpoint and everything it needs. What is there is not sent again, so a push that was cut off goes on
    /// where it was. When this returns, the checkpoint is there in full.
    pub async fn push(&self, store: &Store, checkpoint: &str) -> Result<Pushed, BucketError> {
        let (here, name) = (store.clone(), checkpoint.to_owned());
        let outgoing = Arc::new(blocking(move || Outgoing::begin(&here, &name)).await??);
        let top = Name::Checkpoint(checkpoint.to_owned());
        match self.is_store().await? {
            false => self.make_store().await?,
            true => {
                if let Some(file) = self.get(&top).await? {
                    self.same(&top, &file, &outgoing.stored.checkpoint)?;
                    return Ok(Pushed {
                        there: outgoing.packs().len() + outgoing.manifests.len(),
                        ..Pushed::default()
                    });
                }
            }
        }
        let packs = outgoing.packs().iter().map(|id| Name::Pack(*id));
        let manifests = outgoing.manifests.iter().map(|id| Name::Manifest(*id));
        let names: Vec<Name> = packs.chain(manifests).collect();
        let pushed = stream::iter(names)
            .map(|name| self.push_file(outgoing.clone(), name))
            .buffer_unordered(AT_ONCE)
            .try_fold(Pushed::default(), |sum, sent| async move {
                Ok(match sent {
                    Some(len) => Pushed { sent: sum.sent + 1, bytes: sum.bytes + len, ..sum },
                    None => Pushed { there: sum.there + 1, ..sum },
                })
            })
            .await?;
        let file = outgoing.checkpoint_file().ok_or_else(|| BucketError::TooLarge(checkpoint.to_owned()))?;
        self.put(&top, file).await?;
        Ok(pushed)
    }

    /// Sends a file unless it is there. Its length, if it was sent.
    async fn push_file(&self, outgoing: Arc<Outgoing>, name: Name) -> Result<Option<u64>, BucketError> {
        let path = outgoing.path(&name);
        let bytes = blocking(move || read(&path)).await??;
        let len = bytes.len() as u64;
        if self.size(&name).await? == Some(len) {
            return Ok(None);
        }
        self.put(&name, bytes).await?;
        Ok(Some(len))
    }

    /// What is there under this name must be this checkpoint, though perhaps in other packs.
    fn same(&self, name: &Name, file: &[u8], checkpoint: &Checkpoint) -> Result<(), BucketError> {
        let there = StoredCheckpoint::read(file).map_err(|why| IntakeError::format(name, why))?;
        if there.checkpoint == *checkpoint {
            return Ok(());
        }
        Err(BucketError::Exists { checkpoint: checkpoint.name.clone(), bucket: self.name.clone() })
    }
}

/// Runs what waits for the disk where that holds up nobody else.
pub(super) async fn blocking<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Result<T, BucketError> {
    // It ends otherwise only where the runtime does, or where it panics, which is told elsewhere.
    tokio::task::spawn_blocking(body).await.map_err(|_| BucketError::Interrupted)
}

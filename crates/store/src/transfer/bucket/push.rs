//! Into a bucket: packs and manifests that it does not have, and then the checkpoint.

use super::AT_ONCE;
use super::error::BucketError;
use super::objects::Bucket;
use crate::format::{Checkpoint, StoredCheckpoint};
use crate::id::ManifestId;
use crate::store::Store;
use crate::transfer::intake::IntakeError;
use crate::transfer::names::Name;
use crate::transfer::outgoing::Outgoing;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeSet;
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
                    let there = self.same(&top, &file, &outgoing.stored.checkpoint)?;
                    // It may be in other packs there. If one of them is gone, it is sent as it is here.
                    if let Some(there) = self.count_if_whole(&there).await? {
                        return Ok(Pushed { there, ..Pushed::default() });
                    }
                }
            }
        }
        let needs = needs(&outgoing.stored);
        self.meter.expect(needs.len());
        let pushed = stream::iter(needs)
            .map(|name| self.push_file(outgoing.clone(), name))
            .buffer_unordered(AT_ONCE)
            .try_fold(Pushed::default(), |sum, sent| async move {
                self.meter.one_more();
                Ok(match sent {
                    Some(len) => Pushed { sent: sum.sent + 1, bytes: sum.bytes + len, ..sum },
                    None => Pushed { there: sum.there + 1, ..sum },
                })
            })
            .await?;
        let file = outgoing.checkpoint_file().ok_or_else(|| BucketError::TooLarge(checkpoint.to_owned()))?;
        self.put(&top, file).await?;
        let working_sets = blocking(move || outgoing.working_sets()).await?;
        for (name, file) in working_sets {
            // A hint. The checkpoint is there without it.
            let _ = self.put(&name, file).await;
        }
        Ok(pushed)
    }

    /// Sends a file unless it is there. Its length, if it was sent.
    async fn push_file(&self, outgoing: Arc<Outgoing>, name: Name) -> Result<Option<u64>, BucketError> {
        let wanted = name.clone();
        let bytes = blocking(move || outgoing.read(&wanted)).await??;
        let len = bytes.len() as u64;
        if self.size(&name).await? == Some(len) {
            return Ok(None);
        }
        self.put(&name, bytes).await?;
        Ok(Some(len))
    }

    /// How many packs and manifests a checkpoint of the bucket has there; `None` if one is not there.
    async fn count_if_whole(&self, there: &StoredCheckpoint) -> Result<Option<usize>, BucketError> {
        let names = stream::iter(needs(there));
        let sizes = names.map(|name| async move { self.size(&name).await }).buffer_unordered(AT_ONCE);
        let sizes: Vec<_> = sizes.try_collect().await?;
        Ok(sizes.iter().all(Option::is_some).then_some(sizes.len()))
    }

    /// What is there under this name must be this checkpoint, though perhaps in other packs.
    fn same(&self, name: &Name, file: &[u8], checkpoint: &Checkpoint) -> Result<StoredCheckpoint, BucketError> {
        let there = StoredCheckpoint::read(file).map_err(|why| IntakeError::format(name, why))?;
        if there.checkpoint == *checkpoint {
            return Ok(there);
        }
        Err(BucketError::Exists { checkpoint: checkpoint.name.clone(), bucket: self.name.clone() })
    }
}

/// The packs and manifests of a checkpoint, each once.
pub(super) fn needs(stored: &StoredCheckpoint) -> Vec<Name> {
    let manifests: BTreeSet<ManifestId> = stored.checkpoint.manifests().collect();
    let packs = stored.packs.iter().map(|id| Name::Pack(*id));
    packs.chain(manifests.into_iter().map(Name::Manifest)).collect()
}

/// Runs what waits for the disk where that holds up nobody else.
pub(super) async fn blocking<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Result<T, BucketError> {
    // It ends otherwise only where the runtime does, or where it panics, which is told elsewhere.
    tokio::task::spawn_blocking(body).await.map_err(|_| BucketError::Interrupted)
}

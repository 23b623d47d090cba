//! Out of a bucket: the packs and manifests that are not here, and then the checkpoint.

use super::AT_ONCE;
use super::error::BucketError;
use super::objects::Bucket;
use super::push::{blocking, needs};
use crate::format::Checkpoint;
use crate::store::Store;
use crate::transfer::intake::{Intake, IntakeError};
use crate::transfer::names::Name;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::sync::Arc;

/// What was fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Packs and manifests that were fetched.
    pub fetched: usize,
    /// Those that were here.
    pub here: usize,
    /// How much was fetched, in bytes.
    pub bytes: u64,
}

/// Everything that a checkpoint needs, here. Without [`Fetched::keep`] it is garbage.
#[must_use]
pub struct Fetched {
    intake: Arc<Intake>,
    checkpoint: Checkpoint,
    pulled: Pulled,
}

impl Fetched {
    /// Makes it a checkpoint of the store. When this returns, it is there in full and durable; if it is dropped meanwhile,
    /// that may still happen.
    pub async fn keep(self) -> Result<Pulled, BucketError> {
        blocking(move || self.intake.checkpoint(&self.checkpoint)).await??;
        Ok(self.pulled)
    }
}

impl Bucket {
    /// Fetches a checkpoint and everything it needs, and keeps it.
    pub async fn pull(&self, store: &Store, checkpoint: &str) -> Result<Pulled, BucketError> {
        self.fetch(store, checkpoint).await?.keep().await
    }

    /// Fetches a checkpoint and everything it needs, checking every byte before it is believed. What is here is not
    /// fetched again, as long as garbage collection does not take what a pull that was cut off left. May be dropped
    /// meanwhile.
    pub async fn fetch(&self, store: &Store, checkpoint: &str) -> Result<Fetched, BucketError> {
        let stored = self.stored_checkpoint(checkpoint).await?;
        let here = store.clone();
        let intake = Arc::new(blocking(move || Intake::begin(&here)).await??);
        let needs = needs(&stored);
        self.meter.expect(needs.len());
        let pulled = stream::iter(needs)
            .map(|name| self.pull_file(&intake, name, checkpoint))
            .buffer_unordered(AT_ONCE)
            .try_fold(Pulled::default(), |sum, fetched| async move {
                self.meter.one_more();
                Ok(match fetched {
                    Some(len) => Pulled { fetched: sum.fetched + 1, bytes: sum.bytes + len, ..sum },
                    None => Pulled { here: sum.here + 1, ..sum },
                })
            })
            .await?;
        for id in stored.checkpoint.manifests() {
            // A hint. Whatever keeps it from coming, the checkpoint is as good without it.
            if let Ok(Some(file)) = self.get(&Name::WorkingSet(id)).await {
                let intake = intake.clone();
                let _ = blocking(move || intake.working_set(id, &file)).await?;
            }
        }
        Ok(Fetched { intake, checkpoint: stored.checkpoint, pulled })
    }

    /// Fetches a file unless it is here. Its length, if it was fetched.
    async fn pull_file(&self, intake: &Arc<Intake>, name: Name, checkpoint: &str) -> Result<Option<u64>, BucketError> {
        let (here, wanted) = (intake.clone(), name.clone());
        if blocking(move || here.has(&wanted)).await?? {
            return Ok(None);
        }
        let Some(bytes) = self.get(&name).await? else {
            return Err(IntakeError::Incomplete { checkpoint: checkpoint.to_owned(), what: name.to_string() }.into());
        };
        let (len, intake) = (bytes.len() as u64, intake.clone());
        blocking(move || intake.take(&name, &bytes)).await??;
        Ok(Some(len))
    }
}

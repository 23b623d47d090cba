//! Taking back the space of a bucket that no checkpoint in it needs.

use super::AT_ONCE;
use super::error::BucketError;
use super::objects::Bucket;
use super::push::needs;
use crate::transfer::names::Name;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::HashSet;

/// What was deleted from a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Packs, manifests and working sets.
    pub objects: usize,
    /// How long they were together, in bytes.
    pub bytes: u64,
}

impl Bucket {
    /// Deletes the packs, manifests and working sets that no checkpoint in it needs. If one checkpoint cannot be read,
    /// nothing is deleted.
    ///
    /// A bucket has no locks: nobody may push into it meanwhile, or what a push relies on may go, and a push that was cut
    /// off begins anew. Whoever reads or pulls a checkpoint that stays is not disturbed.
    pub async fn collect(&self) -> Result<Swept, BucketError> {
        let mut needed = HashSet::new();
        for name in self.checkpoints().await? {
            let stored = self.stored_checkpoint(&name).await?;
            needed.extend(needs(&stored).iter().map(ToString::to_string));
            needed.extend(stored.checkpoint.manifests().map(|id| Name::WorkingSet(id).to_string()));
        }
        let mut garbage = Vec::new();
        for folder in ["packs", "manifests", "working-sets"] {
            let listed = self.list(folder).await?;
            garbage.extend(listed.into_iter().filter(|(name, _)| !needed.contains(&name.to_string())));
        }
        stream::iter(garbage)
            .map(|(name, bytes)| async move { self.delete(&name).await.map(|()| bytes) })
            .buffer_unordered(AT_ONCE)
            .try_fold(Swept::default(), |sum, bytes| async move {
                Ok(Swept { objects: sum.objects + 1, bytes: sum.bytes + bytes })
            })
            .await
    }
}

//! A checkpoint is sent to a bucket: what the store has of it, and then what the daemon knows of it, by which it is found.

use super::super::Fleet;
use super::super::error::{FleetError, cannot};
use super::bucket;
use super::description::Description;
use super::store::Kept;
use pando_wire::api::{PushRequest, Pushed};

impl Fleet {
    /// Sends a checkpoint that is stored. May be dropped meanwhile: what was sent is not sent again the next time, and the
    /// checkpoint is offered when all of it is there. It may be removed meanwhile, too. `watcher` is what its progress is
    /// called.
    pub(crate) async fn push_checkpoint(
        &self,
        name: &str,
        request: PushRequest,
        watcher: Option<String>,
    ) -> Result<Pushed, FleetError> {
        let checkpoint = self.find_checkpoint(name).await?;
        if self.kept(&checkpoint.id).await? != Kept::Whole {
            return Err(FleetError::Unstored { name: checkpoint.name, wanted: "push" });
        }
        let failed = bucket::failed("push", &checkpoint.name);
        let bucket = bucket::open(request.bucket, failed.clone()).await?.watched_by(self.meter(watcher));
        let store = self.with_store(|store| Ok(store.clone())).await?;
        let description = Description::of(checkpoint);
        let bytes = description.write().map_err(cannot("describe the checkpoint"))?;
        let Description { id, name, .. } = &description;
        let pushed = bucket.push(&store, id).await.map_err(&failed)?;
        bucket.describe(name, id, bytes).await.map_err(&failed)?;
        tracing::info!(checkpoint = id, name, bytes = pushed.bytes, "pushed");
        Ok(Pushed { sent: pushed.sent as u64, sent_bytes: pushed.bytes, there: pushed.there as u64 })
    }
}

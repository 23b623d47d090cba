//! A checkpoint is fetched from a bucket. As one that is imported, it has a row before the store has anything of it.

use super::super::error::FleetError;
use super::super::{Fleet, names};
use super::bucket;
use super::description::{Description, DescriptionError, is_id};
use super::import::logical_bytes;
use crate::db::{self, Outcome, Sizes};
use pando_store::{Bucket, BucketError};
use pando_wire::api::{PullRequest, Pulled};

impl Fleet {
    /// Fetches a checkpoint, under its own name or another one, unless `gone` comes first. It is here in full then, or not
    /// at all; what was fetched of one that did not come is garbage in the store. `watcher` is what its progress is called.
    pub(crate) async fn pull_checkpoint(
        &self,
        request: PullRequest,
        watcher: Option<String>,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<Pulled, FleetError> {
        let PullRequest { bucket, checkpoint: wanted, name } = request;
        name.iter().chain((!is_id(&wanted)).then_some(&wanted)).try_for_each(|name| names::check(name))?;
        tokio::pin!(gone);
        let failed = bucket::failed("pull", &wanted);
        let bucket = bucket::open(bucket, failed.clone()).await?.watched_by(self.meter(watcher));
        let described = tokio::select! {
            found = find(&bucket, &wanted) => found.map_err(&failed)?,
            () = &mut gone => return Err(FleetError::Abandoned),
        };
        let description = described.read()?;
        let _turn = self.0.turns.vm(&description.id).await;
        let checkpoint = self.reserve(description, name).await?;
        let fetched = self.fetch(&bucket, &checkpoint, gone, failed).await;
        let pulled = match fetched {
            Ok(pulled) => pulled,
            Err(error) => {
                if let Err(error) = self.forget(&checkpoint).await {
                    tracing::error!(checkpoint = checkpoint.id, error = error.in_one_line(), "cannot remove it");
                }
                return Err(error);
            }
        };
        tracing::info!(checkpoint = checkpoint.id, name = checkpoint.name, bytes = pulled.bytes, "pulled");
        Ok(Pulled {
            checkpoint: self.told(self.find_checkpoint(&checkpoint.id).await?),
            fetched: pulled.fetched as u64,
            fetched_bytes: pulled.bytes,
            here: pulled.here as u64,
        })
    }

    /// Has the store fetch `checkpoint`, and holds it against what was said of it.
    async fn fetch(
        &self,
        bucket: &Bucket,
        checkpoint: &db::Checkpoint,
        gone: impl Future<Output = ()>,
        failed: impl Fn(BucketError) -> FleetError,
    ) -> Result<pando_store::Pulled, FleetError> {
        let (id, memory_bytes) = (checkpoint.id.clone(), checkpoint.memory_bytes);
        let store = self.with_store(|store| Ok(store.clone())).await?;
        let fetched = tokio::select! {
            fetched = bucket.fetch(&store, &id) => fetched.map_err(&failed)?,
            () = gone => return Err(FleetError::Abandoned),
        };
        // Not to be dropped half-way: the store might keep it after it was forgotten.
        let pulled = fetched.keep().await.map_err(&failed)?;
        let logical = self.with_store(move |store| logical_bytes(store, &id, memory_bytes)).await?;
        let sizes = Sizes { logical_bytes: Some(logical), stored_bytes: Some(pulled.bytes), hashed_bytes: None };
        self.0.db.checkpoint_became(checkpoint, Outcome::Stored(sizes)).await?;
        Ok(pulled)
    }
}

/// A checkpoint's id, and what describes it.
pub(super) struct Described {
    id: String,
    bytes: Vec<u8>,
}

impl Described {
    /// What it says, which must be of this checkpoint.
    pub(super) fn read(&self) -> Result<Description, DescriptionError> {
        let description = Description::read_whole(&self.bytes)?;
        if description.id == self.id { Ok(description) } else { Err(DescriptionError::Damaged) }
    }
}

/// What describes the checkpoint of this name or id. Of several of that name, the one that was made last: ids begin with
/// the time.
pub(super) async fn find(bucket: &Bucket, wanted: &str) -> Result<Described, BucketError> {
    let newest = bucket.described(wanted).await?.into_iter().rfind(|id| is_id(id));
    let found = match newest {
        Some(id) => Some((wanted.to_owned(), id)),
        None if is_id(wanted) => bucket.names_of(wanted).await?.pop().map(|name| (name, wanted.to_owned())),
        None => None,
    };
    let absent = || BucketError::Absent { checkpoint: wanted.to_owned(), bucket: bucket.to_string() };
    let (name, id) = found.ok_or_else(absent)?;
    let bytes = bucket.description(&name, &id).await?.ok_or_else(absent)?;
    Ok(Described { id, bytes })
}

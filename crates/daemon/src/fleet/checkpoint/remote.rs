//! VMs from a checkpoint that stays in a bucket. Neither the store nor the database learns of it: each VM's page server
//! reads it there, through a cache that they have in common, until all of the VM's memory is here. The keys are with the
//! page servers for as long as that, and nowhere else.

use super::super::Fleet;
use super::super::error::FleetError;
use super::super::fork::check_count;
use super::super::names;
use super::bucket;
use super::description::{DescriptionError, is_id};
use super::pull::find;
use super::run::model;
use crate::db::Checkpoint;
use pando_store::PAGE_BYTES;
use pando_wire::api::{BucketRunRequest, CheckpointRunReport};
use pando_wire::pages::Remote;
use std::time::Instant;

/// How much of what was fetched is kept for others, where nobody says otherwise.
const CACHE_BYTES: u64 = 4 << 30;
/// The least: what all threads of a page server fetch at once is far less, and must not go before it was read.
const LEAST_CACHE_BYTES: u64 = 256 << 20;

impl Fleet {
    /// Runs VMs from a checkpoint of a bucket. The answer tells of each, also of those that failed.
    pub(crate) async fn run_from_bucket(&self, request: BucketRunRequest) -> Result<CheckpointRunReport, FleetError> {
        let arrival = Instant::now();
        let BucketRunRequest { bucket, checkpoint: wanted, children, cache_bytes } = request;
        check_count(children.len())?;
        if !is_id(&wanted) {
            names::check(&wanted)?;
        }
        let cache_bytes = cache_bytes.unwrap_or(CACHE_BYTES);
        if cache_bytes < LEAST_CACHE_BYTES {
            return Err(FleetError::Invalid(format!(
                "a cache of {cache_bytes} bytes is too small: 256 MiB are needed"
            )));
        }
        let remote = Remote { bucket: bucket.clone(), cache_bytes };
        let (checkpoint, disk_bytes) = self.look_into_bucket(bucket, &wanted).await?;
        self.room_for_cold(&checkpoint, children.len())?;
        // Until there are VMs that need it, the image could be removed.
        let images = self.0.turns.images().await;
        if self.0.db.image(&checkpoint.image).await?.is_none() {
            let Checkpoint { name: checkpoint, image, .. } = checkpoint;
            return Err(FleetError::NeedsImage { checkpoint, image, wanted: "run" });
        }
        let (shared, children) = self.prepare(&model(&checkpoint), &[], children).await?;
        drop(images);
        self.wake_all(checkpoint, disk_bytes, Some(remote), shared, children, arrival).await
    }

    /// What the checkpoint of this name or id would be here, and how large its disk is, in bytes.
    async fn look_into_bucket(
        &self,
        bucket: pando_wire::api::Bucket,
        wanted: &str,
    ) -> Result<(Checkpoint, u64), FleetError> {
        let failed = bucket::failed("run", wanted);
        let bucket = bucket::open(bucket, failed.clone()).await?;
        let description = find(&bucket, wanted).await.map_err(&failed)?.read()?;
        let disks = bucket.disk_pages(&description.id).await.map_err(&failed)?;
        let [pages] = disks[..] else { return Err(DescriptionError::Damaged.into()) };
        let disk_bytes = pages.checked_mul(PAGE_BYTES as u64).ok_or(DescriptionError::Damaged)?;
        let name = description.name.clone();
        Ok((description.arriving(name, self.0.db.owner().to_owned()), disk_bytes))
    }
}

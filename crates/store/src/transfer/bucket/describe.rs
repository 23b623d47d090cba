//! What whoever keeps a checkpoint knows of it, beside it in a bucket: bytes that mean nothing to the store, under the
//! name that people have for the checkpoint. `descriptions/NAME/CHECKPOINT`, written after the checkpoint.

use super::error::BucketError;
use super::objects::Bucket;
use crate::format::check_name;
use crate::store::CheckpointError;

/// The longest description that is read, in bytes: it is held in memory.
const MAX_BYTES: u64 = 8 << 20;

impl Bucket {
    /// Says of a checkpoint of the bucket what is known of it, under a name that need not be its own. What was said under
    /// that name is replaced.
    pub async fn describe(&self, name: &str, checkpoint: &str, description: Vec<u8>) -> Result<(), BucketError> {
        check_name(name).map_err(CheckpointError::from)?;
        self.put_object(&object(name, checkpoint), description).await
    }

    /// The checkpoints that are described under this name, sorted.
    pub async fn described(&self, name: &str) -> Result<Vec<String>, BucketError> {
        check_name(name).map_err(CheckpointError::from)?;
        // Who lists is told less well than who reads that the bucket or the keys are wrong.
        if !self.is_store().await? {
            return Err(BucketError::NoStore(self.to_string()));
        }
        let listed = self.list_objects(&format!("{FOLDER}/{name}")).await?;
        let checkpoint = |object: &object_store::ObjectMeta| object.location.filename().map(str::to_owned);
        let mut checkpoints: Vec<_> = listed.iter().filter_map(checkpoint).collect();
        checkpoints.sort_unstable();
        Ok(checkpoints)
    }

    /// What was said of a checkpoint under this name, if anything.
    pub async fn description(&self, name: &str, checkpoint: &str) -> Result<Option<Vec<u8>>, BucketError> {
        check_name(name).and(check_name(checkpoint)).map_err(CheckpointError::from)?;
        self.get_object(&object(name, checkpoint), MAX_BYTES).await
    }

    /// The names that a checkpoint is described under, sorted.
    pub async fn names_of(&self, checkpoint: &str) -> Result<Vec<String>, BucketError> {
        let listed = self.list_objects(FOLDER).await?;
        let is_of_it = listed.iter().filter(|object| object.location.filename() == Some(checkpoint));
        let name = |object: &object_store::ObjectMeta| Some(object.location.parts().rev().nth(1)?.as_ref().to_owned());
        let mut names: Vec<_> = is_of_it.filter_map(name).collect();
        names.sort_unstable();
        Ok(names)
    }
}

const FOLDER: &str = "descriptions";

pub(super) fn object(name: &str, checkpoint: &str) -> String {
    format!("{FOLDER}/{name}/{checkpoint}")
}

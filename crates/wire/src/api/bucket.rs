//! Checkpoints in a bucket, there and back.

use super::checkpoint::Checkpoint;
use super::fork::ChildSpec;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// A bucket of an S3-compatible store, and as whom to talk to it. The daemon forgets it with the request, and it prints
/// without the keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Which, and what the names of all objects begin with: `s3://bucket/prefix`.
    pub url: String,
    /// The server as the daemon reaches it, such as `http://127.0.0.1:9000`; Amazon's when absent.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region, `us-east-1` when absent; most servers but Amazon's do not care.
    #[serde(default)]
    pub region: Option<String>,
    /// Who asks.
    pub access_key_id: String,
    /// What proves it.
    pub secret_access_key: String,
    /// What comes with temporary keys.
    #[serde(default)]
    pub session_token: Option<String>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, endpoint, region, .. } = self;
        f.debug_struct("Bucket")
            .field("url", url)
            .field("endpoint", endpoint)
            .field("region", region)
            .finish_non_exhaustive()
    }
}

/// A checkpoint to send to a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushRequest {
    /// Where to.
    pub bucket: Bucket,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pushed {
    /// Packs and layers that were sent.
    pub sent: u64,
    /// How long they are together, in bytes.
    pub sent_bytes: u64,
    /// Packs and layers that were there already.
    pub there: u64,
}

/// A checkpoint to fetch from a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// Where from.
    pub bucket: Bucket,
    /// The name that it had where it was pushed, or its id. Of several of that name, the one that was made last.
    pub checkpoint: String,
    /// Its name here; the one that it had when absent.
    #[serde(default)]
    pub name: Option<String>,
}

/// VMs to run from a checkpoint that stays in a bucket. The keys stay with the processes that read it until all memory of
/// the VMs has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketRunRequest {
    /// Where from.
    pub bucket: Bucket,
    /// The name that it had where it was pushed, or its id. Of several of that name, the one that was made last.
    pub checkpoint: String,
    /// The VMs, in order; 1 to 250.
    pub children: Vec<ChildSpec>,
    /// How much of what is fetched is kept on disk for others, in bytes, at least 256 MiB; 4 GiB when absent.
    #[serde(default)]
    pub cache_bytes: Option<u64>,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pulled {
    /// The checkpoint, as it is here.
    pub checkpoint: Checkpoint,
    /// Packs and layers that were fetched.
    pub fetched: u64,
    /// How long they are together, in bytes.
    pub fetched_bytes: u64,
    /// Packs and layers that were here already.
    pub here: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_printed() {
        let bucket = Bucket {
            url: "s3://bucket".into(),
            endpoint: None,
            region: None,
            access_key_id: "AKID".into(),
            secret_access_key: "SECRET".into(),
            session_token: Some("TOKEN".into()),
        };
        let printed = format!("{:?}", PushRequest { bucket });
        assert!(printed.contains("s3://bucket"));
        assert!(!["AKID", "SECRET", "TOKEN"].iter().any(|key| printed.contains(key)), "{printed}");
    }
}

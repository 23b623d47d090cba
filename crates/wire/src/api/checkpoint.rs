//! VMs as they were at one instant.

use super::fork::ChildReport;
use super::vm::Usage;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A checkpoint to make of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// Its name, as a VM's can be; one is made from the VM's when absent.
    #[serde(default)]
    pub name: Option<String>,
}

/// A VM as it was at one instant, for others to begin from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// UUIDv7, unique among all daemons.
    pub id: String,
    /// Unique among the checkpoints of this daemon.
    pub name: String,
    /// The name that the VM had then.
    pub vm: String,
    /// The id of that VM, also after it was removed.
    pub vm_id: String,
    /// Whether it would survive its seed.
    pub state: CheckpointState,
    /// Why it could not be stored.
    pub problem: Option<String>,
    /// The image that the VM's root disk began from.
    pub image: String,
    /// vCPUs.
    pub cpus: u8,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// Process id of its seed while it has one: the VM's memory, frozen, of which forks are made. Without one, VMs begin
    /// from the store.
    pub seed: Option<u32>,
    /// The seed's memory on the host, while there is one.
    pub usage: Option<Usage>,
    /// Its RAM and disk as the guest sees them, in bytes, once it is stored.
    pub logical_bytes: Option<u64>,
    /// What it added to the store, in bytes.
    pub stored_bytes: Option<u64>,
    /// What of its RAM and disk was read and hashed to store it, in bytes: not what is zero, nor what is as in an earlier
    /// checkpoint of the VM. Null where that is not known, as of one that was stored elsewhere.
    pub hashed_bytes: Option<u64>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
}

/// Whether a checkpoint would survive its seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointState {
    /// Not yet: it is being written into the store.
    Saving,
    /// Yes.
    Stored,
    /// No: it could not be written.
    Failed,
}

/// How VMs were run from a checkpoint. One that failed does not fail the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointRunReport {
    /// The checkpoint's name.
    pub checkpoint: String,
    /// Whether they are forks of its seed; otherwise their memory comes from the store as they touch it.
    pub warm: bool,
    /// From the arrival of the request until records, files and sockets were there, in microseconds.
    pub prepare_us: u64,
    /// Then `fork(2)` of the seed, in microseconds; 0 without a seed.
    pub fork_us: u64,
    /// One entry per VM asked for, in order.
    pub children: Vec<ChildReport>,
}

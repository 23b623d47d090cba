//! What VMs begin from.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An image that VMs can begin from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// blake3 of the disk.
    pub digest: String,
    /// Size of the disk.
    pub size_bytes: u64,
}

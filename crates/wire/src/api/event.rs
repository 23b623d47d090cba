//! What happened.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Counts up; `?after=` continues behind it.
    pub seq: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Whose.
    pub vm: String,
    /// `created`, `running`, `forked`, `checkpointed`, `stored` and `unstored` (a checkpoint of it), `paused`, `resumed`,
    /// `hibernated` (with the detail `idle` when nobody asked for it), `stopped`, `removed`.
    pub kind: String,
    /// More, for people.
    pub detail: String,
}

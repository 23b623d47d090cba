//! What any route may answer, and which daemon answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// [`Error::error`] of a 404 that is about the route and not about a VM or an image.
pub const NO_ROUTE: &str = "there is no such route";

/// Every answer that is not a success carries this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// One sentence: what could not be done.
    pub error: String,
    /// Its causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<String>,
}

/// What answers at `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// The daemon's version.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
}

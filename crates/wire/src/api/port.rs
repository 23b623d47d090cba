//! What listens in a VM, under a URL of its own.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// A port of a VM that can be seen from outside.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// The VM's name.
    pub vm: String,
    /// The port in the VM.
    pub port: u16,
    /// Whether everybody who reaches the daemon's port for previews is let in, or who has the token.
    pub public: bool,
    /// Where it can be seen, with the token if that is needed. Absent when the daemon serves no previews.
    pub url: Option<String>,
    /// What lets one in, as the header `pando-token`. Absent when everybody is.
    pub token: Option<String>,
    /// Why there is no URL.
    pub problem: Option<String>,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, port, public, problem, .. } = self;
        let mut shown = f.debug_struct("Port");
        shown.field("vm", vm).field("port", port).field("public", public).field("problem", problem);
        shown.finish_non_exhaustive()
    }
}

/// How a port is to be seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortRequest {
    /// By everybody, or by who has the token. When absent, as it was; at first by who has the token.
    #[serde(default)]
    pub public: Option<bool>,
}

//! What listens in a VM, under a URL of its own.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// A port of a VM that can be seen from outside: opened as a preview, or published. One that is both is listed twice.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// The VM's name.
    pub vm: String,
    /// The port in the VM.
    pub port: u16,
    /// Whether everybody who reaches the daemon's port for previews is let in, or who has the token. Of a published port,
    /// everybody who reaches the host's.
    pub public: bool,
    /// Where it can be seen, with the token if that is needed. Absent when the daemon serves no previews, and of a published
    /// port.
    pub url: Option<String>,
    /// What lets one in, as the header `pando-token`. Absent when everybody is.
    pub token: Option<String>,
    /// Of a published port, the address and port of the host that it is published at, such as `127.0.0.1:8080`.
    #[serde(default)]
    pub host: Option<String>,
    /// Why there is no URL, or why nobody is let in at the host's port just now.
    pub problem: Option<String>,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, port, public, host, problem, .. } = self;
        let mut shown = f.debug_struct("Port");
        shown.field("vm", vm).field("port", port).field("public", public).field("host", host).field("problem", problem);
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

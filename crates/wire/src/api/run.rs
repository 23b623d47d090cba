//! A VM to create and boot.

use super::network::NetworkRequest;
use super::publish::Publish;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A VM to create and boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Its name: 1 to 63 of `a-z`, `0-9`, `-` and `.`, beginning with a letter or digit; one is made up when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Digest of an image that was imported before.
    pub image: String,
    /// vCPUs, 1 to 32.
    #[serde(default = "one")]
    pub cpus: u8,
    /// RAM in bytes, 128 MiB to 64 GiB, rounded up to 2 MiB.
    #[serde(default = "default_memory")]
    pub memory_bytes: u64,
    /// Size of the root disk in bytes; grown from the image's size when larger.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// The command and its arguments; nothing is started when empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Environment of the command and of every `exec`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory of the command.
    #[serde(default)]
    pub cwd: Option<String>,
    /// User of the command: a name in the image's `/etc/passwd` or `uid[:gid]`.
    #[serde(default)]
    pub user: Option<String>,
    /// Path of a kernel on the daemon's host, `bzImage` or ELF; Debian's cloud kernel when absent.
    #[serde(default)]
    pub kernel: Option<String>,
    /// After how many milliseconds without use it hibernates by itself, at least 1000; never when 0, as the setting
    /// `idle-timeout` says when absent. Its forks are as it is.
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
    /// What its network reaches. Its forks are as it is.
    #[serde(default)]
    pub network: NetworkRequest,
    /// Ports of the host that are to be ports of it, 64 at most. Its forks have none.
    #[serde(default)]
    pub publish: Vec<Publish>,
}

fn one() -> u8 {
    1
}

fn default_memory() -> u64 {
    512 << 20
}

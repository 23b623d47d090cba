//! A VM, as the daemon sees it.

use super::network::{Network, Traffic};
use super::publish::Published;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A VM as the daemon sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// UUIDv7, unique among all daemons.
    pub id: String,
    /// Unique in this daemon.
    pub name: String,
    /// Where in its life it is.
    pub state: State,
    /// Why it stopped, when it did; while it runs, why nothing can be asked of it, when that is so.
    pub ending: Option<String>,
    /// The id of the VM that it was forked from, also after that one was removed.
    pub parent: Option<String>,
    /// The image that its root disk began from.
    pub image: String,
    /// vCPUs.
    pub cpus: u8,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// The command that it was started with.
    pub command: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// Process id of its monitor while it runs.
    pub pid: Option<u32>,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: i64,
    /// The daemon that owns it.
    pub owner: String,
    /// Counts the owners; a write by a stale one is lost.
    pub epoch: i64,
    /// Its memory on the host, when asked for one VM and it runs.
    pub usage: Option<Usage>,
    /// After how many milliseconds without use it hibernates by itself; never when 0, as the setting `idle-timeout` says
    /// when absent.
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
    /// Why it does not hibernate though nobody uses it, when asked for one VM and that went wrong.
    #[serde(default)]
    pub sleepless: Option<String>,
    /// What its network reaches.
    #[serde(default)]
    pub network: Network,
    /// Why it has no network, in the answer to its creation: nobody said that it should have none, and none can be made.
    #[serde(default)]
    pub no_network: Option<String>,
    /// What passed its network, when asked for one VM, it runs, and that can be found out.
    #[serde(default)]
    pub traffic: Option<Traffic>,
    /// Ports of the host that are ports of it.
    #[serde(default)]
    pub published: Vec<Published>,
}

/// What a VM's memory costs (`smaps_rollup` of its monitor), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Resident: private and shared.
    pub rss_bytes: u64,
    /// Resident, each shared page divided by its sharers.
    pub pss_bytes: u64,
    /// Resident and nobody else's.
    pub private_bytes: u64,
}

/// Where in its life a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being booted or forked.
    Starting,
    /// Its vCPUs run.
    Running,
    /// It stands still.
    Paused,
    /// It has ended; its disk is kept until it is removed.
    Stopped,
    /// It sleeps in the store, memory and all, and has no process.
    Hibernated,
}

impl State {
    /// Whether a VM in this state has no monitor.
    pub fn is_at_rest(self) -> bool {
        matches!(self, Self::Stopped | Self::Hibernated)
    }
}

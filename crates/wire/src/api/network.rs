//! What a VM reaches.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What a VM's network reaches. Other VMs are out of reach in any case; the host's own addresses and link-local ones (those of
/// cloud metadata) unless `allow` has the word for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What is reached by default.
    #[serde(default)]
    pub mode: NetworkMode,
    /// Networks (`10.0.0.0/8`), addresses and names that it reaches, and then nothing else. `host` stands for the host's own
    /// addresses, `metadata` for 169.254.0.0/16: no network or address opens those.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Networks, addresses and names that it does not reach, also where `allow` has them.
    #[serde(default)]
    pub deny: Vec<String>,
    /// The most bytes a second in each direction; no limit when absent.
    #[serde(default)]
    pub rate_bytes: Option<u64>,
}

/// What a VM's network is to reach. See [`Network`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    /// What is reached by default. When absent: what the host reaches, if anything is allowed, denied or limited; else as the
    /// setting `net` says.
    #[serde(default)]
    pub mode: Option<NetworkMode>,
    /// See [`Network::allow`].
    #[serde(default)]
    pub allow: Vec<String>,
    /// See [`Network::deny`].
    #[serde(default)]
    pub deny: Vec<String>,
    /// See [`Network::rate_bytes`].
    #[serde(default)]
    pub rate_bytes: Option<u64>,
}

/// What a VM's network reaches by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// It has no network device. Its ports are reached all the same, by its agent.
    #[default]
    None,
    /// What the host reaches, under the host's address.
    Nat,
    /// Nothing: it has a device and a gateway that lets nothing through.
    Isolated,
}

/// What passed a VM's network since the VM began, and what was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Its address on the host. Nobody reaches the VM by it; it tells VMs apart in the host's logs.
    pub outside: String,
    /// What the guest sent, also what was refused.
    pub sent: Passed,
    /// What the guest was sent, and got as far as its tap.
    pub received: Passed,
    /// How many packets were refused, by the name of the reason, as the daemon's documentation of networks lists them. Reasons
    /// that there was no occasion for are absent.
    pub refused: BTreeMap<String, u64>,
}

/// Packets in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Passed {
    /// How many.
    pub packets: u64,
    /// Their bytes, Ethernet headers included.
    pub bytes: u64,
}

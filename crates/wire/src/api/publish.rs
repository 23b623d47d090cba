//! TCP ports of the host that are ports of a VM.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use utoipa::ToSchema;

/// The most ports that are published for one VM.
pub const MAX_PUBLISHED: usize = 64;

/// A TCP port of the host that is to be a port of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The host's address, 127.0.0.1 when absent; 0.0.0.0 for all that it has.
    #[serde(default = "loopback")]
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The host's port. A free one is chosen when 0 or absent, and is kept as long as there is the VM.
    #[serde(default)]
    pub host_port: u16,
    /// The port in the VM, 1 to 65535.
    pub guest_port: u16,
}

/// A TCP port of the host that is a port of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Published {
    /// The host's address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The port in the VM.
    pub guest_port: u16,
    /// Why nobody is let in just now. Absent when the daemon listens there.
    pub problem: Option<String>,
}

impl Published {
    /// Where of the host it is.
    pub fn host(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.host_port)
    }
}

/// `127.0.0.1:8080 -> 80`
impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.host(), self.guest_port)
    }
}

fn loopback() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

impl Publish {
    /// A port of the host's loopback.
    pub fn on_loopback(host_port: u16, guest_port: u16) -> Self {
        Self { address: loopback(), host_port, guest_port }
    }
}

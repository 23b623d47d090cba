//! What every guest with a network finds inside: the same in all of them, so that a fork's child may keep what it has.
//!
//! ```text
//! guest: eth0 192.168.241.2/30 ──► tap0 192.168.241.1: gateway, and who answers questions for names
//! ```

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// The hardware address of every guest: locally administered, "PANDO" behind that.
pub const MAC: [u8; 6] = [0x02, b'P', b'A', b'N', b'D', b'O'];

/// The most queue pairs of a network device: a guest with several vCPUs has one for each, up to this many.
pub const MAX_QUEUE_PAIRS: u8 = 8;

/// How a guest sets up its network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its own address.
    pub address: Ipv4Addr,
    /// Bits of the network that it is in.
    pub prefix_len: u8,
    /// Where everything goes that is not in that network.
    pub gateway: Ipv4Addr,
    /// Who knows names.
    pub name_server: Ipv4Addr,
    /// The longest packet, in bytes.
    pub mtu: u16,
}

impl Network {
    /// That of every guest.
    pub const GUEST: Self = Self {
        address: Ipv4Addr::new(192, 168, 241, 2),
        prefix_len: 30,
        gateway: Ipv4Addr::new(192, 168, 241, 1),
        name_server: Ipv4Addr::new(192, 168, 241, 1),
        mtu: 1500,
    };
}

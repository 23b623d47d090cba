//! What passed a VM's network, and what was refused: in its namespace, and by the host.

use super::host::Host;
use super::netlink::Netlink;
use super::{NetworkError, TAP, UPLINK, make, nft, rules};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

/// What passed, and what was refused, since the VM began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The VM's address on this host.
    pub outside: Ipv4Addr,
    /// What the tap got of the guest, also what was refused then.
    pub sent: Passed,
    /// What the guest was given.
    pub received: Passed,
    /// How many packets were refused, by the name of the reason. Of the host's own reasons those alone that there were.
    pub refused: BTreeMap<String, u64>,
}

/// Packets, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Passed {
    /// How many.
    pub packets: u64,
    /// With their Ethernet headers.
    pub bytes: u64,
}

/// What the namespace that `queue`'s tap is in has seen, and what `host` has refused it.
pub(super) fn seen(queue: BorrowedFd<'_>, host: &Host) -> Result<Seen, NetworkError> {
    let mut seen = make::within(queue, || {
        let mut netlink = Netlink::open().map_err(failed)?;
        let (_, tap) = netlink.passed(TAP).map_err(failed)?;
        let (uplink, _) = netlink.passed(UPLINK).map_err(failed)?;
        Ok(Seen {
            outside: netlink.address(uplink).map_err(failed)?,
            sent: Passed { packets: tap.rx_packets, bytes: tap.rx_bytes },
            received: Passed { packets: tap.tx_packets, bytes: tap.tx_bytes },
            refused: nft::counters()?,
        })
    })?;
    let link = link_of(seen.outside);
    for (set, by_link) in nft::counted_by_link(&host.table)? {
        if let (Some(reason), Some(count)) = (set.strip_suffix(rules::BY), by_link.get(&link)) {
            seen.refused.insert(reason.to_owned(), *count);
        }
    }
    Ok(seen)
}

/// The bytes that came for each VM since its link was made, by the name of that link; of those that `host` knows.
pub(super) fn received(host: &Host) -> Result<HashMap<String, u64>, NetworkError> {
    let all = Netlink::open().and_then(|mut netlink| netlink.all_passed()).map_err(failed)?;
    let ours = all.into_iter().filter(|(link, _)| host.has(link));
    Ok(ours.map(|(link, passed)| (link.name, passed.tx_bytes)).collect()) // What the host sends, the VM receives.
}

/// The name of the host's link to the namespace that `queue`'s tap is in.
pub(super) fn link(queue: BorrowedFd<'_>) -> Result<String, NetworkError> {
    let outside = make::within(queue, || {
        let mut netlink = Netlink::open().map_err(failed)?;
        let uplink = netlink.index(UPLINK).map_err(failed)?;
        netlink.address(uplink).map_err(failed)
    })?;
    Ok(link_of(outside))
}

/// The name of the host's link to the VM with this address.
fn link_of(outside: Ipv4Addr) -> String {
    make::link_name(Ipv4Addr::from_bits(outside.to_bits() & !1)) // The pair's first.
}

fn failed(source: io::Error) -> NetworkError {
    NetworkError::Rtnetlink { wanted: "look at the links of a VM", source }
}

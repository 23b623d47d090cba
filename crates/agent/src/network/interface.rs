//! `lo`, `eth0`, its address and its route.

use super::netlink::{CREATE, Message, REPLACE, Socket, attributes, malformed};
use pando_wire::network::Network;
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const IFF_UP: u32 = 1;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// The loopback interface is the first of every network namespace.
const LOOPBACK: i32 = 1;

/// What a program expects an only interface to be called.
const NAME: &str = "eth0";

/// Why a guest has no network, or less of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InterfaceError {
    /// The host promised one.
    #[error("there is no interface with the address {}", .0.map(|byte| format!("{byte:02x}")).join(":"))]
    Missing([u8; 6]),
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What it was asked.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// For the kernel's refusal to do `what`.
fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> InterfaceError {
    move |source| InterfaceError::Kernel { what, source }
}

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    Socket::route()?.order_one(link(LOOPBACK, true))
}

/// Gives the interface whose hardware address is `mac` its name, its address and the default route.
pub(super) fn set_up(mac: [u8; 6], network: &Network) -> Result<(), InterfaceError> {
    let socket = Socket::route().map_err(cannot("ask for interfaces"))?;
    let (index, name) =
        find(&socket, mac).map_err(cannot("list the interfaces"))?.ok_or(InterfaceError::Missing(mac))?;
    // Before it is up, else it has an address by then. A kernel without IPv6 has no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let steps = [
        ("name it eth0", (name != NAME).then(|| link(index, false).attribute(IFLA_IFNAME, b"eth0\0"))),
        ("bring it up", Some(link(index, true).attribute(IFLA_MTU, &u32::from(network.mtu).to_ne_bytes()))),
        ("give it its address", Some(address(index, network))),
        ("set the default route", Some(default_route(index, network))),
    ];
    // Each is of use without the one before, or fails as well; the first failure says most.
    let failures = steps.into_iter().filter_map(|(what, message)| {
        let done = message.map_or(Ok(()), |message| socket.order_one(message));
        done.err().map(|source| InterfaceError::Kernel { what, source })
    });
    failures.reduce(|first, _| first).map_or(Ok(()), Err)
}

/// The interface whose hardware address is `mac`: number and name.
fn find(socket: &Socket, mac: [u8; 6]) -> io::Result<Option<(i32, String)>> {
    let mut found = None;
    socket.list(Message::new(RTM_GETLINK, 0, &[0; 16]), |link| {
        let (Some(fixed), Some(rest)) = (link.first_chunk::<16>(), link.get(16..)) else { return Err(malformed()) };
        let index = i32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        let (mut is_it, mut name) = (false, String::new());
        for attribute in attributes(rest) {
            match attribute? {
                (IFLA_ADDRESS, address) => is_it = address == mac,
                (IFLA_IFNAME, text) => name = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned(),
                _ => (),
            }
        }
        if is_it && found.is_none() {
            found = Some((index, name));
        }
        Ok(())
    })?;
    Ok(found)
}

/// All addresses of this thread's network namespace.
pub(super) fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut all = Vec::new();
    Socket::route()?.list(Message::new(RTM_GETADDR, 0, &[0; 8]), |address| {
        for attribute in attributes(address.get(8..).ok_or_else(malformed)?) {
            match attribute? {
                // With a peer, the other end's is IFA_ADDRESS, and our own is IFA_LOCAL. Without, only IPv4 has both.
                (IFA_LOCAL, bytes) => all.extend(address_of(bytes)),
                (IFA_ADDRESS, bytes) if address[0] == AF_INET6 => all.extend(address_of(bytes)),
                _ => (),
            }
        }
        Ok(())
    })?;
    Ok(all)
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
    v4().or_else(|| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()))
}

/// ```text
///  0        1   2      4       8       12       16
///  | family | 0 | type | index | flags | change |
/// ```
fn link(index: i32, up: bool) -> Message {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        fixed[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        fixed[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    Message::new(RTM_NEWLINK, 0, &fixed)
}

/// ```text
///  0        1            2       3       4       8
///  | family | prefix len | flags | scope | index |
/// ```
fn address(index: i32, network: &Network) -> Message {
    let mut fixed = [AF_INET, network.prefix_len, 0, 0, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    let hosts = u32::MAX.checked_shr(network.prefix_len.into()).unwrap_or(0);
    let broadcast = Ipv4Addr::from_bits(network.address.to_bits() | hosts);
    Message::new(RTM_NEWADDR, CREATE | REPLACE, &fixed)
        .attribute(IFA_LOCAL, &network.address.octets())
        .attribute(IFA_ADDRESS, &network.address.octets())
        .attribute(IFA_BROADCAST, &broadcast.octets())
}

/// ```text
///  0        1          2          3     4       5          6       7      8       12
///  | family | dest len | from len | tos | table | protocol | scope | type | flags |
/// ```
fn default_route(index: i32, network: &Network) -> Message {
    const MAIN: u8 = 254;
    const SET_AT_BOOT: u8 = 3;
    const UNICAST: u8 = 1;
    Message::new(RTM_NEWROUTE, CREATE | REPLACE, &[AF_INET, 0, 0, 0, MAIN, SET_AT_BOOT, 0, UNICAST, 0, 0, 0, 0])
        .attribute(RTA_GATEWAY, &network.gateway.octets())
        .attribute(RTA_OIF, &index.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::Machine;
    use pando_wire::network::MAC;
    use std::net::UdpSocket;

    #[test]
    fn the_interface_with_the_address_is_found_named_and_leads_outside() {
        let (Some(guest), Some(outside)) = (Machine::new(), Machine::new()) else { return };
        guest.wire("other", [2, 0, 0, 0, 0, 1], &outside, "unused");
        guest.wire("enp0s1", MAC, &outside, "tap0");
        outside.address("tap0", Network::GUEST.gateway, 30);
        outside.address("lo", Ipv4Addr::new(203, 0, 113, 7), 32);
        let network = Network { mtu: 1400, ..Network::GUEST };
        guest.within(|| set_up(MAC, &network).unwrap());

        let (flags, address, mtu) = guest.interface("eth0").unwrap();
        assert_eq!((flags & IFF_UP, &address[..], mtu), (IFF_UP, &MAC[..], 1400));
        assert!(guest.interface("enp0s1").is_none());
        assert_eq!(guest.interface("other").unwrap().0 & IFF_UP, 0, "another one was touched");
        assert_eq!(guest.within(|| fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").unwrap()), "1\n");
        assert_eq!(
            guest.within(|| addresses().unwrap()),
            ["127.0.0.1", "192.168.241.2", "::1"].map(|address| address.parse::<IpAddr>().unwrap())
        );
        // Behind the gateway, and back.
        let far = outside.within(|| UdpSocket::bind("203.0.113.7:9").unwrap());
        far.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        guest.within(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"abc", "203.0.113.7:9").unwrap());
        assert_eq!(far.recv_from(&mut [0; 8]).unwrap().1.ip(), network.address);
    }

    #[test]
    fn what_is_set_up_already_is_set_up_once_more() {
        let (Some(guest), Some(outside)) = (Machine::new(), Machine::new()) else { return };
        guest.wire("eth0", MAC, &outside, "tap0");
        guest.within(|| {
            set_up(MAC, &Network::GUEST).unwrap();
            set_up(MAC, &Network::GUEST).unwrap();
        });
    }

    #[test]
    fn an_interface_that_is_not_there_is_named_by_its_address() {
        let Some(guest) = Machine::new() else { return };
        let missing = guest.within(|| set_up(MAC, &Network::GUEST).unwrap_err());
        assert_eq!(missing.to_string(), "there is no interface with the address 02:50:41:4e:44:4f");
    }
}

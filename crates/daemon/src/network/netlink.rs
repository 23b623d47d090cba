//! rtnetlink, one request at a time: the socket is of the namespace that its thread was in when it was opened.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Stats64,
};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The main routing table, `RT_TABLE_MAIN`.
const MAIN_TABLE: u8 = 254;

/// The links, addresses and routes of one namespace.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// A link, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) group: u32,
}

/// The end of a veth pair that is in the host's namespace.
pub(super) struct Peer<'a> {
    pub(super) name: &'a str,
    pub(super) group: u32,
    pub(super) namespace: BorrowedFd<'a>,
}

impl Netlink {
    /// Those of the namespace that the calling thread is in.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of the link `name`.
    pub(super) fn index(&mut self, name: &str) -> io::Result<u32> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK)?;
        let link = answers.into_iter().find_map(link_of);
        link.map(|link| link.index).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The index of the link `name`, and what passed it.
    pub(super) fn passed(&mut self, name: &str) -> io::Result<(u32, Stats64)> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK)?;
        let passed = answers.into_iter().find_map(passed_of);
        passed.map(|(link, stats)| (link.index, stats)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// All links, and what passed each.
    pub(super) fn all_passed(&mut self) -> io::Result<Vec<(Link, Stats64)>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(passed_of).collect())
    }

    /// The first IPv4 address of the link with this index.
    pub(super) fn address(&mut self, index: u32) -> io::Result<Ipv4Addr> {
        let of_link = |(link, address)| (link == index).then_some(address);
        self.addresses()?.into_iter().find_map(of_link).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// All IPv4 addresses, each with the index of its link.
    pub(super) fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr)>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
        let address_of = |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => {
                let own = message.attributes.into_iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(IpAddr::V4(address)) => Some(address),
                    _ => None,
                });
                own.map(|address| (message.header.index, address))
            }
            _ => None,
        };
        Ok(answers.into_iter().filter_map(address_of).collect())
    }

    /// All links.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(link_of).collect())
    }

    /// Destinations of the IPv4 routes of all tables, addresses' own among them, and the link that each goes to.
    pub(super) fn routes(&mut self) -> io::Result<Vec<(Ipv4Addr, u8, Option<u32>)>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers = self.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP)?;
        let route_of = |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => {
                let (mut to, mut link) = (Ipv4Addr::UNSPECIFIED, None);
                for attribute in route.attributes {
                    match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(address)) => to = address,
                        RouteAttribute::Oif(index) => link = Some(index),
                        _ => (), // Neither tells where it leads.
                    }
                }
                Some((to, route.header.destination_prefix_length, link))
            }
            _ => None,
        };
        Ok(answers.into_iter().filter_map(route_of).collect())
    }

    /// Makes a veth pair: `name` here, and `peer`.
    pub(super) fn add_veth(&mut self, name: &str, peer: &Peer<'_>) -> io::Result<()> {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.name.to_owned()),
            LinkAttribute::Group(peer.group),
            LinkAttribute::NetNsFd(peer.namespace.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]),
        ];
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Gives a link that is down a hardware address.
    pub(super) fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Puts a link into a group.
    pub(super) fn set_group(&mut self, index: u32, group: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Group(group));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets a link up.
    pub(super) fn up(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Lets a link that is down have no queue of packets before its own.
    pub(super) fn without_queue(&mut self, index: u32) -> io::Result<()> {
        let mut message = TcMessage::default();
        message.header.index = index as i32; // Counted from 1.
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("noqueue".to_owned()));
        self.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Gives a link an address.
    pub(super) fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.index = index;
        let address = IpAddr::V4(address);
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Says for good who has `address` behind a link.
    pub(super) fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sends all that has no route of its own to `gateway`.
    pub(super) fn add_default_route(&mut self, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = MAIN_TABLE;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_ACK | flags).map(drop)
    }

    /// Sends a request and reads its answers up to the last.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (received, _) = self.socket.recv_from_full()?;
            if self.read(&received, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Takes the answers to the present request out of `received`; true behind the last.
    fn read(&self, mut received: &[u8], answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
        while !received.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(received).map_err(io::Error::other)?;
            let len = (answer.header.length as usize).next_multiple_of(4);
            received = received.get(len..).unwrap_or(&[]);
            if answer.header.sequence_number != self.sequence {
                continue; // Of a request that failed half-way.
            }
            match answer.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::InnerMessage(message) => answers.push(message),
                _ => (), // Nothing that was asked for.
            }
        }
        Ok(false)
    }
}

fn link_of(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else { return None };
    let mut link = Link { index: message.header.index, name: String::new(), group: 0 };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Group(group) => link.group = group,
            _ => (), // Dozens of others.
        }
    }
    Some(link)
}

fn passed_of(answer: RouteNetlinkMessage) -> Option<(Link, Stats64)> {
    let stats = match &answer {
        RouteNetlinkMessage::NewLink(message) => message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(*stats),
            _ => None,
        }),
        _ => None,
    };
    link_of(answer).zip(stats)
}

//! A guest without a VM: it reads and writes frames on a tap's queue.

use pando_wire::network::{MAC, Network};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, HardwareAddress,
    IpAddress, IpCidr, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
    UdpRepr,
};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant as Clock};

/// What stands before each frame, as nobody asked for another size.
const HEADER: usize = 10;
/// The gateway's hardware address, the same for all.
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x02, b'P', b'A', b'N', b'D', b'G'];
pub(crate) const OWN: Ipv4Addr = Network::GUEST.address;
pub(crate) const GATEWAY: Ipv4Addr = Network::GUEST.gateway;

/// A tap's queues, as a network card.
pub(crate) struct Tap {
    pub(crate) queues: Vec<OwnedFd>,
    /// All that ever arrived.
    pub(crate) seen: Vec<Vec<u8>>,
}

impl Tap {
    pub(crate) fn new(queues: Vec<OwnedFd>) -> Self {
        Self { queues, seen: Vec::new() }
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        let whole = [&[0; HEADER], frame].concat();
        rustix::io::write(&self.queues[0], &whole).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_536 + HEADER];
        for queue in &self.queues {
            if let Ok(len) = rustix::io::read(queue, &mut buffer) {
                let frame = buffer[HEADER..len].to_vec();
                self.seen.push(frame.clone());
                return Some(frame);
            }
        }
        None
    }

    /// The first frame that `wanted` makes something of, if one comes within `limit`.
    pub(crate) fn wait<T>(&mut self, limit: Duration, wanted: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let began = Clock::now();
        while began.elapsed() < limit {
            match self.receive() {
                Some(frame) => match wanted(&frame) {
                    Some(found) => return Some(found),
                    None => continue,
                },
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }
}

pub(crate) struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Sender<'a>(&'a Tap);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for Tap {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = Tap::receive(self)?;
        Some((Received(frame), Sender(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest with a TCP/IP of its own and one connection.
pub(crate) struct Guest {
    pub(crate) tap: Tap,
    interface: Interface,
    sockets: SocketSet<'static>,
    connection: SocketHandle,
    pub(crate) answer: Vec<u8>,
    asked: bool,
}

impl Guest {
    /// It begins to connect.
    pub(crate) fn connect(queues: Vec<OwnedFd>, to: (Ipv4Addr, u16), port: u16) -> Self {
        let mut tap = Tap::new(queues);
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut tap, Instant::now());
        let own = IpCidr::new(IpAddress::Ipv4(OWN), Network::GUEST.prefix_len);
        interface.update_ip_addrs(|addresses| addresses.push(own).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        let buffer = || tcp::SocketBuffer::new(vec![0; 16_384]);
        let mut sockets = SocketSet::new(Vec::new());
        let connection = sockets.add(tcp::Socket::new(buffer(), buffer()));
        sockets.get_mut::<tcp::Socket>(connection).connect(interface.context(), (to.0, to.1), port).unwrap();
        Self { tap, interface, sockets, connection, answer: Vec::new(), asked: false }
    }

    /// Does what there is to do: sends `question` once it is connected, and keeps what is answered. True at the answer's end.
    pub(crate) fn step(&mut self, question: &[u8]) -> bool {
        self.interface.poll(Instant::now(), &mut self.tap, &mut self.sockets);
        let socket = self.sockets.get_mut::<tcp::Socket>(self.connection);
        if socket.can_send() && !self.asked {
            socket.send_slice(question).unwrap();
            self.asked = true;
        }
        let answer = &mut self.answer;
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
        }
        self.asked && !socket.may_recv()
    }
}

/// An Ethernet frame.
pub(crate) fn frame(from: [u8; 6], kind: EthernetProtocol, content: &[u8]) -> Vec<u8> {
    let header =
        EthernetRepr { src_addr: EthernetAddress(from), dst_addr: EthernetAddress(GATEWAY_MAC), ethertype: kind };
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes.extend_from_slice(content);
    bytes
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, next_header: IpProtocol, content: &[u8]) -> Vec<u8> {
    let header = Ipv4Repr { src_addr: from, dst_addr: to, next_header, payload_len: content.len(), hop_limit: 64 };
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    bytes.extend_from_slice(content);
    bytes
}

/// A datagram from `from` in an IPv4 packet.
pub(crate) fn udp(from: Ipv4Addr, to: Ipv4Addr, port: u16, content: &[u8]) -> Vec<u8> {
    let header = UdpRepr { src_port: 4000, dst_port: port };
    let mut bytes = vec![0; header.header_len() + content.len()];
    header.emit(
        &mut UdpPacket::new_unchecked(&mut bytes),
        &IpAddress::Ipv4(from),
        &IpAddress::Ipv4(to),
        content.len(),
        |buffer| buffer.copy_from_slice(content),
        &ChecksumCapabilities::default(),
    );
    ipv4(from, to, IpProtocol::Udp, &bytes)
}

/// A TCP segment: the first of a connection, or one in the middle of it, with 7777 the next byte that is expected.
pub(crate) fn tcp_segment(to: Ipv4Addr, port: u16, is_first: bool) -> Vec<u8> {
    let header = TcpRepr {
        src_port: 4001,
        dst_port: port,
        control: if is_first { TcpControl::Syn } else { TcpControl::Psh },
        seq_number: TcpSeqNumber(5555),
        ack_number: (!is_first).then_some(TcpSeqNumber(7777)),
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: if is_first { b"" } else { b"stale" },
    };
    let mut bytes = vec![0; header.buffer_len()];
    let (from, target) = (IpAddress::Ipv4(OWN), IpAddress::Ipv4(to));
    header.emit(&mut TcpPacket::new_unchecked(&mut bytes), &from, &target, &ChecksumCapabilities::default());
    ipv4(OWN, to, IpProtocol::Tcp, &bytes)
}

/// A question for, or a claim about, the gateway's hardware address.
pub(crate) fn arp(operation: ArpOperation, source: Ipv4Addr) -> Vec<u8> {
    let header = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(MAC),
        source_protocol_addr: source,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: GATEWAY,
    };
    let mut bytes = vec![0; header.buffer_len()];
    header.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    frame(MAC, EthernetProtocol::Arp, &bytes)
}

/// Who a frame's IPv4 packet is from, its protocol, and what is in it.
pub(crate) fn packet(frame: &[u8]) -> Option<(Ipv4Addr, IpProtocol, Vec<u8>)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    Some((packet.src_addr(), packet.next_header(), packet.payload().to_vec()))
}

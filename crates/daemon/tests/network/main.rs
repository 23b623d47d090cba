//! Networks of VMs, with real packets. Guests are programs that read and write frames; host and internet are namespaces.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod daemon; // networks of a daemon's VMs
mod escape; // what a guest must not reach
mod guest; // a guest's side of a tap
mod holders; // what is left of networks when their holders are killed
mod life; // what is left of networks
#[path = "../support/mod.rs"]
mod support; // a daemon
mod world; // host and internet

use guest::{Guest, OWN, Tap, frame, packet, tcp_segment, udp};
use pando_daemon::network::{Networks, Policy, Reach};
use pando_sys::network_of_tap;
use pando_wire::network::MAC;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use smoltcp::wire::{EthernetProtocol, IpProtocol, TcpPacket};
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use world::{HOST, INTERNET, ONE, OTHER, block_on, inside, internet, networks, on_a_host};

/// Long enough for what comes, also when all tests run at once.
const SOON: Duration = Duration::from_secs(10);
/// How long nothing must come.
const NEVER: Duration = Duration::from_millis(300);

/// A socket that gets a copy of every packet in the namespace of a tap.
fn capture(queue: &OwnedFd) -> OwnedFd {
    let namespace = network_of_tap(queue.as_fd()).unwrap();
    inside(&namespace, || {
        let all = Protocol::from_raw(NonZeroU32::new(u32::from(3_u16.to_be())).unwrap()); // ETH_P_ALL
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(all)).unwrap()
    })
}

fn captured(socket: &OwnedFd) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 65_536];
    while let Ok((len, _)) = recv(socket, &mut buffer[..], RecvFlags::empty()) {
        packets.push(buffer[..len].to_vec());
    }
    packets
}

/// Everybody that this packet speaks of as `twin-…`.
fn twins_in(packet: &[u8]) -> Vec<String> {
    let text: String = packet.iter().map(|byte| char::from(*byte)).collect();
    text.match_indices("twin-").map(|(at, _)| text[at..].chars().take(7).collect()).collect()
}

#[test]
fn twenty_twins_talk_to_the_internet_at_once_and_none_sees_anothers_packets() {
    on_a_host(|| {
        let _internet = internet();
        let networks = networks();
        let name = |index: usize| format!("twin-{index:02}");
        let mut guests = Vec::new();
        for _ in 0..20 {
            let taken = block_on(networks.take(1, &Policy::default())).unwrap();
            let capture = capture(&taken.queues[0]);
            // The same address and the same port: from inside they are one and the same.
            guests.push((Guest::connect(taken.queues, (INTERNET, 80), 4242), capture));
        }
        let began = Instant::now();
        let mut is_done = vec![false; guests.len()];
        while is_done.contains(&false) {
            assert!(began.elapsed() < SOON, "{is_done:?}");
            for (index, (guest, _)) in guests.iter_mut().enumerate() {
                is_done[index] |= guest.step(name(index).as_bytes());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for (index, (guest, capture)) in guests.iter().enumerate() {
            let answer = String::from_utf8_lossy(&guest.answer);
            assert_eq!(answer, format!("{} from {HOST}", name(index)), "the internet knows the host alone");
            let packets = captured(capture);
            let seen: Vec<_> = packets.iter().chain(&guest.tap.seen).flat_map(|packet| twins_in(packet)).collect();
            assert!(seen.len() >= 4, "question and answer on two links: {seen:?}");
            assert!(seen.iter().all(|twin| *twin == name(index)), "{index} saw {seen:?}");
        }
    });
}

/// A guest after a fork goes on with connections of its parent's, of which its namespace has never heard.
#[test]
fn a_connection_of_before_the_fork_is_reset_at_once() {
    on_a_host(|| {
        let _internet = internet();
        let taken = block_on(networks().take(1, &Policy::default())).unwrap();
        let mut tap = Tap::new(taken.queues);
        let answer = |frame: &[u8]| {
            let (from, protocol, content) = packet(frame)?;
            let segment = TcpPacket::new_checked(&content[..]).ok().filter(|_| protocol == IpProtocol::Tcp)?;
            Some((from, segment.src_port(), segment.rst(), segment.syn(), segment.seq_number().0))
        };
        let began = Instant::now();
        tap.send(&frame(MAC, EthernetProtocol::Ipv4, &tcp_segment(INTERNET, 80, false)));
        assert_eq!(tap.wait(SOON, answer), Some((INTERNET, 80, true, false, 7777)));
        println!("reset after {:?}", began.elapsed());
        let refused = Networks::refused(tap.queues[0].as_fd()).unwrap();
        assert_eq!(refused["stale"], 1, "{refused:?}");
        // A new one from the same port is welcome.
        tap.send(&frame(MAC, EthernetProtocol::Ipv4, &tcp_segment(INTERNET, 80, true)));
        let (from, port, is_reset, is_accepted, _) = tap.wait(SOON, answer).unwrap();
        assert_eq!((from, port, is_reset, is_accepted), (INTERNET, 80, false, true));
    });
}

/// Sends a datagram to a port that answers; what comes back: the datagram, a refusal, or nothing.
fn ask(tap: &mut Tap, to: Ipv4Addr, port: u16) -> Option<&'static str> {
    ask_for(b"ask", tap, to, port)
}

/// As [`ask`], for an answer with this content.
fn ask_for(content: &[u8], tap: &mut Tap, to: Ipv4Addr, port: u16) -> Option<&'static str> {
    tap.send(&frame(MAC, EthernetProtocol::Ipv4, &udp(OWN, to, port, content)));
    tap.wait(SOON, |frame| match packet(frame)? {
        (from, IpProtocol::Udp, answer) if from == to && answer.ends_with(content) => Some("answer"),
        (_, IpProtocol::Icmp, content) if content[0] == 3 => Some("refusal"),
        _ => None,
    })
}

#[test]
fn a_policy_says_what_is_reached() {
    on_a_host(|| {
        let _internet = internet();
        let networks = networks();
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let reached = |policy: &Policy| {
            let taken = block_on(networks.take(1, policy)).unwrap();
            let mut tap = Tap::new(taken.queues);
            let answers = [(ONE, 7), (OTHER, 7), (INTERNET, 7), (guest::GATEWAY, 53)];
            let answers = answers.map(|(to, port)| ask(&mut tap, to, port) == Some("answer"));
            (answers, Networks::refused(tap.queues[0].as_fd()).unwrap())
        };
        let (all, _) = reached(&Policy::default());
        assert_eq!(all, [true; 4]);
        let (denied, refused) = reached(&Policy { deny: list(&["203.0.113.0/31"]), ..Policy::default() });
        assert_eq!((denied, refused["denied"]), ([false, true, true, true], 1));
        let allow = Policy { allow: list(&["203.0.113.0/24"]), deny: list(&["203.0.113.2"]), ..Policy::default() };
        let (allowed, refused) = reached(&allow);
        assert_eq!(allowed, [true, false, false, true], "names are answered all the same");
        assert_eq!((refused["denied"], refused["not_allowed"]), (1, 1));
        let (isolated, refused) = reached(&Policy { reach: Reach::Isolated, ..Policy::default() });
        assert_eq!((isolated, refused["isolated"], refused["to_gateway"]), ([false; 4], 3, 1));
        let (nothing_else, _) = reached(&Policy { deny: list(&["0.0.0.0/0"]), ..Policy::default() });
        assert_eq!(nothing_else, [false, false, false, true]);
    });
}

#[test]
fn a_policy_that_changes_holds_at_once_and_for_what_is_connected_too() {
    on_a_host(|| {
        let _internet = internet();
        let networks = networks();
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let mut tap = Tap::new(block_on(networks.take(1, &Policy::default())).unwrap().queues);
        let change = |tap: &Tap, policy: Policy| {
            block_on(networks.change(tap.queues[0].try_clone().unwrap(), &policy)).unwrap();
        };
        let answers = |tap: &mut Tap| [ONE, OTHER].map(|to| ask(tap, to, 7) == Some("answer"));
        // The same ports each time: from the second question on they are one connection.
        assert_eq!([answers(&mut tap), answers(&mut tap)], [[true; 2]; 2]);
        change(&tap, Policy { deny: list(&["203.0.113.1"]), ..Policy::default() });
        assert_eq!(answers(&mut tap), [false, true]);
        change(&tap, Policy { allow: list(&["203.0.113.1"]), ..Policy::default() });
        assert_eq!(answers(&mut tap), [true, false]);
        let refused = Networks::refused(tap.queues[0].as_fd()).unwrap();
        assert_eq!((refused["denied"], refused["not_allowed"]), (1, 1), "what was counted stays");
        change(&tap, Policy { reach: Reach::Isolated, ..Policy::default() });
        assert_eq!(answers(&mut tap), [false; 2]);

        // The host is opened and closed likewise.
        let server = std::net::UdpSocket::bind((HOST, 9)).unwrap();
        server.set_read_timeout(Some(NEVER)).unwrap();
        let hears = |policy: Policy| {
            change(&tap, policy);
            tap.send(&frame(MAC, EthernetProtocol::Ipv4, &udp(OWN, HOST, 9, b"ask")));
            // It answers, so that this is a connection from then on.
            server.recv_from(&mut [0; 9]).is_ok_and(|(_, from)| server.send_to(b"answer", from).is_ok())
        };
        assert!(hears(Policy { allow: list(&["host"]), ..Policy::default() }));
        assert!(!hears(Policy { allow: list(&["0.0.0.0/0"]), ..Policy::default() }));
        assert!(!hears(Policy::default()));
    });
}

#[test]
fn without_a_name_server_questions_are_refused_at_once() {
    on_a_host(|| {
        let networks = Networks::with_name_server(world::OWNER, world::range(), None);
        let taken = block_on(networks.take(1, &Policy::default())).unwrap();
        assert_eq!(ask(&mut Tap::new(taken.queues), guest::GATEWAY, 53), Some("refusal"));
    });
}

#[test]
fn a_vm_that_is_limited_sends_no_more_than_that() {
    on_a_host(|| {
        let _internet = internet();
        let policy = Policy { bytes_per_second: Some(100_000), ..Policy::default() };
        let taken = block_on(networks().take(1, &policy)).unwrap();
        let mut tap = Tap::new(taken.queues);
        let datagram = frame(MAC, EthernetProtocol::Ipv4, &udp(OWN, INTERNET, 7, &[7; 1400]));
        for _ in 0..400 {
            tap.send(&datagram);
        }
        let mut arrived = 0;
        while tap.wait(NEVER, |frame| packet(frame).map(drop)).is_some() {
            arrived += 1;
        }
        let refused = Networks::refused(tap.queues[0].as_fd()).unwrap();
        assert!(refused["too_fast"] > 100 && (50..300).contains(&arrived), "{arrived} of 400, {refused:?}");
    });
}

#[test]
fn a_network_has_as_many_queues_as_asked_for() {
    on_a_host(|| {
        let _internet = internet();
        let networks = networks();
        for pairs in [1, 3, 8] {
            let taken = block_on(networks.take(pairs, &Policy::default())).unwrap();
            assert_eq!(taken.queues.len(), usize::from(pairs));
            let mut tap = Tap::new(taken.queues);
            tap.queues.rotate_left(usize::from(pairs) - 1);
            assert_eq!(ask(&mut tap, INTERNET, 7), Some("answer"), "through the last of {pairs}");
        }
        assert!(block_on(networks.take(0, &Policy::default())).is_err());
        assert!(block_on(networks.take(9, &Policy::default())).is_err());
    });
}

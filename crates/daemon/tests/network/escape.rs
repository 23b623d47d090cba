//! What a guest must not reach, and beside each the same done right, which passes.

use crate::guest::{GATEWAY, GATEWAY_MAC, OWN, Tap, arp, frame, packet, udp};
use crate::world::{HOST, INTERNET, block_on, inside, internet, ip, networks, on_a_host, run};
use crate::{NEVER, SOON, ask};
use pando_daemon::network::{Networks, Policy};
use pando_sys::network_of_tap;
use pando_wire::network::MAC;
use smoltcp::wire::{ArpOperation, EthernetFrame, EthernetProtocol};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

fn refused(tap: &Tap, reason: &str) -> u64 {
    Networks::refused(tap.queues[0].as_fd()).unwrap()[reason]
}

/// How many packets the host itself has refused for this reason.
fn refused_by_host(reason: &str) -> u64 {
    let text = run("nft", "list counters");
    let at = text.find(&format!("counter {reason} ")).unwrap_or_else(|| panic!("{text}"));
    text[at..].split_whitespace().skip_while(|word| *word != "packets").nth(1).unwrap().parse().unwrap()
}

fn with_one_guest(test: impl FnOnce(&mut Tap, Ipv4Addr) + Send + 'static) {
    on_a_host(|| {
        let _internet = internet();
        let networks = networks();
        let taken = block_on(networks.take(1, &Policy::default())).unwrap();
        test(&mut Tap::new(taken.queues), taken.outside);
    });
}

#[test]
fn a_frame_that_is_not_the_guests_own_ipv4_goes_nowhere_and_is_counted() {
    with_one_guest(|tap, outside| {
        let right = udp(OWN, INTERNET, 7, b"ask");
        let other_mac = [0x02, 1, 2, 3, 4, 5];
        let next_guest = Ipv4Addr::new(192, 168, 241, 3);
        let advertisement = {
            let mut packet = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
            packet.extend([0xfe, 0x80].iter().chain(&[0; 13]).chain(&[1])); // from
            packet.extend([0xff, 2].iter().chain(&[0; 13]).chain(&[1])); // to all
            packet.extend([134, 0, 0, 0, 64, 0, 0, 60]);
            packet
        };
        let tagged = [&[0, 5, 8, 0][..], &right].concat();
        let of = |source: Ipv4Addr| frame(MAC, EthernetProtocol::Ipv4, &udp(source, INTERNET, 7, b"ask"));
        let wrong = [
            ("spoofed_mac", frame(other_mac, EthernetProtocol::Ipv4, &right)),
            ("spoofed_address", of(next_guest)),
            ("spoofed_address", of(outside)),
            ("spoofed_address", of(GATEWAY)),
            ("spoofed_address", of(HOST)),
            ("bad_arp", arp(ArpOperation::Reply, GATEWAY)),
            ("bad_arp", arp(ArpOperation::Request, GATEWAY)),
            ("bad_arp", arp(ArpOperation::Request, next_guest)),
            ("not_ip", frame(MAC, EthernetProtocol::Ipv6, &advertisement)),
            ("not_ip", frame(MAC, EthernetProtocol::Unknown(0x8100), &tagged)),
            ("nowhere", frame(MAC, EthernetProtocol::Ipv4, &udp(OWN, Ipv4Addr::LOCALHOST, 7, b"ask"))),
            ("nowhere", frame(MAC, EthernetProtocol::Ipv4, &udp(OWN, Ipv4Addr::BROADCAST, 7, b"ask"))),
        ];
        for (reason, frame) in &wrong {
            let before = refused(tap, reason);
            tap.send(frame);
            assert_eq!(refused(tap, reason), before + 1, "{reason}: {frame:02x?}");
            assert_eq!(tap.wait(NEVER, packet), None, "{reason}");
            // Whatever it claimed, the guest's own packets go on to pass, and their answers to come.
            assert_eq!(ask(tap, INTERNET, 7), Some("answer"), "after {reason}");
        }
        tap.send(&arp(ArpOperation::Request, OWN));
        let answer = tap.wait(SOON, |frame| {
            let frame = EthernetFrame::new_checked(frame).ok()?;
            (frame.ethertype() == EthernetProtocol::Arp).then(|| frame.src_addr().0)
        });
        assert_eq!(answer, Some(GATEWAY_MAC), "every gateway has the same address: a fork's child knows it already");
    });
}

#[test]
fn the_host_is_out_of_reach_by_any_of_its_addresses() {
    with_one_guest(|tap, outside| {
        ip("link add inner0 type veth peer name inner1");
        ip("addr add 172.31.0.1/24 dev inner0");
        ip("link set inner0 up");
        ip("link set inner1 up");
        let server = UdpSocket::bind("0.0.0.0:7").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let heard = || server.recv_from(&mut [0; 9]).is_ok();
        let link_end = Ipv4Addr::from_bits(outside.to_bits() - 1);
        // The first two cross the host's rules, the others those of the VM's namespace.
        for (address, reason) in [
            (HOST, None),
            (Ipv4Addr::new(172, 31, 0, 1), None),
            (link_end, Some("range")),
            (outside, Some("to_gateway")),
        ] {
            let count = |tap: &Tap| reason.map_or_else(|| refused_by_host("to_host"), |reason| refused(tap, reason));
            let before = count(tap);
            assert_eq!(ask(tap, address, 7), Some("refusal"), "{address}");
            assert_eq!(count(tap), before + 1, "{address}");
            assert!(!heard(), "{address}");
        }
        if !UdpSocket::bind("0.0.0.0:0").is_ok_and(|socket| socket.send_to(b"x", (HOST, 7)).is_ok()) || !heard() {
            panic!("the server hears nobody at all");
        }
        assert_eq!(ask(tap, INTERNET, 7), Some("answer"), "the same port of somebody else");
    });
}

/// Docker and its like send a port of the host's address to a container: that is the host's address all the same.
#[test]
fn a_port_of_the_hosts_that_is_sent_on_is_out_of_reach_too() {
    with_one_guest(|tap, _| {
        run("nft", "add table ip other");
        run("nft", "add chain ip other pre { type nat hook prerouting priority dstnat ; }");
        run("nft", &format!("add rule ip other pre ip daddr {HOST} udp dport 8007 dnat to {INTERNET}:7"));
        let before = refused_by_host("to_host");
        assert_eq!(ask(tap, HOST, 8007), Some("refusal"));
        assert_eq!(refused_by_host("to_host"), before + 1);
        assert_eq!(ask(tap, INTERNET, 7), Some("answer"));
    });
}

#[test]
fn link_local_addresses_and_other_vms_are_out_of_reach() {
    on_a_host(|| {
        let internet = internet();
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        inside(&internet, || ip(&format!("addr add {metadata}/32 dev lo")));
        let networks = networks();
        let taken = [(); 2].map(|()| block_on(networks.take(1, &Policy::default())).unwrap());
        let other = taken[1].outside;
        let [mine, others] = taken.map(|taken| Tap::new(taken.queues));
        let mut mine = mine;
        assert_eq!((ask(&mut mine, metadata, 7), refused(&mine, "link_local")), (Some("refusal"), 1));
        assert_eq!((ask(&mut mine, other, 7), refused(&mine, "range")), (Some("refusal"), 1));
        assert_eq!((ask(&mut mine, OWN, 7), refused(&mine, "range")), (Some("refusal"), 2));
        assert_eq!(ask(&mut mine, INTERNET, 7), Some("answer"));

        // Were the namespace's own rules broken, the host's would still hold: what comes from within reaches neither host nor VM.
        let namespace = |tap: &Tap| network_of_tap(tap.queues[0].as_fd()).unwrap();
        let server = || {
            let server = UdpSocket::bind("0.0.0.0:9").unwrap();
            server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            server
        };
        let hears = |server: &UdpSocket, to: Ipv4Addr| {
            inside(&namespace(&mine), || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (to, 9)).unwrap());
            server.recv_from(&mut [0; 9]).is_ok()
        };
        let before = (refused_by_host("to_host"), refused_by_host("to_vm"));
        assert!(!hears(&server(), HOST));
        assert!(!hears(&inside(&namespace(&others), server), other));
        assert!(hears(&inside(&internet, server), INTERNET), "who may be reached is reached from within, too");
        let after = (refused_by_host("to_host"), refused_by_host("to_vm"));
        assert_eq!(after, (before.0 + 1, before.1 + 1));
    });
}

#[test]
fn what_a_vm_was_refused_is_shown_of_that_vm_and_of_no_other() {
    on_a_host(|| {
        let _internet = internet();
        let networks = networks();
        let taken = [(); 2].map(|()| block_on(networks.take(1, &Policy::default())).unwrap());
        let outside = [taken[0].outside, taken[1].outside];
        let [mut mine, others] = taken.map(|taken| Tap::new(taken.queues));
        let seen = |tap: &Tap| networks.seen(tap.queues[0].as_fd()).unwrap();
        assert_eq!([seen(&mine).outside, seen(&others).outside], outside);
        let before = seen(&mine);

        assert_eq!(ask(&mut mine, INTERNET, 7), Some("answer"));
        assert_eq!(ask(&mut mine, HOST, 7), Some("refusal"));
        assert_eq!(ask(&mut mine, HOST, 7), Some("refusal"));
        assert_eq!(ask(&mut mine, outside[1], 7), Some("refusal"));
        let after = seen(&mine);
        assert_eq!(after.refused.get("to_host"), Some(&2), "{after:?}");
        assert_eq!((after.refused["range"], after.refused["spoofed_mac"]), (1, 0));
        assert_eq!(after.sent.packets - before.sent.packets, 4);
        let frame_bytes = 14 + 20 + 8 + 3;
        assert_eq!(after.sent.bytes - before.sent.bytes, 4 * frame_bytes);
        assert_eq!(after.received.packets - before.received.packets, 4, "an answer, three refusals");

        let other = seen(&others);
        assert_eq!((other.refused.get("to_host"), other.refused["range"]), (None, 0), "{other:?}");
    });
}

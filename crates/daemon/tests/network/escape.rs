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

/// What the words open, for whom, and what they do not.
#[test]
fn the_host_is_reached_by_who_is_allowed_it_by_its_word_and_by_nobody_else() {
    on_a_host(|| {
        let _internet = internet();
        let first = networks();
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let tap = |networks: &Networks, allow: &[&str], deny: &[&str]| {
            let policy = Policy { allow: list(allow), deny: list(deny), ..Policy::default() };
            let taken = block_on(networks.take(1, &policy)).unwrap();
            let link_end = Ipv4Addr::from_bits(taken.outside.to_bits() - 1);
            (Tap::new(taken.queues), link_end)
        };
        let server = UdpSocket::bind("0.0.0.0:7").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let hears = |tap: &Tap, to: Ipv4Addr| {
            tap.send(&frame(MAC, EthernetProtocol::Ipv4, &udp(OWN, to, 7, b"ask")));
            server.recv_from(&mut [0; 9]).is_ok()
        };
        let (mut open, link_end) = tap(&first, &["host"], &[]);
        assert!(hears(&open, HOST));
        assert!(!hears(&open, link_end), "what leads to VMs stays closed");
        assert_eq!(ask(&mut open, INTERNET, 7), Some("refusal"), "as with all that is allowed, nothing else is");
        for (allow, deny) in [(vec![], vec![]), (vec!["0.0.0.0/0"], vec![]), (vec!["host"], vec!["198.51.100.2"])] {
            let (closed, _) = tap(&first, &allow, &deny);
            assert!(!hears(&closed, HOST), "{allow:?} without {deny:?}");
        }
        let (mut all, _) = tap(&first, &["host", "0.0.0.0/0"], &[]);
        assert!(hears(&all, HOST));
        assert_eq!(ask(&mut all, INTERNET, 7), Some("answer"));

        // The next daemon makes the host's table anew, and has nothing to remember.
        first.close();
        let second = networks();
        second.adopt().unwrap();
        let (closed, _) = tap(&second, &[], &[]);
        assert!(hears(&open, HOST) && !hears(&closed, HOST));
    });
}

#[test]
fn metadata_is_reached_by_its_word_alone() {
    on_a_host(|| {
        let internet = internet();
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        inside(&internet, || {
            ip(&format!("addr add {metadata}/32 dev lo"));
            crate::world::answer((metadata, 7));
        });
        let networks = networks();
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let asked = |allow: &[&str], deny: &[&str]| {
            let policy = Policy { allow: list(allow), deny: list(deny), ..Policy::default() };
            let mut tap = Tap::new(block_on(networks.take(1, &policy)).unwrap().queues);
            [metadata, INTERNET].map(|to| ask(&mut tap, to, 7) == Some("answer"))
        };
        assert_eq!(asked(&["metadata"], &[]), [true, false]);
        assert_eq!(asked(&["metadata", "0.0.0.0/0"], &[]), [true, true]);
        assert_eq!(asked(&["0.0.0.0/0"], &[]), [false, true]);
        assert_eq!(asked(&["metadata", "0.0.0.0/0"], &["169.254.169.254"]), [false, true]);
    });
}

#[test]
fn an_address_of_what_stays_closed_is_refused_with_the_word_to_use() {
    on_a_host(|| {
        let _internet = internet();
        let refusal = |text: &str| {
            let policy = Policy { allow: vec![text.parse().unwrap()], ..Policy::default() };
            networks().check(&policy).err().map(|error| error.to_string())
        };
        let metadata =
            "169.254.169.254/32 stays out of reach, as link-local addresses are: --allow metadata opens that";
        assert_eq!(refusal("169.254.169.254").as_deref(), Some(metadata));
        let host = "198.51.100.2/32 stays out of reach, as the host's own addresses are: --allow host opens that";
        assert_eq!(refusal("198.51.100.2").as_deref(), Some(host));
        let vm = "10.241.0.4/30 stays out of reach, as addresses of VMs do";
        assert_eq!(refusal("10.241.0.4/30").as_deref(), Some(vm));
        for open in ["10.0.0.0/8", "0.0.0.0/0", "198.51.100.0/24", "host", "metadata", "example.org"] {
            assert_eq!(refusal(open), None, "{open}");
        }
    });
}

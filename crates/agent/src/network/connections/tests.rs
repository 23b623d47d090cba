use super::*;
use crate::network::{interface, testing::Machine};
use pando_wire::network::{MAC, Network};
use proptest::prelude::*;
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// An address of the outside's, behind the gateway.
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// A guest and what is outside of it.
struct World {
    guest: Machine,
    outside: Machine,
}

impl World {
    fn new() -> Option<Self> {
        let (guest, outside) = (Machine::new()?, Machine::new()?);
        guest.wire("wire0", MAC, &outside, "tap0");
        outside.address("tap0", Network::GUEST.gateway, 30);
        outside.address("lo", FAR, 32);
        guest.within(|| interface::set_up(MAC, &Network::GUEST).unwrap());
        Some(Self { guest, outside })
    }

    /// As a child of a fork does it.
    fn reset(&self) -> Result<usize, ResetError> {
        self.reset_before(Instant::now() + LIMIT)
    }

    fn reset_before(&self, deadline: Instant) -> Result<usize, ResetError> {
        self.guest.within(|| reset_in(&[self.guest.namespace()], deadline))
    }
}

/// A connection, both ends.
struct Pair(TcpStream, TcpStream);

impl Pair {
    /// From one of `client`'s programs to one of `server`'s that listens at `address`.
    fn connect(client: &Machine, server: &Machine, address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        let listener = server.within(|| TcpListener::bind((address, 0)).unwrap());
        Self::connect_to(client, &listener, address)
    }

    fn connect_to(client: &Machine, listener: &TcpListener, address: IpAddr) -> Self {
        let port = listener.local_addr().unwrap().port();
        let near = client.within(|| TcpStream::connect((address, port)).unwrap());
        let far = listener.accept().unwrap().0;
        for end in [&near, &far] {
            end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        Self(near, far)
    }

    /// Bytes go both ways.
    fn is_whole(&self) -> bool {
        let goes = |mut from: &TcpStream, mut to: &TcpStream| {
            let mut got = [0; 3];
            from.write_all(b"abc").and_then(|()| to.read_exact(&mut got)).is_ok_and(|()| &got == b"abc")
        };
        goes(&self.0, &self.1) && goes(&self.1, &self.0)
    }
}

fn error_of(mut stream: &TcpStream) -> io::ErrorKind {
    stream.read(&mut [0; 1]).unwrap_err().kind()
}

#[test]
fn connections_to_the_outside_end_at_once_whoever_began_them() {
    let Some(world) = World::new() else { return };
    let (guest, outside) = (&world.guest, &world.outside);
    let near = Pair::connect(guest, outside, Network::GUEST.gateway);
    let far = Pair::connect(guest, outside, FAR);
    let inward = Pair::connect(outside, guest, Network::GUEST.address);
    let half_closed = Pair::connect(guest, outside, FAR);
    half_closed.0.shutdown(std::net::Shutdown::Write).unwrap();
    // To a socket that speaks both, IPv4 comes in an IPv6 address.
    let both = guest.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
    let mapped = Pair::connect_to(outside, &both, Network::GUEST.address.into());
    assert!([&near, &far, &inward, &mapped].iter().all(|pair| pair.is_whole()));
    assert_eq!(world.reset().unwrap(), 5);
    for end in [&near.0, &far.0, &inward.1, &mapped.1, &half_closed.0] {
        assert_eq!(error_of(end), io::ErrorKind::ConnectionAborted);
    }
    assert_eq!(world.reset().unwrap(), 0);
}

#[test]
fn a_program_that_waits_to_be_connected_is_told_and_need_not_wait_it_out() {
    let Some(world) = World::new() else { return };
    // It would give up by itself after 15 s.
    world.guest.within(|| std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "3").unwrap());
    // The outside forwards nothing, so nobody answers.
    let nobody = Ipv4Addr::new(198, 51, 100, 1);
    thread::scope(|scope| {
        let began = Instant::now();
        let connecting = scope.spawn(|| world.guest.within(|| TcpStream::connect((nobody, 80)).unwrap_err().kind()));
        while world.reset().unwrap() == 0 {
            assert!(began.elapsed() < Duration::from_secs(10), "it never began to connect");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(connecting.join().unwrap(), io::ErrorKind::ConnectionAborted);
        assert!(began.elapsed() < Duration::from_secs(20));
    });
}

#[test]
fn connections_inside_listening_sockets_and_udp_go_on() {
    let Some(world) = World::new() else { return };
    let (guest, outside) = (&world.guest, &world.outside);
    let both = guest.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap());
    let inside = [
        Pair::connect(guest, guest, Ipv4Addr::LOCALHOST),
        Pair::connect(guest, guest, Ipv6Addr::LOCALHOST),
        Pair::connect(guest, guest, Ipv4Addr::new(127, 0, 0, 53)), // No interface has it.
        Pair::connect(guest, guest, Network::GUEST.address),
        Pair::connect_to(guest, &both, Ipv4Addr::LOCALHOST.into()),
        Pair::connect_to(guest, &both, Network::GUEST.address.into()),
    ];
    let listener = guest.within(|| TcpListener::bind((Network::GUEST.address, 0)).unwrap());
    let torn = Pair::connect_to(outside, &listener, Network::GUEST.address.into());
    let answering = outside.within(|| UdpSocket::bind((FAR, 0)).unwrap());
    let asking = guest.within(|| UdpSocket::bind((Network::GUEST.address, 0)).unwrap());
    guest.within(|| asking.connect(answering.local_addr().unwrap()).unwrap());

    assert_eq!(world.reset().unwrap(), 1);
    assert_eq!(error_of(&torn.1), io::ErrorKind::ConnectionAborted);
    assert!(inside.iter().all(Pair::is_whole));
    assert!(Pair::connect_to(outside, &listener, Network::GUEST.address.into()).is_whole());
    asking.send(b"abc").unwrap();
    answering.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(answering.recv(&mut [0; 8]).unwrap(), 3);
}

#[test]
fn containers_lose_their_connections_to_the_outside_and_keep_those_to_the_machine() {
    let Some(world) = World::new() else { return };
    let container = Machine::new().unwrap();
    let (bridge, its) = (Ipv4Addr::new(172, 17, 0, 1), Ipv4Addr::new(172, 17, 0, 2));
    world.guest.wire("docker0", [2, 0, 0, 0, 0, 1], &container, "eth0");
    world.guest.address("docker0", bridge, 16);
    container.address("eth0", its, 16);
    container.wire("out", [2, 0, 0, 0, 0, 2], &world.outside, "in");
    container.address("out", Ipv4Addr::new(198, 51, 100, 2), 24);
    world.outside.address("in", Ipv4Addr::new(198, 51, 100, 1), 24);

    let inside = [Pair::connect(&container, &world.guest, bridge), Pair::connect(&world.guest, &container, its)];
    let outside = Pair::connect(&container, &world.outside, Ipv4Addr::new(198, 51, 100, 1));
    let all = [world.guest.namespace(), container.namespace()];
    assert_eq!(world.guest.within(|| reset_in(&all, Instant::now() + LIMIT)).unwrap(), 1);
    assert_eq!(error_of(&outside.0), io::ErrorKind::ConnectionAborted);
    assert!(inside.iter().all(Pair::is_whole));
}

#[test]
fn a_thousand_connections_are_ended_and_it_says_how_long_that_took() {
    let Some(world) = World::new() else { return };
    let listener = world.outside.within(|| TcpListener::bind((FAR, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    let ends: Vec<_> = world
        .guest
        .within(|| (0..1000).map(|_| (TcpStream::connect(to).unwrap(), listener.accept().unwrap())).collect());
    let began = Instant::now();
    assert_eq!(world.reset().unwrap(), 1000);
    println!("1000 connections ended in {:?}", began.elapsed());
    assert!(ends.iter().all(|(near, _)| error_of(near) == io::ErrorKind::ConnectionAborted));
    let began = Instant::now();
    assert_eq!(world.reset().unwrap(), 0);
    println!("none of none in {:?}", began.elapsed());
}

#[test]
fn when_its_time_is_over_the_rest_is_left_and_that_is_said() {
    let Some(world) = World::new() else { return };
    let pair = Pair::connect(&world.guest, &world.outside, FAR);
    assert!(matches!(world.reset_before(Instant::now()), Err(ResetError::TooMany(0))));
    assert!(pair.is_whole());
}

#[test]
fn a_socket_that_is_gone_is_nothing_and_a_listener_in_its_place_is_not_taken_for_it() {
    let Some(world) = World::new() else { return };
    let listener = world.guest.within(|| TcpListener::bind((Network::GUEST.address, 0)).unwrap());
    let pair = Pair::connect_to(&world.outside, &listener, Network::GUEST.address.into());
    world.guest.within(|| {
        let (socket, mut found) = (Socket::diagnosis().unwrap(), Vec::new());
        list(&socket, AF_INET, &HashSet::new(), &mut found).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(end(&socket, &found).unwrap(), 1);
        assert_eq!(end(&socket, &found).unwrap(), 0);
    });
    drop(pair);
    assert!(Pair::connect_to(&world.outside, &listener, Network::GUEST.address.into()).is_whole());
}

proptest! {
    #[test]
    fn what_the_kernel_says_of_a_connection_is_read_or_an_error(answer in prop::collection::vec(any::<u8>(), 0..100)) {
        let is_long_enough = answer.len() >= 4 + ID;
        let is_known = answer.first().is_some_and(|family| [AF_INET, AF_INET6].contains(family));
        prop_assert_eq!(read(&answer).is_ok(), is_long_enough && is_known);
    }
}

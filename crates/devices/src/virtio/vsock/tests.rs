//! The device between a driver that plays the guest and real Unix sockets.

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{HEADER_BYTES, Header, STREAM, op, shutdown};
use super::*;
use crate::contract::device_contract;
use crate::virtio::mmio::{MmioDevice, Transport};
use crate::virtio::testing::{self, Driver, read32, write32};

const CID: u64 = 42;
const GUEST_PORT: u32 = 1024;
const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;
/// Data that fits into one of this guest's receive buffers, as in Linux.
const RX_DATA: usize = 4096 - HEADER_BYTES;

/// A host and a guest, with the device between them.
struct Machine {
    transport: Transport<Vsock>,
    driver: Driver,
    address: SocketAddr,
    /// The receive buffers that the guest has offered, in order.
    receive_buffers: std::collections::VecDeque<u64>,
    event_buffers: std::collections::VecDeque<u64>,
}

/// A listener under a name of its own, which goes away with it.
fn listener() -> (UnixListener, SocketAddr) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("pando-vsock-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), address)
}

impl Machine {
    /// A guest with `receive` buffers on offer.
    fn with(receive: usize) -> Self {
        let (listener, address) = listener();
        let mut transport = Transport::new(Vsock::new(CID, listener).unwrap());
        let driver = Driver::start(&mut transport);
        let mut machine = Self { transport, driver, address, receive_buffers: [].into(), event_buffers: [].into() };
        machine.offer_receive(receive);
        for _ in 0..8 {
            machine.offer_event();
        }
        machine
    }

    fn new() -> Self {
        Self::with(64)
    }

    /// The same guest before a device restored from its state, as in a fork's child.
    fn fork(mut self) -> Self {
        let (listener, address) = listener();
        let state = self.transport.device().state();
        let device = Vsock::restore(state, listener).unwrap();
        self.transport = Transport::restore(device, self.transport.state()).unwrap();
        self.address = address;
        self
    }

    fn offer_receive(&mut self, count: usize) {
        for _ in 0..count {
            let buffer = self.driver.allocate(4096);
            // In two pieces, as no header of ours ends there.
            self.driver.offer(RX, &[], &[(buffer, 10), (buffer + 10, 4086)]);
            self.receive_buffers.push_back(buffer);
        }
    }

    fn offer_event(&mut self) {
        let buffer = self.driver.allocate(4);
        self.driver.offer(EVENTS, &[], &[(buffer, 4)]);
        self.event_buffers.push_back(buffer);
    }

    /// Lets the device work until it has nothing to do.
    fn run(&mut self) {
        testing::run(&mut self.transport, &self.driver.memory);
    }

    fn host_is_ready(&self) -> bool {
        testing::host_is_ready(&self.transport)
    }

    /// The next packet that the guest finds; its buffer is offered again.
    fn hear(&mut self) -> Option<(Header, Vec<u8>)> {
        let packet = self.hear_and_keep()?;
        self.offer_receive(1);
        Some(packet)
    }

    fn hear_and_keep(&mut self) -> Option<(Header, Vec<u8>)> {
        let (_, written) = self.driver.take(RX)?;
        let bytes = self.driver.bytes(self.receive_buffers.pop_front().unwrap(), written as usize);
        let header = Header::from_bytes(bytes[..HEADER_BYTES].try_into().unwrap());
        assert_eq!(header.len as usize, bytes.len() - HEADER_BYTES);
        assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, STREAM));
        Some((header, bytes[HEADER_BYTES..].to_vec()))
    }

    /// The next packet must be one of `op`.
    fn hears(&mut self, op: u16) -> (Header, Vec<u8>) {
        self.run();
        let (header, data) = self.hear().unwrap_or_else(|| panic!("no packet where {op} was expected"));
        assert_eq!(header.op, op, "{header:?}");
        (header, data)
    }

    fn hears_nothing(&mut self) {
        self.run();
        assert_eq!(self.hear(), None);
    }

    /// The guest sends a packet from its port.
    fn say(&mut self, host_port: u32, op: u16, flags: u32, data: &[u8]) {
        let header = Header { op, flags, len: data.len() as u32, ..from_guest(host_port) };
        self.say_exactly(header, data);
    }

    fn say_exactly(&mut self, header: Header, data: &[u8]) {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(data);
        let buffer = self.driver.place(&bytes);
        // In two pieces, cut within the header.
        self.driver.offer(TX, &[(buffer, 30), (buffer + 30, bytes.len() as u32 - 30)], &[]);
        self.run();
        while self.driver.take(TX).is_some() {}
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect_addr(&self.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client
    }

    /// A client that has asked for the guest's port, and the host port that stands for it.
    fn ask(&mut self) -> (UnixStream, u32) {
        let mut client = self.client();
        client.write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes()).unwrap();
        let (request, _) = self.hears(op::REQUEST);
        assert_eq!(request.dst_port, GUEST_PORT);
        assert_eq!(request.buf_alloc, BUFFER_BYTES);
        (client, request.src_port)
    }

    fn connect(&mut self) -> (UnixStream, u32) {
        let (mut client, host_port) = self.ask();
        self.say(host_port, op::RESPONSE, 0, &[]);
        assert_eq!(line(&mut client), format!("OK {host_port}\n"));
        (client, host_port)
    }

    fn connections(&self) -> usize {
        self.transport.device().connection_count()
    }
}

/// A header of the guest's, with plenty of credit.
fn from_guest(host_port: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: GUEST_PORT,
        dst_port: host_port,
        kind: STREAM,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn line(client: &mut UnixStream) -> String {
    let mut text = String::new();
    while !text.ends_with('\n') {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        text.push(char::from(byte[0]));
    }
    text
}

fn is_closed(client: &mut UnixStream) -> bool {
    client.read(&mut [0]).unwrap() == 0
}

fn vsock() -> Vsock {
    Vsock::new(CID, listener().0).unwrap()
}

device_contract!(vsock_law, new: Machine::new(), change: |machine: &mut Machine| { machine.ask(); },
    restore: |state| Machine { transport: Transport::new(Vsock::restore(state, listener().0).unwrap()), ..Machine::with(0) });

impl Machine {
    fn state(&self) -> VsockState {
        self.transport.device().state()
    }
}

#[test]
fn a_client_and_a_guest_exchange_bytes() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    client.write_all(b"to the guest").unwrap();
    let (header, data) = machine.hears(op::RW);
    assert_eq!((header.src_port, header.dst_port, &data[..]), (host_port, GUEST_PORT, &b"to the guest"[..]));
    machine.say(host_port, op::RW, 0, b"to the host");
    let mut answer = [0; 11];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"to the host");
    machine.hears_nothing();
}

#[test]
fn the_guest_learns_its_context_id() {
    let mut machine = Machine::new();
    assert_eq!((read32(&mut machine.transport, 0x100), read32(&mut machine.transport, 0x104)), (42, 0));
    assert_eq!(Vsock::new(2, listener().0).err().unwrap().kind(), ErrorKind::InvalidInput);
}

#[test]
fn every_client_has_a_port_of_its_own() {
    let mut machine = Machine::new();
    let (mut first, first_port) = machine.connect();
    let (mut second, second_port) = machine.connect();
    assert_eq!(second_port, first_port + 1);
    machine.say(first_port, op::RW, 0, b"1");
    machine.say(second_port, op::RW, 0, b"2");
    let mut bytes = [0; 2];
    first.read_exact(&mut bytes[..1]).unwrap();
    second.read_exact(&mut bytes[1..]).unwrap();
    assert_eq!(&bytes, b"12");
}

#[test]
fn a_refused_client_is_closed_without_an_ok() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.ask();
    machine.say(host_port, op::RST, 0, &[]);
    assert!(is_closed(&mut client));
    machine.hears_nothing();
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_client_that_speaks_nonsense_is_closed() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    client.write_all(b"HELLO\n").unwrap();
    machine.hears_nothing();
    assert!(is_closed(&mut client));
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_client_may_take_its_time_to_greet() {
    let mut machine = Machine::new();
    let mut client = machine.client();
    for byte in b"CONNECT 1024" {
        client.write_all(&[*byte]).unwrap();
        machine.hears_nothing();
    }
    client.write_all(b"\nand more").unwrap();
    let (request, _) = machine.hears(op::REQUEST);
    machine.hears_nothing();
    machine.say(request.src_port, op::RESPONSE, 0, &[]);
    assert_eq!(machine.hears(op::RW).1, b"and more");
    line(&mut client);
}

#[test]
fn a_client_that_leaves_before_the_answer_is_reset() {
    let mut machine = Machine::new();
    let (client, host_port) = machine.ask();
    drop(client);
    assert_eq!(machine.hears(op::RST).0.src_port, host_port);
    assert_eq!(machine.connections(), 0);
    machine.say(host_port, op::RESPONSE, 0, &[]);
    machine.hears(op::RST);
}

#[test]
fn a_client_that_leaves_before_the_question_leaves_no_trace() {
    let mut machine = Machine::with(0);
    let mut client = machine.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    machine.run();
    assert_eq!(machine.connections(), 1);
    drop(client);
    machine.run();
    assert_eq!(machine.connections(), 0);
    machine.offer_receive(8);
    machine.hears_nothing();
}

#[test]
fn a_guest_connects_to_nothing() {
    let mut machine = Machine::new();
    machine.say(5000, op::REQUEST, 0, &[]);
    let (reset, _) = machine.hears(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (5000, GUEST_PORT));
}

#[test]
fn a_slow_guest_gets_no_more_than_it_has_room_for() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.ask();
    let room = |fwd_cnt, op| Header { buf_alloc: 100, fwd_cnt, op, ..from_guest(host_port) };
    machine.say_exactly(room(0, op::RESPONSE), &[]);
    line(&mut client);
    client.write_all(&[1; 250]).unwrap();
    assert_eq!(machine.hears(op::RW).1.len(), 100);
    machine.hears(op::CREDIT_REQUEST);
    machine.hears_nothing();
    machine.say_exactly(room(30, op::CREDIT_UPDATE), &[]);
    assert_eq!(machine.hears(op::RW).1.len(), 30);
    machine.hears(op::CREDIT_REQUEST);
    machine.say_exactly(room(30, op::CREDIT_UPDATE), &[]);
    machine.hears_nothing();
    machine.say_exactly(room(130, op::CREDIT_UPDATE), &[]);
    assert_eq!(machine.hears(op::RW).1.len(), 100);
    machine.hears(op::CREDIT_REQUEST);
    machine.say_exactly(room(230, op::CREDIT_UPDATE), &[]);
    assert_eq!(machine.hears(op::RW).1.len(), 20);
    machine.hears_nothing();
}

#[test]
fn a_guest_without_buffers_gets_everything_once_it_has_some() {
    let mut machine = Machine::with(2);
    let (mut client, _) = machine.connect();
    let sent: Vec<u8> = (0..20_000_u32).map(|index| (index / 3) as u8).collect();
    client.write_all(&sent).unwrap();
    machine.run();
    let mut heard = Vec::new();
    while let Some((_, data)) = machine.hear_and_keep() {
        assert!(data.len() <= RX_DATA);
        heard.extend(data);
    }
    assert_eq!(heard.len(), 2 * RX_DATA);
    machine.offer_receive(1);
    machine.run();
    while let Some((_, data)) = machine.hear() {
        heard.extend(data);
        machine.run();
    }
    assert!(heard == sent);
}

#[test]
fn a_slow_client_holds_the_guest_back_and_loses_nothing() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    let mut sent = Vec::new();
    let (mut credit, mut forwarded) = (BUFFER_BYTES, 0);
    // As much as the guest may send while the client reads nothing: the socket's buffer and then the device's.
    for round in 0_u32.. {
        while let Some((header, _)) = machine.hear() {
            credit += header.fwd_cnt - forwarded;
            forwarded = header.fwd_cnt;
        }
        if credit < 4096 {
            break;
        }
        let data: Vec<u8> = (0..4096_u32).map(|index| (index ^ round) as u8).collect();
        machine.say(host_port, op::RW, 0, &data);
        credit -= 4096;
        sent.extend(data);
    }
    assert!(sent.len() >= BUFFER_BYTES as usize && sent.len() < 8 << 20, "{}", sent.len());
    let mut received = vec![0; sent.len()];
    let mut at = 0;
    while at < sent.len() {
        at += client.read(&mut received[at..]).unwrap();
        machine.run();
    }
    assert!(received == sent);
    let mut last = forwarded;
    while let Some((header, _)) = machine.hear() {
        last = header.fwd_cnt;
    }
    assert!(last > forwarded, "the guest hears that it may go on");
    assert_eq!(machine.connections(), 1);
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    let mut sent = 0;
    let reset = loop {
        machine.say(host_port, op::RW, 0, &[0; 60_000]);
        sent += 60_000;
        assert!(sent < 8 << 20);
        match machine.hear() {
            Some((header, _)) if header.op == op::RST => break header,
            _ => (),
        }
    };
    assert_eq!(reset.src_port, host_port);
    assert_eq!(machine.connections(), 0);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
}

#[test]
fn credit_is_told_to_who_asks() {
    let mut machine = Machine::new();
    let (_client, host_port) = machine.connect();
    machine.say(host_port, op::RW, 0, &[0; 1000]);
    machine.hears_nothing();
    machine.say(host_port, op::CREDIT_REQUEST, 0, &[]);
    let (update, _) = machine.hears(op::CREDIT_UPDATE);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (BUFFER_BYTES, 1000));
    machine.hears_nothing();
}

#[test]
fn a_client_may_end_its_half_and_still_hear_the_answer() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(machine.hears(op::RW).1, b"question");
    assert_eq!(machine.hears(op::SHUTDOWN).0.flags, shutdown::SEND);
    machine.say(host_port, op::RW, 0, b"answer");
    machine.say(host_port, op::SHUTDOWN, shutdown::BOTH, &[]);
    machine.hears(op::RST);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_guest_may_end_its_half_and_still_hear_the_answer() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    machine.say(host_port, op::RW, 0, b"question");
    machine.say(host_port, op::SHUTDOWN, shutdown::SEND, &[]);
    let mut question = String::new();
    client.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    client.write_all(b"answer").unwrap();
    drop(client);
    assert_eq!(machine.hears(op::RW).1, b"answer");
    assert_eq!(machine.hears(op::SHUTDOWN).0.flags, shutdown::BOTH);
    machine.say(host_port, op::RST, 0, &[]);
    machine.hears_nothing();
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_guest_that_receives_no_more_stops_the_client() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    machine.say(host_port, op::SHUTDOWN, shutdown::RECEIVE, &[]);
    assert_eq!(client.write(b"too late").unwrap_err().kind(), ErrorKind::BrokenPipe);
    machine.say(host_port, op::RW, 0, b"still here");
    let mut bytes = [0; 10];
    client.read_exact(&mut bytes).unwrap();
    drop(client);
    assert_eq!(machine.hears(op::SHUTDOWN).0.flags, shutdown::BOTH);
}

#[test]
fn a_client_that_is_gone_is_a_guest_that_may_not_send() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    client.write_all(b"bye").unwrap();
    drop(client);
    machine.say(host_port, op::RW, 0, &[0; 100_000]);
    let mut heard = Vec::new();
    while let Some((header, data)) = machine.hear() {
        heard.push((header.op, header.flags, data));
        machine.run();
    }
    assert_eq!(heard[0], (op::RW, 0, b"bye".to_vec()));
    assert_eq!(heard.last().unwrap(), &(op::SHUTDOWN, shutdown::BOTH, vec![]));
    machine.say(host_port, op::RST, 0, &[]);
    assert_eq!(machine.connections(), 0);
}

#[test]
fn what_a_guest_sent_before_it_left_reaches_a_slow_client() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    let sent: Vec<u8> = (0..BUFFER_BYTES).map(|index| (index / 5) as u8).collect();
    for chunk in sent.chunks(1 << 16) {
        machine.say(host_port, op::RW, 0, chunk);
    }
    machine.say(host_port, op::RST, 0, &[]);
    assert_eq!(machine.connections(), 1, "not all of it fits into the socket");
    let mut received: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = client.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        received.extend(&buffer[..count]);
        machine.run();
    }
    assert!(received == sent);
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_goodbye_waits_for_a_slow_client() {
    let mut machine = Machine::new();
    let (mut client, host_port) = machine.connect();
    let sent = vec![3; BUFFER_BYTES as usize];
    machine.say(host_port, op::RW, 0, &sent);
    machine.say(host_port, op::SHUTDOWN, shutdown::BOTH, &[]);
    while let Some((header, _)) = machine.hear() {
        assert_ne!(header.op, op::RST, "too early");
    }
    let mut received: Vec<u8> = Vec::new();
    while received.len() < sent.len() {
        let mut buffer = vec![0; 4096];
        let count = client.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "cut off at {}", received.len());
        received.extend(&buffer[..count]);
        machine.run();
    }
    assert!(received == sent);
    let goodbye = std::iter::from_fn(|| machine.hear()).last();
    assert_eq!(goodbye.unwrap().0.op, op::RST);
    assert!(is_closed(&mut client));
    assert_eq!(machine.connections(), 0);
}

#[test]
fn an_end_is_an_end_even_for_a_client_that_was_still_sending() {
    let mut machine = Machine::with(3);
    let (mut client, host_port) = machine.connect();
    client.write_all(&[0; 50_000]).unwrap();
    machine.run();
    machine.say(host_port, op::RW, 0, b"enough");
    machine.say(host_port, op::SHUTDOWN, shutdown::BOTH, &[]);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "enough");
}

#[test]
fn packets_of_no_connection_are_reset() {
    let mut machine = Machine::new();
    for (index, op) in
        [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST].into_iter().enumerate()
    {
        machine.say(77 + index as u32, op, 0, &[]);
        assert_eq!(machine.hears(op::RST).0.src_port, 77 + index as u32);
    }
    machine.say(77, op::RST, 0, &[]);
    machine.hears_nothing();
}

#[test]
fn a_packet_from_another_port_does_not_touch_a_connection() {
    let mut machine = Machine::new();
    let (_client, host_port) = machine.connect();
    machine.say_exactly(Header { src_port: 9, op: op::SHUTDOWN, flags: 3, ..from_guest(host_port) }, &[]);
    assert_eq!(machine.hears(op::RST).0.dst_port, 9);
    assert_eq!(machine.connections(), 1);
}

#[test]
fn bad_packets_reset_their_connection() {
    let spoil: [fn(&mut Header); 6] = [
        |header| header.op = 0,
        |header| header.op = 99,
        |header| header.len = 1,
        |header| header.len = u32::MAX,
        |header| header.op = op::REQUEST,
        |header| header.op = op::RESPONSE,
    ];
    for (index, spoil) in spoil.into_iter().enumerate() {
        let mut machine = Machine::new();
        let (mut client, host_port) = machine.connect();
        let mut header = Header { op: op::RW, ..from_guest(host_port) };
        spoil(&mut header);
        machine.say_exactly(header, &[]);
        assert_eq!(machine.hears(op::RST).0.src_port, host_port, "{index}");
        assert_eq!(machine.connections(), 0);
        assert!(is_closed(&mut client));
    }
}

#[test]
fn packets_of_another_socket_type_are_reset_in_their_own_type() {
    let mut machine = Machine::new();
    let (_client, host_port) = machine.connect();
    let buffer = machine.driver.place(&Header { op: op::RW, kind: 2, ..from_guest(host_port) }.to_bytes());
    machine.driver.offer(TX, &[(buffer, HEADER_BYTES as u32)], &[]);
    machine.run();
    let (_, written) = machine.driver.take(RX).unwrap();
    let bytes = machine.driver.bytes(machine.receive_buffers[0], written as usize);
    let reset = Header::from_bytes(bytes[..].try_into().unwrap());
    assert_eq!((reset.kind, reset.op, reset.dst_port), (2, op::RST, GUEST_PORT));
    assert_eq!(machine.connections(), 1);
}

#[test]
fn packets_that_are_none_are_dropped() {
    let mut machine = Machine::new();
    machine.say_exactly(Header { src_cid: 43, op: op::RW, ..from_guest(1) }, &[]);
    machine.say_exactly(Header { dst_cid: 3, op: op::RW, ..from_guest(1) }, &[]);
    let buffer = machine.driver.allocate(43);
    machine.driver.offer(TX, &[(buffer, 43)], &[]);
    machine.driver.offer(TX, &[], &[(buffer, 43)]);
    machine.hears_nothing();
    assert!(machine.driver.take(TX).is_some() && machine.driver.take(TX).is_some());
    assert!(machine.transport.take_error().is_none());
}

#[test]
fn stray_packets_do_not_pile_up() {
    let mut machine = Machine::with(0);
    for port in 0..3000 {
        machine.say(port, op::RW, 0, &[]);
        machine.say(port, op::RW, 0, &[]);
    }
    machine.offer_receive(100);
    let mut resets = 0;
    machine.run();
    while machine.hear().is_some() {
        resets += 1;
        machine.run();
    }
    assert_eq!(resets, 1024);
}

#[test]
fn a_stray_packet_repeated_is_reset_once() {
    let mut machine = Machine::with(0);
    machine.say(7, op::RW, 0, &[]);
    machine.say(7, op::RW, 0, &[]);
    machine.offer_receive(2);
    machine.hears(op::RST);
    machine.hears_nothing();
}

#[test]
fn a_guest_that_sends_after_it_said_it_would_not_is_reset() {
    let mut machine = Machine::new();
    let (_client, host_port) = machine.connect();
    machine.say(host_port, op::SHUTDOWN, shutdown::SEND, &[]);
    machine.say(host_port, op::RW, 0, b"one more thing");
    machine.hears(op::RST);
    assert_eq!(machine.connections(), 0);
}

#[test]
fn a_packet_larger_than_any_credit_is_reset() {
    let mut machine = Machine::new();
    let (_client, host_port) = machine.connect();
    machine.say(host_port, op::RW, 0, &vec![0; BUFFER_BYTES as usize + 1]);
    machine.hears(op::RST);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_stops_the_device() {
    let mut machine = Machine::with(0);
    let buffer = machine.driver.allocate(43);
    machine.driver.offer(RX, &[], &[(buffer, 43)]);
    machine.say(5, op::RW, 0, &[]);
    assert_eq!(machine.transport.take_error().unwrap().to_string(), "a request has no room for a packet's header");
}

#[test]
fn a_receive_buffer_is_kept_for_when_there_is_something_to_say() {
    let mut machine = Machine::with(2);
    let (mut client, _) = machine.connect();
    machine.hears_nothing();
    assert_eq!(machine.transport.state().queues[RX].next_available, machine.transport.state().queues[RX].next_used);
    client.write_all(b"now").unwrap();
    machine.hears(op::RW);
}

#[test]
fn clients_beyond_the_limit_are_closed() {
    let mut machine = Machine::with(100);
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        clients.push(machine.client());
        machine.run();
    }
    assert_eq!(machine.connections(), MAX_CONNECTIONS);
    let mut late = machine.client();
    machine.run();
    assert!(is_closed(&mut late));
    drop(clients.pop());
    machine.run();
    machine.connect();
}

#[test]
fn a_guest_that_never_says_goodbye_does_not_use_up_the_connections() {
    let mut machine = Machine::with(100);
    let (client, first_port) = machine.connect();
    drop(client);
    machine.hears(op::SHUTDOWN);
    let mut clients = Vec::new();
    for _ in 1..MAX_CONNECTIONS {
        clients.push(machine.client());
        machine.run();
    }
    assert_eq!(machine.connections(), MAX_CONNECTIONS);
    let mut last = machine.client();
    last.write_all(b"CONNECT 1024\n").unwrap();
    assert_eq!(machine.hears(op::RST).0.src_port, first_port);
    machine.hears(op::REQUEST);
}

#[test]
fn without_a_driver_clients_wait() {
    let (listener, address) = listener();
    let mut transport = Transport::new(Vsock::new(CID, listener).unwrap());
    let mut client = UnixStream::connect_addr(&address).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let fd = transport.host_fd().unwrap();
    let woken = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
    assert_eq!(woken, 0, "nobody is woken for them");
    let driver = Driver::start(&mut transport);
    let mut machine = Machine { transport, driver, address, receive_buffers: [].into(), event_buffers: [].into() };
    machine.offer_receive(4);
    machine.hears(op::REQUEST);
}

#[test]
fn a_reset_by_the_driver_ends_all_connections() {
    let mut machine = Machine::new();
    let (mut client, _) = machine.connect();
    let _ = write32(&mut machine.transport, 0x70, 0);
    assert!(is_closed(&mut client));
    let _waiting = machine.client();
    assert!(!machine.host_is_ready(), "and wakes nobody until there is a driver again");
    machine.driver = Driver::start(&mut machine.transport);
    machine.receive_buffers.clear();
    machine.offer_receive(4);
    machine.connect();
}

/// A connection made before the guest has handled the event would be reset with the stale ones.
#[test]
fn a_twin_tells_its_guest_before_anybody_connects() {
    let mut parent = Machine::new();
    let (_parents_client, parents_port) = parent.connect();
    let mut child = parent.fork();
    let mut client = child.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    child.hears_nothing();
    assert_eq!(child.driver.take(EVENTS).map(|(_, len)| len), Some(4), "the guest is told");
    let buffer = child.event_buffers.pop_front().unwrap();
    assert_eq!(child.driver.bytes(buffer, 4), [0; 4]);
    child.hears_nothing();
    child.offer_event();
    let (request, _) = child.hears(op::REQUEST);
    assert_eq!(request.src_port, parents_port + 1, "a port that the guest has not seen");
    child.say(request.src_port, op::RESPONSE, 0, &[]);
    line(&mut client);
    assert_eq!(child.driver.take(EVENTS), None, "once");
}

#[test]
fn a_twin_resets_what_its_guest_still_believes_in() {
    let mut parent = Machine::new();
    let (_client, port) = parent.connect();
    let mut child = parent.fork();
    child.say(port, op::RW, 0, b"anybody there?");
    assert_eq!(child.hears(op::RST).0.src_port, port);
}

/// A child of a child, forked while the guest had the first event still before it: the first buffer that comes back
/// answers the first event, not the second.
#[test]
fn a_twin_of_a_twin_waits_for_both_answers() {
    let mut child = Machine::new().fork();
    child.hears_nothing();
    assert!(child.driver.take(EVENTS).is_some());
    let mut grandchild = child.fork();
    let mut client = grandchild.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    grandchild.hears_nothing();
    assert!(grandchild.driver.take(EVENTS).is_some());
    grandchild.offer_event();
    grandchild.hears_nothing();
    grandchild.offer_event();
    grandchild.hears(op::REQUEST);
}

#[test]
fn a_twin_whose_guest_has_answered_meanwhile_waits_for_one() {
    let mut child = Machine::new().fork();
    child.hears_nothing();
    child.offer_event();
    let mut grandchild = child.fork();
    let mut client = grandchild.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    grandchild.hears_nothing();
    grandchild.offer_event();
    grandchild.hears(op::REQUEST);
}

#[test]
fn a_guest_without_event_buffers_is_told_once_it_has_one() {
    let mut parent = Machine::new();
    for _ in 0..8 {
        parent = parent.fork();
        parent.run();
        assert!(parent.driver.take(EVENTS).is_some());
    }
    let mut child = parent.fork();
    child.run();
    assert_eq!(child.driver.take(EVENTS), None);
    child.offer_event();
    child.run();
    assert!(child.driver.take(EVENTS).is_some());
    let mut client = child.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    for _ in 0..8 {
        child.hears_nothing();
        child.offer_event();
    }
    child.hears(op::REQUEST);
}

#[test]
fn the_port_after_the_last_is_the_first() {
    let (listener, address) = listener();
    let state = VsockState { guest_cid: CID, next_host_port: u32::MAX - 1, answer_at: None };
    let mut transport = Transport::new(Vsock::restore(state, listener).unwrap());
    let driver = Driver::start(&mut transport);
    let mut machine = Machine { transport, driver, address, receive_buffers: [].into(), event_buffers: [].into() };
    machine.offer_receive(8);
    machine.offer_event();
    machine.run();
    machine.offer_event();
    let (_last, last_port) = machine.ask();
    let (_first, first_port) = machine.ask();
    assert_eq!((last_port, first_port), (u32::MAX - 1, FIRST_HOST_PORT));
}

#[test]
fn a_tampered_state_is_refused_by_name() {
    let good = vsock().state();
    let refused = |state| Vsock::restore(state, listener().0).err().unwrap();
    for guest_cid in [0, 2, u64::from(u32::MAX), 1 << 40] {
        assert!(
            matches!(refused(VsockState { guest_cid, ..good }), VsockRestoreError::GuestCid(cid) if cid == guest_cid)
        );
    }
    for next_host_port in [0, FIRST_HOST_PORT - 1, u32::MAX] {
        let error = refused(VsockState { next_host_port, ..good });
        assert!(matches!(error, VsockRestoreError::HostPort(port) if port == next_host_port));
    }
}

#[test]
fn a_header_goes_over_the_wire_and_back() {
    let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|index| index as u8 + 1);
    assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
    assert_eq!(Header::from_bytes(&bytes).dst_port, u32::from_le_bytes([21, 22, 23, 24]));
}

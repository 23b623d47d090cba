//! The card between a driver that plays the guest and taps: some that are made up, to fail when they are told to, and real
//! ones with the kernel behind them, where this may make any.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use pando_sys::{Offloads, Tap, tap_testing};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vm_memory::VolatileSlice;

use super::header::HEADER_BYTES;
use super::*;
use crate::contract::device_contract;
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{MmioDevice, Transport};
use crate::virtio::testing::{Descriptor, Driver, NEXT, read32, write32};

const MAC: [u8; 6] = [2, 1, 2, 3, 4, 5];
const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const MTU: u16 = 1500;
const RX: usize = 0;
const TX: usize = 1;
const NO_MERGING: u64 = !(1 << 15);
const NO_SEGMENTS: u64 = !(1 << 7 | 1 << 8 | 1 << 9);
const NO_PAIRS: u64 = !(1 << 22);
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };

/// A queue of a tap that a test holds, too.
#[derive(Clone)]
struct Wire {
    state: Arc<Mutex<Waiting>>,
    /// Becomes ready, as an edge, when the test says so.
    edge: Arc<OwnedFd>,
}

#[derive(Default)]
struct Waiting {
    to_guest: VecDeque<io::Result<Vec<u8>>>,
    from_guest: Vec<Vec<u8>>,
    /// What the next attempts to send come to; then they do.
    refusals: VecDeque<ErrorKind>,
    attached: Option<bool>,
    attaching_fails: bool,
    offloads: Option<Offloads>,
}

impl Wire {
    fn new() -> Self {
        let edge = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Self { state: Arc::default(), edge: Arc::new(edge) }
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap()
    }

    fn edge(&self) {
        rustix::io::write(&self.edge, &1u64.to_ne_bytes()).unwrap();
    }

    fn arrives(&self, frame: &[u8]) {
        self.state().to_guest.push_back(Ok([&[0; HEADER_BYTES][..], frame].concat()));
        self.edge();
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.edge.as_fd()
    }
}

impl TapQueue for Wire {
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.state().offloads = Some(offloads);
        Ok(())
    }

    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        let mut state = self.state();
        if state.attaching_fails && attached && state.attached == Some(false) {
            return Err(ErrorKind::OutOfMemory.into());
        }
        state.attached = Some(attached);
        Ok(())
    }

    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let frame = self.state().to_guest.pop_front().ok_or(ErrorKind::WouldBlock)??;
        let mut rest = &frame[..];
        for buffer in buffers {
            let (now, later) = rest.split_at(rest.len().min(buffer.len()));
            buffer.copy_from(now);
            rest = later;
        }
        Ok(frame.len())
    }

    fn write(&mut self, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        if let Some(refusal) = self.state().refusals.pop_front() {
            return Err(refusal.into());
        }
        let mut frame = head.to_vec();
        for slice in rest {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            frame.extend(bytes);
        }
        self.state().from_guest.push(frame);
        Ok(())
    }
}

/// A guest with a card.
struct Machine<T> {
    transport: Transport<Net<T>>,
    driver: Driver,
    halt: Arc<AtomicBool>,
    /// The receive buffers that the guest has offered, by their heads.
    buffers: Vec<Vec<(u16, u64)>>,
}

fn spec(queue_pairs: u8) -> NetSpec {
    NetSpec { mac: MAC, mtu: MTU, queue_pairs }
}

impl<T: TapQueue> Machine<T> {
    /// One whose driver accepts what there is of `features`.
    fn with(pairs: u8, taps: Vec<T>, features: u64) -> Self {
        let halt = Arc::<AtomicBool>::default();
        let transport = Transport::new(Net::new(spec(pairs), taps, Arc::clone(&halt)).unwrap());
        let driver = Driver::new();
        let queues = 2 * usize::from(pairs) + 1;
        let mut machine = Self { transport, driver, halt, buffers: vec![Vec::new(); queues] };
        machine.come_up(features);
        machine
    }

    fn come_up(&mut self, features: u64) {
        let queues = self.buffers.len();
        self.driver.clear_rings();
        self.driver.negotiate(&mut self.transport, features);
        (0..queues).for_each(|index| self.driver.set_up_queue(&mut self.transport, index, QUEUE_SIZE));
        self.buffers = vec![Vec::new(); queues];
        let _ = write32(&mut self.transport, 0x70, 15);
    }

    /// The same guest before a card restored from its state, above other taps, as in a fork's child.
    fn fork<U: TapQueue>(self, taps: Vec<U>) -> Machine<U> {
        let halt = Arc::<AtomicBool>::default();
        let device = Net::restore(self.transport.device().state(), taps, Arc::clone(&halt)).unwrap();
        let transport = Transport::restore(device, self.transport.state()).unwrap();
        Machine { transport, driver: self.driver, halt, buffers: self.buffers }
    }

    /// Lets the device work until it has nothing to do.
    fn run(&mut self) {
        for _ in 0..10_000 {
            self.transport.process(&self.driver.memory);
            if !self.host_is_ready() {
                return;
            }
        }
        panic!("the device is woken for what it does not do");
    }

    fn host_is_ready(&self) -> bool {
        let fd = self.transport.host_fd().unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    fn is_well(&mut self) {
        let error = self.transport.take_error();
        assert!(error.is_none(), "{error:?}");
    }

    fn counters(&self) -> Counters {
        self.transport.device().counters()
    }

    /// Offers a transmit chain of `pieces`.
    fn say(&mut self, pair: usize, pieces: &[&[u8]]) {
        let placed: Vec<_> = pieces.iter().map(|piece| (self.driver.place(piece), piece.len() as u32)).collect();
        self.driver.offer(2 * pair + TX, &placed, &[]);
    }

    /// Offers `count` receive buffers of `len` bytes, each in two pieces.
    fn lend(&mut self, pair: usize, count: usize, len: u32) {
        for _ in 0..count {
            let at = self.driver.allocate(len as usize);
            let head = self.driver.offer(2 * pair + RX, &[], &[(at, 5), (at + 5, len - 5)]);
            self.buffers[2 * pair + RX].push((head, at));
        }
    }

    /// The next frame that the guest finds, with its header, and how many buffers it was in.
    fn hear(&mut self, pair: usize) -> Option<(Vec<u8>, u16)> {
        let mut frame = Vec::new();
        let mut count = 0;
        loop {
            let Some((head, len)) = self.driver.take(2 * pair + RX) else {
                assert_eq!(count, 0, "a frame that is not there as a whole");
                return None;
            };
            let of = &mut self.buffers[2 * pair + RX];
            let index = of.iter().position(|(known, _)| u32::from(*known) == head).unwrap();
            let (_, at) = of.remove(index);
            frame.extend(self.driver.bytes(at, len as usize));
            count += 1;
            if u16::from_le_bytes([frame[10], frame[11]]) == count {
                return Some((frame, count));
            }
        }
    }

    /// Asks something of the card as a whole.
    fn command(&mut self, queue: usize, command: &[u8]) -> u8 {
        let (asked, answer) = (self.driver.place(command), self.driver.place(&[0x77]));
        self.driver.offer(queue, &[(asked, command.len() as u32)], &[(answer, 1)]);
        self.run();
        assert_eq!(self.driver.take(queue).unwrap().1, 1);
        self.driver.bytes(answer, 1)[0]
    }

    fn use_pairs(&mut self, pairs: u16) -> u8 {
        let control = self.buffers.len() - 1;
        self.command(control, &[&[4, 0][..], &pairs.to_le_bytes()].concat())
    }

    fn status(&mut self) -> u16 {
        let mut status = [0; 2];
        self.transport.read(0x106, &mut status);
        u16::from_le_bytes(status)
    }
}

fn wires(pairs: u8) -> Vec<Wire> {
    (0..pairs).map(|_| Wire::new()).collect()
}

/// A guest with one pair of queues above a made-up tap.
fn wired() -> (Machine<Wire>, Wire) {
    let wire = Wire::new();
    (Machine::with(1, vec![wire.clone()], u64::MAX), wire)
}

/// A frame from `source`, of `len` bytes with its Ethernet header.
fn frame(source: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &source, &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|at| (at % 251) as u8));
    frame
}

const NOTHING: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

device_contract!(pairs, new: Machine::with(2, wires(2), u64::MAX).transport.into_device(),
    change: |net: &mut Net<Wire>| assert!(net.use_pairs(2)),
    restore: |state| Net::restore(state, wires(2), Arc::default()).unwrap());

device_contract!(transport, new: Machine::with(2, wires(2), u64::MAX).transport,
    change: |transport: &mut Transport<_>| { let _ = write32(transport, 0x30, 3); },
    restore: |state| Transport::restore(Net::new(spec(2), wires(2), Arc::default()).unwrap(), state).unwrap());

#[test]
fn a_driver_finds_its_address_its_link_and_what_the_card_can() {
    let mut machine = Machine::with(3, wires(3), u64::MAX);
    assert_eq!(read32(&mut machine.transport, 0x08), 1);
    let mut config = [0; 14];
    machine.transport.read(0x100, &mut config);
    assert_eq!(config, [2, 1, 2, 3, 4, 5, 1, 0, 3, 0, 0xdc, 5, 0, 0]);
    let _ = write32(&mut machine.transport, 0x14, 0);
    let bits = [0, 1, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 21, 22, 28];
    assert_eq!(read32(&mut machine.transport, 0x10), bits.iter().map(|bit| 1 << bit).sum::<u32>());
    let one = Net::new(spec(1), wires(1), Arc::default()).unwrap();
    assert_eq!(VirtioDevice::features(&one) >> 22 & 1, 0, "one pair is not several");
}

#[test]
fn what_is_sent_arrives_with_what_was_checked() {
    let (mut machine, wire) = wired();
    let sent = frame(MAC, 1514);
    machine.say(0, &[&[&[0xf0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 7, 7][..], &sent[..3]].concat(), &sent[3..70], &sent[70..]]);
    machine.say(0, &[&[&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0][..], &frame(MAC, 9000)].concat()]);
    assert!(machine.transport.process(&machine.driver.memory), "the driver waits for an interrupt");
    let arrived = &wire.state().from_guest;
    assert_eq!(arrived[0], [&NOTHING[..], &sent].concat(), "what means nothing is not passed on");
    assert_eq!(arrived[1], [&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0][..], &frame(MAC, 9000)].concat());
    assert_eq!(machine.driver.take(TX).unwrap().1, 0);
    assert_eq!(machine.driver.take(TX).unwrap().1, 0);
    assert_eq!(machine.transport.device().counters().sent, 2);
}

#[test]
fn what_must_not_be_sent_is_dropped_and_counted_and_the_next_frame_is_sent() {
    let (mut machine, wire) = wired();
    let good = [&NOTHING[..], &frame(MAC, 60)].concat();
    machine.say(0, &[&good[..25]]);
    machine.say(0, &[&good[..3]]);
    machine.driver.offer(TX, &[], &[]); // Not even a descriptor, but the one that was there before.
    machine.driver.offer(TX, &[(0, 0)], &[]);
    machine.say(0, &[&[&[1, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0][..], &frame(MAC, 60)].concat()]);
    machine.say(0, &[&[&NOTHING[..], &frame(OTHER, 60)].concat()]);
    machine.say(0, &[&[&NOTHING[..], &frame(MAC, MAX_FRAME_BYTES + 1)].concat()]);
    machine.say(0, &[&[&NOTHING[..], &frame(MAC, MAX_FRAME_BYTES)].concat()]);
    machine.say(0, &[&good]);
    machine.run();
    machine.is_well();
    let counters = machine.counters();
    assert_eq!((counters.sent_as_another, counters.sent_too_long), (1, 1));
    assert!(counters.sent_malformed >= 4, "{counters:?}");
    let state = wire.state();
    let sent: Vec<_> = state.from_guest.iter().map(Vec::len).collect();
    assert_eq!(sent, [HEADER_BYTES + MAX_FRAME_BYTES, 72]);
}

#[test]
fn what_the_host_refuses_is_dropped_and_what_it_has_no_room_for_waits() {
    let (mut machine, wire) = wired();
    wire.state().refusals.extend([ErrorKind::InvalidInput, ErrorKind::Interrupted, ErrorKind::WouldBlock]);
    for len in [100, 200, 300] {
        machine.say(0, &[&NOTHING, &frame(MAC, len)]);
    }
    machine.run();
    assert_eq!(wire.state().from_guest.len(), 0);
    assert!(machine.driver.take(TX).is_some(), "the first is gone");
    assert_eq!(machine.driver.take(TX), None, "the others wait");
    machine.run();
    assert_eq!(wire.state().from_guest.len(), 0, "nobody asks before the host says so");
    wire.edge();
    machine.run();
    let lens: Vec<_> = wire.state().from_guest.iter().map(Vec::len).collect();
    assert_eq!(lens, [212, 312], "in their order");
    assert_eq!((machine.counters().sent_refused, machine.counters().sent), (1, 2));
}

#[test]
fn what_arrives_is_in_one_buffer_or_in_as_many_as_it_needs() {
    let (mut machine, wire) = wired();
    machine.lend(0, 60, 1600);
    let lens = [60, 1588, 1589, 4000, MAX_FRAME_BYTES];
    for len in lens {
        wire.arrives(&frame(OTHER, len));
    }
    assert!(machine.transport.process(&machine.driver.memory), "the driver waits for an interrupt");
    for (len, buffers) in lens.into_iter().zip([1, 1, 2, 3, 41]) {
        let (bytes, count) = machine.hear(0).unwrap();
        assert!(bytes[HEADER_BYTES..] == frame(OTHER, len), "{len}");
        assert_eq!(count, buffers);
    }
    assert_eq!(machine.hear(0), None);
    machine.run();
    // The buffers that were not needed are there for what comes next.
    wire.arrives(&frame(OTHER, 1588 + 10 * 1600));
    machine.run();
    assert_eq!(machine.hear(0).unwrap().1, 11);
    assert_eq!(machine.buffers[RX].len(), 60 - 48 - 11);
    assert_eq!(machine.counters().received, 6);
}

#[test]
fn without_a_buffer_what_arrives_waits_and_wakes_nobody() {
    let (mut machine, wire) = wired();
    machine.run();
    for len in [100, 200] {
        wire.arrives(&frame(OTHER, len));
    }
    machine.run();
    assert_eq!(wire.state().to_guest.len(), 2, "it was not read");
    machine.lend(0, 1, 1600);
    machine.run();
    assert_eq!(machine.hear(0).unwrap().0.len(), 112);
    assert_eq!(wire.state().to_guest.len(), 1);
    machine.lend(0, 1, 1600);
    machine.run();
    assert_eq!(machine.hear(0).unwrap().0.len(), 212);
}

#[test]
fn what_is_too_long_for_the_buffers_is_dropped_and_the_next_frame_has_them() {
    for (features, buffers, len) in [(u64::MAX, 2, 3300), (NO_MERGING, 5, 1600)] {
        let wire = Wire::new();
        let mut machine = Machine::with(1, vec![wire.clone()], features);
        machine.lend(0, buffers, 1600);
        wire.arrives(&frame(OTHER, len));
        wire.arrives(&frame(OTHER, 500));
        machine.run();
        assert_eq!(machine.hear(0).unwrap(), ([&NOTHING[..10], &[1, 0], &frame(OTHER, 500)].concat(), 1));
        assert_eq!((machine.counters().received_too_long, machine.counters().received), (1, 1));
    }
}

#[test]
fn frames_that_find_no_place_do_not_keep_the_device_from_others() {
    let (mut machine, wire) = wired();
    machine.lend(0, 1, 1600);
    for _ in 0..1000 {
        wire.arrives(&frame(OTHER, 1700));
    }
    machine.transport.process(&machine.driver.memory);
    assert_eq!(machine.counters().received_too_long, u64::from(QUEUE_SIZE), "so many in one call");
    assert!(machine.host_is_ready(), "and there are more");
    machine.run();
    assert_eq!(machine.counters().received_too_long, 1000);
}

#[test]
fn a_frame_that_the_host_cannot_hand_over_costs_only_itself_and_a_tap_that_is_gone_is_left_alone() {
    let (mut machine, wire) = wired();
    machine.lend(0, 4, 1600);
    wire.state().to_guest.extend([Err(ErrorKind::InvalidInput.into()), Ok(vec![0; 5])]);
    wire.arrives(&frame(OTHER, 100));
    machine.run();
    assert!(machine.hear(0).is_some());
    wire.state().to_guest.extend((0..5).map(|_| Err(ErrorKind::NotConnected.into())));
    wire.edge();
    machine.run();
    assert_eq!(machine.counters().received_broken, 3, "it is not asked again and again");
    machine.is_well();
}

#[test]
fn a_driver_that_knows_no_checksums_is_not_told_of_any() {
    for (features, flags) in [(u64::MAX, 2), (!(1 << 1) & NO_SEGMENTS, 0)] {
        let wire = Wire::new();
        let mut machine = Machine::with(1, vec![wire.clone()], features);
        machine.lend(0, 1, 1600);
        wire.state().to_guest.push_back(Ok([&[2; 1][..], &[0; 11], &frame(OTHER, 60)].concat()));
        wire.edge();
        machine.run();
        assert_eq!(machine.hear(0).unwrap().0[0], flags);
    }
}

#[test]
fn a_buffer_without_room_for_a_header_stops_the_device() {
    let (mut machine, wire) = wired();
    machine.lend(0, 1, HEADER_BYTES as u32 - 1);
    wire.arrives(&frame(OTHER, 60));
    machine.run();
    assert!(machine.transport.take_error().is_some());
}

#[test]
fn the_tap_leaves_to_the_driver_what_it_accepted_and_nothing_after_a_reset() {
    let (mut machine, wire) = wired();
    assert_eq!(wire.state().offloads, Some(ALL));
    let _ = write32(&mut machine.transport, 0x70, 0);
    assert_eq!(wire.state().offloads, Some(Offloads::default()));
    machine.come_up(!(1 << 8 | 1 << 9));
    assert_eq!(wire.state().offloads, Some(Offloads { checksum: true, tso4: true, ..Offloads::default() }));
    let other = Wire::new();
    let _child = machine.fork(vec![other.clone()]);
    assert_eq!(other.state().offloads, Some(Offloads { checksum: true, tso4: true, ..Offloads::default() }));
}

#[test]
fn the_driver_says_how_many_pairs_it_uses_and_the_tap_fills_those_only() {
    let wires = wires(3);
    let mut machine = Machine::with(3, wires.clone(), u64::MAX);
    let attached = || wires.iter().map(|wire| wire.state().attached.unwrap()).collect::<Vec<_>>();
    assert_eq!(attached(), [true, false, false]);
    machine.say(1, &[&NOTHING, &frame(MAC, 60)]);
    machine.run();
    assert_eq!(machine.counters().sent, 0, "the second pair is not in use yet");
    assert_eq!(machine.use_pairs(2), 0);
    assert_eq!(attached(), [true, true, false]);
    assert_eq!(wires[1].state().from_guest.len(), 1);
    machine.lend(1, 1, 1600);
    wires[1].arrives(&frame(OTHER, 60));
    machine.run();
    assert!(machine.hear(1).is_some());
    for wrong in [0, 4, 256, u16::MAX] {
        assert_eq!(machine.use_pairs(wrong), 1, "{wrong}");
        assert_eq!(attached(), [true, true, false]);
    }
    wires[2].state().attaching_fails = true;
    assert_eq!(machine.use_pairs(3), 1, "the host would not");
    assert_eq!(attached(), [true, true, false]);
    assert_eq!(machine.use_pairs(1), 0);
    assert_eq!(attached(), [true, false, false]);

    assert_eq!(machine.use_pairs(2), 0);
    let _ = write32(&mut machine.transport, 0x70, 0);
    assert_eq!(attached(), [true, false, false], "as for a driver that comes");
}

#[test]
fn a_driver_without_several_pairs_has_its_control_queue_behind_the_first() {
    let mut machine = Machine::with(3, wires(3), NO_PAIRS);
    assert_eq!(machine.command(2, &[4, 0, 2, 0]), 1, "it knows of no pairs");
    assert_eq!(machine.command(2, &[3, 0]), 0);
}

#[test]
fn what_is_not_offered_is_refused() {
    let mut machine = Machine::with(2, wires(2), u64::MAX);
    let commands: [&[u8]; 9] =
        [&[], &[4], &[4, 0], &[4, 0, 2], &[0, 0, 1], &[1, 1, 2, 2, 2, 2, 2, 2], &[2, 0, 1, 0], &[4, 1, 2, 0], &[9; 40]];
    for command in commands {
        let asked = machine.driver.place(&[command, &[0]].concat());
        let answer = machine.driver.place(&[0x77]);
        machine.driver.offer(4, &[(asked, command.len() as u32)], &[(answer, 1)]);
        machine.run();
        assert_eq!(machine.driver.bytes(answer, 1), [1], "{command:?}");
    }
    let asked = machine.driver.place(&[4, 0, 2, 0]);
    machine.driver.offer(4, &[(asked, 4)], &[]);
    machine.run();
    assert!(machine.transport.take_error().is_some(), "without room for an answer");
}

#[test]
fn a_child_without_a_tap_is_told_that_its_link_is_down_and_sends_into_nothing() {
    let (parent, _wire) = wired();
    let mut child = parent.fork::<Wire>(Vec::new());
    assert_eq!(child.status(), LINK_UP, "it has not been told yet");
    let generation = read32(&mut child.transport, 0xfc);
    child.say(0, &[&NOTHING, &frame(MAC, 60)]);
    child.lend(0, 1, 1600);
    assert!(child.transport.process(&child.driver.memory));
    assert_eq!(read32(&mut child.transport, 0x60), 1 | 2, "a used buffer, and news of the configuration");
    assert_eq!(child.status(), 0);
    assert_ne!(read32(&mut child.transport, 0xfc), generation);
    assert!(child.driver.take(TX).is_some());
    assert_eq!(child.counters().sent_without_link, 1);
    let _ = write32(&mut child.transport, 0x64, 3);
    assert!(!child.transport.process(&child.driver.memory), "it is told once");

    let wire = Wire::new();
    let mut again = child.fork(vec![wire.clone()]);
    again.run();
    assert_eq!(again.status(), LINK_UP | ANNOUNCE);
    wire.arrives(&frame(OTHER, 60));
    again.run();
    assert!(again.hear(0).is_some(), "in the buffer that was lent without a link");
}

#[test]
fn a_child_goes_on_with_its_pairs_and_announces_itself() {
    let mut parent = Machine::with(2, wires(2), u64::MAX);
    assert_eq!(parent.use_pairs(2), 0);
    parent.lend(1, 2, 1600);
    parent.halt.store(true, Ordering::SeqCst);
    parent.say(1, &[&NOTHING, &frame(MAC, 77)]);
    parent.run();
    assert_eq!(parent.counters().sent, 0, "no frame is begun any more");

    let wires = wires(2);
    let mut child = parent.fork(wires.clone());
    assert!(wires.iter().all(|wire| wire.state().attached.unwrap()));
    wires[1].arrives(&frame(OTHER, 60));
    assert!(child.transport.process(&child.driver.memory));
    assert_eq!(wires[1].state().from_guest.len(), 1, "what waited is sent");
    assert!(child.hear(1).is_some());
    assert_eq!(read32(&mut child.transport, 0x60) & 2, 2);
    assert_eq!(child.status(), LINK_UP | ANNOUNCE);
    assert_eq!(child.command(4, &[3, 0]), 0);
    assert_eq!(child.status(), LINK_UP);

    let mut grandchild = child.fork::<Wire>(Vec::new());
    grandchild.run();
    assert_eq!(grandchild.status(), 0);
}

#[test]
fn a_driver_that_cannot_announce_itself_is_not_asked_to() {
    for without in [!(1 << 21), !(1 << 17) & NO_PAIRS] {
        let wire = Wire::new();
        let parent = Machine::with(1, vec![wire], without);
        let mut child = parent.fork(wires(1));
        child.run();
        assert_eq!(child.status(), LINK_UP);
        assert_eq!(read32(&mut child.transport, 0x60), 0);
    }
}

#[test]
fn a_parent_goes_on_where_it_stood_still() {
    let (mut parent, wire) = wired();
    parent.lend(0, 4, 1600);
    parent.halt.store(true, Ordering::SeqCst);
    parent.say(0, &[&NOTHING, &frame(MAC, 60)]);
    wire.arrives(&frame(OTHER, 60));
    parent.run();
    assert_eq!((parent.counters().sent, parent.counters().received), (0, 0));
    parent.halt.store(false, Ordering::SeqCst);
    parent.run();
    assert_eq!((parent.counters().sent, parent.counters().received), (1, 1));
    assert_eq!(parent.status(), LINK_UP, "it has not moved");
}

#[test]
fn a_card_that_cannot_be_is_refused() {
    let good = Machine::with(2, wires(2), u64::MAX).transport.device().state();
    let refused = |state: NetState| match Net::restore(state, wires(2), Arc::default()) {
        Err(NetError::State(error)) => error,
        _ => panic!("{state:?} was not refused"),
    };
    assert_eq!(refused(NetState { mac: [1; 6], ..good }), NetStateError::Mac([1; 6]));
    assert_eq!(refused(NetState { mac: [0; 6], ..good }), NetStateError::Mac([0; 6]));
    assert_eq!(refused(NetState { mtu: 67, ..good }), NetStateError::Mtu(67));
    for (used, max) in [(1, 0), (0, 2), (3, 2), (1, 9)] {
        let state = NetState { queue_pairs: used, max_queue_pairs: max, ..good };
        assert_eq!(refused(state), NetStateError::QueuePairs { used, max });
    }
    assert_eq!(refused(NetState { status: 4, ..good }), NetStateError::Status(4));
    for taps in [1, 3] {
        let got = usize::from(taps);
        let refused = Net::restore(good, wires(taps), Arc::default());
        assert!(matches!(refused, Err(NetError::Taps { got: it, wanted: 2 }) if it == got));
    }
}

/// A guest above a real tap, and the tap's other end.
fn real(pairs: u8, features: u64) -> Option<(Machine<Tap>, File)> {
    let (taps, far) = taps(pairs)?;
    Some((Machine::with(pairs, taps, features), far))
}

fn taps(pairs: u8) -> Option<(Vec<Tap>, File)> {
    match tap_testing::tap(pairs.into()) {
        Ok((queues, far)) => Some((queues.into_iter().map(|queue| Tap::from_fd(queue).unwrap()).collect(), far.into())),
        Err(error) => {
            eprintln!("skipped: no tap can be made here: {error}");
            None
        }
    }
}

fn next(far: &mut File) -> Option<Vec<u8>> {
    let mut packet = vec![0; 80_000];
    let len = far.read(&mut packet).ok()?;
    packet.truncate(len);
    Some(packet)
}

/// TCP over IPv4 with `len` bytes of data, and the header that has it cut and summed up.
fn tcp(source: [u8; 6], len: usize) -> (Vec<u8>, [u8; HEADER_BYTES]) {
    let total = (40 + len) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = |bytes: &[u8]| {
        let sum: u32 = bytes.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    };
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut segment = vec![0, 80, 0, 90, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    let pseudo = sum(&[&ip[12..20], &[0, 6], &(total - 20).to_be_bytes()].concat());
    segment[16..18].copy_from_slice(&pseudo.to_be_bytes());
    segment.extend((0..len).map(|at| (at % 251) as u8));
    let frame = [&[0xff; 6][..], &source, &[8, 0], &ip, &segment].concat();
    (frame, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0])
}

#[test]
fn frames_go_both_ways_through_a_tap() {
    let Some((mut machine, mut far)) = real(1, u64::MAX) else { return };
    machine.lend(0, 60, 1600);
    for len in [60, 200, 1514] {
        machine.say(0, &[&NOTHING, &frame(MAC, len)]);
        machine.run();
        assert_eq!(next(&mut far).unwrap()[10..], frame(MAC, len));
        far.write_all(&[&[0; 10][..], &frame(OTHER, len)].concat()).unwrap();
        machine.run();
        assert_eq!(machine.hear(0).unwrap().0[HEADER_BYTES..], frame(OTHER, len));
    }
}

#[test]
fn sixty_kilobytes_go_both_ways_in_one_frame() {
    let Some((mut machine, mut far)) = real(1, u64::MAX) else { return };
    machine.lend(0, 100, 1600);
    let (sent, header) = tcp(MAC, 60_000);
    machine.say(0, &[&header, &sent[..5], &sent[5..30_000], &sent[30_000..]]);
    machine.run();
    machine.is_well();
    assert_eq!(machine.counters().sent, 1, "{:?}", machine.counters());
    let arrived = next(&mut far).unwrap();
    assert!(arrived[10..] == sent, "{} of {} bytes", arrived.len(), sent.len());
    assert_eq!(arrived[1], 1, "it is to be cut");

    let (sent, header) = tcp(OTHER, 60_000);
    far.write_all(&[&header[..10], &sent].concat()).unwrap();
    machine.run();
    let (arrived, buffers) = machine.hear(0).unwrap();
    assert!(arrived[HEADER_BYTES..] == sent);
    assert_eq!(arrived[..6], header[..6]);
    assert_eq!(usize::from(buffers), arrived.len().div_ceil(1600));
}

#[test]
fn a_driver_that_does_not_cut_gets_frames_that_are_cut() {
    let Some((mut machine, mut far)) = real(1, NO_SEGMENTS) else { return };
    machine.lend(0, 60, 1600);
    let (sent, header) = tcp(OTHER, 14_480);
    far.write_all(&[&header[..10], &sent].concat()).unwrap();
    machine.run();
    let lens: Vec<_> = std::iter::from_fn(|| machine.hear(0)).map(|(bytes, _)| bytes.len()).collect();
    assert_eq!(lens, [HEADER_BYTES + 1502; 10]);
}

#[test]
fn a_tap_with_several_queues_is_read_in_those_that_the_driver_uses() {
    let Some((mut machine, mut far)) = real(4, u64::MAX) else { return };
    let flows = |machine: &mut Machine<Tap>, far: &mut File, pairs: usize| {
        (0..pairs).for_each(|pair| machine.lend(pair, 32, 1600));
        for flow in 0..32u8 {
            far.write_all(&[&[0; 10][..], &[0xff; 6], &[flow; 6], &[0x88, 0xb5], &[flow; 46]].concat()).unwrap();
        }
        machine.run();
        let heard = (0..4).map(|pair| std::iter::from_fn(|| machine.hear(pair)).count());
        heard.collect::<Vec<_>>()
    };
    assert_eq!(flows(&mut machine, &mut far, 1), [32, 0, 0, 0]);
    assert_eq!(machine.use_pairs(4), 0);
    assert_eq!(flows(&mut machine, &mut far, 4).iter().sum::<usize>(), 32);
    assert_eq!(machine.use_pairs(2), 0);
    let heard = flows(&mut machine, &mut far, 2);
    assert_eq!((heard[0] + heard[1], &heard[2..]), (32, &[0, 0][..]));
}

#[test]
fn a_guest_goes_on_above_another_tap_in_the_middle_of_traffic_and_after_a_reset() {
    let Some((mut parent, mut far)) = real(1, u64::MAX) else { return };
    parent.lend(0, 20, 1600);
    parent.say(0, &[&NOTHING, &frame(MAC, 100)]);
    parent.run();
    assert!(next(&mut far).is_some());
    parent.driver.take(TX).unwrap();
    parent.say(0, &[&NOTHING, &frame(MAC, 101)]);
    far.write_all(&[&[0; 10][..], &frame(OTHER, 102)].concat()).unwrap();

    let Some((taps, mut new_far)) = taps(1) else { return };
    let mut child = parent.fork(taps);
    let (sent, header) = tcp(OTHER, 9_000);
    new_far.write_all(&[&header[..10], &sent].concat()).unwrap();
    child.run();
    assert_eq!(next(&mut new_far).unwrap()[10..], frame(MAC, 101), "what waited in the guest is sent by both");
    assert_eq!(child.hear(0).unwrap().0[HEADER_BYTES..], sent, "what waited in the parent's tap is the parent's");
    assert_eq!(child.hear(0), None);

    new_far.write_all(&[&[0; 10][..], &frame(OTHER, 103)].concat()).unwrap();
    let _ = write32(&mut child.transport, 0x70, 0);
    child.transport.process(&child.driver.memory);
    assert!(!child.host_is_ready(), "without a driver, nobody is woken");
    child.come_up(u64::MAX);
    child.lend(0, 20, 1600);
    child.run();
    assert_eq!(child.hear(0).unwrap().0[HEADER_BYTES..], frame(OTHER, 103));
    child.say(0, &[&NOTHING, &frame(MAC, 104)]);
    child.run();
    assert_eq!(next(&mut new_far).unwrap()[10..], frame(MAC, 104));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The kernel itself says what it makes of what got through.
    #[test]
    fn whatever_a_driver_sends_the_device_goes_on(
        frames in prop::collection::vec((prop::array::uniform12(0u8..), 0u8..2, 0u8..6, 0usize..3000, any::<bool>()), 1..20),
    ) {
        let Some((mut machine, mut far)) = real(1, u64::MAX) else { return Ok(()) };
        for (mut header, flags, kind, len, is_random) in frames {
            if !is_random {
                (header[0], header[1], header[3], header[7], header[9]) = (flags, kind, 0, 0, 0);
            }
            let whole = [&header[..], &frame(MAC, len.max(14))[..len]].concat();
            machine.say(0, &[&whole[..whole.len() / 2], &whole[whole.len() / 2..]]);
            machine.run();
            machine.is_well();
            prop_assert!(machine.driver.take(TX).is_some());
            while next(&mut far).is_some() {}
        }
        machine.say(0, &[&NOTHING, &frame(MAC, 60)]);
        machine.run();
        prop_assert_eq!(&next(&mut far).unwrap()[10..], &frame(MAC, 60)[..]);
    }

    /// Buffers that are many, small, or somewhere else.
    #[test]
    fn whatever_a_driver_lends_nothing_is_written_beside_it(
        pieces in prop::collection::vec((0u64..300, 0u32..4000), 1..256), len in 14usize..9000, merges: bool,
    ) {
        let wire = Wire::new();
        let mut machine = Machine::with(1, vec![wire.clone()], if merges { u64::MAX } else { NO_MERGING });
        for (index, (page, len)) in (0..).zip(&pieces) {
            let flags = 2 | if index % 7 == 6 { 0 } else { NEXT };
            let address = 0x10_0000 + page * 0x1000;
            machine.driver.describe(RX, index, Descriptor { address, len: *len, flags, next: index + 1 });
        }
        (0..pieces.len() as u16).step_by(7).for_each(|head| machine.driver.make_available(RX, head));
        for _ in 0..3 {
            wire.arrives(&frame(OTHER, len));
        }
        machine.run();
        let lent: u64 = pieces.iter().map(|(_, len)| u64::from(*len)).sum();
        prop_assert!(machine.counters().received * (len as u64 + 12) <= lent);
        prop_assert_eq!(machine.driver.bytes(0x10_0000 + 304 * 0x1000, 0x1000), vec![0; 0x1000]);
    }
}

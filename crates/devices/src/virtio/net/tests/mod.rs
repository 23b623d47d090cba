//! The card between a driver that plays the guest and taps: some that are made up, to fail when they are told to, and real
//! ones with the kernel behind them, where this may make any.

mod transmit; // from the driver
mod receive; // to the driver
mod agreed; // what both agree on
mod events; // who tells whom, and when
mod moved; // above another tap
mod real; // real taps
mod hostile; // whatever a driver says

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use pando_sys::{Offloads, Tap, tap_testing};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::VolatileSlice;

use super::header::HEADER_BYTES;
use super::*;
use crate::contract::device_contract;
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{MmioDevice, Transport};
use crate::virtio::testing::{self, Descriptor, Driver, NEXT, read32, write32};

const MAC: [u8; 6] = [2, 1, 2, 3, 4, 5];
const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const MTU: u16 = 1500;
const RX: usize = 0;
const TX: usize = 1;
const NO_MERGING: u64 = !(1 << 15);
const NO_SEGMENTS: u64 = !(1 << 7 | 1 << 8 | 1 << 9);
const NO_PAIRS: u64 = !(1 << 22);
const NO_EVENTS: u64 = !(1 << 29);
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
    /// What the guest does while the next frame goes through.
    meanwhile: Option<Box<dyn FnOnce() + Send>>,
    /// What is sent comes back.
    is_loop: bool,
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

    /// A frame goes through.
    fn passes(&self) {
        let meanwhile = self.state().meanwhile.take();
        if let Some(act) = meanwhile {
            act();
        }
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
        self.passes();
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
        self.passes();
        if self.state().is_loop {
            self.arrives(&frame[HEADER_BYTES..]);
        } else {
            self.state().from_guest.push(frame);
        }
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
        testing::run(&mut self.transport, &self.driver.memory);
    }

    fn host_is_ready(&self) -> bool {
        testing::host_is_ready(&self.transport)
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
    let bits = [0, 1, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 21, 22, 28, 29];
    assert_eq!(read32(&mut machine.transport, 0x10), bits.iter().map(|bit| 1 << bit).sum::<u32>());
    let one = Net::new(spec(1), wires(1), Arc::default()).unwrap();
    assert_eq!(VirtioDevice::features(&one) >> 22 & 1, 0, "one pair is not several");
}

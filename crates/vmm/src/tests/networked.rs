//! A machine with a network card. The toy guest does not know of it: these tests play its driver, in memory that the guest
//! leaves alone.

use super::fields;
use super::law::{WITNESS, wait_for_laps};
use super::slept::{go_on, state};
use super::toys::{MEMORY, Toys};
use crate::image::{DiskImage, Image};
use crate::platform::{PlatformError, TapsError, device_gsi};
use crate::vm::{StartError, Vm};
use pando_memory::{MMIO_DEVICE_LEN, MMIO_DEVICES};
use pando_sys::tap_testing;
use pando_wire::control::{StartNetwork, WorkingSet};
use pando_wire::network::MAC;
use std::fs::File;
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const CARD: u64 = MMIO_DEVICES + 4 * MMIO_DEVICE_LEN;
/// Where the queues are, each with descriptors, available and used ring, and buffers behind them.
const QUEUES: u64 = 64 << 20;
const QUEUE_BYTES: u64 = 0x4000;
const BUFFERS: u64 = 72 << 20;
const BUFFER_BYTES: u64 = 0x1000;
const QUEUE_SIZE: u16 = 256;
const LENT: u16 = 32;
const RX: u64 = 0;
const TX: u64 = 1;
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
const HEADER: [u8; 12] = [0; 12];

/// The driver's side of a card with the pairs of a [`WITNESS`]: it uses one.
pub(super) struct Card {
    sent: u16,
    received: u16,
}

impl Card {
    /// A driver that is ready, and has lent buffers.
    pub(super) fn come_up(vm: &Vm) -> Self {
        for status in [0, 1, 3] {
            write(vm, 0x70, status);
        }
        for half in 0..2 {
            write(vm, 0x14, half);
            let offered = read(vm, 0x10);
            write(vm, 0x24, half);
            write(vm, 0x20, offered);
        }
        write(vm, 0x70, 11);
        for queue in [RX, TX, 2 * u64::from(StartNetwork::of(WITNESS.vcpus).queue_pairs)] {
            let at = QUEUES + queue * QUEUE_BYTES;
            write(vm, 0x30, queue as u32);
            write(vm, 0x38, QUEUE_SIZE.into());
            for (register, address) in [(0x80, at), (0x90, at + 0x1000), (0xa0, at + 0x2000)] {
                write(vm, register, address as u32);
                write(vm, register + 4, 0);
            }
            write(vm, 0x44, 1);
        }
        (0..LENT).for_each(|index| offer(vm, RX, index, BUFFER_BYTES as u32, 2));
        write(vm, 0x70, 15);
        Self { sent: 0, received: 0 }
    }

    /// Sends a frame of `len` bytes.
    pub(super) fn send(&mut self, vm: &Vm, len: usize) {
        let bytes = [&HEADER[..], &frame(MAC, len)].concat();
        vm.memory.write_slice(&bytes, buffer(TX, self.sent)).unwrap();
        offer(vm, TX, self.sent, bytes.len() as u32, 0);
        self.sent += 1;
        write(vm, 0x50, TX as u32);
    }

    /// Waits for a frame, which fits into one buffer.
    fn receive(&mut self, vm: &Vm) -> Vec<u8> {
        let used = QUEUES + RX * QUEUE_BYTES + 0x2000;
        wait_for("a frame in the guest", || {
            let position: u16 = vm.memory.read_obj(GuestAddress(used + 2)).unwrap();
            (position != self.received).then_some(())
        });
        let [head, len]: [u32; 2] = vm.memory.read_obj(GuestAddress(used + 4 + 8 * u64::from(self.received))).unwrap();
        self.received += 1;
        let mut bytes = vec![0; len as usize];
        vm.memory.read_slice(&mut bytes, buffer(RX, head as u16)).unwrap();
        bytes.split_off(HEADER.len())
    }
}

/// Has the next machine that boots have a network, and the next VM a tap. The other end of that. `None` where no tap can be
/// made, which is said.
pub(super) fn with_network(toys: &mut Toys) -> Option<File> {
    let network = StartNetwork::of(WITNESS.vcpus);
    match tap_testing::tap(network.queue_pairs.into()) {
        Ok((taps, far)) => {
            (toys.network, toys.taps) = (Some(network), taps);
            Some(far.into())
        }
        Err(error) => {
            eprintln!("skipped: no tap can be made here: {error}");
            None
        }
    }
}

fn read(vm: &Vm, offset: u64) -> u32 {
    let mut data = [0; 4];
    let _ = vm.platform.mmio_read(CARD + offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(vm: &Vm, offset: u64, value: u32) {
    let _ = vm.platform.mmio_write(CARD + offset, &value.to_le_bytes());
}

fn status(vm: &Vm) -> u16 {
    let mut data = [0; 2];
    let _ = vm.platform.mmio_read(CARD + 0x106, &mut data);
    u16::from_le_bytes(data)
}

fn buffer(queue: u64, index: u16) -> GuestAddress {
    GuestAddress(BUFFERS + (queue << 20) + u64::from(index) * BUFFER_BYTES)
}

fn offer(vm: &Vm, queue: u64, index: u16, len: u32, flags: u16) {
    let at = QUEUES + queue * QUEUE_BYTES;
    let descriptor = [&buffer(queue, index).0.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &[0; 2]];
    vm.memory.write_slice(&descriptor.concat(), GuestAddress(at + 16 * u64::from(index))).unwrap();
    vm.memory.write_obj(index, GuestAddress(at + 0x1004 + 2 * u64::from(index))).unwrap();
    vm.memory.write_obj(index + 1, GuestAddress(at + 0x1002)).unwrap();
}

fn frame(source: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &source, &[0x88, 0xb5]].concat();
    frame.resize(len, 7);
    frame
}

/// What the guest sent, at the other end of its tap: how long the frame was.
fn arrives(far: &mut File) -> usize {
    let mut packet = [0; 4096];
    wait_for("a frame from the guest", || far.read(&mut packet).ok()) - 10
}

fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_goes_on_above_another_tap_in_traffic_and_without_one_its_link_is_down() {
    let Some(mut toys) = Toys::new() else { return };
    let Some(mut far) = with_network(&mut toys) else { return };
    let mut parent = toys.boot(&WITNESS.guest(MEMORY));
    let mut card = Card::come_up(&parent);
    parent.resume();
    card.send(&parent, 100);
    assert_eq!(arrives(&mut far), 100);
    far.write_all(&[&[0; 10][..], &frame([2; 6], 200)].concat()).unwrap();
    assert_eq!(card.receive(&parent), frame([2; 6], 200));
    assert_eq!(parent.platform.frames().map(|frames| (frames.sent, frames.received)), Some((1, 1)));
    assert_eq!(status(&parent), LINK_UP);
    parent.pause().unwrap();

    // What the guest sends and gets now, nobody sees before it goes on.
    card.send(&parent, 101);
    far.write_all(&[&[0; 10][..], &frame([2; 6], 201)].concat()).unwrap();
    let machine = state(&parent);
    let Some(mut new_far) = with_network(&mut toys) else { return };
    let mut child = go_on(&mut toys, &parent, machine.clone());
    let broken = fields::differences(&fields::of(&machine), &fields::of(&state(&child)));
    let of_card: Vec<_> = broken.into_iter().filter(|(name, _)| name.starts_with("platform.network")).collect();
    assert!(of_card.is_empty(), "{of_card:#?}");
    child.resume();
    assert_eq!(arrives(&mut new_far), 101);
    new_far.write_all(&[&[0; 10][..], &frame([2; 6], 202)].concat()).unwrap();
    assert_eq!(card.receive(&child), frame([2; 6], 202), "what was in the parent's tap is not the child's");
    wait_for("the question for an announcement", || (status(&child) == LINK_UP | ANNOUNCE).then_some(()));
    wait_for_laps(&toys, 6);
    child.pause().unwrap();

    let machine = state(&child);
    let mut alone = go_on(&mut toys, &child, machine);
    alone.resume();
    card.send(&alone, 103);
    wait_for("a link that is down", || (status(&alone) == 0).then_some(()));
    wait_for("a frame that goes nowhere", || {
        alone.platform.frames().filter(|frames| frames.sent_without_link == 1).map(drop)
    });
    assert_eq!(read(&alone, 0x60) & 2, 2, "the driver is told");
    wait_for_laps(&toys, 6);
}

#[test]
fn a_machine_has_a_card_if_it_booted_with_a_network_and_no_other_tap_than_its_own() {
    const DSDT_AREA: u64 = 0xe_0000;
    let Some(mut toys) = Toys::new() else { return };
    let names_a_card = |vm: &Vm| {
        let mut tables = vec![0; 0x4000];
        vm.memory.read_slice(&mut tables, GuestAddress(DSDT_AREA)).unwrap();
        tables.windows(4).any(|name| name == b"VR04")
    };
    let without = toys.boot(&WITNESS.guest(MEMORY));
    assert_eq!(read(&without, 0), 0);
    assert!(!names_a_card(&without) && !state(&without).platform.has_network());

    let Some(_far) = with_network(&mut toys) else { return };
    let refused = toys.try_start(image(&without)).map(drop).unwrap_err();
    assert!(matches!(refused, StartError::Platform(PlatformError::Taps(TapsError::NoNetwork))), "{refused:?}");

    let Some(mut toys) = Toys::new() else { return };
    let Some(_far) = with_network(&mut toys) else { return };
    let with = toys.boot(&WITNESS.guest(MEMORY));
    assert_eq!(read(&with, 0).to_le_bytes(), *b"virt");
    assert!(names_a_card(&with) && state(&with).platform.has_network());
    let Some(_far) = with_network(&mut toys) else { return };
    toys.taps.pop();
    let refused = toys.try_start(image(&with)).map(drop).unwrap_err();
    let wrong = matches!(refused, StartError::Platform(PlatformError::Taps(TapsError::Count { got: 2, wanted: 3 })));
    assert!(wrong, "{refused:?}");
}

/// What `vm` is, for another to go on with.
fn image(vm: &Vm) -> Image {
    let (machine, memory) = (state(vm), vm.memory.clone());
    vm.platform.seal_disk();
    let disk = DiskImage::Sealed(Box::new(vm.platform.take_disk().unwrap().into_sealed()));
    Image { machine, memory, disk, expected: WorkingSet::default(), arriving: None }
}

#[test]
fn every_device_has_an_interrupt_of_its_own() {
    assert_eq!([0, 1, 2, 3, 4].map(device_gsi), [16, 17, 18, 19, 21], "20 says that the generation changed");
}

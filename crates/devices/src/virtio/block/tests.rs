//! The device through its queue, before a disk that is a vector.

use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{Effect, MmioDevice, Transport};
use crate::virtio::testing::{Descriptor, Driver, INDIRECT, MEMORY_BYTES, NEXT, WRITE, read32, write32};

const SECTORS: u64 = 9_000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

#[derive(Debug, Default)]
struct Ram {
    bytes: Vec<u8>,
    flushes: usize,
    broken: bool,
    /// Where a flush says that it is under way, and waits until it may end.
    slow: Option<(Sender<()>, Mutex<Receiver<()>>)>,
}

impl Ram {
    fn check(&self) -> io::Result<()> {
        if self.broken { Err(io::Error::other("the platter is scratched")) } else { Ok(()) }
    }
}

impl Backing for Ram {
    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let start = offset as usize;
        buf.copy_from_slice(&self.bytes[start..start + buf.len()]);
        Ok(())
    }
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check()?;
        let start = offset as usize;
        self.bytes[start..start + buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.check()?;
        self.flushes += 1;
        if let Some((under_way, may_end)) = &self.slow {
            under_way.send(()).unwrap();
            may_end.lock().unwrap().recv().unwrap();
        }
        Ok(())
    }
}

struct Machine {
    transport: Transport<Block<Ram>>,
    driver: Driver,
}

impl Machine {
    fn with(access: Access) -> Self {
        // Every sector knows its number, and half a sector too many is there.
        let mut bytes: Vec<u8> = (0..=SECTORS).flat_map(|sector| sector.to_le_bytes().repeat(64)).collect();
        bytes.truncate(bytes.len() - 256);
        let disk = Ram { bytes, ..Ram::default() };
        let mut transport = Transport::new(Block::new(disk, "pando", access));
        let driver = Driver::start(&mut transport);
        Self { transport, driver }
    }

    fn new() -> Self {
        Self::with(Access::ReadWrite)
    }

    /// Sends a request in the usual buffers; returns its status, how much was written, and its data.
    fn request(&mut self, kind: u32, sector: u64, sent: &[u8], room: usize) -> (u8, u32, Vec<u8>) {
        let header = self.driver.place(&header(kind, sector));
        let data = self.driver.place(sent);
        let (answer, status) = (self.driver.allocate(room), self.driver.place(&[0xee]));
        let mut readable = vec![(header, 16)];
        let mut writable = vec![(answer, room as u32), (status, 1)];
        if !sent.is_empty() {
            readable.push((data, sent.len() as u32));
        }
        if room == 0 {
            writable.remove(0);
        }
        let head = self.driver.offer(0, &readable, &writable);
        assert!(self.transport.process(&self.driver.memory));
        let (id, written) = self.driver.take(0).unwrap();
        assert_eq!(id, u32::from(head));
        (self.driver.bytes(status, 1)[0], written, self.driver.bytes(answer, room))
    }

    fn disk(&mut self) -> &mut Ram {
        self.transport.device_mut().backing_mut()
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

#[test]
fn a_driver_is_told_the_size_and_the_limits() {
    let mut machine = Machine::new();
    let config: Vec<u32> = (0..5).map(|word| read32(&mut machine.transport, 0x100 + 4 * word)).collect();
    assert_eq!(config, [SECTORS as u32, 0, 32 << 10, 128, 0]);
}

#[test]
fn a_sector_is_read() {
    let (status, written, data) = Machine::new().request(0, 77, &[], 512);
    assert_eq!((status, written), (OK, 513));
    assert_eq!(data, 77_u64.to_le_bytes().repeat(64));
}

#[test]
fn a_sector_is_written_and_its_neighbours_are_not() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(1, 5, &[9; 512], 0), (OK, 1, vec![]));
    let (_, _, data) = machine.request(0, 4, &[], 3 * 512);
    assert_eq!(data[..512], 4_u64.to_le_bytes().repeat(64));
    assert_eq!(data[512..1024], [9; 512]);
    assert_eq!(data[1024..], 6_u64.to_le_bytes().repeat(64));
}

#[test]
fn the_largest_request_is_served() {
    let mut machine = Machine::new();
    let data: Vec<u8> = (0..MAX_REQUEST_BYTES).map(|index| (index / 7) as u8).collect();
    assert_eq!(machine.request(1, 3, &data, 0).0, OK);
    let (status, written, back) = machine.request(0, 3, &[], MAX_REQUEST_BYTES);
    assert_eq!((status, written), (OK, MAX_REQUEST_BYTES as u32 + 1));
    assert!(back == data);
}

#[test]
fn a_request_larger_than_that_is_an_error() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(0, 0, &[], MAX_REQUEST_BYTES + 512).0, IOERR);
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut machine = Machine::new();
    let header = machine.driver.place(&header(1, 9));
    let data = machine.driver.place(&[7; 512]);
    let status = machine.driver.place(&[0xee]);
    let readable = [(header, 3), (header + 3, 13), (data, 1), (data, 0), (data + 1, 511)];
    machine.driver.offer(0, &readable, &[(status, 0), (status, 1)]);
    assert!(machine.transport.process(&machine.driver.memory));
    assert_eq!(machine.driver.bytes(status, 1), [OK]);
    assert_eq!(machine.disk().bytes[9 * 512..10 * 512], [7; 512]);
}

#[test]
fn a_header_and_its_data_may_share_a_buffer_and_so_may_data_and_status() {
    let mut machine = Machine::new();
    let mut sent = header(1, 9).to_vec();
    sent.extend([7; 512]);
    let (sent, status) = (machine.driver.place(&sent), machine.driver.place(&[0xee]));
    machine.driver.offer(0, &[(sent, 528)], &[(status, 1)]);
    let read = machine.driver.place(&header(0, 9));
    let answer = machine.driver.allocate(513);
    machine.driver.offer(0, &[(read, 16)], &[(answer, 513)]);
    assert!(machine.transport.process(&machine.driver.memory));
    assert_eq!(machine.driver.bytes(answer, 513), [&[7; 512][..], &[OK]].concat());
}

#[test]
fn a_request_may_be_in_a_table_of_its_own() {
    let mut machine = Machine::new();
    let header = machine.driver.place(&header(0, 1));
    let (answer, table) = (machine.driver.allocate(513), machine.driver.allocate(48));
    let rows = [(header, 16, NEXT), (answer, 512, NEXT | WRITE), (answer + 512, 1, WRITE)];
    for (index, (address, len, flags)) in (0..).zip(rows) {
        let next = index + 1;
        machine.driver.describe_at(table + 16 * u64::from(index), Descriptor { address, len, flags, next });
    }
    machine.driver.describe(0, 5, Descriptor { address: table, len: 48, flags: INDIRECT, next: 0 });
    machine.driver.make_available(0, 5);
    assert!(machine.transport.process(&machine.driver.memory));
    assert_eq!(machine.driver.take(0), Some((5, 513)));
    assert_eq!(machine.driver.bytes(answer, 8), 1_u64.to_le_bytes());
}

#[test]
fn sectors_past_the_end_are_an_error() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(0, SECTORS - 1, &[], 512).0, OK);
    assert_eq!(machine.request(1, SECTORS - 1, &[0; 512], 0).0, OK);
    for sector in [SECTORS, SECTORS - 1 + (1 << 55), u64::MAX, u64::MAX / 512] {
        assert_eq!(machine.request(0, sector, &[], 512).0, IOERR, "read at {sector}");
        assert_eq!(machine.request(1, sector, &[0; 512], 0).0, IOERR, "write at {sector}");
    }
    assert_eq!(machine.request(0, SECTORS - 1, &[], 1024).0, IOERR, "its half sector is not offered");
}

#[test]
fn parts_of_sectors_are_an_error() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(0, 0, &[], 511).0, IOERR);
    assert_eq!(machine.request(1, 0, &[1; 513], 0).0, IOERR);
    assert_eq!(machine.disk().bytes[..512], [0; 512]);
}

#[test]
fn an_empty_request_does_nothing_well() {
    let mut machine = Machine::new();
    assert_eq!(machine.request(0, 3, &[], 0), (OK, 1, vec![]));
    assert_eq!(machine.request(1, 3, &[], 0), (OK, 1, vec![]));
}

#[test]
fn a_short_header_is_an_error() {
    let mut machine = Machine::new();
    let (header, status) = (machine.driver.place(&header(0, 0)), machine.driver.place(&[0xee]));
    machine.driver.offer(0, &[(header, 15)], &[(status, 1)]);
    machine.driver.offer(0, &[], &[(status, 1)]);
    assert!(machine.transport.process(&machine.driver.memory));
    assert_eq!(machine.driver.bytes(status, 1), [IOERR]);
    assert!(machine.driver.take(0).is_some() && machine.driver.take(0).is_some());
}

#[test]
fn a_request_without_a_status_byte_stops_the_device() {
    let mut machine = Machine::new();
    let header = machine.driver.place(&header(4, 0));
    machine.driver.offer(0, &[(header, 16)], &[]);
    assert!(machine.transport.process(&machine.driver.memory));
    assert_eq!(read32(&mut machine.transport, 0x70) & 0x40, 0x40);
    assert_eq!(machine.transport.take_error().unwrap().to_string(), "a request has no room for its status");
}

#[test]
fn data_outside_memory_stops_the_device() {
    let mut machine = Machine::new();
    let (header, status) = (machine.driver.place(&header(0, 0)), machine.driver.place(&[0xee]));
    machine.driver.offer(0, &[(header, 16)], &[(MEMORY_BYTES - 256, 512), (status, 1)]);
    assert!(machine.transport.process(&machine.driver.memory));
    assert!(machine.transport.take_error().is_some());
}

#[test]
fn the_name_is_told() {
    let mut machine = Machine::new();
    let (status, written, name) = machine.request(8, 0, &[], 20);
    assert_eq!((status, written), (OK, 21));
    assert_eq!(&name, b"pando\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(machine.request(8, 0, &[], 19).0, IOERR);
    assert_eq!(
        Block::new(Ram::default(), "a name of more than twenty bytes", Access::ReadOnly).features() & 1 << 5,
        32
    );
}

#[test]
fn what_was_not_offered_is_not_supported() {
    let mut machine = Machine::new();
    for kind in [2, 3, 11, 13, 0x8000_0000, u32::MAX] {
        assert_eq!(machine.request(kind, 0, &[0; 16], 0).0, UNSUPP, "{kind}");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut machine = Machine::with(Access::ReadOnly);
    let _ = write32(&mut machine.transport, 0x14, 0);
    assert_eq!(read32(&mut machine.transport, 0x10) & 1 << 5, 1 << 5);
    assert_eq!(machine.request(1, 0, &[1; 512], 0).0, IOERR);
    assert_eq!(machine.request(0, 0, &[], 512), (OK, 513, vec![0; 512]));
    assert_eq!(machine.request(4, 0, &[], 0).0, OK);
    assert_eq!(machine.disk().flushes, 0);
}

#[test]
fn a_flush_reaches_the_disk() {
    let mut machine = Machine::new();
    machine.request(1, 0, &[1; 512], 0);
    assert_eq!(machine.disk().flushes, 0, "a driver that knows of flushes asks for them");
    assert_eq!(machine.request(4, 0, &[], 0), (OK, 1, vec![]));
    assert_eq!(machine.disk().flushes, 1);
}

#[test]
fn a_driver_that_does_not_know_of_flushes_can_trust_every_write() {
    let mut machine = Machine::new();
    machine.driver.negotiate(&mut machine.transport, !(1 << 9));
    machine.driver.set_up_queue(&mut machine.transport, 0, 256);
    // The rings of the driver before still lie in memory.
    machine.driver.claim_available(0, 0);
    let _ = write32(&mut machine.transport, 0x70, 15);
    let (header, data) = (machine.driver.place(&header(1, 0)), machine.driver.place(&[1; 512]));
    let status = machine.driver.place(&[0xee]);
    machine.driver.offer(0, &[(header, 16), (data, 512)], &[(status, 1)]);
    assert!(machine.transport.process(&machine.driver.memory));
    assert_eq!(machine.driver.bytes(status, 1), [OK]);
    assert_eq!(machine.disk().flushes, 1);
}

#[test]
fn a_disk_that_fails_is_an_error_for_the_guest_and_a_line_for_the_host() {
    let mut machine = Machine::new();
    machine.disk().broken = true;
    assert_eq!(machine.request(0, 0, &[], 512).0, IOERR);
    let said = machine.transport.device_mut().take_last_error().unwrap();
    assert_eq!(said.to_string(), "cannot read the disk");
    assert_eq!(said.source().unwrap().to_string(), "the platter is scratched");
    assert!(machine.transport.device_mut().take_last_error().is_none(), "said once");
    assert_eq!(machine.request(1, 0, &[0; 512], 0).0, IOERR);
    assert_eq!(machine.request(4, 0, &[], 0).0, IOERR);
    machine.disk().broken = false;
    assert_eq!(machine.request(0, 0, &[], 512).0, OK, "and it may recover");
}

#[test]
fn a_disk_at_work_keeps_neither_its_driver_nor_a_pause_waiting() {
    let mut machine = Machine::new();
    let header = machine.driver.place(&header(4, 0));
    let status = machine.driver.allocate(3);
    for request in 0..3 {
        machine.driver.offer(0, &[(header, 16)], &[(status + request, 1)]);
    }
    let (under_way, is_under_way) = channel();
    let (end, may_end) = channel();
    machine.disk().slow = Some((under_way, Mutex::new(may_end)));
    let halt = Arc::new(AtomicBool::new(false));
    machine.transport.device_mut().heed(Arc::clone(&halt));
    let live = machine.transport.live().clone();

    let Machine { mut transport, mut driver } = machine;
    let memory = driver.memory.clone();
    let at_work = thread::spawn(move || {
        assert!(transport.process(&memory));
        transport
    });
    is_under_way.recv().unwrap();
    let mut interrupt_status = [9; 4];
    assert_eq!(live.read(0x60, &mut interrupt_status), Some(()));
    assert_eq!(interrupt_status, [0; 4]);
    assert_eq!(live.write(0x50, &[0; 4]), Some(Effect::Notify));
    assert_eq!(live.write(0x64, &[1, 0, 0, 0]), Some(Effect::None));
    halt.store(true, Ordering::SeqCst);
    end.send(()).unwrap();
    // Were the next flush begun, this would wait for it for ever.
    let mut transport = at_work.join().unwrap();
    assert!(driver.take(0).is_some() && driver.take(0).is_none(), "the one that was under way is answered");
    assert_eq!(read32(&mut transport, 0x60), 1);

    halt.store(false, Ordering::SeqCst);
    transport.device_mut().backing_mut().slow = None;
    assert!(transport.process(&driver.memory));
    assert!(driver.take(0).is_some() && driver.take(0).is_some(), "and the others when it goes on");
}

#[test]
fn a_twin_gets_a_disk_of_its_own() {
    let mut machine = Machine::new();
    machine.request(1, 0, &[1; 512], 0);
    let state = machine.transport.state();
    let disk = machine.transport.into_device().into_backing();
    let copy = Ram { bytes: disk.bytes.clone(), ..Ram::default() };
    machine.transport = Transport::restore(Block::new(copy, "pando", Access::ReadWrite), state).unwrap();
    assert_eq!(machine.request(0, 0, &[], 512).2, [1; 512]);
}

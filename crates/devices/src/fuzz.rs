//! One entry point per thing that a guest or a file can lie about. They only have to return.
#![allow(clippy::unwrap_used, reason = "for fuzz targets and tests only")]

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pando_sys::Offloads;
use rustix::event::{EventfdFlags, eventfd};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};

use crate::serial::Serial;
use crate::virtio::balloon::{Balloon, FreePages, PAGE_BYTES};
use crate::virtio::block::{Access, Backing, Block};
use crate::virtio::mmio::{MmioDevice, Transport, TransportState};
use crate::virtio::net::{Net, NetSpec, TapQueue};
use crate::virtio::rng::Rng;
use crate::virtio::testing::{Descriptor, Driver};
use crate::virtio::vsock::{Vsock, VsockState};
use crate::virtio::{VirtioDevice, fuzz_header, fuzz_net_header};

const MEMORY_BYTES: usize = 64 << 10;
const QUEUE_SIZE: u16 = 16;

/// `data` is the memory of a guest whose first 768 bytes hold a queue of 16: descriptors, available ring, used ring.
pub fn fuzz_block(data: &[u8]) {
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let memory = memory(data);
        let mut block = Block::new(Ram(vec![0; 16 << 10]), "fuzz", access);
        block.activate(0);
        let mut queues = [queue(0)];
        // The second call sees what the first wrote into its own rings.
        while let (Ok(_), true) = (block.process(&mut queues, &memory), queues[0].next_used() < 2 * QUEUE_SIZE) {
            if queues[0].avail_idx(&memory, Ordering::Acquire).unwrap().0 == queues[0].next_avail() {
                break;
            }
        }
    }
}

/// `data` is the memory of a guest whose first 2304 bytes hold three queues like that: inflations, deflations, reports.
pub fn fuzz_balloon(data: &[u8]) {
    let memory = memory(data);
    let mut balloon = Balloon::new(Ram(Vec::new()), Arc::default());
    balloon.activate(u64::MAX);
    // It ends with what there is.
    let _ = balloon.process(&mut [queue(0), queue(0x300), queue(0x600)], &memory);
}

/// `data` is the memory of a guest like that, whose queues receive, send and control; and its beginning a frame's header.
pub fn fuzz_net(data: &[u8]) {
    fuzz_net_header(data);
    for features in [u64::MAX, 0] {
        let memory = memory(data);
        let mut net = net();
        net.activate(features);
        let mut queues = [0, 0x300, 0x600].map(queue);
        queues.iter_mut().for_each(|queue| queue.set_event_idx(features != 0));
        // It ends with what there is.
        let _ = net.process(&mut queues, &memory);
        net.reset();
    }
}

/// `data` is a sequence of things that guest and client do while one connection lives: a byte for what, and its bytes.
pub fn fuzz_vsock(data: &[u8]) {
    let (listener, address) = listener();
    let state = VsockState { guest_cid: 3, next_host_port: 1 << 30, answer_at: None };
    let device = if data.first().is_some_and(|byte| byte & 1 == 0) {
        Vsock::new(3, listener).unwrap()
    } else {
        Vsock::restore(state, listener).unwrap()
    };
    let mut transport = Transport::new(device);
    let mut driver = Driver::start(&mut transport);
    let mut client = UnixStream::connect_addr(&address).unwrap();
    client.set_nonblocking(true).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();

    for _ in 0..8 {
        let address = driver.allocate(4096);
        driver.offer(0, &[], &[(address, 4096)]);
    }
    let mut rest = data.get(1..).unwrap_or(&[]);
    while let Some((what, tail)) = rest.split_first() {
        let (now, later) = tail.split_at(tail.len().min(32));
        rest = step(*what, now, later, &mut driver, &mut client);
        transport.process(&driver.memory);
    }
}

/// `data` is a saved state, of any of the chips.
pub fn fuzz_state(data: &[u8]) {
    if let Ok(state) = postcard::from_bytes(data)
        && let Ok((mut serial, _)) = Serial::restore(state)
    {
        for offset in 0..8 {
            serial.read(offset);
            let _ = serial.write(offset, offset);
        }
        assert!(Serial::restore(serial.state()).is_ok());
    }
    if let Ok(state) = postcard::from_bytes(data)
        && let Ok(vsock) = Vsock::restore(state, listener().0)
    {
        assert_eq!(vsock.state(), state);
    }
    if let Ok(state) = postcard::from_bytes(data)
        && let Ok(net) = Net::<Frames>::restore(state, Vec::new(), Arc::default())
    {
        assert_eq!(net.state(), state);
    }
    if let Ok((state, ram)) = postcard::take_from_bytes::<TransportState>(data) {
        run_restored(Rng::new(), &state, ram);
        run_restored(Balloon::new(Ram(Vec::new()), Arc::default()), &state, ram);
        run_restored(Block::new(Ram(vec![0; 4096]), "fuzz", Access::ReadWrite), &state, ram);
        run_restored(Vsock::new(3, listener().0).unwrap(), &state, ram);
        run_restored(net(), &state, ram);
    }
}

fn run_restored(device: impl VirtioDevice, state: &TransportState, ram: &[u8]) {
    if let Ok(mut transport) = Transport::restore(device, state.clone()) {
        assert_eq!(&transport.state(), state);
        transport.process(&memory(ram));
    }
}

/// Does one thing, and returns what is left of `later`.
fn step<'d>(what: u8, now: &[u8], later: &'d [u8], driver: &mut Driver, client: &mut UnixStream) -> &'d [u8] {
    let (first, second) = (now.first().copied().unwrap_or(0), now.get(1).copied().unwrap_or(0));
    match what % 9 {
        // Descriptors that are nothing but the data, two at a time: split, looping, outside memory, indirect.
        8 => {
            let (head, size) = (u16::from(first % 8), 8);
            for (index, bytes) in (0..).zip(now.as_chunks::<4>().0.iter().skip(1)) {
                let [page, len, flags, next] = *bytes;
                let address = u64::from(page) << 17; // Half of them are behind the memory.
                let flags = u16::from(flags % 8);
                let descriptor =
                    Descriptor { address, len: u32::from(len) << (second % 24), flags, next: u16::from(next % 9) };
                driver.describe(usize::from(second % 3), (head + index) % size, descriptor);
            }
            driver.make_available(usize::from(second % 3), head);
        }
        // A packet whose header is good but for what the data says.
        0..=2 => {
            let packet = fuzz_header(now);
            let address = driver.place(&packet);
            driver.offer(1, &[(address, packet.len() as u32)], &[]);
        }
        // A packet of nothing but the data.
        3 => {
            let address = driver.place(later);
            driver.offer(1, &[(address, later.len() as u32)], &[]);
            return &[];
        }
        4 => {
            let len = u32::from(first) << (second % 8);
            let address = driver.allocate(len as usize);
            driver.offer(0, &[], &[(address, len)]);
        }
        5 => {
            let address = driver.allocate(4);
            driver.offer(2, &[], &[(address, 4)]);
        }
        // The client may be gone, or its socket full.
        6 => drop(client.write(&vec![first; usize::from(second) * 64])),
        _ if first == 0 => drop(client.shutdown(std::net::Shutdown::Both)),
        _ if first == 1 => drop(client.shutdown(std::net::Shutdown::Write)),
        _ => drop(client.read(&mut vec![0; usize::from(second) * 256])),
    }
    later
}

fn memory(data: &[u8]) -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
    memory.write_slice(&data[..data.len().min(MEMORY_BYTES)], GuestAddress(0)).unwrap();
    memory
}

fn queue(start: u32) -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).unwrap();
    queue.set_desc_table_address(Some(start), None);
    queue.set_avail_ring_address(Some(start + 0x100), None);
    queue.set_used_ring_address(Some(start + 0x200), None);
    queue.set_ready(true);
    queue
}

fn listener() -> (UnixListener, SocketAddr) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("pando-fuzz-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), address)
}

fn net() -> Net<Frames> {
    let edge = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let frames = Frames { edge, to_guest: vec![9000, 60, 1600, 60] };
    Net::new(NetSpec { mac: [2; 6], mtu: 1500, queue_pairs: 1 }, vec![frames], Arc::default()).unwrap()
}

/// A tap in which some frames wait, of these lengths with their headers, and that takes any.
struct Frames {
    edge: OwnedFd,
    to_guest: Vec<usize>,
}

impl AsFd for Frames {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.edge.as_fd()
    }
}

impl TapQueue for Frames {
    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
    fn set_attached(&mut self, _attached: bool) -> io::Result<()> {
        Ok(())
    }
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let len = self.to_guest.pop().ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = &vec![0; len][..];
        for buffer in buffers {
            let (now, later) = rest.split_at(rest.len().min(buffer.len()));
            buffer.copy_from(now);
            rest = later;
        }
        Ok(len)
    }
    fn write(&mut self, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        for slice in rest {
            slice.copy_to(&mut vec![0u8; slice.len()]);
        }
        assert!(head[1] == 0 || head[0] == 1, "segments without a checksum got through");
        Ok(())
    }
}

struct Ram(Vec<u8>);

impl FreePages for Ram {
    fn give_back(&self, pages: Range<u32>) {
        assert!(!pages.is_empty() && u64::from(pages.end) * PAGE_BYTES <= MEMORY_BYTES as u64, "{pages:?}");
    }
}

impl Backing for Ram {
    fn len_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        buf.copy_from_slice(&self.0[start..start + buf.len()]); // A range past the end is the device's mistake.
        Ok(())
    }
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let start = offset as usize;
        self.0[start..start + buf.len()].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a fuzzer begins: what gets behind the first checks.
    fn seeds() -> Vec<(&'static str, Vec<u8>)> {
        let (mut read, header, status) = (vec![0; 0x410], 0x400_u64, 0x500_u64);
        let chain = [(header, 16_u32, 1_u16, 1_u16), (0x1000, 512, 1 | 2, 2), (status, 1, 2, 0)];
        for (descriptor, (address, len, flags, next)) in read.as_chunks_mut::<16>().0.iter_mut().zip(chain) {
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&next.to_le_bytes());
        }
        read[0x102] = 1; // One chain is available, the one that begins at descriptor 0.
        // A page in the balloon and one that is reported, each the first of its queue.
        let mut free = vec![0; 0x904];
        for (at, address, len, flags) in [(0, 0x900_u64, 4_u32, 0_u16), (0x600, 0x3000, 0x1000, 2)] {
            free[at..at + 8].copy_from_slice(&address.to_le_bytes());
            free[at + 8..at + 12].copy_from_slice(&len.to_le_bytes());
            free[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
            free[at + 0x102] = 1;
        }
        free[0x900] = 5;
        // Two receive buffers, and a frame to send: the queues are where the balloon's are.
        let mut net = vec![0; 0xa00];
        for (at, address, len, flags) in
            [(0, 0x3000_u64, 0x1000_u32, 2_u16), (0x10, 0x4000, 0x1000, 2), (0x300, 0x900, 72, 0)]
        {
            net[at..at + 8].copy_from_slice(&address.to_le_bytes());
            net[at + 8..at + 12].copy_from_slice(&len.to_le_bytes());
            net[at + 12..at + 14].copy_from_slice(&flags.to_le_bytes());
        }
        (net[0x102], net[0x106], net[0x402]) = (2, 1, 1);
        (net[0x900], net[0x906], net[0x908]) = (1, 34, 16);
        net[0x912..0x918].fill(2);
        let step = |what: u8, bytes: &[u8]| [&[what], bytes, &vec![0; 32 - bytes.len()]].concat();
        // An answer to the connection, some data, a chain of two descriptors, and the end.
        let stream = [
            vec![0],
            step(0, &[0, 0, 2, 0, 255, 8]),
            step(0, &[0, 0, 5, 0, 255, 8, 0, 0, b'h', b'i']),
            step(8, &[1, 1, 0, 0, 8, 44, 1, 2, 9, 8, 0, 0]),
            step(0, &[0, 0, 3]),
        ];
        let rng = Transport::new(Rng::new()).state();
        vec![
            ("block/read", read),
            ("balloon/free", free),
            ("net/frames", net),
            ("state/net", postcard::to_stdvec(&self::net().state()).unwrap()),
            ("vsock/stream", stream.concat()),
            ("state/serial", postcard::to_stdvec(&Serial::new().state()).unwrap()),
            ("state/rng", postcard::to_stdvec(&rng).unwrap()),
        ]
    }

    /// `PANDO_WRITE_SEEDS=1` writes them.
    #[test]
    fn the_seeds_of_fuzz_targets_are_those_checked_in_and_do_no_harm() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
        for (name, seed) in seeds() {
            let path = folder.join(name);
            if std::env::var_os("PANDO_WRITE_SEEDS").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &seed).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), seed, "{name}");
            fuzz_balloon(&seed);
            fuzz_block(&seed);
            fuzz_net(&seed);
            fuzz_vsock(&seed);
            fuzz_state(&seed);
        }
    }

    #[test]
    fn the_seed_of_the_disk_is_a_request_that_is_answered() {
        let (_, read) = seeds().remove(0);
        let memory = memory(&read);
        let mut block = Block::new(Ram(vec![7; 16 << 10]), "fuzz", Access::ReadWrite);
        let mut queues = [queue(0)];
        assert!(block.process(&mut queues, &memory).unwrap());
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x1000)).unwrap(), 7);
    }

    #[test]
    fn the_seed_of_the_network_card_is_a_frame_that_is_sent_and_one_that_arrives() {
        let (_, seed) = seeds().into_iter().find(|(name, _)| *name == "net/frames").unwrap();
        let mut card = net();
        card.activate(u64::MAX);
        assert!(card.process(&mut [queue(0), queue(0x300), queue(0x600)], &memory(&seed)).unwrap());
        assert_eq!((card.counters().sent, card.counters().received), (1, 2), "{:?}", card.counters());
    }

    /// A stand-in for a fuzzer, so that the entry points are known to work and the shallow lies are known to be harmless.
    #[test]
    fn random_lies_do_no_harm() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        for _ in 0..3000 {
            let len = next() % 2000;
            // Small numbers are the better lies.
            let data: Vec<u8> = (0..len).map(|_| (next() >> (8 * (next() % 8))) as u8 & (next() % 256) as u8).collect();
            fuzz_balloon(&data);
            fuzz_block(&data);
            fuzz_net(&data);
            fuzz_vsock(&data);
            fuzz_state(&data);
        }
    }
}

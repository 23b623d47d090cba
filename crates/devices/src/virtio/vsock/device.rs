//! Queues and sockets in, queues and sockets out.
//!
//! The sockets are watched for edges: an edge sets a flag of its connection, and an attempt that must wait clears it.
//! So the device is not woken for what it cannot serve yet, be it for want of the guest's credit or of its buffers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::announcement::Announcement;
use super::connection::{Connection, Fate};
use super::packet::{HEADER_BYTES, Header, Packet, Refusal, STREAM, op};
use super::state::{VsockRestoreError, VsockState, is_guest_cid, next_port};
use super::{BUFFER_BYTES, FIRST_HOST_PORT, HOST_CID, MAX_CONNECTIONS, socket};
use crate::virtio::chain::Chain;
use crate::virtio::{COMMON_FEATURES, DeviceError, VirtioDevice, queue, read_config_bytes};

/// The most data in a packet for the guest.
const MAX_PACKET_BYTES: usize = 64 << 10;

/// The most RSTs that wait for the guest to take them, those for connections that it made up. More are dropped.
const MAX_STRAY_RESETS: usize = 1024;

/// The most sockets that are looked at in one call; the others are still there in the next.
const EVENTS_AT_ONCE: usize = 64;

/// How the listener is called among the connections' ports.
const LISTENER: u64 = u64::MAX;

/// The vsock device of one guest.
pub struct Vsock {
    guest_cid: u64,
    listener: UnixListener,
    /// The listener waits to be accepted from: an edge, true until an attempt says "later".
    has_clients: bool,
    /// Watches the listener while there is a driver, and every connection.
    epoll: OwnedFd,
    /// By the host port that stands for it.
    connections: BTreeMap<u32, Connection>,
    next_host_port: u32,
    /// Connections with something to say to the guest, in turn.
    talkers: VecDeque<u32>,
    /// RSTs for the guest.
    resets: VecDeque<Header>,
    announcement: Announcement,
    /// Why the listener could not be watched.
    broken: Option<io::Error>,
    data: Vec<u8>,
    is_active: bool,
}

impl Vsock {
    /// The device of a guest that boots as `guest_cid`, for clients that come to `listener`.
    ///
    /// # Errors
    ///
    /// The context id is reserved (`InvalidInput`), or the host would not have it.
    pub fn new(guest_cid: u64, listener: UnixListener) -> io::Result<Self> {
        if !is_guest_cid(guest_cid) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{guest_cid} is no guest's context id")));
        }
        Self::with(guest_cid, FIRST_HOST_PORT, Announcement::default(), listener)
    }

    /// The device of a guest that was saved, or forked. The guest is told that its connections are gone; clients that
    /// come before it has acted on that wait.
    ///
    /// # Errors
    ///
    /// The state is none that can be, or the host would not have it.
    pub fn restore(state: VsockState, listener: UnixListener) -> Result<Self, VsockRestoreError> {
        let state = state.check()?;
        let announcement = Announcement::due(state.answer_at);
        Ok(Self::with(state.guest_cid, state.next_host_port, announcement, listener)?)
    }

    fn with(
        guest_cid: u64,
        next_host_port: u32,
        announcement: Announcement,
        listener: UnixListener,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            guest_cid,
            listener,
            has_clients: false,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            connections: BTreeMap::new(),
            next_host_port,
            talkers: VecDeque::new(),
            resets: VecDeque::new(),
            announcement,
            broken: None,
            data: Vec::new(),
            is_active: false,
        })
    }

    /// What to rebuild it from: nothing of its connections. Changes nothing.
    pub fn state(&self) -> VsockState {
        VsockState {
            guest_cid: self.guest_cid,
            next_host_port: self.next_host_port,
            answer_at: self.announcement.answer_at(),
        }
    }

    /// How many clients there are, whatever they are doing.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Looks which sockets something happened to.
    fn watch(&mut self) -> Result<(), DeviceError> {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, buffer, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(DeviceError::Host { what: "watch vsock clients", source: error.into() }),
        }
        for Event { flags, data } in events {
            match u32::try_from(data.u64()) {
                Ok(host_port) => self.on_socket(host_port, flags),
                Err(_) => self.has_clients = true,
            }
        }
        if self.has_clients {
            self.accept();
        }
        Ok(())
    }

    fn on_socket(&mut self, host_port: u32, flags: EventFlags) {
        // A socket that a fork's child still has open may be heard of after its connection has ended here.
        let Some(connection) = self.connections.get_mut(&host_port) else { return };
        let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let read = flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        let fate = connection.on_socket(read, flags.contains(EventFlags::OUT), gone);
        self.settle(host_port, fate);
    }

    fn accept(&mut self) {
        let mut accepted = 0;
        // The edges of accepted sockets bring the device back to the rest.
        while accepted < EVENTS_AT_ONCE {
            match self.listener.accept() {
                Ok((stream, _)) => accepted += usize::from(self.admit(stream)),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => (),
                    // Out of files or memory: the client waits for one to be freed, which is when this is called again.
                    kind => {
                        self.has_clients = kind != io::ErrorKind::WouldBlock;
                        return;
                    }
                },
            }
        }
    }

    /// Takes in a client, or closes its socket. Returns whether it was taken in.
    fn admit(&mut self, stream: UnixStream) -> bool {
        if self.connections.len() >= MAX_CONNECTIONS && !self.evict() {
            return false;
        }
        while self.connections.contains_key(&self.next_host_port) {
            self.next_host_port = next_port(self.next_host_port);
        }
        let host_port = self.next_host_port;
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        if epoll::add(&self.epoll, &stream, EventData::new_u64(host_port.into()), edges).is_err() {
            return false;
        }
        self.next_host_port = next_port(host_port);
        self.connections.insert(host_port, Connection::new(stream));
        true
    }

    /// Makes room by ending a connection whose client is gone and whose guest does not say goodbye.
    fn evict(&mut self) -> bool {
        let abandoned = self.connections.iter().find(|(_, connection)| connection.is_abandoned());
        let Some(host_port) = abandoned.map(|(host_port, _)| *host_port) else { return false };
        self.settle(host_port, Fate::Reset);
        true
    }

    /// Does with a connection what it calls for. A connection that goes on may have something to say.
    fn settle(&mut self, host_port: u32, fate: Fate) {
        if fate == Fate::Keep {
            self.list(host_port);
            return;
        }
        let Some(connection) = self.connections.remove(&host_port) else { return };
        self.talkers.retain(|talker| *talker != host_port);
        if fate == Fate::Reset {
            // The guest takes RSTs before anything else, so there are never more than connections.
            self.resets.push_back(self.addressed(Header { op: op::RST, ..Header::default() }, host_port, &connection));
        }
        // A fork's child may still have the socket, and would keep it watched; if it is gone already, so much the better.
        let _: rustix::io::Result<()> = epoll::delete(&self.epoll, &connection.stream);
        socket::close(&connection.stream);
    }

    fn list(&mut self, host_port: u32) {
        if let Some(connection) = self.connections.get_mut(&host_port)
            && !connection.listed
        {
            connection.listed = true;
            self.talkers.push_back(host_port);
        }
    }

    /// The guest sent something.
    fn receive(&mut self, chain: &Chain<'_>) -> Result<(), DeviceError> {
        match Packet::claim(chain, self.guest_cid) {
            Ok(packet) => self.on_packet(&packet)?,
            Err(Refusal::Drop) => (),
            Err(Refusal::Reset(header)) => self.refuse(&header),
        }
        Ok(())
    }

    fn on_packet(&mut self, packet: &Packet<'_, '_>) -> Result<(), DeviceError> {
        let header = packet.header;
        let Some(connection) =
            self.connections.get_mut(&header.dst_port).filter(|known| known.is_known_to_guest(header.src_port))
        else {
            self.refuse_stray(&header);
            return Ok(());
        };
        let mut data = std::mem::take(&mut self.data);
        data.clear();
        let fate = if header.op == op::RW && header.len > BUFFER_BYTES {
            Fate::Reset // More than any credit: refused before it is copied.
        } else {
            if header.op == op::RW {
                packet.read_data(&mut data)?;
            }
            connection.on_packet(&header, &data, header.dst_port)
        };
        self.data = data;
        self.settle(header.dst_port, fate);
        Ok(())
    }

    /// Resets the connection that a bad packet belongs to, if there is one.
    fn refuse(&mut self, header: &Header) {
        let known = self.connections.get(&header.dst_port);
        if header.kind == STREAM && known.is_some_and(|known| known.is_known_to_guest(header.src_port)) {
            self.settle(header.dst_port, Fate::Reset);
        } else {
            self.refuse_stray(header);
        }
    }

    /// Answers a packet of no connection.
    fn refuse_stray(&mut self, header: &Header) {
        let refusal = header.refusal();
        // Two resets answering each other would never end, and one is enough.
        if header.op != op::RST && self.resets.len() < MAX_STRAY_RESETS && !self.resets.contains(&refusal) {
            self.resets.push_back(refusal);
        }
    }

    /// Fills the guest's receive buffers, as many as there are now.
    fn deliver(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        let mut data = std::mem::take(&mut self.data);
        data.resize(MAX_PACKET_BYTES.max(data.len()), 0);
        let before = queue.next_used();
        for _ in 0..queue::available(queue, memory)? {
            if self.resets.is_empty() && self.talkers.is_empty() {
                break;
            }
            let Some(chain) = queue::pop(queue, memory)? else { break };
            let Some(room) = chain.writable_len().checked_sub(HEADER_BYTES) else {
                return Err(DeviceError::NoRoom("a packet's header"));
            };
            let Some((header, len)) = self.next_packet(room, &mut data[..MAX_PACKET_BYTES]) else {
                queue.go_to_previous_position();
                break;
            };
            chain.write_at(0, &header.to_bytes())?;
            chain.write_at(HEADER_BYTES, &data[..len])?;
            queue::give_back(queue, memory, chain.head(), (HEADER_BYTES + len) as u32)?;
        }
        self.data = data;
        queue::wants_interrupt(queue, memory, before)
    }

    /// The next packet for the guest: RSTs first, then every connection in turn.
    fn next_packet(&mut self, room: usize, data: &mut [u8]) -> Option<(Header, usize)> {
        if let Some(reset) = self.resets.pop_front() {
            return Some((reset, 0));
        }
        let may_request = self.announcement.is_over();
        while let Some(host_port) = self.talkers.pop_front() {
            let Some(connection) = self.connections.get_mut(&host_port) else { continue };
            if let Some((header, len)) = connection.next_packet(room, data, may_request) {
                self.talkers.push_back(host_port); // It may have more to say.
                let connection = &self.connections[&host_port];
                return Some((self.addressed(header, host_port, connection), len));
            }
            connection.listed = false;
        }
        None
    }

    fn addressed(&self, header: Header, host_port: u32, connection: &Connection) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: host_port,
            dst_port: connection.guest_port(),
            kind: STREAM,
            ..header
        }
    }

    fn announce(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        let was_over = self.announcement.is_over();
        let interrupt = self.announcement.serve(queue, memory)?;
        if self.announcement.is_over() && !was_over {
            let waiting = self.connections.iter().filter(|(_, connection)| connection.waits_to_be_requested());
            for host_port in waiting.map(|(host_port, _)| *host_port).collect::<Vec<_>>() {
                self.list(host_port);
            }
        }
        Ok(interrupt)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    /// Receive, transmit, events: from the driver's side.
    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256, 64]
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, _features: u64) {
        // Until now clients wait to be accepted: without a driver there is nothing to do for them.
        let edges = EventFlags::IN | EventFlags::ET;
        match epoll::add(&self.epoll, &self.listener, EventData::new_u64(LISTENER), edges) {
            Ok(()) => self.is_active = true,
            Err(error) => self.broken = Some(error.into()),
        }
    }

    fn reset(&mut self) {
        for host_port in self.connections.keys().copied().collect::<Vec<_>>() {
            self.settle(host_port, Fate::Close);
        }
        self.resets.clear();
        self.announcement = Announcement::default();
        self.has_clients = false;
        self.broken = None;
        if std::mem::take(&mut self.is_active) {
            // It was added, and nothing but this removes it.
            let _: rustix::io::Result<()> = epoll::delete(&self.epoll, &self.listener);
        }
    }

    fn process(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        if let Some(source) = self.broken.take() {
            return Err(DeviceError::Host { what: "watch for vsock clients", source });
        }
        let mut interrupt = false;
        self.watch()?;
        if let [receive, transmit, events] = queues {
            interrupt |= self.announce(events, memory)?;
            interrupt |= queue::serve(transmit, memory, || true, |chain| self.receive(chain).map(|()| 0))?;
            interrupt |= self.deliver(receive, memory)?;
        }
        Ok(interrupt)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

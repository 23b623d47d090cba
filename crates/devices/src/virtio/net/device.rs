//! The card: its configuration, its link, and whose turn it is.
//!
//! The tap's queues are watched for edges, as sockets are by vsock: an edge sets a flag of its queue, and an attempt that
//! must wait clears it. So the device is not woken for what it cannot serve for want of the driver's buffers.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pando_sys::Offloads;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::counters::Counters;
use super::header::has;
use super::state::{NetState, NetStateError, status};
use super::tap::TapQueue;
use super::{MAX_QUEUE_PAIRS, QUEUE_SIZE};
use crate::virtio::{COMMON_FEATURES, DeviceError, VirtioDevice, queue, read_config_bytes};

/// Receive and transmit of each pair, and control.
const QUEUE_SIZES: [u16; 2 * MAX_QUEUE_PAIRS as usize + 1] = [QUEUE_SIZE; 2 * MAX_QUEUE_PAIRS as usize + 1];

/// What a card is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetSpec {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The longest packet, in bytes.
    pub mtu: u16,
    /// How many pairs of queues it has, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u8,
}

/// Why there is no such card.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// It cannot be.
    #[error(transparent)]
    State(#[from] NetStateError),
    /// Its tap has another number of queues.
    #[error("a network card with {wanted} pairs of queues cannot have a tap with {got}")]
    Taps {
        /// How many queues the tap has.
        got: usize,
        /// How many the card has.
        wanted: u8,
    },
    /// The host would not have it.
    #[error("cannot set up the tap of the network card")]
    Host(#[from] io::Error),
}

/// A network card.
pub struct Net<T> {
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
    max_queue_pairs: u8,
    queue_pairs: u8,
    status: u16,
    generation: u32,
    /// The driver has yet to be asked to announce itself: it was saved, and is above another tap now.
    is_moved: bool,
    /// The driver has not been told of a change of the configuration.
    has_news: bool,
    /// One for each pair, or none: then the link is down.
    pub(super) ends: Vec<End<T>>,
    /// Watches those while there is a driver.
    epoll: OwnedFd,
    pub(super) features: u64,
    is_active: bool,
    /// What could not be done for a driver that came.
    broken: Option<io::Error>,
    halt: Arc<AtomicBool>,
    pub(super) counters: Counters,
}

/// The host's end of a pair of queues.
pub(super) struct End<T> {
    pub(super) tap: T,
    /// A frame may wait: true from an edge until an attempt says that there is none.
    pub(super) has_frames: bool,
    /// The tap may have room for a frame, likewise.
    pub(super) has_room: bool,
}

impl<T: TapQueue> Net<T> {
    /// The card of a guest that boots, above the queues of a tap. Its driver is told of nothing yet. While `halt` is set, no
    /// frame is begun.
    ///
    /// # Errors
    ///
    /// There cannot be such a card, or the host would not have it.
    pub fn new(spec: NetSpec, taps: Vec<T>, halt: Arc<AtomicBool>) -> Result<Self, NetError> {
        let NetSpec { mac, mtu, queue_pairs: max_queue_pairs } = spec;
        let status = if taps.is_empty() { 0 } else { status::LINK_UP };
        let state = NetState { mac, mtu, max_queue_pairs, queue_pairs: 1, status, generation: 0 };
        Self::with(state, taps, halt)
    }

    /// The card of a guest that was saved, or forked, above another tap, or above none. Its driver is told where that is
    /// news, and asked to announce itself.
    ///
    /// # Errors
    ///
    /// The state is none that can be, or not with this tap, or the host would not have it.
    pub fn restore(state: NetState, taps: Vec<T>, halt: Arc<AtomicBool>) -> Result<Self, NetError> {
        Ok(Self { is_moved: true, ..Self::with(state, taps, halt)? })
    }

    fn with(state: NetState, taps: Vec<T>, halt: Arc<AtomicBool>) -> Result<Self, NetError> {
        let NetState { mac, mtu, max_queue_pairs, queue_pairs, status, generation } = state.check()?;
        if !taps.is_empty() && taps.len() != usize::from(max_queue_pairs) {
            return Err(NetError::Taps { got: taps.len(), wanted: max_queue_pairs });
        }
        let mut net = Self {
            mac,
            mtu,
            max_queue_pairs,
            queue_pairs,
            status,
            generation,
            is_moved: false,
            has_news: false,
            ends: taps.into_iter().map(|tap| End { tap, has_frames: false, has_room: true }).collect(),
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(io::Error::from)?,
            features: 0,
            is_active: false,
            broken: None,
            halt,
            counters: Counters::default(),
        };
        net.attach(queue_pairs)?;
        net.leave_nothing_to_the_driver()?;
        Ok(net)
    }

    /// What to rebuild it from: nothing of its tap. Changes nothing.
    pub fn state(&self) -> NetState {
        let Self { mac, mtu, max_queue_pairs, queue_pairs, status, generation, .. } = *self;
        NetState { mac, mtu, max_queue_pairs, queue_pairs, status, generation }
    }

    /// What became of frames.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Nobody waits for this device to stand still.
    pub(super) fn goes_on(&self) -> bool {
        !self.halt.load(Ordering::SeqCst)
    }

    /// The driver announces itself now.
    pub(super) fn has_announced(&mut self) {
        self.set_status(self.status & !status::ANNOUNCE);
    }

    /// Has the card use so many pairs. Whether it does.
    pub(super) fn use_pairs(&mut self, pairs: u16) -> bool {
        let Some(pairs) = u8::try_from(pairs).ok().filter(|pairs| (1..=self.max_queue_pairs).contains(pairs)) else {
            return false;
        };
        if self.attach(pairs).is_err() {
            // As it was, as far as the host lets it.
            let _: io::Result<()> = self.attach(self.queue_pairs);
            return false;
        }
        self.queue_pairs = pairs;
        true
    }

    /// Has the tap put frames into its first `pairs` queues only: what is in others, nobody would read.
    fn attach(&mut self, pairs: u8) -> io::Result<()> {
        for (index, end) in self.ends.iter_mut().enumerate() {
            end.tap.set_attached(index < usize::from(pairs))?;
        }
        Ok(())
    }

    fn leave_nothing_to_the_driver(&mut self) -> io::Result<()> {
        self.ends.first_mut().map_or(Ok(()), |first| first.tap.set_offloads(Offloads::default()))
    }

    fn take_up(&mut self) -> io::Result<()> {
        let takes = |feature| has(self.features, feature);
        let offloads = Offloads {
            checksum: takes(VIRTIO_NET_F_GUEST_CSUM),
            tso4: takes(VIRTIO_NET_F_GUEST_TSO4),
            tso6: takes(VIRTIO_NET_F_GUEST_TSO6),
            ecn: takes(VIRTIO_NET_F_GUEST_ECN),
        };
        self.ends.first_mut().map_or(Ok(()), |first| first.tap.set_offloads(offloads))?;
        for (index, end) in self.ends.iter().enumerate() {
            // What waits already is an edge, too.
            epoll::add(&self.epoll, &end.tap, EventData::new_u64(index as u64), EDGES)?;
        }
        Ok(())
    }

    /// Has the tap's queue of `pair` tell once more whether it has frames.
    pub(super) fn watch_again(&self, pair: usize) -> Result<(), DeviceError> {
        epoll::modify(&self.epoll, &self.ends[pair].tap, EventData::new_u64(pair as u64), EDGES)
            .map_err(|error| DeviceError::Host { what: "watch the tap", source: error.into() })
    }

    /// Looks which queues of the tap something happened to.
    fn watch(&mut self) -> Result<(), DeviceError> {
        let mut events = Vec::with_capacity(self.ends.len().max(1));
        let buffer = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, buffer, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(DeviceError::Host { what: "watch the tap", source: error.into() }),
        }
        for Event { flags, data } in events {
            let end = usize::try_from(data.u64()).ok().and_then(|index| self.ends.get_mut(index));
            if let Some(end) = end {
                let is_over = flags.intersects(EventFlags::HUP | EventFlags::ERR);
                end.has_frames |= is_over || flags.contains(EventFlags::IN);
                end.has_room |= is_over || flags.contains(EventFlags::OUT);
            }
        }
        Ok(())
    }

    /// Has the configuration say how the link is, and ask a driver that has moved to announce itself.
    fn look_at_the_link(&mut self) {
        let is_moved = std::mem::take(&mut self.is_moved);
        let mut now = self.status & status::ANNOUNCE;
        if self.ends.is_empty() {
            now = 0;
        } else {
            now |= status::LINK_UP;
            let can_announce =
                has(self.features, VIRTIO_NET_F_GUEST_ANNOUNCE) && has(self.features, VIRTIO_NET_F_CTRL_VQ);
            if is_moved && can_announce {
                now |= status::ANNOUNCE;
                self.has_news = true; // Perhaps one that it had been asked for before, and could not do there any more.
            }
        }
        self.has_news |= now != self.status;
        self.set_status(now);
    }

    fn set_status(&mut self, status: u16) {
        if status != self.status {
            self.status = status;
            self.generation = self.generation.wrapping_add(1);
        }
    }

    /// The control queue is behind those that the card may have, or behind the one pair of a driver that knows of no others.
    fn control_index(&self) -> usize {
        if has(self.features, VIRTIO_NET_F_MQ) { 2 * usize::from(self.max_queue_pairs) } else { 2 }
    }
}

const EDGES: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::ET);

impl<T: TapQueue> VirtioDevice for Net<T> {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES[..2 * usize::from(self.max_queue_pairs) + 1]
    }

    fn features(&self) -> u64 {
        let several = u64::from(self.max_queue_pairs > 1) << VIRTIO_NET_F_MQ;
        COMMON_FEATURES
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | several
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_CTRL_VQ
            | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_HOST_ECN
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_ECN
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&self.status.to_le_bytes());
        config[8..10].copy_from_slice(&u16::from(self.max_queue_pairs).to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
        self.is_active = true;
        self.broken = self.take_up().err();
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.is_active) {
            for end in &mut self.ends {
                // It was added, unless that failed, and nothing but this removes it.
                let _: rustix::io::Result<()> = epoll::delete(&self.epoll, &end.tap);
                (end.has_frames, end.has_room) = (false, true);
            }
        }
        self.features = 0;
        self.queue_pairs = 1;
        // A host that refuses this leaves more queues attached, or frames uncut; the next driver sets all of it anew.
        let _: io::Result<()> = self.attach(1).and_then(|()| self.leave_nothing_to_the_driver());
        (self.is_moved, self.has_news, self.broken) = (false, false, None);
        self.set_status(if self.ends.is_empty() { 0 } else { status::LINK_UP });
    }

    fn process(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        if let Some(source) = self.broken.take() {
            return Err(DeviceError::Host { what: "set up the tap", source });
        }
        self.look_at_the_link();
        self.watch()?;
        let mut interrupt = false;
        if let Some(control) = queues.get_mut(self.control_index())
            && has(self.features, VIRTIO_NET_F_CTRL_VQ)
        {
            interrupt |= queue::serve(control, memory, || true, |chain| self.command(chain))?;
        }
        for (pair, queues) in queues.as_chunks_mut::<2>().0.iter_mut().enumerate().take(self.queue_pairs.into()) {
            let [receive, transmit] = queues;
            interrupt |= self.transmit(pair, transmit, memory)?;
            interrupt |= self.receive(pair, receive, memory)?;
        }
        Ok(interrupt)
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}

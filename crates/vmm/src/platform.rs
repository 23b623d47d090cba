//! The devices of a machine, where the guest finds them, and which interrupt is whose.

use crate::boot::{GENERATION_ADDRESS, RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_POWER_OFF};
use crate::complaints::{Complaints, chain, say};
use crate::free_pages::ToHost;
use crate::gate::lock;
use crate::server::Arriving;
use pando_devices::serial::{Serial, SerialState, SerialStateError};
use pando_devices::virtio::VirtioDevice;
use pando_devices::virtio::balloon::Balloon;
use pando_devices::virtio::block::{self, Block};
use pando_devices::virtio::mmio::{Effect, LiveRegisters, MmioDevice, Transport, TransportState, TransportStateError};
use pando_devices::virtio::net::{Net, NetError, NetSpec, NetState};
use pando_devices::virtio::rng::Rng;
use pando_devices::virtio::vsock::{Vsock, VsockRestoreError, VsockState};
use pando_disk::{Disk, FlushError};
use pando_memory::{HugePages, MMIO_DEVICE_LEN, MMIO_DEVICES};
use pando_sys::{SysError, Tap, Vm};
use pando_wire::control::StartNetwork;
use pando_wire::network::{MAC, Network};
use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// The first serial port of a PC.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
pub(crate) const SERIAL_GSI: u32 = 4;
const SERIAL_PORTS: std::ops::Range<u16> = SERIAL_PORT..SERIAL_PORT + 8;
/// Virtio devices, in this order: block, vsock, rng, balloon, net.
const DEVICE_COUNT: u32 = 5;
/// The one that only machines with a network have.
pub(crate) const NET: u32 = 4;
/// What says that the generation counter changed.
pub(crate) const GENERATION_GSI: u32 = 20;
/// The guest's address on vsock. Every guest has the same: the host's end is a Unix socket, one per VM.
const GUEST_CID: u64 = 3;

/// The interrupt line of virtio device `index`.
pub(crate) const fn device_gsi(index: u32) -> u32 {
    match index {
        NET => GENERATION_GSI + 1, // Guests know the counter's, which would be the next one.
        _ => 16 + index,
    }
}

/// The state of all devices. `None` is a device that was just reset.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PlatformState {
    serial: Option<SerialState>,
    block: Option<TransportState>,
    vsock: Option<(TransportState, VsockState)>,
    rng: Option<TransportState>,
    balloon: BalloonState,
    network: NetworkState,
}

/// The state of a network card, which not every machine has.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
enum NetworkState {
    /// The guest booted in a machine without one, and will not find one for as long as it runs.
    #[default]
    Absent,
    /// Just reset, with so many pairs of queues.
    Reset(u8),
    /// In use, or not yet.
    Saved(TransportState, NetState),
}

/// The state of a balloon, which not every machine has.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
enum BalloonState {
    /// The guest booted in a machine without one, and will not find one for as long as it runs.
    Absent,
    /// Just reset.
    #[default]
    Reset,
    /// In use, or not yet.
    Saved(TransportState),
}

/// What [`PlatformState`] was before there was a balloon.
#[derive(Deserialize)]
pub(crate) struct PlatformStateV1 {
    serial: Option<SerialState>,
    block: Option<TransportState>,
    vsock: Option<(TransportState, VsockState)>,
    rng: Option<TransportState>,
}

impl From<PlatformStateV1> for PlatformState {
    fn from(state: PlatformStateV1) -> Self {
        let PlatformStateV1 { serial, block, vsock, rng } = state;
        Self { serial, block, vsock, rng, balloon: BalloonState::Absent, network: NetworkState::Absent }
    }
}

/// What [`PlatformState`] was before there were network cards.
#[derive(Deserialize)]
pub(crate) struct PlatformStateV2 {
    serial: Option<SerialState>,
    block: Option<TransportState>,
    vsock: Option<(TransportState, VsockState)>,
    rng: Option<TransportState>,
    balloon: BalloonState,
}

impl From<PlatformStateV2> for PlatformState {
    fn from(state: PlatformStateV2) -> Self {
        let PlatformStateV2 { serial, block, vsock, rng, balloon } = state;
        Self { serial, block, vsock, rng, balloon, network: NetworkState::Absent }
    }
}

impl PlatformState {
    /// The devices of a machine at power-on, with a network card if it has a `network`.
    pub(crate) fn power_on(network: Option<StartNetwork>) -> Self {
        let network = network.map_or(NetworkState::Absent, |network| NetworkState::Reset(network.queue_pairs));
        Self { network, ..Self::default() }
    }

    /// Whether this machine can have a tap of so many queues, or none.
    pub(crate) fn check_taps(&self, got: usize) -> Result<(), TapsError> {
        let wanted = match &self.network {
            NetworkState::Absent => 0,
            NetworkState::Reset(pairs) => (*pairs).into(),
            NetworkState::Saved(_, state) => state.max_queue_pairs.into(),
        };
        match (got, wanted) {
            (0, _) => Ok(()),
            (_, 0) => Err(TapsError::NoNetwork),
            _ if got == wanted => Ok(()),
            _ => Err(TapsError::Count { got, wanted }),
        }
    }
}

#[cfg(test)]
impl PlatformState {
    /// The same of a machine that has no balloon.
    pub(crate) fn without_balloon(self) -> Self {
        Self { balloon: BalloonState::Absent, ..self }
    }

    pub(crate) fn has_network(&self) -> bool {
        self.network != NetworkState::Absent
    }

    pub(crate) fn has_balloon(&self) -> bool {
        self.balloon != BalloonState::Absent
    }
}

/// What only this VM has, and its parent and siblings have not.
pub(crate) struct Twin {
    /// What VMGENID shows.
    pub(crate) id: [u8; 16],
    /// Whether its guest was another VM's until now.
    pub(crate) is_new: bool,
}

/// The devices' host side.
pub(crate) struct Host {
    pub(crate) console: File,
    pub(crate) vsock: UnixListener,
    /// The queues of a tap; none where there is none.
    pub(crate) taps: Vec<OwnedFd>,
    /// What the disk's own layer is called in messages.
    pub(crate) layer: String,
    /// What brings the guest's memory, where it is not all there.
    pub(crate) arriving: Option<Arc<Arriving>>,
    /// What makes huge pages of it.
    pub(crate) huge: HugePages,
}

/// What an access did beside being answered.
#[must_use]
pub(crate) enum Access {
    Done,
    PowerOff,
    Reset,
}

/// Why a machine cannot have the tap that it was given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapsError {
    /// Its guest booted without a card, and looks for none.
    #[error("a machine that booted without a network cannot be given one")]
    NoNetwork,
    /// Not as many queues as its card has.
    #[error("the network card of this machine has {wanted} pairs of queues, and its tap {got} queues")]
    Count {
        /// How many the tap has.
        got: usize,
        /// How many the card has.
        wanted: usize,
    },
}

/// Why the devices cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlatformError {
    /// A saved transport that no transport can have saved.
    #[error("the saved state of a device is not one that it can have")]
    Transport(#[from] TransportStateError),
    /// A saved serial port that no port can have been.
    #[error("the saved state of the serial port is not one that it can have")]
    Serial(#[from] SerialStateError),
    /// A saved vsock that no vsock can have been, or no room for its sockets.
    #[error("cannot restore vsock")]
    Vsock(#[from] VsockRestoreError),
    /// A tap that this machine cannot have.
    #[error(transparent)]
    Taps(#[from] TapsError),
    /// What came is no tap, or made in another way.
    #[error("cannot use what was given as a tap")]
    Tap(#[from] SysError),
    /// A saved network card that no card can have been, or a tap that does not do what it should.
    #[error("cannot set up the network card")]
    Net(#[from] NetError),
    /// A file or socket.
    #[error("cannot set up a device's host side")]
    Host(#[from] io::Error),
    /// The generation counter does not lie in memory.
    #[error("cannot write the generation counter")]
    Generation(#[from] GuestMemoryError),
}

/// The devices of one machine.
pub(crate) struct Platform {
    vm: Arc<Vm>,
    memory: GuestMemoryMmap,
    wake: OwnedFd,
    serial: Mutex<(Serial, File)>,
    /// `None` only in the seed of a fork, which took the disk and has no use for the rest.
    pub(crate) block: Mutex<Option<Transport<Block<Disk>>>>,
    vsock: Mutex<Transport<Vsock>>,
    rng: Mutex<Transport<Rng>>,
    /// `None` where the guest booted in a machine without one.
    balloon: Option<Mutex<Transport<Balloon<ToHost>>>>,
    /// Likewise.
    net: Option<Mutex<Transport<Net<Tap>>>>,
    /// What need not wait for those, by index.
    live: [Option<LiveRegisters>; DEVICE_COUNT as usize],
    layer: String,
    complaints: Mutex<Complaints>,
    /// The restored serial port has an interrupt to raise.
    serial_interrupt: AtomicBool,
    /// The generation counter changed since the guest ran last.
    is_new_twin: AtomicBool,
}

impl Platform {
    /// Builds the devices from their states, with files of their own. While `halt` is set, no device begins what may
    /// take long.
    pub(crate) fn build(
        state: &PlatformState,
        twin: &Twin,
        disk: Disk,
        host: Host,
        vm: Arc<Vm>,
        memory: &GuestMemoryMmap,
        halt: Arc<AtomicBool>,
    ) -> Result<Self, PlatformError> {
        state.check_taps(host.taps.len())?;
        memory.write_slice(&twin.id, GuestAddress(GENERATION_ADDRESS))?;
        let (serial, serial_interrupt) = match &state.serial {
            None => (Serial::new(), false),
            Some(state) => Serial::restore(state.clone())?,
        };
        let Host { console, vsock, taps, layer, arriving, huge } = host;
        let mut disk = Block::new(disk, "root", block::Access::ReadWrite);
        disk.heed(Arc::clone(&halt));
        let block = transport(disk, state.block.as_ref())?;
        let vsock = match &state.vsock {
            None => Transport::new(Vsock::new(GUEST_CID, vsock)?),
            Some((transport, state)) => Transport::restore(Vsock::restore(*state, vsock)?, transport.clone())?,
        };
        let rng = transport(Rng::new(), state.rng.as_ref())?;
        let net = net(&state.network, taps, Arc::clone(&halt))?;
        let balloon = Balloon::new(ToHost { memory: memory.clone(), arriving, huge }, halt);
        let balloon = match &state.balloon {
            BalloonState::Absent => None,
            BalloonState::Reset => Some(Transport::new(balloon)),
            BalloonState::Saved(state) => Some(Transport::restore(balloon, state.clone())?),
        };
        let (balloon_live, net_live) = (balloon.as_ref().map(Transport::live), net.as_ref().map(Transport::live));
        let live = [Some(block.live()), Some(vsock.live()), Some(rng.live()), balloon_live, net_live];
        Ok(Self {
            vm,
            memory: memory.clone(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?,
            serial: Mutex::new((serial, console)),
            live: live.map(|live| live.cloned()),
            layer,
            complaints: Mutex::default(),
            block: Mutex::new(Some(block)),
            vsock: Mutex::new(vsock),
            rng: Mutex::new(rng),
            balloon: balloon.map(Mutex::new),
            net: net.map(Mutex::new),
            serial_interrupt: AtomicBool::new(serial_interrupt),
            is_new_twin: AtomicBool::new(twin.is_new),
        })
    }

    /// The state of all devices. Everything stands still.
    pub(crate) fn state(&self) -> PlatformState {
        let vsock = lock(&self.vsock);
        PlatformState {
            serial: Some(lock(&self.serial).0.state()),
            block: lock(&self.block).as_ref().map(Transport::state),
            vsock: Some((vsock.state(), vsock.device().state())),
            rng: Some(lock(&self.rng).state()),
            balloon: self.balloon.as_ref().map_or(BalloonState::Absent, |it| BalloonState::Saved(lock(it).state())),
            network: self.net.as_ref().map_or(NetworkState::Absent, |net| {
                let net = lock(net);
                NetworkState::Saved(net.state(), net.device().state())
            }),
        }
    }

    /// What became of frames, in a machine with a network.
    pub(crate) fn frames(&self) -> Option<pando_devices::virtio::net::Counters> {
        self.net.as_ref().map(|net| lock(net).device().counters())
    }

    /// Freezes what the disk holds, for both sides of a fork.
    pub(crate) fn seal_disk(&self) {
        if let Some(block) = lock(&self.block).as_mut() {
            block.device_mut().backing_mut().seal();
        }
    }

    /// How large the disk is, in bytes, and of how many layers it is made, its own included.
    pub(crate) fn disk_size(&self) -> (u64, usize) {
        let size = |block: &Transport<Block<Disk>>| {
            let disk = block.device().backing();
            (disk.len_bytes(), disk.layers())
        };
        lock(&self.block).as_ref().map_or((0, 0), size)
    }

    /// Makes durable what the disk holds. Its device thread stands still.
    pub(crate) fn flush_disk(&self) -> Result<(), FlushError> {
        lock(&self.block).as_mut().map_or(Ok(()), |block| block.device_mut().backing_mut().flush())
    }

    /// Takes the disk out, in the seed of a fork. `None` when that was done before.
    pub(crate) fn take_disk(&self) -> Option<Disk> {
        lock(&self.block).take().map(|block| block.into_device().into_backing())
    }

    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) -> Access {
        data.fill(0);
        if let Some((index, offset)) = device_at(address)
            && self.live(index).is_some_and(|live| live.read(offset, data).is_none())
        {
            self.with_device(index, |device| device.read(offset, data));
        } // Else nothing is there, and reads as zero.
        Access::Done
    }

    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) -> Access {
        if let Some((index, offset)) = device_at(address) {
            let effect = self.live(index).and_then(|live| live.write(offset, data));
            let effect = effect.or_else(|| self.with_device(index, |device| device.write(offset, data)));
            if effect == Some(Effect::Notify) {
                self.wake_devices();
            }
        }
        Access::Done
    }

    pub(crate) fn port_in(&self, port: u16, data: &mut [u8]) -> Access {
        data.fill(0xff); // What an empty bus reads as.
        if SERIAL_PORTS.contains(&port) {
            let mut serial = lock(&self.serial);
            for byte in data {
                *byte = serial.0.read((port - SERIAL_PORT) as u8);
            }
        } else if (SLEEP_CONTROL_PORT..=RESET_PORT).contains(&port) {
            data.fill(0);
        }
        Access::Done
    }

    pub(crate) fn port_out(&self, port: u16, data: &[u8]) -> Access {
        match port {
            SLEEP_CONTROL_PORT if data.contains(&SLEEP_POWER_OFF) => return Access::PowerOff,
            RESET_PORT => return Access::Reset,
            _ if SERIAL_PORTS.contains(&port) => self.serial_out((port - SERIAL_PORT) as u8, data),
            _ => (), // The guest may probe for hardware that it does not have.
        }
        Access::Done
    }

    fn serial_out(&self, offset: u8, data: &[u8]) {
        let mut serial = lock(&self.serial);
        for byte in data {
            let effect = serial.0.write(offset, *byte);
            if let Some(byte) = effect.output {
                // A log that is full loses output; a guest that stopped for it would lose more.
                let _ = serial.1.write_all(&[byte]);
            }
            if effect.interrupt {
                self.interrupt(SERIAL_GSI);
            }
        }
    }

    /// Lets every device do what there is to do.
    pub(crate) fn process_devices(&self) {
        for index in 0..DEVICE_COUNT {
            let wanted = self.with_device(index, |device| {
                let interrupt = device.process(&self.memory);
                if let Some(error) = device.take_error() {
                    let why = chain(&error).join(": ");
                    self.complain(format!("pando: virtio device {index} waits for its driver to reset it: {why}"));
                }
                interrupt
            });
            if wanted == Some(true) {
                self.interrupt(device_gsi(index));
            }
        }
        self.tell_of_the_disk();
    }

    /// Says what the disk failed to do, of which the guest knows no more than that there was something.
    fn tell_of_the_disk(&self) {
        let failed = lock(&self.block).as_mut().and_then(|block| block.device_mut().take_last_error());
        match failed {
            Some(error) => self.complain(format!("pando: {} ({})", chain(&error).join(": "), self.layer)),
            None => lock(&self.complaints).retry(say),
        }
    }

    fn complain(&self, line: String) {
        lock(&self.complaints).add(line, Instant::now(), say);
    }

    /// Sends every interrupt that a restored machine owes its guest: that the generation changed, and again each that the
    /// guest has not acknowledged. The edge may have been lost on the way into the
    /// saved state, and one too many does no harm.
    pub(crate) fn repeat_interrupts(&self) {
        if self.serial_interrupt.swap(false, Ordering::Relaxed) {
            self.interrupt(SERIAL_GSI);
        }
        if self.is_new_twin.swap(false, Ordering::Relaxed) {
            self.interrupt(GENERATION_GSI);
        }
        for index in 0..DEVICE_COUNT {
            if self.with_device(index, |device| device.interrupt_pending()) == Some(true) {
                self.interrupt(device_gsi(index));
            }
        }
    }

    /// Makes the device thread look at all queues.
    pub(crate) fn wake_devices(&self) {
        // It can only fail when the counter is at its limit, and then the thread is as good as awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(crate) fn clear_wake(&self) {
        // There may be nothing to clear.
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    /// What becomes readable when the host wants something of a device.
    pub(crate) fn host_fds(&self) -> io::Result<Vec<OwnedFd>> {
        let fds = (0..DEVICE_COUNT).filter_map(|index| {
            self.with_device(index, |device| device.host_fd().map(|fd| fd.try_clone_to_owned())).flatten()
        });
        fds.collect()
    }

    fn live(&self, index: u32) -> Option<&LiveRegisters> {
        self.live.get(index as usize)?.as_ref()
    }

    fn with_device<R>(&self, index: u32, action: impl FnOnce(&mut dyn MmioDevice) -> R) -> Option<R> {
        match index {
            0 => lock(&self.block).as_mut().map(|device| action(device)),
            1 => Some(action(&mut *lock(&self.vsock))),
            2 => Some(action(&mut *lock(&self.rng))),
            3 => self.balloon.as_ref().map(|balloon| action(&mut *lock(balloon))),
            NET => self.net.as_ref().map(|net| action(&mut *lock(net))),
            _ => None,
        }
    }

    fn interrupt(&self, gsi: u32) {
        // It can only fail for a VM without interrupt controllers.
        let _ = self.vm.pulse_interrupt(gsi);
    }
}

fn net(
    state: &NetworkState,
    taps: Vec<OwnedFd>,
    halt: Arc<AtomicBool>,
) -> Result<Option<Transport<Net<Tap>>>, PlatformError> {
    let taps = taps.into_iter().map(Tap::from_fd).collect::<Result<_, _>>()?;
    Ok(match state {
        NetworkState::Absent => None,
        NetworkState::Reset(queue_pairs) => {
            let spec = NetSpec { mac: MAC, mtu: Network::GUEST.mtu, queue_pairs: *queue_pairs };
            Some(Transport::new(Net::new(spec, taps, halt)?))
        }
        NetworkState::Saved(transport, state) => {
            Some(Transport::restore(Net::restore(*state, taps, halt)?, transport.clone())?)
        }
    })
}

fn transport<D: VirtioDevice>(device: D, state: Option<&TransportState>) -> Result<Transport<D>, TransportStateError> {
    match state {
        None => Ok(Transport::new(device)),
        Some(state) => Transport::restore(device, state.clone()),
    }
}

fn device_at(address: u64) -> Option<(u32, u64)> {
    let offset = address.checked_sub(MMIO_DEVICES)?;
    let index = u32::try_from(offset / MMIO_DEVICE_LEN).ok().filter(|index| *index < DEVICE_COUNT)?;
    Some((index, offset % MMIO_DEVICE_LEN))
}

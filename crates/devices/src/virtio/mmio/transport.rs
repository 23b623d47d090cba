//! The registers, and the device behind them.

use std::os::fd::BorrowedFd;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::register::{self, interrupt, status};
use super::{Effect, LiveRegisters, MmioDevice};
use crate::virtio::{DeviceError, VirtioDevice};

/// A device with the registers that its driver speaks to.
pub struct Transport<D> {
    pub(super) device: D,
    pub(super) queues: Vec<Queue>,
    pub(super) registers: Registers,
    pub(super) live: LiveRegisters,
    error: Option<DeviceError>,
}

/// What the driver has written so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Registers {
    pub(super) status: u32,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
}

impl Registers {
    /// The driver is ready, and neither side has given up.
    pub(super) fn is_running(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED) == status::DRIVER_OK
    }
}

impl<D: VirtioDevice> Transport<D> {
    /// A device that no driver has spoken to yet.
    ///
    /// # Panics
    ///
    /// One of the device's queue sizes is not a power of two: a mistake in the device, seen when it is first made.
    pub fn new(device: D) -> Self {
        let queues =
            device.queue_sizes().iter().map(|size| Queue::new(*size).expect("queue sizes are powers of two")).collect();
        Self::with(device, queues, Registers::default())
    }

    pub(super) fn with(device: D, queues: Vec<Queue>, registers: Registers) -> Self {
        Self { device, queues, registers, live: LiveRegisters::default(), error: None }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// The registers that need not wait for the device.
    pub fn live(&self) -> &LiveRegisters {
        &self.live
    }

    /// The device alone, without telling it anything.
    pub fn into_device(self) -> D {
        self.device
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = &self.registers;
        match offset {
            register::MAGIC_VALUE => register::MAGIC,
            register::VERSION => register::LAYOUT,
            register::DEVICE_ID => self.device.device_type(),
            register::VENDOR_ID => register::VENDOR,
            register::DEVICE_FEATURES => half(self.device.features(), registers.device_features_select),
            register::QUEUE_NUM_MAX => self.selected().map_or(0, |queue| u32::from(queue.max_size())),
            register::QUEUE_READY => self.selected().map_or(0, |queue| u32::from(queue.ready())),
            register::STATUS => registers.status,
            // There is no shared memory, which reads as a length and a base of -1.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => self.device.config_generation(),
            _ => 0, // Registers to write, and holes.
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            register::DEVICE_FEATURES_SEL => self.registers.device_features_select = value,
            register::DRIVER_FEATURES_SEL => self.registers.driver_features_select = value,
            register::DRIVER_FEATURES => self.accept_features(value),
            register::QUEUE_SEL => self.registers.queue_select = value,
            register::QUEUE_READY => self.set_queue_ready(value),
            register::STATUS => return self.set_status(value),
            _ => self.configure_queue(offset, value),
        }
        Effect::None
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.registers.queue_select).ok()?)
    }

    fn selected_mut(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::try_from(self.registers.queue_select).ok()?)
    }

    /// Features are negotiated between DRIVER and FEATURES_OK.
    fn accept_features(&mut self, value: u32) {
        let registers = &mut self.registers;
        let negotiating = registers.status & (status::DRIVER | status::FEATURES_OK) == status::DRIVER;
        if !negotiating {
            return;
        }
        let (keep, shift) = match registers.driver_features_select {
            0 => (0xffff_ffff_0000_0000, 0),
            1 => (0x0000_0000_ffff_ffff, 32),
            _ => return, // There are 64 features.
        };
        registers.driver_features = registers.driver_features & keep | u64::from(value) << shift;
    }

    /// Queues are set up between FEATURES_OK and DRIVER_OK.
    fn queues_are_open(&self) -> bool {
        self.registers.status & (status::FEATURES_OK | status::DRIVER_OK) == status::FEATURES_OK
    }

    fn set_queue_ready(&mut self, value: u32) {
        let open = self.queues_are_open();
        let Some(queue) = self.selected_mut() else { return };
        // A driver may stop a queue at any time.
        if value == 0 || open {
            queue.set_ready(value == 1);
        }
    }

    fn configure_queue(&mut self, offset: u64, value: u32) {
        if !self.queues_are_open() {
            return;
        }
        let Some(queue) = self.selected_mut() else { return };
        if queue.ready() {
            return;
        }
        match offset {
            // What does not fit is no size, and leaves the largest one.
            register::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => (), // Registers to read, and holes.
        }
    }

    fn set_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        let before = self.registers.status;
        // Bits are only ever added; what else a driver writes is as if it had not.
        let mut added = value & status::BY_DRIVER & !before;
        let features_fit = features_fit(self.registers.driver_features, self.device.features());
        if before & status::FEATURES_OK == 0 && !features_fit {
            added &= !status::FEATURES_OK;
        }
        if (before | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.registers.status |= added;
        if added & status::FAILED != 0 {
            self.device.reset();
        }
        if added & status::DRIVER_OK != 0 && self.registers.is_running() {
            self.activate();
            return Effect::Notify;
        }
        Effect::None
    }

    /// The driver is ready: queues and device go by what it has accepted.
    pub(super) fn activate(&mut self) {
        let features = self.registers.driver_features;
        let has_events = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        self.queues.iter_mut().for_each(|queue| queue.set_event_idx(has_events));
        self.device.activate(features);
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(QueueT::reset);
        self.registers = Registers::default();
        self.live.set_interrupt_status(0);
    }

    fn run(&mut self, memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        for (index, queue) in self.queues.iter().enumerate() {
            if queue.ready() && !queue.is_valid(memory) {
                return Err(DeviceError::QueueOutsideMemory { index });
            }
        }
        self.device.process(&mut self.queues, memory)
    }
}

impl<D: VirtioDevice> MmioDevice for Transport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if self.live.read(offset, data).is_some() {
            // That was it.
        } else if offset >= register::CONFIG {
            self.device.read_config(offset - register::CONFIG, data);
        } else if let Ok(whole) = <&mut [u8; 4]>::try_from(&mut *data) {
            *whole = self.read_register(offset).to_le_bytes();
        } else {
            data.fill(0); // Registers are read as a whole.
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let Some(effect) = self.live.write(offset, data) {
            return effect;
        }
        match <[u8; 4]>::try_from(data) {
            Ok(whole) if offset < register::CONFIG => self.write_register(offset, u32::from_le_bytes(whole)),
            // Registers are written as a whole, and no device here has a configuration to write to.
            _ => Effect::None,
        }
    }

    fn process(&mut self, memory: &GuestMemoryMmap) -> bool {
        if !self.registers.is_running() {
            return false;
        }
        match self.run(memory) {
            Ok(has_used) => {
                let used = if has_used { interrupt::USED_BUFFER } else { 0 };
                let changed = if self.device.take_config_change() { interrupt::CONFIGURATION } else { 0 };
                if used | changed == 0 {
                    return false;
                }
                self.live.raise(used | changed);
            }
            Err(error) => {
                self.error = Some(error);
                self.device.reset();
                self.registers.status |= status::NEEDS_RESET;
                // Buffers may have been given back before the error.
                self.live.raise(interrupt::CONFIGURATION | interrupt::USED_BUFFER);
            }
        }
        true
    }

    fn interrupt_pending(&self) -> bool {
        self.live.interrupt_status() != 0
    }

    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.host_fd()
    }

    fn take_error(&mut self) -> Option<DeviceError> {
        self.error.take()
    }
}

/// Whether a driver that accepted `accepted` can work with a device that offered `offered`.
pub(super) fn features_fit(accepted: u64, offered: u64) -> bool {
    accepted & !offered == 0 && accepted & 1 << VIRTIO_F_VERSION_1 != 0
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

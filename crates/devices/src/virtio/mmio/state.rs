//! What is saved of a transport, and the checks on the way back.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

use super::Transport;
use super::register::{interrupt, status};
use super::transport::{Registers, features_fit};
use crate::virtio::VirtioDevice;

/// A transport as it is saved, without the device behind it. Every field is public, so nothing in it is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The number of the device behind it.
    pub device_type: u32,
    /// The device status register.
    pub status: u32,
    /// Which half of the device's features is read.
    pub device_features_select: u32,
    /// Which half of the driver's features is written.
    pub driver_features_select: u32,
    /// What the driver accepted.
    pub driver_features: u64,
    /// Which queue the queue registers mean.
    pub queue_select: u32,
    /// What the guest has not acknowledged yet.
    pub interrupt_status: u32,
    /// The queues, in the device's order.
    pub queues: Vec<RingState>,
}

/// A virtqueue as it is saved. What it holds is in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// How many descriptors the driver chose to have.
    pub size: u16,
    /// Whether the driver uses it.
    pub ready: bool,
    /// Position in the available ring.
    pub next_available: u16,
    /// Position in the used ring.
    pub next_used: u16,
    /// Guest address of the descriptors.
    pub descriptor_table: u64,
    /// Guest address of the available ring.
    pub available_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
}

/// Why a saved transport is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportStateError {
    /// It belongs to another kind of device.
    #[error("the saved transport is of device type {found}, not {wanted}")]
    DeviceType {
        /// In the state.
        found: u32,
        /// The device's.
        wanted: u32,
    },
    /// It has another number of queues.
    #[error("the saved transport has {found} queues, not {wanted}")]
    QueueCount {
        /// In the state.
        found: usize,
        /// The device's.
        wanted: usize,
    },
    /// The status register has bits that do not exist, or that do not go together.
    #[error("the saved transport has status {0:#x}")]
    Status(u32),
    /// The driver cannot have accepted these features.
    #[error("the saved transport has features {0:#x}")]
    Features(u64),
    /// There are no such interrupts.
    #[error("the saved transport has interrupts {0:#x}")]
    Interrupts(u32),
    /// A queue's size or addresses are impossible.
    #[error("queue {index} of the saved transport is impossible: {reason}")]
    Queue {
        /// Which.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A queue is in use before the driver could set it up.
    #[error("queue {index} of the saved transport is ready before its features are")]
    QueueTooEarly {
        /// Which.
        index: usize,
    },
}

impl<D: VirtioDevice> Transport<D> {
    /// What to rebuild it from. Changes nothing.
    pub fn state(&self) -> TransportState {
        let registers = self.registers;
        TransportState {
            device_type: self.device.device_type(),
            status: registers.status,
            device_features_select: registers.device_features_select,
            driver_features_select: registers.driver_features_select,
            driver_features: registers.driver_features,
            queue_select: registers.queue_select,
            interrupt_status: self.live.interrupt_status(),
            queues: self.queues.iter().map(ring_state).collect(),
        }
    }

    /// The transport as it was, before `device`, which is activated if it was then.
    ///
    /// # Errors
    ///
    /// The state is of another device, or of none that can be.
    pub fn restore(device: D, state: TransportState) -> Result<Self, TransportStateError> {
        let registers = checked_registers(&device, &state)?;
        let queues = checked_queues(&device, &state)?;
        let mut transport = Self::with(device, queues, registers);
        transport.live.set_interrupt_status(state.interrupt_status);
        if transport.registers.is_running() {
            transport.activate();
        }
        Ok(transport)
    }
}

fn checked_registers(device: &impl VirtioDevice, state: &TransportState) -> Result<Registers, TransportStateError> {
    let wanted = device.device_type();
    if state.device_type != wanted {
        return Err(TransportStateError::DeviceType { found: state.device_type, wanted });
    }
    let has = |bit| state.status & bit != 0;
    let unknown = state.status & !(status::BY_DRIVER | status::NEEDS_RESET) != 0;
    let too_early = has(status::DRIVER_OK) && !has(status::FEATURES_OK);
    let broken_before_use = has(status::NEEDS_RESET) && !has(status::DRIVER_OK);
    if unknown || too_early || broken_before_use {
        return Err(TransportStateError::Status(state.status));
    }
    if has(status::FEATURES_OK) && !features_fit(state.driver_features, device.features()) {
        return Err(TransportStateError::Features(state.driver_features));
    }
    if state.interrupt_status & !(interrupt::USED_BUFFER | interrupt::CONFIGURATION) != 0 {
        return Err(TransportStateError::Interrupts(state.interrupt_status));
    }
    Ok(Registers {
        status: state.status,
        device_features_select: state.device_features_select,
        driver_features_select: state.driver_features_select,
        driver_features: state.driver_features,
        queue_select: state.queue_select,
    })
}

fn checked_queues(device: &impl VirtioDevice, state: &TransportState) -> Result<Vec<Queue>, TransportStateError> {
    let sizes = device.queue_sizes();
    if state.queues.len() != sizes.len() {
        return Err(TransportStateError::QueueCount { found: state.queues.len(), wanted: sizes.len() });
    }
    let mut queues = Vec::with_capacity(sizes.len());
    for (index, (ring, max_size)) in state.queues.iter().zip(sizes).enumerate() {
        if ring.ready && state.status & status::FEATURES_OK == 0 {
            return Err(TransportStateError::QueueTooEarly { index });
        }
        let queue = Queue::try_from(queue_state(*ring, *max_size))
            .map_err(|error| TransportStateError::Queue { index, reason: error.to_string() })?;
        queues.push(queue);
    }
    Ok(queues)
}

fn ring_state(queue: &Queue) -> RingState {
    RingState {
        size: queue.size(),
        ready: queue.ready(),
        next_available: queue.next_avail(),
        next_used: queue.next_used(),
        descriptor_table: queue.desc_table(),
        available_ring: queue.avail_ring(),
        used_ring: queue.used_ring(),
    }
}

fn queue_state(ring: RingState, max_size: u16) -> QueueState {
    QueueState {
        max_size,
        next_avail: ring.next_available,
        next_used: ring.next_used,
        event_idx_enabled: false, // As the driver's features say, when the device is activated.
        size: ring.size,
        ready: ring.ready,
        desc_table: ring.descriptor_table,
        avail_ring: ring.available_ring,
        used_ring: ring.used_ring,
    }
}

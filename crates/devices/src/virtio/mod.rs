//! Virtio 1.2 devices behind the memory-mapped transport.
//!
//! Notifications are hints: [`VirtioDevice::process`] looks at every queue, so none that is pending needs to be saved. A
//! pass over a queue may end after what it found at its start: of whatever a driver adds during it, it also notifies, unless
//! the device is not waiting for that. That bounds every call by the queues' sizes, however fast a guest adds.

mod chain; // what a driver put in a queue, checked
mod queue; // one pass over a queue

pub mod balloon; // memory that the guest does not use
pub mod block; // a disk
pub mod mmio; // the registers before every device
pub mod net; // a network card
pub mod rng; // random numbers
pub mod vsock; // streams between host and guest

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod testing; // the driver's side, for tests

use std::io;
use std::os::fd::BorrowedFd;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

pub use chain::ChainError;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use {net::fuzz_header as fuzz_net_header, vsock::fuzz_header};

/// What every device here offers: version 1 of the specification, and descriptors in tables of their own.
const COMMON_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A virtio device behind a transport, which calls it in this order:
///
/// ```text
/// ( activate → process* → reset )*
/// ```
///
/// `reset` may also come where no `activate` came before, and does no harm.
pub trait VirtioDevice: Send {
    /// The device's number in the specification.
    fn device_type(&self) -> u32;

    /// The largest size of every queue: powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// What is offered to the driver, with `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// The driver reads `data.len()` bytes at `offset` of the configuration. What is not there reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Another number for every change of the configuration that the driver did not make.
    fn config_generation(&self) -> u32 {
        0 // It never changes.
    }

    /// The driver is ready and has accepted `features`.
    fn activate(&mut self, features: u64);

    /// The driver is gone, or broke the rules: end whatever was going on.
    fn reset(&mut self);

    /// Do all there is to do in every queue and on the host side. Never blocks, except on the input and output of a
    /// disk, which may be told to stop between two requests. Returns whether the guest must be interrupted.
    ///
    /// # Errors
    ///
    /// The driver broke a rule that no answer in the queue can tell it of, or the host failed the device as a whole.
    /// The device is not called again until it has been reset.
    fn process(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Result<bool, DeviceError>;

    /// Whether the configuration has changed since this was asked last, which the driver has to be told. Asked after
    /// [`process`](Self::process).
    fn take_config_change(&mut self) -> bool {
        false // It never does.
    }

    /// Readable when the host side has something to do.
    fn host_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Why a device cannot go on until its driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A queue lies outside guest memory.
    #[error("queue {index} does not lie in guest memory")]
    QueueOutsideMemory {
        /// Which.
        index: usize,
    },
    /// A queue's rings make no sense.
    #[error("cannot use a queue")]
    Ring {
        /// What is wrong.
        source: virtio_queue::Error,
    },
    /// A request is not a good descriptor chain.
    #[error("cannot use a request")]
    Chain {
        /// What is wrong.
        #[from]
        source: ChainError,
    },
    /// A request has no place for its answer.
    #[error("a request has no room for {0}")]
    NoRoom(&'static str),
    /// The host would not serve the device.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl From<virtio_queue::Error> for DeviceError {
    fn from(source: virtio_queue::Error) -> Self {
        Self::Ring { source }
    }
}

/// Copies what there is of `config` at `offset` into `data`, and zeroes the rest.
fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let tail = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or(&[]);
    let count = tail.len().min(data.len());
    let (there, beyond) = data.split_at_mut(count);
    there.copy_from_slice(&tail[..count]);
    beyond.fill(0);
}

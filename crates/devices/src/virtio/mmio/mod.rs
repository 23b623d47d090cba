//! The registers before every device: virtio over memory-mapped input and output, version 2 (virtio 1.2, section 4.2).
//!
//! A driver that breaks the order of the handshake is ignored rather than punished: the register keeps its value, and
//! the driver reads back that its write did not take.

mod live; // those that are answered while the device is at work
mod register; // where each register lies
mod state; // what is saved, and the checks on the way back
mod transport; // the registers and the device behind them

use std::os::fd::BorrowedFd;

use vm_memory::GuestMemoryMmap;

use super::DeviceError;

pub use live::LiveRegisters;
pub use state::{RingState, TransportState, TransportStateError};
pub use transport::Transport;

/// What the machine must do after the guest wrote to a register.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Have [`MmioDevice::process`] called soon.
    Notify,
    /// The driver reset the device: an interrupt that was on its way means nothing any more.
    Reset,
}

/// A [`Transport`], whatever the device behind it: what a bus needs.
pub trait MmioDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`. What is not there reads as zero.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset`. What is not there is ignored.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect;

    /// Lets the device do all there is to do. Returns whether to raise the (edge-triggered) interrupt.
    fn process(&mut self, memory: &GuestMemoryMmap) -> bool;

    /// Whether the guest has an interrupt to acknowledge, which a restored machine raises again.
    fn interrupt_pending(&self) -> bool;

    /// Readable when the host side has something to do. It stays quiet while there is no driver to do it for.
    fn host_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Why the device asked to be reset, once.
    fn take_error(&mut self) -> Option<DeviceError>;
}

#[cfg(test)]
mod tests;

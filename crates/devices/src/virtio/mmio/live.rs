//! The registers that a driver uses while its device is at work. They are answered without waiting for it: a disk may
//! be at one request for as long as the host's takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Effect, register};

/// QUEUE_NOTIFY, INTERRUPT_STATUS and INTERRUPT_ACK of one [`Transport`](super::Transport), which shares them.
#[derive(Debug, Clone, Default)]
pub struct LiveRegisters {
    interrupt_status: Arc<AtomicU32>,
}

impl LiveRegisters {
    /// Reads `data.len()` bytes at `offset`, if that is one of these registers.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Option<()> {
        let whole = <&mut [u8; 4]>::try_from(data).ok().filter(|_| offset == register::INTERRUPT_STATUS)?;
        *whole = self.interrupt_status().to_le_bytes();
        Some(())
    }

    /// Writes `data` at `offset`, if that is one of these registers.
    pub fn write(&self, offset: u64, data: &[u8]) -> Option<Effect> {
        let value = u32::from_le_bytes(data.try_into().ok()?);
        match offset {
            register::QUEUE_NOTIFY => Some(Effect::Notify),
            register::INTERRUPT_ACK => {
                // Whoever acknowledges sees in the rings what was given back before the bit was set.
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
                Some(Effect::None)
            }
            _ => None,
        }
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::SeqCst)
    }

    pub(super) fn set_interrupt_status(&self, bits: u32) {
        self.interrupt_status.store(bits, Ordering::SeqCst);
    }

    /// Sets `bits` beside those that the driver has not acknowledged yet.
    pub(super) fn raise(&self, bits: u32) {
        self.interrupt_status.fetch_or(bits, Ordering::SeqCst);
    }
}

//! What is saved of a serial port.

use serde::{Deserialize, Serialize};

/// The chip holds this many bytes that the guest has not read yet.
const FIFO_BYTES: usize = 64;

/// A serial port as it is saved: its registers. Every field is public, so nothing in it is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub divisor_low: u8,
    /// Divisor latch, high byte.
    pub divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register, without the FIFO bits.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Bytes that the guest has not read yet.
    pub input: Vec<u8>,
}

/// Why a saved serial port is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SerialStateError {
    /// Interrupts are enabled that a 16550 does not have.
    #[error("serial: interrupt enable register {0:#04x} has bits that the chip lacks")]
    InterruptEnable(u8),
    /// It claims interrupts that the chip does not raise.
    #[error("serial: interrupt identification register {0:#04x} has bits that the chip lacks")]
    InterruptIdentification(u8),
    /// Its transmitter is never busy, and yet it says so; or its input and its status disagree.
    #[error("serial: line status register {0:#04x} disagrees with the rest of the chip")]
    LineStatus(u8),
    /// There is more input than the chip holds.
    #[error("serial: more than {FIFO_BYTES} bytes of input")]
    InputTooLong,
}

const INTERRUPT_ENABLE_BITS: u8 = 0b0000_1111;
const INTERRUPT_IDENTIFICATION_BITS: u8 = 0b0000_0111;
const LINE_STATUS_DATA_READY: u8 = 0b0000_0001;
const LINE_STATUS_TRANSMITTER_IDLE: u8 = 0b0110_0000;

impl SerialState {
    /// The same state as the chip's own type.
    pub(super) fn checked(self) -> Result<vm_superio::SerialState, SerialStateError> {
        if self.interrupt_enable & !INTERRUPT_ENABLE_BITS != 0 {
            return Err(SerialStateError::InterruptEnable(self.interrupt_enable));
        }
        if self.interrupt_identification & !INTERRUPT_IDENTIFICATION_BITS != 0 {
            return Err(SerialStateError::InterruptIdentification(self.interrupt_identification));
        }
        if self.input.len() > FIFO_BYTES {
            return Err(SerialStateError::InputTooLong);
        }
        let ready = if self.input.is_empty() { 0 } else { LINE_STATUS_DATA_READY };
        if self.line_status != LINE_STATUS_TRANSMITTER_IDLE | ready {
            return Err(SerialStateError::LineStatus(self.line_status));
        }
        Ok(vm_superio::SerialState {
            baud_divisor_low: self.divisor_low,
            baud_divisor_high: self.divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.input,
        })
    }
}

impl From<vm_superio::SerialState> for SerialState {
    fn from(state: vm_superio::SerialState) -> Self {
        Self {
            divisor_low: state.baud_divisor_low,
            divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }
}

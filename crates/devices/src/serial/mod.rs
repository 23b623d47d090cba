//! A 16550 serial port: the chip of `vm-superio`, with its output and interrupt turned into return values.
//!
//! It only sends: nothing on the host types into it. What a guest writes in loopback mode comes back to it, as on the
//! real chip.

mod state; // what is saved, and the checks on the way back

use std::cell::Cell;
use std::convert::Infallible;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};

pub use state::{SerialState, SerialStateError};

/// What the machine must do after the guest wrote to a register.
#[must_use]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SerialEffect {
    /// A byte that the guest sent.
    pub output: Option<u8>,
    /// Raise the (edge-triggered) interrupt.
    pub interrupt: bool,
}

/// The serial port.
#[derive(Debug)]
pub struct Serial {
    uart: Uart<Line, NoEvents, Vec<u8>>,
}

impl Serial {
    /// A port just switched on: 9600 baud, 8 bits, no interrupts enabled.
    pub fn new() -> Self {
        Self { uart: Uart::new(Line::default(), Vec::new()) }
    }

    /// A port as it was when `state` was saved. Its interrupt may have been on its way to the guest then, so the caller
    /// raises it when the second value says so.
    ///
    /// # Errors
    ///
    /// The state is none that this chip can be in.
    pub fn restore(state: SerialState) -> Result<(Self, bool), SerialStateError> {
        let uart = Uart::from_state(&state.checked()?, Line::default(), NoEvents, Vec::new())
            .map_err(|_| SerialStateError::InputTooLong)?;
        let interrupt = uart.interrupt_evt().take();
        Ok((Self { uart }, interrupt))
    }

    /// What to rebuild it from. Changes nothing.
    pub fn state(&self) -> SerialState {
        SerialState::from(self.uart.state())
    }

    /// The guest reads the register at `offset`; there are eight.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.uart.read(offset)
    }

    /// The guest writes `value` to the register at `offset`.
    pub fn write(&mut self, offset: u8, value: u8) -> SerialEffect {
        // Neither the line nor a vector can fail, and a full loopback buffer loses the byte, as the chip does.
        let _ = self.uart.write(offset, value);
        SerialEffect { output: self.uart.writer_mut().pop(), interrupt: self.uart.interrupt_evt().take() }
    }
}

impl Default for Serial {
    fn default() -> Self {
        Self::new()
    }
}

/// The interrupt line, which remembers that it was pulled.
#[derive(Debug, Default)]
struct Line(Cell<bool>);

impl Line {
    fn take(&self) -> bool {
        self.0.take()
    }
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

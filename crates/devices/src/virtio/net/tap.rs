//! The host's end of a card.

use std::io;
use std::os::fd::AsFd;

use pando_sys::{Offloads, Tap};
use vm_memory::VolatileSlice;

/// One queue of a tap. It does not block, and is watched for edges.
pub trait TapQueue: AsFd + Send {
    /// Says what the tap, with all of its queues, may leave to whoever reads it.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Whether the tap puts frames into this queue.
    fn set_attached(&mut self, attached: bool) -> io::Result<()>;

    /// Takes the next frame, with its header, into `buffers`. Returns how long it was; what did not fit is lost.
    /// `WouldBlock` when there is none; `InvalidInput` when there was one, which is lost.
    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Sends the frame that `head` and `rest` make up, `head` beginning with its header. `WouldBlock` when there is no room
    /// for it now.
    fn write(&mut self, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()>;
}

impl TapQueue for Tap {
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        Tap::set_offloads(self, offloads).map_err(io::Error::other)
    }

    fn set_attached(&mut self, attached: bool) -> io::Result<()> {
        Tap::set_attached(self, attached).map_err(io::Error::other)
    }

    fn read(&mut self, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        Tap::read(self, buffers)
    }

    fn write(&mut self, head: &[u8], rest: &[VolatileSlice<'_>]) -> io::Result<()> {
        Tap::write(self, head, rest)
    }
}

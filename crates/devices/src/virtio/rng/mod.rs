//! Random numbers from the host (virtio 1.2, section 5.4). It has no state: every VM of a tree draws from the host.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::chain::Chain;
use super::{COMMON_FEATURES, DeviceError, VirtioDevice, queue};

/// The most bytes that one request gets. A driver that wants more asks again.
pub const MAX_RANDOM_BYTES: usize = 64 << 10;

/// The source of random numbers.
#[derive(Debug, Default)]
pub struct Rng(());

impl Rng {
    /// There is nothing to say about it.
    pub fn new() -> Self {
        Self(())
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0); // It has none.
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn process(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        let mut interrupt = false;
        for queue in queues {
            interrupt |= queue::serve(queue, memory, || true, fill)?;
        }
        Ok(interrupt)
    }
}

fn fill(chain: &Chain<'_>) -> Result<u32, DeviceError> {
    let len = chain.writable_len().min(MAX_RANDOM_BYTES);
    let mut piece = [0; 256]; // A request this long is answered whole, whatever signals arrive.
    for done in (0..len).step_by(piece.len()) {
        let piece = &mut piece[..256.min(len - done)];
        draw(piece)?;
        chain.write_at(done, piece)?;
    }
    Ok(len as u32)
}

fn draw(mut buffer: &mut [u8]) -> Result<(), DeviceError> {
    while !buffer.is_empty() {
        match getrandom(&mut *buffer, GetRandomFlags::empty()) {
            Ok(count) => buffer = &mut buffer[count..],
            Err(Errno::INTR) => (),
            Err(error) => return Err(DeviceError::Host { what: "draw random numbers", source: error.into() }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! Queue in, sectors out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::request::{HEADER_BYTES, ID_BYTES, Refusal, Request, status_at};
use super::{Backing, MAX_SEGMENT_BYTES, MAX_SEGMENTS, SECTOR_BYTES};
use crate::virtio::chain::Chain;
use crate::virtio::{COMMON_FEATURES, DeviceError, VirtioDevice, queue, read_config_bytes};

/// What is copied at once between the disk and the guest, in bytes: it fits in a processor's cache.
const PIECE_BYTES: usize = 128 << 10;

/// Whether a driver may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It may.
    ReadWrite,
    /// Writes are answered with an error.
    ReadOnly,
}

/// A disk. All that must be saved of it is its backing and how it was made.
pub struct Block<B> {
    backing: B,
    access: Access,
    name: [u8; ID_BYTES],
    /// Without FLUSH the driver trusts every write to last.
    writes_through: bool,
    piece: Box<[u8]>,
    halt: Arc<AtomicBool>,
    last_error: Option<BlockError>,
}

/// What the backing failed to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the disk")]
pub struct BlockError {
    what: &'static str,
    source: io::Error,
}

/// How a request ended.
enum Outcome {
    /// Well, with this many bytes written before the status.
    Done(usize),
    /// With an error for the driver.
    Refused(Refusal),
    /// With an error for the driver and for the host to hear of.
    Failed(BlockError),
}

impl<B: Backing> Block<B> {
    /// A disk called `name` (cut to 20 bytes), which a guest finds in `/sys/block/*/serial`.
    pub fn new(backing: B, name: &str, access: Access) -> Self {
        let mut id = [0; ID_BYTES];
        let count = name.len().min(ID_BYTES);
        id[..count].copy_from_slice(&name.as_bytes()[..count]);
        Self {
            backing,
            access,
            name: id,
            writes_through: false,
            piece: vec![0; PIECE_BYTES].into_boxed_slice(),
            halt: Arc::default(),
            last_error: None,
        }
    }

    /// While `halt` is set, no request is begun: a call of `process` ends with the one it is at, and the next call that
    /// finds it cleared goes on with the others.
    pub fn heed(&mut self, halt: Arc<AtomicBool>) {
        self.halt = halt;
    }

    /// Where the sectors are.
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// Where the sectors are. Between two calls of `process` no request is half done.
    pub fn backing_mut(&mut self) -> &mut B {
        &mut self.backing
    }

    /// Where the sectors are, for another device to serve.
    pub fn into_backing(self) -> B {
        self.backing
    }

    /// The last thing that the backing failed to do, once. The driver has been told that there was something.
    pub fn take_last_error(&mut self) -> Option<BlockError> {
        self.last_error.take()
    }

    fn answer(&mut self, chain: &Chain<'_>) -> Result<u32, DeviceError> {
        let status_at = status_at(chain)?;
        let outcome = match Request::claim(chain, self.backing.len_bytes()) {
            Ok(request) => self.perform(chain, request)?,
            Err(refusal) => Outcome::Refused(refusal),
        };
        let (status, written) = match outcome {
            Outcome::Done(written) => (VIRTIO_BLK_S_OK, written),
            Outcome::Refused(Refusal::Impossible) => (VIRTIO_BLK_S_IOERR, 0),
            Outcome::Refused(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Outcome::Failed(error) => {
                self.last_error = Some(error);
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        chain.write_at(status_at, &[status as u8])?;
        // The status counts; at most 4 MiB come before it.
        Ok(written as u32 + 1)
    }

    fn perform(&mut self, chain: &Chain<'_>, request: Request) -> Result<Outcome, DeviceError> {
        match request {
            Request::Read { offset, len } => self.read(chain, offset, len),
            Request::Write { .. } if self.access == Access::ReadOnly => Ok(Outcome::Refused(Refusal::Impossible)),
            Request::Write { offset, len } => self.write(chain, offset, len),
            Request::Flush => Ok(self.flush()),
            Request::Name => {
                chain.write_at(0, &self.name)?;
                Ok(Outcome::Done(ID_BYTES))
            }
        }
    }

    fn read(&mut self, chain: &Chain<'_>, offset: u64, len: usize) -> Result<Outcome, DeviceError> {
        for done in (0..len).step_by(PIECE_BYTES) {
            let piece = &mut self.piece[..PIECE_BYTES.min(len - done)];
            if let Err(error) = self.backing.read_at(offset + done as u64, piece) {
                return Ok(Outcome::failed("read", error));
            }
            chain.write_at(done, piece)?;
        }
        Ok(Outcome::Done(len))
    }

    fn write(&mut self, chain: &Chain<'_>, offset: u64, len: usize) -> Result<Outcome, DeviceError> {
        for done in (0..len).step_by(PIECE_BYTES) {
            let piece = &mut self.piece[..PIECE_BYTES.min(len - done)];
            chain.read_at(HEADER_BYTES + done, piece)?;
            if let Err(error) = self.backing.write_at(offset + done as u64, piece) {
                return Ok(Outcome::failed("write", error));
            }
        }
        Ok(if self.writes_through { self.flush() } else { Outcome::Done(0) })
    }

    fn flush(&mut self) -> Outcome {
        if self.access == Access::ReadOnly {
            return Outcome::Done(0); // There is nothing to make last.
        }
        match self.backing.flush() {
            Ok(()) => Outcome::Done(0),
            Err(error) => Outcome::failed("flush", error),
        }
    }

    fn config(&self) -> [u8; 16] {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&(self.backing.len_bytes() / SECTOR_BYTES).to_le_bytes());
        config[8..12].copy_from_slice(&MAX_SEGMENT_BYTES.to_le_bytes());
        config[12..].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        config
    }
}

impl Outcome {
    fn failed(what: &'static str, source: io::Error) -> Self {
        Self::Failed(BlockError { what, source })
    }
}

impl<B: Backing> VirtioDevice for Block<B> {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256]
    }

    fn features(&self) -> u64 {
        let read_only = match self.access {
            Access::ReadWrite => 0,
            Access::ReadOnly => 1 << VIRTIO_BLK_F_RO,
        };
        COMMON_FEATURES | 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH | read_only
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, features: u64) {
        self.writes_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn reset(&mut self) {
        self.writes_through = false;
    }

    fn process(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        let mut interrupt = false;
        for queue in queues {
            let halt = Arc::clone(&self.halt);
            let goes_on = || !halt.load(Ordering::SeqCst);
            interrupt |= queue::serve(queue, memory, goes_on, |chain| self.answer(chain))?;
        }
        Ok(interrupt)
    }
}

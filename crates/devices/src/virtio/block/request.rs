//! What a driver asks of a disk, checked.
//!
//! ```text
//! readable: | type u32 | reserved u32 | sector u64 | data to write … |
//! writable: | data read …                               | status u8  |
//! ```

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::{MAX_REQUEST_BYTES, SECTOR_BYTES};
use crate::virtio::DeviceError;
use crate::virtio::chain::{Chain, ChainError};

/// Bytes before the data of a request.
pub(super) const HEADER_BYTES: usize = 16;

/// Bytes of the name of a disk.
pub(super) const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// A request whose range is on the disk and whose data has room in its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Read `len` bytes at `offset` into the writable buffers.
    Read { offset: u64, len: usize },
    /// Write the `len` bytes after the header at `offset`.
    Write { offset: u64, len: usize },
    /// Make what was written last.
    Flush,
    /// Write the disk's name into the writable buffers.
    Name,
}

/// Why a request gets an error for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It asks for what cannot be done with this disk.
    Impossible,
    /// It is of a kind that was not offered.
    Unsupported,
}

/// Where the status byte of `chain` is: the last that the device may write.
///
/// # Errors
///
/// There is none, so that the driver cannot be told anything.
pub(super) fn status_at(chain: &Chain<'_>) -> Result<usize, DeviceError> {
    chain.writable_len().checked_sub(1).ok_or(DeviceError::NoRoom("its status"))
}

impl Request {
    /// Reads what `chain` asks of a disk of `disk_bytes` bytes.
    pub(super) fn claim(chain: &Chain<'_>, disk_bytes: u64) -> Result<Self, Refusal> {
        let (kind, sector) = header(chain).map_err(|_| Refusal::Impossible)?;
        let sent = chain.readable_len() - HEADER_BYTES; // The header was read, so it is there.
        let room = chain.writable_len().saturating_sub(1);
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = checked_offset(sector, room, disk_bytes).ok_or(Refusal::Impossible)?;
                Ok(Self::Read { offset, len: room })
            }
            VIRTIO_BLK_T_OUT => {
                let offset = checked_offset(sector, sent, disk_bytes).ok_or(Refusal::Impossible)?;
                Ok(Self::Write { offset, len: sent })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID if room >= ID_BYTES => Ok(Self::Name),
            VIRTIO_BLK_T_GET_ID => Err(Refusal::Impossible),
            _ => Err(Refusal::Unsupported),
        }
    }
}

fn header(chain: &Chain<'_>) -> Result<(u32, u64), ChainError> {
    let (mut kind, mut sector) = ([0; 4], [0; 8]);
    chain.read_at(0, &mut kind)?;
    chain.read_at(8, &mut sector)?;
    Ok((u32::from_le_bytes(kind), u64::from_le_bytes(sector)))
}

/// The byte at which `sector` begins, if `len` bytes from there are whole sectors of the disk, and not too many.
fn checked_offset(sector: u64, len: usize, disk_bytes: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_BYTES)?;
    let end = offset.checked_add(len as u64)?;
    let whole = (len as u64).is_multiple_of(SECTOR_BYTES);
    // Whole sectors from a whole sector on never end within the disk's last, incomplete one.
    (whole && len <= MAX_REQUEST_BYTES && end <= disk_bytes).then_some(offset)
}

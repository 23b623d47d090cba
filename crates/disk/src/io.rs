//! Reading and writing blocks.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use crate::disk::Disk;
use crate::map::{Place, Slot};
use crate::{BLOCK_BYTES, MAX_SLOTS};

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The range is not on the disk.
    #[error("{length} bytes at {offset} are not on a disk of {disk_bytes} bytes")]
    OutOfRange {
        /// Where the range begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: usize,
        /// The disk's size.
        disk_bytes: u64,
    },
    /// The base image could not be read.
    #[error("cannot read the disk's base")]
    Base {
        /// The cause.
        source: io::Error,
    },
    /// A layer could not be read, or its data file is shorter than the map says.
    #[error("cannot read disk layer {ordinal}")]
    Layer {
        /// Which layer, 0 being the oldest.
        ordinal: u16,
        /// The cause.
        source: io::Error,
    },
}

/// Why a write failed. Where a new slot was to be written, the block still has its old contents; where a slot was to be
/// overwritten in place, it may have a part of the new ones, as on any disk. Later writes may succeed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The range is not on the disk.
    #[error("{length} bytes at {offset} are not on a disk of {disk_bytes} bytes")]
    OutOfRange {
        /// Where the range begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        length: usize,
        /// The disk's size.
        disk_bytes: u64,
    },
    /// The host's file system is full, or a quota or a limit on file sizes is reached.
    #[error("disk layer: no space")]
    NoSpace {
        /// The cause.
        source: io::Error,
    },
    /// The layer holds as many blocks as it can address.
    #[error("disk layer: all of its {MAX_SLOTS} slots are used")]
    LayerFull,
    /// The data file could not be written.
    #[error("cannot write the disk layer")]
    Layer {
        /// The cause.
        source: io::Error,
    },
    /// The rest of a block that is written in part could not be read.
    #[error("cannot read the rest of a block that is written in part")]
    Rest {
        /// The cause.
        source: ReadError,
    },
}

impl Disk {
    /// Fills `buffer` with what the disk holds at `offset` (in bytes, of any alignment).
    ///
    /// # Errors
    ///
    /// Fails, with `buffer` in any state, where the range is not on the disk or a file cannot be read.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        if !self.holds(offset, buffer.len()) {
            return Err(ReadError::OutOfRange { offset, length: buffer.len(), disk_bytes: self.len_bytes });
        }
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let length = self.run(at, buffer.len() - done);
            let part = &mut buffer[done..done + length];
            match self.map.get(at / BLOCK_BYTES) {
                Place::Base => self.read_base(at, part)?,
                Place::Layer(slot) => self.read_layer(slot, at % BLOCK_BYTES, part)?,
            }
            done += length;
        }
        Ok(())
    }

    /// Writes `data` at `offset` (in bytes, of any alignment). It is durable after the next [`Disk::flush`].
    ///
    /// # Errors
    ///
    /// Fails where the range is not on the disk (nothing is written then), or the layer cannot be written: the blocks
    /// before the one that failed are written then.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), WriteError> {
        if !self.holds(offset, data.len()) {
            return Err(WriteError::OutOfRange { offset, length: data.len(), disk_bytes: self.len_bytes });
        }
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let length = match self.writable_slot(at / BLOCK_BYTES) {
                Some(slot) => self.overwrite(slot, at, rest)?,
                None if at.is_multiple_of(BLOCK_BYTES) && BLOCK_BYTES as usize <= rest.len() => {
                    self.append_whole(at / BLOCK_BYTES, rest)?
                }
                None => self.append_part(at, rest)?,
            };
            rest = &rest[length..];
            at += length as u64;
        }
        Ok(())
    }

    /// How many of the `most` bytes at `at` lie one after the other in one file.
    fn run(&self, at: u64, most: usize) -> usize {
        let first_block = at / BLOCK_BYTES;
        let first = self.map.get(first_block);
        let mut length = BLOCK_BYTES - at % BLOCK_BYTES;
        let mut step = 1;
        while length < most as u64 {
            let follows = match (first, self.map.get(first_block + step)) {
                (Place::Base, Place::Base) => true,
                (Place::Layer(a), Place::Layer(b)) => {
                    a.ordinal == b.ordinal && u64::from(a.index) + step == u64::from(b.index)
                }
                (Place::Base, Place::Layer(_)) | (Place::Layer(_), Place::Base) => false,
            };
            if !follows {
                break;
            }
            length += BLOCK_BYTES;
            step += 1;
        }
        most.min(length as usize)
    }

    /// Reads the base, which may end before the disk does.
    fn read_base(&self, at: u64, part: &mut [u8]) -> Result<(), ReadError> {
        let in_base = self.base.len_bytes.saturating_sub(at).min(part.len() as u64) as usize;
        let (inside, beyond) = part.split_at_mut(in_base);
        self.base.file.read_exact_at(inside, at).map_err(|source| ReadError::Base { source })?;
        beyond.fill(0);
        Ok(())
    }

    /// Reads on from `within` bytes behind the start of `slot`.
    fn read_layer(&self, slot: Slot, within: u64, part: &mut [u8]) -> Result<(), ReadError> {
        self.data_file(slot.ordinal)
            .read_exact_at(part, u64::from(slot.index) * BLOCK_BYTES + within)
            .map_err(|source| ReadError::Layer { ordinal: slot.ordinal, source })
    }

    fn data_file(&self, ordinal: u16) -> &File {
        self.inherited.get(usize::from(ordinal)).map_or(&self.own.data, |layer| &layer.data)
    }

    /// Overwrites in place as much of `data` as lies in writable slots that follow each other; says how many bytes.
    fn overwrite(&mut self, slot: u64, at: u64, data: &[u8]) -> Result<usize, WriteError> {
        // A run that begins at or above the freeze line stays above it, because slots only go up in it.
        let length = self.run(at, data.len());
        self.write_data(slot * BLOCK_BYTES + at % BLOCK_BYTES, &data[..length])?;
        Ok(length)
    }

    /// Gives new slots to as many whole blocks of `data` as need one; says how many bytes that was.
    fn append_whole(&mut self, first_block: u64, data: &[u8]) -> Result<usize, WriteError> {
        let whole_blocks = data.len() as u64 / BLOCK_BYTES;
        let count = (1..whole_blocks).find(|n| self.writable_slot(first_block + n).is_some()).unwrap_or(whole_blocks);
        let length = (count * BLOCK_BYTES) as usize;
        self.append(first_block, &data[..length])?;
        Ok(length)
    }

    /// Gives a new slot to the block at `at`, of which `data` covers only a part; says how many bytes that was.
    fn append_part(&mut self, at: u64, data: &[u8]) -> Result<usize, WriteError> {
        let within = (at % BLOCK_BYTES) as usize;
        let length = data.len().min(BLOCK_BYTES as usize - within);
        let mut block = [0; BLOCK_BYTES as usize];
        self.read_at(at - within as u64, &mut block).map_err(|source| WriteError::Rest { source })?;
        block[within..within + length].copy_from_slice(&data[..length]);
        self.append(at / BLOCK_BYTES, &block)?;
        Ok(length)
    }

    /// Writes whole blocks to the next slots, and only then says that they are there.
    fn append(&mut self, first_block: u64, blocks: &[u8]) -> Result<(), WriteError> {
        let count = blocks.len() as u64 / BLOCK_BYTES;
        let first_slot = self.own.next_slot;
        if MAX_SLOTS - first_slot < count {
            return Err(WriteError::LayerFull);
        }
        self.write_data(first_slot * BLOCK_BYTES, blocks)?;
        let ordinal = self.own_ordinal();
        for n in 0..count {
            self.map.set(first_block + n, Slot { ordinal, index: (first_slot + n) as u32 });
            self.pending.push(first_block + n);
        }
        self.own.next_slot += count;
        Ok(())
    }

    fn write_data(&mut self, at: u64, bytes: &[u8]) -> Result<(), WriteError> {
        self.own.unsynced = true; // Even when it fails: a part may have been written.
        self.own.data.write_all_at(bytes, at).map_err(|source| {
            if is_no_space(&source) { WriteError::NoSpace { source } } else { WriteError::Layer { source } }
        })
    }
}

/// Whether the host has no room, for whatever reason.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

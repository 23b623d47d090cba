//! What a sealed disk holds beside its base: what is stored of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::BLOCK_BYTES;
use crate::fork::Sealed;
use crate::io::ReadError;
use crate::map::{Place, Slot};
use crate::open::{self, OpenError};

/// The blocks of a sealed disk that were ever written, in ascending order, whichever layers they lie in.
pub struct Written<'a> {
    sealed: &'a Sealed,
    /// The data files of the layers, oldest first.
    data: &'a [File],
    /// The block to look at next.
    next: u64,
}

impl Sealed {
    /// The size that the guest sees, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// How many layers there are, of which a child inherits all.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Its blocks that are not what the base says. `data` are the data files of its layers, oldest first.
    ///
    /// # Errors
    ///
    /// Fails where there is not one file for each layer, or one is shorter than it was at the fork.
    pub fn written<'a>(&'a self, data: &'a [File]) -> Result<Written<'a>, OpenError> {
        open::check_inherited(self.layers.len(), data.len())?;
        for (ordinal, (file, layer)) in data.iter().zip(&self.layers).enumerate() {
            let (found_bytes, wanted_bytes) =
                (open::length("an inherited disk layer", file)?, layer.slots * BLOCK_BYTES);
            if found_bytes < wanted_bytes {
                return Err(OpenError::ShortLayer { ordinal, found_bytes, wanted_bytes });
            }
        }
        Ok(Written { sealed: self, data, next: 0 })
    }
}

impl Written<'_> {
    /// The next blocks that follow each other, at most `most` of them: the first one's index, and their bytes in `bytes`.
    /// `None` behind the last.
    pub fn next_run(&mut self, most: usize, bytes: &mut Vec<u8>) -> Result<Option<u64>, ReadError> {
        let map = &self.sealed.map;
        bytes.clear();
        while self.next < map.len() && map.get(self.next) == Place::Base {
            self.next += 1;
        }
        let first = self.next;
        while bytes.len() < most * BLOCK_BYTES as usize
            && self.next < map.len()
            && let Place::Layer(slot) = map.get(self.next)
        {
            self.read(slot, bytes).map_err(|source| ReadError::Layer { ordinal: slot.ordinal, source })?;
            self.next += 1;
        }
        Ok((!bytes.is_empty()).then_some(first))
    }

    fn read(&self, slot: Slot, bytes: &mut Vec<u8>) -> io::Result<()> {
        let at = bytes.len();
        bytes.resize(at + BLOCK_BYTES as usize, 0);
        self.data[usize::from(slot.ordinal)].read_exact_at(&mut bytes[at..], u64::from(slot.index) * BLOCK_BYTES)
    }
}

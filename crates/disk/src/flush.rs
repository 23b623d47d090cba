//! Making a disk durable.
//!
//! The order is the whole argument: first the data, then the journal that says where it is. A journal record that
//! survives a crash therefore never names a slot whose data did not.

use std::io;

use crate::disk::Disk;
use crate::files;
use crate::io::is_no_space;
use crate::journal::Entry;
use crate::map::Place;

/// Why a flush failed.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The journal has no room on the host. Nothing is lost: a later flush may succeed.
    #[error("disk map journal: no space")]
    NoSpace {
        /// The cause.
        source: io::Error,
    },
    /// The journal could not be written. Nothing is lost: a later flush may succeed.
    #[error("cannot write the disk map journal")]
    Journal {
        /// The cause.
        source: io::Error,
    },
    /// A sync failed. Every later flush of this disk, and of what is forked from it, fails too.
    #[error("cannot sync {what}")]
    Sync {
        /// Which file.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// An earlier sync failed, after which the kernel may have dropped data: what is durable can no longer be known.
    #[error("the disk could not be synced earlier, so nothing written to it since is known to be durable")]
    Broken,
}

impl Disk {
    /// Makes everything that was written before it survive a killed monitor and a power cut.
    ///
    /// # Errors
    ///
    /// See [`FlushError`]: a full host can be tried again, a failed sync cannot.
    pub fn flush(&mut self) -> Result<(), FlushError> {
        if self.broken {
            return Err(FlushError::Broken);
        }
        self.sync_data().inspect_err(|_| self.broken = true)?;
        self.pending.sort();
        let map = &self.map;
        let entries = self.pending.0.iter().filter_map(|block| match map.get(u64::from(*block)) {
            Place::Layer(slot) => Some(Entry { block: *block, slot }),
            Place::Base => None, // No block ever goes back to the base, so none is pending there.
        });
        self.journal.append(entries).map_err(|source| {
            if is_no_space(&source) { FlushError::NoSpace { source } } else { FlushError::Journal { source } }
        })?;
        self.journal.sync().map_err(|source| {
            self.broken = true;
            FlushError::Sync { what: "the disk map journal", source }
        })?;
        self.pending.0 = Vec::new();
        Ok(())
    }

    /// Syncs every layer that may hold data that is not durable. An inherited layer is synced through this disk's own
    /// descriptor: its owner may have died, or may sync it later than this disk promises.
    fn sync_data(&mut self) -> Result<(), FlushError> {
        for layer in self.inherited.iter_mut().filter(|layer| layer.unsynced) {
            let sync = files::sync(&layer.data);
            sync.map_err(|source| FlushError::Sync { what: "an inherited disk layer", source })?;
            layer.unsynced = false;
        }
        if self.own.unsynced {
            let sync = files::sync(&self.own.data);
            sync.map_err(|source| FlushError::Sync { what: "the disk layer", source })?;
            self.own.unsynced = false;
        }
        Ok(())
    }
}

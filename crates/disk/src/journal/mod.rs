//! The map journal: what a layer says, on disk, about where blocks lie. Drawn in `docs/disk-format.md`.
//!
//! A header, then records, each appended by one flush. Nothing in a journal is ever overwritten.

mod format; // the bytes
mod replay; // reading them back, believing none

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) use format::{Ancestor, Entry, Header, LayerId};
#[cfg(feature = "fuzzing")]
pub use replay::fuzz_journal;
pub use replay::{EntryError, JournalError};
pub(crate) use replay::{Replayed, replay};

use crate::files;

/// The journal of a layer, being written.
pub(crate) struct Journal {
    pub(crate) file: File,
    id: LayerId,
    /// Where the next record goes.
    end: u64,
    /// How many bytes from the start are known to be durable: 0, or the end of the header or of a record.
    durable: u64,
    /// The number of the next record.
    next_sequence: u64,
}

impl Journal {
    /// Begins a journal in an empty file. The header is durable after the next [`Journal::sync`].
    pub(crate) fn create(file: File, header: &Header) -> io::Result<Self> {
        let bytes = header.encode();
        file.write_all_at(&bytes, 0)?;
        let end = bytes.len() as u64;
        Ok(Self { file, id: header.id, end, durable: 0, next_sequence: format::FIRST_SEQUENCE })
    }

    /// Goes on with a journal that was read back, behind its last valid record. What follows there is cut off.
    pub(crate) fn resume(file: File, header: &Header, replayed: &Replayed) -> io::Result<Self> {
        file.set_len(replayed.end)?;
        files::sync(&file)?;
        Ok(Self {
            file,
            id: header.id,
            end: replayed.end,
            durable: replayed.end,
            next_sequence: replayed.next_sequence,
        })
    }

    /// How a child names this layer. What is not durable here is the child's to journal.
    pub(crate) fn as_ancestor(&self) -> Ancestor {
        Ancestor { id: self.id, journal_bytes: self.durable }
    }

    /// Appends `entries`, as records of a bounded size. After an error the journal is as it was.
    pub(crate) fn append(&mut self, mut entries: impl Iterator<Item = Entry>) -> io::Result<()> {
        let (mut end, mut sequence) = (self.end, self.next_sequence);
        loop {
            let chunk: Vec<Entry> = entries.by_ref().take(format::MAX_ENTRIES).collect();
            if chunk.is_empty() {
                break;
            }
            let record = format::encode_record(self.id, sequence, &chunk);
            if let Err(error) = self.file.write_all_at(&record, end) {
                // Where this fails too, the next append overwrites what is left there; and a crash before that finds
                // records that are true, because their data is durable.
                let _ = self.file.set_len(self.end);
                return Err(error);
            }
            end += record.len() as u64;
            sequence += 1;
        }
        (self.end, self.next_sequence) = (end, sequence);
        Ok(())
    }

    /// Makes everything appended so far durable, where it is not.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if self.durable < self.end {
            files::sync(&self.file)?;
            self.durable = self.end;
        }
        Ok(())
    }
}

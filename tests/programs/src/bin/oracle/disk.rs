//! A writer of disk records: around the page cache, each durable before the next begins.

use crate::state::{State, seal};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Records in the file: one lap.
const SLOTS: u64 = 8;
const BLOCK: usize = 4096;

/// A record: its number, the side that wrote it, and seals all over.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

impl Block {
    fn fill(&mut self, number: u64, side: u64) {
        for (place, word) in (0..).zip(self.0.as_chunks_mut::<8>().0) {
            *word = word_at(place, number, side).to_le_bytes();
        }
    }

    /// Number and side, unless the block is torn.
    fn read(&self) -> Option<(u64, u64)> {
        let words = self.0.as_chunks::<8>().0;
        let word = |index: usize| words.get(index).map(|word| u64::from_le_bytes(*word));
        let (number, side) = (word(0)?, word(1)?);
        let whole = (0..).zip(words).all(|(place, &word)| u64::from_le_bytes(word) == word_at(place, number, side));
        whole.then_some((number, side))
    }
}

fn word_at(place: u64, number: u64, side: u64) -> u64 {
    match place {
        0 => number,
        1 => side,
        _ => seal(number, side, place),
    }
}

/// Writes to the file at `path` without end.
pub(crate) fn write(state: &State, writer: usize, path: &Path) -> Result<(), String> {
    endless(state, writer, path).map_err(|error| format!("{}: {error}", path.display()))
}

fn endless(state: &State, writer: usize, path: &Path) -> io::Result<()> {
    let flags = (OFlags::DIRECT | OFlags::DSYNC).bits();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).custom_flags(flags.cast_signed());
    let file = options.open(path)?;
    let mut block = Box::new(Block([0; BLOCK]));
    let mut side = state.side();
    for number in 0..SLOTS {
        block.fill(number, side);
        file.write_all_at(&block.0, offset(number))?;
    }
    let mut next = SLOTS;
    let mut last_side = side;
    loop {
        for _ in 0..SLOTS {
            // What was written last is there, and what comes next is not.
            let last = look(&file, &mut block, next - 1)?;
            if last != Some((next - 1, last_side)) {
                state.violated(|| wrong(writer, next, next - 1, last));
            }
            let oldest = look(&file, &mut block, next - SLOTS)?;
            if !oldest.is_some_and(|(number, side)| number == next - SLOTS && state.is_ours(side)) {
                state.violated(|| wrong(writer, next, next - SLOTS, oldest));
            }
            block.fill(next, side);
            file.write_all_at(&block.0, offset(next))?;
            last_side = side;
            next += 1;
        }
        state.count_lap(writer);
        side = state.side();
    }
}

/// What the slot of `number` holds.
fn look(file: &File, block: &mut Block, number: u64) -> io::Result<Option<(u64, u64)>> {
    file.read_exact_at(&mut block.0, offset(number))?;
    Ok(block.read())
}

fn offset(number: u64) -> u64 {
    number % SLOTS * BLOCK as u64
}

fn wrong(writer: usize, next: u64, expected: u64, found: Option<(u64, u64)>) -> String {
    let found = match found {
        Some((number, side)) => format!("record {number} of side {side}"),
        None => "a torn record".to_owned(),
    };
    format!("disk writer {writer}, before record {next}: the slot of record {expected} holds {found}")
}

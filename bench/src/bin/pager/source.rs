//! Pages from memory, at once or after a delay.

use pando_memory::pager::{FetchError, Fetched, PageSource, Wanted};
use std::thread;
use std::time::Duration;

pub(crate) const PAGE: u64 = 4096;

pub(crate) struct Source {
    pub(crate) delay: Duration,
    pub(crate) chunk_pages: u32,
    /// Whether the fill gets any pages; else it waits for ever.
    pub(crate) answers_fill: bool,
}

impl Default for Source {
    fn default() -> Self {
        Self { delay: Duration::ZERO, chunk_pages: 4, answers_fill: true }
    }
}

impl PageSource for Source {
    fn chunk_pages(&self) -> u32 {
        self.chunk_pages
    }

    fn fetch(&self, wanted: &Wanted, fetched: &mut Fetched) -> Result<(), FetchError> {
        if !wanted.is_urgent && !self.answers_fill {
            loop {
                thread::park();
            }
        }
        if !self.delay.is_zero() {
            thread::sleep(self.delay);
        }
        fetched.data(wanted.pages.len() as u32)?.fill(0x5a);
        Ok(())
    }
}

//! Loading all of a checkpoint's memory, and nothing else: the least that any VM has to wait for that loads everything first.

use pando_bench::{PageServer, serve};
use pando_wire::pages::{Client, MAX_PAGES};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

const PAGE: usize = 4096;

/// How long it takes to read all its memory from a page server that is started for that, in microseconds.
pub(crate) fn load(pando: &Path, store: &Path, checkpoint: &str) -> Result<u64, Box<dyn Error>> {
    let start = Instant::now();
    let PageServer { mut process, connections } = serve(pando, store, checkpoint)?;
    let mut connections = connections.into_iter();
    let mut client = Client::new(connections.next().ok_or("there is no connection")?);
    let pages = u32::try_from(client.describe()?.0.memory_pages)?;
    let mut memory = vec![0; pages as usize * PAGE];
    for first in (0..pages).step_by(MAX_PAGES as usize) {
        let mut at = first as usize * PAGE;
        let pages = MAX_PAGES.min(pages - first);
        client.memory(&[(first, pages)])?;
        for run in client.pages(pages)? {
            let end = at + run.pages as usize * PAGE;
            if run.is_data {
                client.read(&mut memory[at..end])?;
            }
            at = end;
        }
    }
    let us = start.elapsed().as_micros() as u64;
    drop((client, connections));
    process.wait()?;
    Ok(us)
}

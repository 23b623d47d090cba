//! What a power cut leaves: everything that was synced, and of the rest whatever the drive happened to write.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const SECTOR: usize = 512;

thread_local! {
    /// What each file, by inode, held when it was last synced.
    static SYNCED: RefCell<HashMap<u64, Vec<u8>>> = RefCell::default();
    /// How many syncs succeed before one fails.
    static SYNCS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Called before each sync of this thread.
pub(crate) fn on_sync(file: &File) -> io::Result<()> {
    match SYNCS_LEFT.get() {
        Some(0) => return Err(io::Error::other("the drive is gone")),
        Some(left) => SYNCS_LEFT.set(Some(left - 1)),
        None => (),
    }
    let metadata = file.metadata()?;
    let mut bytes = vec![0; metadata.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    SYNCED.with_borrow_mut(|synced| synced.insert(metadata.ino(), bytes));
    Ok(())
}

/// Lets `count` more syncs succeed, and no others, until told otherwise.
pub(crate) fn fail_syncs_after(count: Option<u32>) {
    SYNCS_LEFT.set(count);
}

/// Cuts the power as far as the file at `path` is concerned: each sector that was not synced is old or new, as `choose`
/// (a number below the one given) says, and so is the length.
pub(crate) fn cut(path: &Path, mut choose: impl FnMut(usize) -> usize) {
    let inode = fs::metadata(path).unwrap().ino();
    let old = SYNCED.with_borrow(|synced| synced.get(&inode).cloned()).unwrap_or_default();
    let new = fs::read(path).unwrap();
    let least = old.len().min(new.len());
    let mut left = new[..least + choose(new.len() - least + 1)].to_vec();
    for (n, sector) in left.chunks_mut(SECTOR).enumerate() {
        if choose(2) == 0 {
            for (k, byte) in sector.iter_mut().enumerate() {
                *byte = old.get(n * SECTOR + k).copied().unwrap_or(0);
            }
        }
    }
    fs::write(path, &left).unwrap();
    SYNCED.with_borrow_mut(|synced| synced.insert(inode, left));
}

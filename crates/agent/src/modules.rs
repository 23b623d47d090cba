//! The kernel's drivers: whatever the host put into the initramfs, in its order.

use rustix::{io::Errno, system::finit_module};
use std::{
    fs::{self, File},
    io,
};

/// One file name per line, in the order to load them in.
const LIST: &str = "/pando/modules";

/// Where the files are, not compressed.
const FILES: &str = "/pando/lib";

/// Loads every module of the list. The first that cannot be loaded is named in the error, and the rest are loaded all
/// the same: a VM may do without.
pub(crate) fn load() -> Result<(), String> {
    let list = fs::read_to_string(LIST).map_err(|error| format!("cannot read {LIST}: {error}"))?;
    let failures = list.lines().filter(|line| !line.is_empty()).filter_map(|name| {
        let loaded = load_one(&format!("{FILES}/{name}"));
        loaded.err().map(|error| format!("cannot load {name}: {error}"))
    });
    failures.reduce(|first, _| first).map_or(Ok(()), Err)
}

fn load_one(path: &str) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()), // It is there already, or built in.
        Err(error) => Err(error.into()),
    }
}

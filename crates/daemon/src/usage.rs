//! What a process's memory costs, from the kernel's own account of it.

use pando_wire::api::Usage;
use std::fs;
use std::io;
use std::path::Path;

/// The memory of process `pid`: guest memory and what the monitor itself needs. Takes a millisecond per gigabyte or so,
/// because the kernel walks the page tables.
pub(crate) fn of_process(pid: u32) -> io::Result<Usage> {
    Ok(parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?))
}

/// How much memory could be had without swapping, in bytes. `None` where the kernel does not say so in `meminfo`.
pub(crate) fn available_bytes(meminfo: &Path) -> Option<u64> {
    field(&fs::read_to_string(meminfo).ok()?, "MemAvailable:")
}

fn parse(rollup: &str) -> Usage {
    let bytes = |name| field(rollup, name).unwrap_or(0);
    Usage {
        rss_bytes: bytes("Rss:"),
        pss_bytes: bytes("Pss:"),
        private_bytes: bytes("Private_Clean:") + bytes("Private_Dirty:"),
    }
}

/// The value of the line `name  <value> kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_and_private_pages_are_told_apart() {
        let rollup = "55d000-7ffd000 ---p 00000000 00:00 0   [rollup]\n\
                      Rss:                1000 kB\nPss:                 600 kB\nPss_Dirty:           500 kB\n\
                      Shared_Clean:        700 kB\nPrivate_Clean:       100 kB\nPrivate_Dirty:       200 kB\n";
        let usage = Usage { rss_bytes: 1000 << 10, pss_bytes: 600 << 10, private_bytes: 300 << 10 };
        assert_eq!(parse(rollup), usage);
    }

    #[test]
    fn this_process_uses_memory_and_the_host_has_some() {
        assert!(of_process(std::process::id()).unwrap().rss_bytes > 0);
        assert!(available_bytes("/proc/meminfo".as_ref()).unwrap() > 0);
    }
}

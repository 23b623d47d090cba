//! What a process costs, from the kernel's own account of it.

use pando_wire::api::Usage;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The unit of the CPU times in `stat`: `USER_HZ`, which is 100 a second wherever guests run.
const TICK: Duration = Duration::from_millis(10);

/// The memory of process `pid`: guest memory and what the monitor itself needs. Takes a millisecond per gigabyte or so,
/// because the kernel walks the page tables.
pub(crate) fn of_process(pid: u32) -> io::Result<Usage> {
    Ok(parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?))
}

/// The CPU time of process `pid` with all of its threads, those that ran a guest's code included, in units of 10 ms.
pub(crate) fn cpu_of_process(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    cpu(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is no account of a process"))
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

/// Time in user mode and in the kernel: the 14th and 15th field. The second is a name in parentheses, which may have any
/// character in it.
fn cpu(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    TICK.checked_mul(ticks()?.checked_add(ticks()?)?)
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
    fn cpu_time_is_that_of_user_mode_and_kernel() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 100 23 900 900 20 0 3 0 5 6 7";
        assert_eq!(cpu(stat), Some(Duration::from_millis(1230)));
        assert_eq!(cpu("7 (a) S 1"), None);
        assert!(cpu_of_process(std::process::id()).is_ok());
    }

    #[test]
    fn this_process_uses_memory_and_the_host_has_some() {
        assert!(of_process(std::process::id()).unwrap().rss_bytes > 0);
        assert!(available_bytes("/proc/meminfo".as_ref()).unwrap() > 0);
    }
}

//! The kernel's random numbers.

use crate::SysError;
use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
};

/// `_IO('R', 7)`: what is in the pool becomes the seed of all random numbers from now on. Since Linux 4.17.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Mixes `bytes` into the pool of the kernel that this process runs on, and makes every number that is drawn from now on
/// depend on them. Needs `CAP_SYS_ADMIN`, and a pool that was seeded before.
pub fn reseed(bytes: &[u8]) -> Result<(), SysError> {
    let failed = |call| move |error: io::Error| SysError::io(call, error);
    let mut device = File::options().write(true).open("/dev/urandom").map_err(failed("open /dev/urandom"))?;
    device.write_all(bytes).map_err(failed("write to /dev/urandom"))?;
    // SAFETY: This request takes no argument, and touches no memory of this process.
    match unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } {
        0 => Ok(()),
        _ => Err(SysError::last("RNDRESEEDCRNG")),
    }
}

//! What QEMU opens by a path and no disk holds; and random names.

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

/// A file with this content, on no disk.
pub(crate) fn in_memory(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("initramfs", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    Ok(file)
}

/// A path by which another program of this user can open what is open here, for as long as it is.
pub(crate) fn path_for_others(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// 128 random bits in hexadecimal.
pub(crate) fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    // So few bytes come all at once.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

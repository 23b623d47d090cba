//! What the kernel's include/uapi/linux/userfaultfd.h says.

use std::ffi::{c_int, c_ulong};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

pub(super) const FLAGS: c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;
pub(super) const UFFD_API: u64 = 0xaa;
pub(super) const MODE_MISSING: u64 = 1;
pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
/// The length of a `uffd_msg`, and where in it the address of a fault is.
pub(super) const EVENT_LEN: usize = 32;
pub(super) const ADDRESS_AT: usize = 16;

#[repr(C)]
pub(super) struct Api {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// A `uffdio_range`.
#[repr(C)]
pub(super) struct Whole {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Whole {
    pub(super) fn of(region: &GuestRegionMmap) -> Self {
        Self { start: region.as_ptr() as u64, len: region.len() }
    }
}

#[repr(C)]
pub(super) struct Register {
    pub(super) range: Whole,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
pub(super) struct Copy {
    pub(super) to: u64,
    pub(super) from: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) copied: i64,
}

#[repr(C)]
pub(super) struct Zero {
    pub(super) range: Whole,
    pub(super) mode: u64,
    pub(super) zeroed: i64,
}

/// A new userfaultfd from `/dev/userfaultfd`.
pub(super) const USERFAULTFD_IOC_NEW: c_ulong = request::<()>(0, 0x00);
/// Chooses the version.
pub(super) const UFFDIO_API: c_ulong = request::<Api>(READ | WRITE, 0x3f);
/// Makes those wait who touch a missing page.
pub(super) const UFFDIO_REGISTER: c_ulong = request::<Register>(READ | WRITE, 0x00);
/// Makes missing pages zeroes.
pub(super) const UFFDIO_UNREGISTER: c_ulong = request::<Whole>(READ, 0x01);
/// Wakes those who wait.
pub(super) const UFFDIO_WAKE: c_ulong = request::<Whole>(READ, 0x02);
/// Fills missing pages.
pub(super) const UFFDIO_COPY: c_ulong = request::<Copy>(READ | WRITE, 0x03);
/// Fills missing pages with zeroes.
pub(super) const UFFDIO_ZEROPAGE: c_ulong = request::<Zero>(READ | WRITE, 0x04);

const WRITE: c_ulong = 1;
const READ: c_ulong = 2;

const fn request<T>(direction: c_ulong, number: c_ulong) -> c_ulong {
    direction << 30 | (size_of::<T>() as c_ulong) << 16 | 0xaa << 8 | number
}

/// # Safety
///
/// `argument` has the type that `request` takes, and what the request does to this process's memory is sound.
pub(super) unsafe fn ioctl<T>(fd: BorrowedFd<'_>, request: c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: The caller answers for the request; `argument` lives as long as the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_match_the_kernel_headers() {
        assert_eq!(USERFAULTFD_IOC_NEW, 0xaa00);
        assert_eq!(UFFDIO_API, 0xc018_aa3f);
        assert_eq!(UFFDIO_REGISTER, 0xc020_aa00);
        assert_eq!(UFFDIO_UNREGISTER, 0x8010_aa01);
        assert_eq!(UFFDIO_WAKE, 0x8010_aa02);
        assert_eq!(UFFDIO_COPY, 0xc028_aa03);
        assert_eq!(UFFDIO_ZEROPAGE, 0xc020_aa04);
    }
}

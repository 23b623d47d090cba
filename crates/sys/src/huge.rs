//! What a process can learn of its own page tables: whether a huge page is mapped as one, and how often a page was faulted
//! in.

use crate::userfault::host_address;
use crate::{HUGE_PAGE, SysError};
use std::ffi::c_ulong;
use std::fs::File;
use std::os::fd::AsRawFd;
use vm_memory::GuestMemoryMmap;

const PAGE: u64 = 4096;
/// `PAGE_IS_HUGE` of the kernel's `linux/fs.h`.
const IS_HUGE: u64 = 1 << 6;
/// Tells of which kind the pages of a range are; since Linux 6.7.
const PAGEMAP_SCAN: c_ulong = 3 << 30 | (size_of::<Scan>() as c_ulong) << 16 | (b'f' as c_ulong) << 8 | 16;

/// A `pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// A `page_region`.
#[repr(C)]
#[derive(Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Whether the 2 MiB of which `page` is the first are mapped as one huge page, from this process's own `pagemap`. An error
/// where the kernel does not tell (before Linux 6.7).
pub fn is_huge(memory: &GuestMemoryMmap, pagemap: &File, page: u32) -> Result<bool, SysError> {
    let end = page.saturating_add((HUGE_PAGE / PAGE) as u32);
    let start = host_address(memory, &(page..end))?;
    let mut region = Region::default();
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        start,
        end: start + HUGE_PAGE,
        regions: std::ptr::from_mut(&mut region) as u64,
        regions_len: 1,
        category_mask: IS_HUGE,
        return_mask: IS_HUGE,
        ..Scan::default()
    };
    // SAFETY: `Scan` is what this request takes; the kernel writes one `Region` where it says, which outlives the call. It
    // only reads page tables. Any other file than a pagemap refuses it.
    match unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) } {
        -1 => Err(SysError::last("PAGEMAP_SCAN")),
        _ => Ok(region.start == start && region.end == start + HUGE_PAGE),
    }
}

/// How many page faults of this process, the kernel's on its behalf included, were answered without a disk: at least one
/// for each page that it has copied from a parent or a child.
pub fn minor_faults() -> u64 {
    // SAFETY: Zeroes are a valid `rusage`: it is numbers and nothing else.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: The kernel writes one `rusage` where it is told to.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    u64::try_from(usage.ru_minflt).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{collapse, guest_memory};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn the_number_matches_the_kernel_headers() {
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
    }

    #[test]
    fn a_huge_page_is_told_from_its_pages_and_faults_are_counted() {
        let memory = guest_memory(&[(0, 2 * HUGE_PAGE)]).unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let before = minor_faults();
        memory.write_obj(1u8, GuestAddress(HUGE_PAGE)).unwrap();
        assert!(minor_faults() > before);
        collapse(&memory, 512).unwrap();
        assert!(is_huge(&memory, &pagemap, 512).unwrap());
        crate::give_back(&memory, 600..601).unwrap();
        assert_eq!([0, 512].map(|page| is_huge(&memory, &pagemap, page).unwrap()), [false, false]);
        assert!(is_huge(&memory, &pagemap, 1024).is_err(), "there is no such page");
    }
}

//! Guest RAM: private anonymous memory, so that `fork(2)` shares it copy-on-write, in huge pages, so that sharing it
//! costs one page-table entry for 2 MiB.

use crate::SysError;
use std::{ptr, sync::Arc};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// The size of a huge page, to which guest memory is aligned on both sides.
pub const HUGE_PAGE: u64 = 2 << 20;
/// What `mincore(2)` counts in.
const PAGE: usize = 4096;

/// Reserves guest RAM: `(guest-physical address, length)` pairs in ascending order, each a multiple of [`HUGE_PAGE`].
///
/// The memory is never given back before the process ends: a process has one VM, and while a forked child builds its
/// own, the parent's objects that still name this memory are only forgotten.
pub fn guest_memory(ranges: &[(u64, u64)]) -> Result<GuestMemoryMmap, SysError> {
    let mut regions = Vec::new();
    for &(start, len) in ranges {
        let region = Arc::new(huge_anonymous(len as usize)?);
        let region = GuestRegionMmap::with_arc(region, GuestAddress(start));
        regions.push(region.ok_or_else(invalid_range)?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(|_| invalid_range())
}

/// Gives this process a copy of its own of `len` bytes of guest memory from `start` on, all at once, where they are still
/// shared with a parent. Their content stays. Costs a fraction of what it does when the guest writes page after page.
pub fn unshare(memory: &GuestMemoryMmap, start: GuestAddress, len: usize) -> Result<(), SysError> {
    let slice = memory.get_slice(start, len).map_err(|_| invalid_range())?;
    let address = slice.ptr_guard_mut().as_ptr();
    // SAFETY: The slice lies in guest memory, which stays mapped. Populating changes no content.
    match unsafe { libc::madvise(address.cast(), len, libc::MADV_POPULATE_WRITE) } {
        0 => Ok(()),
        _ => Err(SysError::last("madvise(MADV_POPULATE_WRITE)")),
    }
}

/// Which of the pages in `len` bytes of guest memory from `start` on are there, shared with a parent or not: one entry per
/// page. One that nobody has touched is not, nor one that was given back.
pub fn present(memory: &GuestMemoryMmap, start: GuestAddress, len: usize) -> Result<Vec<bool>, SysError> {
    let slice = memory.get_slice(start, len).map_err(|_| invalid_range())?;
    let address = slice.ptr_guard_mut().as_ptr();
    let mut there = vec![0u8; len.div_ceil(PAGE)];
    // SAFETY: The slice lies in guest memory, which stays mapped, and the kernel writes a byte for each of its pages.
    match unsafe { libc::mincore(address.cast(), len, there.as_mut_ptr()) } {
        0 => Ok(there.into_iter().map(|page| page & 1 != 0).collect()),
        _ => Err(SysError::last("mincore")),
    }
}

fn invalid_range() -> SysError {
    SysError::too_many("place guest memory: the ranges overlap or wrap")
}

fn huge_anonymous(len: usize) -> Result<MmapRegion, SysError> {
    const PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
    const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let huge = HUGE_PAGE as usize;
    let reserved_len = len.checked_add(huge).ok_or_else(invalid_range)?;
    // SAFETY: A new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let reserved = unsafe { libc::mmap(ptr::null_mut(), reserved_len, PROTECTION, FLAGS, -1, 0) };
    if reserved == libc::MAP_FAILED {
        return Err(SysError::last("mmap guest memory"));
    }
    let start = reserved.cast::<u8>().wrapping_add(reserved.cast::<u8>().align_offset(huge));
    // SAFETY: `start..start + len` lies in the mapping made above, which has `huge` bytes to spare for the alignment.
    // Advice changes no content; where huge pages are off, it fails and 4 KiB pages serve.
    unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
    // SAFETY: That range is mapped so, and stays so until the process ends: nothing unmaps it.
    let region = unsafe { MmapRegion::build_raw(start, len, PROTECTION, FLAGS) };
    region.map_err(|_| invalid_range())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn guest_memory_is_zeroed_writable_and_huge_page_aligned() {
        let memory = guest_memory(&[(0, HUGE_PAGE), (1 << 32, HUGE_PAGE)]).unwrap();
        let at = GuestAddress((1 << 32) + 8);
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 0);
        memory.write_obj(7u64, at).unwrap();
        assert_eq!(memory.read_obj::<u64>(at).unwrap(), 7);
        let host = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        assert!(host.is_multiple_of(HUGE_PAGE));
    }

    #[test]
    fn unsharing_keeps_the_content_and_ends_with_the_memory() {
        let memory = guest_memory(&[(0, HUGE_PAGE)]).unwrap();
        memory.write_obj(7u64, GuestAddress(4096)).unwrap();
        unshare(&memory, GuestAddress(0), 3 * 4096).unwrap();
        assert_eq!(memory.read_obj::<u64>(GuestAddress(4096)).unwrap(), 7);
        assert!(unshare(&memory, GuestAddress(HUGE_PAGE - 4096), 2 * 4096).is_err());
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        assert!(guest_memory(&[(0, 2 * HUGE_PAGE), (HUGE_PAGE, HUGE_PAGE)]).is_err());
        assert!(guest_memory(&[(0, u64::MAX - HUGE_PAGE + 1)]).is_err());
    }
}

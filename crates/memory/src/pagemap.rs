//! What the kernel tells of a page in `pagemap` (its Documentation/admin-guide/mm/pagemap.rst).

use pando_sys::HUGE_PAGE;

/// A page, as page tables, `pagemap` and guest-physical page numbers have it.
pub(crate) const PAGE: u64 = 4096;
/// The bytes of an entry.
pub(crate) const ENTRY: u64 = 8;
/// Pages in a huge page.
pub(crate) const IN_HUGE_PAGE: usize = (HUGE_PAGE / PAGE) as usize;
/// No other process maps it.
pub(crate) const EXCLUSIVE: u64 = 1 << 56;
/// It is in memory.
pub(crate) const PRESENT: u64 = 1 << 63;

/// It is swapped out.
pub(crate) const SWAPPED: u64 = 1 << 62;
/// A page of a file, or of shared memory: never one of a guest.
pub(crate) const OF_A_FILE: u64 = 1 << 61;
/// The number of the page frame: 0 where the kernel does not tell.
pub(crate) const FRAME: u64 = (1 << 55) - 1;

/// Whether an entry has a flag.
pub(crate) fn has(entry: &[u8], flag: u64) -> bool {
    entry.try_into().map_or(0, u64::from_ne_bytes) & flag != 0
}

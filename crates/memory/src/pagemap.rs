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

/// Whether an entry has a flag.
pub(crate) fn has(entry: &[u8], flag: u64) -> bool {
    entry.try_into().map_or(0, u64::from_ne_bytes) & flag != 0
}

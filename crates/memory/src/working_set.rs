//! What a child of a fork has written: the pages that it alone has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// A page, as page tables, `pagemap` and guest-physical page numbers have it.
const PAGE: u64 = 4096;
/// An entry of `pagemap` (the kernel's Documentation/admin-guide/mm/pagemap.rst).
const ENTRY: u64 = 8;
const EXCLUSIVE: u64 = 1 << 56;
/// Entries read at once.
const ENTRIES: usize = 8192;

/// The pages of `memory` that no other process maps, as runs `(first page, pages)`, from this process's own `pagemap`.
/// `None` when there are more than `most`: then it stops looking.
pub fn private_pages(memory: &GuestMemoryMmap, pagemap: &File, most: u32) -> io::Result<Option<Vec<(u32, u32)>>> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let mut pages = 0;
    let mut buffer = vec![0; ENTRIES * ENTRY as usize];
    for region in memory.iter() {
        let (host, guest) = (region.as_ptr() as u64 / PAGE, region.start_addr().raw_value() / PAGE);
        let count = region.len() / PAGE;
        let mut first = 0;
        while first < count {
            let len = (count - first).min(ENTRIES as u64);
            let bytes = &mut buffer[..(len * ENTRY) as usize];
            pagemap.read_exact_at(bytes, (host + first) * ENTRY)?;
            for (page, entry) in (guest + first..).zip(bytes.chunks_exact(ENTRY as usize)) {
                let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
                if entry & EXCLUSIVE == 0 {
                    continue;
                }
                pages += 1;
                if pages > most {
                    return Ok(None);
                }
                let page = page as u32; // RAM ends below 2^44 bytes.
                match runs.last_mut().filter(|run| run.0 + run.1 == page) {
                    Some(run) => run.1 += 1,
                    None => runs.push((page, 1)),
                }
            }
            first += len;
        }
    }
    Ok(Some(runs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_sys::{HUGE_PAGE, guest_memory};
    use vm_memory::{Bytes, GuestAddress};

    const HIGH: u64 = 1 << 32;

    #[test]
    fn pages_that_were_written_are_private_up_to_a_limit() {
        let memory = guest_memory(&[(0, HUGE_PAGE), (HIGH, HUGE_PAGE)]).unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        assert_eq!(private_pages(&memory, &pagemap, 9).unwrap(), Some(vec![]));
        memory.write_obj(7u64, GuestAddress(HIGH + 5 * PAGE)).unwrap();
        let found = private_pages(&memory, &pagemap, 512).unwrap().unwrap();
        let page = (HIGH / PAGE) as u32;
        // One page, or the huge page around it.
        assert!(found == [(page + 5, 1)] || found == [(page, 512)], "{found:?}");
        assert_eq!(private_pages(&memory, &pagemap, 0).unwrap(), None);
    }
}

//! Where the pages go that a guest does not use.

use crate::server::Arriving;
use pando_devices::virtio::balloon::FreePages;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Gives them to the host's kernel. What they held in a parent or a child of this VM stays there: the memory is shared
/// copy-on-write, and only this process's view of it ends.
pub(crate) struct ToHost {
    pub(crate) memory: GuestMemoryMmap,
    /// What brings the memory, where it is not all there.
    pub(crate) arriving: Option<Arc<Arriving>>,
}

impl FreePages for ToHost {
    fn give_back(&self, pages: Range<u32>) {
        if let Some(arriving) = &self.arriving {
            // First: what is on its way would come after all.
            arriving.pager.discard(&[(pages.start, pages.end - pages.start)]);
        }
        // What the host does not take is still the guest's, as if it had not been reported.
        let _ = pando_sys::give_back(&self.memory, pages);
    }
}

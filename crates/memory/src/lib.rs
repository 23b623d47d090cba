//! Guest memory: which guest-physical addresses are RAM, and what lies between.
//!
//! Its own crate because all of it can be tested without KVM.

mod layout; // which guest-physical ranges exist
pub mod pager; // bringing pages in on first touch
mod collapse; // huge pages, one at a time
mod huge; // huge pages again, after a fork
mod pagemap; // what the kernel tells of a page
mod working_set; // what a child of a fork has written, and what of it is still there
mod earlier; // what a seed has in common with an earlier one

pub use earlier::{Known, TwoSeeds};
pub use huge::{BeginError, Held, HugePages};
pub use layout::{HIGH_START, LOW_END, LayoutError, MAX_BYTES, MIN_BYTES, MMIO_DEVICE_LEN, MMIO_DEVICES, ram_ranges};
use pando_sys::SysError;
use vm_memory::GuestMemoryMmap;
pub use working_set::{held_pages, present_pages, private_pages};

/// RAM of `len_bytes` for a guest, zeroed, laid out as [`ram_ranges`] says.
pub fn allocate(len_bytes: u64) -> Result<GuestMemoryMmap, AllocateError> {
    Ok(pando_sys::guest_memory(&ram_ranges(len_bytes)?)?)
}

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// The size is not one that a guest can have.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The kernel has no room for the mapping.
    #[error("cannot reserve guest memory")]
    Reserve(#[from] SysError),
}

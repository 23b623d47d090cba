//! Everything a VM is at one instant. Boot, fork and restore differ only in where it comes from.

use crate::boot::{self, BootError};
use crate::machine::MachineState;
use crate::server::{Arriving, PageServer};
use pando_disk::Sealed;
use pando_sys::Kvm;
use pando_wire::control::{Boot, StartNetwork, WorkingSet};
use std::fs::File;
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A page, as a [`WorkingSet`] counts them.
pub(crate) const PAGE: u64 = 4096;

/// A VM at one instant.
pub(crate) struct Image {
    pub(crate) machine: MachineState,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) disk: DiskImage,
    /// What it is known to write first, once it runs.
    pub(crate) expected: WorkingSet,
    /// What brings the memory, where it is not all there.
    pub(crate) arriving: Option<Arc<Arriving>>,
}

/// What the disk holds at that instant.
pub(crate) enum DiskImage {
    /// The base and nothing else.
    Fresh {
        /// At least the base's length; what is beyond the base reads as zero.
        len_bytes: u64,
    },
    /// What an earlier life of the VM had made durable, as the journals tell.
    Kept {
        /// One per inherited layer, oldest first.
        inherited_journals: Vec<File>,
        /// Nobody else reads its own layer.
        is_alone: bool,
    },
    /// What the parent's disk held at the fork.
    Sealed(Box<Sealed>),
    /// The base, and the blocks that a page server has.
    Stored {
        /// As above.
        len_bytes: u64,
        /// Who has them.
        server: Arc<PageServer>,
    },
}

impl Image {
    /// A machine at power-on with `kernel` in its memory, and a network card if it has a `network`.
    pub(crate) fn from_kernel(
        kvm: &Kvm,
        boot: &Boot,
        network: Option<StartNetwork>,
        kernel: &mut File,
        initramfs: &mut File,
        disk: DiskImage,
    ) -> Result<Self, BootError> {
        let (machine, memory) = boot::power_on(kvm, boot, network, kernel, initramfs)?;
        Ok(Self { machine, memory, disk, expected: WorkingSet::default(), arriving: None })
    }

    /// Gives this process the pages of its own that the guest is going to write first. What was given back since that was
    /// learned is expected no more.
    pub(crate) fn unshare_expected(&mut self) {
        self.expected.0 = pando_memory::present_pages(&self.memory, &self.expected.0);
        for &(first, pages) in &self.expected.0 {
            let (start, len) = (u64::from(first) * PAGE, pages as usize * PAGE as usize);
            // Without memory for it now, there may be some when the guest gets there.
            let _ = pando_sys::unshare(&self.memory, GuestAddress(start), len);
        }
    }
}

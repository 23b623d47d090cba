//! A VM that was saved, as an image: its machine and disk as a page server tells, and memory that comes as it is touched.

use crate::features;
use crate::image::{DiskImage, Image, PAGE};
use crate::machine::{DecodeError, MachineState};
use crate::owner::Events;
use crate::server::{self, Arriving, PageServer, Source};
use pando_disk::BLOCK_BYTES;
use pando_memory::AllocateError;
use pando_memory::pager::{self, Pager};
use pando_sys::{Kvm, SysError, Userfault};
use pando_wire::control::{Asleep, Restore, WorkingSet};
use pando_wire::pages::{AskError, Client, Description};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vm_memory::{Address, GuestMemoryBackend};

/// Why a VM is not restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    /// The server.
    #[error("cannot learn what was saved")]
    Ask(#[from] AskError),
    /// What was saved is not what the daemon says.
    #[error("the VM that was saved has other {0} than the one that is to be started")]
    Other(&'static str),
    /// The machine's state.
    #[error("cannot use the saved state of the machine")]
    Decode(#[from] DecodeError),
    /// Another host.
    #[error("the CPU of this host lacks what the guest was shown: {}", .0.join(", "))]
    Features(Vec<&'static str>),
    /// Memory.
    #[error(transparent)]
    Memory(#[from] AllocateError),
    /// KVM, or `userfaultfd(2)`.
    #[error("cannot have the memory come as it is touched")]
    Host(#[from] SysError),
    /// The pager.
    #[error("cannot start to bring the memory")]
    Pager(#[from] pager::StartError),
}

/// What was saved, as the daemon knows it.
pub(crate) struct Wanted {
    vcpus: u8,
    memory_bytes: u64,
    /// 0 where the disk was not saved.
    disk_bytes: u64,
}

impl From<&Restore> for Wanted {
    fn from(restore: &Restore) -> Self {
        let Restore { vcpus, memory_bytes, disk_bytes, is_twin: _ } = *restore;
        Self { vcpus, memory_bytes, disk_bytes }
    }
}

impl From<&Asleep> for Wanted {
    fn from(asleep: &Asleep) -> Self {
        let Asleep { vcpus, memory_bytes, is_alone: _ } = *asleep;
        Self { vcpus, memory_bytes, disk_bytes: 0 }
    }
}

impl Image {
    /// What the server at the other end of `connections` has. From here on its memory may be touched, and is waited for.
    pub(crate) fn from_server(
        kvm: &Kvm,
        wanted: &Wanted,
        connections: Vec<UnixStream>,
        events: Events,
    ) -> Result<Self, RestoreError> {
        let mut clients: Vec<_> = connections.into_iter().map(Client::new).collect();
        let Some(first) = clients.first_mut() else { return Err(AskError::Answer.into()) };
        let (described, state) = first.describe()?;
        let mut machine = MachineState::decode(&described.machine, &state)?;
        let memory = pando_memory::allocate(wanted.memory_bytes)?;
        check(wanted, &described, &machine, memory.last_addr().raw_value() / PAGE + 1)?;
        let supported = kvm.supported_cpuid()?;
        if let Some(vcpu) = machine.vcpus.first() {
            let missing = features::missing(&vcpu.cpuid, &supported);
            if !missing.is_empty() {
                return Err(RestoreError::Features(missing));
            }
        }
        machine.wake();
        let server = Arc::new(PageServer::new(clients, described.chunk_pages));
        // Before anything touches the memory, the kernel on behalf of KVM included.
        let userfault = Userfault::new(memory.clone())?;
        let spec = pager::Spec { missing: Some(described.held), expected: described.expected, ..Default::default() };
        let on_end = move |end| server::tell(end, &events);
        let pager = Pager::start(userfault, Source(Arc::clone(&server)), spec, on_end)?;
        let disk = DiskImage::Stored { len_bytes: wanted.disk_bytes, server: Arc::clone(&server) };
        let arriving = Some(Arc::new(Arriving { pager, server }));
        Ok(Self { machine, memory, disk, expected: WorkingSet::default(), arriving })
    }

    /// The same, with the disk that the VM had made durable, as its own journal and those of the inherited layers tell.
    pub(crate) fn with_own_disk(self, inherited_journals: Vec<File>, is_alone: bool) -> Self {
        Self { disk: DiskImage::Kept { inherited_journals, is_alone }, ..self }
    }
}

fn check(
    wanted: &Wanted,
    described: &Description,
    machine: &MachineState,
    memory_pages: u64,
) -> Result<(), RestoreError> {
    if machine.vcpus.len() != usize::from(wanted.vcpus) {
        return Err(RestoreError::Other("CPUs"));
    }
    if described.memory_pages != memory_pages {
        return Err(RestoreError::Other("memory"));
    }
    if described.disk_pages.checked_mul(BLOCK_BYTES) != Some(wanted.disk_bytes) {
        return Err(RestoreError::Other("disk"));
    }
    Ok(())
}

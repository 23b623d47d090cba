//! The files of a VM: created by the daemon, handed to its monitor, which opens none itself. Everything here blocks.

use super::error::{FleetError, cannot};
use super::network::Given;
use crate::network::Expected;
use crate::paths::{Paths, create_private, remove};
use crate::supervisor::lock;
use pando_disk::{DATA_FILE, JOURNAL_FILE};
use pando_wire::control::Listener;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// What a VM has for itself.
#[derive(Debug)]
pub(super) struct Own {
    console: File,
    vsock: UnixListener,
    data: File,
    journal: File,
}

/// What a VM has in common with its relatives: one descriptor serves all.
#[derive(Debug)]
pub(super) struct Shared {
    kvm: File,
    base: File,
    /// The data files of the inherited layers, oldest first.
    inherited: Vec<File>,
    /// Their map journals, if they are needed.
    journals: Vec<File>,
    /// Their networks are being made.
    _networks: Option<Expected>,
}

/// What a VM boots from.
#[derive(Debug)]
pub(super) struct BootFiles {
    pub(super) kernel: File,
    pub(super) initramfs: OwnedFd,
}

impl BootFiles {
    /// As [`descriptors`] takes them.
    pub(super) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.kernel.as_fd(), self.initramfs.as_fd()]
    }
}

impl Own {
    /// Creates the files and sockets of VM `id`, whose `layer` is new. That's name is not durable yet, see [`sync_names`].
    pub(super) fn create(paths: &Paths, id: &str, layer: &str) -> Result<(Self, Listener), FleetError> {
        for dir in [paths.vm(id), paths.layer(layer)] {
            create_private(&dir).map_err(cannot(format!("create {}", dir.display())))?;
        }
        Self::open_with(paths, id, layer, File::options().read(true).write(true).create_new(true))
    }

    /// Opens the files of a stopped VM and creates its sockets anew.
    pub(super) fn open(paths: &Paths, id: &str, layer: &str) -> Result<(Self, Listener), FleetError> {
        Self::open_with(paths, id, layer, File::options().read(true).write(true))
    }

    fn open_with(
        paths: &Paths,
        id: &str,
        layer: &str,
        layer_options: &std::fs::OpenOptions,
    ) -> Result<(Self, Listener), FleetError> {
        let open = |path: &Path, options: &std::fs::OpenOptions| {
            options.open(path).map_err(cannot(format!("open {}", path.display())))
        };
        let layer = paths.layer(layer);
        let data = open(&layer.join(DATA_FILE), layer_options)?;
        // It goes to the monitor with the file: two of them can never write one layer.
        lock(&data).map_err(cannot(format!("lock {}", layer.join(DATA_FILE).display())))?;
        let journal = open(&layer.join(JOURNAL_FILE), layer_options)?;
        let console = open(&paths.console(id), File::options().append(true).create(true))?;

        let sockets = paths.sockets(id);
        remove(&sockets)
            .and_then(|()| create_private(&sockets))
            .map_err(cannot(format!("create {}", sockets.display())))?;
        let bind = |path: &Path| cannot::<io::Error>(format!("listen on {}", path.display()));
        let path = paths.control_socket(id);
        let control = Listener::bind(&path).map_err(bind(&path))?;
        let path = paths.vsock_socket(id);
        let vsock = UnixListener::bind(&path).map_err(bind(&path))?;
        Ok((Self { console, vsock, data, journal }, control))
    }
}

impl Shared {
    /// Opens what a VM that began from `image` shares. `inherited` are the VMs whose layers it has below its own, oldest
    /// first.
    pub(super) fn open(
        paths: &Paths,
        kvm: File,
        image: &str,
        inherited: &[String],
        with_journals: bool,
    ) -> Result<Self, FleetError> {
        let open = |path: &Path| File::open(path).map_err(cannot(format!("open {}", path.display())));
        let each = |name: &str| -> Result<Vec<File>, FleetError> {
            inherited.iter().map(|layer| open(&paths.layer(layer).join(name))).collect()
        };
        Ok(Self {
            kvm,
            base: open(&paths.image(image))?,
            inherited: each(DATA_FILE)?,
            journals: if with_journals { each(JOURNAL_FILE)? } else { Vec::new() },
            _networks: None,
        })
    }

    /// Their networks are expected as long as this lives.
    pub(super) fn expecting(self, networks: Option<Expected>) -> Self {
        Self { _networks: networks, ..self }
    }

    /// How many layers are inherited.
    pub(super) fn layer_count(&self) -> u32 {
        // `MAX_LAYERS` bounds it.
        u32::try_from(self.inherited.len()).unwrap_or(u32::MAX)
    }
}

/// Every descriptor of a VM, in the order that [`pando_wire::control::Start`] documents. `beside` is what comes between those
/// that every VM is given and the journals of inherited layers; last are the queues of its network.
pub(super) fn descriptors<'a>(
    shared: &'a Shared,
    own: &'a Own,
    beside: impl IntoIterator<Item = BorrowedFd<'a>>,
    network: &'a Given,
) -> Vec<BorrowedFd<'a>> {
    let mut all = vec![shared.kvm.as_fd(), own.console.as_fd(), own.vsock.as_fd(), shared.base.as_fd()];
    all.extend(shared.inherited.iter().map(AsFd::as_fd));
    all.extend([own.data.as_fd(), own.journal.as_fd()]);
    all.extend(beside);
    all.extend(shared.journals.iter().map(AsFd::as_fd));
    all.extend(network.queues());
    all
}

/// Whether `layer` holds anything yet: its journal is begun, and there are blocks in it.
pub(super) fn has_disk(paths: &Paths, layer: &str) -> bool {
    let holds = |name: &str| paths.layer(layer).join(name).metadata().is_ok_and(|found| found.len() > 0);
    holds(DATA_FILE) && holds(JOURNAL_FILE)
}

/// Makes the names of layers, and of what is in them, durable. Not part of their creation, because it waits for the disk and
/// a fork does not want to.
pub(super) fn sync_names<'a>(paths: &Paths, layers: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
    layers.into_iter().try_for_each(|layer| crate::paths::sync(&paths.layer(layer)))?;
    crate::paths::sync(&paths.all_layers())
}

/// Opens KVM's device, which every VM needs.
pub(super) fn open_kvm(device: &Path) -> Result<File, FleetError> {
    let opened = File::options().read(true).write(true).open(device);
    opened.map_err(|source| FleetError::NoKvm { device: device.display().to_string(), source })
}

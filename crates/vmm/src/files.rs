//! The descriptors that a VM is given: the monitor opens no path.

use pando_sys::{Kvm, SysError};
use pando_wire::control::{Origin, PAGES_CONNECTIONS, Start};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

/// What every VM is given, however it begins.
pub(crate) struct Files {
    pub(crate) kvm: Kvm,
    pub(crate) console: File,
    pub(crate) vsock: UnixListener,
    /// The queues of a tap. None where the machine has no network, or nothing at its other end.
    pub(crate) taps: Vec<OwnedFd>,
    pub(crate) disk: pando_disk::Files,
    /// What the own layer is called in messages.
    pub(crate) layer: String,
}

/// What a boot is given beside.
pub(crate) struct BootFiles {
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
    /// Empty unless the disk is to be recovered.
    pub(crate) inherited_journals: Vec<File>,
}

/// What a VM that slept with its disk where it was is given beside.
pub(crate) struct AsleepFiles {
    /// To a page server.
    pub(crate) connections: Vec<UnixStream>,
    pub(crate) inherited_journals: Vec<File>,
}

/// What a VM is given beside, by where it comes from.
pub(crate) enum More {
    Boot(BootFiles),
    /// Connections to a page server.
    Checkpoint(Vec<UnixStream>),
    Asleep(AsleepFiles),
    Fork,
}

/// Why the descriptors are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    /// Not as many as `Start` says.
    #[error("{got} descriptors came with the request, where {wanted} belong")]
    Count {
        /// How many came.
        got: usize,
        /// How many should have.
        wanted: usize,
    },
    /// The first one is not `/dev/kvm`.
    #[error(transparent)]
    Kvm(#[from] SysError),
}

/// Sorts `descriptors` by the order that [`Start`] documents.
pub(crate) fn take(start: &Start, mut descriptors: Vec<OwnedFd>) -> Result<(Files, More), FilesError> {
    let inherited = start.inherited_layers as usize;
    let more = match &start.origin {
        Origin::Boot(boot) => 2 + if boot.recover_layers { inherited } else { 0 },
        Origin::Fork => 0,
        Origin::Checkpoint(_) => PAGES_CONNECTIONS,
        Origin::Asleep(_) => PAGES_CONNECTIONS + inherited,
    };
    let taps = start.network.map_or(0, |network| usize::from(network.queue_pairs));
    let wanted = 6 + inherited + more + taps;
    let count = FilesError::Count { got: descriptors.len(), wanted };
    if descriptors.len() != wanted {
        return Err(count);
    }
    let taps = descriptors.split_off(wanted - taps);
    let mut rest = descriptors.into_iter();
    let Some(kvm) = rest.next() else { return Err(count) };
    let mut rest = rest.map(File::from);
    let (Some(console), Some(vsock), Some(base)) = (rest.next(), rest.next(), rest.next()) else { return Err(count) };
    let layers = rest.by_ref().take(inherited).collect();
    let (Some(data), Some(journal)) = (rest.next(), rest.next()) else { return Err(count) };
    let files = Files {
        kvm: Kvm::from_fd(kvm)?,
        console,
        vsock: UnixListener::from(OwnedFd::from(vsock)),
        taps,
        disk: pando_disk::Files { base, inherited: layers, data, journal },
        layer: start.layer.clone(),
    };
    let more = match &start.origin {
        Origin::Fork => More::Fork,
        Origin::Checkpoint(_) => More::Checkpoint(connections(rest)),
        Origin::Asleep(_) => More::Asleep(AsleepFiles {
            connections: connections(rest.by_ref().take(PAGES_CONNECTIONS)),
            inherited_journals: rest.collect(),
        }),
        Origin::Boot(_) => {
            let (Some(kernel), Some(initramfs)) = (rest.next(), rest.next()) else { return Err(count) };
            More::Boot(BootFiles { kernel, initramfs, inherited_journals: rest.collect() })
        }
    };
    Ok((files, more))
}

fn connections(sockets: impl Iterator<Item = File>) -> Vec<UnixStream> {
    sockets.map(|socket| UnixStream::from(OwnedFd::from(socket))).collect()
}

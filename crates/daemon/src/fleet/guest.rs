//! What a guest boots from: kernel and initramfs. Everything here blocks.

use super::error::{FleetError, cannot};
use super::files::BootFiles;
use super::network;
use crate::db::Record;
use crate::paths::Paths;
use pando_guest::initramfs;
use pando_guest::kernel::Kernel;
use pando_wire::agent::{Boot, Exec, Identity};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// The kernel's command line. The console is a 16550, a reset ends the VM, and so does a panic.
pub(super) const COMMAND_LINE: &str = "console=ttyS0 quiet reboot=t panic=-1 random.trust_cpu=on 8250.nr_uarts=1";

/// What was prepared before, so that the second VM boots sooner.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// By the kernel that was asked for.
    prepared: Mutex<HashMap<Option<PathBuf>, Arc<Prepared>>>,
}

#[derive(Debug)]
struct Prepared {
    kernel: PathBuf,
    /// When the kernel was last written; it is prepared again when that changes.
    written: Option<SystemTime>,
    /// The part of the initramfs that every VM shares.
    base: Vec<u8>,
}

impl Guests {
    /// What VM `record` boots from.
    pub(super) fn prepare(&self, paths: &Paths, record: &Record) -> Result<BootFiles, FleetError> {
        let prepared = self.prepared(paths, record.kernel.as_deref().map(Path::new))?;
        let bytes = initramfs::with_boot(&prepared.base, &boot(record)).map_err(cannot("build the initramfs"))?;
        let initramfs = in_memory(&bytes).map_err(cannot("keep the initramfs in memory"))?;
        let kernel =
            File::open(&prepared.kernel).map_err(cannot(format!("open the kernel {}", prepared.kernel.display())))?;
        Ok(BootFiles { kernel, initramfs })
    }

    fn prepared(&self, paths: &Paths, asked: Option<&Path>) -> Result<Arc<Prepared>, FleetError> {
        let key = asked.map(Path::to_owned);
        // Held while a kernel is fetched, so that two VMs do not fetch it twice.
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = all.get(&key)
            && prepared.written.is_some()
            && prepared.written == written(&prepared.kernel)
        {
            return Ok(Arc::clone(prepared));
        }
        let kernel = match asked {
            Some(path) if !path.exists() => return Err(FleetError::NoSuchKernel(path.to_owned())),
            Some(path) => Kernel::from_path(path).map_err(cannot(format!("use the kernel {}", path.display())))?,
            None => Kernel::find(paths.cache(), &mut |step| tracing::info!("kernel: {step}"))
                .map_err(cannot("find a kernel"))?,
        };
        let base = initramfs::cached_base(&kernel, paths.cache()).map_err(cannot("build the initramfs"))?;
        let prepared = Arc::new(Prepared { written: written(&kernel.image), kernel: kernel.image, base });
        all.insert(key, Arc::clone(&prepared));
        Ok(prepared)
    }
}

fn written(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// What PID 1 of VM `record` is told.
fn boot(record: &Record) -> Boot {
    let command = (!record.command.is_empty()).then(|| Exec {
        argv: record.command.clone(),
        env: record.env.clone(),
        cwd: record.cwd.clone(),
        user: record.user.clone(),
        terminal: None,
    });
    Boot { identity: identity(record), command, network: network::inside(record) }
}

/// Who VM `record` is.
pub(super) fn identity(record: &Record) -> Identity {
    Identity {
        name: record.name.clone(),
        machine_id: record.machine_id(),
        generation: record.generation,
        env: record.env.clone(),
    }
}

/// `bytes` as a file that has no name, read from its start.
fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("initramfs", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    seek(&file, SeekFrom::Start(0))?;
    Ok(file.into())
}

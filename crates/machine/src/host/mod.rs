//! The emulated host that stays: one per state directory, with a daemon in it that this computer's commands talk to.
//!
//! ```text
//! <state>/machine/lock            held while it is started or stopped
//! <state>/machine/machine.json    the one that runs; 0600, for it has the daemon's token
//! <state>/machine/disk.ext4       its /var/lib/pando: images, VMs, the database; sparse
//! <state>/machine/control/        shared with it; a file `stop` asks it to stop
//! <state>/machine/daemon.log      what its daemon wrote
//! <state>/machine/console.log     what its kernel wrote
//! <state>/machine/qemu.log        what QEMU wrote
//! ```

mod answer; // whether its daemon answers
mod disk; // its disk
mod process; // QEMU, from one command to the next
mod record; // the one that runs
mod start;
mod stop;

pub use record::{Running, running};
pub use start::{StartError, StartSpec, Started, default_memory_mib, start};
pub use stop::{StopError, Stopped, stop};

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The files of the emulated host.
struct Files {
    folder: PathBuf,
}

impl Files {
    fn of(state_dir: &Path) -> Self {
        Self { folder: state_dir.join("machine") }
    }

    fn record(&self) -> PathBuf {
        self.folder.join("machine.json")
    }

    fn disk(&self) -> PathBuf {
        self.folder.join("disk.ext4")
    }

    fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    fn stop_request(&self) -> PathBuf {
        self.control().join("stop")
    }

    fn daemon_log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }

    fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    fn qemu_log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// Makes the folders, for this user only.
    fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.control())
    }

    /// Waits until nobody else starts or stops the emulated host, and keeps others from it until it is dropped.
    fn lock(&self) -> io::Result<File> {
        let lock = File::create(self.folder.join("lock"))?;
        lock.lock()?;
        Ok(lock)
    }
}

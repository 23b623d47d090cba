//! Where everything lies. Nothing else in this crate joins paths.
//!
//! ```text
//! <state>/lock                       held while a daemon uses this state
//! <state>/owner                      this daemon's UUID
//! <state>/pando.db                   what must survive
//! <state>/images/<digest>.ext4       root disks that VMs begin from
//! <state>/vms/<id>/console.log       what the guest wrote to its serial port
//! <state>/vms/<id>/monitor.log       what the monitor wrote to standard error
//! <state>/layers/<id>/{data,map}     the disk layer that VM <id> writes; kept while a descendant reads it
//! <state>/store/                     checkpoints, as `docs/snapshot-format.md` draws them
//! <state>/bucket-cache/              a store without any: what VMs have read from buckets; may be deleted when none arrives
//! <runtime>/lock                     held while a daemon uses these sockets
//! <runtime>/vms/<id>/control.sock    the monitor; of a checkpoint's <id>, its seed
//! <runtime>/vms/<id>/vsock.sock      the guest
//! ```

use crate::config::Config;
use rustix::process::geteuid;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The places of one daemon.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    state: PathBuf,
    runtime: PathBuf,
    cache: PathBuf,
}

impl Paths {
    /// Creates every folder that must be there, for this user only.
    ///
    /// # Errors
    ///
    /// Fails where a folder cannot be created, or is there and belongs to somebody else. Root may be given another
    /// user's cache: in an emulated host the daemon is root, and the cache is that of the user outside.
    pub(crate) fn create(config: &Config) -> Result<Self, (PathBuf, io::Error)> {
        let paths = Self {
            state: config.state_dir.clone(),
            runtime: config.runtime_dir.clone(),
            cache: config.cache_dir.clone(),
        };
        let below = [paths.images(), paths.all_vms(), paths.all_layers(), paths.all_sockets()];
        for dir in [&paths.state, &paths.runtime].into_iter().chain(&below) {
            create_private(dir).map_err(|error| (dir.clone(), error))?;
        }
        let cache = if geteuid().is_root() { create(&paths.cache) } else { create_private(&paths.cache) };
        cache.map_err(|error| (paths.cache.clone(), error))?;
        Ok(paths)
    }

    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    pub(crate) fn runtime_lock(&self) -> PathBuf {
        self.runtime.join("lock")
    }

    pub(crate) fn owner(&self) -> PathBuf {
        self.state.join("owner")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.state.join("pando.db")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    pub(crate) fn image(&self, digest: &str) -> PathBuf {
        self.images().join(format!("{digest}.ext4"))
    }

    pub(crate) fn all_vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    pub(crate) fn vm(&self, id: &str) -> PathBuf {
        self.all_vms().join(id)
    }

    pub(crate) fn console(&self, id: &str) -> PathBuf {
        self.vm(id).join("console.log")
    }

    pub(crate) fn monitor_log(&self, id: &str) -> PathBuf {
        self.vm(id).join("monitor.log")
    }

    pub(crate) fn all_layers(&self) -> PathBuf {
        self.state.join("layers")
    }

    pub(crate) fn layer(&self, id: &str) -> PathBuf {
        self.all_layers().join(id)
    }

    /// The blocks of layer `id`. Whoever writes it holds its lock.
    pub(crate) fn layer_data(&self, id: &str) -> PathBuf {
        self.layer(id).join(pando_disk::DATA_FILE)
    }

    /// Where there is a layer at all, or else a checkpoint, if there is one: what a database knows of.
    pub(crate) fn any_kept(&self) -> io::Result<Option<PathBuf>> {
        for dir in [self.all_layers(), self.store().join("checkpoints")] {
            match fs::read_dir(&dir).and_then(|mut entries| entries.next().transpose()) {
                Ok(Some(_)) => return Ok(Some(dir)),
                Ok(None) => (),
                Err(error) if error.kind() == io::ErrorKind::NotFound => (), // No checkpoint was ever made.
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.state.join("store")
    }

    pub(crate) fn bucket_cache(&self) -> PathBuf {
        self.state.join("bucket-cache")
    }

    pub(crate) fn all_sockets(&self) -> PathBuf {
        self.runtime.join("vms")
    }

    pub(crate) fn sockets(&self, id: &str) -> PathBuf {
        self.all_sockets().join(id)
    }

    pub(crate) fn control_socket(&self, id: &str) -> PathBuf {
        self.sockets(id).join("control.sock")
    }

    pub(crate) fn vsock_socket(&self, id: &str) -> PathBuf {
        self.sockets(id).join("vsock.sock")
    }
}

/// Creates `dir` and what is above it, with mode 0700; that it is there already is fine.
fn create(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Creates `dir` and what is above it, with mode 0700; that it is there already is fine if it is ours.
pub(crate) fn create_private(dir: &Path) -> io::Result<()> {
    create(dir)?;
    if fs::metadata(dir)?.uid() != geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
    }
    Ok(())
}

/// Removes the file `path`, or the folder and all in it; that it is not there is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes the names in `dir` durable.
pub(crate) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::chown;

    fn config(dir: &Path) -> Config {
        Config {
            state_dir: dir.join("state"),
            runtime_dir: dir.join("run"),
            cache_dir: dir.join("cache"),
            ..Config::default_paths()
        }
    }

    /// Gives `dir` to a user who is nobody here; false where that takes another than us.
    fn give_away(dir: &Path) -> bool {
        fs::create_dir_all(dir).unwrap();
        let is_root = geteuid().is_root();
        match is_root {
            true => chown(dir, Some(54_321), None).unwrap(),
            false => eprintln!("skipped: needs root"),
        }
        is_root
    }

    #[test]
    fn root_uses_the_cache_of_the_user_outside_its_emulated_host() {
        let dir = tempfile::tempdir().unwrap();
        if give_away(&dir.path().join("cache")) {
            Paths::create(&config(dir.path())).unwrap();
        }
    }

    #[test]
    fn a_state_that_belongs_to_somebody_else_is_refused_to_root_too() {
        for name in ["state", "run"] {
            let dir = tempfile::tempdir().unwrap();
            if !give_away(&dir.path().join(name)) {
                return;
            }
            let (path, error) = Paths::create(&config(dir.path())).unwrap_err();
            assert_eq!((path, error.to_string().as_str()), (dir.path().join(name), "it belongs to another user"));
        }
    }
}

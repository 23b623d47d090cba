//! A control group per VM, where the host has cgroup v2 and lets us use it. Elsewhere there are none, which is fine: a
//! group is where an operator sees and limits a VM, and nothing here depends on it.

use rustix::fs::statfs;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";
/// Of the kernel's `magic.h`.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Where the groups are.
#[derive(Debug)]
pub(super) struct Cgroups(PathBuf);

impl Cgroups {
    /// Finds, or creates, the group that holds every VM's.
    pub(super) fn find() -> Option<Self> {
        let is_v2 = statfs(ROOT).is_ok_and(|root| u64::try_from(root.f_type) == Ok(CGROUP2_SUPER_MAGIC));
        if !is_v2 {
            return None;
        }
        let all = Path::new(ROOT).join("pando");
        create(&all).ok()?;
        Some(Self(all))
    }

    /// Moves the monitor `pid` into a group of its own.
    pub(super) fn enter(&self, id: &str, pid: u32) {
        let group = self.0.join(id);
        let entered = create(&group).and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()));
        if let Err(error) = entered {
            tracing::debug!(vm = id, %error, "no control group");
        }
    }

    /// Removes a VM's group, in which nobody may be any more.
    pub(super) fn remove(&self, id: &str) {
        match fs::remove_dir(self.0.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(vm = id, %error, "cannot remove its control group");
            }
            _ => (),
        }
    }
}

fn create(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

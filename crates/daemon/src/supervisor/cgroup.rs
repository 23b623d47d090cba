//! A control group per VM, where the host has cgroup v2 and lets us use it. Elsewhere there are none, which is fine: a
//! group is where an operator sees and limits a VM, and nothing here depends on it.

use rustix::fs::statfs;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::sleep;

/// How often a group that somebody is in is tried to be removed, and how long until the next time.
const REMOVALS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);
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
        // So that an operator can set limits. Where a controller is not to be had, none can be set with it.
        for group in [Path::new(ROOT), &all] {
            for controller in ["+memory", "+cpu"] {
                if let Err(error) = fs::write(group.join("cgroup.subtree_control"), controller) {
                    tracing::debug!(group = %group.display(), controller, %error, "no such controller");
                }
            }
        }
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

    /// Removes a VM's group. A child that the VM has just been forked into may be in it until it is moved to its own.
    pub(super) async fn remove(&self, id: &str) {
        for _ in 0..REMOVALS {
            match fs::remove_dir(self.0.join(id)) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => sleep(PAUSE).await,
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(vm = id, %error, "cannot remove its control group");
                    return;
                }
                _ => return,
            }
        }
        tracing::info!(vm = id, "somebody stays in its control group, which is left to the next daemon");
    }

    /// Removes every group that nobody is in.
    pub(super) fn sweep(&self) {
        for group in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            // A group that somebody is in cannot be removed, and neither can a file.
            let _ = fs::remove_dir(group.path());
        }
    }
}

fn create(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

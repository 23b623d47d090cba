//! Mounts, and the move onto the root disk.

use rustix::{
    fs::{Mode, symlink},
    io::Errno,
    mount::{MountFlags, mount, mount_move},
    process::{chdir, chroot},
};
use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The root disk.
const DISK: &str = "/dev/vda";

/// How long the disk's driver may take to find it.
const DISK_LIMIT: Duration = Duration::from_secs(10);

/// Where the disk is until it is the root.
const MOUNTED_AT: &str = "/root-disk";

/// The cgroup of every program of the user; what the fork barrier stops.
pub(crate) const USER_CGROUP: &str = "/sys/fs/cgroup/pando.user";

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// What the kernel shows: `/proc`, `/sys` and `/dev`.
pub(crate) fn mount_kernel() -> Result<(), String> {
    make_and_mount("proc", "/proc", "proc", SAFE, "")?;
    make_and_mount("sysfs", "/sys", "sysfs", SAFE, "")?;
    make_and_mount("dev", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")
}

/// Waits for the root disk, mounts it and makes it `/`, with everything below that a program expects.
pub(crate) fn enter() -> Result<(), String> {
    wait_for_disk()?;
    make_and_mount(DISK, MOUNTED_AT, "ext4", MountFlags::empty(), "")?;
    for place in ["proc", "sys", "dev", "run"] {
        make(&format!("{MOUNTED_AT}/{place}"), 0o755)?;
    }
    make(&format!("{MOUNTED_AT}/tmp"), 0o1777)?;
    for place in ["proc", "sys", "dev"] {
        let (from, to) = (format!("/{place}"), format!("{MOUNTED_AT}/{place}"));
        mount_move(&from, &to).map_err(|error| format!("cannot move {from}: {error}"))?;
    }
    switch().map_err(|error| format!("cannot make {DISK} the root: {error}"))?;

    make_and_mount(
        "devpts",
        "/dev/pts",
        "devpts",
        SAFE.difference(MountFlags::NODEV),
        "mode=0620,gid=5,ptmxmode=0666",
    )?;
    make_and_mount("shm", "/dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777")?;
    make_and_mount("run", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755")?;
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        match symlink(format!("/proc/self/{target}"), format!("/dev/{link}")) {
            Ok(()) | Err(Errno::EXIST) => (),
            Err(error) => return Err(format!("cannot make /dev/{link}: {error}")),
        }
    }
    Ok(())
}

/// Makes the cgroup of the user's programs. A kernel without cgroups gives a VM that runs and cannot be forked safely.
pub(crate) fn make_cgroup() -> Result<PathBuf, String> {
    // The kernel made the directory with sysfs.
    make_and_mount("cgroup2", "/sys/fs/cgroup", "cgroup2", SAFE, "nsdelegate")?;
    make(USER_CGROUP, 0o755)?;
    Ok(USER_CGROUP.into())
}

fn wait_for_disk() -> Result<(), String> {
    let deadline = Instant::now() + DISK_LIMIT;
    while !fs::metadata(DISK).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        if Instant::now() > deadline {
            return Err(format!("there is no {DISK} after {} s", DISK_LIMIT.as_secs()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// As `switch_root` does: the initramfs cannot be unmounted, so it is emptied, which frees its memory, and covered.
fn switch() -> io::Result<()> {
    let device = fs::metadata("/")?.dev();
    // Memory, not correctness, depends on it.
    let _ = empty(Path::new("/"), device);
    chdir(MOUNTED_AT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

/// Deletes everything below `directory` that is on `device`, so nothing of what is mounted there.
fn empty(directory: &Path, device: u64) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            let _ = empty(&path, device);
            let _ = fs::remove_dir(&path); // Not while something is mounted below.
        } else {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Makes a directory if there is none.
fn make(path: &str, mode: u32) -> Result<(), String> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        // Exactly this mode, whatever the umask.
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(|error| format!("cannot set the mode of {path}: {error}")),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(format!("cannot make {path}: {error}")),
    }
}

fn make_and_mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), String> {
    let cannot = |error: &dyn std::fmt::Display| format!("cannot mount {source} at {target}: {error}");
    // Where it cannot be made (sysfs), it is there, or the mount fails and says so.
    let _ = make(target, 0o755);
    let data = CString::new(data).map_err(|error| cannot(&error))?;
    mount(source, target, kind, flags, data.as_c_str()).map_err(|error| cannot(&error))
}

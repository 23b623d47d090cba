//! From QEMU's start to the job: two small scripts, and what is written for one start.

use crate::initramfs::Archive;
use crate::kernel::{HostKernel, KernelError};
use crate::shell::quote;
use crate::tools::{self, ToolError};
use pando_guest::durable;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// The modules that are there from the start, in the order of their loading. The others are in `/lib/modules`.
const MODULES: [&str; 14] = [
    "crc32c_generic", // the file systems look for it by a name that the index does not know
    "9p",
    "9pnet_virtio",
    "overlay",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "kvm_amd",
    "tun",
    "loop",
    "fuse",
    "vhost_net",
    "vhost_vsock",
    "xfs",
];

/// What one start of the emulated host is for.
pub(crate) struct Job {
    /// A script for `/bin/sh`.
    pub(crate) script: Vec<u8>,
    /// Folders that are writable in there, at their own paths.
    pub(crate) writable: Vec<PathBuf>,
    /// What the last line of both outputs begins with; the job's status follows it.
    pub(crate) marker: String,
    /// How long the host waits after the job before it powers off, so that its outputs get through.
    pub(crate) linger_seconds: u32,
}

/// Why the emulated host has nothing to start from.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A program is not there.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file cannot be read or written.
    #[error("cannot prepare the emulated host: {path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The initramfs for `job`. The part that does not change is kept in `cache_dir`.
pub(crate) fn initramfs(
    kernel: &HostKernel,
    cache_dir: &Path,
    job: &Job,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<u8>, BootError> {
    let mut bytes = modules(kernel, cache_dir, progress)?;
    let busybox = tools::busybox()?;
    let busybox = fs::read(&busybox).map_err(|source| BootError::File { path: busybox, source })?;
    let mut archive = Archive::new();
    archive.folder("bin");
    archive.program("bin/busybox", &busybox);
    archive.program("init", include_bytes!("first.sh"));
    archive.file("second.sh", include_bytes!("second.sh"));
    archive.file("settings", &settings(kernel, job));
    archive.file("job", &job.script);
    bytes.extend(archive.finish());
    Ok(bytes)
}

/// The 9p tag of the `index`th writable folder.
pub(crate) fn tag(index: usize) -> String {
    format!("writable{index}")
}

fn settings(kernel: &HostKernel, job: &Job) -> Vec<u8> {
    let mut script = b"marker=".to_vec();
    quote(OsStr::new(&job.marker), &mut script);
    script.extend_from_slice(format!("\nlinger={}\nmodules ", job.linger_seconds).as_bytes());
    quote(OsStr::new(&kernel.version), &mut script);
    script.push(b' ');
    quote(kernel.modules.as_os_str(), &mut script);
    script.push(b'\n');
    for (index, path) in job.writable.iter().enumerate() {
        script.extend_from_slice(format!("share {} ", tag(index)).as_bytes());
        quote(path.as_os_str(), &mut script);
        script.push(b'\n');
    }
    script
}

/// An archive of [`MODULES`], unpacked once: that takes longer than all the rest.
fn modules(kernel: &HostKernel, cache_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<Vec<u8>, BootError> {
    let folder = cache_dir.join("machine");
    let mut list = DefaultHasher::new();
    MODULES.hash(&mut list);
    let path = folder.join(format!("modules-{}-{:016x}.cpio", kernel.version, list.finish()));
    let failed = |source| BootError::File { path: path.clone(), source };
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        result => return result.map_err(failed),
    }
    progress("unpacking kernel modules");
    let mut archive = Archive::new();
    archive.folder("modules");
    let mut order = String::new();
    for module in kernel.modules(&MODULES)? {
        archive.file(&format!("modules/{}", module.file_name), &module.content);
        order.push_str(&module.file_name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes());
    let bytes = archive.finish();
    fs::create_dir_all(&folder).map_err(failed)?;
    let file = tempfile::NamedTempFile::new_in(&folder).map_err(failed)?;
    fs::write(file.path(), &bytes).map_err(failed)?;
    durable::rename(file.path(), &path).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_can_read_the_settings_of_the_strangest_folder() {
        let kernel = HostKernel { image: "/k".into(), modules: "/m m".into(), version: "6.12".into() };
        let job = Job {
            script: Vec::new(),
            writable: vec!["/it's".into(), "/b".into()],
            marker: "end-1".into(),
            linger_seconds: 30,
        };
        assert_eq!(
            String::from_utf8(settings(&kernel, &job)).unwrap(),
            "marker='end-1'\nlinger=30\nmodules '6.12' '/m m'\nshare writable0 '/it'\\''s'\nshare writable1 '/b'\n"
        );
    }

    #[test]
    fn both_scripts_are_scripts() {
        for script in [&include_bytes!("first.sh")[..], include_bytes!("second.sh")] {
            let script = std::str::from_utf8(script).unwrap();
            let status = std::process::Command::new("sh").args(["-n", "-c", script]).status().unwrap();
            assert!(status.success());
        }
    }
}

//! PID 1 with the drivers it needs, as the kernel unpacks it.
//!
//! ```text
//! /init            the agent
//! /dev/console     where it writes before it has mounted anything
//! /pando/modules   file names, in the order to load them in
//! /pando/lib/*.ko  not compressed
//! ── second archive, of each VM its own ──
//! /pando/boot      pando_wire::agent::Boot
//! ```

use crate::{
    agent::AGENT,
    cpio::Cpio,
    durable,
    kernel::Kernel,
    modules::{self, ModulesError},
};
use pando_wire::agent::{BOOT_PATH, Boot};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The kernel's drivers.
    #[error("cannot put the drivers of kernel {version} together")]
    Modules {
        /// The kernel's version.
        version: String,
        /// Why.
        source: ModulesError,
    },
    /// The cache.
    #[error("cannot keep an initramfs at {path}")]
    Cache {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Command, environment and name together are too long for one message.
    #[error("cannot write down what to start the VM with")]
    Boot(#[source] io::Error),
}

/// What all VMs with this kernel have in common.
pub fn base(kernel: &Kernel) -> Result<Vec<u8>, InitramfsError> {
    let wrong = |source| InitramfsError::Modules { version: kernel.version.clone(), source };
    let modules = match &kernel.modules {
        Some(directory) => modules::collect(directory).map_err(wrong)?,
        None => Vec::new(), // It has its drivers built in.
    };
    let mut archive = Cpio::default();
    for directory in ["dev", "pando", "pando/lib"] {
        archive.directory(directory);
    }
    archive.device("dev/console", 0o600, (5, 1));
    archive.file("init", 0o755, AGENT);
    let names: String = modules.iter().map(|module| format!("{}\n", module.file)).collect();
    archive.file("pando/modules", 0o644, names.as_bytes());
    for module in &modules {
        archive.file(&format!("pando/lib/{}", module.file), 0o644, &module.contents);
    }
    Ok(archive.finish())
}

/// As [`base`], made once for each kernel, build of the agent and choice of drivers, and kept in `cache_dir`.
///
/// Several processes may do this at once: each writes a file of its own and renames it, and all files are equal. What has
/// its name is whole, also after a power cut.
pub fn cached_base(kernel: &Kernel, cache_dir: &Path) -> Result<Vec<u8>, InitramfsError> {
    let directory = cache_dir.join("initramfs");
    let path = directory.join(cached_name(&kernel.id, AGENT, modules::wanted()));
    if let Ok(bytes) = fs::read(&path) {
        return Ok(bytes);
    }
    let bytes = base(kernel)?;
    let keep = || {
        fs::create_dir_all(&directory)?;
        let temporary = directory.join(format!(".{}.{:p}", std::process::id(), &bytes));
        fs::write(&temporary, &bytes)?;
        durable::rename(&temporary, &path)
    };
    keep().map_err(|source| InitramfsError::Cache { path: path.clone(), source })?;
    Ok(bytes)
}

/// What the one with all this in it is called.
fn cached_name(kernel_id: &str, agent: &[u8], drivers: impl Iterator<Item = &'static str>) -> String {
    let mut key = blake3::Hasher::new();
    key.update(kernel_id.as_bytes());
    key.update(agent);
    for driver in drivers {
        key.update(&[0]).update(driver.as_bytes());
    }
    format!("{}.cpio", key.finalize().to_hex())
}

/// The initramfs of one VM: `base` and what it starts from.
pub fn with_boot(base: &[u8], boot: &Boot) -> Result<Vec<u8>, InitramfsError> {
    let frame = pando_wire::frame::encode(boot).map_err(InitramfsError::Boot)?;
    let mut archive = Cpio::default();
    // Without the length that goes before a frame: a file has one of its own.
    archive.file(BOOT_PATH.trim_start_matches('/'), 0o600, &frame[4..]);
    let mut bytes = base.to_vec();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive.finish());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cpio::tests::read, modules::tests::tree};
    use pando_wire::{
        agent::{Exec, Identity},
        network::Network,
    };

    fn kernel(modules: Option<PathBuf>) -> Kernel {
        Kernel { image: PathBuf::new(), modules, version: "6.12".into(), id: "id".into() }
    }

    #[test]
    fn init_is_the_agent_and_drivers_lie_beside_it_in_order() {
        let tree = tree();
        let entries = read(&base(&kernel(Some(tree.path().to_owned()))).unwrap());
        let contents = |name: &str| entries.iter().find(|entry| entry.0 == name).map(|entry| entry.2.clone()).unwrap();
        assert_eq!(contents("init"), AGENT);
        assert!(AGENT.starts_with(b"\x7fELF"));
        let list = String::from_utf8(contents("pando/modules")).unwrap();
        assert_eq!(list.lines().next(), Some("virtio_mmio.ko"));
        for file in list.lines() {
            assert!(contents(&format!("pando/lib/{file}")).starts_with(b"\x7fELF"), "{file}");
        }
    }

    #[test]
    fn a_kernel_without_modules_gets_an_empty_list() {
        let entries = read(&base(&kernel(None)).unwrap());
        assert!(entries.iter().any(|(name, _, contents)| name == "pando/modules" && contents.is_empty()));
    }

    #[test]
    fn what_a_vm_starts_from_comes_back_and_only_root_can_read_it() {
        let boot = Boot {
            identity: Identity { name: "base".into(), ..Identity::default() },
            command: Some(Exec { argv: vec!["/bin/true".into()], ..Exec::default() }),
            network: Some(Network::GUEST),
        };
        // A base whose length is no multiple of 4 must not shift what follows.
        let mut odd = Cpio::default();
        odd.file("x", 0o644, b"x");
        let bytes = with_boot(&odd.finish(), &boot).unwrap();
        let (_, mode, contents) = read(&bytes).into_iter().find(|(name, ..)| name == "pando/boot").unwrap();
        assert_eq!(mode, 0o100600);
        assert_eq!(pando_wire::frame::decode::<Boot>(&contents).unwrap(), boot);
    }

    #[test]
    fn a_base_is_made_once_for_a_kernel() {
        let (cache, tree) = (tempfile::tempdir().unwrap(), tree());
        let kernel = kernel(Some(tree.path().to_owned()));
        let first = cached_base(&kernel, cache.path()).unwrap();
        drop(tree); // Could not be made again.
        assert!(cached_base(&kernel, cache.path()).unwrap() == first);
        let other = Kernel { id: "other".into(), ..kernel };
        assert!(cached_base(&other, cache.path()).is_err());
    }

    #[test]
    fn another_choice_of_drivers_is_another_base() {
        let named = |drivers: &[&'static str]| cached_name("id", AGENT, drivers.iter().copied());
        let names = [named(&["a", "b"]), named(&["a"]), named(&["ab"]), named(&["a", "b", "c"])];
        let different = std::collections::HashSet::from(names.clone());
        assert_eq!(different.len(), names.len());
    }
}

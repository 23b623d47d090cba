//! The Linux that the emulated host runs: Debian's stock kernel, unpacked and never installed, or one's own.

mod modules; // which modules, in which order

use crate::tools::{self, ToolError};
use pando_guest::kernel::{GENERIC, Kernel};
use std::io;
use std::path::{Path, PathBuf};

/// A kernel for the emulated host. Its modules are indexed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostKernel {
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// The folder of modules, `lib/modules/<version>`.
    pub(crate) modules: PathBuf,
    /// What `uname -r` says in there.
    pub(crate) version: String,
}

/// Why there is no kernel for the emulated host.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// There is none at all.
    #[error("cannot get a kernel for the emulated host")]
    Find(#[from] pando_guest::kernel::KernelError),
    /// One's own kernel has no modules, and the emulated host needs some.
    #[error(
        "{image} has no lib/modules/<version> beside it: unpack a whole kernel package, {GENERIC} of Debian is one"
    )]
    NoModules {
        /// The kernel.
        image: PathBuf,
    },
    /// The kernel's modules cannot be indexed.
    #[error("cannot index the kernel's modules")]
    Index(#[source] ToolError),
    /// A module that the emulated host needs is not there or cannot be read.
    #[error("cannot load the kernel module {name} from {folder}")]
    Module {
        /// The module.
        name: String,
        /// Where it should be.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl HostKernel {
    /// The kernel image `chosen`, with its modules where a kernel package has them; else Debian's from `cache_dir`,
    /// downloaded into it when it is not there.
    ///
    /// `progress` is told what takes long.
    pub(crate) fn find(
        chosen: Option<&Path>,
        cache_dir: &Path,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self, KernelError> {
        let kernel = match chosen {
            Some(image) => Kernel::from_path(image)?,
            None => Kernel::of_package(GENERIC, cache_dir, progress)?,
        };
        let Kernel { image, modules, version, .. } = kernel;
        let Some(modules) = modules else {
            return Err(KernelError::NoModules { image });
        };
        // Empty is what a power cut makes of a new one.
        if !modules.join("modules.dep").metadata().is_ok_and(|index| index.len() > 0) {
            // `<tree>/lib/modules/<version>`: the index names everything from `<tree>` on.
            let tree = modules.ancestors().nth(3).unwrap_or(Path::new("/"));
            let index = [Path::new("-b"), tree, Path::new(&version)];
            tools::DEPMOD.output(index).map_err(KernelError::Index)?;
        }
        Ok(Self { image, modules, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_kernel_without_modules_is_refused_and_one_with_them_is_not_indexed_again() {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir(tree.path().join("boot")).unwrap();
        let image = tree.path().join("boot/vmlinuz-6.12");
        fs::write(&image, "").unwrap();
        let cache = Path::new("/no/such/folder");
        let error = HostKernel::find(Some(&image), cache, &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains("has no lib/modules/<version> beside it"), "{error}");

        let modules = tree.path().join("lib/modules/6.12");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("modules.dep"), "kept").unwrap();
        let kernel = HostKernel::find(Some(&image), cache, &mut |_| ()).unwrap();
        assert_eq!((&*kernel.version, kernel.modules), ("6.12", modules.canonicalize().unwrap()));
        assert_eq!(fs::read_to_string(modules.join("modules.dep")).unwrap(), "kept");
    }
}

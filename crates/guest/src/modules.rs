//! Which drivers, in which order.
//!
//! Debian's package has no `modules.dep` (its installation script makes it), so what a module depends on is read from
//! the module itself.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// What a guest needs to find its disk and its host.
const NEEDED: [&str; 3] = ["virtio_mmio", "virtio_blk", "vmw_vsock_virtio_transport"];

/// What a guest is better with. `tcp_diag` lists its connections, and ends those that a fork's child has from its parent.
const WELCOME: [&str; 5] = ["virtio_rng", "overlay", "virtio_balloon", "virtio_net", "tcp_diag"];

/// The drivers that every guest gets whose kernel has them as modules, without those that these depend on.
pub(crate) fn wanted() -> impl Iterator<Item = &'static str> {
    NEEDED.into_iter().chain(WELCOME)
}

/// Why the drivers of a kernel could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A file of the modules directory.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither a module nor built in.
    #[error("the kernel in {directory} has no driver {name}")]
    Missing {
        /// Its modules.
        directory: PathBuf,
        /// Which driver.
        name: String,
    },
    /// It does not say what it depends on, as every module does.
    #[error("{path} is not a kernel module")]
    NotAModule {
        /// Which file.
        path: PathBuf,
    },
}

/// A driver to load.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Its file name in the initramfs.
    pub(crate) file: String,
    /// What is loaded.
    pub(crate) contents: Vec<u8>,
}

/// The drivers that a guest needs from `directory` (`lib/modules/<version>`), each behind those it depends on.
pub(crate) fn collect(directory: &Path) -> Result<Vec<Module>, ModulesError> {
    let list = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).map_err(|source| ModulesError::Read { path, source })
    };
    let index = |text: String| text.lines().map(|line| (name_of(line), line.to_owned())).collect();
    let tree = Tree { directory, loadable: index(list("modules.order")?), built_in: index(list("modules.builtin")?) };
    let mut collected = Collected::default();
    for name in NEEDED {
        tree.add(name, &mut collected)?;
    }
    for name in WELCOME {
        if tree.loadable.contains_key(name) {
            tree.add(name, &mut collected)?;
        }
    }
    Ok(collected.modules)
}

struct Tree<'a> {
    directory: &'a Path,
    /// Name → path below `directory`, ending in `.ko` also when the file is compressed.
    loadable: HashMap<String, String>,
    built_in: HashMap<String, String>,
}

#[derive(Default)]
struct Collected {
    modules: Vec<Module>,
    names: Vec<String>,
}

impl Tree<'_> {
    fn add(&self, name: &str, collected: &mut Collected) -> Result<(), ModulesError> {
        // Noted before its dependencies are, so that a circle (which no kernel has) ends.
        if self.built_in.contains_key(name) || collected.names.iter().any(|known| known == name) {
            return Ok(());
        }
        collected.names.push(name.to_owned());
        let missing = || ModulesError::Missing { directory: self.directory.to_owned(), name: name.to_owned() };
        let path = self.directory.join(self.loadable.get(name).ok_or_else(missing)?);
        let contents = read(&path)?;
        for dependency in dependencies(&contents).ok_or_else(|| ModulesError::NotAModule { path: path.clone() })? {
            self.add(&dependency, collected)?;
        }
        collected.modules.push(Module { file: format!("{name}.ko"), contents });
        Ok(())
    }
}

/// The kernel's name of the module at `path`: `-` and `_` are one to it.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// A module's bytes, whether its file is compressed or not.
fn read(path: &Path) -> Result<Vec<u8>, ModulesError> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (path, suffix) = [".xz", ".zst", ".gz"]
        .into_iter()
        .map(|suffix| (with(suffix), suffix))
        .find(|(path, _)| path.exists())
        .unwrap_or_else(|| (path.to_owned(), ""));
    let decompressed = || {
        let bytes = fs::read(&path)?;
        let mut plain = Vec::new();
        match suffix {
            ".xz" => lzma_rs::xz_decompress(&mut &bytes[..], &mut plain).map_err(io::Error::other)?,
            ".zst" => plain = zstd::decode_all(&bytes[..])?,
            ".gz" => drop(flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain)?),
            _ => plain = bytes,
        }
        Ok(plain)
    };
    decompressed().map_err(|source| ModulesError::Read { path: path.clone(), source })
}

/// What a module says that it depends on: `depends=a,b` among the NUL-terminated strings of its `.modinfo`.
fn dependencies(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let value = module[at..].split(|byte| *byte == 0).next()?;
    let value = std::str::from_utf8(value).ok()?;
    Some(value.split(',').filter(|name| !name.is_empty()).map(name_of).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A `lib/modules/<version>` with made-up modules: what counts is what they say of themselves.
    pub(crate) fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let add = |path: &str, depends: &str| {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let module = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
            if path.extension().unwrap() == "xz" {
                let mut packed = Vec::new();
                lzma_rs::xz_compress(&mut module.as_bytes(), &mut packed).unwrap();
                fs::write(path, packed).unwrap();
            } else {
                fs::write(path, module).unwrap();
            }
        };
        add("kernel/virtio_mmio.ko", "");
        add("kernel/virtio_blk.ko.xz", "virtio_ring");
        add("kernel/net/vsock.ko.xz", "");
        add("kernel/net/transport-common.ko", "vsock");
        add("kernel/net/vmw_vsock_virtio_transport.ko.xz", "transport_common,vsock");
        add("kernel/virtio-rng.ko", "");
        fs::write(
            tree.path().join("modules.order"),
            "kernel/virtio_mmio.ko\nkernel/virtio_blk.ko\nkernel/net/vsock.ko\nkernel/net/transport-common.ko\n\
             kernel/net/vmw_vsock_virtio_transport.ko\nkernel/virtio-rng.ko\n",
        )
        .unwrap();
        fs::write(tree.path().join("modules.builtin"), "kernel/drivers/virtio/virtio_ring.ko\n").unwrap();
        tree
    }

    #[test]
    fn every_module_comes_after_those_it_depends_on() {
        let modules = collect(tree().path()).unwrap();
        let files: Vec<_> = modules.iter().map(|module| module.file.as_str()).collect();
        assert_eq!(
            files,
            [
                "virtio_mmio.ko",
                "virtio_blk.ko",
                "vsock.ko",
                "transport_common.ko",
                "vmw_vsock_virtio_transport.ko",
                "virtio_rng.ko"
            ]
        );
        assert!(modules.iter().all(|module| module.contents.starts_with(b"\x7fELF")), "something is still compressed");
    }

    #[test]
    fn a_driver_that_is_missing_is_named() {
        let tree = tree();
        fs::write(tree.path().join("modules.builtin"), "").unwrap();
        assert!(matches!(collect(tree.path()), Err(ModulesError::Missing { name, .. }) if name == "virtio_ring"));
    }

    #[test]
    fn a_file_that_is_no_module_is_named() {
        let tree = tree();
        fs::write(tree.path().join("kernel/virtio_mmio.ko"), "text").unwrap();
        assert!(
            matches!(collect(tree.path()), Err(ModulesError::NotAModule { path }) if path.ends_with("virtio_mmio.ko"))
        );
    }

    #[test]
    fn a_file_that_does_not_decompress_is_named() {
        let tree = tree();
        fs::write(tree.path().join("kernel/virtio_blk.ko.xz"), "text").unwrap();
        assert!(
            matches!(collect(tree.path()), Err(ModulesError::Read { path, .. }) if path.ends_with("virtio_blk.ko.xz"))
        );
    }
}

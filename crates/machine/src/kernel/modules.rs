//! Which modules the emulated host loads, in which order.

use super::{HostKernel, KernelError};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Error, ErrorKind};
use std::path::Path;

/// A module as the kernel takes it: not compressed.
pub(crate) struct Module {
    /// Its file's name, `overlay.ko`.
    pub(crate) file_name: String,
    /// The ELF file.
    pub(crate) content: Vec<u8>,
}

impl HostKernel {
    /// Reads the modules of these names and all that they need, in an order in which they can be loaded.
    ///
    /// A name without a module is left out when the kernel has it built in, and refused otherwise.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<Module>, KernelError> {
        let failed = |name: &str| {
            let name = name.to_owned();
            let folder = self.modules.clone();
            move |source| KernelError::Module { name, folder, source }
        };
        let index = fs::read_to_string(self.modules.join("modules.dep")).map_err(failed("modules.dep"))?;
        let built_in = fs::read_to_string(self.modules.join("modules.builtin")).unwrap_or_default();
        let paths = order(&index, &built_in, names)
            .map_err(|name| failed(name)(Error::new(ErrorKind::NotFound, "this kernel has no module of that name")))?;
        let read = |path: &&str| {
            let file_name = path.rsplit('/').next().unwrap_or(path);
            let content = read(&self.modules.join(path)).map_err(failed(file_name))?;
            Ok(Module { file_name: format!("{}.ko", name_of(path)), content })
        };
        paths.iter().map(read).collect()
    }
}

/// The paths of `names` and of all that they need in the index `modules.dep`, needed ones first; or the name that
/// neither the index nor the list of built-in modules has.
fn order<'a, 'n>(index: &'a str, built_in: &str, names: &[&'n str]) -> Result<Vec<&'a str>, &'n str> {
    // A line is `path: needed needed…`, where what is needed is complete and each depends on those after it.
    let lines: HashMap<String, (&str, &str)> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needed)| (name_of(path), (path, needed)))
        .collect();
    let built_in: HashSet<String> = built_in.lines().map(name_of).collect();
    let mut seen = HashSet::new();
    let mut ordered = Vec::new();
    for &name in names {
        let name_in_index = name.replace('-', "_");
        let Some((path, needed)) = lines.get(&name_in_index) else {
            if built_in.contains(&name_in_index) {
                continue;
            }
            return Err(name);
        };
        let needed_first = needed.split_whitespace().rev();
        ordered.extend(needed_first.chain([*path]).filter(|path| seen.insert(*path)));
    }
    Ok(ordered)
}

/// `kernel/net/9p/9pnet-virtio.ko.xz` → `9pnet_virtio`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => Ok(bytes),
        Some("xz") => {
            let mut content = Vec::with_capacity(4 * bytes.len());
            lzma_rs::xz_decompress(&mut bytes.as_slice(), &mut content).map_err(|error| match error {
                lzma_rs::error::Error::IoError(error) => error,
                other => Error::new(ErrorKind::InvalidData, format!("{other:?}")),
            })?;
            Ok(content)
        }
        _ => Err(Error::new(ErrorKind::Unsupported, "neither .ko nor .ko.xz")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "\
kernel/fs/9p/9p.ko.xz: kernel/fs/netfs/netfs.ko.xz kernel/net/9p/9pnet.ko.xz
kernel/net/9p/9pnet-virtio.ko.xz: kernel/net/9p/9pnet.ko.xz
kernel/net/9p/9pnet.ko.xz:
kernel/fs/netfs/netfs.ko.xz:
";

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        assert_eq!(
            order(INDEX, "kernel/fs/fuse/fuse.ko\n", &["9pnet_virtio", "fuse", "9p"]),
            Ok(vec![
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/net/9p/9pnet-virtio.ko.xz",
                "kernel/fs/netfs/netfs.ko.xz",
                "kernel/fs/9p/9p.ko.xz",
            ])
        );
    }

    #[test]
    fn a_module_that_the_kernel_does_not_have_is_named() {
        assert_eq!(order(INDEX, "", &["9p", "ext5"]), Err("ext5"));
    }
}

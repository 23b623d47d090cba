//! Debian's kernel, or one's own.
//!
//! Debian's is downloaded and unpacked, not installed, once per cache:
//!
//! ```text
//! <cache>/kernel/<package>.lock      held while it is downloaded
//! <cache>/kernel/<package>/boot/vmlinuz-<version>
//! <cache>/kernel/<package>/lib/modules/<version>/
//! ```

use crate::{
    apt::{self, Apt},
    durable,
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// The kernel of guests: small, with the VM generation id built in.
pub const CLOUD: &str = "linux-image-6.12-cloud-amd64";

/// The kernel of an emulated host: with KVM and every driver.
pub const GENERIC: &str = "linux-image-6.12-amd64";

/// The line that Pando is tested with: an older one is no substitute for it.
const OLDEST: (u32, u32) = (6, 12);

/// A kernel to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// A bzImage or an ELF vmlinux.
    pub image: PathBuf,
    /// `lib/modules/<version>`; absent when all drivers are built in.
    pub modules: Option<PathBuf>,
    /// For people.
    pub version: String,
    /// Two kernels with the same id have the same drivers.
    pub id: String,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No apt, no network, or no Debian.
    #[error(
        "cannot get Debian's kernel {package}: {why}; this needs Debian's apt and dpkg and a network once, \
          or give a kernel of your own with --kernel"
    )]
    Download {
        /// Which package.
        package: String,
        /// What went wrong, in the tool's words.
        why: String,
    },
    /// A file of one's own, or of the cache.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The package was unpacked, and there is no kernel in it.
    #[error("there is no kernel in {path}")]
    Empty {
        /// Where it was looked for.
        path: PathBuf,
    },
}

impl Kernel {
    /// The kernel of guests, from `cache_dir`; downloaded into it if it is not there. `progress` is told, in words,
    /// before something takes long.
    pub fn find(cache_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<Self, KernelError> {
        Self::of_package(CLOUD, cache_dir, progress)
    }

    /// As [`find`](Self::find), for any of Debian's kernel packages that names the newest of its line.
    pub fn of_package(package: &str, cache_dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<Self, KernelError> {
        let cache = cache_dir.join("kernel");
        let tree = cache.join(package);
        if tree.is_dir() {
            return Self::in_tree(&tree);
        }
        let lock_path = cache.join(format!("{package}.lock"));
        let lock = || {
            fs::create_dir_all(&cache)?;
            let lock = File::create(&lock_path)?;
            lock.lock()?; // Until it is dropped.
            Ok(lock)
        };
        let _lock = lock().map_err(|source| KernelError::Io { path: lock_path.clone(), source })?;
        if !tree.is_dir() {
            // Whoever held the lock before us may have died: what it left is not complete, and has another name.
            let temporary = cache.join(format!("{package}.partial"));
            download(package, &temporary, progress)?;
            durable::rename(&temporary.join("tree"), &tree)
                .map_err(|source| KernelError::Io { path: tree.clone(), source })?;
            // The archive is not needed any more, and what remains of it harms nobody.
            let _ = fs::remove_dir_all(&temporary);
        }
        Self::in_tree(&tree)
    }

    /// The kernel at `file`. Its modules are those of its version in `lib/modules` beside it or beside its directory, as
    /// packages lie on a disk (`boot/vmlinuz-<version>`), or the only ones in a `lib/modules` right beside it. Otherwise
    /// its drivers are taken to be built in.
    pub fn from_path(file: &Path) -> Result<Self, KernelError> {
        let wrong = |source| KernelError::Io { path: file.to_owned(), source };
        let image = file.canonicalize().map_err(wrong)?;
        // A pipe would be waited for, and a device read, for ever.
        if !image.metadata().map_err(wrong)?.is_file() {
            return Err(wrong(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(&image).map_err(wrong)?).map_err(wrong)?;
        let digest = hasher.finalize().to_hex();

        let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let version = name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-"));
        let beside = image.parent().unwrap_or(Path::new("/"));
        let of_its_version = version.and_then(|version| {
            [Some(beside), beside.parent()]
                .into_iter()
                .flatten()
                .map(|directory| directory.join("lib/modules").join(version))
                .find(|modules| modules.is_dir())
        });
        let modules = of_its_version.or_else(|| only_directory(&beside.join("lib/modules")));
        let version = match &modules {
            Some(modules) => modules.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            None => version.unwrap_or(&name).to_owned(),
        };
        // The drivers of a kernel that is being worked on change with its image.
        Ok(Self { image, modules, version, id: format!("file {digest}") })
    }

    /// Whether `package` is in `cache_dir`, so that nothing has to be downloaded.
    pub fn is_cached(package: &str, cache_dir: &Path) -> bool {
        cache_dir.join("kernel").join(package).is_dir()
    }

    fn in_tree(tree: &Path) -> Result<Self, KernelError> {
        let empty = || KernelError::Empty { path: tree.to_owned() };
        // Debian 13 and later have one tree below `usr`.
        let modules = ["lib/modules", "usr/lib/modules"].iter().find_map(|place| only_directory(&tree.join(place)));
        let modules = modules.ok_or_else(empty)?;
        let version = modules.file_name().ok_or_else(empty)?.to_string_lossy().into_owned();
        let image = tree.join("boot").join(format!("vmlinuz-{version}"));
        if !image.is_file() {
            return Err(empty());
        }
        Ok(Self { image, modules: Some(modules), id: format!("debian {version}"), version })
    }
}

/// The only directory in `parent`, if there is exactly one.
fn only_directory(parent: &Path) -> Option<PathBuf> {
    let mut directories = fs::read_dir(parent).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let only = directories.next()?;
    directories.next().is_none().then_some(only)
}

/// Unpacks the newest kernel of `package` into `directory/tree`.
fn download(package: &str, directory: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), KernelError> {
    let cannot = |why: String| KernelError::Download { package: package.to_owned(), why };
    let prepared = || {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        Apt::new(directory.join("apt"))
    };
    let apt = prepared().map_err(|source| KernelError::Io { path: directory.to_owned(), source })?;

    progress("asking Debian for its newest kernel");
    let updated = apt.update();
    // Debian 13 calls the same line by its name without a number.
    let depends = apt.depends(package).or_else(|_| apt.depends(&package.replace("-6.12", "")));
    // Without lists, that apt does not know a package is no news.
    let depends = depends.map_err(|why| cannot(updated.err().unwrap_or(why)))?;
    let newest = newest(&depends).map_err(cannot)?;
    progress(&format!("downloading {newest} from Debian (once, about 35 to 100 MB)"));
    // The signed one is for machines that check signatures while booting; the other is the same kernel and needs less.
    let archive = apt.download(&format!("{newest}-unsigned")).or_else(|_| apt.download(newest)).map_err(cannot)?;
    progress(&format!("unpacking {newest}"));
    let tree = directory.join("tree");
    apt::unpack(&archive, &tree).map_err(cannot)?;
    Kernel::in_tree(&tree).map(drop)
}

/// The package that a package of the line depends on, in what `apt-cache depends` prints.
fn newest(depends: &str) -> Result<&str, String> {
    let names = depends.lines().filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "));
    let newest = names.map(str::trim).find(|name| name.starts_with("linux-image-"));
    let newest = newest.ok_or("apt names no kernel for it")?;
    let mut numbers =
        newest.trim_start_matches("linux-image-").split(['.', '+', '-']).map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST {
        return Err(format!("the newest that apt knows is {newest}, and {}.{} is needed", OLDEST.0, OLDEST.1));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_what_the_line_depends_on() {
        let printed =
            "linux-image-6.12-cloud-amd64\n  Depends: linux-base\n  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(newest(printed), Ok("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest("  |Depends: linux-image-6.12.9\n"), Ok("linux-image-6.12.9"));
        assert_eq!(newest("  Depends: linux-image-7.0+1-amd64\n"), Ok("linux-image-7.0+1-amd64"));
        assert!(newest("N: Unable to locate package\n").is_err());
    }

    #[test]
    fn a_kernel_older_than_what_serves_is_no_substitute() {
        // What Debian 12 has under the name without a number, and 6.2 is older than 6.12.
        for old in ["linux-image-6.1.0-48-cloud-amd64", "linux-image-6.2.1-amd64", "linux-image-cloud"] {
            let why = newest(&format!("  Depends: {old}\n")).unwrap_err();
            assert!(why.contains(old) && why.contains("6.12"), "{why}");
        }
    }

    fn unpacked(cache: &Path, package: &str) {
        let tree = cache.join("kernel").join(package);
        fs::create_dir_all(tree.join("lib/modules/6.12.1")).unwrap();
        fs::create_dir_all(tree.join("boot")).unwrap();
        fs::write(tree.join("boot/vmlinuz-6.12.1"), "kernel").unwrap();
    }

    #[test]
    fn a_cached_kernel_needs_neither_apt_nor_a_network() {
        let cache = tempfile::tempdir().unwrap();
        unpacked(cache.path(), CLOUD);
        let mut told = Vec::new();
        let kernel = Kernel::find(cache.path(), &mut |words| told.push(words.to_owned())).unwrap();
        assert_eq!(kernel.version, "6.12.1");
        assert!(kernel.image.is_file() && kernel.modules.unwrap().is_dir());
        assert!(told.is_empty());
    }

    #[test]
    fn what_apt_does_not_know_is_said_in_one_sentence_that_names_the_way_out() {
        let cache = tempfile::tempdir().unwrap();
        let error = Kernel::of_package("linux-image-of-nobody", cache.path(), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("linux-image-of-nobody") && error.contains("--kernel"), "{error}");
        assert!(!cache.path().join("kernel/linux-image-of-nobody").exists());
    }

    #[test]
    fn a_kernel_of_ones_own_finds_the_modules_of_its_version() {
        let disk = tempfile::tempdir().unwrap();
        for version in ["6.1", "6.2"] {
            fs::create_dir_all(disk.path().join("lib/modules").join(version)).unwrap();
        }
        fs::create_dir(disk.path().join("boot")).unwrap();
        let image = disk.path().join("boot/vmlinuz-6.2");
        fs::write(&image, "kernel").unwrap();
        let kernel = Kernel::from_path(&image).unwrap();
        assert_eq!(kernel.version, "6.2");
        assert!(kernel.modules.unwrap().ends_with("lib/modules/6.2"));
    }

    #[test]
    fn a_kernel_alone_has_its_drivers_built_in_and_its_own_id() {
        let disk = tempfile::tempdir().unwrap();
        let image = disk.path().join("vmlinux");
        fs::write(&image, "one").unwrap();
        let one = Kernel::from_path(&image).unwrap();
        fs::write(&image, "two").unwrap();
        let two = Kernel::from_path(&image).unwrap();
        assert_eq!((one.modules, one.version.as_str()), (None, "vmlinux"));
        assert_ne!(one.id, two.id);
    }

    #[test]
    fn what_would_never_end_is_no_kernel() {
        let disk = tempfile::tempdir().unwrap();
        let pipe = disk.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for path in [&pipe, Path::new("/dev/zero"), disk.path()] {
            let error = Kernel::from_path(path).unwrap_err();
            assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "it is no file", "{error}");
        }
    }

    #[test]
    fn a_kernel_that_is_not_there_is_named() {
        let error = Kernel::from_path(Path::new("/no/such/kernel")).unwrap_err();
        assert_eq!(error.to_string(), "cannot use /no/such/kernel");
    }

    #[test]
    #[ignore = "downloads 34 MB from Debian"]
    fn two_who_want_the_same_kernel_at_once_both_get_it() {
        let cache = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let find = || Kernel::find(cache.path(), &mut |_| ()).unwrap();
            let (one, two) = (scope.spawn(find), scope.spawn(find));
            assert_eq!(one.join().unwrap(), two.join().unwrap());
        });
        let kernel = Kernel::find(cache.path(), &mut |_| ()).unwrap();
        let base = crate::initramfs::base(&kernel).unwrap();
        assert!(base.len() > 1 << 20);
    }
}

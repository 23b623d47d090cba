//! Programs of this computer, and the Debian packages that they come from.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A program, and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

pub(crate) const QEMU: Tool = Tool { program: "qemu-system-x86_64", package: "qemu-system-x86" };
pub(crate) const BUSYBOX: Tool = Tool { program: "busybox", package: "busybox-static" };
pub(crate) const DEPMOD: Tool = Tool { program: "depmod", package: "kmod" };
pub(crate) const MKFS: Tool = Tool { program: "mkfs.ext4", package: "e2fsprogs" };
pub(crate) const APT_GET: Tool = Tool { program: "apt-get", package: "apt" };
pub(crate) const DPKG_DEB: Tool = Tool { program: "dpkg-deb", package: "dpkg" };
pub(crate) const NFT: Tool = Tool { program: "nft", package: "nftables" };
/// Ends a program with its starter; used when it is there.
pub(crate) const SETPRIV: Tool = Tool { program: "setpriv", package: "util-linux" };

/// Why a program of this computer was of no help.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("cannot find {program}: install the package that has it (on Debian: apt-get install {package})")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// It needs libraries, and where it is to run there are none.
    #[error("{path} is not static, and the emulated host has no libraries for it: apt-get install busybox-static")]
    Dynamic {
        /// The program.
        path: PathBuf,
    },
    /// It cannot be started.
    #[error("cannot run {program}")]
    Spawn {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ran and ended badly.
    #[error("{program} ended with {status}: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last line of what it said.
        said: String,
    },
}

impl Tool {
    /// Where it is: in `PATH`, or where Debian keeps programs of the administrator, which `PATH` may lack.
    pub(crate) fn find(self) -> Result<PathBuf, ToolError> {
        self.find_all().next().ok_or(ToolError::Missing { program: self.program, package: self.package })
    }

    fn find_all(self) -> impl Iterator<Item = PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders: Vec<_> = std::env::split_paths(&path).collect();
        let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        let candidates = folders.into_iter().chain(usual).map(move |folder| folder.join(self.program));
        candidates.filter(|candidate| candidate.is_file())
    }

    /// A command that runs it, in English.
    pub(crate) fn command(self) -> Result<Command, ToolError> {
        let mut command = Command::new(self.find()?);
        command.env("LC_ALL", "C");
        Ok(command)
    }

    /// Runs it to its end and returns what it wrote to standard output.
    pub(crate) fn output<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Result<Vec<u8>, ToolError> {
        let mut command = self.command()?;
        command.args(args);
        self.check(&mut command)
    }

    /// Runs `command`, which is this tool, to its end and returns what it wrote to standard output.
    pub(crate) fn check(self, command: &mut Command) -> Result<Vec<u8>, ToolError> {
        let Output { status, stdout, stderr } =
            command.output().map_err(|source| ToolError::Spawn { program: self.program, source })?;
        if status.success() {
            return Ok(stdout);
        }
        let said = String::from_utf8_lossy(&stderr);
        let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("(nothing said)").to_owned();
        Err(ToolError::Failed { program: self.program, status, said })
    }
}

/// The busybox that is the emulated host's first program: a static one, because there are no libraries yet.
pub(crate) fn busybox() -> Result<PathBuf, ToolError> {
    let dynamic = BUSYBOX.find()?;
    BUSYBOX.find_all().find(|path| !needs_interpreter(path)).ok_or(ToolError::Dynamic { path: dynamic })
}

/// Whether the ELF program at `path` names an interpreter, as every program does that needs shared libraries.
fn needs_interpreter(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let bytes = fs::read(path).unwrap_or_default();
    let number = |at: usize, len: usize| {
        let field = bytes.get(at..at.checked_add(len)?)?;
        Some(field.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    };
    // e_phoff, e_phentsize and e_phnum of a 64-bit file; its program headers begin with their types.
    let (Some(start), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else { return false };
    (0..count).any(|index| number(start.saturating_add(index * size), 4) == Some(PT_INTERP as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_needs_libraries_is_told_from_one_that_does_not() {
        assert!(needs_interpreter(&std::env::current_exe().unwrap()));
        assert!(!needs_interpreter(Path::new("/proc/self/status")), "no ELF file, none of our business");
        if let Ok(found) = busybox() {
            let output = Command::new("ldd").arg(&found).output().unwrap();
            assert!(!output.status.success(), "{}: {output:?}", found.display());
        }
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = Tool { program: "pando-no-such-program", package: "some-package" }.find().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot find pando-no-such-program: install the package that has it (on Debian: apt-get install some-package)"
        );
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let sh = Tool { program: "sh", package: "dash" };
        let error = sh.output(["-c", "echo first >&2; echo last >&2; exit 3"]).unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 3: last");
    }
}

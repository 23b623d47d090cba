//! Programs of this computer, and the Debian packages that they come from.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
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
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into(), "/bin".into()])
            .map(|folder| folder.join(self.program))
            .find(|candidate| candidate.is_file())
            .ok_or(ToolError::Missing { program: self.program, package: self.package })
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

#[cfg(test)]
mod tests {
    use super::*;

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
